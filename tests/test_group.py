"""Several processes train as one does: draws, losses, weights; and what is said when that is not to be."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import group_tasks
import pytest
import torch
from conftest import BUNDLE, call, copy_run, one_line, partial_files
from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

from sbldm.commands import launch
from sbldm.networks import GanGenerator, LatentUNet, MonaiUNet, SliceVAE, sparing
from sbldm.run.errors import LAUNCHED, InputError, LostError, mendable
from sbldm.run.folder import Run, load_preset
from sbldm.run.group import check_shared, join
from sbldm.training import Seeded, memory
from sbldm.training.checkpoints import load_checkpoint
from sbldm.training.data import Dealt
from sbldm.training.memory import check_memory, training_bytes

CPU = torch.device("cpu")
TASKS = Path(group_tasks.__file__)
SAME = {"latents": 1e-12, "slices": 1e-6, "stacks": 1e-6}  # five steps; the latter hold sums in single precision


def processes(*arguments: object, **more: Any) -> subprocess.CompletedProcess:
    """Two processes on the CPU, or one a GPU, by PyTorch's launcher."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--local-addr=127.0.0.1"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "DEVICE": "cpu"} | more
    words = [*command, "--nproc-per-node=2", *map(str, arguments)]
    return subprocess.run(words, capture_output=True, text=True, timeout=300, check=False, cwd=BUNDLE, env=environment)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of two processes found."""
    out = tmp_path_factory.mktemp("pair")
    done = processes(TASKS, out)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Device: ") == done.stdout.count("Processes: 2, each with 8 of a batch of 16") == 1
    return [torch.load(out / f"{rank}.pt") for rank in (0, 1)]


def furthest(a: dict[str, Any], b: dict[str, Any]) -> float:
    """The largest difference of two trainings, of losses (relative) and of weights."""
    losses = max(abs(x - y) / abs(x) for x, y in zip(a["losses"], b["losses"], strict=True))
    return max([losses, *(float((a["weights"][key] - b["weights"][key]).abs().max()) for key in a["weights"])])


# --- the same numbers ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", group_tasks.TRAININGS)
def test_two_processes_train_as_one(pair: list[dict[str, Any]], name: str) -> None:
    """Losses and weights, with what is measured on the whole batch, by Adam and by Muon; both hold the same."""
    alone = group_tasks.train(name)
    assert furthest(alone, pair[0][name]) < SAME[name]
    assert furthest(pair[0][name], pair[1][name]) == 0
    assert alone["losses"][0] != alone["losses"][-1] and not any(key.startswith("module") for key in alone["weights"])


def test_draws_are_those_of_the_whole_batch(pair: list[dict[str, Any]]) -> None:
    """Rows of the same noise, whatever the layout; gradients of one's own rows; batches of a validation dealt out."""
    alone, (first, second) = group_tasks.draws(), (found["draws"] for found in pair)
    for name in ("plain", "permuted", "uniform", "gradient"):
        assert torch.equal(torch.cat([first[name], second[name]]), alone[name]), name
    assert not torch.equal(alone["plain"], alone["permuted"])
    torch.testing.assert_close(alone["gradient"], torch.arange(8.0) / torch.arange(8.0).square().sum().sqrt())
    assert (first["validated"], first["mean"], second["mean"]) == (4, 1.0, 1.0)
    assert first["dealt"] == ([0, 1, 2, 6, 7, 8], [1, 3], [0, 1])
    assert second["dealt"] == ([3, 4, 5, 9], [2, 4], [0, 1])
    assert alone["dealt"] == (list(range(10)), [1, 2], [0, 1])
    assert [found["work"] for found in pair] == ["made", "found"]


@pytest.mark.parametrize("name", group_tasks.TRAININGS)
def test_pieces_and_checkpointing_change_nothing(pair: list[dict[str, Any]], name: str) -> None:
    """Checkpointing to the bit; pieces, also uneven ones and of two processes, but for the order of sums."""
    alone = group_tasks.train(name)
    assert furthest(alone, group_tasks.train(name, checkpointing=True)) == 0
    assert 0 < furthest(alone, group_tasks.train(name, pieces=3)) < SAME[name]
    assert furthest(alone, group_tasks.train(name, pieces=4, checkpointing=True)) < SAME[name]
    if name == "stacks":
        assert furthest(alone, pair[0]["pieces"]) < SAME[name]


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_two_gpus_train_as_one(tmp_path: Path) -> None:
    """By NCCL."""
    done = processes(TASKS, tmp_path, DEVICE="cuda")
    assert done.returncode == 0, done.stderr
    held = torch.load(tmp_path / "0.pt", map_location="cpu")
    for name in group_tasks.TRAININGS:
        alone = group_tasks.train(name, device="cuda:0")
        alone["weights"] = {key: value.cpu() for key, value in alone["weights"].items()}
        assert furthest(alone, held[name]) < 1e-9


