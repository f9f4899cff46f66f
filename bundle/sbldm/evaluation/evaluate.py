"""All scores of one folder of pairs against real cases, and what is written down.

The held-back cases are the reference. Beside every score stands its floor, the same score of the training cases: a
generator that drew from the very distribution of the training cases would reach it, and one that copies them would
too, which is why the copies are counted apart. Beside the floor stand, where they are known, the same training cases
brought through the path that pairs take, without and with the autoencoder (`protocols.REFERENCES`): what a perfect
generator, and a perfect diffusion behind this autoencoder, would score. Copies, requests and masks against a network's
segmentation have no such references: these cases are training cases, nobody asked for them, and no network segmented
them.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from sbldm.cases.geometry import WorkingGrid
from sbldm.cases.layouts import Case
from sbldm.evaluation.cohort import Cohort, describe, workers
from sbldm.evaluation.protocols import REFERENCES, Score
from sbldm.evaluation.scoring import (
    LEAST,
    chosen,
    score_distribution,
    score_requests,
    score_seam,
    score_similarity,
    score_slices,
    score_tumours,
)
from sbldm.evaluation.scoring_channels import score_channels, with_all
from sbldm.evaluation.scoring_copies import score_copies
from sbldm.evaluation.scoring_fit import score_fit
from sbldm.evaluation.scoring_tissues import score_tissues
from sbldm.evaluation.settings import GROUPS, Evaluation, Settings
from sbldm.metrics.features import load_extractor
from sbldm.metrics.volumes import common_spacing, evaluation_grid
from sbldm.run.device import choose_device
from sbldm.run.errors import DataError
from sbldm.run.files import PARTIAL, clear_partial, make_folder
from sbldm.run.workers import Workers

__all__ = ["ROLES", "SCORING", "evaluate", "is_scored_alike", "reference_names"]

ROLES = ("synthetic", "train", "heldout")
OF_TUMOURS = ("tumours", "tissues", "seam")  # groups of cases with a tumour
SCORING = 2
"""Raise it when a score of one name is computed otherwise: evaluations of different versions do not go together."""


def _scoring(channels: Sequence[str]) -> int:
    """Of several channels the audit for copies once looked at the first alone, all else is as with one."""
    return SCORING + (len(channels) > 1)


def is_scored_alike(provenance: Mapping[str, Any]) -> bool:
    """Whether the scores of an evaluation were computed as they are today."""
    return provenance.get("scoring") == _scoring(provenance.get("channels", ()))


def evaluate(settings: Settings) -> Evaluation:
    """Compute every score there is data for.

    Raises:
        DataError: no case of a role can be read.
        InputError: unknown features, or a folder of predictions that is none.
    """
    begun = time.time()
    device = choose_device()
    extractor = load_extractor(settings.features, device)  # a wrong name is said before any work
    found = Evaluation()
    clear_partial(settings.out)
    with (
        TemporaryDirectory(prefix=PARTIAL, dir=make_folder(settings.out)) as images,
        workers(settings.workers, settings.features) as pool,
    ):
        grid = evaluation_grid(common_spacing(settings.heldout))
        first, *further = settings.source.channels
        read = partial(_read, settings=settings, grid=grid, images=Path(images), pool=pool, found=found)
        cohorts = {role: read(role) for role in ROLES}
        synthetic, train, heldout = (cohort.identities for cohort in cohorts.values())
        if repeated := synthetic & (train | heldout):
            found.remarks.append(f"{len(repeated)} synthetic pair(s) hold the very voxels of a real case.")
        if repeated := train & heldout:
            found.remarks.append(f"{len(repeated)} held-back case(s) are training cases too: every floor is too good.")
        references = _read_references(settings, read, found)
        found.pairs = [{"pair": name} for name in cohorts["synthetic"].names]
        parts: dict[str, Callable[..., Iterator[Score]]] = {
            "similarity": partial(score_similarity, pool=pool, spacing=grid.spacing),
            "distribution": partial(score_distribution, fid=settings.fid),
            "tumours": score_tumours,
            "slices": score_slices,
            "seam": score_seam,
        }
        if len(settings.source.labels) > 1:
            parts["tissues"] = partial(
                score_tissues, files=_files(cohorts | references, settings), source=settings.source, pool=pool
            )
        for group, score in parts.items():
            if group not in settings.groups:
                continue
            if reason := _too_few(group, cohorts):
                found.left_out.append((group, reason))
                continue
            enough = {kind: c for kind, c in references.items() if not _too_few(group, {kind: c})}
            sides = {"synthetic": cohorts["synthetic"], "floor": cohorts["train"], **enough}
            found.scores += score(found, sides, cohorts["heldout"])
        channels = {first: cohorts | references}
        refused = {group: _too_few(group, cohorts) for group in ("channels", "copies") if group in settings.groups}
        if not further:
            refused.pop("channels", None)
        found.left_out += [(group, reason) for group, reason in refused.items() if reason]
        wanted = [group for group, reason in refused.items() if not reason]
        if further and ("channels" in wanted or ("copies" in wanted and not settings.real_brains)):
            odd = Evaluation()
            try:
                channels |= _further(further, channels[first], read, Path(images), odd)
            except DataError as error:  # the scores of the first channel stand
                found.left_out.append(("channels" if "channels" in wanted else "copies.channels", str(error)))
            else:
                if "channels" in wanted:
                    _add_channels(found, channels, settings, pool, odd)
        if "copies" in wanted:
            found.scores += score_copies(found, _complete(channels, found), settings.real_brains)
    if "requests" in settings.groups:
        score_requests(found, cohorts["synthetic"], settings.manifest)
    if "fit" in settings.groups:
        score_fit(found, cohorts, settings)
    several = {"channels": settings.source.channels, "tissues": settings.source.labels}
    asked = {*settings.groups, *(group for group, of in several.items() if len(of) == 1)}
    found.left_out += [(group, "not asked for (--scores).") for group in GROUPS if group not in asked]
    found.provenance = {
        "made": time.strftime("%Y-%m-%d"),
        "minutes": round((time.time() - begun) / 60, 1),
        "spacing_mm": list(grid.spacing),
        "features": extractor.name,
        "first_channel": first,
        **({"channels": settings.source.channels} if further else {}),
        "scoring": _scoring(settings.source.channels),
        "cases": {role: len(cohort) for role, cohort in cohorts.items()},
        "contents": {role: cohort.contents for role, cohort in cohorts.items()},
        "references": {kind: cohort.contents for kind, cohort in references.items()},
        "versions": {name: version(name) for name in ("sbldm", "torch", "monai", "numpy", "scikit-image", "scipy")}
        | {"python": platform.python_version()},
        **settings.origin,
    }
    return found


def _further(
    further: Sequence[str], cohorts: Mapping[str, Cohort], read: Callable[..., Cohort], images: Path, odd: Evaluation
) -> dict[str, dict[str, Cohort]]:
    """Each further channel of the same roles and references; a `DataError` where none of a role can be read."""
    return {
        name: {role: read(role, channel=k, images=make_folder(images / name), found=odd) for role in cohorts}
        for k, name in enumerate(further, start=1)
    }


def _add_channels(
    found: Evaluation,
    channels: Mapping[str, Mapping[str, Cohort]],
    settings: Settings,
    pool: Workers,
    odd: Evaluation,
) -> None:
    """The scores of all channels, or why there are none: too few cases have them all, or a file cannot be read."""
    first = next(iter(channels))
    by_role = {role: with_all({name: of[role] for name, of in channels.items()}) for role in channels[first]}
    if reason := _too_few("channels", {role: of_role[first] for role, of_role in by_role.items()}):
        found.left_out.append(("channels", " ".join([reason, *dict.fromkeys(odd.remarks)])))
        return
    files = _files(by_role, settings)
    by_role["floor"], heldout = by_role.pop("train"), by_role.pop("heldout")
    try:
        found.scores += list(score_channels(by_role, heldout, files, pool))
    except DataError as error:
        found.left_out.append(("channels", str(error)))


def _complete(channels: Mapping[str, Mapping[str, Cohort]], found: Evaluation) -> dict[str, Mapping[str, Cohort]]:
    """The channels in which the same cases could be read as in the first one; the others are remarked on."""
    first = next(iter(channels.values()))
    complete = {name: of for name, of in channels.items() if all(of[r].names == first[r].names for r in ROLES)}
    if missing := channels.keys() - complete.keys():
        names = ", ".join(sorted(missing)).upper()
        found.remarks.append(f"Copies: not looked for in {names}, which cannot be read in all cases.")
    return complete


def _cases(role: str, settings: Settings) -> Sequence[Case]:
    """The files of a role or reference."""
    return settings.references[role] if role in REFERENCES else getattr(settings, role)


def _files(roles: Iterable[str], settings: Settings) -> dict[str, dict[str, Case]]:
    """The cases of roles and references by name; those of "train" are the "floor" too."""
    found = {role: {case.name: case for case in _cases(role, settings)} for role in roles}
    return found | {"floor": found["train"]}


def reference_names(train: Sequence[str], pairs: int) -> list[str]:
    """The training cases to bring through the path: those that make the floor of so many pairs."""
    return [train[k] for k in chosen(pairs, len(train))]


def _read_references(settings: Settings, read: Callable[[str], Cohort], found: Evaluation) -> dict[str, Cohort]:
    """Describe what there is of the references; a sentence says why there is no more."""
    cohorts = {}
    for kind in REFERENCES:
        reason = settings.no_references.get(kind, "")
        if settings.references.get(kind):
            try:
                cohorts[kind] = read(kind)
                continue
            except DataError as error:
                reason = str(error)
        if reason:
            found.remarks.append(f"No reference of {REFERENCES[kind]}: {reason}")
    return cohorts


def _read(
    role: str,
    settings: Settings,
    grid: WorkingGrid,
    images: Path,
    pool: Workers,
    found: Evaluation,
    channel: int = 0,
) -> Cohort:
    """Describe the cases of one role or reference, and remark on what is odd about them."""
    cases = _cases(role, settings)
    source = replace(settings.source, channels=settings.source.channels[channel : channel + 1])
    alone = [case.of_channel(channel) for case in cases]
    cohort = describe(role, alone, source, grid, settings.cache, images, pool)
    if other := sum(not np.allclose(spacing, grid.spacing, rtol=1e-3) for spacing in cohort.spacings):
        spacing = " x ".join(f"{s:g}" for s in grid.spacing)
        found.remarks.append(f"{other} of {len(cases)} {role} cases were resampled to {spacing} mm.")
    if missing := int((~cohort.has_mask).sum()):
        found.remarks.append(f"{missing} of {len(cases)} {role} cases have no mask; tumour scores leave them out.")
    folders = {f"{path.parent}/" for case in cases for path in (*case.images, case.mask)}
    for problem in cohort.problems:
        found.remarks.append(next((problem.replace(f, "") for f in folders if f in problem), problem))
    return cohort


def _too_few(group: str, cohorts: dict[str, Cohort]) -> str:
    """Why a group of scores is refused, or nothing."""
    sizes = {role: len(cohort) for role, cohort in cohorts.items()}
    if group in OF_TUMOURS:
        sizes = {role: int(np.isfinite(c.tumours["volume_ml"]).sum()) for role, c in cohorts.items()}
    if group == "copies":
        del sizes["heldout"], sizes["synthetic"]  # nearness is told without any, see `Memory`
    if not (few := [f"{n} {role}" for role, n in sizes.items() if n < LEAST[group]]):
        return ""
    what = "case(s) with a tumour" if group in OF_TUMOURS else "case(s)"
    mend = "" if "heldout" not in few[-1] else " Hold back more: sbldm prepare --validation-cases list.txt."
    return f"{', '.join(few)} {what}; {LEAST[group]} on each side are the least.{mend}"
