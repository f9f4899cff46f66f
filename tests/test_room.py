"""Numbers that cannot be meant and work that cannot fit are refused before they begin, and long work is announced."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import TINY, call, copy_run, one_line, snapshot

from sbldm.cases.layouts import Source
from sbldm.run.errors import InputError, OutputError, finish
from sbldm.run.files import write_json
from sbldm.run.room import check_room, free_bytes, gigabytes, lasting
from sbldm.synthesis import RawDataset
from sbldm.synthesis.requests import count_pairs


def dataset(root: Path, records: int = 0, seconds: float = 0.0) -> RawDataset:
    opened = RawDataset.open(str(root), 501, "X", Source(), np.eye(4), {}, {})
    for k in range(records):
        write_json(opened.folder / "records" / f"X_{k:06d}.json", {"seconds": seconds})
    return opened


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch):
    """Sets how much room the disk has, in bytes."""
    usage = type(shutil.disk_usage("/"))
    return lambda count: monkeypatch.setattr("shutil.disk_usage", lambda _: usage(10**15, 0, count))


def test_words():
    assert [gigabytes(n) for n in (0, 3e8, 1.24e13)] == ["0.0 GB", "0.3 GB", "12,400 GB"]
    assert [lasting(s) for s in (40, 720, 11000, 3e7)] == ["40 s", "12 min", "3.1 h", "347 days"]


def test_room_is_looked_at_where_the_folder_will_be(tmp_path, free):
    assert free_bytes(tmp_path / "not" / "yet") == shutil.disk_usage(tmp_path).free
    free(2 * 10**9)
    check_room(tmp_path / "x", 2e9, "ask for less")
    with pytest.raises(OutputError, match=r"x: needs about 3\.0 GB, 2\.0 GB are free; free space, or ask for less\.$"):
        check_room(tmp_path / "x", 3e9, "ask for less")
    assert not (tmp_path / "x").exists()


def test_pairs_that_fit_and_that_do_not(tmp_path, free):
    """A BraTS pair at 1 mm takes 2.8 MB here; real cases take 2.2 MB."""
    data, size = dataset(tmp_path, records=10), (240, 240, 155)
    free(10**9)
    with pytest.raises(OutputError) as raised:
        data.check_room(1000, size)
    assert str(raised.value) == (
        f"{data.folder}: 990 pairs need about 2.8 GB (2.8 MB each), 1.0 GB are free; free space, or ask for no more "
        "than --n 369."
    )
    data.check_room(369, size)  # the advice can be followed
    with pytest.raises(OutputError):
        data.check_room(370, size)


@pytest.mark.parametrize("n", ["1000001", "1000000000", 10**30])
def test_more_pairs_than_have_names(n):
    with pytest.raises(InputError, match=rf"^--n {n}: 1000000 pairs are the most, .* --n 1000000\.$"):
        count_pairs(n, 0)
    assert count_pairs("1000000", 0) == 10**6


def test_the_time_is_told_from_what_was_measured(tmp_path, capsys):
    assert not dataset(tmp_path / "none").tell_time(10**6)
    assert dataset(tmp_path / "few", 2, 11.0).tell_time(5)
    assert capsys.readouterr().out == ""  # less than a minute
    assert dataset(tmp_path / "many", 3, 11.0).tell_time(1000)
    assert capsys.readouterr().out == "About 3.1 h for 1000 pairs, at 11 s a pair (measured on the last 3 here).\n"
    assert dataset(tmp_path / "shared", 3, 11.0).tell_time(1000, processes=4)
    said = "at 11 s a pair (measured on the last 3 here) in each of 4 processes.\n"
    assert capsys.readouterr().out == f"About 46 min for 1000 pairs, {said}"


@pytest.mark.parametrize("command", ["synth", "copypaste"])
def test_a_huge_n_is_refused_before_anything_is_written(drawn_run, tmp_path, free, command):
    run = copy_run(drawn_run, tmp_path)
    before = snapshot(run)
    said = one_line(call(command, "--run", run, "--n", 10**9), 2)
    assert said.startswith("Error: --n 1000000000: must be a whole number from 1 to 1000000.")
    free(10**8)
    said = one_line(call(command, "--run", run, "--n", 10**6), 5)
    assert " pairs need about" in said and "0.1 GB are free" in said and "no more than --n" in said
    assert snapshot(run) == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("phantom", "--n", 10**9), "--n 1000000000: must be a whole number from 1 to 1000000."),
        (("prepare", "--workers", 10**9), "--workers 1000000000: must be a whole number from 1 to 1024."),
        (("prepare", "--seed", 2**32), "--seed 4294967296: must be a whole number from 0 to 4294967295."),
        (("prepare", "--minutes", "1e30"), "--minutes 1e30: must be a number above 0 to 525600."),
    ],
)
def test_other_huge_numbers(phantom_cases, tmp_path, arguments, message):
    where = (
        ("--out", tmp_path / "x") if arguments[0] == "phantom" else ("--data", phantom_cases, "--run", tmp_path / "x")
    )
    preset = () if arguments[0] == "phantom" else ("--preset", "small" if "--minutes" in arguments else TINY)
    assert one_line(call(*arguments, *where, *preset), 2) == f"Error: {message}"
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("batch", 10**9, "--batch 1000000000: must be a whole number from 1 to 1024."),
        ("seed", 10**20, f"--seed {10**20}: must be a whole number from 0 to 4294967295."),
        ("dataset", "\u00b2", "--dataset \u00b2: must be a whole number from 1 to 999."),
        ("dataset", 10**9, "--dataset 1000000000: must be a whole number from 1 to 999."),
        ("steps", 10**9, "--steps 1000000000: "),
    ],
)
def test_huge_numbers_for_synth(drawn_run, option, value, message):
    assert one_line(call("synth", "--run", drawn_run, "--n", 4, f"--{option}", value), 2).startswith(
        f"Error: {message}"
    )


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("jobs", 10**9, "--jobs 1000000000: must be a whole number from 1 to 1024."),
        ("workers", 10**9, "--workers 1000000000: must be a whole number from 1 to 1024."),
        ("iterations", 10**12, "--iterations 1000000000000: must be a whole number from 1 to 100000000."),
        ("seeds", f"0,{10**12}", f"--seeds 0,{10**12}: {10**12} is not from 0 to 4294967295."),
        ("amounts", "inf", "--amounts inf: inf is not from 0 to 1000."),
    ],
)
def test_huge_numbers_for_nnunet(drawn_run, tmp_path, option, value, message):
    command = (
        "nnunet",
        "plateau",
        "--run",
        drawn_run,
        "--out",
        tmp_path / "x",
        "--budget",
        "demo",
        f"--{option}",
        value,
    )
    assert one_line(call(*command), 2) == f"Error: {message}"
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("value", ["0", "1025", "1" * 5000, "\u00b2"])
def test_workers_of_an_evaluation(drawn_run, value):
    said = one_line(call("evaluate", "--run", drawn_run, "--workers", value), 2)
    assert said == f"Error: --workers {value}: must be a whole number from 1 to 1024."


def test_phantoms_and_prepared_cases_need_room_too(phantom_cases, tmp_path, free):
    free(1000)
    assert "x: needs about" in one_line(call("phantom", "--out", tmp_path / "x", "--n", 3), 5)
    assert not (tmp_path / "x").exists()
    said = one_line(call("prepare", "--data", phantom_cases, "--run", tmp_path / "run", "--preset", TINY), 5)
    assert "prepared: needs about 0.0 GB, 0.0 GB are free; free space, or choose another --run." in said
    assert not list(tmp_path.glob("run/prepared/*.npz"))


class OutOfMemoryError(RuntimeError):
    """As torch's."""


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB.\nmore"),
        RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: you tried ..."),
    ],
)
def test_no_memory_is_one_line(error, capsys):
    def command() -> None:
        raise error

    assert finish(command) == 4
    said = capsys.readouterr().err
    assert said.startswith("Error: memory has run out (") and said.count("\n") == 1 and "--batch 1" in said
