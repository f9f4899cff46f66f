"""Phantom cases: BraTS-layout FLAIR volumes and tumour masks that look like brains, for users without data at hand.

The anatomy is a set of implicit surfaces in millimetres (x to the left, y to the back, z up), so every grid samples the
same head. A case is a pure function of its seed; nothing is downloaded, and no real case has gone into it. One file:
shapes, anatomy, tumour and scan are one such function.

Beside 34 real training cases at 2 mm, by the evaluation's own measures, mean and SD (24 phantoms as they were, without
slice thickness and lesions beside the tumour; 24 as they are); gradients are mean absolute differences of neighbours in
the inner brain over the SD of the brain:

                                         real            before          now
    gradient in plane                    .29 +- .07      .50 +- .04      .36 +- .06
    gradient across slices               .22 +- .05      .49 +- .04      .29 +- .06
    SSIM of neighbouring slices          .80 +- .06      .50 +- .03      .79 +- .09
    tumours of two or more parts         24 %            4 %             21 %
    brain, left to right, mm             138 +- 5.4      137 +- 4.5      139 +- 5.4
    brain, front to back, mm             171 +- 8.8      172 +- 4.4      169 +- 6.8
    brain, top to bottom, mm             140 +- 3.2      139 +- 2.4      139 +- 2.2
    brain, ml                            1503 +- 149     1407 +- 93      1435 +- 118
    tumour, ml: 10, 50, 90 %             18, 85, 184     11, 34, 91      12, 70, 106
    sphericity                           .63 +- .13      .70 +- .08      .68 +- .09
    contrast, SDs of the brain           2.5 +- 1.2      2.7 +- .5       3.0 +- .5

More shading (SD .09 over 45 mm) brings gradients and contrast nearer still, but the masks of minutes-long trainings,
for which phantoms are made, then stay empty.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from scipy import ndimage
from scipy.spatial.transform import Rotation

from sbldm.run.errors import InputError
from sbldm.run.files import write_nifti
from sbldm.run.progress import progress as show_progress
from sbldm.run.room import check_room

__all__ = ["CHANNELS", "HEAD_BOX", "VOLUME_ML", "make_channels", "make_phantom", "write_phantoms"]

Field = Callable[[np.ndarray], np.ndarray]

HEAD_BOX = (160.0, 200.0, 152.0)
"""Every head fits into a box of this size in mm."""
VOLUME_ML = (5.0, 180.0)
"""Smallest and largest whole-tumour volume."""
GAP = 4.0  # mm at least between a tumour and a lesion beside it
SATELLITES = (0.72, 0.2, 0.08)
"""Probability that a tumour has none, one or two lesions beside it."""
TISSUES = ("grey", "nuclei", "pallidum", "fluid", "lining", "choroid", "oedema", "enhancing", "necrotic")
CHANNELS = {
    channel: dict(zip(TISSUES, levels, strict=True))
    for channel, levels in {
        "flair": (1.22, 1.12, 0.87, 0.17, 1.25, 1.30, 1.80, 1.95, 1.45),
        "t1": (0.76, 0.83, 0.93, 0.30, 0.98, 0.60, 0.72, 0.74, 0.48),
        "t1ce": (0.77, 0.84, 0.93, 0.30, 0.98, 1.30, 0.78, 1.65, 0.50),
        "t2": (1.30, 1.15, 0.90, 2.60, 1.05, 1.90, 1.90, 1.75, 2.25),
    }.items()
}
"""Brightness of each tissue relative to white matter, per image channel."""

# Lateral ventricle of one side: |x|, y, z and radius in mm, from the frontal horn over body and trigone.
HORNS = (
    ((16, -37, 8, 3.0), (10, -27, 11, 4.4), (7, -12, 14, 4.0), (8, 4, 17, 3.6), (15, 18, 15, 4.6), (23, 30, 8, 6.0)),
    ((23, 30, 8, 6.0), (25, 42, 4, 3.6), (23, 53, 2, 1.8)),
    ((23, 30, 8, 6.0), (31, 20, -8, 3.6), (33, 4, -19, 2.6), (31, -7, -23, 1.6)),
)
# Deep grey: centre |x|, y, z and semi-axes in mm.
NUCLEI = (
    ((15.5, -22, 7), (5.0, 11, 9)),  # caudate
    ((27.0, -5, 1), (5.5, 17, 10)),  # putamen
    ((10.5, 13, 4), (9.5, 14, 10)),  # thalamus
)
PALLIDUM = ((20.0, -1, -1), (4.0, 9, 7))


def _field(rng: np.random.Generator, wavelength: float, spread: float = 0.25) -> Field:
    """A smooth random function of points [3, N] in mm: unit variance, waves of about `wavelength` mm."""
    size, samples = 64, 8
    k = np.fft.fftfreq(size, 1 / size)
    radius = np.sqrt(k[:, None, None] ** 2 + k[None, :, None] ** 2 + k[None, None, : size // 2 + 1] ** 2)
    band = np.exp(-0.5 * ((radius * samples / size - 1) / spread) ** 2)
    lattice = np.fft.irfftn(np.fft.rfftn(rng.standard_normal((size,) * 3)) * band, axes=(0, 1, 2))
    lattice = (lattice / lattice.std()).astype(np.float32)
    return lambda p: ndimage.map_coordinates(lattice, p * (samples / wavelength) + size / 2, order=1, mode="grid-wrap")


def _ellipsoid(p: np.ndarray, centre: Sequence[float], axes: Sequence[float]) -> np.ndarray:
    """Approximate signed distance in mm (negative inside) of points [3, ...] to an ellipsoid."""
    q = [(x - c) / a for x, c, a in zip(p, centre, axes, strict=True)]
    norm = np.sqrt(sum(x * x for x in q)) + 1e-6
    slope = np.sqrt(sum((x / a) ** 2 for x, a in zip(q, axes, strict=True))) + 1e-6
    return norm * (norm - 1) / slope


def _tube(p: np.ndarray, nodes: Sequence[Sequence[float]], flat: float = 1.0) -> np.ndarray:
    """Signed distance in mm to a tube through `nodes` (x, y, z, radius), narrower along x by the factor `flat`."""
    best = np.full(p.shape[1:], np.inf, np.float32)
    for start, end in pairwise(nodes):
        a, step = np.array(start[:3]), np.subtract(end[:3], start[:3])
        t = np.clip(sum((x - c) * s for x, c, s in zip(p, a, step, strict=True)) / (step @ step), 0, 1)
        gap = [x - c - t * s for x, c, s in zip(p, a, step, strict=True)]
        radius = start[3] + t * (end[3] - start[3])
        best = np.minimum(best, np.sqrt((flat * gap[0]) ** 2 + gap[1] ** 2 + gap[2] ** 2) - radius)
    return best


def _slab(p: np.ndarray, centre: Sequence[float | np.ndarray], half: Sequence[float]) -> np.ndarray:
    """Distance in mm (0 inside) to an axis-aligned box."""
    return np.sqrt(sum(np.maximum(np.abs(x - c) - h, 0) ** 2 for x, c, h in zip(p, centre, half, strict=True)))


def _join(a: np.ndarray, b: np.ndarray, blend: float) -> np.ndarray:
    """Union of two signed distances, the groove between them filled over `blend` mm."""
    h = np.maximum(blend - np.abs(a - b), 0) / blend
    return np.minimum(a, b) - h * h * blend / 4


def _edge(distance: np.ndarray, width: float) -> np.ndarray:
    """Share of tissue, 1 well inside (negative distance) to 0 well outside, over about `width` mm."""
    return 0.5 - 0.5 * np.tanh(distance / width)


def _fold(p: np.ndarray) -> np.ndarray:
    """Points mirrored onto one hemisphere: |x|, y, z."""
    return np.stack([np.abs(p[0]), p[1], p[2]])


def _hull(p: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Signed distances in mm of points [3, ...] to the outline of the head and to cerebellum with brain stem."""
    x, y, z = m = _fold(p)
    front = np.clip((-y - 5) / 80, 0, 1)
    wide = x * (1 + 0.16 * front**2)
    down = z / np.where(z < 0, 39, 62)
    norm = ((wide / 68) ** 2.1 + np.abs(y * (1 + (x / 220) ** 2) / 86.5) ** 2.1 + np.abs(down) ** 2.1) ** (
        1 / 2.1
    ) + 1e-3
    cerebrum = np.sqrt(x * x + y * y + z * z) * (1 - 1 / norm)
    temporal = _ellipsoid(m, (41, -8, -30), (22, 38, 22))
    sella = _ellipsoid(m, (0, -30, -46), (20, 36, 25))
    cerebrum = np.maximum(_join(cerebrum, temporal, 8), -sella)
    hind = _join(_ellipsoid(m, (21, 47, -49), (30, 28, 22)), _ellipsoid(m, (0, 7, -38), (16, 13, 19)), 5)
    hind = _join(hind, _tube(m, ((0, 6, -15, 13), (0, 16, -55, 11), (0, 25, -90, 8.5))), 5)
    return _join(cerebrum, hind, 9), hind


