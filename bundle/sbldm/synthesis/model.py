"""A trained model: its networks and every constant, from the checkpoints of a run alone."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.inferers import Inferer
from torch import nn

from sbldm.cases.geometry import NativeGrid, WorkingGrid
from sbldm.cases.intensity import describe_written, written_by
from sbldm.cases.layouts import Source
from sbldm.cases.lists import read_lists
from sbldm.diffusion import SAMPLERS, SOLVERS, SPACINGS, Noise, Schedule, guided, time_steps
from sbldm.networks import SliceVAE, VolumeVAE, build_autoencoder, build_denoiser, build_generator
from sbldm.run.device import choose_precision, fast_bfloat16, same_sums
from sbldm.run.errors import InputError, StateError
from sbldm.run.files import reading, sha256
from sbldm.run.folder import Run, within_regions
from sbldm.run.limits import NOISIEST
from sbldm.run.models import MODELS, refuse_requests
from sbldm.run.preset import Preset, Sampling
from sbldm.training.cases import measure_cases
from sbldm.training.checkpoints import load_checkpoint, reading_checkpoint, require_same, unfinished
from sbldm.training.latents import load_autoencoder
from sbldm.training.weights import Weights
from sbldm.tumour.normaliser import Normaliser
from sbldm.tumour.requests import TumourModel

__all__ = ["Model", "OneStep", "PairSampler", "Sampler", "row_noise"]


@dataclass(frozen=True)
class Model:
    """A trained model, ready to draw.

    Attributes:
        network: what the sampler evaluates, on its device: the denoiser with averaged weights, or a GAN's generator.
        autoencoder: decodes latents; None for a GAN, which draws volumes.
        preset: the preset it was trained with.
        constants: what was measured on the training cases (see `LatentStore` and `measure_cases`).
        sha256: of the checkpoint of its last stage.
        precision: of `choose_precision`, for the decoding. It goes volume by volume and so is the same in any batch;
            the denoiser, whose rounding would follow the batch, keeps single precision.
        early: the denoiser with the weights of an early stage of its training, where they were kept.
        origin: of weights from elsewhere, or that its training went on from, what they were trained on
            (`Weights.origin`); else None.
    """

    network: nn.Module
    autoencoder: SliceVAE | VolumeVAE | None
    preset: Preset
    constants: dict[str, Any]
    sha256: str
    precision: str = "float32"
    early: nn.Module | None = None
    origin: dict[str, Any] | None = None

    @classmethod
    def load(
        cls, run_dir: str, device: torch.device, regions: bool = False, weights: str | Path | None = None
    ) -> Model:
        """Load the best checkpoints of a run; with `regions` of the network that draws within regions of real brains.

        Args:
            run_dir: run folder; with `weights` one that need not be prepared.
            device: for the networks.
            regions: as above; the network of `weights` does both.
            weights: file of a generator from elsewhere, or "shipped" (see `Weights`), in place of the run's own.

        Raises:
            StateError: one is missing (the command that trains it is named), or they do not belong together.
            InputError: `weights` is no such file, or has other channels or labels than the run.
        """
        run = Run.at(run_dir)
        if weights:
            return cls._of_weights(Weights.read(weights), run, device, regions)
        stages = run.preset.stages
        if not stages:
            raise StateError(f"{run.folder}: the model {run.preset.model} has no network to load.")
        if regions:
            within_regions(run.preset)  # says so when it has none
        last = "regions" if regions else stages[-1]
        path = run.checkpoint(last)
        content = load_checkpoint(path, last)
        require_same(path, content, run.preset, ("data", "grid", "intensity", *stages, last))
        trained = within_regions(content["preset"]) if regions else content["preset"]
        if so_far := unfinished(run, last):
            print(f"Warning: the {last} model of {run.folder} is half-trained: {so_far}.")
        autoencoder = load_autoencoder(run, device) if "autoencoder" in stages else None
        if autoencoder and sha256(run.checkpoint("autoencoder")) != content["constants"]["autoencoder_sha256"]:
            raise StateError(
                f"{path}: trained on the latents of another autoencoder; remove {path.parent} "
                f"{run.latents} and train again."
            )

        def network(weights: dict[str, torch.Tensor]) -> nn.Module:
            built = _denoiser(trained, content["constants"]) if autoencoder else build_generator(trained)
            with reading_checkpoint(path):
                built.load_state_dict(weights)
            return built.to(device).eval().requires_grad_(False)

        early = network(content["early"]) if content.get("early") else None
        constants, precision = content["constants"], choose_precision()
        origin = constants.get("origin")
        return cls(network(content["network"]), autoencoder, trained, constants, sha256(path), precision, early, origin)

    @classmethod
    def _of_weights(cls, weights: Weights, run: Run, device: torch.device, regions: bool) -> Model:
        """A generator from one file; beside prepared cases its pairs have their grid and intensities."""
        trained = within_regions(weights.preset)
        if not regions:
            trained = trained.model_copy(update={"sampling": weights.preset.sampling})
        constants, grid = weights.constants, WorkingGrid.from_config(**dict(trained.grid))
        if run.preset_file.is_file():
            theirs, own = (
                f"{', '.join(p.data.channels)} and {', '.join(p.data.labels)}" for p in (trained, run.preset)
            )
            if theirs != own:
                raise InputError(
                    f"--weights {weights.path}: draws {theirs}, and the cases of {run.folder} have {own}; train a "
                    "generator on these cases."
                )
            measured = measure_cases(run, read_lists(run.folder))
            native, own = (NativeGrid.from_state(measured["grids"][name]) for name in ("native", "working"))
            placed = grid.placed(own.centre, own.direction)
            constants = constants | {"grids": {"native": native.state(), "working": placed.state()}}
            if run.preset.intensity.percentiles == trained.intensity.percentiles:
                constants |= {key: measured[key] for key in ("intensities", "written")}
        networks = []
        with reading(weights.path, "it is damaged; restore it from a copy", remove=False, error=InputError):
            for part, network in (
                ("autoencoder", build_autoencoder(trained)),
                ("network", _denoiser(trained, constants)),
            ):
                network.load_state_dict(weights.states[part])
                networks.append(network.to(device).eval().requires_grad_(False))
        autoencoder, denoiser = networks
        return cls(denoiser, autoencoder, trained, constants, weights.sha256, choose_precision(), origin=weights.origin)

    @property
    def conditional(self) -> bool:
        """Whether it can be asked for a tumour."""
        return MODELS[self.preset.model].conditional

    def sampler(self, overrides: dict[str, Any] | None = None) -> Sampler:
        """What draws latents (or a GAN's noise) for it; `overrides` take the place of the preset's sampling values.

        Raises:
            InputError: values it cannot take.
        """
        given = {name: value for name, value in (overrides or {}).items() if value is not None}
        if self.autoencoder is None:
            refuse_requests(self.preset.model, (), {k: v for k, v in given.items() if k != "batch"})
            return OneStep(self.network.noise, given.get("batch", 1))
        if not self.conditional:
            refuse_requests(self.preset.model, (), {k: v for k, v in given.items() if k in ("guidance", "guide")})
        return PairSampler(self.schedule, self.latent_shape, self.preset.sampling, given, self.early)

    @property
    def schedule(self) -> Schedule:
        """The forward process of the training."""
        return Schedule.of_preset(self.preset)

    @property
    def lineage(self) -> dict[str, str]:
        """Names of the training cases and the content hash of each, which the pairs carry along."""
        return self.constants["content"]

    @property
    def tumours(self) -> TumourModel:
        """Joint model of the training tumours."""
        return TumourModel.from_state(self.constants["tumours"])

    @property
    def normaliser(self) -> Normaliser:
        """From characteristics to condition vectors."""
        return Normaliser.from_state(self.constants["normaliser"])

    @property
    def native(self) -> NativeGrid:
        """The grid of the training files, in which pairs are written."""
        return NativeGrid.from_state(self.constants["grids"]["native"])

    @property
    def working(self) -> NativeGrid:
        """Where the working grid lies in it."""
        return NativeGrid.from_state(self.constants["grids"]["working"])

    @property
    def source(self) -> Source:
        """Channels and labels of its pairs."""
        return Source.from_config(**dict(self.preset.data))

    @property
    def intensities(self) -> dict[str, str]:
        """In what intensities its pairs are written, by channel."""
        return describe_written(written_by(self.constants), self.preset.data.channels)

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """`(Z, H, W, D)`."""
        return tuple(self.constants["latent_shape"])

    def encode(self, volume: np.ndarray) -> torch.Tensor:
        """A volume `[C + L, X, Y, Z]` in [-1, 1] to standardised latents `[Z, H, W, D]`, on the network's device."""
        device = next(self.network.parameters()).device
        with same_sums(device):
            latents = torch.from_numpy(self.autoencoder.encode_volume(volume, device)[0]).to(device)
        mean, std = (latents.new_tensor(self.constants[name]) for name in ("latent_mean", "latent_std"))
        return (latents - mean) / std.view(-1, 1, 1, 1)

    @torch.no_grad()
    def decode(self, latents: torch.Tensor) -> np.ndarray:
        """Standardised latents `[Z, H, W, D]` (a GAN: noise) to a volume `[C + L, X, Y, Z]` in [-1, 1]."""
        if self.autoencoder is None:
            with same_sums(latents.device):
                return self.network(latents[None])[0].cpu().numpy()
        mean, std = (latents.new_tensor(self.constants[name]) for name in ("latent_mean", "latent_std"))
        fast = self.precision == "auto" and fast_bfloat16(latents.device)
        with same_sums(latents.device), torch.autocast(latents.device.type, torch.bfloat16, enabled=fast):
            return self.autoencoder.decode_volume(latents * std.view(-1, 1, 1, 1) + mean)


def _denoiser(trained: Preset, constants: Mapping[str, Any]) -> nn.Module:
    """Stage 2 as it was trained: from before labels told shares, on the nine characteristics alone."""
    return build_denoiser(trained, len(constants["normaliser"]["mean"]))


def row_noise(shape: Sequence[int], seeds: Sequence[int], attempts: Sequence[int], device: torch.device) -> Noise:
    """The noise of each row from a generator of its own, on the CPU, so that it is the same on every device."""
    states = [_state(s, a) for s, a in zip(seeds, attempts, strict=True)]
    generators = [torch.Generator().manual_seed(state) for state in states]

    def draw(k: int) -> torch.Tensor:
        return torch.stack([torch.randn(tuple(shape), generator=g) for g in generators]).to(device)

    return draw


def _state(*numbers: int) -> int:
    """The seed of a generator, of several numbers."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> np.uint64(1))


class OneStep(Inferer):
    """MONAI inferer of a GAN: the noise `[B, noise]` of each seed and attempt; `Model.decode` makes volumes of it."""

    def __init__(self, noise: int, batch: int = 1) -> None:
        super().__init__()
        self.latent_shape, self.settings, self.batch = (noise,), {"sampler": "gan", "steps": 1}, batch

    def __call__(
        self,
        inputs: torch.Tensor,
        network: torch.nn.Module,
        seeds: Sequence[int],
        attempts: Sequence[int] | None = None,
        places: Sequence[int] | None = None,
    ) -> torch.Tensor:
        """As `PairSampler`; the condition vectors and places play no part."""
        return row_noise(self.latent_shape, seeds, attempts or [0] * len(seeds), inputs.device)(0)


class PairSampler(Inferer):
    """MONAI inferer from condition vectors to latents; a row depends on its condition, seed and attempt alone.

    To the bit: arithmetic libraries choose their ways, and so the rounding, by the number of rows. So the network
    always sees `batch` of them, a group that is not full filled up; and where it is told `places`, each row always at
    the same place among them (at another one a voxel here and there differs by one unit).

    Args:
        schedule: forward process of the training.
        latent_shape: `(Z, H, W, D)`.
        preset: `sampling` of the preset; unasked is the `guide` in place of early where there are no early weights.
        overrides: values that take their place (None leaves the preset's, as far as another sampler can take it).
        early: the network with its early weights, for a `guide` of that name.

    Raises:
        InputError: an unknown sampler, or values it cannot take.
    """

    def __init__(
        self,
        schedule: Schedule,
        latent_shape: Sequence[int],
        preset: Sampling,
        overrides: dict[str, Any] | None = None,
        early: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.early = early
        given = {name: value for name, value in (overrides or {}).items() if value is not None}
        if given.get("sampler") == "ddpm":
            given = {"steps": schedule.steps, "eta": 1.0} | given
        elif given.get("sampler") in SOLVERS:
            given = {"eta": 0.0} | given
        self.settings: dict[str, Any] = dict(preset) | given
        self.batch = self.settings.pop("batch")
        self.schedule, self.latent_shape = schedule, tuple(latent_shape)
        sampler = self.settings["sampler"]
        if sampler not in SAMPLERS:
            raise InputError(f"--sampler {sampler}: unknown; choose one of {', '.join(SAMPLERS)}.")
        try:
            self.settings |= {"steps": int(self.settings["steps"])}
            time_steps(schedule, self.settings["steps"])
            if sampler == "ddpm" and self.settings["steps"] != schedule.steps:
                raise ValueError(f"sampler ddpm needs all {schedule.steps} steps; take another sampler for fewer")
        except (ValueError, TypeError, OverflowError) as error:
            raise InputError(f"--steps {self.settings['steps']}: {error}.") from None
        for name in ("eta", "guidance"):
            value = self.settings[name]
            try:
                self.settings |= {name: float(value)}
            except (ValueError, TypeError):
                raise InputError(f"--{name} {value}: not a number.") from None
            if not 0 <= self.settings[name] < math.inf:
                raise InputError(f"--{name} {value}: must be a finite number from 0 up.")
        eta = self.settings["eta"]
        if eta and sampler in SOLVERS:
            raise InputError(f"--eta {eta:g}: sampler {sampler} draws no fresh noise; leave it out, or take ddim.")
        if eta > 1 or (sampler == "ddpm" and eta < 1):
            raise InputError(f"--eta {eta:g}: must lie between 0 and 1, and be 1 (or left out) for sampler ddpm.")
        if sampler in SOLVERS:
            self._check_times()
        else:
            for name in ("spacing", "sigma_min"):
                del self.settings[name]
                if name in given:
                    option = f"--{name.replace('_', '-')} {given[name]}"
                    raise InputError(f"{option}: only for the samplers {', '.join(SOLVERS)}, not {sampler}.")
        if self.settings["guidance"] != 1:
            self._check_guide("guide" in given)
        elif self.settings.pop("guide") and "guide" in given:
            raise InputError(f"--guide {given['guide']}: --guidance 1 leads away from nothing; ask for more.")

    def _check_guide(self, given: bool) -> None:
        guide = self.settings["guide"]
        if guide == "early" and self.early is None and not given:
            # Few cases are learnt by heart before the share of the training after which early weights are kept.
            guide = self.settings["guide"] = "unasked"
        if guide not in ("early", "unasked"):
            raise InputError(f"--guide {guide}: unknown; choose one of early, unasked.")
        if guide == "early" and self.early is None:
            raise InputError(
                "--guide early: the checkpoint holds no early weights (diffusion.early of its preset is the share of "
                "the training after which they are kept); take --guide unasked, or --guidance 1."
            )

    def _check_times(self) -> None:
        spacing, lowest = self.settings["spacing"], self.settings["sigma_min"]
        if spacing not in SPACINGS:
            raise InputError(f"--spacing {spacing}: unknown; choose one of {', '.join(SPACINGS)}.")
        try:
            self.settings |= {"sigma_min": float(lowest)}
        except (ValueError, TypeError):
            raise InputError(f"--sigma-min {lowest}: not a number.") from None
        if not 0 < self.settings["sigma_min"] < NOISIEST:
            raise InputError(f"--sigma-min {lowest}: must lie between 0 and {NOISIEST:g}.")

    @torch.no_grad()
    def __call__(
        self,
        inputs: torch.Tensor,
        network: torch.nn.Module,
        seeds: Sequence[int],
        attempts: Sequence[int] | None = None,
        region: torch.Tensor | None = None,
        known: torch.Tensor | None = None,
        unwanted: torch.Tensor | None = None,
        places: Sequence[int] | None = None,
    ) -> torch.Tensor:
        """Draw latents `[B, Z, H, W, D]` for condition vectors `[B, K]` and seeds `[B]`; attempt 0 unless given.

        Each row is drawn at its place `[B]`, modulo `batch`; one after the other unless given.
        With a region `[B, 1, H, W, D]` of ones and zeros within it alone; outside the latents are those of `known`.
        Guidance leads away from `unwanted` condition vectors `[B, K]` where these are given.
        """
        n, attempts = len(seeds), attempts or [0] * len(seeds)
        drawn: dict[int, torch.Tensor] = {}
        for placed in _groups(range(n) if places is None else places, self.batch):
            group = [placed.get(place, min(placed.values())) for place in range(self.batch)]
            rows = [int(seeds[i]) for i in group], [attempts[i] for i in group]
            within = [None if beside is None else beside[group] for beside in (region, known, unwanted)]
            with same_sums(inputs.device):
                latents = self._draw(inputs[group], network, *rows, *within)
            drawn |= {i: latents[place] for place, i in placed.items()}
        return torch.stack([drawn[i] for i in range(n)])

    def _draw(
        self,
        inputs: torch.Tensor,
        network: torch.nn.Module,
        seeds: Sequence[int],
        attempts: Sequence[int],
        region: torch.Tensor | None,
        known: torch.Tensor | None,
        unwanted: torch.Tensor | None,
    ) -> torch.Tensor:
        """A group, as `__call__`."""
        noise = row_noise(self.latent_shape, seeds, attempts, inputs.device)
        early = self.early if self.settings.get("guide") == "early" else None
        denoise = guided(network, inputs, self.settings["guidance"], early, region, known, unwanted)
        sampler, steps = self.settings["sampler"], self.settings["steps"]
        own = [self.settings[name] for name in (("spacing", "sigma_min") if sampler in SOLVERS else ("eta",))]
        latents = SAMPLERS[sampler](denoise, noise, self.schedule, steps, *own)
        return latents if region is None else torch.where(region > 0, latents, known)


def _groups(places: Sequence[int], batch: int) -> Iterator[dict[int, int]]:
    """Rows that are drawn together, by their place in the batch, of which some may stay free."""
    waiting = list(range(len(places)))
    while waiting:
        group: dict[int, int] = {}
        for row in waiting:
            group.setdefault(int(places[row]) % batch, row)
        yield group
        taken = set(group.values())
        waiting = [row for row in waiting if row not in taken]


Sampler = PairSampler | OneStep
