"""Drawing pairs: a valid nnU-Net raw dataset, reproducible pair by pair, resumable, honest about what it refused."""

from __future__ import annotations

import contextlib
import csv
import json
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import nibabel as nib
import numpy as np
import pytest
import torch
from conftest import call, copy_run, one_line, partial_files, snapshot, wait_for

from sbldm.cases.geometry import WorkingGrid
from sbldm.diffusion import Schedule
from sbldm.networks import LatentUNet
from sbldm.run.errors import InputError
from sbldm.run.files import sha256
from sbldm.run.folder import load_preset
from sbldm.run.preset import Sampling
from sbldm.synthesis import Pair, PairSampler, finish_pair, session
from sbldm.synthesis.model import row_noise
from sbldm.training.checkpoints import load_checkpoint
from sbldm.tumour.characteristics import NAMES

DATASET = Path("nnUNet_raw") / "Dataset501_SBLDM"
SHAPE = (2, 3, 4, 5)  # of latents
PRESET = Sampling(sampler="ddim", steps=4, eta=0.0, guidance=1.0)


def manifest(run: Path, dataset: Path = DATASET) -> list[dict[str, str]]:
    """Rows of the manifest."""
    with open(run / dataset / "manifest.csv", newline="") as file:
        return list(csv.DictReader(file))


def arrays(run: Path, name: str, dataset: Path = DATASET) -> tuple[np.ndarray, np.ndarray]:
    """Image and mask of one pair as they lie in the files."""
    files = (run / dataset / "imagesTr" / f"{name}_0000.nii.gz", run / dataset / "labelsTr" / f"{name}.nii.gz")
    image, mask = (np.asarray(nib.load(path).dataobj) for path in files)
    return image, mask


def volumes(run: Path, dataset: Path = DATASET) -> dict[str, bytes]:
    """Content of all images and masks by file name."""
    return {p.name: np.asarray(nib.load(p).dataobj).tobytes() for p in (run / dataset).glob("*Tr/*.nii.gz")}


# --- the dataset ----------------------------------------------------------------------------------------------------


def test_raw_dataset(drawn_run: Path, phantom_cases: Path) -> None:
    """Names, types, grid and units are those of nnU-Net and of the training cases; background is exactly 0."""
    names = [f"SBLDM_{i:06d}" for i in range(3)]
    files = sorted(str(p.relative_to(drawn_run / DATASET)) for p in (drawn_run / DATASET).rglob("*") if p.is_file())
    assert files == sorted(
        [f"imagesTr/{n}_0000.nii.gz" for n in names]
        + [f"labelsTr/{n}.nii.gz" for n in names]
        + [f"records/{n}.json" for n in names]
        + ["dataset.json", "datasheet.md", "lineage.json", "manifest.csv", "synthesis.json"]
    )
    case = nib.load(next(phantom_cases.rglob("*_flair.nii.gz")))
    for name in names:
        image = nib.load(drawn_run / DATASET / "imagesTr" / f"{name}_0000.nii.gz")
        mask = nib.load(drawn_run / DATASET / "labelsTr" / f"{name}.nii.gz")
        assert image.get_data_dtype() == np.int16 and mask.get_data_dtype() == np.uint8
        assert image.shape == mask.shape == case.shape == (60, 60, 39)
        for file in (image, mask):
            np.testing.assert_allclose(file.affine, case.affine, atol=1e-4)
            np.testing.assert_array_equal(file.get_qform(coded=True)[0], file.get_sform(coded=True)[0])
            assert file.header["qform_code"] == file.header["sform_code"] == 1
            assert file.header.get_xyzt_units()[0] == "mm"
            assert file.header["scl_slope"] in (1, np.nan) or np.isnan(file.header["scl_slope"])
        voxels, labels = arrays(drawn_run, name)
        assert set(np.unique(labels)) == {0, 1}
        assert voxels.min() == 0 and (voxels[0] == 0).all() and (voxels[labels > 0] >= 1).all()
        assert 0.05 < (voxels > 0).mean() < 0.6


def test_dataset_json(drawn_run: Path) -> None:
    """Exactly what nnU-Net v2 reads."""
    assert json.loads((drawn_run / DATASET / "dataset.json").read_text()) == {
        "channel_names": {"0": "FLAIR"},
        "labels": {"background": 0, "whole tumour": 1},
        "numTraining": 3,
        "file_ending": ".nii.gz",
    }


