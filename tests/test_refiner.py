"""The refiner: a patch comes back sharper inside, as it was outside, and not at all where nothing was learned."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from conftest import BUNDLE, call, copy_run, one_line

from sbldm.cases.export import body_of
from sbldm.diffusion import Schedule
from sbldm.networks import build_refiner
from sbldm.run.errors import InputError
from sbldm.run.folder import Run, load_preset, with_refiner
from sbldm.run.manifest import Manifest
from sbldm.run.preset import Preset, Sampling
from sbldm.synthesis.refine import Refiner, _window
from sbldm.training.refiner import RefinerDataset, _scale, around, drawn_on

SMALL = load_preset("small")
LITTLE = {
    "network": {"channels": [8, 16], "num_res_blocks": 1, "embedding": 8, "patch": 2},
    "plane": [16, 16],
    "margin_mm": 10,
    "drawn": 1,
    "noise": [0.5, 1.2],
    "batch_size": 4,
    "iterations": 6,
    "iterations_per_epoch": 3,
    "optimizer": "muon",
    "learning_rate": 2.0e-3,
    "warm_up": 2,
    "noise_levels": {"distribution": "logit_normal", "mean": 0.0, "std": 1.2},
    "ema_decay": 0.9,
    "steps": 3,
    "sigma_min": 0.2,
    "along_z": 1.0,
}


def refiner(seed: int | None = 0, **values: object) -> Refiner:
    """For `small`, with random weights throughout; with those it starts with where there is no seed."""
    preset = SMALL.but(refiner=LITTLE | values)
    torch.manual_seed(seed or 0)
    network = build_refiner(preset).eval()
    if seed is not None:
        for parameter in network.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
    return Refiner(network, preset, [0.3], "made up")


def brain(columns: bool = False) -> np.ndarray:
    """A smooth brain with a tumour, `[2, 64, 80, 48]` in [-1, 1]; both as columns along z, or not."""
    axes = [np.linspace(-1, 1, n) for n in SMALL.grid.size]
    x, y, z = np.meshgrid(*axes, indexing="ij")
    z = 0 * z if columns else z
    image = np.where(x**2 + y**2 + z**2 < 0.7, 0.1 * x + 0.2 * y - 0.3, -1)
    return np.stack([image, np.where((x - 0.2) ** 2 + y**2 + z**2 < 0.04, 1, -1)]).astype(np.float32)


def test_nothing_learned_changes_nothing() -> None:
    """The output starts at zero: no time step, no size of a plane, and no sampler adds anything."""
    untaught = refiner(seed=None)
    shape = untaught.network(torch.randn(2, 1, 16, 24), torch.tensor([3.0, 900.0]), torch.randn(2, 2, 16, 24)).shape
    assert shape == (2, 1, 16, 24)
    (refined,) = untaught.of(seed=5)(brain())
    assert np.array_equal(refined, brain())
    assert 0.5e6 < sum(p.numel() for p in build_refiner(SMALL).parameters()) < 1.5e6


def test_only_images_in_the_patch_change() -> None:
    """Beyond it, in the background and in the labels all is as decoded to the bit; the brain keeps its outline."""
    volume, drawn = brain(), refiner()
    (refined,) = drawn.of(seed=1)(volume)
    box = around(volume[1:], drawn.preset.refiner, (2.5, 2.5, 152 / 48))
    outside = np.ones(volume.shape, bool)
    outside[:, *box] = False
    assert np.array_equal(refined[outside], volume[outside]) and np.array_equal(refined[1], volume[1])
    bodies = [body_of((v[:1] + 1) / 2, SMALL.intensity.floor) for v in (volume, refined)]
    assert np.array_equal(*bodies) and np.array_equal(refined[0][~bodies[0]], volume[0][~bodies[0]])
    assert np.abs(refined - volume)[0][volume[1] > 0].mean() > 0.05 and refined.max() <= 1
    (again,), (other,) = drawn.of(seed=1)(volume), drawn.of(seed=1, attempt=1)(volume)
    assert np.array_equal(again, refined) and not np.array_equal(other, refined)
    nothing = np.stack([volume[0], np.full_like(volume[0], -1)])
    assert np.array_equal(drawn.of(seed=1)(nothing)[0], nothing)


def test_slices_share_their_noise() -> None:
    """Equal slices are refined equally; with `along_z` below 1 neighbours' noise has that correlation, and spread 1."""
    volume, drawn = brain(columns=True), refiner()
    (refined,) = drawn.of(seed=2)(volume)
    added = refined[0] - volume[0]
    assert np.abs(added).max() > 0.05
    np.testing.assert_allclose(added, np.repeat(added[..., :1], 48, axis=2), atol=1e-5)
    noise = refiner(along_z=0.6)._noise(0, 0)[:, 0]
    for lag in (1, 2):
        found = np.corrcoef(noise[:-lag].ravel(), noise[lag:].ravel())[0, 1]
        assert found == pytest.approx(0.6**lag, abs=0.01)
    assert float(noise.std()) == pytest.approx(1, abs=0.01)


