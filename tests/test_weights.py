"""A generator in one file: what it holds, what it hides, pairs from it, and trainings that go on from it."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from conftest import BUNDLE, call, copy_run, one_line
from safetensors import safe_open
from test_synthesis import manifest

from sbldm.cases.geometry import NativeGrid
from sbldm.cases.identity import Seen, brightness_hash, coarse_hash
from sbldm.cases.layouts import content_hash
from sbldm.cases.lists import read_lists
from sbldm.cases.prepare import read_sidecar
from sbldm.networks import build_autoencoder, build_denoiser
from sbldm.run.errors import InputError
from sbldm.run.files import read_json
from sbldm.run.folder import Run, load_preset
from sbldm.run.manifest import Manifest
from sbldm.synthesis.gate import Gate
from sbldm.synthesis.model import Model
from sbldm.training import begin_with
from sbldm.training.checkpoints import load_checkpoint
from sbldm.training.weights import Weights
from sbldm.tumour.requests import TumourModel

CPU = torch.device("cpu")
WORDS = "--about", "five phantoms", "--licence", "None."


@pytest.fixture(scope="module")
def handed_on(taught_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of the tiny run."""
    out = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    done = call("weights", "--run", taught_run, "--out", out, *WORDS)
    assert done.returncode == 0, done.stderr
    assert f"{out}: {out.stat().st_size / 1e6:.1f} MB" in done.stdout
    return out


def test_it_holds_the_networks_of_the_run(taught_run: Path, handed_on: Path) -> None:
    """To half precision; the constants are those of the checkpoint."""
    held = Weights.read(handed_on)
    for part, stage in (("autoencoder", "autoencoder"), ("network", "regions")):
        trained = load_checkpoint(Run.at(taught_run).checkpoint(stage), stage)["network"]
        assert held.states[part].keys() == trained.keys()
        for name, value in trained.items():
            assert torch.allclose(held.states[part][name], value, rtol=1e-3, atol=1e-6), name
    constants = load_checkpoint(Run.at(taught_run).checkpoint("regions"), "regions")["constants"]
    assert all(held.constants[name] == constants[name] for name in ("latent_std", "intensities"))
    ours, theirs = ({k: NativeGrid.from_state(v) for k, v in c["grids"].items()} for c in (held.constants, constants))
    assert ours["native"].origin == (0, 0, 0)  # of no scanner
    shifts = [grids["working"].centre - grids["native"].centre for grids in (ours, theirs)]
    assert np.allclose(*shifts)
    assert np.allclose(held.constants["latent_mean"], constants["latent_mean"])
    assert held.about == {"data": "five phantoms", "licence": "None.", "cases": 5}
    ranges = Gate.of_run(str(taught_run)).ranges
    assert held.ranges.keys() == ranges.keys()
    for name, (low, high) in ranges.items():  # rounded outward, as the outermost cases set them
        least, most = held.ranges[name]
        assert low - max(0.1 * abs(low), 0.01) < least <= low and high <= most < high + max(0.1 * abs(high), 0.01)
    assert sum(held.ranges[name] != limits for name, limits in ranges.items()) > 8


def test_it_names_no_case(taught_run: Path, handed_on: Path) -> None:
    """Neither a name nor a hash of a training case, nor the numbers of its tumour, can be read in it."""
    with safe_open(handed_on, "pt") as file:
        header = json.loads(file.metadata()["sbldm"])
    text = handed_on.read_bytes().decode("latin-1")
    run, names = Run.at(taught_run), read_lists(taught_run)["train"]
    for name in names:
        sidecar = read_sidecar(run.prepared, name)
        assert name not in text and not any(sidecar[key] in text for key in ("content", "brightness", "mask"))
    own = TumourModel.from_state(load_checkpoint(run.checkpoint("regions"), "regions")["constants"]["tumours"])
    means = np.array(header["constants"]["tumours"]["means"])
    assert means.shape == (1000, 8)  # of draws
    assert np.abs(means[:, None] - own.means[None]).max(-1).min() > 1e-4
    drawn = TumourModel.from_state(header["constants"]["tumours"]).sample(400, seed=1)
    assert np.log(drawn[:, 0]).mean() == pytest.approx(np.log(own.sample(400, seed=2)[:, 0]).mean(), abs=0.15)


