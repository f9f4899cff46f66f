"""Command line: `python -m nnunet_integration verify --run runs/mine`. Exit codes as for `python -m sbldm`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from nnunet_integration.verify import verify_dataset
from sbldm.errors import report


def main() -> int:
    """Run one command; what a user can mend is said in one line."""
    parser = argparse.ArgumentParser("python -m nnunet_integration", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    verify = commands.add_parser("verify", help="let nnU-Net check, plan and preprocess a dataset of a run")
    verify.add_argument("--run", default="runs/default", help="run folder (default: runs/default)")
    verify.add_argument("--dataset", default="501", help="nnU-Net dataset number (default: 501)")
    verify.add_argument("--workers", type=int, default=1, help="nnU-Net processes (default: 1)")
    arguments = parser.parse_args()
    try:
        verify_dataset(Path(arguments.run).absolute(), arguments.dataset, arguments.workers)
    except Exception as error:
        return report(error)
    return 0


if __name__ == "__main__":
    sys.exit(main())
