"""Cases whose files are told by their names: a folder for each case, as in BraTS, or many cases in one folder."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from sbldm.cases.case import Case, Source
from sbldm.cases.labels import plain_name, scheme_values
from sbldm.cases.naming import MASK, Part, choose, image_files, nearest, parse
from sbldm.cases.volumes import split_ending

__all__ = ["folder_cases"]

OLD, NEW = "BraTS 2018-2021", "BraTS 2023+"
# Separator and file names of each layout, and the scheme of its masks.
_NAMES = {
    OLD: ("_", {"flair": "flair", "t1": "t1", "t1ce": "t1ce", "t2": "t2", MASK: "seg"}, "brats21"),
    NEW: ("-", {"flair": "t2f", "t1": "t1n", "t1ce": "t1c", "t2": "t2w", MASK: "seg"}, "brats23"),
}
_NEW_CASE = re.compile(r"brats-[a-z]+-\d+(-\d+)?", re.IGNORECASE)  # BraTS-GLI-00005-001
_PAEDIATRIC = re.compile(r"brats-peds?-", re.IGNORECASE)


def folder_cases(folder: Path, source: Source, is_root: bool = False) -> list[Case]:
    """The cases whose files lie in this very folder; none when no file in it is called as those of a case.

    A file `NAME_flair.nii.gz` belongs to the case NAME. Where one case alone has images here, the case is called as the
    folder; where several have, each by its own name (a flat folder), but for a folder that is called as one of them.

    Args:
        folder: holds the files.
        source: channels and labels asked for.
        is_root: whether it is the data folder itself, whose name says nothing of a case.
    """
    files = image_files(folder)
    parts = [part for path in files if (part := parse(path, folder.name))]
    groups: dict[str, list[Part]] = {}
    for part in parts:
        groups.setdefault(part.case.lower(), []).append(part)
    named = {part.path for part in parts}
    unnamed = [path for path in files if path not in named]
    masks = [part for group in groups.values() for part in group if all(p.role == MASK and p.sure for p in group)]

    def asked(group: Sequence[Part]) -> bool:
        return any(part.role in source.channels for part in group)

    if own := groups.pop(folder.name.lower(), []):
        own = [*own, *groups.pop("", [])]
    has_mask = any(part.role == MASK for part in own)
    if own and (asked(own) or has_mask or not any(map(asked, groups.values()))):
        others = [part.path for group in groups.values() for part in group]
        own += [part for part in masks if not has_mask and part.case and _is_tumour(part, folder.name)]
        return [_case(folder, folder.name, folder.name, own, [*unnamed, *others], source)]

    imaged = [group for group in groups.values() if asked(group) or (_has_sure_mask(group) and group[0] not in masks)]
    unnamed += [part.path for part in masks]
    if len(imaged) == 1 and not (is_root and imaged[0][0].case):
        return [_case(folder, folder.name, imaged[0][0].case, imaged[0], unnamed, source)]
    prefixes = [group[0].case for group in imaged]
    alone = [group for group in groups.values() if group[0] in masks and _is_tumour(group[0], *prefixes)]
    cases = [(group[0].case, group) for group in [*imaged, *alone]]
    return [_case(folder, prefix or folder.name, prefix, group, unnamed, source) for prefix, group in cases]


def _has_sure_mask(group: Sequence[Part]) -> bool:
    return any(part.role == MASK and part.sure for part in group)


def _is_tumour(mask: Part, *cases: str) -> bool:
    """Whether a mask under a name of its own may be a case's, as `W39_1998.09.19_Segm.nii` of BraTS20_Training_355.

    `X_brain_seg` beside `X_flair` is another structure of X.
    """
    other = {"brain", "skull", "head", "bet", "tissue", "csf", "aseg", "aparc"} & set(plain_name(mask.case).split())
    return not other and not mask.case.lower().startswith(tuple(case.lower() for case in cases if case))


def _layout(case: str, folder: Path, parts: Sequence[Part]) -> str:
    words = {part.words for part in parts}
    if _NEW_CASE.fullmatch(case) or _NEW_CASE.fullmatch(folder.name) or words & {"t2f", "t1n", "t2w"}:
        return NEW
    return NEW if words <= {"t1c", "seg"} and all(part.separator == "-" for part in parts) else OLD


def _case(folder: Path, name: str, prefix: str, parts: Sequence[Part], unnamed: Sequence[Path], source: Source) -> Case:
    """The case of these files; of each part that is missing the path where it should be."""
    layout = _layout(prefix, folder, parts)
    separator, suffixes, scheme = _NAMES[layout]
    endings = Counter(split_ending(part.path.name)[1] for part in parts)
    found, hints, problems = {}, {}, []
    for role in (*source.channels, MASK):
        of_role = [part for part in parts if part.role == role]
        sure = [part.path for part in of_role if part.sure] or [part.path for part in of_role]
        path, other = choose(sure)
        if other:
            problems.append(f"{path} and {other.name} differ, and both could be its {role}; remove or rename one")
        if path is None:
            path = folder / f"{prefix}{separator if prefix else ''}{suffixes[role]}{endings.most_common(1)[0][0]}"
            hints[path] = nearest(path, unnamed)
        found[role] = path
    if source.scheme != "auto":
        scheme = source.scheme
    elif layout == NEW and any(_PAEDIATRIC.match(text) for text in (prefix, folder.name)):
        scheme = "peds"
    images = tuple(found[channel] for channel in source.channels)
    volume = (None,) * len(images)
    values = scheme_values(scheme)
    return Case(name, images, volume, found[MASK], layout, values, hints=hints, problem=problems[0] if problems else "")
