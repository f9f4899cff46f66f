"""Arms and budgets as data: names, generators, and what is refused."""

from __future__ import annotations

import pytest
import yaml

from nnunet_integration.arms import HERE, Arm, ArmBook, load_budget
from sbldm.errors import InputError


@pytest.fixture
def book() -> ArmBook:
    return ArmBook.load()


def names(arms: list[Arm]) -> list[str]:
    return [arm.name for arm in arms]


def test_standard_arms_follow_the_generators(book):
    assert names(book.choose([], [])) == ["real", "real+aug", "real+aug5"]
    assert names(book.choose([], ["sbldm", "lsgan"])) == [
        *("real", "real+aug", "real+aug5", "sbldm", "lsgan", "real+sbldm", "real+lsgan", "real+sbldm+aug")
    ]


def test_the_paper_stands_beside_the_arms(book):
    """Table 2 of the paper, DSC and IoU."""
    assert book.paper["real"] == (0.714, 0.592) and book.paper["real+sbldm+aug"] == (0.834, 0.739)
    assert book.paper["real+aug"] == book.paper["real+aug5"] == (0.806, 0.716)
    possible = {arm.name for name in book.arms for arm in book.choose([name], ["sbldm", "lsgan", "ldm3d"])}
    assert set(book.paper) <= possible


def test_a_generator_takes_the_place_of_synth(book):
    arm = book.choose(["real+sbldm+aug"], ["sbldm"])[0]
    assert (arm.train, arm.augmentation, arm.generator, arm.amount) == (("real", "synth"), "nnunet", "sbldm", 1.0)
    assert names(book.choose(["synth", "real+sbldm"], ["sbldm", "gan"])) == ["sbldm", "gan", "real+sbldm"]
    assert arm.times(2).name == "real+sbldm+aug@2x" and arm.times(0.5).amount == 0.5
    assert arm.times(1) is arm  # the same jobs serve table and plateau


def test_without_its_generator_an_arm_is_refused(book):
    with pytest.raises(InputError, match=r"real\+gan: .*generators: sbldm"):
        book.choose(["real+gan"], ["sbldm"])
    with pytest.raises(InputError, match="ARMS=synth"):
        book.choose(["synth"], [])


def test_a_new_arm_takes_three_lines(tmp_path):
    content = yaml.safe_load((HERE / "arms.yaml").read_text())
    content["arms"]["real+synth+half"] = {"train": ["real", "synth"], "augmentation": "none", "amount": 0.5}
    path = tmp_path / "arms.yaml"
    path.write_text(yaml.safe_dump(content))
    (arm,) = ArmBook.load(str(path)).choose(["real+sbldm+half"], ["sbldm"])
    assert arm.amount == 0.5


@pytest.mark.parametrize(
    ("arm", "message"),
    [
        ({"train": [], "augmentation": "none"}, "train must list"),
        ({"train": ["real", "fake"], "augmentation": "none"}, "train must list"),
        ({"train": ["real"], "augmentation": "some"}, "neither none nor nnunet"),
        ({"train": ["real"], "augmentation": "none", "amount": 0}, "amount 0"),
        ({"train": ["real", "synth"], "augmentation": "none"}, "'synth' must stand in its name"),
    ],
)
def test_wrong_arms(tmp_path, arm, message):
    path = tmp_path / "arms.yaml"
    path.write_text(yaml.safe_dump({"arms": {"mine": arm}, "standard": ["mine"], "baseline": "mine"}))
    with pytest.raises(InputError, match=f"arm mine: .*{message}"):
        ArmBook.load(str(path))


def test_budgets():
    small = load_budget("small", iterations=500, snapshots=None)
    assert small["iterations"] == 500 and all(snapshot < 500 for snapshot in small["snapshots"])
    paper = load_budget("paper")
    assert paper["plan"] is None and (paper["iterations"], paper["iterations_per_epoch"]) == (250_000, 250)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"iterations": 250}, "multiple of iterations_per_epoch"),
        ({"snapshots": [30]}, "SNAPSHOTS=30"),
        ({"plan": {"spacing": [3, 3, 3], "patch_size": [16, 16, 16], "batch_size": 2, "features": [8, 16]}}, "three"),
        ({"plan": {"spacing": [3, 3, 3], "patch_size": [18, 16, 16], "batch_size": 2, "features": [8, 8, 8]}}, "of 4"),
        ({"plan": {"spacing": [3, 3, 3]}}, "plan must"),
    ],
)
def test_wrong_budgets(changes, message):
    with pytest.raises(InputError, match=message):
        load_budget("small", **changes)


def test_unknown_budget():
    with pytest.raises(InputError, match=r"BUDGET=large: .*demo, small, paper"):
        load_budget("large")
