"""Speed of this machine: `sbldm bench`, or `sbldm bench NAME ..` for some of its rows.

Each row is measured in a process of its own: the median of several calls, its ratio to one fixed convolution that is
timed before and after it (so that figures from different machines and hours can be compared), and the most memory the
process ever held. Networks have first weights: work does not depend on them. With `--history FILE` the rows are added
to a JSON list, one entry a run. `sbldm bench workers` measures how much two workers save, and `--tasks N` what tasks
cost Dask's scheduler, by N of them that sleep.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.networks.nets import AutoencoderKL, DiffusionModelUNet
from monai.networks.schedulers import DDIMScheduler
from rich.console import Console
from rich.table import Table

from sbldm.cases.geometry import NativeGrid, WorkingGrid
from sbldm.cases.inspection import inspect_case
from sbldm.cases.layouts import Case, Source, find_cases
from sbldm.cases.phantom import write_phantoms
from sbldm.cases.prepare import prepare_case
from sbldm.commands.scaling import shared_rows
from sbldm.diffusion import Schedule
from sbldm.evaluation.costs import memory_of, name_of
from sbldm.metrics.copies import Memory, fingerprint
from sbldm.metrics.features import load_extractor
from sbldm.metrics.similarity import ssim
from sbldm.metrics.slices import slice_measures
from sbldm.metrics.tumours import tumour_measures
from sbldm.metrics.volumes import evaluation_grid, read_volume
from sbldm.networks import StackVAE, build_autoencoder, build_denoiser
from sbldm.run.device import fast_bfloat16
from sbldm.run.errors import InputError, StateError
from sbldm.run.files import atomic_path, write_nifti
from sbldm.run.folder import load_preset
from sbldm.run.preset import Preset
from sbldm.run.tasks import asleep
from sbldm.run.workers import Workers, at_work
from sbldm.synthesis import PairSampler
from sbldm.synthesis.pairs import finish
from sbldm.training import AutoencoderLoss, MixedPrecision, choose_device

SLICES = Path(__file__).parents[3] / "tests" / "slices.yaml"  # `small` as it was: single slices, DDIM of 50 steps
Step = Callable[[], object]


class Parts:
    """Networks of a preset on a device, and inputs of the size that they see in training and drawing."""

    def __init__(self, name: str) -> None:
        self.device, self.preset = choose_device(), load_preset(name)
        self.autoencoder = build_autoencoder(self.preset).to(self.device)
        self.denoiser = build_denoiser(self.preset).to(self.device)
        self.shape, self.mixed = self.preset.latent_shape, MixedPrecision()

    def autoencoder_step(self, batch: int | None = None) -> Step:
        """Forward and backward pass of stage 1, with its loss."""
        values, size = self.preset.autoencoder, self.preset.grid.size
        depth, plane = values.depth, values.crop or size[:2]
        n = (batch or values.batch_size) * depth
        slices = torch.rand(n, self.autoencoder.in_channels, *plane, device=self.device) * 2 - 1
        more = [torch.arange(n, device=self.device) % size[2]]
        more += [depth] if isinstance(self.autoencoder, StackVAE) else []
        loss = AutoencoderLoss(dice_weight=0.5)
        return lambda: loss(self.mixed(slices, self.autoencoder.train(), *more), slices).backward()

    def diffusion_step(self, batch: int | None = None, encode: bool = False) -> Step:
        """Forward and backward pass of stage 2; with `encode` after encoding the volumes, as the authors did."""
        n = batch or self.preset.diffusion.batch_size
        latents = torch.randn(n, *self.shape, device=self.device)
        volume = np.random.default_rng(0).uniform(-1, 1, (self.autoencoder.in_channels, *self.preset.grid.size))
        times, condition = torch.zeros(n, device=self.device), torch.randn(n, 9, device=self.device)

        def step() -> None:
            if encode:
                for _ in range(n):
                    self.autoencoder.eval().encode_volume(volume.astype(np.float32), self.device)
            self.mixed(latents, self.denoiser.train(), times, condition).square().mean().backward()

        return step

    def draw(self, batch: int = 1) -> Step:
        """Noise to volumes, so many at once."""
        early, asked = self.denoiser, {"batch": batch}  # early weights of a guide are as dear
        sampler = PairSampler(Schedule.of_preset(self.preset), self.shape, self.preset.sampling, asked, early)
        condition = torch.randn(batch, 9, device=self.device)
        return lambda: [self.decode(z) for z in sampler(condition, self.denoiser.eval(), list(range(batch)))]

    @torch.no_grad()
    def decode(self, latents: torch.Tensor) -> np.ndarray:
        """A volume, decoded as `Model.decode` does."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=fast_bfloat16(self.device)):
            return self.autoencoder.eval().decode_volume(latents)

    @torch.no_grad()
    def evaluate(self) -> torch.Tensor:
        """One evaluation of the denoiser."""
        latents = torch.zeros(1, *self.shape, device=self.device)
        return self.denoiser.eval()(latents, torch.zeros(1, device=self.device), torch.zeros(1, 9, device=self.device))


