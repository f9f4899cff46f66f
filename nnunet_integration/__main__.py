"""Does synthetic data help nnU-Net? `python -m nnunet_integration COMMAND --help`; `make nnunet-eval` runs all of it.

Exit codes: 0 done; 2 a variable or argument is wrong; 3 the data are wrong; 4 a step that must come first is missing,
a job has failed, or the folder holds another evaluation; 5 the output cannot be written; 130 stopped by Ctrl-C.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections import Counter
from pathlib import Path

from sbldm.errors import InputError, finish, quiet_while_loading

if __name__ == "__main__":
    quiet_while_loading()

from nnunet_integration.arms import ArmBook, default_budget, load_budget
from nnunet_integration.evaluation import Question, export, queued
from nnunet_integration.jobs import FOLDS, read_job, run_jobs
from nnunet_integration.statistics import LEAST_TRAININGS
from nnunet_integration.verify import verify_dataset
from sbldm.files import user_path
from sbldm.run.limits import MOST_ITERATIONS, MOST_PROCESSES, MOST_SEED
from sbldm.runs import Run


def _numbers(name: str, text: str, least: float, kind: type = int, most: float = MOST_SEED) -> list:
    """A list of numbers separated by commas or blanks."""
    try:
        numbers = [kind(word) for word in text.replace(",", " ").split()]
    except ValueError:
        raise InputError(f"{name}={text}: write numbers separated by commas.") from None
    if any(not number >= least for number in numbers):
        raise InputError(f"{name}={text}: must be {least} or above.")
    if any(number > most for number in numbers):
        raise InputError(f"{name}={text}: must be {most} or below.")
    return list(dict.fromkeys(numbers))


def _one(name: str, text: str, least: int, most: int = MOST_PROCESSES) -> int:
    numbers = _numbers(name, text, least, most=most)
    if len(numbers) != 1:
        raise InputError(f"{name}={text}: one number is needed.")
    return numbers[0]


def _out(arguments: argparse.Namespace) -> Path:
    return user_path(arguments.out or f"{arguments.run}/table2").absolute()


def _jobs(arguments: argparse.Namespace, threads: int) -> int:
    """As many jobs at once as were asked for, or as fit on the cores; one on a GPU."""
    from sbldm.device import choose_device

    device = choose_device()  # a wrong DEVICE is said before any work
    if device.index:
        raise InputError(f"DEVICE={device}: nnU-Net takes the first card; write CUDA_VISIBLE_DEVICES={device.index}.")
    if arguments.jobs:
        return _one("JOBS", arguments.jobs, 1)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // threads) if device.type == "cpu" else 1


def _shard(text: str) -> tuple[int, int]:
    try:
        index, count = (int(part) for part in text.split("/"))
    except ValueError:
        raise InputError(f"SHARD={text}: write i/k, for example SHARD=1/4.") from None
    if not 1 <= index <= count:
        raise InputError(f"SHARD={text}: i must be from 1 to k.")
    return index, count


def _question(arguments: argparse.Namespace, arms: str, amounts: str) -> Question:
    folds = _numbers("FOLDS", arguments.folds, 0)
    if any(fold >= FOLDS for fold in folds):
        raise InputError(f"FOLDS={arguments.folds}: from 0 to {FOLDS - 1}.")
    seeds = _numbers("SEEDS", arguments.seeds, 0)
    if not seeds:
        raise InputError("SEEDS is empty: give one seed at least.")
    changed = {
        "iterations": _one("ITERATIONS", arguments.iterations, 1, MOST_ITERATIONS) if arguments.iterations else None,
        "snapshots": _numbers("SNAPSHOTS", arguments.snapshots, 1) if arguments.snapshots else None,
    }
    run = Run.at(arguments.run)
    return Question(
        run,
        arguments.data,
        arguments.test,
        arguments.synth,
        arms.split(),
        _numbers("AMOUNTS", amounts, 0, float, 1000),
        arguments.arms_file,
        _numbers("N_REAL", arguments.n_real, 1),
        folds,
        seeds,
        load_budget(arguments.budget or default_budget(run.preset["name"]), **changed),
    )


def arms(arguments: argparse.Namespace) -> None:
    """List the arms of the arms file and what the paper reports for them."""
    book = ArmBook.load(arguments.arms_file)
    for name, arm in book.arms.items():
        mark = "baseline" if name == book.baseline else "standard" if name in book.standard else ""
        print(f"{name:<16} {' + '.join(arm.train):<14} augmentation: {arm.augmentation:<7} {mark}")
    print("\nIn a name, synth stands for each generator of SYNTH in turn. The paper (DSC, IoU):")
    for name, (dsc, iou) in book.paper.items():
        print(f"{name:<16} {dsc:.3f}, {iou:.3f}")


def export_command(arguments: argparse.Namespace) -> None:
    """Check everything, fill the pool, plan on the real cases, preprocess, and queue the jobs."""
    jobs = export(_question(arguments, arguments.arms, ""), _out(arguments), _one("WORKERS", arguments.workers, 1))
    print(f"{_out(arguments)}: {len(jobs)} jobs queued.")


def run_command(arguments: argparse.Namespace) -> None:
    """Run the queued jobs; a finished one is never run again, a stopped one goes on."""
    folders = queued(_out(arguments))
    threads = read_job(folders[0])["budget"]["threads"]
    run_jobs(folders, _jobs(arguments, threads), _shard(arguments.shard))


def table(arguments: argparse.Namespace) -> None:
    """Write table2.csv, table2.md and the figures from the jobs that are finished, and say whether pairs help."""
    from nnunet_integration.figures import draw_figures
    from nnunet_integration.results import Results
    from nnunet_integration.table import write_table
    from nnunet_integration.verdict import answer

    results = Results.load(_out(arguments))
    answers = answer(results)
    paths = [*write_table(results, answers), *draw_figures(results)]
    print(paths[1].read_text())
    print("\n".join([*answers, "", *map(str, paths)]))


def evaluate(arguments: argparse.Namespace) -> None:
    """Table 2 in one go: export, run, table."""
    _evaluate(arguments, arguments.arms, "")


def plateau(arguments: argparse.Namespace) -> None:
    """DSC against the number of synthetic pairs for each real case."""
    book = ArmBook.load(arguments.arms_file)
    _evaluate(arguments, arguments.arms or f"{book.baseline} real+synth+aug", arguments.amounts)


def _evaluate(arguments: argparse.Namespace, arms: str, amounts: str) -> None:
    question, out = _question(arguments, arms, amounts), _out(arguments)
    at_once, shard = _jobs(arguments, question.budget["threads"]), _shard(arguments.shard)
    jobs = export(question, out, _one("WORKERS", arguments.workers, 1))
    trainings = Counter((job["n_real"], job["arm"]) for job in map(read_job, queued(out)))
    if min(trainings.values()) < LEAST_TRAININGS:
        print(f"Arms with fewer than {LEAST_TRAININGS} trainings are not decided; SEEDS=0,1,2 trains three of each.")
    run_jobs(jobs, at_once, shard)
    if shard[1] > 1 and any(not (folder / "done.json").exists() for folder in jobs):
        print(f"Shard {shard[0]}/{shard[1]} is finished; when all are: python -m nnunet_integration table --out {out}")
        return
    table(arguments)


def verify(arguments: argparse.Namespace) -> None:
    """Let nnU-Net check, plan and preprocess a dataset of a run."""
    verify_dataset(user_path(arguments.run).absolute(), arguments.dataset, _one("WORKERS", arguments.workers, 1))


def predict(arguments: argparse.Namespace) -> None:
    """Predict all images of a folder with a trained nnU-Net model."""
    from nnunet_integration.predict import predict_folder
    from sbldm.cases.lists import read_case_list

    names = read_case_list(arguments.cases) if arguments.cases else None
    files = predict_folder(
        arguments.model,
        user_path(arguments.images),
        user_path(arguments.out),
        names,
        arguments.fold,
        arguments.checkpoint,
    )
    print(f"{arguments.out}: {len(files)} predictions.")


def filter_command(arguments: argparse.Namespace) -> None:
    """Drop the pairs of a dataset whose tumour a network of real cases cannot find at all."""
    from nnunet_integration.filter import filter_pairs

    least = _numbers("LEAST", arguments.least, 0, float, 1)
    if len(least) != 1:
        raise InputError(f"LEAST={arguments.least}: one number is needed.")
    filter_pairs(arguments.run, arguments.dataset, arguments.model, least[0], arguments.name, arguments.to)


def parser() -> argparse.ArgumentParser:
    """All commands and their options."""
    top = argparse.ArgumentParser(
        "python -m nnunet_integration", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    place = {"run": ("runs/default", "run folder"), "out": ("", "folder of the evaluation (default: RUN/table2)")}
    arms_file = {"arms_file": ("", "YAML file of arms, in place of nnunet_integration/arms.yaml")}
    budget = {
        "budget": (
            "",
            "demo, small, paper, or a YAML file like nnunet_integration/budgets.yaml (default: as the run's preset)",
        )
    }
    what = {
        "data": ("", "folder of the run's cases, where it has moved"),
        "test": ("", "folder of test cases (default: the run's held-back cases)"),
        "synth": ("", "generators: name=folder, or name@N_REAL=folder; each a run or an nnU-Net raw dataset"),
        "arms": ("", "names of arms (default: the standard ones)"),
        "n_real": ("", "numbers of real training cases, nested subsets (default: all)"),
        "folds": ("", f"leave out these fifths of the real cases (0 to {FOLDS - 1}) in turn (default: none)"),
        "seeds": ("0", "seeds of the trainings; three or more allow a verdict"),
        "iterations": ("", "in place of those of the budget"),
        "snapshots": ("", "iterations at which the test cases are scored on the way, in place of those of the budget"),
        "workers": ("2", "processes that prepare the cases"),
    }
    how = {
        "jobs": ("", "jobs at once (default: as many as there are cores for; one on a GPU)"),
        "shard": ("1/1", "i/k: the i-th of k processes or machines that share the queue"),
    }

    def command(name: str, function, *groups: dict[str, tuple[str, str]]) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=function.__doc__, description=function.__doc__)
        sub.set_defaults(function=function)
        for option, (default, text) in {key: value for group in groups for key, value in group.items()}.items():
            shown = f"{text} (default: {default})" if default else text
            sub.add_argument(f"--{option.replace('_', '-')}", default=default, help=shown)
        return sub

    command("arms", arms, arms_file)
    command("export", export_command, place, what, arms_file, budget)
    command("run", run_command, place, how)
    command("table", table, place)
    command("eval", evaluate, place, what, arms_file, budget, how)
    amounts = {"amounts": ("0,0.5,1,2,5", "numbers of pairs for each real case")}
    command("plateau", plateau, place, what, arms_file, budget, how, amounts)
    dataset = {"dataset": ("501", "nnU-Net dataset number"), "workers": ("1", "nnU-Net processes")}
    command("verify", verify, {"run": place["run"]}, dataset)
    filtering = {
        "model": ("", "trained nnU-Net model, job folder, or run folder (default: the run's best real-only job)"),
        "least": ("0.1", "share of a pair's mask, 0 to 1, that the network must find"),
        "name": ("", "name of the new dataset (default: the old one's with _KEPT)"),
        "to": ("", "number of the new dataset (default: the first free one after the old one's)"),
    }
    command("filter", filter_command, {"run": place["run"], "dataset": dataset["dataset"]}, filtering)
    which = {
        "cases": ("", "text file of case names, one a line (default: all)"),
        "fold": ("", "fold of the model (default: all that have the checkpoint, together)"),
        "checkpoint": ("checkpoint_final.pth", "file name of the weights"),
    }
    needed = {
        "model": "trained nnU-Net model folder, a finished job folder, or a run folder (its best real-only job)",
        "images": "nnU-Net raw dataset, folder of ID_0000.nii.gz files, or folder of cases",
        "out": "folder of the predictions",
    }
    predicting = command("predict", predict, which)
    for option, text in needed.items():
        predicting.add_argument(f"--{option}", required=True, help=text)
    return top


def main() -> int:
    """Run one command; what a user can mend is said in one line."""
    arguments = parser().parse_args()
    return finish(lambda: arguments.function(arguments))


if __name__ == "__main__":
    sys.exit(main())