def test_manifest(drawn_run: Path) -> None:
    """One row a pair: where it came from, and measured values that an independent look at the file confirms."""
    rows = manifest(drawn_run)
    columns = ["pair", "seed", "model", *(f"requested_{n}" for n in NAMES), "extrapolated"]
    columns += [
        *(f"measured_{n}" for n in NAMES),
        "redrawn",
        "refused_because",
        "gate",
        "nearest_correlation",
        "nearest_excess",
        "tumour_dsc",
        "tumour_excess",
        "near_copy",
        "checkpoint_sha256",
        "sampler",
        "steps",
        "eta",
        "guidance",
        "seconds",
    ]
    assert list(rows[0]) == columns
    assert [row["pair"] for row in rows] == ["SBLDM_000000", "SBLDM_000001", "SBLDM_000002"]
    checkpoint = drawn_run / "diffusion" / "best.pt"
    for seed, row in enumerate(rows):
        assert row["seed"] == str(seed) and row["checkpoint_sha256"] == sha256(checkpoint)
        assert [row[k] for k in ("sampler", "steps", "eta", "guidance")] == ["ddim", "4", "0.0", "1.0"]
        assert 0 < float(row["seconds"]) < 60 and row["extrapolated"] == ""
        measured = {n: float(row[f"measured_{n}"]) for n in NAMES}
        file = nib.load(drawn_run / DATASET / "labelsTr" / f"{row['pair']}.nii.gz")
        voxels = np.argwhere(np.asarray(file.dataobj) > 0)
        image = nib.load(drawn_run / DATASET / "imagesTr" / f"{row['pair']}_0000.nii.gz")
        brain = nib.affines.apply_affine(image.affine, np.argwhere(np.asarray(image.dataobj) > 0))
        world = nib.affines.apply_affine(file.affine, voxels) - (brain.min(0) + brain.max(0)) / 2
        assert measured["volume_ml"] == pytest.approx(len(voxels) * 0.064, abs=6e-4)
        assert [measured[n] for n in ("x_mm", "y_mm", "z_mm")] == pytest.approx(world.mean(0), abs=0.011)
        assert [measured[n] for n in ("w_mm", "h_mm", "d_mm")] == pytest.approx(np.ptp(world, axis=0) + 4, abs=0.011)
        ball = np.pi ** (1 / 3) * (6000 * measured["volume_ml"]) ** (2 / 3)
        assert measured["sphericity"] == pytest.approx(ball / measured["surface_mm2"], abs=2e-4)
        assert 0.3 < measured["sphericity"] <= 1


def test_contact_sheet(drawn_run: Path) -> None:
    """A picture to look at lies in the run folder."""
    assert (drawn_run / "figures" / "Dataset501_SBLDM.png").read_bytes().startswith(b"\x89PNG")


# --- a pair is a function of checkpoint, request and seed -----------------------------------------------------------


def test_alone_as_in_company(tmp_path: Path, drawn_run: Path) -> None:
    """Pair 2 of three, drawn alone with the seed 2 into another dataset: the same bytes and the same record."""
    run = copy_run(drawn_run, tmp_path)
    done = call("synth", "--run", run, "--n", 1, "--seed", 2, "--dataset", 502)
    assert done.returncode == 0, done.stderr
    other = Path("nnUNet_raw") / "Dataset502_SBLDM"
    together, alone = volumes(run), volumes(run, other)
    assert sorted(alone) == ["SBLDM_000002.nii.gz", "SBLDM_000002_0000.nii.gz"]
    assert alone == {name: together[name] for name in alone}
    rows = [manifest(run)[2], manifest(run, other)[0]]
    assert {k: v for k, v in rows[0].items() if k != "seconds"} == {k: v for k, v in rows[1].items() if k != "seconds"}
    assert len({together[f"SBLDM_00000{i}.nii.gz"] for i in range(3)}) == 3  # and seeds differ


def test_batches(tmp_path: Path, drawn_run: Path) -> None:
    """Three pairs drawn at once are the three drawn one by one: equal masks, images within one unit."""
    run = copy_run(drawn_run, tmp_path)
    assert call("synth", "--run", run, "--n", 3, "--batch", 3, "--dataset", 502).returncode == 0
    for i in range(3):
        one, many = (arrays(run, f"SBLDM_{i:06d}", d) for d in (DATASET, Path("nnUNet_raw") / "Dataset502_SBLDM"))
        assert np.array_equal(one[1], many[1])
        assert np.abs(one[0].astype(int) - many[0]).max() <= 1


def test_larger_n_adds_what_is_missing(tmp_path: Path, drawn_run: Path) -> None:
    """Three pairs there, five asked for: two are drawn, the three keep their files; the same again draws none."""
    run = copy_run(drawn_run, tmp_path)
    pairs = "imagesTr", "labelsTr", "records"
    before = {part: snapshot(run / DATASET / part) for part in pairs}
    done = call("synth", "--run", run, "--n", 5)
    assert done.returncode == 0 and "3 of 5 pairs are already there" in done.stdout
    after = {part: snapshot(run / DATASET / part) for part in pairs}
    for part in pairs:
        assert {k: v for k, v in after[part].items() if k in before[part]} == before[part]
        assert len(after[part]) == 5
    assert json.loads((run / DATASET / "dataset.json").read_text())["numTraining"] == len(manifest(run)) == 5
    done = call("synth", "--run", run, "--n", 4)
    assert done.returncode == 0 and "4 of 4 pairs are already there" in done.stdout
    next_steps = f"Next: `sbldm nnunet eval --run {run}` (do they help?), or `sbldm evaluate --run {run}` (how good are"
    assert next_steps in done.stdout.splitlines()[-1]
    assert {part: snapshot(run / DATASET / part) for part in pairs} == after


