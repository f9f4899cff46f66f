"""The commands that say what pairs are worth, as `sbldm.cli` mounts them."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Annotated

import typer

from sbldm.commands.question import Question, Scores
from sbldm.run.errors import InputError, loading
from sbldm.run.options import (
    Numbers,
    Sampling,
    numbers,
    takes,
    whole,
    words,
)

MANY = 10**6
BATCHES = Numbers([1, 4])


@takes(Question)
def evaluate(asked: Question) -> None:
    """What the pairs are worth: all scores, each beside its floor, as tables and figures.

    Of a run, or of any folders: sbldm evaluate --synthetic DIR --train DIR --heldout DIR --out DIR
    """
    with loading():
        from sbldm.commands import worth
    worth.evaluate_pairs(asked.settled())


@takes(Question)
def report(asked: Question) -> None:
    """The same as one HTML page with pictures; evaluates first where that is to be done."""
    with loading():
        from sbldm.commands import worth
    worth.make_report(asked.settled())


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
        from sbldm.commands import worth
    worth.set_beside(every, Question(**{field.name: getattr(asked, field.name) for field in fields(Scores)}))


def ablation(
    run: Annotated[Path, typer.Option(help="Prepared run.")],
    out: Annotated[Path, typer.Option(help="Folder to work in.")],
    variants: Annotated[Path | None, typer.Option(help="File of variants.", show_default="docs/ablation.yaml")] = None,
    nnunet: Annotated[Path | None, typer.Option(help="Trained nnU-Net to validate the masks.")] = None,
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
        from sbldm.evaluation.costs import measure_run
        from sbldm.evaluation.paper_costs import write_paper_costs
        from sbldm.run.files import user_path
    if paper:
        print("\n".join(map(str, write_paper_costs(user_path(paper).absolute()))))
    else:
        measure_run(run, out, repeats, batches, asked.sampling)