@dataclass(frozen=True)
class _Tumour:
    """What is drawn before the anatomy is known, for the mass effect needs it."""

    middle: np.ndarray
    volume: float  # ml
    reach: float  # mm, radius of a ball of that volume
    lobes: list[tuple[np.ndarray, float]]
    push: float
    satellites: list[tuple[np.ndarray, float]]  # where lesions apart from it lie, and their share of the volume

    @classmethod
    def draw(cls, rng: np.random.Generator) -> _Tumour:
        while True:
            middle = rng.uniform((14, -56, -28), (52, 54, 38))
            if cls.deep(middle):
                break
        middle *= (rng.choice((-1, 1)), 1, 1)
        volume = 0.0
        while not VOLUME_ML[0] <= volume <= VOLUME_ML[1]:
            volume = np.exp(rng.normal(np.log(65), 0.85))
        reach = (3000 * volume / (4 * np.pi)) ** (1 / 3)
        shifts, radii = rng.normal(0, 0.5 * reach, (4, 3)) * (0.7, 1.1, 0.9), reach * rng.uniform(0.5, 0.95, 4)
        lobes = [(middle, reach), *((middle + s, r) for s, r in zip(shifts, radii, strict=True))]
        push = rng.uniform(0.05, 0.3)
        satellites = []
        for _ in range(rng.choice(3, p=SATELLITES)):
            centre = np.full(3, np.inf)
            while not cls.deep(centre):
                away = rng.normal(0, 1, 3)
                centre = middle + away * (rng.uniform(1.5, 2.2) * reach / np.linalg.norm(away))
            satellites.append((centre, np.exp(rng.uniform(np.log(0.01), np.log(0.1)))))
        return cls(middle, volume, reach, lobes, push, satellites)

    @staticmethod
    def deep(point: np.ndarray) -> bool:
        """Whether a point lies well inside the cerebrum."""
        return np.linalg.norm(point / (62, 78, 56)) < 0.84 and (point[2] > -8 or abs(point[0]) > 30)

    def displace(self, p: np.ndarray) -> np.ndarray:
        """Mass effect: the anatomy seen at a point comes from nearer the tumour's centre."""
        away = p - self.middle.astype(np.float32)[:, None]
        return p - away * (self.push * np.exp(-(away**2).sum(0) / (2 * (1.25 * self.reach + 4) ** 2))).astype(
            np.float32
        )

    def depths(self, p: np.ndarray) -> list[np.ndarray]:
        """Depth in mm below the surface of each lobe, negative outside."""
        return [r - np.sqrt(((p - c.astype(np.float32)[:, None]) ** 2).sum(0)) for c, r in self.lobes]


