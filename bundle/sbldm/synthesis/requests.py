"""Which pairs are asked for: one request, a table of them, or draws from the joint model of the training tumours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.engines import PrepareBatch
from torch.utils.data import Dataset

from sbldm.errors import InputError
from sbldm.models import refuse_requests
from sbldm.run.limits import MOST_PAIRS, MOST_SEED
from sbldm.synthesis.model import Model
from sbldm.synthesis.raw_dataset import RawDataset
from sbldm.tumour.characteristics import NAMES, to_dict
from sbldm.tumour.requests import parse_request, read_requests

__all__ = ["PairRequests", "RequestBatch", "count_pairs", "read_asked"]


def count_pairs(n: Any, rows: int) -> int:
    """The number of pairs: N, or without it one for each of the `rows` of a request table.

    Raises:
        InputError: N is not a whole number above 0.
    """
    if n in (None, ""):
        if rows:
            return rows
        raise InputError("N is missing: say how many pairs, for example `make synth N=100`.")
    try:
        number = int(str(n))
    except ValueError:
        raise InputError(f"N={n}: not a whole number; for example `make synth N=100`.") from None
    if number < 1:
        raise InputError(f"N={n}: ask for at least one pair, for example `make synth N=100`.")
    if number > MOST_PAIRS:
        raise InputError(f"N={n}: {MOST_PAIRS} pairs are the most, as their names have six digits; N={MOST_PAIRS}.")
    return number


def read_asked(table: str | None = None, request: Mapping[str, Any] | None = None) -> list[dict[str, float]]:
    """What the user fixes: rows of a CSV table, one request, or nothing (an empty list: all is drawn).

    Raises:
        InputError: both are given, or one of them is wrong.
    """
    given = {k.upper(): v for k, v in (request or {}).items() if v not in (None, "")}
    fixed = parse_request(
        **{k: ",".join(map(str, v)) if isinstance(v, list | tuple) else str(v) for k, v in given.items()}
    )
    if table and fixed:
        raise InputError("REQUESTS (a table) and a single request (VOLUME_ML, CENTRE_MM, ...) exclude each other.")
    return read_requests(Path(table)) if table else [fixed] if fixed else []


class PairRequests(Dataset):
    """The pairs still to be drawn.

    An item holds `image`, the condition vector `[9]` (MONAI's key for a network's input), the `request` it stands
    for (ml, mm2, mm by name), in what it is `extrapolated`, and its `seed`.

    Pair i has the seed `seed + i` and takes row i of the table (again from its top where N is larger); what its row
    leaves open is drawn from the joint model of the training tumours with that seed. A model that takes no requests
    has empty ones, and NaN for a condition vector.

    Args:
        model: brings the joint model and the normaliser.
        output: knows which pairs are finished.
        n: number of pairs in all.
        seed: of pair 0.
        asked: what the user fixes (`read_asked`).
        rows: how many rows of that come from a table, 0 without one.

    Raises:
        InputError: N or SEED is no such number, or a row contradicts itself.
    """

    def __init__(
        self,
        model: Model,
        output: RawDataset,
        n: Any,
        seed: int = 0,
        asked: Sequence[Mapping[str, float]] = (),
        rows: int = 0,
    ) -> None:
        self.n, self.output, self.model = count_pairs(n, rows), output, model
        try:
            self.seed = int(str(seed))
            if not 0 <= self.seed <= MOST_SEED:
                raise ValueError
        except ValueError:
            raise InputError(f"SEED={seed}: not a whole number from 0 to {MOST_SEED}.") from None
        self.asked = list(asked) or [{}]
        if model.conditional:
            self.tumours, self.normaliser = model.tumours, model.normaliser
            for row in self.asked:  # a contradiction shows before the first pair, not at the hundredth
                self.tumours.complete(row, self.seed)
        else:
            refuse_requests(model.preset["model"], asked)
        output.check_room(self.n, model.native.size)
        self.pending = [i for i in range(self.n) if not output.finished(self.seed + i)]

    def __len__(self) -> int:
        return len(self.pending)

    def __getitem__(self, k: int) -> dict[str, Any]:
        i = self.pending[k]
        seed = self.seed + i
        if not self.model.conditional:
            return {"image": torch.full((len(NAMES),), torch.nan), "request": {}, "extrapolated": "", "seed": seed}
        request = self.tumours.complete(self.asked[i % len(self.asked)], seed)
        return {
            "image": torch.from_numpy(self.normaliser.encode(request)),
            "request": to_dict(request),
            "extrapolated": "; ".join(self.tumours.outside(np.asarray(request))),
            "seed": seed,
        }


class RequestBatch(PrepareBatch):
    """Condition vectors are the input; the seeds go to the inferer beside them."""

    def __call__(self, batchdata: list[dict[str, Any]], device: Any = None, *args: Any, **kwargs: Any) -> tuple:
        """Return `(conditions [B, 9], requests, (), {"seeds": [B]})`."""
        conditions = torch.stack([row["image"] for row in batchdata]).to(device)
        return conditions, batchdata, (), {"seeds": [row["seed"] for row in batchdata]}
