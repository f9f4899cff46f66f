"""Several tissues: each measure on boxes of known volume, border and brightness, and pairs that are mixed up."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from sbldm.cases.layouts import Source, find_cases
from sbldm.evaluation.findings import summarise
from sbldm.evaluation.protocols import Score, protocol
from sbldm.evaluation.scoring_tissues import score_tissues
from sbldm.evaluation.settings import Evaluation
from sbldm.metrics.tissues import bare_share, edge, tissue_measures
from sbldm.run.files import write_nifti

LABELS = {"necrotic": "necrotic", "oedema": "oedema", "enhancing": "enhancing"}
SOURCE = Source.from_config(["flair", "t1ce"], LABELS)
NAMES = {name: k for k, name in enumerate(LABELS, start=1)}
SPACING = (1.0, 2.0, 2.5)
BRIGHT = {"flair": (1.0, 6.0, 3.0), "t1ce": (-2.0, 0.0, 5.0)}  # of the three labels, SD of the healthy brain above it
N = 8


def box(shape: tuple[int, ...], low: int, high: int) -> np.ndarray:
    mask = np.zeros(shape, bool)
    mask[(slice(low, high),) * 3] = True
    return mask


def nested(size: int = 40) -> np.ndarray:
    """Boxes in each other: oedema of 20 voxels' edge, enhancing of 10, necrotic of 6; the enhancing one at one side."""
    labels = np.zeros((size,) * 3, np.uint8)
    for number, (low, high) in ((2, (10, 30)), (3, (10, 20)), (1, (12, 18))):
        labels[box(labels.shape, low, high)] = number
    return labels


def images(labels: np.ndarray, rng: np.random.Generator, unit: float = 40.0) -> dict[str, np.ndarray]:
    """Channels whose healthy brain has mean 500 and SD `unit`, and each label its brightness beyond."""
    found = {}
    for channel, levels in BRIGHT.items():
        values = 500 + unit * rng.choice((-1.0, 1.0), labels.shape)
        for number, level in enumerate(levels, start=1):
            values[labels == number] = 500 + unit * level
        values[:2] = 0
        found[channel] = values
    return found


def test_measures_of_nested_boxes() -> None:
    """Volumes, shares, parts, contrasts and bare surfaces as the boxes have them."""
    labels = nested()
    found = tissue_measures(images(labels, np.random.default_rng(0)), labels, SPACING, NAMES, SOURCE.nested)
    voxel = math.prod(SPACING) / 1000
    assert found["volume.tumour core"] == pytest.approx(1000 * voxel)
    assert found["volume.enhancing tumour"] == pytest.approx((1000 - 216) * voxel)
    assert found["share.tumour core"] == pytest.approx(1000 / 8000)
    assert found["parts.enhancing tumour"] == 1 and "volume.whole tumour" not in found
    for channel, levels in BRIGHT.items():
        for name, level in zip(LABELS, levels, strict=True):
            assert found[f"contrast.{channel}.{name}"] == pytest.approx(level, abs=0.02)
    assert found["bare.tumour core"] == pytest.approx(0.5), "three of six sides"
    assert found["bare.necrotic tissue"] == 0
    # 3 SD against 6 in FLAIR on one half of the border and against 0 on the other, 5 against 0 in T1CE.
    assert 2 < found["edge.tumour core"] < 4
    labels[labels == 3] = 2
    without = tissue_measures(images(labels, np.random.default_rng(0)), labels, SPACING, NAMES, SOURCE.nested)
    assert without["volume.enhancing tumour"] == without["parts.enhancing tumour"] == 0
    assert math.isnan(without["edge.enhancing tumour"]) and math.isnan(without["contrast.t1ce.enhancing"])
    assert without["bare.necrotic tissue"] == 1, "by oedema alone"
    coarse = Source.from_config(["flair"], {"a": ["necrotic", "oedema"], "b": "enhancing"})
    names = dict.fromkeys(coarse.labels, 1)
    assert not [k for k in tissue_measures({}, nested() > 0, SPACING, names, coarse.nested) if "bare" in k]


def test_bare_share_counts_faces_in_square_millimetres() -> None:
    """A block of 2 x 3 x 4 voxels, bare on one side; faces to what is no brain do not count."""
    shape = (12, 12, 12)
    inner, brain, cover = np.zeros(shape, bool), np.ones(shape, bool), np.ones(shape, bool)
    inner[4:6, 4:7, 4:8] = True
    x, y, z = 3 * 4 * 2.0 * 2.5, 2 * 4 * 1.0 * 2.5, 2 * 3 * 1.0 * 2.0  # mm2 of a side across each axis
    cover[6:] = False
    assert bare_share(inner, cover, brain, SPACING) == pytest.approx(x / (2 * (x + y + z)))
    brain[:, :, 8:] = False
    assert bare_share(inner, cover, brain, SPACING) == pytest.approx(x / (2 * (x + y + z) - z))
    assert bare_share(inner, ~brain, brain, SPACING) == 1
    assert math.isnan(bare_share(inner, cover, inner, SPACING)) and math.isnan(
        bare_share(~brain & brain, cover, brain, SPACING)
    )