def test_killed_run_continues(tmp_path: Path, trained_run: Path) -> None:
    """SIGKILL somewhere in the middle; the same command leaves what a run that was never stopped leaves."""
    n, asked = 12, ["--volume-ml", "90"]  # so short a training may leave the masks of small tumours empty
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    whole, killed = copy_run(trained_run, tmp_path / "a"), copy_run(trained_run, tmp_path / "b")
    assert call("synth", "--run", whole, "--n", n, *asked).returncode == 0
    command = [sys.executable, "-m", "sbldm", "synth", "--run", str(killed), "--n", str(n), "--gate", "off", *asked]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_for(killed / DATASET / "records" / "SBLDM_000000.json", process)
    time.sleep(0.5 * random.random())
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    finished = len(list((killed / DATASET / "records").glob("*.json")))
    assert 1 <= finished < n
    for folder in (killed / DATASET, killed / "figures"):  # whatever the moment was: rests are there
        (folder / ".partial-9999999").mkdir(parents=True)
        (folder / ".partial-9999999" / "x.nii.gz").write_bytes(b"half")
    last = max(k for k in range(n) if not (killed / DATASET / "records" / f"SBLDM_{k:06d}.json").exists())
    (killed / DATASET / "labelsTr" / f"SBLDM_{last:06d}.nii.gz").write_bytes(b"of a pair without a record")

    done = call("synth", "--run", killed, "--n", n, *asked)
    assert done.returncode == 0, done.stderr
    assert f"{finished} of {n} pairs are already there" in done.stdout
    assert volumes(killed) == volumes(whole) and len(volumes(whole)) == 2 * n
    rows = [[{k: v for k, v in row.items() if k != "seconds"} for row in manifest(run)] for run in (whole, killed)]
    assert rows[0] == rows[1]
    assert not partial_files(killed)
    files = [sorted(str(p.relative_to(r)) for p in (r / "nnUNet_raw").rglob("*")) for r in (whole, killed)]
    assert files[0] == files[1]


# --- requests -------------------------------------------------------------------------------------------------------


def test_table_of_requests(tmp_path: Path, drawn_run: Path) -> None:
    """Row i is what pair i is asked for, without --n one pair a row; empty cells are drawn, and differ."""
    run = copy_run(drawn_run, tmp_path)
    table = tmp_path / "asked.csv"
    table.write_text("volume_ml,x_mm\n30,\n35,-20\n")
    done = call("synth", "--run", run, "--requests", table, "--dataset", 502)
    assert done.returncode == 0, done.stderr
    rows = manifest(run, Path("nnUNet_raw") / "Dataset502_SBLDM")
    assert [float(row["requested_volume_ml"]) for row in rows] == [30, 35]
    assert float(rows[1]["requested_x_mm"]) == -20 and float(rows[0]["requested_x_mm"]) != -20
    message = one_line(call("synth", "--run", run, "--requests", table, "--volume-ml", 3, "--dataset", 503), 2)
    assert "--requests" in message and "exclude each other" in message
    message = one_line(call("synth", "--run", run, "--requests", tmp_path / "none.csv", "--dataset", 503), 2)
    assert f"{tmp_path}/none.csv: is missing" in message
    assert not list(run.glob("nnUNet_raw/Dataset503*"))


def test_one_request(tmp_path: Path, drawn_run: Path) -> None:
    """A volume and a centre that begins with a minus hold for every pair; what is left open is drawn anew."""
    run = copy_run(drawn_run, tmp_path)
    asked = ("--n", 2, "--volume-ml", 35, "--centre-mm=-30,10,5", "--dataset", 502)
    done = call("synth", "--run", run, *asked)
    assert done.returncode == 0, done.stderr
    rows = manifest(run, Path("nnUNet_raw") / "Dataset502_SBLDM")
    names = ("volume_ml", "x_mm", "y_mm", "z_mm")
    assert [[float(row[f"requested_{n}"]) for n in names] for row in rows] == [[35, -30, 10, 5]] * 2
    assert rows[0]["requested_w_mm"] != rows[1]["requested_w_mm"]


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        (["--volume-ml", "100", "--surface-mm2", "50"], "surface_mm2=50 is less than a sphere"),
        (["--volume-ml", "-3"], "--volume-ml -3: must be a number above 0"),
        (["--volume-ml", "big"], "--volume-ml big: must be a number above 0"),
        (["--centre-mm=1,2"], "--centre-mm 1,2: write three numbers"),
        (["--sphericity", "1.2"], "--sphericity 1.2: must be a number above 0 to 1."),
        (["--extents-mm", "1,1,1", "--volume-ml", "30"], "extents_mm make a box"),
        (["--steps", "0"], "--steps 0"),
        (["--steps", "1001"], "--steps 1001"),
        (["--steps", "few"], "--steps few"),
        (["--sampler", "ddpm", "--steps", "50"], "--steps 50"),
        (["--sampler", "ddpm", "--eta", "0.5"], "--eta 0.5"),
        (["--sampler", "euler"], "--sampler euler: choose one of ddim, ddpm"),
        (["--eta", "some"], "--eta some"),
        (["--eta", "-1"], "--eta -1"),
        (["--eta", "1.5"], "--eta 1.5"),
        (["--guidance", "nan"], "--guidance nan"),
        (["--seed", "-1"], "--seed -1"),
        (["--batch", "0"], "--batch 0"),
        (["--dataset", "0"], "--dataset 0"),
        (["--dataset", "x"], "--dataset x"),
        (["--name", "a b"], "--name a b"),
    ],
)
def test_wrong_values(trained_run: Path, asked: list[str], words: str) -> None:
    """Exit code 2 and one line that names the option; nothing is written."""
    message = one_line(call("synth", "--run", trained_run, "--n", 1, *asked), 2)
    assert words in message
    assert not (trained_run / "nnUNet_raw").exists()