def test_cases_are_recognised_by_salted_hashes(taught_run: Path, handed_on: Path) -> None:
    """By content or brightness, whatever they are called; others are not, nor are its own with another salt."""
    held, names = Weights.read(handed_on).seen, read_lists(taught_run)
    cases = {role: [read_sidecar(Run.at(taught_run).prepared, n) for n in names[role]] for role in names}
    assert all(held.holds(case[key]) for case in cases["train"] for key in ("content", "brightness"))
    assert not any(held.holds(case["content"], case["brightness"]) for case in cases["validation"])
    assert not any(held.holds(case["case"]) for case in cases["train"])  # names could be tried one by one
    ((_, hashes),) = held.lists
    assert not any(Seen((("00" * 16, hashes),)).holds(case["content"]) for case in cases["train"])
    assert Seen.of([{"content": "b"}]).lists != Seen.of([{"content": "b"}]).lists  # a salt of its own
    both = Seen.of([{"content": "a"}]) + Seen.of([{"content": "b"}])
    assert both.holds("a") and both.holds("b") and not both.holds("c") and Seen.from_state(both.state()) == both


def test_a_scan_is_recognised_at_twice_the_resolution() -> None:
    """The block means of a scan have the hash of the scan that was stored so, however its axes run."""
    rng = np.random.default_rng(0)
    fine = rng.integers(1, 900, (6, 8, 5))
    coarse = np.pad(fine, ((0, 0), (0, 0), (0, 1))).reshape(3, 2, 4, 2, 3, 2).mean((1, 3, 5)).round()
    lps = np.diag([-1.0, -1.0, 1.0, 1.0])
    assert coarse_hash(fine, lps) == brightness_hash(coarse)
    assert coarse_hash(fine[::-1, ::-1], np.eye(4)) == brightness_hash(coarse)
    assert coarse_hash(fine[:, :, ::-1], np.diag([-1.0, -1.0, -1.0, 1.0])) == brightness_hash(coarse)


def test_pairs_of_an_empty_folder(handed_on: Path, tmp_path: Path) -> None:
    """Nothing is prepared: the file draws, whole brains and into scans; pairs say what it was trained on, and whose."""
    run = tmp_path / "an empty one"
    done = call("synth", "--run", run, "--n", 2, "--weights", handed_on)
    assert done.returncode == 0, done.stderr
    assert "Generator: tiny.safetensors, trained on five phantoms. None." in done.stdout
    (dataset,) = (run / "nnUNet_raw").iterdir()
    assert dataset.name == "Dataset501_W_tiny"
    next_step = f"Next: nnU-Net finds these pairs, {dataset}, by `export nnUNet_raw='{run / 'nnUNet_raw'}'`."
    assert done.stdout.splitlines()[-1] == next_step
    held = Weights.read(handed_on)
    rows = manifest(run, Path("nnUNet_raw", dataset.name))
    assert {row["checkpoint_sha256"] for row in rows} == {held.sha256}
    written = Manifest(dataset)
    assert written.lineage == {} and written.origin == json.loads(json.dumps(held.origin))
    image = nib.load(next((dataset / "imagesTr").iterdir()))
    assert image.shape == (60, 60, 39) and "five phantoms" in (dataset / "datasheet.md").read_text()
    swept = call("sweep", "--run", run, "--n", 1, "--weights", handed_on)
    assert swept.returncode == 0, swept.stderr
    assert read_json(run / "evaluation" / "sweeps" / "sweeps.json")["checkpoint_sha256"] == held.sha256


