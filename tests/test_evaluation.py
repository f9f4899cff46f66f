"""The evaluation as a user runs it, on folders of any origin: all scores beside their floors."""

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
from conftest import call, one_line

from sbldm.cases.layouts import Case, Source, find_cases
from sbldm.cases.phantom import write_phantoms
from sbldm.commands import worth as evaluation_command
from sbldm.evaluation.cohort import describe, workers
from sbldm.evaluation.evaluate import reference_names
from sbldm.evaluation.protocols import PROTOCOLS, REFERENCES_EXPLAINED, Score, protocol
from sbldm.evaluation.scoring import LEAST, chosen, score_distribution
from sbldm.evaluation.settings import Evaluation
from sbldm.evaluation.written import GROUPS, read_scores
from sbldm.metrics import features
from sbldm.metrics.copies import REACH
from sbldm.metrics.distribution import Scale, kid, mmd
from sbldm.metrics.intervals import Estimate, mean_estimate, middle
from sbldm.metrics.volumes import evaluation_grid
from sbldm.pages.table import write_table
from sbldm.run.errors import StateError
from sbldm.run.folder import Run
from sbldm.run.manifest import Manifest
from sbldm.run.text import number

SLICES = features.SLICES  # as processes have it that know nothing of `four_slices`


def rename(case: Path, name: str) -> Path:
    """Give a case folder and its files another name."""
    for file in case.iterdir():
        file.rename(case / file.name.replace(case.name, name))
    return case.rename(case.with_name(name))


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory, many_phantoms: list[Path]) -> dict[str, Path]:
    """Training, held-back and "synthetic" phantoms of one kind; among the latter what goes wrong in real folders."""
    root = tmp_path_factory.mktemp("folders")
    made = {role: root / role for role in ("train", "heldout", "synthetic")}
    for k, (role, folder) in enumerate(made.items()):
        for i, case in enumerate(many_phantoms[11 * k : 11 * k + 11]):
            copied = shutil.copytree(case, folder / case.name)
            rename(copied, f"{role}_Phantom_{i:03d}")
    synthetic = made["synthetic"]
    copied = shutil.copytree(made["train"] / "train_Phantom_003", synthetic / "train_Phantom_003")
    rename(copied, "copy")
    (synthetic / "synthetic_Phantom_001" / "synthetic_Phantom_001_seg.nii.gz").unlink()
    path = synthetic / "synthetic_Phantom_002" / "synthetic_Phantom_002_flair.nii.gz"
    image = nib.load(path)
    voxels = np.asarray(image.dataobj, np.float32)
    voxels[30, 30, 20] = np.nan
    nib.save(nib.Nifti1Image(voxels, image.affine), path)
    write_phantoms(root / "other", 1, seed=9, shape=(48, 48, 31), spacing=5.0, progress=False)
    rename(shutil.copytree(root / "other" / "Phantom_000", synthetic / "Phantom_000"), "other")
    return made | {"out": root / "out"}


def evaluation(folders: dict[str, Path], out: Path, *more: object) -> list[object]:
    """Arguments of the command."""
    roles = (f"--{role}={folders[role]}" for role in ("synthetic", "train", "heldout"))
    return ["evaluate", *roles, "--out", out, *more]


NO_AUTOENCODER = "the run has no autoencoder."


def evaluate(folders: dict[str, Path]) -> dict:
    """`evaluation.json`, with the floor's cases as if they had come through the path unharmed, and no autoencoder."""

    def unharmed(run: Run | None, dataset: Path, names: list[str]) -> tuple[dict[str, list[Case]], dict[str, str]]:
        source = Source.from_config(["flair"], {"whole tumour": "all"})
        by_name = {case.name: case for case in find_cases(folders["train"], source)}
        return {"path": [by_name[name] for name in names]}, {"autoencoder": NO_AUTOENCODER}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluation_command, "_references", unharmed)
        done = call(*evaluation(folders, folders["out"], "--workers", 1))
    assert done.returncode == 0, done.stderr
    assert "Do the images come from the same distribution?" in done.stdout
    return json.loads((folders["out"] / "evaluation.json").read_text())


