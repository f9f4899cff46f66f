"""Trainings can be stopped at any moment, checkpoints hold all that is needed, and batches are what the method says."""

from __future__ import annotations

import csv
import json
import math
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
import zlib
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import call, copy_run, one_line, partial_files, snapshot, wait_for
from ignite.engine import Engine
from scipy.ndimage import gaussian_filter

from sbldm.cases.geometry import NativeGrid
from sbldm.cases.lists import read_lists
from sbldm.cases.prepare import load_prepared
from sbldm.diffusion import Schedule
from sbldm.run.errors import InputError, OutputError, StateError
from sbldm.run.files import sha256
from sbldm.run.folder import Run, load_preset
from sbldm.run.preset import NoiseLevels, Preset
from sbldm.synthesis.model import Model
from sbldm.training import (
    Continuing,
    DiffusionBatch,
    FiniteLoss,
    LatentDataset,
    LatentStore,
    MixedPrecision,
    RunCheckpoint,
    Seeded,
    SliceDataset,
    SliceValidation,
    choose_device,
    choose_precision,
    read_run_lists,
    warm_up_then_cosine,
)
from sbldm.training.checkpoints import FORMAT, load_checkpoint
from sbldm.training.deformation import deformed
from sbldm.training.latents import load_autoencoder
from sbldm.tumour.characteristics import NAMES, measure
from sbldm.tumour.normaliser import Normaliser
from sbldm.tumour.requests import TumourModel

CPU = torch.device("cpu")


def different(a: Any, b: Any, where: str = "") -> list[str]:
    """Where two checkpoints differ, bit by bit."""
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return [] if a.dtype == b.dtype and torch.equal(a, b) else [where]
    if isinstance(a, dict) and isinstance(b, dict) and list(a) == list(b):
        return [d for key in a for d in different(a[key], b[key], f"{where}/{key}")]
    if isinstance(a, list | tuple) and type(a) is type(b) and len(a) == len(b):
        return [d for i, (x, y) in enumerate(zip(a, b, strict=True)) for d in different(x, y, f"{where}/{i}")]
    return [] if type(a) is type(b) and a == b else [where]


def leaves(content: Any) -> Iterator[Any]:
    """Everything in a checkpoint that is no container."""
    if isinstance(content, dict):
        for key, value in content.items():
            yield key
            yield from leaves(value)
    elif isinstance(content, list | tuple):
        for value in content:
            yield from leaves(value)
    else:
        yield content


# --- stopping and going on ------------------------------------------------------------------------------------------


