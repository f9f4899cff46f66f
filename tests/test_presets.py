"""Presets, budgets' and arms' common ground: typed values, read without surprises, never executed."""

from __future__ import annotations

import itertools
import random
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from conftest import TINY, call, copy_run, one_line, snapshot

from sbldm.networks import build_autoencoder, build_denoiser, build_discriminator, build_generator
from sbldm.run import folder
from sbldm.run.errors import InputError, StateError
from sbldm.run.folder import PRESETS, Run, load_preset
from sbldm.run.models import MODELS
from sbldm.run.preset import Preset
from sbldm.run.schema import read_yaml

SMALL = (Path(__file__).parent / "slices.yaml").read_text()
LSGAN = yaml.safe_dump({"preset": load_preset("small", "lsgan").state()}, sort_keys=False)
FAST = (PRESETS / "fast.yaml").read_text()
LDM = yaml.safe_dump({"preset": load_preset("small", "ldm3d").state()}, sort_keys=False)


def own(folder: Path, before: str, after: str, text: str = SMALL) -> Path:
    """A preset of one's own: another one with one change."""
    assert before in text
    path = folder / "own.yaml"
    path.write_text(text.replace(before, after, 1))
    return path


# --- what is refused, and how it is said ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("[0.5, 99.8]", "[99.8, .5]", r"intensity: percentiles \[99.8, 0.5\]: the first must be below the second"),
        ("[0.5, 99.8]", "[-1, 101]", r"percentiles.0: -1 should be greater than or equal to 0 \(and 1 more\)"),
        ("floor: 0.1", "floor: 2", "intensity.floor: 2 should be less than or equal to 0.5"),
        ("[0.5, 99.8]", "[0, 1e-300]", "they must be 10 apart at least"),
        ("model: sbldm", "model: [sbldm]", r"model: \['sbldm'\] is no name"),
        ("name: small", "name: !!timestamp x", "is not readable as YAML"),
        ("condition_dropout: 0.1", "condition_dropout: 2", "condition_dropout: 2 should be less than or equal to 1"),
        ("mirror: true", "mirror: 'no'", "mirror: 'no' should be a valid boolean"),
        ("learning_rate: 1.0e-3", "learning_rate: fast", "autoencoder.learning_rate: 'fast' should be a valid number"),
        ("learning_rate: 1.0e-3", "learning_rate: .nan", "autoencoder.learning_rate: nan should be a finite number"),
        ("learning_rate: 1.0e-3", "learning_rate: -1", "autoencoder.learning_rate: -1 should be greater than 0"),
        (
            "prediction: v_prediction",
            "prediction: magic",
            "'magic' should be 'epsilon', 'v_prediction' or 'sample'",
        ),
        ("prediction: v_prediction", "prediction: v-prediction", r"\(did you mean v_prediction\?\)"),
        ("ema_decay: 0.999", "ema_decay: 1.5", "diffusion.ema_decay: 1.5 should be less than 1"),
        (
            "sampler: ddim",
            "sampler: euler",
            "sampling.sampler: 'euler' should be 'ddim', 'ddpm', 'dpm_solver'",
        ),
        ("sampler: ddim", "sampler: ddpm", "sampling.sampler ddpm needs all 1000 steps and eta 1"),
        ("ddim, steps: 50, eta: 0.0", "unipc, steps: 9, eta: 0.5", "eta must be 0 for sampler unipc, which takes no"),
        ("steps: 50", "steps: 1001", "sampling.steps 1001 must not be above diffusion.schedule.steps"),
        ("latent: mean", "latent: means", r"'means' should be 'mean' or 'sample' \(did you mean mean\?\)"),
        ("beta_start: 0.002", "beta_start: 0.2", "beta_start must not be above beta_end"),
        ("batch_size: 16", "batch_size: 0", "autoencoder.batch_size: 0 should be greater than or equal to 1"),
        ("batch_size: 16", "batch_size: '16'", "autoencoder.batch_size: '16' should be a valid integer"),
        ("batch_size: 16", "batch_size: true", "autoencoder.batch_size: True should be a valid integer"),
        ("batch_size: 16", "batch_sise: 16", r"autoencoder.batch_sise is unknown \(did you mean batch_size\?\)"),
        ("batch_size: 16", "batch_size: 16\n    batch_size: 4", "'batch_size' stands there twice"),
        (
            "iterations_per_epoch: 200",
            "iterations_per_epoch: 300",
            "iterations must be a multiple of iterations_per_epoch, as 5400 is",
        ),
        (
            "iterations_per_epoch: 200",
            "iterations_per_epoch: 5601",
            "iterations must not be below iterations_per_epoch",
        ),
        ("warm_up: 100 ", "warm_up: -1 ", "warm_up: -1 should be greater than or equal to 0"),
        ("strides: [2, 2]", "strides: [2]", "3 levels of channels need 2 strides, not 1"),
        ("strides: [2, 2]", "strides: [2, 3]", "strides.1: 3 must be 1 or 2"),
        ("[32, 96, 160]", "[1, 96, 160]", "channels: the first must not be 1"),
        ("position_embedding: 32", "position_embedding: 1", "position_embedding: must not be 1"),
        ("[64, 80, 48]", "[64, 80]", "grid.size: .* at least 3 items"),
        ("[64, 80, 48]", "[66, 80, 48]", r"grid.size \[66, 80, 48\] must be divisible by \[16, 16, 4\]"),
        ("[64, 80, 48]", "[16, 16, 4]", r"grid: size \[16, 16, 4\] over fov_mm .* makes voxels of 10 x 12.5 x 38 mm"),
        ("[160, 200, 152]", "[.16, .2, .152]", "fov_mm.0: 0.16 should be greater than or equal to 50"),
        ("channels: [flair]", "channels: flair", "data.channels: 'flair' should be a valid list"),
        ("channels: [flair]", "channels: [flair, flair]", "must name each once"),
        ("channels: [flair]", "channels: [flare]", r"\(did you mean flair\?\)"),
        ("whole tumour: all", "whole tumour: some", "'some' must be `all`, or a list of necrotic, oedema, enhancing"),
        ("whole tumour: all", "no: all", "data.labels.*False should be a valid string"),
        ("whole tumour: all", "'a#b': all", "'a#b' should have letters, digits"),
        ("mirror: true", "mirror: true\n  gan: {}", "gan is unknown; known are name, model, minutes, data"),
        (
            "  autoencoder:\n",
            "  autoencoder:\n    kind: monai\n",
            "kind: 'monai' should be 'slice' or 'stack'",
        ),
        ("minutes: 58", "minutes: 1:30", "minutes: '1:30' should be a valid number"),
        ("preset:", "run: $exit()\npreset:", r"run: '\$exit\(\)' is an expression"),
        ("preset:", "lists: x\npreset:", "lists stands beside `preset`, where nothing else is read"),
        ("preset:", "presets:", "is no preset; its values stand below the key `preset`"),
        ("preset:", "preset: [", "is not readable as YAML"),
    ],
)
def test_refused(tmp_path: Path, before: str, after: str, message: str) -> None:
    """Each wrong value is named with what it should be, in one line, before anything is written."""
    path = own(tmp_path, before, after)
    with pytest.raises(InputError, match=message) as caught:
        load_preset(str(path))
    assert str(caught.value).startswith(f"{path}: ") and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "before", "after", "message"),
    [
        (LSGAN, "layers: 3", "layers: 5", r"grid.size \[64, 80, 48\] must be at least \[96, 96, 96\]"),
        (LSGAN, "clip: 5.0", "clip: 0", "gan.clip: 0 should be greater than 0"),
        (LSGAN, "sampling: {}", "sampling: {steps: 5}", "sampling.steps is unknown"),
        (LDM, "head_channels: 32", "head_channels: 30", "head_channels 30 must divide every number of channels"),
        (LDM, "kind: monai", "kind: slice", "autoencoder.kind: 'slice' should be 'volume' or 'monai'"),
        (LDM, "kind: monai\n", "kind: volume\n", "num_res_blocks is unknown"),
    ],
)
def test_refused_of_rivals(tmp_path: Path, text: str, before: str, after: str, message: str) -> None:
    """The same for the presets of other models."""
    with pytest.raises(InputError, match=message):
        load_preset(str(own(tmp_path, before, after, text)))


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("parts: 2", "parts: 3", "parts 3 must divide the 8 pixels of a cell's side"),
        ("parts: 2", "parts: 0", "anchor_weight must be 0 where network.parts is 0"),
        ("parts: 2", "parts: 4", r"latent_channels must be 32 at least, not 8: 2 channels x network.parts 4 x 4"),
        ("depth: 8", "depth: 9", "depth 9 must be a multiple of network.aggregation 4"),
        ("crop: [96, 96]", "crop: [90, 96]", r"autoencoder.crop \[90, 96\] must be divisible by 8"),
    ],
)
def test_refused_of_stacks(tmp_path: Path, before: str, after: str, message: str) -> None:
    """The same for latents that slices share."""
    with pytest.raises(InputError, match=message):
        load_preset(str(own(tmp_path, before, after, FAST)))