def monai_pair() -> Step:
    """MONAI's own at about the size of `small`: 3-D `AutoencoderKL` and `DiffusionModelUNet`, DDIM of 50 steps."""
    device = choose_device()
    coder = AutoencoderKL(
        spatial_dims=3,
        in_channels=2,
        out_channels=2,
        num_res_blocks=(1, 1, 1),
        channels=(24, 48, 96),
        attention_levels=(False,) * 3,
        latent_channels=4,
        norm_num_groups=8,
        with_encoder_nonlocal_attn=False,
        with_decoder_nonlocal_attn=False,
    ).to(device)
    unet = DiffusionModelUNet(
        spatial_dims=3,
        in_channels=4,
        out_channels=4,
        channels=(48, 128, 256),
        attention_levels=(False,) * 3,
        num_res_blocks=1,
        num_head_channels=8,
        norm_num_groups=8,
    ).to(device)
    scheduler = DDIMScheduler(num_train_timesteps=1000)
    scheduler.set_timesteps(50)

    @torch.no_grad()
    def draw() -> torch.Tensor:
        z = torch.randn(1, 4, 16, 20, 12, device=device)
        for t in scheduler.timesteps:
            z, _ = scheduler.step(unet.eval()(z, torch.full((1,), int(t), device=device)), t, z)
        return coder.eval().decode(z)

    return draw


@contextmanager
def native_case(preset: Preset) -> Iterator[tuple[Case, Source, WorkingGrid]]:
    """A phantom on the grid of BraTS."""
    with tempfile.TemporaryDirectory() as folder:
        write_phantoms(Path(folder), 1, shape=(240, 240, 155), spacing=1.0, progress=False)
        source = Source.from_config(**dict(preset.data))
        yield find_cases(Path(folder), source)[0], source, WorkingGrid.from_config(**dict(preset.grid))


def case_steps(name: str) -> Iterator[Step]:
    """What happens to whole cases: preparation, the way out, and the evaluation's measures."""
    preset = load_preset("small")
    with native_case(preset) as (case, source, grid):
        if name == "pre-flight of a native case":
            yield lambda: inspect_case(case, source)
        elif name == "preparation of a native case":
            yield lambda: prepare_case(case, source, grid, preset.intensity)
        elif name == "bringing a pair to the native grid, and writing it":
            made = prepare_case(case, source, grid, preset.intensity)
            native, working = (NativeGrid.from_state(made["sidecar"][part]) for part in ("native", "working"))
            volume = 2 * np.concatenate([made["image"], made["occupancy"] / np.float32(255)]) - 1

            def write() -> None:
                pair = finish(volume, preset, native, working, made["sidecar"]["intensities"])
                with tempfile.TemporaryDirectory() as out:
                    for part, array in (("image", pair.image[0]), ("labels", pair.labels)):
                        write_nifti(Path(out) / f"{part}.nii.gz", array, native.affine(), scratch=Path(out))

            yield write
        else:
            fine = evaluation_grid((1.25, 1.25, 1.615))
            volume, extractor = read_volume(case, source, fine), load_extractor("imagenet", choose_device())
            prints = {str(k): np.roll(fingerprint(volume.image, volume.spacing), k, axis=1) for k in range(100)}
            memory = Memory.build(prints, {})
            yield {
                "evaluation: reading a native case": lambda: read_volume(case, source, fine),
                "evaluation: features of 72 slices": lambda: extractor.extract(volume),
                "evaluation: slices, tumour, low-resolution print": lambda: (
                    slice_measures(volume),
                    tumour_measures(volume),
                    fingerprint(volume.image, volume.spacing),
                ),
                "evaluation: SSIM of two images": lambda: ssim(volume.image, volume.image, volume.spacing),
                "gate: nearest of 100 training cases": lambda: memory.nearest(prints["0"]),
            }[name]


CASES = (
    "pre-flight of a native case",
    "preparation of a native case",
    "bringing a pair to the native grid, and writing it",
    "evaluation: reading a native case",
    "evaluation: features of 72 slices",
    "evaluation: slices, tumour, low-resolution print",
    "evaluation: SSIM of two images",
    "gate: nearest of 100 training cases",
)
NETWORKS: dict[str, Callable[[], Step]] = {
    "small: autoencoder, one iteration": lambda: Parts("small").autoencoder_step(),
    "small: diffusion, one iteration, stored latents": lambda: Parts("small").diffusion_step(),
    "small: diffusion, one iteration, encoding on the fly": lambda: Parts("small").diffusion_step(encode=True),
    "small: one evaluation of the denoiser": lambda: Parts("small").evaluate,
    "small: decoding a pair": lambda: (parts := Parts("small")) and (lambda: parts.decode(torch.zeros(parts.shape))),
    "small: drawing and decoding a pair alone": lambda: Parts("small").draw(),
    "small: drawing and decoding a pair of eight at once": lambda: Parts("small").draw(8),
    "small: the same of single slices, DDIM 50 (before)": lambda: Parts(str(SLICES)).draw(),
    "MONAI's AutoencoderKL, DiffusionModelUNet, DDIM 50": monai_pair,
    "fast: autoencoder, one iteration of a stack": lambda: Parts("fast").autoencoder_step(1),
    "fast: diffusion, one iteration of a volume": lambda: Parts("fast").diffusion_step(1),
    "fast: drawing and decoding a pair": lambda: Parts("fast").draw(),
    "paper: autoencoder, one iteration of a slice": lambda: Parts("paper").autoencoder_step(1),
    "paper: diffusion, one iteration of a volume": lambda: Parts("paper").diffusion_step(1),
}


