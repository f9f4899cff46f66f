"""Real data for those who have none at hand: MSD Task01_BrainTumour through MONAI."""

from __future__ import annotations

import sys
from pathlib import Path

from monai.apps import DecathlonDataset

from sbldm.run.errors import InputError
from sbldm.run.files import make_folder
from sbldm.run.progress import is_terminal

__all__ = ["download_decathlon"]

TASK = "Task01_BrainTumour"


def download_decathlon(folder: Path) -> Path:
    """Download and unpack the task (7.1 GB) unless it is there; return its folder.

    Raises:
        InputError: no connection, or the archive is damaged.
    """
    target = make_folder(folder) / TASK
    if not (target / "dataset.json").is_file():
        try:
            shown = is_terminal(sys.stderr)
            print(f"{target}: downloading and unpacking 7.1 GB ...", flush=True)
            DecathlonDataset(folder, TASK, "training", download=True, cache_num=0, progress=shown)
        except Exception as error:  # MONAI wraps every failure of a download in a bare Exception
            raise InputError(
                f"{target}: the download failed ({type(error).__name__}); check the connection. Offline, use your own "
                "cases (sbldm prepare --data /path/to/cases) or phantoms (sbldm phantom)."
            ) from error
    print(f"{target}: ready; next: sbldm prepare --data {target} --run runs/mine")
    return target
