"""Jobs: arms x numbers of real cases x folds x seeds as folders on disk, each saying what it trains on."""

from __future__ import annotations

import fcntl
import shlex
from collections.abc import Iterable, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nnunet_integration.arms import Arm
from nnunet_integration.pool import COPIES, Pool, copy_id, pair_id
from nnunet_integration.sources import Pairs, RealCases, nested_subset, pairs_for
from sbldm.run.errors import DataError, InputError, StateError
from sbldm.run.files import make_folder, read_json, write_json
from sbldm.run.text import some

__all__ = ["locked", "made_anew", "plan_jobs", "read_done", "read_job", "split_fold", "write_jobs"]

FOLDS = 5
BUSY = 75  # exit code of a job that another process is at
JOB = {  # what all readers use
    "arm": str,
    "n_real": int,
    "seed": int,
    "split": int,
    "budget": dict,
    "train": [str],
}
TRAINERS = {"none": "SBLDMTrainerNoAugmentation", "nnunet": "SBLDMTrainer"}


def made_anew(path: Path) -> str:
    """What to do when this file of a job is lost: with others from the same step it is made anew, as seldom trained."""
    lost = {
        "done.json": ["done.json"],
        "snapshots.csv": ["done.json"],
        "lesions.csv": ["scores.csv", "done.json"],
    }.get(path.name, [path.name, "done.json"] if path.name.startswith("scores") else None)
    gone = [shlex.quote(str(path.parent / name)) for name in lost] if lost else [shlex.quote(str(path.parent))]
    return f"remove {' '.join(gone)} and run `sbldm nnunet eval` again"


def read_job(folder: Path) -> dict[str, Any]:
    """Definition of a job, see `plan_jobs`; a `StateError` when it is missing or damaged."""
    path = folder / "job.json"
    return read_json(path, JOB, made_anew(path), remove=False)


def read_done(folder: Path) -> dict[str, Any]:
    """What a finished job has measured of itself; a `StateError` when it is missing or damaged."""
    path = folder / "done.json"
    return read_json(path, {"predict_seconds": float, "peak_gb": float}, made_anew(path), remove=False)


def plan_jobs(
    arms: Sequence[Arm],
    n_real: Sequence[int],
    folds: Sequence[int],
    seeds: Sequence[int],
    real: RealCases,
    pairs: Sequence[Pairs],
    budget: dict[str, Any],
    strict: bool,
) -> list[dict[str, Any]]:
    """What each job trains on and is tested on; nothing is written.

    Args:
        arms: rows of the table.
        n_real: numbers of real training cases; the subsets are nested.
        folds: which fifths of those to leave out of training, one a job, or none: all cases train.
        seeds: of the trainings.
        real: all real cases.
        pairs: of the generators.
        budget: see `budgets.yaml`.
        strict: an arm whose generator has no pairs for a number of real cases is an error; else it is left out there.

    Returns:
        One description a job, without the number of its split.

    Raises:
        InputError: the budget has too few epochs for an arm, see `Arm.check_epochs`.
        StateError: a generator has no pairs for a number of real cases, or too few.
        DataError: a generator has learned from a case that is held out, or from other real cases than the arm has.
    """
    for arm in arms:
        arm.check_epochs(budget)
    asked = {generator for arm in arms for generator in arm.generators}
    for source in (p for p in pairs if p.generator in asked):
        if seen := source.seen(real.test, real):
            raise DataError(
                f"{source.folder} ({source.generator}) was made from {some(seen)}, which are tested on; use "
                "a generator that has not learned from them, or other test cases."
            )
    tested, jobs = [f"test__{name}" for name in real.test], []
    _, *smaller = real.source.nested.items()  # the first is the foreground, which every job is scored by
    for n in n_real:
        subset = nested_subset(real.train, n)
        for arm in arms:
            for fold in folds or [None]:
                training, held_out = split_fold(subset, fold)
                sources = {name: pairs_for(pairs, name, subset, fold, training) for name in arm.generators}
                try:
                    train = _training_cases(arm, training, sources, real, held_out)
                except StateError as error:
                    if strict:
                        raise
                    print(f"Left out: {error}")
                    continue
                validation = [f"real__{name}" for name in held_out] or tested
                for seed in seeds:
                    part = "" if fold is None else f"_fold{fold}"
                    jobs.append(
                        {
                            "job": f"{arm.name}_n{n}{part}_seed{seed}",
                            "arm": arm.name,
                            "n_real": n,
                            "fold": fold,
                            "seed": seed,
                            "trainer": TRAINERS[arm.augmentation],
                            "budget": _lengthened(budget, arm.lengthening),
                            "share": [list(corner) for corner in arm.share],
                            "pairs": [str(source.folder) for source in sources.values()],
                            "lineage": _lineage(sources.values()),
                            "train": train,
                            "validation": validation,
                            "test": tested,
                            "regions": dict(smaller),
                        }
                    )
    return jobs


