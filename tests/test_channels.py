"""Several image channels: each like the first, and whether the channels of a pair belong together."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sbldm.cases.layouts import Source, find_cases
from sbldm.cases.phantom import write_phantoms
from sbldm.evaluation.evaluate import evaluate
from sbldm.evaluation.protocols import Score, protocol
from sbldm.evaluation.settings import Evaluation, Settings
from sbldm.metrics.channels import channel_fit
from sbldm.pages.sheets import contact_sheet
from sbldm.pages.style import OUTLINES
from sbldm.synthesis import RawDataset

N = 10


def test_fit_of_two_channels() -> None:
    """2 where they are equal or one is a function of the other, near 1 where they have nothing in common."""
    rng = np.random.default_rng(0)
    first, other = rng.uniform(0.1, 1, (2, 40, 40, 40))
    first[:20] = 0
    assert channel_fit(first, first) == pytest.approx(2)
    assert channel_fit(first, 1.1 - first) > 1.75, "but for the borders of the bins"
    assert channel_fit(first, other) == pytest.approx(1, abs=0.02)
    assert channel_fit(first, np.roll(first, 3, axis=1)) < 1.1, "moved, it fits no more"
    assert channel_fit(first, 1000 * first) == pytest.approx(2), "in any units"
    half = channel_fit(first, np.where(first > 0, 0.5 * first + 0.5 * other, other))
    assert 1.02 < half < 1.6
    with pytest.raises(ValueError, match="shapes differ"):
        channel_fit(first, other[1:])
    with pytest.raises(ValueError, match="No voxel"):
        channel_fit(first, np.where(first > 0, 0, other))


LABELS = {"necrotic": "necrotic", "oedema": "oedema", "enhancing": "enhancing"}
COPY, ORIGINAL = 4, 1


@pytest.fixture(scope="module")
def found(four_slices: None, tmp_path_factory: pytest.TempPathFactory, many_phantoms: list[Path]) -> Evaluation:
    """Phantoms whose T1 is that of the next phantom, one of them of a training case: each is right by itself."""
    root = tmp_path_factory.mktemp("channels")
    names = [case.name for case in many_phantoms[: 3 * N]]
    for k, role in enumerate(("train", "heldout", "synthetic")):
        for case in many_phantoms[N * k : N * k + N]:
            shutil.copytree(case, root / role / case.name)
    own = names[2 * N :]
    others = [*own[1:], own[0]]
    others[COPY] = names[ORIGINAL]
    for name, other in zip(own, others, strict=True):
        source = many_phantoms[0].with_name(other) / f"{other}_t1.nii.gz"
        shutil.copyfile(source, root / "synthetic" / name / f"{name}_t1.nii.gz")
    source = Source.from_config(["flair", "t1"], LABELS)
    roles = {role: find_cases(root / role, source) for role in ("synthetic", "train", "heldout")}
    groups = ("channels", "copies", "tissues")
    settings = Settings(**roles, source=source, out=root / "out", cache=root / "cache", groups=groups, workers=1)
    evaluation = evaluate(settings)
    assert not [reason for name, reason in evaluation.left_out if name in groups]
    return evaluation


@pytest.fixture(scope="module")
def scores(found: Evaluation) -> dict[str, Score]:
    """Of the channels."""
    return {score.protocol: score for score in found.scores if score.group == "channels"}


def test_a_copy_in_one_further_channel_is_found(found: Evaluation) -> None:
    """T1 of a training case under a FLAIR of its own: the case and the channel are named; no other pair comes near."""
    scores = {score.protocol: score for score in found.scores}
    assert scores["copies.sure"].value >= 1 / N and scores["copies.sure"].note.endswith("in its nearest channel")
    pair = found.pairs[COPY]
    assert (pair["nearest_case"], pair["nearest_channel"]) == (f"Phantom_{ORIGINAL:03d}", "T1")
    assert pair["nearest_excess"] > 0.99 and pair["feature_ratio"] == pytest.approx(0, abs=1e-3)
    assert sorted(pair["nearest_excess"] for pair in found.pairs)[-2] < 0.2  # ten held-back cases: a limit near .12
    assert found.arrays["copies.channels"][0] == "T1"
    planted = scores["copies.planted"]
    assert planted.value == 1 and "; FLAIR 5 of 5; T1 5 of 5" in planted.note
    assert any("for the nearest of FLAIR, T1, each compared by itself" in remark for remark in found.remarks)


def test_tissues_have_their_scores_in_each_channel(found: Evaluation) -> None:
    """Of T1 and FLAIR; where T1 is of another brain, its contrast is not that of a tumour."""
    scores = {score.protocol: score for score in found.scores if score.group == "tissues"}
    assert {f"tissue.contrast.{c}.{t}" for c in ("flair", "t1") for t in LABELS} <= set(scores)
    assert scores["tissue.contrast.flair.oedema"].verdict == "not told apart"
    assert scores["tissue.contrast.t1.necrotic"].value > 2 * scores["tissue.contrast.t1.necrotic"].floor


def test_each_channel_has_its_scores(scores: dict[str, Score]) -> None:
    """The further channel by itself, all at once, and every two: each with its floor and of as many cases."""
    assert set(scores) == {
        *(f"channel.{kind}.{of}" for kind in ("mmd", "kid") for of in ("t1", "all_channels")),
        "channel.contrast.t1",
        "channel.fit.flair-t1",
    }
    assert protocol("channel.fit.flair-t1ce")["title"] == "FLAIR and T1CE: how the two channels fit each other"
    for score in scores.values():
        assert score.group == "channels" and score.n == score.floor_n == (N, N)
        assert np.isfinite([score.value, score.floor]).all()


def test_channels_that_do_not_belong_together_are_seen(scores: dict[str, Score]) -> None:
    """By their fit, which is far below that of real ones; T1 by itself is as good as its floor."""
    fit, alone = scores["channel.fit.flair-t1"], scores["channel.mmd.t1"]
    assert fit.value < -2 and fit.high < fit.floor_low and fit.verdict == "lower"
    assert alone.verdict == "not told apart"


def test_one_channel_and_label_have_no_such_scores(four_slices: None, tmp_path: Path) -> None:
    """And nobody is told that they are missing."""
    source = Source()
    write_phantoms(tmp_path / "cases", 3, seed=5, shape=(48, 48, 31), spacing=5.0, progress=False)
    cases = find_cases(tmp_path / "cases", source)
    settings = Settings(cases[:1], cases[1:2], cases[2:], source, tmp_path / "out", tmp_path / "cache", workers=1)
    found = evaluate(settings)
    assert not [name for name, _ in found.left_out if name in ("channels", "tissues")]
    assert not [score for score in found.scores if score.group in ("channels", "tissues")]


def test_contact_sheet_of_channels_and_tissues(tmp_path: Path) -> None:
    """A row for each plane of the first channel and one for each further one; each tissue has an outline of its own."""
    labels = {"necrotic": "necrotic", "oedema": "oedema", "enhancing": "enhancing"}
    source = Source.from_config(["flair", "t1"], labels, regions=True)
    output = RawDataset.open(str(tmp_path), 501, "X", source, np.eye(4), {"seed": 0}, {})
    output.begin()
    image, mask = np.zeros((2, 40, 40, 40), np.int16), np.zeros((40, 40, 40), np.uint8)
    image[:, 4:36, 4:36, 4:36] = 500
    for k, edge in enumerate((8, 12, 16), start=1):
        mask[edge : 40 - edge, edge : 40 - edge, edge : 40 - edge] = k
    for seed in range(2):
        output.write(seed, image, mask, {"seed": seed, "redrawn": 0, "seconds": 1.0})
    assert output.compile() == 2
    contact_sheet(output.folder, tmp_path / "sheet.png")
    picture = np.asarray(Image.open(tmp_path / "sheet.png").convert("RGB")).astype(int)
    assert picture.shape[0] / picture.shape[1] == pytest.approx(4 * 1.8 / (2 * 1.7), rel=0.01)
    for colour in OUTLINES:
        wanted = np.array([int(colour[k : k + 2], 16) for k in (1, 3, 5)])
        assert (np.abs(picture - wanted).sum(axis=2) < 40).sum() > 100, colour
