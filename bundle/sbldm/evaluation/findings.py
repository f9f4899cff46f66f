"""What an evaluation found, in one sentence for each question: good, mixed, bad or unknown.

The marks follow rules that stand here and on the page of the report. Two of them are shared. A score *differs* from its
floor when their 95 % intervals do not meet, which is stricter than a test at 5 %. It is *alike* only when they meet and
the interval of the difference, put together from both (Zou & Donner, Stat. Med. 27, 2008), rules out a fixed margin;
else the cases are too few, and the page says so. One file, so that the rules can be read beside each other.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, NamedTuple

import numpy as np

from sbldm.evaluation.protocols import REFERENCES, Score, protocol
from sbldm.evaluation.written import GROUPS
from sbldm.run.text import number, sizes

__all__ = ["Finding", "summarise"]

Mark = Literal["good", "mixed", "bad", "unknown"]
Standing = Literal["alike", "worse", "much worse", "unclear"]
LARGE_SD = 0.8  # a large effect (Cohen 1988); for slices and tumours
LARGE_SHARE = 0.25  # of precision and recall
LARGE_DSC = 0.05
LARGE_TAIL = 0.1  # of shares that are 5 % among real cases
VOLUME_LIMITS = (0.25, 0.5)  # median relative error: good up to the first, bad beyond the second
CENTRE_LIMITS = (15.0, 30.0)  # median distance, mm

SUBJECTS = {
    "distribution": "whether the images look like real ones",
    "channels": "whether the image channels fit each other",
    "slices": "whether neighbouring slices fit together",
    "seam": "whether tumours fit into their brains",
    "tumours": "whether the tumours are distributed like real ones",
    "tissues": "whether the tissues of the tumours are like real ones",
    "requests": "whether tumours are drawn as asked",
    "fit": "whether the masks fit their images",
    "copies": "whether pairs are copies of training cases",
}
SEVERAL = ("channels", "tissues")  # groups that nobody misses where there is but one


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
        A statement for each of `SUBJECTS` (of `SEVERAL` where there are several), then the advice.
    """
    rules: dict[str, Callable[[Mapping[str, Score]], Finding]] = {
        "distribution": _images,
        **{group: partial(_of_measures, group) for group in STATEMENTS},
        "requests": _requests,
        "fit": _fit,
        "copies": lambda scores: _copies(scores, repeated_cases(content["provenance"])),
    }
    scores = [Score.from_row(row) for row in content["scores"]]
    found = []
    for group in (name for name in GROUPS if name in rules):
        chosen = {score.protocol: score for score in scores if score.group == group}
        reasons = [sentence(why) for key, why in content["left_out"] if group_of(key) == group]
        if chosen:
            found.append(rules[group](chosen))
        elif reasons or group not in SEVERAL:
            found.append(_unseen(group, *reasons))
    return [*found, _advice({finding.group: finding.mark for finding in found})]


def _unseen(group: str, *reasons: str) -> Finding:
    return Finding(group, "unknown", f"Not looked at: {SUBJECTS[group]}.", reasons)


def group_of(key: str) -> str:
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


def numbers_of(score: Score, percent: bool = False) -> dict[str, str]:
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

    found = {"unit": "%" if percent else score.unit}
    for side in sides:
        value, low, high, n = score.side(side)
        named = "" if side == "synthetic" else f"{side}_"
        found |= {side if named else "value": text(value), f"{named}interval": interval(low, high)}
        found |= {f"{named}n": sizes(n) if math.isfinite(value) or not named else ""}
    return found | {"value": found["value"] or "-"}


def _evidence(label: str, score: Score, floor: str = "real against real", percent: bool = False) -> str:
    """One line with value, interval, n, floor and references; what belongs together does not break."""
    texts = numbers_of(score, percent)

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


