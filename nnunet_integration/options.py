"""What an evaluation with nnU-Net is asked on the command line: option types, and the options that go together."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from sbldm.run.limits import MOST_ITERATIONS, MOST_PROCESSES
from sbldm.run.options import (
    PROCESSES,
    RUN,
    ClusterOption,
    MovedOption,
    Numbers,
    RunOption,
    Words,
    WorkersOption,
    numbers,
    whole,
    words,
)

__all__ = ["Evaluation", "Plan", "Plateau"]

BUDGET = "Budget"
FIRST, AMOUNTS = Numbers([0]), Numbers([0, 0.5, 1, 2, 5])
HIGHEST_FOLD = 4
MANY = 10**9
NUMBERS = "numbers separated by commas"

OutOption = Annotated[Path | None, typer.Option(help="Folder of the evaluation.", show_default="RUN/table2")]
ArmsFileOption = Annotated[
    Path | None, typer.Option(help="YAML file of arms.", show_default="nnunet_integration/arms.yaml")
]
JobsOption = Annotated[
    int | None, whole(1, MOST_PROCESSES, help="Jobs at once", show_default="as the cores allow, one on each GPU")
]


@dataclass(frozen=True)
class Plan:
    """Which arms are trained on which cases, and for how long."""

    run: RunOption = RUN
    out: OutOption = None
    data: MovedOption = None
    test: Annotated[Path | None, typer.Option(help="Folder of test cases.", show_default="the held-back cases")] = None
    synth: Annotated[
        Words | None,
        typer.Option(
            parser=words,
            metavar="WORDS",
            help="Generators: name=folder, or name@N_REAL=folder; each a run or an nnU-Net raw dataset.",
            show_default="those of the run",
        ),
    ] = None
    arms: Annotated[
        Words | None,
        typer.Option(parser=words, metavar="WORDS", help="Names of arms.", show_default="the standard ones"),
    ] = None
    arms_file: ArmsFileOption = None
    n_real: Annotated[
        Numbers | None,
        numbers(NUMBERS, int, 1, MANY, help="Numbers of real training cases, nested subsets.", show_default="all"),
    ] = None
    folds: Annotated[
        Numbers | None,
        numbers(NUMBERS, int, 0, HIGHEST_FOLD, help="Leave out these fifths of the real cases in turn (0 to 4)."),
    ] = None
    seeds: Annotated[
        Numbers, numbers(NUMBERS, help="Seeds of the trainings; three or more allow a verdict.", show_default="0")
    ] = FIRST
    budget: Annotated[
        str,
        typer.Option(
            help="demo, small, paper, or a YAML file like nnunet_integration/budgets.yaml.",
            show_default="as the run's preset",
            rich_help_panel=BUDGET,
        ),
    ] = ""
    iterations: Annotated[
        int | None, whole(1, MOST_ITERATIONS, help="In place of those of the budget", rich_help_panel=BUDGET)
    ] = None
    snapshots: Annotated[
        Numbers | None,
        numbers(
            NUMBERS, int, 1, MANY, help="Iterations at which test cases are scored on the way.", rich_help_panel=BUDGET
        ),
    ] = None
    workers: WorkersOption = PROCESSES
    cluster: ClusterOption = ""


@dataclass(frozen=True)
class Evaluation(Plan):
    """The same, and how its jobs are run."""

    jobs: JobsOption = None


@dataclass(frozen=True)
class Plateau(Evaluation):
    """The same at several amounts of pairs."""

    amounts: Annotated[
        Numbers,
        numbers(NUMBERS, float, 0, 1000, help="Numbers of pairs for each real case.", show_default="0,0.5,1,2,5"),
    ] = AMOUNTS