@pytest.fixture(scope="module")
def content(four_slices: None, folders: dict[str, Path]) -> dict:
    """`evaluation.json` of those folders."""
    return evaluate(folders)


def test_every_number_has_its_floor(content: dict, folders: dict[str, Path]) -> None:
    """Value, interval, n and floor of every score; the protocol of each is described; no protocol comes twice."""
    scores = read_scores(folders["out"])
    names = [score.protocol for score in scores]
    assert len(set(names)) == len(names) > 40
    for score in scores:
        assert protocol(score.protocol)["text"] and score.group in GROUPS
        assert np.isfinite(score.value), score
        assert np.isfinite(score.floor), score
        assert min(score.n) >= 10 and (min(score.floor_n) >= 10 or score.protocol == "copies.planted")
        assert not np.isfinite(score.low) or score.low - 1e-9 <= score.value <= score.high + 1e-9, score
    assert {score.group for score in scores} == {"similarity", "distribution", "tumours", "slices", "seam", "copies"}


def test_an_unharmed_reference_is_the_floor(content: dict, folders: dict[str, Path]) -> None:
    """The same cases, as many, against the same: what scores the path has are the floor's, in five groups alone."""
    scores = {score.protocol: score for score in read_scores(folders["out"])}
    known = [score for score in scores.values() if np.isfinite(score.path)]
    assert {score.group for score in known} == {"similarity", "distribution", "tumours", "slices", "seam"}
    assert {score.group for score in scores.values() if score not in known} == {"copies"}
    drawn = ("psnr.random-pair.train", "ssim.random-pair.train", "ssim.all-pairs.heldout", "ms-ssim.diversity")
    for score in known:
        if score.protocol not in drawn:  # whose partners are drawn at random
            assert (score.path, score.path_n) == (pytest.approx(score.floor, rel=1e-6, abs=1e-9), score.floor_n), score
            assert score.path_high - score.path_low == pytest.approx(score.floor_high - score.floor_low, rel=0.5)
    assert scores["ssim.all-pairs.heldout"].path == pytest.approx(scores["ssim.all-pairs.heldout"].floor, rel=0.05)
    random = scores["psnr.random-pair.train"]
    assert random.path == pytest.approx(random.floor, abs=2), "not with itself, which knows no bound"
    assert not any(np.isfinite(score.autoencoder) for score in scores.values())
    assert f"No reference of real through path and autoencoder: {NO_AUTOENCODER}" in content["remarks"]
    assert len(content["provenance"]["references"]["path"]) == 11


def test_unsound_cases_cost_one_sentence_each(content: dict) -> None:
    """NaN, another grid, no mask, no manifest, no predictions: said, and everything else is delivered."""
    remarks = " ".join(content["remarks"])
    assert "synthetic_Phantom_002_flair.nii.gz: holds voxels that are no numbers; left out." in remarks
    assert "1 of 13 synthetic cases were resampled to 4 x 4 x 4 mm." in remarks
    assert "1 of 13 synthetic cases have no mask" in remarks
    assert REACH in remarks
    assert "1 synthetic pair(s) hold the very voxels of a real case" in remarks
    left_out = dict(content["left_out"])
    assert "no manifest.csv" in left_out["requests"] and "sbldm nnunet eval" in left_out["fit"]
    assert content["provenance"]["cases"] == {"synthetic": 12, "train": 11, "heldout": 11}


