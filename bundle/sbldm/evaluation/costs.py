"""What a method costs: parameters and operations of a volume, counted without memory, and time and memory, measured.

  sbldm costs --paper DIR   the paper's numbers beside ours: costs.md and two CSV tables
  sbldm costs --run RUN     time and memory of one volume of a trained run, kept in RUN/costs.json

Operations are those of PyTorch's own counter: products of convolutions, linear layers and attention, no biases, norms
or activations. The paper's "FLOPS" are multiply-adds (MACs), half of what is called FLOPs here.
"""

from __future__ import annotations

import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from io import StringIO
from itertools import takewhile
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd
from torch.utils.flop_counter import FlopCounterMode

from sbldm.networks import (
    GanGenerator,
    SliceVAE,
    StackVAE,
    build_autoencoder,
    build_denoiser,
    build_discriminator,
    build_generator,
)
from sbldm.run.device import choose_device
from sbldm.run.errors import DataError, InputError, OutputError, StateError
from sbldm.run.files import read_json, sha256, user_path, write_json
from sbldm.run.folder import Run
from sbldm.run.preset import Preset
from sbldm.run.processes import killed_with_parent
from sbldm.synthesis.model import Model, Sampler
from sbldm.tumour.characteristics import NAMES

__all__ = ["Cost", "count", "empty", "measure", "measure_run", "measured", "memory_of", "model_costs", "name_of"]

COSTS_FILE = "costs.json"  # of a run


# --- counting ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cost:
    """Size of a network and work of one call.

    Attributes:
        parameters: all of them.
        counted: those that the paper counts: of convolutions and of a GAN's linear stem. Norms, the embeddings of time,
            condition and position, and the linear layers of attention are left out.
        macs: multiply-adds of the call.
    """

    parameters: int
    counted: int
    macs: float

    @property
    def flops(self) -> float:
        """A multiplication and an addition for each multiply-add."""
        return 2 * self.macs

    def __add__(self, other: Cost) -> Cost:
        """Two networks, one after the other."""
        return Cost(self.parameters + other.parameters, self.counted + other.counted, self.macs + other.macs)

    def repeated(self, times: int) -> Cost:
        """The same network called several times."""
        return replace(self, macs=times * self.macs)


def count(network: nn.Module, *inputs: torch.Tensor, call: str = "forward") -> Cost:
    """Count a network and one call of it; on the meta device this takes no memory.

    Args:
        network: counted as a whole, whichever part the call uses.
        inputs: of the call, on the network's device.
        call: name of the method, for example `encode`.
    """
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        getattr(network, call)(*inputs)
    layers = [layer for layer in network.modules() if isinstance(layer, _ConvNd)]
    layers += [layer.stem for layer in network.modules() if isinstance(layer, GanGenerator)]
    return Cost(_parameters(network), sum(map(_parameters, layers)), counter.get_total_flops() / 2)


def _parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def empty(*shape: int) -> torch.Tensor:
    """An input of batch 1 without content."""
    return torch.empty(1, *shape, device="meta")


def model_costs(preset: Preset, sampling: Mapping[str, Any] | None = None) -> dict[str, Cost]:
    """What each part of a model costs for one volume of its working grid.

    Args:
        preset: of the model.
        sampling: `steps` and `guidance` in place of the preset's.

    Returns:
        By name of the part, where the model has it; nothing for a model without networks:

        `encode`: a whole volume to latents (all its slices, for an autoencoder of slices); the autoencoder's size.
        `step`: one evaluation of the denoiser on the latents of a volume; its size.
        `decode`: latents to a whole volume; the autoencoder's size.
        `sample`: noise to a volume: the steps that `sampling` asks for (twice as many evaluations with guidance) and
        the decoding; the size of denoiser and autoencoder, its encoder included. For a GAN one call of the generator.
        `discriminator`: one call on a volume. It plays no part in sampling and is not in the size of `sample`.
    """
    stages = preset.stages
    volume = empty(preset.all_channels, *preset.grid.size)
    with torch.device("meta"):
        if "gan" in stages:
            generator = build_generator(preset)
            costs = {"sample": count(generator, empty(generator.noise))}
        else:
            costs = _latent_costs(preset, volume, sampling or {}) if stages else {}
        for stage in stages:
            if hasattr(preset.stage(stage), "discriminator"):
                costs["discriminator"] = count(build_discriminator(preset, stage), volume)
    return costs


def _slices(volume: torch.Tensor) -> torch.Tensor:
    """`[1, C, X, Y, Z]` as `[Z, C, X, Y]`."""
    return torch.movedim(volume[0], -1, 0)


