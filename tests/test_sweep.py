"""Sweeps of tumour size and place: planned as said, drawn from equal noise, resumable, shown as they came out."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from conftest import call, copy_run, one_line, partial_files, snapshot
from matplotlib.image import imread
from scipy.stats import norm
from scipy.stats import t as student

from sbldm.pages.sweeps import sweep_figure
from sbldm.run.errors import StateError
from sbldm.run.files import read_json, sha256, write_json
from sbldm.run.folder import Run
from sbldm.synthesis import Model, PairSampler, finish_pair, sweep
from sbldm.synthesis.sweep import SEEDS, biases, draw_sweeps, over_seeds, plan_sweeps, read_sweeps
from sbldm.tumour.characteristics import NAMES
from sbldm.tumour.requests import TumourModel

PLACES = ("left", "right", "anterior", "posterior", "superior")
NAMED = [f"size_{k}" for k in range(1, 6)] + [f"place_{place}" for place in PLACES]
CPU = torch.device("cpu")
FOLDER = Path("evaluation") / "sweeps"


@pytest.fixture(scope="module")
def swept_run(tmp_path_factory: pytest.TempPathFactory, trained_run: Path) -> Path:
    """The trained run with both sweeps and their figure, pictures of seed 0, two seeds; copy it before changing it."""
    run = copy_run(trained_run, tmp_path_factory.mktemp("swept"))
    done = call("sweep", "--run", run, "--n", 2)
    assert done.returncode == 0, done.stderr
    return run


@pytest.fixture
def oracle(monkeypatch: pytest.MonkeyPatch) -> None:
    """In place of the networks: a ball of the requested volume at the requested centre, in an ellipsoid brain."""

    def draw(self: Model, latent: torch.Tensor, seed: int = 0) -> np.ndarray:
        asked = self.normaliser.decode(latent.numpy())
        size, spacing = np.array(self.working.size), np.array(self.working.spacing)
        lps = (np.indices(size).T - (size - 1) / 2) * spacing
        position = lps.T * np.array([-1, -1, 1])[:, None, None, None]
        radius = np.cbrt(asked[0] * 1000 * 3 / (4 * np.pi))
        away = np.linalg.norm(position - asked[3:6, None, None, None], axis=0)
        brain = np.linalg.norm(position / np.array([78, 100, 70])[:, None, None, None], axis=0) < 1
        occupancy = np.clip((radius - away) / spacing.mean() + 0.5, 0, 1)
        return np.stack([np.where(brain, 0.2, -1.0), 2 * occupancy - 1])

    monkeypatch.setattr(Model, "decode", draw)
    monkeypatch.setattr(PairSampler, "__call__", lambda self, inputs, network, seeds: inputs)


def values(step: dict, kind: str, names: str = "x_mm y_mm z_mm") -> np.ndarray:
    """Requested or measured characteristics of one image."""
    return np.array([step[kind][name] for name in names.split()])


# --- the plan -------------------------------------------------------------------------------------------------------


def test_plan_of_a_known_population() -> None:
    """Percentiles of a lognormal volume and of normal places come out as analysis says; only what is swept changes."""
    rng, n = np.random.default_rng(0), 600
    volume, sphericity = np.exp(rng.normal(np.log(50), 0.6, n)), rng.uniform(0.6, 0.7, n)
    surface = np.pi ** (1 / 3) * (6000 * volume) ** (2 / 3) / sphericity
    x = rng.choice([-1, 1], n) * rng.normal(30, 5, n)
    y, z = rng.normal(-5, 20, n), rng.normal(10, 12, n)
    extents = np.cbrt(volume * 1000)[:, None] * [1.4, 1.6, 1.5] * np.exp(rng.normal(0, 0.05, (n, 3)))
    plan = plan_sweeps(TumourModel.fit(np.column_stack([volume, surface, sphericity, x, y, z, extents])))
    assert [step["name"] for step in plan] == NAMED and not any(step["extrapolated"] for step in plan)
    size, place = plan[:5], plan[5:]

    def requested(steps: list[dict], names: str) -> np.ndarray:
        return np.array([values(step, "requested", names) for step in steps])

    ends = 0.6 * norm.ppf(0.9)
    volumes = requested(size, "volume_ml")[:, 0]
    np.testing.assert_allclose(volumes, 50 * np.exp(np.linspace(-ends, ends, 5)), rtol=0.1)
    np.testing.assert_allclose(np.diff(np.log(volumes)), np.log(volumes[-1] / volumes[0]) / 4, rtol=1e-3)
    # Two standard errors of a median, of 600 tumours and of 500 draws from them.
    np.testing.assert_allclose(requested(place, "volume_ml"), 50, rtol=0.09)
    home, reach = np.array([-30, -5, 10]), norm.ppf(0.9) * np.array([0, 20, 12])
    centres = [home, home * [-1, 1, 1], home + reach * [0, 1, 0], home - reach * [0, 1, 0], home + reach * [0, 0, 1]]
    # Two standard errors of a 90th percentile of 500 draws, for the 20 mm of y.
    np.testing.assert_allclose(requested(place, "x_mm y_mm z_mm"), centres, atol=4)
    assert (requested(size, "x_mm y_mm z_mm") == values(place[0], "requested")).all()

    for step in plan:
        asked = step["requested"]
        ball = np.pi ** (1 / 3) * (6000 * asked["volume_ml"]) ** (2 / 3)
        assert asked["sphericity"] == pytest.approx(0.65, abs=0.02)
        assert asked["surface_mm2"] * asked["sphericity"] == pytest.approx(ball, rel=2e-4)
        sides = values(step, "requested", "w_mm h_mm d_mm") / np.cbrt(asked["volume_ml"] * 1000)
        np.testing.assert_allclose(sides, [1.4, 1.6, 1.5], rtol=0.02)
    assert len({values(step, "requested", "surface_mm2 sphericity w_mm h_mm d_mm").tobytes() for step in place}) == 1


# --- the images -----------------------------------------------------------------------------------------------------


def test_one_noise(swept_run: Path) -> None:
    """Each image is what the sampler makes of its request and seed 0 at the first attempt, whatever came before."""
    steps = read_sweeps(swept_run / FOLDER)
    assert [step["name"] for step in steps] == NAMED and not any(step["fault"] for step in steps)
    assert len({step["load"]()[0].tobytes() for step in steps}) == 10
    model = Model.load(str(swept_run), CPU)
    sampler = PairSampler(model.schedule, model.latent_shape, model.preset.sampling)
    for step in (steps[7], steps[4]):
        condition = torch.from_numpy(model.normaliser.encode(values(step, "requested", " ".join(NAMES))))
        pair = finish_pair(model.decode(sampler(condition[None], model.network, [0], [0])[0]), model)
        for ours, theirs in zip(step["load"](), (pair.image, pair.labels), strict=True):
            np.testing.assert_array_equal(ours, theirs)
        np.testing.assert_allclose(values(step, "measured", " ".join(NAMES)), pair.measured, atol=0.051)
        other = finish_pair(model.decode(sampler(condition[None], model.network, [1], [0])[0]), model)
        assert [draw["seed"] for draw in step["draws"]] == [0, 1]
        np.testing.assert_allclose(values(step["draws"][1], "measured", " ".join(NAMES)), other.measured, atol=0.051)


def test_one_condition_one_image(tmp_path: Path, trained_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three times the same request: three identical pairs, so between images only the request makes a difference."""
    plan = plan_sweeps(Model.load(str(trained_run), CPU).tumours)
    same = [step | {"requested": plan[3]["requested"]} for step in plan[:3]]
    monkeypatch.setattr(sweep, "plan_sweeps", lambda tumours: same)
    monkeypatch.setattr(sweep, "PLACES", ())
    monkeypatch.setattr(sweep, "SIZES", 3)
    folder = draw_sweeps(Run.at(copy_run(trained_run, tmp_path)), CPU, n=1)
    for part in ("0000", "labels"):
        first, *others = (np.asarray(nib.load(folder / f"size_{k}_{part}.nii.gz").dataobj) for k in (1, 2, 3))
        assert first.any() and all(np.array_equal(first, other) for other in others)
    assert len({json.dumps(step["draws"]) for step in read_json(folder / "sweeps.json")["steps"]}) == 1