@pytest.mark.parametrize(
    ("n", "words"),
    [
        (["--n", "0"], "--n 0: must be a whole number from 1"),
        (["--n", "-1"], "--n -1: must be a whole number from 1"),
        (["--n", "x"], "--n x: must be a whole number from 1"),
        (["--n", "1.5"], "--n 1.5: must be a whole number from 1"),
        (["--n="], "--n is missing: say how many pairs, for example `sbldm synth --n 100`"),
        ([], "--n is missing: say how many pairs, for example `sbldm synth --n 100`"),
    ],
)
def test_number_of_pairs(tmp_path: Path, trained_run: Path, n: list[str], words: str) -> None:
    """Said before anything else, also without a model; nothing is created."""
    for run in (tmp_path / "none", trained_run):
        message = one_line(call("synth", "--run", run, *n), 2)
        assert words in message
    assert not (tmp_path / "none").exists() and not (trained_run / "nnUNet_raw").exists()


def test_without_a_model(tmp_path: Path, prepared_run: Path) -> None:
    """The command that trains one is named; nothing is created."""
    run = copy_run(prepared_run, tmp_path)
    before = snapshot(run)
    assert f"run `sbldm train --run {run}` first" in one_line(call("synth", "--run", run, "--n", 1), 4)
    with mock.patch("sbldm.training.weights.SHIPPED", tmp_path / "lost"):  # the generator that comes with the package
        assert f"{tmp_path}/none" in one_line(call("synth", "--run", tmp_path / "none", "--n", 1), 4)
    assert snapshot(run) == before and not (tmp_path / "none").exists()


def test_outside_what_training_saw(tmp_path: Path, drawn_run: Path) -> None:
    """It is drawn, warned of on the screen, and recorded."""
    run = copy_run(drawn_run, tmp_path)
    seen = load_checkpoint(run / "diffusion" / "best.pt", "diffusion")["constants"]["tumours"]["ranges"][0][1]
    asked = round(1.3 * seen)
    done = call("synth", "--run", run, "--n", 1, "--volume-ml", asked, "--dataset", 502)
    assert done.returncode == 0, done.stderr
    assert f"or `sbldm evaluate --run {run} --dataset 502` (how" in done.stdout
    said = f"volume_ml {asked} is above"
    assert f"Warning: 1 request(s) lie outside what training saw, e.g. {said}" in done.stdout
    assert said in manifest(run, Path("nnUNet_raw") / "Dataset502_SBLDM")[0]["extrapolated"]


def test_other_settings_into_the_same_dataset(tmp_path: Path, drawn_run: Path) -> None:
    """What differs and the mend are named, and the pairs stay as they are."""
    run = copy_run(drawn_run, tmp_path)
    before = snapshot(run)
    for asked, word in ((["--steps", 3], "sampling"), (["--seed", 1], "seed = 0"), (["--volume-ml", 30], "asked")):
        message = one_line(call("synth", "--run", run, "--n", 4, *asked), 4)
        assert f"{run / DATASET}: holds pairs drawn with {word}" in message and "--dataset 502" in message
    message = one_line(call("synth", "--run", run, "--n", 4, "--name", "OTHER"), 4)
    assert "number 501 is taken" in message and "choose another --dataset" in message
    assert snapshot(run) == before


def test_model_of_another_autoencoder(tmp_path: Path, trained_run: Path) -> None:
    """A diffusion model whose latents came from another autoencoder is not used."""
    run = copy_run(trained_run, tmp_path)
    path = run / "autoencoder" / "best.pt"
    torch.save(torch.load(path, weights_only=True) | {"epoch": 99}, path)
    message = one_line(call("synth", "--run", run, "--n", 1), 4)
    assert f"{run}/diffusion/best.pt: trained on the latents of another autoencoder" in message


# --- output that cannot be written ----------------------------------------------------------------------------------


@contextlib.contextmanager
def file_size(most: int) -> Iterator[None]:
    """Let no file grow beyond `most` bytes: what a full disk does, for root too."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_full_disk(tmp_path: Path, drawn_run: Path) -> None:
    """Exit code 5, one line; finished pairs are kept, no partial file is left, and the next call goes on."""
    run = copy_run(drawn_run, tmp_path)
    before = volumes(run)
    with file_size(10_000):
        message = one_line(call("synth", "--run", run, "--n", 4), 5)
    assert "SBLDM_000003_0000.nii.gz: cannot be written" in message and "free space" in message
    assert not partial_files(run) and len(manifest(run)) == 3
    assert {k: v for k, v in volumes(run).items() if k in before} == before
    assert call("synth", "--run", run, "--n", 4).returncode == 0
    assert len(volumes(run)) == 8 and len(manifest(run)) == 4


def test_output_in_the_way(tmp_path: Path, trained_run: Path) -> None:
    """A file where the dataset's folder should be: exit code 5, and the file is left alone."""
    run = copy_run(trained_run, tmp_path)
    (run / "nnUNet_raw").write_text("in the way")
    message = one_line(call("synth", "--run", run, "--n", 1), 5)
    assert f"{run}/nnUNet_raw" in message and "rename that file" in message
    assert (run / "nnUNet_raw").read_text() == "in the way"


