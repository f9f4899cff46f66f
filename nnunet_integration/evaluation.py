"""Table 2 from a run: the pool, the queue and the table of one evaluation, each step resumable."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunet_integration.arms import Arm, ArmBook
from nnunet_integration.jobs import locked, plan_jobs, read_job, split_fold, write_jobs
from nnunet_integration.pool import Pool, require_nnunet
from nnunet_integration.sources import find_pairs, find_real, nested_subset
from sbldm.run.errors import InputError, StateError
from sbldm.run.files import atomic_path, read_json, reading, user_path, write_json
from sbldm.run.folder import Run
from sbldm.run.room import check_room

__all__ = ["Question", "export", "queued", "read_arms"]

SETTINGS = "evaluation.json"
HELD = {"run": str, "budget": dict, "real": {str: str}, "test": {str: str}}
AGAIN = "run `sbldm nnunet eval` again"


@dataclass(frozen=True)
class Question:
    """What is asked: which arms of which data, how often.

    Attributes:
        run: a prepared run; its training cases are the real ones.
        data: folder of its cases, where it has moved.
        test: folder of test cases; the run's held-back cases when empty.
        synth: generators, see `find_pairs`.
        arms: names, see `ArmBook.choose`; the standard ones when empty.
        amounts: numbers of pairs for each real case that every arm with pairs is run with; as the arm says when empty.
        arms_file: see `ArmBook.load`.
        n_real: numbers of real training cases; all when empty.
        folds, seeds: see `plan_jobs`.
        budget: see `load_budget`.
    """

    run: Run
    data: Path | None
    test: Path | None
    synth: Sequence[str]
    arms: Sequence[str]
    amounts: Sequence[float]
    arms_file: Path | None
    n_real: Sequence[int]
    folds: Sequence[int]
    seeds: Sequence[int]
    budget: dict[str, Any]


def export(question: Question, out: Path, workers: int) -> list[Path]:
    """Check everything, then fill the pool, plan, preprocess and queue the jobs; what is there is kept.

    Returns:
        Folders of the jobs.

    Raises:
        InputError, DataError, StateError, OutputError: see the modules called; nothing is written before all checks.
    """
    require_nnunet()
    book = ArmBook.load(question.arms_file)
    real = find_real(question.run, question.data, question.test)
    pairs = find_pairs(question.synth, question.run, real, question.arms)
    arms = book.choose(question.arms, list(dict.fromkeys(p.generator for p in pairs)))
    if question.amounts:
        arms = _with_amounts(arms, question.amounts, book)
    n_real = question.n_real or [len(real.train)]
    strict = bool(question.arms)
    jobs = plan_jobs(arms, n_real, question.folds, question.seeds, real, pairs, question.budget, strict)
    pool = Pool(out, question.budget)
    settings = {
        "run": str(question.run.folder),
        "budget": question.budget,
        "real": {name: real.content[name] for name in real.train},
        "test": {name: real.content[name] for name in real.test},
        "masks": {name: [identity.mask, identity.place] for name, identity in real.identities.items()},
    }
    held = read_json(out / SETTINGS, HELD, AGAIN) if os.path.lexists(out / SETTINGS) else settings
    if changed := [key for key in settings if key != "run" and held[key] != settings[key]]:
        raise StateError(f"{out}: holds an evaluation with another {' and '.join(changed)}; choose another --out.")
    if os.path.lexists(out / "arms.yaml") and (old := read_arms(out).baseline) != book.baseline:
        raise StateError(f"{out}: its arms are compared with {old}, now with {book.baseline}; choose another --out.")
    used = {folder for job in jobs for folder in job["pairs"]}
    work = pool.work(real, [p for p in pairs if str(p.folder) in used], any("aug5" in arm.train for arm in arms))
    pool.check_pairs(work)
    to_do = [job for job in jobs if not (out / "jobs" / job["job"] / "done.json").exists()]
    needed = pool.needs([w for w in work if not pool.label(w[0]).exists()], len(to_do))
    check_room(out, needed, "choose another --out, or run fewer arms or seeds")
    with locked(out):
        write_json(out / SETTINGS, settings)
        with atomic_path(out / "arms.yaml") as temporary:
            shutil.copyfile(
                user_path(question.arms_file) if question.arms_file else Path(__file__).with_name("arms.yaml"),
                temporary,
            )
        for n in n_real:
            for fold in question.folds or [None]:
                training, _ = split_fold(nested_subset(real.train, n), fold)
                with atomic_path(out / "subsets" / f"n{n}{'' if fold is None else f'_fold{fold}'}.txt") as temporary:
                    temporary.write_text("\n".join(training) + "\n")
        pool.fill(real, work, workers)
        return write_jobs(pool, jobs)


def read_arms(out: Path) -> ArmBook:
    """The arms that an evaluation was made with; a `StateError` when its copy of them is missing or damaged."""
    path = out / "arms.yaml"
    with reading(path, AGAIN):
        if not path.is_file():
            raise FileNotFoundError
        try:
            return ArmBook.load(str(path))
        except InputError as error:
            raise ValueError from error


def _with_amounts(arms: Sequence[Arm], amounts: Sequence[float], book: ArmBook) -> list[Arm]:
    """The arms with pairs at each amount; at amount 0 the arm of the same without pairs, where there is one."""
    result = {arm.name: arm for arm in arms if not arm.generators}
    for arm in (arm for arm in arms if arm.generators):
        without = (tuple(part for part in arm.train if part not in arm.generators), arm.augmentation)
        at_zero = [a for a in book.arms.values() if (a.train, a.augmentation) == without]
        for one in [arm.times(a) for a in amounts if a] + (at_zero if 0 in amounts else []):
            result[one.name] = one
    return list(result.values())


def queued(out: Path) -> list[Path]:
    """Folders of all jobs of an evaluation, in the order in which they were queued.

    Raises:
        StateError: there are none.
    """
    jobs = {path.parent: read_job(path.parent) for path in (out / "jobs").glob("*/job.json")}
    if not jobs:
        raise StateError(f"{out}: no jobs are queued here; run `sbldm nnunet export`, with the same options, first.")
    return sorted(jobs, key=lambda folder: jobs[folder]["split"])
