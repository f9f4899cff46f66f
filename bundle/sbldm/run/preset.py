"""Presets, typed: what each model's preset holds, in which ranges, with which defaults. What passes trains to its end.

One file: all models' presets are checked against one schema, whose parts lean on each other.
"""

from __future__ import annotations

from math import prod
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, Field, StringConstraints, Tag, model_validator
from pydantic import Discriminator as Discriminator_

from sbldm.run.errors import InputError
from sbldm.run.limits import CLEANEST, MOST_BATCH, NOISIEST, Channel, Guide, Sampler, Spacing
from sbldm.run.schema import Values, checked, refuse_expressions

__all__ = [
    "SCHEMAS",
    "Data",
    "Diffusion",
    "Grid",
    "Intensity",
    "NoiseLevels",
    "Preset",
    "Refiner",
    "RegionsDiffusion",
    "RegionsNetwork",
    "Sampling",
    "Stage",
]

SSIM_WINDOW = 11  # of the loss of stage 1

Count = Annotated[int, Field(ge=1, le=10**9)]
Natural = Annotated[int, Field(ge=0, le=10**9)]
Width = Annotated[int, Field(ge=1, le=2**16)]
Share = Annotated[float, Field(ge=0, le=1)]
Weight = Annotated[float, Field(ge=0, le=1e6)]
Guidance = Annotated[float, Field(ge=0, le=1000)]
Rate = Annotated[float, Field(gt=0, le=1)]
Name = Annotated[str, StringConstraints(pattern=r"^[\w.+-]([\w .,()/+-]*[\w.)+-])?$", max_length=80)]
TISSUES = ("necrotic", "oedema", "enhancing")
Levels = Annotated[list[Width], Field(min_length=1, max_length=8)]


def _embedding_width(width: int) -> int:
    if width == 1:  # the frequencies of a sinusoid of one number are 0 / 0
        raise ValueError("must not be 1")
    return width


def _tissues(value: Any) -> str | list[str]:
    listed = [value] if isinstance(value, str) else value
    if value != "all" and not (isinstance(listed, list) and listed and all(tissue in TISSUES for tissue in listed)):
        raise ValueError(f"{value!r} must be `all`, or a list of {', '.join(TISSUES)}")
    return value


def _stride(value: Any) -> int | list[int]:
    along = value if isinstance(value, list) else [value]
    if not all(type(s) is int and s in (1, 2) for s in along) or (along is value and len(value) not in (2, 3)):
        raise ValueError(f"{value!r} must be 1 or 2, or a list of them, one an axis")
    return value


def _each_once(values: list[Any]) -> list[Any]:
    if len(set(values)) < len(values):
        raise ValueError("must name each once")
    return values


class Data(Values):
    """Image channels, the labels with the tissues that each one joins, and what the numbers in the masks mean.

    With `regions` nnU-Net learns the nested regions of BraTS in place of the labels one by one.
    """

    channels: Annotated[list[Channel], Field(min_length=1), AfterValidator(_each_once)]
    labels: Annotated[dict[Name, Annotated[Any, AfterValidator(_tissues)]], Field(min_length=1)]
    scheme: str | dict[int | str, str] = "auto"  # its words are checked where masks are read (`cases.labels`)
    regions: bool = False


class Grid(Values):
    """The working grid along L, P, S."""

    size: Annotated[list[Annotated[int, Field(ge=4, le=1024)]], Field(min_length=3, max_length=3)]
    fov_mm: Annotated[list[Annotated[float, Field(ge=50, le=1000)]], Field(min_length=3, max_length=3)]

    @model_validator(mode="after")
    def _spacing(self) -> Grid:
        spacing = [fov / n for fov, n in zip(self.fov_mm, self.size, strict=True)]
        if not all(0.2 <= s <= 20 for s in spacing):
            shown = " x ".join(f"{s:.3g}" for s in spacing)
            raise ValueError(f"size {self.size} over fov_mm {self.fov_mm} makes voxels of {shown} mm, not .2 to 20")
        return self


