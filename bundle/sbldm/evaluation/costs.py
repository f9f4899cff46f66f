"""What a method costs: parameters and operations of a volume, counted without memory, and time and memory, measured.

  python -m sbldm.evaluation.costs --paper DIR   the paper's numbers beside ours: costs.md and two CSV tables
  python -m sbldm.evaluation.costs --run RUN     time and memory of one volume of a trained run, kept in RUN/costs.json

Operations are those of PyTorch's own counter: products of convolutions, linear layers and attention, no biases, norms
or activations. The paper's "FLOPS" are multiply-adds (MACs), half of what is called FLOPs here.
"""

from __future__ import annotations

import argparse
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from io import StringIO
from itertools import takewhile
from pathlib import Path
from typing import Any

import torch
from monai.networks.nets import DiffusionModelUNet
from torch import nn
from torch.nn.modules.conv import _ConvNd
from torch.utils.flop_counter import FlopCounterMode

from sbldm.device import choose_device
from sbldm.errors import DataError, InputError, OutputError, StateError, finish
from sbldm.files import atomic_path, make_folder, read_json, sha256, write_csv, write_json
from sbldm.models import kind_of
from sbldm.networks import (
    GanGenerator,
    LatentUNet,
    SliceVAE,
    VolumeVAE,
    build_autoencoder,
    build_denoiser,
    build_discriminator,
    build_generator,
)
from sbldm.runs import Run, load_preset
from sbldm.synthesis.model import Model, Sampler
from sbldm.tumour.characteristics import NAMES

__all__ = ["Cost", "count", "measure", "measured", "model_costs", "paper_rows", "pixel_ddpm", "write_paper_costs"]

TOLERANCE = 0.01  # relative; what deviates less counts as reproduced
COSTS_FILE = "costs.json"  # of a run
SAMPLING = ("sampler", "steps", "eta", "guidance")
VARIANTS = (  # method, model, preset, sampling in place of the preset's
    ("SBLDM, DDIM 50", "sbldm", "paper", {}),
    ("SBLDM, DDPM 1000", "sbldm", "paper", {"sampler": "ddpm", "steps": 1000, "eta": 1.0}),
    ("SBLDM, 2-D diffusion", "sbldm_2d", "paper", {}),
    ("3D-LDM, as reported", "ldm3d", "paper", {}),
    ("3D-LDM, as trained by the authors", "ldm3d", "paper_trained", {}),
    ("3D-LDM, reduced", "ldm3d_reduced", "paper", {}),
    ("3D-LSGAN, as printed", "lsgan", "paper", {}),
    ("3D-LSGAN, as committed by the authors", "lsgan", "paper_committed", {}),
)


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


def _empty(*shape: int) -> torch.Tensor:
    """An input of batch 1 without content."""
    return torch.empty(1, *shape, device="meta")


def _channels(preset: dict[str, Any]) -> int:
    return len(preset["data"]["channels"]) + len(preset["data"]["labels"])


def model_costs(preset: dict[str, Any]) -> dict[str, Cost]:
    """What each part of a model costs for one volume of its working grid.

    Returns:
        By name of the part, where the model has it; nothing for a model without networks:

        `encode`: a whole volume to latents (all its slices, for an autoencoder of slices); the autoencoder's size.
        `step`: one evaluation of the denoiser on the latents of a volume; its size.
        `decode`: latents to a whole volume; the autoencoder's size.
        `sample`: noise to a volume: the steps that `sampling` asks for (twice as many evaluations with guidance) and
        the decoding; the size of denoiser and autoencoder, its encoder included. For a GAN one call of the generator.
        `discriminator`: one call on a volume. It plays no part in sampling and is not in the size of `sample`.
    """
    stages = kind_of(preset).stages
    volume = _empty(_channels(preset), *preset["grid"]["size"])
    with torch.device("meta"):
        if "gan" in stages:
            generator = build_generator(preset)
            costs = {"sample": count(generator, _empty(generator.noise))}
        else:
            costs = _latent_costs(preset, volume) if stages else {}
        for stage in stages:
            if "discriminator" in preset[stage]:
                costs["discriminator"] = count(build_discriminator(preset, stage), volume)
    return costs


