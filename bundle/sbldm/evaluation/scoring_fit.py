"""The scores of masks against what a segmentation network that knows real cases alone sees in the images."""

from __future__ import annotations

import numpy as np

from sbldm.evaluation import fit
from sbldm.evaluation.cohort import Cohort
from sbldm.evaluation.scoring import new_score
from sbldm.evaluation.settings import Evaluation, Settings
from sbldm.metrics.intervals import mean_estimate
from sbldm.run.errors import DataError, StateError

__all__ = ["score_fit"]


def score_fit(found: Evaluation, cohorts: dict[str, Cohort], settings: Settings) -> None:
    """Masks against what a network trained on real cases alone segments."""
    if not settings.predictions:
        reason = "no predictions of a network trained on real cases; train one: sbldm nnunet eval --arms real+aug."
        found.left_out.append(("fit", settings.no_predictions or reason))
        return
    rows = {}
    try:
        for role in ("synthetic", "heldout"):
            whole = {name for name, mask in zip(cohorts[role].names, cohorts[role].has_mask, strict=True) if mask}
            cases = [case for case in getattr(settings, role) if case.name in whole]
            rows[role] = fit.agreement(settings.predictions[role], cases, settings.source)
            if len(rows[role]) < len(cases):
                found.remarks.append(f"{len(cases) - len(rows[role])} of {len(cases)} {role} cases have no prediction.")
    except (DataError, StateError) as error:
        found.left_out.append(("fit", str(error)))
        return
    n = tuple(len(rows[role]) for role in ("synthetic", "heldout"))
    for name, key in (("dsc", "dsc"), ("nsd", "nsd_1mm")):
        values = {role: np.array([row[key] for row in rows[role]]) for role in rows}
        for role, scores in values.items():
            found.arrays[f"fit.{name}.{role}"] = scores
        compared = fit.compare_fit(values["synthetic"], values["heldout"])
        means = compared["synthetic_mean"], compared["heldout_mean"]
        found.scores.append(new_score(f"fit.{name}", "fit", *means, (n[0], n[0]), (n[1], n[1])))
        if name == "dsc":
            for part, floor in (("low_tail", "tail"), ("high_tail", "tail"), ("overlap", "overlap")):
                protocol, best = f"fit.{part.replace('_', '-')}", compared[f"{floor}_floor"]
                found.scores.append(new_score(protocol, "fit", compared[part], best, n, n))
    for region in fit.inner_regions(settings.source):
        means = [mean_estimate(np.array([row[f"dsc {region}"] for row in rows[role]])) for role in rows]
        found.scores.append(new_score(f"fit.dsc.{region}", "fit", *means, (n[0], n[0]), (n[1], n[1])))
    by_name = {row["case"]: row for row in rows["synthetic"]}
    for pair in found.pairs:
        if row := by_name.get(pair["pair"]):
            pair |= {"fit_dsc": round(row["dsc"], 4), "fit_nsd_1mm": round(row["nsd_1mm"], 4)}
