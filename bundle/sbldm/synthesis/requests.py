"""Which pairs are asked for: one request, a table of them, or draws from the joint model of the training tumours."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.engines import PrepareBatch
from torch.utils.data import Dataset

from sbldm.run.errors import InputError
from sbldm.run.limits import MOST_PAIRS, MOST_SEED
from sbldm.run.models import refuse_requests
from sbldm.synthesis.canvases import Canvases
from sbldm.synthesis.model import Model
from sbldm.synthesis.raw_dataset import RawDataset
from sbldm.tumour.asking import parse_request, read_requests
from sbldm.tumour.characteristics import NAMES, SHARES, to_dict

__all__ = ["GAPS", "Block", "PairRequests", "RequestBatch", "count_pairs", "read_asked", "within"]

GAPS = "gaps"  # in place of a table: what is left open is drawn where real tumours are rare
AMONG = 8  # draws for each of these, of which the rarest is taken
LEAST_BLOCK = 8  # pairs
Place = tuple[str, np.ndarray]  # name of a canvas, and the request that fits into it


@dataclass(frozen=True)
class Block:
    """Consecutive pairs that one process draws in one go, as the calling process has planned them.

    A pair is the same whatever it is drawn with; so blocks only share out the work.

    Attributes:
        name: what a person calls it.
        values: of `configs/inference.yaml`, for a process that builds model and gate for itself.
        mark: says when what such a process has kept is another model's or dataset's.
        places: numbers of the pairs; on canvases with the canvas and the request of each.
    """

    name: str
    values: Mapping[str, Any]
    mark: str
    places: Mapping[int, Place | None]


def count_pairs(n: Any, rows: int) -> int:
    """The number of pairs: `n`, or without it one for each of the `rows` of a request table.

    Raises:
        InputError: `n` is not a whole number above 0.
    """
    if n in (None, ""):
        if rows:
            return rows
        raise InputError("--n is missing: say how many pairs, for example `sbldm synth --n 100`.")
    try:
        number = int(str(n))
    except ValueError:
        raise InputError(f"--n {n}: not a whole number; for example `sbldm synth --n 100`.") from None
    if number < 1:
        raise InputError(f"--n {n}: ask for at least one pair, for example `sbldm synth --n 100`.")
    if number > MOST_PAIRS:
        raise InputError(f"--n {n}: {MOST_PAIRS} pairs are the most, as their names have six digits; --n {MOST_PAIRS}.")
    return number


def read_asked(table: str | None = None, request: Mapping[str, Any] | None = None) -> list[dict[str, float]]:
    """What the user fixes: rows of a CSV table, one request, or nothing (an empty list: all is drawn; also for `GAPS`).

    Raises:
        InputError: both are given, or one of them is wrong.
    """
    fixed = parse_request(**{part.lower(): value for part, value in (request or {}).items()})
    if table and str(table) != GAPS and fixed:
        raise InputError("--requests (a table) and a single request (--volume-ml, --centre-mm, ..) exclude each other.")
    return read_requests(Path(table)) if table and str(table) != GAPS else [fixed] if fixed else []


class PairRequests(Dataset):
    """The pairs still to be drawn.

    An item holds `image`, the condition vector `[K]` (MONAI's key for a network's input), the `request` it stands
    for (ml, mm2, mm by name), in what it is `extrapolated`, and its `seed`; with canvases also the `canvas`, and the
    `region` `[1, H, W, D]` of it that is to be drawn (`Canvases.row`).

    Pair i has the seed `seed + i` and takes row i of the table (again from its top where `n` is larger); what its row
    leaves open is drawn from the joint model of the training tumours with that seed. A model that takes no requests
    has empty ones, and NaN for a condition vector.

    Args:
        model: brings the joint model and the normaliser.
        output: knows which pairs are finished.
        n: number of pairs in all.
        seed: of pair 0.
        asked: what the user fixes (`read_asked`).
        rows: how many rows of that come from a table, 0 without one.
        canvases: real brains to draw into; None for whole synthesis.
        gaps: draw what is left open where real tumours are rare.
        block: those that are to be drawn here, which another process has planned; None to plan all.

    Raises:
        InputError: `n` or `seed` is no such number, a row contradicts itself, or no canvas takes any of the requests.
    """

    def __init__(
        self,
        model: Model,
        output: RawDataset,
        n: Any,
        seed: int = 0,
        asked: Sequence[Mapping[str, float]] = (),
        rows: int = 0,
        canvases: Canvases | None = None,
        gaps: bool = False,
        block: Block | None = None,
    ) -> None:
        self.among = AMONG if gaps else 1
        self.n, self.output, self.model = count_pairs(n, rows), output, model
        try:
            self.seed = int(str(seed))
            if not 0 <= self.seed <= MOST_SEED:
                raise ValueError
        except ValueError:
            raise InputError(f"--seed {seed}: not a whole number from 0 to {MOST_SEED}.") from None
        self.asked = list(asked) or [{}]
        if model.conditional:
            self.tumours, self.normaliser = model.tumours, model.normaliser
            if not canvases and any("contrast" in row for row in self.asked):
                raise InputError("--contrast: can be asked for on canvases alone; add --canvas, or leave it out.")
            shares = {name for row in self.asked for name in row} & set(SHARES.values())
            if shares and getattr(model.preset.diffusion.network, "one_hot", False):
                raise InputError(
                    f"{' and '.join(sorted(shares))} cannot be asked for: this model takes requests as twelve bits "
                    "(`one_hot`), which tell no tissues; leave it out."
                )
            for row in self.asked:  # a contradiction shows before the first pair, not at the hundredth
                self.tumours.complete(row, self.seed)
        else:
            refuse_requests(model.preset.model, asked)
        self.canvases, self.places = canvases, dict(block.places) if block else {}
        if not block:
            output.check_room(self.n, model.native.size)
        self.pending = [i for i in self.places or range(self.n) if not output.finished(self.seed + i)]
        if canvases and not block:
            self._find_places()

    def __len__(self) -> int:
        return len(self.pending)

    def __getitem__(self, k: int) -> dict[str, Any]:
        i = self.pending[k]
        seed = self.seed + i
        if not self.model.conditional:
            return {"image": torch.full((len(NAMES),), torch.nan), "request": {}, "extrapolated": "", "seed": seed}
        request = self._request(i)
        if self.canvases:
            contrast = self.asked[i % len(self.asked)].get("contrast")
            row = self.canvases.row(self.canvases.get(self.places[i][0]), request, contrast)
        else:
            row = {"image": torch.from_numpy(self.normaliser.encode(request))}
            row["request"] = to_dict(request, self.tumours.names)
        return row | {"extrapolated": self.extrapolated(i), "seed": seed}

    def _request(self, i: int) -> np.ndarray:
        if self.canvases:
            return self.places[i][1]
        return self.tumours.complete(self.asked[i % len(self.asked)], self.seed + i, self.among)

    def extrapolated(self, i: int) -> str:
        """In what the request of pair i goes beyond the training cases."""
        if not self.model.conditional:
            return ""
        return "; ".join(self.tumours.outside(np.asarray(self._request(i))))

    def blocks(self, batch: int, values: Mapping[str, Any]) -> Iterator[Block]:
        """The pairs still to be drawn, in blocks of fixed numbers: some seconds of work, and two batches at least."""
        size = max(-(-LEAST_BLOCK // batch), 2) * batch
        canvases = list(self.canvases.cases) if self.canvases else []
        content = json.dumps([self.output.settings, values, canvases], default=str, sort_keys=True)
        mark = hashlib.sha256(content.encode()).hexdigest()
        for number, pairs in groupby(self.pending, lambda i: i // size):
            places = {i: self.places.get(i) for i in pairs}
            first, last = (self.output.name(self.seed + k) for k in (number * size, (number + 1) * size - 1))
            yield Block(f"{first} to {last}", values, mark, places)

    def _find_places(self) -> None:
        """A canvas for each pair still to be drawn; those that find none are said, and not drawn."""
        self.canvases.prepare(sorted({self.canvases.order(self.seed + i)[0] for i in self.pending}))
        for i in self.pending:
            self.places[i] = self.canvases.place(self.asked[i % len(self.asked)], self.seed + i, self.among)
        for name in {place[0] for place in self.places.values() if place}:
            self.output.descend(name, self.canvases.get(name).content)
        homeless = [i for i in self.pending if self.places[i] is None]
        if homeless:
            what = f"{len(homeless)} request(s) fit into no canvas, the first that of pair {self.seed + homeless[0]}"
            if len(homeless) == self.n:
                raise InputError(f"{what}: ask for another place or size, or for other canvases.")
            print(f"Warning: {what}; the others are drawn.")
            self.pending = [i for i in self.pending if i not in homeless]


class RequestBatch(PrepareBatch):
    """Condition vectors are the input; the seeds go to the inferer beside them, and say the place in a batch too."""

    def __call__(self, batchdata: list[dict[str, Any]], device: Any = None, *args: Any, **kwargs: Any) -> tuple:
        """Return `(conditions [B, K], requests, (), {"seeds": [B], "places": [B]})`, with canvases `region` and `known`
        too.
        """
        conditions = torch.stack([row["image"] for row in batchdata]).to(device)
        seeds = [row["seed"] for row in batchdata]
        return conditions, batchdata, (), {"seeds": seeds, "places": seeds} | within(batchdata, device)


def within(rows: Sequence[Mapping[str, Any]], device: Any = None) -> dict[str, torch.Tensor]:
    """`region` `[B, 1, H, W, D]` and `known` `[B, Z, H, W, D]` latents of rows on canvases, for `PairSampler`."""
    if "canvas" not in rows[0]:
        return {}
    known = np.stack([row["canvas"].latents for row in rows])
    return {
        "region": torch.stack([row["region"] for row in rows]).to(device),
        "known": torch.from_numpy(known).to(device),
    }