STATEMENTS = {  # of the groups with many measures
    "channels": {
        "good": "The image channels fit each other as real ones do.",
        "differ": "The image channels do not fit each other as real ones do: {} differ{}.",
        "unclear": "No two image channels were found not to fit each other",
    },
    "slices": {
        "good": "Neighbouring slices fit together as in real images: no measure differs much.",
        "differ": "Neighbouring slices do not fit together as in real images: {} differ{}.",
        "unclear": "No measure of how slices fit together was found to differ",
    },
    "seam": {
        "good": "Tumours fit into their brains as real ones do: no seam, and no other grain.",
        "differ": "Tumours do not fit into their brains as real ones do: {} differ{}.",
        "unclear": "No seam was found around the tumours",
    },
    "tumours": {
        "good": "The tumours are distributed like real ones: no measure differs much.",
        "differ": "The tumours are not all distributed like real ones: {} differ{}.",
        "unclear": "No measure of the tumours was found to differ",
    },
    "tissues": {
        "good": "The tissues of the tumours are like real ones: no measure differs much.",
        "differ": "The tissues of the tumours are not all like real ones: {} differ{}.",
        "unclear": "No measure of the tissues was found to differ",
    },
}


IN_SD = {"tumours": "w1.", "channels": "channel.fit."}  # how the scores of a group begin that are in SD


def _of_measures(group: str, found: Mapping[str, Score]) -> Finding:
    """Many measures in standard deviations: bad when one surely differs much, or half of them differ."""
    worse, statements = "more" if group in ("tumours", "tissues") else "either", STATEMENTS[group]
    scores = [score for name, score in found.items() if name.startswith(IN_SD.get(group, ""))]
    standings = [_standing(score, LARGE_SHARE if _is_share(score) else LARGE_SD, worse) for score in scores]
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
    return Finding(
        group, mark, statement, tuple(_evidence(_measure(s) + ", in SD" * (not _is_share(s)), s) for s in shown)
    )


def _is_share(score: Score) -> bool:
    """Of the tissues: shares of surfaces and of cases, which are not in standard deviations."""
    return score.protocol.startswith("nesting.")


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
    regions = {name: score for name, score in scores.items() if name.startswith("fit.dsc.")}
    means = [_standing(score, LARGE_DSC, "less") for score in (dsc, *regions.values())]
    low = standings.get("low", "unclear")
    unlike = "A network that knows real cases alone agrees less with these masks than with real ones"
    if "much worse" in (*means, low):
        mark, statement = "bad", f"{unlike}: they do not fit their images, or the images are too unlike real ones."
    elif "worse" in (*means, low):
        mark, statement = "mixed", f"{unlike}; how much less is not certain."
    elif "worse" in standings.get("high", ""):
        mark, statement = (
            "mixed",
            "The masks fit their images, but more tumours than in real cases are easy to outline.",
        )
    elif {*standings.values(), *means} == {"alike"}:
        mark, statement = "good", "The masks fit their images as well as real masks do."
    else:
        mark = "unknown"
        statement = "The masks were not found to fit worse than real ones, but the cases are too few to rule it out."
    numbers = [_evidence("DSC of mask and segmentation", dsc, "held-back real cases")]
    numbers += [_evidence(_measure(score), score, "held-back real cases") for score in regions.values()]
    numbers += [
        _evidence(f"Masks that fit {than} than 95 % of real ones", tails[side], "real cases", percent=True)
        for side, than in (("low", "worse"), ("high", "better"))
        if side in tails
    ]
    return Finding("fit", mark, statement, tuple(numbers))


def repeated_cases(provenance: Mapping[str, Any]) -> int:
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
        "channels": "fit of the channels",
        "slices": "stacking of slices",
        "seam": "seams",
        "tumours": "tumours",
        "tissues": "tissues",
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


# --- where it comes from ----------------------------------------------------------------------------------------------


def without_folders(text: str) -> str:
    """Absolute paths cut to the name of the file: a page that is passed on says nothing of the machine."""
    return re.sub(r"^/[^:]*/|(?<![\w.])/(?:[^\s/:;,]+/)+", "", text)


def sentence(text: str) -> str:
    return without_folders(text[:1].upper() + text[1:])
