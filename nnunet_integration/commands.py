"""What the commands of nnU-Net do, in values: `nnunet_integration.cli` reads them from the command line."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from nnunet_integration.arms import ArmBook, default_budget, load_budget
from nnunet_integration.evaluation import Question, export, queued
from nnunet_integration.jobs import read_job
from nnunet_integration.options import Evaluation, Plan, Plateau
from nnunet_integration.running import run_jobs
from nnunet_integration.statistics import LEAST_TRAININGS
from sbldm.cases.lists import data_folder
from sbldm.run.errors import InputError
from sbldm.run.files import user_path
from sbldm.run.folder import Run
from sbldm.run.processes import cores
from sbldm.run.workers import at_work

__all__ = ["evaluate", "list_arms", "plateau", "queue", "table", "work"]


def list_arms(file: Path | None) -> None:
    """List the arms of a file and what the paper reports for them."""
    book = ArmBook.load(file)
    for name, arm in book.arms.items():
        mark = "baseline" if name == book.baseline else "standard" if name in book.standard else ""
        print(f"{name:<16} {' + '.join(arm.train):<14} augmentation: {arm.augmentation:<7} {mark}")
    print("\nIn a name, synth stands for each generator of --synth in turn. The paper (DSC, IoU):")
    for name, (dsc, iou) in book.paper.items():
        print(f"{name:<16} {dsc:.3f}, {iou:.3f}")


def queue(asked: Plan) -> None:
    """Check everything, fill the pool, plan on the real cases, preprocess, and queue the jobs."""
    out = _out(asked.run, asked.out)
    with at_work(asked.cluster, out, *_read(asked)):
        jobs = export(_question(asked, asked.arms or (), ()), out, asked.workers)
    print(f"{out}: {len(jobs)} jobs queued.")


def work(run: Path, out: Path | None, jobs: int | None, cluster: str) -> None:
    """Run the queued jobs; a finished one is never run again, a stopped one goes on."""
    folders = queued(_out(run, out))
    threads = read_job(folders[0])["budget"]["threads"]
    with at_work(cluster, _out(run, out)):
        run_jobs(folders, _at_once(jobs, threads))


def table(run: Path, out: Path | None) -> None:
    """Write table2.csv, table2.md and the figures from the jobs that are finished, and say whether pairs help."""
    from nnunet_integration.figures import draw_figures
    from nnunet_integration.results import Results
    from nnunet_integration.table import write_table
    from nnunet_integration.verdict import answer

    results = Results.load(_out(run, out))
    answers = answer(results)
    paths = [*write_table(results, answers), *draw_figures(results)]
    print(paths[1].read_text())
    print("\n".join([*answers, "", *map(str, paths)]))


def evaluate(asked: Evaluation, arms: Sequence[str] = (), amounts: Sequence[float] = ()) -> None:
    """Table 2 in one go: export, run, table.

    Args:
        asked: the options.
        arms: in place of those asked for.
        amounts: numbers of pairs for each real case, see `Question`.
    """
    question, out = _question(asked, arms or asked.arms or (), amounts), _out(asked.run, asked.out)
    at_once = _at_once(asked.jobs, question.budget["threads"])
    with at_work(asked.cluster, out, *_read(asked)):
        jobs = export(question, out, asked.workers)
        trainings = Counter((job["n_real"], job["arm"]) for job in map(read_job, queued(out)))
        if min(trainings.values()) < LEAST_TRAININGS:
            print(
                f"Arms with fewer than {LEAST_TRAININGS} trainings are not decided; --seeds 0,1,2 trains three of each."
            )
        run_jobs(jobs, at_once)
    table(asked.run, asked.out)


def plateau(asked: Plateau) -> None:
    """DSC against the number of synthetic pairs for each real case."""
    usual = (ArmBook.load(asked.arms_file).baseline, "real+synth+aug")
    evaluate(asked, asked.arms or usual, asked.amounts)


def _out(run: Path, out: Path | None) -> Path:
    return user_path(out or run / "table2").absolute()


def _read(asked: Plan) -> list[Path | None]:
    """Folders that jobs and the pool read besides their own."""
    run = Run.at(asked.run).folder
    return [run, asked.data or data_folder(run), asked.test and user_path(asked.test)]


def _at_once(jobs: int | None, threads: int) -> int:
    """As many jobs at once as were asked for, or as fit on the cores; one on each GPU."""
    from sbldm.run.device import choose_device

    device = choose_device()  # a wrong DEVICE is said before any work
    if device.index:
        raise InputError(f"DEVICE={device}: nnU-Net takes the first card; write CUDA_VISIBLE_DEVICES={device.index}.")
    if jobs:
        return jobs
    if device.type == "cpu":
        return max(1, cores() // threads)
    import torch

    return torch.cuda.device_count()


def _question(asked: Plan, arms: Sequence[str], amounts: Sequence[float]) -> Question:
    run = Run.at(asked.run)
    changed = {"iterations": asked.iterations, "snapshots": list(asked.snapshots) if asked.snapshots else None}
    return Question(
        run,
        asked.data,
        asked.test,
        asked.synth or (),
        list(arms),
        list(amounts),
        asked.arms_file,
        list(asked.n_real or ()),
        list(asked.folds or ()),
        list(asked.seeds),
        load_budget(asked.budget or default_budget(run.preset.name), **changed),
    )
