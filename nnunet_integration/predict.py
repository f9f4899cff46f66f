"""Predict any folder of images with a trained nnU-Net model, of ours or of anybody."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shlex
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import nibabel as nib
import numpy as np
import torch

from nnunet_integration.jobs import read_job
from nnunet_integration.pool import require_nnunet
from sbldm.cases.datasets import is_stacked
from sbldm.cases.layouts import CHANNELS, Source, content_hash, find_cases, plain_name
from sbldm.cases.lists import pick
from sbldm.cases.naming import choose, image_files
from sbldm.cases.volumes import load_image, read_image, split_ending
from sbldm.run.device import choose_device
from sbldm.run.errors import DataError, InputError, StateError
from sbldm.run.files import (
    atomic_path,
    clear_partial,
    make_folder,
    read_json,
    reading,
    sha256,
    user_path,
    write_json,
    write_nifti,
)
from sbldm.run.progress import progress
from sbldm.run.text import some

if TYPE_CHECKING:
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

__all__ = ["Channel", "Model", "find_images", "find_model", "predict_folder"]

TRAINERS = Path(__file__).parent / "trainers"
EXTERNAL = "nnUNet_extTrainer"
ARMS = ("real", "real+aug")  # trained on real cases alone; the later one is preferred
CPU_THREADS = 2
MODEL_FILE = "model.json"
HELD = {"model": str, "checkpoints": {str: str}, "images": {str: [str]}}
Channel = tuple[Path, int | None]  # file, and index on its 4th axis if it has one


@dataclass(frozen=True)
class Model:
    """A trained nnU-Net model.

    Attributes:
        folder: `.../DatasetX/Trainer__Plans__Configuration`.
        folds: whose networks predict together, as in `fold_0`.
        checkpoint: file name of the weights in each fold.
        job: our job folder that it lies in, if it does.
    """

    folder: Path
    folds: tuple[str, ...]
    checkpoint: str
    job: Path | None

    @property
    def channels(self) -> list[str]:
        """Names of the image channels in their order."""
        path, again = self.folder / "dataset.json", retrain(self.job or self.folder)
        names = read_json(path, {"channel_names": {str: str}}, again, remove=False)["channel_names"]
        with reading(path, again, remove=False):
            return [names[number] for number in sorted(names, key=int)]

    @property
    def axes(self) -> tuple[str, ...] | None:
        """Directions of the voxel axes of its training images, as in ("L", "P", "S"); None when these are not there."""
        if self.job is None:
            return None
        case = read_job(self.job)["train"][0]
        image = self.job.parents[1] / "nnUNet_raw" / self.folder.parent.name / "imagesTr" / f"{case}_0000.nii.gz"
        if not image.is_file():
            return None
        with reading(image, "run the same command again, which then takes the images as they are"):
            return nib.aff2axcodes(load_image(image).affine)

    def identity(self) -> dict[str, str]:
        """SHA-256 of each checkpoint file, by its path in the folder."""
        paths = [Path(f"fold_{fold}") / self.checkpoint for fold in self.folds]
        return {path.as_posix(): sha256(self.folder / path) for path in paths}


def find_model(path: str | Path, fold: str = "", checkpoint: str = "checkpoint_final.pth") -> Model:
    """Find the trained model that a folder stands for.

    Args:
        path: a folder `Trainer__Plans__Configuration` of nnU-Net's results, or one above that holds exactly one; or a
            finished job folder of ours; or a run folder or the folder of an evaluation: then its finished job of the
            arm `real+aug`, else `real`, with the most real cases.
        fold: number, or `all`; when empty all folds that have the checkpoint predict together, as in nnU-Net (`all`
            when there is no other).
        checkpoint: file name of the weights, with or without its ending.

    Raises:
        InputError: no such folder, or several models in it.
        StateError: no trained model there, the job is not finished, or no such fold or checkpoint.
    """
    path = user_path(path).absolute()
    if not path.is_dir():
        raise InputError(f"--model {path}: no such folder.")
    folder = _trained_folder(path)
    checkpoint = checkpoint if checkpoint.endswith(".pth") else f"{checkpoint}.pth"
    there = sorted(found.parent.name.removeprefix("fold_") for found in folder.glob(f"fold_*/{checkpoint}"))
    folds = [fold] if fold else [name for name in there if name != "all"] or there
    if not folds or not set(folds) <= set(there):
        raise StateError(
            f"{folder}: no {checkpoint} of fold {fold or '0'}; folds with it: {', '.join(there) or 'none'}. "
            "Name others by --fold and --checkpoint, or finish the training."
        )
    above = folder.parents[1]  # JOB/nnUNet_results/DatasetX/Trainer__Plans__Configuration
    ours = above.name == "nnUNet_results" and (above.parent / "job.json").is_file()
    return Model(folder, tuple(folds), checkpoint, above.parent if ours else None)


def _is_trained(folder: Path) -> bool:
    return all((folder / name).is_file() for name in ("plans.json", "dataset.json")) and any(folder.glob("fold_*"))


def _trained_folder(path: Path) -> Path:
    """The one folder of a trained model that `path` stands for."""
    if _is_trained(path):
        return path
    if queue := [job.parent for part in ("jobs", "table2/jobs") for job in path.glob(f"{part}/*/job.json")]:
        path = _best_job(path, queue)
    if (path / "job.json").is_file() and not (path / "done.json").is_file():
        raise StateError(
            f"{path}: this job is not finished; run `sbldm nnunet eval` again, it goes on where it stopped."
        )
    found = sorted({plans.parent for plans in path.rglob("plans.json") if _is_trained(plans.parent)})
    if len(found) > 1:
        raise InputError(f"--model {path}: holds {len(found)} models ({some(map(str, found), 2)}); name one of them.")
    if not found:
        raise StateError(f"{path}: no trained nnU-Net model here; {_train_one(path)}.")
    return found[0]


def _best_job(path: Path, queue: Sequence[Path]) -> Path:
    """The finished job of the best real-only arm with the most real cases."""
    ranked = []
    for folder in (folder for folder in queue if (folder / "done.json").is_file()):
        job = read_job(folder)
        if job["arm"] in ARMS:
            ranked.append(((ARMS.index(job["arm"]), len(job["train"]), -job["seed"]), folder))
    if not ranked:
        raise StateError(f"{path}: no job of {' or '.join(ARMS)} is finished here; {_train_one(path)}.")
    return max(ranked)[1]


def _train_one(path: Path) -> str:
    return f"train one: sbldm nnunet eval --run {path if (path / 'preset.yaml').is_file() else 'RUN'} --arms real+aug"


def find_images(
    folder: Path, channels: Sequence[str], names: Sequence[str] | None = None
) -> dict[str, tuple[Channel, ...]]:
    """Find the images of all cases in a folder; masks are not looked at.

    Args:
        folder: an nnU-Net raw dataset or a plain folder (`ID_0000.nii.gz`, one number a channel), or cases in another
            layout that `find_cases` knows.
        channels: the model's channel names, in its order.
        names: keep these cases alone, in this order.

    Returns:
        File, and index on its 4th axis or None, of each channel, by case.

    Raises:
        InputError: no such folder; or a channel that a layout other than nnU-Net's does not know.
        DataError: no images, other channels than the model's, a file is missing, or some of `names` are not there.
    """
    folder = user_path(folder).absolute()
    if not folder.is_dir():
        raise InputError(f"--images {folder}: no such folder.")
    place = folder / "imagesTr" if (folder / "imagesTr").is_dir() else folder
    images, description = _numbered(place), _description(folder)
    # MSD's names may end in four digits too.
    if not images or ("modality" in description and is_stacked(next(iter(next(iter(images.values())).values())))):
        return _known_layout(folder, channels, names)
    if (theirs := description.get("channel_names", description.get("modality"))) and not _same_channels(
        theirs, channels
    ):
        raise DataError(f"{folder}: has the channels {', '.join(theirs.values())}, the model {', '.join(channels)}.")
    if names is not None:
        images = {name: images[name] for name in pick(names, {name: () for name in images}, folder)}
    for name, files in images.items():
        if sorted(files) != list(range(len(channels))):
            raise DataError(
                f"{place}: {name} has {len(files)} channels ({', '.join(f'{k:04d}' for k in sorted(files))}), "
                f"the model needs {len(channels)} ({', '.join(channels)}), numbered from 0000."
            )
    return {name: tuple((files[k], None) for k in sorted(files)) for name, files in images.items()}


def _numbered(folder: Path) -> dict[str, dict[int, Path]]:
    """Files `ID_0000.nii.gz`, of any kind that can be read, by ID and number."""
    found: dict[str, dict[int, list[Path]]] = {}
    for path in image_files(folder):
        if match := re.fullmatch(r"(.+)_(\d{4})", split_ending(path.name)[0]):
            found.setdefault(match[1], {}).setdefault(int(match[2]), []).append(path)
    chosen: dict[str, dict[int, Path]] = {}
    for name, channels in found.items():
        for number, paths in channels.items():
            path, other = choose(paths)
            if other:
                raise DataError(f"{path} and {other.name} differ, and both could be meant; remove or rename one.")
            chosen.setdefault(name, {})[number] = path
    return chosen


def _description(folder: Path) -> dict[str, Any]:
    """What the folder's dataset.json says, if it has one."""
    path = folder / "dataset.json"
    try:
        return json.loads(path.read_bytes()) if path.is_file() else {}
    except ValueError as error:
        raise DataError(f"{path}: cannot be read ({error}).") from None


