"""The sizes and work that the paper and its authors' notes print, beside what is counted here, without memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from monai.networks.nets import DiffusionModelUNet

from sbldm.evaluation.costs import Cost, count, empty, model_costs
from sbldm.networks import (
    LatentUNet,
    VolumeVAE,
    build_autoencoder,
    build_denoiser,
    build_discriminator,
)
from sbldm.run.files import atomic_path, make_folder, write_csv
from sbldm.run.folder import load_preset
from sbldm.tumour.characteristics import NAMES

__all__ = ["paper_rows", "pixel_ddpm", "write_paper_costs"]

TOLERANCE = 0.01  # relative; what deviates less counts as reproduced
VARIANTS = (  # method, model, preset, sampling in place of the preset's
    ("SBLDM, DDIM 50", "sbldm", "paper", {}),
    ("SBLDM, preset `fast`", "sbldm", "fast", {}),
    ("SBLDM, four channels, three tissues", "sbldm", "paper_multimodal", {}),
    ("SBLDM, DDPM 1000", "sbldm", "paper", {"sampler": "ddpm", "steps": 1000, "eta": 1.0}),
    ("SBLDM, 2-D diffusion", "sbldm_2d", "paper", {}),
    ("3D-LDM, as reported", "ldm3d", "paper", {}),
    ("3D-LDM, as trained by the authors", "ldm3d", "paper_trained", {}),
    ("3D-LDM, reduced", "ldm3d_reduced", "paper", {}),
    ("3D-LSGAN, as printed", "lsgan", "paper", {}),
    ("3D-LSGAN, as committed by the authors", "lsgan", "paper_committed", {}),
)


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
    encode = count(autoencoder, empty(2, 192, 192), empty(), call="encode")
    decode = count(autoencoder, empty(6, 24, 24), empty(), call="decode")
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
    autoencoder = count(build_autoencoder(preset), empty(*VOLUME))
    discriminator = count(build_discriminator(preset, "autoencoder"), empty(*VOLUME))
    unet = count(build_denoiser(preset), empty(*LATENTS), empty())
    nearest = count(VolumeVAE(channels=(128, 256, 512, 512)), empty(*VOLUME)) + _transformers(1, 512, 24 * 24 * 12)
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
    unet = count(build_denoiser(load_preset("paper", "ldm3d_reduced")), empty(*LATENTS), empty())
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
    return count(unet, empty(*LATENTS), empty()) + _transformers(5, channels[-1], COARSEST)


def _other_rows() -> Iterator[dict[str, Any]]:
    name, costs = "pixel_ddpm", count(pixel_ddpm(), empty(*VOLUME), empty())
    unet = LatentUNet(2, (64, 128, 256, 512, 512), (1, 2, 2, 2), condition_size=0)
    voxels = "2x192x192x96"
    yield _row("3-D DDPM on voxels", "notes", 268.214, "M", costs, name, "MONAI's, counted alone")
    yield _row("3-D DDPM on voxels", "decoded", 278.8, "M", costs, name, compared="true")
    yield _row("3-D DDPM on voxels, one step", "notes", 33.432, "TMAC", costs, name, f"{voxels}; it halves at once")
    ours, costs = "SBLDM's U-Net with a fifth level", count(unet, empty(*VOLUME), empty())
    yield _row("3-D DDPM on voxels, one step", "notes", 33.432, "TMAC", costs, ours, f"{voxels}; without attention")

    name, preset = "preset sbldm_2d/paper", load_preset("paper", "sbldm_2d")
    plane = "a plane of 224x448: 128 slice latents of 28x28"  # 100,352 pixels
    costs = count(build_denoiser(preset), empty(6, 28, 28, 128), empty(), empty(len(NAMES)))
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
        latents = "x".join(map(str, getattr(preset, "latent_shape", ())))
        steps = sampling.get("steps", getattr(preset.sampling, "steps", 1))
        rows.append(_variant_row(method, f"{model}/{name}", latents, steps, model_costs(preset, sampling)))
    step = count(pixel_ddpm(), empty(*VOLUME), empty())
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
