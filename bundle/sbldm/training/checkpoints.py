"""Checkpoints of tensors and plain values: `last.pt` to go on from, `best.pt` to use.

`best.pt` holds the weights of the lowest validation loss with the preset and every measured constant, nothing else.
Both are loaded with `weights_only=True` and written whole or not at all, so a kill at any moment costs the work since
the last epoch and never a checkpoint.
"""

from __future__ import annotations

import contextlib
import math
import os
import shlex
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events

from sbldm.run import group
from sbldm.run.errors import InputError, StateError
from sbldm.run.files import atomic_path, check, clear_partial, read_rows, reading, write_csv
from sbldm.run.folder import Run
from sbldm.run.preset import Preset
from sbldm.training.handlers import losses_of

__all__ = [
    "FORMAT",
    "RunCheckpoint",
    "load_checkpoint",
    "read_history",
    "reading_checkpoint",
    "require_same",
    "unfinished",
]

FORMAT = 2  # raise it when networks, constants or the process of older checkpoints are not those of this program
BEST = {"network": dict}
LAST = {"states": dict, "epoch": int, "iteration": int, "best": float, "history": [dict]}
LATER = {  # stages that do not touch one before
    "autoencoder": ("diffusion", "regions", "refiner"),
    "diffusion": ("regions", "refiner"),
    "regions": ("refiner",),
    "refiner": ("regions",),
}
# the second heeds no other work beside, and is that of all processes of a training
CLOCKS = {"seconds": time.monotonic, "cpu_seconds": time.process_time}


def load_checkpoint(path: Path, stage: str) -> dict[str, Any]:
    """Read a checkpoint onto the CPU; objects other than tensors and plain values are never unpickled.

    Raises:
        StateError: there is none (the command that trains one is named), it is damaged, or of another stage or format.
    """
    if not os.path.lexists(path) and not os.path.lexists(path.with_name("last.pt")):
        model = {"diffusion": "diffusion model", "regions": "model of regions"}.get(stage, stage)
        raise StateError(f"{path}: no {model} has been trained here; run `{_train(path)}` first.")
    with reading_checkpoint(path):
        content = torch.load(path, map_location="cpu", weights_only=True)
    if isinstance(content, dict) and content.get("format") in range(1, FORMAT):
        run = Run(path.parents[1])
        trained = [run.folder / name for name in ("autoencoder", "gan", "diffusion", "regions", "refiner")] + [
            run.latents
        ]
        folders = " ".join(shlex.quote(str(folder)) for folder in trained if folder.exists())
        raise StateError(
            f"{path}: trained with an older version (format {content['format']}, now {FORMAT}), whose networks are not "
            f"those of this one; remove {folders} and train again: `{_train(path)}`."
        )
    if not isinstance(content, dict) or content.get("format") != FORMAT or not {"stage", "preset"} <= set(content):
        raise StateError(f"{path}: not a checkpoint of this program (format {FORMAT}); point --run at the right run.")
    with reading_checkpoint(path):
        check(content, {"stage": str, "preset": dict, "constants": dict})
        try:
            content["preset"] = Preset.of(content["preset"])
        except InputError as error:
            raise ValueError from error  # is damage here
    if content["stage"] != stage:
        raise StateError(
            f"{path}: this is the checkpoint of another training ({content['stage']} of the "
            f"model {content['preset'].model}), not of the {stage}; point --run at the right run."
        )
    with reading_checkpoint(path):
        check(content, BEST if path.name == "best.pt" else LAST)
    return content


@contextlib.contextmanager
def reading_checkpoint(path: Path) -> Iterator[None]:
    """`reading`, with the way out of a lost checkpoint: nothing but training makes another."""
    train = _train(path)
    if path.name == "last.pt":
        again = f"remove it: `sbldm synth` then takes best.pt as it is, and `{train}` begins this training anew"
    else:
        again = f"restore it from a copy, or remove {_made_from(path)} and train again: `{train}`"
    with reading(path, again, remove=False):
        yield