def _canonical(channel: str) -> str:
    """One spelling of a channel, whatever a data set calls it."""
    plain = plain_name(channel)
    return next((name for name, spellings in CHANNELS.items() if plain in spellings), plain)


def _same_channels(theirs: dict[str, str], channels: Sequence[str]) -> bool:
    return [_canonical(theirs[k]) for k in sorted(theirs, key=int)] == [_canonical(name) for name in channels]


def _known_layout(folder: Path, channels: Sequence[str], names: Sequence[str] | None) -> dict[str, tuple[Channel, ...]]:
    """Cases that `find_cases` finds."""
    wanted = tuple(_canonical(name) for name in channels)
    if unknown := [name for name in wanted if name not in CHANNELS]:
        raise InputError(
            f"--images {folder}: holds no ID_0000.nii.gz, and other layouts have no channel {unknown[0]}, which the "
            "model needs; name a folder of ID_0000.nii.gz files."
        )
    cases = find_cases(folder, Source(channels=wanted), names)
    if missing := [path for case in cases for path in case.images if not path.is_file()]:
        raise DataError(f"{missing[0]}: this image is missing ({len(missing)} in all).")
    return {case.name: tuple(zip(case.images, case.volume, strict=True)) for case in cases}


def predict_folder(
    path: str | Path,
    images: Path,
    out: Path,
    names: Sequence[str] | None = None,
    fold: str = "",
    checkpoint: str = "checkpoint_final.pth",
) -> list[Path]:
    """Predict all images of a folder, without mirroring, as the jobs do; what is there is kept.

    Images whose voxel axes run otherwise than those of the training images (where these are there, see `Model.axes`)
    are turned, and their predictions turned back. nnU-Net unpickles its checkpoints: use models that you trust alone.

    Args:
        path, fold, checkpoint: see `find_model`.
        images, names: see `find_images`.
        out: takes `NAME.nii.gz`, labels on the grid of the image, and `model.json`: the model as it was named here, its
            trainer, SHA-256 of its checkpoints and of each image; of a job of ours also its arm, and the real cases
            that it trained on, as train.

    Returns:
        The prediction files, in the order of the cases.

    Raises:
        InputError, DataError: see `find_model` and `find_images`; or an image cannot be predicted.
        StateError: see `find_model`; nnU-Net is missing or cannot load the model; or `out` holds predictions of another
            model or of other images.
    """
    require_nnunet()
    model = find_model(path, fold, checkpoint)
    cases = find_images(images, model.channels, names)
    held = _check_held(Path(out), model, cases)
    files = {name: Path(out) / f"{name}.nii.gz" for name in cases}
    missing = [name for name, file in files.items() if not file.is_file()]
    if not missing:
        print(f"{out}: all {len(files)} predictions are there.")
        return list(files.values())
    predictor = _load(model)
    description = {"model": str(path), "trainer": predictor.trainer_name} | held
    if model.job is not None:
        job = read_job(model.job)
        real = [case.removeprefix("real__") for case in job["train"] if case.startswith("real__")]
        description |= {"arm": job["arm"], "train": real}
    clear_partial(make_folder(Path(out)))
    write_json(Path(out) / MODEL_FILE, description)
    axes = model.axes
    for name in progress(missing, "Predicting"):
        _predict(predictor, cases[name], files[name], axes)
    return list(files.values())


