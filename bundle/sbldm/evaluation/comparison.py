"""Generators beside each other: whose pairs may stand in one table, and all that is known of each."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from sbldm.evaluation.costs import measured, model_costs
from sbldm.evaluation.entries import Entry
from sbldm.evaluation.protocols import Score
from sbldm.evaluation.written import read_scores
from sbldm.run.manifest import Manifest
from sbldm.run.models import MODELS
from sbldm.run.text import number, sizes
from sbldm.training.checkpoints import read_history

__all__ = []

CLOCKS = {"seconds": "minutes", "cpu_seconds": "cpu_minutes"}  # columns of a training's history
EQUAL_BUDGET = 0.15  # largest difference of training times that still counts as equal
MANY_STEPS, QUICK = 200, {"repeats": 1, "batches": (1,)}  # beyond so many steps a volume is timed once
SAME_FLOOR = 1e-3  # relative; floors of equal cases differ by rounding alone


class Paper(NamedTuple):
    """A row of the paper's Table 1."""

    psnr: str
    ssim: str
    parameters: str
    seconds: str


PAPER = {
    "lsgan": Paper("20.091", ".601", "71 M", "0.002 s"),
    "ldm3d": Paper("21.034", ".677", "728 M", "13.324 s"),
    "sbldm.ddpm": Paper("21.466", ".731", "159 M", "30.900 s"),
    "sbldm.ddim": Paper("21.701", ".726", "159 M", "1.965 s"),
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
THROUGH = {"path": "real cases through the path", "autoencoder": "real cases through path and autoencoder"}


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
        "aim": run.preset.minutes,
        "iterations": {stage: int(row["iteration"]) for stage, row in last.items() if row.get("iteration")},
        "planned": {stage: run.preset.stage(stage).iterations for stage in stages},
    }


def _drawing(entry: Entry) -> dict[str, Any]:
    """How many pairs there are, how many the gate refused before, and the median seconds of one as it was drawn."""
    manifest = Manifest(entry.dataset)
    pairs, drawn = manifest.pairs, manifest.drawn
    seconds = [pair.seconds for pair in pairs if pair.seconds is not None]
    found = {"pairs": len(pairs), "seconds": float(np.median(seconds)) if seconds else None}
    if entry.model == "copypaste" or drawn is None:
        return found | {"drawn": None, "refused": None, "overridden": 0}  # there is no gate, or no record of it
    return found | {"drawn": drawn, "refused": drawn - len(pairs), "overridden": len(manifest.overridden)}


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
    costs = model_costs(preset, entry.sampling)
    trained = [costs[part] for part in ("sample", "discriminator") if part in costs]
    usual = preset.sampling.state()
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


def row_of(entry: Entry, device: str) -> dict[str, Any]:
    """All that is known of one entry, as plain values."""
    preset = entry.run.preset
    paper = PAPER.get(entry.model) or PAPER.get(f"{entry.model}.{entry.sampling.get('sampler')}")
    drawing = _drawing(entry)
    return {
        "method": entry.label,
        "run": entry.name.partition(":")[0],
        "dataset": entry.dataset.name,
        "model": entry.model,
        "preset": preset.name,
        "conditional": MODELS[entry.model].conditional,
        "sampling": entry.sampling,
        "checkpoint_sha256": entry.settings.get("checkpoint_sha256", ""),
        "scores": {key: score.row() for key, score in _scores(entry).items()},
        "paper": paper and paper._asdict(),
        "training": _training(entry),
        **drawing,
        **_cost(entry, drawing["seconds"], device),
    }


def floors_of(rows: Sequence[dict[str, Any]]) -> tuple[dict[str, Score], list[str]]:
    """The scores of real cases, by key, and a remark for each entry whose floor is another than that of the first.

    The control of requests is no score of real cases and is left out.
    """
    floors: dict[str, Score] = {}
    remarks = []
    for row in rows:
        for key, real in _real(row, "floor").items():
            held = floors.setdefault(key, real)
            if not math.isclose(held.value, real.value, rel_tol=SAME_FLOOR, abs_tol=1e-6):
                remarks.append(f"{row['method']}: its own floor of {SCORES[key][0]} is {score_words(real)}.")
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


def references_of(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
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


def budget_of(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
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


def remarks_of(row: Mapping[str, Any]) -> list[str]:
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


def score_words(score: Score | None) -> str:
    """A score with its interval and n; a dash where there is none."""
    if score is None or not math.isfinite(score.value):
        return "-"
    interval = f" [{number(score.low)}, {number(score.high)}]" if math.isfinite(score.low + score.high) else ""
    return f"{number(score.value, score.unit)}{interval}, n = {sizes(score.n)}"
