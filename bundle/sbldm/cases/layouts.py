"""Where the files of a case are, and what the numbers in its mask mean, for the four layouts in common use."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import nibabel as nib
import numpy as np

from sbldm.errors import DataError, InputError, refused
from sbldm.files import read_nifti, reading

__all__ = [
    "CHANNELS",
    "TISSUES",
    "Case",
    "Source",
    "content_hash",
    "find_cases",
    "read_arrays",
    "read_case_list",
    "to_labels",
]

TISSUES = {"necrotic": 1, "oedema": 2, "enhancing": 3}
"""Canonical tissue numbers, whatever a layout calls them."""

# Canonical channel name -> what other data sets call it, in the spelling of `plain_name`.
CHANNELS = {
    "flair": {"flair", "t2f", "t2 flair"},
    "t1": {"t1", "t1n", "t1w"},
    "t1ce": {"t1ce", "t1c", "t1gd", "t1 gd", "t1 ce", "t1w gd", "t1w ce"},
    "t2": {"t2", "t2w"},
}

_REGIONS: dict[frozenset[str], set[str]] = {
    frozenset({"necrotic"}): {
        *("necrotic", "necrosis", "necrotic core", "necrotic tumour", "necrotic tumour core", "ncr", "ncr net", "net"),
        *("netc", "non enhancing", "non enhancing tumour", "non enhancing tumour core"),
    },
    frozenset({"oedema"}): {"oedema", "ed", "snfh", "peritumoral oedema", "peritumoural oedema"},
    frozenset({"enhancing"}): {"enhancing", "et", "enhancing tumour"},
    frozenset({"necrotic", "enhancing"}): {"tumour core", "core", "tc"},
    frozenset(TISSUES): {"whole tumour", "tumour", "wt", "lesion", "glioma"},
}


@dataclass(frozen=True)
class _Brats:
    """File names `CASE/CASE<separator><suffix>.nii[.gz]` and label numbers of one BraTS generation."""

    separator: str
    suffixes: Mapping[str, str]
    label_values: Mapping[int, str | None]


_BRATS = {
    "BraTS 2018-2021": _Brats(
        "_",
        {"flair": "flair", "t1": "t1", "t1ce": "t1ce", "t2": "t2"},
        {1: "necrotic", 2: "oedema", 3: "enhancing", 4: "enhancing"},
    ),
    "BraTS 2023+": _Brats(
        "-",
        {"flair": "t2f", "t1": "t1n", "t1ce": "t1c", "t2": "t2w"},
        {1: "necrotic", 2: "oedema", 3: "enhancing"},
    ),
}
_MSD, _NNUNET = "MSD Task01", "nnU-Net raw"
_UNDERSTOOD = (
    "BraTS 2018-2021 (CASE/CASE_flair.nii.gz, CASE_seg), BraTS 2023+ (CASE/CASE-t2f.nii.gz, CASE-seg), "
    "MSD Task01 (4-D imagesTr, labelsTr, dataset.json), nnU-Net raw (imagesTr/ID_0000.nii.gz, labelsTr, dataset.json)"
)
UNREADABLE = "restore it from a copy, or leave the case out"
_ENDINGS = (".nii.gz", ".nii")


@dataclass(frozen=True)
class Source:
    """What the config asks of the data.

    Attributes:
        channels: image channels in their order, each one of `CHANNELS`.
        labels: output labels in their order (the first is number 1), each with the tissues it joins; "all" is any
            tumour label.

    Raises:
        InputError: an unknown channel or tissue, none at all, or labels that overlap.
    """

    channels: tuple[str, ...] = ("flair",)
    labels: Mapping[str, tuple[str, ...] | Literal["all"]] = field(default_factory=lambda: {"whole tumour": "all"})

    def __post_init__(self) -> None:
        unknown = [channel for channel in self.channels if channel not in CHANNELS]
        if unknown or not self.channels or len(set(self.channels)) < len(self.channels):
            raise InputError(
                f"channels: {list(self.channels)} must name each channel once; known are {_join(CHANNELS)}."
            )
        if not self.labels or "background" in self.labels:
            raise InputError("labels: name at least one label, and leave `background` out (it is always number 0).")
        joined = Counter(tissue for tissues in self.labels.values() for tissue in _tissues(tissues))
        unknown = [tissue for tissue in joined if tissue not in TISSUES]
        if unknown or not all(self.labels.values()):
            raise InputError(f"labels: {dict(self.labels)} must join tissues; known are {_join(TISSUES)}, or `all`.")
        if twice := [tissue for tissue, count in joined.items() if count > 1]:
            raise InputError(f"labels: {_join(twice)} stands in more than one label; labels must not overlap.")

    @classmethod
    def from_config(cls, channels: Sequence[str], labels: Mapping[str, str | Sequence[str]]) -> Source:
        """Build from plain YAML values, e.g. `["flair"]` and `{"core": ["necrotic", "enhancing"], "oedema": "oedema"}`.

        Raises:
            InputError: see the class; or the values are no list and no mapping.
        """
        if isinstance(channels, str) or not isinstance(channels, Sequence):
            raise InputError(f"channels: {channels!r} must be a list of {_join(CHANNELS)}.")
        if not isinstance(labels, Mapping):
            raise InputError(f"labels: {labels!r} must map each label name to a list of {_join(TISSUES)}, or to `all`.")
        tissues: dict[str, Any] = {}
        for name, value in labels.items():
            if not isinstance(value, str | Sequence):
                raise InputError(f"labels: {name}: {value!r} must be a list of {_join(TISSUES)}, or `all`.")
            tissues[str(name)] = value if value == "all" else (value,) if isinstance(value, str) else tuple(value)
        return cls(tuple(channels), tissues)


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
    """

    name: str
    images: tuple[Path, ...]
    volume: tuple[int | None, ...]
    mask: Path
    layout: str
    label_values: dict[int, str | None]
    n_volumes: int | None = None


