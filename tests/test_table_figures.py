"""Figures of made-up evaluations: which are written, and the numbers they draw."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np

import nnunet_integration
from nnunet_integration.results import Results
from sbldm.files import write_csv, write_json

ITERATIONS = (300, 600, 1200, 2400)


def write_job(out: Path, arm: str, dsc: Sequence[float], n_real: int = 10, seed: int = 0, pairs: int = 0) -> None:
    """A finished job whose cases have these DSC."""
    folder = out / "jobs" / f"{arm}_n{n_real}_seed{seed}"
    random = np.random.default_rng([seed, n_real, *arm.encode()])
    cases = [f"test__BraTS20_Training_{k:03d}" for k in range(len(dsc))]
    train = [f"real__{k}" for k in range(n_real * ("real" in arm.split("+")))] + [f"sbldm__{k}" for k in range(pairs)]
    split = len(list((out / "jobs").glob("*")))
    job = {"job": folder.name, "arm": arm, "n_real": n_real, "fold": None, "seed": seed, "split": split}
    write_json(folder / "job.json", job | {"budget": {}, "train": train, "test": cases})
    snapshots = [
        {"iterations": i, "case": case, "dsc": max(0.0, value - 60 / i)}
        for i in ITERATIONS
        for case, value in zip(cases, dsc, strict=True)
    ]
    write_csv(folder / "snapshots.csv", snapshots)
    scores = [
        {"case": c, "dsc": d, "iou": d, "hd95_mm": 9, "nsd_1mm": d, "false_lesions": 0}
        for c, d in zip(cases, dsc, strict=True)
    ]
    write_csv(folder / "scores.csv", scores)
    write_csv(folder / "lesions.csv", [{"case": c, "volume_ml": 9, "found": 1} for c in cases])
    curve, speed, rise = [], random.uniform(4, 8), random.uniform(0, 0.02)
    for epoch in range(1, 25):
        falls = 0.9 * np.exp(-epoch / speed)
        curve.append(
            {
                "epoch": epoch,
                "iterations": 100 * epoch,
                "train_loss": falls - 0.85 + random.normal(0, 0.02),
                "validation_loss": falls - 0.7 + rise * epoch + random.normal(0, 0.05),
                "validation_dsc": 0.7,
                "seconds": 9,
            }
        )
    write_csv(folder / "curve.csv", curve)
    write_json(folder / "done.json", {"predict_seconds": 1, "peak_gb": 1})


def finish(out: Path) -> Results:
    shutil.copy(Path(nnunet_integration.__file__).with_name("arms.yaml"), out / "arms.yaml")
    return Results.load(out)


def write_large(out: Path, cases: int = 30) -> Results:
    """Nine arms, three seeds, three numbers of real cases, four amounts."""
    random = np.random.default_rng(0)
    hard = random.beta(8, 2.5, cases) - 0.1
    arms = {"real": (0, -0.06), "real+aug": (0, 0), "real+aug5": (0, -0.03)}
    arms |= {f"real+sbldm+aug@{a:g}x": (a, 0.02 * np.log2(1 + a)) for a in (0.5, 1, 2, 5)}
    arms |= {"real+copypaste+aug@1x": (1, 0.01), "real+copypaste+aug@5x": (5, -0.02)}
    for n in (10, 25, 100):
        for arm, (amount, gain) in arms.items():
            own = random.normal(0, 0.04, cases)
            for seed in range(3):
                dsc = hard + gain + 0.05 * np.log10(n) + own + random.normal(0, 0.02, cases) + random.normal(0, 0.01)
                write_job(out, arm, np.clip(dsc, 0, 0.97), n, seed, round(amount * n))
    return finish(out)


def write_small(out: Path) -> Results:
    write_job(out, "real", [0.7, 0.5, 0.8, 0.6])
    write_job(out, "real+aug", [0.8, 0.9, 0.7, 0.6])
    return finish(out)
