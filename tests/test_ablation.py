"""Variants at equal processor time: what changes, what is shared, what the table says."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
from matplotlib.axes import Axes
from PIL import Image

from sbldm.cases.lists import write_lists
from sbldm.evaluation.protocols import protocol
from sbldm.pages.ablation import (
    COLUMNS,
    KID,
    VARIANTS,
    Ablation,
    _mark,
    changed,
    cost_figure,
    main_table,
)
from sbldm.run.errors import InputError, StateError
from sbldm.run.folder import Run, load_preset
from sbldm.run.schema import read_yaml

STEPS = VARIANTS.with_name("steps.yaml")


def test_a_change_replaces_one_value() -> None:
    """A dotted key reaches into the preset, a mapping takes a place as a whole, and the original stays."""
    preset = load_preset("small")
    other = changed(preset, {"diffusion.schedule": {"kind": "flow", "steps": 10}, "mirror": False})
    assert other.diffusion.schedule.state() == {"kind": "flow", "steps": 10} and other.mirror is False
    assert preset.mirror is True and preset.diffusion.schedule.state() == {"kind": "cosine", "steps": 1000}
    assert {name for name, value in preset if value != getattr(other, name)} == {"mirror", "diffusion"}
    with pytest.raises(InputError, match=r"diffusion.networks.channels: the preset has no networks"):
        changed(preset, {"diffusion.networks.channels": [1]})


def test_every_variant_is_a_preset() -> None:
    """All that the committed file asks for passes the schema."""
    plan = read_yaml(VARIANTS, "a file of variants")
    base = load_preset("small")
    names = [name for name in plan["variants"] if name != "chosen"]
    assert len(names) == len(set(names)) >= 12
    for name in names:
        changes = {key: value for key, value in plan["variants"][name].items() if key != "budget"}
        assert changed(base, changes) != base, name


def test_steps_change_sampling_alone(tmp_path: Path) -> None:
    """The other committed file: every variant is a preset; one that would have to be trained is refused by its name."""
    plan = read_yaml(STEPS, "a file of variants")
    for changes in plan["variants"].values():
        changed(load_preset("small"), changes)
    plan["variants"]["other"] = {"diffusion.prediction": "sample"}
    with pytest.raises(InputError, match=r"diffusion.prediction: a plan without a budget trains nothing"):
        Ablation(Run.at(tmp_path), plan, tmp_path, "")


def test_the_table_s_scores_exist() -> None:
    """A column that no evaluation fills would stay out of the table without a word."""
    assert all(protocol(name) for name in COLUMNS)


def test_table() -> None:
    """A row a variant; an interval where there is one; scores that nobody has are left out."""
    floors = {"mmd-laplace.heldout": -0.004, "recall.heldout": float("nan")}
    row = {"iterations": [1200, 300], "minutes": 12.4, "seconds": 0.75, "floors": floors}
    first = row | {"variant": "a", "scores": {"mmd-laplace.heldout": (0.1234, 0.1, 0.15)}}
    other = row | {"variant": "b", "scores": {"recall.heldout": (0.5, float("nan"), float("nan"))}}
    lines = main_table([first, other]).splitlines()
    assert lines[0] == "| variant | iterations | processor minutes | s a pair | MMD | recall |"
    assert lines[2] == "| floor: real cases |  |  |  | -0.004 |  |"
    assert lines[3] == "| a | 1,200 + 300 | 12 | 0.75 | 0.123 [0.1, 0.15] |  |"
    assert lines[4] == "| b | 1,200 + 300 | 12 | 0.75 |  | 0.5 |"


def test_figure(tmp_path: Path) -> None:
    """Each row that has a KID is a point at its minutes; without any there is no figure."""
    row = {"floors": {KID: -0.001}, "minutes": 12.4, "variant": "a"}
    cost_figure([row | {"scores": {}}], tmp_path / "none.png")
    assert not (tmp_path / "none.png").exists()
    rows = [row | {"scores": {KID: (0.2, 0.1, 0.4)}}, row | {"scores": {KID: (0.1, float("nan"), float("nan"))}}]
    drawn: list[tuple[float, float]] = []
    with pytest.MonkeyPatch.context() as patch:
        own = Axes.errorbar
        patch.setattr(Axes, "errorbar", lambda self, x, y, **k: (drawn.append((x[0], y[0])), own(self, x, y, **k))[1])
        cost_figure(rows, tmp_path / "some.png")
    assert drawn == [(12.4, 0.2), (12.4, 0.1)]
    with Image.open(tmp_path / "some.png") as picture:
        assert picture.size == (900, 630)


def test_a_failed_variant_keeps_no_other_from_its_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The others stand in the table, and the last word names the one that has none; without the first nothing goes."""
    asked: list[str] = []

    def finished(self: Ablation, name: str) -> Run:
        asked.append(name)
        if name in broken:
            raise StateError("broken")
        return Run.at(tmp_path)

    row = {"iterations": [1, 1], "minutes": 1.0, "seconds": 1.0, "floors": {}, "scores": {}}
    monkeypatch.setattr(Ablation, "_finished", finished)
    monkeypatch.setattr(Ablation, "_row", lambda self, name, run: row | {"variant": name})
    ablation = Ablation(Run.at(tmp_path), {"variants": {"a": {}, "b": {}, "c": {}}}, tmp_path, "")
    broken = ["b"]
    with pytest.raises(StateError, match="no row for b: see above"):
        ablation.run()
    assert asked == ["a", "b", "c"]
    assert [line.split(" | ")[0] for line in (tmp_path / "ablation.md").read_text().splitlines()[3:]] == ["| a", "| c"]
    broken, asked[:] = ["a"], []
    with pytest.raises(StateError, match="broken"):
        ablation.run()
    assert asked == ["a"]


