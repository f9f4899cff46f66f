"""Copy-paste augmentation, the rival that needs no training: a real tumour in another real training case.

After TumorCP (Yang et al., MICCAI 2021), which pastes transformed tumours between patients, and CarveMix (Zhang et al.,
MICCAI 2021), where a margin around the lesion, cut by its distance map, comes along. Two things are added that keep
seams away: the margin fades into the receiver, and intensities are brought to the receiver's.

The receiver keeps its own tumour, as in CarveMix, so pairs hold two: 188 ml on average where 100 real cases hold 94. A
gain may then be one of volume. The control heals the receiver first (`--own healed`): 40 pairs of those hold 96 ml,
a Wasserstein distance of 13 ml from the real volumes (40 real cases: 8 [95 %: 15]), and one lesion in .88 (real: .90).
Keeping the tumour and choosing donor and scale so that the sum is a training volume came to 142 ml, 48 ml off, with two
lesions in .90, as a receiver's own tumour is a whole one already.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby
from pathlib import Path
from typing import Any, get_args

import numpy as np
from scipy import ndimage
from scipy.spatial.transform import Rotation

from sbldm.cases.geometry import NativeGrid
from sbldm.cases.intensity import BRIGHTEST, describe_written, to_unit, whole_numbers, written_ranges
from sbldm.cases.layouts import Source, content_hash, read_arrays
from sbldm.cases.pipeline import original_cases
from sbldm.cases.prepare import read_sidecar
from sbldm.run.errors import DataError, InputError
from sbldm.run.files import user_path
from sbldm.run.folder import Run
from sbldm.run.limits import Own
from sbldm.run.manifest import MEASURED
from sbldm.run.progress import Progress
from sbldm.run.workers import Workers, on_cluster
from sbldm.synthesis.blocks import map_in_blocks, quiet
from sbldm.synthesis.healing import heal, rise
from sbldm.synthesis.raw_dataset import RawDataset
from sbldm.synthesis.requests import count_pairs
from sbldm.tumour.characteristics import to_dict

__all__ = ["OWN", "draw_pairs", "paste_tumour"]

OWN = get_args(Own)

SCALE = (0.75, 1.25)
TURN = 20.0  # degrees about each axis, at most
BEND = 0.04  # standard deviation of the elastic displacement, as a share of the tumour's half width
GAIN = (0.9, 1.1)  # of the contrast against the healthy mean
BLEND_MM = (3.0, 8.0)  # width of the margin that fades into the receiver
SHIFT_MM = 6.0  # standard deviation of the first shift; later tries go further
PLACES = 40  # places tried for one tumour
DONORS = 20  # donors tried for one pair
INSIDE = 0.97  # least share of the tumour inside the brain
CLEAR_MM = 4.0  # gap between the two tumours that first tries keep
OVERLAP = 0.25  # most of the pasted tumour that may lie closer to the receiver's, or in it, at the last try
BLOCK = 8  # pairs that a process of several draws in one go
GRID = ("size", "spacing", "direction")  # what cases must share; each may have its own origin


def _carve(
    image: np.ndarray,
    labels: np.ndarray,
    brain: np.ndarray,
    rng: np.random.Generator,
    spacing: np.ndarray,
    scale: float | None = None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The tumour with its margin, scaled, turned and bent, in a window of its own whose middle is the tumour's centre.

    Returns:
        intensities `[C, X, Y, Z]`, weights `[X, Y, Z]` (1 in the tumour, fading to 0 over the margin, 0 where the donor
        has no brain), labels uint8 `[X, Y, Z]`, and the centre `[3]` in voxels of the donor.
    """
    points = np.argwhere(labels)
    centre = (points.min(axis=0) + points.max(axis=0)) / 2
    turn = Rotation.from_euler("xyz", rng.uniform(-TURN, TURN, 3), degrees=True).as_matrix()
    turn = turn * (rng.uniform(*SCALE) if scale is None else scale)
    blend = max(rng.uniform(*BLEND_MM), 1.5 * spacing.max())  # on coarse grids too there is a voxel to fade in
    reach = np.abs((points - centre) * spacing @ turn.T).max(axis=0) + blend
    bend = BEND * reach.min()
    half = np.ceil((reach + 3 * bend) / spacing).astype(int)

    mm = np.stack(np.meshgrid(*(np.arange(-h, h + 1) * s for h, s in zip(half, spacing, strict=True)), indexing="ij"))
    waves = ndimage.zoom(rng.standard_normal((3, 5, 5, 5)), (1, *(2 * half + 1) / 5), order=3, mode="nearest")
    back = np.tensordot(np.linalg.inv(turn), mm + bend * waves, axes=1)
    where = (back.T / spacing + centre).T

    def sample(volume: np.ndarray) -> np.ndarray:
        return ndimage.map_coordinates(volume.astype(np.float32), where, order=1)

    occupancy = np.stack([sample(labels == k) for k in range(1, int(labels.max()) + 1)])
    moved = np.where(occupancy.sum(axis=0) > 0.5, occupancy.argmax(axis=0) + 1, 0).astype(np.uint8)
    # Share of brain under each voxel: background must not darken what lies beside it.
    share = sample(brain)
    values = np.stack([sample(np.where(brain, channel, 0)) for channel in image]) / np.maximum(share, 1e-3)
    weights = 1 - rise(ndimage.distance_transform_edt(moved == 0, spacing) / blend)
    return values, np.where(share > 0.5, weights, 0), moved, centre