class Intensity(Values):
    """Percentiles inside the brain that become `floor` and 1 - `shoulder`."""

    percentiles: Annotated[list[Annotated[float, Field(ge=0, le=100)]], Field(min_length=2, max_length=2)]
    floor: Annotated[float, Field(ge=0.001, le=0.5)]
    shoulder: Annotated[float, Field(ge=0, le=0.3)] = 0.0

    @model_validator(mode="after")
    def _rising(self) -> Intensity:
        if self.percentiles[0] >= self.percentiles[1]:
            raise ValueError(f"percentiles {self.percentiles}: the first must be below the second")
        if self.percentiles[1] - self.percentiles[0] < 10:
            raise ValueError(f"percentiles {self.percentiles}: they must be 10 apart at least")
        return self


class Stage(Values):
    """What every training has."""

    batch_size: Annotated[int, Field(ge=1, le=4096)]
    iterations: Count
    iterations_per_epoch: Count
    learning_rate: Rate

    @model_validator(mode="after")
    def _an_epoch(self) -> Stage:
        if self.iterations < self.iterations_per_epoch:
            raise ValueError("iterations must not be below iterations_per_epoch")
        if rest := self.iterations % self.iterations_per_epoch:
            whole = self.iterations - rest
            raise ValueError(
                f"iterations must be a multiple of iterations_per_epoch, as {whole} is: the rest would not be run"
            )
        return self


class Discriminator(Values):
    """MONAI's PatchDiscriminator."""

    channels: Width
    layers: Annotated[int, Field(ge=1, le=8)]


class _Halving(Values):
    channels: Levels

    @property
    def shrink(self) -> tuple[int, int, int]:
        """By how much each axis shrinks."""
        return (2 ** (len(self.channels) - 1),) * 3


class _SliceNetwork(_Halving):
    latent_channels: Width
    position_embedding: Annotated[Annotated[int, Field(ge=0, le=2**16)], AfterValidator(_embedding_width)]

    @property
    def shrink(self) -> tuple[int, int, int]:
        """By how much each axis shrinks."""
        in_plane = self.patch * 2 ** (len(self.channels) - 1)
        return in_plane, in_plane, self.aggregation


class SliceNetwork(_SliceNetwork):
    """`SliceVAE`."""

    patch: ClassVar[int] = 1
    aggregation: ClassVar[int] = 1
    groups: Width


class StackNetwork(_SliceNetwork):
    """`StackVAE`."""

    aggregation: Annotated[int, Field(ge=1, le=16)]
    latent_noise: Share
    patch: Annotated[int, Field(ge=1, le=16)]
    parts: Annotated[int, Field(ge=0, le=16)]


class VolumeNetwork(_Halving):
    """`VolumeVAE`."""

    latent_channels: Width
    groups: Width


class MonaiNetwork(_Halving):
    """`MonaiVAE`."""

    latent_channels: Width
    num_res_blocks: Annotated[int, Field(ge=1, le=16)]
    attention: bool
    groups: Width

    @model_validator(mode="after")
    def _divides(self) -> MonaiNetwork:
        return _divisible(self, self.channels, groups=self.groups)


class LatentNetwork(Values):
    """`LatentUNet`."""

    axes: ClassVar[int] = 3
    channels: Levels
    strides: list[Annotated[Any, AfterValidator(_stride)]]
    num_res_blocks: Annotated[int, Field(ge=1, le=16)]
    embedding: Width
    groups: Width

    @model_validator(mode="after")
    def _levels(self) -> LatentNetwork:
        if len(self.strides) != len(self.channels) - 1:
            needed, given = len(self.channels) - 1, len(self.strides)
            raise ValueError(f"{len(self.channels)} levels of channels need {needed} strides, not {given}")
        if any(isinstance(stride, list) and len(stride) != self.axes for stride in self.strides):
            raise ValueError(f"strides: a list must have {self.axes} numbers, one an axis")
        if self.channels[0] == 1:
            raise ValueError("channels: the first must not be 1, as the sinusoid of the time has that width")
        return self

    @property
    def shrink(self) -> tuple[int, int, int]:
        """By how much each axis shrinks."""
        strides = [stride if isinstance(stride, list) else [stride] * self.axes for stride in self.strides]
        return (*(prod(stride[axis] for stride in strides) for axis in range(self.axes)), 1)[:3]


class TiledNetwork(LatentNetwork):
    """`TiledUNet`, in the plane."""

    axes: ClassVar[int] = 2


class StackedNetwork(LatentNetwork):
    """`LatentUNet` over stacked slices: it can be shown the request as a picture, and where a latent lies."""

    picture: bool = False
    coordinates: bool = False
    one_hot: bool = False  # requests as twelve bits, as in the journal paper, in place of numbers


