"""The scores of copies: brains, tumours, masks and features, with planted copies as the control."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from scipy.spatial.distance import cdist

from sbldm.evaluation.cohort import Cohort, read_image
from sbldm.evaluation.disguises import DISGUISES
from sbldm.evaluation.protocols import Score
from sbldm.evaluation.scoring import joined, new_score
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
    found: Evaluation, channels: Mapping[str, Mapping[str, Cohort]], real_brains: bool = False
) -> Iterator[Score]:
    """Nearest training cases in image, tumour, mask and features, each against what held-back cases have.

    A pair is as near as it is in its nearest channel: each is compared by itself. Where brains are real by design the
    tumours alone are looked at.

    Args:
        found: takes what is found of each pair, and what is left out.
        channels: channel -> "synthetic", "train" and "heldout" -> cohort, of the same cases in the same order.
        real_brains: see `Settings`.
    """
    of_channel = list(channels.values())
    synthetic, train, heldout = (of_channel[0][role] for role in ("synthetic", "train", "heldout"))
    yield from _copied_tumours(found, synthetic, train, heldout)
    yield from _copied_masks(found, synthetic, train, heldout)
    if real_brains:
        why = "each pair repeats a real brain by design, as a canvas or a receiver; its tumour was looked at"
        found.left_out.append(("copies.near", f"Whole brains against those of training cases: {why}."))
        return
    by_name = [_by_name(cohorts["train"]) for cohorts in of_channel]
    memories = copies.memories_of(by_name, [_by_name(cohorts["heldout"]) for cohorts in of_channel])
    memory, several = memories[0], len(memories) > 1
    each = f", for the nearest of {', '.join(map(str.upper, channels))}, each compared by itself" if several else ""
    found.remarks.append(f"Copies: limits set by {memory.calibration}{each}. {copies.REACH}")
    prints = zip(*(cohorts["synthetic"].fingerprints for cohorts in of_channel), strict=True)
    where, nearest = zip(*(copies.nearest_of(memories, of_pair) for of_pair in prints), strict=True)
    excess = np.array([n.excess for n in nearest])
    n, floor_n = (len(synthetic), len(train)), (memory.honest, len(train))
    floors = {"near": nearness.near_floor(len(synthetic), memory.honest), "sure": nearness.SURE}
    for name, limit in (("near", memory.near), ("sure", memory.copy)):
        count, rate = nearness.copy_rate(excess, limit)
        note = f"{count} pairs beyond an excess of r = {limit:.3f}{', each in its nearest channel' * several}"
        yield new_score(f"copies.{name}", "copies", rate, floors[name], n, floor_n, aim="low", note=note)
    yield _planted(channels, memories)

    worst = np.argsort(-excess)[:WORST]
    originals = [by_name[where[k]][nearest[k].name] for k in worst]
    own = [of_channel[where[k]]["synthetic"].fingerprints[k] for k in worst]
    found.arrays |= {
        "copies.excess.synthetic": excess,
        "copies.excess.heldout": memory.heldout_excess,
        "copies.limits": np.array([memory.near, memory.copy]),
        "copies.worst": worst,
        "copies.differences": np.stack(
            [copies.aligned(cells, other) - other for cells, other in zip(own, originals, strict=True)]
        ),
    }
    if several:
        found.arrays["copies.channels"] = np.array([[*channels][where[k]].upper() for k in worst])
    for pair, near, c in zip(found.pairs, nearest, where, strict=True):
        pair |= {"nearest_case": near.name, "nearest_correlation": round(near.correlation, 4)}
        pair |= {"nearest_excess": round(near.excess, 4)}
        pair |= {"nearest_channel": [*channels][c].upper()} if several else {}
    if len(heldout) < LEAST_HELDOUT:
        few = f"{len(heldout)} held-back case(s); {LEAST_HELDOUT} are the least"
        found.left_out.append(("copies.ratio", f"Distances in features to training and held-back cases: {few}."))
        return
    yield from _copied_features(found, channels)


def _by_name(cohort: Cohort) -> dict[str, np.ndarray]:
    return dict(zip(cohort.names, cohort.fingerprints, strict=True))


def _planted(channels: Mapping[str, Mapping[str, Cohort]], memories: Sequence[copies.Memory]) -> Score:
    """The share found of training images in disguise, each image in one, and in one channel alone."""
    of_kind: dict[str, list[bool]] = {}
    of_channel: dict[str, list[bool]] = {name: [] for name in channels}
    known = itertools.cycle(zip(channels.items(), memories, strict=True))
    train = next(iter(channels.values()))["train"]
    for (kind, disguise), ((channel, cohorts), memory), k in zip(
        itertools.cycle(DISGUISES.items()), known, train.first(PLANTED), strict=False
    ):
        image = disguise(read_image(cohorts["train"].place(k)), train.spacing, np.random.default_rng(k))
        told = memory.nearest(copies.fingerprint(image, train.spacing)).excess > memory.copy
        of_kind.setdefault(kind, []).append(told)
        of_channel[channel].append(told)
    every = [told for seen in of_kind.values() for told in seen]
    note = "; ".join(f"{kind} {sum(seen)} of {len(seen)}" for kind, seen in of_kind.items())
    if len(channels) > 1:
        note += "; ".join(["", *(f"{name.upper()} {sum(seen)} of {len(seen)}" for name, seen in of_channel.items())])
    _, rate = nearness.copy_rate(np.array(every), 0.5)
    return new_score("copies.planted", "copies", rate, 1.0, (len(every), len(train)), (0, 0), aim="high", note=note)


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


def _copied_features(found: Evaluation, channels: Mapping[str, Mapping[str, Cohort]]) -> Iterator[Score]:
    """Distances of feature vectors, of each channel by itself: the nearest one counts. AuthPct is of all at once."""
    parts = [[joined(cohorts[role]) for role in ("synthetic", "train", "heldout")] for cohorts in channels.values()]
    synthetic, train, heldout = map(len, parts[0])
    of_channel = np.array([feature_copies.feature_ratio(*part) for part in parts])
    ratios, nearest = of_channel.min(axis=0), of_channel.argmin(axis=0)
    honest = np.min([_honest_ratios(of_train, of_heldout) for _, of_train, of_heldout in parts], axis=0)
    n, floor_n = (synthetic, train), (heldout, train)
    for name, share in QUANTILES.items():
        values = [_quantile(x, share) for x in (ratios, honest)]
        yield new_score(f"copies.ratio.{name}", "copies", *values, n, floor_n, aim="high")
    of_train = np.concatenate([part[1] for part in parts], axis=1)  # of all channels: nearly no brain is so in each
    shares = []
    for k in (0, 2):
        authentic = feature_copies.authenticity(np.concatenate([part[k] for part in parts], axis=1), of_train)
        shares.append(nearness.copy_rate(authentic, 0.5)[1])
    yield new_score("copies.authpct", "copies", *shares, n, floor_n, aim="high")
    distances = np.array([cdist(samples, of_train).min(axis=1) for samples, of_train, _ in parts])
    for k, (pair, ratio) in enumerate(zip(found.pairs, ratios, strict=True)):
        pair |= {"feature_distance": round(float(distances[nearest[k], k]), 4), "feature_ratio": round(float(ratio), 4)}


def _honest_ratios(train: np.ndarray, heldout: np.ndarray) -> np.ndarray:
    """`[H]`, of each held-back case against the others."""
    one_by_one = ((heldout[k : k + 1], train, np.delete(heldout, k, axis=0)) for k in range(len(heldout)))
    return np.concatenate([feature_copies.feature_ratio(*parts) for parts in one_by_one])


def _quantile(values: np.ndarray, share: float) -> Estimate:
    """A quantile with the percentile interval of a bootstrap."""
    drawn = np.random.default_rng(0).choice(values, size=(2000, len(values)))
    low, high = middle(np.quantile(drawn, share, axis=1))
    return Estimate(float(np.quantile(values, share)), float(low), float(high))