def _join(names: Iterable[Any], limit: int = 8) -> str:
    names = [str(name) for name in names]
    return ", ".join(names[:limit]) + (", ..." if len(names) > limit else "")


def _tissues(tissues: tuple[str, ...] | Literal["all"]) -> tuple[str, ...]:
    return tuple(TISSUES) if tissues == "all" else tissues


def plain_name(name: str) -> str:
    """One spelling for names that data sets write in many ways: lower case, British, blanks between words."""
    name = re.sub(r"[\W_]+", " ", str(name).lower()).strip()
    return re.sub(r"\bedema\b", "oedema", re.sub(r"\btumor\b", "tumour", name))


def _stem(path: Path) -> str | None:
    """File name without its NIfTI ending; None for hidden files and other kinds."""
    if path.name.startswith("."):
        return None
    return next((path.name[: -len(ending)] for ending in _ENDINGS if path.name.endswith(ending)), None)


def _stems(folder: Path) -> set[str]:
    return {stem for path in folder.iterdir() if (stem := _stem(path))} if folder.is_dir() else set()


def _file(folder: Path, stem: str) -> Path:
    """The NIfTI file of this stem, compressed or not; the compressed name when there is neither."""
    paths = [folder / f"{stem}{ending}" for ending in _ENDINGS]
    return next((path for path in paths if path.is_file()), paths[0])


def _folders(root: Path) -> list[Path]:
    return sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))


def _brats_case(folder: Path, source: Source) -> Case | None:
    stems = _stems(folder)
    for layout, brats in _BRATS.items():
        prefix = folder.name + brats.separator
        if stems & {prefix + suffix for suffix in (*brats.suffixes.values(), "seg")}:
            images = tuple(_file(folder, prefix + brats.suffixes[channel]) for channel in source.channels)
            mask = _file(folder, prefix + "seg")
            return Case(folder.name, images, (None,) * len(images), mask, layout, dict(brats.label_values))
    return None