@pytest.mark.parametrize(
    ("text", "value"),
    [("5e-3", 0.005), ("1E-4", 0.0001), ("1.0e-06", 1e-6), (".5", 0.5), ("1", 1), ("0.002", 0.002)],
)
def test_numbers(tmp_path: Path, text: str, value: float) -> None:
    """Numbers are those of YAML 1.2: `5e-3`, which YAML 1.1 takes for a text, is one."""
    preset = load_preset(str(own(tmp_path, "learning_rate: 1.0e-3", f"learning_rate: {text}")))
    assert preset.autoencoder.learning_rate == value
    assert not isinstance(preset.autoencoder.learning_rate, str)


def test_yaml_surprises(tmp_path: Path) -> None:
    """Neither octal nor sexagesimal numbers; a byte order mark is no part of the first key."""
    path = tmp_path / "x.yaml"
    path.write_bytes(b"\xef\xbb\xbfa: 010\nb: 1:30\nc: [1, 2.5, -3, +4, 1_000]\n")
    assert read_yaml(path, "a test") == {"a": 10, "b": "1:30", "c": [1, 2.5, -3, 4, "1_000"]}


def test_many_aliases(tmp_path: Path) -> None:
    """What a few lines of aliases stand for a billion times is looked at once."""
    lines = ["a0: &a0 [x]", *(f"a{k}: &a{k} [{', '.join([f'*a{k - 1}'] * 10)}]" for k in range(1, 10))]
    (tmp_path / "own.yaml").write_text("\n".join([*lines, "b: '$exit()'"]))
    with pytest.raises(InputError, match=r"b: '\$exit\(\)' is an expression"):
        read_yaml(tmp_path / "own.yaml", "a test")


