"""Prediction with models whose answers are known: a network of one convolution finds what is brighter than a limit."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
import torch

from nnunet_integration.predict import find_images, find_model, predict_folder
from sbldm.cli import main
from sbldm.run.errors import DataError, InputError, StateError
from sbldm.run.files import read_json, sha256, write_json, write_nifti
from tests.conftest import partial_files, snapshot

LPS, RAS = np.diag([-2, -2, 2, 1.0]), np.diag([2, 2, 2, 1.0])
SHAPE = (14, 12, 10)
HERE = (1, 1, 1)  # a place in the kernel of the network, axes Z, Y, X


class Probe(torch.nn.Module):
    """Foreground where a convolution of the image is above 0."""

    def __init__(self, input_channels: int, num_classes: int, deep_supervision: bool):
        super().__init__()
        assert num_classes == 2 and not deep_supervision
        self.convolution = torch.nn.Conv3d(input_channels, 1, 3, padding=1)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        logit = self.convolution(image)
        return torch.cat([-logit, logit], dim=1)


def write_model(
    folder: Path,
    limits: dict[str, float],
    kernel: dict[tuple[int, ...], float] | None = None,
    channels: tuple[str, ...] = ("FLAIR",),
    trainer: str = "nnUNetTrainer",
) -> Path:
    """A trained model as nnU-Net leaves it: a network in each fold that adds the kernel's places, less the limit."""
    configuration = {
        "data_identifier": "nnUNetPlans_probe",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": 2,
        "patch_size": [16, 16, 16],
        "spacing": [2.0, 2.0, 2.0],
        "normalization_schemes": ["NoNormalization"] * len(channels),
        "use_mask_for_norm": [False] * len(channels),
        "architecture": {
            "network_class_name": f"{__name__}.Probe",
            "arch_kwargs": {},
            "_kw_requires_import": [],
        },
    }
    for part in ("data", "seg", "probabilities"):
        kwargs = {"is_seg": part == "seg", "order": 1, "order_z": 0, "force_separate_z": None}
        configuration[f"resampling_fn_{part}"] = "resample_data_or_seg_to_shape"
        configuration[f"resampling_fn_{part}_kwargs"] = kwargs
    plans = {
        "dataset_name": "Dataset007_Probe",
        "plans_name": "nnUNetPlans",
        "image_reader_writer": "SimpleITKIO",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "foreground_intensity_properties_per_channel": {str(k): {} for k in range(len(channels))},
        "configurations": {"probe": configuration},
    }
    folder = folder / "Dataset007_Probe" / f"{trainer}__nnUNetPlans__probe"
    write_json(folder / "plans.json", plans)
    names = {str(k): name for k, name in enumerate(channels)}
    labels = {"background": 0, "whole tumour": 1}
    write_json(folder / "dataset.json", {"channel_names": names, "labels": labels, "file_ending": ".nii.gz"})
    for fold, limit in limits.items():
        network = Probe(len(channels), 2, False)
        with torch.no_grad():
            network.convolution.weight.zero_()
            network.convolution.bias.fill_(-limit)
            for (channel, *place), weight in (kernel or {(0, *HERE): 1.0}).items():
                network.convolution.weight[(0, channel, *place)] = weight
        checkpoint = {
            "network_weights": network.state_dict(),
            "trainer_name": trainer,
            "init_args": {"configuration": "probe"},
            "inference_allowed_mirroring_axes": (0, 1, 2),
        }
        (folder / f"fold_{fold}").mkdir()
        torch.save(checkpoint, folder / f"fold_{fold}" / "checkpoint_final.pth")
    return folder


def noise(seed: int) -> np.ndarray:
    """Voxels of 50 or 250."""
    return np.random.default_rng(seed).choice(np.array([50, 250], np.int16), SHAPE)


def labels(file: Path) -> np.ndarray:
    return np.asarray(nib.load(file).dataobj)


