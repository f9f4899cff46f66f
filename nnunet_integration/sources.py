"""What the arms train on and are tested on: the real cases of a run, and any generator's raw dataset, with lineage."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sbldm.cases.datasets import described_cases
from sbldm.cases.identity import Identity, Seen, brightness_hash, coarse_hash
from sbldm.cases.layouts import Case, Source, find_cases, plain_name, read_arrays
from sbldm.cases.pipeline import check_unchanged, original_cases
from sbldm.cases.preflight import preflight
from sbldm.cases.volumes import load_image, read_image, whole_numbers
from sbldm.metrics.nearness import too_many_copies
from sbldm.run.errors import DamagedError, DataError, InputError, StateError
from sbldm.run.files import read_json, reading, user_path
from sbldm.run.folder import Run
from sbldm.run.manifest import Manifest, PairRecord
from sbldm.run.progress import progress
from sbldm.run.text import some

__all__ = [
    "Pairs",
    "RealCases",
    "find_pairs",
    "find_real",
    "nested_subset",
    "pairs_for",
]


MEND = "restore it from a copy, or draw the pair again, as it is not whole"
RESERVED = ("real", "test", "synth", "aug", "aug5")  # the pool's own


@dataclass(frozen=True)
class RealCases:
    """Real cases of an evaluation.

    Attributes:
        source: channels and labels, as the run was prepared.
        train, test: case by name.
        identities: all hashes of each case, by name.
        spacings: voxel spacings (mm) that occur among the training cases.
    """

    source: Source
    train: dict[str, Case]
    test: dict[str, Case]
    identities: dict[str, Identity]
    spacings: frozenset[tuple[float, ...]]

    @property
    def content(self) -> dict[str, str]:
        """Hash of each case's first image, by name: what lineages hold."""
        return {name: identity.content for name, identity in self.identities.items()}

    def marks(self, name: str) -> list[str]:
        """By what a generator from elsewhere knows a case (`Seen`), which it may have seen at half its resolution."""
        case, identity = (self.train | self.test)[name], self.identities[name]
        image, _, affine = read_arrays(case, self.source)
        return [identity.content, identity.brightness, coarse_hash(image[0], affine)]


def find_real(run: Run, data: str | Path | None = None, test: str | Path | None = None) -> RealCases:
    """Training cases of a run and the test cases: the run's held-back ones, or the sound cases of a folder.

    Raises:
        InputError, StateError: the run is not prepared, or its cases are not where they were.
        DataError: a case cannot be read; or a test case is a training case too, by name or by content.
    """
    source = Source.from_config(**dict(run.preset.data))
    train = {case.name: case for case in original_cases(run, "train", data)}
    if test:
        if not user_path(test).is_dir():
            raise InputError(f"--test {test}: no such folder.")
        usable, _, tested = preflight(find_cases(user_path(test), source), source, workers=1)
        held_out = {case.name: case for case in usable}
    else:
        held_out = {case.name: case for case in original_cases(run, "validation", data)}
        tested = check_unchanged(run, list(held_out.values()))
    if both := train.keys() & held_out.keys():
        raise DataError(f"--test: {some(both)}: also among the training cases of {run.folder}; leave them out of one.")
    trained = check_unchanged(run, list(train.values()))
    twins = {identity.brightness: name for name, identity in trained.items()}
    for name, identity in tested.items():
        if twin := twins.get(identity.brightness):
            raise DataError(f"--test: {name} holds the same image as the training case {twin}; leave one of them out.")
    spacings = {_spacing(case.images[0]) for case in train.values()}
    return RealCases(source, train, held_out, trained | tested, frozenset(spacings))


def _spacing(path: Path) -> tuple[float, ...]:
    return tuple(round(float(s), 3) for s in load_image(path).header.get_zooms()[:3])


def nested_subset(names: Iterable[str], count: int, seed: int = 0) -> list[str]:
    """The first `count` names of one seeded order, sorted: a smaller subset lies in every larger one.

    Raises:
        InputError: there are fewer.
    """
    ordered = sorted(names)
    if not 0 < count <= len(ordered):
        raise InputError(f"--n-real {count}: must be from 1 to the number of real training cases, {len(ordered)}.")
    order = np.random.default_rng(seed).permutation(len(ordered))
    return sorted(ordered[index] for index in order[:count])