@pytest.mark.parametrize(("name", "nearly"), [("smal", "small"), ("papr", "paper")])
def test_nearest_preset(name: str, nearly: str) -> None:
    """A misspelt preset or model is answered with the nearest one."""
    with pytest.raises(
        InputError, match=rf"--preset {name}: .*demo, fast, .*paper, .*small.*\(did you mean {nearly}\?\)"
    ):
        load_preset(name)


# --- inheritance ------------------------------------------------------------------------------------------------------


def write(to: Path, **values: Any) -> str:
    """A preset file of one's own with these values."""
    path = to / "own.yaml"
    path.write_text(yaml.safe_dump({"preset": values}, sort_keys=False))
    return str(path)


def test_inherits(tmp_path: Path) -> None:
    """Three lines are a whole preset: all that they do not name is the parent's."""
    mine = load_preset(write(tmp_path, inherits_from="small", name="mine", diffusion={"iterations": 5600}))
    small = load_preset("small")
    assert mine == small.but(name="mine", diffusion=small.diffusion.but(iterations=5600))


def test_begins_anew(tmp_path: Path) -> None:
    """What is of another kind, or empty, keeps nothing of the parent's; nor do names that users give."""
    ddim = {"sampler": "ddim", "steps": 9, "eta": 0.0, "guidance": 1.0}
    mine = load_preset(write(tmp_path, inherits_from="small", sampling=ddim, data={"labels": {"core": ["necrotic"]}}))
    assert mine.sampling.state() == ddim
    assert mine.data.state() == {"channels": ["flair"], "labels": {"core": ["necrotic"]}}
    with pytest.raises(InputError, match=r"own\.yaml: lacks diffusion\.batch_size"):
        load_preset(write(tmp_path, inherits_from="sbldm/small", model="sbldm_2d", diffusion={"kind": "tiled"}))