def _place(rng: np.random.Generator, shape: Sequence[int], spacing: float) -> tuple[tuple[slice, ...], np.ndarray]:
    """Put a head into the field of view: its box of voxels, and the millimetres of the template [3, ...] in it."""
    size = (rng.normal(1, 0.03) * rng.normal((1.015, 0.98, 1.01), (0.03, 0.042, 0.012))).clip(
        (0.9, 0.87, 0.94), (1.1, 1.12, 1.06)
    )
    turn = np.deg2rad(rng.normal(0, 2.5, 3).clip(-5, 5))
    shift = rng.normal((0, 7.5, 0.5), (1.0, 2.5, 1.5)).clip((-2, 3, -2), (2, 12, 3))
    axes = [(np.arange(n) - (n - 1) / 2) * spacing for n in shape]
    ends = [(c - h / 2, c + h / 2) for c, h in zip((0, shift[1], 0), HEAD_BOX, strict=True)]
    box = tuple(slice(*np.searchsorted(axis, end)) for axis, end in zip(axes, ends, strict=True))
    grid = np.meshgrid(*(axis[part] - c for axis, part, c in zip(axes, box, shift, strict=True)), indexing="ij")
    pose = Rotation.from_euler("xyz", turn).as_matrix() / size[:, None]
    return box, np.tensordot(pose.astype(np.float32), np.stack(grid).astype(np.float32), 1)


