"""Roles are drawn from the seed alone and come back from the file."""

from __future__ import annotations

import json

import pytest

from sbldm.cases.lists import check_disjoint, read_lists, split_cases, write_lists
from sbldm.errors import DataError, InputError, StateError

NAMES = [f"case{index:02d}" for index in range(20)]


def test_seeded_sorted_and_complete():
    lists = split_cases(NAMES, 0.2, seed=1)
    assert lists == split_cases(NAMES[::-1], 0.2, seed=1) == split_cases(NAMES, 4, seed=1)
    assert lists != split_cases(NAMES, 0.2, seed=2)
    assert [len(lists["train"]), len(lists["validation"])] == [16, 4]
    assert sorted(lists["train"] + lists["validation"]) == NAMES
    assert all(names == sorted(names) for names in lists.values())


@pytest.mark.parametrize(
    ("count", "validation", "held_back"), [(1, 0.2, 0), (2, 0.0, 1), (2, 0.9, 1), (3, 0, 1), (9, 0.99, 8)]
)
def test_at_least_one_of_each(count, validation, held_back):
    assert len(split_cases(NAMES[:count], validation, seed=0)["validation"]) == held_back


@pytest.mark.parametrize("validation", [-1, -0.1, 1.0, 20, float("nan")])
def test_impossible_share(validation):
    with pytest.raises(InputError, match="validation="):
        split_cases(NAMES, validation, seed=0)


def test_no_case_or_one_twice():
    with pytest.raises(DataError, match="no case"):
        split_cases([], 0.2, seed=0)
    with pytest.raises(DataError, match="a stands more than once"):
        split_cases(["a", "b", "a"], 0.2, seed=0)


def test_two_lists():
    check_disjoint({"train": ["a"], "validation": ["b"]})
    with pytest.raises(DataError, match=r"b stands .*train and validation"):
        check_disjoint({"train": ["a", "b"], "validation": ["b"]})


def test_write_and_read(tmp_path):
    lists = split_cases(NAMES, 0.2, seed=7)
    write_lists(tmp_path / "run", lists, seed=7, data="/cases")
    assert json.loads((tmp_path / "run/lists.json").read_text()) == {"seed": 7, "data": "/cases", **lists}
    assert read_lists(tmp_path / "run") == lists
    with pytest.raises(DataError):
        write_lists(tmp_path / "bad", {"train": ["a"], "validation": ["a"]}, seed=7, data="")
    assert not (tmp_path / "bad").exists()


def test_missing_or_damaged(tmp_path):
    with pytest.raises(StateError, match="make prepare"):
        read_lists(tmp_path)
    (tmp_path / "lists.json").write_text('{"seed": 1}')
    with pytest.raises(StateError, match="damaged"):
        read_lists(tmp_path)


def test_visits_of_one_subject_stay_together():
    """BraTS 2023+ numbers visits: no subject stands on both sides, and at least the share asked for is held back."""
    names = [f"BraTS-GLI-{i:05d}-{visit:03d}" for i in range(12) for visit in range(1 + i % 3)]
    for seed in range(20):
        lists = split_cases(names, 0.2, seed)
        assert sorted(lists["train"] + lists["validation"]) == sorted(names)
        train, held_back = ({name.rsplit("-", 1)[0] for name in lists[role]} for role in ("train", "validation"))
        assert not train & held_back and 5 <= len(lists["validation"]) <= 7
