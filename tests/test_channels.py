"""Several image channels: each like the first, and whether the channels of a pair belong together."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from sbldm.cases.layouts import Source, find_cases
from sbldm.cases.phantom import write_phantoms
from sbldm.evaluation.evaluate import evaluate
from sbldm.evaluation.protocols import Score
from sbldm.evaluation.settings import Settings
from sbldm.metrics.channels import channel_fit

N = 10


def test_fit_of_two_channels() -> None:
    """2 where they are equal or one is a function of the other, near 1 where they have nothing in common."""
    rng = np.random.default_rng(0)
    first, other = rng.uniform(0.1, 1, (2, 40, 40, 40))
    first[:20] = 0
    assert channel_fit(first, first) == pytest.approx(2)
    assert channel_fit(first, 1.1 - first) == pytest.approx(2, abs=0.01)
    assert channel_fit(first, other) == pytest.approx(1, abs=0.02)
    half = channel_fit(first, np.where(first > 0, 0.5 * first + 0.5 * other, other))
    assert 1.02 < half < 1.6
    with pytest.raises(ValueError, match="shapes differ"):
        channel_fit(first, other[1:])
    with pytest.raises(ValueError, match="No voxel"):
        channel_fit(first, np.where(first > 0, 0, other))


@pytest.fixture(scope="module")
def scores(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Score]:
    """Of phantoms whose T1 is that of the next phantom: each channel is right by itself, no two belong together."""
    root = tmp_path_factory.mktemp("channels")
    options = {"shape": (48, 48, 31), "spacing": 5.0, "channels": ("flair", "t1"), "progress": False}
    names = write_phantoms(root / "all", 3 * N, seed=3, **options)
    for k, role in enumerate(("train", "heldout", "synthetic")):
        for name in names[N * k : N * k + N]:
            shutil.copytree(root / "all" / name, root / role / name)
    own = names[2 * N :]
    for name, other in zip(own, [*own[1:], own[0]], strict=True):
        source, target = root / "all" / other / f"{other}_t1.nii.gz", root / "synthetic" / name / f"{name}_t1.nii.gz"
        shutil.copyfile(source, target)
    source = Source.from_config(["flair", "t1"], {"whole tumour": "all"})
    roles = {role: find_cases(root / role, source) for role in ("synthetic", "train", "heldout")}
    found = evaluate(
        Settings(**roles, source=source, out=root / "out", cache=root / "cache", groups=("channels",), workers=1)
    )
    assert not [reason for name, reason in found.left_out if name == "channels"]
    return {score.protocol: score for score in found.scores}


def test_each_channel_has_its_scores(scores: dict[str, Score]) -> None:
    """The further channel by itself, all at once, and every two: each with its floor and of as many cases."""
    assert set(scores) == {
        *(f"channel.{kind}.{of}" for kind in ("mmd", "kid") for of in ("t1", "all_channels")),
        "channel.contrast.t1",
        "channel.fit.flair-t1",
    }
    for score in scores.values():
        assert score.group == "channels" and score.n == score.floor_n == (N, N)
        assert np.isfinite([score.value, score.floor]).all()


def test_channels_that_do_not_belong_together_are_seen(scores: dict[str, Score]) -> None:
    """By their fit, which is far below that of real ones; T1 by itself is as good as its floor."""
    fit, alone = scores["channel.fit.flair-t1"], scores["channel.mmd.t1"]
    assert fit.value < -2 and fit.high < fit.floor_low and fit.verdict == "lower"
    assert alone.verdict == "not told apart"


def test_one_channel_has_no_such_scores(tmp_path: Path) -> None:
    """And nobody is told that they are missing."""
    source = Source()
    write_phantoms(tmp_path / "cases", 3, seed=5, shape=(48, 48, 31), spacing=5.0, progress=False)
    cases = find_cases(tmp_path / "cases", source)
    settings = Settings(cases[:1], cases[1:2], cases[2:], source, tmp_path / "out", tmp_path / "cache", workers=1)
    found = evaluate(settings)
    assert not [name for name, _ in found.left_out if name == "channels"]
    assert not [score for score in found.scores if score.group == "channels"]