@pytest.mark.parametrize(
    ("change", "shared"),
    [
        ({"ema_decay": 0.5}, True),
        ({"deformed": 2}, True),  # ten cases have 49 copies each, either way
        ({"brains": 0}, False),
    ],
)
def test_latents_of_the_same_brains_are_shared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any], shared: bool
) -> None:
    """Stage 1 of the first variant serves all after it; its latents those that encode the same copies of the cases."""
    preset = load_preset("small")
    for name, changes in (("a", {}), ("b", change)):
        (tmp_path / name).mkdir()
        write_lists(tmp_path / name, {"train": [f"case{k}" for k in range(10)], "validation": ["other"]}, 0, "data")
        Run.at(tmp_path / name).save_preset(preset.but(diffusion=preset.diffusion.but(**changes)))
    for part in ("autoencoder", "latents"):
        (tmp_path / "a" / part).mkdir()
        (tmp_path / "a" / part / "file").touch()
    ablation = Ablation(Run.at(tmp_path / "a"), {"variants": {"a": {}, "b": {}}, "budget": {}}, tmp_path, "")
    _mark(Run.at(tmp_path / "a"), "autoencoder").touch()
    monkeypatch.setattr(Ablation, "_finished", lambda self, name: Run.at(tmp_path / name))
    ablation._share_autoencoder(Run.at(tmp_path / "b"))
    assert (tmp_path / "b/autoencoder/file").exists() and (tmp_path / "b/latents/file").exists() == shared


@pytest.mark.slow
def test_it_goes_on(tmp_path: Path, trained_run: Path) -> None:
    """Two variants of the tiny preset: the second shares stage 1; a second call trains nothing again."""
    plan = {
        "budget": {"autoencoder": 0.2, "diffusion": 0.4},
        "pairs": 10,
        "variants": {"one": {}, "two": {"diffusion.condition_dropout": 0.2}},
    }
    for _ in range(2):
        Ablation(Run.at(trained_run), plan, tmp_path, "").run()
        with open(tmp_path / "ablation.csv", newline="") as file:
            rows = list(csv.DictReader(file))
        assert [r["variant"] for r in rows] == ["one", "two"]
        assert rows[0]["autoencoder"] == rows[1]["autoencoder"]
        times = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("best.pt")}
        assert len(times) == 4
    assert (tmp_path / "one/autoencoder/best.pt").read_bytes() == (tmp_path / "two/autoencoder/best.pt").read_bytes()
    assert {"request.volume_error", "copies.near"} <= rows[0].keys()  # one held-back case is too few for an MMD


def test_samplers_of_one_training(tmp_path: Path, trained_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a budget all variants draw from the networks of the run, which stay where they are.

    What is drawn is not evaluated here: `test_it_goes_on` sees to that, which takes a minute.
    """
    call = Ablation._call

    def no_evaluation(self: Ablation, module: str, *arguments: str) -> None:
        if module != "evaluate":
            return call(self, module, *arguments)
        folder = Path(next(a for a in arguments if a.startswith("--out=")).removeprefix("--out="))
        folder.mkdir()
        (folder / "evaluation.json").write_text('{"scores": []}')

    monkeypatch.setattr(Ablation, "_call", no_evaluation)
    leap = {"sampling.sampler": "dpm_solver", "sampling.sigma_min": 0.5}
    plan = {"pairs": 4, "variants": {"two": {"sampling.steps": 2}, "four": leap | {"sampling.steps": 4}}}
    Ablation(Run.at(trained_run), plan, tmp_path, "").run()
    with open(tmp_path / "ablation.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [r["variant"] for r in rows] == ["two", "four"]
    assert rows[0]["diffusion"] == rows[1]["diffusion"] and float(rows[0]["minutes"]) > 0
    two, four = (
        {p.name: p for p in (tmp_path / name).glob("nnUNet_raw/*/imagesTr/*.nii.gz")} for name in plan["variants"]
    )
    both = sorted(two.keys() & four.keys())  # a network this small leaves some masks empty for good
    assert both and all(two[name].read_bytes() != four[name].read_bytes() for name in both)
    for name in ("two", "four"):
        assert (tmp_path / name / "diffusion").resolve() == (trained_run / "diffusion").resolve()