def _anatomy(
    rng: np.random.Generator, q: np.ndarray, outline: np.ndarray, hind: np.ndarray, spacing: float
) -> dict[str, np.ndarray]:
    """Shares of tissue (0 to 1) and the distances in mm to what a tumour respects, at points [3, N]."""
    atrophy = rng.beta(2, 3)  # widens sulci and ventricles together
    bend, wave, wander, deep, rough = (
        _field(rng, *w) for w in ((45, 0.4), (20, 0.16), (40, 0.4), (30, 0.4), (11, 0.4))
    )
    gape, wide, soft = 0.4 + 0.9 * atrophy, 0.6 + 3.0 * atrophy, max(0.55, 0.4 * spacing)
    q = q + np.array([[1], [0], [0]], np.float32) * bend(q)
    ripple, drift = rough(q), wander(q)
    x, y, z = m = _fold(q)

    # The hind brain lies below the tentorium; the cerebrum is everything else.
    tentorium = -19 - 9 * (x / 40) ** 2 - 0.10 * (y - 45)
    below = (z < tentorium) & (hind < 3) & ((y > 12) | (hind < 0) & (x < 17) & (z < -26))
    cistern = np.where((z < -20) & ~below, np.abs(hind - 1.8), 9)
    cleft = np.where((y > 14) & (hind < 6), np.abs(z - tentorium), cistern)

    # Between the hemispheres, above the corpus callosum.
    corpus = -_ellipsoid(np.stack([y * 0, y, z]), (0, 2, -6), (1e3, 45, 29))
    fissure = np.sqrt(x**2 + np.maximum(corpus, 0) ** 2) + 99 * ((z < -20) & (y > -30) & (y < 60))

    # Sulci: sheets where a wave field vanishes, drawn out along the radius so that they stand on the surface.
    centre = np.array([[24], [0], [2]], np.float32)
    radius = np.sqrt((((m - centre) / np.array([[42], [82], [58]], np.float32)) ** 2).sum(0)).clip(0.25)
    surface = (m - centre) * radius**-0.75 + centre
    surface[0] *= np.where(q[0] < 0, -1, 1)
    depth = np.minimum(-outline, fissure)
    floor = (13 + 6 * deep(surface)).clip(3, 24)
    crease = np.abs(wave(surface + 2.0 * wander(surface))) * 2.7
    crease = np.sqrt(crease**2 + np.maximum(depth - floor, 0) ** 2)

    # Sylvian fissure: a cleft from the side, then the insula across its end.
    level = -9 + 0.32 * y + 3.0 * wander(q + 90) + 0.5 * ripple
    insula = 38 + 0.008 * (y + 2) ** 2 + 0.02 * (z - level) ** 2 + 0.8 * rough(q + 30)
    sylvian = np.minimum(_slab(m, (56, 2, level), (16.5, 26, 0.1)), _slab(m, (insula, -2, level + 2), (0.1, 17, 8)))
    folia = np.abs(np.sin((np.hypot(y - 16, z + 30) + 2.5 * drift + 0.6 * ripple) * (np.pi / 4.5))) * 1.5
    folia += np.maximum(-hind - 9 - 3 * deep(q), 0) + np.maximum(28 - y, 0)

    # Distance to the nearest fluid outside the brain, of which the cortex is a ribbon.
    opening = gape * (1.1 + 0.4 * drift) * np.exp(-depth.clip(0) / 9) + 0.05
    wall = np.minimum.reduce([crease - opening, sylvian - gape - 0.2, fissure - 0.5 - 0.5 * gape])
    wall = np.where(below, folia - 0.15, wall)
    wall = np.minimum.reduce([wall, -outline - (0.3 + 0.9 * gape) * (0.8 + 0.5 * deep(q)), cleft - 0.7])
    ventricle = np.minimum.reduce([_tube(m + 0.5 * ripple, nodes, 1.25) for nodes in HORNS]) - wide + 1.3
    third = _ellipsoid(m, (0, 3, -4), (0.9 + 0.4 * wide, 13, 9))
    fourth = _ellipsoid(m, (0, 29, -42), (5 + wide, 4, 9))
    ventricle = np.minimum.reduce([ventricle, third, fourth])
    skin = 0.5 * ripple - 0.3
    notch = np.minimum.reduce([crease, fissure, folia + 1])
    return {
        "brain": outline < skin - 0.8 * np.exp(-((notch / (1 + gape)) ** 2)),
        "closed": (outline > skin - 4.5) | (ventricle < 0.3) | (fissure < 1.2) | below | (hind < 1) | (cleft < 3),
        "grey": _edge(wall - np.where(below, 0.7, 2.9), soft + 0.3),
        "nuclei": _edge(np.minimum.reduce([_ellipsoid(m, *nucleus) for nucleus in NUCLEI]), 1.2),
        "pallidum": _edge(_ellipsoid(m, *PALLIDUM), 1.2),
        "lining": _edge(np.abs(ventricle - 0.8) - 1.2, 0.8) * ~below,
        "sulci": _edge(wall, soft),
        "ventricles": _edge(ventricle, soft),
        "choroid": _edge(_ellipsoid(m, (22, 29, 6), (2.0, 4.5, 2.5)), soft),
    }


