"""What the arms train on and are tested on: the real cases of a run, and any generator's raw dataset, with lineage."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from sbldm.cases.layouts import Case, Source, content_hash, find_cases, plain_name, read_arrays
from sbldm.cases.pipeline import original_cases
from sbldm.errors import DataError, InputError, StateError
from sbldm.files import read_json
from sbldm.runs import Run

__all__ = ["Pairs", "RealCases", "find_pairs", "find_real", "nested_subset", "pairs_for", "some"]


def some(names: Iterable[str], limit: int = 3) -> str:
    """The first names, and how many more there are."""
    names = sorted(names)
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")


@dataclass(frozen=True)
class RealCases:
    """Real cases of an evaluation.

    Attributes:
        source: channels and labels, as the run was prepared.
        train, test: case by name.
        content: hash of each case's first image, by name.
        spacings: voxel spacings (mm) that occur among the training cases.
    """

    source: Source
    train: dict[str, Case]
    test: dict[str, Case]
    content: dict[str, str]
    spacings: frozenset[tuple[float, ...]]

    @property
    def dataset_json(self) -> dict[str, Any]:
        """Channels and labels as nnU-Net writes them."""
        return {
            "channel_names": {str(k): name.upper() for k, name in enumerate(self.source.channels)},
            "labels": {"background": 0} | {name: k + 1 for k, name in enumerate(self.source.labels)},
            "file_ending": ".nii.gz",
        }


def find_real(run: Run, data: str = "", test: str = "") -> RealCases:
    """Training cases of a run and the test cases: the run's held-back ones, or all cases of a folder.

    Raises:
        InputError, StateError: the run is not prepared, or its cases are not where they were.
        DataError: a test case is a training case too, by name or by content.
    """
    source = Source.from_config(**run.preset["data"])
    train = {case.name: case for case in original_cases(run, "train", data)}
    if test:
        held_back = {case.name: case for case in find_cases(Path(test), source)}
    else:
        held_back = {case.name: case for case in original_cases(run, "validation", data)}
    content = {}
    for name, case in (train | held_back).items():
        sidecar = run.prepared / f"{name}.json"
        known = read_json(sidecar).get("content") if sidecar.exists() and not (test and name in held_back) else None
        content[name] = known or content_hash(read_arrays(case, source)[0][0])
    if both := train.keys() & held_back.keys():
        raise DataError(f"TEST: {some(both)}: also among the training cases of {run.folder}; leave them out of one.")
    of_content = {content[name]: name for name in train}
    for name in held_back:
        if twin := of_content.get(content[name]):
            raise DataError(f"TEST: {name} holds the same image as the training case {twin}; leave one of them out.")
    spacings = {_spacing(case.images[0]) for case in train.values()}
    return RealCases(source, train, held_back, content, frozenset(spacings))


def _spacing(path: Path) -> tuple[float, ...]:
    return tuple(round(float(s), 3) for s in nib.load(path).header.get_zooms()[:3])


def nested_subset(names: Iterable[str], count: int, seed: int = 0) -> list[str]:
    """The first `count` names of one seeded order, sorted: a smaller subset lies in every larger one.

    Raises:
        InputError: there are fewer.
    """
    ordered = sorted(names)
    if not 0 < count <= len(ordered):
        raise InputError(f"N_REAL={count}: must be from 1 to the number of real training cases, {len(ordered)}.")
    order = np.random.default_rng(seed).permutation(len(ordered))
    return sorted(ordered[index] for index in order[:count])


@dataclass(frozen=True)
class Pairs:
    """The synthetic pairs of one generator, in any nnU-Net raw dataset.

    Attributes:
        generator: name in the arms.
        n_real: the number of real cases these pairs may join (`sbldm@25=...`), or None for any.
        cases: files of each pair, in the order in which arms take them.
        lineage: real cases that the pairs descend from, with content hashes; None when the dataset does not say.
        parents: for pairs that descend from some of those alone, which.
    """

    generator: str
    n_real: int | None
    folder: Path
    cases: dict[str, Case]
    lineage: dict[str, str] | None
    parents: dict[str, frozenset[str]]

    def seen(self, held_out: Mapping[str, str]) -> set[str]:
        """Cases among `held_out` (name -> content hash) that the generator learned from, by name or by content."""
        lineage = self.lineage or {}
        hashes = set(lineage.values())
        return {name for name, content in held_out.items() if name in lineage or content in hashes}

    def usable(self, training: Iterable[str]) -> list[str]:
        """Pairs that descend from nothing but these real training cases, as far as single pairs say so."""
        allowed = set(training)
        return [name for name in self.cases if name not in self.parents or self.parents[name] <= allowed]


def find_pairs(synth: str, run: Run, real: RealCases) -> list[Pairs]:
    """Read SYNTH: `name=folder` or `name@N=folder`, blanks between; each folder a run or an nnU-Net raw dataset.

    Without SYNTH: every dataset under the run's `nnUNet_raw`, called by its name in small letters.

    Raises:
        InputError: SYNTH is not of this form, or a name stands for two folders.
        StateError: there is no dataset of this name in that folder.
        DataError: a dataset's channels, labels or spacing are not those of the real cases.
    """
    asked: dict[tuple[str, int | None], Path] = {}
    if synth:
        for word in synth.split():
            match = re.fullmatch(r"([a-z][a-z0-9_]*)(?:@(\d+))?=(.+)", word)
            if not match or match[1] in ("real", "synth", "aug", "aug5"):
                raise InputError(f"SYNTH={word}: write name=folder or name@N_REAL=folder, in small letters.")
            key = (match[1], int(match[2]) if match[2] else None)
            if key in asked:
                raise InputError(f"SYNTH: {match[1]} stands for two folders.")
            asked[key] = _dataset_folder(Path(match[3]).expanduser(), match[1])
    else:
        for path in sorted((run.folder / "nnUNet_raw").glob("Dataset*_*/dataset.json")):
            asked.setdefault((path.parent.name.split("_", 1)[1].lower(), None), path.parent)
    return [_read_pairs(generator, n_real, folder, real) for (generator, n_real), folder in asked.items()]


def _dataset_folder(folder: Path, generator: str) -> Path:
    if (folder / "dataset.json").is_file():
        return folder
    found = sorted(path.parent for path in (folder / "nnUNet_raw").glob("Dataset*_*/dataset.json"))
    named = [path for path in found if path.name.split("_", 1)[1].lower() == generator]
    if len(named) == 1 or (not named and len(found) == 1):
        return (named or found)[0]
    what = f"several datasets ({some(p.name for p in found)}); name one of them" if found else "no nnU-Net raw dataset"
    raise StateError(f"SYNTH={generator}={folder}: holds {what}; draw pairs with `make synth RUN={folder} N=..`.")


def _read_pairs(generator: str, n_real: int | None, folder: Path, real: RealCases) -> Pairs:
    path = folder / "dataset.json"
    try:
        content = read_json(path)
        channels = [plain_name(content["channel_names"][str(k)]) for k in range(len(content["channel_names"]))]
        labels = {plain_name(name): number for name, number in content["labels"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path}: channel_names and labels cannot be read ({error!r}).") from None
    ours = real.dataset_json
    if channels != [plain_name(name) for name in ours["channel_names"].values()]:
        raise DataError(
            f"{path}: its channels are {some(content['channel_names'].values())}, "
            f"those of the real cases {some(ours['channel_names'].values())}."
        )
    if labels != {plain_name(name): number for name, number in ours["labels"].items()}:
        raise DataError(f"{path}: its labels are {content['labels']}, those of the real cases {ours['labels']}.")
    cases = {case.name: case for case in find_cases(folder, real.source)}
    for case in cases.values():
        missing = [file for file in (*case.images, case.mask) if not file.is_file()]
        if missing:
            raise DataError(f"{missing[0]}: is missing; the pair {case.name} is not whole.")
        if (spacing := _spacing(case.images[0])) not in real.spacings:
            raise DataError(
                f"{case.images[0]}: its spacing {spacing} mm occurs in no real training case "
                f"({some(map(str, real.spacings))})."
            )
    mark, manifest = folder / "lineage.json", folder / "manifest.csv"
    lineage = read_json(mark)["cases"] if mark.is_file() else None
    parents = {}
    if lineage is not None and manifest.is_file():
        with open(manifest, newline="") as file:
            parents = {
                row["pair"]: frozenset(row["parents"].split()) for row in csv.DictReader(file) if "parents" in row
            }
    if lineage is None:
        print(
            f"Warning: {folder} does not say which real cases its pairs descend from; make sure that none is tested on."
        )
    return Pairs(generator, n_real, folder, cases, lineage, parents)


def pairs_for(pairs: Sequence[Pairs], generator: str, training: Sequence[str]) -> Pairs | None:
    """The dataset of a generator that may join these real training cases, or None.

    One made for this number of cases comes first; else one that has learned from no other case than these.
    """
    of_generator = [p for p in pairs if p.generator == generator]
    for p in of_generator:
        if p.n_real == len(training):
            return p
    for p in of_generator:
        if p.n_real is None and (p.lineage is None or p.parents or set(p.lineage) <= set(training)):
            return p
    return None
