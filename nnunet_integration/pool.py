"""One pool, one plan: all cases of all arms in one nnU-Net dataset, planned on the real training cases alone.

nnU-Net's three folders lie in the folder of the evaluation, and nothing global is touched.
"""

from __future__ import annotations

import importlib.metadata
import itertools
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from nnunet_integration.sources import Pairs, RealCases
from sbldm.cases.layouts import Case, Source, read_arrays
from sbldm.cases.volumes import RESTORE, load_image, read_image, whole_numbers
from sbldm.run.errors import DataError, StateError
from sbldm.run.files import (
    atomic_path,
    check,
    clear_partial,
    make_folder,
    read_json,
    reading,
    write_json,
    write_nifti,
)
from sbldm.run.processes import run_tied
from sbldm.run.workers import map_in_processes

__all__ = ["Pool", "plan_and_preprocess", "require_nnunet"]

ENTRY = "from nnunetv2.experiment_planning.plan_and_preprocess_entrypoints import plan_and_preprocess_entry as e; e()"
PLANS = "nnUNetPlans"
COPIES = 4  # augmented ones of each real case: with the case itself, five times the data
OWN = ("real__", "test__", "aug5__")  # what the pool calls its own real cases and copies
AGAIN = "run `sbldm nnunet eval` again"
PLANNED = {"plans_name": str, "configurations": {"3d_fullres": {"data_identifier": str, "architecture": dict}}}
PoolCase = tuple[str, Case, int]  # name in the pool, files, and the number of the augmented copy (0: as it is)


def require_nnunet() -> None:
    """A `StateError` when nnU-Net is missing, or is another version than the trainers were written for."""
    mend = "run `make install`, or pip install 'nnunetv2>=2.8,<2.9'"
    try:
        version = importlib.metadata.version("nnunetv2")
    except importlib.metadata.PackageNotFoundError:
        raise StateError(f"nnU-Net is not installed here; {mend}.") from None
    if not version.startswith("2.8."):
        raise StateError(f"nnU-Net {version} is installed, its trainers change between versions; {mend}.")


