"""The rivals: presets, networks, adversarial losses, and the same commands for all of them."""

from __future__ import annotations

import csv
import math
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from conftest import call, copy_run, one_line
from ignite.engine import Engine
from torch import nn

from sbldm.networks import LatentUNet, MonaiUNet, MonaiVAE, TiledUNet, VolumeVAE
from sbldm.networks.latent_unet import tiles
from sbldm.run.errors import InputError, StateError
from sbldm.run.folder import Run, load_preset
from sbldm.run.models import MODELS, refuse_requests
from sbldm.synthesis import Model
from sbldm.training import Adversary, GanLosses, MovingAverage, VaeGanLoss, VolumeDataset, clip_before_steps

# --- presets ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", MODELS)
def test_presets_of_every_model(model: str) -> None:
    """Each model has the three presets, on the grid and the data of SBLDM's, and the stages of its own alone."""
    for name in ("demo", "small", "paper"):
        preset, own = load_preset(name, model), load_preset(name)
        assert preset.name == name and preset.model == model
        assert all(getattr(preset, part) == getattr(own, part) for part in ("data", "grid", "intensity", "mirror"))
        assert preset.stages == list(MODELS[model].stages)


def test_budgets_are_equal() -> None:
    """`small` and `demo` give no rival less time than SBLDM; MINUTES scales the iterations in whole epochs."""
    for name in ("small", "demo"):
        own, *rivals = [load_preset(name, model).minutes for model in MODELS if MODELS[model].stages]
        assert min(rivals) >= own
    half = load_preset("small", "lsgan", 29)
    assert half.gan.iterations == 2400 and half.minutes == 29  # 2500 in whole epochs of 200
    assert half.gan.ema_decay == pytest.approx(1 - 0.001 * 5000 / 2400, abs=1e-6)
    assert load_preset("small", "", 1).autoencoder.iterations == 400  # an epoch at least
    for minutes in (0, -1, math.inf, math.nan):
        with pytest.raises(InputError, match=f"--minutes {minutes}"):
            load_preset("small", "lsgan", minutes)
    with pytest.raises(InputError, match="does not say how long"):
        load_preset("paper", "lsgan", 10)


def test_wrong_models_and_presets(tmp_path: Path) -> None:
    """What is known is listed; a preset file of one model is not taken for another's."""
    with pytest.raises(InputError, match=f"--model gan: no such model; choose one of {', '.join(MODELS)}"):
        load_preset("small", "gan")
    with pytest.raises(InputError, match="--preset huge: the model lsgan has no such preset; choose one of demo"):
        load_preset("huge", "lsgan")
    own = tmp_path / "mine.yaml"
    own.write_text(yaml.safe_dump({"preset": load_preset("small", "lsgan").state()}))
    assert load_preset(str(own)) == load_preset(str(own), "lsgan") == load_preset("small", "lsgan")
    with pytest.raises(InputError, match=r"--model ldm3d: .*mine\.yaml is a preset of the model lsgan"):
        load_preset(str(own), "ldm3d")
    wrong = load_preset("small", "lsgan").state()
    del wrong["gan"]["clip"]
    own.write_text(yaml.safe_dump({"preset": wrong}))
    with pytest.raises(InputError, match=r"lacks gan\.clip; see configs/baselines/lsgan\.yaml"):
        load_preset(str(own))


# --- networks ---------------------------------------------------------------------------------------------------------


def test_tiles() -> None:
    """As nearly square as the depth allows."""
    assert tiles(24, 24, 96) == (8, 12) or tiles(24, 24, 96) == (12, 8)
    assert tiles(16, 20, 48) == (8, 6) and tiles(4, 4, 7) in ((1, 7), (7, 1))