def _beyond(growth: np.ndarray, count: int) -> np.ndarray:
    """`growth` less the level that `count` voxels reach."""
    return growth - np.partition(growth, -count)[-count] if count else np.full_like(growth, -np.inf)


def _grow(
    rng: np.random.Generator, tumour: _Tumour, p: np.ndarray, tissue: dict[str, np.ndarray], spacing: float
) -> np.ndarray:
    """Let the tumour grow through `tissue`, to which its shares are added; returns the labels [N]."""
    ragged, rough, texture, grain = (_field(rng, w, 0.4) for w in (30, 11, 17, 7))
    core_share, dead_share = rng.beta(2, 3.5) * 0.7 + 0.05, rng.uniform(0.15, 0.65)
    infiltration = rng.uniform(1.0, 2.5)
    reach, depths, ripple, blotch = tumour.reach, tumour.depths(p), rough(p), texture(p)

    # It fills the voxels that growth reaches first, so its volume is the drawn one on every grid.
    growth = np.logaddexp.reduce(np.array(depths) / (0.1 * reach)) * (0.1 * reach)
    growth += 0.13 * reach * ragged(p) + 0.05 * reach * ripple
    growth -= 4.5 * tissue["grey"] + 3.0 * tissue["nuclei"] + 1.3 * np.maximum(-np.sign(tumour.middle[0]) * p[0], 0)
    growth[tissue["closed"]] = -np.inf
    count = round(1000 * tumour.volume / spacing**3)
    sizes = [round(count * share) for _, share in tumour.satellites]
    growth = _beyond(growth, count - sum(sizes))
    for (centre, _), size in zip(tumour.satellites, sizes, strict=True):
        free = -np.sqrt(((p - centre.astype(np.float32)[:, None]) ** 2).sum(0)) + 1.5 * ripple - 4.5 * tissue["grey"]
        free[tissue["closed"] | (growth > -GAP)] = -np.inf
        growth = np.maximum(growth, _beyond(free, size))
    whole = growth >= 0
    core = np.max(depths[:3], 0) - 0.25 * reach + 0.10 * reach * blotch + 0.06 * reach * ripple
    core_from, dead_from = np.quantile(core[whole], (1 - core_share, 1 - core_share * dead_share))

    edge = _edge(-growth - 0.3, infiltration)
    tissue["oedema"] = edge * (1 - 0.4 * np.exp((-growth).clip(-40, 0) / (0.25 * reach)))
    tissue["enhancing"] = _edge(core_from - core, 1.0) * edge
    tissue["necrotic"] = _edge(dead_from - core, 1.0) * edge
    tissue["patchy"] = 0.05 * blotch + edge * (0.05 * blotch + 0.05 * grain(p))
    return np.where(core >= dead_from, 1, np.where(core >= core_from, 4, 2)) * whole