def kill_during(run: Path, stage: str, epochs: int) -> int:
    """Train both stages; SIGKILL at a random moment after the first epoch of one. Returns the epochs it had saved."""
    command = [sys.executable, "-m", "sbldm", "train", "--run", str(run)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_for(run / stage / "tensorboard", process)
        begun = time.monotonic()
        wait_for(run / stage / "last.pt", process)
        time.sleep(random.random() * 0.5 * (epochs - 2) * (time.monotonic() - begun))
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert process.returncode == -signal.SIGKILL
    for which in ("last", "best"):
        assert torch.load(run / stage / f"{which}.pt", weights_only=True)["epoch"] >= 1
    return load_checkpoint(run / stage / "last.pt", stage)["epoch"]


def history(run: Path, stage: str) -> list[dict[str, str]]:
    """Rows of `history.csv`."""
    with open(run / stage / "history.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_killed_training_goes_on_bit_by_bit(tmp_path: Path, prepared_run: Path) -> None:
    """Both stages, each killed once, end as if never stopped: weights, averages, optimizer, history, latents."""
    (tmp_path / "a").mkdir()
    preset = Run.at(prepared_run).preset.state()
    short = {
        "autoencoder": preset["autoencoder"] | {"iterations": 60, "iterations_per_epoch": 10},
        "diffusion": preset["diffusion"] | {"iterations": 60, "iterations_per_epoch": 10},
    }
    whole = copy_run(prepared_run, tmp_path / "a", **short)
    (tmp_path / "b").mkdir()
    killed = copy_run(prepared_run, tmp_path / "b", **short)

    done = call("train", "--run", whole)
    assert done.returncode == 0, done.stderr
    assert 1 <= kill_during(killed, "autoencoder", 6) < 6
    rest = killed / "autoencoder" / ".partial-9999999"
    rest.mkdir()
    (rest / "last.pt").write_bytes(b"half")
    assert 1 <= kill_during(killed, "diffusion", 6) < 6
    assert not partial_files(killed / "autoencoder")
    done = call("train", "--run", killed)
    assert done.returncode == 0, done.stderr
    assert "autoencoder: already trained (60 iterations)" in done.stdout and "going on after iteration" in done.stdout
    assert not partial_files(killed)

    for stage in ("autoencoder", "diffusion"):
        for which in ("best.pt", "last.pt"):
            ends = [torch.load(run / stage / which, weights_only=True) for run in (whole, killed)]
            assert [name for name in different(*ends) if not name.endswith("seconds")] == [], f"{stage}/{which}"
        histories = [history(run, stage) for run in (whole, killed)]
        times = [[float(row.pop(clock)) for row in rows] for rows in histories for clock in ("seconds", "cpu_seconds")]
        assert histories[0] == histories[1] and len(histories[0]) == 6
        assert all(0 < a < b for rows in times for a, b in pairwise(rows))  # the time before the kill counts too
    latents = [{k: v[1] for k, v in snapshot(run / "latents").items()} for run in (whole, killed)]
    assert latents[0] == latents[1] and len(latents[0]) == 6 + 3


def test_finished_training_is_left_alone(tmp_path: Path, trained_run: Path) -> None:
    """A second call changes no file and says so."""
    run = copy_run(trained_run, tmp_path)
    before = snapshot(run)
    done = call("train", "--run", run)
    assert done.returncode == 0
    assert f"{run}/autoencoder: already trained (200 iterations); nothing to do." in done.stdout
    assert f"{run}/diffusion: already trained (240 iterations); nothing to do." in done.stdout
    assert snapshot(run) == before


class Scores:
    """A validation that has just ended with a given loss."""

    def __init__(self, loss: float) -> None:
        self.state = SimpleNamespace(metrics={"loss": loss})


def checkpoint_of(folder: Path, loss: float, network: torch.nn.Module, **constants: Any) -> RunCheckpoint:
    """A checkpoint handler of a training whose validation loss is `loss`."""
    return RunCheckpoint(folder, "autoencoder", load_preset("demo"), constants, network, Scores(loss), {})


def ended(epoch: int) -> SimpleNamespace:
    """A trainer at the end of an epoch of ten iterations."""
    output = {"loss": torch.tensor(0.5)}
    return SimpleNamespace(state=SimpleNamespace(epoch=epoch, iteration=10 * epoch, max_epochs=8, output=output))


def finish(handler: RunCheckpoint, epoch: int) -> None:
    """Let a handler see an epoch of two iterations with the losses 0.4 and 0.6, and its end."""
    trainer = ended(epoch)
    for loss in (0.4, 0.6):
        trainer.state.output = {"loss": torch.tensor(loss)}
        handler.remember(trainer)
    handler(trainer)


def test_best_and_last_checkpoint(tmp_path: Path) -> None:
    """`best.pt` keeps the weights of the lowest validation loss, `last.pt` the latest, also across a restart."""
    network = torch.nn.Linear(1, 1, bias=False)
    for epoch, loss in enumerate([0.3, 0.1, 0.2], start=1):
        handler = checkpoint_of(tmp_path, loss, network)
        trainer = ended(0)
        assert handler.resume(trainer) == 10 * (epoch - 1) and trainer.state.epoch == epoch - 1
        network.weight.data.fill_(epoch)
        finish(handler, epoch)
    best, last = (load_checkpoint(tmp_path / f"{which}.pt", "autoencoder") for which in ("best", "last"))
    assert best["network"]["weight"].item() == 2 and best["epoch"] == 2 and best["scores"] == {"loss": 0.1}
    assert last["states"]["network"]["weight"].item() == 3 and last["best"] == 0.1
    assert [row["val_loss"] for row in last["history"]] == [0.3, 0.1, 0.2]
    assert [row["train_loss"] for row in last["history"]] == pytest.approx([0.5] * 3)


def test_early_weights_are_kept(tmp_path: Path) -> None:
    """Those at the end of a quarter of eight epochs, across restarts, and in the best checkpoint from then on."""
    network, kept = torch.nn.Linear(1, 1, bias=False), []
    for epoch in range(1, 5):
        handler = checkpoint_of(tmp_path, 1 / epoch, network)
        handler.early = 0.25
        trainer = ended(0)
        handler.resume(trainer)
        network.weight.data.fill_(epoch)
        finish(handler, epoch)
        early = load_checkpoint(tmp_path / "best.pt", "autoencoder")["early"]
        kept.append(early and early["weight"].item())
    assert kept == [None, 2, 2, 2]


@pytest.mark.parametrize("lost", ["best.pt", "last.pt", "history.csv"])
def test_kill_between_two_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lost: str) -> None:
    """A process that dies just before any one of the three files is written loses nothing once it has gone on."""
    network = torch.nn.Linear(1, 1, bias=False)
    finish(checkpoint_of(tmp_path, 0.3, network), 1)

    def dying(path: Path, *arguments: Any, **keywords: Any) -> Any:
        if Path(path).name == lost:
            raise KeyboardInterrupt
        return kept(path, *arguments, **keywords)

    from sbldm.run import files
    from sbldm.training import checkpoints

    kept = files.atomic_path
    for module in (files, checkpoints):
        monkeypatch.setattr(module, "atomic_path", dying)
    with pytest.raises(KeyboardInterrupt):
        finish(checkpoint_of(tmp_path, 0.2, network), 2)
    for module in (files, checkpoints):
        monkeypatch.setattr(module, "atomic_path", kept)
    handler, trainer = checkpoint_of(tmp_path, 0.2, network), ended(0)
    done = handler.resume(trainer)
    for epoch in range(done // 10 + 1, 3):
        finish(handler, epoch)
    assert load_checkpoint(tmp_path / "best.pt", "autoencoder")["scores"] == {"loss": 0.2}
    assert load_checkpoint(tmp_path / "last.pt", "autoencoder")["iteration"] == 20
    assert [line.split(",")[0] for line in (tmp_path / "history.csv").read_text().split()] == ["epoch", "1", "2"]


def test_full_disk_during_training(tmp_path: Path) -> None:
    """A checkpoint that no longer fits is an error of one line, and the one before it is kept, byte by byte."""
    network = torch.nn.Linear(300, 300)
    finish(checkpoint_of(tmp_path, 0.3, network), 1)
    before = snapshot(tmp_path)
    handler = checkpoint_of(tmp_path, 0.3, network)
    handler.best = 0.0  # this epoch writes last.pt alone
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(OutputError, match=r"last\.pt: cannot be written .*free space") as caught:
            finish(handler, 2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "\n" not in str(caught.value)
    assert snapshot(tmp_path)["last.pt"] == before["last.pt"] and not partial_files(tmp_path)


# --- what a checkpoint holds ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", ["autoencoder", "diffusion"])
def test_checkpoints_hold_tensors_and_plain_values(trained_run: Path, stage: str) -> None:
    """No class of ours or of anyone else has to be imported to read them."""
    for which in ("best", "last"):
        content = torch.load(trained_run / stage / f"{which}.pt", weights_only=True)
        assert {type(leaf) for leaf in leaves(content)} <= {torch.Tensor, int, float, str, bool, type(None)}
        assert content["format"] == FORMAT and content["stage"] == stage
        assert content["preset"] == Run.at(trained_run).preset.state()
    best, last = (load_checkpoint(trained_run / stage / f"{which}.pt", stage) for which in ("best", "last"))
    assert sorted(last["states"]) == ["average"] * (stage == "diffusion") + ["lr_scheduler", "network", "optimizer"]
    assert min(row["val_loss"] for row in last["history"]) == pytest.approx(best["scores"]["loss"], abs=1e-6)
    if best["epoch"] == last["epoch"]:
        used = last["states"]["average" if stage == "diffusion" else "network"]
        assert different(best["network"], used) == []


def test_diffusion_checkpoint_is_all_that_synthesis_needs(trained_run: Path) -> None:
    """Latent statistics, normaliser, tumours, grids, intensities and schedule, as measured on the training list."""
    content = load_checkpoint(trained_run / "diffusion" / "best.pt", "diffusion")
    constants, lists = content["constants"], read_run_lists(str(trained_run), content["preset"])
    assert constants["autoencoder_sha256"] == sha256(trained_run / "autoencoder" / "best.pt")
    assert constants["lists"] == lists and (len(lists["train"]), len(lists["validation"])) == (5, 1)
    assert content["preset"].diffusion.schedule.state() == {"steps": 1000, "beta_start": 0.002, "beta_end": 0.02}
    assert constants["latent_shape"] == [3, 12, 16, 16]

    sidecars = [json.loads((trained_run / "prepared" / f"{name}.json").read_text()) for name in lists["train"]]
    values = np.array([[s["characteristics"][name] for name in NAMES] for s in sidecars])
    encoded = Normaliser.from_state(constants["normaliser"]).encode(values)
    np.testing.assert_allclose(encoded.mean(0), 0, atol=1e-4)
    np.testing.assert_allclose(encoded.std(0), 1, atol=1e-4)
    assert np.allclose(TumourModel.from_state(constants["tumours"]).ranges, np.stack([values.min(0), values.max(0)], 1))
    np.testing.assert_allclose(constants["intensities"], np.median([s["intensities"] for s in sidecars], axis=0))
    assert constants["grids"]["native"] == sidecars[0]["native"]
    origins = [s["working"]["origin"] for s in sidecars]
    np.testing.assert_allclose(constants["grids"]["working"]["origin"], np.median(origins, axis=0), atol=1e-6)


def test_history(trained_run: Path) -> None:
    """One row an epoch; both trainings learn something on the held-back case."""
    for stage, epochs in (("autoencoder", 5), ("diffusion", 6)):
        rows = [line.split(",") for line in (trained_run / stage / "history.csv").read_text().split()]
        assert rows[0] == ["epoch", "iteration", "train_loss", "val_loss", "seconds", "cpu_seconds"]
        assert [row[:2] for row in rows[1:]] == [[str(e), str(40 * e)] for e in range(1, epochs + 1)]
        assert float(rows[-1][3]) < 0.8 * float(rows[1][3])


def test_learning_rate() -> None:
    """Linear warm-up over five iterations to 1, half at the middle of the cosine, zero at the end."""
    optimizer = torch.optim.SGD(torch.nn.Linear(1, 1).parameters(), lr=2.0)
    scheduler = warm_up_then_cosine(optimizer, 5, 25)
    rates = []
    for _ in range(27):
        rates.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    assert rates[:6] == pytest.approx([0.4, 0.8, 1.2, 1.6, 2.0, 2.0])
    assert rates[10] == pytest.approx(1 + math.cos(math.pi / 4)) and rates[15] == pytest.approx(1.0)
    assert rates[25:] == pytest.approx([0.0, 0.0], abs=1e-12)
    assert np.diff(rates[5:26]).max() < 0


# --- what goes wrong ------------------------------------------------------------------------------------------------


def test_nothing_prepared(tmp_path: Path) -> None:
    """The message says what to type first, and no run folder appears."""
    done = call("train", "--run", tmp_path / "run")
    assert "sbldm prepare --data /path/to/cases" in one_line(done, 4) and str(tmp_path / "run") in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_diffusion_before_the_autoencoder(tmp_path: Path, prepared_run: Path) -> None:
    """Stage 2 alone names what is missing."""
    message = one_line(call("train", "diffusion", "--run", copy_run(prepared_run, tmp_path)), 4)
    assert "autoencoder/best.pt: no autoencoder has been trained here; run `sbldm train" in message


@pytest.mark.parametrize("stage", ["autoencoder", "diffusion"])
def test_checkpoint_of_another_preset(tmp_path: Path, trained_run: Path, stage: str) -> None:
    """The file and the part that differs are named, and the checkpoint stays."""
    changed = Run.at(trained_run).preset.stage(stage).state() | {"learning_rate": 0.5}
    run = copy_run(trained_run, tmp_path, **{stage: changed})
    before = snapshot(run)
    message = one_line(call("train", stage, "--run", run), 4)
    assert f"{run}/{stage}/last.pt" in message and f"'{stage}' differs" in message and "'tiny'" in message
    assert snapshot(run) == before


@pytest.mark.parametrize("damage", ["cut", "text", "other stage", "pickle"])
def test_damaged_checkpoint(tmp_path: Path, trained_run: Path, damage: str) -> None:
    """A cut file, a text, the other stage's, or one that would run code: one line that names the file."""
    path = Path(shutil.copy(trained_run / "autoencoder" / "last.pt", tmp_path))
    if damage == "cut":
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    elif damage == "text":
        path.write_text("no checkpoint\n")
    elif damage == "other stage":
        shutil.copy(trained_run / "diffusion" / "last.pt", path)
    else:
        torch.save({"format": FORMAT, "stage": "autoencoder", "x": os.system}, path)
    with pytest.raises(StateError, match=r"last\.pt: (damaged \(|this is the checkpoint of)") as caught:
        load_checkpoint(path, "autoencoder")
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)


def test_damaged_checkpoint_stops_the_training(tmp_path: Path, trained_run: Path) -> None:
    """The training does not begin anew over a checkpoint that it cannot read."""
    run = copy_run(trained_run, tmp_path)
    path = run / "autoencoder" / "last.pt"
    path.write_bytes(path.read_bytes()[:5000])
    before = snapshot(run)
    assert f"{path}: damaged" in one_line(call("train", "autoencoder", "--run", run), 4)
    assert snapshot(run) == before


def test_training_on_other_cases(tmp_path: Path, trained_run: Path) -> None:
    """A checkpoint does not go on with a list of cases that it was not begun with."""
    run = copy_run(trained_run, tmp_path)
    lists = json.loads((run / "lists.json").read_text())
    lists["train"].pop()
    (run / "lists.json").write_text(json.dumps(lists))
    assert "last.pt: trained on other cases or latents" in one_line(call("train", "autoencoder", "--run", run), 4)


def test_latents_of_another_autoencoder(tmp_path: Path, trained_run: Path) -> None:
    """Latents and autoencoder must belong together; the folder to remove is named."""
    run = copy_run(trained_run, tmp_path)
    path = run / "autoencoder" / "best.pt"
    content = torch.load(path, weights_only=True)
    torch.save(content | {"epoch": 99}, path)
    message = one_line(call("train", "diffusion", "--run", run), 4)
    assert f"{run}/latents: these latents come from another autoencoder; remove " in message


def test_device_that_is_not_there(tmp_path: Path, trained_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`DEVICE` decides; what is not there is answered by a sentence."""
    assert choose_device("cpu") == CPU
    with pytest.raises(InputError, match=r"^DEVICE=nonsense: not available here .*try DEVICE=cpu"):
        choose_device("nonsense")
    monkeypatch.setenv("DEVICE", "nonsense")
    run = copy_run(trained_run, tmp_path)
    before = snapshot(run, but="")
    assert "DEVICE=nonsense" in one_line(call("train", "--run", run), 2)
    assert "DEVICE=nonsense" in one_line(call("synth", "--run", run, "--n", 1), 2)
    assert snapshot(run, but="") == before


# --- slices ---------------------------------------------------------------------------------------------------------


def test_slices_of_a_pass(tmp_path: Path, prepared_run: Path) -> None:
    """A pass shows every slice with brain once and a tenth of the empty ones; passes differ, mirroring flips half."""
    folder = copy_run(prepared_run, tmp_path) / "prepared"
    names = sorted(path.stem for path in folder.glob("*.npz"))
    for name in names:  # five more slices of each case without brain
        with np.load(folder / f"{name}.npz") as arrays:
            emptied = {key: array * (np.arange(16) >= 5) for key, array in arrays.items()}
        np.savez(folder / f"{name}.npz", **emptied)
    volumes = np.stack([load_prepared(folder, name)[0] for name in names]).astype(np.float16).astype(np.float32)
    known = {volumes[c, ..., z].tobytes() + bytes([z]): (c, z) for c in range(len(names)) for z in range(16)}
    full = {(c, z) for c in range(len(names)) for z in range(16) if (volumes[c, 0, ..., z] > -1).any()}
    empty = 16 * len(names) - len(full)
    assert empty >= 30

    data, passes = SliceDataset(folder, names, seed=3), []
    assert len(data) == len(full) + round(0.1 * empty)
    for number in (0, 1):
        items = [data[n] for n in range(number * len(data), (number + 1) * len(data))]
        shown = [known.get(i["image"].numpy().tobytes() + bytes([int(i["position"])])) for i in items]
        dark = sum(bool((i["image"][0] == -1).all()) for i in items)
        assert dark == round(0.1 * empty)
        assert {pair: n for pair, n in Counter(shown).items() if pair in full} == dict.fromkeys(full, 1)
        passes.append(shown)
    assert passes[0] != passes[1]

    again = SliceDataset(folder, names, seed=3)
    assert torch.equal(again[137]["image"], data[137]["image"])  # whatever was asked for before
    mirrored = SliceDataset(folder, names, seed=3, mirror=True)
    sides = Counter()
    for n in range(len(data)):
        plain, maybe = data[n]["image"], mirrored[n]["image"]
        if (plain[0] > -1).any() and not torch.equal(plain, plain.flip(1)):
            sides["flipped"] += torch.equal(maybe, plain.flip(1))
            sides["plain"] += torch.equal(maybe, plain)
    assert sides.total() > 50 and 0.3 < sides["flipped"] / sides.total() < 0.7
    assert sides.total() == len(full)


def test_validation_slices(prepared_run: Path) -> None:
    """Every fourth slice with brain, always the same ones, never mirrored."""
    folder, name = prepared_run / "prepared", "Phantom_000"
    volume = load_prepared(folder, name)[0].astype(np.float16)
    with_brain = [z for z in range(16) if (volume[0, ..., z] > -1).any()]
    data = SliceValidation(folder, [name])
    assert [int(data[n]["position"]) for n in range(len(data))] == with_brain[::4]
    assert torch.equal(data[1]["image"], torch.from_numpy(volume[..., with_brain[4]].astype(np.float32)))


def test_continuing() -> None:
    """Counts on from what has been seen."""
    assert list(Continuing(7)) == [0, 1, 2, 3, 4, 5, 6]
    sampler = Continuing(7)
    sampler.start = 4
    assert list(sampler) == [4, 5, 6] and len(sampler) == 3


# --- latents --------------------------------------------------------------------------------------------------------


def build_store(run: Path) -> tuple[LatentStore, Preset]:
    """The latent store of a run as stage 2 builds it."""
    preset = Run.at(run).preset
    return LatentStore.build(str(run), preset, read_run_lists(str(run), preset), CPU), preset


def items_of(data: LatentDataset) -> tuple[np.ndarray, np.ndarray]:
    """Images and conditions of one pass."""
    rows = [data[n] for n in range(len(data))]
    return np.stack([r["image"] for r in rows]), np.stack([r["condition"] for r in rows])


def test_latents_are_standardised_and_mirrored(tmp_path: Path, trained_run: Path) -> None:
    """Mean 0 and deviation 1 per channel over the training list; a mirrored brain comes with its x negated, alone."""
    run = copy_run(trained_run, tmp_path, leave_out="latents diffusion", mirror=True)
    store, _ = build_store(run)
    images, conditions = items_of(store.dataset("train", 0, "mean"))
    assert images.shape == (10, 3, 12, 16, 16) and conditions.shape == (10, 9)
    np.testing.assert_allclose(images.mean((0, 2, 3, 4)), 0, atol=1e-4)
    np.testing.assert_allclose(images.std((0, 2, 3, 4)), 1, atol=1e-4)
    np.testing.assert_allclose(conditions.mean(0), 0, atol=1e-4)

    values = Normaliser.from_state(store.constants["normaliser"]).decode(conditions)
    x = NAMES.index("x_mm")
    others = [i for i in range(9) if i != x]
    for name in store.lists["train"]:
        wanted = json.loads((run / "prepared" / f"{name}.json").read_text())["characteristics"]
        wanted = np.array([wanted[n] for n in NAMES])
        rows = values[np.isclose(values[:, others], wanted[others], rtol=1e-4, atol=1e-3).all(1)]
        assert sorted(rows[:, x]) == pytest.approx(sorted([wanted[x], -wanted[x]]), abs=1e-3)

    network = load_autoencoder(Run.at(run), CPU)
    name = store.lists["train"][0]
    volume = load_prepared(run / "prepared", name)[0]
    with np.load(run / "latents" / f"{name}.npz") as arrays:
        assert arrays["latents"].shape == (2, 2, 3, 12, 16, 16)
        np.testing.assert_array_equal(arrays["latents"][1], network.encode_volume(volume[:, ::-1], CPU))
    with np.load(run / "latents" / f"{store.lists['validation'][0]}.npz") as arrays:
        assert arrays["latents"].shape == (1, 2, 3, 12, 16, 16)  # held-back brains are not mirrored
    assert len(store.dataset("validation", 0, "mean", 4)) == 4


def test_deformed_latents(tmp_path: Path, trained_run: Path) -> None:
    """Three copies of each training case, mirrored too, with the characteristics that their own masks have."""
    diffusion = Run.at(trained_run).preset.diffusion.state() | {"deformed": 1, "brains": 18}  # of five cases
    run = copy_run(trained_run, tmp_path, leave_out="latents diffusion", mirror=True, diffusion=diffusion)
    store, preset = build_store(run)
    images, conditions = items_of(store.dataset("train", 0, "mean"))
    assert images.shape == (40, 3, 12, 16, 16) and len(np.unique(images.reshape(40, -1), axis=0)) == 40
    np.testing.assert_allclose(images.std((0, 2, 3, 4)), 1, atol=1e-4)
    np.testing.assert_allclose(conditions.mean(0), 0, atol=1e-4)
    assert len(store.dataset("validation", 0, "mean")) == 1
    network, name = load_autoencoder(Run.at(run), CPU), store.lists["train"][0]
    volume, sidecar = load_prepared(run / "prepared", name)
    grid = NativeGrid.from_state(sidecar["working"])
    copy = deformed(volume, grid.spacing, np.random.default_rng([zlib.crc32(name.encode()), 1]))
    with np.load(run / "latents" / f"{name}.npz") as arrays:
        np.testing.assert_array_equal(arrays["latents"][2], network.encode_volume(copy, CPU))
        np.testing.assert_array_equal(arrays["latents"][6], network.encode_volume(copy[:, ::-1], CPU))
        values = arrays["characteristics"]
    known = np.array([sidecar["characteristics"][n] for n in NAMES])
    np.testing.assert_array_equal(values[0], known)
    ratio = measure(copy[1] > 0, grid.frame(grid)) / measure(volume[1] > 0, grid.frame(grid))
    np.testing.assert_allclose(values[2, 0], known[0] * ratio[0])
    assert np.abs(values[1:4, 0] / known[0] - 1).max() < 0.25 and len(np.unique(values[:, 0])) == 4
    with pytest.raises(StateError, match="another value of deformed"):
        LatentStore.build(str(run), preset.but(diffusion=diffusion | {"deformed": 2, "brains": 0}), store.lists, CPU)


def test_sampled_latents(tmp_path: Path, trained_run: Path) -> None:
    """In `sample` mode the statistics count the posterior variance, and items scatter around the mean by it."""
    preset = Run.at(trained_run).preset.state()
    sampled = preset["diffusion"] | {"latent": "sample"}
    run = copy_run(trained_run, tmp_path, leave_out="latents diffusion", diffusion=sampled)
    store, _ = build_store(run)
    stacks = []
    for name in store.lists["train"]:
        with np.load(run / "latents" / f"{name}.npz") as arrays:
            stacks.append(arrays["latents"].astype(np.float64)[0])
    mean, log_variance = np.stack(stacks).transpose(1, 2, 0, 3, 4, 5).reshape(2, 3, -1)
    wanted = np.sqrt(mean.var(axis=1) + np.exp(log_variance).mean(axis=1))
    np.testing.assert_allclose(store.constants["latent_std"], wanted, rtol=1e-5)

    known = np.stack([np.full((1, 4, 16, 16), 3.0), np.full((1, 4, 16, 16), math.log(4.0))])
    latents, conditions = np.stack([known] * 6).astype(np.float32), np.zeros((6, 9), np.float32)
    plain, _ = items_of(LatentDataset(latents, conditions, [1.0], [0.5], mode="mean"))
    assert (plain == 4.0).all()
    data = LatentDataset(latents, conditions, [1.0], [0.5], mode="sample")
    noisy, _ = items_of(data)
    assert noisy.mean() == pytest.approx(4.0, abs=0.15) and noisy.std() == pytest.approx(2 / 0.5, rel=0.03)
    assert not torch.equal(data[0]["image"], data[6]["image"]) and torch.equal(data[6]["image"], data[6]["image"])
    with pytest.raises(ValueError, match="mean or sample"):
        LatentDataset(latents, conditions, [1.0], [0.5], mode="median")


@pytest.mark.parametrize("chunk", [1, 5, 16, 64])
def test_chunks_change_nothing(trained_run: Path, chunk: int) -> None:
    """How many slices are encoded or decoded at once bounds the memory and changes nothing else."""
    network = load_autoencoder(Run.at(trained_run), CPU)
    volume = load_prepared(trained_run / "prepared", "Phantom_000")[0]
    encoded = network.encode_volume(volume, CPU)
    np.testing.assert_allclose(network.encode_volume(volume, CPU, chunk), encoded, atol=1e-5)
    decoded = network.decode_volume(torch.from_numpy(encoded[0]))
    np.testing.assert_allclose(network.decode_volume(torch.from_numpy(encoded[0]), chunk), decoded, atol=1e-5)
    assert decoded.shape == volume.shape and np.abs(decoded).max() <= 1
    # one slice by hand: the slice index goes to the network
    position = torch.tensor([7])
    mean, _ = network.encode(torch.from_numpy(volume[None, ..., 7]), position)
    np.testing.assert_allclose(encoded[0, ..., 7], mean[0], atol=1e-5)
    other, _ = network.encode(torch.from_numpy(volume[None, ..., 7]), position + 5)
    assert (other - mean).abs().max() > 1e-3


def test_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    """In bfloat16 a network is off by its rounding and hands back single precision; in float32 it is itself."""
    torch.manual_seed(0)
    network, x = torch.nn.Conv2d(2, 4, 3), torch.randn(1, 2, 8, 8)
    exact = network(x)
    assert torch.equal(MixedPrecision("float32")(x, network), exact)
    monkeypatch.setattr("sbldm.training.session.fast_bfloat16", lambda device: True)
    rounded = MixedPrecision("auto")(x, network)
    assert rounded.dtype == torch.float32 and not torch.equal(rounded, exact)
    torch.testing.assert_close(rounded, exact, atol=0.03, rtol=0.03)
    monkeypatch.setattr("sbldm.training.session.fast_bfloat16", lambda device: False)
    assert torch.equal(MixedPrecision("auto")(x, network), exact)
    monkeypatch.setenv("PRECISION", "")
    assert choose_precision() == "auto" and choose_precision("float32") == "float32"
    monkeypatch.setenv("PRECISION", "half")
    with pytest.raises(InputError, match="PRECISION=half: must be auto or float32"):
        choose_precision()


def test_older_checkpoints_are_refused(trained_run: Path, tmp_path: Path) -> None:
    """Both trainings and the drawing say that it must be trained again, and what to remove; nothing is written."""
    run = copy_run(trained_run, tmp_path)
    for stage in ("autoencoder", "diffusion"):
        for which in ("best", "last"):
            path = Run.at(run).checkpoint(stage, which)
            torch.save(torch.load(path, weights_only=True) | {"format": 1}, path)
    before = snapshot(run)
    for command in (["train", "--run", run], ["synth", "--run", run, "--n", 1]):
        message = one_line(call(*command), 4)
        assert "trained with an older version (format 1, now 2)" in message
        assert f"remove {run}/autoencoder {run}/diffusion {run}/latents and train again" in message
    assert snapshot(run) == before


STACKS = {
    "kind": "stack",
    "network": {
        "channels": [12],
        "latent_channels": 3,
        "position_embedding": 8,
        "aggregation": 2,
        "parts": 1,
        "latent_noise": 0.2,
        "patch": 2,
    },
    "depth": 4,
    "crop": [16, 24],
    "batch_size": 2,
    "iterations": 8,
    "iterations_per_epoch": 4,
    "learning_rate": 1e-3,
    "warm_up": 0,
    "kl_weight": 1e-6,
    "dice_weight": 0.5,
    "bce_weight": 0.1,
    "anchor_weight": 1.0,
    "perceptual_weights": None,
}


def test_stacks_from_slices_to_pairs(trained_run: Path, tmp_path: Path) -> None:
    """Aggregated latents, positions' means, a flow, the request as a picture: to a volume."""
    preset = load_preset(str(trained_run / "preset.yaml")).state()
    network = preset["diffusion"]["network"] | {"picture": True, "coordinates": True}
    diffusion = preset["diffusion"] | {
        "network": network,
        "iterations": 40,
        "schedule": {"kind": "flow", "steps": 1000},
        "noise_levels": {"distribution": "logit_normal", "mean": -0.4, "std": 1.2},
        "centred": "position",
        "iterations_per_epoch": 20,
        "early": 0.5,
    }
    sampling = {"sampler": "unipc", "steps": 4, "eta": 0.0, "spacing": "logsnr", "guidance": 2.0, "guide": "early"}
    parts = {"autoencoder": STACKS, "diffusion": diffusion, "sampling": sampling}
    run = copy_run(trained_run, tmp_path, leave_out="autoencoder latents diffusion nnUNet_raw", **parts)
    done = call("train", "--run", run)
    assert done.returncode == 0, done.stderr
    constants = torch.load(Run.at(run).checkpoint("diffusion"), weights_only=True)["constants"]
    assert np.shape(constants["latent_mean"]) == tuple(constants["latent_shape"])
    assert constants["latent_shape"] == [3, 12, 16, 8]
    latents = []
    for name in read_lists(run)["train"]:
        with np.load(run / "latents" / f"{name}.npz") as arrays:
            latents += list(arrays["latents"][:, 0].astype(np.float64))
    mean = gaussian_filter(np.mean(latents, axis=0), (0, 0.7, 0.7, 0.7), mode="nearest")
    np.testing.assert_allclose(constants["latent_mean"], mean, rtol=1e-5, atol=1e-6)
    residual = np.sqrt(np.square(np.stack(latents) - mean).mean(axis=(0, 2, 3, 4)))
    np.testing.assert_allclose(constants["latent_std"], residual, rtol=1e-5)
    model = Model.load(str(run), CPU)
    picture = model.network.picture
    torch.testing.assert_close(picture.mean.double(), torch.tensor(model.normaliser.mean), rtol=1e-6, atol=1e-6)
    latents = model.sampler()(torch.zeros(2, 9), model.network, seeds=[1, 2])
    weights, early = (dict(net.named_parameters()) for net in (model.network, model.early))
    assert any(not torch.equal(weights[name], early[name]) for name in weights)
    unasked = model.sampler({"guide": "unasked"})(torch.zeros(2, 9), model.network, seeds=[1, 2])
    assert not torch.equal(latents, unasked)
    one, other = (model.decode(z) for z in latents)
    assert latents.shape == (2, 3, 12, 16, 8) and one.shape == (2, 24, 32, 16)
    assert np.array_equal(one, model.decode(latents[0])) and not np.array_equal(one[0], other[0])


def test_what_a_stack_shows(phantom_cases: Path, trained_run: Path) -> None:
    """A stack lies inside the volume, holds its slice, and its slices are those of the volume, with their indices."""
    names = read_lists(trained_run)["train"][:2]
    data = SliceDataset(trained_run / "prepared", names, seed=3, depth=4)
    volumes = [load_prepared(trained_run / "prepared", name)[0].astype(np.float16) for name in names]
    for n in range(40):
        item = data[n]
        assert item["image"].shape == (2, 24, 32, 4)
        start = int(item["position"][0])
        assert item["position"].tolist() == list(range(start, start + 4)) and 0 <= start <= 12
        stacks = [v[..., start : start + 4].astype(np.float32) for v in volumes]
        assert any(np.array_equal(item["image"], stack) for stack in stacks)
    held_back = SliceValidation(trained_run / "prepared", names, depth=4)
    assert {int(held_back[n]["position"][0]) for n in range(len(held_back))} <= {0, 8}
    sizes = [(held_back[n]["image"][-1] > 0).sum().item() for n in range(len(held_back))]
    assert sizes == sorted(sizes)


def test_what_a_window_shows(trained_run: Path) -> None:
    """A window is part of its slices, and around a voxel of their brain: it is never without any."""
    names = read_lists(trained_run)["train"][:2]
    whole = SliceDataset(trained_run / "prepared", names, seed=3, empty_share=0.0, depth=4)
    windows = SliceDataset(trained_run / "prepared", names, seed=3, empty_share=0.0, depth=4, crop=[8, 12])
    for n in range(20):
        window = windows[n]["image"].numpy()
        assert window.shape == (2, 8, 12, 4) and (window[0] > -1).any()
        case = windows.volumes[windows.full[windows._item(n)[0], 0]].astype(np.float32)
        patches = np.lib.stride_tricks.sliding_window_view(case, window.shape)
        assert (patches == window).all(axis=(-1, -2, -3, -4)).any()
    assert len(whole) == len(windows)


# --- batches of stage 2 ---------------------------------------------------------------------------------------------


def diffusion_batch(rows: int, dropout: float = 0.0, seed: int = 0, **options: Any) -> tuple[dict, tuple]:
    """What the data sets give, `rows` of it, and what becomes of that with a schedule and noise from a seed."""
    generator = torch.Generator().manual_seed(1)
    batch = {
        "image": torch.randn(rows, 2, 3, 2, 2, generator=generator),
        "condition": torch.randn(rows, 9, generator=generator),
    }
    levels = options.pop("levels", None)
    torch.manual_seed(seed)
    return batch, DiffusionBatch(Schedule(**options), levels, dropout)(batch, CPU)


def test_condition_dropout() -> None:
    """The stated share of conditions becomes NaN, whole rows of it; without dropout all stay as they are."""
    n = 20_000
    batch, (_, _, (_, condition), _) = diffusion_batch(n, dropout=0.1)
    left_out = condition.isnan()
    assert torch.equal(left_out.any(1), left_out.all(1))
    assert left_out.all(1).float().mean().item() == pytest.approx(0.1, abs=4 * math.sqrt(0.09 / n))
    assert torch.equal(condition[~left_out.all(1)], batch["condition"][~left_out.all(1)])
    assert torch.equal(diffusion_batch(n)[1][2][1], batch["condition"])
    assert not batch["condition"].isnan().any()


@pytest.mark.parametrize("prediction", ["v_prediction", "epsilon", "sample"])
def test_noised_and_target(prediction: str) -> None:
    """Network input and target lead back to the latents and to unit noise, with the paper's schedule at the times."""
    batch, (noised, target, (times, _), more) = diffusion_batch(500, prediction=prediction)
    assert (noised.dtype, target.dtype, times.dtype, times.shape, more) == (*[torch.float32] * 3, (500,), {})
    beta = np.linspace(0.002**0.5, 0.02**0.5, 1000) ** 2
    a = torch.tensor(np.cumprod(1 - beta)[times.long()]).reshape(-1, 1, 1, 1, 1)
    noise = (noised - a.sqrt() * batch["image"]) / (1 - a).sqrt()
    assert noise.mean().item() == pytest.approx(0, abs=4 / math.sqrt(noise.numel()))
    assert noise.std().item() == pytest.approx(1, abs=4 / math.sqrt(2 * noise.numel()))
    wanted = {
        "epsilon": noise,
        "sample": batch["image"].double(),
        "v_prediction": a.sqrt() * noise - (1 - a).sqrt() * batch["image"],
    }
    torch.testing.assert_close(target.double(), wanted[prediction], atol=1e-4, rtol=0)


def test_velocity_of_a_flow() -> None:
    """The noised latents less their share of the velocity are the latents, the rest of the way leads to the noise."""
    batch, (noised, velocity, (times, _), _) = diffusion_batch(500, prediction="v_prediction", kind="flow")
    sigma = ((times + 1) / 1000).reshape(-1, 1, 1, 1, 1)
    torch.testing.assert_close(noised - sigma * velocity, batch["image"], atol=2e-3, rtol=0)  # the last step is cut off
    assert (noised + (1 - sigma) * velocity).std().item() == pytest.approx(1, abs=4 / math.sqrt(2 * noised.numel()))


def test_levels_reach_the_times() -> None:
    """A batch has one time in each of its equal shares of the distribution that was asked for; seeds differ."""
    schedule, levels = Schedule(kind="flow"), NoiseLevels(distribution="logit_normal", mean=1.0, std=0.5)
    _, (_, _, (times, _), _) = diffusion_batch(400, levels=levels, kind="flow")
    values = -schedule.half_log_snr(times)
    assert values.mean().item() == pytest.approx(1.0, abs=0.01) and values.std().item() == pytest.approx(0.5, abs=0.01)
    _, (_, _, (uniform, _), _) = diffusion_batch(500)
    assert torch.equal((uniform.sort().values / 2).floor(), torch.arange(500.0))
    again, other = (diffusion_batch(500, seed=seed)[1][2][0] for seed in (0, 1))
    assert torch.equal(again, uniform) and not torch.equal(other, uniform)


def test_noise_is_the_same_after_a_resume() -> None:
    """Iteration k draws the same numbers whether or not the process began before it; iterations and seeds differ."""

    def draws(seed: int, begin: int, end: int) -> dict[int, float]:
        drawn: dict[int, float] = {}
        engine = Engine(lambda e, _: drawn.__setitem__(e.state.iteration, torch.rand(1).item()))
        Seeded(seed).attach(engine)
        torch.manual_seed(begin)
        state = {"iteration": begin, "epoch_length": end, "max_epochs": 1}
        engine.load_state_dict(state) if begin else None
        engine.run(range(end), max_epochs=1, epoch_length=end)
        return drawn

    whole, rest = draws(5, 0, 6), draws(5, 3, 6)
    assert list(rest) == [4, 5, 6] and rest == {k: whole[k] for k in rest}
    assert len(set(whole.values())) == 6 and draws(6, 0, 6)[1] != whole[1]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_no_number_ends_the_training(value: float) -> None:
    """The message names the iteration and the mend; a finite loss goes on."""
    engine = Engine(lambda _, __: None)
    engine.state.iteration, engine.state.output = 7, {"loss": torch.tensor(1.0)}
    FiniteLoss()(engine)
    engine.state.output = {"loss": torch.tensor(value)}
    with pytest.raises(StateError, match="not finite at iteration 7; lower learning_rate"):
        FiniteLoss()(engine)


def test_half_trained_stages_are_named(trained_run: Path, tmp_path: Path) -> None:
    """Stage 2 refuses the latents of an unfinished autoencoder; an unfinished diffusion model is warned of."""
    run = copy_run(trained_run, tmp_path, leave_out="latents diffusion")
    last = Run.at(run).checkpoint("autoencoder", "last")
    content = torch.load(last, weights_only=True)
    torch.save(content | {"iteration": 80}, last)
    done = call("train", "diffusion", "--run", run)
    assert "only 80 of 200 iterations done; `sbldm train autoencoder --run " in one_line(done, 4)
    assert not (run / "latents").exists()

    whole = copy_run(trained_run, tmp_path / "other")
    last = Run.at(whole).checkpoint("diffusion", "last")
    torch.save(torch.load(last, weights_only=True) | {"iteration": 40}, last)
    drawn = call("synth", "--run", whole, "--n", 1)
    assert drawn.returncode == 0 and "half-trained: 40 of 240 iterations" in drawn.stdout
    last.unlink()
    passed_on = call("synth", "--run", whole, "--n", 2)
    assert passed_on.returncode == 0 and "half-trained" not in passed_on.stdout