def _train(path: Path) -> str:
    stage = f" {path.parent.name}" if path.parent.name in ("regions", "refiner") else ""
    return f"sbldm train{stage} --run {shlex.quote(str(path.parents[1]))}"


def _made_from(path: Path) -> str:
    """The folders that fall with a checkpoint: its own, and those of what was made with it."""
    run, stage = Run(path.parents[1]), path.parent.name
    refiner = run.folder / "refiner"
    later = {"autoencoder": [run.latents, run.folder / "diffusion", run.folder / "regions", refiner]}
    folders = [path.parent, *(later | {"diffusion": [refiner]}).get(stage, [])]
    return " ".join(shlex.quote(str(folder)) for folder in folders if folder.exists())


def read_history(run: Run, stage: str) -> list[dict[str, str]]:
    """One row an epoch of the training of a stage; none where `history.csv` is not there.

    Raises:
        StateError: it is damaged.
    """
    path = run.folder / stage / "history.csv"
    again = "run the same command again, which then leaves out what it said"
    return read_rows(path, {"epoch": int, "iteration": int}, again) if path.is_file() else []


def unfinished(run: Run, stage: str) -> str:
    """How far the training of a stage has come when it has not come to its end, else an empty string.

    A run without `last.pt`, as somebody may pass it on, counts as finished.

    Raises:
        StateError: the checkpoint is damaged.
    """
    path = run.checkpoint(stage, "last")
    if not os.path.lexists(path):
        return ""
    content = load_checkpoint(path, stage)
    total = content["preset"].stage(stage).iterations
    return f"{content['iteration']} of {total} iterations" if content["iteration"] < total else ""


def require_same(path: Path, content: dict[str, Any], preset: Preset, parts: Iterable[str]) -> None:
    """Refuse a checkpoint whose preset differs in one of `parts`; a `StateError` names model or part.

    A stage that two models have in common (`sbldm_2d` has SBLDM's autoencoder) may be copied from one to the other.
    """
    held = content["preset"]
    for part in parts:
        if getattr(held, part, None) == getattr(preset, part, None):
            continue
        if held.model != preset.model:
            raise StateError(
                f"{path}: this is a checkpoint of the model {held.model}, and the run holds {preset.model}; "
                f"choose another --run, or remove {_made_from(path)} and train again."
            )
        raise StateError(
            f"{path}: trained with the preset '{held.name}' whose '{part}' differs from this run's "
            f"('{preset.name}'); choose another --run, or remove {_made_from(path)} and train again."
        )


