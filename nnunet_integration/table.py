"""Table 2 from finished jobs, as CSV and Markdown: scores, paired differences, and what this n could have shown."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from nnunet_integration.results import METRICS, ArmResults, Results
from nnunet_integration.statistics import (
    LEAST_TRAININGS,
    TRAINING_SD,
    TRAINING_SD_FROM,
    detectable_difference,
    holm,
    mean_and_spreads,
    paired_difference,
    undecided,
    verdict,
    wilcoxon_p,
)
from sbldm.evaluation.segmentation import SIZE_BINS_ML, size_bin
from sbldm.files import atomic_path, write_csv

__all__ = ["compare", "table_rows", "write_table"]

BINS = list(dict.fromkeys(size_bin(volume) for volume in (0, *SIZE_BINS_ML)))


def compare(arms: dict[str, ArmResults], baseline: str) -> dict[str, dict[str, Any]]:
    """Paired DSC differences of the arms with one number of real cases against the baseline.

    Returns:
        By arm: difference, low and high (95 % bootstrap over cases and trainings), p (Wilcoxon over cases,
        Holm over the arms that can be decided; NaN for the others), detectable (the smallest true difference that so
        many cases and trainings show with power .8) and verdict. Empty when the baseline is not among the arms.
    """
    if baseline not in arms:
        return {}
    base = arms[baseline].scores["dsc"]
    found, p = {}, {}
    for name, arm in arms.items():
        if name != baseline:
            scores = arm.scores["dsc"]
            found[name] = paired_difference(scores, base)
            found[name] |= {"detectable": detectable_difference(scores, base)}
            found[name] |= {"trainings": min(len(scores), len(base))}
            # A p over cases beside "not decided" would be read as the verdict that it is not.
            p[name] = math.nan if undecided(found[name]["trainings"]) else wilcoxon_p(scores.mean(0) - base.mean(0))
    for name, adjusted in holm(p).items():
        row = found[name]
        words = verdict(row["difference"], row["low"], row["high"], adjusted, row.pop("trainings"))
        found[name] = row | {"p": adjusted, "verdict": words}
    return found


def table_rows(results: Results) -> list[dict[str, Any]]:
    """One row an arm and number of real cases; empty where something is not known."""
    rows = []
    for n in results.n_real:
        arms = results.with_n(n)
        compared = compare(arms, results.book.baseline)
        for name, arm in arms.items():
            paper = results.book.paper.get(name, ("", ""))
            train = Counter(case.split("__", 1)[0].rstrip("0123456789") for case in arm.jobs[0]["train"])
            row: dict[str, Any] = {
                "n_real": n,
                "arm": name,
                "seeds": len({job["seed"] for job in arm.jobs}),
                "trainings": len(arm.jobs),
                "test_cases": len(arm.cases),
                "train_real": train.pop("real", 0),
                "train_other": sum(train.values()),
                "iterations": arm.jobs[0]["budget"]["iterations"],
            }
            for metric in METRICS:
                row |= {f"{metric}_{key}": value for key, value in mean_and_spreads(arm.scores[metric]).items()}
            bins = [size_bin(lesion["volume_ml"]) for lesion in arm.lesions]
            for bin_name in BINS:
                found = [lesion["found"] for lesion, where in zip(arm.lesions, bins, strict=True) if where == bin_name]
                row |= {f"lesions {bin_name}": len(found), f"found {bin_name}": np.mean(found) if found else math.nan}
            row["false_lesions_per_case"] = arm.false_lesions.mean()
            row |= {"paper_dsc": paper[0], "paper_iou": paper[1]}
            empty = dict.fromkeys(("difference", "low", "high", "detectable", "p", "verdict"), "")
            row |= compared.get(name, empty)
            row |= {"minutes": arm.minutes.mean(), "peak_gb": arm.peak_gb.max(), "lineage": arm.jobs[0]["lineage"]}
            rows.append(row)
    return rows


def write_table(results: Results) -> tuple[Path, Path]:
    """Write `table2.csv` and `table2.md`; return both paths."""
    rows = table_rows(results)
    plain = [{key: _plain(value) for key, value in row.items()} for row in rows]
    csv_path, md_path = results.folder / "table2.csv", results.folder / "table2.md"
    write_csv(csv_path, plain)
    with atomic_path(md_path) as temporary:
        temporary.write_text(markdown(results, rows))
    return csv_path, md_path


def _plain(value: Any) -> Any:
    if isinstance(value, float | np.floating):
        return "" if math.isnan(value) else round(float(value), 6)
    return value


def _number(value: Any, digits: int = 3) -> str:
    return "-" if value == "" or math.isnan(value) else f"{value:.{digits}f}"


def _spread(row: dict[str, Any], metric: str, digits: int = 3) -> str:
    text = f"{_number(row[f'{metric}_mean'], digits)} ± {_number(row[f'{metric}_sd_cases'], digits)}"
    return (
        text
        if math.isnan(row[f"{metric}_sd_trainings"])
        else f"{text} / {_number(row[f'{metric}_sd_trainings'], digits)}"
    )


def markdown(results: Results, rows: list[dict[str, Any]]) -> str:
    """The table as a page: what was compared, the scores, the differences, lesions, costs, and what it means."""
    book, budget = results.book, results.budget
    plan = budget["plan"]
    network = "nnU-Net's own plan" if plan is None else f"{plan['spacing']} mm, patch {plan['patch_size']}"
    page = [
        "# Table 2: does it help?",
        "",
        f"Real nnU-Net v2 ({network}), {budget['iterations']} iterations for every arm, one plan made from the real "
        "training cases alone, final weights, no mirroring at prediction. Test and validation cases are real; the "
        "validation list only draws nnU-Net's log. Spread: mean ± SD over test cases / SD over trainings (seeds and "
        f"folds). Differences are paired by test case against `{book.baseline}`.",
        "",
    ]
    for n in results.n_real:
        own = [row for row in rows if row["n_real"] == n]
        page += [f"## {n} real training cases, {own[0]['test_cases']} test cases", ""]
        page += _section(own, book.baseline)
    page += [
        "## How to read it",
        "",
        "- DSC, IoU as in nnU-Net's summary.json; HD95 in mm; NSD at 1 mm. Both masks empty: DSC = IoU = NSD = 1, HD95 "
        "= 0; one empty: 0, and 374 mm.",
        "- A lesion is a 26-connected component of 0.1 ml or more, found when at least a tenth of it is predicted.",
        "- ΔDSC: 95 % interval of a bootstrap over cases and trainings; p: Wilcoxon over cases, Holm over "
        "arms. A difference is called better or worse only when its interval leaves out 0 and p < .05, and only with "
        f"{LEAST_TRAININGS} trainings or more on both sides.",
        "- *Shown from*: the smallest true difference that so many cases and trainings would have shown (power .8). "
        f"The SD over trainings is an arm's own; with fewer than {LEAST_TRAININGS} trainings it is {TRAINING_SD:g} "
        f"({TRAINING_SD_FROM}).",
        "- The paper's figures come from 100 other test cases, `3d_fullres` and 1000 epochs; compare differences "
        'between arms, not levels. Its "Augmented (x5)" can be read as `real+aug` (online) or `real+aug5` (files).',
        "- Every arm has the same number of updates: more data does not mean more training.",
    ]
    if any(row["lineage"] == "unknown" for row in rows):
        names = ", ".join(sorted({f"`{row['arm']}`" for row in rows if row["lineage"] == "unknown"}))
        page.append(f"- **Lineage unknown** for {names}: the dataset does not say which real cases it was made from.")
    if any(undecided(row["trainings"]) for row in rows):
        page.append(
            f"- **Not decided**: the arm or the baseline has fewer than {LEAST_TRAININGS} trainings. The interval then "
            "holds the spread over cases, but little (two) or nothing (one) of that over trainings: it says how these "
            "networks differ on other cases, not how the methods do. `SEEDS=0,1,2` trains three of each."
        )
    if results.unfinished:
        page.append(f"- **Not finished**: {', '.join(results.unfinished)}.")
    return "\n".join(page) + "\n"


def _section(rows: list[dict[str, Any]], baseline: str) -> list[str]:
    lines = [
        "| arm | trained on | trainings | DSC | IoU | HD95 (mm) | NSD 1 mm | paper DSC, IoU |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        data = " + ".join(
            f"{row[key]} {what}" for key, what in (("train_real", "real"), ("train_other", "other")) if row[key]
        )
        paper = f"{row['paper_dsc']:.3f}, {row['paper_iou']:.3f}" if row["paper_dsc"] != "" else "-"
        scores = " | ".join(_spread(row, metric, 1 if metric == "hd95_mm" else 3) for metric in METRICS)
        lines.append(f"| {row['arm']} | {data} | {row['trainings']} | {scores} | {paper} |")
    lines += ["", f"| arm | ΔDSC against {baseline} | p | shown from | verdict |", "|---|---|---|---|---|"]
    for row in rows:
        if row["verdict"]:
            interval = f"{row['difference']:+.3f} [{row['low']:+.3f}, {row['high']:+.3f}]"
            shown = f"{_number(row['p'])} | {_number(row['detectable'])}"
            lines.append(f"| {row['arm']} | {interval} | {shown} | {row['verdict']} |")
    if lines[-1].startswith("|---"):
        lines[-3:] = ["", f"No differences: the baseline `{baseline}` is not finished, or stands alone."]
    names = " | ".join(f"found {b}" for b in BINS)
    lines += ["", f"| arm | {names} | false lesions a case | minutes a job | peak GB |", "|---" * (4 + len(BINS)) + "|"]
    for row in rows:
        found = " | ".join(
            "-" if not row[f"lesions {b}"] else f"{row[f'found {b}']:.2f} of {row[f'lesions {b}'] // row['trainings']}"
            for b in BINS
        )
        costs = f"{row['false_lesions_per_case']:.2f} | {row['minutes']:.1f} | {row['peak_gb']:.2f}"
        lines.append(f"| {row['arm']} | {found} | {costs} |")
    return [*lines, ""]
