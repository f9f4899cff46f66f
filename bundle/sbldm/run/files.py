"""Files appear whole or not at all: write beside, flush to disk, rename."""

from __future__ import annotations

import codecs
import contextlib
import csv
import gzip
import hashlib
import io
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from sbldm.run.errors import DENIED, REFUSALS, DamagedError, OutputError, SbldmError, StateError, refused

__all__ = [
    "BUNDLE",
    "Misfit",
    "atomic_path",
    "cached_npz",
    "check",
    "clear_partial",
    "make_folder",
    "read_json",
    "read_nifti",
    "read_npz",
    "read_rows",
    "read_text",
    "reading",
    "sha256",
    "user_path",
    "whole_stream",
    "write_csv",
    "write_json",
    "write_nifti",
]

BUNDLE = next(folder for folder in Path(__file__).parents if (folder / "configs").is_dir())
"""Folder of `configs` and `models`: that beside the package; the package itself where a wheel was installed."""

PARTIAL = ".partial-"


def user_path(text: str | Path) -> Path:
    """A path as people write it: `~` and `~user` stand for home folders; those of nobody stay as they are."""
    return Path(os.path.expanduser(text))


def make_folder(path: Path) -> Path:
    """Create a folder and its parents; an `OutputError` names it when that is impossible."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        text = refused(path, error, "written").replace("cannot be written", "cannot create this folder")
        raise OutputError(text) from None
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
        other = isinstance(error.filename, str) and not Path(error.filename).is_relative_to(scratch)
        if other and Path(error.filename) != path:
            raise  # the trouble is with a file that is read meanwhile
        raise OutputError(f"{refused(path, error, 'written')} What was finished before is kept.") from error


def clear_partial(folder: Path) -> None:
    """Remove what a killed run left half-written under `folder`."""
    for scratch in Path(folder).rglob(f"{PARTIAL}*"):
        shutil.rmtree(scratch, ignore_errors=True)


def write_json(path: Path, content: Any) -> None:
    """Write `content` as indented JSON, whole or not at all."""
    with atomic_path(path) as temporary, open(temporary, "w") as file:
        json.dump(content, file, indent=2)
        file.write("\n")


@contextlib.contextmanager
def reading(
    path: str | Path, again: str = "", remove: bool = True, error: type[SbldmError] = StateError
) -> Iterator[None]:
    """Turn whatever can go wrong with the file that is read inside into one line: the file, what it is, the mend.

    What libraries say of a damaged file is not repeated: some of it is advice that must not be followed.

    Args:
        path: the file; nothing else may be read inside.
        again: how the file is made anew, or how one of the user's is corrected, as the end of a sentence.
        remove: whether a damaged file must be removed before that.
        error: what to raise; for `StateError` a damaged file is a `DamagedError`.

    Raises:
        SbldmError: of that kind. The file is missing, a folder, without the right to be read, or damaged.
    """
    if not again:
        again, remove = "restore it from a copy", False
    try:
        yield
    except (SbldmError, MemoryError):
        raise
    except Exception as problem:
        if isinstance(problem, FileNotFoundError):
            kind = "is a link to nothing" if os.path.islink(path) else "is missing"
            raise error(f"{path}: {kind}; {again}.") from None
        if isinstance(problem, IsADirectoryError) and error is not StateError:
            raise error(f"{path}: cannot be read (it is a folder); name a file.") from None
        if isinstance(problem, OSError) and problem.errno in (*REFUSALS, *DENIED):  # others come of what a file holds
            raise error(refused(path, problem, "read")) from None
        first = "remove it and " if remove else ""
        ours = error is StateError
        said = f"{path}: {'damaged' if ours else 'cannot be read'} ({_damage(Path(path), problem)}); {first}{again}."
        raise (DamagedError if ours else error)(said) from None


def _damage(path: Path, problem: Exception) -> str:
    """In our own words what is wrong with a file."""
    with contextlib.suppress(OSError):
        if path.stat().st_size == 0:
            return "it is empty"
    if isinstance(problem, Misfit):
        return str(problem)
    if isinstance(problem, UnicodeError):
        return "it is no text in UTF-8 or UTF-16"
    if isinstance(problem, json.JSONDecodeError):
        return f"no JSON from line {problem.lineno} on"
    return "it is cut off, changed, or a file of another kind"


class Misfit(ValueError):
    """Content of another form than the reader needs; raised inside `reading`, it says in our words what is wrong."""


def check(content: Any, form: Any, name: str = "its content") -> None:
    """Make sure, inside `reading`, that content has the form that is needed; further keys are free.

    Args:
        content: what was read.
        form: a type; `[form]`: a list of such; `{"key": form}`: a dictionary with these keys; `{str: form}`: one with
            any keys. A float may be written as an int.
        name: of the content, for the message.
    """
    if isinstance(form, Mapping):
        _need(isinstance(content, dict), name)
        for key, part in form.items():
            for own in content if key is str else [key]:
                _need(own in content, repr(own))
                check(content[own], part, repr(own))
    elif isinstance(form, list):
        _need(isinstance(content, list), name)
        for value in content:
            check(value, form[0], name)
    elif form in (int, float):
        _need(isinstance(content, (int, form)) and not isinstance(content, bool), name)
    else:
        _need(isinstance(content, form), name)


def _need(true: bool, name: str) -> None:
    if not true:
        raise Misfit(f"{name} is missing or of another form than was written")


def read_json(
    path: Path, form: Any = object, again: str = "", remove: bool = True, error: type[SbldmError] = StateError
) -> Any:
    """Read one JSON file of a `form` (see `check`); `again`, `remove` and `error` are those of `reading`."""
    with reading(path, again, remove, error):
        with open(path, encoding="utf-8") as file:
            content = json.load(file)
        check(content, form)
    return content


def read_text(path: Path, again: str = "", remove: bool = True, error: type[SbldmError] = StateError) -> str:
    """The text of a file, whichever editor wrote it: UTF-8 or UTF-16, with or without a byte order mark.

    `again`, `remove` and `error` are those of `reading`.
    """
    with reading(path, again, remove, error):
        stored = Path(path).read_bytes()
        if stored.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            return stored.decode("utf-16")
        if b"\0" in stored[:2]:  # a first letter in 16 bits, without the mark
            return stored.decode("utf-16-be" if stored[:1] == b"\0" else "utf-16-le")
        return stored.decode("utf-8-sig")


def read_npz(
    path: Path,
    names: Sequence[str] = (),
    again: str = "",
    remove: bool = True,
    error: type[SbldmError] = StateError,
) -> dict[str, np.ndarray]:
    """All arrays of an .npz, never unpickled, `names` among them; the others are those of `reading`."""
    with reading(path, again, remove, error):
        with np.load(path, allow_pickle=False) as stored:
            arrays = dict(stored)
        check(arrays, dict.fromkeys(names, np.ndarray))
    return arrays


def cached_npz(path: Path) -> dict[str, np.ndarray] | None:
    """All arrays of an .npz; None when it is missing or damaged, in whichever way: it is then made anew."""
    try:
        return read_npz(path)
    except StateError:
        return None


def read_rows(
    path: Path,
    columns: Mapping[str, type] | None = None,
    again: str = "",
    remove: bool = True,
    error: type[SbldmError] = StateError,
) -> list[dict[str, str]]:
    """Rows of a CSV table, cells as text. It has these `columns`, and the cells of a column can be read as its type.

    A table that does not end with its line is one that was cut off.
    """
    columns = columns or {}
    with reading(path, again, remove, error):
        with open(path, newline="", encoding="utf-8-sig") as file:
            text = file.read()
        table = csv.DictReader(io.StringIO(text, newline=""), strict=True)
        rows = list(table)
        _need(text.endswith("\n"), "the end of its last line")
        for name, kind in columns.items():
            _need(name in (table.fieldnames or ()), f"the column {name}")
            for row in rows:
                _parsed(row[name], kind, name)
        _need(not any(None in row or None in row.values() for row in rows), "a cell")
    return rows


def _parsed(cell: str | None, kind: type, name: str) -> None:
    try:
        kind(cell)
    except (TypeError, ValueError):
        _need(False, f"a cell of the column {name}")


def read_nifti(
    path: Path, again: str = "", remove: bool = True, error: type[SbldmError] = StateError
) -> nib.Nifti1Image:
    """A NIfTI file with all of its voxels in memory, so that a damaged end shows here and not later."""
    with reading(path, again, remove, error):
        whole_stream(path)
        file = nib.load(path)
        return type(file)(np.asanyarray(file.dataobj), file.affine, file.header)


def whole_stream(path: Path) -> None:
    """Read a compressed file to its end, where its checksum is: nibabel stops before it, at the last voxel.

    Raises:
        OSError, EOFError, zlib.error: the file is damaged.
    """
    if Path(path).name.lower().endswith(".gz"):
        with gzip.open(path) as file:
            while file.read(1 << 22):
                pass


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