def _check_held(out: Path, model: Model, cases: dict[str, tuple[Channel, ...]]) -> dict[str, Any]:
    """What identifies the model and all images that `out` has or will have predictions of; refuses others."""
    file, predicted = out / MODEL_FILE, {path.name.removesuffix(".nii.gz") for path in out.glob("*.nii.gz")}
    held = read_json(file, HELD, f"remove {shlex.quote(str(out))} and predict again", False) if file.is_file() else {}
    checkpoints = model.identity()
    if predicted and held.get("checkpoints") != checkpoints:
        raise StateError(
            f"{out}: holds predictions of another model ({held.get('model', 'unknown')}); choose another --out."
        )
    hashes = {name: [_identity(path) for path, _ in channels] for name, channels in cases.items()}
    old = {name: held["images"].get(name) for name in predicted}
    if changed := [name for name in predicted & set(hashes) if old[name] != hashes[name]]:
        raise StateError(
            f"{out}: holds predictions of other images than these ({some(changed)}); choose another --out."
        )
    return {"checkpoints": checkpoints, "images": old | hashes}


def _identity(path: Path) -> str:
    """SHA-256 of an image file; of one whose voxels lie in another file, theirs."""
    return content_hash(np.asarray(load_image(path).dataobj)) if path.name.lower().endswith(".mhd") else sha256(path)