def _label_values(labels: Mapping[str, Any]) -> dict[int, str | None]:
    """Number -> tissue from the `labels` of a dataset.json: `{name: number}`, `{name: [numbers]}` or `{number: name}`.

    Nested regions (whole tumour, tumour core, enhancing) are told apart by which of them hold a number.
    """
    if all(str(key).isdigit() for key in labels):
        labels = {name: int(key) for key, name in labels.items()}
    regions = {
        plain_name(name): {int(value) for value in (numbers if isinstance(numbers, list) else [numbers])} - {0}
        for name, numbers in labels.items()
    }
    named = [
        (tissues, numbers, isinstance(labels[name], list))
        for name, numbers in zip(labels, regions.values(), strict=True)
        for tissues, spellings in _REGIONS.items()
        if plain_name(name) in spellings and numbers
    ]
    values: dict[int, str | None] = {}
    for value in sorted({number for _, numbers, _ in named for number in numbers}):
        possible = set(TISSUES)
        for tissues, numbers, nested in named:
            if value in numbers:
                possible &= tissues
            elif nested:
                possible -= tissues
        values[value] = possible.pop() if len(possible) == 1 else None
    foreground = set().union(*regions.values())
    return values or ({foreground.pop(): None} if len(foreground) == 1 else {})


def _dataset_cases(root: Path, source: Source) -> list[Case]:
    """Cases of a folder with imagesTr, labelsTr and dataset.json: MSD when it has `modality`, else nnU-Net."""
    path = root / "dataset.json"
    try:
        content = json.loads(path.read_text())
        msd = "channel_names" not in content
        names = content["modality" if msd else "channel_names"]
        numbers = {plain_name(name): int(index) for index, name in names.items()}
        values = _label_values(content["labels"])
    except FileNotFoundError:
        raise DataError(f"{path} is missing: it names the channels and labels of imagesTr and labelsTr.") from None
    except OSError as error:
        raise DataError(refused(path, error, "read")) from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path}: channel_names (or modality) and labels cannot be read ({error!r}).") from None

    indices = []
    for channel in source.channels:
        index = next((numbers[spelling] for spelling in numbers if spelling in CHANNELS[channel]), None)
        if index is None:
            raise InputError(f"{path}: has no channel {channel}, only {_join(names.values())}; change `channels`.")
        indices.append(index)
    asked = {tissue for tissues in source.labels.values() if tissues != "all" for tissue in tissues}
    if not values or asked - set(values.values()):
        raise InputError(
            f"{path}: its labels {content['labels']} do not tell {_join(sorted(asked)) or 'a tumour'} apart; "
            f"change `labels` (`all` joins every tumour label)."
        )

    images, masks = root / "imagesTr", root / "labelsTr"
    cases = []
    if msd:
        for name in sorted(_stems(images) | _stems(masks)):
            image = _file(images, name)
            files = (image,) * len(indices)
            cases.append(Case(name, files, tuple(indices), _file(masks, name), _MSD, values, len(names)))
    else:
        found = {match[1] for stem in _stems(images) if (match := re.fullmatch(r"(.+)_\d{4}", stem))}
        for name in sorted(found | _stems(masks)):
            files = tuple(_file(images, f"{name}_{index:04d}") for index in indices)
            cases.append(Case(name, files, (None,) * len(files), _file(masks, name), _NNUNET, values))
    return cases


def find_cases(root: Path, source: Source, names: Sequence[str] | None = None) -> list[Case]:
    """Find the cases of a folder in whichever layout it has; hidden and stray files are ignored.

    BraTS case folders may stand one level deeper (HGG, LGG), and so may a single imagesTr / labelsTr data set.

    Args:
        root: the data folder.
        source: channels and labels asked for.
        names: keep these cases alone, in this order, each once.

    Returns:
        Cases sorted by name, or in the order of `names`. A missing image or mask leaves its expected path in the case.

    Raises:
        InputError: `root` is no folder, holds several data sets, or lacks a channel or tissue asked for.
        DataError: no case found, two cases of one name, or some of `names` are not there.
    """
    root = Path(root)
    if not root.is_dir():
        raise InputError(f"DATA={root}: no such folder.")
    datasets = [folder for folder in (root, *_folders(root)) if (folder / "imagesTr").is_dir()]
    if len(datasets) > 1 and datasets[0] != root:
        raise InputError(f"DATA={root}: holds several data sets ({_join(d.name for d in datasets)}); name one of them.")
    if datasets:
        cases = _dataset_cases(datasets[0], source)
    else:
        folders = [inner for outer in _folders(root) for inner in (outer, *_folders(outer))]
        cases = [case for folder in (root, *folders) if (case := _brats_case(folder, source))]
    if not cases:
        raise DataError(f"{root}: no case found. Layouts understood: {_UNDERSTOOD}.")

    by_name = {case.name: case for case in sorted(cases, key=lambda case: case.name)}
    if len(by_name) < len(cases):
        twice = [name for name, count in Counter(case.name for case in cases).items() if count > 1]
        raise DataError(f"{root}: more than one folder is called {_join(twice, 3)}; rename or remove one.")
    if names is None:
        return list(by_name.values())
    if unknown := [name for name in names if name not in by_name]:
        raise DataError(f"{len(unknown)} of {len(names)} cases asked for are not in {root}: {_join(unknown, 3)}.")
    return [by_name[name] for name in dict.fromkeys(names)]