def test_noise_of_a_dealt_validation() -> None:
    """Batch n has the noise of batch n, whichever process sees it."""
    from types import SimpleNamespace

    dealt = Dealt(10, 2)
    dealt.first, dealt.step = 1, 2
    drawn = {}
    for sampler, iteration in ((None, 4), (dealt, 2), (None, 2)):
        state = SimpleNamespace(iteration=iteration, dataloader=SimpleNamespace(sampler=sampler))
        Seeded(5)(SimpleNamespace(state=state))
        drawn[sampler, iteration] = float(torch.rand(1))
    assert drawn[None, 4] == drawn[dealt, 2] != drawn[None, 2]


# --- less memory -----------------------------------------------------------------------------------------------------


def kept_bytes(network: torch.nn.Module, *inputs: torch.Tensor) -> int:
    """Of what the backward pass keeps, but for the weights."""
    weights, kept = {p.data_ptr() for p in network.parameters()}, {}

    def pack(x: torch.Tensor) -> torch.Tensor:
        if x.data_ptr() not in weights:
            kept[x.data_ptr()] = x.untyped_storage().nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        out = network.train()(*inputs)
    assert (out[0] if isinstance(out, tuple) else out).requires_grad
    return sum(kept.values())


def test_less_is_kept() -> None:
    """Less than half of what a U-Net and a slice VAE keep; of four pieces next to nothing."""
    torch.manual_seed(0)
    unet = LatentUNet(3, [16, 24], [2], 2, 9, 16, 4), torch.rand(4, 3, 8, 8, 8), torch.rand(4), torch.rand(4, 9)
    vae = SliceVAE(2, [16, 24], 3, 8, groups=4), torch.rand(4, 2, 32, 32), torch.arange(4)
    for network, *inputs in (unet, vae):
        all_of_it = kept_bytes(network, *inputs)
        assert kept_bytes(sparing(network, checkpointing=True), *inputs) < 0.55 * all_of_it
        assert kept_bytes(sparing(network, pieces=4), *inputs) < 0.1 * all_of_it


def test_what_is_spared_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """`paper` within half of its memory; the refusal names the first option that fits, in a group for its share."""
    paper = load_preset("paper")
    whole = training_bytes(paper, "autoencoder")
    assert training_bytes(paper, "autoencoder", checkpointing=True) < 0.6 * whole
    assert training_bytes(paper, "autoencoder", pieces=32) < 0.1 * whole
    assert training_bytes(paper, "autoencoder", processes=2) < 0.6 * whole
    demo = load_preset("demo")
    half = demo.but(autoencoder=demo.autoencoder.but(batch_size=8))
    assert training_bytes(demo, "autoencoder", processes=2) == training_bytes(half, "autoencoder")

    network = SliceVAE(2, [8, 16], 3, 8)
    for free, words in (
        (0.7 * whole, r"add --checkpointing \(.* GB\), or take a new run with --preset"),
        (0.4 * whole, r"add --accumulate 2 \(.* GB\), or "),
    ):
        monkeypatch.setattr(memory, "_free_bytes", lambda device, free=free: free)
        with pytest.raises(InputError, match=words):
            check_memory(paper, "autoencoder", CPU, False, network)
    check_memory(paper, "autoencoder", CPU, False, sparing(network, pieces=2))


@pytest.mark.parametrize(
    ("network", "asked", "message"),
    [
        (lambda: GanGenerator(2, (16, 16, 16), 8, [8, 4]), {"pieces": 2}, "GanGenerator takes whole batches"),
        (lambda: MonaiUNet(3, [8, 8], 1, 8, 4), {"checkpointing": True}, "MonaiUNet has no blocks that could"),
        (lambda: SliceVAE(2, [8, 8], 3, 8), {"pieces": 0}, "--accumulate 0: must be a whole number from 1"),
        (lambda: SliceVAE(2, [8, 8], 3, 8), {"checkpointing": "on"}, "--checkpointing on: must be True or False"),
    ],
)
def test_networks_that_cannot(network: Callable[[], torch.nn.Module], asked: dict[str, Any], message: str) -> None:
    """They are named; a network of MONAI takes pieces."""
    with pytest.raises(InputError, match=message):
        sparing(network(), **asked)


# --- a whole training ------------------------------------------------------------------------------------------------


def rows(run: Path, stage: str) -> list[dict[str, float]]:
    """Of `history.csv`."""
    with open(run / stage / "history.csv", newline="") as file:
        return [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]


