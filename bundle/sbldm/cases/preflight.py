"""What is wrong with the cases, found before any work and told in one table. Nothing is ever repaired."""

from __future__ import annotations

import difflib
import itertools
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from functools import partial

from rich.table import Table
from rich.text import Text

from sbldm.cases.identity import Identity
from sbldm.cases.inspection import DOUBTS, MENDS, Finding, Inspection, inspect_case
from sbldm.cases.layouts import Case, Source
from sbldm.run.errors import DataError, InputError
from sbldm.run.progress import console_for
from sbldm.run.workers import map_in_processes

__all__ = ["preflight", "print_table"]


def print_table(findings: Sequence[Finding], n_cases: int, hints: bool = False) -> None:
    """Print what is wrong with which case and what is done about it, and how many of `n_cases` are used.

    With `hints` a line for each check says how to mend it, or how to accept what is only doubtful.
    """
    if findings:
        table = Table("case", "check", "what is wrong", "what is done", title="Pre-flight")
        for finding in findings:
            words = (finding.case, finding.check, finding.what, finding.action)
            table.add_row(*(Text(word) for word in words))
        console_for(table).print(table)
        first = {finding.check: finding for finding in reversed(findings) if finding.action == "left out"}
        for check, finding in sorted(first.items()) if hints else ():
            print(f"{check}: {finding.mend}.")
    used = n_cases - len({finding.case for finding in findings if finding.action == "left out"})
    print(f"Pre-flight: {used} of {n_cases} cases used" + ("." if findings else ", nothing wrong."))


def _nearest(word: str, known: Collection[str]) -> str:
    near = difflib.get_close_matches(word, known, 1, 0)
    return f"the nearest is {near[0]}" if near else "there is none"


def _accepted(accept: Sequence[str], names: Collection[str]) -> set[tuple[str, str]]:
    """The pairs of case and check that `accept` names; "" stands for every case, or every doubt.

    Raises:
        InputError: it names no such case or check, or a check that cannot be overruled.
    """
    pairs = set()
    for word in accept:
        name, _, check = (word, "", "") if word in names or ":" not in word else word.rpartition(":")
        if name == "all" and check and "all" not in names:
            name = ""
        elif name not in names:
            mend = "for one check in all cases write all:CHECK" if name == "all" else _nearest(name, names)
            raise InputError(f"--accept {word}: no such case; {mend}.")
        if check in MENDS:
            raise InputError(f"--accept {word}: a case with {check} cannot be used, so not accepted; {MENDS[check]}.")
        if check not in DOUBTS and (check or word.endswith(":")):
            raise InputError(f"--accept {word}: no such check; {_nearest(check, DOUBTS)}.")
        pairs.add((name, check))
    return pairs


def _overruled(findings: Sequence[Finding], accepted: set[tuple[str, str]]) -> list[Finding]:
    """The findings, with those marked that `accept` names."""
    return [
        replace(finding, action="accepted")
        if finding.check in DOUBTS and accepted & set(itertools.product((finding.case, ""), (finding.check, "")))
        else finding
        for finding in findings
    ]


def _orientations(cases: Sequence[Case], results: Sequence[Inspection]) -> list[list[Finding]]:
    """The findings of each case; an orientation that is not declared counts only against others that are.

    Where no case declares one, or all that do have the very axes that are assumed, nothing tells that it is wrong.
    """
    undeclared = [any(f.check == "orientation" for f in result.findings) for result in results]
    declared = Counter(r.axes for r, lacks in zip(results, undeclared, strict=True) if r.axes and not lacks)
    common = declared.most_common(1)[0][0] if declared else ""
    return [
        [
            replace(f, action="kept")
            if f.check == "orientation" and common in ("", result.axes)
            else replace(f, what=f"{f.what}, where other cases declare {', '.join(common)}")
            if f.check == "orientation"
            else f
            for f in result.findings
        ]
        for result in results
    ]


def preflight(
    cases: Sequence[Case],
    source: Source,
    lists: Mapping[str, Sequence[str]] | None = None,
    workers: int = 1,
    strict: bool = False,
    accept: Sequence[str] | None = None,
) -> tuple[list[Case], list[Finding], dict[str, Identity]]:
    """Check all cases and print the table of what is wrong.

    Args:
        cases: cases found.
        source: channels and labels asked for.
        lists: names by role (train, validation), when the user gave them; a case in two is left out.
        workers: processes; one checks in this process.
        strict: stop at any finding that is not accepted.
        accept: doubts to overrule, each `CASE`, `CASE:check` or `all:check`; None where that cannot be said, so that no
            hint names it.

    Returns:
        The usable cases in their order, all findings, and what the files of each usable case hold. Of cases with the
        same image, in whatever orientation, the first usable one is kept.

    Raises:
        InputError: `accept` names something unknown, or a case that cannot be used all the same.
        DataError: no case is usable, or `strict` and anything is wrong.
    """
    accepted = _accepted(accept or (), {case.name for case in cases})
    results = map_in_processes(partial(inspect_case, source=source), cases, workers, "Pre-flight")
    findings: list[Finding] = []
    usable: list[Case] = []
    identities: dict[str, Identity] = {}
    first_with: dict[str, str] = {}
    for case, result, of_case in zip(cases, results, _orientations(cases, results), strict=True):
        of_case = _overruled(of_case, accepted)
        roles = [role for role, names in (lists or {}).items() if case.name in names]
        if len(roles) > 1:
            of_case.append(Finding(case.name, "two_lists", f"stands in the lists {' and '.join(roles)}"))
        if result.identity and all(finding.action != "left out" for finding in of_case):
            twin = first_with.setdefault(result.identity.brightness, case.name)
            if twin == case.name:
                usable.append(case)
                identities[case.name] = result.identity
            else:
                what = f"{case.images[0].name}: the same image as case {twin}"
                of_case.append(Finding(case.name, "duplicate", what))
        findings += of_case
    print_table(findings, len(cases), hints=accept is not None)
    for finding in findings:
        if (finding.case, "") in accepted and finding.action == "left out":
            raise InputError(f"--accept {finding.case}: {finding.what}; this cannot be accepted: {finding.mend}.")
    if not usable:
        first = f" First: {findings[0].case}, {findings[0].what}." if findings else ""
        raise DataError(f"none of the {len(cases)} cases is usable.{first}")
    if strict and (open_ones := [finding for finding in findings if finding.action != "accepted"]):
        raise DataError(f"--strict: {len(open_ones)} findings in the table above; mend them or leave it out.")
    return usable, findings, identities