def _latent_shape(preset: dict[str, Any]) -> tuple[int, ...]:
    """`(Z, H, W, D)` of the latents of a volume: an autoencoder of slices leaves the third axis as it is."""
    network = preset["autoencoder"]["network"]
    x, y, z = preset["grid"]["size"]
    factor = 2 ** (len(network["channels"]) - 1)
    sliced = preset["autoencoder"].get("kind", "slice") == "slice"
    return network["latent_channels"], x // factor, y // factor, z if sliced else z // factor


def _latent_costs(preset: dict[str, Any], volume: torch.Tensor) -> dict[str, Cost]:
    """`model_costs` of a latent diffusion model, for a volume `[1, C + L, X, Y, Z]`."""
    autoencoder, denoiser = build_autoencoder(preset), build_denoiser(preset)
    latents = _empty(*_latent_shape(preset))
    pixels, codes, positions = volume, latents, ()
    if isinstance(autoencoder, SliceVAE):  # every slice is one of a batch
        pixels, codes = (torch.movedim(whole[0], -1, 0) for whole in (volume, latents))
        positions = (torch.empty(len(codes)),)
    costs = {
        "encode": count(autoencoder, pixels, *positions, call="encode"),
        "step": count(denoiser, latents, _empty(), _empty(len(NAMES))),
        "decode": count(autoencoder, codes, *positions, call="decode"),
    }
    sampling = preset["sampling"]
    evaluations = sampling["steps"] * (1 if sampling["guidance"] == 1 else 2)
    return costs | {"sample": costs["step"].repeated(evaluations) + costs["decode"]}


# --- the paper's numbers ----------------------------------------------------------------------------------------------

UNITS = {"M": 1e6, "GMAC": 1e9, "TMAC": 1e12, "TFLOP": 1e12}
VOLUME, LATENTS = (2, 192, 192, 96), (6, 24, 24, 96)  # what the authors counted for
COARSEST = 6 * 6 * 24  # of those latents, on the last level of the U-Net


def pixel_ddpm() -> DiffusionModelUNet:
    """The 3-D diffusion model on voxels that the authors' notes list and nobody trains, on the meta device."""
    with torch.device("meta"):
        return DiffusionModelUNet(
            spatial_dims=3,
            in_channels=2,
            out_channels=2,
            num_res_blocks=2,
            channels=(64, 128, 256, 512, 512),
            attention_levels=(False, False, False, True, True),
            num_head_channels=32,
        )


def _transformers(blocks: int, width: int, voxels: int) -> Cost:
    """Transformer blocks on a level of so many voxels, as in medfusion, on which the authors built.

    Each holds 18 `width`^2 weights in 1-wide layers: into and out of the block 2, query, key, value and output 4, the
    gated perceptron 12. The products of attention itself have no parameters, and layer counters pass them over.
    """
    weights, biases = 18 * width**2, 15 * width
    return Cost(blocks * (weights + biases), blocks * (weights + biases), blocks * weights * voxels)


def _row(
    what: str,
    source: str,
    paper: float,
    unit: str,
    cost: Cost,
    network: str,
    how: str = "",
    compared: str = "counted",
) -> dict[str, Any]:
    scale = UNITS[unit]
    counted, true = (cost.counted, cost.parameters) if unit == "M" else (cost.macs, cost.flops)
    ours = {"counted": counted / scale, "true": true / scale}
    deviation = ours[compared] / paper - 1
    return {
        "what": what,
        "source": source,
        "paper": paper,
        "unit": unit,
        "network": network,
        **ours,
        "compared": compared,
        "deviation": deviation,
        "reproduced": abs(deviation) <= TOLERANCE,
        "how": how,
    }


