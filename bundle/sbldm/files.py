"""Files appear whole or not at all: write beside, flush to disk, rename."""

from __future__ import annotations

import codecs
import contextlib
import csv
import hashlib
import json
import os
import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from sbldm.errors import OutputError

__all__ = [
    "atomic_path",
    "clear_partial",
    "make_folder",
    "read_json",
    "read_npz",
    "read_text",
    "sha256",
    "user_path",
    "write_csv",
    "write_json",
    "write_nifti",
]

PARTIAL = ".partial-"


def user_path(text: str | Path) -> Path:
    """A path as people write it: `~` and `~user` stand for home folders; those of nobody stay as they are."""
    return Path(os.path.expanduser(text))


def read_text(path: Path) -> str:
    """Text that people write, whichever editor they use: UTF-8 or UTF-16, with or without a byte order mark.

    Raises:
        OSError: it cannot be read.
        UnicodeDecodeError: it is in another encoding.
    """
    stored = Path(path).read_bytes()
    if stored.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return stored.decode("utf-16")
    if b"\0" in stored[:2]:  # a first letter in 16 bits, without the mark
        return stored.decode("utf-16-be" if stored[:1] == b"\0" else "utf-16-le")
    return stored.decode("utf-8-sig")


def make_folder(path: Path) -> Path:
    """Create a folder and its parents; an `OutputError` names it when that is impossible."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(
            f"{path}: cannot create this folder ({error.strerror}); choose another RUN or free it."
        ) from None
    return path


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def atomic_path(path: Path, scratch: Path | None = None) -> Iterator[Path]:
    """Yield a temporary path with the same file ending; on success it takes the place of `path`, else it is removed.

    The temporary file lies in a hidden folder of its own under `scratch` (default: beside `path`), on the same file
    system, so that a killed process never leaves a stray file where another program lists files and writers that run
    at the same time keep apart.

    Raises:
        OutputError: the disk is full, read-only or not permitted.
    """
    path = Path(path)
    make_folder(path.parent)
    scratch = make_folder(scratch or path.parent)
    try:
        with tempfile.TemporaryDirectory(prefix=PARTIAL, dir=scratch, ignore_cleanup_errors=True) as own:
            temporary = Path(own) / path.name
            yield temporary
            _sync(temporary)
            os.replace(temporary, path)
            _sync(path.parent)
    except OSError as error:
        raise OutputError(
            f"{path}: cannot be written ({error.strerror or error}); free space or choose another RUN. "
            "What was finished before is kept."
        ) from error


def clear_partial(folder: Path) -> None:
    """Remove what a killed run left half-written under `folder`."""
    for scratch in Path(folder).rglob(f"{PARTIAL}*"):
        shutil.rmtree(scratch, ignore_errors=True)


def write_json(path: Path, content: Any) -> None:
    """Write `content` as indented JSON, whole or not at all."""
    with atomic_path(path) as temporary, open(temporary, "w") as file:
        json.dump(content, file, indent=2)
        file.write("\n")


def read_json(path: Path) -> Any:
    """Read one JSON file."""
    with open(path) as file:
        return json.load(file)


def read_npz(path: Path) -> dict[str, np.ndarray] | None:
    """All arrays of an .npz, never unpickled; None when it is missing or damaged, in whichever of a zip's ways."""
    try:
        with np.load(path, allow_pickle=False) as stored:
            return dict(stored)
    except (OSError, ValueError, KeyError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error):
        return None


def write_csv(path: Path, rows: Sequence[dict[str, Any]], columns: Sequence[str] | None = None) -> None:
    """Write dictionaries with equal keys as one CSV table, whole or not at all; no rows need the `columns`."""
    with atomic_path(path) as temporary, open(temporary, "w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=columns or list(rows[0] if rows else ()))
        writer.writeheader()
        writer.writerows(rows)


def write_nifti(path: Path, array: np.ndarray, affine: np.ndarray, scratch: Path | None = None) -> None:
    """Write a volume `[X, Y, Z]` with its RAS affine (qform and sform alike, units mm), whole or not at all."""
    image = nib.Nifti1Image(array, affine)
    image.set_sform(affine, code=1)
    image.set_qform(affine, code=1)
    image.header.set_xyzt_units("mm")
    with atomic_path(path, scratch) as temporary:
        nib.save(image, temporary)


def sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, as hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
