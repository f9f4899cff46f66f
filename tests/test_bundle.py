"""The folder `bundle/` is a MONAI bundle: its metadata, its configs, and MONAI's own commands."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import urllib.request
import zipfile
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from conftest import BUNDLE, call, copy_run, snapshot
from monai.bundle import ConfigParser, ConfigWorkflow, verify_metadata, verify_net_in_out

from sbldm.networks import StackVAE, as_built, build_autoencoder, build_denoiser
from sbldm.run import folder
from sbldm.run.errors import StateError, mendable
from sbldm.run.folder import Run, load_preset
from sbldm.run.models import MODELS, configs_of
from sbldm.synthesis import Model
from sbldm.training.checkpoints import load_checkpoint

pytestmark = pytest.mark.filterwarnings("ignore:No hash value provided")
SCHEMA = Path(__file__).with_name("metadata_schema.json")
METADATA = json.loads((BUNDLE / "configs" / "metadata.json").read_text())
STAGE_1 = "['configs/common.yaml','configs/train_autoencoder.yaml']"
CONFIGS = sorted((BUNDLE / "configs").glob("*.yaml"))


@pytest.fixture(autouse=True)
def in_bundle(monkeypatch: pytest.MonkeyPatch) -> None:
    """As documented: the commands are typed in the bundle folder. Nothing here may use the network."""
    monkeypatch.chdir(BUNDLE)

    def offline(*_: Any, **__: Any) -> None:
        raise AssertionError("this needs the network")

    monkeypatch.setattr(urllib.request, "urlopen", offline)
    monkeypatch.setattr(urllib.request, "urlretrieve", offline)


def workflow(run: Path, config: str, kind: str, **values: Any) -> ConfigWorkflow:
    """A config of the bundle on a run folder."""
    files = [f"configs/{name}.yaml" for name in (("inference",) if kind == "inference" else ("common", config))]
    shared = {"meta_file": "configs/metadata.json", "logging_file": "configs/logging.conf"}
    return ConfigWorkflow(files, workflow_type=kind, run_dir=str(run), **shared, **values)


# --- metadata -------------------------------------------------------------------------------------------------------


def test_metadata() -> None:
    """MONAI's check passes without a network, on rules of our own writing."""
    before = SCHEMA.read_bytes()
    verify_metadata(meta_file="configs/metadata.json", filepath=str(SCHEMA))
    assert SCHEMA.read_bytes() == before


@pytest.mark.parametrize(
    "change",
    [
        {"authors": None},
        {"version": "one"},
        {"network_data_format": {"inputs": {}}},
        {"optional_packages_version": {}},
        {"autoencoder_data_format": {"inputs": {"image": {"type": "image"}}, "outputs": {"pred": {}}}},
    ],
)
def test_metadata_rules_bite(tmp_path: Path, change: dict[str, Any]) -> None:
    """A metadata file with something missing or wrong is refused by the same rules."""
    changed = {key: value for key, value in (METADATA | change).items() if value is not None}
    (tmp_path / "metadata.json").write_text(json.dumps(changed))
    with pytest.raises(ValueError, match="Failed validating"):
        verify_metadata(meta_file=str(tmp_path / "metadata.json"), filepath=str(SCHEMA))


def test_versions() -> None:
    """The version is the package's and stands in the changelog."""
    assert METADATA["version"] == version("sbldm") and METADATA["version"] in METADATA["changelog"]


