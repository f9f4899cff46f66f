"""Which case plays which role, drawn from a seed and written down."""

from __future__ import annotations

import re
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sbldm.errors import DataError, InputError
from sbldm.files import read_json, write_json

__all__ = ["LISTS_FILE", "check_disjoint", "read_lists", "read_lists_file", "split_cases", "write_lists"]

LISTS_FILE = "lists.json"


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


def read_lists_file(folder: Path) -> dict[str, Any]:
    """All that `write_lists` left in `folder`: the roles, `seed` and `data`.

    Raises:
        StateError: there is no such file, or it is damaged.
    """
    again = (
        f"run `make prepare DATA=/path/to/cases RUN={shlex.quote(str(folder))}` again, "
        "with the same CASES, VALIDATION_CASES and SEED as before"
    )
    return read_json(Path(folder) / LISTS_FILE, {"train": [str], "validation": [str], "data": str}, again)