class RegionsNetwork(StackedNetwork):
    """The same, told where it is to draw; never read, see `Regions`."""

    regions: Literal[True] = True


class MonaiDenoiserNetwork(Values):
    """`MonaiUNet`, which pads its latents."""

    shrink: ClassVar[tuple[int, int, int]] = (1, 1, 1)
    channels: Levels
    num_res_blocks: Annotated[int, Field(ge=1, le=16)]
    head_channels: Width
    groups: Width

    @model_validator(mode="after")
    def _divides(self) -> MonaiDenoiserNetwork:
        _divisible(self, self.channels, groups=self.groups)
        return _divisible(self, self.channels[-1:], head_channels=self.head_channels)


def _divisible(network: Any, channels: list[int], **by: int) -> Any:
    for name, number in by.items():
        for width in channels:
            if width % number:
                raise ValueError(f"{name} {number} must divide every number of channels it is for, and {width} is none")
    return network


class Autoencoder(Stage):
    """Stage 1."""

    warm_up: Natural
    kl_weight: Weight
    dice_weight: Weight
    optimizer: Literal["adam", "adamw", "muon"] = "adam"
    perceptual_weights: Annotated[str, Field(min_length=1)] | None


class SliceAutoencoder(Autoencoder):
    """Of SBLDM."""

    kind: Literal["slice"] = "slice"
    network: SliceNetwork
    nested: bool = False  # labels are drawn as nested regions
    depth: ClassVar[int] = 1
    crop: ClassVar[None] = None


class StackAutoencoder(Autoencoder):
    """Of SBLDM with aggregated latents; `depth` slices are seen at once in training."""

    kind: Literal["stack"]
    network: StackNetwork
    nested: bool = False
    depth: Annotated[int, Field(ge=1, le=1024)]
    crop: Annotated[list[Width], Field(min_length=2, max_length=2)] | None  # voxels, None: whole slices
    bce_weight: Weight
    anchor_weight: Weight

    @model_validator(mode="after")
    def _whole_stacks(self) -> StackAutoencoder:
        if self.depth % self.network.aggregation:
            raise ValueError(f"depth {self.depth} must be a multiple of network.aggregation {self.network.aggregation}")
        if self.anchor_weight and not self.network.parts:
            raise ValueError("anchor_weight must be 0 where network.parts is 0: no latents are anchored then")
        if self.network.parts and (side := self.network.shrink[0]) % self.network.parts:
            raise ValueError(f"network.parts {self.network.parts} must divide the {side} pixels of a cell's side")
        return self


class _VaeGan(Autoencoder):
    discriminator: Discriminator
    adversarial_weight: Weight
    adversarial_start: Natural


class VolumeAutoencoder(_VaeGan):
    """Of the 3-D LDM as the authors train it."""

    kind: Literal["volume"]
    network: VolumeNetwork


class MonaiAutoencoder(_VaeGan):
    """Of the 3-D LDM as the paper reports it."""

    kind: Literal["monai"]
    network: MonaiNetwork


class NoiseSchedule(Values):
    """The forward process."""

    kind: Literal["scaled_linear", "cosine", "flow"] = "scaled_linear"
    steps: Annotated[int, Field(ge=2, le=100_000)]
    beta_start: Annotated[float, Field(gt=0, lt=1)] = 0.002
    beta_end: Annotated[float, Field(gt=0, lt=1)] = 0.02

    @model_validator(mode="after")
    def _rising(self) -> NoiseSchedule:
        if self.beta_start > self.beta_end:
            raise ValueError("beta_start must not be above beta_end")
        return self


class NoiseLevels(Values):
    """Which noise levels training sees: `ln(sigma / alpha)` normal, or times uniform over the chain."""

    distribution: Literal["uniform", "logit_normal"]
    mean: Annotated[float, Field(ge=-20, le=20)] = 0.0
    std: Annotated[float, Field(gt=0, le=20)] = 1.0


class Regions(Values):
    """The training that goes on from stage 2 and draws within regions of real brains, for `--canvas`."""

    iterations: Natural
    iterations_per_epoch: Natural
    learning_rate: Rate
    warm_up: Natural
    tumour: Share  # of regions around the tumour; the others are of healthy tissue
    whole: Share = 0.0  # of whole brains beside the regions
    guidance: Guidance  # of tumours
    healing: Guidance  # of healthy tissue, away from the tumour that was there