def test_edge_is_the_step_at_the_border() -> None:
    """4 and -2 SD in two channels: 3; less once the mask is moved, and nothing beyond the brain counts."""
    shape, spacing = (40, 40, 40), (1.0, 1.0, 1.0)
    mask = box(shape, 14, 26)
    bright, dark = (np.where(mask, step, 0.0) for step in (4.0, -2.0))
    assert edge([bright, dark], mask, spacing) == pytest.approx(3)
    assert edge([bright], np.roll(mask, 12, axis=0), spacing) < 1
    assert edge([bright], np.roll(mask, 3, axis=0), spacing) < 0.8 * 4
    bright[:, :, :14] = math.nan
    assert edge([bright], mask, spacing) == pytest.approx(4)
    assert math.isnan(edge([bright], ~mask & mask, spacing)) and math.isnan(edge([bright], mask | True, spacing))


def scored(root: Path, kind: str) -> tuple[Evaluation, dict[str, Score]]:
    """Scores of `N` pairs whose tissues are those of real cases, shuffled, or without enhancing tumour."""
    rng = np.random.default_rng(1)
    files, cohorts = {}, {}
    for role in ("floor", "heldout", "synthetic"):
        for k in range(N):
            labels, name = np.roll(nested(), rng.integers(-4, 4, 3), (0, 1, 2)), f"{role}_{k}"
            labels[labels == 1] = np.where(rng.random((labels == 1).sum()) < 0.1 * k, 3, 1)
            found = images(labels, rng, rng.uniform(30, 60))
            if role == "synthetic":
                labels = {"real": labels, "shuffled": np.array([0, 3, 1, 2], np.uint8)[labels]}.get(
                    kind, np.where(labels == 3, 2, labels).astype(np.uint8)
                )
            for channel, image in found.items():
                noisy = np.where(image == 0, 0, image + rng.normal(0, 30) + rng.normal(0, 5, image.shape))
                write_nifti(
                    root / role / name / f"{name}_{channel}.nii.gz", noisy.astype(np.float32), np.diag([*SPACING, 1])
                )
            write_nifti(root / role / name / f"{name}_seg.nii.gz", labels, np.diag([*SPACING, 1]))
        files[role] = {case.name: case for case in find_cases(root / role, SOURCE)}
        names = sorted(files[role])
        cohorts[role] = SimpleNamespace(names=names, tumours={"volume_ml": np.ones(N)})
    heldout, evaluation = cohorts.pop("heldout"), Evaluation()
    pool = SimpleNamespace(map=lambda function, jobs, title: map(function, jobs))
    scores = score_tissues(evaluation, cohorts, heldout, files, SOURCE, pool)
    return evaluation, {score.protocol: score for score in scores}


def finding(scores: dict[str, Score]) -> tuple[str, str]:
    content = {"scores": [score.row() for score in scores.values()], "left_out": [], "provenance": {}}
    return next((f.mark, f.statement) for f in summarise(content) if f.group == "tissues")


def test_tissues_like_real_ones_are_not_told_apart(tmp_path: Path) -> None:
    """Every measure has its score beside its floor, of as many cases; nothing stands out."""
    found, scores = scored(tmp_path, "real")
    contrasts = {f"tissue.contrast.{channel}.{name}" for channel in BRIGHT for name in LABELS}
    edges = {f"tissue.edge.{region}" for region in SOURCE.nested}
    assert contrasts | edges | {"nesting.bare.tumour core", "nesting.absent.enhancing tumour"} <= set(scores)
    for score in scores.values():
        assert score.group == "tissues" and score.n == score.floor_n == (N, N)
        assert score.verdict in ("not told apart", ""), score
    assert dict(found.left_out)["tissues.parts.enhancing tumour"].startswith("Number of parts of enhancing tumour: the")
    title = protocol("tissue.contrast.t1ce.enhancing")["title"]
    assert title == "Contrast in T1CE (enhancing): Wasserstein distance"
    assert scores["nesting.bare.tumour core"].value == pytest.approx(0.5, abs=1e-9)
    assert finding(scores)[0] != "bad"


def test_shuffled_tissues_are_told(tmp_path: Path) -> None:
    """Enhancing is dark in T1CE, the core is all around, dead tissue is bare: worse than real, and said so."""
    _, scores = scored(tmp_path, "shuffled")
    enhancing = scores["tissue.contrast.t1ce.enhancing"]
    assert enhancing.verdict == "worse" and enhancing.value > 10
    assert [float(word.split()[-1]) for word in enhancing.note.split(",")] == pytest.approx([-2, 5], abs=0.1)
    bare = scores["nesting.bare.tumour core"]
    assert bare.value > 0.75 and bare.verdict == "worse"
    mark, statement = finding(scores)
    assert mark == "bad" and statement.startswith("The tissues of the tumours are not all like real ones:")


def test_missing_enhancing_tumour_is_counted(tmp_path: Path) -> None:
    """All eight have none: 1, by an exact interval; what cannot be measured is left out with its reason."""
    found, scores = scored(tmp_path, "none")
    absent = scores["nesting.absent.enhancing tumour"]
    assert (absent.value, absent.low, absent.floor) == (1, pytest.approx(0.025 ** (1 / N)), 0)
    assert absent.verdict == "higher" and scores["nesting.bare.necrotic tissue"].value == 1
    assert "tissues.contrast.t1ce.enhancing" in dict(found.left_out)
