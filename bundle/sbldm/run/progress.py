"""How far a command is: one bar on a terminal; in a log one plain line now and then, without codes."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from types import TracebackType
from typing import Any, TextIO, TypeVar

from rich.console import Console, RenderableType
from tqdm import tqdm

__all__ = ["Progress", "console_for", "is_terminal", "progress", "span"]

Item = TypeVar("Item")

FIRST = 10.0  # seconds after which the first line of a log is due; what is over sooner needs none
LEAST, MOST = 30.0, 600.0  # seconds between two lines of a log: a fifth of the time so far, between these two

now = time.monotonic


def is_terminal(stream: TextIO | None) -> bool:
    """Whether a stream ends at a screen whose lines can be drawn over."""
    with suppress(ValueError):  # a closed one
        return stream is not None and stream.isatty() and os.environ.get("TERM") != "dumb"
    return False


def span(seconds: float) -> str:
    """A time in words that fit in a line: `0:07`, `1:23`, `2:05:00`."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02d}:{second:02d}" if hours else f"{minute}:{second:02d}"


class _Cadence:
    """When a line of a log is due."""

    def __init__(self) -> None:
        self.begun, self.said = now(), None

    def due(self) -> bool:
        if self.said is None:
            return now() - self.begun >= FIRST
        return now() - self.said >= min(max(LEAST, (now() - self.begun) / 5), MOST)


class Progress:
    """How far one piece of work is, on standard error.

    On a terminal it is a bar. Elsewhere (Slurm, CI, `2> log`) it is a line such as `Preparing cases: 34 of 100, 1:23
    elapsed, 2:40 left`: the first after ten seconds, then ever more seldom, and one at the end if there has been any
    before, so that an hour takes about twenty. Work inside of other work shares its lines.

    Args:
        description: of the work.
        total: how much there is; None when it is not known.
        unit: of the total, one word in the singular.
        done: how much of the total was done before.
    """

    _open: list[Progress] = []  # noqa: RUF012 - all bars of this process, outermost first

    def __init__(self, description: str, total: int | None = None, unit: str = "case", done: int = 0) -> None:
        self.description, self.total, self.unit, self.done = description, total, unit, done
        self.notes: dict[str, str] = {}
        self._stream, self._before, self._begun, self._bar, self._said = sys.stderr, done, now(), None, None
        self._cadence = self._open[0]._cadence if self._open else _Cadence()
        self._open.append(self)
        if is_terminal(self._stream):
            columns, lines = os.get_terminal_size(self._stream.fileno())  # at 0, unknown, tqdm would show nothing
            width = {"dynamic_ncols": True} if columns and lines else {"ncols": columns or 80, "nrows": 24}
            shown = {"unit": unit, "initial": done, "mininterval": 0.5} | width
            self._bar = tqdm(None, description, total, file=self._stream, **shown)

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def update(self, count: int = 1) -> None:
        """So much more is done; 0 only looks whether something is to be said."""
        self.done += count
        if self._bar is not None:
            self._bar.update(count)
        elif self.done != self.total and self._cadence.due():  # the last word is that of `close`
            self._say()

    def note(self, **values: Any) -> None:
        """What is shown behind the numbers from the next update on."""
        self.notes = {name: str(value) for name, value in values.items()}
        if self._bar is not None:
            self._bar.set_postfix(self.notes, refresh=False)

    def describe(self, description: str) -> None:
        """Another description, from the next update on."""
        self.description = description
        if self._bar is not None:
            self._bar.set_description(description, refresh=False)

    def write(self, text: str) -> None:
        """Print lines on standard output that stay, above the bar where there is one."""
        if self._bar is not None:
            self._bar.write(text)
        else:
            print(text, flush=True)

    def close(self) -> None:
        """The end, or where the work stopped: the last word, unless nothing has been said and it went fast."""
        if self not in self._open:
            return
        outermost = self is self._open[0]
        if self._bar is not None:
            self._bar.close()
        elif self._said != self.done and (self._cadence.due() or (outermost and self._cadence.said is not None)):
            self._say()
        self._open.remove(self)

    @classmethod
    def close_all(cls) -> None:
        """Close what a stopped command has left open, so that the next line has a line of its own."""
        for bar in reversed(cls._open.copy()):
            bar.close()

    def _say(self) -> None:
        with suppress(OSError, ValueError):  # nobody reads the log any more; the work goes on
            if self._stream is not None:
                print(self._line(), file=self._stream, flush=True)
        self._cadence.said, self._said = now(), self.done

    def _line(self) -> str:
        elapsed, fresh = now() - self._begun, self.done - self._before
        count = f"{self.done} {self.unit}s" if self.total is None else f"{self.done} of {self.total}"
        parts = [count, f"{span(elapsed)} elapsed"]
        if self.total is not None and fresh and self.done < self.total:
            parts.append(f"{span(elapsed / fresh * (self.total - self.done))} left")
        notes = ", ".join(f"{name} {value}" for name, value in self.notes.items())
        return f"{self.description}: {', '.join(parts)}{f' ({notes})' if notes else ''}"


def progress(items: Iterable[Item], description: str, total: int | None = None, unit: str = "case") -> Iterator[Item]:
    """The items, one after the other, with a `Progress`; their number is taken from them where `total` is not given."""
    if total is None and hasattr(items, "__len__"):
        total = len(items)
    if total == 0:
        yield from items
        return
    with Progress(description, total, unit) as bar:
        for item in items:
            yield item
            bar.update()


def console_for(content: RenderableType) -> Console:
    """Where to print a table: the terminal, or a log, which gets no codes and lines as long as the words need.

    `COLUMNS` sets the width of a log, but cuts no word.
    """
    if is_terminal(sys.stdout):
        return Console()
    console = Console(force_terminal=False, no_color=True, width=10_000)
    size = console.measure(content)
    columns = os.environ.get("COLUMNS", "")
    width = max(int(columns), size.minimum) if columns.isdecimal() else max(80, size.maximum)
    return Console(force_terminal=False, no_color=True, width=width, soft_wrap=False)