def test_volumes_together_differ_as_drawn() -> None:
    """Two equal volumes stay equal, and both are refined around the tumour of the first."""
    volume = brain()
    other = np.stack([volume[0], np.full_like(volume[0], -1)])
    one, two = refiner().of(seed=3)(volume, volume)
    assert np.array_equal(one, two)
    assert not np.array_equal(refiner().of(seed=3)(volume, other)[1], other)


def test_the_patch() -> None:
    """The box of the tumour and its margin, of a size that the network can halve, within the grid."""
    labels = np.full((1, 64, 80, 48), -1.0)
    assert around(labels, SMALL.refiner, (2, 2, 4)) is None
    labels[0, 30:34, 40:70, 10:12] = 1
    values = SMALL.refiner.but(plane=[16, 16], margin_mm=8)
    assert around(labels, values, (2, 2, 4)) == (slice(24, 40), slice(35, 75), slice(8, 14))
    labels[0, 0, 79, 47] = 1
    x, y, z = around(labels, values, (2, 2, 4))
    assert (x.start, y.stop, z) == (0, 80, slice(8, 48)) and (x.stop - x.start) % 4 == (y.stop - y.start) % 4 == 0
    window = _window((slice(0, 16), slice(8, 40), slice(0, 48)), (64, 80, 48), (2.5, 2.5, 3))
    assert window.max() == 1 and window[0, 16, 24] == 1 and not window[-1].any() and not window[:, [0, -1]].any()


