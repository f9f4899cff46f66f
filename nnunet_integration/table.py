"""Table 2 from finished jobs, as CSV and Markdown: scores, paired differences, and what this n could have shown."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nnunet_integration.arms import ArmBook
from nnunet_integration.results import ArmResults, Results
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
from sbldm.metrics.segmentation import METRICS, SIZE_BINS_ML, size_bin
from sbldm.run.files import atomic_path, write_csv

__all__ = ["compare", "interval", "number", "table_rows", "write_table"]

BINS = list(dict.fromkeys(size_bin(volume) for volume in (0, *SIZE_BINS_ML)))


def compare(arms: dict[str, ArmResults], book: ArmBook) -> dict[str, dict[str, Any]]:
    """Paired DSC differences of the arms with one number of real cases against the baseline.

    Returns:
        By arm: difference, low and high (95 % bootstrap over cases and trainings), p (Wilcoxon over cases, Holm over
        the arm's family, whose size the arms file fixes; as it is in an exploratory arm, which is in none; NaN where
        nothing can be decided), detectable (the smallest true difference that so many cases and trainings show with
        power .8) and verdict ("exploratory" without a family). Empty when the baseline is not among the arms.
    """
    if book.baseline not in arms:
        return {}
    scores = {name: arm.scores["dsc"] for name, arm in arms.items()}
    base = scores.pop(book.baseline)
    trainings = {name: min(len(own), len(base)) for name, own in scores.items()}
    # A p over cases beside "not decided" would be read as the verdict that it is not.
    p = {
        name: math.nan if undecided(trainings[name]) else wilcoxon_p(own.mean(0) - base.mean(0))
        for name, own in scores.items()
    }
    found = {}
    for name, own in scores.items():
        row, family = paired_difference(own, base), book.family(name)
        adjusted = holm({one: p[one] for one in family if one in p}, len(family))[name] if family else p[name]
        words = verdict(row["difference"], row["low"], row["high"], adjusted, trainings[name])
        if not family:
            words = undecided(trainings[name]) or "exploratory"
        found[name] = row | {"detectable": detectable_difference(own, base), "p": adjusted, "verdict": words}
    return found


def table_rows(results: Results) -> list[dict[str, Any]]:
    """One row an arm and number of real cases; empty where something is not known."""
    rows = []
    for n in results.n_real:
        arms = results.with_n(n)
        compared = compare(arms, results.book)
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
            base = arms.get(results.book.baseline)
            for region, scores in arm.regions.items():
                for metric in METRICS:
                    spreads = mean_and_spreads(scores[metric])
                    row |= {f"{region}: {metric}_{key}": value for key, value in spreads.items()}
                against = dict.fromkeys(("difference", "low", "high"), "")
                if base is not None and arm is not base and region in base.regions:
                    against = paired_difference(scores["dsc"], base.regions[region]["dsc"])
                row |= {f"{region}: {key}": value for key, value in against.items()}
            row |= {"minutes": arm.minutes.mean(), "peak_gb": arm.peak_gb.max(), "lineage": arm.jobs[0]["lineage"]}
            rows.append(row)
    return rows


def write_table(results: Results, answers: Sequence[str] = ()) -> tuple[Path, Path]:
    """Write `table2.csv` and `table2.md`, which begins with the answers (see `verdict.py`); return both paths."""
    rows = table_rows(results)
    plain = [{key: _plain(value) for key, value in row.items()} for row in rows]
    csv_path, md_path = results.folder / "table2.csv", results.folder / "table2.md"
    write_csv(csv_path, plain, list(dict.fromkeys(key for row in plain for key in row)))
    with atomic_path(md_path) as temporary:
        temporary.write_text(markdown(results, rows, answers))
    return csv_path, md_path


def _plain(value: Any) -> Any:
    if isinstance(value, float | np.floating):
        return "" if math.isnan(value) else round(float(value), 6)
    return value


def number(value: Any, digits: int = 3) -> str:
    """With so many decimals; a dash where it is not known (empty or NaN)."""
    return "-" if value == "" or math.isnan(value) else f"{value:.{digits}f}"


def interval(row: dict[str, Any]) -> str:
    """Difference and interval of one arm of `compare`."""
    return f"{row['difference']:+.3f} [{row['low']:+.3f}, {row['high']:+.3f}]"


def _spread(row: dict[str, Any], metric: str, digits: int = 3) -> str:
    text = f"{number(row[f'{metric}_mean'], digits)} ± {number(row[f'{metric}_sd_cases'], digits)}"
    return (
        text
        if math.isnan(row[f"{metric}_sd_trainings"])
        else f"{text} / {number(row[f'{metric}_sd_trainings'], digits)}"
    )


def markdown(results: Results, rows: list[dict[str, Any]], answers: Sequence[str] = ()) -> str:
    """The table as a page: the answers, what was compared, scores, differences, lesions, costs, and what it means."""
    book, budget = results.book, results.budget
    plan = budget["plan"]
    network = "nnU-Net's own plan" if plan is None else f"{plan['spacing']} mm, patch {plan['patch_size']}"
    page = [
        "# Table 2: does it help?",
        "",
        *(line for answer in answers for line in (answer, "")),
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
        "- ΔDSC: 95 % interval of a bootstrap over cases and trainings; p: Wilcoxon over cases, Holm over the arm's "
        "family. A difference is called better or worse only when its interval leaves out 0 and p < .05, and only with "
        f"{LEAST_TRAININGS} trainings or more on both sides.",
        "- A family is an entry of `families` in the arms file with one generator and one amount of pairs (all arms "
        "but the baseline where the file has none), for each number of real cases. Its size is fixed: arms that have "
        "not been run count too, and no arm outside it changes a p in it.",
        "- *Shown from*: the smallest true difference that so many cases and trainings would have shown (power .8). "
        f"The SD over trainings is an arm's own; with fewer than {LEAST_TRAININGS} trainings it is {TRAINING_SD:g} "
        f"({TRAINING_SD_FROM}).",
        "- The paper's figures come from 100 other test cases, `3d_fullres` and 1000 epochs; compare differences "
        'between arms, not levels. Its "Augmented (x5)" can be read as `real+aug` (online) or `real+aug5` (files).',
        "- Every arm has the same number of updates: more data does not mean more training. (Arms called longer have "
        "more, until real cases have as many as in the others.)",
    ]
    if any(row["lineage"] == "unknown" for row in rows):
        names = ", ".join(sorted({f"`{row['arm']}`" for row in rows if row["lineage"] == "unknown"}))
        page.append(f"- **Lineage unknown** for {names}: the dataset does not say which real cases it was made from.")
    if any(row["lineage"] == "outside" for row in rows):
        names = ", ".join(sorted({f"`{row['arm']}`" for row in rows if row["lineage"] == "outside"}))
        page.append(
            f"- **A generator from elsewhere** in {names}: it was trained on cases beside the real ones of the arm "
            "(none of them is tested on; `lineage.json` of its pairs says which data), so a gain is not one of these "
            "alone."
        )
    if any(key.endswith(": dsc_mean") for row in rows for key in row):
        page.append(
            "- **Regions**: the whole tumour is every label, the tumour core all but oedema. In the tumour ΔDSC has "
            "its interval alone: no p, no verdict."
        )
    if any(row["verdict"] == "exploratory" for row in rows):
        page.append(
            "- **Exploratory**: the arm is in no family. Its p is not adjusted, and it is called neither better nor "
            "worse."
        )
    if any(undecided(row["trainings"]) for row in rows):
        page.append(
            f"- **Not decided**: the arm or the baseline has fewer than {LEAST_TRAININGS} trainings. The interval then "
            "holds the spread over cases, but little (two) or nothing (one) of that over trainings: it says how these "
            "networks differ on other cases, not how the methods do. `--seeds 0,1,2` trains three of each."
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
            shown = f"{number(row['p'])} | {number(row['detectable'])}"
            lines.append(f"| {row['arm']} | {interval(row)} | {shown} | {row['verdict']} |")
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
    return [*lines, "", *_regions(rows, baseline)]


def _regions(rows: list[dict[str, Any]], baseline: str) -> list[str]:
    """The scores of the nested regions, the whole tumour first; nothing where there is but one."""
    named = (key.removesuffix(": dsc_mean") for row in rows for key in row if key.endswith(": dsc_mean"))
    if not (regions := list(dict.fromkeys(named))):
        return []
    lines = [f"| arm | region | DSC | IoU | HD95 (mm) | NSD 1 mm | ΔDSC against {baseline} |", "|---" * 7 + "|"]
    for row in rows:
        for region in ("", *regions):
            start = f"{region}: " if region else ""
            own = {k.removeprefix(start): v for k, v in row.items() if k.startswith(start)}
            if not own:  # of an arm from before there were regions
                continue
            scores = " | ".join(_spread(own, metric, 1 if metric == "hd95_mm" else 3) for metric in METRICS)
            shown = "-" if own["difference"] == "" else interval(own)
            lines.append(f"| {row['arm']} | {region or 'whole tumour'} | {scores} | {shown} |")
    return [*lines, ""]
