"""What `evaluate`, `report` and `table1` do, in values: `sbldm.cli` reads them from the command line."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from sbldm.cases.labels import read_scheme
from sbldm.cases.layouts import Case, Source, find_cases
from sbldm.cases.lists import read_case_list, read_lists, read_lists_file
from sbldm.cases.pipeline import original_cases
from sbldm.commands.question import Question
from sbldm.evaluation.evaluate import evaluate, is_scored_alike, reference_names
from sbldm.evaluation.protocols import REFERENCES
from sbldm.evaluation.settings import GROUPS, Settings
from sbldm.evaluation.written import read_evaluation
from sbldm.run.errors import InputError, StateError
from sbldm.run.files import make_folder, read_json, user_path
from sbldm.run.folder import Run
from sbldm.run.manifest import Manifest
from sbldm.run.processes import killed_with_parent
from sbldm.run.workers import at_work

__all__ = ["evaluate_pairs", "make_report", "set_beside"]

ROLES = {"train": "train", "heldout": "validation"}  # of an evaluation, and in the lists of a run


def _folder(option: str, given: Path | None) -> Path:
    if given is None:
        raise InputError(f"{option} is missing: name a folder, or a run by --run.")
    if not (path := user_path(given).absolute()).is_dir():
        raise InputError(f"{option} {given}: no such folder.")
    return path


def _dataset(run: Run, number: int) -> Path:
    """The raw dataset of a run with this number."""
    found = run.datasets(number)
    if not found:
        raise StateError(f"{run.raw}: no dataset {number}; draw pairs: {run.to_draw(number=number)}.")
    return found[0]


def _run(asked: Question) -> Run | None:
    return Run.at(asked.run) if asked.run else None


def _pairs(asked: Question) -> Path:
    """The folder of the pairs: as named, else that of the run's dataset."""
    if asked.synthetic or not asked.run:
        return _folder("--synthetic", asked.synthetic)
    return _dataset(Run.at(asked.run), asked.dataset)


MOST_LOOKED_AT = 100  # folders of cases that workers are asked whether they see


def _out(asked: Question) -> Path:
    if asked.out:
        return user_path(asked.out).absolute()
    if not asked.run:
        raise InputError("--out is missing: say where to write, for example --out evaluation.")
    return Run.at(asked.run).folder / "evaluation" / _pairs(asked).name


def _cases(option: str, folder: Path | None, names: Path | None, source: Source) -> list[Case]:
    listed = read_case_list(names) if names else None
    return find_cases(_folder(option, folder), source, listed)


def _settings(asked: Question) -> Settings:
    out, run, folder = _out(asked), _run(asked), _pairs(asked)
    if run:
        source = Source.from_config(**dict(run.preset.data))
        real = {role: original_cases(run, name, asked.data) for role, name in ROLES.items()}
        origin = {"run": run.folder.name}
    else:
        scheme = read_scheme(asked.labels) if asked.labels else "auto"
        source = Source.from_config(asked.channels, {"whole tumour": "all"}, scheme)
        real = {
            "train": _cases("--train", asked.train, asked.train_cases, source),
            "heldout": _cases("--heldout", asked.heldout, asked.heldout_cases, source),
        }
        origin = {}
    if shared := {case.images[0] for case in real["train"]} & {case.images[0] for case in real["heldout"]}:
        raise InputError(f"--heldout: {min(shared)} is among the training cases too; a floor needs other cases.")
    groups = list(asked.scores or GROUPS)
    manifest = Manifest(folder)
    if manifest.is_ours:  # what the datasheet needs in the end is looked at before the work
        manifest.check()
    synthetic = find_cases(folder, replace(source, scheme="auto"))  # pairs say themselves what they hold
    predictions, problem = _predictions(asked, folder, out) if "fit" in groups else ({}, "")
    names = reference_names([case.name for case in real["train"]], len(synthetic))
    references, missing = _references(run, manifest, names)
    return Settings(
        synthetic=synthetic,
        source=source,
        out=out,
        cache=user_path(asked.cache) if asked.cache else (out.parent if run else out) / "cache",
        references=references,
        no_references=missing,
        manifest=manifest if manifest.file.is_file() else None,
        predictions=predictions,
        no_predictions=problem,
        real_brains=manifest.is_ours and manifest.on_real_brains,
        features=asked.features,
        fid=asked.fid or "",
        groups=groups,
        workers=asked.workers,
        origin=origin | {"synthetic": folder.name, "dataset": os.path.relpath(folder, out)},
        **real,
    )


