"""From a folder of cases to a prepared run: find, check, split, prepare."""

from __future__ import annotations

from dataclasses import asdict, fields
from typing import Any

from sbldm.cases.labels import check_scheme, read_scheme
from sbldm.cases.layouts import Case, Source, find_cases
from sbldm.cases.lists import LISTS_FILE, read_case_list, read_lists, split_cases, write_lists
from sbldm.cases.preflight import Finding, preflight
from sbldm.cases.prepare import prepare_cases
from sbldm.errors import DataError, InputError, StateError
from sbldm.files import read_json, user_path, write_csv
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
    labels: str = "",
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
        labels: what the numbers in the masks mean, see `read_scheme`; as the preset or the layout says when empty.
            It is kept with the preset, so that all later steps read the masks alike.

    Raises:
        InputError, DataError, StateError, OutputError: see the modules called.
    """
    if not data:
        raise InputError(
            "DATA is missing: make prepare DATA=/path/to/cases RUN=runs/mine (or `make data` to download some)."
        )
    preset = preset | {"data": _with_scheme(preset["data"], labels)}
    source, root = Source.from_config(**preset["data"]), user_path(data)
    asked = read_case_list(cases) if cases else []
    held_back = read_case_list(validation_cases) if validation_cases else []
    found = find_cases(root, source, [*asked, *held_back] if asked else None)
    # Lists may call cases otherwise than they are called here; a name that does not exist is an error too.
    asked, held_back = (
        [c.name for c in find_cases(root, source, names)] if names else [] for names in (asked, held_back)
    )
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
    write_lists(run.folder, lists, seed, str(root.absolute()))
    columns = [field.name for field in fields(Finding)]
    write_csv(run.folder / "preflight.csv", [asdict(finding) for finding in findings], columns)
    sidecars = prepare_cases(usable, run.prepared, preset["data"], preset["grid"], preset["intensity"], workers)
    cropped = [s["case"] for s in sidecars if s["cropped"]]
    if cropped:
        print(
            f"Warning: the brain is larger than the field of view in {len(cropped)} case(s): {', '.join(cropped[:5])}"
        )
    print(f"{run.folder}: {len(lists['train'])} cases to train on, {len(lists['validation'])} held back.")


def _with_scheme(data: dict[str, Any], labels: str) -> dict[str, Any]:
    """The `data` of a preset with the label scheme asked for, as JSON keeps it; `auto` is told by there being none."""
    scheme = read_scheme(labels) if labels else check_scheme(data.get("scheme", "auto"), "scheme")
    kept = {key: value for key, value in data.items() if key != "scheme"}
    if isinstance(scheme, str):
        return kept if scheme == "auto" else kept | {"scheme": scheme}
    return kept | {"scheme": {str(number): tissue for number, tissue in scheme.items()}}


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
    root = data or read_json(run.folder / LISTS_FILE).get("data", "")
    if not root or not user_path(root).is_dir():
        raise InputError(f"DATA={root}: the cases of {run.folder} are not there; say where with DATA=/path/to/cases.")
    return find_cases(user_path(root), Source.from_config(**run.preset["data"]), names)