def paper_rows() -> list[dict[str, Any]]:
    """Every size and work that the paper and its authors' notes print, beside what is counted here.

    Where the network that is trained here does not have the printed size, a second row shows the network that comes
    nearest. Nothing is built in memory.

    Returns:
        Rows of `what`; `source` (`paper`, `notes`: the authors' drafts, `decoded`: what their networks truly have);
        `paper`, the printed value in `unit`; `network`; `counted`, as the paper counts (parameters of convolutions,
        MACs); `true` (all parameters, FLOPs); which of the two is `compared`; its relative `deviation`; whether it is
        `reproduced` to 1 %; `how`: what it was counted on, and remarks.
    """
    with torch.device("meta"):
        return [*_sbldm_rows(), *_ldm3d_rows(), *_other_rows()]


def _sbldm_rows() -> Iterator[dict[str, Any]]:
    preset, name = load_preset("paper"), "preset sbldm/paper"
    autoencoder, costs = build_autoencoder(preset), model_costs(preset)
    one, two, volume = (count(autoencoder, torch.empty(n, 2, 192, 192), torch.empty(n)) for n in (1, 2, 96))
    encode = count(autoencoder, _empty(2, 192, 192), _empty(), call="encode")
    decode = count(autoencoder, _empty(6, 24, 24), _empty(), call="decode")
    step, both, drawn = costs["step"], costs["step"] + one, costs["step"].repeated(50)
    latents = "24x24x96 latents"
    yield _row("slice autoencoder", "notes", 27.082, "M", one, name)
    yield _row("slice autoencoder", "decoded", 27.093, "M", one, name, compared="true")
    yield _row("slice autoencoder, forward", "notes", 195.996, "GMAC", two, name, "two slices of 192x192")
    yield _row("slice autoencoder, forward", "decoded", 98.0, "GMAC", one, name, "one slice")
    yield _row("slice autoencoder, encode", "decoded", 36.8, "GMAC", encode, name, "one slice")
    yield _row("slice autoencoder, decode", "decoded", 61.2, "GMAC", decode, name, "one slice")
    yield _row("slice autoencoder, forward", "decoded", 9.41, "TMAC", volume, name, "the 96 slices of a volume")
    yield _row("SBLDM U-Net", "notes", 132.101, "M", step, name)
    yield _row("SBLDM U-Net", "decoded", 135.18, "M", step, name, compared="true")
    yield _row("SBLDM U-Net, one step", "notes", 523.735, "GMAC", step, name, latents)
    yield _row("SBLDM in all", "paper", 159.0, "M", both, name)
    yield _row("SBLDM in all", "decoded", 162.3, "M", both, name, compared="true")
    yield _row("SBLDM U-Net, DDIM 50", "decoded", 26.2, "TMAC", drawn, name, latents)
    yield _row("SBLDM, decode", "decoded", 5.9, "TMAC", costs["decode"], name, "a volume")
    yield _row("SBLDM, DDIM 50", "decoded", 64.0, "TFLOP", costs["sample"], name, "a volume", compared="true")