def _references(run: Run | None, manifest: Manifest, names: list[str]) -> tuple[dict[str, list[Case]], dict[str, str]]:
    """These training cases through the path of a run's pairs, by kind; and why not, for each kind there is none of."""
    if run is None or not manifest.is_ours or run.folder.resolve() not in manifest.dataset.resolve().parents:
        return {}, dict.fromkeys(REFERENCES, "the pairs are not drawn by a run, whose path would be known.")
    if manifest.is_copypaste:
        return {}, dict.fromkeys(REFERENCES, "copy-paste pairs are made on the grid of the cases and take no path.")
    if manifest.from_elsewhere:
        return {}, dict.fromkeys(REFERENCES, "the pairs were drawn by weights from elsewhere, not by the run's own.")
    from sbldm.synthesis.reference import reference_cases

    found, missing = {}, {}
    for kind in REFERENCES:
        try:
            found[kind] = reference_cases(run, names, kind)
        except StateError as error:
            missing[kind] = str(error)
    return found, missing


def _predictions(asked: Question, synthetic: Path, out: Path) -> tuple[dict[str, Path], str]:
    """Folders of a segmentation network's predictions, as given or made with an nnU-Net model; else why not."""
    given = {"synthetic": asked.predictions_synthetic, "heldout": asked.predictions_heldout}
    if any(given.values()):
        if not all(given.values()):
            raise InputError(
                "--predictions-synthetic, --predictions-heldout: both folders are needed, of the pairs and of the "
                "held-back cases."
            )
        return {role: _folder(f"--predictions-{role}", folder) for role, folder in given.items()}, ""
    model, run = asked.nnunet, _run(asked)
    if not model and run and (run.table2 / "jobs").is_dir():
        model = run.folder
    if not model:
        return {}, ""
    if run:
        heldout, names = asked.data or read_lists_file(run.folder)["data"], read_lists(run.folder)["validation"]
    else:
        heldout = asked.heldout
        names = read_case_list(asked.heldout_cases) if asked.heldout_cases else []
    folders = {role: out / "predictions" / role for role in ("synthetic", "heldout")}
    for role, images in (("synthetic", synthetic), ("heldout", user_path(heldout))):
        command = [sys.executable, "-m", "sbldm", "nnunet", "predict", "--model", str(model)]
        command += ["--images", str(images), "--out", str(make_folder(folders[role]))]
        if role == "heldout" and names:
            path = out / "predictions" / "heldout.txt"
            path.write_text("\n".join(names) + "\n")
            command += ["--cases", str(path)]
        if problem := _segment(command, folders[role]):
            print(f"Warning: {problem}")
            return {}, problem
    known = read_json(folders["heldout"] / "model.json", dict, f"remove {folders['heldout']} and evaluate again", False)
    known = known.get("train") or []
    if seen := set(known) & set(names):
        return {}, f"the network was trained on {len(seen)} of the held-back cases, {min(seen)} among them."
    return folders, ""


