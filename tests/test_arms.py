"""Arms and budgets as data: names, generators, and what is refused."""

from __future__ import annotations

import pytest
import yaml

from nnunet_integration.arms import HERE, Arm, ArmBook, default_budget, load_budget
from nnunet_integration.trainers.sbldm_nnunet_trainers import share_at
from sbldm.run.errors import InputError


@pytest.fixture
def book() -> ArmBook:
    return ArmBook.load()


def names(arms: list[Arm]) -> list[str]:
    return [arm.name for arm in arms]


def test_standard_arms_follow_the_generators(book):
    assert names(book.choose([], [])) == ["real", "real+aug", "real+aug5"]
    assert names(book.choose([], ["sbldm"])) == [
        *("real", "real+aug", "real+aug5", "sbldm", "real+sbldm", "real+sbldm+aug", "real+sbldm+aug+share25"),
        "real+sbldm+aug+pretrain",
    ]
    assert names(book.choose([], ["sbldm", "copypaste"]))[-1] == "real+sbldm+copypaste+aug"  # together


def test_the_paper_stands_beside_the_arms(book):
    """Table 2 of the paper, DSC and IoU."""
    assert book.paper["real"] == (0.714, 0.592) and book.paper["real+sbldm+aug"] == (0.834, 0.739)
    assert book.paper["real+aug"] == book.paper["real+aug5"] == (0.806, 0.716)
    possible = {arm.name for name in book.arms for arm in book.choose([name], ["sbldm", "lsgan", "ldm3d", "copypaste"])}
    assert set(book.paper) <= possible


def test_a_generator_takes_the_place_of_synth(book):
    arm = book.choose(["real+sbldm+aug"], ["sbldm"])[0]
    assert (arm.train, arm.augmentation, arm.generators, arm.amount) == (("real", "sbldm"), "nnunet", ("sbldm",), 1.0)
    assert names(book.choose(["synth", "real+sbldm"], ["sbldm", "gan"])) == ["sbldm", "gan", "real+sbldm"]
    assert arm.times(2).name == "real+sbldm+aug@2x" and arm.times(0.5).amount == 0.5
    assert arm.times(1) is arm  # the same jobs serve table and plateau


def test_without_its_generator_an_arm_is_refused(book):
    with pytest.raises(InputError, match=r"real\+gan: .*generators: sbldm"):
        book.choose(["real+gan"], ["sbldm"])
    with pytest.raises(InputError, match="--arms synth"):
        book.choose(["synth"], [])


def test_a_new_arm_takes_three_lines(tmp_path):
    content = yaml.safe_load((HERE / "arms.yaml").read_text())
    content["arms"]["real+synth+half"] = {"train": ["real", "synth"], "augmentation": "none", "amount": 0.5}
    path = tmp_path / "arms.yaml"
    path.write_text(yaml.safe_dump(content))
    (arm,) = ArmBook.load(str(path)).choose(["real+sbldm+half"], ["sbldm"])
    assert arm.amount == 0.5


def test_two_sources_share_an_arm(book):
    """A generator that an arm names itself stands beside each other one, never beside itself."""
    assert names(book.choose(["real+synth+copypaste+aug"], ["sbldm", "copypaste"])) == ["real+sbldm+copypaste+aug"]
    (arm,) = book.choose(["real+sbldm+copypaste+aug"], ["sbldm", "copypaste"])
    assert arm.generators == ("sbldm", "copypaste")
    with pytest.raises(InputError, match=r"real\+sbldm\+copypaste\+aug"):
        book.choose(["real+sbldm+copypaste+aug"], ["sbldm"])


def test_shares_over_the_training(book):
    """Constant, falling, and pairs alone first; `longer` gives real cases as many iterations as other arms have."""
    one = "real+synth+aug+"
    found = {name.removeprefix(one): arm for name, arm in book.arms.items() if arm.share and name.startswith(one)}
    drawn = {name: [share_at(arm.share, epoch, 4) for epoch in range(4)] for name, arm in found.items()}
    assert drawn == {
        "share25": [0.25] * 4,
        "falling": [0.65625, 0.46875, 0.28125, 0.09375],
        "pretrain": [1, 1, 0, 0],
        "pretrain_longer": [1, 1, 0, 0],
    }
    both = book.arms["real+synth+copypaste+aug+pretrain"]
    assert (both.share, both.amount) == (found["pretrain"].share, found["pretrain"].amount)
    assert {name: arm.lengthening for name, arm in found.items()} == dict.fromkeys(found, 1) | {"pretrain_longer": 2}


@pytest.mark.parametrize(("pretrain", "least"), [(0.5, 2), (0.25, 3), (0.8, 3), (0.05, 11)])
def test_epochs_on_both_sides_of_pretraining(pretrain, least):
    """The fewest epochs that are accepted are the fewest in which both pairs and real cases are drawn."""
    corners = ((0.0, 1.0), (pretrain, 1.0), (pretrain, 0.0), (1.0, 0.0))
    arm = Arm("real+sbldm+aug+pretrain", ("real", "sbldm"), "nnunet", share=corners)
    for epochs in range(1, 2 * least):
        drawn = {share_at(corners, epoch, epochs) for epoch in range(epochs)}
        assert (drawn == {0, 1}) == (epochs >= least)
        budget = {"iterations": 40 * epochs, "iterations_per_epoch": 40}
        if epochs < least:
            with pytest.raises(InputError, match=rf"--iterations {40 * epochs}: .* give {40 * least} "):
                arm.check_epochs(budget)
        else:
            arm.check_epochs(budget)