def _ldm3d_rows() -> Iterator[dict[str, Any]]:
    name, preset = "preset ldm3d/paper", load_preset("paper", "ldm3d")
    autoencoder = count(build_autoencoder(preset), _empty(*VOLUME))
    discriminator = count(build_discriminator(preset, "autoencoder"), _empty(*VOLUME))
    unet = count(build_denoiser(preset), _empty(*LATENTS), _empty())
    nearest = count(VolumeVAE(channels=(128, 256, 512, 512)), _empty(*VOLUME)) + _transformers(1, 512, 24 * 24 * 12)
    ours = "SBLDM's blocks in 3-D and a transformer"
    volume, latents = "a volume", "24x24x96 latents"
    trained_here = "MONAI's, trained here; it convolves more on the finest level"
    yield _row("3D-LDM autoencoder", "notes", 85.949, "M", autoencoder, name, trained_here)
    yield _row("3D-LDM autoencoder", "notes", 85.949, "M", nearest, ours, "[128, 256, 512, 512]")
    yield _row("3D-LDM autoencoder", "decoded", 85.96, "M", nearest, ours, compared="true")
    yield _row("3D-LDM autoencoder, forward", "notes", 15.324, "TMAC", autoencoder, name, f"{volume}; {trained_here}")
    yield _row("3D-LDM autoencoder, forward", "notes", 15.324, "TMAC", nearest, ours, volume)
    yield _row("3D-LDM discriminator", "notes", 14.745, "M", discriminator, name)

    ours = "SBLDM's U-Net of twice the width and five transformers"
    wide = _unet_with_transformers((128, 256, 512, 1024))
    shallow = "MONAI's halves between all levels, the authors' does not at first"
    yield _row("3D-LDM U-Net", "notes", 627.556, "M", unet, name)
    yield _row("3D-LDM U-Net", "notes", 627.556, "M", wide, ours, "[128, 256, 512, 1024]")
    yield _row("3D-LDM U-Net", "decoded", 649.9, "M", unet, name, compared="true")
    yield _row("3D-LDM U-Net, one step", "notes", 2.180, "TMAC", unet, name, f"{latents}; {shallow}")
    yield _row("3D-LDM U-Net, one step", "notes", 2.180, "TMAC", wide, ours, latents)
    yield _row("3D-LDM in all", "paper", 728.0, "M", autoencoder + discriminator + unet, name, "with discriminator")

    ours, reduced = "SBLDM's U-Net and five transformers", _unet_with_transformers((64, 128, 256, 512))
    name = "preset ldm3d_reduced/paper"
    unet = count(build_denoiser(load_preset("paper", "ldm3d_reduced")), _empty(*LATENTS), _empty())
    yield _row("reduced 3D-LDM U-Net", "notes", 156.922, "M", unet, name)
    yield _row("reduced 3D-LDM U-Net", "notes", 156.922, "M", reduced, ours)
    yield _row("reduced 3D-LDM U-Net", "decoded", 165.6, "M", unet, name, compared="true")
    yield _row("reduced 3D-LDM U-Net, one step", "notes", 545.149, "GMAC", unet, name, f"{latents}; {shallow}")
    yield _row("reduced 3D-LDM U-Net, one step", "notes", 545.149, "GMAC", reduced, ours, latents)

    name, costs = "preset ldm3d/paper_trained", model_costs(load_preset("paper_trained", "ldm3d"))
    code = "of the authors' code"
    yield _row("3D-LDM autoencoder, as trained", "decoded", 39.97, "M", costs["decode"], name, code, "true")
    yield _row("3D-LDM U-Net, as trained", "decoded", 135.05, "M", costs["step"], name, code, "true")
    yield _row("3D-LDM in all, as trained", "decoded", 175.0, "M", costs["sample"], name, code, "true")


def _unet_with_transformers(channels: Sequence[int]) -> Cost:
    """SBLDM's U-Net without requests, and a transformer behind each block of the last level and in the middle."""
    unet = LatentUNet(channels=channels, condition_size=0)
    return count(unet, _empty(*LATENTS), _empty()) + _transformers(5, channels[-1], COARSEST)