@dataclass(frozen=True)
class Pairs:
    """The synthetic pairs of one generator, in any nnU-Net raw dataset.

    Attributes:
        generator: name in the arms.
        only: the number of real cases, or that and the fold, whose arms these pairs may join (`sbldm@25=..`,
            `sbldm@25/0=..`); empty for any.
        cases: files of each pair, in the order in which arms take them.
        lineage: real cases that the pairs descend from, with content hashes; None when the dataset does not say.
        parents: for pairs that descend from some of those alone, which.
        scans: those of the lineage that are canvases of the user's own, no case of the evaluation: free for any arm.
        outside: which cases the generator was trained on when it came from elsewhere; they are none of the lineage.
    """

    generator: str
    only: str
    folder: Path
    cases: dict[str, Case]
    lineage: dict[str, str] | None
    parents: dict[str, frozenset[str]]
    scans: frozenset[str] = frozenset()
    outside: Seen | None = None

    def seen(self, names: Iterable[str], real: RealCases) -> set[str]:
        """Those of these real cases that pairs descend from or the generator learned from, by name or by content."""
        lineage = self.lineage or {}
        hashes = set(lineage.values())
        found = {name for name in names if name in lineage or real.content[name] in hashes}
        return found | self.learned(names, real)

    def learned(self, names: Iterable[str], real: RealCases) -> set[str]:
        """Those of these real cases that a generator from elsewhere was trained on."""
        return {name for name in names if self.outside and self.outside.holds(*real.marks(name))}

    def usable(self, training: Mapping[str, str]) -> list[str]:
        """Pairs that descend from nothing but these training cases (name -> content hash), as far as pairs say so."""
        if not self.parents:
            return list(self.cases)
        lineage = self.lineage or {}
        allowed = {name for name, content in training.items() if lineage.get(name) == content} | self.scans
        return [name for name in self.cases if self.parents[name] <= allowed]

    @property
    def more(self) -> str:
        """How to draw more pairs, as the end of a message."""
        if self.lineage is None:
            return "add more to it, or ask for a smaller amount"
        target = "copypaste" if Manifest(self.folder).is_copypaste else "synth"
        return f"draw more with `sbldm {target} --run {self.folder.parents[1]} --n ..`"


def find_pairs(synth: Sequence[str], run: Run, real: RealCases, arms: Sequence[str] = ()) -> list[Pairs]:
    """Read generators: `name=folder`, `name@N=folder` or `name@N/FOLD=folder`.

    Each folder is a run or an nnU-Net raw dataset. Without any: every dataset under the run's `nnUNet_raw`, called by
    its name in small letters; one with a damaged file is passed over with a warning, unless `arms` name it.

    Raises:
        InputError: one is not of this form, or a name stands for two folders.
        StateError: there is no dataset of this name in that folder, or a file of one that is named is damaged.
        DataError: a dataset's channels, labels or spacing are not those of the real cases, a pair is not whole, or its
            image is that of a test case.
    """
    asked: dict[tuple[str, str], Path] = {}
    if synth:
        for word in synth:
            match = re.fullmatch(r"([^@=]+)(?:@(\d+(?:/\d+)?))?=(.+)", word)
            if not match:
                raise InputError(f"--synth {word}: write name=folder or name@N_REAL=folder.")
            key = (match[1], match[2] or "")
            if key in asked:
                raise InputError(f"--synth: {match[1]} stands for two folders.")
            asked[key] = _dataset_folder(user_path(match[3]).resolve(), match[1])
    else:
        for folder in run.datasets():
            key = (folder.name.split("_", 1)[1].lower(), "")
            if key in asked:
                print(f"Left out: {folder}, as {asked[key].name} has the same name; --synth can take both.")
            asked.setdefault(key, folder.resolve())
    for (generator, _), folder in asked.items():
        if not re.fullmatch(r"[a-z][a-z0-9_]*", generator) or generator in RESERVED:
            raise InputError(
                f"--synth {generator}={folder}: a generator's name has small letters, digits and underscores, and is "
                f"none of {', '.join(RESERVED)}."
            )
    named, found = {part for arm in arms for part in re.split("[+@]", arm)}, []
    for (generator, only), folder in asked.items():
        try:
            found.append(_read_pairs(generator, only, folder, real))
        except DamagedError as error:
            if synth or generator in named:
                raise
            print(f"Warning: {error} Its pairs are left out.")
    return found


def _dataset_folder(folder: Path, generator: str) -> Path:
    if (folder / "dataset.json").is_file():
        return folder
    found = Run(folder).datasets()
    named = [path for path in found if path.name.split("_", 1)[1].lower() == generator]
    if len(named) == 1 or (not named and len(found) == 1):
        return (named or found)[0]
    what = f"several datasets ({some(p.name for p in found)}); name one of them" if found else "no nnU-Net raw dataset"
    raise StateError(f"--synth {generator}={folder}: holds {what}; draw some: {Run(folder).to_draw(20)}.")


def _read_pairs(generator: str, only: str, folder: Path, real: RealCases) -> Pairs:
    """One dataset, with every pair looked at once."""
    _check_description(folder / "dataset.json", real)
    manifest = Manifest(folder)
    lineage, origin = (manifest.lineage, manifest.origin) if manifest.has_lineage else (None, None)
    channels = range(len(real.source.channels))
    found = {
        case.name: case
        for case in described_cases(folder, read_json(folder / "dataset.json", error=DataError), channels, {})
    }
    names = list(found)
    parents: dict[str, frozenset[str]] = {}
    scans: frozenset[str] = frozenset()
    if lineage is None:
        print(f"Warning: {folder} does not say which real cases it was made from; make sure that none is tested on.")
    elif manifest.file.is_file():
        records = {pair.name: pair for pair in manifest.pairs}
        names = [name for name in names if name in records]  # nothing else in the folder has this lineage
        elsewhere = manifest.from_elsewhere
        _check_copies(manifest, audited=elsewhere)
        ancestors = {name: records[name].ancestors(elsewhere) for name in names}
        parents = {name: known for name, known in ancestors.items() if known is not None}
        scans = _scans(manifest.pairs, lineage, real)
    tested = {real.identities[name].brightness: name for name in real.test}
    cases = {}
    for name in progress(names, f"Checking the pairs of {generator}", unit="pair"):
        case = found[name]
        if case.problem:
            raise DataError(f"{name}: {case.problem}.")
        if twin := tested.get(_check_pair(case, real)):
            raise DataError(f"{case.images[0]}: holds the image of the test case {twin}; leave it out.")
        cases[name] = case
    outside = Seen.from_state(origin["seen"]) if origin else None
    return Pairs(generator, only, folder, cases, lineage, parents, scans, outside)


