"""What the numbers in a mask mean: the schemes of the BraTS generations, a scheme of one's own, names in dataset.json.

The resection cavity of BraTS 2024 is no tumour: it is background whatever labels are asked for, as the whole tumour of
that challenge is 1 + 2 + 3. The paediatric scheme has tissues of its own, which become ours: enhancing tumour (ET) is
enhancing, non-enhancing tumour (NET) and the cystic component (CC) are the necrotic, non-enhancing core, ED is oedema.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from typing import Any

from sbldm.run.errors import InputError
from sbldm.run.files import user_path
from sbldm.run.schema import read_yaml

__all__ = [
    "NO_TUMOUR",
    "REGIONS",
    "SCHEMES",
    "TISSUES",
    "Scheme",
    "check_scheme",
    "explain",
    "join",
    "named_values",
    "plain_name",
    "read_scheme",
    "scheme_values",
]

TISSUES = {"necrotic": 1, "oedema": 2, "enhancing": 3}
"""Canonical tissue numbers, whatever a layout calls them."""

REGIONS = {
    "whole tumour": ("necrotic", "oedema", "enhancing"),
    "tumour core": ("necrotic", "enhancing"),
    "enhancing tumour": ("enhancing",),
}
"""The nested regions that BraTS scores, the largest first."""

NO_TUMOUR = ("cavity", "background")
"""What a number may stand for that no label takes, not even `all`."""

Scheme = str | Mapping[int, str]
"""`auto`, one of `SCHEMES`, or number -> tissue."""

SCHEMES: dict[str, tuple[str, dict[int, str]]] = {
    "brats21": ("BraTS 2018-2021", {1: "necrotic", 2: "oedema", 3: "enhancing", 4: "enhancing"}),
    "brats23": ("BraTS 2023", {1: "necrotic", 2: "oedema", 3: "enhancing"}),
    "brats24": ("BraTS 2024", {1: "necrotic", 2: "oedema", 3: "enhancing", 4: "cavity"}),
    "peds": ("BraTS-PEDs", {1: "enhancing", 2: "necrotic", 3: "necrotic", 4: "oedema"}),
}

# What a number joins -> how data sets call it, in the spelling of `plain_name`.
_REGIONS: dict[frozenset[str], set[str]] = {
    frozenset({"necrotic"}): {
        *("necrotic", "necrosis", "necrotic core", "necrotic tumour", "necrotic tumour core", "ncr", "ncr net", "net"),
        *("netc", "non enhancing", "non enhancing tumour", "non enhancing tumour core", "non enhancing core"),
        *("cc", "cyst", "cystic", "cystic component"),
    },
    frozenset({"oedema"}): {"oedema", "ed", "snfh", "peritumoral oedema", "peritumoural oedema"},
    frozenset({"enhancing"}): {"enhancing", "et", "enhancing tumour"},
    frozenset({"necrotic", "enhancing"}): {"tumour core", "core", "tc"},
    frozenset(TISSUES): {"whole tumour", "tumour", "wt", "lesion", "glioma"},
    frozenset({"cavity"}): {"cavity", "rc", "resection cavity"},
}
_OWN = {spelling: next(iter(tissues)) for tissues, names in _REGIONS.items() if len(tissues) == 1 for spelling in names}
_OWN |= {spelling: "tumour" for tissues, names in _REGIONS.items() if len(tissues) > 1 for spelling in names}
_OWN["background"] = "background"
_KNOWN = (*TISSUES, "tumour", *NO_TUMOUR)
_EXAMPLE = "for example `1: enhancing`, a line for each number"


def join(names: Iterable[Any], limit: int = 8) -> str:
    """The first of some names, with commas."""
    names = [str(name) for name in names]
    return ", ".join(names[:limit]) + (", ..." if len(names) > limit else "")


def plain_name(name: str) -> str:
    """One spelling for names that data sets write in many ways: lower case, British, blanks between words."""
    name = re.sub(r"[\W_]+", " ", str(name).lower()).strip()
    return re.sub(r"\bedema\b", "oedema", re.sub(r"\btumor\b", "tumour", name))


def read_scheme(text: str) -> Scheme:
    """Read a scheme: `auto`, the name of a scheme, or a YAML file that maps each number in the masks to a tissue.

    Tissues are necrotic, oedema, enhancing, tumour (of whichever tissue), cavity and background (both no tumour).

    Raises:
        InputError: no such scheme or file, or something in the file is wrong; the nearest known name is given.
    """
    if text.lower() in ("auto", *SCHEMES):
        return text.lower()
    path = user_path(text)
    if not path.is_file():
        near = difflib.get_close_matches(text.lower(), ("auto", *SCHEMES), 1, 0.5)
        hint = f"; the nearest is {near[0]}" if near else ""
        raise InputError(
            f"--labels {text}: no such scheme or file{hint}. Known are auto, {join(SCHEMES)}, or a YAML file."
        )
    content = read_yaml(path, "a label scheme")
    return check_scheme(content, f"--labels {text}")


def check_scheme(scheme: Any, where: str) -> Scheme:
    """A scheme from plain YAML values, with tissues in our spelling; `where` begins the message when it is wrong.

    Raises:
        InputError: see `read_scheme`.
    """
    if isinstance(scheme, str) and scheme in ("auto", *SCHEMES):
        return scheme
    if not isinstance(scheme, Mapping):
        raise InputError(
            f"{where}: {scheme!r} is neither one of auto, {join(SCHEMES)} nor a mapping of numbers; {_EXAMPLE}."
        )
    values: dict[int, str] = {}
    for key, name in scheme.items():
        number = int(key) if isinstance(key, str) and key.strip().isdecimal() else key
        if isinstance(number, bool) or not isinstance(number, int) or number < 0:
            turned = "; the number comes first" if isinstance(name, int) else ""
            raise InputError(f"{where}: {key!r} is no number of a mask{turned}, {_EXAMPLE}.")
        tissue = _OWN.get(plain_name(name)) if isinstance(name, str) and not set(name) & set("$@%") else None
        if tissue is None:
            near = difflib.get_close_matches(plain_name(name), _OWN, 1, 0.5) if isinstance(name, str) else []
            hint = f"; the nearest is {_OWN[near[0]]}" if near else ""
            raise InputError(f"{where}: {number}: {name!r} is no tissue{hint}. Known are {join(_KNOWN)}.")
        if number in values:
            raise InputError(f"{where}: {number} stands there twice; keep one.")
        if number == 0 and tissue != "background":
            raise InputError(f"{where}: 0: {name!r}: 0 is always background; leave it out.")
        values[number] = tissue
    values.pop(0, None)
    if not set(values.values()) - set(NO_TUMOUR):
        raise InputError(f"{where}: names no tissue of a tumour; known are {join((*TISSUES, 'tumour'))}, {_EXAMPLE}.")
    return dict(sorted(values.items()))


def scheme_values(scheme: Scheme) -> dict[int, str | None]:
    """Number -> tissue of a scheme other than `auto`; None is tumour of unknown tissue."""
    values = SCHEMES[scheme][1] if isinstance(scheme, str) else scheme
    return {number: None if tissue == "tumour" else tissue for number, tissue in values.items()}


def explain(strange: float, present: Iterable[float]) -> str:
    """Which schemes know all numbers of a mask, and what a strange one is in them; empty when there is none."""
    present = set(present) - {0}
    known = [
        f"{'the resection cavity' if values[strange] == 'cavity' else values[strange]} in {title} (--labels {name})"
        for name, (title, values) in SCHEMES.items()
        if present <= set(values) and strange in values
    ]
    return f"label {strange:g} is {' or '.join(known)}" if known else ""


def named_values(labels: Mapping[str, Any]) -> dict[int, str | None]:
    """Number -> tissue from the `labels` of a dataset.json: `{name: number}`, `{name: [numbers]}` or `{number: name}`.

    Nested regions (whole tumour, tumour core, enhancing) are told apart by which of them hold a number.
    """
    if all(str(key).isdigit() for key in labels):
        labels = {name: int(key) for key, name in labels.items()}
    regions = {
        plain_name(name): {int(value) for value in (numbers if isinstance(numbers, list) else [numbers])} - {0}
        for name, numbers in labels.items()
    }
    named = [
        (tissues, numbers, isinstance(labels[name], list))
        for name, numbers in zip(labels, regions.values(), strict=True)
        for tissues, spellings in _REGIONS.items()
        if plain_name(name) in spellings and numbers
    ]
    values: dict[int, str | None] = {}
    for value in sorted({number for _, numbers, _ in named for number in numbers}):
        possible = {*TISSUES, "cavity"}
        for tissues, numbers, nested in named:
            if value in numbers:
                possible &= tissues
            elif nested:
                possible -= tissues
        values[value] = possible.pop() if len(possible) == 1 else None
    foreground = set().union(*regions.values())
    return values or ({foreground.pop(): None} if len(foreground) == 1 else {})
