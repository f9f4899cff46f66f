"""Table 1: the generators beside each other, in quality and in cost, with the paper's figures and the floors.

The paper's own columns come first (its Table 1: PSNR, SSIM, parameters, sampling time), then what they leave out. Only
runs of the same cases, grid, channels and labels go into one table, and only evaluations made in one way.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sbldm.cases.lists import read_lists
from sbldm.evaluation.costs import measured, model_costs
from sbldm.evaluation.evaluate import ROLES, SCORING
from sbldm.evaluation.protocols import REFERENCES, REFERENCES_EXPLAINED, Score, protocol
from sbldm.pages import brains, style
from sbldm.pages.table import number, read_evaluation, read_scores
from sbldm.run.errors import InputError, StateError
from sbldm.run.files import atomic_path, read_json, user_path, write_csv, write_json
from sbldm.run.folder import Run
from sbldm.run.manifest import read_given_up, read_lineage, read_manifest, read_settings
from sbldm.run.models import MODELS
from sbldm.training.checkpoints import read_history

__all__ = [
    "Entry",
    "check_same_cases",
    "make_table1",
    "read_entries",
    "report_rows",
    "update_evaluations",
    "write_table1",
]

EXAMPLE = "sbldm table1 runs/mine runs/lsgan runs/ldm3d"
DATASET = "501"
PAIRS_SHOWN = 2
HEAD, GREY_FIELD, PICTURE_DPI = 0.24, 0.45, 270  # inches, inches, and finer than plots: brains have details
CLOCKS = {"seconds": "minutes", "cpu_seconds": "cpu_minutes"}  # columns of a training's history
EQUAL_BUDGET = 0.15  # largest difference of training times that still counts as equal
MANY_STEPS, QUICK = 200, {"repeats": 1, "batches": (1,)}  # beyond so many steps a volume is timed once
TABLE1 = {  # what the report needs of it
    "made": str,
    "header": [str],
    "table": [{"method": str, "cells": [{"ours": str, "paper": str}]}],
    "budget": {"sentence": str},
    "notes": [str],
    "remarks": [str],
}
SAME_FLOOR = 1e-3  # relative; floors of equal cases differ by rounding alone


class _Paper(NamedTuple):
    """A row of the paper's Table 1."""

    psnr: str
    ssim: str
    parameters: str
    seconds: str


