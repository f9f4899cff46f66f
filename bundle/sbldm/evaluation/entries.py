"""Whose pairs may stand beside each other in one table: runs and datasets, the same cases, evaluations made alike."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from sbldm.cases.lists import read_lists
from sbldm.evaluation.evaluate import is_scored_alike
from sbldm.evaluation.written import read_evaluation
from sbldm.run.errors import InputError, StateError
from sbldm.run.files import user_path
from sbldm.run.folder import Run
from sbldm.run.manifest import Manifest
from sbldm.run.models import MODELS
from sbldm.run.text import some

__all__ = ["Entry", "check_same_cases", "read_entries", "update_evaluations"]

EXAMPLE = "sbldm table1 runs/mine runs/lsgan runs/ldm3d"
DATASET = "501"


# --- what is compared -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Entry:
    """One row to be: the pairs of a run.

    Attributes:
        run: that drew them.
        dataset: folder of the nnU-Net raw dataset.
        model: one of `MODELS`.
        title: of the method, with its sampler where it has one: "SBLDM (DDIM 50)".
        name: of the run, with the number of the dataset where it is not 501: "mine:502".
        settings: what all pairs have in common (`synthesis.json`).
    """

    run: Run
    dataset: Path
    model: str
    title: str
    name: str
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """What the row is called."""
        return f"{self.title}, {self.name}"

    @property
    def number(self) -> str:
        """Of the dataset."""
        return self.dataset.name.removeprefix("Dataset").partition("_")[0]

    @property
    def evaluation(self) -> Path:
        """Where its evaluation is, or will be."""
        return self.run.evaluation / self.dataset.name / "evaluation.json"

    @property
    def sampling(self) -> dict[str, Any]:
        """How the pairs were drawn: sampler, steps and so on; empty where nothing was sampled."""
        return dict(self.settings.get("sampling", {}))

    @property
    def is_current(self) -> bool:
        """Whether there is an evaluation of this version, and no pair has been drawn since."""
        manifest = Manifest(self.dataset).file
        if not self.evaluation.is_file() or self.evaluation.stat().st_mtime_ns < manifest.stat().st_mtime_ns:
            return False
        return is_scored_alike(read_evaluation(self.evaluation.parent)["provenance"])


def read_entries(runs: Sequence[str]) -> list[Entry]:
    """What `--runs` names: run folders, each with the number of its dataset behind a colon where it is not 501.

    Raises:
        InputError: there is none, a number is none, or the same pairs are named twice.
        StateError: a folder is no run, or holds no pairs under this number.
    """
    if not runs:
        raise InputError(f"--runs is missing: name runs whose pairs have been drawn, for example {EXAMPLE}.")
    entries: list[Entry] = []
    for text in runs:
        entry = _entry(text)
        if entry.dataset in [other.dataset for other in entries]:
            raise InputError(f"--runs {text}: these pairs stand there twice; name each once.")
        entries.append(entry)
    folders = {entry.run.folder for entry in entries}
    alike = [folder.name for folder in folders]
    return [
        replace(e, name=f"{e.run.folder.parent.name}/{e.name}") if alike.count(e.run.folder.name) > 1 else e
        for e in entries
    ]


def _entry(text: str) -> Entry:
    """One of `--runs`."""
    folder, _, number = text.rpartition(":")
    if not folder or user_path(text).is_dir():
        folder, number = text, DATASET
    run = Run.at(folder)
    if not re.fullmatch("[0-9]{1,3}", number):
        raise InputError(f"--runs {text}: {number} is not the number of a dataset; for example {folder}:{DATASET}.")
    if not run.preset_file.is_file():
        raise StateError(f"{run.folder}: is no run; train a model, then draw: {run.to_draw()}.")
    found = sorted(run.raw.glob(f"Dataset{int(number):03d}_*/manifest.csv"))
    if not found:
        raise StateError(f"{run.raw}: no pairs in a dataset {number}; draw them: {run.to_draw(number=number)}.")
    dataset, manifest = found[0].parent, Manifest(found[0].parent)
    settings = manifest.settings if manifest.has_settings else {}
    model = settings.get("model") or settings.get("generator") or "sbldm"
    if not settings or model not in (run.preset.model, "copypaste"):
        raise StateError(
            f"{dataset / 'synthesis.json'}: does not say that this run drew these pairs; draw them into another "
            f"--dataset: {run.to_draw()}."
        )
    if manifest.from_elsewhere:
        raise StateError(
            f"{dataset}: a generator from elsewhere drew these pairs, on other cases than this run's, which a table of "
            "models of the same cases cannot hold; leave it out."
        )
    name = run.folder.name if int(number) == int(DATASET) else f"{run.folder.name}:{int(number)}"
    return Entry(run, dataset, model, _title(model, settings.get("sampling", {})), name, settings)


def _title(model: str, sampling: Mapping[str, Any]) -> str:
    """The method in words, with what differs from its usual sampling."""
    sampler = sampling.get("sampler", "gan")
    if sampler == "gan":
        return MODELS[model].title
    words = f"{sampler.upper()} {sampling['steps']}"
    words += f", eta {sampling['eta']:g}" if sampler == "ddim" and sampling.get("eta") else ""
    words += f", guidance {sampling['guidance']:g}" if sampling.get("guidance", 1) != 1 else ""
    return f"{MODELS[model].title} ({words})"


def check_same_cases(entries: Sequence[Entry]) -> None:
    """Make sure that all entries may stand in one table: same training and held-back cases, grid, channels, labels.

    Raises:
        StateError: two of them differ; it says in what.
    """
    first = entries[0]
    for entry in entries:
        stray = sorted(set(_lineage(entry)) - set(read_lists(entry.run.folder)["train"]))
        if stray:
            raise StateError(
                f"{entry.dataset}: made from {len(stray)} cases that {entry.run.folder} does not train on "
                f"({some(stray)}); draw its pairs again, into another --dataset."
            )
        if difference := _differences(first, entry):
            raise StateError(
                f"{first.run.folder} and {entry.run.folder} do not belong in one table: {difference}; prepare and "
                "train both alike, or leave one of them out."
            )


def _differences(a: Entry, b: Entry) -> str:
    """In what the cases or grids of two entries differ, in words; empty where they are the same."""
    presets = (a.run.preset, b.run.preset)
    for part in ("data", "grid"):
        ours, theirs = (dict(getattr(preset, part)) for preset in presets)
        for key, value in ours.items():
            values = value, theirs[key]
            if values[0] != values[1]:
                return f"{part}.{key} is {values[0]} in the first and {values[1]} in the second"
    found = []
    lists = [read_lists(entry.run.folder) for entry in (a, b)]
    for role, verb in (("train", "trains on"), ("validation", "holds back")):
        ours, theirs = (set(each[role]) for each in lists)
        for which, extra in (("first", ours - theirs), ("second", theirs - ours)):
            if extra:
                found.append(f"the {which} {verb} {len(extra)} cases that the other does not ({some(extra)})")
    if found:
        return ", ".join(found)
    ours, theirs = _lineage(a), _lineage(b)
    changed = [name for name in ours.keys() & theirs.keys() if ours[name] != theirs[name]]
    return f"{len(changed)} training cases of one name have other voxels ({some(changed)})" if changed else ""


def _lineage(entry: Entry) -> dict[str, str]:
    """Training cases and their content hashes, as the pairs carry them along; empty where they do not."""
    manifest = Manifest(entry.dataset)
    return manifest.lineage if manifest.has_lineage else {}


def update_evaluations(entries: Sequence[Entry], evaluate: Callable[[Entry], None]) -> None:
    """Let `evaluate` make each evaluation that is missing, older than its pairs or this version, or unlike the newest.

    Raises:
        StateError: even then two of them used other features, another grid or other real cases.
    """
    for entry in entries:
        if entry.is_current:
            print(f"{entry.evaluation}: as it is.")
        else:
            evaluate(entry)
    newest = max(entries, key=lambda entry: entry.evaluation.stat().st_mtime_ns)
    for entry in entries:
        if what := _unlike(newest, entry):
            print(f"{entry.evaluation}: made with {what} than that of {newest.label}; it is made anew.")
            evaluate(entry)
            if what := _unlike(newest, entry):
                raise StateError(
                    f"{newest.evaluation} and {entry.evaluation}: made with {what}; remove the former and run the same "
                    "command again."
                )


def _unlike(newest: Entry, entry: Entry) -> str:
    """In what two evaluations were not made alike, in words; empty where they were."""
    ours, theirs = (read_evaluation(each.evaluation.parent)["provenance"] for each in (newest, entry))
    for key, words in (("features", "other features"), ("spacing_mm", "another grid"), ("first_channel", "a channel")):
        if ours.get(key) != theirs.get(key):
            return f"{words} ({theirs.get(key)}, not {ours.get(key)})"
    for role, words in (("train", "training"), ("heldout", "held-back")):
        if others := set(theirs["contents"][role]) ^ set(ours["contents"][role]):
            return f"other {words} cases (or by an older version of this program: {len(others)} contents differ)"
    return ""