def seconds(step: Step, repeats: int) -> float:
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


def measure(name: str) -> dict[str, Any]:
    """One row, in this process."""
    steps = case_steps(name) if name in CASES else iter([NETWORKS[name]()])
    device = choose_device()
    reference, planes = torch.nn.Conv2d(64, 64, 3, padding=1).to(device), torch.zeros(16, 64, 64, 64, device=device)
    with torch.no_grad():
        unit = [seconds(lambda: reference(planes), 10)]
    for step in steps:
        found = seconds(step, 2 if name.startswith(("paper", "fast")) else 5)
    with torch.no_grad():
        unit.append(seconds(lambda: reference(planes), 10))
    found /= 8 if name.endswith("of eight at once") else 1
    return {"name": name, "seconds": found, "ratio": found / statistics.mean(unit), "peak_bytes": memory_of(device)[1]}


def run(rows: Sequence[str] = (), history: Path | None = None, here: str = "") -> None:
    """Measure rows, each in a process of its own, and print them.

    Args:
        rows: how their names begin; all when empty.
        history: JSON list to add them to.
        here: one row, which is measured in this process and printed as JSON.

    Raises:
        InputError: no row begins like that (they are listed).
    """
    if here:
        print(json.dumps(measure(here)))
        return
    if any(row.startswith("workers") for row in rows):
        table = Table("row", "one core, s", "one worker, s", "two workers, s", "one worker / two")
        found = [row for row in shared_rows() if row["name"].startswith(tuple(rows))]
        for row in found:
            table.add_row(row["name"], *(f"{row[key]:.3g}" for key in ("core", "one", "seconds", "ratio")))
        _finish(table, found, history)
        return
    wanted = [name for name in (*CASES, *NETWORKS) if not rows or name.startswith(tuple(rows))]
    wanted = [name for name in wanted if SLICES.is_file() or "(before)" not in name]  # it lies beside the tests
    if not wanted:
        raise InputError(f"{' '.join(rows)}: no row begins like that; choose from {', '.join((*CASES, *NETWORKS))}.")
    table, found = Table("row", "seconds", "in reference convolutions", "peak memory, GB"), []
    for name in wanted:
        done = subprocess.run([sys.executable, "-m", "sbldm", "bench", "--here", name], capture_output=True, text=True)
        if done.returncode:
            table.add_row(name, "failed", (done.stderr.strip().splitlines() or ["killed"])[-1], "")
            continue
        row = json.loads(done.stdout.splitlines()[-1])
        found.append(row)
        table.add_row(name, f"{row['seconds']:.3f}", f"{row['ratio']:.0f}", f"{row['peak_bytes'] / 1e9:.1f}")
    _finish(table, found, history)


def _finish(table: Table, found: Sequence[dict[str, Any]], history: Path | None) -> None:
    """Print rows, and add them to a history."""
    device = choose_device()
    Console().print(table, f"on {name_of(device)}, {torch.get_num_threads()} threads")
    if history:
        known = json.loads(history.read_text()) if history.is_file() else []
        entry = {"date": time.strftime("%Y-%m-%d"), "device": name_of(device), "threads": torch.get_num_threads()}
        with atomic_path(history) as temporary:
            temporary.write_text(json.dumps([*known, entry | {"torch": torch.__version__, "rows": found}], indent=1))


def simulate(tasks: int, workers: int, cluster: str = "", sleep: float = 0.01) -> dict[str, float]:
    """Give a scheduler tasks that only sleep: what each costs it, and what a worker waits for the next one.

    Args:
        tasks: their number.
        workers: processes of this machine.
        cluster: in place of these, see `at_work`.
        sleep: seconds of a task at work.

    Returns:
        `tasks`, `workers`, `seconds` in all, `tasks_a_second`, `busy` (share of the workers' time that they slept in),
        and `peak_gb` of this process, which holds the scheduler when `cluster` is empty.
    """
    with at_work(cluster, None), Workers(workers, here=False) as pool:
        count = len(set(pool.map(asleep, [0.5] * 4 * workers, "Starting workers", "task")))
        begun = time.perf_counter()
        done = pool.map(asleep, [sleep] * tasks, "Sleeping tasks", "task")
        taken = time.perf_counter() - begun
    if len(done) != tasks:
        raise StateError(f"{len(done)} of {tasks} tasks came back.")
    found = {"tasks": tasks, "workers": count, "seconds": taken, "tasks_a_second": tasks / taken}
    return found | {"busy": sleep * tasks / (taken * count), "peak_gb": memory_of(torch.device("cpu"))[1] / 1e9}
