"""The page to show to colleagues: what an evaluation found, in one HTML file with everything inside.

The marks of the summary follow rules that stand here and on the page. Two of them are shared. A score *differs* from
its floor when their 95 % intervals do not meet, which is stricter than a test at 5 %. It is *alike* only when they meet
and the interval of the difference, put together from both (Zou & Donner, Stat. Med. 27, 2008), rules out a fixed
margin; else the cases are too few, and the page says so.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import io
import math
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jinja2
import numpy as np
from PIL import Image
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

from sbldm.cases.lists import LISTS_FILE, read_lists
from sbldm.evaluation.protocols import REFERENCES, Score, protocol
from sbldm.pages.brains import animation, side_by_side
from sbldm.pages.datasheet import SHEET_AGAIN
from sbldm.pages.figures import draw_figures
from sbldm.pages.table import EVALUATE_AGAIN, GROUPS, number, read_evaluation, read_scores
from sbldm.pages.table1 import report_rows
from sbldm.run.errors import DataError, StateError
from sbldm.run.files import atomic_path, read_rows, read_text, reading, sha256
from sbldm.run.folder import Run
from sbldm.run.manifest import read_manifest, read_settings
from sbldm.synthesis.sweep import SWEEPS, biases, drawn_words, read_sweeps, sweep_figure
from sbldm.training.checkpoints import load_checkpoint, read_history

__all__ = ["Finding", "summarise", "write_report"]

Mark = Literal["good", "mixed", "bad", "unknown"]
Standing = Literal["alike", "worse", "much worse", "unclear"]

DRAWN_ANEW = "run the same command again, which draws it anew or leaves it out"
LARGE_SD = 0.8  # a large effect (Cohen 1988); for slices and tumours
LARGE_SHARE = 0.25  # of precision and recall
LARGE_DSC = 0.05
LARGE_TAIL = 0.1  # of shares that are 5 % among real cases
VOLUME_LIMITS = (0.25, 0.5)  # median relative error: good up to the first, bad beyond the second
CENTRE_LIMITS = (15.0, 30.0)  # median distance, mm

SUBJECTS = {
    "distribution": "whether the images look like real ones",
    "slices": "whether neighbouring slices fit together",
    "seam": "whether tumours fit into their brains",
    "tumours": "whether the tumours are distributed like real ones",
    "requests": "whether tumours are drawn as asked",
    "fit": "whether the masks fit their images",
    "copies": "whether pairs are copies of training cases",
}
FIGURES = {
    "slices": ("slices",),
    "seam": ("seam",),
    "tumours": ("tumours", "place"),
    "requests": ("requests",),
    "fit": ("fit",),
    "copies": ("copies", "worst"),
}
PAIRS_LISTED = 6
PAIR_COLUMNS = {
    "pair": "pair",
    "nearest_case": "nearest training case",
    "nearest_correlation": "correlation",
    "nearest_excess": "beyond the next five",
    "nearest_tumour": "nearest training tumour",
    "tumour_dsc": "DSC, centred",
    "tumour_excess": "beyond the next five",
    "mask_dsc": "DSC in place",
    "feature_ratio": "distance ratio",
}
NEARNESS = ("nearest_excess", "tumour_excess", "nearest_correlation")  # the first that is known orders the pairs
STAGES = {"autoencoder": "Autoencoder", "diffusion": "Latent diffusion", "gan": "Generator and discriminator"}
MANIFEST_TERMS = {
    "sampler": "Sampler",
    "steps": "Steps",
    "eta": "Eta",
    "guidance": "Guidance",
    "gate": "What the gate said of the pairs",
    "checkpoint_sha256": "Checkpoint of the generator (SHA-256)",
}


# --- summary ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Finding:
    """One statement of the summary.

    Attributes:
        group: of scores it is about, or "advice".
        mark: "good", "mixed", "bad" or "unknown".
        statement: one plain sentence or two.
        evidence: the numbers behind it, each with interval, n and floor, or why there are none.
    """

    group: str
    mark: Mark
    statement: str
    evidence: tuple[str, ...] = ()


def summarise(content: Mapping[str, Any]) -> list[Finding]:
    """What the scores say, in words that a clinician understands.

    Args:
        content: of `evaluation.json`: scores, left_out and provenance.

    Returns:
        A statement for each of `SUBJECTS`, then the advice.
    """
    rules: dict[str, Callable[[Mapping[str, Score]], Finding]] = {
        "distribution": _images,
        "slices": _slices,
        "seam": _seam,
        "tumours": _tumours,
        "requests": _requests,
        "fit": _fit,
        "copies": lambda scores: _copies(scores, _repeated(content["provenance"])),
    }
    scores = [Score.from_row(row) for row in content["scores"]]
    found = []
    for group in (name for name in GROUPS if name in rules):
        chosen = {score.protocol: score for score in scores if score.group == group}
        if chosen:
            found.append(rules[group](chosen))
        else:
            reasons = [_sentence(why) for key, why in content["left_out"] if _group_of(key) == group]
            found.append(_unseen(group, *reasons))
    return [*found, _advice({finding.group: finding.mark for finding in found})]


def _unseen(group: str, *reasons: str) -> Finding:
    return Finding(group, "unknown", f"Not looked at: {SUBJECTS[group]}.", reasons)


def _group_of(key: str) -> str:
    """The group that an entry of `left_out` belongs to; those of slices are named after their measure."""
    return "slices" if key.endswith(".effect") else key.split(".")[0]


def _standing(score: Score, margin: float, worse: Literal["more", "less", "either"] = "more") -> Standing:
    """How a score stands to its floor, when what lies in the direction `worse` of it is worse.

    A floor without an interval is known exactly; "either" compares distances from 0.
    """
    ours = np.array([score.value, score.low, score.high])
    theirs = np.array([score.floor, score.floor_low, score.floor_high])
    theirs[np.isnan(theirs)] = score.floor
    if not np.isfinite([ours, theirs]).all():
        return "unclear"
    if worse == "less":
        ours, theirs = -ours[[0, 2, 1]], -theirs[[0, 2, 1]]
    elif worse == "either":
        ours, theirs = _folded(*ours), _folded(*theirs)
    apart = ours[0] - theirs[0]
    if ours[1] > theirs[2]:
        least = apart - math.hypot(ours[0] - ours[1], theirs[2] - theirs[0])
        return "much worse" if least > margin else "worse"
    most = apart + math.hypot(ours[2] - ours[0], theirs[0] - theirs[1])
    return "alike" if most <= margin else "unclear"


def _folded(value: float, low: float, high: float) -> np.ndarray:
    """Value and interval of the absolute value."""
    ends = sorted((abs(low), abs(high)))
    return np.array([abs(value), 0 if low <= 0 <= high else ends[0], ends[1]])


def _numbers(score: Score, percent: bool = False) -> dict[str, str]:
    """Value, interval and n of both sides as text, all with the decimals of the largest; empty where unknown."""
    factor = 100 if percent else 1
    sides = ("synthetic", "floor", *REFERENCES)
    values = [v for side in sides for v in score.side(side)[:3]]
    largest = max((abs(v) for v in values if math.isfinite(v)), default=0)
    decimals = 0 if percent else len(number(largest).partition(".")[2])

    def text(value: float) -> str:
        return f"{round(factor * value, decimals) + 0.0:.{decimals}f}" if math.isfinite(value) else ""

    def interval(low: float, high: float) -> str:
        return f"[{text(low)}, {text(high)}]" if math.isfinite(low) and math.isfinite(high) else ""

    def sizes(n: Sequence[int]) -> str:  # as in scores.md: one number where both sides are as many
        return f"{n[0]}" if n[0] == n[1] else f"{n[0]} / {n[1]}"

    found = {"unit": "%" if percent else score.unit}
    for side in sides:
        value, low, high, n = score.side(side)
        named = "" if side == "synthetic" else f"{side}_"
        found |= {side if named else "value": text(value), f"{named}interval": interval(low, high)}
        found |= {f"{named}n": sizes(n) if math.isfinite(value) or not named else ""}
    return found | {"value": found["value"] or "-"}


def _evidence(label: str, score: Score, floor: str = "real against real", percent: bool = False) -> str:
    """One line with value, interval, n, floor and references; what belongs together does not break."""
    texts = _numbers(score, percent)

    def side(name: str, prefix: str) -> str:
        value = " ".join(filter(None, (texts[name], texts["unit"])))
        interval, size = texts[f"{prefix}interval"], f"n = {texts[f'{prefix}n']}"
        parts = [value + (f" {interval}" if interval else ""), size if interval else ""]
        return ", ".join(part.replace(" ", "\u00a0") for part in parts if part)

    others = {"floor": floor, **REFERENCES}
    told = [f"{words}: {side(name, f'{name}_')}" for name, words in others.items() if texts[name]]
    return "; ".join([f"{label}: {side('value', '')}", *told]) + "."


def _images(scores: Mapping[str, Score]) -> Finding:
    first = scores.get("mmd-laplace.heldout") or scores.get("kid.heldout")  # of an older evaluation
    shares = {name: scores[f"{name}.heldout"] for name in ("precision", "recall") if f"{name}.heldout" in scores}
    if first is None:
        return _unseen("distribution")
    standings = {name: _standing(score, LARGE_SHARE, "less") for name, score in shares.items()}
    lower = [name for name, standing in standings.items() if "worse" in standing]
    missing = {"precision": "many of them lie outside of what is real", "recall": "part of the real variety is missing"}
    told = _standing(first, math.inf)
    if told == "worse" and (lower or len(shares) < 2):
        reasons = f": {' and '.join(missing[name] for name in lower)}" if lower else ""
        mark, statement = "bad", f"The images do not yet look like real ones{reasons}."
    elif told == "worse":
        mark = "mixed"
        statement = "The images can be told from real ones, but no loss of realism or variety was found."
    elif told == "unclear" or (not lower and list(standings.values()) != ["alike", "alike"]):
        mark = "unknown"
        statement = "The images were not told from real ones, but a large difference could have gone unseen."
    elif lower:
        mark, statement = "mixed", f"The images are hard to tell from real ones, but {missing[lower[0]]}."
    else:
        mark = "good"
        statement = "No difference from real images was found, and the intervals leave no room for a large one."
    statement += _explained([*([first] if told == "worse" else []), *(shares[name] for name in lower)])
    numbers = [
        _evidence(_measure(first), first),
        *(_evidence(name.capitalize(), score) for name, score in shares.items()),
    ]
    return Finding("distribution", mark, statement, tuple(numbers))


def _explained(differ: Sequence[Score]) -> str:
    """Which of the scores that stand apart from their floor do so for real cases too, once these take the same path."""
    told = ""
    for kind, words in (("path", "brought through the path alone"), ("autoencoder", "through path and autoencoder")):
        if found := [score for score in differ if score.no_worse_than == kind]:
            told += f" Real cases {words} do no better"
            told += "." if len(found) == len(differ) else f" in {_names(found)}."
    return told


def _slices(scores: Mapping[str, Score]) -> Finding:
    statements = {
        "good": "Neighbouring slices fit together as in real images: no measure differs much.",
        "differ": "Neighbouring slices do not fit together as in real images: {} differ{}.",
        "unclear": "No measure of how slices fit together was found to differ",
    }
    return _of_measures("slices", list(scores.values()), "either", statements)


def _seam(scores: Mapping[str, Score]) -> Finding:
    statements = {
        "good": "Tumours fit into their brains as real ones do: no seam, and no other grain.",
        "differ": "Tumours do not fit into their brains as real ones do: {} differ{}.",
        "unclear": "No seam was found around the tumours",
    }
    return _of_measures("seam", list(scores.values()), "either", statements)


def _tumours(scores: Mapping[str, Score]) -> Finding:
    statements = {
        "good": "The tumours are distributed like real ones: no measure differs much.",
        "differ": "The tumours are not all distributed like real ones: {} differ{}.",
        "unclear": "No measure of the tumours was found to differ",
    }
    measures = [score for name, score in scores.items() if name.startswith("w1.")]
    return _of_measures("tumours", measures, "more", statements)


def _of_measures(
    group: str, scores: Sequence[Score], worse: Literal["more", "either"], statements: Mapping[str, str]
) -> Finding:
    """Many measures in standard deviations: bad when one surely differs much, or half of them differ."""
    standings = [_standing(score, LARGE_SD, worse) for score in scores]
    differ = [score for score, standing in zip(scores, standings, strict=True) if "worse" in standing]
    unclear = standings.count("unclear")
    if differ:
        mark = "bad" if "much worse" in standings or 2 * len(differ) >= len(scores) else "mixed"
        statement = statements["differ"].format(_names(differ), "" if len(differ) > 1 else "s")
        statement += f" {standings.count('alike')} of {len(scores)} measures are alike"
        statement += f", {unclear} cannot be judged with so few cases." if unclear else "."
        statement += _explained(differ)
    elif unclear or not scores:
        mark = "unknown" if 2 * unclear >= len(scores) else "mixed"
        statement = statements["unclear"]
        statement += f", but for {unclear} of {len(scores)} the cases are too few to rule out that they differ much."
    else:
        mark, statement = "good", statements["good"]
    shown = sorted(differ or scores, key=lambda score: _distance(score, worse))[: -3 if len(differ) > 1 else -2 : -1]
    return Finding(group, mark, statement, tuple(_evidence(f"{_measure(s)}, in SD", s) for s in shown))


def _distance(score: Score, worse: str) -> float:
    """How much farther from real than the floor; what is not known comes last."""
    apart = abs(score.value) - abs(score.floor) if worse == "either" else score.value - score.floor
    return apart if math.isfinite(apart) else -math.inf


def _measure(score: Score) -> str:
    return protocol(score.protocol)["title"].split(":")[0]


def _names(scores: Sequence[Score]) -> str:
    """Up to three measures in words, and how many more."""
    words = [_measure(score).replace(",", "") for score in scores]
    words = [word if word[:2].isupper() else word[0].lower() + word[1:] for word in words]
    if len(words) > 3:
        return f"{', '.join(words[:3])} and {len(words) - 3} more"
    return " and ".join(filter(None, (", ".join(words[:-1]), words[-1])))


def _requests(scores: Mapping[str, Score]) -> Finding:
    volume, centre = scores.get("request.volume_error"), scores.get("request.centre_mm")
    if volume is None or centre is None:
        return Finding("requests", "unknown", "Only requests beyond the training range were made; see the table.")
    marks = [_within(volume, VOLUME_LIMITS), _within(centre, CENTRE_LIMITS)]
    numbers = [
        _evidence("Median error of the volume", volume, "with shuffled requests", percent=True),
        _evidence("Median distance of the centre", centre, "with shuffled requests"),
    ]
    if bias := scores.get("request.volume_bias"):
        ends = [math.expm1(end) for end in (bias.value, bias.low, bias.high)]
        size, low, high = _folded(*ends)
        marks.append(_within(replace(bias, value=size, low=low, high=high, floor=math.nan), VOLUME_LIMITS))
        per_cent = "{:+.0f}\u00a0% [{:+.0f}, {:+.0f}]".format(*(100 * end for end in ends))
        numbers.append(f"Volume, drawn against asked on average: {per_cent}, n\u00a0=\u00a0{bias.n[0]}.")
    ranks = [score for name, score in scores.items() if name.startswith("spearman.") and name.count(".") == 1]
    if ignored := [score for score in ranks if not score.low > score.floor]:
        marks.append("mixed")
        numbers.append(f"Not found to be followed at all: {_names(ignored)}.")
    if beyond := scores.get("request.volume_error.extrapolated"):
        label = "Beyond the training range, median error of the volume"
        numbers.append(_evidence(label, beyond, "with shuffled requests", percent=True))
    mark = _joint(marks)
    off = f"half of the pairs within {100 * volume.value:.0f} % of the volume"
    off += f", half within {centre.value:.0f} mm of the place"
    statements: dict[Mark, str] = {
        "good": "Tumours are drawn as asked: {}.",
        "mixed": "Tumours follow the request in part: {}.",
        "bad": "Tumours are not drawn as asked: only {}.",
        "unknown": "Whether tumours are drawn as asked cannot be said with so few pairs; in this sample, {}.",
    }
    return Finding("requests", mark, statements[mark].format(off), tuple(numbers))


def _within(score: Score, limits: tuple[float, float]) -> Mark:
    """Whether an error is surely below the first limit or above the second, and below that of shuffled requests."""
    good, bad = limits
    if not math.isfinite(score.low):
        return "unknown"
    followed = not score.high >= score.floor  # true without a control
    if score.low > bad or (score.low > good and not followed):
        return "bad"
    if score.high <= good and followed:
        return "good"
    return "unknown" if score.high > bad or not followed else "mixed"


def _joint(marks: Sequence[Mark]) -> Mark:
    """Bad when one is bad, good or unknown when all are, else mixed."""
    if "bad" in marks:
        return "bad"
    return marks[0] if len(set(marks)) == 1 else "mixed"


def _fit(scores: Mapping[str, Score]) -> Finding:
    dsc = scores.get("fit.dsc")
    if dsc is None:
        return _unseen("fit")
    tails = {side: scores[f"fit.{side}-tail"] for side in ("low", "high") if f"fit.{side}-tail" in scores}
    standings = {side: _standing(score, LARGE_TAIL) for side, score in tails.items()}
    mean, low = _standing(dsc, LARGE_DSC, "less"), standings.get("low", "unclear")
    unlike = "A network that knows real cases alone agrees less with these masks than with real ones"
    if "much worse" in (mean, low):
        mark, statement = "bad", f"{unlike}: they do not fit their images, or the images are too unlike real ones."
    elif "worse" in (mean, low):
        mark, statement = "mixed", f"{unlike}; how much less is not certain."
    elif "worse" in standings.get("high", ""):
        mark, statement = (
            "mixed",
            "The masks fit their images, but more tumours than in real cases are easy to outline.",
        )
    elif set(standings.values()) | {mean} == {"alike"}:
        mark, statement = "good", "The masks fit their images as well as real masks do."
    else:
        mark = "unknown"
        statement = "The masks were not found to fit worse than real ones, but the cases are too few to rule it out."
    numbers = [_evidence("DSC of mask and segmentation", dsc, "held-back real cases")]
    numbers += [
        _evidence(f"Masks that fit {than} than 95 % of real ones", tails[side], "real cases", percent=True)
        for side, than in (("low", "worse"), ("high", "better"))
        if side in tails
    ]
    return Finding("fit", mark, statement, tuple(numbers))


def _repeated(provenance: Mapping[str, Any]) -> int:
    """How many synthetic pairs hold the very voxels of a real case."""
    contents = provenance.get("contents", {})
    synthetic, *real = (
        {content[:32] for content in contents.get(role, ())} for role in ("synthetic", "train", "heldout")
    )
    return len(synthetic & set().union(*real))


class _Look(NamedTuple):
    """One look for copies: what is looked at, beside what, the start of its protocols, and the unit of its limits."""

    what: str
    original: str
    prefix: str
    unit: str


LOOKS = (
    _Look("pairs", "training case", "copies", "correlation beyond"),
    _Look("tumours", "training tumour", "copies.tumours", "DSC beyond"),
)


def _copies(scores: Mapping[str, Score], repeated: int) -> Finding:
    """The worst of what the looks say, with the numbers of all."""
    looks = [look for look in LOOKS if {f"{look.prefix}.near", f"{look.prefix}.sure"} <= scores.keys()]
    if not looks:
        return _unseen("copies")
    found = [_looked(look, scores) for look in looks]
    mark, statement = max(found, key=lambda one: ("good", "mixed", "unknown", "bad").index(one[0]))[:2]
    masks = scores.get("copies.masks")
    if repeated:
        mark, statement = "bad", f"{repeated} pair(s) hold the very voxels of a real case."
    elif mark == "good" and masks is not None and "worse" in _standing(masks, math.inf):
        mark = "mixed"
        statement = (
            f"No copy was found among the {looks[0].what}, but masks are more like training masks than real ones."
        )
    elif mark == "good":
        statement = " ".join(text for _, text, _ in found)
    if looks[0].prefix != "copies":
        statement += " The brains are real ones by design and were not looked at."
    return Finding("copies", mark, statement, tuple(line for _, _, lines in found for line in lines))


def _looked(look: _Look, scores: Mapping[str, Score]) -> tuple[Mark, str, list[str]]:
    """Mark, statement and numbers of one look."""
    near, sure = scores[f"{look.prefix}.near"], scores[f"{look.prefix}.sure"]
    count = [round(score.value * score.n[0]) for score in (near, sure)]
    limits = [re.search(r"= (-?[\d.]*\d)", score.note) for score in (near, sure)]
    beyond = [f" (excess {look.unit} {limit[1]})" if limit else "" for limit in limits]
    copied = f"{count[1]} of {sure.n[0]} {look.what}"
    mark: Mark
    if sure.low > sure.floor:
        mark, statement = "bad", f"{copied} are copies of {look.original}s{beyond[1]}, more than chance explains."
    elif near.value > (near.floor_high if math.isfinite(near.floor_high) else near.floor):
        nearby = f"{count[0]} of {near.n[0]} {look.what}"
        mark, statement = "bad", f"{nearby} are near to a {look.original}{beyond[0]}, more than chance explains."
    elif count[1]:
        mark, statement = "mixed", f"{copied} may be copies of {look.original}s{beyond[1]}: look at them."
    elif _standing(near, LARGE_TAIL) == "unclear":
        mark = "unknown"
        statement = f"No copy was found among {near.n[0]} {look.what}, too few to rule out that the generator copies."
    else:
        mark, statement = "good", f"{copied} were found to be copies of {look.original}s{beyond[1]}."
    labels = (f"Nearer to a {look.original} than 95 % of held-back ones are", "Beyond the limit of the audit")
    numbers = [
        f"{label}{where}: {n} of {score.n[0]} {look.what}, "
        f"[{100 * score.low:.1f}, {100 * score.high:.1f}]\u00a0%; an honest generator: {100 * score.floor:.3g}\u00a0%."
        for label, score, where, n in zip(labels, (near, sure), beyond, count, strict=True)
    ]
    return mark, statement, numbers


def _advice(marks: Mapping[str, Mark]) -> Finding:
    """What this means for training a segmentation network."""
    names = {
        "distribution": "images",
        "slices": "stacking of slices",
        "seam": "seams",
        "tumours": "tumours",
        "requests": "requests",
        "fit": "masks",
        "copies": "check for copies",
    }
    by_mark: dict[Mark, list[str]] = {mark: [] for mark in ("good", "mixed", "bad", "unknown")}
    for group, mark in marks.items():
        by_mark[mark].append(names[group])
    core = [marks[group] for group in ("distribution", "fit", "copies")]
    mark: Mark
    if marks["copies"] == "bad":
        mark, statement = "bad", "Do not train on these pairs or pass them on before the copies are dealt with."
    elif "bad" in core:
        mark = "bad"
        statement = (
            "As they are, do not count on these pairs to help a segmentation network. If you try them, add them to "
            "real cases, never in place of them."
        )
    elif core.count("unknown") > 1:
        mark, statement = "unknown", "Too little is known of these pairs to advise for or against training on them."
    elif set(marks.values()) == {"good"}:
        mark, statement = "good", "Worth a trial beside real cases: nothing here speaks against it."
    else:
        mark, statement = "mixed", "Worth a trial beside real cases at most, never in place of them."
    words = {"bad": "Against them", "mixed": "In part", "good": "For them", "unknown": "Not known"}
    evidence = [f"{words[m]}: {', '.join(by_mark[m])}." for m in words if by_mark[m]]
    evidence.append(
        "No score here measures whether the pairs help. Only training with and without them does, tested on real cases "
        "that the generator has never seen (sbldm nnunet eval)."
    )
    return Finding("advice", mark, statement, tuple(evidence))


# --- tables -----------------------------------------------------------------------------------------------------------


class _Reading(NamedTuple):
    """How a score stands to its floor: in words, and whether that is a reason to look."""

    words: str
    stands_out: bool


def _reading(score: Score) -> _Reading:
    """As `Score.reading`; where the floor has no interval, it is what was expected."""
    if score.verdict:
        return _Reading(score.reading, score.verdict in ("worse", "higher", "lower", "beyond real"))
    if not np.isfinite([score.low, score.high, score.floor]).all():
        return _Reading("", False)
    if score.protocol.startswith("request.volume_bias"):  # which shuffling does not change
        words = "none" if score.low <= 0 <= score.high else "too large" if score.low > 0 else "too small"
        return _Reading(words, words != "none")
    above, below = score.low > score.floor, score.high < score.floor
    if score.group == "requests":
        better = above if score.aim == "high" else below
        return _Reading("better than shuffled" if better else "no better than shuffled", not better)
    return _Reading("more than expected" if above else "less than expected" if below else "as expected", above or below)


def _strip(score: Score) -> dict[str, float] | None:
    """Where value, floor, their intervals and the references lie on a strip from 0 to 100."""
    names = ("value", "low", "high", "floor", "floor_low", "floor_high", *REFERENCES)
    places = {name: getattr(score, name) for name in names}
    if not np.isfinite([score.floor_low, score.floor_high]).all():  # one side of a floor can be boundless
        del places["floor_low"], places["floor_high"]
    known = [v for v in places.values() if math.isfinite(v)]
    if not np.isfinite([score.low, score.high, score.floor]).all() or min(known) == max(known):
        return None
    scale = 92 / (max(known) - min(known))
    return {name: round(4 + (v - min(known)) * scale, 2) for name, v in places.items() if math.isfinite(v)}


def _row(score: Score) -> dict[str, Any]:
    """One score as the template shows it."""
    described = {"title": protocol(score.protocol)["title"], "protocol": score.protocol, "note": score.note}
    return described | _numbers(score) | {"reading": _reading(score), "strip": _strip(score)}


def _protocols(scores: Sequence[Score]) -> list[dict[str, Any]]:
    """Each text once, with the names and titles of the scores that follow it."""
    found: dict[str, list[dict[str, str]]] = {}
    for score in scores:
        described = protocol(score.protocol)
        found.setdefault(described["text"], []).append({"name": score.protocol, "title": described["title"]})
    return [{"text": text, "scores": entries} for text, entries in found.items()]


def _nearest_pairs(out: Path) -> dict[str, Any] | None:
    """The pairs nearest to a training case, of real brains by their tumours, as numbers."""
    if not (out / "pairs.csv").is_file():
        return None
    rows = read_rows(out / "pairs.csv", {"pair": str}, EVALUATE_AGAIN, remove=False)
    order = next((key for key in NEARNESS if any(row.get(key) for row in rows)), None)
    if order is None:
        return None
    rows = sorted((row for row in rows if row.get(order)), key=lambda row: -float(row[order]))
    columns = {key: heading for key, heading in PAIR_COLUMNS.items() if key in rows[0]}
    names = ("pair", "nearest_case", "nearest_tumour")
    return {
        "headings": list(columns.values()),
        "numeric": [key not in names for key in columns],
        "rows": [
            [row[key] if key in names or not row[key] else f"{float(row[key]):.3f}" for key in columns]
            for row in rows[:PAIRS_LISTED]
        ],
        "of": len(rows),
    }


# --- pictures ---------------------------------------------------------------------------------------------------------


class _Picture(NamedTuple):
    """An inlined picture."""

    uri: str
    width: int
    height: int
    still: str = ""  # one frame of what moves, for print and for those who want no motion


def _uri(data: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def _inlined(path: Path) -> _Picture:
    """A picture as a data URI, plots and animations as they are; of an animation the middle frame too."""
    with reading(path, DRAWN_ANEW), Image.open(path) as image:
        still = ""
        if path.suffix == ".gif":
            image.seek(image.n_frames // 2)
            still = _encoded(image, "png")
        return _Picture(_uri(path.read_bytes(), path.suffix[1:]), *image.size, still)


def _photograph(path: Path) -> _Picture:
    """A picture of brains as JPEG, which takes a fraction of its PNG."""
    with reading(path, DRAWN_ANEW), Image.open(path) as image:
        return _Picture(_encoded(image.convert("RGB"), "jpeg", quality=88, subsampling=0), *image.size)


def _encoded(image: Image.Image, kind: str, **settings: Any) -> str:
    buffer = io.BytesIO()
    image.save(buffer, kind, optimize=True, **settings)
    return _uri(buffer.getvalue(), kind)


def _plots(out: Path, groups: Sequence[str]) -> dict[str, _Picture]:
    """The figures of these groups, drawn where one is missing."""
    names = [name for group in groups for name in FIGURES.get(group, ())]
    paths = {name: out / "figures" / f"{name}.png" for name in names}
    if not all(path.is_file() for path in paths.values()):
        draw_figures(out)
    return {name: _inlined(path) for name, path in paths.items() if path.is_file()}


def _shows_real(folder: Path, declared: bool) -> str:
    """Why pictures of a dataset could show a real case; empty when they cannot.

    Args:
        folder: nnU-Net raw dataset.
        declared: whether somebody has said that its pairs are synthetic, so that it needs no manifest.
    """
    if not (folder / "manifest.csv").is_file():
        return "" if declared else "no manifest says that its pairs are synthetic"
    rows = _manifest(folder)
    if rows and "parents" in rows[0]:
        return "each of its pairs repeats the brain of a real case"
    if rows and "canvas" in rows[0]:
        return "the brains of its pairs are real ones"
    made = {f"{row.get('pair')}.nii.gz" for row in rows}
    if others := [path.name for path in (folder / "labelsTr").glob("*.nii.gz") if path.name not in made]:
        return f"its manifest does not name {sorted(others)[0]}, which may be a real case"
    return ""


def _manifest(folder: Path) -> list[dict[str, str]]:
    """Rows of a manifest; none where there is none that can be read."""
    try:
        return read_manifest(folder)
    except StateError:
        return []


def _older(path: Path, than: Path) -> bool:
    """Whether a picture is missing, or older than what it shows."""
    return not path.is_file() or path.stat().st_mtime_ns < than.stat().st_mtime_ns


def _methods(dataset: Path, run: Run | None, provenance: Mapping[str, Any]) -> tuple[dict[str, Path], list[str]]:
    """Datasets to show by name, that of the evaluation first, and a sentence for each that is not shown."""
    name = provenance.get("synthetic", dataset.name)
    if not (dataset / "labelsTr").is_dir():
        return {}, [f"{name}: no pictures, as the pairs are not there as an nnU-Net raw dataset any more."]
    if _repeated(provenance):
        return {}, [f"{name}: no pictures, as some of its pairs hold the voxels of a real case."]
    if why := _shows_real(dataset, declared=True):
        return {}, [f"{name}: no pictures, as {why}."]
    methods, notes = {dataset.name: dataset}, []
    for description in sorted(run.folder.glob("nnUNet_raw/Dataset*/dataset.json")) if run else ():
        folder = description.parent
        if folder.resolve() == dataset.resolve():
            continue
        if why := _shows_real(folder, declared=False):
            notes.append(f"{folder.name}: no pictures, as {why}.")
        else:
            methods.setdefault(folder.name, folder)
    return methods, notes


def _pictures(out: Path, run: Run | None, provenance: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Animation, methods side by side and sweeps, drawn where they are missing; and what is not shown, and why."""
    dataset = out / provenance.get("dataset", "missing")
    methods, notes = _methods(dataset, run, provenance)
    if any(score.protocol == "copies.sure" and score.value > 0 for score in read_scores(out)):
        methods, notes = {}, [f"{dataset.name}: no pictures, as some of its pairs are copies of training cases."]
    shown: dict[str, Any] = {"methods": list(methods)}
    folder = out / "figures"
    if methods:
        try:
            manifest = dataset / "manifest.csv"
            if _older(folder / "animation.gif", manifest if manifest.is_file() else dataset / "labelsTr"):
                animation(dataset, folder / "animation.gif")
            shown["animation"] = _inlined(folder / "animation.gif")
            side_by_side(methods, folder / "side_by_side.png")  # anew: the methods may be others than last time
            shown["side_by_side"] = _photograph(folder / "side_by_side.png")
        except DataError as error:
            notes.append(f"Pictures of pairs are missing: {_without_folders(str(error))}")
    shown["sweeps"] = _sweeps(out, run, dataset) if run is not None else []
    return shown, notes