def furthest_rows(run: Path, other: Path, stage: str) -> float:
    """The largest relative difference of the losses of their epochs."""
    pairs = zip(rows(run, stage), rows(other, stage), strict=True)
    return max(abs(a[key] - b[key]) / a[key] for a, b in pairs for key in ("train_loss", "val_loss"))


def furthest_weights(run: Path, other: Path, stage: str) -> float:
    """Of the weights, and of their average where there is one."""
    held = [load_checkpoint(r / stage / "last.pt", stage)["states"] for r in (run, other)]
    parts = [part for part in ("network", "average") if part in held[0]]
    return max(float((held[0][p][k] - held[1][p][k]).abs().max()) for p in parts for k in held[0][p])


def calm(run: Path, folder: Path, stage: str, epochs: int, leave_out: str = "") -> Path:
    """A run whose training takes small steps, so that rounding does not grow."""
    folder.mkdir()
    values = Run.at(run).preset.state()[stage]
    few = {"iterations": 5 * epochs, "iterations_per_epoch": 5, "learning_rate": 1e-4, "warm_up": 0}
    return copy_run(run, folder, leave_out, **{stage: values | few})


def test_torchrun_trains_stage_1(tmp_path: Path, prepared_run: Path) -> None:
    """The documented line on one process and on two: the same losses, and the first process alone writes and speaks."""
    one, two = (calm(prepared_run, tmp_path / name, "autoencoder", 2) for name in ("one", "two"))
    assert call("train", "autoencoder", "--run", one).returncode == 0
    files = "['configs/common.yaml','configs/train_autoencoder.yaml','configs/multi_gpu.yaml']"
    done = processes("-m", "monai.bundle", "run", "training", "--config_file", files, "--run_dir", two)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Device: ") == done.stdout.count("validation loss") == 1
    assert furthest_rows(one, two, "autoencoder") < 1e-5
    assert furthest_weights(one, two, "autoencoder") < 1e-5
    files = [[p for p in (run / "autoencoder").rglob("*") if p.is_file()] for run in (one, two)]
    assert Counter(p.name.split(".")[0] for p in files[0]) == Counter(p.name.split(".")[0] for p in files[1])
    assert not partial_files(two)


def test_one_two_one(tmp_path: Path, trained_run: Path) -> None:
    """A checkpoint of one process goes on in two, of which one is killed, and in one again, as if never stopped."""
    one, run = (calm(trained_run, tmp_path / name, "diffusion", 12, "diffusion") for name in ("one", "run"))
    assert call("train", "diffusion", "--run", one).returncode == 0
    command = [sys.executable, "-m", "sbldm", "train", "diffusion", "--run", str(run)]
    for options, least in (([], 2), (["--gpus", "2"], 4)):
        process = subprocess.Popen(
            [*command, *options],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1", "DEVICE": "cpu"},
        )
        history, stop = run / "diffusion" / "history.csv", time.monotonic() + 120
        while not (history.is_file() and len(rows(run, "diffusion")) >= least):
            assert process.poll() is None and time.monotonic() < stop, process.communicate()
            time.sleep(0.005)
        workers = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=False)
        os.kill(int(workers.stdout.split()[1]) if options else process.pid, signal.SIGKILL)
        out, err = process.communicate()
    said = "process 2 of 2 was killed (SIGKILL, as the system does when memory runs out); the same command goes on"
    assert said in one_line(subprocess.CompletedProcess([], process.returncode, out, err), 4)
    assert "going on after iteration" in out and "Processes: 2, each with 2 of a batch of 4" in out
    assert 4 <= len(rows(run, "diffusion")) < 12
    done = call("train", "diffusion", "--run", run)
    assert done.returncode == 0 and "going on after iteration" in done.stdout
    assert furthest_rows(one, run, "diffusion") < 1e-5
    assert furthest_weights(one, run, "diffusion") < 1e-5


# --- what cannot be --------------------------------------------------------------------------------------------------


