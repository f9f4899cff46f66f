"""Proof that a raw dataset is one: nnU-Net's own integrity check, fingerprint, plan and preprocessing."""

from __future__ import annotations

from pathlib import Path

from nnunet_integration.pool import plan_and_preprocess
from sbldm.run.errors import StateError
from sbldm.run.files import read_json
from sbldm.run.folder import Run
from sbldm.run.manifest import Manifest
from sbldm.run.workers import at_most

__all__ = ["verify_dataset"]


def verify_dataset(run: Path, dataset_id: int, workers: int = 1) -> Path:
    """Run `nnUNetv2_plan_and_preprocess --verify_dataset_integrity` on one dataset of a run folder.

    nnU-Net's three folders lie in the run folder and nothing global is touched; its output goes to `nnunet_verify.log`.

    Args:
        run: run folder.
        dataset_id: number of the dataset under `nnUNet_raw`.
        workers: nnU-Net processes; each costs seconds and a gigabyte to start.

    Returns:
        The folder of the preprocessed dataset.

    Raises:
        StateError: there is no such dataset.
        DataError: nnU-Net refuses it (its last words are quoted).
    """
    found = Run(run).datasets(dataset_id)
    if not found:
        raise StateError(
            f"{run / 'nnUNet_raw'}: no dataset {dataset_id}; draw one: {Run(run).to_draw(20, dataset_id)}."
        )
    dataset = found[0]
    count = Manifest(dataset).description["numTraining"]
    print(f"{dataset.name}: nnU-Net checks, plans and preprocesses {count} pairs ...", flush=True)
    processes = str(at_most(workers, count))
    options = ["-npfp", processes, "-np", processes]
    plan_and_preprocess(run, dataset, options, run / "nnunet_verify.log")
    preprocessed = run / "nnUNet_preprocessed" / dataset.name
    planned = {"configurations": {"3d_fullres": {"spacing": [float], "patch_size": [int]}}}
    plan = read_json(preprocessed / "nnUNetPlans.json", planned, "run `sbldm nnunet verify` again")
    plan = plan["configurations"]["3d_fullres"]
    print(f"{preprocessed}: planned and preprocessed (spacing {plan['spacing']}, patch {plan['patch_size']}).")
    return preprocessed