PAPER = {
    "lsgan": _Paper("20.091", ".601", "71 M", "0.002 s"),
    "ldm3d": _Paper("21.034", ".677", "728 M", "13.324 s"),
    "sbldm.ddpm": _Paper("21.466", ".731", "159 M", "30.900 s"),
    "sbldm.ddim": _Paper("21.701", ".726", "159 M", "1.965 s"),
}
SCORES = {
    "psnr": ("PSNR", "psnr.random-pair.train"),
    "ssim": ("SSIM", "ssim.random-pair.train"),
    "mmd": ("MMD", "mmd-laplace.heldout"),
    "precision": ("precision", "precision.heldout"),
    "recall": ("recall", "recall.heldout"),
    "coverage": ("coverage", "coverage.heldout"),
    "kid": ("KID as reported before", "kid.heldout"),
    "psnr_brain": ("PSNR in the brain", "psnr.all-pairs.heldout"),
    "ssim_brain": ("SSIM in the brain", "ssim.all-pairs.heldout"),
    "diversity": ("MS-SSIM among pairs", "ms-ssim.diversity"),
    "fit_dsc": ("DSC of mask and segmentation", "fit.dsc"),
    "near_copies": ("near copies, share", "copies.near"),
    "volume_error": ("error of the volume asked for", "request.volume_error"),
}
"""Key -> heading and protocol."""
PICTURE = "The first accepted pairs of each method in three planes through the tumour, its mask as an outline"
REAL = "real against real cases (floor)"
THROUGH = {"path": "real cases through the path", "autoencoder": "real cases through path and autoencoder"}
HEADER = ("Methods", "PSNR", "SSIM", "#params", "Sampling time")
NO_REQUESTS = "takes no requests"


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
        return self.run.folder / "evaluation" / self.dataset.name / "evaluation.json"

    @property
    def sampling(self) -> dict[str, Any]:
        """How the pairs were drawn: sampler, steps and so on; empty where nothing was sampled."""
        return dict(self.settings.get("sampling", {}))

    @property
    def is_current(self) -> bool:
        """Whether there is an evaluation of this version, and no pair has been drawn since."""
        manifest = self.dataset / "manifest.csv"
        if not self.evaluation.is_file() or self.evaluation.stat().st_mtime_ns < manifest.stat().st_mtime_ns:
            return False
        return read_evaluation(self.evaluation.parent)["provenance"].get("scoring") == SCORING


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
        raise StateError(f"{run.folder}: is no run; train a model, then draw: sbldm synth --run {folder} --n 100.")
    found = sorted((run.folder / "nnUNet_raw").glob(f"Dataset{int(number):03d}_*/manifest.csv"))
    if not found:
        raise StateError(
            f"{run.folder / 'nnUNet_raw'}: no pairs in a dataset {number}; "
            f"draw them: sbldm synth --run {folder} --dataset {number} --n 100."
        )
    dataset = found[0].parent
    mark = dataset / "synthesis.json"
    settings = read_settings(dataset) if mark.is_file() else {}
    model = settings.get("model") or settings.get("generator") or "sbldm"
    if not settings or model not in (run.preset["model"], "copypaste"):
        raise StateError(
            f"{mark}: does not say that this run drew these pairs; "
            f"draw them into another --dataset: sbldm synth --run {folder} --n 100."
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
                f"({_some(stray)}); draw its pairs again, into another --dataset."
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
        for key in presets[0][part]:
            values = [preset[part].get(key) for preset in presets]
            if values[0] != values[1]:
                return f"{part}.{key} is {values[0]} in the first and {values[1]} in the second"
    found = []
    lists = [read_lists(entry.run.folder) for entry in (a, b)]
    for role, verb in (("train", "trains on"), ("validation", "holds back")):
        ours, theirs = (set(each[role]) for each in lists)
        for which, extra in (("first", ours - theirs), ("second", theirs - ours)):
            if extra:
                found.append(f"the {which} {verb} {len(extra)} cases that the other does not ({_some(extra)})")
    if found:
        return ", ".join(found)
    ours, theirs = _lineage(a), _lineage(b)
    changed = [name for name in ours.keys() & theirs.keys() if ours[name] != theirs[name]]
    return f"{len(changed)} training cases of one name have other voxels ({_some(changed)})" if changed else ""


def _lineage(entry: Entry) -> dict[str, str]:
    """Training cases and their content hashes, as the pairs carry them along; empty where they do not."""
    return read_lineage(entry.dataset) if (entry.dataset / "lineage.json").is_file() else {}


def _some(names: Iterable[str], most: int = 3) -> str:
    names = sorted(names)
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")


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


# --- rows -------------------------------------------------------------------------------------------------------------


def _scores(entry: Entry) -> dict[str, Score]:
    """The scores of the table that the evaluation of an entry has, by key."""
    known = {score.protocol: score for score in read_scores(entry.evaluation.parent)}
    return {key: known[name] for key, (_, name) in SCORES.items() if name in known}


def _training(entry: Entry) -> dict[str, Any]:
    """Minutes and iterations of all trainings of a model, and the iterations that its preset asks for.

    Minutes, by the clock and of all processors together, are None where a training has not kept its time; 0 for a model
    that trains nothing. `aim` is what the preset aims at.
    """
    run, stages = entry.run, MODELS[entry.model].stages
    last = {stage: (read_history(run, stage) or [{}])[-1] for stage in stages}
    spent = {name: sum(float(row.get(name) or "nan") for row in last.values()) / 60 for name in CLOCKS}
    return {
        **{CLOCKS[name]: value if math.isfinite(value) else None for name, value in spent.items()},
        "aim": run.preset["minutes"],
        "iterations": {stage: int(row["iteration"]) for stage, row in last.items() if row.get("iteration")},
        "planned": {stage: run.preset[stage]["iterations"] for stage in stages},
    }


def _drawing(entry: Entry) -> dict[str, Any]:
    """How many pairs there are, how many the gate refused before, and the median seconds of one as it was drawn."""
    rows = read_manifest(entry.dataset)
    seconds = [float(row["seconds"]) for row in rows if row.get("seconds")]
    found = {"pairs": len(rows), "seconds": float(np.median(seconds)) if seconds else None}
    if entry.model == "copypaste" or not all(row.get("redrawn") for row in rows):
        return found | {"drawn": None, "refused": None, "overridden": 0}  # there is no gate, or no record of it
    refused = sum(int(row["redrawn"]) for row in rows) + sum(read_given_up(entry.dataset))
    overridden = sum(row.get("gate", "").startswith("OVERRIDDEN") for row in rows)
    return found | {"drawn": len(rows) + refused, "refused": refused, "overridden": overridden}


def _cost(entry: Entry, drawn: float | None, device: str) -> dict[str, Any]:
    """Size, work, time and memory of a model that is sampled as its pairs were.

    Parameters are those of all networks that are trained, discriminators too, as the paper counts them. A model without
    networks is not timed: it has the seconds of a pair as it was `drawn`.
    """
    unknown = ("parameters", "parameters_sampling", "counted", "macs", "flops", "memory_bytes", "memory_added_bytes")
    found = dict.fromkeys((*unknown, "seconds_best", "best_batch"))
    found |= {"seconds": drawn, "timing": "as drawn", "device": "", "timed_checkpoint": ""}
    if not MODELS[entry.model].stages:
        return found
    preset = entry.run.preset
    costs = model_costs(preset | {"sampling": preset["sampling"] | entry.sampling})
    trained = [costs[part] for part in ("sample", "discriminator") if part in costs]
    usual = preset["sampling"]
    asked = {name: value for name, value in entry.sampling.items() if name in usual and usual[name] != value}
    timed = measured(
        entry.run, device, sampling=asked, **(QUICK if entry.sampling.get("steps", 0) > MANY_STEPS else {})
    )
    return found | {
        "parameters": sum(cost.parameters for cost in trained),
        "parameters_sampling": costs["sample"].parameters,
        "counted": sum(cost.counted for cost in trained),
        "macs": costs["sample"].macs,
        "flops": costs["sample"].flops,
        "memory_bytes": timed["peak_bytes"],
        "memory_added_bytes": timed["added_bytes"],
        "seconds": timed["seconds"],
        "seconds_best": timed["best_seconds"],
        "best_batch": timed["best_batch"],
        "timing": "timed",
        "device": f"{timed['device']} ({timed['threads']} CPU threads)",
        "timed_checkpoint": timed["checkpoint_sha256"],
    }


def _row(entry: Entry, device: str) -> dict[str, Any]:
    """All that is known of one entry, as plain values."""
    preset = entry.run.preset
    paper = PAPER.get(entry.model) or PAPER.get(f"{entry.model}.{entry.sampling.get('sampler')}")
    drawing = _drawing(entry)
    return {
        "method": entry.label,
        "run": entry.name.partition(":")[0],
        "dataset": entry.dataset.name,
        "model": entry.model,
        "preset": preset["name"],
        "conditional": MODELS[entry.model].conditional,
        "sampling": entry.sampling,
        "checkpoint_sha256": entry.settings.get("checkpoint_sha256", ""),
        "scores": {key: score.row() for key, score in _scores(entry).items()},
        "paper": paper and paper._asdict(),
        "training": _training(entry),
        **drawing,
        **_cost(entry, drawing["seconds"], device),
    }


def _floors(rows: Sequence[dict[str, Any]]) -> tuple[dict[str, Score], list[str]]:
    """The scores of real cases, by key, and a remark for each entry whose floor is another than that of the first.

    The control of requests is no score of real cases and is left out.
    """
    floors: dict[str, Score] = {}
    remarks = []
    for row in rows:
        for key, real in _real(row, "floor").items():
            held = floors.setdefault(key, real)
            if not math.isclose(held.value, real.value, rel_tol=SAME_FLOOR, abs_tol=1e-6):
                remarks.append(f"{row['method']}: its own floor of {SCORES[key][0]} is {_words(real)}.")
    return floors, remarks


def _real(row: Mapping[str, Any], side: str) -> dict[str, Score]:
    """The scores of real cases on one side of those of a row, by key."""
    found = {}
    for key, values in row["scores"].items():
        score = Score.from_row(values)
        value, low, high, n = score.side(side)
        if score.group != "requests" and math.isfinite(value):
            found[key] = Score(score.protocol, score.group, value, low, high, n, aim=score.aim, unit=score.unit)
    return found


def _references(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Scores of real cases through the path of each row, and through its autoencoder; equal ones once, for all.

    Returns:
        A `method` (what the cases went through, and whose path it is where there are several) and its `scores` by key.
    """
    found = []
    for side, words in THROUGH.items():
        sets: list[tuple[list[str], dict[str, Score]]] = []
        for row in rows:
            if not (scores := _real(row, side)):
                continue
            for methods, held in sets:
                if held.keys() == scores.keys() and all(
                    math.isclose(held[key].value, scores[key].value, rel_tol=SAME_FLOOR, abs_tol=1e-6) for key in held
                ):
                    methods.append(row["method"])
                    break
            else:
                sets.append(([row["method"]], scores))
        for methods, scores in sets:
            of = f" of {' and '.join(methods)}" if len(sets) > 1 or side == "autoencoder" else ""
            found.append({"method": words + of, "scores": {key: score.row() for key, score in scores.items()}})
    return found


def _budget(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Minutes of training of each run that trains something, whether they are equal, and a sentence that says so.

    On a CPU the time of its processors counts, as other work beside a training does not change it; else the clock.
    """
    by_run = {row["run"]: row for row in rows if row["training"]["planned"]}
    trainings = {row["method"]: row["training"] for row in by_run.values()}
    minutes, cpu = ({method: t[key] for method, t in trainings.items()} for key in ("minutes", "cpu_minutes"))
    devices = sorted({row["device"] for row in rows if row["device"]})
    on_cpu = bool(devices) and all("CPU threads" in device for device in devices) and all(cpu.values())
    counted = cpu if on_cpu else minutes
    known = [value for value in counted.values() if value]
    unknown = [method for method, value in counted.items() if not value]
    apart = max(known) / min(known) - 1 if known else 0.0
    equal = apart <= EQUAL_BUDGET if len(known) > 1 and not unknown else None

    def told(method: str) -> str:
        more = [f"{number(cpu[method])} of the processors"] if on_cpu else []
        more += [f"aim {number(trainings[method]['aim'])}"] if trainings[method]["aim"] else []
        return f"{method} {number(minutes[method])} min" + (f" ({', '.join(more)})" if more else "")

    sentence = f"Training time (wall-clock): {', '.join(told(m) for m in trainings if minutes[m]) or 'not known'}"
    if unknown and known:
        sentence += f"; not known of {', '.join(unknown)}, so the budgets cannot be compared"
    elif equal is not None:
        sentence += (
            f"; the longest took {100 * apart:.0f} % more {'processor ' * (counted is cpu)}time than the shortest"
        )
        sentence += ", which counts as an equal budget" if equal else ": the budgets are NOT equal"
        sentence += f" (limit {100 * EQUAL_BUDGET:.0f} %)"
    sentence += f". Sampling was timed on {' and on '.join(devices)}." if devices else "."
    return {"minutes": minutes, "cpu_minutes": cpu, "equal": equal, "sentence": sentence}


def _remarks(row: Mapping[str, Any]) -> list[str]:
    """What must be known to read a row."""
    found, training = [], row["training"]
    for stage, planned in training["planned"].items():
        if (done := training["iterations"].get(stage, 0)) < planned:
            found.append(f"half-trained: {done} of {planned} iterations of the {stage}")
    if row["timed_checkpoint"] and row["timed_checkpoint"] != row["checkpoint_sha256"]:
        found.append(
            "another checkpoint than the one in the run drew these pairs; training and speed are of the latter"
        )
    if row["overridden"]:
        found.append(f"the gate was overridden for {row['overridden']} of {row['pairs']} pairs")
    return [f"{row['method']}: {remark}." for remark in found]


# --- text -------------------------------------------------------------------------------------------------------------


def _words(score: Score | None) -> str:
    """A score with its interval and n; a dash where there is none."""
    if score is None or not math.isfinite(score.value):
        return "-"
    interval = f" [{number(score.low)}, {number(score.high)}]" if math.isfinite(score.low + score.high) else ""
    n = f"{score.n[0]}" if score.n[0] == score.n[1] else f"{score.n[0]} / {score.n[1]}"
    return f"{number(score.value, score.unit)}{interval}, n = {n}"


def _of(row: Mapping[str, Any], key: str) -> str:
    """One score of a row in words."""
    values = row["scores"].get(key)
    score = Score.from_row(values) if values else None
    if key != "volume_error":
        return _words(score)
    if score is None:
        return "-" if row.get("conditional", True) else NO_REQUESTS
    return f"{_words(score)}; requests shuffled: {number(score.floor)}"


def _millions(count: int) -> str:
    return number(count / 1e6, "M")


def _paper_cells(row: Mapping[str, Any]) -> list[dict[str, str]]:
    """The cells of a row in the paper's columns: `ours` and what the `paper` says, empty where it says nothing."""
    paper = row["paper"] or dict.fromkeys(_Paper._fields, "")
    size = f"{_millions(row['parameters'])} / {_millions(row['counted'])}" if row["parameters"] else "none"
    seconds = "-" if row["seconds"] is None else number(row["seconds"], "s")
    seconds += " as drawn" if row["timing"] == "as drawn" else ""
    ours = {"psnr": _of(row, "psnr"), "ssim": _of(row, "ssim"), "parameters": size, "seconds": seconds}
    return [{"ours": text, "paper": paper[key]} for key, text in ours.items()]


def _real_cells(row: Mapping[str, Any]) -> list[dict[str, str]]:
    """The cells of real cases in the paper's columns: they have no networks, and nothing is sampled."""
    ours = [*(_of(row, key) for key in ("psnr", "ssim")), "-", "-"]
    return [{"ours": text, "paper": ""} for text in ours]


def _verdict(row: Mapping[str, Any], key: str) -> str:
    """How one score of a row stands to its floor; empty where there is none."""
    values = row["scores"].get(key)
    return Score.from_row(values).verdict if values else ""


def _notes(rows: Sequence[Mapping[str, Any]], budget: str, cases: str, references: bool) -> list[str]:
    """How to read the table, one sentence or two each."""
    higher = {key: sum(_verdict(row, key) == "higher" for row in rows) for key in ("psnr", "ssim")}
    beaten = " and ".join(f"in {SCORES[key][0]} {n} of {len(rows)}" for key, n in higher.items() if n)
    return [
        f"Real cases: {cases}, the same for all methods. Square brackets: 95 % intervals; n: cases on either side.",
        "PSNR (`psnr.random-pair.train`) and SSIM (`ssim.random-pair.train`) compare each pair with one training image "
        "drawn at random, as the paper does. No pair has a real counterpart, so they cannot tell a good image from a "
        "blurred one: a blurred average scores more than real brains do, whose own score stands in the row of the floor"
        + (f" (methods here whose whole interval lies above that of real cases: {beaten})." if beaten else "."),
        "The paper's figures come from other cases, a finer grid, larger networks and an A6000: compare the order of "
        "methods, not levels. Its DDIM has 50 steps with eta 1.",
        *([REFERENCES_EXPLAINED] if references else []),
        "#params: of all networks that are trained, discriminators too; then as the paper counts, which leaves out "
        "norms, embeddings and attention.",
        "Sampling time: from noise to a volume on the working grid, batch 1, median, after a warm-up; `as drawn`: of "
        "whole pairs, with gate and checks.",
        budget,
    ]


def _markdown(content: Mapping[str, Any]) -> str:
    """The page: the paper's columns, what they leave out, costs, and how to read it."""
    rows = content["rows"]
    real = {key: Score.from_row(values) for key, values in content["floors"].items()}
    page = ["# Table 1: the methods beside each other", "", "In round brackets behind a number: the paper's.", ""]
    table = [
        [
            row["method"],
            *(f"{cell['ours']} ({cell['paper']})" if cell["paper"] else cell["ours"] for cell in row["cells"]),
        ]
        for row in content["table"]
    ]
    page += [*_lines(HEADER, table), "", f"![{PICTURE}](methods.png)", "", "## What these columns leave out", ""]
    for keys in (
        ("mmd", "precision", "recall", "coverage", "kid"),
        ("psnr_brain", "ssim_brain", "diversity"),
        ("fit_dsc", "near_copies", "volume_error"),
    ):
        table = [[row["method"], *(_of(row, key) for key in keys)] for row in rows]
        table.append([REAL, *(_words(real.get(key)) for key in keys)])
        table += [[row["method"], *(_of(row, key) for key in keys)] for row in content["references"]]
        page += [*_lines(("Methods", *(SCORES[key][0] for key in keys)), table), ""]
    page += ["## Costs", "", *_lines(*_cost_table(rows)), "", "## How to read it", ""]
    page += [f"- {note}" for note in content["notes"]]
    page += ["", "## Protocols", ""]
    page += [f"- {heading} (`{name}`): {protocol(name)['text']}" for heading, name in SCORES.values()]
    if content["remarks"]:
        page += ["", "## Remarks", "", *(f"- {remark}" for remark in content["remarks"])]
    return "\n".join(page) + "\n"


def _lines(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """A Markdown table."""
    return [f"| {' | '.join(row)} |" for row in (header, ["---"] * len(header), *rows)]


def _cost_table(rows: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Heading and rows of what each method costs."""

    def text(value: float | None, unit: str = "", factor: float = 1) -> str:
        return "-" if value is None else number(value * factor, unit)

    header = ["Methods", "preset", "GMAC a volume", "TFLOP a volume", "seconds a volume, best batch"]
    header += ["peak memory (of it the model's), GB", "training (min)", "iterations", "pairs", "refused by the gate"]
    table = []
    for row in rows:
        training, drawn = row["training"], row["drawn"]
        memory = text(row["memory_bytes"], factor=1e-9)
        memory += f" ({text(row['memory_added_bytes'], factor=1e-9)})" if row["memory_bytes"] else ""
        best = f"{number(row['seconds_best'])} (batch {row['best_batch']})" if row["seconds_best"] else "-"
        done = " + ".join(str(n) for n in training["iterations"].values())
        refused = f"{row['refused']} of {drawn} drawn ({100 * row['refused'] / drawn:.0f} %)" if drawn else "-"
        cells = [row["method"], row["preset"], text(row["macs"], factor=1e-9), text(row["flops"], factor=1e-12), best]
        cells += [memory, text(training["minutes"]), done or "-", str(row["pairs"])]
        table.append([*cells, "no gate" if row["model"] == "copypaste" else refused])
    return header, table


def _flat(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row of the CSV: plain numbers, six digits, empty where something is not known."""
    paper = row["paper"] or dict.fromkeys(_Paper._fields, "")
    training, drawn = row["training"], row["drawn"]

    def score(key: str) -> dict[str, Any]:
        s = row["scores"].get(key)
        parts = [f"{side}{end}" for side in ("floor", *REFERENCES) for end in ("", "_low", "_high")]
        found = {name: s and s[name] for name in ("value", "low", "high", *parts)}
        cells = {key if name == "value" else f"{key}_{name}": value for name, value in found.items()}
        return cells | {f"{key}_n": "/".join(map(str, s["n"])) if s else None}

    cells = {"method": row["method"]}
    cells |= score("psnr") | {"psnr_paper": paper["psnr"]} | score("ssim") | {"ssim_paper": paper["ssim"]}
    cells |= {"parameters": row["parameters"], "parameters_as_paper_counts": row["counted"]}
    cells |= {"parameters_paper": paper["parameters"], "seconds": row["seconds"], "seconds_paper": paper["seconds"]}
    cells |= {"timing": row["timing"], "device": row["device"], "seconds_best_batch": row["seconds_best"]}
    cells |= {"best_batch": row["best_batch"], "parameters_sampling": row["parameters_sampling"]}
    cells |= {"gmac": row["macs"] and row["macs"] / 1e9, "tflop": row["flops"] and row["flops"] / 1e12}
    cells |= {"peak_memory_gb": row["memory_bytes"] and row["memory_bytes"] / 1e9}
    cells |= {"added_memory_gb": row["memory_added_bytes"] and row["memory_added_bytes"] / 1e9}
    cells |= {"training_minutes": training["minutes"], "iterations": sum(training["iterations"].values())}
    cells |= {"pairs": row["pairs"], "drawn": drawn, "refused_share": row["refused"] / drawn if drawn else None}
    for key in list(SCORES)[2:]:
        cells |= score(key)
    cells |= {
        "takes_requests": int(row["conditional"]),
        **{key: row[key] for key in ("model", "preset", "run", "dataset")},
    }
    return {k: "" if v is None else float(f"{v:.6g}") if isinstance(v, float) else v for k, v in cells.items()}


# --- pictures ---------------------------------------------------------------------------------------------------------


def _hidden(entry: Entry) -> str:
    """Why pictures of these pairs could show a real case; empty when they cannot."""
    rows = read_manifest(entry.dataset)
    if rows and "parents" in rows[0]:
        return "each pair repeats a real brain: not shown"
    content = read_evaluation(entry.evaluation.parent)
    synthetic, *real = ({c[:32] for c in content["provenance"]["contents"][role]} for role in ROLES)
    if synthetic & set().union(*real):
        return "some pairs hold the voxels of a real case: not shown"
    if any(row["protocol"] == "copies.sure" and row["value"] > 0 for row in content["scores"]):
        return "some pairs are copies of training cases: not shown"
    return "" if _accepted(rows) else "the gate accepted no pair"


def _accepted(rows: Sequence[Mapping[str, str]]) -> list[str]:
    """The first pairs of a manifest that the gate let through: nobody's choice."""
    names = [row["pair"] for row in rows if not row.get("gate", "").startswith("OVERRIDDEN")]
    return names[:PAIRS_SHOWN]


def draw_methods(entries: Sequence[Entry], path: Path) -> Path:
    """The first pairs of each method in three planes through the tumour's centre, one method below the other.

    All have one scale, the patient's left on the left, and the mask as an outline. Where a pair could show a real case
    a grey field says so; no real case is ever shown.

    Raises:
        DataError: a pair cannot be read.
        OutputError: the file cannot be written.
    """
    hidden = {entry.label: _hidden(entry) for entry in entries}
    pairs = {
        entry.label: [brains._read_pair(entry.dataset, name) for name in _accepted(read_manifest(entry.dataset))]
        for entry in entries
        if not hidden[entry.label]
    }
    fovs = [pair.fov for found in pairs.values() for pair in found] or [np.full(3, 150.0)]
    x, y, z = np.max(fovs, axis=0) + brains.MARGIN_MM
    widths = [*([x, x, y, brains.GAP_MM] * PAIRS_SHOWN)][:-1]
    tall = max(y, z)
    inch = style.WIDTH / sum(widths)  # per mm
    heights = [h for label in hidden for h in (HEAD, GREY_FIELD if hidden[label] else tall * inch)]
    figure = Figure(figsize=(style.WIDTH, sum(heights)), facecolor="black")
    edges = {"left": 0, "right": 1, "bottom": 0, "top": 1, "wspace": 0, "hspace": 0}
    grid = figure.add_gridspec(len(heights), len(widths), width_ratios=widths, height_ratios=heights, **edges)
    for k, (label, why) in enumerate(hidden.items()):
        _write(figure.add_subplot(grid[2 * k, :]), 0.01, label, color="white", weight="bold", ha="left")
        if why:
            _write(figure.add_subplot(grid[2 * k + 1, :], facecolor="0.4"), 0.5, why, color="white", ha="center")
            continue
        for m, pair in enumerate(pairs[label]):
            row = [figure.add_subplot(grid[2 * k + 1, 4 * m + c]) for c in range(3)]
            for panel in row:
                panel.axis("off")
            brains._draw_planes(row, pair, (x, x, y), (-tall / 2, tall / 2))
            row[2].text(
                0.98, 0.97, pair.title, transform=row[2].transAxes, color="white", fontsize=8, ha="right", va="top"
            )
    first = next((panel for panel in figure.axes if panel.images), None)
    for letter, place, side in (("L", 0.03, "left"), ("R", 0.97, "right")) if first else ():
        first.text(place, 0.02, letter, transform=first.transAxes, color="white", fontsize=8, ha=side)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=PICTURE_DPI, facecolor="black")
    return path


def _write(panel: Axes, place: float, text: str, **style: Any) -> None:
    """A line of text in a panel without axes."""
    panel.set(xticks=[], yticks=[])
    panel.spines[:].set_visible(False)
    if panel.get_facecolor()[:3] == (1, 1, 1):
        panel.set_facecolor("black")
    panel.text(place, 0.5, text, transform=panel.transAxes, fontsize=9, va="center", **style)


# --- everything -------------------------------------------------------------------------------------------------------


def make_table1(
    runs: Sequence[str], evaluate: Callable[[Entry], None], out: Path | None = None, device: str = ""
) -> list[Path]:
    """Read the runs, refuse what cannot be compared, evaluate what is not evaluated, measure, and write the table.

    Args:
        runs: as for `read_entries`.
        evaluate: makes the evaluation of an entry.
        out: folder to write to; that of the first run, `table1`, when None.
        device: to time on; as everywhere when empty.

    Returns:
        Files written.

    Raises:
        InputError, StateError, DataError, OutputError: see the functions called.
    """
    entries = read_entries(runs)
    check_same_cases(entries)
    update_evaluations(entries, evaluate)
    return write_table1(entries, out or entries[0].run.folder / "table1", device)


def write_table1(entries: Sequence[Entry], out: Path, device: str = "") -> list[Path]:
    """Write `table1.json` (everything), `table1.csv` (a row for each entry), `table1.md` and `methods.png`.

    Args:
        entries: evaluated, and fit for one table (`check_same_cases`).
        out: folder to write to.
        device: to time on; as everywhere when empty.

    Returns:
        Files written.

    Raises:
        StateError: a checkpoint is missing.
        DataError: a pair cannot be read.
        OutputError: a file cannot be written.
    """
    rows = [_row(entry, device) for entry in entries]
    floors, remarks = _floors(rows)
    budget = _budget(rows)
    counts = read_evaluation(entries[0].evaluation.parent)["provenance"]["cases"]
    cases = f"{counts['train']} to train on, {counts['heldout']} held back"
    references = _references(rows)
    real = {"method": REAL, "scores": {key: score.row() for key, score in floors.items()}}
    content = {
        "made": time.strftime("%Y-%m-%d"),
        "header": list(HEADER),
        "table": [{"method": row["method"], "cells": _paper_cells(row)} for row in rows]
        + [{"method": row["method"], "cells": _real_cells(row)} for row in (real, *references)],
        "budget": budget,
        "notes": _notes(rows, budget["sentence"], cases, bool(references)),
        "remarks": [remark for row in rows for remark in _remarks(row)] + remarks,
        "rows": rows,
        "floors": real["scores"],
        "references": references,
    }
    paths = [out / f"table1.{kind}" for kind in ("json", "csv", "md")]
    write_json(paths[0], content)
    write_csv(paths[1], [_flat(row) for row in rows])
    with atomic_path(paths[2]) as temporary:
        temporary.write_text(_markdown(content))
    return [*paths, draw_methods(entries, out / "methods.png")]


def report_rows(run: Run) -> dict[str, Any] | None:
    """What the report shows of the Table 1 in a run folder; None where there is none.

    Returns:
        made (date), header (five headings), rows (`method` and four `cells` with `ours` and `paper`), budget (a
        sentence), notes and remarks (sentences), caption (of the picture), picture (path of `methods.png`, or None).
    """
    path = run.folder / "table1" / "table1.json"
    if not path.is_file():
        return None
    content = read_json(path, TABLE1, "run `sbldm table1` again", remove=False)
    picture = path.with_name("methods.png")
    found = {name: content[name] for name in ("made", "header", "remarks")}
    found["notes"] = [note.replace("`", "") for note in content["notes"]]  # which are written for Markdown
    found |= {"rows": content["table"], "budget": content["budget"]["sentence"], "caption": PICTURE}
    return found | {"picture": picture if picture.is_file() else None}
