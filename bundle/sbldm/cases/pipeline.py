"""From a folder of cases to a prepared run: find, check, split, prepare."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from sbldm.cases.identity import IDENTITY, Identity, stamp
from sbldm.cases.inspection import DOUBTS, Finding, inspect_case
from sbldm.cases.labels import check_scheme, read_scheme
from sbldm.cases.layouts import Case, Source, find_cases
from sbldm.cases.lists import LISTS_FILE, read_case_list, read_lists, read_lists_file, split_cases, write_lists
from sbldm.cases.preflight import preflight
from sbldm.cases.prepare import known_sidecar, prepare_cases, read_sidecar
from sbldm.run.errors import DataError, InputError, OutputError, StateError
from sbldm.run.files import read_json, user_path, write_csv, write_json
from sbldm.run.folder import Run
from sbldm.run.preset import Data, Preset
from sbldm.run.progress import progress
from sbldm.run.text import some
from sbldm.run.workers import on_cluster

__all__ = ["check_same_data", "check_unchanged", "is_prepared", "original_cases", "prepare_run"]

FILES = "files.json"
"""In the run folder: what the original files of each case held when they were last read, and their stamps then."""
# Parts of a run that are made of prepared cases and cannot follow when one changes.
USES = {
    "autoencoder": "a training has used them",
    "latents": "a training has used them",
    "diffusion": "a training has used them",
    "gan": "a training has used them",
    "nnUNet_raw": "pairs were made of them",
}


def prepare_run(
    data: str | Path | None,
    run: Run,
    preset: Preset,
    cases: str | Path | None = None,
    validation_cases: str | Path | None = None,
    seed: int = 0,
    strict: bool = False,
    workers: int = 1,
    labels: str = "",
    accept: Sequence[str] = (),
) -> None:
    """Fill a run folder from a folder of cases; a second call only adds what is missing, or has changed since.

    Leaves `preset.yaml`, `preflight.csv`, `lists.json`, `files.json` and `prepared/` in the run folder.

    Args:
        data: folder of cases in any layout that `find_cases` knows.
        run: where the work goes.
        preset: its values are kept with the run.
        cases: file with the names to use, one a line; all when None.
        validation_cases: file with the held-back cases; a tenth of `cases`, drawn with `seed`, when None.
        seed: of that draw, written with the lists.
        strict: stop when pre-flight finds anything.
        workers: processes.
        labels: what the numbers in the masks mean, see `read_scheme`; as the preset or the layout says when empty.
            It is kept with the preset, so that all later steps read the masks alike.
        accept: doubts of pre-flight to overrule, see `preflight`.

    Raises:
        InputError, DataError, StateError, OutputError: see the modules called.
    """
    if not data:
        raise InputError(
            "--data is missing: sbldm prepare --data /path/to/cases --run runs/mine (or get some: sbldm download)."
        )
    preset = preset.but(data=_with_scheme(preset.data, labels))
    source, root = Source.from_config(**dict(preset.data)), user_path(data)
    root = root.absolute() if on_cluster() else root  # workers elsewhere have another working directory
    asked = read_case_list(cases) if cases else []
    held_back = read_case_list(validation_cases) if validation_cases else []
    if getattr(getattr(preset, "autoencoder", None), "nested", False):
        _ = source.nested_order  # says so when there is none, before `data` is fixed
    found = find_cases(root, source, [*asked, *held_back] if asked else None)
    # Lists may call cases otherwise than they are called here; a name that does not exist is an error too.
    asked, held_back = (
        [c.name for c in find_cases(root, source, names)] if names else [] for names in (asked, held_back)
    )
    run.check_preset(preset)

    stamps = _stamps(found)  # before anything is read: what is written meanwhile counts as changed
    roles = {"--cases": asked, "--validation-cases": held_back}
    usable, findings, identities = preflight(found, source, roles, workers, strict, accept)
    names = [case.name for case in usable]
    if held_back:
        kept = set(held_back)
        lists = {"train": [n for n in names if n not in kept], "validation": [n for n in names if n in kept]}
    else:
        lists = split_cases(names, 0.1, seed)
    if not lists["train"] or not lists["validation"]:
        raise DataError(f"{data}: {len(names)} usable case(s); one to train on and one to hold back are the least.")
    _check_lists(run, lists)
    anew = _to_do_anew(run, identities, source)

    run.save_preset(preset)
    write_lists(run.folder, lists, seed, str(root.absolute()))
    columns = [*(field.name for field in fields(Finding)), "mend"]
    write_csv(run.folder / "preflight.csv", [asdict(f) | {"mend": f.mend} for f in findings], columns)
    if anew:
        shutil.rmtree(run.gate, ignore_errors=True)  # measured on them
    sidecars = prepare_cases(usable, run.prepared, preset.data, preset.grid, preset.intensity, workers, anew)
    write_json(run.folder / FILES, {n: {"stamp": stamps[n]} | i.state() for n, i in identities.items()})
    cropped = [s["case"] for s in sidecars if s["cropped"]]
    if cropped:
        print(
            f"Warning: the brain is larger than the field of view in {len(cropped)} case(s): {', '.join(cropped[:5])}"
        )
    print(f"{run.folder}: {len(lists['train'])} cases to train on, {len(lists['validation'])} held back.")


def _with_scheme(data: Data, labels: str) -> dict[str, Any]:
    """The `data` of a preset with the label scheme asked for, as JSON keeps it; `auto` is told by there being none."""
    scheme = read_scheme(labels) if labels else check_scheme(data.scheme, "scheme")
    kept = {key: value for key, value in data.state().items() if key != "scheme"}
    if isinstance(scheme, str):
        return kept if scheme == "auto" else kept | {"scheme": scheme}
    return kept | {"scheme": {str(number): tissue for number, tissue in scheme.items()}}


def _check_lists(run: Run, lists: dict[str, list[str]]) -> None:
    """Refuse other lists than a run was prepared with; a `StateError` names what differs."""
    path = run.folder / LISTS_FILE
    if not path.exists() or (held := read_lists(run.folder)) == lists:
        return
    old, new = ({name for names in roles.values() for name in names} for roles in (held, lists))
    differ = [f"{words} {some(names, 5)}" for words, names in (("without", new - old), ("with", old - new)) if names]
    mend = "choose another --run" + ("" if _used(run) else " or remove it")
    raise StateError(f"{path}: this run holds other cases ({', '.join(differ) or 'in other lists'}); {mend}.")


def _used(run: Run) -> str:
    """What has been made of the prepared cases of a run, in words; "" when nothing has."""
    if not (run.folder / LISTS_FILE).is_file():  # pairs of weights from elsewhere have used none
        return ""
    return next((f"{words} ({part}/)" for part, words in USES.items() if (run.folder / part).is_dir()), "")


def _to_do_anew(run: Run, identities: Mapping[str, Identity], source: Source) -> list[str]:
    """Prepared cases whose files have changed, which is said.

    Raises:
        StateError: what was made of them in this run cannot follow.
    """
    read = _last_read(run)  # a lost sidecar must not hide that its case has changed
    held = {n: known for n in identities if (known := known_sidecar(run.prepared, n) or read.get(n))}
    changed = {name: parts for name in held if (parts := identities[name].changes(held[name]))}
    older = [name for name in held if "image" not in held[name] and name not in changed]
    used = _used(run)
    if used and (lost := [name for name in identities if name not in held]):
        raise StateError(
            f"{run.prepared / lost[0]}.json: nothing tells whether this case is still the one that was prepared, and "
            f"{used}; restore the file from a copy, or choose another --run."
        )
    if changed:
        which = some([f"{name}: {' and '.join(parts)}" for name, parts in changed.items()], 5)
        what = f"{len(changed)} case(s) have changed since they were prepared ({which})"
        if used:
            raise StateError(f"{run.folder}: {what}, and {used}; choose another --run, or put the old files back.")
        print(f"{what}: prepared anew.")
    if older:
        what = f"{len(older)} case(s) were prepared by an older version, which kept no hash of their masks"
        print(f"{what}: " + ("only their images were compared." if used else "prepared anew."))
    known = set(source.characteristics)
    unshared = [n for n in held if n not in (*changed, *older) and known - set(held[n].get("characteristics", known))]
    if unshared:
        what = f"{len(unshared)} case(s) were prepared by an older version, which measured no shares of tissues"
        print(f"{what}: " + ("requests of this run know none." if used else "prepared anew."))
    return [*changed, *([] if used else [*older, *unshared])]


def is_prepared(run: Run) -> bool:
    """Whether `prepare_run` has come to its end in this folder."""
    if not (run.preset_file.is_file() and (run.folder / LISTS_FILE).is_file()):
        return False
    names = [name for listed in read_lists(run.folder).values() for name in listed]
    return all((run.prepared / f"{name}.json").is_file() for name in names)


def check_same_data(run: Run, data: str | Path) -> None:
    """Make sure that another folder than a run was prepared from holds the same cases; see `check_unchanged`."""
    if str(user_path(data).absolute()) != read_lists_file(run.folder)["data"]:
        for role in read_lists(run.folder):
            original_cases(run, role, data)


def original_cases(run: Run, role: str, data: str | Path | None = None) -> list[Case]:
    """The files that the cases of a run were prepared from.

    Args:
        run: a prepared run.
        role: `train` or `validation`.
        data: folder of the cases, where it has moved since `sbldm prepare`.

    Raises:
        StateError: the run is not prepared.
        InputError, DataError: the folder, or a case in it, is not there any more, or holds something else now.
    """
    names = read_lists(run.folder)[role]
    root = data or read_lists_file(run.folder)["data"]
    if not root or not user_path(root).is_dir():
        raise InputError(f"--data {root}: the cases of {run.folder} are not there; say where by --data FOLDER.")
    cases = find_cases(user_path(root), Source.from_config(**dict(run.preset.data)), names)
    check_unchanged(run, cases)
    return cases


def check_unchanged(run: Run, cases: Sequence[Case]) -> dict[str, Identity]:
    """Make sure that the files of prepared cases still hold what was prepared: image, mask and affine.

    A file is read again when its size, times or number are not those of the last reading (`FILES`).

    Returns:
        What the files of each case hold.

    Raises:
        StateError: a case is not prepared.
        DataError: names the case that cannot be read any more or holds something else, and the mend.
    """
    mend = "put the old file back, or " + (
        "choose another --run" if _used(run) else f"run `sbldm prepare --run {run.folder} --data ..` again"
    )
    source, known = Source.from_config(**dict(run.preset.data)), _last_read(run)
    stamps, found = _stamps(cases), {}
    for case in progress(cases, "Reading the original cases", unit="case"):
        sidecar = read_sidecar(run.prepared, case.name)
        last = known.get(case.name)
        if last and stamps[case.name] and last["stamp"] == stamps[case.name]:
            identity = Identity.from_state(last)
        else:
            inspection = inspect_case(case, source)
            identity = inspection.identity
            if identity is None:
                what = next(f.what for f in inspection.findings if f.check not in DOUBTS)
                raise DataError(f"{case.name}: {what}; the case was sound when it was prepared: {mend}.")
        if parts := identity.changes(sidecar):
            path = case.mask if parts == ["mask"] else case.images[0]
            raise DataError(
                f"{path}: holds other voxels than when it was prepared ({case.name}: {' and '.join(parts)}); {mend}."
            )
        found[case.name] = identity
    now = known | {name: {"stamp": stamps[name]} | identity.state() for name, identity in found.items()}
    if now != known:
        with contextlib.suppress(OutputError):  # a run that cannot be written to is read again next time
            write_json(run.folder / FILES, now)
    return found


def _stamps(cases: Sequence[Case]) -> dict[str, list[Any]]:
    """The stamp of each case; empty where a file is not there."""
    stamps: dict[str, list[Any]] = {}
    for case in cases:
        try:
            stamps[case.name] = stamp(case)
        except OSError:
            stamps[case.name] = []
    return stamps


def _last_read(run: Run) -> dict[str, Any]:
    """What `FILES` holds; nothing when it is missing or damaged."""
    try:
        kept = read_json(run.folder / FILES)
        return {name: values for name, values in kept.items() if {"stamp", *IDENTITY} <= set(values)}
    except (StateError, TypeError, AttributeError):
        return {}