def _other_rows() -> Iterator[dict[str, Any]]:
    name, costs = "pixel_ddpm", count(pixel_ddpm(), _empty(*VOLUME), _empty())
    unet = LatentUNet(2, (64, 128, 256, 512, 512), (1, 2, 2, 2), condition_size=0)
    voxels = "2x192x192x96"
    yield _row("3-D DDPM on voxels", "notes", 268.214, "M", costs, name, "MONAI's, counted alone")
    yield _row("3-D DDPM on voxels", "decoded", 278.8, "M", costs, name, compared="true")
    yield _row("3-D DDPM on voxels, one step", "notes", 33.432, "TMAC", costs, name, f"{voxels}; it halves at once")
    ours, costs = "SBLDM's U-Net with a fifth level", count(unet, _empty(*VOLUME), _empty())
    yield _row("3-D DDPM on voxels, one step", "notes", 33.432, "TMAC", costs, ours, f"{voxels}; without attention")

    name, preset = "preset sbldm_2d/paper", load_preset("paper", "sbldm_2d")
    plane = "a plane of 224x448: 128 slice latents of 28x28"  # 100,352 pixels
    costs = count(build_denoiser(preset), _empty(6, 28, 28, 128), _empty(), _empty(len(NAMES)))
    yield _row("2-D diffusion U-Net", "notes", 45.247, "M", costs, name)
    yield _row("2-D diffusion U-Net", "decoded", 48.2, "M", costs, name, compared="true")
    yield _row("2-D diffusion U-Net, one step", "notes", 588.329, "GMAC", costs, name, plane)

    name, costs = "preset lsgan/paper", model_costs(load_preset("paper", "lsgan"))
    both = costs["sample"] + costs["discriminator"]
    yield _row("3D-LSGAN in all", "paper", 71.0, "M", both, name, "not the size of the committed code: what fits")
    name, costs = "preset lsgan/paper_committed", model_costs(load_preset("paper_committed", "lsgan"))
    code = "of the authors' code"
    yield _row("3D-LSGAN generator, committed", "decoded", 118.0, "M", costs["sample"], name, code, "true")
    yield _row("3D-LSGAN discriminator, committed", "decoded", 44.6, "M", costs["discriminator"], name, code, "true")


def _variant_rows() -> list[dict[str, Any]]:
    """Size and work of every method of the paper's size, in M and TMAC a volume; empty where it has no such part."""
    rows = []
    for method, model, name, sampling in VARIANTS:
        preset = load_preset(name, model)
        preset["sampling"] |= sampling
        latents = "x".join(map(str, _latent_shape(preset))) if "autoencoder" in preset else ""
        steps = preset["sampling"].get("steps", 1)
        rows.append(_variant_row(method, f"{model}/{name}", latents, steps, model_costs(preset)))
    step = count(pixel_ddpm(), _empty(*VOLUME), _empty())
    costs = {"step": step, "sample": step.repeated(1000)}
    return [*rows, _variant_row("3-D DDPM on voxels, never trained", "", "", 1000, costs)]


def _variant_row(method: str, preset: str, latents: str, steps: int, costs: dict[str, Cost]) -> dict[str, Any]:
    whole = costs["sample"]
    work = {f"{part}_tmac": costs[part].macs / 1e12 if part in costs else "" for part in ("encode", "step", "decode")}
    return {
        "method": method,
        "preset": preset,
        "latents": latents,
        "parameters_m": whole.parameters / 1e6,
        "counted_m": whole.counted / 1e6,
        "discriminator_m": costs["discriminator"].parameters / 1e6 if "discriminator" in costs else "",
        **work,
        "steps": steps,
        "sample_tmac": whole.macs / 1e12,
        "sample_tflop": whole.flops / 1e12,
    }


PAGE = """# What the methods cost

## The authors' numbers

The "FLOPS" of the paper and of its authors' notes are multiply-adds (MACs); their parameters leave out norms and the
embeddings of time, condition and position, and their two autoencoders are compared on two slices and on a whole volume.
`counted` is ours as they count (parameters of convolutions; MACs), `true` all parameters and FLOPs (2 for each MAC).
`deviation` is that of the one named under `compared`; a row within 1 % is reproduced. Sources: the paper, the authors'
notes, or `decoded`: what their networks truly have. Where the network that is trained here (a preset) is not of the
printed size, a second row shows what comes nearest: a reconstruction, counted and never trained. Its transformers are
those of medfusion, on which the authors built: 1-wide layers of 18 times the squared width.

{paper}

## One volume of 192x192x96 at the paper's size

Parameters: all that sampling needs, the autoencoder's encoder too; the discriminator serves training alone. Operations:
for one volume; `sample` is all steps and the decoding, TFLOP twice the TMAC. The latents of the 3D-LDM are smaller than
those of SBLDM, as its autoencoder halves the third axis too; the authors counted its U-Net on 24x24x96.

{models}
"""


