"""What finished jobs have left, read into arrays of scores for the table and the figures."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nnunet_integration.arms import ArmBook
from nnunet_integration.evaluation import queued, read_arms
from nnunet_integration.jobs import made_anew, read_done, read_job
from sbldm.metrics.segmentation import METRICS
from sbldm.run.errors import StateError
from sbldm.run.files import read_rows

__all__ = ["ArmResults", "Results"]

SCORES = {"case": str} | dict.fromkeys((*METRICS, "false_lesions"), float)
CURVE = dict.fromkeys(("iterations", "train_loss", "validation_loss", "validation_dsc", "seconds"), float)


def _rows(folder: Path, name: str, columns: dict[str, type]) -> list[dict[str, str]]:
    """One of the tables that a finished job has left."""
    path = folder / name
    return read_rows(path, columns, made_anew(path), remove=False)


@dataclass(frozen=True)
class ArmResults:
    """All finished jobs of one arm with one number of real cases.

    Attributes:
        name: of the arm.
        n_real: number of real training cases.
        cases: names of the test cases `[C]`.
        scores: metric -> `[S, C]`, one row a job (seed, or seed and fold): a training.
        regions: the same of regions within the foreground; empty where there are none.
        lesions: rows of volume_ml and found, of all jobs.
        false_lesions: `[S, C]`.
        snapshots: iterations -> DSC `[S, C]`, the last one being that of the whole budget.
        curves: of each job, column -> value of each epoch: iterations, train_loss, validation_loss, validation_dsc.
        jobs: definition of each job, see `plan_jobs`.
        minutes: training and prediction of each job `[S]`.
        peak_gb: memory of each job `[S]`.
    """

    name: str
    n_real: int
    cases: list[str]
    scores: dict[str, np.ndarray]
    regions: dict[str, dict[str, np.ndarray]]
    lesions: list[dict[str, float]]
    false_lesions: np.ndarray
    snapshots: dict[int, np.ndarray]
    curves: list[dict[str, np.ndarray]]
    jobs: list[dict[str, Any]]
    minutes: np.ndarray
    peak_gb: np.ndarray

    @property
    def amount(self) -> float:
        """Synthetic pairs for each real case, from the training lists."""
        train, fold = self.jobs[0]["train"], self.jobs[0]["fold"]
        training = self.n_real - (0 if fold is None else len(self.jobs[0]["validation"]))
        real = sum(case.startswith("real__") for case in train)
        copies = sum(case.startswith("aug5__") for case in train)
        return (len(train) - real - copies) / training

    @classmethod
    def load(cls, folders: list[Path]) -> ArmResults:
        """Read the jobs of one arm; the test cases of all must be the same."""
        jobs = [read_job(folder) for folder in folders]
        known = [job.get("regions") or {} for job in jobs]  # jobs from before there were regions have none
        regions = [name for name in known[0] if all(name in own for own in known)]
        columns = {f"{metric} {region}": float for region in regions for metric in METRICS}
        tables = [_rows(folder, "scores.csv", SCORES | columns) for folder in folders]
        cases = [row["case"] for row in tables[0]]

        def array(column: str) -> np.ndarray:
            return np.array([[float(row[column]) for row in table] for table in tables])

        snapshots: dict[int, list[list[float]]] = defaultdict(list)
        for folder in folders:
            by_iterations = defaultdict(list)
            for row in _rows(folder, "snapshots.csv", {"iterations": int, "dsc": float}):
                by_iterations[int(row["iterations"])].append(float(row["dsc"]))
            for iterations, values in by_iterations.items():
                snapshots[iterations].append(values)
        lesions = [
            row for folder in folders for row in _rows(folder, "lesions.csv", {"volume_ml": float, "found": float})
        ]
        curves, minutes, peak = [], [], []
        for folder in folders:
            epochs, done = _rows(folder, "curve.csv", CURVE), read_done(folder)
            curves.append({key: np.array([float(epoch[key]) for epoch in epochs]) for key in epochs[0]})
            minutes.append((curves[-1]["seconds"].sum() + done["predict_seconds"]) / 60)
            peak.append(done.get("peak_cuda_gb", done["peak_gb"]))
        return cls(
            jobs[0]["arm"],
            jobs[0]["n_real"],
            [case.removeprefix("test__") for case in cases],
            {metric: array(metric) for metric in METRICS},
            {region: {metric: array(f"{metric} {region}") for metric in METRICS} for region in regions},
            [{"volume_ml": float(row["volume_ml"]), "found": float(row["found"])} for row in lesions],
            array("false_lesions"),
            {iterations: np.array(values) for iterations, values in sorted(snapshots.items())},
            curves,
            jobs,
            np.array(minutes),
            np.array(peak),
        )


@dataclass(frozen=True)
class Results:
    """All finished jobs of an evaluation.

    Attributes:
        folder: of the evaluation.
        arms: by number of real cases and arm, in the order in which they were queued.
        book: the arms file of the evaluation (baseline and the paper's figures).
        budget: see `budgets.yaml`.
        unfinished: names of the jobs that are queued and not finished.
    """

    folder: Path
    arms: dict[tuple[int, str], ArmResults]
    book: ArmBook
    budget: dict[str, Any]
    unfinished: list[str]

    @classmethod
    def load(cls, folder: Path) -> Results:
        """Read an evaluation.

        Raises:
            StateError: nothing is queued there, or nothing is finished yet.
        """
        ordered = queued(folder)
        jobs = {path: read_job(path) for path in ordered}
        finished: dict[tuple[int, str], list[Path]] = defaultdict(list)
        for path in ordered:
            if (path / "done.json").exists():
                finished[jobs[path]["n_real"], jobs[path]["arm"]].append(path)
        if not finished:
            raise StateError(f"{folder}: no job is finished yet; run `sbldm nnunet eval` again.")
        return cls(
            folder,
            {key: ArmResults.load(paths) for key, paths in sorted(finished.items(), key=lambda item: item[0][0])},
            read_arms(folder),
            min((job["budget"] for job in jobs.values()), key=lambda budget: budget["iterations"]),  # no longer arm's
            [path.name for path in ordered if not (path / "done.json").exists()],
        )

    @property
    def n_real(self) -> list[int]:
        """Numbers of real cases, rising."""
        return sorted({n for n, _ in self.arms})

    def with_n(self, n_real: int) -> dict[str, ArmResults]:
        """The arms with this number of real cases."""
        return {arm: results for (n, arm), results in self.arms.items() if n == n_real}
