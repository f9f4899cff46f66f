"""Does each mask fit its image? A segmentation network that knows real cases alone is asked, on both sides.

Its predictions on synthetic images are compared with the synthetic masks, those on held-back real images with the
experts' masks, which is the anchor: the two distributions should overlap. A heavy low tail means masks that do not fit
their images, a heavy high tail tumours that are easier than real ones. When the network has been trained on the cases
that the generator was trained on, a pair that repeats one of these gains from it; a held-back case cannot.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from scipy import stats

from sbldm.cases.layouts import Case, Source, to_labels
from sbldm.cases.volumes import load_image, whole_numbers
from sbldm.metrics.intervals import Estimate, mean_estimate, middle
from sbldm.metrics.segmentation import SAME_AFFINE_MM, score_case
from sbldm.run.errors import DataError, StateError
from sbldm.run.files import reading

__all__ = ["agreement", "compare_fit", "inner_regions"]

SCORES = ("dsc", "nsd_1mm", "hd95_mm", "reference_ml", "predicted_ml")
TAIL = 0.05
DRAWS = 2000


def agreement(predictions: Path, cases: Sequence[Case], source: Source) -> list[dict[str, Any]]:
    """Compare each case's mask with what a network has predicted from its image.

    The whole tumour, every label above 0, is compared on the grid of the files, see `score_case`; of a pair of empty
    masks DSC and NSD are 1. Of the regions within it, where the labels tell them apart, the DSC alone; the network
    must number the labels as they are asked for.

    Args:
        predictions: folder of `NAME.nii.gz`.
        cases: whose masks are looked at; those without a prediction are left out, and their number is printed.
        source: labels asked for, which say what in a mask is tumour.

    Returns:
        A row for each case with a prediction, in their order: case, dsc, nsd_1mm, hd95_mm (mm), reference_ml (the
        case's mask) and predicted_ml (ml); "dsc REGION" of each of `inner_regions`.

    Raises:
        StateError: no case has a prediction.
        DataError: a file cannot be read, holds an unknown label, or does not lie on the grid of the other.
    """
    files = {case.name: Path(predictions) / f"{case.name}.nii.gz" for case in cases}
    there = [case for case in cases if files[case.name].is_file()]
    if not there:
        raise StateError(f"{predictions}: holds a prediction of none of the {len(cases)} cases; predict first.")
    if len(there) < len(cases):
        print(f"{predictions}: {len(cases) - len(there)} of {len(cases)} cases have no prediction and are left out.")
    return [_compare(files[case.name], case, source) for case in there]


def _compare(file: Path, case: Case, source: Source) -> dict[str, Any]:
    """The row of one case."""
    (predicted, placed), (stored, affine) = _read(file), _read(case.mask)
    if stored.ndim != 3 or predicted.shape != stored.shape:
        raise DataError(f"{file}: has shape {predicted.shape}, the mask {case.mask} {stored.shape}.")
    if not np.allclose(placed, affine, rtol=0, atol=SAME_AFFINE_MM):
        raise DataError(f"{file}: its affine is not that of the mask {case.mask}; predict from the image beside it.")
    labels = to_labels(stored, case, source)
    scores, _ = score_case(labels > 0, predicted > 0, nib.affines.voxel_sizes(affine))
    regions = {name: [np.isin(x, k) for x in (labels, predicted)] for name, k in inner_regions(source).items()}
    inner = {f"dsc {name}": _dsc(*both) for name, both in regions.items()}
    return {"case": case.name} | {name: scores[name] for name in SCORES} | inner


def inner_regions(source: Source) -> dict[str, list[int]]:
    """The nested regions but the whole tumour, with the numbers of their labels; none of a single label."""
    return dict(list(source.nested.items())[1:])


def _dsc(mask: np.ndarray, other: np.ndarray) -> float:
    total = mask.sum() + other.sum()
    return float(2 * (mask & other).sum() / total) if total else 1.0


def _read(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Voxels as stored, and the affine."""
    with reading(path, "make it again", error=DataError):
        image = load_image(path)
        return whole_numbers(np.asanyarray(image.dataobj)), image.affine


def compare_fit(synthetic: Sequence[float], heldout: Sequence[float], seed: int = 0) -> dict[str, Estimate]:
    """Compare the agreement of synthetic pairs with that of held-back real cases.

    - `synthetic_mean`, `heldout_mean`: means, with the interval of a bootstrap over cases.
    - `low_tail`, `high_tail`: shares of the synthetic pairs below the 5th and above the 95th percentile of the
      held-back cases, with the interval of Clopper & Pearson (1934). It takes these percentiles as they are; how much
      they would differ with other held-back cases is in `tail_floor`: the share, and the middle 95 % of shares, that
      pairs which are like the held-back cases have in either tail. The percentile is Weibull's (type 6 of Hyndman & Fan
      1996), for which this share is 5 % however few cases are held back; of fewer than 19 it is the extreme one, and
      the share 1 / (M + 1).
    - `overlap`: 1 - D with D the two-sample Kolmogorov-Smirnov statistic. Its interval is the asymptotic band of D,
      which is conservative unless the distributions are equal. D of samples from one distribution is not 0:
      `overlap_floor` is the mean and the middle 95 % of their overlap.

    Args:
        synthetic: N scores of pairs, higher is better (DSC, NSD).
        heldout: M scores of held-back real cases, by the same network.
        seed: of the bootstrap and of the two floors.

    Raises:
        ValueError: a sample is empty or holds what is no finite number.
    """
    ours, theirs = (np.asarray(scores, dtype=np.float64) for scores in (synthetic, heldout))
    if not (ours.size and theirs.size and np.isfinite(ours).all() and np.isfinite(theirs).all()):
        raise ValueError("Both samples need one finite score or more.")
    return {
        "synthetic_mean": mean_estimate(ours, seed),
        "heldout_mean": mean_estimate(theirs, seed),
        "low_tail": _low_tail(ours, theirs),
        "high_tail": _low_tail(-ours, -theirs),
        "tail_floor": _tail_floor(len(ours), len(theirs), seed),
        "overlap": _overlap(ours, theirs),
        "overlap_floor": _overlap_floor(len(ours), len(theirs), seed),
    }


def _low_percentile(heldout: np.ndarray) -> np.ndarray:
    """Of each row of `[..., M]`."""
    return np.quantile(heldout, TAIL, axis=-1, method="weibull")


def _low_tail(ours: np.ndarray, theirs: np.ndarray) -> Estimate:
    found = stats.binomtest(int((ours < _low_percentile(theirs)).sum()), len(ours))
    return Estimate(found.statistic, *map(float, found.proportion_ci(method="exact")))


def _tail_floor(n: int, m: int, seed: int) -> Estimate:
    """Of uniform scores, as that of continuous ones depends on their distribution by the interpolation alone."""
    random = np.random.default_rng(seed)
    below = _low_percentile(random.uniform(size=(DRAWS, m)))
    low, high = middle(random.binomial(n, below) / n)
    return Estimate(max(TAIL, 1 / (m + 1)), float(low), float(high))


def _overlap(ours: np.ndarray, theirs: np.ndarray) -> Estimate:
    value = 1 - float(stats.ks_2samp(ours, theirs, method="asymp").statistic)
    band = float(stats.kstwobign.ppf(0.95)) * (1 / len(ours) + 1 / len(theirs)) ** 0.5
    return Estimate(value, max(0.0, value - band), min(1.0, value + band))


def _overlap_floor(n: int, m: int, seed: int) -> Estimate:
    """Of samples from one distribution every order is equally likely; a walk through it gives D."""
    steps = np.repeat([1 / n, -1 / m], [n, m])
    walks = np.random.default_rng(seed).permuted(np.tile(steps, (DRAWS, 1)), axis=1).cumsum(axis=1)
    overlaps = 1 - np.abs(walks).max(axis=1)
    low, high = middle(overlaps)
    return Estimate(float(overlaps.mean()), float(low), float(high))