def _load(model: Model) -> nnUNetPredictor:
    """nnU-Net's predictor with the weights of the model, on the device asked for."""
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    device = choose_device()
    if device.type == "cpu":
        torch.set_num_threads(CPU_THREADS)
    # nnU-Net looks in these folders when the trainer is none of its own.
    external = [*os.environ.get(EXTERNAL, "").split(os.pathsep), str(TRAINERS)]
    os.environ[EXTERNAL] = os.pathsep.join(dict.fromkeys(filter(None, external)))
    with contextlib.redirect_stdout(io.StringIO()):
        predictor = nnUNetPredictor(use_mirroring=False, device=device, allow_tqdm=False)
        try:
            predictor.initialize_from_trained_model_folder(str(model.folder), model.folds, model.checkpoint)
        except Exception as error:  # whatever unpickling raises, or the building of a network
            raise StateError(
                f"{model.folder}: nnU-Net cannot load this model{_why(model, error)}; "
                f"{retrain(model.job or model.folder)}, or let {EXTERNAL} name the folder of its trainer."
            ) from None
    if before := predictor.configuration_manager.previous_stage_name:
        raise StateError(f"{model.folder}: the second stage of a cascade needs predictions of {before}; name another.")
    predictor.dataset_json = predictor.dataset_json | {"file_ending": ".nii.gz"}
    return predictor


def retrain(folder: Path) -> str:
    """What to do about a model that is lost: one of ours is a job of the queue."""
    remove = f"remove {shlex.quote(str(folder))} and run `sbldm nnunet eval` again"
    return remove if (folder / "job.json").is_file() else "restore it from a copy, or train it again"


def _why(model: Model, error: Exception) -> str:
    """Which of its files is damaged, in our words: what unpickling says is no advice to follow."""
    for name in ("plans.json", "dataset.json"):
        try:
            read_json(model.folder / name, dict)
        except StateError:
            return f" ({name} is damaged)"
    for path in model.identity():
        if not zipfile.is_zipfile(model.folder / path):
            return f" ({path} is damaged)"
    return f" ({type(error).__name__})"


def _predict(predictor: nnUNetPredictor, channels: Sequence[Channel], file: Path, axes: tuple[str, ...] | None) -> None:
    """Predict one case."""
    with atomic_path(file) as temporary:
        try:
            paths = [_as_trained(channel, axes, temporary.parent) for channel in channels]
            with contextlib.redirect_stdout(io.StringIO()):
                predictor.predict_from_files_sequential([list(map(str, paths))], [str(temporary)[: -len(".nii.gz")]])
        except Exception:
            _check_readable(channels)
            raise
        own = load_image(channels[0][0])
        if axes is not None and nib.aff2axcodes(own.affine) != axes:
            labels = _turn(nib.load(temporary), nib.aff2axcodes(own.affine))
            write_nifti(temporary, np.asarray(labels.dataobj), own.affine)


def _as_trained(channel: Channel, axes: tuple[str, ...] | None, scratch: Path) -> Path:
    """The file itself if nnU-Net can take it, else one of this channel alone in the orientation of the training."""
    path, volume = channel
    image = load_image(path)
    if volume is None and (axes is None or nib.aff2axcodes(image.affine) == axes) and path.name.endswith(".nii.gz"):
        return path
    if volume is not None:
        image = image.slicer[..., volume]
    target = scratch / f"channel_{volume or 0}_{split_ending(path.name)[0]}.nii.gz"
    nib.save(image if axes is None else _turn(image, axes), target)
    return target


def _turn(image: nib.Nifti1Image, axes: Sequence[str]) -> nib.Nifti1Image:
    """The same image with voxel axes that run in these directions."""
    start, end = nib.io_orientation(image.affine), nib.orientations.axcodes2ornt(axes)
    return image.as_reoriented(nib.orientations.ornt_transform(start, end))


def _check_readable(channels: Sequence[Channel]) -> None:
    """A `DataError` when the files are why nnU-Net stopped."""
    shapes = []
    for path, volume in channels:
        shapes.append(read_image(path).shape)
        if len(shapes[-1]) != (3 if volume is None else 4) or shapes[-1] != shapes[0]:
            raise DataError(f"{path}: has shape {shapes[-1]}; channels are 3-D images of one grid.")