class RefinerNetwork(Values):
    """`RefinerUNet`."""

    channels: Levels
    num_res_blocks: Annotated[int, Field(ge=1, le=16)]
    embedding: Width
    patch: Annotated[int, Field(ge=1, le=16)]

    @property
    def shrink(self) -> int:
        """By how much each side of a plane shrinks."""
        return self.patch * 2 ** (len(self.channels) - 1)


class Refiner(Stage):
    """The training behind stage 2 of what sharpens decoded images around the tumour, for `--refine`."""

    network: RefinerNetwork
    plane: Annotated[list[Width], Field(min_length=2, max_length=2)]  # voxels of a training patch
    margin_mm: Annotated[float, Field(ge=0, le=1000)]  # around the tumour, of what is refined
    drawn: Annotated[
        int, Field(ge=1, le=100)
    ]  # times that each training case is drawn again, beside its reconstruction
    noise: Annotated[list[Annotated[float, Field(gt=0, lt=NOISIEST)]], Field(min_length=2, max_length=2)]
    warm_up: Natural
    noise_levels: NoiseLevels
    optimizer: Literal["adam", "adamw", "muon"]
    ema_decay: Annotated[float, Field(ge=0, lt=1)]
    steps: Annotated[int, Field(ge=1, le=1000)]  # of the solver
    sigma_min: Annotated[float, Field(gt=0, lt=NOISIEST)]
    along_z: Share  # correlation of the noise of neighbouring slices; 1: all slices share theirs

    @model_validator(mode="after")
    def _fits(self) -> Refiner:
        if any(n % self.network.shrink for n in self.plane):
            raise ValueError(f"plane {self.plane} must be divisible by {self.network.shrink} (the network halves it)")
        if self.noise[0] > self.noise[1]:
            raise ValueError(f"noise {self.noise}: the first must not be above the second")
        return self


class Diffusion(Stage):
    """Stage 2."""

    warm_up: Natural
    prediction: Literal["epsilon", "v_prediction", "sample"]
    schedule: NoiseSchedule
    noise_levels: NoiseLevels = NoiseLevels(distribution="uniform")
    centred: Literal["channel", "position"] = "channel"
    deformed: Annotated[int, Field(ge=0, le=100)] = 0  # copies of each training case, turned, scaled and bent
    brains: Annotated[int, Field(ge=0, le=10_000)] = 0  # of few cases up to 100, until there are so many
    condition_dropout: Share
    optimizer: Literal["adam", "adamw", "muon"] = "adamw"
    ema_decay: Annotated[float, Field(ge=0, lt=1)]
    early: Annotated[float, Field(gt=0, lt=1)] | None = None  # share of the training whose weights are kept as a guide
    latent: Literal["mean", "sample"]


class StackedDiffusion(Diffusion):
    """Of SBLDM."""

    kind: Literal["stacked"] = "stacked"
    network: StackedNetwork


class RegionsDiffusion(StackedDiffusion):
    """The same as it goes on within regions; never read, see `Regions`."""

    network: RegionsNetwork
    tumour: Share
    whole: Share


class TiledDiffusion(Diffusion):
    """Of the 2-D variant."""

    kind: Literal["tiled"]
    network: TiledNetwork


class VolumeDiffusion(Diffusion):
    """Of the 3-D LDM as the authors train it."""

    kind: Literal["volume"]
    network: LatentNetwork


class MonaiDiffusion(Diffusion):
    """Of the 3-D LDM as the paper reports it."""

    kind: Literal["monai"]
    network: MonaiDenoiserNetwork


class Sampling(Values):
    """How latents are drawn."""

    sampler: Sampler
    steps: Count
    spacing: Spacing = "karras"  # of the times of dpm_solver, unipc and heun
    sigma_min: Annotated[float, Field(gt=0, lt=NOISIEST)] = CLEANEST  # whence these leap to the clean sample
    eta: Share
    guidance: Guidance
    guide: Guide = "unasked"  # what guidance leads away from
    batch: Annotated[int, Field(ge=1, le=MOST_BATCH)] = 1  # drawn at once; the last ones are filled up to it


