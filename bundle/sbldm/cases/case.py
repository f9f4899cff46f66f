"""One subject's files, and what a config asks of them: channels in, labels out."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from sbldm.cases.labels import NO_TUMOUR, REGIONS, TISSUES, Scheme, check_scheme, explain, join
from sbldm.cases.naming import CHANNELS
from sbldm.cases.volumes import read_image, whole_numbers
from sbldm.run.errors import DataError, InputError
from sbldm.tumour.characteristics import NAMES, SHARES, measure

__all__ = ["Case", "Source", "content_hash", "read_arrays", "to_labels"]


@dataclass(frozen=True)
class Source:
    """What the config asks of the data.

    Attributes:
        channels: image channels in their order, each one of `CHANNELS`.
        labels: output labels in their order (the first is number 1), each with the tissues it joins; "all" is any
            tumour label.
        regions: whether nnU-Net learns nested regions (see `nested`) in place of the labels one by one.
        scheme: what the numbers in the masks mean: "auto" (as the layout says), the name of a scheme, or
            number -> tissue; see `sbldm.cases.labels`.

    Raises:
        InputError: an unknown channel, tissue or scheme, none at all, or labels that overlap.
    """

    channels: tuple[str, ...] = ("flair",)
    labels: Mapping[str, tuple[str, ...] | Literal["all"]] = field(default_factory=lambda: {"whole tumour": "all"})
    scheme: Scheme = "auto"
    regions: bool = False

    def __post_init__(self) -> None:
        unknown = [channel for channel in self.channels if channel not in CHANNELS]
        if unknown or not self.channels or len(set(self.channels)) < len(self.channels):
            raise InputError(
                f"channels: {list(self.channels)} must name each channel once; known are {join(CHANNELS)}."
            )
        if not self.labels or "background" in self.labels:
            raise InputError("labels: name at least one label, and leave `background` out (it is always number 0).")
        joined = Counter(tissue for tissues in self.labels.values() for tissue in _tissues(tissues))
        unknown = [tissue for tissue in joined if tissue not in TISSUES]
        if unknown or not all(self.labels.values()):
            raise InputError(f"labels: {dict(self.labels)} must join tissues; known are {join(TISSUES)}, or `all`.")
        if twice := [tissue for tissue, count in joined.items() if count > 1]:
            raise InputError(f"labels: {join(twice)} stands in more than one label; labels must not overlap.")
        if self.region_based:
            _ = self.nested_order

    @classmethod
    def from_config(
        cls,
        channels: Sequence[str],
        labels: Mapping[str, str | Sequence[str]],
        scheme: Any = "auto",
        regions: bool = False,
    ) -> Source:
        """Build from plain YAML values, e.g. `["flair"]` and `{"core": ["necrotic", "enhancing"], "oedema": "oedema"}`.

        Raises:
            InputError: see the class; or the values are no list and no mapping.
        """
        if isinstance(channels, str) or not isinstance(channels, Sequence):
            raise InputError(f"channels: {channels!r} must be a list of {join(CHANNELS)}.")
        if not isinstance(labels, Mapping):
            raise InputError(f"labels: {labels!r} must map each label name to a list of {join(TISSUES)}, or to `all`.")
        tissues: dict[str, Any] = {}
        for name, value in labels.items():
            if not isinstance(value, str | Sequence):
                raise InputError(f"labels: {name}: {value!r} must be a list of {join(TISSUES)}, or `all`.")
            tissues[str(name)] = value if value == "all" else (value,) if isinstance(value, str) else tuple(value)
        return cls(tuple(channels), tissues, check_scheme(scheme, "scheme"), regions)

    @property
    def asked(self) -> set[str]:
        """Tissues that a label asks for by name."""
        return {tissue for tissues in self.labels.values() if tissues != "all" for tissue in tissues}

    @property
    def nested(self) -> dict[str, list[int]]:
        """The regions of BraTS that whole labels make up, each with the numbers of these labels, the largest first.

        The whole tumour is all that is asked for. A smaller region is left out where one of its tissues is not asked
        for, or stands in one label with another tissue.
        """
        joined = {k: set(_tissues(tissues)) for k, tissues in enumerate(self.labels.values(), start=1)}
        found: dict[str, list[int]] = {"whole tumour": list(joined)}
        for name, tissues in REGIONS.items():
            numbers = [k for k, own in joined.items() if own <= set(tissues)]
            if numbers not in found.values() and set().union(*(joined[k] for k in numbers)) == set(tissues):
                found[name] = numbers
        return found

    @property
    def characteristics(self) -> tuple[str, ...]:
        """What is known of a tumour, and can be asked for: the nine, and the shares of the smaller nested regions."""
        return (*NAMES, *self._shared)

    @property
    def _shared(self) -> dict[str, list[int]]:
        """The shares that labels tell, each with the numbers of its labels."""
        return {SHARES[name]: numbers for name, numbers in self.nested.items() if name in SHARES}

    def shares(self, labels: np.ndarray) -> dict[str, float]:
        """Of labels `[X, Y, Z]` uint8 the share of each smaller nested region in the whole tumour, in per cent.

        By the names of `SHARES`; NaN without a tumour.
        """
        if not (shared := self._shared):
            return {}
        counts = np.bincount(labels.ravel(), minlength=len(self.labels) + 1)
        whole = int(counts[1:].sum())
        return {name: 100 * int(counts[k].sum()) / whole if whole else math.nan for name, k in shared.items()}

    def measure(self, labels: np.ndarray, affine: np.ndarray) -> np.ndarray:
        """The `characteristics` `[K]` of the tumour in labels `[X, Y, Z]` uint8; see `sbldm.tumour.characteristics`."""
        return np.array([*measure(labels, affine), *self.shares(labels).values()])

    @property
    def region_based(self) -> bool:
        """Whether nnU-Net learns regions: asked for, and there is more than one label."""
        return self.regions and len(self.labels) > 1

    def description(self, count: int) -> dict[str, Any]:
        """`dataset.json` of a raw dataset of nnU-Net with so many cases in these channels and labels.

        Where it is `region_based` nnU-Net paints the nested regions one over the other (`regions_class_order`), which
        gives the labels again.
        """
        content: dict[str, Any] = {"channel_names": {str(k): name.upper() for k, name in enumerate(self.channels)}}
        content["labels"] = {"background": 0} | self.written_labels[self.region_based]
        if self.region_based:
            content["regions_class_order"] = self.nested_order
        return content | {"numTraining": count, "file_ending": ".nii.gz"}

    @property
    def written_labels(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """How `dataset.json` names the labels: one by one, and as nested regions."""
        nested = {name: numbers if len(numbers) > 1 else numbers[0] for name, numbers in self.nested.items()}
        return {name: k for k, name in enumerate(self.labels, start=1)}, nested

    @property
    def nested_order(self) -> list[int]:
        """The label that each of the `nested` regions holds beyond the smaller ones: from the outermost inwards.

        Raises:
            InputError: a region holds more than one.
        """
        regions, order = list(self.nested.values()), []
        for k, numbers in enumerate(regions):
            own = set(numbers) - set().union(*regions[k + 1 :])
            if len(own) != 1:
                raise InputError(
                    f"labels: {join(self.labels)} are not told apart by the regions {join(self.nested)} that they make "
                    f"up; ask for the tissues {join(TISSUES)} one by one, or leave `regions` and `nested` out."
                )
            order += own
        return order


def _tissues(tissues: tuple[str, ...] | Literal["all"]) -> tuple[str, ...]:
    return tuple(TISSUES) if tissues == "all" else tissues


@dataclass(frozen=True)
class Case:
    """One subject's files; a path may not exist, which pre-flight reports.

    Attributes:
        name: the subject's name.
        images: one path for each channel of the source; the same path again when the file is 4-D.
        volume: for each channel its index on the 4th axis, or None when the file is 3-D.
        mask: path of the label image.
        layout: name of the layout the case was found in.
        label_values: number in the mask -> tissue; None means tumour of unknown tissue, which only "all" takes.
        n_volumes: how many volumes a 4-D image must hold, or None when images are 3-D.
        hints: for a path that does not exist, what may be meant instead, as the end of a sentence.
        problem: why it cannot be told which files are the case's; such a case is refused by `find_cases`.
    """

    name: str
    images: tuple[Path, ...]
    volume: tuple[int | None, ...]
    mask: Path
    layout: str
    label_values: dict[int, str | None]
    n_volumes: int | None = None
    hints: Mapping[Path, str] = field(default_factory=dict)
    problem: str = ""

    def of_channel(self, k: int) -> Case:
        """The case with its k-th image channel alone."""
        return replace(self, images=self.images[k : k + 1], volume=self.volume[k : k + 1])


def to_labels(raw: np.ndarray, case: Case, source: Source) -> np.ndarray:
    """Map the numbers of a mask to the labels of the source.

    Args:
        raw: mask as stored, any shape and number type; nearly whole numbers are whole.
        case: tells which number is which tissue.
        source: tells which tissues make which label.

    Returns:
        uint8 array of the same shape: 0 background, k the k-th label of the source.

    Raises:
        DataError: the mask holds a number that the layout does not know, or that is no integer.
    """
    raw = whole_numbers(raw)
    foreground = raw != 0
    stored = raw[foreground]
    labels = np.zeros(stored.shape, np.uint8)
    known = np.zeros(stored.shape, bool)
    for value, tissue in case.label_values.items():
        here = stored == value
        known |= here
        for number, tissues in enumerate(source.labels.values(), start=1):
            if tissue not in NO_TUMOUR and (tissues == "all" or tissue in tissues):
                labels[here] = number
    if not known.all():
        raise DataError(f"{case.mask.name}: {_strange(stored, np.unique(stored[~known]), case)}")
    result = np.zeros_like(raw, np.uint8)
    result[foreground] = labels
    return result


def _strange(stored: np.ndarray, strange: np.ndarray, case: Case) -> str:
    """What is wrong with labels that the layout does not know."""
    if (broken := strange[strange != np.rint(strange)]).size:
        return (
            f"holds {join([f'{value:g}' for value in broken], 4)}, no whole number; a mask holds one number for each "
            "label (resample masks by nearest neighbour)"
        )
    said = f"unknown label {join([f'{value:g}' for value in strange], 4)}; {case.layout} has {join(case.label_values)}"
    meaning = explain(float(strange[0]), np.unique(stored).tolist())
    return f"{said}; {meaning}" if meaning else f"{said}; say what each number is with --labels file.yaml"


def content_hash(volume: np.ndarray) -> str:
    """Fingerprint of the voxels of one volume `[X, Y, Z]`, whatever its file, name, number type and compression."""
    digest = hashlib.blake2b(str(volume.shape).encode(), digest_size=20)
    digest.update(np.ascontiguousarray(volume.T, np.float32))
    return digest.hexdigest()


def read_arrays(case: Case, source: Source, mask_needed: bool = True) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Read one case in stored voxel order.

    Args:
        case, source: its files, and what is asked of them.
        mask_needed: False takes a mask that is not there for an empty one.

    Returns:
        image float32 [C, X, Y, Z] in scanner units, labels uint8 [X, Y, Z] (see `to_labels`), and the 4x4 affine from
        voxel indices to mm (RAS+) of the first image.

    Raises:
        DataError: unknown labels, or a file that cannot be read; pre-flight finds this and all else that can be wrong.
    """
    opened = {path: read_image(path) for path in dict.fromkeys(case.images)}
    channels = [
        np.asarray(opened[path].dataobj if index is None else opened[path].dataobj[..., index], np.float32)
        for path, index in zip(case.images, case.volume, strict=True)
    ]
    if case.mask.is_file() or mask_needed:
        labels = to_labels(np.asanyarray(read_image(case.mask).dataobj), case, source)
    else:
        labels = np.zeros(channels[0].shape, np.uint8)
    return np.stack(channels), labels, opened[case.images[0]].affine
