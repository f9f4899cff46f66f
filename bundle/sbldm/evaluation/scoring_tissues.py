"""Scores of tumours of several tissues: how much of each, how they lie in each other, and how each shows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial

import nibabel as nib
import numpy as np

from sbldm.cases.layouts import Case, Source, read_arrays
from sbldm.evaluation.cohort import Cohort
from sbldm.evaluation.protocols import Score, protocol
from sbldm.evaluation.scoring import beside, comparable, equal, finite
from sbldm.evaluation.settings import Evaluation
from sbldm.metrics import nearness, tumours
from sbldm.metrics.intervals import mean_estimate
from sbldm.metrics.tissues import tissue_measures
from sbldm.run.errors import DataError
from sbldm.run.workers import Workers

__all__ = ["score_tissues"]

Measures = Mapping[str, Mapping[str, np.ndarray]]  # of each side


def score_tissues(
    found: Evaluation,
    sides: Mapping[str, Cohort],
    heldout: Cohort,
    files: Mapping[str, Mapping[str, Case]],
    source: Source,
    pool: Workers,
) -> Iterator[Score]:
    """Volume, share, brightness and border of each tissue against the held-back cases, of cases with a tumour.

    Args:
        found: takes what is left out.
        sides: "synthetic", "floor" and references.
        heldout: the reference.
        files: the same sides and "heldout" -> name -> case: tissues are measured on the files' own grids.
        source: what channels and labels mean.
        pool: see `cohort.workers`.
    """
    cohorts = {**sides, "heldout": heldout}
    rows = equal(sides, tumour=True) | {"heldout": np.flatnonzero(np.isfinite(heldout.tumours["volume_ml"]))}
    cases = {side: [files[side][cohorts[side].names[k]] for k in some] for side, some in rows.items()}
    jobs = [case for of_side in cases.values() for case in of_side]
    records = iter(pool.map(partial(_measured, source=source), jobs, "Tissues"))
    measured: dict[str, dict[str, np.ndarray]] = {}
    for side, of_side in cases.items():
        known = [record for record in (next(records) for _ in of_side) if not isinstance(record, DataError)]
        if len(known) < len(of_side):
            few = f"{len(of_side) - len(known)} of {len(of_side)} {side} cases cannot be read in all channels"
            found.remarks.append(f"Tissues: {few}; they are left out.")
        measured[side] = {name: np.array([record[name] for record in known]) for name in (known or [{}])[0]}
    if not all(measured.values()):
        found.left_out.append(("tissues", "no case of one side can be read in all channels."))
        return
    yield from _distributions(found, measured)
    yield from _shares(found, measured, [*source.nested][-1])


def _distributions(found: Evaluation, measured: Measures) -> Iterator[Score]:
    """Wasserstein distance of each measure but the shares of surfaces."""
    for name, values in measured["heldout"].items():
        if name.startswith("bare."):
            continue
        title, reference = f"tissue.{name}", finite(values)
        samples = {side: finite(of[name]) for side, of in measured.items() if side != "heldout"}
        words = protocol(title)["title"].partition(":")[0]
        if samples := comparable(found, "tissues", name, reference, samples, words):
            distances = {side: tumours.compare(x, reference)[0] for side, x in samples.items()}
            n = {side: (len(x), len(reference)) for side, x in samples.items()}
            note = f"mean {samples['synthetic'].mean():.3g}, held-back {reference.mean():.3g}"
            yield beside(title, "tissues", distances, n, aim="low", note=note)


def _shares(found: Evaluation, measured: Measures, innermost: str) -> Iterator[Score]:
    """How plausible the tissues lie: shares that are read as they are, beside those of the held-back cases."""
    sides = {"floor" if side == "heldout" else side: of for side, of in measured.items() if side != "floor"}
    for name in measured["heldout"]:
        if not name.startswith("bare."):
            continue
        values = {side: finite(of[name]) for side, of in sides.items() if len(finite(of[name]))}
        title = f"nesting.{name}"
        if {"synthetic", "floor"} <= values.keys():
            n = {side: (len(x), len(x)) for side, x in values.items()}
            yield beside(title, "tissues", {s: mean_estimate(x) for s, x in values.items()}, n, aim="low")
        else:
            found.left_out.append((f"tissues.{name}", f"{protocol(title)['title']}: no case of one side has one."))
    if (name := f"volume.{innermost}") in measured["heldout"]:
        absent = {side: nearness.copy_rate(of[name] == 0, 0.5)[1] for side, of in sides.items()}
        n = {side: (len(of[name]),) * 2 for side, of in sides.items()}
        yield beside(f"nesting.absent.{innermost}", "tissues", absent, n)


def _measured(case: Case, source: Source) -> dict[str, float] | DataError:
    """A case whose files are at fault is no reason to stop."""
    try:
        images, labels, affine = read_arrays(case, source)
    except DataError as error:
        return error
    except ValueError:
        return DataError(f"{case.name}: its channels have different shapes.")
    spacing = [float(s) for s in nib.affines.voxel_sizes(affine)]
    names = {name: k for k, name in enumerate(source.labels, start=1)}
    return tissue_measures(dict(zip(source.channels, images, strict=True)), labels, spacing, names, source.nested)