def test_two_processes_describe_as_one(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same numbers of each case and the same images; an unreadable case costs its sentence in both."""
    monkeypatch.setattr(features, "SLICES", SLICES)
    source = Source.from_config(["flair"], {"whole tumour": "all"})
    cases = [case for case in find_cases(folders["synthetic"], source) if case.name.endswith(("001", "002", "003"))]
    found = []
    for count in (1, 2):
        images, cache = tmp_path / f"images{count}", tmp_path / f"cache{count}"
        images.mkdir()
        with workers(count, "imagenet") as pool:
            found.append(describe("synthetic", cases, source, evaluation_grid((4, 4, 4)), cache, images, pool))
    one, two = found
    assert one.names == two.names and len(one.names) == 2 and one.problems == two.problems and len(one.problems) == 1
    for name in ("tumours", "slices", "features"):
        first, other = getattr(one, name), getattr(two, name)
        assert first.keys() == other.keys() and all(np.array_equal(first[k], other[k], equal_nan=True) for k in first)
    assert np.array_equal(np.load(one.file), np.load(two.file))


def test_the_planted_copy_is_found(content: dict, folders: dict[str, Path]) -> None:
    """By name, with correlation 1; no other comes near. So are the planted ones of the control."""
    scores = {score.protocol: score for score in read_scores(folders["out"])}
    assert scores["copies.sure"].value >= 1 / 12 and scores["copies.planted"].value == 1
    pairs = (folders["out"] / "pairs.csv").read_text().splitlines()
    columns = pairs[0].split(",")
    row = dict(zip(columns, next(line for line in pairs if line.startswith("copy,")).split(","), strict=True))
    nearness = [float(line.split(",")[columns.index("nearest_correlation")]) for line in pairs[1:]]
    assert sorted(nearness)[-2] < 0.3
    assert row["nearest_case"] == "train_Phantom_003"
    assert float(row["nearest_correlation"]) == pytest.approx(1, abs=1e-3)
    assert float(row["feature_ratio"]) == pytest.approx(0, abs=1e-3)
    assert scores["copies.ratio.1st percentile"].value < 0.2


def test_phantoms_are_like_phantoms(content: dict, folders: dict[str, Path]) -> None:
    """Cases drawn like the training cases are not told apart from them in most scores, MMD among them."""
    scores = [score for score in read_scores(folders["out"]) if score.verdict]
    alike = [score.verdict == "not told apart" for score in scores]
    assert np.mean(alike) > 0.85
    assert next(score for score in scores if score.protocol == "mmd-laplace.heldout").verdict == "not told apart"


@pytest.mark.slow
def test_again_from_the_cache(content: dict, folders: dict[str, Path]) -> None:
    """A second run gives the same scores without reading features anew, and leaves no temporary volumes."""
    cache = folders["out"] / "cache"
    before = {path: path.stat().st_mtime_ns for path in cache.rglob("*.npz")}
    assert len(before) == 2 * (12 + 11 + 11) - 2  # the copy shares the files of its original
    assert not list(folders["out"].rglob("*.npy"))
    again = evaluate(folders)
    assert {path: path.stat().st_mtime_ns for path in cache.rglob("*.npz")} == before
    assert again["scores"] == content["scores"]


@pytest.mark.slow
def test_too_few_cases(content: dict, folders: dict[str, Path], tmp_path: Path) -> None:
    """Scores that mean nothing with so few cases are refused by name, with the number needed; the rest is there."""
    few = dict(folders)
    for role in ("synthetic", "train", "heldout"):
        few[role] = tmp_path / role
        for case in sorted(folders[role].glob(f"{role}_Phantom_00[4-7]")):
            shutil.copytree(case, few[role] / case.name)
    shutil.copytree(folders["out"] / "cache", tmp_path / "out" / "cache")  # features of these cases are known
    done = call(*evaluation(few, tmp_path / "out", "--fid", "force"))
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    reasons = dict(found["left_out"])
    few = "4 synthetic, 4 train, 4 heldout case(s); 10 on each side are the least. Hold back more"
    assert reasons["distribution"].startswith(few)
    assert {"tumours", "slices"} <= set(reasons) and LEAST["tumours"] == 5
    assert {row["group"] for row in found["scores"]} == {"similarity", "copies"}


@pytest.mark.parametrize(
    ("change", "code", "sentence"),
    [
        ({"synthetic": "nowhere"}, 2, "--synthetic nowhere: no such folder."),
        ({"heldout": "nowhere"}, 2, "--heldout nowhere: no such folder."),
        ({"heldout": "train"}, 2, "among the training cases too"),
        ({"features": "inception"}, 2, "inception: no such feature extractor"),
        ({"channels": "pet"}, 2, "pet"),
    ],
)
def test_wrong_arguments(folders: dict[str, Path], tmp_path: Path, change: dict[str, str], code: int, sentence: str):
    """One line before any work."""
    values = {role: str(folders[role]) for role in ("synthetic", "train", "heldout")} | {"out": str(tmp_path)}
    values |= {name: values.get(value, value) for name, value in change.items()}
    done = call("evaluate", *(f"--{name}={value}" for name, value in values.items()))
    assert sentence in one_line(done, code)


def test_references_of_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run makes them of the cases of the floor; none of pairs that took no path of its own, and it is said why."""
    raw = tmp_path / "run" / "nnUNet_raw"
    for name, settings in (("Dataset501_SBLDM", {"model": "sbldm"}), ("Dataset502_PASTE", {"generator": "copypaste"})):
        (raw / name).mkdir(parents=True)
        (raw / name / "synthesis.json").write_text(json.dumps(settings | {"seed": 0}))
        (raw / name / "lineage.json").write_text('{"cases": {}}')
        (raw / name / "manifest.csv").touch()
    asked = []

    def reference_cases(run: Run, names: list[str], kind: str) -> list[SimpleNamespace]:
        asked.append((run.folder.name, names, kind))
        if kind == "autoencoder":
            raise StateError(NO_AUTOENCODER)
        return [SimpleNamespace(name=name) for name in names]

    monkeypatch.setitem(sys.modules, "sbldm.synthesis.reference", SimpleNamespace(reference_cases=reference_cases))
    names, run = reference_names(list("abcdef"), 4), Run.at(tmp_path / "run")
    assert len(set(names)) == 4 and names == reference_names(list("abcdef"), 9)[:4]
    found, missing = evaluation_command._references(run, Manifest(raw / "Dataset501_SBLDM"), names)
    assert [case.name for case in found["path"]] == names and missing == {"autoencoder": NO_AUTOENCODER}
    assert asked == [("run", names, "path"), ("run", names, "autoencoder")]
    for other, dataset, said in (
        (run, raw / "Dataset502_PASTE", "take no path"),
        (Run.at(tmp_path / "another"), raw / "Dataset501_SBLDM", "not drawn by a run"),
        (None, raw / "Dataset501_SBLDM", "not drawn by a run"),
    ):
        found, missing = evaluation_command._references(other, Manifest(dataset), names)
        assert not found and list(missing) == ["path", "autoencoder"] and said in missing["path"]
    assert len(asked) == 2


def test_predictions_of_something_else_are_made_anew(tmp_path: Path) -> None:
    """What `predict` refuses to mix (exit code 4) is cleared once; any other failure is passed on in its own words."""
    old = tmp_path / "predictions" / "old.nii.gz"
    old.parent.mkdir()
    old.touch()
    mixed = f"import os, sys; sys.exit(4 if os.path.exists({str(old)!r}) else 0)"
    assert evaluation_command._segment([sys.executable, "-c", mixed], old.parent) == "" and not old.exists()
    broken = "import sys; sys.stderr.write('50 %\\rError: x.nii.gz: cannot be read.\\n'); sys.exit(3)"
    assert evaluation_command._segment([sys.executable, "-c", broken], old.parent).endswith("x.nii.gz: cannot be read.")
    never = "import sys; sys.exit(4)"
    assert evaluation_command._segment([sys.executable, "-c", never], old.parent) == "prediction failed."


# --- scores and protocols ---------------------------------------------------------------------------------------------


def score(value: tuple[float, float, float], floor: tuple[float, float, float], aim: str = "floor") -> Score:
    """A score with these two intervals."""
    return Score("mmd-laplace.heldout", "distribution", *value, (5, 5), *floor, (5, 5), aim)


@pytest.mark.parametrize(
    ("value", "floor", "aim", "verdict"),
    [
        ((1, 0, 2), (3, 1.5, 4), "floor", "not told apart"),
        ((1, 0, 2), (3, 2.5, 4), "floor", "lower"),
        ((1, 0, 2), (3, 2.5, 4), "low", "beyond real"),
        ((1, 0, 2), (3, 2.5, 4), "high", "worse"),
        ((5, 4.5, 6), (3, 2.5, 4), "low", "worse"),
        ((5, 4.5, 6), (3, float("nan"), float("nan")), "low", ""),
    ],
)
def test_verdict(value: tuple, floor: tuple, aim: str, verdict: str) -> None:
    """By the two intervals and by what the score aims at."""
    assert score(value, floor, aim).verdict == verdict


@pytest.mark.parametrize(
    ("value", "path", "autoencoder", "aim", "reading"),
    [
        ((0.05, 0.04, 0.06), (0.04, 0.03, 0.05), None, "low", "worse, as the path alone"),
        ((0.03, 0.02, 0.035), (0.06, 0.05, 0.07), None, "low", "worse, as the path alone"),  # better than the path
        ((0.05, 0.04, 0.06), (0.03, 0.02, 0.035), None, "low", "worse"),
        ((0.05, 0.04, 0.06), (0.03, 0.02, 0.035), (0.06, 0.05, 0.08), "low", "worse, as path and autoencoder alone"),
        ((0.05, 0.04, 0.06), (0.02, -0.01, 0.045), None, "low", "worse"),  # the path itself is not told from the floor
        ((0.0, -0.01, 0.02), (0.04, 0.03, 0.05), None, "low", "not told apart"),
        ((-0.05, -0.06, -0.04), (-0.05, -0.06, -0.04), None, "low", "beyond real"),
        ((-0.05, -0.06, -0.04), (0.04, 0.03, 0.05), None, "floor", "lower"),
        ((-0.05, -0.06, -0.04), (-0.04, -0.05, -0.03), None, "high", "worse, as the path alone"),
    ],
)
def test_as_the_path_alone(value: tuple, path: tuple, autoencoder: tuple | None, aim: str, reading: str) -> None:
    """A score apart from its floor [-.01, .01] no farther than real cases through the path are, on the same side."""
    references = {}
    for side, three in (("path", path), ("autoencoder", autoencoder)):
        if three:
            references |= {side: three[0], f"{side}_low": three[1], f"{side}_high": three[2], f"{side}_n": (5, 5)}
    assert replace(score(value, (0.0, -0.01, 0.01), aim), **references).reading == reading


class Features(SimpleNamespace):
    """Of a cohort the feature vectors alone, of two planes."""

    def __init__(self, seed: int, n: int, spread: float = 1.0) -> None:
        rows = spread * np.random.default_rng(seed).normal(size=(2, n, 8))
        super().__init__(features=dict(zip(("axial", "coronal"), rows, strict=True)), names=[str(k) for k in range(n)])

    def __len__(self) -> int:
        return len(self.names)

    def joined(self, rows: np.ndarray | slice = slice(None)) -> np.ndarray:
        """The planes side by side."""
        return np.concatenate([plane[rows] for plane in self.features.values()], axis=1)


def test_the_unit_is_of_all_training_cases() -> None:
    """Whatever the pairs are and however few: theirs, the floor's and the references' MMD have one unit; n is equal."""
    heldout, train, path = Features(0, 14), Features(1, 30), Features(2, 12, 0.7)
    some = chosen(12, 30)
    for spread in (1.0, 0.2):
        sides = {"synthetic": Features(3, 12, spread), "floor": train, "path": path}
        scores = {s.protocol: s for s in score_distribution(Evaluation(), sides, heldout, "")}
        unit = Scale.of(train.joined())
        for side, rows in (("synthetic", slice(None)), ("floor", some), ("path", slice(None))):
            found = scores["mmd-laplace.heldout"].side(side)
            assert found.value == pytest.approx(mmd(heldout.joined(), sides[side].joined(rows), unit).value, rel=1e-9)
            assert found.n == (12, 14)
        plane = mmd(heldout.features["coronal"], path.features["coronal"], Scale.of(train.features["coronal"]))
        assert scores["mmd-laplace.coronal.heldout"].path == pytest.approx(plane.value, rel=1e-9)
        assert scores["kid.heldout"].value == pytest.approx(kid(heldout.joined(), sides["synthetic"].joined()).value)
    assert scores["mmd-laplace.heldout"].value > 0.2, "pairs of a fifth of the spread"


def test_score_there_and_back() -> None:
    """What is missing is null in JSON and NaN in Python."""
    one = Score("fid.heldout", "distribution", 1.0, float("nan"), float("nan"), (5, 6))
    row = json.loads(json.dumps(one.row()))
    assert row["low"] is None and str(Score.from_row(row)) == str(one)
    older = {name: value for name, value in row.items() if not name.startswith(("path", "autoencoder"))}
    assert str(Score.from_row(older)) == str(one)


def test_protocols_have_names_of_their_own() -> None:
    """No name fits two protocols, and a score without one cannot be made."""
    for name in PROTOCOLS:
        assert protocol(name.replace("*", "volume_ml"))["title"]
    assert len({entry["title"] for entry in PROTOCOLS.values()}) == len(PROTOCOLS)
    with pytest.raises(KeyError, match="psnr: 0 protocols"):
        protocol("psnr")
    with pytest.raises(KeyError):
        Score("ssim", "similarity", 1.0, 0.0, 2.0, (5, 5))


def test_interval_of_a_mean() -> None:
    """The bootstrap interval of a mean is that of the normal theory: 1.96 / sqrt(N), and holds it 95 times of 100."""
    rng = np.random.default_rng(0)
    assert middle(np.arange(1001.0)).tolist() == [25, 975] and np.isnan(middle(np.array([0.0, np.nan]))).all()
    low, high = mean_estimate(rng.standard_normal(400))[1:]
    assert high - low == pytest.approx(2 * 1.96 / 20, rel=0.1)
    held = [e.low < 0 < e.high for e in (mean_estimate(rng.standard_normal(60), draws=500) for _ in range(200))]
    assert 0.9 < np.mean(held) < 0.98


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.1974, "0.197"), (-0.00129, "-0.00129"), (12.34, "12.3"), (155.7, "156"), (0.0, "0"), (float("nan"), "-")],
)
def test_number(value: float, text: str) -> None:
    """Three digits that mean something, never a power of ten."""
    assert number(value) == text