class GanNetwork(Values):
    """`GanGenerator`."""

    noise: Width
    channels: Levels

    @property
    def shrink(self) -> tuple[int, int, int]:
        """By how much its first level is smaller than its output, along each axis."""
        return (2 ** len(self.channels),) * 3


class Gan(Stage):
    """The one training of the 3-D LSGAN."""

    network: GanNetwork
    discriminator: Discriminator
    target_noise: Share
    clip: Annotated[float, Field(gt=0, le=1e6)]
    ema_decay: Annotated[float, Field(ge=0, lt=1)]


class NoSampling(Values):
    """A GAN has nothing to choose."""


class Preset(Values):
    """What all presets have. `state()` is what stands in a file, `but(..)` a copy with other values."""

    name: Name
    model: str
    minutes: Annotated[float, Field(ge=0)] | None
    data: Data
    grid: Grid
    intensity: Intensity
    mirror: bool

    @staticmethod
    def of(values: dict[str, Any], where: str = "") -> Preset:
        """The preset of plain values, as they stand in a file; `where` begins a message, as in "FILE: ".

        Raises:
            InputError: it is not whole, not of plain values in their ranges, or does not fit its model; the first value
                that is wrong is named.
        """
        refuse_expressions(values, where, "a preset")
        values = {"model": "sbldm", "minutes": None} | values  # of presets from before there were other models
        if (model := values["model"]) not in list(SCHEMAS):
            raise InputError(f"{where}model: {model!r} is no name of a model; choose one of {', '.join(SCHEMAS)}.")
        example = "presets/small.yaml" if model == "sbldm" else f"baselines/{model}.yaml"
        return checked(SCHEMAS[model], values, where, f"see configs/{example}")

    @property
    def image_channels(self) -> int:
        """How many channels of a volume are images; one for each label comes after them."""
        return len(self.data.channels)

    @property
    def all_channels(self) -> int:
        """Channels of a volume, one a label included."""
        return len(self.data.channels) + len(self.data.labels)

    @property
    def stages(self) -> list[str]:
        """Names of its trainings, in order."""
        return [name for name in ("autoencoder", "diffusion", "gan") if hasattr(self, name)]

    @property
    def begins_with(self) -> Init | None:
        """Weights that its trainings begin with, if any."""
        return getattr(self, "init", None)

    def continues(self, other: Preset) -> bool:
        """Whether they are the same, but for a refiner that a run from before there was any does not have."""
        same = {} if getattr(self, "refiner", None) else {"refiner": None}
        return self == (other.model_copy(update=same) if hasattr(other, "refiner") else other)

    def stage(self, name: str) -> Stage:
        """The values of a training."""
        return getattr(self, name)

    @model_validator(mode="after")
    def _sizes(self) -> Preset:
        """The grid must survive all halvings of the networks, and be no smaller than losses and discriminators need."""
        size, stages = self.grid.size, [self.stage(name) for name in self.stages]
        need = [prod(shrinks) for shrinks in zip((1, 1, 1), *(stage.network.shrink for stage in stages), strict=True)]
        least = [1, 1, 1]
        for stage in stages:
            if isinstance(stage, SliceAutoencoder | StackAutoencoder):
                least = [SSIM_WINDOW, SSIM_WINDOW, 1]
            elif discriminator := getattr(stage, "discriminator", None):
                least = [3 * 2**discriminator.layers] * 3
            if isinstance(stage, StackAutoencoder):
                self._stacks(stage)
        if any(n % by for n, by in zip(size, need, strict=True)):
            raise ValueError(f"grid.size {size} must be divisible by {need} (the networks halve it)")
        if any(n < m for n, m in zip(size, least, strict=True)) or prod(size) < 2 * prod(need):
            raise ValueError(
                f"grid.size {size} must be at least {least}, and two voxels after all halvings ({need}); enlarge it, "
                "or take fewer levels or layers"
            )
        return self

    def _stacks(self, stage: StackAutoencoder) -> None:
        """Windows and planes must survive the halvings, and the anchored latents must be among the latents."""
        network, size = stage.network, self.grid.size[:2]
        for name, plane in (("grid.size", size), ("autoencoder.crop", stage.crop or size)):
            if any(n % network.shrink[0] for n in plane):
                raise ValueError(
                    f"{name} {plane} must be divisible by {network.shrink[0]} in the plane (the networks halve it)"
                )
            if any(n > most or n < SSIM_WINDOW for n, most in zip(plane, size, strict=True)):
                raise ValueError(f"{name} {plane} must be {SSIM_WINDOW} at least, and within grid.size")
        if (anchored := self.all_channels * network.parts**2) > network.latent_channels:
            raise ValueError(
                f"autoencoder.network.latent_channels must be {anchored} at least, not {network.latent_channels}: "
                f"{self.all_channels} channels x network.parts {network.parts} x {network.parts}; raise it, or lower "
                "network.parts"
            )


