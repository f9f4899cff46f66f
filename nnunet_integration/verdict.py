"""The answer of an evaluation in plain words: whether pairs help, by how much, and what to try next."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nnunet_integration.arms import ArmBook
from nnunet_integration.results import ArmResults, Results
from nnunet_integration.statistics import undecided
from nnunet_integration.table import compare, interval, number
from sbldm.run.manifest import Manifest

__all__ = ["answer"]

FEW_REAL = 25  # real cases up to which more than one pair for each is worth a try
INTO_REAL_BRAINS = ("canvas", "copypaste")  # in the names of generators that do


def answer(results: Results) -> list[str]:
    """One paragraph for each number of real cases, rising: whether pairs help, by how much, and what to try next.

    Each speaks of one arm with pairs: of those that are better than the baseline the one by most, else the one of the
    largest difference, exploratory arms (see `ArmBook.family`) last. Another arm whose mean is larger is named.
    """
    return [_paragraph(n, results.with_n(n), results.book) for n in results.n_real]


def _paragraph(n: int, arms: dict[str, ArmResults], book: ArmBook) -> str:
    rows = {name: row for name, row in compare(arms, book).items() if arms[name].amount > 0}
    if not rows:
        lacking = "no arm with pairs" if book.baseline in arms else f"no `{book.baseline}`"
        return f"With {_count(n, 'real case')} nothing can be said of pairs: {lacking} is finished."

    def claim(name: str) -> tuple[bool, bool, float]:
        return rows[name]["verdict"] == "better", bool(book.family(name)), rows[name]["difference"]

    name, furthest = max(rows, key=claim), max(rows, key=lambda name: rows[name]["difference"])
    text = f"With {_count(n, 'real case')} {_finding(name, rows[name], arms, book)}."
    if furthest != name:
        there = rows[furthest]
        text += f" `{furthest}` is ahead of it by its mean ({interval(there)}, {there['verdict']})."
    return f"{text} Next: {_next(n, name, arms, book)}."


def _finding(name: str, row: dict[str, Any], arms: dict[str, ArmResults], book: ArmBook) -> str:
    own, base = len(arms[name].jobs), len(arms[book.baseline].jobs)
    cases = _count(len(arms[name].cases), "test case")
    trainings = _count(own, "training") + (" of each" if own == base else f" and {base} of `{book.baseline}`")
    by = f"DSC {interval(row)} {'over' if row['verdict'] == 'better' else 'against'} `{book.baseline}`"
    on = f"(95 % interval, {cases}, {trainings})"
    match row["verdict"]:
        case "better":
            return f"`{name}` helps: {by} {on}"
        case "worse":
            return f"pairs do not help: `{name}` is worse, {by} {on}"
        case "within noise":
            least = number(row["detectable"], 2)
            shown = f"{cases} and {trainings} could show (the smallest that they could: {least})"
            return f"pairs make no difference that {shown}: `{name}`, {by} (95 % interval, p {number(row['p'])})"
        case "exploratory":
            return f"one cannot tell: `{name}` is exploratory, in no family of the arms file; {by} {on}"
    return f"one cannot tell from {row['verdict'].removeprefix('not decided: ')}: `{name}`, {by} {on}"


def _next(n: int, name: str, arms: dict[str, ArmResults], book: ArmBook) -> str:
    """The first that applies."""
    if undecided(min(len(arms[name].jobs), len(arms[book.baseline].jobs))):
        return "`--seeds 0,1,2` trains three of each"
    if not any(map(_into_real_brains, arms.values())):
        return "draw into real brains, with `sbldm synth --canvas train` or `sbldm copypaste`"
    if n <= FEW_REAL and max(arm.amount for arm in arms.values()) <= 1:
        return "five pairs for each real case, with `sbldm nnunet plateau --amounts 5`"
    return "more test cases (`--test`) or seeds (`--seeds`)"


def _into_real_brains(arm: ArmResults) -> bool:
    """Whether the pairs of an arm show real brains: by their settings, or by their name where these are gone."""
    if any(word in arm.name for word in INTO_REAL_BRAINS):
        return True
    folders = [Path(folder) for folder in arm.jobs[0].get("pairs") or []]
    return any("canvases" in found.settings for found in map(Manifest, folders) if found.has_settings)


def _count(n: int, what: str) -> str:
    return f"{n} {what}" if n == 1 else f"{n} {what}s"
