"""One kind of bar on a terminal, and a few plain lines in a log."""

from __future__ import annotations

import contextlib
import io
import itertools
import os
import pty
import re
import select
import sys
import termios
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from unittest import mock

import pytest
from rich.table import Table

from sbldm.run import errors
from sbldm.run import progress as module
from sbldm.run.progress import Progress, console_for, progress, span


class Clock:
    """A clock that goes on when it is told to."""

    def __init__(self) -> None:
        self.time = 1000.0

    def __call__(self) -> float:
        return self.time

    def sleep(self, seconds: float) -> None:
        self.time += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(module, "now", clock)
    return clock


@pytest.fixture
def log(capsys: pytest.CaptureFixture) -> Iterator[Callable[[], list[str]]]:
    """The lines that a file would hold in place of the terminal."""
    said: list[str] = []

    def lines() -> list[str]:
        said.append(capsys.readouterr().err)
        assert not re.search("[\r\x1b]", said[-1])
        return "".join(said).splitlines()

    yield lines
    assert Progress._open == []


@contextmanager
def terminal(kind: str = "xterm", lines: int = 0, columns: int = 0) -> Iterator[Callable[[], str]]:
    """All that a terminal is sent meanwhile."""
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (lines, columns))
    with (
        open(theirs, "w", buffering=1) as stream,
        contextlib.redirect_stderr(stream),
        mock.patch.dict(os.environ, {"TERM": kind}),
    ):

        def sent() -> str:
            stream.flush()
            read = b""
            while select.select([ours], [], [], 0)[0]:
                read += os.read(ours, 4096)
            return read.decode()

        yield sent
    os.close(ours)


def test_span():
    assert [span(s) for s in (0, 7.4, 83, 3599.6, 7500)] == ["0:00", "0:07", "1:23", "1:00:00", "2:05:00"]


def test_an_hour_takes_about_twenty_lines(clock, log):
    for _ in progress(range(10_000), "Preparing cases"):
        clock.sleep(0.36)
    lines = log()
    assert len(lines) == 20
    assert lines[0] == "Preparing cases: 28 of 10000, 0:10 elapsed, 59:50 left"
    assert lines[1] == "Preparing cases: 112 of 10000, 0:40 elapsed, 59:20 left"
    assert lines[-1] == "Preparing cases: 10000 of 10000, 1:00:00 elapsed"


def test_a_day_says_something_every_ten_minutes(clock, log):
    for _ in progress(range(100_000), "Training"):
        clock.sleep(0.864)
    assert len(log()) < 170
    minutes = [int(h) * 60 + int(m) for h, m in re.findall(r", (\d+):(\d\d):\d\d elapsed", "\n".join(log()))]
    assert max(b - a for a, b in itertools.pairwise(minutes)) <= 11


def test_short_work_says_nothing(clock, log):
    assert list(progress([1, 2, 3], "Reading")) == [1, 2, 3]
    for _ in progress(range(3), "Reading"):
        clock.sleep(3)
    assert log() == []


@pytest.mark.parametrize("how", [ValueError, KeyboardInterrupt])
def test_the_last_line_says_where_it_stopped(clock, log, how):
    with pytest.raises(how):
        for i in progress(range(100), "Preparing cases"):
            clock.sleep(4)
            if i == 4:
                raise how
    assert log() == [
        "Preparing cases: 3 of 100, 0:12 elapsed, 6:28 left",
        "Preparing cases: 4 of 100, 0:20 elapsed, 8:00 left",
    ]


def test_without_items_and_without_a_total(clock, log):
    assert list(progress([], "Nothing")) == []
    for _ in progress(iter("abc"), "Reading"):
        clock.sleep(40)
    assert [line[:16] for line in log()] == ["Reading: 1 cases", "Reading: 2 cases", "Reading: 3 cases"]


def test_work_inside_of_work_shares_its_lines(clock, log):
    for _ in progress(range(60), "Runs", unit="run"):
        for _ in progress(range(15), "Cases"):
            clock.sleep(1)
    assert len(log()) <= 16  # of a quarter of an hour
    assert log()[-1] == "Runs: 60 of 60, 15:00 elapsed"
    assert any(line.startswith("Cases: ") for line in log())


def test_notes_resumed_work_and_words_between(clock, capsys):
    with Progress("Training", 100, "it", done=50) as bar:
        clock.sleep(20)
        bar.describe("Training diffusion")
        bar.note(loss="0.1234", redrawn=2)
        bar.update(10)
        bar.write("job: done")
    said = capsys.readouterr()
    assert said.err == "Training diffusion: 60 of 100, 0:20 elapsed, 1:20 left (loss 0.1234, redrawn 2)\n"
    assert said.out == "job: done\n"


@pytest.mark.parametrize("size", [(0, 0), (0, 100), (30, 100)], ids=["unknown", "half known", "known"])
def test_a_terminal_gets_a_bar(size):
    with terminal("xterm", *size) as sent:
        with Progress("Preparing cases", 4) as bar:
            bar.note(redrawn=1)
            bar.update(4)
        text = sent()
    assert "\rPreparing cases: 100%" in text and "4/4" in text and "redrawn=1" in text
    assert text.endswith("\r\n") and "\x1b[?25l" not in text  # the cursor is never hidden


def test_a_dumb_terminal_is_a_log(clock):
    with terminal("dumb") as sent:
        for _ in progress(range(2), "Reading"):
            clock.sleep(40)
        assert sent() == "Reading: 1 of 2, 0:40 elapsed, 0:40 left\r\nReading: 2 of 2, 1:20 elapsed\r\n"


def test_ctrl_c_leaves_the_bar_its_own_line():
    def command() -> None:
        Progress("Training", 10)  # as an engine holds it, without `with`
        raise KeyboardInterrupt

    with terminal() as sent:
        assert errors.finish(command) == 130
        assert sent().endswith("\nStopped; the same command goes on from here.\r\n")
    assert Progress._open == []


@pytest.mark.parametrize("stream", [None, "closed"])
def test_without_a_standard_error(monkeypatch, capsys, clock, stream):
    closed = io.StringIO()
    closed.close()
    monkeypatch.setattr(sys, "stderr", stream and closed)
    for _ in progress(range(2), "Reading"):
        clock.sleep(60)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("columns", ["", "40", "300"])
def test_a_table_in_a_log(monkeypatch, columns):
    """No codes, no word cut, one line a row where nobody asks for less."""
    out, word = io.StringIO(), "BraTS20_Training_001_" + 60 * "x" + ".nii.gz"
    monkeypatch.setenv("COLUMNS", columns)
    monkeypatch.setenv("FORCE_COLOR", "1")
    table = Table("case", "what is wrong", title="Pre-flight")
    table.add_row("a", f"{word}: " + "many words " * 15)
    with contextlib.redirect_stdout(out):
        console_for(table).print(table)
    lines = out.getvalue().splitlines()
    assert "\x1b" not in out.getvalue() and sum(word in line for line in lines) == 1
    assert (len(lines) == 6) == (columns != "40")
    assert max(map(len, lines)) <= (120 if columns == "40" else 300)