def _paint(
    rng: np.random.Generator, channel: str, tissue: dict[str, np.ndarray], p: np.ndarray, spacing: float
) -> np.ndarray:
    """Brightness in scanner units at points [3, N]: tissue, texture, bias field, Rician noise."""
    level = {name: value * rng.normal(1, 0.03) for name, value in CHANNELS[channel].items()}
    level["necrotic"] *= rng.uniform(0.6, 1.25)
    value = np.ones(p.shape[1], np.float32)
    for name in ("grey", "nuclei", "pallidum", "lining"):
        value += tissue[name] * (level[name] - value)
    value += tissue["oedema"] * (level["oedema"] * (1 - 0.12 * tissue["grey"]) - value)
    value += tissue["enhancing"] * (level["enhancing"] - value)
    value += tissue["necrotic"] * (level["necrotic"] - level["enhancing"])
    value *= 1 + tissue["patchy"]
    effaced = tissue["sulci"] * (1 - 0.85 * tissue["oedema"])
    value += np.maximum(effaced, tissue["ventricles"]) * (level["fluid"] - value)
    value += tissue["choroid"] * tissue["ventricles"] * (level["choroid"] - value)
    value *= np.exp(0.08 * _field(rng, 190, 0.4)(p))
    noise = rng.normal(0, rng.uniform(0.05, 0.1) / np.sqrt(spacing), (2, p.shape[1]))
    return np.hypot(value + noise[0], noise[1]) * np.exp(rng.uniform(np.log(110), np.log(380)))


def _scan(rng: np.random.Generator, image: np.ndarray, head: np.ndarray, spacing: float) -> np.ndarray:
    """What slice thickness and resampling leave of `image` [X, Y, Z]; the background has no part in it."""
    plane = rng.uniform(0.75, 1.15)
    sigma = np.array([plane, plane, plane * rng.uniform(1.0, 2.0)]) / spacing
    share = ndimage.gaussian_filter(head.astype(np.float32), sigma)
    return ndimage.gaussian_filter(image * head, sigma) / share.clip(1e-3)


def make_channels(
    seed: int | Sequence[int],
    shape: Sequence[int] = (120, 120, 78),
    spacing: float = 2.0,
    channels: Sequence[str] = ("flair",),
) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]:
    """Draw one phantom case; the anatomy depends on `seed` alone, never on the grid or on the channels asked for.

    Args:
        seed: seed or sequence of seeds, as `numpy.random.default_rng` takes them.
        shape: voxels along left, back and up.
        spacing: edge of a voxel in mm.
        channels: any of `CHANNELS`.

    Returns:
        Images by channel (int16 [X, Y, Z], scanner units, background exactly 0, brain above 0), labels (uint8
        [X, Y, Z], 1 necrotic, 2 oedema, 4 enhancing) and the L-P-S affine [4, 4] in mm, as in BraTS.

    Raises:
        InputError: a channel is unknown, a seed negative, or the head does not fit into the field of view.
    """
    if unknown := [name for name in channels if name not in CHANNELS]:
        raise InputError(f"channels: {', '.join(unknown)} unknown; choose from {', '.join(CHANNELS)}.")
    if not channels:
        raise InputError("channels: none given; choose from " + ", ".join(CHANNELS) + ".")
    if any(n * spacing < b for n, b in zip(shape, HEAD_BOX, strict=True)):
        raise InputError(f"shape, spacing: the head needs {HEAD_BOX} mm; take more or larger voxels.")
    seeds = [seed] if isinstance(seed, int | np.integer) else list(seed)
    if min(seeds, default=0) < 0:
        raise InputError(f"seed={min(seeds)}: seeds cannot be negative; give 0 or more.")
    if spacing > 2:
        return _coarser(seeds, shape, spacing, channels)
    rng = np.random.default_rng(seeds)
    box, p = _place(rng, shape, spacing)
    near = _hull(p)[0] < 8  # room for the warp
    p = p[:, near]
    p = p + np.stack([1.3 * warp(p) for warp in [_field(rng, 75, 0.4) for _ in p]])
    outline, hind = _hull(p)
    tumour = _Tumour.draw(rng)
    tissue = _anatomy(rng, tumour.displace(p), outline, hind, spacing)
    brain, head = tissue["brain"], near.copy()
    head[near] = brain
    tissue["closed"] |= ~ndimage.binary_erosion(head, ndimage.generate_binary_structure(3, 3))[near]
    labels = _grow(rng, tumour, p, tissue, spacing)

    def fill(values: np.ndarray, dtype: type) -> np.ndarray:
        volume = np.zeros(tuple(shape), dtype)
        volume[box][head] = values[brain]
        return volume

    images = {}
    for name in channels:
        own = np.random.default_rng([*seeds, list(CHANNELS).index(name)])
        sharp = np.zeros(head.shape, np.float32)
        sharp[near] = _paint(own, name, tissue, p, spacing)
        images[name] = fill(_scan(own, sharp, head, spacing)[near].round().clip(1, 32767), np.int16)
    return images, fill(labels, np.uint8), _affine(spacing)


