"""What lies in a raw dataset of pairs beside the images: one reader for each file, used by all who read it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nibabel as nib

from sbldm.run.errors import DamagedError
from sbldm.run.files import check, read_json, read_nifti, read_rows, reading

__all__ = [
    "ANEW",
    "DRAWN_BY",
    "GIVEN_UP",
    "RECORD",
    "from_elsewhere",
    "read_description",
    "read_given_up",
    "read_lineage",
    "read_manifest",
    "read_origin",
    "read_pair_file",
    "read_settings",
]

DRAWN_BY = "run the command that drew these pairs again (sbldm synth or copypaste, the same --n and --seed)"
ANEW = f"{DRAWN_BY}: it keeps the pairs and writes this file anew"
RECORD = {"pair": str, "seed": int, "redrawn": int, "seconds": float}
GIVEN_UP = {"pair": str, "attempts": int}


def read_manifest(dataset: Path, columns: Mapping[str, type] | None = None) -> list[dict[str, str]]:
    """Rows of the `manifest.csv` of a dataset, one a pair, with `columns` (see `read_rows`) beside `pair`.

    Raises:
        StateError: it is missing or damaged, or lists nothing.
    """
    path = dataset / "manifest.csv"
    rows = read_rows(path, {"pair": str} | dict(columns or {}), ANEW, remove=False)
    if not rows:
        raise DamagedError(f"{path}: lists no pairs; {ANEW}.")
    return rows


def read_settings(dataset: Path) -> dict[str, Any]:
    """What all pairs of a dataset have in common, from `synthesis.json`.

    Raises:
        StateError: it is missing or damaged.
    """
    path, again = dataset / "synthesis.json", DRAWN_BY
    content = read_json(path, dict, again)
    known = {"checkpoint_sha256": str, "sampling": dict, "gate": dict}
    with reading(path, again):
        check(content, {name: form for name, form in known.items() if name in content})
        check(content, {} if content else {"seed": int})
    return content


def read_lineage(dataset: Path) -> dict[str, str]:
    """Real cases that the pairs of a dataset descend from and the content hash of each, from `lineage.json`.

    Raises:
        StateError: it is missing or damaged.
    """
    return read_json(dataset / "lineage.json", {"cases": {str: str}}, ANEW, remove=False)["cases"]


def read_origin(dataset: Path) -> dict[str, Any] | None:
    """What the generator of a dataset was trained on where it came from elsewhere (`Weights.origin`), else None.

    Raises:
        StateError: `lineage.json` is missing or damaged.
    """
    path = dataset / "lineage.json"
    origin = read_json(path, {"cases": {str: str}}, ANEW, remove=False).get("generator")
    if origin is not None:
        with reading(path, ANEW, remove=False):
            check(origin, {"data": str, "licence": str, "cases": int, "seen": [{"salt": str, "hashes": [str]}]})
    return origin


def from_elsewhere(dataset: Path) -> bool:
    """Whether weights from elsewhere drew a dataset, so that its pairs descend from none of a run's training cases.

    (Those of a training that went on from such weights descend from both.)
    """
    origin = read_origin(dataset) if (dataset / "lineage.json").is_file() else None
    return origin is not None and origin.get("weights_sha256") == read_settings(dataset).get("checkpoint_sha256")


def read_description(dataset: Path) -> dict[str, Any]:
    """Channels and labels of a dataset of ours, from `dataset.json`.

    Raises:
        StateError: it is missing or damaged.
    """
    form = {"channel_names": {str: str}, "labels": dict, "numTraining": int}
    return read_json(dataset / "dataset.json", form, ANEW, remove=False)


def read_pair_file(path: Path) -> nib.Nifti1Image:
    """Image or label file of a pair of ours, with its voxels in memory.

    Raises:
        StateError: it is missing or damaged.
    """
    return read_nifti(path, DRAWN_BY)


def read_given_up(dataset: Path) -> list[int]:
    """Attempts of each pair that was refused every time, from `given_up.csv`; without that file there are none.

    Raises:
        StateError: it is damaged.
    """
    path = dataset / "given_up.csv"
    rows = read_rows(path, {"pair": str, "attempts": int}, ANEW, remove=False) if path.is_file() else []
    return [int(row["attempts"]) for row in rows]