class RunCheckpoint:
    """Handler that keeps `last.pt`, `best.pt` and `history.csv` of one stage, and resumes from `last.pt`.

    Args:
        folder: where they go.
        stage: `autoencoder`, `diffusion`, `regions`, `refiner` or `gan`.
        preset: the preset in force, stored with the weights.
        constants: measured constants, plain values, stored with the weights.
        network: what is trained.
        evaluator: its validation, whose metric `loss` decides which epoch is best; it runs before this handler. None:
            the last epoch is taken for the best, as nothing tells the epochs of a GAN apart.
        states: further objects with `state_dict`, by name (optimizer, scheduler).
        weights: the network whose weights are used later (the exponential moving average), default `network`.
        early: share of the training at whose end the weights are kept beside the best ones, as a guide; None: none are.
    """

    def __init__(
        self,
        folder: str | Path,
        stage: str,
        preset: Preset,
        constants: dict[str, Any],
        network: torch.nn.Module,
        evaluator: Engine | None,
        states: dict[str, Any],
        weights: torch.nn.Module | None = None,
        early: float | None = None,
    ) -> None:
        self.folder, self.stage, self.preset, self.constants = Path(folder), stage, preset, constants
        self.evaluator = evaluator
        self.weights = network if weights is None else weights
        self.states = {"network": network, **states} | ({} if weights is None else {"average": weights})
        self.history: list[dict[str, Any]] = []
        self.losses: list[dict[str, float]] = []
        self.best = math.inf
        self.early, self.guide = early, None
        self.started = {name: clock() for name, clock in CLOCKS.items()}
        self.spent = dict.fromkeys(CLOCKS, 0.0)

    def attach(self, engine: Engine) -> None:
        """Save at the end of each epoch of a trainer."""
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.remember)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self)

    def _start(self, engine: Engine) -> None:
        self.started = {name: clock() for name, clock in CLOCKS.items()}

    def remember(self, engine: Engine) -> None:
        """Keep the loss of an iteration for the epoch's mean."""
        self.losses.append(losses_of(engine))

    def __call__(self, engine: Engine) -> None:
        """Write the checkpoints of the epoch that has just ended."""
        scores = {}
        if self.evaluator is not None:
            scores = {name: float(value) for name, value in self.evaluator.state.metrics.items()}
        row = {"epoch": engine.state.epoch, "iteration": engine.state.iteration}
        row |= {f"train_{k}": sum(loss[k] for loss in self.losses) / len(self.losses) for k in self.losses[0]}
        row |= {f"val_{k}": v for k, v in scores.items()}
        own = {name: clock() - self.started[name] for name, clock in CLOCKS.items()}
        own["cpu_seconds"] = self._of_all(own["cpu_seconds"])
        row |= {name: self.spent[name] + seconds for name, seconds in own.items()}
        self.losses.clear()
        self.history.append({k: round(v, 6) for k, v in row.items()})
        common = {"format": FORMAT, "stage": self.stage, "preset": self.preset.state(), "constants": self.constants}
        if self.early and self.guide is None and engine.state.epoch >= self.early * engine.state.max_epochs:
            self.guide = {name: value.clone() for name, value in self.weights.state_dict().items()}
        if self.evaluator is None or scores["loss"] < self.best:
            self.best = scores.get("loss", math.inf)
            best = common | {"network": self.weights.state_dict(), "epoch": engine.state.epoch, "scores": scores}
            best["early"] = self.guide
            self._save("best.pt", best)
        progress = {"epoch": engine.state.epoch, "iteration": engine.state.iteration}
        states = {name: item.state_dict() for name, item in self.states.items()}
        if not group.rank():
            write_csv(
                self.folder / "history.csv", self.history
            )  # before last.pt: after that, this epoch is not run again
        kept = {"states": states, "early": self.guide, "best": self.best, "history": self.history}
        self._save("last.pt", common | progress | kept)

    def _of_all(self, seconds: float) -> float:
        """The sum over the processes of a training."""
        if group.size() == 1:
            return seconds
        device = next(self.states["network"].parameters()).device
        return group.size() * float(group.mean(torch.tensor(seconds, dtype=torch.float64, device=device)))

    def _save(self, name: str, content: dict[str, Any]) -> None:
        if group.rank():  # the first process alone writes
            return
        with atomic_path(self.folder / name) as temporary:
            try:
                torch.save(content, temporary)
            except RuntimeError as error:  # torch keeps to itself what the disk said
                raise OSError("the disk is full or takes no more") from error

    def resume(self, engine: Engine) -> int:
        """Load `last.pt` where there is one; return how many iterations are already done.

        Raises:
            StateError: it belongs to another preset or other cases.
        """
        clear_partial(self.folder)
        path = self.folder / "last.pt"
        if not os.path.lexists(path):
            return 0
        content = load_checkpoint(path, self.stage)
        later = LATER.get(self.stage, ())
        require_same(path, content, self.preset, [part for part, _ in self.preset if part not in later])
        if content["constants"] != self.constants:
            raise StateError(
                f"{path}: trained on other cases or latents; choose another --run, or remove {_made_from(path)} and "
                "train again."
            )
        load_checkpoint(self.folder / "best.pt", self.stage)  # a lost one would not come back
        with reading_checkpoint(path):
            for name, item in self.states.items():
                item.load_state_dict(content["states"][name])
        self.best, self.history, self.guide = content["best"], content["history"], content.get("early")
        self.spent = {name: self.history[-1].get(name, 0.0) for name in CLOCKS}
        engine.state.epoch, engine.state.iteration = content["epoch"], content["iteration"]
        return content["iteration"]
