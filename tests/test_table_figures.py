"""Figures, p values and answers of made-up evaluations: which are given, and their numbers."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from matplotlib.collections import Collection, PathCollection
from matplotlib.colors import to_rgb

from nnunet_integration import figures
from nnunet_integration.arms import ArmBook
from nnunet_integration.figures import arm_styles, draw_figures, n_real_points, plateau_points, worst_drops
from nnunet_integration.results import Results
from nnunet_integration.statistics import holm, wilcoxon_p
from nnunet_integration.table import compare, markdown, table_rows, write_table
from nnunet_integration.verdict import answer

ITERATIONS = (300, 600, 1200, 2400)
BUDGET = {"plan": None, "iterations": 2400}


def write_csv(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """As `sbldm.run.files`, but without waiting for the disk, which takes most of the time with hundreds of files."""
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def write_job(
    out: Path,
    arm: str,
    dsc: Sequence[float],
    n_real: int = 10,
    seed: int = 0,
    pairs: int = 0,
    fold: int | None = None,
    regions: Mapping[str, float] | None = None,
) -> None:
    """A finished job whose cases have these DSC; in a region the DSC is so much lower."""
    folder = out / "jobs" / f"{arm}_n{n_real}{'' if fold is None else f'_fold{fold}'}_seed{seed}"
    random = np.random.default_rng([seed, n_real, *arm.encode()])
    cases = [f"test__BraTS20_Training_{k:03d}" for k in range(len(dsc))]
    train = [f"real__{k}" for k in range(n_real * ("real" in arm.split("+")))] + [f"sbldm__{k}" for k in range(pairs)]
    split = len(list((out / "jobs").glob("*")))
    job = {"job": folder.name, "arm": arm, "n_real": n_real, "fold": fold, "seed": seed, "split": split}
    folder.mkdir(parents=True)
    (folder / "job.json").write_text(
        json.dumps(
            job
            | {"budget": BUDGET, "lineage": "", "validation": [], "train": train, "test": cases}
            | ({"regions": {region: [1] for region in regions}} if regions else {})
        )
    )
    snapshots = [
        {"iterations": i, "case": case, "dsc": max(0.0, value - 60 / i)}
        for i in ITERATIONS
        for case, value in zip(cases, dsc, strict=True)
    ]
    write_csv(folder / "snapshots.csv", snapshots)
    scores = [
        {"case": c, "dsc": d, "iou": d, "hd95_mm": 9, "nsd_1mm": d, "false_lesions": 0}
        | {f"{m} {r}": d - less for r, less in (regions or {}).items() for m in ("dsc", "iou", "hd95_mm", "nsd_1mm")}
        for c, d in zip(cases, dsc, strict=True)
    ]
    write_csv(folder / "scores.csv", scores)
    write_csv(folder / "lesions.csv", [{"case": c, "volume_ml": 9, "found": 1} for c in cases])
    curve, speed, rise = [], random.uniform(4, 8), random.uniform(0, 0.02)
    for epoch in range(1, 25):
        falls = 0.9 * np.exp(-epoch / speed)
        curve.append(
            {
                "epoch": epoch,
                "iterations": 100 * epoch,
                "train_loss": falls - 0.85 + random.normal(0, 0.02),
                "validation_loss": falls - 0.7 + rise * epoch + random.normal(0, 0.05),
                "validation_dsc": 0.7,
                "seconds": 9,
            }
        )
    write_csv(folder / "curve.csv", curve)
    (folder / "done.json").write_text(json.dumps({"predict_seconds": 1, "peak_gb": 1}))


def finish(out: Path) -> Results:
    shutil.copy(Path(figures.__file__).with_name("arms.yaml"), out / "arms.yaml")
    return Results.load(out)


def write_large(out: Path, cases: int = 30, n_real: Sequence[int] = (10, 25, 100)) -> Results:
    """Nine arms, three seeds, four amounts."""
    random = np.random.default_rng(0)
    hard = random.beta(8, 2.5, cases) - 0.1
    arms = {"real": (0, -0.06), "real+aug": (0, 0), "real+aug5": (0, -0.03)}
    arms |= {f"real+sbldm+aug@{a:g}x": (a, 0.02 * np.log2(1 + a)) for a in (0.5, 1, 2, 5)}
    arms |= {"real+copypaste+aug@1x": (1, 0.01), "real+copypaste+aug@5x": (5, -0.02)}
    for n in n_real:
        for arm, (amount, gain) in arms.items():
            own = random.normal(0, 0.04, cases)
            for seed in range(3):
                dsc = hard + gain + 0.05 * np.log10(n) + own + random.normal(0, 0.02, cases) + random.normal(0, 0.01)
                write_job(out, arm, np.clip(dsc, 0, 0.97), n, seed, round(amount * n))
    return finish(out)


def write_small(out: Path) -> Results:
    write_job(out, "real", [0.7, 0.5, 0.8, 0.6])
    write_job(out, "real+aug", [0.8, 0.9, 0.7, 0.6])
    return finish(out)


def names(paths: Sequence[Path]) -> set[str]:
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in paths)
    return {path.name for path in paths}


def drawn(collection: Collection) -> list[float]:
    """Heights of the dots, lowest first."""
    return sorted(collection.get_offsets()[:, 1].tolist())


def test_small_evaluation(tmp_path):
    """Two arms and one number of cases: nothing to show of growth; the picture holds the differences."""
    results = write_small(tmp_path)
    paths = draw_figures(results)
    assert names(paths) == {"paired_n10.png", "worst_n10.png", "learning_iterations.png"}
    assert {path.parent for path in paths} == {tmp_path / "figures"}
    above, below = figures._paired(results, 10).axes
    assert drawn(above.collections[0]) == pytest.approx([0.5, 0.6, 0.7, 0.8])
    assert drawn(below.collections[0]) == pytest.approx([-0.4, -0.1, 0, 0.1], abs=1e-12)
    diamonds = [c for c in above.collections if isinstance(c, PathCollection) and len(c.get_offsets()) == 1]
    assert [drawn(diamond) for diamond in diamonds] == [[0.714], [0.806]]  # the paper's, of arms.yaml
    assert {text.get_text() for text in below.texts} == {"-0.100\nnot decided", "baseline"}
    legend = figures._paired(results, 10).legends[0].get_texts()
    assert "over test cases alone where there is one training;\nnothing is decided" in legend[2].get_text()


def test_without_baseline_nothing_is_compared(tmp_path):
    write_job(tmp_path, "real", [0.7, 0.5])
    write_job(tmp_path, "real+sbldm", [0.8, 0.6], pairs=10)
    assert names(draw_figures(finish(tmp_path))) == {"learning_iterations.png"}


def test_regions_have_their_own_rows(tmp_path):
    """Whole tumour, core and enhancing: scores of each, and its difference with an interval, without a verdict."""
    random = np.random.default_rng(0)
    base = random.uniform(0.6, 0.9, 12)
    less = {"tumour core": 0.1, "enhancing tumour": 0.2}
    for seed in range(3):
        write_job(tmp_path, "real+aug", base, seed=seed, regions=less)
        write_job(tmp_path, "real+sbldm+aug", base + 0.05, seed=seed, pairs=10, regions=less | {"tumour core": 0.15})
    results = finish(tmp_path)
    rows = {row["arm"]: row for row in table_rows(results)}
    ours = rows["real+sbldm+aug"]
    assert ours["tumour core: difference"] == pytest.approx(0) and ours["difference"] == pytest.approx(0.05)
    assert ours["enhancing tumour: difference"] == pytest.approx(0.05)
    assert ours["enhancing tumour: dsc_mean"] == pytest.approx(base.mean() - 0.15)
    assert rows["real+aug"]["tumour core: low"] == ""
    text = write_table(results)[1].read_text()
    assert text.count("| whole tumour |") == text.count("| tumour core |") == 2 and "**Regions**" in text
    shown = next(line for line in text.splitlines() if "real+sbldm+aug | enhancing tumour" in line)
    assert shown.endswith("| +0.050 [+0.050, +0.050] |") and f"{base.mean() - 0.15:.3f}" in shown


def test_regions_of_some_arms_alone(tmp_path):
    """Arms from before there were regions have no rows of them, and nobody is compared with what is not there."""
    dsc = np.random.default_rng(0).uniform(0.6, 0.9, 12)
    for seed in range(3):
        write_job(tmp_path, "real+aug", dsc, seed=seed, regions={"tumour core": 0.1} if seed == 1 else None)
        write_job(tmp_path, "real+sbldm+aug", dsc, seed=seed, pairs=10, regions={"tumour core": 0.1})
    results = finish(tmp_path)
    rows = {row["arm"]: row for row in table_rows(results)}
    assert "tumour core: dsc_mean" not in rows["real+aug"] and rows["real+sbldm+aug"]["tumour core: difference"] == ""
    csv_path, md_path = write_table(results)
    assert md_path.read_text().count("| tumour core |") == 1 and "real+aug | tumour core" not in md_path.read_text()
    with open(csv_path, newline="") as file:
        assert [row["tumour core: dsc_mean"] != "" for row in csv.DictReader(file)] == [False, True]


def test_arm_that_loses_nothing(tmp_path):
    write_job(tmp_path, "real", [0.7, 0.5])
    write_job(tmp_path, "real+aug", [0.7, 0.4])
    assert names(draw_figures(finish(tmp_path))) == {"paired_n10.png", "learning_iterations.png"}


def test_worst_drops(tmp_path):
    """Mean over two seeds; the case that gains and the one that stays are left out; the worst comes first."""
    write_job(tmp_path, "real+aug", [0.8, 0.9, 0.7, 0.6, 0.5])
    write_job(tmp_path, "real", [0.7, 0.5, 0.9, 0.6, 0.2], seed=0)
    write_job(tmp_path, "real", [0.5, 0.3, 0.9, 0.6, 0.6], seed=1)
    arms = finish(tmp_path).with_n(10)
    found = worst_drops(arms["real"], arms["real+aug"])
    assert [case[-3:] for case, *_ in found] == ["001", "000", "004"]
    assert [scores for _, *scores in found] == [pytest.approx(pair) for pair in ([0.9, 0.4], [0.8, 0.6], [0.5, 0.4])]
    assert worst_drops(arms["real"], arms["real+aug"], 1) == found[:1]


def test_growth(tmp_path):
    """Points by hand; all cases alike, so that the interval is that of the two seeds alone, 0.1 apart,
    each .05 sqrt(2) from their mean when stretched."""
    write_job(tmp_path, "real", [0.5, 0.5])
    write_job(tmp_path, "real", [0.7, 0.7], n_real=20)
    for name, dsc, pairs in (("@2x", 0.9, 20), ("", 0.8, 10), ("+aug@2x", 0.7, 20), ("+aug@5x", 0.75, 50)):
        write_job(tmp_path, f"real+sbldm{name}", [dsc, dsc], pairs=pairs)
        write_job(tmp_path, f"real+sbldm{name}", [dsc - 0.1, dsc - 0.1], pairs=pairs, seed=1)
    write_job(tmp_path, "real+copypaste@2x", [0.6, 0.6], pairs=20)  # one amount: no line
    results = finish(tmp_path)
    far = 0.05 * 2**0.5
    single = {"real+sbldm": 0.75, "real+sbldm@2x": 0.85, "real+sbldm+aug@2x": 0.65, "real+sbldm+aug@5x": 0.7}
    over_n = {name: [(10, dsc, dsc - far, dsc + far)] for name, dsc in single.items()}
    over_n |= {
        "real": [(10, 0.5, 0.5, 0.5), (20, 0.7, 0.7, 0.7)],
        "real+copypaste": [(10, 0.6, 0.6, 0.6)],
    }  # one amount
    found = n_real_points(results)
    assert found == {name: [pytest.approx(point) for point in points] for name, points in over_n.items()}
    expected = {
        "real+sbldm": [(0, 0.5, 0.5, 0.5), (1, 0.75, 0.75 - far, 0.75 + far), (2, 0.85, 0.85 - far, 0.85 + far)],
        "real+sbldm+aug": [(2, 0.65, 0.65 - far, 0.65 + far), (5, 0.7, 0.7 - far, 0.7 + far)],  # without real+aug
    }
    found = plateau_points(results, 10)
    assert found == {family: [pytest.approx(point) for point in points] for family, points in expected.items()}
    assert plateau_points(results, 20) == {}


def write_trainings(out: Path, counts: dict[str, int]) -> Results:
    """The second arm is worse by .1 in every case; trainings of an arm differ by .001."""
    for arm, count in counts.items():
        for seed in range(count):
            write_job(out, arm, [0.9 - 0.02 * k - 0.1 * (arm == "real") - 0.001 * seed for k in range(12)], seed=seed)
    return finish(out)


@pytest.mark.parametrize(
    ("own", "base", "expected"),
    [
        (1, 1, "not decided: one training"),
        (3, 1, "not decided: one training"),
        (1, 3, "not decided: one training"),
        (2, 5, "not decided: two trainings"),
        (3, 3, "worse"),
    ],
)
def test_no_verdict_below_three_trainings(tmp_path, own, base, expected):
    """However clear the difference: difference and interval stand, a p and a verdict do not."""
    results = write_trainings(tmp_path, {"real+aug": base, "real": own})
    found = compare(results.with_n(10), results.book)["real"]
    assert found["verdict"] == expected and found["difference"] == pytest.approx(-0.1 - 0.0005 * (own - base))
    assert found["low"] < found["difference"] < found["high"] < 0 or (own, base) == (1, 1)
    decided = expected == "worse"
    assert np.isfinite(found["p"]) == decided and (found["p"] < 0.05) == decided
    rows = table_rows(results)
    assert {row["arm"]: row["trainings"] for row in rows} == {"real+aug": base, "real": own}
    page = markdown(Results(tmp_path, results.arms, results.book, BUDGET, []), rows)
    (line,) = [line for line in page.splitlines() if line.startswith("| real |") and expected in line]
    assert ("| - |" in line) != decided
    assert ("**Not decided**" in page) != decided
    notes = {text.get_text() for text in figures._paired(results, 10).axes[1].texts}
    assert any("not decided" in note for note in notes) != decided


def test_folds_are_trainings(tmp_path):
    """One seed on three folds: three networks, so there is a verdict; both are counted."""
    for arm, worse in (("real+aug", 0), ("real", 0.1)):
        for fold in range(3):
            write_job(tmp_path, arm, [0.9 - 0.02 * k - worse - 0.001 * fold for k in range(12)], fold=fold)
    rows = table_rows(finish(tmp_path))
    assert [(row["seeds"], row["trainings"]) for row in rows] == [(1, 3), (1, 3)]
    assert rows[1]["verdict"] == "worse"


def test_arms_that_cannot_be_decided_count_as_those_that_are_not_there(tmp_path):
    """Holm corrects for the four arms of the family, of which two have three trainings."""
    random, p = np.random.default_rng(0), {}
    for arm, count in (("real+aug", 3), ("real", 3), ("real+aug5", 3), ("real+sbldm", 1), ("real+sbldm+aug", 2)):
        p[arm] = random.normal(0.7, 0.05, 12)
        for seed in range(count):
            write_job(tmp_path, arm, p[arm], seed=seed)
    results = finish(tmp_path)
    found = compare(results.with_n(10), results.book)
    alone = {arm: wilcoxon_p(p[arm] - p["real+aug"]) for arm in ("real", "real+aug5")}
    assert {arm: found[arm]["p"] for arm in alone} == pytest.approx(holm(alone, 4))
    assert all(np.isnan(found[arm]["p"]) for arm in ("real+sbldm", "real+sbldm+aug"))


RISING = np.arange(1, 9) / 100  # differences of eight cases; all above 0: p = 2 / 256, with some below:
COUNTS = {(): 2, (1,): 4, (2,): 6, (3,): 10, (4,): 14}  # sums of ranks up to this one, two-sided, by hand


def write_ranks(out: Path, arms: dict[str, tuple[int, ...]], trainings: int = 3) -> None:
    """Arms whose Wilcoxon p is COUNTS / 256, all trainings of one alike, and the baseline."""
    for arm, below in {"real+aug": None, **arms}.items():
        gains = 0 * RISING if below is None else RISING * [-1 if k in below else 1 for k in range(1, 9)]
        pairs = 0 if set(arm.split("+")) <= {"real", "aug", "aug5"} else 10
        for seed in range(trainings):
            if not (out / "jobs" / f"{arm}_n10_seed{seed}").exists():
                write_job(out, arm, 0.5 + gains, seed=seed, pairs=pairs)


def counts(results: Results) -> dict[str, float]:
    """Adjusted p of the arms with ten real cases, times 256."""
    return {arm: 256 * row["p"] for arm, row in compare(results.with_n(10), results.book).items()}


def test_families_are_fixed(tmp_path):
    """Four arms each: times 4, 3, 2 by rank, whether or not the fourth is there, and whatever runs beside them."""
    write_ranks(tmp_path, {"real+sbldm+aug+share25": (3,), "real+sbldm+aug": (1,), "real+sbldm+copypaste+aug": ()})
    write_ranks(tmp_path, {"real": (2,), "sbldm": ()})
    first = counts(finish(tmp_path))
    assert first == pytest.approx(
        {
            **{"real+sbldm+copypaste+aug": 4 * 2, "real+sbldm+aug": 3 * 4, "real+sbldm+aug+share25": 2 * 10},
            **{"real": 4 * 6, "sbldm": 4 * 2},  # beside sbldm it would be 3 * 6, beside another generator perhaps not
        }
    )
    others = {"real+lsgan+aug": (), "lsgan": (1,), "real+sbldm+aug@5x": (4,), "real+sbldm+aug+falling": (1,)}
    write_ranks(tmp_path, others)
    results = finish(tmp_path)
    found = counts(results)
    assert {arm: found.pop(arm) for arm in first} == first  # to the last digit
    assert found == pytest.approx(
        {"real+lsgan+aug": 4 * 2, "lsgan": 4 * 4, "real+sbldm+aug@5x": 4 * 14, "real+sbldm+aug+falling": 4}
    )
    content = yaml.safe_load((tmp_path / "arms.yaml").read_text())
    content["arms"]["real+synth+new"] = {"train": ["real", "synth"], "augmentation": "none"}
    (tmp_path / "arms.yaml").write_text(yaml.safe_dump(content))
    write_ranks(tmp_path, {"real+sbldm+new": (2,)})
    grown = counts(Results.load(tmp_path))
    assert grown == {**first, **counts(results), "real+sbldm+new": pytest.approx(6)}
    write_ranks(tmp_path, {"real+sbldm": (1,)})  # of the family: sbldm as before, this one times 3
    assert counts(Results.load(tmp_path)) == grown | {"real+sbldm": pytest.approx(3 * 4)}


def test_exploratory_arms(tmp_path):
    """Neither better nor worse, their p as it is; below three trainings not decided, as any arm."""
    write_ranks(tmp_path, {"real+sbldm+aug+falling": ()})
    write_ranks(tmp_path, {"real+sbldm+aug+pretrain_longer": ()}, trainings=2)
    results = finish(tmp_path)
    rows = table_rows(results)
    assert [row["verdict"] for row in rows] == ["", "exploratory", "not decided: two trainings"]
    assert rows[1]["p"] == pytest.approx(2 / 256) and rows[1]["low"] > 0
    page = markdown(results, rows)
    assert "| 0.008 |" in page and "- **Exploratory**: the arm is in no family." in page


def test_families_by_name(tmp_path):
    book, amounts = ArmBook.load(), ("", "@5x")
    for amount in amounts:
        kinds = ("aug", "aug+share25", "aug+pretrain", "copypaste+aug")
        family = tuple(f"real+canvas+{kind}{amount}" for kind in kinds)
        assert all(book.family(name) == family for name in family)
        family = ("real", "real+aug5", f"canvas{amount}", f"real+canvas{amount}")
        assert all(book.family(name) == family for name in family[2:])
    assert book.family("real+copypaste+aug")[0] == "real+copypaste+aug"
    assert book.family("real") == book.family("real+aug5") == ("real", "real+aug5", "synth", "real+synth")
    for name in ("real+aug", "real+canvas+aug+falling", "real+canvas+aug+falling@5x", "real+canvas+other"):
        assert book.family(name) == ()
    content = yaml.safe_load(Path(figures.__file__).with_name("arms.yaml").read_text())
    (tmp_path / "old.yaml").write_text(yaml.safe_dump(content | {"families": []}))
    old = ArmBook.load(str(tmp_path / "old.yaml"))
    assert len(old.family("real")) == len(old.family("real+canvas+aug+falling@2x")) == len(old.arms) - 1
    assert "real+canvas+aug@2x" in old.family("real+canvas+aug+falling@2x")


def write_gains(out: Path, gains: dict[str, float], trainings: int, n_real: int, cases: int = 12) -> Results:
    """Arms ahead of the baseline by this much, .02 more or less by turns of the cases; trainings .001 apart."""
    for arm, gain in {"real+aug": None, **gains}.items():
        swing = 0 if gain is None else gain + 0.02 * (-1.0) ** np.arange(cases)
        amount = 0 if arm in ("real", "real+aug") else 5 if arm.endswith("@5x") else 1
        for seed in range(trainings):
            write_job(out, arm, 0.7 + 0.001 * seed + swing + np.zeros(cases), n_real, seed, round(amount * n_real))
    return finish(out)


ON = "(95 % interval, 12 test cases, 3 trainings of each)."
NO_DIFFERENCE = (
    "With 10 real cases pairs make no difference that 12 test cases and 3 trainings of each could show (the smallest "
    "that they could: 0.02): `{}`, DSC +0.002 [-0.012, +0.016] against `real+aug` (95 % interval, p 0.646). Next: {}."
)
MORE = "Next: more test cases (`--test`) or seeds (`--seeds`)."


@pytest.mark.parametrize(
    ("gains", "trainings", "n_real", "expected"),
    [
        (
            {"real": 0.08, "real+sbldm+aug": 0.03, "real+canvas+aug@5x": 0.05},
            *(3, 10),
            f"With 10 real cases `real+canvas+aug@5x` helps: DSC +0.050 [+0.036, +0.064] over `real+aug` {ON} {MORE}",
        ),
        (
            {"real+sbldm+aug": 0.05},
            *(1, 10),
            "With 10 real cases one cannot tell from one training: `real+sbldm+aug`, DSC +0.050 [+0.036, +0.064] "
            "against `real+aug` (95 % interval, 12 test cases, 1 training of each). "
            "Next: `--seeds 0,1,2` trains three of each.",
        ),
        (
            {"real+sbldm+aug": 0.002},
            *(3, 10),
            NO_DIFFERENCE.format(
                "real+sbldm+aug", "draw into real brains, with `sbldm synth --canvas train` or `sbldm copypaste`"
            ),
        ),
        (
            {"real+canvas+aug": 0.002},
            *(3, 10),
            NO_DIFFERENCE.format(
                "real+canvas+aug", "five pairs for each real case, with `sbldm nnunet plateau --amounts 5`"
            ),
        ),
        (
            {"real+canvas+aug": -0.03, "real+copypaste+aug": -0.05},
            *(3, 100),
            "With 100 real cases pairs do not help: `real+canvas+aug` is worse, DSC -0.030 [-0.044, -0.016] against "
            f"`real+aug` {ON} {MORE}",
        ),
        (
            {"real+canvas+aug": 0.03, "real+copypaste+aug+falling": 0.05},
            *(3, 100),
            "With 100 real cases `real+canvas+aug` helps: DSC +0.030 [+0.016, +0.044] over `real+aug` "
            f"{ON} `real+copypaste+aug+falling` is ahead of it by its mean (+0.050 [+0.036, +0.064], exploratory). "
            f"{MORE}",
        ),
        (
            {"real+canvas+aug+falling": 0.05},
            *(3, 100),
            "With 100 real cases one cannot tell: `real+canvas+aug+falling` is exploratory, in no family of the arms "
            f"file; DSC +0.050 [+0.036, +0.064] against `real+aug` {ON} {MORE}",
        ),
        ({"real": 0.05}, 3, 10, "With 10 real cases nothing can be said of pairs: no arm with pairs is finished."),
    ],
)
def test_answer(tmp_path, gains, trainings, n_real, expected):
    assert answer(write_gains(tmp_path, gains, trainings, n_real)) == [expected]


def test_answers_of_each_number_of_real_cases(tmp_path):
    """One training of the baseline beside three; a number without baseline; they stand above the table."""
    write_job(tmp_path, "real+canvas+aug", [0.7, 0.5], n_real=25, pairs=25)
    write_job(tmp_path, "real+aug", [0.6, 0.5], n_real=9)
    for seed in range(3):
        write_job(tmp_path, "real+canvas+aug", [0.7, 0.5], n_real=9, seed=seed, pairs=9)
    results = finish(tmp_path)
    few, none = answer(results)
    assert few.startswith("With 9 real cases one cannot tell from one training: `real+canvas+aug`, DSC +0.050 [")
    assert few.endswith("2 test cases, 3 trainings and 1 of `real+aug`). Next: `--seeds 0,1,2` trains three of each.")
    assert none == "With 25 real cases nothing can be said of pairs: no `real+aug` is finished."
    page = write_table(results, [few, none])[1].read_text()
    assert page.startswith(f"# Table 2: does it help?\n\n{few}\n\n{none}\n\nReal nnU-Net")


def test_large_evaluation(tmp_path):
    results = write_large(tmp_path, cases=12, n_real=(10, 25))
    each = {f"{figure}_n{n}.png" for figure in ("paired", "worst") for n in (10, 25)}
    assert names(draw_figures(results)) == each | {"learning_iterations.png", "learning_n_real.png", "plateau.png"}
    arms = {name for _, name in results.arms}
    colours = {name: tuple(to_rgb(style["color"])) for name, style in arm_styles(results).items()}
    assert arms < set(colours) and len({colours[name] for name in arms}) == 9
    assert colours["real+aug"] == to_rgb("#404040")
    amounts = [sum(colours[f"real+sbldm+aug@{amount}x"]) for amount in ("0.5", "1", "2", "5")]
    assert amounts == sorted(amounts, reverse=True)  # from light to dark
    for panel in figures._plateau(results).axes:  # what is moved sideways stays in view
        low, high = panel.get_ylim()
        assert all(low < y < high for line in panel.lines for y in line.get_ydata())