def _sweeps(out: Path, run: Run, dataset: Path) -> list[dict[str, Any]]:
    """Figure 3, where its images have been drawn; of those in a real brain the numbers alone."""
    rows, found = _manifest(dataset), []
    pairs_by = {row.get("checkpoint_sha256", "") for row in rows}
    for name in SWEEPS:
        folder, path = run.folder / "evaluation" / name, out / "figures" / f"{name}.png"
        try:
            steps = read_sweeps(folder)
        except StateError:
            continue
        sweep = {"steps": list(map(_swept, steps)), "biases": biases(steps)}
        whole = name == SWEEPS[0]
        alike = bool(rows) and ("canvas" not in rows[0]) == whole  # else two networks by design
        sweep["other_checkpoint"] = alike and pairs_by != {steps[0]["checkpoint_sha256"]}
        if whole and _older(path, folder / "sweeps.json"):
            sweep_figure(folder, path)
        sweep["picture"] = _photograph(path) if whole else None
        found.append(sweep)
    return found


def _swept(step: Mapping[str, Any]) -> dict[str, str]:
    """What was asked for and drawn in one image of the sweeps, and over all seeds of noise."""
    asked, drawn = step["requested"], step["measured"]
    words = {"name": step["name"].replace("_", " "), "asked": f"{asked['volume_ml']:.0f} ml", "fault": step["fault"]}
    words |= {"seeds": drawn_words(step)}
    if not drawn:
        return words | {"drawn": "no tumour", "off": "-"}
    off = math.dist(*([place[axis] for axis in ("x_mm", "y_mm", "z_mm")] for place in (asked, drawn)))
    return words | {"drawn": f"{drawn['volume_ml']:.0f} ml", "off": f"{off:.0f} mm"}