def test_pairs_beside_prepared_cases_have_their_grid(handed_on: Path, prepared_run: Path, tmp_path: Path) -> None:
    """And are drawn into them; each descends from its canvas, not from the generator's cases."""
    run = copy_run(prepared_run, tmp_path)
    drawn = call("synth", "--run", run, "--n", 2, "--weights", handed_on, "--canvas", "train", "--dataset", 502)
    assert drawn.returncode == 0, drawn.stderr
    dataset = run / "nnUNet_raw" / "Dataset502_W_tiny"
    canvases = {row["canvas"] for row in manifest(run, Path("nnUNet_raw", dataset.name))}
    assert canvases <= set(Manifest(dataset).lineage) <= set(read_lists(run)["train"])
    model = Model.load(str(run), CPU, weights=handed_on)
    own = read_sidecar(Run.at(run).prepared, min(canvases))
    assert model.constants["grids"]["native"] == own["native"]


def test_the_native_grid_may_be_another(taught_run: Path, handed_on: Path, tmp_path: Path) -> None:
    """That of an image, so that weights of coarse cases draw in the grid of the scanner."""
    fine = nib.Nifti1Image(np.zeros((120, 120, 78), np.uint8), np.diag([-2.0, -2.0, 2.0, 1.0]))
    nib.save(fine, tmp_path / "fine.nii.gz")
    out = tmp_path / "fine.safetensors"
    assert (
        call("weights", "--run", taught_run, "--out", out, *WORDS, "--like", tmp_path / "fine.nii.gz").returncode == 0
    )
    grid = Model.load(str(tmp_path), CPU, weights=out).native
    assert (grid.size, grid.spacing) == ((120, 120, 78), (2.0, 2.0, 2.0))
    coarse = Weights.read(handed_on).constants["grids"]
    working, native = Model.load(str(tmp_path), CPU, weights=out).working, NativeGrid.from_state(coarse["native"])
    assert np.allclose(working.centre - grid.centre, NativeGrid.from_state(coarse["working"]).centre - native.centre)


def test_a_training_goes_on_from_it(handed_on: Path, phantom_cases: Path, tmp_path: Path) -> None:
    """Both networks begin as they lie in the file; latents and requests stay scaled as they know them."""
    held = Weights.read(handed_on)
    run = tmp_path / "run"
    done = call("prepare", "--run", run, "--data", phantom_cases, "--init", handed_on)
    assert done.returncode == 0, done.stderr
    preset = Run.at(run).preset
    assert preset.init.state() == {"weights": str(handed_on), "sha256": held.sha256}
    assert preset.diffusion.iterations == 400
    assert preset.diffusion.learning_rate == held.preset.diffusion.learning_rate / 4
    for part, stage, build in (
        ("autoencoder", "autoencoder", build_autoencoder),
        ("network", "diffusion", build_denoiser),
    ):
        network = begin_with(build(preset), preset, stage)
        assert all(torch.equal(value, held.states[part][name]) for name, value in network.state_dict().items())
    short = {"iterations": 20, "iterations_per_epoch": 10, "warm_up": 5}
    stages = ("autoencoder", "diffusion", "regions")
    Run.at(run).save_preset(preset.but(**{stage: preset.stage(stage).but(**short) for stage in stages}))
    assert call("train", "--run", run).returncode == 0  # regions too
    constants = load_checkpoint(Run.at(run).checkpoint("regions"), "regions")["constants"]
    kept = ("latent_std", "normaliser", "tumours")
    assert {name: constants[name] for name in kept} == {name: held.constants[name] for name in kept}
    assert call("synth", "--run", run, "--n", 1).returncode == 0
    dataset = run / "nnUNet_raw" / "Dataset501_SBLDM"
    written = Manifest(dataset)
    assert written.origin == held.origin and not written.from_elsewhere  # test cases of the file stay refused
    assert set(written.lineage) == set(read_lists(run)["train"])
    again = tmp_path / "again.safetensors"
    assert call("weights", "--run", run, "--out", again, *WORDS).returncode == 0
    passed_on = Weights.read(again)
    assert passed_on.about["cases"] == 10 and passed_on.about["data"] == "five phantoms; before that on five phantoms"
    assert passed_on.seen.lists[1] == held.seen.lists[0] and passed_on.preset.init is None
    assert "brings its own preset" in one_line(
        call("prepare", "--run", run, "--data", phantom_cases, "--init", handed_on, "--minutes", 5), 2
    )


