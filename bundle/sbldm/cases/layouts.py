"""Where the files of a case are, and what the numbers in its mask mean, for the layouts in common use."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from sbldm.cases.case import Case, Source, content_hash, read_arrays, to_labels
from sbldm.cases.datasets import IMAGES, MASKS, dataset_cases, is_dataset
from sbldm.cases.folders import folder_cases
from sbldm.cases.labels import TISSUES, join, plain_name
from sbldm.cases.lists import pick
from sbldm.cases.naming import CHANNELS, image_files, parse, subfolders
from sbldm.run.errors import DataError, InputError

__all__ = [
    "CHANNELS",
    "TISSUES",
    "Case",
    "Source",
    "content_hash",
    "find_cases",
    "plain_name",
    "read_arrays",
    "to_labels",
]

DEPTH = 4  # folders below the data folder that are looked into; Kaggle's archive of BraTS 2020 has its cases at 3
_UNDERSTOOD = (
    "BraTS 2018-2021 (CASE/CASE_flair.nii.gz, CASE_seg), BraTS 2023+ (CASE/CASE-t2f.nii.gz, CASE-seg), "
    "MSD Task01 (4-D imagesTr, labelsTr, dataset.json), nnU-Net raw (imagesTr/ID_0000.nii.gz, labelsTr, dataset.json)"
)


def _walk(folder: Path, depth: int = DEPTH) -> Iterator[Path]:
    """A folder and all below it to some depth, but what lies in a data set."""
    yield folder
    if depth and not is_dataset(folder):
        for inner in subfolders(folder):
            yield from _walk(inner, depth - 1)


def find_cases(root: Path, source: Source, names: Sequence[str] | None = None) -> list[Case]:
    """Find the cases of a folder in whichever layout it has; hidden and stray files are ignored.

    Case folders and flat folders may stand up to four levels deeper (HGG, LGG, an archive as unpacked), and so may a
    single imagesTr / labelsTr data set.

    Args:
        root: the data folder.
        source: channels and labels asked for.
        names: keep these cases alone, in this order, each once; names of their files or with folders will do.

    Returns:
        Cases sorted by name, or in the order of `names`. A missing image or mask leaves its expected path in the case.

    Raises:
        InputError: `root` is no folder, cannot be listed, holds several data sets, or lacks a channel or tissue asked
            for.
        DataError: no case found, two cases of one name, two files that could be the same part of a case, or some of
            `names` are not there.
    """
    root = Path(root)
    if not root.is_dir():
        raise InputError(f"--data {root}: no such folder.")
    folders = list(_walk(root))
    datasets = [folder for folder in folders if is_dataset(folder)]
    cases = [
        case for folder in folders if folder not in datasets for case in folder_cases(folder, source, folder == root)
    ]
    if len(datasets) > 1 or (datasets and cases):
        both = [str(folder.relative_to(root)) for folder in datasets] + ["case folders"] * bool(cases)
        raise InputError(f"--data {root}: holds several data sets ({join(both)}); name one of them.")
    if datasets:
        cases = dataset_cases(datasets[0], source)
    if not cases:
        raise DataError(f"{root}: no case found{_nearly(root, folders)}. Layouts understood: {_UNDERSTOOD}.")

    cases = _told_apart(cases)
    by_name = {case.name: case for case in sorted(cases, key=lambda case: case.name)}
    if len(by_name) < len(cases):
        twice = [name for name, count in Counter(case.name for case in cases).items() if count > 1]
        where = join([case.mask.parent for case in cases if case.name == twice[0]], 2)
        raise DataError(f"{root}: more than one case is called {join(twice, 3)} ({where}); rename or remove one.")
    chosen = list(by_name) if names is None else pick(names, {name: _aliases(by_name[name]) for name in by_name}, root)
    found = [by_name[name] for name in chosen]
    if unclear := [case for case in found if case.problem]:
        more = f" ({len(unclear) - 1} more cases like it)" if len(unclear) > 1 else ""
        raise DataError(f"{unclear[0].name}: {unclear[0].problem}{more}.")
    return found


def _told_apart(cases: Sequence[Case]) -> list[Case]:
    """Cases whose folders are all called alike (`sub-01/anat`, `sub-02/anat`) are called as their files are."""
    counts = Counter(case.name for case in cases)

    def named(case: Case) -> Case:
        others = _aliases(case) - {case.name}
        return replace(case, name=others.pop()) if counts[case.name] > 1 and len(others) == 1 else case

    return [named(case) for case in cases]


def _aliases(case: Case) -> set[str]:
    """What else a list may call a case: by the names of its files, where these tell a case."""
    parts = [parse(path, case.name) for path in (*case.images, case.mask)]
    return {part.case for part in parts if part and part.case}


def _nearly(root: Path, folders: Sequence[Path]) -> str:
    """What is there instead of cases, and what to do."""
    if root.name in (IMAGES, MASKS):
        return f"; this is a part of a data set, name its folder {root.parent}"
    if (root / "dataset.json").is_file():
        return f"; {root / 'dataset.json'} is there, but {IMAGES} and {MASKS} are missing beside it"
    if files := [path for folder in folders for path in image_files(folder)]:
        say = f"{len(files)} image file(s), as {files[0].relative_to(root)}"
        return f"; there are {say}: rename them to CASE_flair.nii.gz and CASE_seg.nii.gz, in a folder CASE"
    return ""