def _latent_costs(preset: Preset, volume: torch.Tensor, sampling: Mapping[str, Any]) -> dict[str, Cost]:
    """`model_costs` of a latent diffusion model, for a volume `[1, C + L, X, Y, Z]`."""
    autoencoder, denoiser = build_autoencoder(preset), build_denoiser(preset)
    latents = empty(*preset.latent_shape)
    pixels, codes, positions = volume, latents, ()
    if isinstance(autoencoder, SliceVAE):  # every slice is one of a batch
        pixels, depth = _slices(volume), preset.grid.size[2]
        stacked = isinstance(autoencoder, StackVAE)
        codes, positions = latents if stacked else _slices(latents), (torch.empty(depth), *[depth] * stacked)
    costs = {
        "encode": count(autoencoder, pixels, *positions, call="encode"),
        "step": count(denoiser, latents, empty(), empty(denoiser.built.get("condition_size", 0))),
        "decode": count(autoencoder, codes, *positions, call="decode"),
    }
    sampling = dict(preset.sampling) | sampling
    evaluations = sampling["steps"] * (1 if sampling["guidance"] == 1 else 2)
    costs["sample"] = costs["step"].repeated(evaluations) + costs["decode"]
    return costs


# --- measuring --------------------------------------------------------------------------------------------------------


def name_of(device: torch.device) -> str:
    """The name of a graphics card or processor, as its maker gives it."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    table = Path("/proc/cpuinfo")  # of Linux; Python's own answer is empty there
    lines = table.read_text().splitlines() if device.type == "cpu" and table.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or f"{platform.machine()} {device.type}"


def memory_of(device: torch.device) -> tuple[int, int]:
    """Bytes in use and the most that ever were: on CUDA those of PyTorch's tensors, on a CPU those of the process."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device), torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")
    if not status.is_file():
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        return peak, peak
    # getrusage would do, but on Linux a new process starts with the peak of the one that started it
    fields = dict(line.split(":", 1) for line in status.read_text().splitlines())
    return tuple(int(fields[name].split()[0]) * 1024 for name in ("VmRSS", "VmHWM"))


def _conditions(model: Model, rows: int) -> torch.Tensor:
    """Condition vectors `[rows, K]` of tumours drawn like those of the training; NaN without requests."""
    if not model.conditional:
        return torch.full((rows, len(NAMES)), torch.nan)
    return torch.from_numpy(model.normaliser.encode(model.tumours.sample(rows, seed=0)))