def test_inherits_from_another_model(tmp_path: Path) -> None:
    """A parent may be of another model: what this one does not have is left out."""
    rival = load_preset("small", "ldm3d").state()
    stages = {part: rival[part] for part in ("autoencoder", "diffusion", "sampling")}
    own = load_preset(write(tmp_path, inherits_from="sbldm/small", model="ldm3d", minutes=58, **stages))
    assert own == load_preset("small", "ldm3d")
    assert load_preset(write(tmp_path, inherits_from="ldm3d/small")).model == "ldm3d"
    assert load_preset(write(tmp_path, inherits_from="small", model="lsgan"), "lsgan") == load_preset("small", "lsgan")
    with pytest.raises(InputError, match=r"own\.yaml: lacks .*; see configs/presets/small"):
        load_preset(write(tmp_path, inherits_from="lsgan/small", model="sbldm"))


@pytest.mark.parametrize(
    ("parent", "message"),
    [
        ("smal", r"own.yaml: inherits_from smal: no such preset; .* \(did you mean small\?\)"),
        ("lsgan/fast", "inherits_from fast: the model lsgan has no such preset; choose one of demo, small, paper"),
        ("gan/small", "inherits_from gan/small: no model gan; choose one of sbldm"),
        (["small"], r"inherits_from: \['small'\] is no name of a preset"),
    ],
)
def test_unknown_parent(tmp_path: Path, parent: Any, message: str) -> None:
    """A parent that is not there is named, with those that are."""
    with pytest.raises(InputError, match=message):
        load_preset(write(tmp_path, inherits_from=parent))


def test_circle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Presets that inherit from each other are said in one line."""
    presets = {"a": {"inherits_from": "b"}, "b": {"inherits_from": "a"}}
    (tmp_path / "lsgan.yaml").write_text(yaml.safe_dump({"presets": presets}))
    monkeypatch.setattr(folder, "BASELINES", tmp_path)
    with pytest.raises(InputError, match="lsgan/a -> lsgan/b -> lsgan/a is a circle; inherit from another preset"):
        load_preset("a", "lsgan")


def test_run_keeps_the_whole(tmp_path: Path, phantom_cases: Path) -> None:
    """A run's own file says every value, and names no parent."""
    asked = write(tmp_path, inherits_from="demo", name="mine", mirror=False)
    run = tmp_path / "run"
    assert call("prepare", "--data", phantom_cases, "--run", run, "--preset", asked).returncode == 0
    held = yaml.safe_load((run / "preset.yaml").read_text())["preset"]
    assert held == load_preset("demo").state() | {"name": "mine", "mirror": False}
    assert Run.at(run).preset == Preset.of(held)


def test_rivals_have_the_same_data() -> None:
    """Rivals see what SBLDM sees at the preset of their name."""
    for model, name in itertools.product(MODELS, ("demo", "small", "paper")):
        rival, ours = load_preset(name, model), load_preset(name)
        assert all(getattr(rival, part) == getattr(ours, part) for part in ("data", "grid", "intensity", "mirror"))


# --- a preset is data -------------------------------------------------------------------------------------------------

PAYLOADS = [
    ("perceptual_weights: null", "perceptual_weights: $__import__('pathlib').Path('{mark}').touch()"),
    ("perceptual_weights: null", 'perceptual_weights: \' $__import__("pathlib").Path("{mark}").touch()\''),
    ("mirror: false", "mirror: $__import__('pathlib').Path('{mark}').touch()"),
    ("name: tiny", 'name: \'$__import__("pathlib").Path("{mark}").touch()\''),
    ("learning_rate: 5.0e-3", "learning_rate: {{_target_: pathlib.Path.touch, _args_: ['{mark}']}}"),
    ("channels: [flair]", "channels: [{{_target_: os.system, command: 'touch {mark}'}}]"),
    ("mirror: false", "mirror: '@preset::name'"),
    ("mirror: false", "mirror: '%{mark}::x'"),
    ("mirror: false", "mirror: !!python/object/apply:os.system ['touch {mark}']"),
    ("preset:", 'initialize: [\'$__import__("pathlib").Path("{mark}").touch()\']\npreset:'),
]


