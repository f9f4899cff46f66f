"""What are the synthetic pairs worth? `make evaluate RUN=runs/mine`, or any folders of pairs and real cases:

  python -m sbldm.evaluation --synthetic DIR --train DIR --heldout DIR --out DIR
  python -m sbldm.evaluation report --out DIR
  python -m sbldm.evaluation table1 --runs RUN RUN:DATASET ...

Folders: nnU-Net raw datasets, or cases in any layout that `make prepare` reads. Exit codes: 0 done; 2 a variable or
argument is wrong; 3 the data are wrong; 4 a step that must come first is missing; 5 the output cannot be written.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from sbldm.errors import InputError, StateError, finish, quiet_while_loading

if __name__ == "__main__":
    quiet_while_loading()

from sbldm.cases.labels import read_scheme
from sbldm.cases.layouts import Case, Source, find_cases
from sbldm.cases.lists import read_case_list, read_lists, read_lists_file
from sbldm.cases.pipeline import original_cases
from sbldm.evaluation.evaluate import GROUPS, SCORING, Settings, evaluate, reference_names
from sbldm.evaluation.protocols import REFERENCES
from sbldm.evaluation.table import read_evaluation
from sbldm.files import make_folder, read_json, user_path
from sbldm.manifest import from_elsewhere, read_description, read_lineage, read_manifest, read_settings
from sbldm.run.limits import MOST_PROCESSES
from sbldm.run.schema import split_words
from sbldm.run.workers import killed_with_parent
from sbldm.runs import Run

ROLES = {"train": "train", "heldout": "validation"}  # of an evaluation, and in the lists of a run


def _folder(name: str, text: str) -> Path:
    path = user_path(text).absolute()
    if not text or not path.is_dir():
        raise InputError(f"{name}={text}: no such folder.")
    return path


def _dataset(run: Run, number: str) -> Path:
    """The raw dataset of a run with this number."""
    if not re.fullmatch("[0-9]{1,3}", number):
        raise InputError(f"DATASET={number}: not a number.")
    found = sorted((run.folder / "nnUNet_raw").glob(f"Dataset{int(number):03d}_*/dataset.json"))
    if not found:
        raise StateError(
            f"{run.folder / 'nnUNet_raw'}: no dataset {number}; draw pairs: make synth RUN={run.folder} N=100."
        )
    return found[0].parent


def _out(arguments: argparse.Namespace) -> Path:
    if arguments.out:
        return user_path(arguments.out).absolute()
    if not arguments.run:
        raise InputError("OUT is missing: say where to write, for example --out evaluation.")
    run = Run.at(arguments.run)
    folder = _folder("SYNTHETIC", arguments.synthetic) if arguments.synthetic else _dataset(run, arguments.dataset)
    return run.folder / "evaluation" / folder.name


def _cases(name: str, folder: str, names: str, source: Source) -> list[Case]:
    listed = read_case_list(names) if names else None
    return find_cases(_folder(name, folder), source, listed)


def _settings(arguments: argparse.Namespace) -> Settings:
    out = _out(arguments)
    if arguments.run:
        run = Run.at(arguments.run)
        source = Source.from_config(**run.preset["data"])
        folder = _folder("SYNTHETIC", arguments.synthetic) if arguments.synthetic else _dataset(run, arguments.dataset)
        real = {role: original_cases(run, name, arguments.data) for role, name in ROLES.items()}
        origin = {"run": run.folder.name}
    else:
        scheme = read_scheme(arguments.labels) if arguments.labels else "auto"
        source = Source.from_config(arguments.channels.split(","), {"whole tumour": "all"}, scheme)
        folder = _folder("SYNTHETIC", arguments.synthetic)
        real = {
            role: _cases(role.upper(), getattr(arguments, role), getattr(arguments, f"{role}_cases"), source)
            for role in ROLES
        }
        origin = {}
    source = replace(source, channels=source.channels[:1])
    if shared := {case.images[0] for case in real["train"]} & {case.images[0] for case in real["heldout"]}:
        raise InputError(f"HELDOUT: {min(shared)} is among the training cases too; a floor needs other cases.")
    groups = split_words("SCORES", arguments.scores.replace(",", " ")) or list(GROUPS)
    if other := [group for group in groups if group not in GROUPS]:
        raise InputError(f"SCORES={arguments.scores}: {other[0]} is none of {', '.join(GROUPS)}.")
    if arguments.fid not in ("", "1", "force"):
        raise InputError(f"FID={arguments.fid}: write 1 or force.")
    if not re.fullmatch("[0-9]{1,4}", arguments.workers) or not 1 <= int(arguments.workers) <= MOST_PROCESSES:
        raise InputError(f"WORKERS={arguments.workers}: must be a whole number from 1 to {MOST_PROCESSES}.")
    manifest = folder / "manifest.csv"
    if _is_ours(folder):  # what the datasheet needs in the end is looked at before the work
        read_manifest(folder, {"redrawn": int}), read_settings(folder), read_lineage(folder), read_description(folder)
    synthetic = find_cases(folder, replace(source, scheme="auto"))  # pairs say themselves what they hold
    predictions, problem = _predictions(arguments, folder, out) if "fit" in groups else ({}, "")
    names = reference_names([case.name for case in real["train"]], len(synthetic))
    references, missing = _references(Run.at(arguments.run) if arguments.run else None, folder, names)
    return Settings(
        synthetic=synthetic,
        source=source,
        out=out,
        cache=user_path(arguments.cache) if arguments.cache else (out.parent if arguments.run else out) / "cache",
        references=references,
        no_references=missing,
        manifest=manifest if manifest.is_file() else None,
        predictions=predictions,
        no_predictions=problem,
        real_brains=_is_ours(folder) and _real_brains(read_settings(folder)),
        features=arguments.features,
        fid=arguments.fid,
        groups=groups,
        workers=int(arguments.workers),
        origin=origin | {"synthetic": folder.name, "dataset": os.path.relpath(folder, out)},
        **real,
    )


def _is_ours(dataset: Path) -> bool:
    return all((dataset / name).is_file() for name in ("synthesis.json", "lineage.json", "manifest.csv"))


def _real_brains(settings: Mapping[str, Any]) -> bool:
    return "canvases" in settings or settings.get("generator") == "copypaste"


def _references(run: Run | None, dataset: Path, names: list[str]) -> tuple[dict[str, list[Case]], dict[str, str]]:
    """These training cases through the path of a run's pairs, by kind; and why not, for each kind there is none of."""
    if run is None or not _is_ours(dataset) or run.folder.resolve() not in dataset.resolve().parents:
        return {}, dict.fromkeys(REFERENCES, "the pairs are not drawn by a run, whose path would be known.")
    if read_settings(dataset).get("generator") == "copypaste":
        return {}, dict.fromkeys(REFERENCES, "copy-paste pairs are made on the grid of the cases and take no path.")
    if from_elsewhere(dataset):
        return {}, dict.fromkeys(REFERENCES, "the pairs were drawn by weights from elsewhere, not by the run's own.")
    from sbldm.synthesis.reference import reference_cases

    found, missing = {}, {}
    for kind in REFERENCES:
        try:
            found[kind] = reference_cases(run, names, kind)
        except StateError as error:
            missing[kind] = str(error)
    return found, missing