def test_metadata_agrees_with_the_small_preset() -> None:
    """Channels and shapes are those of the networks that the default preset builds, and they accept such input."""
    preset = load_preset("small")
    x, y, z = preset.grid.size
    with torch.device("meta"):
        autoencoder, denoiser = build_autoencoder(preset), build_denoiser(preset)
        channels, depth = preset.all_channels, preset.autoencoder.network.aggregation
        slices, position = torch.zeros(depth, channels, x, y), torch.zeros(depth, dtype=torch.long)
        latents, _ = autoencoder.encode(slices, position, depth)
        stacked = torch.zeros(1, *latents.shape[1:4], z // depth)
        predicted = denoiser(stacked, position[:1], torch.zeros(1, 9))
        decoded = autoencoder.decode(latents, position, depth)

    def shape(network: str, side: str, name: str) -> tuple[int, ...]:
        entry = METADATA[f"{network}_data_format"][side][name]
        return (entry["num_channels"], *entry["spatial_shape"])

    assert shape("autoencoder", "inputs", "image") == tuple(slices.shape[1:]) == (2, 64, 80)
    assert shape("autoencoder", "outputs", "pred") == tuple(decoded.shape[1:])
    assert shape("network", "inputs", "image") == tuple(stacked.shape[1:]) == (8, 16, 20, 24)
    assert shape("network", "outputs", "pred") == tuple(predicted.shape[1:])
    assert shape("network", "inputs", "context") == (9,)
    assert METADATA["network_data_format"]["inputs"]["timesteps"]["value_range"] == [0, 999]
    assert preset.diffusion.schedule.steps == 1000


def test_metadata_agrees_with_the_shipped_network() -> None:
    """MONAI's own check of input and output, which bites, on the network that draws from the shipped weights."""

    def verify(**changes: Any) -> None:
        verify_net_in_out(
            "network_def",
            meta_file="configs/metadata.json",
            config_file="configs/inference.yaml",
            extra_forward_args={"timesteps": torch.tensor([500]), "context": torch.zeros(1, 9)},
            weights="shipped",
            **changes,
        )

    verify()
    with pytest.raises(ValueError, match="output channel number `8`"):
        verify(**{"_meta_::network_data_format::outputs::pred::num_channels": 7})


# --- presets and configs --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["demo", "small", "fast", "paper"])
def test_presets(name: str) -> None:
    """Each builds both networks, whose shapes fit together on its grid, and a whole number of epochs."""
    preset = load_preset(name)
    assert preset.name == name
    with torch.device("meta"):
        autoencoder, denoiser = build_autoencoder(preset), build_denoiser(preset)
        x, y, depth = preset.grid.size
        slices, position = torch.zeros(depth, autoencoder.in_channels, x, y), torch.zeros(depth, dtype=torch.long)
        if isinstance(autoencoder, StackVAE):
            volume, _ = autoencoder.encode(slices, position, depth)
        else:
            volume = autoencoder.encode(slices, position)[0].movedim(0, -1)[None]
        assert volume.shape == (1, *preset.latent_shape)
        assert denoiser(volume, torch.zeros(1, dtype=torch.long), torch.zeros(1, 9)).shape == volume.shape
    for stage in (preset.autoencoder, preset.diffusion):
        assert stage.iterations % stage.iterations_per_epoch == 0
        assert 0 < stage.warm_up < stage.iterations


def test_every_config_has_run() -> None:
    """MONAI's default run id, beside one with a name of its own that does the same."""
    assert [path.stem for path in CONFIGS] == [
        "common",
        "inference",
        "multi_gpu",
        "train_autoencoder",
        "train_diffusion",
    ]
    for path in CONFIGS[:2]:
        config = yaml.safe_load(path.read_text())
        assert config["run"] == ("%synthesis" if path.stem == "inference" else "%training")
        assert config["run"][1:] in config and config["bundle_root"] == "."


@pytest.mark.parametrize(
    ("config", "kind"), [("train_autoencoder", "train"), ("train_diffusion", "train"), ("inference", "inference")]
)
def test_properties(trained_run: Path, config: str, kind: str) -> None:
    """MONAI finds every property that it requires of a training or an inference workflow."""
    flow = workflow(trained_run, config, kind, **({"n": 1} if kind == "inference" else {}))
    flow.initialize()
    assert flow.check_properties() == []


@pytest.mark.parametrize("config", ["train_autoencoder", "train_diffusion"])
def test_run_of_another_preset(trained_run: Path, config: str) -> None:
    """An overlay with another preset than the run's own is refused, and writes nothing."""
    before = snapshot(trained_run, but="")
    flow = workflow(trained_run, config, "train", preset=load_preset("demo"))
    flow.initialize()
    with pytest.raises(Exception) as caught:
        flow.run()
    known = mendable(caught.value)
    assert isinstance(known, StateError)
    assert "was prepared with the preset 'tiny' and other values than those given; leave the preset out" in str(known)
    assert snapshot(trained_run, but="") == before


# --- MONAI's command line -------------------------------------------------------------------------------------------


def bundle(*arguments: str) -> subprocess.CompletedProcess:
    """Run `python -m monai.bundle run ...` in the bundle folder."""
    command = [sys.executable, "-m", "monai.bundle", "run", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, cwd=BUNDLE)


def test_training_by_monai(tmp_path: Path, trained_run: Path) -> None:
    """The documented training command; on a finished run it says so and leaves every checkpoint."""
    run = copy_run(trained_run, tmp_path)
    before = snapshot(run)
    done = bundle("training", "--config_file", STAGE_1, "--run_dir", str(run))
    assert done.returncode == 0, done.stderr
    assert f"{run}/autoencoder: already trained (200 iterations)" in done.stdout
    assert snapshot(run) == before


def train(run: Path, config: str, **values: Any) -> None:
    """One training by MONAI's workflow."""
    flow = workflow(run, config, "train", **values)
    flow.initialize()
    flow.run()
    flow.finalize()


def refused(run: Path, config: str, **values: Any) -> str:
    """What is said of a training that does not begin."""
    with pytest.raises(Exception) as caught:
        train(run, config, **values)
    return str(mendable(caught.value))


def test_networks_are_blocks(tmp_path: Path, prepared_run: Path) -> None:
    """Arguments of a network that are overridden hold for all steps after; what cannot be is refused, and why."""
    preset, few = Run.at(prepared_run).preset, {"iterations": 20, "iterations_per_epoch": 10}
    short = {stage: preset.stage(stage).but(**few).state() for stage in preset.stages}
    run = copy_run(prepared_run, tmp_path, **short)
    before = snapshot(run)
    for name, value, said in (
        (
            "chanels",
            [8, 16],
            "network_def: SliceVAE got an unexpected keyword argument 'chanels'; known are in_channels, channels",
        ),
        ("in_channels", 3, "network_def::in_channels: follows from the run, 2; leave it out (free are: channels, "),
        ("position_embedding", 1, "network_def: autoencoder.network.position_embedding: must not be 1"),
        ("_target_", "sbldm.networks.StackVAE", "network_def: StackVAE got an unexpected keyword argument 'groups'"),
    ):
        assert said in refused(run, "train_autoencoder", **{f"network_def::{name}": value})
    assert snapshot(run) == before

    train(run, "train_autoencoder", **{"network_def::channels": [8, 16], "network_def::latent_channels": 2})
    assert "'autoencoder' differs" in refused(run, "train_autoencoder", **{"network_def::channels": [4, 8]})
    assert "2 channels need 1 strides, not 0" in refused(run, "train_diffusion", **{"network_def::strides": []})
    train(run, "train_diffusion", **{"network_def::channels": [4, 8], "network_def::picture::_disabled_": False})
    held = Run.at(run).preset
    assert (held.autoencoder.network.channels, held.diffusion.network.channels) == ([8, 16], [4, 8])
    assert held.diffusion.network.picture and held.latent_shape[0] == 2
    for stage in held.stages:
        assert load_checkpoint(Run.at(run).checkpoint(stage), stage)["preset"].stage(stage) == held.stage(stage)
    assert call("train", "--run", run).stdout.count("already trained") == 2  # without a word of it
    model = Model.load(str(run), torch.device("cpu"))
    assert model.network.built["channels"] == [4, 8] and model.network.picture.std.min() < 1
    drawn = model.sampler()(torch.zeros(1, 9), model.network, [0])
    assert model.decode(drawn[0]).shape == (2, 24, 32, 16)


def test_configs_of_another_kind(tmp_path: Path, prepared_run: Path) -> None:
    """Those that the preset needs are named."""
    run = copy_run(prepared_run, tmp_path, **{"autoencoder": load_preset("small").autoencoder.but(crop=None).state()})
    said = refused(run, "train_autoencoder")
    assert "autoencoder.kind of the preset 'tiny' is stack, and these configs are for slice; take --config_file" in said
    assert said.endswith("'configs/train_autoencoder.yaml','configs/overlays/stacks.yaml']\", or call `sbldm train`.")


@pytest.mark.parametrize(
    ("model", "name"), [(m, n) for m in MODELS for n in ("demo", "small", "paper") if MODELS[m].stages]
)
def test_blocks_are_the_presets_networks(model: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The configs of each training build what the preset says, so that nothing but an override is kept with the run."""
    preset = load_preset(name, model)
    monkeypatch.setattr(folder, "read_preset", lambda run_dir: preset)
    for stage in preset.stages:
        parser = ConfigParser()
        parser.read_config([f"configs/{config}.yaml" for config in configs_of(preset, stage)])
        parser["store"] = SimpleNamespace(constants={"normaliser": {"mean": [0.0] * 9, "std": [1.0] * 9}})
        with torch.device("meta"):
            assert as_built(preset, stage, parser.get_parsed_content("network_def")) is preset


def test_inference_by_monai(tmp_path: Path, trained_run: Path) -> None:
    """The documented inference command draws a pair."""
    run = copy_run(trained_run, tmp_path)
    files = "configs/inference.yaml"
    done = bundle("synthesis", "--config_file", files, "--run_dir", str(run), "--n", "1", "--gate", "off")
    assert done.returncode == 0, done.stderr
    labels = list(run.glob("nnUNet_raw/Dataset501_SBLDM/labelsTr/*"))
    assert [path.name for path in labels] == ["SBLDM_000000.nii.gz"]


def test_wrong_preset_by_monai(tmp_path: Path, prepared_run: Path) -> None:
    """Also through MONAI's command a hostile preset of a run is data: said in one line, never run."""
    run, mark = copy_run(prepared_run, tmp_path, name=f"$__import__('pathlib').Path('{tmp_path}/ran').touch()"), "ran"
    done = bundle("--config_file", STAGE_1, "--run_dir", str(run))
    assert done.returncode != 0 and not (tmp_path / mark).exists()
    assert "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith(f"Error: {run}/preset.yaml: preset.name: ")


def test_a_wheel_holds_the_bundle(tmp_path: Path) -> None:
    """Installed from it, without these folders, the commands miss no module, config, preset or weights."""
    pytest.importorskip("setuptools", minversion="77")
    source = tmp_path / "source"
    for name in ("bundle", "nnunet_integration"):
        shutil.copytree(BUNDLE.parent / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(BUNDLE.parent / name, source)
    asked = ["wheel", "-q", "--no-deps", "--no-build-isolation", "-w", tmp_path, source]
    subprocess.run([sys.executable, "-m", "pip", *asked], check=True, timeout=300)
    held = set(zipfile.ZipFile(next(tmp_path.glob("*.whl"))).namelist())
    places = {"bundle/sbldm": "sbldm", "bundle/configs": "sbldm/configs", "bundle/models": "sbldm/models"}
    for here, there in (places | {"nnunet_integration": "nnunet_integration"}).items():
        files = [path.relative_to(source / here) for path in (source / here).rglob("*") if path.is_file()]
        assert files and {f"{there}/{file}" for file in files} - held <= {"nnunet_integration/README.md"}