def test_table_says_what_is_left_out(tmp_path: Path) -> None:
    """Every group of scores appears, with its numbers or with the reason why there are none."""
    content = {
        "scores": [score((0.2, 0.1, 0.3), (0.0, -0.1, 0.05), "low").row()],
        "left_out": [["fit", "no predictions."]],
        "remarks": ["one remark"],
        "provenance": {"synthetic": "Pairs", "cases": {"synthetic": 5, "train": 6, "heldout": 7}},
    }
    (tmp_path / "evaluation.json").write_text(json.dumps(content))
    text = write_table(tmp_path).read_text()
    assert (
        "| MMD, all planes | `mmd-laplace.heldout` | 0.200 [0.100, 0.300] | 5 | 0 [-0.100, 0.0500] | 5 | worse |"
        in text
    )
    assert "Left out: no predictions." in text and "- one remark" in text and "through the path" not in text
    assert Estimate(1, 0, 2).value == 1
    path = {"path": 0.25, "path_low": 0.2, "path_high": 0.3, "path_n": (5, 7)}
    content["scores"][0] |= path
    (tmp_path / "evaluation.json").write_text(json.dumps(content))
    text = write_table(tmp_path).read_text()
    assert "| synthetic | n | floor: real | n | real through the path | |" in text and "autoencoder |" not in text
    assert "| 0 [-0.100, 0.0500] | 5 | 0.250 [0.200, 0.300], n = 5 / 7 | worse, as the path alone |" in text
    assert REFERENCES_EXPLAINED in text