def split_fold(subset: Sequence[str], fold: int | None) -> tuple[list[str], list[str]]:
    """Real cases that train and that a fold leaves out; an `InputError` when none is left to train."""
    held_out = list(subset[fold::FOLDS]) if fold is not None else []
    training = [name for name in subset if name not in held_out]
    if not training or (fold is not None and not held_out):
        raise InputError(f"--folds {fold}: {len(subset)} real cases cannot be split in {FOLDS}.")
    return training, held_out


def _lengthened(budget: dict[str, Any], factor: float) -> dict[str, Any]:
    """The budget with so many times its iterations, in whole epochs."""
    if factor == 1:
        return budget
    epoch = budget["iterations_per_epoch"]
    return budget | {"iterations": round(factor * budget["iterations"] / epoch) * epoch}


def _lineage(sources: Iterable[Pairs]) -> str:
    """Whether all pairs say what they descend from: known, unknown, or empty without any; outside: of a generator that
    was trained on cases from elsewhere.
    """
    known = ["unknown" if s.lineage is None else "outside" if s.outside else "known" for s in sources]
    return next((word for word in ("unknown", "outside", "known") if word in known), "")


def _training_cases(
    arm: Arm, training: Sequence[str], sources: Mapping[str, Pairs | None], real: RealCases, held_out: Sequence[str]
) -> list[str]:
    """Names in the pool of what one arm trains on."""
    cases = [f"real__{name}" for name in training] if "real" in arm.train else []
    if "aug5" in arm.train:
        cases += [copy_id(name, k) for name in training for k in range(1, COPIES + 1)]
    total = max(1, round(arm.amount * len(training)))
    for place, (generator, source) in enumerate(sources.items()):
        if source is None:
            raise StateError(
                f"{arm.name}: no pairs of {generator} that were made from none but its {len(training)} real cases; "
                f"train a generator on these (see subsets/ of --out) and add it: --synth {generator}@N_REAL=RUN."
            )
        if known := source.learned(held_out, real):
            raise StateError(
                f"{arm.name}: the generator of {source.folder.name} was trained on {some(known)}, which this fold "
                "leaves out; leave --folds out, or use another generator."
            )
        if not source.parents:
            held_back = source.seen(held_out, real)
            if extra := held_back | (set(source.lineage or {}) - set(training)):
                raise DataError(
                    f"{arm.name}: {source.folder.name} was made from real cases that this arm does not train on "
                    f"({some(extra)}); use a generator trained on the same {len(training)} cases."
                )
        usable = source.usable({name: real.content[name] for name in training})
        count = total // len(sources) + (place < total % len(sources))
        if len(usable) < count:
            raise StateError(
                f"{arm.name}: needs {count} pairs, {source.folder} has {len(usable)} that may join these "
                f"{len(training)} real cases; {source.more}."
            )
        cases += [pair_id(source, name) for name in usable[:count]]
    return cases


@contextmanager
def locked(folder: Path):
    """Let one process at a time fill the pool and the queue of an evaluation; others wait."""
    with open(make_folder(folder) / "lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def write_jobs(pool: Pool, jobs: Sequence[dict[str, Any]]) -> list[Path]:
    """Put the jobs into the queue and their splits into nnU-Net's `splits_final.json`; those there are kept.

    Returns:
        The folder of each job.

    Raises:
        StateError: a job of the same name is there with another definition (the difference is named).
    """
    root = make_folder(pool.folder / "jobs")
    held = {path.parent.name: read_job(path.parent) for path in root.glob("*/job.json")}
    for job in jobs:
        if old := held.get(job["job"]):
            # Where the pairs lie may change, what they are may not (see `Pool.check_pairs`). Older jobs lack some keys.
            # Regions are a matter of the scores: a job from before there were any keeps what it has.
            fixed = [key for key in job if key != "pairs" and (key != "regions" or key in old)]
            if changed := [key for key in fixed if (old.get(key) or []) != (job[key] or [])]:
                raise StateError(
                    f"{root / job['job']}: was queued with other values of {', '.join(changed)}; choose another --out, "
                    "or remove this folder to run it anew."
                )
        else:
            number = 1 + max((old["split"] for old in held.values()), default=-1)  # a removed job leaves a gap
            held[job["job"]] = job | {"split": number}
            write_json(root / job["job"] / "job.json", held[job["job"]])
    numbers = [job["split"] for job in held.values()]
    splits: list[dict[str, list[str]]] = [{"train": [], "val": []}] * (1 + max(numbers))
    for job in held.values():
        splits[job["split"]] = {"train": job["train"], "val": job["validation"]}
    write_json(pool.preprocessed / "splits_final.json", splits)
    return [root / job["job"] for job in jobs]