# --- where it comes from ----------------------------------------------------------------------------------------------


def _without_folders(text: str) -> str:
    """Absolute paths cut to the name of the file: a page that is passed on says nothing of the machine."""
    return re.sub(r"^/[^:]*/|(?<![\w.])/(?:[^\s/:;,]+/)+", "", text)


def _sentence(text: str) -> str:
    return _without_folders(text[:1].upper() + text[1:])


def _plain(value: Any) -> str:
    """A setting in words."""
    if isinstance(value, dict):
        value = [f"{name} {_plain(part)}" for name, part in value.items()]
    return ", ".join(map(_plain, value)) if isinstance(value, list) else _without_folders(str(value))


def _costs(run: Run | None, rows: Sequence[Mapping[str, str]], minutes: float | None) -> dict[str, Any]:
    """What each step has taken, as far as it is known."""
    seconds = [float(row["seconds"]) for row in rows if row.get("seconds")]
    redrawn = [int(row["redrawn"]) for row in rows if row.get("redrawn")]
    found: dict[str, Any] = {"minutes": minutes, "stages": []}
    if seconds:
        found["seconds"] = {"median": number(float(np.median(seconds))), "n": len(seconds)}
    if redrawn:
        found["drawn"] = {"all": len(redrawn) + sum(redrawn), "accepted": len(redrawn)}
    if run is not None:
        stages = ((title, _stage(run, stage)) for stage, title in STAGES.items())
        found["stages"] = [{"title": title} | stage for title, stage in stages if stage]
        drawers = ("regions",) if rows and "canvas" in rows[0] else ("diffusion", "gan")
        made = [run.checkpoint(stage) for stage in drawers if run.checkpoint(stage).is_file()]
        drawn_by = {row.get("checkpoint_sha256", "") for row in rows}
        found["other_checkpoint"] = any(drawn_by) and bool(made) and drawn_by != {sha256(made[0])}
    return found