def test_what_is_written(swept_run: Path, phantom_cases: Path) -> None:
    """Settings, requests and measured values, which an independent look at the files confirms; native grid."""
    held = read_json(swept_run / FOLDER / "sweeps.json")
    assert held["checkpoint_sha256"] == sha256(swept_run / "diffusion" / "best.pt")
    assert (held["seed"], held["n"], SEEDS) == (0, 2, 5)
    assert held["sampling"] == {
        "sampler": "ddim",
        "steps": 4,
        "eta": 0.0,
        "guidance": 1.0,
    }
    case = nib.load(next(phantom_cases.rglob("*_flair.nii.gz")))
    for step in read_sweeps(swept_run / FOLDER):
        files = [nib.load(swept_run / FOLDER / f"{step['name']}_{part}.nii.gz") for part in ("0000", "labels")]
        for file, kind in zip(files, (np.int16, np.uint8), strict=True):
            assert file.shape == case.shape and file.get_data_dtype() == kind
            np.testing.assert_allclose(file.affine, case.affine, atol=1e-4)
        voxels = np.argwhere(step["load"]()[1])
        assert step["measured"]["volume_ml"] == pytest.approx(len(voxels) * 0.064, abs=6e-4)
        middle = nib.affines.apply_affine(step["frame"], voxels).mean(axis=0)
        np.testing.assert_allclose(middle, values(step, "measured"), atol=0.011)
    with open(swept_run / FOLDER / "sweeps.csv", newline="") as file:
        table = list(csv.DictReader(file))
    assert [row["name"] for row in table] == NAMED and {row["seeds"] for row in table} == {"2"}
    for row, step in zip(table, held["steps"], strict=True):
        drawn = [draw["measured"]["volume_ml"] for draw in step["draws"]]
        assert float(row["volume_ml_mean"]) == pytest.approx(np.mean(drawn), abs=1e-3)
        assert float(row["volume_ml_sd"]) == pytest.approx(np.std(drawn, ddof=1), abs=1e-3)