class CopyPaste(Preset):
    """Preset of copy-paste, which has nothing else."""

    model: Literal["copypaste"]


class Lsgan(Preset):
    """Preset of the 3-D LSGAN."""

    model: Literal["lsgan"]
    gan: Gan
    sampling: NoSampling


class _Latent(Preset):
    sampling: Sampling

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """`(Z, H, W, D)` of the latents of a volume."""
        network = self.autoencoder.network
        shape = (n // by for n, by in zip(self.grid.size, network.shrink, strict=True))
        return network.latent_channels, *shape

    @model_validator(mode="after")
    def _chain(self) -> _Latent:
        steps, sampling = self.diffusion.schedule.steps, self.sampling
        if sampling.guide == "early" and self.diffusion.early is None:
            raise ValueError("sampling.guide early needs diffusion.early, a share of the training")
        if sampling.steps > steps:
            raise ValueError(f"sampling.steps {sampling.steps} must not be above diffusion.schedule.steps ({steps})")
        if sampling.sampler == "ddpm" and (sampling.steps != steps or sampling.eta != 1):
            raise ValueError(f"sampling.sampler ddpm needs all {steps} steps and eta 1")
        if sampling.sampler not in ("ddim", "ddpm") and sampling.eta:
            raise ValueError(f"sampling.eta must be 0 for sampler {sampling.sampler}, which takes no fresh noise")
        return self


def _kind_of(stage: Any) -> str:
    return stage.get("kind", "slice") if isinstance(stage, dict) else getattr(stage, "kind", "slice")


SlicesOrStacks = Annotated[
    Annotated[SliceAutoencoder, Tag("slice")] | Annotated[StackAutoencoder, Tag("stack")], Discriminator_(_kind_of)
]


class Init(Values):
    """Weights that the trainings begin with (`--init`)."""

    weights: str  # shipped, or a file
    sha256: str


class Sbldm(_Latent):
    """Preset of SBLDM."""

    model: Literal["sbldm"]
    init: Init | None = None
    autoencoder: SlicesOrStacks
    diffusion: StackedDiffusion
    regions: Regions | None = None
    refiner: Refiner | None = None

    @model_validator(mode="after")
    def _told_where(self) -> Sbldm:
        if self.regions and not self.diffusion.network.picture:
            raise ValueError("regions needs diffusion.network.picture, which knows where a tumour is to lie")
        return self

    @model_validator(mode="after")
    def _refines(self) -> Sbldm:
        if self.refiner:
            plane, shrink = self.grid.size[:2], self.refiner.network.shrink
            if any(n % shrink for n in plane):
                raise ValueError(
                    f"grid.size {plane} must be divisible by {shrink} in the plane (the refiner halves it)"
                )
            if any(n > most for n, most in zip(self.refiner.plane, plane, strict=True)):
                raise ValueError(f"refiner.plane {self.refiner.plane} must be within grid.size {plane}")
        return self


class Sbldm2d(_Latent):
    """Preset of SBLDM with 2-D diffusion."""

    model: Literal["sbldm_2d"]
    autoencoder: SlicesOrStacks
    diffusion: TiledDiffusion


class Ldm3d(_Latent):
    """Preset of the 3-D LDM."""

    model: Literal["ldm3d", "ldm3d_reduced"]
    autoencoder: Annotated[VolumeAutoencoder | MonaiAutoencoder, Field(discriminator="kind")]
    diffusion: Annotated[VolumeDiffusion | MonaiDiffusion, Field(discriminator="kind")]


SCHEMAS: dict[str, type[Preset]] = {
    "sbldm": Sbldm,
    "sbldm_2d": Sbldm2d,
    "ldm3d": Ldm3d,
    "ldm3d_reduced": Ldm3d,
    "lsgan": Lsgan,
    "copypaste": CopyPaste,
}