def nnunet_folders(folder: Path) -> dict[str, str]:
    """nnU-Net's environment variables for the three folders below `folder`, which are made."""
    return {name: str(make_folder(folder / name)) for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")}


def plan_and_preprocess(folder: Path, dataset: Path, options: list[str], log: Path) -> None:
    """Run `nnUNetv2_plan_and_preprocess --verify_dataset_integrity` on one dataset.

    Args:
        folder: holds nnU-Net's three folders.
        dataset: the raw dataset.
        options: further ones of the command.
        log: takes its output.

    Raises:
        DataError: nnU-Net refuses the dataset (its last words are quoted).
    """
    arguments = ["-d", dataset.name[7:10], "-c", "3d_fullres", *options, "--clean", "--verify_dataset_integrity"]
    environment = os.environ | nnunet_folders(folder) | {"TQDM_DISABLE": "1"}
    with open(log, "w") as file:
        code = run_tied(ENTRY, arguments, env=environment, stdout=file, stderr=subprocess.STDOUT)
    if code:
        last = next((line for line in reversed(log.read_text().splitlines()) if line.strip()), f"exit code {code}")
        raise DataError(f"{dataset}: nnU-Net refuses it ({last.strip()}); the whole output is in {log}.")


@dataclass(frozen=True)
class Pool:
    """The pool of one evaluation.

    Attributes:
        folder: of the evaluation.
        budget: see `budgets.yaml`.
    """

    folder: Path
    budget: dict[str, Any]
    name: str = "Dataset702_Pool"
    planned: str = "Dataset701_RealTraining"

    @property
    def raw(self) -> Path:
        """The raw pool: images and labels of all cases, real and synthetic."""
        return self.folder / "nnUNet_raw" / self.name

    @property
    def preprocessed(self) -> Path:
        """Plans, splits and preprocessed cases of the pool."""
        return self.folder / "nnUNet_preprocessed" / self.name

    @property
    def configuration(self) -> str:
        """nnU-Net's own 3d_fullres, or the small one that inherits from it."""
        return "sbldm" if self.budget["plan"] else "3d_fullres"

    def images(self, case: str, channels: int) -> list[Path]:
        """Image files of one case of the pool."""
        return [self.raw / "imagesTr" / f"{case}_{k:04d}.nii.gz" for k in range(channels)]

    def label(self, case: str) -> Path:
        """Label file of one case of the pool."""
        return self.raw / "labelsTr" / f"{case}.nii.gz"

    def needs(self, work: Sequence[PoolCase], jobs: int) -> int:
        """Bytes that these cases and the checkpoints of that many jobs take at most, roughly."""
        plan = self.budget["plan"] or {"spacing": None, "features": [32, 64, 128, 256, 320, 320]}
        total = 0.0
        for _, case, _ in work:
            with reading(case.mask, RESTORE, remove=False, error=DataError):
                header = load_image(case.mask).header
            spacing = header.get_zooms()[:3]
            scale = np.prod(np.divide(spacing, plan["spacing"] or spacing))
            # As raw file and preprocessed: a label takes 1 and 2 bytes, an image 2 and 4.
            a_voxel = 1 + 2 * scale + len(case.images) * (2 + 4 * scale)
            total += float(np.prod(header.get_data_shape()[:3])) * a_voxel
        features = plan["features"]
        weights = 81 * sum(n * n for n in features) + 100 * sum(a * b for a, b in itertools.pairwise(features))
        return int(total + jobs * 8 * weights * (3 + len(self.budget["snapshots"])))

    def work(self, real: RealCases, pairs: Iterable[Pairs], copies: bool) -> list[PoolCase]:
        """All cases of the pool: `real__NAME`, `test__NAME`, `GENERATOR__NAME` and `aug5__NAME_K`."""
        work = [(f"real__{name}", case, 0) for name, case in real.train.items()]
        work += [(f"test__{name}", case, 0) for name, case in real.test.items()]
        work += [(pair_id(source, name), case, 0) for source in pairs for name, case in source.cases.items()]
        if copies:
            numbers = range(1, COPIES + 1)
            work += [(copy_id(name, k), case, k) for name, case in real.train.items() for k in numbers]
        return work

    def check_pairs(self, work: Sequence[PoolCase]) -> None:
        """A `StateError` when a pair has been drawn anew since it came into the pool."""
        for name, case, _ in work:
            held = self.label(name)
            if name.startswith(OWN) or not held.exists() or held.samefile(case.mask):
                continue
            ours, theirs = (whole_numbers(np.asanyarray(read_image(path).dataobj)) > 0 for path in (held, case.mask))
            if ours.sum() != theirs.sum():  # the pool may have turned it
                raise StateError(f"{held}: holds another pair than {case.mask} does now; choose another --out.")

    def fill(self, real: RealCases, work: Sequence[PoolCase], workers: int) -> None:
        """Bring all cases into the raw pool, plan on the real training cases, preprocess; finished cases are kept.

        Files of generators whose axes run as those of the real cases are linked, others are turned.
        """
        for part in (self.raw, self.preprocessed):
            clear_partial(part)
        first = next(iter(real.train.values())).images[0]
        with reading(first, RESTORE, remove=False, error=DataError):
            axes = nib.aff2axcodes(load_image(first).affine)
        missing = [item for item in work if not self.label(item[0]).exists()]
        write = partial(_write_case, self, real.source, axes)
        map_in_processes(write, missing, workers, "Raw pool", begin=_one_thread)
        self._describe(real)
        self._plan(real)
        self._preprocess([name for name, _, _ in work], workers)

    def _describe(self, real: RealCases) -> None:
        """`dataset.json` of the pool, and of the dataset to plan on, which shares the pool's files."""
        count = len(list((self.raw / "labelsTr").glob("*.nii.gz")))
        write_json(self.raw / "dataset.json", real.source.description(count))
        channels = len(real.source.channels)
        shared = {
            f"real__{name}": {
                "images": [f"../{self.name}/imagesTr/{path.name}" for path in self.images(f"real__{name}", channels)],
                "label": f"../{self.name}/labelsTr/real__{name}.nii.gz",
            }
            for name in real.train
        }
        description = real.source.description(len(shared)) | {"dataset": shared}
        write_json(self.raw.parent / self.planned / "dataset.json", description)

    def _plan(self, real: RealCases) -> None:
        """Let nnU-Net check and plan the real training cases, and give the plan to the pool."""
        preprocessed = self.folder / "nnUNet_preprocessed" / self.planned
        if not (self.preprocessed / f"{PLANS}.json").exists():
            print(f"nnU-Net checks and plans {len(real.train)} real training cases ...", flush=True)
            options = ["--no_pp", "-npfp", "1", "-np", "1"]
            plan_and_preprocess(self.folder, self.raw.parent / self.planned, options, self.folder / "plan.log")
            plans = read_json(preprocessed / f"{PLANS}.json", PLANNED, AGAIN) | {"dataset_name": self.name}
            if self.budget["plan"]:
                own = _own_configuration(plans["configurations"]["3d_fullres"], **self.budget["plan"])
                plans["configurations"][self.configuration] = own
            make_folder(self.preprocessed)
            shutil.copyfile(preprocessed / "dataset_fingerprint.json", self.preprocessed / "dataset_fingerprint.json")
            write_json(self.preprocessed / f"{PLANS}.json", plans)
        write_json(self.preprocessed / "dataset.json", read_json(self.raw / "dataset.json", dict, AGAIN))

    def _preprocess(self, cases: list[str], workers: int) -> None:
        """nnU-Net's preprocessor on each case that has not been through it."""
        plans = read_json(self.preprocessed / f"{PLANS}.json", PLANNED, AGAIN)
        with reading(self.preprocessed / f"{PLANS}.json", AGAIN):
            check(plans["configurations"], {self.configuration: {}})
        inherited = plans["configurations"]["3d_fullres"] | plans["configurations"][self.configuration]
        target = make_folder(self.preprocessed / inherited["data_identifier"])
        missing = [case for case in cases if not (target / f"{case}.pkl").exists()]
        work = partial(_preprocess_case, self, target)
        map_in_processes(work, missing, workers, "Preprocessing", begin=_one_thread)


def pair_id(pairs: Pairs, name: str) -> str:
    """Name of a pair in the pool."""
    only = f"@{pairs.only.replace('/', '_')}" if pairs.only else ""
    return f"{pairs.generator}{only}__{name}"


def copy_id(name: str, copy: int) -> str:
    """Name of an augmented copy of a real case in the pool."""
    return f"aug5__{name}_{copy}"


def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)