def write_paper_costs(out: Path) -> list[Path]:
    """Write `costs_paper.csv` (`paper_rows`), `costs.csv` (every method at the paper's size) and `costs.md` (both).

    Raises:
        OutputError: the folder cannot be written to.
    """
    out = make_folder(Path(out))
    tables = {"paper": paper_rows(), "models": _variant_rows()}
    paths = [out / "costs_paper.csv", out / "costs.csv", out / "costs.md"]
    for path, rows in zip(paths, tables.values(), strict=False):
        write_csv(path, [{key: _rounded(value) for key, value in row.items()} for row in rows])
    with atomic_path(paths[2]) as temporary:
        temporary.write_text(PAGE.format(**{name: _markdown(rows) for name, rows in tables.items()}))
    return paths


def _rounded(value: Any) -> Any:
    """Six significant digits, never as a power of ten."""
    return f"{float(f'{value:.6g}'):.10g}" if isinstance(value, float) else value


def _markdown(rows: Sequence[dict[str, Any]]) -> str:
    def cell(name: str, value: Any) -> str:
        if name == "deviation":
            return f"{100 * value:+.2f} %"
        return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(_rounded(value))

    lines = [list(rows[0]), ["---"] * len(rows[0]), *([cell(*item) for item in row.items()] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


# --- measuring --------------------------------------------------------------------------------------------------------


def name_of(device: torch.device) -> str:
    """The name of a graphics card or processor, as its maker gives it."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    table = Path("/proc/cpuinfo")  # of Linux; Python's own answer is empty there
    lines = table.read_text().splitlines() if device.type == "cpu" and table.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or f"{platform.machine()} {device.type}"


def _memory(device: torch.device) -> tuple[int, int]:
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
    """Condition vectors `[rows, 9]` of tumours drawn like those of the training; NaN without requests."""
    if not model.conditional:
        return torch.full((rows, len(NAMES)), torch.nan)
    return torch.from_numpy(model.normaliser.encode(model.tumours.sample(rows, seed=0)))


def measure(
    run_dir: str | Path,
    device: torch.device,
    repeats: int = 5,
    batches: Sequence[int] = (1, 2, 4),
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
        sampling: `sampler`, `steps`, `eta`, `guidance` in place of the preset's.

    Returns:
        `device`, `threads`, `checkpoint_sha256`, `asked` (`sampling`), `sampler` (all settings), `repeats`, `seconds`
        (a volume at batch 1), `best_batch` and `best_seconds` (a volume at it), `peak_bytes` (at batch 1),
        `before_bytes` (before the model was loaded), `added_bytes` (the difference), and `batches`: `batch`, `seconds`
        and `peak_bytes` of each.

    Raises:
        StateError: nothing is trained there, or one volume does not fit into memory.
        InputError: the sampler does not take these values.
    """
    before, _ = _memory(device)
    model = Model.load(str(run_dir), device)
    sampler = model.sampler(_asked(sampling))
    rows = list(takewhile(bool, (_timed(model, sampler, device, n, repeats) for n in sorted({1, *batches}))))
    if not rows:
        raise StateError(f"{run_dir}: one volume does not fit into the memory of {name_of(device)}; try DEVICE=cpu.")
    best = min(rows, key=lambda row: row["seconds"])
    return {
        "device": name_of(device),
        "threads": torch.get_num_threads(),
        "checkpoint_sha256": model.sha256,
        "asked": _asked(sampling),
        "sampler": sampler.settings,
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
    return {"batch": batch, "seconds": statistics.median(seconds[1:]), "peak_bytes": _memory(device)[1]}


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def measured(
    run: Run,
    device_name: str = "",
    repeats: int = 5,
    batches: Sequence[int] = (1, 2, 4),
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
    path, stages = run.folder / COSTS_FILE, list(kind_of(run.preset).stages)
    checkpoint = run.checkpoint(stages[-1]) if stages else None
    key = {
        "checkpoint_sha256": sha256(checkpoint) if checkpoint and checkpoint.is_file() else "",
        "device": name_of(device),
        "asked": _asked(sampling),
    }
    kept = read_json(path)["measurements"] if path.is_file() else []
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
        command = [sys.executable, "-m", "sbldm.evaluation.costs", f"--run={run.folder}", f"--out={out}"]
        command += [f"--repeats={repeats}", f"--batches={','.join(map(str, batches))}"]
        command += [f"--{name}={value}" for name, value in asked.items()]
        environment = os.environ | {"DEVICE": str(device)}
        done = subprocess.run(command, env=environment, stderr=subprocess.PIPE, text=True, check=False)
        if not done.returncode:
            return read_json(out)
    said = next((line for line in reversed(done.stderr.splitlines()) if line.strip()), "out of memory?")
    for error in (InputError, DataError, StateError, OutputError):
        if error.exit_code == done.returncode:
            raise error(said.removeprefix("Error: "))
    raise StateError(f"{run.folder}: measuring ended with code {done.returncode} ({said}); try again.")


# --- command line -----------------------------------------------------------------------------------------------------


def _numbers(name: str, text: str) -> list[int]:
    if not all(part.strip().isdigit() and int(part) for part in text.split(",")):
        raise InputError(f"{name}={text}: must be whole numbers above 0, separated by commas.")
    return [int(part) for part in text.split(",")]


def command(arguments: argparse.Namespace) -> None:
    """Write the paper's tables, or measure a run: in this process with `--out`, else in a fresh one."""
    if bool(arguments.paper) == bool(arguments.run):
        raise InputError(
            "RUN or PAPER: name either a trained run (--run) or a folder for the paper's tables (--paper)."
        )
    if arguments.paper:
        print("\n".join(map(str, write_paper_costs(Path(arguments.paper).expanduser().absolute()))))
        return
    run, batches = Run.at(arguments.run), _numbers("BATCHES", arguments.batches)
    repeats = max(_numbers("REPEATS", arguments.repeats))
    sampling = {name: getattr(arguments, name) for name in SAMPLING}
    if arguments.out:
        found = measure(run.folder, choose_device(), repeats, batches, sampling)
        write_json(Path(arguments.out).expanduser().absolute(), found)
    else:
        found = measured(run, "", repeats, batches, sampling)
        print(
            f"{run.folder}: {found['seconds']:.3g} s a volume, {found['best_seconds']:.3g} s at batch "
            f"{found['best_batch']}; peak memory {found['peak_bytes'] / 1e9:.3g} GB; on {found['device']}."
        )


def parser() -> argparse.ArgumentParser:
    """All options."""
    top = argparse.ArgumentParser(
        "python -m sbldm.evaluation.costs", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    for name, default, text in (
        ("paper", "", "folder to write the paper's sizes and ours to"),
        ("run", "", "trained run to measure"),
        ("out", "", "file for the measurement alone (default: a fresh process, kept in RUN/costs.json)"),
        ("repeats", "5", "of which the median is taken (default: 5)"),
        ("batches", "1,2,4", "volumes drawn at once (default: 1,2,4)"),
        ("sampler", "", "ddim or ddpm; as the preset says when empty"),
        ("steps", "", "network evaluations"),
        ("eta", "", "share of fresh noise in ddim"),
        ("guidance", "", "1: the request alone; above 1: followed more strictly"),
    ):
        top.add_argument(f"--{name}", default=default, help=text)
    return top


def main() -> int:
    """Count or measure; what a user can mend is said in one line."""
    warnings.filterwarnings("ignore", category=UserWarning, module=r"monai|ignite|torch")
    arguments = parser().parse_args()
    return finish(lambda: command(arguments))


if __name__ == "__main__":
    sys.exit(main())
