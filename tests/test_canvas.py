"""Tumours drawn into real brains: beyond the region every voxel is the canvas's own, within it what was asked for."""

from __future__ import annotations

import re
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from conftest import call, copy_run, one_line
from scipy import ndimage
from test_synthesis import manifest

from sbldm.cases.layouts import Source, find_cases, read_arrays
from sbldm.cases.phantom import write_phantoms
from sbldm.networks import RequestPicture, build_denoiser
from sbldm.run.errors import DataError
from sbldm.run.files import read_json
from sbldm.run.folder import load_preset, within_regions
from sbldm.synthesis import blending, session
from sbldm.synthesis import canvases as module
from sbldm.synthesis.blending import draw_into
from sbldm.synthesis.canvas import Canvas, read_canvas
from sbldm.synthesis.canvases import Canvases
from sbldm.synthesis.model import PairSampler
from sbldm.training import continued
from sbldm.training.checkpoints import load_checkpoint
from sbldm.tumour.characteristics import NAMES
from sbldm.tumour.normaliser import Normaliser
from sbldm.tumour.requests import TumourModel

SOURCE = Source(("flair",), {"whole tumour": "all"})
PRESET = load_preset("small", "copypaste").but(grid={"size": [32, 40, 24], "fov_mm": [160.0, 200.0, 152.0]})
TUMOUR = np.array([14.0, 2800.0, 0.98, 20.0, -10.0, 12.0, 30.0, 30.0, 30.0])
ELSEWHERE = TUMOUR * [1, 1, 1, -1, -1, 1, 1, 1, 1]
BRIGHT = 0.95  # of what the stub draws, in the unit of the working grid