def read_case_list(path: Path) -> list[str]:
    """Read case names, one a line; blank lines and what follows `#` are ignored.

    Raises:
        InputError: the file is missing or unreadable, names no case, or one case twice.
    """
    try:
        lines = Path(path).read_text().splitlines()
    except OSError as error:
        raise InputError(refused(path, error, "read")) from None
    except UnicodeDecodeError:
        raise InputError(f"{path}: this case list cannot be read (it is no UTF-8 text); save it as such.") from None
    names = [name for line in lines if (name := line.partition("#")[0].strip())]
    if not names:
        raise InputError(f"{path}: this case list names no case; write one name a line.")
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise InputError(f"{path}: {_join(twice, 3)} stands in this case list more than once.")
    return names


def to_labels(raw: np.ndarray, case: Case, source: Source) -> np.ndarray:
    """Map the numbers of a mask to the labels of the source.

    Args:
        raw: mask as stored, any shape and number type.
        case: tells which number is which tissue.
        source: tells which tissues make which label.

    Returns:
        uint8 array of the same shape: 0 background, k the k-th label of the source.

    Raises:
        DataError: the mask holds a number that the layout does not know, or that is no integer.
    """
    foreground = raw != 0
    stored = raw[foreground]
    labels = np.zeros(stored.shape, np.uint8)
    known = np.zeros(stored.shape, bool)
    for value, tissue in case.label_values.items():
        here = stored == value
        known |= here
        for number, tissues in enumerate(source.labels.values(), start=1):
            if tissues == "all" or tissue in tissues:
                labels[here] = number
    if not known.all():
        strange = _join([f"{value:g}" for value in np.unique(stored[~known])], 4)
        raise DataError(f"{case.mask.name}: unknown label {strange}; {case.layout} has {_join(case.label_values)}")
    result = np.zeros_like(raw, np.uint8)
    result[foreground] = labels
    return result


def content_hash(volume: np.ndarray) -> str:
    """Fingerprint of the voxels of one volume `[X, Y, Z]`, whatever its file, name, number type and compression."""
    digest = hashlib.blake2b(str(volume.shape).encode(), digest_size=20)
    digest.update(np.ascontiguousarray(volume.T, np.float32))
    return digest.hexdigest()


def read_arrays(case: Case, source: Source) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Read one case in stored voxel order.

    Returns:
        image float32 [C, X, Y, Z] in scanner units, labels uint8 [X, Y, Z] (see `to_labels`), and the 4x4 affine from
        voxel indices to mm (RAS+) of the first image.

    Raises:
        DataError: unknown labels, or a file that cannot be read; pre-flight finds this and all else that can be wrong.
    """
    channels, affines = [], []
    for path, index in zip(case.images, case.volume, strict=True):
        with reading(path, UNREADABLE, remove=False, error=DataError):
            opened = nib.load(path)
            channels.append(np.asarray(opened.dataobj if index is None else opened.dataobj[..., index], np.float32))
            affines.append(opened.affine)
    mask = read_nifti(case.mask, UNREADABLE, remove=False, error=DataError)
    return np.stack(channels), to_labels(np.asanyarray(mask.dataobj), case, source), affines[0]
