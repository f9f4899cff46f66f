"""Which pairs are scored, against which real cases, and how, as it is asked on the command line."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import typer

from sbldm.run.limits import Group
from sbldm.run.options import (
    DATASET,
    LABELS,
    PROCESSES,
    RUN,
    ClusterOption,
    DatasetOption,
    Fid,
    MovedOption,
    Words,
    WorkersOption,
    choice,
    some_of,
    words_or_commas,
)

__all__ = []

FOLDERS = "Folders in place of a run"
FLAIR = Words(["flair"])


@dataclass(frozen=True)
class Scores:
    """How pairs are scored, whichever they are."""

    data: MovedOption = None
    features: Annotated[str, typer.Option(help="imagenet, medicalnet:FILE or radimagenet:FILE.")] = "imagenet"
    nnunet: Annotated[
        Path | None,
        typer.Option(
            help="Trained nnU-Net model for the score of masks against images.", show_default="that of RUN/table2"
        ),
    ] = None
    fid: Annotated[
        Fid | None, choice(Fid, help="1: compute FID too (refused below 1000 cases). force: below as well, flagged.")
    ] = None
    scores: Annotated[
        Words | None,
        typer.Option(parser=some_of(Group), metavar="WORDS", help="Some of the scores alone.", show_default="all"),
    ] = None
    licence: Annotated[str, typer.Option(help="Terms of the real cases, for the datasheet.")] = ""
    workers: WorkersOption = PROCESSES
    cluster: ClusterOption = ""
    out: Annotated[Path | None, typer.Option(help="Folder to write to.", show_default="below the (first) run")] = None


@dataclass(frozen=True)
class Question(Scores):
    """Which pairs are compared with which real cases, and how."""

    run: Annotated[
        Path | None,
        typer.Option(
            help="Run folder: its pairs, training and held-back cases.", show_default="runs/default without folders"
        ),
    ] = None
    dataset: DatasetOption = DATASET
    synthetic: Annotated[
        Path | None, typer.Option(help="Pairs, without or in place of those of a run.", rich_help_panel=FOLDERS)
    ] = None
    train: Annotated[
        Path | None, typer.Option(help="Real cases the generator was trained on.", rich_help_panel=FOLDERS)
    ] = None
    heldout: Annotated[Path | None, typer.Option(help="Real cases it has not seen.", rich_help_panel=FOLDERS)] = None
    train_cases: Annotated[
        Path | None,
        typer.Option(help="File with names, one a line.", show_default="all in the folder", rich_help_panel=FOLDERS),
    ] = None
    heldout_cases: Annotated[
        Path | None,
        typer.Option(help="File with names, one a line.", show_default="all in the folder", rich_help_panel=FOLDERS),
    ] = None
    channels: Annotated[
        Words,
        typer.Option(
            parser=words_or_commas,
            metavar="WORD,..",
            help="Channels of the images; most scores look at the first.",
            show_default="flair",
            rich_help_panel=FOLDERS,
        ),
    ] = FLAIR
    labels: Annotated[str, typer.Option(help=LABELS, show_default="as the layout", rich_help_panel=FOLDERS)] = ""
    predictions_synthetic: Annotated[
        Path | None, typer.Option(help="The network's predictions for the pairs.", rich_help_panel=FOLDERS)
    ] = None
    predictions_heldout: Annotated[
        Path | None, typer.Option(help="Its predictions for the held-back cases.", rich_help_panel=FOLDERS)
    ] = None
    cache: Annotated[Path | None, typer.Option(help="Folder of what is known of each case, by content.")] = None

    def settled(self) -> Question:
        """The same, about the usual run where neither pairs nor a place for what comes out are named."""
        return self if self.run or self.synthetic or self.out else replace(self, run=RUN)
