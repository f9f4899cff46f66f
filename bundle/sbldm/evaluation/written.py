"""What an evaluation has written down, read again; and the questions that its scores answer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sbldm.evaluation.protocols import Score
from sbldm.run.files import read_json, reading

__all__ = ["EVALUATE_AGAIN", "GROUPS", "read_evaluation", "read_scores"]

EVALUATE_AGAIN = "run `sbldm evaluate` again"

GROUPS = {
    "distribution": "Do the images come from the same distribution?",
    "channels": "Do the other channels look real, and do all fit each other?",
    "slices": "Do neighbouring slices fit together?",
    "seam": "Do tumours fit into their brains?",
    "tumours": "Are the tumours distributed like real ones?",
    "tissues": "Are the tissues of the tumours like real ones?",
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