def _stage(run: Run, stage: str) -> dict[str, str]:
    """Iterations, time and parameters of one stage of training; only what its files say."""
    folder, found = run.folder / stage, {}
    if history := read_history(run, stage):
        found["iterations"] = f"{int(history[-1]['iteration']):,}"
    if hours := _hours(folder / "tensorboard"):
        found["time"] = f"{hours:.1f} h" if hours >= 2 else f"{60 * hours:.0f} min"
    if run.checkpoint(stage).is_file():
        content = load_checkpoint(run.checkpoint(stage), stage)
        found["parameters"] = f"{sum(value.numel() for value in content['network'].values()):,}"
    return found


def _hours(logs: Path) -> float:
    """Hours in which a training wrote its logs: of each session from the first entry to the last, overlaps once."""
    spans = []
    for path in logs.glob("events.out.tfevents.*"):
        times: list[float] = []
        with contextlib.suppress(Exception):  # of a damaged log, what can be read before the damage
            times.extend(event.wall_time for event in EventFileLoader(str(path)).Load())
        if times:
            spans.append((min(times), max(times)))
    total, end = 0.0, -math.inf
    for first, last in sorted(spans):
        total += max(0.0, last - max(first, end))
        end = max(end, last)
    return total / 3600


def _table1(run: Run | None) -> dict[str, Any] | None:
    """The Table 1 in the run folder, its picture inlined; None where there is none."""
    found = report_rows(run) if run is not None else None
    if found and found["picture"]:
        found["picture"] = _photograph(found["picture"])
    return found


