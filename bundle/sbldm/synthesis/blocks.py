"""Drawing in several processes: each takes a block of pairs at a time and writes them, whatever others do.

What is to be drawn is planned, and the manifest written, by the process that was called. A worker builds model, gate
and the rest once, from the same config as that, and finds everything else in the run folder.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import Any, TypeVar

import SimpleITK as sitk
import torch
from monai.bundle import ConfigParser

from sbldm.run.errors import InputError
from sbldm.run.files import BUNDLE
from sbldm.run.limits import MOST_PROCESSES
from sbldm.run.schema import refuse_expressions
from sbldm.run.workers import map_in_processes
from sbldm.synthesis.requests import Block

__all__ = ["count_workers", "draw_block", "draw_blocks", "map_in_blocks", "quiet"]

B = TypeVar("B")
R = TypeVar("R")

KEPT = ("device", "asked", "model", "inferer", "canvases", "refiner", "gate_def", "output")
_held: dict[str, dict[str, Any]] = {}  # by the mark of blocks, one at a time


def count_workers(asked: Any) -> int:
    """The number of processes.

    Raises:
        InputError: it is no whole number above 0.
    """
    if not str(asked).isdecimal() or not 1 <= int(str(asked)) <= MOST_PROCESSES:
        raise InputError(f"--workers {asked}: must be a whole number from 1 to {MOST_PROCESSES}.")
    return int(str(asked))


def draw_blocks(blocks: Sequence[Block], workers: int) -> None:
    """Draw all blocks in so many processes at most.

    Raises:
        StateError: workers were killed at a block again and again, or find another model in the run folder than this
            process did.
        Exception: what stopped a worker first. Pairs that were finished before stay.
    """
    map_in_blocks(draw_block, blocks, workers, [len(block.places) for block in blocks], device=True)


def map_in_blocks(
    function: Callable[[B], R], blocks: Sequence[B], workers: int, sizes: Sequence[int], device: bool = False
) -> list[R]:
    """`function(block)` in so many processes at most; `sizes` are the pairs of each."""
    return map_in_processes(function, blocks, workers, "Drawing pairs", "pair", _begin, device, sizes)


def draw_block(block: Block) -> None:
    """Draw those pairs of a block that are not there yet; a second call for the same block finds nothing to do."""
    with quiet():
        parser = _parser(block)
        parser.ref_resolver.resolved_content |= _kept_for(block) | {"block": block}
        if len(parser.get_parsed_content("dataset")):
            parser.get_parsed_content("evaluator").run()


def _kept_for(block: Block) -> dict[str, Any]:
    """What does not change from block to block, by its name in the config; built at the first one."""
    if block.mark not in _held:
        _held.clear()
        parser = _parser(block)
        _held[block.mark] = {name: parser.get_parsed_content(name) for name in KEPT}
    return _held[block.mark]


def _parser(block: Block) -> ConfigParser:
    """The config with the values of the process that was called; nothing of it is built yet."""
    refuse_expressions(block.values, "", "a block of pairs")
    parser = ConfigParser()
    parser.read_config(BUNDLE / "configs" / "inference.yaml")
    parser.update(dict(block.values))
    parser.parse()
    return parser


def _begin() -> None:
    """Let SimpleITK have as many threads as torch has here."""
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(torch.get_num_threads())


@contextmanager
def quiet() -> Iterator[None]:
    """Within it nothing is printed: the process that was called has said it already, and has the one progress bar."""
    said = io.StringIO()
    with redirect_stdout(said), redirect_stderr(said):
        yield