def _predictions(arguments: argparse.Namespace, synthetic: Path, out: Path) -> tuple[dict[str, Path], str]:
    """Folders of a segmentation network's predictions, as given or made with an nnU-Net model; else why not."""
    given = {role: getattr(arguments, f"predictions_{role}") for role in ("synthetic", "heldout")}
    if any(given.values()):
        if not all(given.values()):
            raise InputError("PREDICTIONS: both folders are needed, of the synthetic pairs and of the held-back cases.")
        return {role: _folder("PREDICTIONS", folder) for role, folder in given.items()}, ""
    model = arguments.nnunet
    if not model and arguments.run and (Run.at(arguments.run).folder / "table2" / "jobs").is_dir():
        model = arguments.run
    if not model:
        return {}, ""
    if arguments.run:
        run = Run.at(arguments.run)
        heldout, names = read_lists_file(run.folder)["data"], read_lists(run.folder)["validation"]
        heldout = arguments.data or heldout
    else:
        heldout = arguments.heldout
        names = read_case_list(arguments.heldout_cases) if arguments.heldout_cases else []
    folders = {role: out / "predictions" / role for role in ("synthetic", "heldout")}
    for role, images in (("synthetic", synthetic), ("heldout", user_path(heldout))):
        command = [sys.executable, "-m", "nnunet_integration", "predict", "--model", str(model)]
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


def evaluate_command(arguments: argparse.Namespace) -> None:
    """Compute all scores, and write tables and figures."""
    from sbldm.evaluation.figures import draw_figures
    from sbldm.evaluation.report import summarise
    from sbldm.evaluation.table import write_table
    from sbldm.synthesis.datasheet import write_datasheet

    settings = _settings(arguments)
    make_folder(settings.out)
    found = evaluate(settings)
    found.write(settings.out)
    paths = [write_table(settings.out), *draw_figures(settings.out)]
    print(paths[0].read_text())
    folder = settings.out / settings.origin["dataset"]
    if _is_ours(folder):
        findings = summarise(read_evaluation(settings.out))
        sentences = [f"{found.provenance['made']}, {len(found.pairs)} pairs."]
        sentences += [" ".join([finding.statement, *finding.evidence]) for finding in findings]
        paths.append(write_datasheet(folder.resolve(), arguments.licence, sentences))
    print("\n".join(map(str, paths)))


