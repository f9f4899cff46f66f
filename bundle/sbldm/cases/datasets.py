"""Cases of a data set with imagesTr, labelsTr and dataset.json: nnU-Net raw (both versions) or MSD."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sbldm.cases.case import Case, Source
from sbldm.cases.labels import join, named_values, plain_name, scheme_values
from sbldm.cases.naming import CHANNELS, choose, image_files, nearest
from sbldm.cases.volumes import ENDINGS, load_image, split_ending
from sbldm.run.errors import DataError, InputError
from sbldm.run.files import check, reading

__all__ = ["dataset_cases", "described_cases", "is_dataset", "is_stacked"]

MSD, NNUNET = "MSD Task01", "nnU-Net raw"
IMAGES, MASKS = "imagesTr", "labelsTr"


def is_dataset(folder: Path) -> bool:
    """Whether a folder is a data set of this kind, if perhaps an empty one."""
    return (folder / IMAGES).is_dir() or (folder / MASKS).is_dir()


def is_stacked(path: Path) -> bool | None:
    """Whether an image file holds several volumes; None when it cannot be read."""
    try:
        return load_image(path).ndim == 4
    except Exception:  # nibabel, gzip and zlib each have their own; pre-flight says what is wrong
        return None


def _is_stacked(paths: Sequence[Path], usual: bool) -> bool:
    """Whether the images of a data set are 4-D, as the first that can be read says."""
    return next((stacked for path in paths[:8] if (stacked := is_stacked(path)) is not None), usual)


class _Files:
    """The image files of one folder by their stems, where `file_ending` of dataset.json settles which is meant."""

    def __init__(self, folder: Path, ending: str) -> None:
        self.folder, self.paths = folder, image_files(folder)
        self.ending = ending or (split_ending(self.paths[0].name)[1] if self.paths else ENDINGS[0])
        self.by_stem: dict[str, list[Path]] = {}
        for path in self.paths:
            self.by_stem.setdefault(split_ending(path.name)[0], []).append(path)
        for stem, paths in self.by_stem.items():
            if ending and (exact := [path for path in paths if path.name == stem + ending]):
                self.by_stem[stem] = exact

    def find(self, stems: list[str], hints: dict[Path, str], problems: list[str]) -> Path:
        """The file of one of these stems; where it should be when there is none."""
        path, other = choose([path for stem in stems for path in self.by_stem.get(stem, [])])
        if other:
            problems.append(f"{path} and {other.name} differ, and both could be meant; remove or rename one")
        if path is None:
            path = self.folder / f"{stems[0]}{self.ending}"
            hints[path] = nearest(path, self.paths)
        return path


def _described(path: Path) -> tuple[dict[str, Any], Mapping[str, str], dict[str, int], dict[int, str | None]]:
    """What dataset.json says: all of it, channel names by number as text, numbers by plain name, label values."""
    mend = "it must name the channels (channel_names, or modality) and labels of imagesTr and labelsTr by number"
    with reading(path, mend, remove=False, error=DataError):
        content = json.loads(path.read_bytes())
        check(content, {"labels": dict})
        key = "channel_names" if "channel_names" in content else "modality"
        check(content, {key: {str: str}})
        numbers = {plain_name(name): int(index) for index, name in content[key].items()}
        return content, content[key], numbers, named_values(content["labels"])


def _values(path: Path, labels: Any, values: dict[int, str | None], source: Source) -> dict[int, str | None]:
    """What the numbers mean: as dataset.json names them, and as the scheme says where its names tell nothing.

    Labels that are those asked for, by name and number, are ours; which of its tissues stands for one does not matter.
    """
    if source.scheme == "auto" and labels in ({"background": 0} | asked for asked in source.written_labels):
        return {k: None if tissues == "all" else tissues[0] for k, tissues in enumerate(source.labels.values(), 1)}
    if source.scheme != "auto":
        chosen = scheme_values(source.scheme)
        for number, tissue in values.items():
            if tissue and number in chosen and chosen[number] not in (tissue, None):
                raise InputError(
                    f"{path}: calls label {number} {tissue}, --labels {chosen[number]}; "
                    "leave --labels out, or mend this file."
                )
        values = {**values, **{number: tissue for number, tissue in chosen.items() if not values.get(number)}}
    if not values or source.asked - set(values.values()):
        raise InputError(
            f"{path}: its labels {labels} do not tell {join(sorted(source.asked)) or 'a tumour'} apart; "
            f"change `labels` (`all` joins every tumour label), or say what each number is with --labels file.yaml."
        )
    return values


def dataset_cases(root: Path, source: Source) -> list[Case]:
    """Cases of one data set; images are numbered by channel (`ID_0000.nii.gz`), or 4-D with one volume a channel.

    Raises:
        InputError: it lacks a channel or tissue asked for, or the labels asked for contradict it.
        DataError: dataset.json is missing or broken, or there is no pair.
    """
    path = root / "dataset.json"
    if not image_files(root / IMAGES) and not image_files(root / MASKS):
        raise DataError(f"{root}: {_empty(root)}")
    content, names, numbers, values = _described(path)
    indices = []
    for channel in source.channels:
        index = next((numbers[spelling] for spelling in numbers if spelling in CHANNELS[channel]), None)
        if index is None:
            raise InputError(f"{path}: has no channel {channel}, only {join(names.values())}; change `channels`.")
        indices.append(index)
    values = _values(path, content["labels"], values, source)
    return described_cases(root, content, indices, values)


def described_cases(
    root: Path, content: Mapping[str, Any], indices: Sequence[int], values: dict[int, str | None]
) -> list[Case]:
    """The cases of a data set whose description is known.

    Args:
        root: holds imagesTr and labelsTr.
        content: of dataset.json.
        indices: of the channels to take.
        values: number in a mask -> tissue.
    """
    names = content["channel_names" if "channel_names" in content else "modality"]
    ending = content.get("file_ending")
    images, masks = (_Files(root / part, ending if isinstance(ending, str) else "") for part in (IMAGES, MASKS))
    highest = max(int(index) for index in names)
    with_number = {stem for stem in images.by_stem if re.fullmatch(r".+_\d{4}", stem) and int(stem[-4:]) <= highest}
    one = len(names) == 1
    bare = set(images.by_stem) - with_number if one else set()  # the only channel needs no number
    first_version = "channel_names" not in content  # MSD, or nnU-Net's own first version
    if first_version == bool(with_number):  # the names do not settle it
        stacked = not one and _is_stacked(images.paths, first_version)
    else:
        stacked = not one and first_version
    by_number = not stacked and (bool(with_number) or not bare)
    layout = NNUNET if by_number else MSD
    known = {stem[:-5] for stem in with_number} | bare if by_number else set(images.by_stem)
    # A label may be called as the first image of its case.
    short = {stem: stem.removesuffix("_0000") for stem in masks.by_stem if by_number and stem not in known}
    of_case = {stem: short[stem] if short.get(stem) in known else stem for stem in masks.by_stem}
    cases = []
    for name in sorted(known | set(of_case.values())):
        hints, problems = {}, []
        if by_number:
            stems = [[f"{name}_{index:04d}"] + ([name] if one and name in bare else []) for index in indices]
        else:
            stems = [[name]] * len(indices)
        files = tuple(images.find(of_channel, hints, problems) for of_channel in stems)
        mask = masks.find([name, *(stem for stem, case in of_case.items() if case == name != stem)], hints, problems)
        volume = tuple(indices) if stacked else (None,) * len(indices)
        volumes = len(names) if stacked else None
        problem = problems[0] if problems else ""
        cases.append(Case(name, files, volume, mask, layout, values, volumes, hints, problem))
    return cases


def _empty(root: Path) -> str:
    """What a data set without any pair holds instead."""
    if (root / "synthesis.json").is_file():
        given_up = len(list((root / "records" / "given_up").glob("*.json")))
        why = f"all {given_up} drawn were given up (given_up.csv says why)" if given_up else "none has been drawn yet"
        return f"this data set of ours holds no pair: {why}; draw others (sbldm synth, another --seed) or name another."
    parts = [f"{part} {_holds(root / part)}" for part in (IMAGES, MASKS)]
    return (
        f"this data set holds no pair: {' and '.join(parts)}. What is missing: images {IMAGES}/ID_0000.nii.gz "
        f"(or {join(ENDINGS[1:])}) and masks {MASKS}/ID.nii.gz."
    )


def _holds(folder: Path) -> str:
    if not folder.is_dir():
        return "is missing"
    others = sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
    return f"holds no image file but {join(others, 3)}" if others else "is empty"
