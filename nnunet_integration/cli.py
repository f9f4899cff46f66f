"""The commands of nnU-Net, mounted as `sbldm nnunet`: does synthetic data help?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from nnunet_integration.options import (
    ArmsFileOption,
    Evaluation,
    JobsOption,
    OutOption,
    Plan,
    Plateau,
)
from sbldm.run.errors import loading
from sbldm.run.limits import MOST_PROCESSES
from sbldm.run.options import DATASET, RUN, ClusterOption, DatasetOption, RunOption, number, takes, whole

__all__ = ["app"]


app = typer.Typer(help="Does synthetic data help nnU-Net? `sbldm nnunet eval` runs all of it.")


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
def run(run: RunOption = RUN, out: OutOption = None, jobs: JobsOption = None, cluster: ClusterOption = "") -> None:
    """Run the queued jobs; a finished one is never run again, a stopped one goes on."""
    with loading():
        from nnunet_integration import commands
    commands.work(run, out, jobs, cluster)


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
        Path, typer.Option(help="Trained nnU-Net model folder, finished job folder, or run (its best real-only job).")
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