def test_slices_lie_on_the_plane_row_by_row(monkeypatch: pytest.MonkeyPatch) -> None:
    """Slice k is tile (k // columns, k % columns), and comes back as slice k."""
    seen: list[torch.Tensor] = []
    monkeypatch.setattr(LatentUNet, "forward", lambda self, x, t, context=None: seen.append(x) or 2 * x)
    network = TiledUNet(1, channels=[4, 4], strides=[2], num_res_blocks=1, embedding=8, groups=2)
    x = torch.arange(12.0).reshape(1, 1, 1, 1, 12) + torch.tensor([[0.0, 0.25], [0.5, 0.75]]).reshape(1, 1, 2, 2, 1)
    assert torch.equal(network(x, torch.zeros(1)), 2 * x)
    (plane,) = seen
    rows, columns = tiles(2, 2, 12)
    assert plane.shape == (1, 1, 2 * rows, 2 * columns)
    for k in range(12):
        row, column = divmod(k, columns)
        tile = plane[0, 0, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
        assert tile.tolist() == [[k, k + 0.25], [k + 0.5, k + 0.75]]


def test_tiled_network_heeds_requests_and_the_other_does_not() -> None:
    """Two conditions give two answers for SBLDM with 2-D diffusion, one for networks that take none."""
    torch.manual_seed(0)
    values = {"channels": [4, 8], "num_res_blocks": 1, "groups": 2}
    x, t = torch.randn(1, 2, 4, 4, 6), torch.tensor([10])
    tiled = TiledUNet(2, strides=[2], embedding=8, **values)
    alone = LatentUNet(2, strides=[2], embedding=8, condition_size=0, **values)
    monai = MonaiUNet(2, head_channels=4, **values)
    assert not any("condition" in name for name in alone.state_dict())
    with torch.no_grad():
        for network in (tiled, alone, monai):
            for parameter in network.parameters():
                parameter += 0.1 * torch.randn_like(parameter)
            small, large = (network(x, t, torch.full((1, 9), value)) for value in (-1.0, 1.0))
            assert torch.equal(small, large) == (network is not tiled)
            assert small.shape == x.shape


def test_latents_that_cannot_be_halved_are_padded() -> None:
    """Depth 6 of a network that halves twice: the answer is that of zeros beyond the end, cut off."""
    torch.manual_seed(0)
    network = MonaiUNet(2, channels=[4, 4, 8], num_res_blocks=1, head_channels=4, groups=2).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
        x, t = torch.randn(1, 2, 4, 8, 6), torch.tensor([5])
        whole = network.network(torch.cat([x, torch.zeros(1, 2, 4, 8, 2)], dim=-1), t)
        assert torch.equal(network(x, t), whole[..., :6])


@pytest.mark.parametrize(
    "network",
    [
        VolumeVAE(2, [4, 8], latent_channels=3, groups=2),
        MonaiVAE(2, [4, 8], latent_channels=3, groups=2, attention=False),
    ],
    ids=["blocks", "monai"],
)
def test_volume_autoencoder(network: VolumeVAE) -> None:
    """Every axis is halved; a volume is encoded and decoded as the network does it; no noise when evaluated."""
    torch.manual_seed(0)
    volume = np.random.default_rng(0).uniform(-1, 1, (2, 8, 4, 6)).astype(np.float32)
    encoded = network.eval().encode_volume(volume, torch.device("cpu"))
    assert encoded.shape == (2, 3, 4, 2, 3) and network.factor == 2
    with torch.no_grad():
        reconstruction, mean, log_variance = network(torch.from_numpy(volume)[None])
        torch.testing.assert_close(torch.stack([mean[0], log_variance[0]]), torch.from_numpy(encoded))
        torch.testing.assert_close(reconstruction, network.decode(mean))
        torch.testing.assert_close(
            torch.from_numpy(network.decode_volume(mean[0])), reconstruction[0].clamp(-1, 1), atol=1e-6, rtol=0
        )
        if isinstance(network, MonaiVAE):
            _, std = network.network.encode(torch.from_numpy(volume)[None])
            torch.testing.assert_close((log_variance / 2).exp(), std)
        network.train()
        assert not torch.equal(network(torch.from_numpy(volume)[None])[0], reconstruction)  # a posterior sample


# --- adversarial losses -----------------------------------------------------------------------------------------------


class Mean(nn.Module):
    """Gives every pair its own mean; a list, as MONAI's discriminator returns."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(()))

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        return [x, self.gain * x.mean(dim=(1, 2, 3, 4), keepdim=True)]


def test_least_squares() -> None:
    """Real pairs scored .5 and synthetic ones .25 cost .5 (.5^2 + .25^2); the generator of the latter .5 * .75^2."""
    losses = GanLosses(Mean(), target_noise=0.0)
    reals, fakes = torch.full((2, 1, 2, 2, 2), 0.5), torch.full((2, 1, 2, 2, 2), 0.25, requires_grad=True)
    assert losses.discriminator_loss(fakes, reals).item() == pytest.approx(0.5 * (0.25 + 0.0625))
    assert losses.generator_loss(fakes).item() == pytest.approx(0.5 * 0.5625)


def test_each_loss_moves_its_own_network() -> None:
    """The discriminator's leaves the generator alone, and the other way round."""
    losses = GanLosses(Mean(), target_noise=0.0)
    fakes = torch.full((1, 1, 2, 2, 2), 0.25, requires_grad=True)
    losses.generator_loss(fakes).backward()
    assert losses.discriminator.gain.grad is None and fakes.grad.abs().sum() > 0
    fakes.grad = None
    losses.discriminator_loss(fakes, torch.ones(1, 1, 2, 2, 2)).backward()
    assert losses.discriminator.gain.grad is not None and fakes.grad is None


def test_noisy_targets() -> None:
    """Targets lie at 1 - .05 |n| and .05 |n|: the loss of perfect scores is .05^2, as E n^2 = 1."""
    torch.manual_seed(0)
    losses = GanLosses(Mean(), target_noise=0.05)
    shape = (20_000, 1, 1, 1, 1)
    with torch.no_grad():
        assert losses.discriminator_loss(torch.zeros(shape), torch.ones(shape)).item() == pytest.approx(
            0.0025, rel=0.05
        )
        assert losses._distance(torch.full(shape, 0.9), 1.0) < losses._distance(torch.full(shape, 1.1), 1.0)


def test_clipping_before_steps() -> None:
    """A gradient of norm 50 becomes one of norm 5; a small one stays."""
    for gradient, norm in ((50.0, 5.0), (2.0, 2.0)):
        weight = nn.Parameter(torch.zeros(1))
        optimizer = clip_before_steps(torch.optim.SGD([weight], lr=1.0), 5.0)
        weight.grad = torch.full((1,), gradient)
        optimizer.step()
        assert weight.item() == pytest.approx(-norm, rel=1e-5)


@pytest.mark.parametrize("preset", ["small", "paper"])
def test_moving_average_of_a_gan(preset: str) -> None:
    """The `paper` preset keeps none: the average is the network; in `small` it moves by 1 - decay of the way."""
    network = nn.Linear(1, 1, bias=False)
    network.weight.data.fill_(1.0)
    decay = load_preset(preset, "lsgan").gan.ema_decay
    average = MovingAverage(network, 1 - decay)
    network.weight.data.fill_(3.0)
    trainer = Engine(lambda engine, batch: None)
    average.attach(trainer)
    trainer.run([0])
    assert average.ema_model.weight.item() == pytest.approx(1.0 + 2.0 * (1 - decay), rel=1e-6)


def test_adversary_has_no_say_before_its_start() -> None:
    """It learns from the first iteration; the loss of the autoencoder hears of it after `start` of them."""
    discriminator = Mean()
    adversary = Adversary(discriminator, torch.optim.SGD(discriminator.parameters(), lr=0.1), start=3)
    loss = VaeGanLoss(lambda prediction, target: torch.tensor(2.0), adversary, weight=0.5)
    drawn = torch.full((1, 1, 2, 2, 2), 0.25)
    engine: Any = SimpleNamespace(state=SimpleNamespace(iteration=3, output={"pred": (drawn,), "image": 0 * drawn + 1}))
    adversary._begin(engine)
    assert loss((drawn, None, None), drawn).item() == 2.0
    before = discriminator.gain.item()
    adversary(engine)
    assert discriminator.gain.item() == pytest.approx(
        before - 0.1 * (0.25 * 0.25 + 0.0)
    )  # d/dg of .5 (g/4)^2 + .5 (g-1)^2
    engine.state.iteration = 4
    adversary._begin(engine)
    expected = 2.0 + 0.5 * 0.5 * (discriminator.gain.item() * 0.25 - 1) ** 2
    assert loss((drawn, None, None), drawn).item() == pytest.approx(expected)


def test_volumes_in_passes(prepared_run: Path) -> None:
    """A pass shows every case once; a sample depends on seed and number alone; a mirrored one is the mirror image."""
    names = sorted(path.stem for path in (prepared_run / "prepared").glob("*.npz"))
    plain, mirrored = (VolumeDataset(prepared_run / "prepared", names, 0, mirror, "reals") for mirror in (False, True))
    shown = [plain[n]["reals"] for n in range(len(names))]
    assert len({volume.numpy().tobytes() for volume in shown}) == len(names)
    assert torch.equal(plain[len(names) + 1]["reals"], plain[len(names) + 1]["reals"])
    flips = [torch.equal(mirrored[n]["reals"], shown[n].flip(1)) for n in range(len(names))]
    same = [torch.equal(mirrored[n]["reals"], shown[n]) for n in range(len(names))]
    assert all(a or b for a, b in zip(flips, same, strict=True)) and any(flips) and any(same)


# --- the same commands ------------------------------------------------------------------------------------------------

SHORT = {"iterations": 12, "iterations_per_epoch": 6, "batch_size": 2}
VAE = {"channels": [8, 16], "latent_channels": 3, "num_res_blocks": 1, "attention": False, "groups": 4}
CHANGES: dict[str, dict[str, Any]] = {
    "lsgan": {"gan": {"network": {"noise": 16, "channels": [16, 8]}, "discriminator": {"channels": 8, "layers": 2}}},
    "ldm3d": {
        "autoencoder": {"network": VAE, "discriminator": {"channels": 8, "layers": 2}, "adversarial_start": 3},
        "diffusion": {"network": {"channels": [16, 32], "num_res_blocks": 1, "head_channels": 16, "groups": 4}},
    },
    "sbldm_2d": {
        "diffusion": {
            "network": {"channels": [12, 24], "strides": [2], "num_res_blocks": 1, "embedding": 16, "groups": 4}
        },
    },
}


def rival(model: str, prepared: Path, folder: Path) -> Path:
    """A prepared run of another model: the cases are on the same grid, so they are copied."""
    run, tiny = copy_run(prepared, folder), Run.at(prepared).preset.state()
    preset = load_preset("demo", model).state()
    preset |= {part: tiny[part] for part in ("name", "data", "grid", "intensity", "mirror")}
    for stage in MODELS[model].stages:
        preset[stage] |= SHORT | CHANGES[model].get(stage, {})
    if model == "sbldm_2d":
        preset["autoencoder"] = tiny["autoencoder"]
    preset["sampling"] = preset.get("sampling", {}) and tiny["sampling"]
    (run / "preset.yaml").write_text(yaml.safe_dump({"preset": preset}, sort_keys=False))
    return run


@pytest.fixture(scope="module")
def lsgan(tmp_path_factory: pytest.TempPathFactory, prepared_run: Path) -> Path:
    """A trained 3D-LSGAN."""
    run = rival("lsgan", prepared_run, tmp_path_factory.mktemp("lsgan"))
    done = call("train", "--run", run)
    assert done.returncode == 0, done.stderr
    return run


def test_lsgan_from_training_to_pairs(lsgan: Path, tmp_path: Path) -> None:
    """The same raw dataset, manifest and datasheet; that it takes no requests is said, not faked."""
    run = copy_run(lsgan, tmp_path)
    with open(run / "gan" / "history.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["epoch", "iteration", "train_loss", "train_discriminator", "seconds", "cpu_seconds"]
    assert float(rows[1]["seconds"]) > float(rows[0]["seconds"]) > 0
    done = call("synth", "--run", run, "--n", 2, "--batch", 2)
    assert done.returncode == 0, done.stderr
    folder = run / "nnUNet_raw" / "Dataset501_LSGAN"
    with open(folder / "manifest.csv", newline="") as file:
        pairs = list(csv.DictReader(file))
    assert [pair["pair"] for pair in pairs] == ["LSGAN_000000", "LSGAN_000001"]
    assert {pair["requests"] for pair in pairs} == {"none: lsgan takes none"}
    assert not any(name.startswith("requested_") for name in pairs[0]) and float(pairs[0]["measured_volume_ml"]) > 0
    assert [pairs[0][name] for name in ("model", "sampler", "steps")] == ["lsgan", "gan", "1"]
    sheet = (folder / "datasheet.md").read_text()
    assert "3D-LSGAN (model lsgan)" in sheet and "**no requests**" in sheet
    shutil.rmtree(folder)
    (run / "nnUNet_raw").rmdir()
    assert call("synth", "--run", run, "--n", 1, "--seed", 1).returncode == 0  # a pair is a function of its seed
    with open(folder / "manifest.csv", newline="") as file:
        assert next(csv.DictReader(file))["measured_volume_ml"] == pairs[1]["measured_volume_ml"]


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (["--volume-ml", 30], "requests (--requests, --volume-ml, --centre-mm, ...): the model lsgan cannot heed this"),
        (["--steps", 10], "--steps: the model lsgan cannot heed this"),
        (["--tol", "20,10"], "--tol: the model lsgan cannot heed this"),
    ],
)
def test_what_a_gan_cannot_do(lsgan: Path, asked: list[Any], said: str) -> None:
    """It is refused in one line, and nothing is written."""
    assert said in one_line(call("synth", "--run", lsgan, "--n", 1, *asked), 2)
    assert not (lsgan / "nnUNet_raw").exists()