# --- the gate -------------------------------------------------------------------------------------------------------


def refusing(calls: set[int]) -> Callable[..., Pair]:
    """`finish_pair` that refuses the calls of these numbers as if their mask were empty."""
    count = iter(range(10_000))

    def finish(*arguments: Any) -> Pair:
        pair = finish_pair(*arguments)
        return Pair(pair.image, pair.labels * 0, None, "empty mask") if next(count) in calls else pair

    return finish


def test_refused_pairs_are_drawn_again(tmp_path: Path, drawn_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another sub-seed gives another pair; it is counted on the screen and in the manifest, alike on every call."""
    run = copy_run(drawn_run, tmp_path)
    for dataset in (502, 503):
        monkeypatch.setattr(session, "finish_pair", refusing({0, 1}))
        done = call("synth", "--run", run, "--n", 2, "--dataset", dataset)
        assert done.returncode == 0 and "2 pairs; 2 refused and drawn again" in done.stdout
    folders = [Path("nnUNet_raw") / f"Dataset50{k}_SBLDM" for k in (1, 2, 3)]
    rows = manifest(run, folders[1])
    assert [(row["redrawn"], row["refused_because"]) for row in rows] == [("2", "empty mask; empty mask"), ("0", "")]
    first, again, once_more = (volumes(run, folder) for folder in folders)
    assert again == once_more
    assert again["SBLDM_000000_0000.nii.gz"] != first["SBLDM_000000_0000.nii.gz"]
    assert again["SBLDM_000001_0000.nii.gz"] == first["SBLDM_000001_0000.nii.gz"]


def test_drawn_again_in_batches(tmp_path: Path, drawn_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of six in batches of two, refused ones of either place wait for each other, the last for the end."""
    run, drawn = copy_run(drawn_run, tmp_path), []

    class Seen(PairSampler):
        def _draw(self, inputs: torch.Tensor, network: Any, seeds: Any, attempts: Any, *within: Any) -> torch.Tensor:
            drawn.append(list(zip(seeds, attempts, strict=True)))
            return super()._draw(inputs, network, seeds, attempts, *within)

    monkeypatch.setattr("sbldm.synthesis.model.PairSampler", Seen)
    for dataset in (502, 503):
        monkeypatch.setattr(session, "finish_pair", refusing({0, 3, 5}))  # seeds 0, 3, and 3 again
        done = call("synth", "--run", run, "--n", 6, "--batch", 2, "--dataset", dataset)
        assert done.returncode == 0 and "6 pairs; 3 refused and drawn again" in done.stdout
    once = [[(0, 0), (1, 0)], [(2, 0), (3, 0)], [(0, 1), (3, 1)], [(4, 0), (5, 0)], [(3, 2), (3, 2)]]
    assert drawn == 2 * once
    rows = manifest(run, Path("nnUNet_raw") / "Dataset502_SBLDM")
    assert [row["redrawn"] for row in rows] == ["1", "0", "0", "2", "0", "0"]


def test_given_up(tmp_path: Path, drawn_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pair refused at every attempt is named and listed, the others are written, and the exit code says so."""
    run = copy_run(drawn_run, tmp_path)
    monkeypatch.setattr(session, "ATTEMPTS", 10)
    monkeypatch.setattr(session, "finish_pair", refusing(set(range(1, 11))))
    done = call("synth", "--run", run, "--n", 3, "--dataset", 502)
    message = one_line(done, 4)
    assert "1 pair(s) were refused 10 times each (SBLDM_000001: empty mask)" in message and "train longer" in message
    folder = Path("nnUNet_raw") / "Dataset502_SBLDM"
    assert [row["pair"] for row in manifest(run, folder)] == ["SBLDM_000000", "SBLDM_000002"]
    assert len(volumes(run, folder)) == 4
    assert json.loads((run / folder / "dataset.json").read_text())["numTraining"] == 2


def test_few_given_up(tmp_path: Path, drawn_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One of ten is a warning, not an error: what follows can go on."""
    run = copy_run(drawn_run, tmp_path)
    monkeypatch.setattr(session, "ATTEMPTS", 2)
    monkeypatch.setattr(session, "finish_pair", refusing({3, 4}))
    done = call("synth", "--run", run, "--n", 10, "--dataset", 502, "--workers", 1)
    assert done.returncode == 0, done.stderr
    assert "Warning" in done.stdout and "1 pair(s) were refused 2 times each (SBLDM_000003" in done.stdout
    assert "Accepted: 9 of 11 drawn (82 %)" in done.stdout


def test_all_refused(tmp_path: Path, drawn_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With no pair at all it is still one line."""
    run = copy_run(drawn_run, tmp_path)
    monkeypatch.setattr(session, "ATTEMPTS", 3)
    monkeypatch.setattr(session, "finish_pair", refusing(set(range(10))))
    assert "refused 3 times" in one_line(call("synth", "--run", run, "--n", 1, "--dataset", 502), 4)
    assert volumes(run, Path("nnUNet_raw") / "Dataset502_SBLDM") == {}


NATIVE = WorkingGrid((80, 96, 70), (160.0, 192.0, 140.0)).placed((3.0, -7.0, 11.0), (1, 0, 0, 0, 1, 0, 0, 0, 1))
WORKING = WorkingGrid((40, 48, 35), (160.0, 192.0, 140.0)).placed((3.0, -7.0, 11.0), (1, 0, 0, 0, 1, 0, 0, 0, 1))


def ball(centre_ras: tuple[float, float, float], radius: float) -> np.ndarray:
    """Share of each working voxel inside a ball; its centre in mm from the middle of the grid, R, A, S."""
    axes = [(np.arange(n) - (n - 1) / 2) * s for n, s in zip(WORKING.size, WORKING.spacing, strict=True)]
    right, anterior, superior = np.meshgrid(-axes[0], -axes[1], axes[2], indexing="ij")
    points = zip((right, anterior, superior), centre_ras, strict=True)
    distance = np.sqrt(sum((a - c) ** 2 for a, c in points))
    return (0.5 + (radius - distance) / 4).clip(0, 1)


def decoded(*parts: np.ndarray, brightness: float = 0.6, brain: np.ndarray | None = None) -> np.ndarray:
    """What the autoencoder would give for a ball brain with these label maps."""
    brain = ball((0, 0, 0), 60) if brain is None else brain
    return (2 * np.stack([brightness * brain, *parts]) - 1).astype(np.float32)


def model(
    labels: Mapping[str, Any] | None = None, intensities: tuple[float, float] = (100.0, 1000.0)
) -> SimpleNamespace:
    """What `finish_pair` asks of a model."""
    preset = load_preset("small", "copypaste").but(
        data={"channels": ["flair"], "labels": labels or {"whole tumour": "all"}},
        intensity={"percentiles": [0.5, 99.8], "floor": 0.1},
    )
    return SimpleNamespace(preset=preset, native=NATIVE, working=WORKING, constants={"intensities": [intensities]})


def test_known_ball() -> None:
    """A ball of 15 mm: 14.1 ml, its centre with the right signs, its diameter, and known intensities around it."""
    pair = finish_pair(decoded(ball((20, -10, 12), 15)), model())
    assert pair.fault == "" and pair.image.dtype == np.int16 and pair.labels.dtype == np.uint8
    assert pair.image.shape == (1, 80, 96, 70) and pair.labels.shape == (80, 96, 70)
    measured = dict(zip(NAMES, pair.measured, strict=True))
    assert measured["volume_ml"] == pytest.approx(4 / 3 * np.pi * 1.5**3, rel=0.05)
    assert [measured[n] for n in ("x_mm", "y_mm", "z_mm")] == pytest.approx([20, -10, 12], abs=0.2)
    assert [measured[n] for n in ("w_mm", "h_mm", "d_mm")] == pytest.approx([30, 30, 30], abs=2.1)
    assert measured["surface_mm2"] == pytest.approx(4 * np.pi * 15**2, rel=0.05) and measured["sphericity"] > 0.95
    voxel = np.argwhere(pair.labels > 0).mean(0)
    assert voxel == pytest.approx([39.5 - 10, 47.5 + 5, 34.5 + 6], abs=0.1)  # the grid runs L, P, S at 2 mm
    assert pair.image[0, 39, 47, 34] == 600  # 0.6 on the scale from 0.1 = 100 to 1 = 1000
    assert pair.image[0, 0, 0, 0] == 0
    brain = (pair.image[0] > 0).sum() * 0.008
    rim = (0.5 - 0.1 / 0.6) * 0.4  # cm; brain is what is brighter than the floor of its intensities
    assert brain == pytest.approx(4 / 3 * np.pi * (6 + rim) ** 3, rel=0.01)


def test_small_intensities_keep_their_contrast() -> None:
    """Data that were normalised before (here -1 to 3) come out with the percentiles at 100 and 1000."""
    pair = finish_pair(decoded(ball((0, 0, 0), 15)), model(intensities=(-1.0, 3.0)))
    assert pair.image[0, 39, 47, 34] == round(100 + 0.5 / 0.9 * 900)
    dark = finish_pair(decoded(ball((0, 0, 0), 15), brightness=0.15), model(intensities=(-1.0, 3.0)))
    assert dark.image[0, 39, 47, 34] == round(100 + 0.05 / 0.9 * 900)  # dark brain keeps its contrast


def test_no_numbers() -> None:
    """What a model that has diverged decodes is no pair; nothing of it reaches a file."""
    volume = decoded(ball((0, 0, 0), 15))
    for value in (np.nan, np.inf):
        spoilt = volume.copy()
        spoilt[0, 20, 24, 17] = value
        assert finish_pair(spoilt, model()).fault == "voxels that are no numbers"


def test_two_labels() -> None:
    """Where both are drawn the stronger label wins; their union is measured, and the core's share in it."""
    two = {"oedema": "oedema", "core": ["necrotic", "enhancing"]}
    core, whole = ball((-20, 5, 0), 9), ball((-20, 5, 0), 15)
    pair = finish_pair(decoded(whole - core, core), model(two))
    assert pair.fault == "" and set(np.unique(pair.labels)) == {0, 1, 2}
    assert pair.measured[0] == pytest.approx(4 / 3 * np.pi * 1.5**3, rel=0.05)
    assert (pair.labels == 2).sum() * 0.008 == pytest.approx(4 / 3 * np.pi * 0.9**3, rel=0.12)
    assert pair.measured[9:] == pytest.approx([100 * (pair.labels == 2).sum() / (pair.labels > 0).sum()])
    split = finish_pair(decoded(0.45 * whole, 0.4 * whole), model(two))
    assert set(np.unique(split.labels)) == {0, 1} and split.measured[0] > 10  # half filled by both together


def test_islands_outside_the_brain() -> None:
    """Blobs beside the brain become background, and a speck of tumour there is cut off without a refusal."""
    island = ball((70, 80, 60), 8)
    brain = np.maximum(ball((0, 0, 0), 60), island)
    tumour = np.maximum(ball((20, -10, 12), 15), ball((70, 80, 60), 4))
    pair, clean = (
        finish_pair(decoded(tumour, brain=brain), model()),
        finish_pair(decoded(ball((20, -10, 12), 15)), model()),
    )
    assert pair.fault == ""
    assert np.array_equal(pair.image > 0, clean.image > 0)
    assert np.abs(pair.image - clean.image).max() <= 1  # the smoothest volume is made of all of it
    assert np.count_nonzero(pair.labels != clean.labels) < 0.005 * np.count_nonzero(clean.labels)


def test_holes_in_the_brain() -> None:
    """A hole, as dark as background, inside the brain belongs to it: at least 1."""
    pair = finish_pair(decoded(ball((20, -10, 12), 15), brain=ball((0, 0, 0), 60) - ball((0, 0, 0), 12)), model())
    assert pair.image[0, 39, 47, 34] == 1


@pytest.mark.parametrize(
    ("tumour", "fault"),
    [
        (ball((0, 0, 0), 15) * 0, "empty mask"),
        (ball((0, 0, 0), 15) * 0.45, "empty mask"),
        (ball((70, 80, 60), 9), "empty mask"),  # wholly outside: nothing is left of it
        (ball((0, 60, 0), 15), "% of the mask outside the brain"),
    ],
)
def test_gate(tumour: np.ndarray, fault: str) -> None:
    """Empty, too faint, or outside the brain."""
    pair = finish_pair(decoded(tumour), model())
    assert pair.fault.endswith(fault)
    assert (pair.measured is None) == (fault == "empty mask")
    assert not (pair.labels > 0)[pair.image[0] == 0].any()


def test_gate_without_a_brain() -> None:
    """A black volume is refused, not a traceback."""
    nothing = finish_pair(decoded(ball((0, 0, 0), 15), brightness=0.0), model())
    assert nothing.fault == "empty mask" and not nothing.image.any() and not nothing.labels.any()


# --- the sampler's noise --------------------------------------------------------------------------------------------


def sampler(**overrides: Any) -> PairSampler:
    """The sampler over a short chain."""
    return PairSampler(Schedule(steps=20), SHAPE, PRESET, overrides)


def test_noise_of_a_row() -> None:
    """It depends on seed and attempt alone: not on the other rows, nor on torch's own state."""
    cpu = torch.device("cpu")
    together = row_noise(SHAPE, [7, 8, 7], [0, 0, 1], cpu)
    torch.manual_seed(0)
    alone = row_noise(SHAPE, [8], [0], cpu)
    for step in range(3):
        rows, row = together(step), alone(step)
        assert torch.equal(rows[1], row[0])
        assert not torch.equal(rows[0], rows[1]) and not torch.equal(rows[0], rows[2])
    many = row_noise(SHAPE, range(200), [0] * 200, cpu)(0)
    assert many.mean().item() == pytest.approx(0, abs=0.02) and many.std().item() == pytest.approx(1, abs=0.02)


def test_a_pair_is_the_same_to_the_bit_in_any_company() -> None:
    """Alone, in another order, at another place of another group, with others left out."""
    torch.manual_seed(0)
    network = LatentUNet(2, [16, 16], [2], 1, embedding=16, groups=4).eval()
    for weights in network.parameters():
        weights.data += 0.1 * torch.randn_like(weights)
    shape, wanted, seeds = (2, 8, 10, 12), torch.randn(7, 9), list(range(7))
    draw = PairSampler(Schedule(steps=20), shape, PRESET.but(batch=4, guidance=1.5))
    assert draw.batch == 4 and "batch" not in draw.settings
    together = draw(wanted, network, seeds)
    assert together.shape == (7, *shape) and len({row.sum().item() for row in together}) == 7
    for rows in ([3], [6, 0], [5, 4, 3, 2, 1, 0]):
        assert torch.equal(draw(wanted[rows], network, [seeds[i] for i in rows]), together[rows])
        assert torch.equal(draw(wanted[rows], network, [seeds[i] for i in rows], places=rows), together[rows])
    alone = PairSampler(Schedule(steps=20), shape, PRESET.but(guidance=1.5))(wanted, network, seeds)
    torch.testing.assert_close(alone, together, atol=1e-4, rtol=1e-4)


def test_a_row_has_its_place_in_a_batch() -> None:
    """Rows of one place are drawn one after the other; free places are filled up, so all batches are of one size."""
    seen = []

    class Seen(PairSampler):
        def _draw(self, inputs: torch.Tensor, network: Any, seeds: Any, *rest: Any) -> torch.Tensor:
            seen.append(list(seeds))
            return 100 * inputs + torch.arange(len(seeds))[:, None]

    wanted = torch.arange(4.0)[:, None]
    draw = Seen(Schedule(steps=20), SHAPE, PRESET.but(batch=3))
    assert torch.equal(draw(wanted, None, [14, 6, 9, 7], places=[14, 6, 9, 7]).T, torch.tensor([[2.0, 100, 200, 301]]))
    assert seen == [[6, 7, 14], [9, 9, 9]]
    seen.clear()
    assert torch.equal(draw(wanted, None, [14, 6, 9, 7]).T, torch.tensor([[0.0, 101, 202, 300]]))
    assert seen == [[14, 6, 9], [7, 7, 7]]


def test_threads_change_no_sum() -> None:
    """On the CPU a sampler computes on one thread, whose number is as before afterwards; so a pair is the same."""
    before, seen = torch.get_num_threads(), []

    class Seen(torch.nn.Conv3d):
        def forward(self, x: torch.Tensor, t: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
            seen.append(torch.get_num_threads())
            return super().forward(x)

    torch.manual_seed(0)
    network, wanted = Seen(2, 2, 1), torch.zeros(3, 9)
    try:
        drawn = []
        for threads in (1, 3):
            torch.set_num_threads(threads)
            drawn.append(sampler()(wanted, network, [0, 1, 2]))
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert set(seen) == {1} and torch.equal(*drawn)


def test_sampler_settings() -> None:
    """Overrides take the preset's place; DDPM runs the whole chain without being told."""
    assert sampler().settings == {"sampler": "ddim", "steps": 4, "eta": 0.0, "guidance": 1.0}
    assert sampler(steps="7", eta=None).settings["steps"] == 7
    assert sampler(sampler="ddpm").settings == {"sampler": "ddpm", "steps": 20, "eta": 1.0, "guidance": 1.0}
    with pytest.raises(InputError, match=r"--steps 5.*ddpm"):
        sampler(sampler="ddpm", steps=5)


def test_eta_and_guidance_from_the_command_line(tmp_path: Path, drawn_run: Path) -> None:
    """Both reach the manifest and change the pairs."""
    run = copy_run(drawn_run, tmp_path)
    assert call("synth", "--run", run, "--n", 1, "--guidance", 1.1, "--dataset", 502).returncode == 0
    folder = Path("nnUNet_raw") / "Dataset502_SBLDM"
    assert manifest(run, folder)[0]["guidance"] == "1.1"
    assert volumes(run, folder)["SBLDM_000000_0000.nii.gz"] != volumes(run)["SBLDM_000000_0000.nii.gz"]
    shutil.rmtree(run / folder)
    assert call("synth", "--run", run, "--n", 1, "--eta", 0.2, "--dataset", 502).returncode == 0
    assert manifest(run, folder)[0]["eta"] == "0.2"
    assert volumes(run, folder)["SBLDM_000000_0000.nii.gz"] != volumes(run)["SBLDM_000000_0000.nii.gz"]


def test_leftovers_of_a_killed_run_are_cleared(drawn_run: Path, tmp_path: Path) -> None:
    """A pair without a record is removed, so that `numTraining` is what lies there; a lost image is drawn again."""
    run = copy_run(drawn_run, tmp_path)
    (dataset,) = (run / "nnUNet_raw").iterdir()
    names = sorted(path.name.removesuffix(".nii.gz") for path in (dataset / "labelsTr").iterdir())
    for part, ending in (("labelsTr", ""), ("imagesTr", "_0000")):
        shutil.copy(dataset / part / f"{names[0]}{ending}.nii.gz", dataset / part / f"SBLDM_000099{ending}.nii.gz")
    (dataset / "imagesTr" / f"{names[1]}_0000.nii.gz").unlink()
    own = dataset / "imagesTr" / "BraTS20_Training_001_0000.nii.gz"  # a user's case is not ours to remove
    own.write_bytes(b"real")
    done = call("synth", "--run", run, "--n", len(names))
    assert done.returncode == 0, done.stderr
    assert own.read_bytes() == b"real"
    own.unlink()
    assert sorted(path.name for path in (dataset / "labelsTr").iterdir()) == [f"{name}.nii.gz" for name in names]
    assert sorted(path.name for path in (dataset / "imagesTr").iterdir()) == [f"{name}_0000.nii.gz" for name in names]
    assert json.loads((dataset / "dataset.json").read_text())["numTraining"] == len(names)