def test_drawn_on_from_a_level() -> None:
    """Of one who knows the case nothing is lost; of one who knows only the Gaussian what was noised is drawn back."""
    schedule, sampling = Schedule(kind="cosine", prediction="sample"), Sampling(**dict(SMALL.sampling))
    x, noise, seen = torch.randn(2, 3, 4, 4, 4), torch.randn(2, 3, 4, 4, 4), []

    def knows(noisy: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        seen.append(float(torch.exp(-schedule.half_log_snr(t))[0]))
        return x

    assert torch.allclose(drawn_on(knows, x, noise, schedule, sampling, 1.2), x, atol=1e-5)
    assert seen == pytest.approx([1.2, 0.5], rel=1e-2)

    def gaussian(noisy: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return noisy * schedule.alpha_sigma(t)[0].to(noisy).view(-1, 1, 1, 1, 1)

    drawn = drawn_on(gaussian, x, noise, schedule, sampling, 0.5)
    alpha = 1 / np.sqrt(1.25)
    assert torch.allclose(drawn, alpha * (alpha * x + 0.5 * alpha * noise), atol=1e-4)


def test_what_is_learned_from() -> None:
    """What decoded and lacking planes add up to is the real one, where both are brain, mirrored or not."""
    rng = np.random.default_rng(0)
    real = rng.uniform(-0.7, 0.9, (1, 20, 24, 6))
    decoded = np.stack([np.concatenate([real + 0.2 * rng.standard_normal(real.shape), real > 0.5]) for _ in range(2)])
    decoded[:, 0, :4] = -1  # no brain
    pairs, preset = [(decoded.astype(np.float16), real.astype(np.float16))], SMALL.but(refiner=LITTLE)
    scale = _scale(pairs, preset)
    assert scale[0] == pytest.approx(0.2, abs=0.02)
    data = RefinerDataset(pairs, preset, scale, mirror=True)
    assert len(data) == 2 and len(RefinerDataset(pairs, preset, scale, fixed=True)) == 4
    found = np.lib.stride_tricks.sliding_window_view(real[0], (16, 16), (0, 1)).reshape(-1, 16, 16)
    windows = [*found, *found[:, ::-1]]
    for n in range(4):
        item = data[n]
        whole = (item["decoded"][:1] + scale[0] * item["lacking"]).numpy()
        assert item["decoded"].shape == (2, 16, 16) and not item["lacking"][item["decoded"][:1] == -1].any()
        known = item["lacking"].numpy() != 0
        assert min(np.abs(whole[0] - window)[known[0]].max() for window in windows) < 5e-3


def test_presets_from_before(tmp_path: Path) -> None:
    """A run without the part takes it from the shipped preset of its name, and is still the same run."""
    before = Preset.of({k: v for k, v in SMALL.state().items() if k != "refiner"})
    assert before.refiner is None and with_refiner(before) == SMALL == with_refiner(SMALL)
    run = Run(tmp_path)
    run.save_preset(before)
    run.check_preset(SMALL)
    run.save_preset(SMALL.but(refiner=LITTLE))
    with pytest.raises(Exception, match="prepared with the preset 'small' and other values"):
        run.check_preset(SMALL)
    with pytest.raises(InputError, match=r"the preset 'mine' has no `refiner`: .* prepare with a preset that has one"):
        with_refiner(before.but(name="mine"))
    with pytest.raises(InputError, match=r"does not fit it: refiner\.plane"):
        with_refiner(before.but(grid={"size": [32, 48, 16], "fov_mm": [160, 240, 160]}))
    for name in ("demo", "fast"):
        assert load_preset(name).refiner
    with pytest.raises(InputError, match=r"refiner\.plane"):
        Preset.of(SMALL.state() | {"refiner": LITTLE | {"plane": [64, 84]}})


def test_end_to_end(tmp_path: Path, taught_run: Path) -> None:
    """Refused until it is trained; then pairs with the same masks and other images near them, and so the canvases."""
    run = copy_run(taught_run, tmp_path)
    synth = "synth", "--run", run, "--n", 1
    assert "the preset 'tiny' has no `refiner`" in one_line(call(*synth, "--refine"), 2)
    assert "the preset 'tiny' has no `refiner`" in one_line(call("train", "refiner", "--run", run), 2)
    content = yaml.safe_load((run / "preset.yaml").read_text())
    content["preset"]["refiner"] = LITTLE
    (run / "preset.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    said = f"no refiner has been trained here; run `sbldm train refiner --run {run}` first."
    assert said in one_line(call(*synth, "--refine"), 4)
    assert "these pairs come from a file of weights" in one_line(call(*synth, "--refine", "--weights", "shipped"), 2)
    assert call(*synth).returncode == 0
    assert call("train", "refiner", "--run", run).returncode == 0
    lost = next((run / "refiner" / "pairs").glob("*.npz"))
    content = dict(np.load(lost))
    lost.write_bytes(b"damaged")
    assert "already trained (6 iterations)" in call("train", "refiner", "--run", run).stdout
    assert all(np.array_equal(array, content[name]) for name, array in np.load(lost).items())  # drawn anew
    assert "already trained (80 iterations)" in call("train", "diffusion", "--run", run).stdout
    assert {"seconds", "cpu_seconds", "val_loss"} <= set(next(csv.DictReader((run / "refiner" / "history.csv").open())))
    sharper = (*synth, "--refine", "--dataset", 502, "--name", "SHARP")
    assert call(*sharper).returncode == 0
    assert call(*synth, "--dataset", 503, "--name", "AFTER").returncode == 0
    raw = run / "nnUNet_raw"
    plain, refined, after = (raw / name for name in ("Dataset501_SBLDM", "Dataset502_SHARP", "Dataset503_AFTER"))

    def files(folder: Path) -> list[bytes]:
        return [next((folder / part).iterdir()).read_bytes() for part in ("imagesTr", "labelsTr")]

    assert files(plain) == files(after) and files(plain)[1] == files(refined)[1]
    assert files(plain)[0] != files(refined)[0]
    (pair,), (other,) = Manifest(refined).pairs, Manifest(after).pairs
    settings = json.loads((refined / "synthesis.json").read_text())
    assert pair.refiner == settings["refiner"]["sha256"] and len(pair.refiner) == 64
    assert not other.refiner and "refiner_sha256" not in other.cells and "refiner" not in Manifest(after).settings
    assert "holds pairs drawn with refiner" in one_line(call(*sharper[:5], "--dataset", 502, "--name", "SHARP"), 4)
    canvas = (*synth, "--canvas", "train", "--dataset", 504, "--name", "CANVAS", "--refine")
    assert call(*canvas).returncode == 0 and Manifest(raw / "Dataset504_CANVAS").pairs[0].refiner == pair.refiner
    with (run / "diffusion" / "best.pt").open("ab") as file:
        file.write(b" ")
    assert "trained on what another generator made" in one_line(call(*synth, "--refine", "--dataset", 505), 4)


def test_the_bundle_line() -> None:
    """The overlay names the configs that it is laid over, and they are what `sbldm train refiner` runs."""
    from sbldm.run.models import configs_of

    line = ",".join(f"'configs/{config}.yaml'" for config in configs_of(SMALL, "refiner"))
    assert line in (BUNDLE / "configs" / "overlays" / "refiner.yaml").read_text()
    assert line in (BUNDLE / "docs" / "README.md").read_text()