def _box(brain: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Centre and half widths `[3]` of a brain's bounding box, in voxels."""
    bounds = [np.flatnonzero(brain.any(axis=tuple({0, 1, 2} - {axis})))[[0, -1]] for axis in range(3)]
    return np.mean(bounds, axis=1), np.ptp(bounds, axis=1) / 2


def paste_tumour(
    donor_image: np.ndarray,
    donor_labels: np.ndarray,
    receiver_image: np.ndarray,
    receiver_labels: np.ndarray,
    rng: np.random.Generator,
    spacing: Sequence[float],
    left_right: int = 0,
    scale: float | None = None,
) -> tuple[np.ndarray, np.ndarray] | None:
    """Paste the tumour of one case into the brain of another, on a common grid (TumorCP, CarveMix; see the module).

    The tumour is scaled, turned, bent and perhaps mirrored; its intensities are shifted and stretched as the mean and
    standard deviation of tumour-free brain in donor and receiver say; it comes to lie near its own place in the
    brain's bounding box. The receiver keeps its own tumour, as in CarveMix: the masks are joined, and where both
    overlap the pasted one wins.

    Args:
        donor_image, receiver_image: `[C, X, Y, Z]`, background exactly 0; the receiver's in whole numbers.
        donor_labels, receiver_labels: `[X, Y, Z]`, 0 background, k the k-th label.
        rng: all that is random comes from here.
        spacing: mm a voxel along the array axes.
        left_right: array axis along which the tumour may be mirrored.
        scale: of the tumour; None for a random one.

    Returns:
        image int16 `[C, X, Y, Z]`, which differs from the receiver's only in the tumour and its margin, and labels
        uint8 `[X, Y, Z]`; or None where the donor's tumour finds no place: 97 % of it inside the brain, and clear of
        the receiver's own tumour by 4 mm, but for a share that grows over the tries from nothing to a quarter.
    """
    spacing = np.asarray(spacing, dtype=float)
    donor_brain, brain = ((image != 0).any(axis=0) for image in (donor_image, receiver_image))
    own = receiver_labels > 0
    healthy = [donor_image[:, donor_brain & (donor_labels == 0)], receiver_image[:, brain & ~own]]
    if not donor_labels.any() or not all(h.size for h in healthy):
        return None
    values, weights, labels, centre = _carve(donor_image, donor_labels, donor_brain, rng, spacing, scale)
    points = np.argwhere(labels)
    if not len(points):
        return None
    (mean, target), (spread, wanted) = (
        [f(h, axis=1, dtype=float)[:, None, None, None] for h in healthy] for f in (np.mean, np.std)
    )
    gain = np.divide(wanted, spread, out=np.ones_like(spread), where=spread > 0) * rng.uniform(*GAIN, spread.shape)
    values = target + (values - mean) * gain

    (donor_middle, donor_half), (middle, half) = _box(donor_brain), _box(brain)
    # Without a tumour of the receiver's own everything is clear.
    gap = ndimage.distance_transform_edt(~own, spacing) if own.any() else np.full(own.shape, np.inf)
    place, size = (centre - donor_middle) / donor_half, np.array(labels.shape)
    for attempt in range(PLACES):
        flip = np.ones(3, int)
        flip[left_right] = rng.choice((-1, 1))
        shift = rng.normal(0, SHIFT_MM * (1 + attempt / 10), 3) / spacing
        start = np.rint(middle + flip * place * half + shift).astype(int) - size // 2
        there = np.where(flip < 0, size - 1 - points, points) + start
        there = tuple(there[((there >= 0) & (there < brain.shape)).all(axis=1)].T)
        close = (gap[there] < CLEAR_MM).sum() / len(points)
        if brain[there].sum() >= INSIDE * len(points) and close <= OVERLAP * attempt / (PLACES - 1):
            break
    else:
        return None

    first, last = np.maximum(start, 0), np.minimum(start + size, brain.shape)
    window, cut = tuple(map(slice, first, last)), tuple(map(slice, first - start, last - start))
    if flip[left_right] < 0:
        values, weights, labels = (np.flip(a, left_right - 3) for a in (values, weights, labels))
    values, weights, labels = (a[..., *cut] for a in (values, weights, labels))
    pasted = (labels > 0) & brain[window]
    if (kept := own[window] & ~pasted).any():  # nothing is painted over what stays of the receiver's own tumour
        weights = weights * rise(ndimage.distance_transform_edt(~kept, spacing) / CLEAR_MM)
    weights = np.where(brain[window], weights, 0)
    image, joined = np.rint(receiver_image).clip(0, BRIGHTEST).astype(np.int16), receiver_labels.astype(np.uint8)
    mixed = (weights * values + (1 - weights) * receiver_image[:, *window]).clip(1, BRIGHTEST)
    image[:, *window] = np.where(weights > 0, np.rint(mixed), image[:, *window])
    joined[window] = np.where(pasted, labels, joined[window])
    return image, joined


class _Training:
    """The training cases of a run that lie on the commonest grid, and the pair that each seed makes of them."""

    def __init__(self, run: Run, data: str, own: str = "kept") -> None:
        preset, self.own = run.preset, own
        self.source = Source.from_config(**dict(preset.data))
        self.cases = {case.name: case for case in original_cases(run, "train", data)}
        self.sidecars = {case: read_sidecar(run.prepared, case) for case in self.cases}
        grids = {k: str([np.round(s["native"][part], 4) + 0.0 for part in GRID]) for k, s in self.sidecars.items()}
        common, _ = Counter(grids.values()).most_common(1)[0]
        self.names = [case for case in grids if grids[case] == common]
        if len(self.names) < len(grids):
            first = next(case for case in grids if grids[case] != common)
            print(f"Warning: {len(grids) - len(self.names)} case(s) left out, not on the grid of most, e.g. {first}")
        if len(self.names) < 2:
            raise DataError(f"{run.folder}: {len(self.names)} training case(s) on one grid; two are the least.")
        self.native = NativeGrid.from_state(self.sidecars[self.names[0]]["native"])
        self.lineage = {case: self.sidecars[case]["content"] for case in self.names}
        self.written = written_ranges([s["intensities"] for s in self.sidecars.values()])
        self.read = lru_cache(maxsize=4)(self._read)

    def _load(self, case: str) -> tuple[np.ndarray, np.ndarray]:
        return read_arrays(self.cases[case], self.source)[:2]

    def _read(self, case: str) -> tuple[np.ndarray, np.ndarray]:
        """Image `[C, X, Y, Z]` int16, in the intensities that pairs are written in (`cases.intensity`), and labels."""
        image, labels = self._load(case)
        if content_hash(image[0]) != self.lineage[case]:
            raise DataError(f"{self.cases[case].images[0]}: holds other voxels than when it was prepared.")
        brain = (image != 0).any(axis=0)
        own = self.sidecars[case]["intensities"]
        for channel, limits, written in zip(image, own, self.written, strict=True):
            if written:
                channel[:] = written[0] + to_unit(channel, *limits) * (written[1] - written[0])
        return np.stack([whole_numbers(channel, brain) for channel in image]), labels

    def draw(self, seed: int) -> tuple[np.ndarray, np.ndarray, dict[str, Any]] | None:
        """Image, labels and record of one pair; None where no tumour finds a place."""
        begun = time.perf_counter()
        rounds, turn = divmod(seed, len(self.names))
        receiver = self.names[np.random.default_rng([rounds, 1]).permutation(len(self.names))[turn]]
        others = [case for case in self.names if case != receiver]
        left_right = int(np.abs(np.reshape(self.native.direction, (3, 3))[0]).argmax())
        rng = np.random.default_rng([seed, 2])
        image, labels = self.read(receiver)
        if self.own == "healed":
            image, labels = heal(image, labels, self.native.spacing, left_right)
        for redrawn in range(DONORS):
            donor = others[rng.integers(len(others))]
            pair = paste_tumour(*self.read(donor), image, labels, rng, self.native.spacing, left_right)
            if pair:
                grid, working = (NativeGrid.from_state(self.sidecars[receiver][k]) for k in ("native", "working"))
                values = self.source.measure(pair[1], grid.frame(working))
                measured = to_dict(values, self.source.characteristics)
                record = {"seed": seed, "parents": f"{donor};{receiver}", "own": self.own}
                record |= {MEASURED + k: v for k, v in measured.items()} | {"redrawn": redrawn}
                return *pair, record | {"seconds": round(time.perf_counter() - begun, 3)}
        return None


@dataclass(frozen=True)
class _Block:
    """Consecutive seeds that one process draws in one go; what it needs of the cases it reads for itself."""

    name: str
    run: Path
    data: str | Path | None
    own: str
    output: RawDataset
    seeds: Sequence[int]


def _blocks(
    pending: Sequence[int], seed: int, run: Run, data: str | Path | None, own: str, output: RawDataset
) -> list[_Block]:
    data = data and user_path(data).absolute()
    grouped = groupby(pending, lambda pair_seed: (pair_seed - seed) // BLOCK)
    blocks = [list(seeds) for _, seeds in grouped]
    return [_Block(f"{output.name(b[0])} to {output.name(b[-1])}", run.folder, data, own, output, b) for b in blocks]


@lru_cache(maxsize=1)
def _training(run: Path, data: str | Path | None, own: str, cases: str) -> _Training:
    """What a process keeps from block to block of the same `cases`."""
    return _Training(Run.at(run), data, own)


def _draw_block(block: _Block) -> list[str]:
    """Write the pairs of a block that are not there yet; return the names of those that find no place."""
    failed = []
    with quiet():
        training = _training(block.run, block.data, block.own, block.output.settings["train"])
        for seed in block.seeds:
            if block.output.finished(seed):
                continue
            if pair := training.draw(seed):
                block.output.write(seed, *pair)
            else:
                failed.append(block.output.name(seed))
    return failed


def draw_pairs(
    run: Run,
    data: str | Path | None,
    n: int | None,
    seed: int,
    show: Callable[[Path], None],
    dataset_id: int | None = None,
    name: str = "",
    own: str = "kept",
    workers: int = 1,
) -> Path:
    """Fill an nnU-Net raw dataset with pairs made of two training cases each; a second call adds what is missing.

    Pair i has the seed `seed + i` and is a function of it and of the training cases alone. Receivers go round in a
    shuffled order, so each is used about equally; the donor is any other case. Cases on another grid (size, spacing or
    directions) than most are left out with a warning.

    Args:
        run: prepared; pairs go to its `nnUNet_raw`.
        data: folder of the cases, where it has moved since `sbldm prepare`; else None.
        n: number of pairs in all.
        seed: of pair 0.
        show: what is done with the folder when it is filled (`pages.show_pairs`).
        dataset_id, name: of the dataset; 502 and COPYPASTE when left out, 503 and COPYPASTE_HEALED for the control.
        own: "kept", or "healed" for the control: the receiver's own tumour is replaced by healthy tissue (`heal`).
        workers: processes.

    Returns:
        Folder of the dataset.

    Raises:
        InputError: `n`, `data`, `dataset_id`, `name` or `own` is wrong.
        StateError: nothing is prepared here, or the dataset holds pairs of other cases or another seed.
        DataError: fewer than two usable cases, a file that is not the one prepared, or pairs for which no tumour finds
            a place (the others are written).
        OutputError: the dataset cannot be written.
    """
    n = count_pairs(n, 0)
    if own not in OWN:
        raise InputError(f"--own {own}: write {' or '.join(OWN)}.")
    training = _Training(run, data, own)
    output = RawDataset.open(
        root=str(run.raw),
        dataset_id=dataset_id or 502 + OWN.index(own),
        name=name or ("COPYPASTE" if own == "kept" else f"COPYPASTE_{own.upper()}"),
        source=training.source,
        affine=training.native.affine(),
        settings={
            "generator": "copypaste",
            "own": own,
            "seed": seed,
            "intensities": describe_written(training.written, training.source.channels),
            "train": hashlib.sha256(json.dumps(training.lineage).encode()).hexdigest(),
        },
        lineage=training.lineage,
    )
    output.check_room(n, training.native.size)
    output.begin()
    pending = [s for s in range(seed, seed + n) if not output.finished(s)]
    if len(pending) < n:
        print(f"{output.folder}: {n - len(pending)} of {n} pairs are already there.")
    failed = []
    try:
        blocks = _blocks(pending, seed, run, data, own, output) if workers > 1 or on_cluster() else []
        told = output.tell_time(len(pending), processes=Workers(workers).processes(len(blocks)))
        if len(blocks) > 1 or (blocks and on_cluster()):
            for names in map_in_blocks(_draw_block, blocks, workers, [len(block.seeds) for block in blocks]):
                failed += names
        else:
            with Progress("Pasting tumours", len(pending), "pair") as bar:
                for pair_seed in pending:
                    if pair := training.draw(pair_seed):
                        output.write(pair_seed, *pair)
                    else:
                        failed.append(output.name(pair_seed))
                    bar.update()
                    told = told or output.tell_time(len(pending) - bar.done, bar.write)
    finally:
        count = output.compile()
    print(f"{output.folder}: {count} pairs.")
    if count:
        show(output.folder)
    if failed:
        raise DataError(
            f"{output.folder}: {len(failed)} pair(s) not made ({failed[0]}): {DONORS} tumours found no place in the "
            "receiver's brain; use another --seed or more cases."
        )
    return output.folder