@pytest.mark.parametrize(("before", "after"), PAYLOADS)
def test_hostile_presets(tmp_path: Path, phantom_cases: Path, before: str, after: str) -> None:
    """Code in a preset file is refused by `prepare` with its place, and never run."""
    mark = tmp_path / "ran"
    path = own(tmp_path, before, after.format(mark=mark), TINY.read_text())
    done = call("prepare", "--data", phantom_cases, "--run", tmp_path / "run", "--preset", path)
    assert str(path) in one_line(done, 2)
    assert not mark.exists() and not (tmp_path / "run").exists()


@pytest.mark.parametrize("command", ["train", "synth", "sweep", "copypaste"])
@pytest.mark.parametrize(("before", "after"), PAYLOADS[::3])
def test_hostile_runs(tmp_path: Path, trained_run: Path, before: str, after: str, command: str) -> None:
    """The same in a run folder that somebody passes on, by every command that reads it."""
    run, mark = copy_run(trained_run, tmp_path, "prepared"), tmp_path / "ran"
    text = yaml.safe_dump({"preset": yaml.safe_load((run / "preset.yaml").read_text())["preset"]}, sort_keys=False)
    text = text.replace("5.0e-3", "0.005").replace("0.005", "5.0e-3").replace("- flair", "[flair]")
    text = text.replace("channels:\n    [flair]", "channels: [flair]")
    (run / "preset.yaml").write_text(text.replace(before, after.format(mark=mark), 1))
    assert after.format(mark=mark) in (run / "preset.yaml").read_text()
    done = call(command, "--run", run, *(("--n", 1) if command in ("synth", "copypaste") else ()))
    assert str(run / "preset.yaml") in one_line(done, 4)
    assert not mark.exists()


def test_hand_edited_preset(tmp_path: Path, prepared_run: Path) -> None:
    """A preset that says something else than the prepared cases do is not believed, by any command."""
    grid = {"size": [32, 32, 16], "fov_mm": [168, 224, 152]}
    run = copy_run(prepared_run, tmp_path, grid=grid)
    before = snapshot(run)
    for command in ("train", "synth"):
        said = one_line(call(command, "--run", run, *(("--n", 1) if command == "synth" else ())), 4)
        assert f"{run}/preset.yaml: its grid differ from what the cases were prepared with" in said
    assert snapshot(run) == before
    with pytest.raises(StateError, match="put the values back"):
        assert Run.at(run).preset
    Run.at(run).save_preset(load_preset("fast"))  # whose networks the old grid would not fit
    with pytest.raises(StateError, match="its grid and intensity differ from what the cases were prepared with"):
        assert Run.at(run).preset


def test_a_default_that_is_written_out_is_the_same(tmp_path: Path, prepared_run: Path) -> None:
    """Cases that were prepared without saying `regions: false` are those of a preset that says so."""
    run = Run.at(copy_run(prepared_run, tmp_path))
    preset = run.preset
    said = preset.but(data=preset.data.state() | {"regions": False})
    assert said == preset and said.state() != preset.state() and said.data.equals(preset.data.state())
    assert not preset.data.equals(preset.data.state() | {"regions": True}) and not preset.grid.equals({"size": 3})
    run.save_preset(said)
    assert run.preset == preset


@pytest.mark.parametrize(("part", "value"), [("mirror", True), ("diffusion", {"latent": "sample"})])
def test_hand_edited_before_the_second_training(tmp_path: Path, trained_run: Path, part: str, value: Any) -> None:
    """Values that the latents were made with are those of the preset, also where no checkpoint says so."""
    preset = Run.at(trained_run).preset.state()
    changed = {part: preset[part] | value if isinstance(value, dict) else value}
    run = copy_run(trained_run, tmp_path, "last.pt diffusion", **changed)
    said = one_line(call("train", "diffusion", "--run", run), 4)
    assert f"{run}/latents: these latents come from another value of {'mirror' if value is True else 'latent'}" in said


