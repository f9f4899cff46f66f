"""Whether a training fits into memory: counted on the meta device before it starts, where tensors have no content."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sbldm.networks import (
    SliceVAE,
    StackVAE,
    build_autoencoder,
    build_denoiser,
    build_discriminator,
    build_generator,
    build_refiner,
    sparing,
)
from sbldm.run import group
from sbldm.run.errors import InputError
from sbldm.run.folder import PRESETS, load_preset
from sbldm.run.preset import Preset
from sbldm.run.room import gigabytes

__all__ = ["LiveBytes", "check_memory", "training_bytes"]

Step = Callable[[], torch.Tensor]

HALVED = 0.6  # share of the bytes in single precision that a training in bfloat16 takes: weights and norms stay whole


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of all tensors that live at once while it is in force; `peak` is the most that ever did."""

    def __init__(self) -> None:
        super().__init__()
        self.now, self.peak = 0, 0
        self._known: set[int] = set()

    def _add(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key not in self._known:
            self._known.add(key)
            self.now += size
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._drop, key, size)

    def _drop(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call an operation and count what it makes."""
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, torch.Tensor):
                self._add(leaf)
        return out


def training_bytes(preset: Preset, stage: str, pieces: int = 1, checkpointing: bool = False, processes: int = 1) -> int:
    """Bytes of one iteration of a training in single precision, without what the device's libraries take themselves.

    Weights, gradients, both moments of Adam, the moving average where there is one, and every activation that the
    backward pass needs.

    Args:
        preset: of the run.
        stage: one of `PARTS`.
        pieces, checkpointing: see `sparing`.
        processes: that share a batch; what one of them needs is counted.
    """
    own = "diffusion" if stage == "regions" else stage
    values = preset.stage(own)
    batch = values.batch_size // processes
    if pieces > 1:  # however many there are, one is at work at a time; two are counted faster
        batch, pieces = min(batch, 2 * -(-batch // pieces)), 2
    if batch != values.batch_size:
        preset = preset.but(**{own: values.but(batch_size=batch)})
    with torch.device("meta"):
        networks, steps = PARTS[stage](preset)
        sparing(networks[0], pieces, checkpointing)
        weights = sum(4 * p.numel() for network in networks for p in network.parameters())
        peak = max(_peak(step) for step in steps)
    return peak + (4 if stage != "autoencoder" else 3) * weights


def _peak(step: Step) -> int:
    with LiveBytes() as live:
        step().backward()
    return live.peak


def _autoencoder(preset: Preset) -> tuple[list[torch.nn.Module], list[Step]]:
    """The networks of stage 1, and the loss of an iteration of each of its phases."""
    values, network = preset.autoencoder, build_autoencoder(preset)
    if not isinstance(network, SliceVAE):
        volumes = torch.zeros(values.batch_size, network.in_channels, *preset.grid.size)
        discriminator = build_discriminator(preset, "autoencoder")

        def volume_step() -> torch.Tensor:
            drawn = network(volumes)[0]
            return drawn.square().mean() + discriminator(drawn)[-1].square().mean()

        return [network, discriminator], [volume_step]
    depth, plane = values.depth, values.crop or preset.grid.size[:2]
    slices = torch.zeros(values.batch_size * depth, network.in_channels, *plane)
    position = torch.zeros(len(slices), dtype=torch.long)

    def step() -> torch.Tensor:
        stacked = [depth] if isinstance(network, StackVAE) else []
        return network(slices, position, *stacked)[0].square().mean()

    return [network], [step]


def _diffusion(preset: Preset) -> tuple[list[torch.nn.Module], list[Step]]:
    network, batch = build_denoiser(preset), preset.diffusion.batch_size
    latents, times = torch.zeros(batch, *preset.latent_shape), torch.zeros(batch)
    size = network.built.get("condition_size", 0)
    return [network], [lambda: network(latents, times, torch.zeros(batch, size)).square().mean()]


def _gan(preset: Preset) -> tuple[list[torch.nn.Module], list[Step]]:
    network, discriminator = build_generator(preset), build_discriminator(preset, "gan")
    noise = torch.zeros(preset.gan.batch_size, network.noise)
    return [network, discriminator], [lambda: discriminator(network(noise))[-1].square().mean()]


def _refiner(preset: Preset) -> tuple[list[torch.nn.Module], list[Step]]:
    network, values = build_refiner(preset), preset.refiner
    images, decoded = (torch.zeros(values.batch_size, n, *values.plane) for n in (network.images, preset.all_channels))
    return [network], [lambda: network(images, torch.zeros(len(images)), decoded).square().mean()]


PARTS = {
    "autoencoder": _autoencoder,
    "diffusion": _diffusion,
    "regions": _diffusion,
    "refiner": _refiner,
    "gan": _gan,
}


def check_memory(
    preset: Preset, stage: str, device: torch.device, mixed: bool, network: torch.nn.Module | None = None
) -> None:
    """Make sure that a training fits into the memory that is free; without a word where nobody knows how much is.

    Args:
        preset: of the run.
        stage: one of `PARTS`.
        device: where it will be.
        mixed: whether it computes in bfloat16.
        network: that is trained, which may be `sparing`.

    Raises:
        InputError: what it needs is not free; names options and a preset that fit.
    """
    share = 1
    if device.type == "cpu" and (share := group.local_size()) > 1 and group.rank() % share:
        return  # the first process counts for all of a machine
    pieces, blocks = getattr(network, "pieces", 1), network.modules() if network is not None else ()
    checkpointing = any(getattr(block, "checkpointing", False) for block in blocks)

    def bytes_of(**spared: Any) -> float:
        return training_bytes(preset, stage, **spared, processes=group.size()) * share * (HALVED if mixed else 1)

    free, needed = _free_bytes(device), bytes_of(pieces=pieces, checkpointing=checkpointing)
    if free is None or needed <= free:
        return
    where = f"the {stage} of the preset '{preset.name}' needs about {gigabytes(needed)} of memory to train"
    spared = _spared(preset, stage, free, bytes_of)
    raise InputError(f"{where}, {gigabytes(free)} are free on {device.type}; {spared}{_mend(preset, free, mixed)}.")


def _spared(preset: Preset, stage: str, free: int, bytes_of: Callable[..., float]) -> str:
    """The first of the options that spare memory with which it fits, if any."""
    batch = preset.stage("diffusion" if stage == "regions" else stage).batch_size // group.size()
    ways: list[dict[str, Any]] = [{"checkpointing": True}]
    ways += [{"pieces": n} for n in range(2, batch + 1) if batch % n == 0]
    for way in [*ways, {"pieces": batch, "checkpointing": True}]:
        try:
            needed = bytes_of(**way)
        except InputError:  # a network that cannot
            continue
        if needed <= free:
            words = ["--checkpointing"] if "checkpointing" in way else []
            words += [f"--accumulate {way['pieces']}"] if "pieces" in way else []
            return f"add {' '.join(words)} ({gigabytes(needed)}), or "
    return ""


def _mend(preset: Preset, free: int, mixed: bool) -> str:
    """What does fit: a preset of this program in a new run, else a smaller batch."""
    sizes = {}
    for name in sorted(path.stem for path in PRESETS.glob("*.yaml")):
        try:
            other = load_preset(name, preset.model)
        except InputError:  # not every model has every preset
            continue
        if (len(other.data.channels) > 1) != (len(preset.data.channels) > 1):
            continue  # of other data
        sizes[name] = max(training_bytes(other, stage) for stage in other.stages) * (HALVED if mixed else 1)
    fitting = [
        name for name, needed in sizes.items() if needed <= free and not name.endswith("demo") and name != preset.name
    ]
    if not fitting:
        return "lower batch_size or the networks' channels in a preset of your own, or free memory"
    best = max(fitting, key=sizes.__getitem__)
    return f"take a new run with --preset {best} ({gigabytes(sizes[best])}), or lower batch_size in your own preset"


def _free_bytes(device: torch.device) -> int | None:
    """Memory that is free on a device; None where nobody says."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    table = Path("/proc/meminfo")  # of Linux
    if device.type != "cpu" or not table.is_file():
        return None
    fields = dict(line.split(":", 1) for line in table.read_text().splitlines() if ":" in line)
    return int(fields["MemAvailable"].split()[0]) * 1024 if "MemAvailable" in fields else None