def test_requests_reach_the_pictures(tmp_path: Path, trained_run: Path, oracle: None) -> None:
    """With an exact painter for the networks the measured volumes and centres are those asked for, in every step."""
    run = copy_run(trained_run, tmp_path)
    steps = read_sweeps(draw_sweeps(Run.at(run), CPU, n=1))
    volumes = np.array([[s[kind]["volume_ml"] for kind in ("requested", "measured")] for s in steps])
    assert (np.diff(volumes[:5], axis=0) > 0).all() and np.ptp(volumes[5:, 0]) == 0
    for step in steps:
        assert step["fault"] == ""
        assert step["measured"]["volume_ml"] == pytest.approx(step["requested"]["volume_ml"], rel=0.12)
        np.testing.assert_allclose(values(step, "measured"), values(step, "requested"), atol=1.5)


# --- over seeds -------------------------------------------------------------------------------------------------------


def made_up(errors: list[float], backward: list[float], empty: int | None = None) -> list[dict]:
    """Ten requests; of each seed the relative error of the volume and the mm to the back; one seed draws nothing."""
    asked = {"volume_ml": 50.0, "x_mm": -30.0, "y_mm": 0.0, "z_mm": 10.0}
    draws = [
        {"seed": seed, "fault": "", "measured": asked | {"volume_ml": 50 * (1 + error), "y_mm": -off}}
        for seed, (error, off) in enumerate(zip(errors, backward, strict=True))
    ]
    if empty is not None:
        draws[empty]["measured"] = None
    return [{"name": name, "sweep": name.split("_")[0], "requested": asked, "draws": draws} for name in NAMED]


def test_bias_is_spoken_of_where_its_interval_leaves_out_0() -> None:
    """Mean and Student's interval over seeds by hand: a bias that noise does not hide, one that it does, and none."""
    errors, backward = [-0.1, -0.2, -0.3, -0.2, -0.2], [4.0, -6.0, 9.0, 1.0, 2.0]
    steps = made_up(errors, backward)
    found = over_seeds(steps[0])
    reach = student.ppf(0.975, 4) * np.std(errors, ddof=1) / math.sqrt(5)
    assert found["volume_error"][:5] == pytest.approx((-0.2, np.std(errors, ddof=1), -0.2 - reach, -0.2 + reach, 5))
    assert found["volume_ml"].mean == pytest.approx(40) and found["off_mm"].mean == pytest.approx(22 / 5)
    volume, across, along, up = biases(steps)
    assert volume == "Volume over the sizes: -20 % [-29, -11] over 5 seeds, smaller than asked."
    assert along == "Centre over the places, back to front: -2 mm [-9, +5] over 5 seeds, no bias shown."
    assert across.endswith("+0 mm [+0, +0] over 5 seeds, no bias shown.") and "no bias" in up
    assert "to the back." in biases(made_up(errors, [4.0, 6.0, 9.0, 5.0, 6.0]))[2]
    assert biases(made_up(errors[:1], backward[:1])) == ["One seed of noise says nothing of bias: --n 5 draws five."]


def test_bias_is_found_as_often_as_said() -> None:
    """Without a bias, one in twenty intervals over five seeds leaves out 0."""
    random = np.random.default_rng(0)
    said = [biases(made_up(random.normal(0, 0.3, 5).tolist(), [0.0] * 5))[0] for _ in range(300)]
    assert 0.025 < np.mean(["no bias" not in words for words in said]) < 0.08