@pytest.fixture
def images(tmp_path: Path) -> dict[str, np.ndarray]:
    """Two images in a plain folder."""
    found = {"a_1": noise(1), "b": noise(2)}
    for name, image in found.items():
        write_nifti(tmp_path / "images" / f"{name}_0000.nii.gz", image, LPS)
    return found


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Prediction sets both for its process."""
    monkeypatch.setenv("nnUNet_extTrainer", "")
    monkeypatch.setenv("DEVICE", "cpu")


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., int]:
    """The command line in this process, on the folders `model` and `images`; returns the exit code."""

    def call(model: str = "model", images: str = "images", out: str = "out", *more: str) -> int:
        words = ["--model", tmp_path / model, "--images", tmp_path / images, "--out", tmp_path / out, *more]
        return main(["nnunet", "predict", *map(str, words)])

    return call


def test_other_kinds_of_files_and_two_of_one_name(tmp_path, run, capsys):
    """MetaImage is predicted as NIfTI is; two files for one channel that differ are refused."""
    write_model(tmp_path / "model", {"0": 150})
    write_nifti(tmp_path / "b_0000.nii.gz", noise(2), LPS)
    (tmp_path / "images").mkdir()
    sitk.WriteImage(sitk.ReadImage(tmp_path / "b_0000.nii.gz"), tmp_path / "images" / "b_0000.mha")
    assert run() == 0
    found = nib.load(tmp_path / "out" / "b.nii.gz")
    assert np.array_equal(np.asarray(found.dataobj), noise(2) > 150) and np.allclose(found.affine, LPS)
    write_nifti(tmp_path / "images" / "b_0000.nii.gz", noise(3), LPS)
    assert run() == 3
    assert "b_0000.nii.gz and b_0000.mha differ" in capsys.readouterr().err


def test_predictions_are_those_of_the_network(tmp_path, images, run):
    """Each voxel above the limit, on the grid of the image, and a description of the model beside."""
    folder = write_model(tmp_path / "model", {"0": 150})
    assert run() == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a_1.nii.gz", "b.nii.gz", "model.json"]
    for name, image in images.items():
        found = nib.load(tmp_path / "out" / f"{name}.nii.gz")
        assert np.array_equal(np.asarray(found.dataobj), image > 150) and np.allclose(found.affine, LPS)
    assert read_json(tmp_path / "out" / "model.json") == {
        "model": str(tmp_path / "model"),
        "trainer": "nnUNetTrainer",
        "checkpoints": {"fold_0/checkpoint_final.pth": sha256(folder / "fold_0" / "checkpoint_final.pth")},
        "images": {name: [sha256(tmp_path / "images" / f"{name}_0000.nii.gz")] for name in images},
    }


def test_what_is_there_is_kept(tmp_path, images, run, capsys):
    """One prediction missing: it alone is made; none missing: nothing is touched."""
    write_model(tmp_path / "model", {"0": 150})
    assert run() == 0
    first = snapshot(tmp_path / "out")
    (tmp_path / "out" / "b.nii.gz").unlink()
    (tmp_path / "out" / ".partial-killed").mkdir()
    assert run() == 0
    second = snapshot(tmp_path / "out", but="model.json")
    assert second["a_1.nii.gz"] == first["a_1.nii.gz"] and second["b.nii.gz"][1] == first["b.nii.gz"][1]
    assert not partial_files(tmp_path / "out")
    capsys.readouterr()
    assert run() == 0 and "all 2 predictions are there" in capsys.readouterr().out
    assert snapshot(tmp_path / "out", but="model.json") == second


def test_folds_together_and_alone(tmp_path, images, run):
    """Limits of 0 and 400 are together one of 200; alone, one takes all voxels and the other none."""
    write_model(tmp_path / "model", {"0": 0, "1": 400})
    assert run(out="both") == run("model", "images", "first", "--fold", "0") == 0
    assert run("model", "images", "second", "--fold", "1", "--checkpoint", "checkpoint_final") == 0
    found = [labels(tmp_path / out / "b.nii.gz").mean() for out in ("both", "first", "second")]
    assert found == [(images["b"] > 200).mean(), 1, 0]
    assert len(read_json(tmp_path / "both" / "model.json")["checkpoints"]) == 2


def test_layouts_and_channels(tmp_path):
    """FLAIR above T1 by 100, from a raw dataset, BraTS folders and a 4-D file whose channels stand in another order."""
    model = write_model(tmp_path / "model", {"0": 100}, {(0, *HERE): -1.0, (1, *HERE): 1.0}, ("T1", "FLAIR"))
    t1, flair = noise(3), noise(4)
    expected = flair.astype(int) - t1 > 100
    write_nifti(tmp_path / "raw/imagesTr/case_0000.nii.gz", t1, LPS)
    write_nifti(tmp_path / "raw/imagesTr/case_0001.nii.gz", flair, LPS)
    write_json(tmp_path / "raw/dataset.json", {"channel_names": {"0": "t1", "1": "T2-FLAIR"}})
    write_nifti(tmp_path / "brats/case/case_t1.nii.gz", t1, LPS)
    write_nifti(tmp_path / "brats/case/case_flair.nii.gz", flair, LPS)
    write_nifti(tmp_path / "msd/imagesTr/case.nii.gz", np.stack([flair, t1], axis=-1), LPS)
    description = {"modality": {"0": "FLAIR", "1": "T1w"}, "labels": {"0": "background", "1": "tumour"}}
    write_json(tmp_path / "msd/dataset.json", description)
    for layout in ("raw", "brats", "msd"):
        (file,) = predict_folder(model, tmp_path / layout, tmp_path / f"out_{layout}")
        assert file.name == "case.nii.gz" and np.array_equal(labels(file), expected), layout
    description = {"channel_names": {"0": "FLAIR", "1": "T1"}}
    write_json(tmp_path / "raw/dataset.json", description)
    with pytest.raises(DataError, match="has the channels FLAIR, T1, the model T1, FLAIR"):
        find_images(tmp_path / "raw", ("T1", "FLAIR"))


def write_job(folder: Path, arm: str, n: int, limit: float, seed: int = 0, done: bool = True) -> Path:
    """A job folder of ours with a model of our own trainer."""
    write_model(folder / "nnUNet_results", {"3": limit}, {(0, 1, 1, 2): 1.0}, trainer="SBLDMTrainer")
    train = [f"real__case{k}" for k in range(n)] + ["aug5__case0_1"]
    job = {"arm": arm, "seed": seed, "train": train, "n_real": len(train), "split": 0, "budget": {}}
    write_json(folder / "job.json", job)
    if done:
        write_json(folder / "done.json", {})
    return folder


def test_our_jobs(tmp_path, images, run):
    """Our trainer is found, the real cases are named, and images that lie otherwise than the pool's are turned.

    The network looks at a voxel's neighbour, so that the direction of the axes matters.
    """
    job = write_job(tmp_path / "table2/jobs/real+aug_n2", "real+aug", 2, 150)
    turned = nib.as_closest_canonical(nib.load(tmp_path / "images" / "b_0000.nii.gz"))
    assert nib.aff2axcodes(turned.affine) == ("R", "A", "S")
    write_nifti(tmp_path / "turned" / "b_0000.nii.gz", np.asarray(turned.dataobj), turned.affine)
    neighbour = np.pad(images["b"], ((0, 1), (0, 0), (0, 0)))[1:] > 150
    opposite = np.pad(images["b"], ((1, 0), (0, 0), (0, 0)))[:-1] > 150
    assert run("table2", "images", "upright") == 0
    description = read_json(tmp_path / "upright" / "model.json")
    assert (description["trainer"], description["arm"]) == ("SBLDMTrainer", "real+aug")
    assert description["train"] == ["case0", "case1"]
    assert np.array_equal(labels(tmp_path / "upright" / "b.nii.gz"), neighbour)
    assert run("table2", "turned", "unturned") == 0  # nothing says how the training images lay
    assert np.array_equal(labels(tmp_path / "unturned" / "b.nii.gz")[::-1, ::-1], opposite)
    write_nifti(job.parents[1] / "nnUNet_raw/Dataset007_Probe/imagesTr/real__case0_0000.nii.gz", noise(5), LPS)
    assert run("table2", "turned", "turned_back") == 0
    found = nib.load(tmp_path / "turned_back" / "b.nii.gz")
    assert np.array_equal(np.asarray(found.dataobj)[::-1, ::-1], neighbour) and np.allclose(found.affine, turned.affine)


def test_which_model(tmp_path):
    """Of a run the finished real-only job, with augmentation if there is one, with most cases; else the only model."""
    jobs = tmp_path / "run/table2/jobs"
    write_job(jobs / "pairs", "real+sbldm+aug", 9, 0)
    with pytest.raises(StateError, match=r"no job of real or real\+aug is finished.*sbldm nnunet eval --run.*--arms"):
        find_model(tmp_path / "run")
    write_job(jobs / "real", "real", 8, 1)
    assert find_model(tmp_path / "run").job == jobs / "real"
    for name, n, seed, done in (("few", 2, 0, True), ("many1", 5, 1, True), ("many0", 5, 0, True), ("no", 7, 0, False)):
        write_job(jobs / name, "real+aug", n, 2, seed, done)
    for place in ("run", "run/table2", "run/table2/jobs/many0", "run/table2/jobs/many0/nnUNet_results"):
        model = find_model(tmp_path / place)
        assert (model.job, model.folds) == (jobs / "many0", ("3",))
    with pytest.raises(StateError, match="this job is not finished"):
        find_model(jobs / "no")
    with pytest.raises(StateError, match=r"no checkpoint_final\.pth of fold 4; folds with it: 3"):
        find_model(jobs / "few", "4")
    with pytest.raises(InputError, match="holds 6 models"):
        find_model(jobs)
    (tmp_path / "empty").mkdir()
    with pytest.raises(StateError, match=r"no trained nnU-Net model here; train one: sbldm nnunet eval --run RUN"):
        find_model(tmp_path / "empty")


def test_another_model_or_image_needs_another_folder(tmp_path, images, run, capsys):
    """Predictions of two models never lie in one folder, nor those of an image that has been drawn anew."""
    write_model(tmp_path / "model", {"0": 150})
    write_model(tmp_path / "second", {"0": 160})
    assert run() == 0
    before = snapshot(tmp_path / "out")
    assert run("second") == 4 and "out: holds predictions of another model" in capsys.readouterr().err
    write_nifti(tmp_path / "images" / "b_0000.nii.gz", noise(9), LPS)
    assert run() == 4 and "holds predictions of other images than these (b)" in capsys.readouterr().err
    assert snapshot(tmp_path / "out") == before
    (tmp_path / "out" / "model.json").unlink()
    assert run() == 4 and "another model (unknown)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "code", "message"),
    [
        (lambda folder: shutil.rmtree(folder / "images"), 2, "images: no such folder"),
        (lambda folder: [path.unlink() for path in (folder / "images").iterdir()], 3, "images: no case found"),
        (
            lambda folder: os.link(folder / "images/b_0000.nii.gz", folder / "images/b_0001.nii.gz"),
            3,
            "b has 2 channels",
        ),
        (lambda folder: (folder / "images/b_0000.nii.gz").write_bytes(b"\x1f\x8b"), 3, "b_0000.nii.gz: cannot be read"),
        (lambda folder: shutil.rmtree(folder / "model"), 2, "model: no such folder"),
        (lambda folder: shutil.rmtree(next((folder / "model").rglob("fold_0"))), 4, "no trained nnU-Net model here"),
        (lambda folder: next((folder / "model").rglob("*.pth")).write_bytes(b""), 4, "nnU-Net cannot load this model"),
        (lambda folder: (folder / "list.txt").write_text("b\nc\n"), 3, "1 of 2 cases asked for are not in"),
    ],
)
def test_errors(tmp_path, images, run, capsys, change, code, message):
    """One line that names what is wrong, its exit code, and no half-written prediction."""
    write_model(tmp_path / "model", {"0": 150})
    (tmp_path / "list.txt").write_text("b\n")
    change(tmp_path)
    assert run("model", "images", "out", "--cases", tmp_path / "list.txt") == code
    assert message in capsys.readouterr().err.splitlines()[-1]
    assert not list((tmp_path / "out").glob("*.nii.gz")) and not partial_files(tmp_path)


def test_a_missing_trainer_is_named(tmp_path, images, run, capsys):
    """The model of somebody's own trainer says which one, and where nnU-Net looks for it."""
    write_model(tmp_path / "model", {"0": 150}, trainer="TrainerOfSomebody")
    assert run() == 4
    error = capsys.readouterr().err
    assert "TrainerOfSomebody" in error and "nnUNet_extTrainer" in error
