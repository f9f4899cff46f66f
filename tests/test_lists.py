"""Roles are drawn from the seed alone and come back from the file."""

from __future__ import annotations

import codecs
import json
from pathlib import Path

import pytest

from sbldm.cases.lists import check_disjoint, pick, read_case_list, read_lists, split_cases, write_lists
from sbldm.run.errors import DataError, InputError, StateError

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
    with pytest.raises(StateError, match="sbldm prepare"):
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


LISTED = "# all\nb\n\n a#1  # first\n#c\nd\t# last\n"


@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"])
def test_case_list(tmp_path, encoding, newline):
    """Whatever an editor puts before it and between its lines; `#` begins a comment after a blank alone."""
    path = tmp_path / "list.txt"
    path.write_bytes(LISTED.replace("\n", newline).encode(encoding))
    assert read_case_list(path) == ["b", "a#1", "d"]
    path.write_bytes(codecs.BOM_UTF16_BE + "Größe \r\n".encode("utf-16-be"))
    assert read_case_list(path) == ["Größe"]


def test_wrong_case_lists(tmp_path):
    path = tmp_path / "list.txt"
    for content, message in (("# nothing\n", "names no case"), ("a\nb\na \n", "a stands"), (b"\xff\xfea", "cannot be")):
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        with pytest.raises(InputError, match=message):
            read_case_list(path)
    with pytest.raises(InputError, match=r"none\.txt: is missing"):
        read_case_list(tmp_path / "none.txt")


def test_home_in_a_case_list(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "list.txt").write_text("a\n")
    assert read_case_list("~/list.txt") == ["a"]
    with pytest.raises(InputError, match=r"~nobody-here/list\.txt: is missing; it must be a text"):
        read_case_list("~nobody-here/list.txt")


def test_names_with_folders_and_endings():
    known = {"a": {"Brats_7"}, "b.v2": (), "c_0000": (), "d": {"x"}, "e": {"x"}}
    listed = ["HGG/a/", "b.v2.nii.gz", "data\\\\c_0000", "d/d_flair.NII.GZ", "e_0000.mha", "a"]
    assert pick(listed, known, Path("cases")) == ["a", "b.v2", "c_0000", "d", "e"]
    assert pick(["Brats_7_flair.nii.gz", "in/Brats_7"], known, Path("cases")) == ["a"]
    with pytest.raises(DataError, match=r"x: stands for several cases in cases \(d, e\)"):
        pick(["x"], known, Path("cases"))
    with pytest.raises(DataError, match=r"2 of 3 cases asked for are not in cases: b\.v22, z; .* b\.v22 is b\.v2\."):
        pick(["b.v22", "a", "z"], known, Path("cases"))
