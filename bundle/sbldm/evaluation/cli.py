"""The commands that say what pairs are worth, as `sbldm.cli` mounts them."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Annotated

import typer

from sbldm.options import (
    DATASET,
    RUN,
    DatasetOption,
    Fid,
    Group,
    MovedOption,
    Numbers,
    Sampling,
    Words,
    WorkersOption,
    choice,
    numbers,
    some_of,
    takes,
    whole,
    words,
    words_or_commas,
)
from sbldm.run.errors import InputError, loading

FOLDERS = "Folders in place of a run"
MANY = 10**6
FLAIR = Words(["flair"])
BATCHES = Numbers([1, 4])


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
    workers: WorkersOption = 2
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
            help="Channels of the images, the first is looked at.",
            show_default="flair",
            rich_help_panel=FOLDERS,
        ),
    ] = FLAIR
    labels: Annotated[
        str,
        typer.Option(
            help="What the numbers in the masks mean: auto, brats21, brats23, brats24, peds, or a YAML file.",
            show_default="as the layout",
            rich_help_panel=FOLDERS,
        ),
    ] = ""
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


@takes(Question)
def evaluate(asked: Question) -> None:
    """What the pairs are worth: all scores, each beside its floor, as tables and figures. Of a run, or of any folders:

    sbldm evaluate --synthetic DIR --train DIR --heldout DIR --out DIR
    """
    with loading():
        from sbldm.evaluation import commands
    commands.evaluate_pairs(asked.settled())


@takes(Question)
def report(asked: Question) -> None:
    """The same as one HTML page with pictures; evaluates first where that is to be done."""
    with loading():
        from sbldm.evaluation import commands
    commands.make_report(asked.settled())


@takes(Scores)
def table1(
    asked: Scores,
    rows: Annotated[list[str] | None, typer.Argument(metavar="[RUN]...", help="RUN or RUN:DATASET of a row.")] = None,
    runs: Annotated[
        list[str] | None, typer.Option(metavar="RUNS", help="The same, blanks between.", show_default=False)
    ] = None,
) -> None:
    """The paper's Table 1 of these runs, prepared from the same cases: quality, size, work and time."""
    every = [word for text in runs or () for word in words(text)] + list(rows or ())
    with loading():
        from sbldm.evaluation import commands
    commands.set_beside(every, Question(**{field.name: getattr(asked, field.name) for field in fields(Scores)}))


def ablation(
    run: Annotated[Path, typer.Option(help="Prepared run.")],
    out: Annotated[Path, typer.Option(help="Folder to work in.")],
    variants: Annotated[Path | None, typer.Option(help="File of variants.", show_default="docs/ablation.yaml")] = None,
    nnunet: Annotated[Path | None, typer.Option(help="Trained nnU-Net to judge the masks.")] = None,
) -> None:
    """Variants of a recipe at equal processor time: train, draw, score, one row each."""
    with loading():
        from sbldm.pages.ablation import VARIANTS, Ablation
        from sbldm.run.files import make_folder, user_path
        from sbldm.run.folder import Run
        from sbldm.run.schema import read_yaml
    plan = read_yaml(user_path(variants or VARIANTS), "a file of variants")
    Ablation(Run.at(run), plan, make_folder(user_path(out).absolute()), nnunet).run()


@takes(Sampling)
def costs(
    asked: Sampling,
    paper: Annotated[Path | None, typer.Option(help="Folder to write the paper's sizes and ours to.")] = None,
    run: Annotated[Path | None, typer.Option(help="Trained run to measure.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="File for the measurement alone.", show_default="RUN/costs.json")
    ] = None,
    repeats: Annotated[int, whole(1, MANY, help="Of which the median is taken")] = 3,
    batches: Annotated[
        Numbers,
        numbers("numbers with commas between them", int, 1, MANY, help="Drawn at once.", show_default="1,4"),
    ] = BATCHES,
) -> None:
    """Count what the paper's methods cost (--paper), or measure time and memory of one volume of a run (--run)."""
    if bool(paper) == bool(run):
        raise InputError("--run, --paper: name either a trained run or a folder for the paper's tables.")
    with loading():
        from sbldm.evaluation import costs
    if paper:
        costs.write_paper(paper)
    else:
        costs.measure_run(run, out, repeats, batches, asked.sampling)
