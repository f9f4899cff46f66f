"""Table 1: the generators beside each other, in quality and in cost, with the paper's figures and the floors.

The paper's own columns come first (its Table 1: PSNR, SSIM, parameters, sampling time), then what they leave out. Only
runs of the same cases, grid, channels and labels go into one table, and only evaluations made in one way.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sbldm.evaluation.comparison import (
    SCORES,
    Paper,
    budget_of,
    floors_of,
    references_of,
    remarks_of,
    row_of,
    score_words,
)
from sbldm.evaluation.entries import Entry, check_same_cases, read_entries, update_evaluations
from sbldm.evaluation.evaluate import ROLES
from sbldm.evaluation.protocols import REFERENCES, REFERENCES_EXPLAINED, Score, protocol
from sbldm.evaluation.written import read_evaluation
from sbldm.pages import brains, style
from sbldm.run.files import atomic_path, read_json, write_csv, write_json
from sbldm.run.folder import Run
from sbldm.run.manifest import Manifest
from sbldm.run.text import number

__all__ = ["make_table1", "report_rows", "write_table1"]

PAIRS_SHOWN = 2
HEAD, GREY_FIELD, PICTURE_DPI = 0.24, 0.45, 270  # inches, inches, and finer than plots: brains have details
TABLE1 = {  # what the report needs of it
    "made": str,
    "header": [str],
    "table": [{"method": str, "cells": [{"ours": str, "paper": str}]}],
    "budget": {"sentence": str},
    "notes": [str],
    "remarks": [str],
}
PICTURE = "The first accepted pairs of each method in three planes through the tumour, its mask as an outline"
REAL = "real against real cases (floor)"
HEADER = ("Methods", "PSNR", "SSIM", "#params", "Sampling time")
NO_REQUESTS = "takes no requests"


def _of(row: Mapping[str, Any], key: str) -> str:
    """One score of a row in words."""
    values = row["scores"].get(key)
    score = Score.from_row(values) if values else None
    if key != "volume_error":
        return score_words(score)
    if score is None:
        return "-" if row.get("conditional", True) else NO_REQUESTS
    return f"{score_words(score)}; requests shuffled: {number(score.floor)}"


def _millions(count: int) -> str:
    return number(count / 1e6, "M")


def _paper_cells(row: Mapping[str, Any]) -> list[dict[str, str]]:
    """The cells of a row in the paper's columns: `ours` and what the `paper` says, empty where it says nothing."""
    paper = row["paper"] or dict.fromkeys(Paper._fields, "")
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
        table.append([REAL, *(score_words(real.get(key)) for key in keys)])
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
    paper = row["paper"] or dict.fromkeys(Paper._fields, "")
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
    manifest = Manifest(entry.dataset)
    if why := manifest.shows_real_brains:
        return f"{why}: not shown"
    content = read_evaluation(entry.evaluation.parent)
    synthetic, *real = ({c[:32] for c in content["provenance"]["contents"][role]} for role in ROLES)
    if synthetic & set().union(*real):
        return "some pairs hold the voxels of a real case: not shown"
    if any(row["protocol"] == "copies.sure" and row["value"] > 0 for row in content["scores"]):
        return "some pairs are copies of training cases: not shown"
    return "" if _accepted(manifest) else "the gate accepted no pair"


def _accepted(manifest: Manifest) -> list[str]:
    """The first pairs of a manifest that the gate let through: nobody's choice."""
    return [pair.name for pair in manifest.pairs if not pair.overridden][:PAIRS_SHOWN]


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
        entry.label: [brains._read_pair(entry.dataset, name) for name in _accepted(Manifest(entry.dataset))]
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
            brains._draw_planes(row, pair, pair.images[0], (x, x, y), [(-tall / 2, tall / 2)] * 3)
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
    rows = [row_of(entry, device) for entry in entries]
    floors, remarks = floors_of(rows)
    budget = budget_of(rows)
    counts = read_evaluation(entries[0].evaluation.parent)["provenance"]["cases"]
    cases = f"{counts['train']} to train on, {counts['heldout']} held back"
    references = references_of(rows)
    real = {"method": REAL, "scores": {key: score.row() for key, score in floors.items()}}
    content = {
        "made": time.strftime("%Y-%m-%d"),
        "header": list(HEADER),
        "table": [{"method": row["method"], "cells": _paper_cells(row)} for row in rows]
        + [{"method": row["method"], "cells": _real_cells(row)} for row in (real, *references)],
        "budget": budget,
        "notes": _notes(rows, budget["sentence"], cases, bool(references)),
        "remarks": [remark for row in rows for remark in remarks_of(row)] + remarks,
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