def _provenance(content: Mapping[str, Any], rows: Sequence[Mapping[str, str]], dataset: Path) -> list[tuple[str, str]]:
    """Terms and values: how the evaluation was made, and how the pairs were."""
    provenance = content["provenance"]
    spacing = " x ".join(f"{s:g}" for s in provenance.get("spacing_mm", ()))
    versions = ", ".join(f"{name} {version}" for name, version in provenance.get("versions", {}).items())
    seeds = sorted({int(row["seed"]) for row in rows if row.get("seed")})
    found = {
        "Run": provenance.get("run", ""),
        "Channel looked at": provenance.get("first_channel", ""),
        "Grid of the evaluation": f"{spacing} mm" if spacing else "",
        "Features": provenance.get("features", ""),
        "Versions": versions,
        "Seeds of the pairs": f"{seeds[0]} to {seeds[-1]}" if seeds else "",
    }
    for key, term in MANIFEST_TERMS.items():
        counts = Counter(row[key].partition(":")[0] for row in rows if row.get(key))
        found[term] = ", ".join(counts if len(counts) == 1 else (f"{value} ({n} pairs)" for value, n in counts.items()))
    if (dataset / "synthesis.json").is_file():
        settings = {key: _plain(value) for key, value in read_settings(dataset).items()}
        found |= {f"Synthesis, {key.replace('_', ' ')}": value for key, value in settings.items()}
    return [(term, value) for term, value in found.items() if value]