def test_a_sentence_of_a_process_comes_through(
    tmp_path: Path, prepared_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once, with its exit code; the environment, which tells them so, is as before."""
    monkeypatch.setenv("DEVICE", "cpu")
    run, before = copy_run(prepared_run, tmp_path), dict(os.environ)
    assert "no autoencoder has been trained here" in one_line(call("train", "diffusion", "--run", run, "--gpus", 2), 4)
    assert {key: os.environ.get(key) for key in before} == before and LAUNCHED not in os.environ


def test_ctrl_c_ends_all(tmp_path: Path, prepared_run: Path) -> None:
    """Said once; no process is left."""
    run = copy_run(prepared_run, tmp_path)
    process = subprocess.Popen(
        [sys.executable, "-m", "sbldm", "train", "--run", str(run), "--gpus", "2"],
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"DEVICE": "cpu"},
        start_new_session=True,
    )
    workers: list[str] = []
    stop = time.monotonic() + 60
    while len(workers) < 2 and time.monotonic() < stop:
        found = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=False)
        workers = found.stdout.split()
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err.strip().splitlines()[-1] == "Stopped; the same command goes on from here." and "Traceback" not in err
    time.sleep(0.2)
    assert not [pid for pid in workers if Path("/proc", pid).exists()]


@pytest.mark.parametrize(
    ("device", "there", "count", "message"),
    [
        ("", 1, 4, "--gpus 4: 1 GPU is visible here; leave it out, or train in 4 processes of the CPU: DEVICE=cpu."),
        ("", 2, 4, "--gpus 4: 2 GPUs are visible here; take --gpus 2, or train in 4"),
        ("cuda", 0, 2, "--gpus 2: no GPU is visible here; leave it out"),
        ("cuda:1", 2, 2, "--gpus 2: DEVICE=cuda:1 is one alone; choose several by CUDA_VISIBLE_DEVICES=0,1."),
    ],
)
def test_devices(
    prepared_run: Path, monkeypatch: pytest.MonkeyPatch, device: str, there: int, count: int, message: str
) -> None:
    """One GPU a process, or the CPU if it is asked for by name; said before anything begins."""
    monkeypatch.setenv("DEVICE", device)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: there)
    assert message in one_line(call("train", "--run", prepared_run, "--gpus", count), 2)
    for fine in ((1, "cuda:1"), (8, "cpu")):
        monkeypatch.setenv("DEVICE", fine[1])
        launch.devices_for(fine[0])


def test_trainings_that_cannot_be_shared(prepared_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An adversary's, and batches that cannot be divided; all before anything begins."""
    monkeypatch.setenv("DEVICE", "cpu")
    said = one_line(call("train", "--run", prepared_run, "--gpus", 3), 2)
    assert "--gpus 3: so many cannot share a batch of 8 (autoencoder.batch_size) evenly; take 2, or another" in said
    for model, stage in (("lsgan", "gan"), ("ldm3d", "autoencoder")):
        with pytest.raises(InputError, match=f"the {stage} of this model is trained against a discriminator"):
            check_shared(load_preset("demo", model).stage(stage), stage, 2, "--gpus 2")
    with pytest.raises(InputError, match=r"multi_gpu\.yaml: is for `torchrun"):
        join(load_preset("demo").autoencoder, "autoencoder")


def test_what_several_processes_leave_to_one(prepared_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By `torchrun -m sbldm train STAGE`, for several machines, cases must be there, and stages have their turns."""
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    monkeypatch.setenv("WORLD_SIZE", "2")
    said = one_line(call("train", "--run", prepared_run, "--data", prepared_run), 2)
    assert "several processes cannot prepare cases; call `sbldm prepare` before" in said
    said = one_line(call("train", "--run", prepared_run), 2)
    assert "several processes train one after the other: name one of autoencoder, diffusion." in said


@pytest.mark.parametrize(
    ("codes", "message", "code"),
    [
        ((-15, 4, -9), "process 3 of 3 was killed (SIGKILL, as the system does when memory runs out)", 4),
        ((-15, -11, 4), "process 2 of 3 was killed (SIGSEGV);", 4),
        ((4, 1, -15), "process 2 of 3 has ended (ZeroDivisionError: a bug); the same command goes on", 4),
        ((4, 4, -15), "the 3 processes have lost each other; the same command goes on from the last epoch.", 4),
        ((-15, 5, 4), "the disk is full", 5),
    ],
)
def test_whose_fault(tmp_path: Path, codes: tuple[int, ...], message: str, code: int) -> None:
    """The first that had a reason; that the others were lost, or ended by the launcher, is none."""
    (tmp_path / "run" / "attempt_0" / "1").mkdir(parents=True)
    (tmp_path / "run" / "attempt_0" / "1" / "stderr.log").write_text("Traceback\nZeroDivisionError: a bug\n")
    file = tmp_path / "error.json"
    if code == 5:
        file.write_text('{"message": "the disk is full", "timestamp": 3, "exit_code": 5}')
    failures = {n: ProcessFailure(n, n, c, str(file if c == 5 else "")) for n, c in enumerate(codes)}
    error = launch._reason(failures, len(codes), tmp_path)
    assert message in str(error) and error.exit_code == code


def test_a_lost_process_is_known() -> None:
    """By gloo's and NCCL's words; other errors stay what they are."""
    lost = RuntimeError("[third_party/gloo/gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:4")
    assert isinstance(mendable(lost), LostError)
    assert isinstance(mendable(torch.distributed.DistBackendError("NCCL communicator was aborted")), LostError)
    assert mendable(RuntimeError("sizes do not match")) is None