def _write_case(pool: Pool, source: Source, axes: tuple[str, ...], item: PoolCase) -> None:
    """Write one case in the orientation of the pool; the label last, as it marks the case done."""
    name, case, copy = item
    images, label = pool.images(name, len(source.channels)), pool.label(name)
    if name.startswith(OWN):
        image, labels, affine = read_arrays(case, source)
    else:  # its labels are those of the pool already
        opened = [read_image(path) for path in case.images]
        same = nib.aff2axcodes(opened[0].affine) == axes
        stored = np.asanyarray(read_image(case.mask).dataobj)
        labels = whole_numbers(stored)
        same = same and np.array_equal(stored, labels)  # nnU-Net would cut 1.9999 to 1
        if same and all(path.name.endswith(".nii.gz") for path in (*case.images, case.mask)):
            for path, target in zip((*case.images, case.mask), (*images, label), strict=True):
                link(path, target)
            return
        image, affine = np.stack([np.asarray(o.dataobj, np.float32) for o in opened]), opened[0].affine
        labels = labels.astype(np.uint8)
    if copy:
        from nnunet_integration.offline import augmented_copy

        image, labels = augmented_copy(image, labels, int.from_bytes(case.name.encode()[-8:]), copy)
    turn = nib.orientations.ornt_transform(nib.io_orientation(affine), nib.orientations.axcodes2ornt(axes))
    affine = affine @ nib.orientations.inv_ornt_aff(turn, labels.shape)
    for channel, path in zip(image, images, strict=True):
        whole = np.array_equal(channel, np.rint(channel)) and np.abs(channel).max() < np.iinfo(np.int16).max
        stored = channel.astype(np.int16 if whole else np.float32)
        write_nifti(path, nib.apply_orientation(stored, turn), affine, scratch=pool.raw)
    write_nifti(label, nib.apply_orientation(labels, turn).astype(np.uint8), affine, scratch=pool.raw)


def link(path: Path, target: Path) -> None:
    """A hard link where the file system can, else a copy."""
    if target.exists():
        return
    make_folder(target.parent)
    try:
        os.link(path.resolve(), target)
    except OSError:
        with atomic_path(target) as temporary:
            shutil.copyfile(path, temporary)


def _own_configuration(full: dict[str, Any], spacing: Any, patch_size: Any, batch_size: int, features: Any) -> dict:
    """What the small budgets change in nnU-Net's 3d_fullres; everything else is inherited."""
    stages = len(features)
    arguments = full["architecture"]["arch_kwargs"] | {
        "n_stages": stages,
        "features_per_stage": list(features),
        "kernel_sizes": [[3, 3, 3]] * stages,
        "strides": [[1, 1, 1]] + [[2, 2, 2]] * (stages - 1),
        "n_conv_per_stage": [2] * stages,
        "n_conv_per_stage_decoder": [2] * (stages - 1),
    }
    return {
        "inherits_from": "3d_fullres",
        "data_identifier": f"{PLANS}_sbldm",
        "spacing": [float(s) for s in spacing],
        "patch_size": list(patch_size),
        "batch_size": batch_size,
        "architecture": full["architecture"] | {"arch_kwargs": arguments},
    }


def _preprocess_case(pool: Pool, target: Path, case: str) -> None:
    """One case through nnU-Net's preprocessor; the properties last, as they mark it done."""
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    plans = PlansManager(read_json(pool.preprocessed / f"{PLANS}.json"))
    configuration = plans.get_configuration(pool.configuration)
    dataset = read_json(pool.preprocessed / "dataset.json")
    images = [str(path) for path in pool.images(case, len(dataset["channel_names"]))]
    preprocessor = configuration.preprocessor_class(verbose=False)
    with tempfile.TemporaryDirectory(prefix=".partial-", dir=pool.preprocessed) as temporary:
        preprocessor.run_case_save(
            str(Path(temporary) / case), images, str(pool.label(case)), plans, configuration, dataset
        )
        for path in sorted(Path(temporary).iterdir(), key=lambda path: path.suffix == ".pkl"):
            os.replace(path, target / path.name)
