"""Which case plays which role: listed by people, or drawn from a seed, and written down."""

from __future__ import annotations

import difflib
import re
import shlex
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sbldm.cases.labels import join
from sbldm.cases.naming import parse
from sbldm.cases.volumes import split_ending
from sbldm.run.errors import DataError, InputError
from sbldm.run.files import read_json, read_text, user_path, write_json

__all__ = [
    "LISTS_FILE",
    "check_disjoint",
    "data_folder",
    "pick",
    "read_case_list",
    "read_lists",
    "read_lists_file",
    "split_cases",
    "write_lists",
]

LISTS_FILE = "lists.json"


def read_case_list(path: str | Path) -> list[str]:
    """Read case names, one a line; blank lines are ignored, and so is what follows a `#` at the start or after a blank.

    Raises:
        InputError: the file is missing or unreadable, names no case, or one case twice.
    """
    text = read_text(user_path(path), "it must be a text with one case name a line", remove=False, error=InputError)
    lines = re.split(r"\r\n|\r|\n", text)
    names = [name for line in lines if (name := re.sub(r"(^|\s)#.*", "", line).strip())]
    if not names:
        raise InputError(f"{path}: this case list names no case; write one name a line.")
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise InputError(f"{path}: {join(twice, 3)} stands in this case list more than once.")
    return names


def pick(names: Sequence[str], known: Mapping[str, Collection[str]], where: Path) -> list[str]:
    """The cases that the names of a list stand for, in its order, each once.

    A name may have folders before it, or be that of one of a case's files, where that tells one case alone.

    Args:
        names: as listed.
        known: other names of each case, by its own.
        where: the folder of the cases, for messages.

    Raises:
        DataError: a name stands for no case, or for several.
    """
    others: dict[str, set[str]] = {}
    for case, aliases in known.items():
        for alias in aliases:
            others.setdefault(alias, set()).add(case)
    chosen: list[str] = []
    unknown: list[str] = []
    for name in names:
        meant = {name} if name in known else _meant(name, known, others)
        if len(meant) > 1:
            raise DataError(
                f"{name}: stands for several cases in {where} ({join(sorted(meant), 3)}); name one of them."
            )
        chosen += meant
        unknown += [] if meant else [name]
    if unknown:
        near = difflib.get_close_matches(unknown[0], known, 1, 0.8)
        hint = f"; the nearest to {unknown[0]} is {near[0]}" if near else ""
        raise DataError(f"{len(unknown)} of {len(names)} cases asked for are not in {where}: {join(unknown, 3)}{hint}.")
    return list(dict.fromkeys(chosen))


def _meant(name: str, known: Collection[str], others: Mapping[str, set[str]]) -> set[str]:
    """Cases that a name with folders or a file ending may stand for, by its last part that stands for any."""
    for part in reversed(re.split(r"[/\\]+", name)):
        split = split_ending(part)
        stem = split[0] if split else part
        named = parse(Path(part)) if split else None
        spellings = {part, stem, re.sub(r"_\d{4}$", "", stem) if split else stem} | ({named.case} if named else set())
        meant = {spelling for spelling in spellings if spelling in known}
        meant = meant or {case for spelling in spellings for case in others.get(spelling, ())}
        if meant:
            return meant
    return set()


def check_disjoint(lists: Mapping[str, Sequence[str]]) -> None:
    """Make sure that no case plays two roles, nor one role twice.

    Raises:
        DataError: names the first such case and its lists.
    """
    counts = Counter(name for names in lists.values() for name in names)
    if twice := [name for name, count in counts.items() if count > 1]:
        roles = " and ".join(role for role, names in lists.items() if twice[0] in names)
        more = f" (and {len(twice) - 1} more)" if len(twice) > 1 else ""
        raise DataError(f"{twice[0]}{more} stands more than once in the case lists ({roles}); keep it in one.")


def split_cases(names: Sequence[str], validation: float | int, seed: int) -> dict[str, list[str]]:
    """Draw the validation cases; the visits of one subject stay together.

    Args:
        names: all case names; their order plays no part.
        validation: share of the cases (float, 0 to below 1) or their number (int). Of two cases or more at least one
            validates and at least one trains; a single case trains.
        seed: seed of the draw.

    Returns:
        `{"train": [...], "validation": [...]}`, each sorted.

    Raises:
        InputError: `validation` is negative or leaves nothing to train on.
        DataError: no case, or one case twice.
    """
    if not names:
        raise DataError("there is no case to split into training and validation.")
    check_disjoint({"all": names})
    total = len(names)
    share = isinstance(validation, float)
    if not 0 <= validation < (1 if share else max(total, 2)):
        raise InputError(f"validation={validation}: must be a share from 0 to below 1, or a number below {total}.")
    count = min(max(round(validation * total) if share else validation, 1), total - 1)
    subjects = sorted({_subject(name) for name in names})
    held_back: set[str] = set()
    for index in np.random.default_rng(seed).permutation(len(subjects)):
        if len([name for name in names if _subject(name) in held_back]) < count and len(held_back) < len(subjects) - 1:
            held_back.add(subjects[index])
    ordered = sorted(names)
    return {
        "train": [name for name in ordered if _subject(name) not in held_back],
        "validation": [name for name in ordered if _subject(name) in held_back],
    }


def _subject(name: str) -> str:
    """The person behind a case: BraTS 2023+ numbers visits, as in BraTS-GLI-00005-001."""
    return re.sub(r"^(BraTS-[A-Za-z]+-\d+)-\d{3}$", r"\1", name)


def write_lists(folder: Path, lists: Mapping[str, Sequence[str]], seed: int, data: str) -> None:
    """Write `lists.json` with the seed, the data folder and the names of each role.

    Raises:
        DataError: a case stands in two lists.
        OutputError: the file cannot be written.
    """
    check_disjoint(lists)
    write_json(
        Path(folder) / LISTS_FILE, {"seed": seed, "data": data} | {role: list(names) for role, names in lists.items()}
    )


def read_lists(folder: Path) -> dict[str, list[str]]:
    """Read the roles (without the seed) that `write_lists` left in `folder`.

    Raises:
        StateError: there is no such file, or it is damaged.
    """
    content = read_lists_file(folder)
    return {role: content[role] for role in ("train", "validation")}


def data_folder(folder: Path) -> Path | None:
    """Where the cases of a run folder lie, if any are prepared there."""
    return Path(read_lists_file(folder)["data"]) if (Path(folder) / LISTS_FILE).is_file() else None


def read_lists_file(folder: Path) -> dict[str, Any]:
    """All that `write_lists` left in `folder`: the roles, `seed` and `data`.

    Raises:
        StateError: there is no such file, or it is damaged.
    """
    again = (
        f"run `sbldm prepare --data /path/to/cases --run {shlex.quote(str(folder))}` again, "
        "with the same --cases, --validation-cases and --seed as before"
    )
    return read_json(Path(folder) / LISTS_FILE, {"train": [str], "validation": [str], "data": str}, again)