def _lists(run: Run | None, contents: Mapping[str, Sequence[str]]) -> list[dict[str, Any]]:
    """Cases by role: the hash of their list, and their names where the run knows them."""
    titles = {"synthetic": "Synthetic pairs", "train": "Training cases", "heldout": "Held-back cases"}
    titles |= {kind: words.capitalize() for kind, words in REFERENCES.items()}
    names: dict[str, list[str]] = {}
    if run is not None and (run.folder / LISTS_FILE).is_file():
        held = read_lists(run.folder)
        names = {"train": held["train"], "heldout": held["validation"]}
    return [
        {
            "title": titles[role],
            "n": len(hashes),
            "sha256": hashlib.sha256("\n".join(sorted(hashes)).encode()).hexdigest(),
            "names": names.get(role, []),
        }
        for role, hashes in contents.items()
    ]


def _licence(dataset: Path, provenance: Mapping[str, Any]) -> str:
    """The licence note of the datasheet, or of the provenance."""
    sheet = dataset / "datasheet.md"
    text = read_text(sheet, SHEET_AGAIN) if sheet.is_file() else ""
    _, _, part = text.partition("## Licence note\n")
    lines = [line.removeprefix("- ").strip() for line in part.partition("\n## ")[0].splitlines()]
    return " ".join(filter(None, lines)) or provenance.get("licence", "")