def _segment(command: list[str], folder: Path) -> str:
    """Predict in a process of its own (nnU-Net changes the environment, and its memory goes with it); what failed."""
    for again in (False, True):
        if again:  # predictions of other pairs or of another model: they are ours to replace
            shutil.rmtree(folder)
            make_folder(folder)
        process, said = subprocess.Popen(command, stderr=subprocess.PIPE, preexec_fn=killed_with_parent), b""
        while chunk := process.stderr.read1():  # its progress is shown, and the last line is kept
            sys.stderr.write(chunk.decode(errors="replace"))
            said = (said + chunk)[-4000:]
        if process.wait() != 4:
            break
    if not process.returncode:
        return ""
    lines = said.decode(errors="replace").split("\n")
    return next((line.removeprefix("Error: ") for line in reversed(lines) if line.strip()), "prediction failed.")


def evaluate_pairs(asked: Question) -> None:
    """Compute all scores, and write tables, figures and the datasheet's results.

    Raises:
        InputError, DataError, StateError, OutputError: see the modules called.
    """
    from sbldm.evaluation.findings import summarise
    from sbldm.pages.datasheet import write_datasheet
    from sbldm.pages.figures import draw_figures
    from sbldm.pages.table import write_table

    settings = _settings(asked)
    make_folder(settings.out)
    folders = {case.images[0].parent for case in (*settings.synthetic, *settings.train, *settings.heldout)}
    with at_work(asked.cluster, settings.out, *sorted(folders)[:MOST_LOOKED_AT]):
        found = evaluate(settings)
    found.write(settings.out)
    paths = [write_table(settings.out), *draw_figures(settings.out)]
    print(paths[0].read_text())
    folder = settings.out / settings.origin["dataset"]
    if Manifest(folder).is_ours:
        findings = summarise(read_evaluation(settings.out))
        sentences = [f"{found.provenance['made']}, {len(found.pairs)} pairs."]
        sentences += [" ".join([finding.statement, *finding.evidence]) for finding in findings]
        paths.append(write_datasheet(folder.resolve(), asked.licence, sentences))
    print("\n".join(map(str, paths)))


def make_report(asked: Question) -> None:
    """Make the page to show, from what `evaluate` left; evaluate first where that is missing or older than the pairs.

    Raises:
        InputError, DataError, StateError, OutputError: see the modules called.
    """
    from sbldm.pages.report import write_report

    out = _out(asked)
    last = out / "evaluation.json"
    provenance = read_evaluation(out)["provenance"] if last.is_file() else {}
    manifest = Manifest(out / provenance.get("dataset", "")).file
    drawn_since = last.is_file() and manifest.is_file() and manifest.stat().st_mtime > last.stat().st_mtime
    older = not is_scored_alike(provenance) and (asked.run or asked.synthetic)
    if not last.is_file() or drawn_since or older:
        evaluate_pairs(asked)
    else:
        print(f"{last}: as it is; `sbldm evaluate` makes it anew.")
    print(write_report(out, _run(asked)))


def set_beside(runs: Sequence[str], asked: Question) -> None:
    """Set generators beside each other, as the paper's Table 1 does: quality, size, work and time.

    Args:
        runs: `RUN` or `RUN:DATASET` of each row.
        asked: how pairs that are not evaluated yet are to be; run, pairs and cache are those of each row, and the
            table goes to `out` (else `table1` of the first run).

    Raises:
        InputError, DataError, StateError, OutputError: see the modules called.
    """
    from sbldm.evaluation.entries import Entry, read_entries
    from sbldm.evaluation.paper_costs import write_paper_costs
    from sbldm.pages.table1 import make_table1

    first = read_entries(runs)[0].run.folder
    out = user_path(asked.out).absolute() if asked.out else first / "table1"

    def evaluate_entry(entry: Entry) -> None:
        cache = first / "evaluation" / "cache"  # the real cases are the same, so they are described once
        place = {"synthetic": entry.dataset, "out": entry.evaluation.parent, "cache": cache}
        evaluate_pairs(replace(asked, run=entry.run.folder, **place))

    paths = make_table1(runs, evaluate_entry, out) + write_paper_costs(out)
    print((out / "table1.md").read_text())
    print("\n".join(map(str, paths)))