class Exact:
    """A model whose latents are the voxels of the working grid by cells of 2 x 2 x 2, in the place of networks."""

    preset, sha256 = PRESET, "a1"

    def __init__(self, centres: int = 8) -> None:
        rng = np.random.default_rng(0)
        tumours = np.tile(TUMOUR, (centres, 1))
        tumours[:, 3:6] += rng.normal(0, 15, (centres, 3))
        tumours[:, :2] *= np.exp(rng.normal(0, 0.2, (centres, 1))) ** [1, 2 / 3]
        self.tumours, self.normaliser = TumourModel.fit(tumours), Normaliser.fit(tumours)
        picture = RequestPicture(PRESET.grid.fov_mm, self.normaliser.state())
        self.network = torch.nn.Linear(1, 1)
        self.network.picture, self.network.regions = picture, True

    def encode(self, volume: np.ndarray) -> torch.Tensor:
        c, x, y, z = volume.shape
        cells = torch.from_numpy(volume).float().reshape(c, x // 2, 2, y // 2, 2, z // 2, 2)
        return cells.permute(0, 2, 4, 6, 1, 3, 5).reshape(8 * c, x // 2, y // 2, z // 2)

    def decode(self, latents: torch.Tensor) -> np.ndarray:
        c, x, y, z = latents.shape
        cells = latents.reshape(c // 8, 2, 2, 2, x, y, z).permute(0, 4, 1, 5, 2, 6, 3)
        return cells.reshape(c // 8, 2 * x, 2 * y, 2 * z).numpy()


class Painter:
    """A sampler that paints the region with healthy brain, or with a bright ball of the asked place and volume."""

    settings, batch = {"sampler": "paint"}, 3

    def __init__(self, model: Exact, healthy: float = 0.0) -> None:
        self.model, self.healthy, self.calls = model, healthy, []

    def __call__(
        self, inputs: Any, network: Any, seeds: Any, region: Any, known: Any, unwanted: Any = None, places: Any = None
    ) -> torch.Tensor:
        self.calls.append(list(seeds))
        return torch.stack([self._painted(*row) for row in zip(inputs, region, known, strict=True)])

    def _painted(self, condition: torch.Tensor, region: torch.Tensor, known: torch.Tensor) -> torch.Tensor:
        volume = self.model.decode(known)
        brain = volume[0] > -0.8
        volume = np.stack([np.where(brain, self.healthy, -1.0), np.full_like(volume[1], -1.0)])
        if not condition.isnan().any():
            where = self.model.network.picture.region(condition[None], torch.zeros(1, 1, *brain.shape), 0.0)[0, 0]
            ball = (where.numpy() > 0) & brain
            volume[0][ball], volume[1][ball] = 2 * BRIGHT - 1, 1.0
        return torch.where(region > 0, self.model.encode(volume.astype(np.float32)), known)


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> dict[float, Path]:
    """Two phantoms on grids of 1 and of 2 mm."""
    folders = {}
    for spacing, shape in ((1.0, (240, 240, 155)), (2.0, (120, 120, 78))):
        folders[spacing] = tmp_path_factory.mktemp(f"at_{spacing:g}")
        write_phantoms(folders[spacing], 2, seed=1, shape=shape, spacing=spacing, progress=False)
    return folders


def canvases(folder: Path, tmp_path: Path, keep: bool = False) -> Canvases:
    model = Exact()
    return Canvases(find_cases(folder, SOURCE), model, Painter(model), tmp_path / "canvas", keep)


@pytest.mark.parametrize("spacing", [1.0, 2.0])
def test_every_voxel_beyond_the_region_is_the_canvas_s_own(
    cases: dict[float, Path], tmp_path: Path, spacing: float
) -> None:
    """Healed and drawn: only voxels of the two regions differ from the file; the tumour is where it was asked."""
    brains = canvases(cases[spacing], tmp_path)
    model, name = brains.model, next(iter(brains.cases))
    original, labels, affine = read_arrays(brains.cases[name], SOURCE)
    canvas = brains.get(name)
    assert np.array_equal(canvas.native.affine(), affine) and canvas.image.dtype == np.int16
    assert not canvas.labels.any() and labels.any()  # healed
    own = blending._weight(brains._covering(read_canvas(brains.cases[name], model)), canvas) > 0
    assert own[labels > 0].all() and np.array_equal(canvas.image[0][~own], original[0][~own])
    middle = labels.astype(bool) & (canvas.image[0] != original[0])
    assert middle.sum() > 0.9 * labels.sum()

    request = model.tumours.complete({"volume_ml": 14.0, "x_mm": -20.0, "y_mm": 15.0, "z_mm": 5.0}, 0)
    region = brains.region(canvas, request)
    condition, known = torch.from_numpy(model.normaliser.encode(request)), torch.from_numpy(canvas.latents)
    latents = brains.sampler(condition[None], None, [0], region=region[None], known=known[None])[0]
    pair = draw_into(canvas, latents, region, model, request)
    drawn = blending._weight(region, canvas) > 0
    assert 0.003 < drawn.mean() < 0.1 and pair.fault == ""
    assert np.array_equal(pair.image[0][~drawn], canvas.image[0][~drawn])
    assert np.array_equal(pair.image[0][~drawn & ~own], original[0][~drawn & ~own])
    assert np.array_equal(pair.image != 0, original != 0)  # the brain's outline is the canvas's
    found = dict(zip(NAMES, pair.measured, strict=True))
    assert [found[k] for k in ("x_mm", "y_mm", "z_mm")] == pytest.approx([-20, 15, 5], abs=1)
    low, high = canvas.limits[0]
    assert pair.image[0][pair.labels > 0].mean() > low + 0.8 * (high - low) > canvas.image[0][pair.labels > 0].mean()


def test_the_old_tumour_s_detail_goes_too(cases: dict[float, Path], tmp_path: Path) -> None:
    """A pattern too fine for the autoencoder stays in the brain around, and goes from where the tumour was."""
    brains = canvases(cases[2.0], tmp_path)
    canvas = read_canvas(next(iter(brains.cases.values())), brains.model)
    brain, tumour = canvas.image[0] > 0, canvas.labels > 0
    board = 2 * (np.indices(brain.shape).sum(axis=0) % 2) - 1
    marked = replace(canvas, image=(canvas.image + 40 * board * brain).clip(brain, None).astype(np.int16))
    (healed,) = brains._healed([marked])

    def pattern(where: np.ndarray) -> float:
        return float((healed.image[0] * board)[where].mean() - healed.image[0][where].mean() * board[where].mean())

    around = brain & ~ndimage.binary_dilation(tumour, iterations=4)
    assert pattern(around) == pytest.approx(40, rel=0.1)
    alone = replace(marked, image=np.where(tumour, marked.image, canvas.image))
    (healed,) = brains._healed([alone])
    assert abs(pattern(ndimage.binary_erosion(tumour))) < 4


def test_healed_tissue_is_no_brighter_than_the_brain(cases: dict[float, Path], tmp_path: Path) -> None:
    """A model that heals with what is as bright as a tumour: it is brought down to the brain's upper tenth."""
    brains = canvases(cases[2.0], tmp_path)
    brains.sampler.healthy = 0.8
    canvas = read_canvas(next(iter(brains.cases.values())), brains.model)
    (healed,) = brains._healed([canvas])
    inside, around = canvas.labels > 0, (canvas.image[0] > 0) & (canvas.labels == 0)
    upper = np.quantile(canvas.image[0][around], 0.9)
    assert np.quantile(healed.image[0][inside], 0.9) <= upper + 1 < np.quantile(canvas.image[0][inside], 0.5)
    assert healed.image[0][inside].mean() > 0.9 * upper


def painted(brains: Canvases, name: str, request: np.ndarray, asked: np.ndarray, **more: Any) -> tuple[Any, np.ndarray]:
    """A pair with the ball of a request in the region of another, and the weight of the region."""
    canvas, model = brains.get(name), brains.model
    region, known = brains.region(canvas, asked), torch.from_numpy(canvas.latents)
    condition = torch.from_numpy(model.normaliser.encode(request))
    latents = brains.sampler(condition[None], None, [0], region=region[None], known=known[None])[0]
    return draw_into(canvas, latents, region, model, asked, **more), blending._weight(region, canvas)


def test_contrast_is_what_was_asked_for(cases: dict[float, Path], tmp_path: Path) -> None:
    """The drawn difference is made weaker or stronger; what cannot be reached is a fault."""
    brains = canvases(cases[2.0], tmp_path)
    name = next(iter(brains.cases))
    request = ELSEWHERE
    canvas = brains.get(name)
    plain, weight = painted(brains, name, request, request)
    usual = blending.contrast_of(plain.image[0], plain.labels > 0, canvas.native.spacing)
    for contrast in (1.5, 3.0, 0.9 * usual):
        pair, _ = painted(brains, name, request, request, contrast=contrast)
        assert blending.contrast_of(pair.image[0], pair.labels > 0, canvas.native.spacing) == pytest.approx(
            contrast, rel=0.06
        )
        assert pair.fault == "" and np.array_equal(pair.labels, plain.labels)
        assert np.array_equal(pair.image[0][weight == 0], canvas.image[0][weight == 0])
    pair, _ = painted(brains, name, request, request, contrast=50.0)
    assert "which cannot be made 50" in pair.fault


def test_strength_varies_the_difference(cases: dict[float, Path], tmp_path: Path) -> None:
    """The same tumour, shown more weakly or strongly; seeds vary by a third, half of them to each side."""
    brains = canvases(cases[2.0], tmp_path)
    name = next(iter(brains.cases))
    request = ELSEWHERE
    canvas = brains.get(name)
    plain, weight = painted(brains, name, request, request)
    usual = plain.image[0].astype(float) - canvas.image[0]
    inside = ndimage.binary_erosion(plain.labels > 0, iterations=2)
    for strength in (0.5, 0.8, 1.1):
        pair, _ = painted(brains, name, request, request, strength=strength)
        ratio = np.median((pair.image[0].astype(float) - canvas.image[0])[inside] / usual[inside])
        assert ratio == pytest.approx(strength, abs=0.05)
        assert np.array_equal(pair.labels, plain.labels) and pair.fault == ""
        assert np.array_equal(pair.image[0][weight == 0], canvas.image[0][weight == 0])
    logs = np.log([blending.varied(seed) for seed in range(2_000)])
    assert abs(logs.mean()) < 0.02 and logs.std() == pytest.approx(blending.VARIED, rel=0.05)
    assert blending.varied(5) == blending.varied(5)


@pytest.mark.parametrize("spacing", [1.0, 2.0])
def test_a_tumour_has_the_asked_volume_and_centre(cases: dict[float, Path], tmp_path: Path, spacing: float) -> None:
    """Drawn too small, as one that is to push, or too large and beside its place: a warp within the region mends it."""
    brains = canvases(cases[spacing], tmp_path)
    name, request = next(iter(brains.cases)), TUMOUR * [1, 1, 1, -1, -1, 1, 1, 1, 1]
    canvas, half = brains.get(name), blending.smaller(request)
    assert half[0] == pytest.approx(7) and half[6] == pytest.approx(30 / 2 ** (1 / 3))
    large = np.add(request, [0, 0, 0, 3, -2, 2, 3, 3, 3])
    for drawn in (half, request, large):
        pair, weight = painted(brains, name, drawn, request)
        assert pair.measured[0] == pytest.approx(14, rel=0.06)
        assert np.linalg.norm(pair.measured[3:6] - request[3:6]) < 2
        assert np.array_equal(pair.image[0][weight == 0], canvas.image[0][weight == 0])
        assert np.array_equal(pair.image != 0, canvas.image != 0) and pair.image.dtype == np.int16
        inside = pair.image[0][pair.labels > 0]
        assert np.mean(inside > 1.5 * np.median(canvas.image[0][canvas.image[0] > 0])) > 0.85  # the mask went along
    far, _ = painted(brains, name, np.add(request, 20 * np.eye(9)[3]), request)
    assert 8 < np.linalg.norm(far.measured[3:6] - request[3:6]) < 20  # a warp reaches but so far


def test_what_lies_around_gives_way_along_rays(cases: dict[float, Path], tmp_path: Path) -> None:
    """On a picture of distances: at the asked edge lies what was at the drawn one, at the rim nothing has moved."""
    brains = canvases(cases[1.0], tmp_path, keep=True)
    canvas = brains.get(next(iter(brains.cases)))
    frame = canvas.native.frame(canvas.working)
    voxels = np.stack(np.meshgrid(*map(np.arange, canvas.labels.shape), indexing="ij"))
    centre = np.linalg.inv(frame)[:3] @ [*TUMOUR[3:6], 1]
    distance = np.linalg.norm(voxels - centre[:, None, None, None], axis=0)  # mm, as the grid is of 1 mm
    ramp = replace(canvas, image=(100 + 100 * distance).astype(np.int16)[None], labels=np.zeros_like(canvas.labels))
    ball = (distance < 11.9).astype(np.uint8)
    image, labels = blending.settled(ramp.image, ball, ramp, TUMOUR, np.ones(ball.shape))
    at = [tuple(np.rint(np.add(centre, [r, 0, 0])).astype(int)) for r in (6, 14, 29)]
    exact, scale = [distance[where] for where in at], np.cbrt(ball.sum() / 14000)
    assert (image[0][at[0]] - 100) / 100 == pytest.approx(scale * exact[0], abs=0.2)
    assert (image[0][at[1]] - 100) / 100 == pytest.approx(scale * exact[1], abs=0.2)
    assert (image[0][at[2]] - 100) / 100 == pytest.approx(exact[2], abs=0.1)
    assert int(labels.sum()) == pytest.approx(14000, rel=0.02)
    held = replace(ramp, labels=ball)  # a tumour that is kept does not move
    still, _ = blending.settled(held.image, ball, held, TUMOUR, np.ones(ball.shape))
    assert np.array_equal(still[0][ball > 0], held.image[0][ball > 0])


def test_kept_tumours(cases: dict[float, Path], tmp_path: Path) -> None:
    """--keep: the canvas is the file as it is, labels join, and the new tumour is clear of the old one."""
    brains = canvases(cases[2.0], tmp_path, keep=True)
    name = next(iter(brains.cases))
    original, labels, _ = read_arrays(brains.cases[name], SOURCE)
    canvas = brains.get(name)
    assert np.array_equal(canvas.image, original) and np.array_equal(canvas.labels, labels)
    assert brains.sampler.calls == [[int(canvas.content[:8], 16)]]  # what is drawn goes on from the healed brain
    assert not (canvas.volume[1][module._on_working(labels > 0, canvas)] > 0).any()
    latents = brains.model.encode(canvas.volume)
    pair = draw_into(canvas, latents, brains.region(canvas, canvas.own), brains.model, canvas.own)
    assert pair.labels.shape == labels.shape and not np.array_equal(pair.labels, labels)  # the drawn one alone


@pytest.mark.parametrize("spacing", [1.0, 2.0])
def test_satellites(cases: dict[float, Path], tmp_path: Path, spacing: float) -> None:
    """Smaller than the first, `NEAR_MM` from its edge, in the brain; the first keeps its labels; a share has one."""
    brains = canvases(cases[spacing], tmp_path)
    name = next(iter(brains.cases))
    request = ELSEWHERE
    pair, _ = painted(brains, name, request, request)
    assert all(brains.satellite(brains.get(name), pair, seed) is None for seed in range(20))
    brains.satellites = 0.3
    if spacing == 2:
        found = [brains.satellite(brains.get(name), pair, seed) for seed in range(60)]
        assert 0.15 < np.mean([one is not None for one in found]) < 0.45
    brains.satellites = 1.0
    one, two = (brains.satellite(brains.get(name), pair, 7_000) for _ in range(2))
    assert np.array_equal(one[1], two[1])
    for seed in range(6 if spacing == 2 else 2):
        canvas, small = brains.satellite(brains.get(name), pair, seed)
        assert module.SATELLITE_ML[0] <= small[0] <= pair.measured[0] / 2
        assert np.array_equal(canvas.labels, pair.labels) and canvas.image is pair.image
        row = brains.row(canvas, small)
        known = torch.from_numpy(canvas.latents)[None]
        latents = brains.sampler(row["image"][None], None, [0], region=row["region"][None], known=known)[0]
        second = draw_into(canvas, latents, row["region"], brains.model, small)
        first, other = pair.labels > 0, second.labels > 0
        assert second.fault == "" and not (first & other).any()
        assert (second.image[0][first] != 0).all()
        assert second.measured[0] == pytest.approx(small[0], rel=0.25)
        assert np.linalg.norm(second.measured[3:6] - small[3:6]) < 4
        gap = ndimage.distance_transform_edt(~first, canvas.native.spacing)[other].min()
        assert 1 < gap < module.NEAR_MM[1] + 8


def test_small_tumours_have_no_satellite(cases: dict[float, Path], tmp_path: Path) -> None:
    """Half of a tumour below 1.4 ml is less than the smallest one that is drawn beside another."""
    brains = canvases(cases[2.0], tmp_path)
    brains.satellites = 1.0
    name = next(iter(brains.cases))
    request = ELSEWHERE
    pair, _ = painted(brains, name, request, request)
    small = replace(pair, measured=pair.measured * [1.3 / pair.measured[0], *[1] * 8])
    assert brains.satellite(brains.get(name), small, 1) is None
    assert brains.satellite(brains.get(name), pair, 1) is not None


@pytest.mark.parametrize("dtype", [np.int16, np.float32])
def test_strength_changes_nothing_else(dtype: type) -> None:
    """Voxels that were not drawn stay, above the largest whole number too; those that were never become background."""
    own = np.array([[0, 5, 100, 30_000, 40_000 if dtype == np.float32 else 32_767, 4]], dtype)
    drawn = own.copy()
    drawn[0, 1:3] += np.array([-3, 50], dtype)
    drawn[0, 5] = 6
    canvas = SimpleNamespace(image=own)
    assert blending._strengthened(drawn, canvas, 2.0)[0].tolist() == [0, 4, 200, *own[0, 3:5], 8]
    below = np.array([[0, -8, -2, 7]], dtype)  # a brain with negative values: rounding to 0 would be background
    weak = blending._strengthened(below + np.array([0, 0, 4, 0], dtype), SimpleNamespace(image=below), 0.5)[0]
    assert weak[2] != 0 and abs(weak[2]) <= 1 and weak[[0, 1, 3]].tolist() == [0, -8, 7]


def test_each_canvas_is_made_once(cases: dict[float, Path], tmp_path: Path) -> None:
    """Both in one batch; they lie in the folder then, and take turns before one comes again."""
    brains = canvases(cases[2.0], tmp_path)
    brains.prepare(list(brains.cases))
    assert [len(call) for call in brains.sampler.calls] == [2]
    again = canvases(cases[2.0], tmp_path)
    again.prepare(list(again.cases))
    for name in again.cases:
        one, other = (vars(made.get(name)) for made in (brains, again))
        for key in one:
            assert np.array_equal(one[key], other[key]), key
    assert again.sampler.calls == []
    first = [brains.order(seed)[0] for seed in range(6)]
    assert all({*first[k : k + 2]} == {*brains.cases} for k in (0, 2, 4))


def test_damaged_canvases_are_made_again(cases: dict[float, Path], tmp_path: Path) -> None:
    """A file cut short in the folder of canvases."""
    brains = canvases(cases[2.0], tmp_path)
    name = next(iter(brains.cases))
    brains.get(name)
    path = brains._path(name)
    path.write_bytes(path.read_bytes()[:1000])
    assert Canvas.load(path) is None and brains.get(name).name == name


def test_places(cases: dict[float, Path], tmp_path: Path) -> None:
    """Inside the brain, never nearly the canvas's own tumour; a place beyond every skull is none."""
    brains = canvases(cases[2.0], tmp_path)
    for seed in range(4):
        name, request = brains.place({}, seed)
        canvas = brains.get(name)
        assert not module._alike(request, canvas.own)
        frame = np.linalg.inv(canvas.native.frame(canvas.working))
        voxel = np.rint((frame @ [*request[3:6], 1])[:3]).astype(int)
        assert canvas.image[0][tuple(voxel)] > 0
        assert brains.place({}, seed)[0] == name and np.array_equal(brains.place({}, seed)[1], request)
    assert brains.place({"x_mm": 79.0, "y_mm": 95.0, "z_mm": 70.0}, 0) is None
    own = TUMOUR.copy()
    assert module._alike(own * [1.2, 1, 1, -1, 1, 1, 1, 1, 1], own)  # mirrored, a fifth larger
    assert not module._alike(own * [1.6, 1, 1, 1, 1, 1, 1, 1, 1], own)
    assert not module._alike(own + np.eye(9)[4] * 20, own)


def test_turns_of_a_canvas_differ(cases: dict[float, Path], tmp_path: Path) -> None:
    """Eight turns of two canvases: no two requests of a canvas are nearly the same, but where the user fixes them."""
    brains = canvases(cases[2.0], tmp_path)
    first = brains.model.tumours.complete
    common = {"volume_ml": 14.0, "y_mm": -10.0, "z_mm": 12.0}  # leaves little room, so that turns would meet
    placed = [brains.place(common, seed) for seed in range(8)]
    for name in brains.cases:
        requests = [request for chosen, request in placed if chosen == name]
        seeds = [seed for seed in range(8) if placed[seed][0] == name]
        plain = [first(common, seed) for seed in seeds]
        met = [
            sum(module._alike(each[i], each[j]) for i in range(len(each)) for j in range(i))
            for each in (plain, requests)
        ]
        assert len(requests) == 4 and met[1] < met[0]
    assert brains.place(common, 7)[0] == placed[7][0] and np.array_equal(brains.place(common, 7)[1], placed[7][1])
    assert len(brains._earlier(next(iter(brains.cases)), {}, 10**6, 1)) == module.TURNS  # not half a million
    fixed = {"volume_ml": 14.0, "x_mm": -25.0, "y_mm": 5.0, "z_mm": 12.0}
    assert all(brains.place(fixed, seed) is not None for seed in range(4))


def test_scans_without_masks(cases: dict[float, Path], tmp_path: Path) -> None:
    """They are drawn into as they are: nothing to heal, nothing to stay clear of."""
    folder = shutil.copytree(cases[2.0], tmp_path / "cases")
    for path in folder.rglob("*_seg.nii.gz"):
        path.unlink()
    brains = canvases(folder, tmp_path)
    name, request = brains.place({}, 0)
    canvas = brains.get(name)
    original = np.asarray(nib.load(brains.cases[name].images[0]).dataobj)
    assert canvas.own.size == 0 and not canvas.labels.any() and brains.sampler.calls == []
    assert np.array_equal(canvas.image[0], original) and request[0] > 0


def test_another_file_of_the_same_name_is_another_canvas(cases: dict[float, Path], tmp_path: Path) -> None:
    """From another folder, or changed since: made anew."""
    brains = canvases(cases[2.0], tmp_path, keep=True)
    name = next(iter(brains.cases))
    first = brains.get(name).image
    folder = shutil.copytree(cases[2.0], tmp_path / "cases")
    path = next((folder / name).glob("*_flair.nii.gz"))
    image = nib.load(path)
    nib.save(nib.Nifti1Image(2 * np.asarray(image.dataobj).astype(np.int16), image.affine), path)
    assert np.array_equal(canvases(folder, tmp_path, keep=True).get(name).image, 2 * first)
    assert np.array_equal(brains.get(name).image, first)


def test_what_cannot_be_read_is_left_out(cases: dict[float, Path], tmp_path: Path, capsys: Any) -> None:
    """One sentence names it; the others go on."""
    folder = shutil.copytree(cases[2.0], tmp_path / "cases")
    brains = canvases(folder, tmp_path)
    bad, good = sorted(brains.cases)
    brains.cases[bad].images[0].write_bytes(b"no image")
    brains.prepare([bad, good])
    said = capsys.readouterr()
    assert bad in said.out + said.err and "left out" in said.out + said.err
    assert list(brains.cases) == [good] and brains.get(good).name == good
    with pytest.raises(DataError, match="no canvas"):
        brains.get(bad)
    late = canvases(folder, tmp_path)  # found out only when its turn comes
    late.cases[good].images[0].write_bytes(b"no image")
    with pytest.raises(DataError, match="no canvas"):
        late.get(bad)
    assert late.place({}, 0) is None and not late.cases
    with pytest.raises(DataError, match="none of the scans can be read"):
        late.order(0)


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (lambda image: image + 100, "its background is not 0.*skull-strip it"),
        (lambda image: np.where(np.indices(image.shape)[2] < 50, 0, image), "what is not 0 takes|a brain has 400 to"),
        (lambda image: 0 * image, "every voxel is 0"),
        (lambda image: (image > 0).astype(np.int16), "as those of a mask do"),
    ],
    ids=("background", "part of a brain", "nothing", "a mask"),
)
def test_scans_that_are_no_brain(cases: dict[float, Path], tmp_path: Path, capsys: Any, harm: Any, said: str) -> None:
    """As pre-flight would find: one sentence with the mend, and the other scan is used."""
    folder = shutil.copytree(cases[2.0], tmp_path / "cases")
    brains = canvases(folder, tmp_path)
    bad, good = sorted(brains.cases)
    path = brains.cases[bad].images[0]
    file = nib.load(path)
    nib.save(nib.Nifti1Image(harm(np.asarray(file.dataobj)), file.affine), path)
    brains.prepare([bad, good])
    output = capsys.readouterr()
    assert list(brains.cases) == [good] and re.search(said, output.out + output.err)


def test_regions_go_on_from_stage_2(taught_run: Path) -> None:
    """The first weights are those of stage 2, with nothing from the new input; stage 2 itself is left as it is."""
    whole, within = (load_checkpoint(taught_run / stage / "best.pt", stage) for stage in ("diffusion", "regions"))
    assert within["preset"] == whole["preset"] and within["constants"] == whole["constants"]
    network = build_denoiser(within_regions(whole["preset"]))
    network.picture = RequestPicture(whole["preset"].grid.fov_mm, whole["constants"]["normaliser"])
    first = continued(network, str(taught_run)).state_dict()
    for name, weights in whole["network"].items():
        grown = first[name]
        if name == "stem.weight":
            assert grown.shape[1] == weights.shape[1] + 1 and not grown[:, -1].any()
            grown = grown[:, :-1]
        assert torch.equal(grown, weights)
    assert within["network"]["stem.weight"][:, -1].any()
    again = call("train", "regions", "--run", taught_run)
    assert again.returncode == 0 and "already trained (80 iterations)" in again.stdout


def test_wrong_words_are_refused(tmp_path: Path, drawn_run: Path) -> None:
    """A preset without regions, --keep and others without --canvas, and a folder that is not there."""
    run = copy_run(drawn_run, tmp_path)
    synth = "synth", "--run", run, "--n", 1, "--dataset", 502
    assert "has no `regions`" in one_line(call(*synth, "--canvas", "train"), 2)
    assert "has no `regions`" in one_line(call("train", "regions", "--run", run), 2)
    assert "say --canvas as well" in one_line(call(*synth, "--keep"), 2)
    assert "--push" in one_line(call(*synth, "--push"), 2)
    assert "--contrast: can be asked for on canvases alone" in one_line(call(*synth, "--contrast", "1.5"), 2)


def test_folders_and_keep(tmp_path: Path, taught_run: Path) -> None:
    """--keep takes no value, and a folder of canvases must be there."""
    synth = "synth", "--run", copy_run(taught_run, tmp_path), "--n", 1, "--dataset", 502
    assert "--keep: takes no value" in one_line(call(*synth, "--canvas", "train", "--keep=yes"), 2)
    assert "no such folder" in one_line(call(*synth, "--canvas", tmp_path / "nowhere"), 2)


def test_kept_tumours_stay_in_the_labels(tmp_path: Path, taught_run: Path, phantom_cases: Path) -> None:
    """--keep from the command line: the labels hold the canvas's own and the new tumour."""
    run = copy_run(taught_run, tmp_path)
    done = call("synth", "--run", run, "--n", 3, "--dataset", 503, "--canvas", "train", "--keep", "--gate", "off")
    folder = run / "nnUNet_raw" / "Dataset503_SBLDM"
    rows = manifest(run, folder.relative_to(run))
    assert rows, done.stderr
    cases = {case.name: case for case in find_cases(phantom_cases, SOURCE)}
    for row in rows:
        own = read_arrays(cases[row["canvas"]], SOURCE)[1] > 0
        labels = np.asarray(nib.load(folder / "labelsTr" / f"{row['pair']}.nii.gz").dataobj) > 0
        assert labels[own].all() and labels.sum() > own.sum()
    assert read_json(folder / "synthesis.json")["canvases"]["own"] == "kept"


def test_controls(tmp_path: Path, taught_run: Path, phantom_cases: Path) -> None:
    """Of each pair the healed canvas alone, and a real tumour of the asked volume in it; what is there stays."""
    run = copy_run(taught_run, tmp_path)
    table = tmp_path / "asked.csv"
    table.write_text("volume_ml\n30\n45\n60\n")
    synth = "synth", "--run", run, "--dataset", 504, "--name", "CANVAS", "--canvas", "train", "--gate", "off"
    assert call(*synth, "--requests", table, "--n", 3).returncode in (0, 4)  # so short a training may give one up
    root = run / "nnUNet_raw"
    drawn = manifest(run, "nnUNet_raw/Dataset504_CANVAS")
    done = call("controls", "--run", run, "--dataset", 504)
    assert done.returncode == 0, done.stderr
    healed, pasted = (root / f"Dataset{n}_CANVAS_{kind}" for n, kind in ((505, "HEALED"), (506, "PASTED")))
    cases = {case.name: case for case in find_cases(phantom_cases, SOURCE)}
    for row, plain, other in zip(
        drawn, *(manifest(run, f"nnUNet_raw/{d.name}") for d in (healed, pasted)), strict=True
    ):
        assert plain["canvas"] == other["canvas"] == row["canvas"] and plain["donor"] == ""
        assert other["donor"] in cases and other["donor"] != row["canvas"]
        images, labels = (
            [
                np.asarray(nib.load(folder / part / f"{each['pair']}{end}.nii.gz").dataobj)
                for folder, each in ((healed, plain), (pasted, other))
            ]
            for part, end in (("imagesTr", "_0000"), ("labelsTr", ""))
        )
        original = read_arrays(cases[row["canvas"]], SOURCE)[0][0]
        assert not labels[0].any() and 0.5 < (images[0] == original).mean() < 1
        assert labels[1].any() and (images[0] == images[1])[labels[1] == 0].mean() > 0.8
        donor = read_arrays(cases[other["donor"]], SOURCE)
        volume = (donor[1] > 0).sum() * abs(np.linalg.det(donor[2][:3, :3])) / 1000
        scale = np.clip(np.cbrt(float(row["requested_volume_ml"]) / volume), 0.75, 1.25)
        assert float(other["measured_volume_ml"]) == pytest.approx(volume * scale**3, rel=0.15)
    assert "no tumour was drawn" in (healed / "datasheet.md").read_text()
    trained = set(read_json(run / "lists.json")["train"])  # the model that heals has seen them all
    assert all(trained <= set(read_json(made / "lineage.json")["cases"]) for made in (healed, pasted))
    assert "the tumours are those of other cases" in (pasted / "datasheet.md").read_text()
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*.nii.gz")}
    assert call("controls", "--run", run, "--dataset", 504).returncode == 0
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*.nii.gz")} == before
    assert "has no such dataset" in one_line(call("controls", "--run", run, "--dataset", 777), 2)


def test_gaps_from_the_command_line(tmp_path: Path, taught_run: Path) -> None:
    """--requests gaps asks for what is rare, whole and on canvases, and the dataset says so; --n is needed then."""
    run = copy_run(taught_run, tmp_path)
    synth = "synth", "--run", run, "--requests", "gaps", "--gate", "off"
    assert "--n is missing" in one_line(call(*synth, "--dataset", 502), 2)
    call(*synth, "--n", 2, "--dataset", 502)
    call(*synth, "--n", 2, "--dataset", 503, "--canvas", "train", "--name", "RARE")
    model = TumourModel.from_state(load_checkpoint(run / "diffusion" / "best.pt", "diffusion")["constants"]["tumours"])
    for folder in ("Dataset502_SBLDM", "Dataset503_RARE"):
        assert read_json(run / "nnUNet_raw" / folder / "synthesis.json")["asked"] == "gaps"
        for row in manifest(run, f"nnUNet_raw/{folder}"):
            asked = np.array([float(row[f"requested_{name}"]) for name in NAMES])
            if folder == "Dataset502_SBLDM":
                assert asked == pytest.approx(model.complete({}, int(row["seed"]), 8), abs=0.06)
            assert not row["extrapolated"] or "below" not in row["extrapolated"]


def test_sweeps_of_one_brain(tmp_path: Path, taught_run: Path) -> None:
    """All ten requests are drawn into the same canvas, whose other voxels they leave alone."""
    run = copy_run(taught_run, tmp_path)
    done = call("sweep", "--run", run, "--n", 1, "--canvas", "train")
    assert done.returncode == 0, done.stderr
    folder = run / "evaluation" / "sweeps_canvas"
    images = [np.asarray(nib.load(path).dataobj) for path in sorted(folder.glob("*_0000.nii.gz"))]
    assert len(images) == 10 and (run / "figures" / "sweeps_canvas.png").exists()
    assert all((image == images[0]).mean() > 0.6 for image in images)
    assert all(np.array_equal(image != 0, images[0] != 0) for image in images)
    held = read_json(folder / "sweeps.json")
    assert held["canvas"] in read_json(run / "lists.json")["train"] and len(held["steps"]) == 10
    assert "10 of 10 images are already there" in call("sweep", "--run", run, "--n", 1, "--canvas", "train").stdout


def test_second_tumours_that_cannot_be_drawn(tmp_path: Path, taught_run: Path, monkeypatch: Any) -> None:
    """Five attempts with noise of their own; then the pair is what it is without `SATELLITES`, and says why."""
    run, seeds, attempts = copy_run(taught_run, tmp_path), [], []
    call_sampler, strength = PairSampler.__call__, session.varied
    monkeypatch.setattr(session, "varied", lambda seed: seeds.append(seed) or strength(seed))

    def noted(self: PairSampler, *inputs: Any, **more: Any) -> torch.Tensor:
        attempts.extend(more.get("attempts") or [])
        return call_sampler(self, *inputs, **more)

    monkeypatch.setattr(PairSampler, "__call__", noted)
    synth = "synth", "--run", run, "--n", 2, "--canvas", "train", "--volume-ml", 60, "--gate", "off"
    call(*synth, "--dataset", 503)
    assert seeds[:2] == [0, 1]
    seeds.clear()
    draw = session.draw_into

    def drawn(canvas: Canvas, *rest: Any) -> Any:
        pair = draw(canvas, *rest)
        return replace(pair, measured=None, fault="nothing") if canvas.labels.any() else pair

    monkeypatch.setattr(session, "draw_into", drawn)
    monkeypatch.setattr(module, "SATELLITE_ML", (20.0, 30.0))
    attempts.clear()
    done = call(*synth, "--dataset", 504, "--satellites", 1)
    alone, tried = (run / "nnUNet_raw" / f"Dataset{number}_SBLDM" for number in (503, 504))
    rows = manifest(run, tried.relative_to(run))
    assert len(rows) == 2, done.stderr
    for row in rows:
        assert row["satellite_ml"] == "" and row["refused_because"] == "" and row["redrawn"] == "0"
        assert row["satellite_refused_because"] == "; ".join(["nothing"] * session.BESIDE)
        for part in ("imagesTr", "labelsTr"):
            file = f"{row['pair']}{'_0000' * (part == 'imagesTr')}.nii.gz"
            one, two = (np.asarray(nib.load(folder / part / file).dataobj) for folder in (alone, tried))
            assert np.array_equal(one, two)
    assert sorted(attempts) == sorted(2 * [session.ATTEMPTS + k for k in range(session.BESIDE)])


def test_satellites_from_the_command_line(tmp_path: Path, taught_run: Path, monkeypatch: Any) -> None:
    """`--satellites 1`: the manifest says how large, the labels hold both tumours, resumed or not."""
    monkeypatch.setattr(module, "SATELLITE_ML", (20.0, 30.0))  # the tiny network draws nothing that is small
    run = copy_run(taught_run, tmp_path)
    synth = "synth", "--run", run, "--dataset", 503, "--n", 3, "--gate", "off"
    assert "--satellites 2: must be a number from 0 to 1." in one_line(
        call(*synth, "--canvas", "train", "--satellites", 2), 2
    )
    assert "--satellites 0.5" in one_line(call(*synth, "--satellites", 0.5), 2)
    done = call(*synth, "--canvas", "train", "--satellites", 1, "--volume-ml", 60)
    folder = run / "nnUNet_raw" / "Dataset503_SBLDM"
    rows = manifest(run, folder.relative_to(run))
    assert rows, done.stderr
    second = sum(bool(row["satellite_ml"]) for row in rows)
    assert second and f"(a second one in {second} of {len(rows)})" in (folder / "datasheet.md").read_text()
    for row in rows:
        mask = nib.load(folder / "labelsTr" / f"{row['pair']}.nii.gz")
        volume = (np.asarray(mask.dataobj) > 0).sum() * np.prod(mask.header.get_zooms()) / 1000
        assert volume == pytest.approx(float(row["measured_volume_ml"]) + float(row["satellite_ml"] or 0), rel=0.02)
    assert read_json(folder / "synthesis.json")["canvases"]["satellites"] == 1.0
    again = "synth", "--run", run, "--dataset", 504, "--gate", "off", "--canvas", "train", "--satellites", 1
    for n in (2, 3):
        call(*again, "--volume-ml", 60, "--n", n)
    for row in rows:
        file = f"labelsTr/{row['pair']}.nii.gz"
        one, two = (nib.load(folder.with_name(f"Dataset{number}_SBLDM") / file) for number in (503, 504))
        assert np.array_equal(np.asarray(one.dataobj), np.asarray(two.dataobj))


def test_pairs_on_canvases(tmp_path: Path, taught_run: Path, phantom_cases: Path) -> None:
    """From the command line: own grid and affine, canvas and hash in the manifest and lineage, plain words, resumed."""
    run = copy_run(taught_run, tmp_path)
    synth = "synth", "--run", run, "--dataset", 502, "--canvas", phantom_cases, "--gate", "off"
    done = call(*synth, "--n", 3)
    folder = run / "nnUNet_raw" / "Dataset502_SBLDM"
    rows = manifest(run, folder.relative_to(run))
    assert rows, done.stderr
    cases = {case.name: case for case in find_cases(phantom_cases, SOURCE)}
    lineage = read_json(folder / "lineage.json")["cases"]
    for row in rows:
        assert lineage[row["canvas"]] == row["canvas_content"] and row["nearest_excess"] == ""
        original, _, affine = read_arrays(cases[row["canvas"]], SOURCE)
        image = nib.load(folder / "imagesTr" / f"{row['pair']}_0000.nii.gz")
        assert np.allclose(image.affine, affine)
        same = np.asarray(image.dataobj) == original[0]
        assert 0.5 < same.mean() < 1 and same[original[0] == 0].all()
    assert len({row["canvas"] for row in rows}) == len(rows)
    assert read_json(folder / "synthesis.json")["canvases"] == {
        "own": "healed",
        "pushed": False,
        "satellites": 0.0,
        "cases": 6,
        "from": str(phantom_cases),
    }
    assert "the brains are real" in (folder / "datasheet.md").read_text()
    (folder / "lineage.json").unlink()
    before = {path.name: path.stat().st_mtime_ns for path in (folder / "labelsTr").iterdir()}
    again = call(*synth, "--n", 3)
    assert f"{len(rows)} of 3 pairs are already there" in again.stdout or len(rows) < 3
    assert {path.name: path.stat().st_mtime_ns for path in (folder / "labelsTr").iterdir()} | before == before | {}
    assert read_json(folder / "lineage.json")["cases"] == lineage  # also of those that an earlier call drew


def test_in_blocks(tmp_path: Path, taught_run: Path, monkeypatch: Any) -> None:
    """Drawn by several processes, some pairs being there: the same bytes, manifest and lineage as by one."""
    seen = []

    def here(function: Any, items: Any, workers: int, *_: Any) -> None:
        seen.extend(len(item.places) for item in items)
        for item in items:
            function(item)
            function(item)  # again does no harm

    asked = "--canvas", "train", "--volume-ml", 60, "--gate", "off", "--satellites", 0.3
    runs = [copy_run(taught_run, tmp_path / name) for name in "ab"]
    call("synth", "--run", runs[0], "--dataset", 502, "--n", 9, *asked)
    call("synth", "--run", runs[1], "--dataset", 502, "--n", 3, *asked)
    monkeypatch.setattr("sbldm.synthesis.blocks.map_in_processes", here)
    call("synth", "--run", runs[1], "--dataset", 502, "--n", 9, *asked, "--workers", 2)
    folders = [run / "nnUNet_raw" / "Dataset502_SBLDM" for run in runs]
    there = len(manifest(runs[0], folders[0].relative_to(runs[0])))
    assert there >= 7 and len(seen) == 2 and sum(seen) >= there - 3
    files, rows = [], []
    for run, folder in zip(runs, folders, strict=True):
        files.append({path.name: path.read_bytes() for path in [*folder.glob("*Tr/*"), folder / "lineage.json"]})
        rows.append([row | {"seconds": ""} for row in manifest(run, folder.relative_to(run))])
    assert files[0] == files[1] and rows[0] == rows[1]