# --- the page ---------------------------------------------------------------------------------------------------------


def write_report(out: Path, run: Run | None) -> Path:
    """Write `report.html` into the folder of an evaluation: one file that needs no other and no network.

    Figures that are missing and pictures that are out of date are drawn into `figures` first. A picture of a dataset
    that repeats or may hold real cases is left out, and the page says so.

    Args:
        out: folder with `evaluation.json` (and `pairs.csv`, `arrays.npz`).
        run: whose costs, sweeps, other datasets and case lists are shown; None leaves them out.

    Returns:
        The file.

    Raises:
        StateError: the folder holds no evaluation.
        OutputError: a file cannot be written.
    """
    out = Path(out)
    if not (out / "evaluation.json").is_file():
        raise StateError(f"{out}: holds no evaluation; evaluate first: sbldm evaluate.")
    content = read_evaluation(out)
    scores, provenance = read_scores(out), content["provenance"]
    by_group = {group: [score for score in scores if score.group == group] for group in GROUPS}
    left_out = [(key, _sentence(why)) for key, why in content["left_out"]]
    *findings, advice = summarise(content)
    pictures, not_shown = _pictures(out, run, provenance)
    dataset = out / provenance.get("dataset", "missing")
    rows = _manifest(dataset)
    page = _template().render(
        name=provenance.get("synthetic", out.name),
        made=provenance.get("made", ""),
        cases=provenance.get("cases", {}),
        advice=advice,
        findings=findings,
        groups=GROUPS,
        reference_words=REFERENCES,
        sections={
            group: {
                "rows": [_row(score) for score in by_group[group]],
                "references": [k for k in REFERENCES if any(math.isfinite(s.side(k).value) for s in by_group[group])],
                "left_out": [why for key, why in left_out if _group_of(key) == group],
            }
            for group in GROUPS
        },
        plots=_plots(out, [group for group, found in by_group.items() if found]),
        pictures=pictures,
        not_shown=not_shown,
        nearest=_nearest_pairs(out),
        costs=_costs(run, rows, provenance.get("minutes")),
        table1=_table1(run),
        table2=run is not None and (run.folder / "table2" / "table2.md").is_file(),
        protocols=_protocols([score for found in by_group.values() for score in found]),
        provenance=_provenance(content, rows, dataset),
        lists=_lists(run, provenance.get("contents", {}) | provenance.get("references", {})),
        remarks=[_sentence(remark) for remark in content["remarks"]],
        left_out=left_out,
        licence=_licence(dataset, provenance),
        limits={
            "sd": LARGE_SD,
            "share": LARGE_SHARE,
            "dsc": LARGE_DSC,
            "tail": LARGE_TAIL,
            "volume": VOLUME_LIMITS,
            "centre": CENTRE_LIMITS,
        },
    )
    path = out / "report.html"
    with atomic_path(path) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return path


def _template() -> jinja2.Template:
    folder = jinja2.FileSystemLoader(Path(__file__).parent)
    environment = jinja2.Environment(
        loader=folder, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template("report.html.j2")
