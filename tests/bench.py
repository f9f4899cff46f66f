"""Speed of this machine, measured in one run: `make bench`.

Each step is timed as the median of several calls and printed beside its ratio to one fixed convolution, so that figures
from different machines can be compared.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from sbldm.cases.geometry import WorkingGrid
from sbldm.cases.layouts import Source, find_cases
from sbldm.cases.phantom import write_phantoms
from sbldm.cases.preflight import inspect_case
from sbldm.cases.prepare import prepare_case
from sbldm.diffusion import Schedule
from sbldm.evaluation.copies import Memory, fingerprint
from sbldm.evaluation.features import load_extractor
from sbldm.evaluation.similarity import ssim
from sbldm.evaluation.slices import slice_measures
from sbldm.evaluation.tumours import tumour_measures
from sbldm.evaluation.volumes import evaluation_grid, read_volume
from sbldm.networks import build_autoencoder, build_denoiser
from sbldm.runs import load_preset
from sbldm.synthesis import PairSampler
from sbldm.training import AutoencoderLoss, choose_device


def seconds(step: Callable[[], object], repeats: int = 5) -> float:
    """Median seconds of a call, after one that is not counted."""
    step()
    times = []
    for _ in range(repeats):
        begun = time.perf_counter()
        step()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        times.append(time.perf_counter() - begun)
    return statistics.median(times)


def main() -> None:
    """Time the steps of the preset `small`."""
    device, preset = choose_device(), load_preset("small")
    channels = len(preset["data"]["channels"]) + len(preset["data"]["labels"])
    x, y, z = preset["grid"]["size"]
    autoencoder, denoiser = build_autoencoder(preset).to(device), build_denoiser(preset).to(device)
    shape = (preset["autoencoder"]["network"]["latent_channels"], x // autoencoder.factor, y // autoencoder.factor, z)
    loss = AutoencoderLoss()

    slices = torch.rand(preset["autoencoder"]["batch_size"], channels, x, y, device=device) * 2 - 1
    latents = torch.randn(preset["diffusion"]["batch_size"], *shape, device=device)
    positions, condition = torch.arange(len(slices), device=device), torch.randn(1, 9, device=device)
    times = torch.randint(0, 1000, (len(latents),), device=device)
    reference = torch.nn.Conv2d(64, 64, 3, padding=1).to(device)
    sampler = PairSampler(Schedule.of_preset(preset), shape, preset["sampling"])

    def draw() -> np.ndarray:
        with torch.no_grad():
            return autoencoder.eval().decode_volume(sampler(condition, denoiser, [0])[0])

    with tempfile.TemporaryDirectory() as folder:
        write_phantoms(Path(folder), 1, shape=(240, 240, 155), spacing=1.0, progress=False)
        source = Source.from_config(**preset["data"])
        (case,) = find_cases(Path(folder), source)
        grid = WorkingGrid.from_config(**preset["grid"])
        with torch.no_grad():
            unit = seconds(lambda: reference(torch.zeros(16, 64, 64, 64, device=device)), 20)
        rows = {
            "pre-flight of a native case (240x240x155)": seconds(lambda: inspect_case(case, source), 3),
            "preparation of a native case": seconds(lambda: prepare_case(case, source, grid, preset["intensity"]), 3),
            "autoencoder, one iteration": seconds(
                lambda: loss(autoencoder.train()(slices, positions), slices).backward()
            ),
            "diffusion, one iteration": seconds(lambda: denoiser(latents, times).square().mean().backward()),
            "drawing and decoding one pair": seconds(draw, 3),
        }
        fine = evaluation_grid((1.25, 1.25, 1.615))
        volume, extractor = read_volume(case, source, fine), load_extractor("imagenet", device)
        prints = {str(k): np.roll(fingerprint(volume.image, volume.spacing), k, axis=1) for k in range(100)}
        memory = Memory.build(prints, {})
        rows |= {
            "evaluation: reading a native case": seconds(lambda: read_volume(case, source, fine), 3),
            "evaluation: features of 72 slices": seconds(lambda: extractor.extract(volume), 3),
            "evaluation: slices, tumour, low-resolution print": seconds(
                lambda: (slice_measures(volume), tumour_measures(volume), fingerprint(volume.image, volume.spacing)), 3
            ),
            "evaluation: SSIM of two images": seconds(lambda: ssim(volume.image, volume.image, volume.spacing), 3),
            "gate: nearest of 100 training cases": seconds(lambda: memory.nearest(prints["0"]), 3),
        }
    table = Table("step (preset small, one process)", "seconds", "in reference convolutions")
    for name, value in rows.items():
        table.add_row(name, f"{value:.3f}", f"{value / unit:.0f}")
    Console().print(table, f"reference: one 64-channel 3x3 convolution of 16 planes of 64x64, {1000 * unit:.1f} ms")


if __name__ == "__main__":
    main()