def test_a_gan_has_no_sweep_and_no_diffusion(lsgan: Path) -> None:
    """Both are said."""
    assert "--sweep: the model lsgan cannot heed this" in one_line(call("sweep", "--run", lsgan), 2)
    message = one_line(call("train", "diffusion", "--run", lsgan), 2)
    assert "diffusion: the model lsgan has the trainings gan" in message


def test_killed_gan_goes_on_bit_by_bit(lsgan: Path, tmp_path: Path, prepared_run: Path) -> None:
    """After its first epoch it ends as if never stopped: generator, average, discriminator and both optimizers."""
    run = rival("lsgan", prepared_run, tmp_path)
    preset = yaml.safe_load((run / "preset.yaml").read_text())
    whole = preset["preset"]["gan"]["iterations"]
    preset["preset"]["gan"]["iterations"] = 6
    (run / "preset.yaml").write_text(yaml.safe_dump(preset, sort_keys=False))
    assert call("train", "--run", run).returncode == 0
    preset["preset"]["gan"]["iterations"] = whole
    (run / "preset.yaml").write_text(yaml.safe_dump(preset, sort_keys=False))
    stopped = torch.load(run / "gan" / "last.pt", weights_only=True)
    stopped["preset"]["gan"]["iterations"] = whole
    torch.save(stopped, run / "gan" / "last.pt")
    assert "going on after iteration 6 of 12" in call("train", "--run", run).stdout
    ends = [torch.load(folder / "gan" / "last.pt", weights_only=True)["states"] for folder in (lsgan, run)]
    for name in ("network", "average", "discriminator"):
        assert all(torch.equal(value, ends[1][name][key]) for key, value in ends[0][name].items()), name
    moments = [states["discriminator_optimizer"]["state"][0]["exp_avg"] for states in ends]
    assert torch.equal(*moments)


