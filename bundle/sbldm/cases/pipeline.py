"""From a folder of cases to a prepared run: find, check, split, prepare."""

from __future__ import annotations

from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from sbldm.cases.layouts import Case, Source, find_cases, read_case_list
from sbldm.cases.lists import LISTS_FILE, read_lists, read_lists_file, split_cases, write_lists
from sbldm.cases.preflight import Finding, preflight
from sbldm.cases.prepare import prepare_cases
from sbldm.errors import DataError, InputError, StateError
from sbldm.files import write_csv
from sbldm.runs import Run

__all__ = ["is_prepared", "original_cases", "prepare_run"]


def prepare_run(
    data: str,
    run: Run,
    preset: dict[str, Any],
    cases: str = "",
    validation_cases: str = "",
    seed: int = 0,
    strict: bool = False,
    workers: int = 2,
) -> None:
    """Fill a run folder from a folder of cases; a second call only adds what is missing.

    Leaves `preset.yaml`, `preflight.csv`, `lists.json` and `prepared/` in the run folder.

    Args:
        data: folder of cases in any layout that `find_cases` knows.
        run: where the work goes.
        preset: its values are kept with the run.
        cases: file with the names to use, one a line; all when empty.
        validation_cases: file with the held-back cases; a tenth of `cases`, drawn with `seed`, when empty.
        seed: of that draw, written with the lists.
        strict: stop when pre-flight finds anything.
        workers: processes.

    Raises:
        InputError, DataError, StateError, OutputError: see the modules called.
    """
    if not data:
        raise InputError(
            "DATA is missing: make prepare DATA=/path/to/cases RUN=runs/mine (or `make data` to download some)."
        )
    source = Source.from_config(**preset["data"])
    asked = read_case_list(Path(cases)) if cases else []
    held_back = read_case_list(Path(validation_cases)) if validation_cases else []
    found = find_cases(Path(data), source, [*asked, *held_back] if asked else None)
    if held_back:
        find_cases(Path(data), source, held_back)  # a name that does not exist is an error here too
    run.check_preset(preset)

    usable, findings = preflight(found, source, {"CASES": asked, "VALIDATION_CASES": held_back}, workers, strict)
    names = [case.name for case in usable]
    if held_back:
        kept = set(held_back)
        lists = {"train": [n for n in names if n not in kept], "validation": [n for n in names if n in kept]}
    else:
        lists = split_cases(names, 0.1, seed)
    if not lists["train"] or not lists["validation"]:
        raise DataError(f"{data}: {len(names)} usable case(s); one to train on and one to hold back are the least.")
    if (run.folder / LISTS_FILE).exists() and read_lists(run.folder) != lists:
        raise StateError(f"{run.folder / LISTS_FILE}: this run holds other cases; choose another RUN or remove it.")

    run.save_preset(preset)
    write_lists(run.folder, lists, seed, str(Path(data).absolute()))
    columns = [field.name for field in fields(Finding)]
    write_csv(run.folder / "preflight.csv", [asdict(finding) for finding in findings], columns)
    sidecars = prepare_cases(usable, run.prepared, preset["data"], preset["grid"], preset["intensity"], workers)
    cropped = [s["case"] for s in sidecars if s["cropped"]]
    if cropped:
        print(
            f"Warning: the brain is larger than the field of view in {len(cropped)} case(s): {', '.join(cropped[:5])}"
        )
    print(f"{run.folder}: {len(lists['train'])} cases to train on, {len(lists['validation'])} held back.")


def is_prepared(run: Run) -> bool:
    """Whether `prepare_run` has come to its end in this folder."""
    if not (run.preset_file.is_file() and (run.folder / LISTS_FILE).is_file()):
        return False
    names = [name for listed in read_lists(run.folder).values() for name in listed]
    return all((run.prepared / f"{name}.json").is_file() for name in names)


def original_cases(run: Run, role: str, data: str = "") -> list[Case]:
    """The files that the cases of a run were prepared from.

    Args:
        run: a prepared run.
        role: `train` or `validation`.
        data: folder of the cases, where it has moved since `make prepare`.

    Raises:
        StateError: the run is not prepared.
        InputError, DataError: the folder, or a case in it, is not there any more.
    """
    names = read_lists(run.folder)[role]
    root = data or read_lists_file(run.folder)["data"]
    if not root or not Path(root).is_dir():
        raise InputError(f"DATA={root}: the cases of {run.folder} are not there; say where with DATA=/path/to/cases.")
    return find_cases(Path(root), Source.from_config(**run.preset["data"]), names)
