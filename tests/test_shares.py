"""Tissues asked for by their share of a tumour: from prepared cases to pairs, scores and refusals, in a tiny run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
import yaml
from conftest import TINY, call, copy_run, one_line
from test_synthesis import manifest

from sbldm.cases.layouts import Source, find_cases
from sbldm.cases.lists import read_lists
from sbldm.cases.prepare import read_sidecar
from sbldm.evaluation.evaluate import evaluate
from sbldm.evaluation.protocols import protocol
from sbldm.evaluation.settings import Settings
from sbldm.pages.figures import _Found, _requests
from sbldm.run.folder import Run
from sbldm.run.manifest import Manifest
from sbldm.synthesis import Model, blending, pairs
from sbldm.training import LatentStore
from sbldm.tumour.characteristics import NAMES, SHARES

THREE = {"necrotic": "necrotic", "oedema": "oedema", "enhancing": "enhancing"}


@pytest.fixture(scope="module", autouse=True)
def lenient() -> Iterator[None]:
    """So short a training draws masks that reach out of the brain; here they are pairs all the same."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (pairs, blending):
            patch.setattr(module, "OUTSIDE", 1.0)
        yield


@pytest.fixture(scope="module")
def tissues(lenient: None, tmp_path_factory: pytest.TempPathFactory, phantom_cases: Path) -> Path:
    """A tiny run of three tissues, trained within regions too, with three pairs in which shares were asked for."""
    folder = tmp_path_factory.mktemp("tissues")
    content = yaml.safe_load(Path(TINY).read_text())
    preset = content["preset"]
    preset["data"] |= {"labels": THREE, "regions": True}
    preset["autoencoder"]["nested"] = preset["diffusion"]["network"]["picture"] = True
    preset["autoencoder"]["iterations"] = preset["diffusion"]["iterations"] = 120
    few = {"iterations": 40, "iterations_per_epoch": 20, "learning_rate": 2.0e-3, "warm_up": 5}
    preset["regions"] = few | {"tumour": 0.65, "whole": 0.3, "guidance": 1.2, "healing": 1.5}
    (folder / "preset.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    run = folder / "run"
    for words in (
        ("train", "--run", run, "--data", phantom_cases, "--preset", folder / "preset.yaml"),
        ("train", "regions", "--run", run),
        ("synth", "--run", run, "--n", 3, "--core-percent", 40, "--enhancing-percent", 20, "--volume-ml", 120),
    ):
        done = call(*words)
        assert done.returncode == 0, done.stderr
    return run


def shares_of(labels: Path) -> list[float]:
    """Per cent of tumour core and enhancing tumour in a label file of `THREE`."""
    values = np.asarray(nib.load(labels).dataobj)
    return [100 * np.isin(values, numbers).sum() / (values > 0).sum() for numbers in ((1, 3), (3,))]


def test_shares_are_asked_for_and_measured(tissues: Path) -> None:
    """In the manifest beside the nine, as asked and as the written labels have them; the checkpoint knows them."""
    model = Model.load(str(tissues), torch.device("cpu"))
    assert model.tumours.names == model.source.characteristics == (*NAMES, *SHARES.values())
    assert len(model.normaliser.mean) == 11 and model.network.built["condition_size"] == 11
    held = [read_sidecar(tissues / "prepared", name)["characteristics"] for name in read_lists(tissues)["train"]]
    np.testing.assert_array_equal(model.tumours.shares.percents, [[s[name] for name in SHARES.values()] for s in held])
    rows = manifest(tissues)
    for row in rows:
        assert (row["requested_core_percent"], row["requested_enhancing_percent"]) == ("40.0", "20.0")
        own = shares_of(tissues / "nnUNet_raw" / "Dataset501_SBLDM" / "labelsTr" / f"{row['pair']}.nii.gz")
        measured = [float(row[f"measured_{name}"]) for name in SHARES.values()]
        assert measured == pytest.approx(own, abs=0.006)
    assert (
        (tissues / "prepared" / "characteristics.csv").read_text().startswith(f"case,{','.join(model.tumours.names)}")
    )


def test_tumours_with_shares_go_into_real_brains(tissues: Path) -> None:
    done = call(*("synth", "--run", tissues, "--n", 2, "--dataset", 502, "--canvas", "train", "--core-percent", 30))
    assert done.returncode == 0, done.stderr
    for row in manifest(tissues, Path("nnUNet_raw/Dataset502_SBLDM")):
        assert row["requested_core_percent"] == "30.0" and 0 <= float(row["requested_enhancing_percent"]) <= 30
        assert 0 <= float(row["measured_enhancing_percent"]) <= float(row["measured_core_percent"]) <= 100


def test_shares_that_cannot_be_asked_for(tissues: Path, trained_run: Path, tmp_path: Path) -> None:
    """One line each: of one label, more than the core, beyond 100 %; on the command line and in a table."""
    asked = "synth", "--run", tissues, "--n", 1, "--dataset", 503
    said = one_line(call(*asked, "--core-percent", 20, "--enhancing-percent", 30), 2)
    assert "enhancing_percent=30 is more than core_percent=20, of which it is a part" in said
    assert "--core-percent 101: must be a number from 0 to 100" in one_line(call(*asked, "--core-percent", 101), 2)
    (tmp_path / "table.csv").write_text("core_percent,volume_ml\n120,30\n")
    said = one_line(call(*asked, "--requests", tmp_path / "table.csv"), 2)
    assert "line 2, column core_percent: core_percent=120 must lie from 0 to 100" in said
    asked = "synth", "--run", trained_run, "--n", 1, "--dataset", 503
    said = one_line(call(*asked, "--core-percent", 20), 2)
    assert "core_percent: this model knows no such share: its labels do not tell the tissue apart" in said


def test_requests_for_shares_are_scored(tissues: Path, phantom_cases: Path, tmp_path: Path) -> None:
    """Against the written labels, in percentage points; in the figure beside the nine."""
    dataset = tissues / "nnUNet_raw" / "Dataset501_SBLDM"
    source = Source.from_config(["flair"], THREE, regions=True)
    cases = find_cases(phantom_cases, source)
    own = {"groups": ("requests",), "manifest": Manifest(dataset), "workers": 1}
    found = evaluate(Settings(find_cases(dataset, source), cases[:2], cases[2:4], source, tmp_path, tmp_path, **own))
    scores = {score.protocol: score for score in found.scores}
    own = np.array([shares_of(path) for path in sorted((dataset / "labelsTr").iterdir())])
    part = "" if "request.core_error" in scores else ".extrapolated"
    assert scores[f"request.core_error{part}"].value == pytest.approx(np.median(np.abs(own[:, 0] - 40)), abs=1e-6)
    assert scores[f"request.enhancing_error{part}"].value == pytest.approx(np.median(np.abs(own[:, 1] - 20)), abs=1e-6)
    assert protocol("request.core_error")["title"].startswith("Share of tumour core, error in percentage points")
    assert found.arrays[f"requested{part}"].shape == (3, 11)
    titles = [panel.get_title().replace("\n", " ") for panel in _requests(_Found(found.arrays, scores, [])).axes]
    assert titles[9:] == ["share of tumour core (%)", "share of enhancing tumour (%)", ""]


def test_mirrored_and_deformed_tumours_keep_their_shares(tissues: Path, tmp_path: Path) -> None:
    diffusion = Run.at(tissues).preset.diffusion.state() | {"deformed": 1}
    run = copy_run(tissues, tmp_path, leave_out="latents diffusion regions", mirror=True, diffusion=diffusion)
    preset, lists, volumes = Run.at(run).preset, read_lists(run), []
    LatentStore.build(str(run), preset, lists, torch.device("cpu"))
    for name in lists["train"]:
        with np.load(run / "latents" / f"{name}.npz") as arrays:
            values = arrays["characteristics"]
        assert values.shape == (4, 11)
        volumes.append(len(np.unique(values[:, 0])))
        held = read_sidecar(run / "prepared", name)["characteristics"]
        np.testing.assert_array_equal(values[:, 9:], [[held[name] for name in SHARES.values()]] * 4)
        np.testing.assert_array_equal(values[:2, 3], -values[2:, 3])
    assert max(volumes) == 2, "copies are deformed"


def test_a_model_from_before_there_were_shares_draws(tissues: Path, tmp_path: Path) -> None:
    """Its conditions are nine; it knows no share, but those of its pairs are measured."""
    run = copy_run(tissues, tmp_path, leave_out="nnUNet_raw latents")
    path = run / "diffusion" / "best.pt"
    content = torch.load(path, weights_only=True)
    for weights in (content["network"], content["early"] or {}):
        if weights:
            weights["condition.0.weight"] = weights["condition.0.weight"][:, :9].clone()
    constants = content["constants"]
    constants["normaliser"] = {key: values[:9] for key, values in constants["normaliser"].items()}
    del constants["tumours"]["shares"]
    torch.save(content, path)
    done = call("synth", "--run", run, "--n", 1, "--volume-ml", 120)
    assert done.returncode == 0, done.stderr
    (row,) = manifest(run)
    assert "requested_core_percent" not in row and 0 <= float(row["measured_core_percent"]) <= 100
    said = one_line(call("synth", "--run", run, "--n", 1, "--dataset", 502, "--core-percent", 20), 2)
    assert "or an older version trained it" in said
