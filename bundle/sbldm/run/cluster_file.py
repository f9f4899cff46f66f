"""A cluster as a YAML file describes it: which kind, how many workers, and what its queueing system is told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from sbldm.run.errors import InputError

__all__ = ["QUEUES", "read_cluster"]

QUEUES = {  # in a file, the kind of a cluster: what dask-jobqueue calls it
    "slurm": "SLURMCluster",
    "pbs": "PBSCluster",
    "sge": "SGECluster",
    "lsf": "LSFCluster",
    "oar": "OARCluster",
    "htcondor": "HTCondorCluster",
    "moab": "MoabCluster",
}


def read_cluster(file: Path) -> tuple[str, int | None, dict[str, Any]]:
    """Kind, number of workers (None of kind local: as many as cores, or as cards) and options.

    Raises:
        InputError: the file is missing, or something in it is wrong.
    """
    try:
        content = yaml.safe_load(file.read_text())
        if not isinstance(content, dict):
            raise ValueError("is no table of `kind`, `workers` and `options`")
        if other := {str(key) for key in content} - {"kind", "workers", "options"}:
            raise ValueError(f"{min(other)} is none of kind, workers, options")
        kind, count, options = content.get("kind"), content.get("workers"), content.get("options") or {}
        if kind not in ("local", *QUEUES):
            raise ValueError(f"kind {kind} is none of local, {', '.join(QUEUES)}")
        if (kind != "local" or count is not None) and (type(count) is not int or count < 1):
            raise ValueError(f"workers {count} is no whole number above 0")
        if not isinstance(options, dict):
            raise ValueError("options is no table")
        if kind == "local":
            if odd := {str(key) for key in options} - {"cards"}:
                raise ValueError(f"options: {min(odd)} is not cards, the only one of kind local")
            cards = options.get("cards", [])
            if not isinstance(cards, list) or not all(type(card) in (int, str) for card in cards):
                raise ValueError("cards is no list of GPUs, as in [0, 1]")
            if cards and count:
                raise ValueError("workers and cards exclude each other: there is one worker for each card")
        return kind, count, options
    except FileNotFoundError:
        raise InputError(f"--cluster {file}: there is no such file.") from None
    except (ValueError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"--cluster {file}: {' '.join(str(error).split())}; see bundle/docs/README.md.") from None
