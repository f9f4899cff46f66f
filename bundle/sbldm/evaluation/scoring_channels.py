"""Scores of more than one image channel: each further one by itself, all at once, and whether they fit each other."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import combinations

import numpy as np

from sbldm.cases.layouts import Case
from sbldm.evaluation.cohort import Cohort
from sbldm.evaluation.protocols import Score
from sbldm.evaluation.scoring import beside, equal, finite, joined
from sbldm.metrics import distribution, slices, tumours
from sbldm.metrics.channels import channel_fit
from sbldm.metrics.volumes import read_channel
from sbldm.run.errors import DataError
from sbldm.run.workers import Workers

__all__ = ["score_channels", "with_all"]


def with_all(cohorts: Mapping[str, Cohort]) -> dict[str, Cohort]:
    """One role's cohort of each channel, of the cases that could be read in all of them, in one order."""
    common = set.intersection(*(set(c.names) for c in cohorts.values()))
    return {channel: _only(c, [c.names.index(name) for name in sorted(common)]) for channel, c in cohorts.items()}


def _only(c: Cohort, rows: list[int]) -> Cohort:
    """Some cases of a cohort, with what the scores of channels look at."""
    return replace(
        c,
        names=[c.names[k] for k in rows],
        features={plane: features[rows] for plane, features in c.features.items()},
        tumours={name: values[rows] for name, values in c.tumours.items()},
    )


def score_channels(
    sides: Mapping[str, Mapping[str, Cohort]],
    heldout: Mapping[str, Cohort],
    files: Mapping[str, Mapping[str, Case]],
    pool: Workers,
) -> Iterator[Score]:
    """Each channel but the first against the held-back cases, all channels at once, and how they fit in pairs.

    Args:
        sides: "synthetic", "floor" and references -> channel -> cohort, see `with_all`.
        heldout: channel -> cohort.
        files: the same sides and "heldout" -> name -> case with all channels: how channels fit is measured on the
            files, as each cohort puts every image around its own brain.
        pool: see `cohort.workers`.

    Raises:
        DataError: two channels of a case have no voxel of brain in common, or another shape.
    """
    channels = list(heldout)
    alone = {channel: {side: of[channel] for side, of in sides.items()} for channel in channels}
    for channel in channels[1:]:
        yield from _alike(
            channel, {s: joined(c) for s, c in alone[channel].items()}, joined(heldout[channel]), alone[channel]
        )
        rows = equal(alone[channel], tumour=True)
        reference = finite(heldout[channel].tumours["contrast"])
        contrast = {side: finite(c.tumours["contrast"][rows[side]]) for side, c in alone[channel].items()}
        if len(reference) and np.ptp(reference) and all(map(len, contrast.values())):
            values = {side: tumours.compare(x, reference)[0] for side, x in contrast.items()}
            n = {side: (len(x), len(reference)) for side, x in contrast.items()}
            yield beside(f"channel.contrast.{channel}", "channels", values, n, aim="low")
    together = {side: np.concatenate([joined(c) for c in of.values()], axis=1) for side, of in sides.items()}
    reference = np.concatenate([joined(c) for c in heldout.values()], axis=1)
    yield from _alike("all_channels", together, reference, alone[channels[0]])
    for i, j in combinations(range(len(channels)), 2):
        first, second = channels[i], channels[j]
        cases = {side: [files[side][n] for n in of[first].names] for side, of in (*sides.items(), ("heldout", heldout))}
        couples = [(case, i, j) for chosen in cases.values() for case in chosen]
        fits = iter(pool.map(_fit, couples, f"Fit of {first} and {second}"))
        measured = {side: np.array([next(fits) for _ in chosen]) for side, chosen in cases.items()}
        reference = measured.pop("heldout")
        values = {side: slices.effect_size(x, reference) for side, x in measured.items()}
        n = {side: (len(x), len(reference)) for side, x in measured.items()}
        note = f"mean {measured['synthetic'].mean():.3f}, held-back {reference.mean():.3f}"
        yield beside(f"channel.fit.{first}-{second}", "channels", values, n, note=note)


def _alike(
    name: str, features: Mapping[str, np.ndarray], reference: np.ndarray, sides: Mapping[str, Cohort]
) -> Iterator[Score]:
    """MMD and KID of feature vectors `[N, D]`, of equally many cases of each side."""
    rows, scale = equal(sides), distribution.Scale.of(features["floor"])
    samples = {side: x[rows[side]] for side, x in features.items()}
    n = {side: (len(x), len(reference)) for side, x in samples.items()}
    values = {side: distribution.mmd(reference, x, scale) for side, x in samples.items()}
    yield beside(f"channel.mmd.{name}", "channels", values, n, aim="low")
    values = {side: distribution.kid(reference, x) for side, x in samples.items()}
    yield beside(f"channel.kid.{name}", "channels", values, n, aim="low")


def _fit(couple: tuple[Case, int, int]) -> float:
    """How two channels of a case fit, by their files."""
    case, i, j = couple
    try:
        return channel_fit(*(read_channel(case, k)[0] for k in (i, j)))
    except ValueError as error:
        raise DataError(f"{case.images[j]}: {error}") from None
