"""The scores of copies: brains, tumours, masks and features, with planted copies as the control."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
from scipy.spatial.distance import cdist

from sbldm.evaluation.cohort import Cohort, read_image
from sbldm.evaluation.disguises import DISGUISES
from sbldm.evaluation.protocols import Score
from sbldm.evaluation.scoring import new_score
from sbldm.evaluation.settings import Evaluation
from sbldm.metrics import (
    copies,
    feature_copies,
    nearness,
    tumour_copies,
)
from sbldm.metrics.intervals import Estimate, mean_estimate, middle
from sbldm.run.errors import DataError

__all__ = ["score_copies"]

LEAST_HELDOUT = 5  # for floors of the copies; their count itself needs none
PLANTED = 20
WORST = 6  # pairs shown
QUANTILES = {"1st percentile": 0.01, "5th percentile": 0.05}


# --- requests, copies, fit --------------------------------------------------------------------------------------------


def score_copies(
    found: Evaluation, synthetic: Cohort, train: Cohort, heldout: Cohort, real_brains: bool = False
) -> Iterator[Score]:
    """Nearest training cases in image, tumour, mask and features, each against what held-back cases have.

    Where brains are real by design the tumours alone are looked at.
    """
    yield from _copied_tumours(found, synthetic, train, heldout)
    yield from _copied_masks(found, synthetic, train, heldout)
    if real_brains:
        why = "each pair repeats a real brain by design, as a canvas or a receiver; its tumour was looked at"
        found.left_out.append(("copies.near", f"Whole brains against those of training cases: {why}."))
        return
    by_name = dict(zip(train.names, train.fingerprints, strict=True))
    memory = copies.Memory.build(by_name, dict(zip(heldout.names, heldout.fingerprints, strict=True)))
    found.remarks.append(f"Copies: limits set by {memory.calibration}. {copies.REACH}")
    nearest = [memory.nearest(fingerprint) for fingerprint in synthetic.fingerprints]
    excess = np.array([n.excess for n in nearest])
    n, floor_n = (len(synthetic), len(train)), (memory.honest, len(train))
    floors = {"near": nearness.near_floor(len(synthetic), memory.honest), "sure": nearness.SURE}
    for name, limit in (("near", memory.near), ("sure", memory.copy)):
        count, rate = nearness.copy_rate(excess, limit)
        note = f"{count} pairs beyond an excess of r = {limit:.3f}"
        yield new_score(f"copies.{name}", "copies", rate, floors[name], n, floor_n, aim="low", note=note)
    planted = {kind: [memory.nearest(print_).excess for print_ in prints] for kind, prints in _planted(train).items()}
    told = [f"{kind} {sum(e > memory.copy for e in seen)} of {len(seen)}" for kind, seen in planted.items()]
    _, rate = nearness.copy_rate(np.concatenate(list(planted.values())), memory.copy)
    of = (sum(map(len, planted.values())), len(train))
    yield new_score("copies.planted", "copies", rate, 1.0, of, (0, 0), aim="high", note="; ".join(told))

    worst = np.argsort(-excess)[:WORST]
    found.arrays |= {
        "copies.excess.synthetic": excess,
        "copies.excess.heldout": memory.heldout_excess,
        "copies.limits": np.array([memory.near, memory.copy]),
        "copies.worst": worst,
        "copies.differences": np.stack(
            [
                copies.aligned(synthetic.fingerprints[k], by_name[nearest[k].name]) - by_name[nearest[k].name]
                for k in worst
            ]
        ),
    }
    for pair, near in zip(found.pairs, nearest, strict=True):
        pair |= {"nearest_case": near.name, "nearest_correlation": round(near.correlation, 4)}
        pair |= {"nearest_excess": round(near.excess, 4)}
    if len(heldout) < LEAST_HELDOUT:
        few = f"{len(heldout)} held-back case(s); {LEAST_HELDOUT} are the least"
        found.left_out.append(("copies.ratio", f"Distances in features to training and held-back cases: {few}."))
        return
    yield from _copied_features(found, synthetic, train, heldout)


def _planted(train: Cohort) -> dict[str, list[np.ndarray]]:
    """Fingerprints of training images in disguise, each image in one."""
    prints: dict[str, list[np.ndarray]] = {}
    for (kind, disguise), k in zip(itertools.cycle(DISGUISES.items()), train.first(PLANTED), strict=False):
        image = disguise(read_image(train.place(k)), train.spacing, np.random.default_rng(k))
        prints.setdefault(kind, []).append(copies.fingerprint(image, train.spacing))
    return prints


def _copied_tumours(found: Evaluation, synthetic: Cohort, train: Cohort, heldout: Cohort) -> Iterator[Score]:
    """Tumours that are those of training cases, wherever they lie."""
    try:
        memory = tumour_copies.TumourMemory.build(
            *(dict(zip(c.names, c.tumour_prints, strict=True)) for c in (train, heldout))
        )
    except DataError as error:
        found.left_out.append(("copies.tumours", str(error)))
        return
    found.remarks.append(f"Copied tumours: limits set by {memory.calibration}. {tumour_copies.TUMOUR_REACH}")
    with_tumour = [k for k, mask in enumerate(synthetic.tumour_prints) if mask.any()]
    nearest = [memory.nearest(synthetic.tumour_prints[k]) for k in with_tumour]
    if not nearest:
        found.left_out.append(("copies.tumours", "Copied tumours: no pair has one."))
        return
    n, floor_n, excess = (
        (len(nearest), len(memory.names)),
        (memory.honest, len(memory.names)),
        [e.excess for e in nearest],
    )
    floors = {"near": nearness.near_floor(len(nearest), memory.honest), "sure": nearness.SURE}
    for name, limit in (("near", memory.near), ("sure", memory.copy)):
        count, rate = nearness.copy_rate(np.array(excess), limit)
        note = f"{count} tumours beyond an excess of DSC = {limit:.3f}"
        yield new_score(f"copies.tumours.{name}", "copies", rate, floors[name], n, floor_n, aim="low", note=note)
    for k, near in zip(with_tumour, nearest, strict=True):
        found.pairs[k] |= {"nearest_tumour": near.name, "tumour_dsc": round(near.correlation, 4)}
        found.pairs[k] |= {"tumour_excess": round(near.excess, 4)}


def _copied_masks(found: Evaluation, synthetic: Cohort, train: Cohort, heldout: Cohort) -> Iterator[Score]:
    prints = {name: mask for name, mask in zip(train.names, train.mask_prints, strict=True) if mask.any()}
    overlaps = []
    for c in (synthetic, heldout):
        kept = [k for k, mask in enumerate(c.mask_prints) if mask.any()]
        nearest = [tumour_copies.nearest_mask(c.mask_prints[k], prints) for k in kept] if prints else []
        overlaps.append(np.array([overlap for _, overlap in nearest]))
        if c is synthetic:
            for k, (name, overlap) in zip(kept, nearest, strict=False):
                found.pairs[k] |= {"nearest_mask": name, "mask_dsc": round(float(overlap), 4)}
    if not all(map(len, overlaps)):
        found.left_out.append(("copies.masks", "Masks against training masks: one side has none."))
        return
    sizes = [(len(values), len(prints)) for values in overlaps]
    yield new_score("copies.masks", "copies", *map(mean_estimate, overlaps), *sizes, aim="low")


def _copied_features(found: Evaluation, synthetic: Cohort, train: Cohort, heldout: Cohort) -> Iterator[Score]:
    samples, of_train, of_heldout = (
        np.concatenate(list(c.features.values()), axis=1) for c in (synthetic, train, heldout)
    )
    ratios = feature_copies.feature_ratio(samples, of_train, of_heldout)
    honest = np.concatenate(
        [
            feature_copies.feature_ratio(of_heldout[k : k + 1], of_train, np.delete(of_heldout, k, axis=0))
            for k in range(len(heldout))
        ]
    )
    n, floor_n = (len(synthetic), len(train)), (len(heldout), len(train))
    for name, share in QUANTILES.items():
        values = [_quantile(x, share) for x in (ratios, honest)]
        yield new_score(f"copies.ratio.{name}", "copies", *values, n, floor_n, aim="high")
    shares = []
    for x in (samples, of_heldout):
        authentic = round(feature_copies.authenticity(x, of_train) * len(x))
        shares.append(nearness.copy_rate(np.arange(len(x)) < authentic, 0.5)[1])
    yield new_score("copies.authpct", "copies", *shares, n, floor_n, aim="high")
    distances = cdist(samples, of_train).min(axis=1)
    for pair, ratio, distance in zip(found.pairs, ratios, distances, strict=True):
        pair |= {"feature_distance": round(float(distance), 4), "feature_ratio": round(float(ratio), 4)}


def _quantile(values: np.ndarray, share: float) -> Estimate:
    """A quantile with the percentile interval of a bootstrap."""
    drawn = np.random.default_rng(0).choice(values, size=(2000, len(values)))
    low, high = middle(np.quantile(drawn, share, axis=1))
    return Estimate(float(np.quantile(values, share)), float(low), float(high))