def test_a_seed_without_tumour_counts_as_no_volume() -> None:
    """It is 100 % too small, and its place is left out, not taken for a hit."""
    steps = made_up([0.0, 0.0, 0.0], [3.0, 3.0, 3.0], empty=1)
    found = over_seeds(steps[0])
    assert found["volume_error"].mean == pytest.approx(-1 / 3) and found["volume_error"].n == 3
    assert found["off_mm"].mean == pytest.approx(3) and found["off_mm"].n == 2


def test_more_seeds_are_added(tmp_path: Path, swept_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three asked for, two there: the third is drawn, ten images at four a batch; fewer leave all as it is."""
    run, drawn = copy_run(swept_run, tmp_path), []
    monkeypatch.setattr(PairSampler, "__call__", _counted(drawn))
    folder = draw_sweeps(Run.at(run), CPU, n=3, batch=4)
    assert drawn == ["2,2,2,2", "2,2,2,2", "2,2"]
    before, after = (read_sweeps(run / FOLDER) for run in (swept_run, run))
    for old, new in zip(before, after, strict=True):
        assert new["draws"][:2] == old["draws"] and [draw["seed"] for draw in new["draws"]] == [0, 1, 2]
        assert all(np.array_equal(a, b) for a, b in zip(old["load"](), new["load"](), strict=True))
    draw_sweeps(Run.at(run), CPU, n=1)
    assert len(drawn) == 3 and len(read_sweeps(folder)[0]["draws"]) == 3


# --- resuming -------------------------------------------------------------------------------------------------------


def test_nothing_is_drawn_twice(tmp_path: Path, swept_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same call leaves every file as it is; a lost file is drawn again as it was, and it alone."""
    run = copy_run(swept_run, tmp_path)
    before = snapshot(run / FOLDER)
    done = call("sweep", "--run", run, "--n", 2)
    assert done.returncode == 0 and "20 of 20 images are already there" in done.stdout
    assert done.stdout.count(" over 2 seeds, ") == 4
    assert snapshot(run / FOLDER) == before

    lost = run / FOLDER / "place_right_labels.nii.gz"
    held = np.asarray(nib.load(lost).dataobj)
    lost.unlink()
    with pytest.raises(StateError, match=r"1 image\(s\) of the sweeps"):
        read_sweeps(run / FOLDER)
    drawn: list[str] = []
    monkeypatch.setattr(PairSampler, "__call__", _counted(drawn))
    draw_sweeps(Run.at(run), CPU, n=2)
    assert drawn == ["0"]
    np.testing.assert_array_equal(nib.load(lost).dataobj, held)
    assert read_json(run / FOLDER / "sweeps.json") == read_json(swept_run / FOLDER / "sweeps.json")


def _counted(drawn: list[str], stop_at: int | None = None) -> Callable:
    """The sampler, which notes the seed of each image and stops like Ctrl-C before one of them."""
    usual = PairSampler.__call__

    def draw(self: PairSampler, inputs: torch.Tensor, network: torch.nn.Module, seeds: list[int]) -> torch.Tensor:
        if len(drawn) == stop_at:
            raise KeyboardInterrupt
        drawn.append(",".join(map(str, seeds)))
        return usual(self, inputs, network, seeds)

    return draw


def test_stopped_half_way(tmp_path: Path, trained_run: Path, swept_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading says what is missing; the same call draws just that and ends where an unbroken run ends."""
    run = copy_run(trained_run, tmp_path)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(PairSampler, "__call__", _counted([], stop_at=4))
        draw_sweeps(Run.at(run), CPU, n=1)
    (run / FOLDER / ".partial-x").mkdir()
    with pytest.raises(StateError, match=r"6 image\(s\) of the sweeps are missing; run `sbldm sweep --run"):
        read_sweeps(run / FOLDER)
    drawn: list[str] = []
    monkeypatch.setattr(PairSampler, "__call__", _counted(drawn))
    folder = draw_sweeps(Run.at(run), CPU, n=1)
    assert drawn == ["0"] * 6 and not partial_files(run)
    for whole, resumed in zip(read_sweeps(swept_run / FOLDER), read_sweeps(folder), strict=True):
        assert whole["measured"] == resumed["measured"]
        assert all(np.array_equal(a, b) for a, b in zip(whole["load"](), resumed["load"](), strict=True))


def test_another_seed_takes_the_place(tmp_path: Path, swept_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other noise: the requests stay and every image is drawn anew. Other steps: nothing that is there counts."""
    run = copy_run(swept_run, tmp_path)
    done = call("sweep", "--run", run, "--seed", 1, "--n", 1)
    assert done.returncode == 0 and "already there" not in done.stdout
    for old, new in zip(read_sweeps(swept_run / FOLDER), read_sweeps(run / FOLDER), strict=True):
        assert old["requested"] == new["requested"] and (old["seed"], new["seed"]) == (0, 1)
        assert not np.array_equal(old["load"]()[0], new["load"]()[0])
        assert old["draws"][1] == new["draws"][0]  # what the seed draws, whatever was drawn before it
    monkeypatch.setattr(PairSampler, "__call__", _counted([], stop_at=0))
    with pytest.raises(KeyboardInterrupt):
        draw_sweeps(Run.at(run), CPU, steps=2, seed=1, n=1)
    with pytest.raises(StateError, match=r"10 image\(s\)"):
        read_sweeps(run / FOLDER)
    assert read_json(run / FOLDER / "sweeps.json")["sampling"]["steps"] == 2


def test_refused_values(tmp_path: Path, prepared_run: Path, swept_run: Path) -> None:
    """A wrong variable, or no model: one line that names it, and nothing is written."""
    run = copy_run(swept_run, tmp_path)
    before = snapshot(run / FOLDER)
    for option, value, words in (
        ("steps", "few", "--steps few: must be a whole number from 1 to"),
        ("steps", "0", "--steps 0: must be a whole number from 1 to"),
        ("steps", "1001", "--steps 1001"),
        ("seed", "-1", "--seed -1"),
        ("n", "0", "--n 0: must be a whole number from 1 to"),
        ("batch", "few", "--batch few: must be a whole number from 1 to"),
    ):
        assert words in one_line(call("sweep", "--run", run, f"--{option}={value}"), 2)
    assert snapshot(run / FOLDER) == before
    assert "run `sbldm train" in one_line(call("sweep", "--run", prepared_run), 4)
    assert not (prepared_run / "evaluation").exists()


# --- the figure -----------------------------------------------------------------------------------------------------


def coloured(picture: np.ndarray, colour: str) -> np.ndarray:
    """Where a picture has about this colour."""
    wanted = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    return np.abs(picture[..., :3] - wanted).max(axis=-1) < 0.12


def test_figure(tmp_path: Path, trained_run: Path, oracle: None) -> None:
    """935 x 1232 pixels; each outline is as wide as the ball to a voxel and centred on the cross to half a voxel."""
    run, path = copy_run(trained_run, tmp_path), tmp_path / "figures" / "sweeps.png"
    folder = draw_sweeps(Run.at(run), CPU, n=1)
    sweep_figure(folder, path)
    picture = imread(path)
    assert picture.shape[:2] == (1232, 935) and (picture[0, 0, :3] == 0).all()
    shown = np.flatnonzero((picture[285:473, :187, :3].min(axis=2) > 0.5).any(axis=0))
    scale = (np.ptp(shown) + 1) / 156  # pixels a mm; the painted brain is so wide
    voxel = 4 * scale
    for i, step in enumerate(read_sweeps(folder)):
        width = 2 * np.cbrt(step["measured"]["volume_ml"] * 1000 * 3 / (4 * np.pi)) * scale
        half = picture[i // 5 * 473 :][:473, i % 5 * 187 :][:, :187]
        for cut in (half[:285], half[285:]):  # axial, coronal
            cross, ring = (np.argwhere(coloured(cut, colour)) for colour in ("#4fc3f7", "#ff9d3b"))
            low, high = ring.min(axis=0), ring.max(axis=0)
            np.testing.assert_allclose((low + high) / 2, cross.mean(axis=0), atol=voxel / 2 + 1)
            np.testing.assert_allclose(high - low, width, atol=voxel + 1)


def test_refused_and_empty_pairs_are_shown(tmp_path: Path, trained_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pair that the gate refuses keeps its place in the sweep, with its fault in file, title and colour."""
    monkeypatch.setattr(Model, "decode", lambda self, latent: np.full((2, *self.working.size), -1.0, np.float32))
    run, path = copy_run(trained_run, tmp_path), tmp_path / "sweeps.png"
    folder = draw_sweeps(Run.at(run), CPU, n=1)
    steps = read_sweeps(folder)
    assert [(step["fault"], step["measured"]) for step in steps] == [("empty mask", None)] * 10
    sweep_figure(folder, path)
    picture = imread(path)[:946]  # without the errors below
    assert coloured(picture, "#ff6b5b").sum() > 100 and not coloured(picture, "#ff9d3b").any()
    write_json(folder / "sweeps.json", {})
    with pytest.raises(StateError, match=r"sweeps\.json: damaged"):
        sweep_figure(folder, path)