def test_ldm3d_from_training_to_a_volume(prepared_run: Path, tmp_path: Path) -> None:
    """Latents shrink along every axis; a draw is a function of its seed; GUIDANCE cannot be heeded."""
    run = rival("ldm3d", prepared_run, tmp_path)
    done = call("train", "--run", run)
    assert done.returncode == 0, done.stderr
    states = torch.load(run / "autoencoder" / "last.pt", weights_only=True)["states"]
    assert states["discriminator_optimizer"]["state"]  # it has learnt
    model = Model.load(str(run), torch.device("cpu"))
    assert model.latent_shape == (3, 12, 16, 8) and not model.conditional
    nothing = torch.full((2, 9), torch.nan)
    together = model.sampler()(nothing, model.network, seeds=[4, 5])
    alone = model.sampler()(nothing[:1], model.network, seeds=[5])
    torch.testing.assert_close(together[1:], alone, atol=1e-5, rtol=0)
    volume = model.decode(alone[0])
    assert volume.shape == (2, 24, 32, 16) and -1 <= volume.min() <= volume.max() <= 1
    with pytest.raises(InputError, match="--guidance: the model ldm3d cannot heed this"):
        model.sampler({"guidance": 2.0})


def test_2d_diffusion_takes_the_autoencoder_of_sbldm(trained_run: Path, tmp_path: Path) -> None:
    """Stage 1 is the same, so it may be copied; stage 2 trains on its latents, and the model takes requests."""
    run = rival("sbldm_2d", trained_run, tmp_path)
    shutil.rmtree(run / "diffusion")
    shutil.rmtree(run / "latents")
    done = call("train", "diffusion", "--run", run)
    assert done.returncode == 0, done.stderr
    model = Model.load(str(run), torch.device("cpu"))
    assert model.conditional and isinstance(model.network, TiledUNet) and model.latent_shape == (3, 12, 16, 16)