@pytest.mark.parametrize(
    ("arm", "message"),
    [
        ({"train": [], "augmentation": "none"}, r"arms\.mine\.train: \[\] should have at least 1 item"),
        ({"train": ["real", "fake"], "augmentation": "none"}, "'fake' stands in train and must stand in its name"),
        ({"train": ["real", "real"], "augmentation": "none"}, "must name each once"),
        ({"train": ["real"], "augmentation": "nunet"}, r"'nunet' should be .*\(did you mean nnunet\?\)"),
        ({"train": ["real"], "augmentation": "none", "amount": 0}, "amount: 0 should be greater than 0"),
        ({"train": ["real"], "augmentation": "none", "amount": "1"}, "amount: '1' should be a valid number"),
        ({"train": ["real"], "augmentation": "none", "ammount": 1}, r"ammount is unknown \(did you mean amount\?\)"),
        (
            {"train": ["real", "synth"], "augmentation": "none"},
            "arm mine: 'synth' stands in train and must stand in its name",
        ),
        (
            {"train": ["real"], "augmentation": "none", "share": 0.25},
            "share and pretrain are for arms that train on real",
        ),
        (
            {"train": ["real", "mine"], "augmentation": "none", "share": 0.2, "pretrain": 0.5},
            "share or pretrain, not both",
        ),
        ({"train": ["real", "mine"], "augmentation": "none", "longer": True}, "longer is for arms with pretrain"),
        ({"train": ["real", "mine"], "augmentation": "none", "share": 1.5}, "share"),
        ({"train": ["real"], "augmentation": "$print()"}, r"'\$print\(\)' is an expression"),
        ({"train": ["real"], "augmentation": {"_target_": "os.system"}}, "_target_ would be executed"),
    ],
)
def test_wrong_arms(tmp_path, arm, message):
    path = tmp_path / "arms.yaml"
    path.write_text(yaml.safe_dump({"arms": {"mine": arm}, "standard": ["mine"], "baseline": "mine"}))
    with pytest.raises(InputError, match=message):
        ArmBook.load(str(path))


@pytest.mark.parametrize(
    ("families", "message"),
    [
        ([["real+synthetic"]], r"families: real\+synthetic is none of the arms"),
        ([["real", "synth"], ["real"]], "families: real must stand in one of them, once"),
        ([["real+aug"]], r"families: real\+aug must .* the baseline in none"),
    ],
)
def test_wrong_families(tmp_path, families, message):
    content = yaml.safe_load((HERE / "arms.yaml").read_text()) | {"families": families}
    (tmp_path / "arms.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(InputError, match=message):
        ArmBook.load(str(tmp_path / "arms.yaml"))


def test_budgets():
    small = load_budget("small", iterations=500, snapshots=None)
    assert small["iterations"] == 500 and all(snapshot < 500 for snapshot in small["snapshots"])
    paper = load_budget("paper")
    assert paper["plan"] is None and (paper["iterations"], paper["iterations_per_epoch"]) == (250_000, 250)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"iterations": 250}, "multiple of iterations_per_epoch"),
        ({"snapshots": [30]}, "--snapshots 30"),
        (
            {"plan": {"spacing": [3, 3, 3], "patch_size": [16, 16, 16], "batch_size": 2, "features": [8, 16]}},
            "at least 3",
        ),
        ({"plan": {"spacing": [3, 3, 3], "patch_size": [18, 16, 16], "batch_size": 2, "features": [8, 8, 8]}}, "of 4"),
        ({"plan": {"spacing": [3, 3, 3]}}, "lacks plan.patch_size"),
        ({"save_every": 0}, r"save_every: 0 should be greater"),
        ({"threads": True}, "threads: True should be a valid integer"),
    ],
)
def test_wrong_budgets(changes, message):
    with pytest.raises(InputError, match=message):
        load_budget("small", **changes)


def test_unknown_budget():
    with pytest.raises(InputError, match=r"--budget large: .*demo, small, paper"):
        load_budget("large")
    with pytest.raises(InputError, match=r"\(did you mean small\?\)"):
        load_budget("smal")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "must hold one budget"),
        ("mine: 3", "mine: the whole: 3 should be a valid dictionary"),
        ("a: {}\nb: {}", "must hold one budget"),
        ("mine: {iteration: 3}", r"iteration is unknown \(did you mean iterations\?\)"),
        ("mine: {plan: '$exit()'}", "is an expression; a budget holds plain values alone"),
        ("mine: [", "not readable as YAML"),
    ],
)
def test_own_budgets(tmp_path, text, message):
    path = tmp_path / "budget.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=f"{path}: .*{message}"):
        load_budget(str(path))


def test_default_budget(capsys):
    """A preset of one's own has no budget of its name."""
    assert default_budget("demo") == "demo" and capsys.readouterr().out == ""
    assert default_budget("mine") == "small" and "none of the preset's name (mine)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"baseline": "real+au"}, r"baseline real\+au is none of the arms \(did you mean real\+aug\?\)"),
        ({"standard": ["rael"]}, r"standard: rael is none of the arms \(did you mean real\?\)"),
        ({"standard": ["real", "real+gan+augg"]}, r"standard: real\+gan\+augg is none"),
        ({"arms": {}}, "arms: .* at least 1"),
        ({"paper": {"real": [0.7]}}, "at least 2 items"),
    ],
)
def test_wrong_book(tmp_path, change, message):
    content = yaml.safe_load((HERE / "arms.yaml").read_text()) | change
    (tmp_path / "arms.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(InputError, match=message):
        ArmBook.load(str(tmp_path / "arms.yaml"))
