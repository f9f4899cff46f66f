"""One job in a process of its own: train an arm with nnU-Net, predict the test cases, score them."""

from __future__ import annotations

import fcntl
import os
import resource
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.run.run_training import run_training

from nnunet_integration.jobs import BUSY, made_anew, read_job
from nnunet_integration.pool import PLANS, Pool
from sbldm.metrics.segmentation import score_folder
from sbldm.run.device import choose_device
from sbldm.run.files import make_folder, read_json, read_rows, write_csv, write_json

__all__ = ["run_job"]

TRAINERS = Path(__file__).parent / "trainers"


def run_job(folder: Path) -> None:
    """Do what `folder/job.json` says, going on where an earlier process stopped.

    Leaves `curve.csv` (each epoch), `predictions/`, `scores.csv` and those of the snapshots, `lesions.csv`,
    `snapshots.csv`, and last `done.json`, which marks the job finished. Exit code `BUSY`: another process is at it.
    """
    lock = open(folder / "lock", "w")  # noqa: SIM115 - held until the process ends, however it ends
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        sys.exit(BUSY)
    os.register_at_fork(after_in_child=lock.close)  # nnU-Net's workers must not hold it after this process
    _run(folder, read_job(folder))


def _run(folder: Path, job: dict[str, Any]) -> None:
    if (folder / "done.json").exists():
        return
    budget, pool = job["budget"], Pool(folder.parents[1], job["budget"])
    os.environ |= {
        "nnUNet_raw": str(pool.raw.parent),
        "nnUNet_preprocessed": str(pool.preprocessed.parent),
        "nnUNet_results": str(make_folder(folder / "nnUNet_results")),
        "nnUNet_extTrainer": str(TRAINERS),
        "nnUNet_n_proc_DA": str(budget["augmentation_workers"]),
        "SBLDM_JOB": str(folder / "job.json"),
    }
    device = choose_device()
    torch.set_num_threads(budget["threads"])
    trained = folder / "nnUNet_results" / pool.name / f"{job['trainer']}__{PLANS}__{pool.configuration}"
    fold = trained / f"fold_{job['split']}"
    if not (fold / "checkpoint_final.pth").exists():
        splits = read_json(pool.preprocessed / "splits_final.json")
        if splits[job["split"]] != {"train": job["train"], "val": job["validation"]}:
            raise RuntimeError(f"splits_final.json does not hold this job's split {job['split']}")
        begun = (fold / "checkpoint_latest.pth").exists()
        print(f"Training {'goes on' if begun else 'begins'} on {device}, {budget['threads']} threads")
        run_training(
            pool.name, pool.configuration, job["split"], job["trainer"], PLANS, continue_training=begun, device=device
        )
    references, snapshots = pool.raw / "labelsTr", []
    for iterations in (*budget["snapshots"], budget["iterations"]):
        last = iterations == budget["iterations"]
        name, checkpoint = ("predictions", "final") if last else (f"predictions_{iterations}", f"{iterations:06d}")
        table = folder / ("scores.csv" if last else f"scores_{iterations}.csv")
        if not table.exists():
            started = time.perf_counter()
            _predict(folder / name, trained, job, pool, f"checkpoint_{checkpoint}.pth", device)
            seconds = time.perf_counter() - started
            scores, lesions = score_folder(folder / name, references, job["test"], job.get("regions"))
            write_csv(folder / "lesions.csv", lesions, ["case", "volume_ml", "found"])
            write_csv(table, [row | {"seconds": round(seconds / len(scores), 2)} for row in scores])
        rows = read_rows(table, {"case": str, "dsc": float, "seconds": float}, made_anew(table), remove=False)
        snapshots += [{"iterations": iterations} | row for row in rows]
        if not last:
            shutil.rmtree(folder / name, ignore_errors=True)
    write_csv(folder / "snapshots.csv", snapshots)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    seconds = sum(float(row["seconds"]) for row in rows)
    measured = {"device": str(device), "threads": budget["threads"], "predict_seconds": round(seconds, 1)}
    if device.type == "cuda":
        measured["peak_cuda_gb"] = round(torch.cuda.max_memory_reserved(device) / 2**30, 2)
    write_json(folder / "done.json", measured | {"peak_gb": round(peak, 2)})


def _predict(
    folder: Path, trained: Path, job: dict[str, Any], pool: Pool, checkpoint: str, device: torch.device
) -> None:
    """Predict the test cases from their raw files, without mirroring, which the arms without augmentation lack."""
    if folder.exists():
        return
    predictor = nnUNetPredictor(use_mirroring=False, device=device, allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(str(trained), (job["split"],), checkpoint)
    channels = len(predictor.dataset_json["channel_names"])
    temporary = make_folder(folder.with_name(f"{folder.name}.unfinished"))
    predictor.predict_from_files_sequential(
        [[str(path) for path in pool.images(case, channels)] for case in job["test"]],
        [str(temporary / case) for case in job["test"]],
    )
    temporary.rename(folder)
