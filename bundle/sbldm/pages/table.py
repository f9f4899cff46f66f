"""The scores as one readable table: `scores.md`."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from sbldm.evaluation.protocols import REFERENCES, REFERENCES_EXPLAINED, Score, protocol
from sbldm.run.files import atomic_path, read_json, reading

EVALUATE_AGAIN = "run `sbldm evaluate` again"

__all__ = ["EVALUATE_AGAIN", "GROUPS", "number", "read_evaluation", "read_scores", "write_table"]

GROUPS = {
    "distribution": "Do the images come from the same distribution?",
    "slices": "Do neighbouring slices fit together?",
    "seam": "Do tumours fit into their brains?",
    "tumours": "Are the tumours distributed like real ones?",
    "requests": "Is the tumour drawn that was asked for?",
    "fit": "Does the mask fit the image?",
    "copies": "Are pairs copies of training cases?",
    "similarity": "PSNR and SSIM, for comparison with the paper",
}
"""Groups of scores in the order of a reader's questions."""


EVALUATED = {"scores": [dict]}


def read_evaluation(out: Path) -> dict[str, Any]:
    """What `evaluation.json` says in an evaluation folder.

    Raises:
        StateError: it is missing or damaged.
    """
    return read_json(out / "evaluation.json", EVALUATED, EVALUATE_AGAIN, remove=False)


def read_scores(out: Path) -> list[Score]:
    """The scores of an evaluation folder; a `StateError` when they are missing or damaged."""
    rows = read_evaluation(out)["scores"]
    with reading(out / "evaluation.json", EVALUATE_AGAIN, remove=False):
        return [Score.from_row(row) for row in rows]


def number(value: float, unit: str = "") -> str:
    """Three significant digits, never as a power of ten."""
    if not math.isfinite(value):
        return "-"
    digits = 0 if abs(value) < 1e-9 else min(6, max(0, 2 - math.floor(math.log10(abs(value)))))
    return f"{value:.{digits}f}{' ' + unit if unit else ''}"


def _words(score: Score, side: str) -> str:
    """One side of a score with its interval; of a reference its n too, as it has no column of its own."""
    value, low, high, n = score.side(side)
    text = number(value, score.unit) + (f" [{number(low)}, {number(high)}]" if math.isfinite(low) else "")
    return f"{text}, n = {_sizes(n)}" if side in REFERENCES and math.isfinite(value) else text


def _sizes(n: tuple[int, int]) -> str:
    """How many cases on either side, in words."""
    return f"{n[0]}" if n[0] == n[1] else f"{n[0]} / {n[1]}"


def write_table(out: Path) -> Path:
    """Write `scores.md` from `evaluation.json`: every score beside floor and references, with n and 95 % intervals."""
    content = read_evaluation(out)
    scores, cases = read_scores(out), content["provenance"]["cases"]
    lines = [
        f"# {content['provenance']['synthetic']}: {cases['synthetic']} synthetic pairs",
        "",
        f"Training cases: {cases['train']}; held-back cases: {cases['heldout']}. Brackets: 95 % intervals. The floor "
        "is the same score of real cases against real cases; n counts the cases on the two sides. `not "
        "told apart`: the two intervals meet, a reading aid and no test.",
    ]
    if references := [kind for kind in REFERENCES if any(math.isfinite(s.side(kind).value) for s in scores)]:
        lines += [
            "",
            f"{REFERENCES_EXPLAINED} A score is `as the path alone` where it is no farther from the floor than theirs.",
        ]
    for group, question in GROUPS.items():
        rows = [score for score in scores if score.group == group]
        left_out = [why for name, why in content["left_out"] if name.split(".")[0] == group]
        if not rows and not left_out:
            continue
        lines += ["", f"## {question}", ""]
        shown = [kind for kind in references if any(math.isfinite(s.side(kind).value) for s in rows)]
        if rows:
            floor = "shuffled requests" if group == "requests" else "floor: real"
            header = ["score", "protocol", "synthetic", "n", floor, "n", *(REFERENCES[kind] for kind in shown), ""]
            lines += [f"| {' | '.join(header)} |".replace("|  |", "| |"), "|---" * len(header) + "|"]
        for s in rows:
            cells = [protocol(s.protocol)["title"], f"`{s.protocol}`"]
            cells += [_words(s, "synthetic"), _sizes(s.n), _words(s, "floor"), _sizes(s.floor_n)]
            cells += [*(_words(s, kind) for kind in shown), "; ".join(filter(None, (s.reading, s.note)))]
            lines.append(f"| {' | '.join(cells)} |")
        lines += [f"Left out: {why}" for why in left_out]
    if content["remarks"]:
        lines += ["", "## Remarks", "", *(f"- {remark}" for remark in content["remarks"])]
    path = out / "scores.md"
    with atomic_path(path) as temporary:
        temporary.write_text("\n".join(lines) + "\n")
    return path