@pytest.mark.parametrize("text", ["", "{", "[]", "preset: 3", "\x00\x01", "preset: {name: x}"])
def test_damaged_preset(tmp_path: Path, prepared_run: Path, phantom_cases: Path, text: str) -> None:
    """A damaged preset of a run is said with a mend, and the mend works."""
    run = copy_run(prepared_run, tmp_path)
    (run / "preset.yaml").write_text(text)
    said = one_line(call("train", "--run", run), 4)
    assert str(run / "preset.yaml") in said and "again, --preset as then" in said
    (run / "preset.yaml").unlink()
    prepared = snapshot(run / "prepared")
    assert call("prepare", "--data", phantom_cases, "--run", run, "--preset", TINY).returncode == 0
    same = {name for name, state in snapshot(run / "prepared").items() if prepared.get(name) == state}
    assert {name for name in prepared if name.endswith(".npz")} <= same
    assert Run.at(run).preset.name == "tiny"


# --- what passes can be built and run ---------------------------------------------------------------------------------


def _variants(rng: random.Random) -> dict[str, Any]:
    """A preset at the edges of what the schema allows."""
    model = rng.choice([name for name in MODELS if name != "copypaste"])
    preset = load_preset("demo", model).state()
    widths = [rng.choice([2, 3, 5, 8, 24, 32]) for _ in range(rng.choice([1, 2, 3]))]
    for stage in MODELS[model].stages:
        network = preset[stage]["network"]
        if preset[stage].get("kind") == "monai":
            widths = [8 * width for width in widths]
            network["groups"] = rng.choice([1, 2, 8])
            if "head_channels" in network:
                network["head_channels"] = rng.choice([1, widths[-1], 8])
        network["channels"] = widths
        if "strides" in network:
            plane = 2 if preset[stage].get("kind") == "tiled" else 3
            network["strides"] = [rng.choice([1, 2, [1] * plane, [2, 2, 1][:plane]]) for _ in widths[1:]]
            network["embedding"] = rng.choice([1, 2, 7])
        if "latent_channels" in network:
            network["latent_channels"] = rng.choice([1, 2, 5])
        if "position_embedding" in network:
            network["position_embedding"] = rng.choice([0, 2, 3])
        if stage != "gan" and "groups" in network and preset[stage].get("kind") != "monai":
            network["groups"] = rng.choice([1, 3, 64])
    return preset


@pytest.mark.parametrize("seed", range(30))
def test_what_passes_can_be_built(seed: int) -> None:
    """A preset that the schema lets through makes networks that run on its grid (shapes alone, on the meta device)."""
    preset = Preset.of(_variants(random.Random(seed)))
    size = preset.grid.size
    with torch.device("meta"):
        if preset.model == "lsgan":
            pair = build_generator(preset)(torch.zeros(2, preset.gan.network.noise))
            assert pair.shape == (2, 2, *size)
            assert build_discriminator(preset, "gan")(pair)[-1].shape[:2] == (2, 1)
            return
        autoencoder, denoiser = build_autoencoder(preset), build_denoiser(preset)
        if preset.autoencoder.kind == "slice":
            latents, _ = autoencoder.encode(torch.zeros(1, 2, *size[:2]), torch.zeros(1, dtype=torch.long))
            volume = latents.unsqueeze(-1).expand(*latents.shape, size[2])
        else:
            volume, _ = autoencoder.encode(torch.zeros(1, 2, *size))
            assert autoencoder.decode(volume).shape == (1, 2, *size)
        assert denoiser(volume, torch.zeros(1, dtype=torch.long), torch.zeros(1, 9)).shape == volume.shape


def test_every_shipped_preset() -> None:
    """All that ship pass, at any training time."""
    names = {model: ["demo", "small", "paper"] for model in MODELS}
    names["ldm3d"] += ["paper_trained"]
    names["lsgan"] += ["paper_committed"]
    for model, name in itertools.chain.from_iterable([(m, n) for n in found] for m, found in names.items()):
        assert load_preset(name, model).name == name
    for minutes in (0.01, 1e4):
        for model in MODELS:
            if model != "copypaste":
                load_preset("small", model, minutes)
