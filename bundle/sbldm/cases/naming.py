"""What file names say: which case, which channel or mask; and which of several files is meant."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from sbldm.cases.labels import plain_name
from sbldm.cases.volumes import same_volume, split_ending
from sbldm.run.errors import InputError

__all__ = ["CHANNELS", "MASK", "Part", "choose", "image_files", "nearest", "parse", "subfolders"]

# Canonical channel name -> what other data sets call it, in the spelling of `plain_name`.
CHANNELS = {
    "flair": {"flair", "fla", "t2f", "t2 flair", "t2flair", "t2w flair"},
    "t1": {"t1", "t1n", "t1w"},
    "t1ce": {"t1ce", "t1c", "t1gd", "t1 gd", "t1 ce", "t1w gd", "t1w ce"},
    "t2": {"t2", "t2w"},
}
MASK = "mask"
_SURE = {
    "seg",
    "segm",
    "segmentation",
    "tumour seg",
    "tumour segmentation",
    "tumour mask",
    "glistrboost manuallycorrected",
}
_LOOSE = {"mask", "label", "labels"}  # may be a brain mask: taken where there is nothing surer
_ROLES = {spelling: channel for channel, spellings in CHANNELS.items() for spelling in spellings}
_ROLES |= dict.fromkeys(_SURE | _LOOSE, MASK)


@dataclass(frozen=True)
class Part:
    """An image file whose name says what it is: `CASE<separator><words>.nii.gz`.

    Attributes:
        path: the file.
        case: what comes before the words; may be empty.
        separator: between the two.
        role: a channel of `CHANNELS`, or "mask".
        words: how the name says so, in the spelling of `plain_name`.
    """

    path: Path
    case: str
    separator: str
    role: str
    words: str

    @property
    def sure(self) -> bool:
        """Whether nothing else is called so."""
        return self.words not in _LOOSE


def parse(path: Path, case: str = "") -> Part | None:
    """What the name of an image file says, any case of letters; None when it says nothing.

    The longest ending that is a known spelling counts (`X_t2_flair` is FLAIR of X), but for a name that begins with
    `case`, which ends there.
    """
    split = split_ending(path.name)
    if split is None:
        return None
    stem = split[0]
    ends = [-1, *(match.start() for match in re.finditer(r"[\W_]", stem))]
    if case and stem.lower().startswith(case.lower()) and len(case) in ends:
        ends.insert(0, len(case))
    for end in ends:
        words = plain_name(stem[end + 1 :])
        if words in _ROLES:
            return Part(path, stem[: max(end, 0)], stem[end] if end >= 0 else "", _ROLES[words], words)
    return None


def _entries(folder: Path) -> list[os.DirEntry]:
    try:
        with os.scandir(folder) as entries:
            return sorted((entry for entry in entries if not entry.name.startswith(".")), key=lambda entry: entry.name)
    except OSError as error:
        raise InputError(f"{folder}: cannot be listed ({error.strerror}); allow it or move the folder away.") from None


def subfolders(folder: Path) -> list[Path]:
    """Folders in a folder, sorted, without hidden ones and what macOS leaves in archives."""
    return [Path(entry.path) for entry in _entries(folder) if entry.name != "__MACOSX" and entry.is_dir()]


def image_files(folder: Path) -> list[Path]:
    """Image files in a folder, sorted, without hidden ones; empty when there is no such folder."""
    if not folder.is_dir():
        return []
    return [Path(entry.path) for entry in _entries(folder) if split_ending(entry.name) and not entry.is_dir()]


def choose(paths: Sequence[Path]) -> tuple[Path | None, Path | None]:
    """The one file among candidates, and None; or the first, and another that could be meant as well.

    Files that hold the same voxels in the same place count as one; `.nii.gz` comes first.
    """
    if not paths:
        return None, None
    first, *others = sorted(paths, key=lambda path: (not path.name.endswith(".nii.gz"), path.name))
    return first, next((path for path in others if not same_volume(first, path)), None)


def nearest(wanted: Path, files: Iterable[Path]) -> str:
    """The end of a sentence about a file that is missing: which of these may be it, and what to do."""
    names = [path.name for path in files]
    near = difflib.get_close_matches(wanted.name.lower(), [name.lower() for name in names], 1, 0.3)
    if not near:
        return ""
    found = next(name for name in names if name.lower() == near[0])
    return f"; the nearest file is {found}: if it is the one, rename it to {wanted.name}"