def test_what_comes_with_the_package() -> None:
    """The hash in the metadata, the size, BraTS's own grid, the default preset's networks, and that it names nobody."""
    file = BUNDLE / "models" / "sbldm_brats.safetensors"
    held, metadata = Weights.read("shipped"), read_json(BUNDLE / "configs" / "metadata.json")
    assert held.path == file and file.stat().st_size <= 20e6
    assert held.sha256 == metadata["weights"]["models/sbldm_brats.safetensors"]["sha256"]
    assert held.about["cases"] == 100 and len(held.seen.lists[0][1]) == 200
    assert b"BraTS20_" not in file.read_bytes()
    small = load_preset("small")
    assert held.preset.diffusion.network == small.diffusion.network
    assert held.preset.autoencoder == small.autoencoder and held.preset.regions == small.regions
    grid = Model.load("nowhere", CPU, weights="shipped").native
    assert (grid.size, grid.spacing) == ((240, 240, 155), (1.0, 1.0, 1.0))


REAL = Path(__file__).parents[2] / "shared" / "data"


@pytest.mark.skipif(not REAL.is_dir(), reason="needs the real cases of ../shared/data")
def test_its_training_cases_are_recognised_at_both_resolutions() -> None:
    """Those of the list, and no held-back one; at 1 mm as well, whatever they are called."""
    seen = Weights.read("shipped").seen
    for name in ("train100", "dev30"):
        names = (REAL / "splits" / f"{name}.txt").read_text().split()
        for case in names[:3]:
            image = np.asarray(nib.load(REAL / "brats_2mm" / case / f"{case}_flair.nii.gz").dataobj)
            assert seen.holds(content_hash(image), brightness_hash(image)) == (name == "train100")
        for folder in (REAL / "brats_1mm" / case for case in names):
            if folder.is_dir():
                image = nib.load(folder / f"{folder.name}_flair.nii.gz")
                assert seen.holds(coarse_hash(np.asarray(image.dataobj), image.affine)) == (name == "train100")


def test_wrong_files(handed_on: Path, trained_run: Path, tmp_path: Path) -> None:
    """In one line that says what such a file is."""
    synth = "synth", "--run", tmp_path / "empty", "--n", 1, "--weights"
    assert "--weights nowhere: no such file; write shipped" in one_line(call(*synth, "nowhere"), 2)
    prepare = "prepare", "--run", tmp_path / "empty", "--data", tmp_path, "--init", "nowhere"
    assert "--init nowhere: no such file" in one_line(call(*prepare), 2)
    into = *synth, handed_on, "--canvas", "train"
    assert "--canvas train: no cases are prepared here" in one_line(call(*into), 2)
    (tmp_path / "text.safetensors").write_text("no tensors")
    assert "must be a file that `sbldm weights` wrote" in one_line(call(*synth, tmp_path / "text.safetensors"), 2)
    (tmp_path / "half.safetensors").write_bytes(handed_on.read_bytes()[:-1000])
    assert "must be a file that `sbldm weights` wrote" in one_line(call(*synth, tmp_path / "half.safetensors"), 2)
    made = "weights", "--run", trained_run, "--out", tmp_path / "x.safetensors"
    assert "--about is missing" in one_line(call(*made), 2)
    assert "regions.whole of its preset is 0" in one_line(call(*made, *WORDS), 2)
    with pytest.raises(InputError, match="draws flair and whole tumour"):
        run = copy_run(
            trained_run, tmp_path, data={"channels": ["t1"], "labels": {"whole tumour": "all"}}, leave_out="prepared"
        )
        Model.load(str(run), CPU, weights=handed_on)
    assert read_json(trained_run / "lists.json")