def _scans(pairs: Iterable[PairRecord], lineage: Mapping[str, str], real: RealCases) -> frozenset[str]:
    """Names in a lineage of canvases that are no case of the evaluation, neither by name nor by content."""
    contents = set(real.content.values())
    canvases = {pair.canvas_content for pair in pairs if pair.canvas} - contents
    return frozenset(n for n, content in lineage.items() if content in canvases and n not in real.content)


def _check_copies(manifest: Manifest, audited: bool = False) -> None:
    """Refuse a dataset in which too many pairs look like training cases, unless the gate was overridden on purpose.

    Those of a generator from elsewhere are not here; whoever handed it on has `audited` it.
    """
    folder, pairs = manifest.dataset, manifest.pairs
    if overridden := len(manifest.overridden):
        print(f"Warning: {folder}: the gate was overridden for {overridden} pair(s); see its manifest.csv.")
    unseen = sum(pair.gate is not None and pair.near is None and not pair.canvas for pair in pairs)
    if unseen and not audited:
        print(f"Warning: {folder}: {unseen} pair(s) were never compared with the training cases.")
    gate = manifest.settings.get("gate") if manifest.has_settings else None
    if gate and (verdict := too_many_copies([pair.near for pair in pairs], gate["honest_cases"])):
        if gate["switch"] == "on":
            raise StateError(f"{folder}: {verdict}; leave it out, or draw it with --gate off to use it all the same.")
        print(f"Warning: {folder}: {verdict}; used all the same, as it was drawn with --gate off.")


def _check_description(path: Path, real: RealCases) -> None:
    """Channels and labels must be those of the real cases, by name and number."""
    mend = "it must name channel_names from 0 on, and the number of each label"
    content = read_json(path, {"channel_names": {str: str}, "labels": dict}, mend, remove=False, error=DataError)
    with reading(path, mend, remove=False, error=DataError):
        channels = [plain_name(content["channel_names"][str(k)]) for k in range(len(content["channel_names"]))]
    ours = real.source.description(0)
    if channels != [plain_name(name) for name in ours["channel_names"].values()]:
        raise DataError(
            f"{path}: its channels are {some(content['channel_names'].values())}, "
            f"those of the real cases {some(ours['channel_names'].values())}."
        )
    labels = {plain_name(name): number for name, number in content["labels"].items() if name != "background"}
    if labels not in [{plain_name(n): k for n, k in names.items()} for names in real.source.written_labels]:
        raise DataError(f"{path}: its labels are {content['labels']}, those of the real cases {ours['labels']}.")


def _check_pair(case: Case, real: RealCases) -> str:
    """Brightness hash of a pair's first image, after a look at all its files; a `DataError` names what is wrong."""
    contents = []
    for path in (*case.images, case.mask):
        voxels = np.asarray(read_image(path, MEND).dataobj, np.float32)
        if (spacing := _spacing(path)) not in real.spacings:
            raise DataError(
                f"{path}: its spacing {spacing} mm occurs in no real training case ({some(map(str, real.spacings))})."
            )
        if contents and voxels.shape != contents[0].shape:
            raise DataError(f"{path}: has shape {voxels.shape}, {case.images[0].name} {contents[0].shape}.")
        if not np.isfinite(voxels).all():
            raise DataError(f"{path}: holds voxels that are no numbers.")
        contents.append(voxels)
    if strange := set(np.unique(whole_numbers(contents[-1])).tolist()) - set(range(1 + len(real.source.labels))):
        raise DataError(f"{case.mask}: holds the label {min(strange):g}, which its dataset.json does not have.")
    return brightness_hash(contents[0])


def pairs_for(
    pairs: Sequence[Pairs], generator: str, subset: Sequence[str], fold: int | None, training: Sequence[str]
) -> Pairs | None:
    """The dataset of a generator for an arm with these real cases, or None.

    One made for this number of cases (and this fold) comes first; else one that has learned from no other case than
    those that train, or whose pairs say so one by one.
    """
    of_generator = [p for p in pairs if p.generator == generator]
    exact = f"{len(subset)}" if fold is None else f"{len(subset)}/{fold}"
    named = [p for p in of_generator if p.only == exact]
    free = [p for p in of_generator if not p.only]
    allowed = set(training)
    return next(
        iter(named + [p for p in free if p.lineage is None or p.parents or set(p.lineage) - p.scans <= allowed]), None
    )