def _affine(spacing: float) -> np.ndarray:
    """L-P-S; the outer corner of the first voxel is the same on every grid."""
    affine = np.diag([-spacing, -spacing, spacing, 1.0])
    affine[:3, 3] = np.array([-1, -1, 1]) * (spacing - 1) / 2
    return affine


def _coarser(
    seeds: Sequence[int], shape: Sequence[int], spacing: float, channels: Sequence[str]
) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]:
    """Block means of a case drawn at 2 mm or finer: a large voxel holds all that lies in it, and the volume is kept."""
    factor = int(np.ceil(spacing / 2))
    images, labels, _ = make_channels(seeds, [n * factor for n in shape], spacing / factor, channels)
    blocks = [size for n in shape for size in (n, factor)]

    def mean(fine: np.ndarray) -> np.ndarray:
        return fine.reshape(blocks).mean((1, 3, 5))

    inside = mean(images[channels[0]] > 0)
    brain = inside >= 0.5
    shares = np.stack([mean(labels == k) for k in (1, 2, 4)]) * brain
    order = np.argsort(-shares.sum(0), axis=None, kind="stable")[: round((labels > 0).sum() / factor**3)]
    coarse = np.zeros(tuple(shape), np.uint8)
    coarse.flat[order] = np.array([1, 2, 4])[shares.argmax(0).flat[order]]
    means = {name: np.where(brain, mean(fine) / inside.clip(0.5), 0) for name, fine in images.items()}
    return {name: value.round().astype(np.int16) for name, value in means.items()}, coarse, _affine(spacing)


def make_phantom(
    seed: int | Sequence[int], shape: Sequence[int] = (120, 120, 78), spacing: float = 2.0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draw one phantom FLAIR case: image, labels and affine, as `make_channels` describes them."""
    images, labels, affine = make_channels(seed, shape, spacing)
    return images["flair"], labels, affine


def write_phantoms(
    folder: Path,
    n: int,
    seed: int = 0,
    shape: Sequence[int] = (120, 120, 78),
    spacing: float = 2.0,
    channels: Sequence[str] = ("flair",),
    progress: bool = True,
) -> list[str]:
    """Write `n` phantom cases in the BraTS 2018-2021 layout; cases already there are kept.

    Args:
        folder: receives `Phantom_000/Phantom_000_flair.nii.gz`, `Phantom_000/Phantom_000_seg.nii.gz`, ...
        n: number of cases; case i is drawn from the seeds `[seed, i]`, so a larger `n` only adds cases.
        seed: seed of the collection.
        shape: voxels along left, back and up.
        spacing: edge of a voxel in mm.
        channels: any of `CHANNELS`.
        progress: show a progress bar.

    Returns:
        Names of all `n` cases.

    Raises:
        InputError: `n` or `seed` is negative, a channel is unknown, or the head does not fit into the field of view.
        OutputError: the folder cannot be written.
    """
    if n < 0:
        raise InputError(f"n={n}: the number of phantom cases cannot be negative; give 0 or more.")
    names = [f"Phantom_{i:03d}" for i in range(n)]
    new = sum(not (Path(folder) / name).exists() for name in names)
    check_room(Path(folder), new * float(np.prod(shape)) * (0.3 * len(channels) + 0.01), "ask for fewer cases")
    for i, name in enumerate(show_progress(names, "Drawing phantom cases") if progress else names):
        paths = {part: Path(folder) / name / f"{name}_{part}.nii.gz" for part in (*channels, "seg")}
        if all(path.exists() for path in paths.values()):
            continue
        images, labels, affine = make_channels([seed, i], shape, spacing, channels)
        for part, array in {**images, "seg": labels}.items():
            write_nifti(paths[part], array, affine)
    return names