def test_checkpoint_of_another_model(lsgan: Path, trained_run: Path, tmp_path: Path) -> None:
    """Named as such: by its training where that differs, else by its model; and MODEL of another run folder too."""
    run = copy_run(trained_run, tmp_path)
    shutil.copy(lsgan / "gan" / "best.pt", run / "diffusion" / "best.pt")
    message = one_line(call("synth", "--run", run, "--n", 1), 4)
    assert "diffusion/best.pt" in message and "(gan of the model lsgan), not of the diffusion" in message
    content = torch.load(trained_run / "diffusion" / "best.pt", weights_only=True)
    content["preset"] |= {"model": "sbldm_2d", "diffusion": content["preset"]["diffusion"] | {"kind": "tiled"}}
    torch.save(content, run / "diffusion" / "best.pt")
    message = one_line(call("synth", "--run", run, "--n", 1), 4)
    assert "this is a checkpoint of the model sbldm_2d, and the run holds sbldm" in message
    message = one_line(call("train", "--run", run, "--model", "lsgan"), 4)
    assert "holds a run of the model sbldm, not of lsgan" in message
    with pytest.raises(StateError, match="holds a run of the model sbldm, not of lsgan"):
        Run.at(run).check_preset(load_preset("demo", "lsgan"))


def test_copy_paste_as_a_model(phantom_cases: Path, tmp_path: Path) -> None:
    """--model copypaste --data .. prepares, trains nothing, and draws through the same command."""
    run = tmp_path / "run"
    done = call("train", "--run", run, "--model", "copypaste", "--preset", "demo", "--data", phantom_cases)
    assert done.returncode == 0 and "the model copypaste trains nothing" in done.stdout, done.stderr
    assert "requests (--requests" in one_line(call("synth", "--run", run, "--n", 1, "--volume-ml", 30), 2)
    done = call("synth", "--run", run, "--n", 2)
    assert done.returncode == 0, done.stderr
    with open(run / "nnUNet_raw" / "Dataset501_COPYPASTE" / "manifest.csv", newline="") as file:
        assert [len(row["parents"].split(";")) for row in csv.DictReader(file)] == [2, 2]


def test_nothing_is_refused_that_was_not_asked() -> None:
    """Empty variables of the Makefile are no requests."""
    refuse_requests("lsgan", [], {"tol": "", "steps": None})
    with pytest.raises(InputError, match="--guidance, --eta: the model lsgan"):
        refuse_requests("lsgan", [], {"guidance": "2", "eta": "0.1"})
