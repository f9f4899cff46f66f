"""What an evaluation is asked, and what it answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

import numpy as np

from sbldm.cases.layouts import Case, Source
from sbldm.evaluation.protocols import Score
from sbldm.run.files import atomic_path, write_csv, write_json
from sbldm.run.limits import Group
from sbldm.run.manifest import Manifest

__all__ = ["GROUPS", "Evaluation", "Settings"]

GROUPS = get_args(Group)


@dataclass(frozen=True)
class Settings:
    """What to compare and how.

    Attributes:
        synthetic, train, heldout: cases by role.
        source: channels and labels; the groups "channels", "tissues" and "copies" are of all channels, the others of
            the first one; for all but "tissues" and "fit" all labels together are the tumour.
        references: training cases by how they were brought through the path of the pairs (see `protocols.REFERENCES`
            and `reference_names`); a key may be missing.
        no_references: why, for a key that is missing, in one sentence.
        manifest: of the pairs, which says what was asked for, or None.
        predictions: role -> folder of a segmentation network's predictions, or empty.
        no_predictions: why there are none, where something went wrong.
        real_brains: of the pairs, by design: on canvases, and of copy-paste.
        features: name of the extractor.
        fid: "", "1" (refused below 1000 cases) or "force".
        out: folder for everything that is written.
        cache: folder of what is known of each case, by content; several evaluations can share it.
        groups: of `GROUPS`, which scores to compute.
        workers: processes.
        origin: where the cases came from, for the record.
    """

    synthetic: Sequence[Case]
    train: Sequence[Case]
    heldout: Sequence[Case]
    source: Source
    out: Path
    cache: Path
    references: Mapping[str, Sequence[Case]] = field(default_factory=dict)
    no_references: Mapping[str, str] = field(default_factory=dict)
    manifest: Manifest | None = None
    predictions: dict[str, Path] = field(default_factory=dict)
    no_predictions: str = ""
    real_brains: bool = False
    features: str = "imagenet"
    fid: str = ""
    groups: Sequence[str] = GROUPS
    workers: int = 1
    origin: dict[str, Any] = field(default_factory=dict)


@dataclass
class Evaluation:
    """What came out.

    Attributes:
        scores: every number beside its floor.
        left_out: (which scores, why) in one sentence each.
        remarks: what else a reader must know: cases left out, grids that were resampled.
        pairs: one row for each synthetic pair.
        arrays: for the figures.
        provenance: hashes, versions, lists, settings.
    """

    scores: list[Score] = field(default_factory=list)
    left_out: list[tuple[str, str]] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    pairs: list[dict[str, Any]] = field(default_factory=list)
    arrays: dict[str, np.ndarray] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)

    def write(self, out: Path) -> None:
        """Leave `evaluation.json`, `scores.csv`, `pairs.csv` and `arrays.npz` in a folder."""
        rows = [score.row() for score in self.scores]
        with atomic_path(out / "arrays.npz") as temporary:
            np.savez_compressed(temporary, **self.arrays)
        write_csv(out / "pairs.csv", self.pairs, list(dict.fromkeys(key for pair in self.pairs for key in pair)))
        write_csv(out / "scores.csv", rows, list(Score.__dataclass_fields__))
        content = {"scores": rows, "left_out": self.left_out, "remarks": self.remarks, "provenance": self.provenance}
        write_json(out / "evaluation.json", content)
