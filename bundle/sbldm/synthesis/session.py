"""Drawing: decode what the sampler drew, refuse what is useless and draw it again, write the rest, keep the time."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine, Events
from monai.engines import Evaluator

from sbldm.metrics.nearness import too_many_copies
from sbldm.run.errors import StateError
from sbldm.run.manifest import MEASURED, REQUESTED, Manifest
from sbldm.run.models import SAMPLING
from sbldm.run.progress import Progress
from sbldm.run.workers import Workers, on_cluster
from sbldm.synthesis.blending import contrast_of, draw_into, varied
from sbldm.synthesis.blocks import count_workers, draw_blocks
from sbldm.synthesis.canvas import Canvas
from sbldm.synthesis.canvases import Canvases
from sbldm.synthesis.gate import Gate, Verdict
from sbldm.synthesis.model import Model, Sampler
from sbldm.synthesis.pairs import Pair, finish_pair
from sbldm.synthesis.raw_dataset import RawDataset
from sbldm.synthesis.refine import Refiner
from sbldm.synthesis.requests import PairRequests, within
from sbldm.tumour.characteristics import to_dict

__all__ = ["PairWriter", "run"]

ATTEMPTS = 20
BESIDE = 5  # attempts at a second tumour, which a pair can do without
GIVEN_UP = 0.1  # share of pairs that may be missing in the end without an error


@dataclass(eq=False)
class _Asked:
    """A pair on its way: its row of `PairRequests`, why it was refused so far, and the seconds that it has taken.

    Once its tumour is drawn and `main` is kept, the row may be that of a second one (`Canvases.satellite`).
    """

    row: dict[str, Any]
    faults: list[str] = field(default_factory=list)
    seconds: float = 0.0
    main: _Asked | None = None
    drawn: tuple[Pair, Verdict] | None = None

    @property
    def attempt(self) -> int:
        """Number of this drawing among those of its seed."""
        return len(self.faults) + (ATTEMPTS if self.main else 0)


class PairWriter:
    """Handler that turns each batch of latents into finished pairs of the dataset.

    A pair that the gate refuses is drawn again with the next sub-seed, as soon as there are enough of them for a batch,
    or at the end; how often and why stands in the manifest. Each pair has its place in a batch, by its seed.
    While a pair is compressed and written, the next one is decoded.

    Args:
        model: decodes.
        sampler: draws again.
        output: takes the pairs.
        gate: passes or refuses them.
        total: number of pairs this run draws, for the progress bar.
        canvases: that the pairs are drawn into, if any.
        refiner: that sharpens what is decoded around the tumour, if any.
    """

    def __init__(
        self,
        model: Model,
        sampler: Sampler,
        output: RawDataset,
        gate: Gate,
        total: int,
        canvases: Canvases | None = None,
        refiner: Refiner | None = None,
    ) -> None:
        self.model, self.sampler, self.output, self.gate, self.total = model, sampler, output, gate, total
        self.canvases, self.refiner = canvases, refiner
        self.waiting: list[_Asked] = []  # to be drawn again
        self.refused = 0
        self.started = 0.0

    def attach(self, engine: Engine) -> None:
        """Follow an evaluator."""
        engine.logger.setLevel(logging.CRITICAL)  # the command says what stopped it, and Ctrl-C is no error
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.ITERATION_STARTED, self._clock)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)
        engine.add_event_handler(Events.COMPLETED, self._draw_again, 1)
        engine.add_event_handler(Events.COMPLETED | Events.EXCEPTION_RAISED, self._close)

    def _start(self, engine: Engine) -> None:
        self.told = self.output.tell_time(self.total)
        self.bar = Progress("Drawing pairs", self.total, "pair")
        self.writing, self.written = ThreadPoolExecutor(1), Future()
        self.written.set_result(None)

    def _close(self, engine: Engine, error: Exception | None = None) -> None:
        self.writing.shutdown()
        self.bar.close()
        if error is not None:
            raise error
        self.written.result()

    def _clock(self, engine: Engine) -> None:
        self.started = time.perf_counter()

    def __call__(self, engine: Engine) -> None:
        """Write one batch."""
        self._sort([_Asked(row) for row in engine.state.output["label"]], engine.state.output["pred"])
        self._draw_again(engine, self.sampler.batch)

    def _draw_again(self, engine: Engine, least: int) -> None:
        """Draw those that wait, a batch at a time, as long as it has at least so many, or two batches wait."""
        while len(batch := self._of_one_batch()) >= least or len(self.waiting) >= 2 * self.sampler.batch:
            self.waiting = [asked for asked in self.waiting if asked not in batch]
            self._clock(engine)
            rows, device = [asked.row for asked in batch], engine.state.output["pred"].device
            conditions = torch.stack([row["image"] for row in rows]).to(device)
            seeds = [row["seed"] for row in rows]
            attempts = [asked.attempt for asked in batch]
            more = {"attempts": attempts, "places": seeds} | within(rows, device)
            self._sort(batch, self.sampler(conditions, engine.network, seeds=seeds, **more))

    def _of_one_batch(self) -> list[_Asked]:
        """Of those that wait the first for each place in a batch."""
        found: dict[int, _Asked] = {}
        for asked in self.waiting:
            found.setdefault(asked.row["seed"] % self.sampler.batch, asked)
        return list(found.values())

    def _sort(self, batch: list[_Asked], latents: torch.Tensor) -> None:
        """Decode what was drawn; write what the gate lets through, and let the others wait or give them up."""
        sampling = (time.perf_counter() - self.started) / len(batch)
        for asked, latent in zip(batch, latents, strict=True):
            begun, row = time.perf_counter(), asked.row
            canvas, refine = row.get("canvas"), self.refiner and self.refiner.of(row["seed"], asked.attempt)
            if canvas is None:
                volume = self.model.decode(latent)
                (volume,) = refine(volume) if refine else (volume,)
                pair, affine = finish_pair(volume, self.model), self.model.native.affine()
            else:
                asked_of = row["place"], row["contrast"], varied(row["seed"])
                pair = draw_into(canvas, latent, row["region"], self.model, *asked_of, refine)
                affine = canvas.native.affine()
            request = row["request"] | ({} if row.get("contrast") is None else {"contrast": row["contrast"]})
            verdict = self.gate.verdict_of(pair, affine, request, real_brain=canvas is not None)
            (asked.main or asked).seconds += sampling + time.perf_counter() - begun
            if verdict.refused:
                asked.faults.append(verdict.fault)
                if asked.main is None:
                    self.refused += 1
                    self.bar.note(redrawn=self.refused)
                if len(asked.faults) < (BESIDE if asked.main else ATTEMPTS):
                    self.waiting.append(asked)
                    continue
                if asked.main is None:
                    self.output.give_up(row["seed"], asked.faults)
                else:  # the pair without the second tumour that cannot be drawn
                    self._write(asked.main, asked)
            else:
                asked.drawn = pair, verdict
                if asked.main is None and (beside := self._beside(asked)):
                    self.waiting.append(beside)
                    continue
                self._write(asked.main or asked, asked if asked.main else None)
            self.bar.update()
            self.told = self.told or self.output.tell_time(self.total - self.bar.done, self.bar.write)

    def _beside(self, asked: _Asked) -> _Asked | None:
        """A second tumour for a pair, still to be drawn, where its canvas and its seed have one."""
        row = asked.row
        if "canvas" not in row:
            return None
        found = self.canvases.satellite(row["canvas"], asked.drawn[0], row["seed"])
        return None if found is None else _Asked(row | self.canvases.row(*found, row["contrast"]), main=asked)

    def _write(self, asked: _Asked, second: _Asked | None = None) -> None:
        """Hand a pair to the writing thread; with the second tumour that was asked for beside it, if it was drawn."""
        row, (pair, verdict) = asked.row, asked.drawn
        record = self._record(asked, pair, verdict)
        last = second if second and second.drawn else asked
        if "canvas" in row:
            record["satellite_ml"] = "" if last is asked else round(float(last.drawn[0].measured[0]), 3)
            record["satellite_refused_because"] = "; ".join(second.faults) if second else ""
            if last is not asked:
                own = last.drawn[1].record()
                record["gate"] = own["gate"] if last.drawn[1].fault else record["gate"]
                record["near_copy"] = max({record["near_copy"], own["near_copy"]} - {""}, default="")
        canvas, pair = last.row.get("canvas"), last.drawn[0]
        affine = self.model.native.affine() if canvas is None else canvas.native.affine()
        labels = pair.labels if canvas is None else np.where(pair.labels > 0, pair.labels, canvas.labels)
        self.written.result()  # one at a time; what went wrong with the last one is said here
        self.written = self.writing.submit(self.output.write, row["seed"], pair.image, labels, record, affine)

    def _record(self, asked: _Asked, pair: Pair, verdict: Verdict) -> dict[str, Any]:
        row, measured = asked.row, to_dict(pair.measured, self.output.source.characteristics)
        if row["request"]:
            request = {REQUESTED + name: value for name, value in row["request"].items()}
            request["extrapolated"] = row["extrapolated"]
            if "canvas" in row:
                request[f"{REQUESTED}contrast"] = "" if row["contrast"] is None else row["contrast"]
        else:
            request = {"requests": f"none: {self.model.preset.model} takes none"}
        settings = self.sampler.settings
        return {
            "seed": row["seed"],
            "model": self.model.preset.model,
            **request,
            **{MEASURED + name: value for name, value in measured.items()},
            **({f"{MEASURED}contrast": _contrast(pair, row["canvas"])} if "canvas" in row else {}),
            "redrawn": len(asked.faults),
            "refused_because": "; ".join(asked.faults),
            **verdict.record(),
            **({"canvas": row["canvas"].name, "canvas_content": row["canvas"].content} if "canvas" in row else {}),
            "checkpoint_sha256": self.model.sha256,
            **({"refiner_sha256": self.refiner.sha256} if self.refiner else {}),
            **{name: settings[name] for name in SAMPLING if name in settings},
            "seconds": round(asked.seconds, 3),
        }


def _contrast(pair: Pair, canvas: Canvas) -> float:
    return round(contrast_of(pair.image[0], pair.labels > 0, canvas.native.spacing), 3)


def run(
    evaluator: Evaluator,
    requests: PairRequests,
    writer: PairWriter,
    output: RawDataset,
    show: Callable[[Path], None],
    workers: Any = 1,
    values: Mapping[str, Any] | None = None,
) -> None:
    """Draw all pending pairs and report; a finished dataset is left as it is.

    Args:
        evaluator: draws.
        requests: what is to be drawn.
        writer: of the evaluator's handlers.
        output: the dataset.
        show: what is done with its folder when it is filled (`pages.show_pairs`).
        workers: processes that draw; with one of them the evaluator of this process does.
        values: of the config, from which other processes build what they need.

    Raises:
        InputError: `workers` is no such number.
        StateError: more than a tenth of the pairs were refused at every attempt (the others are written).
    """
    processes = count_workers(workers)
    output.begin()
    there = requests.n - len(requests)
    if there:
        print(f"{output.folder}: {there} of {requests.n} pairs are already there.")
    try:
        blocks = list(requests.blocks(writer.sampler.batch, values)) if processes > 1 or on_cluster() else []
        sharing = Workers(processes, device=True).processes(len(blocks))
        if sharing > 1 or (blocks and on_cluster()):
            output.tell_time(len(requests), processes=sharing)
            draw_blocks(blocks, processes)
        elif len(requests):
            evaluator.run()
    finally:
        count = output.compile()
    drawn = {i: output.outcome(requests.seed + i) for i in requests.pending}
    lost = {i: record for i, record in drawn.items() if "attempts" in record}
    accepted = len(drawn) - len(lost)
    refused = sum(record["attempts" if i in lost else "redrawn"] for i, record in drawn.items())
    print(f"{output.folder}: {count} pairs; {refused} refused and drawn again.")
    if accepted + refused:
        print(f"Accepted: {accepted} of {accepted + refused} drawn ({100 * accepted / (accepted + refused):.0f} %).")
    if count:
        show(output.folder)
        near = [pair.near for pair in Manifest(output.folder).pairs]
        if warning := too_many_copies(near, writer.gate.settings["honest_cases"]):
            print(f"Warning: {warning}; `sbldm nnunet eval` will refuse these pairs.")
    beyond = [requests.extrapolated(i) if i in lost else drawn[i].get("extrapolated") for i in drawn]
    if beyond := [what for what in beyond if what]:
        print(f"Warning: {len(beyond)} request(s) lie outside what training saw, e.g. {beyond[0]}")
    if lost:
        record = next(iter(lost.values()))
        first = f"{record['pair']}: {record['refused_because'].split('; ')[-1]}"
        failed = (
            f"{output.folder}: {len(lost)} pair(s) were refused {ATTEMPTS} times each ({first}) "
            f"and are listed in given_up.csv; train longer"
            f"{', or ask for other tumours' * writer.model.conditional}"
        )
        if len(lost) > GIVEN_UP * requests.n:
            raise StateError(f"{failed}.")
        print(f"Warning: {failed}. The others are written.")
