"""The commands of nnU-Net, mounted as `sbldm nnunet`: does synthetic data help?"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from sbldm.options import (
    DATASET,
    RUN,
    DatasetOption,
    MovedOption,
    Numbers,
    RunOption,
    Words,
    WorkersOption,
    number,
    numbers,
    shard,
    takes,
    whole,
    words,
)
from sbldm.run.errors import loading
from sbldm.run.limits import MOST_ITERATIONS, MOST_PROCESSES

__all__ = ["Evaluation", "Plan", "Plateau", "app"]

BUDGET, AT_ONCE = "Budget", "At once"
HIGHEST_FOLD = 4
MANY = 10**9
NUMBERS = "numbers separated by commas"
FIRST, WHOLE, AMOUNTS = Numbers([0]), Numbers([1, 1]), Numbers([0, 0.5, 1, 2, 5])

app = typer.Typer(help="Does synthetic data help nnU-Net? `sbldm nnunet eval` runs all of it.")

OutOption = Annotated[Path | None, typer.Option(help="Folder of the evaluation.", show_default="RUN/table2")]
ArmsFileOption = Annotated[
    Path | None, typer.Option(help="YAML file of arms.", show_default="nnunet_integration/arms.yaml")
]
JobsOption = Annotated[
    int | None,
    whole(1, MOST_PROCESSES, help="Jobs at once", show_default="as the cores allow, one on a GPU"),
]
ShardOption = Annotated[
    Numbers,
    typer.Option(
        parser=shard,
        metavar="i/k",
        help="The i-th of k processes or machines that share the queue.",
        show_default="1/1",
        rich_help_panel=AT_ONCE,
    ),
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
        Numbers,
        numbers(NUMBERS, help="Seeds of the trainings; three or more allow a verdict.", show_default="0"),
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
    workers: WorkersOption = 2


@dataclass(frozen=True)
class Evaluation(Plan):
    """The same, and how its jobs are run."""

    jobs: JobsOption = None
    shard: ShardOption = WHOLE


@dataclass(frozen=True)
class Plateau(Evaluation):
    """The same at several amounts of pairs."""

    amounts: Annotated[
        Numbers,
        numbers(NUMBERS, float, 0, 1000, help="Numbers of pairs for each real case.", show_default="0,0.5,1,2,5"),
    ] = AMOUNTS


@app.command()
def arms(arms_file: ArmsFileOption = None) -> None:
    """List the arms of the arms file and what the paper reports for them."""
    with loading():
        from nnunet_integration import commands
    commands.list_arms(arms_file)


@app.command()
@takes(Plan)
def export(asked: Plan) -> None:
    """Check everything, fill the pool, plan on the real cases, preprocess, and queue the jobs."""
    with loading():
        from nnunet_integration import commands
    commands.queue(asked)


@app.command()
def run(run: RunOption = RUN, out: OutOption = None, jobs: JobsOption = None, shard: ShardOption = WHOLE) -> None:
    """Run the queued jobs; a finished one is never run again, a stopped one goes on."""
    with loading():
        from nnunet_integration import commands
    commands.work(run, out, jobs, shard)


@app.command()
def table(run: RunOption = RUN, out: OutOption = None) -> None:
    """Write table2.csv, table2.md and the figures from the finished jobs, and say whether pairs help."""
    with loading():
        from nnunet_integration import commands
    commands.table(run, out)


@app.command("eval")
@takes(Evaluation)
def evaluate(asked: Evaluation) -> None:
    """Table 2 in one go: export, run, table."""
    with loading():
        from nnunet_integration import commands
    commands.evaluate(asked)


@app.command()
@takes(Plateau)
def plateau(asked: Plateau) -> None:
    """DSC against the number of synthetic pairs for each real case."""
    with loading():
        from nnunet_integration import commands
    commands.plateau(asked)


@app.command()
def verify(
    run: RunOption = RUN,
    dataset: DatasetOption = DATASET,
    workers: Annotated[int, whole(1, MOST_PROCESSES, help="nnU-Net processes")] = 1,
) -> None:
    """Let nnU-Net check, plan and preprocess a dataset of a run."""
    with loading():
        from nnunet_integration.verify import verify_dataset
        from sbldm.run.files import user_path
    verify_dataset(user_path(run).absolute(), dataset, workers)


@app.command()
def predict(
    model: Annotated[
        Path,
        typer.Option(help="Trained nnU-Net model folder, finished job folder, or run (its best real-only job)."),
    ],
    images: Annotated[
        Path, typer.Option(help="nnU-Net raw dataset, folder of ID_0000.nii.gz files, or folder of cases.")
    ],
    out: Annotated[Path, typer.Option(help="Folder of the predictions.")],
    cases: Annotated[Path | None, typer.Option(help="Text file of case names, one a line.", show_default="all")] = None,
    fold: Annotated[
        str, typer.Option(help="Fold of the model.", show_default="all that have the checkpoint, together")
    ] = "",
    checkpoint: Annotated[str, typer.Option(help="File name of the weights.")] = "checkpoint_final.pth",
) -> None:
    """Predict all images of a folder with a trained nnU-Net model."""
    with loading():
        from nnunet_integration.predict import predict_folder
        from sbldm.cases.lists import read_case_list
        from sbldm.run.files import user_path
    names = read_case_list(cases) if cases else None
    files = predict_folder(model, user_path(images), user_path(out), names, fold, checkpoint)
    print(f"{out}: {len(files)} predictions.")


@app.command("filter")
def keep(
    run: RunOption = RUN,
    dataset: DatasetOption = DATASET,
    model: Annotated[
        Path | None,
        typer.Option(
            "--model",
            "--nnunet",
            help="Trained nnU-Net model, job folder, or run folder.",
            show_default="the run's best real-only job",
        ),
    ] = None,
    least: Annotated[float, number(0, 1, help="Share of a pair's mask that the network must find")] = 0.1,
    name: Annotated[str, typer.Option(help="Name of the new dataset.", show_default="the old one's with _KEPT")] = "",
    to: Annotated[
        int | None, whole(1, 999, help="Number of the new dataset", show_default="the first free one")
    ] = None,
) -> None:
    """Drop the pairs of a dataset whose tumour a network of real cases cannot find at all."""
    with loading():
        from nnunet_integration.filter import filter_pairs
    filter_pairs(run, dataset, model, least, name, to)