def measure(
    run_dir: str | Path,
    device: torch.device,
    repeats: int = 3,
    batches: Sequence[int] = (1, 4),
    sampling: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Time and memory from noise to volumes on the working grid, without gate and writing.

    Each batch size is drawn once to warm up, then `repeats` times, the device synchronised around each. A batch shares
    the steps of the denoiser; volumes are decoded one by one, so a GAN gains nothing. The peak of memory on a CPU is
    that of the whole process, so measure in a fresh one (`measured`).

    Args:
        run_dir: a trained run.
        device: to draw on.
        repeats: of which the median is taken.
        batches: volumes drawn at once, from the smallest up, 1 always among them. When one does not fit into memory,
            it and the larger ones are left out.
        sampling: `sampler`, `steps`, `spacing`, `sigma_min`, `eta`, `guidance`, `guide` in place of the preset's.

    Returns:
        `device`, `threads`, `checkpoint_sha256`, `asked` (`sampling`), `sampler` (all settings), `repeats`, `seconds`
        (a volume at batch 1), `best_batch` and `best_seconds` (a volume at it), `peak_bytes` (at batch 1),
        `before_bytes` (before the model was loaded), `added_bytes` (the difference), and `batches`: `batch`, `seconds`
        and `peak_bytes` of each.

    Raises:
        StateError: nothing is trained there, or one volume does not fit into memory.
        InputError: the sampler does not take these values.
    """
    before, _ = memory_of(device)
    model = Model.load(str(run_dir), device)
    samplers = {n: model.sampler(_asked(sampling) | {"batch": n}) for n in sorted({1, *batches})}
    rows = list(takewhile(bool, (_timed(model, samplers[n], device, n, repeats) for n in samplers)))
    if not rows:
        raise StateError(f"{run_dir}: one volume does not fit into the memory of {name_of(device)}; try DEVICE=cpu.")
    best = min(rows, key=lambda row: row["seconds"])
    return {
        "device": name_of(device),
        "threads": torch.get_num_threads(),
        "checkpoint_sha256": model.sha256,
        "asked": _asked(sampling),
        "sampler": samplers[1].settings,
        "repeats": repeats,
        "seconds": rows[0]["seconds"],
        "best_batch": best["batch"],
        "best_seconds": best["seconds"],
        "peak_bytes": rows[0]["peak_bytes"],
        "before_bytes": before,
        "added_bytes": rows[0]["peak_bytes"] - before,
        "batches": rows,
    }


def _asked(sampling: Mapping[str, Any] | None) -> dict[str, str]:
    """Sampling values as they are typed, without the empty ones."""
    return {name: str(value) for name, value in (sampling or {}).items() if value not in (None, "")}


def _timed(model: Model, sampler: Sampler, device: torch.device, batch: int, repeats: int) -> dict[str, Any] | None:
    """Median seconds a volume, and the peak of memory so far; None when the batch does not fit into memory."""
    conditions, seconds = _conditions(model, batch).to(device), []
    try:
        for _ in range(1 + repeats):
            _synchronise(device)
            begun = time.perf_counter()
            for latents in sampler(conditions, model.network, seeds=range(batch)):
                model.decode(latents)
            _synchronise(device)
            seconds.append((time.perf_counter() - begun) / batch)
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, MemoryError | torch.OutOfMemoryError) or "allocate memory" in str(error):
            return None
        raise
    return {"batch": batch, "seconds": statistics.median(seconds[1:]), "peak_bytes": memory_of(device)[1]}


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def measured(
    run: Run,
    device_name: str = "",
    repeats: int = 3,
    batches: Sequence[int] = (1, 4),
    sampling: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """`measure` in a process of its own, kept in RUN/costs.json while checkpoint, device and sampling are the same.

    Args:
        run: a trained run.
        device_name: as `choose_device` takes it.
        repeats, batches, sampling: as for `measure`.

    Raises:
        SbldmError: as the other process said.
    """
    with redirect_stdout(StringIO()):  # the other process names it
        device = choose_device(device_name)
    path, stages = run.folder / COSTS_FILE, run.preset.stages
    checkpoint = run.checkpoint(stages[-1]) if stages else None
    key = {
        "checkpoint_sha256": sha256(checkpoint) if checkpoint and checkpoint.is_file() else "",
        "device": name_of(device),
        "asked": _asked(sampling),
    }
    kept = (
        read_json(
            path, {"measurements": [dict.fromkeys(key, object)]}, "run the same command again, which measures anew"
        )
        if path.is_file()
        else {"measurements": []}
    )["measurements"]
    for row in kept:
        if all(row[name] == value for name, value in key.items()):
            return row
    found = _measure_apart(run, device, repeats, batches, key["asked"])
    kept = [row for row in kept if row["checkpoint_sha256"] == found["checkpoint_sha256"]]
    write_json(path, {"measurements": [*kept, found]})
    return found


def _measure_apart(
    run: Run, device: torch.device, repeats: int, batches: Sequence[int], asked: Mapping[str, str]
) -> dict[str, Any]:
    """The command below in another process; what it says in one line is raised here."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / COSTS_FILE
        command = [sys.executable, "-m", "sbldm", "costs", f"--run={run.folder}", f"--out={out}"]
        command += [f"--repeats={repeats}", f"--batches={','.join(map(str, batches))}"]
        command += [f"--{name.replace('_', '-')}={value}" for name, value in asked.items()]
        environment = os.environ | {"DEVICE": str(device)}
        options = {"env": environment, "preexec_fn": killed_with_parent}
        done = subprocess.run(command, stderr=subprocess.PIPE, text=True, check=False, **options)
        if not done.returncode:
            return read_json(out)
    said = next((line for line in reversed(done.stderr.splitlines()) if line.strip()), "out of memory?")
    for error in (InputError, DataError, StateError, OutputError):
        if error.exit_code == done.returncode:
            raise error(said.removeprefix("Error: "))
    raise StateError(f"{run.folder}: measuring ended with code {done.returncode} ({said}); try again.")


# --- what `sbldm costs` does ------------------------------------------------------------------------------------------


def measure_run(
    folder: Path, out: Path | None, repeats: int, batches: Sequence[int], sampling: Mapping[str, Any]
) -> None:
    """Measure a trained run: in this process and into the file `out`, else in a fresh one and kept with the run."""
    run = Run.at(folder)
    if out:
        found = measure(run.folder, choose_device(), repeats, batches, sampling)
        write_json(user_path(out).absolute(), found)
    else:
        found = measured(run, "", repeats, batches, sampling)
        print(
            f"{run.folder}: {found['seconds']:.3g} s a volume, {found['best_seconds']:.3g} s at batch "
            f"{found['best_batch']}; peak memory {found['peak_bytes'] / 1e9:.3g} GB; on {found['device']}."
        )
