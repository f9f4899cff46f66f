"""The scores as one readable table: `scores.md`."""

from __future__ import annotations

import math
from pathlib import Path

from sbldm.evaluation.protocols import REFERENCES, REFERENCES_EXPLAINED, Score, protocol
from sbldm.evaluation.written import GROUPS, read_evaluation, read_scores
from sbldm.run.files import atomic_path
from sbldm.run.text import number, sizes

__all__ = ["write_table"]


def _words(score: Score, side: str) -> str:
    """One side of a score with its interval; of a reference its n too, as it has no column of its own."""
    value, low, high, n = score.side(side)
    text = number(value, score.unit) + (f" [{number(low)}, {number(high)}]" if math.isfinite(low) else "")
    return f"{text}, n = {sizes(n)}" if side in REFERENCES and math.isfinite(value) else text


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
            cells += [_words(s, "synthetic"), sizes(s.n), _words(s, "floor"), sizes(s.floor_n)]
            cells += [*(_words(s, kind) for kind in shown), "; ".join(filter(None, (s.reading, s.note)))]
            lines.append(f"| {' | '.join(cells)} |")
        lines += [f"Left out: {why}" for why in left_out]
    if content["remarks"]:
        lines += ["", "## Remarks", "", *(f"- {remark}" for remark in content["remarks"])]
    path = out / "scores.md"
    with atomic_path(path) as temporary:
        temporary.write_text("\n".join(lines) + "\n")
    return path
