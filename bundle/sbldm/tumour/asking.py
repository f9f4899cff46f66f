"""What can be asked for of a tumour, and how it is read: parts of a request, tables, and what no value may be."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from sbldm.run.errors import InputError
from sbldm.run.files import read_text, user_path
from sbldm.run.limits import LARGEST
from sbldm.tumour.characteristics import NAMES, SHARES

__all__ = ["ASKABLE", "PARTS", "check_request", "parse_request", "read_requests"]

PARTS = {
    "volume_ml": NAMES[0:1],
    "surface_mm2": NAMES[1:2],
    "sphericity": NAMES[2:3],
    "centre_mm": NAMES[3:6],
    "extents_mm": NAMES[6:9],
    **{name: (name,) for name in SHARES.values()},
    "contrast": ("contrast",),
}
"""Parts of a request and what each one asks for: characteristics, and on canvases the contrast."""

ASKABLE = tuple(name for names in PARTS.values() for name in names)

TITLES = {n: v if len(names) == 1 else f"{v} ({n})" for v, names in PARTS.items() for n in names}


def check_request(request: Mapping[str, float]) -> dict[str, float]:
    """Plain floats, or an `InputError` that names the part."""
    if unknown := [name for name in request if name not in ASKABLE]:
        raise InputError(f"{unknown[0]!r} is no tumour characteristic; choose from {', '.join(ASKABLE)}.")
    checked = {}
    for name, value in request.items():
        try:
            checked[name] = value = float(value)
        except (TypeError, ValueError):
            raise InputError(f"{TITLES[name]}={value!r} is not a number.") from None
        if not np.isfinite(value):
            raise InputError(f"{TITLES[name]}={value} is not a finite number.")
        if abs(value) > LARGEST:
            raise InputError(f"{TITLES[name]}={value:g} is beyond anything in a head.")
        if name in SHARES.values():
            if not 0 <= value <= 100:
                raise InputError(f"{name}={value:g} must lie from 0 to 100, in per cent of the whole tumour.")
        elif name not in (*NAMES[3:6], "contrast") and value <= 0:
            raise InputError(f"{TITLES[name]}={value:g} must be greater than 0.")
        if name == "sphericity" and value > 1:
            raise InputError(f"sphericity={value:g} must lie above 0 and not above 1 (a sphere).")
    return checked


def read_requests(path: Path) -> list[dict[str, float]]:
    """Read requests from a CSV whose header names any of `ASKABLE`; an empty cell means "draw it".

    Raises:
        InputError: the file cannot be read or is empty, or a column or cell is wrong; file, line and column are named.
    """
    legend = f"The columns are any of {', '.join(ASKABLE)}."
    legend_of_file = f"it must be a CSV table of requests. {legend.removesuffix('.')}"
    text = read_text(user_path(path), legend_of_file, remove=False, error=InputError)
    try:
        reader = csv.reader(io.StringIO(text, newline=""), strict=True)
        lines = [(reader.line_num, [cell.strip() for cell in line]) for line in reader if line]
    except csv.Error as error:
        raise InputError(f"{path}: cannot be read as a CSV of requests ({error}). {legend}") from None
    if len(lines) < 2:
        raise InputError(f"{path}: holds no request, a header and at least one row are needed. {legend}")
    header = [name.lower() for name in lines[0][1]]
    for name in header:
        if name not in ASKABLE or header.count(name) > 1:
            problem = "comes twice" if name in ASKABLE else "is unknown"
            raise InputError(f"{path}, line {lines[0][0]}: column {name!r} {problem}. {legend}")
    requests = []
    for number, cells in lines[1:]:
        if len(cells) != len(header):
            raise InputError(f"{path}, line {number}: {len(cells)} cells under {len(header)} columns. {legend}")
        requests.append({})
        for name, cell in zip(header, cells, strict=True):
            try:
                requests[-1] |= check_request({name: cell} if cell else {})
            except InputError as error:
                raise InputError(f"{path}, line {number}, column {name}: {error} {legend}") from None
    return requests


def parse_request(**parts: float | str | Sequence[float] | None) -> dict[str, float]:
    """A request from its parts (`PARTS`): one number each, or three, as a sequence or with commas between them.

    `centre_mm` counts millimetres to the right, anterior and superior from the centre of the brain's box, `extents_mm`
    the bounding box along the same axes. What is None or empty is left open.

    Raises:
        InputError: a part is unknown, has too few or too many numbers, or an impossible value.
    """
    request: dict[str, float] = {}
    for part, content in parts.items():
        if part not in PARTS:
            raise InputError(f"{part} is no part of a request; choose from {', '.join(PARTS)}.")
        if content is None or (isinstance(content, str) and not content.strip()):
            continue
        names = PARTS[part]
        values = content.split(",") if isinstance(content, str) else np.atleast_1d(content).tolist()
        if len(values) != len(names):
            form = "one number" if len(names) == 1 else "three numbers along R, A, S, as in 40,35,30,"
            raise InputError(f"{part}={content!r}: {form} needed.")
        request |= check_request(dict(zip(names, values, strict=True)))
    return request
