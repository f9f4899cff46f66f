"""Drawing pairs and writing them: what the bundle's inference config wires together."""

from __future__ import annotations

from sbldm.synthesis.canvases import Canvases
from sbldm.synthesis.gate import Gate
from sbldm.synthesis.model import Model, PairSampler
from sbldm.synthesis.pairs import Pair, finish_pair
from sbldm.synthesis.raw_dataset import RawDataset
from sbldm.synthesis.refine import Refiner
from sbldm.synthesis.requests import PairRequests, RequestBatch, read_asked
from sbldm.synthesis.session import PairWriter, run

__all__ = [
    "Canvases",
    "Gate",
    "Model",
    "Pair",
    "PairRequests",
    "PairSampler",
    "PairWriter",
    "RawDataset",
    "Refiner",
    "RequestBatch",
    "finish_pair",
    "read_asked",
    "run",
]