def report_command(arguments: argparse.Namespace) -> None:
    """Make the page to show: report.html, from what `evaluate` left."""
    from sbldm.evaluation.report import write_report

    out = _out(arguments)
    last = out / "evaluation.json"
    provenance = read_evaluation(out)["provenance"] if last.is_file() else {}
    manifest = out / provenance.get("dataset", "") / "manifest.csv"
    drawn_since = last.is_file() and manifest.is_file() and manifest.stat().st_mtime > last.stat().st_mtime
    older = provenance.get("scoring") != SCORING and (arguments.run or arguments.synthetic)
    if not last.is_file() or drawn_since or older:
        evaluate_command(arguments)
    else:
        print(f"{last}: as it is; `evaluate` makes it anew.")
    print(write_report(out, Run.at(arguments.run) if arguments.run else None))


def table1_command(arguments: argparse.Namespace) -> None:
    """Set generators beside each other, as the paper's Table 1 does: quality, size, work and time."""
    from sbldm.evaluation.paper_costs import write_paper_costs
    from sbldm.evaluation.table1 import Entry, make_table1, read_entries

    runs = [word for text in arguments.runs for word in ([text] if Path(text).is_dir() else split_words("RUNS", text))]
    first = read_entries(runs)[0].run.folder
    out = user_path(arguments.out).absolute() if arguments.out else first / "table1"

    def evaluate_entry(entry: Entry) -> None:
        values = vars(arguments) | {
            "run": str(entry.run.folder),
            "synthetic": str(entry.dataset),
            "out": str(entry.evaluation.parent),
            "cache": str(first / "evaluation" / "cache"),  # the real cases are the same, so they are described once
        }
        evaluate_command(argparse.Namespace(**values))

    paths = make_table1(runs, evaluate_entry, out) + write_paper_costs(out)
    print((out / "table1.md").read_text())
    print("\n".join(map(str, paths)))


STEPS = {"evaluate": evaluate_command, "report": report_command, "table1": table1_command}


def parser() -> argparse.ArgumentParser:
    """All options."""
    top = argparse.ArgumentParser(
        "python -m sbldm.evaluation", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    top.add_argument("step", nargs="?", default="evaluate", choices=STEPS, help="evaluate (default), report or table1")
    top.add_argument(
        "--runs", nargs="*", default=[], help="table1: RUN or RUN:DATASET of each row, prepared from the same cases"
    )
    top.add_argument("--cache", default="", help="folder of what is known of each case, by content")
    for name, default, text in (
        ("run", "", "run folder: its pairs, training and held-back cases"),
        ("dataset", "501", "number of the run's nnU-Net dataset"),
        ("data", "", "folder of the run's cases, where it has moved"),
        ("synthetic", "", "folder of pairs, without or in place of those of a run"),
        ("train", "", "folder of real cases the generator was trained on"),
        ("heldout", "", "folder of real cases it has not seen"),
        ("train-cases", "", "file with the names of the training cases, one a line (default: all in the folder)"),
        ("heldout-cases", "", "file with the names of the held-back cases"),
        ("channels", "flair", "channel to look at, for folders without a run"),
        ("labels", "", "what the numbers in the masks mean, for folders without a run; see `make help`"),
        ("out", "", "folder to write to (default: RUN/evaluation/DATASET)"),
        ("features", "imagenet", "imagenet, medicalnet:FILE or radimagenet:FILE"),
        ("nnunet", "", "trained nnU-Net model for the score of masks against images\n(default: that of RUN/table2)"),
        ("predictions-synthetic", "", "its predictions for the pairs, where there are some"),
        ("predictions-heldout", "", "its predictions for the held-back cases"),
        ("fid", "", "1: compute FID too (refused below 1000 cases); force: below as well, flagged"),
        ("scores", "", f"some of {', '.join(GROUPS)} (default: all)"),
        ("licence", "", "terms of the real cases, for the datasheet"),
        ("workers", "2", "processes"),
    ):
        shown = f"{text} (default: {default})" if default and "default" not in text else text
        top.add_argument(f"--{name}", default=default, help=shown)
    return top


def main() -> int:
    """Run one step; what a user can mend is said in one line."""
    warnings.filterwarnings("ignore", category=UserWarning, module=r"monai|ignite|torch")
    arguments = parser().parse_args()
    return finish(lambda: STEPS[arguments.step](arguments))


if __name__ == "__main__":
    sys.exit(main())
