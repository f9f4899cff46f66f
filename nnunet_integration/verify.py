"""Proof that a raw dataset is one: nnU-Net's own integrity check, fingerprint, plan and preprocessing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from sbldm.errors import DataError, InputError, StateError
from sbldm.files import make_folder, read_json

__all__ = ["verify_dataset"]

ENTRY = "from nnunetv2.experiment_planning.plan_and_preprocess_entrypoints import plan_and_preprocess_entry as e; e()"


def verify_dataset(run: Path, dataset_id: str, workers: int = 1) -> Path:
    """Run `nnUNetv2_plan_and_preprocess --verify_dataset_integrity` on one dataset of a run folder.

    nnU-Net's three folders lie in the run folder and nothing global is touched; its output goes to `nnunet_verify.log`.

    Args:
        run: run folder.
        dataset_id: number of the dataset under `nnUNet_raw`.
        workers: nnU-Net processes; each costs seconds and a gigabyte to start.

    Returns:
        The folder of the preprocessed dataset.

    Raises:
        InputError: the number is none.
        StateError: there is no such dataset.
        DataError: nnU-Net refuses it (its last words are quoted).
    """
    if not dataset_id.isdigit():
        raise InputError(f"DATASET={dataset_id}: must be a number.")
    found = sorted((run / "nnUNet_raw").glob(f"Dataset{int(dataset_id):03d}_*/dataset.json"))
    if not found:
        raise StateError(f"{run / 'nnUNet_raw'}: no dataset {dataset_id}; draw pairs first: make synth RUN={run} N=20.")
    dataset = found[0].parent
    folders = {n: str(make_folder(run / n)) for n in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")}
    options = ["-d", dataset_id, "-c", "3d_fullres", "-npfp", str(workers), "-np", str(workers), "--clean"]
    command = [sys.executable, "-c", ENTRY, *options, "--verify_dataset_integrity"]
    log = run / "nnunet_verify.log"
    print(
        f"{dataset.name}: nnU-Net checks, plans and preprocesses {read_json(found[0])['numTraining']} pairs ...",
        flush=True,
    )
    with open(log, "w") as file:
        code = subprocess.run(command, env=os.environ | folders, stdout=file, stderr=subprocess.STDOUT).returncode
    if code:
        last = next((line for line in reversed(log.read_text().splitlines()) if line.strip()), f"exit code {code}")
        raise DataError(f"{dataset}: nnU-Net refuses it ({last.strip()}); the whole output is in {log}.")
    preprocessed = run / "nnUNet_preprocessed" / dataset.name
    plan = read_json(preprocessed / "nnUNetPlans.json")["configurations"]["3d_fullres"]
    print(f"{preprocessed}: planned and preprocessed (spacing {plan['spacing']}, patch {plan['patch_size']}).")
    return preprocessed
