"""The one command `sbldm`: from annotated brain MRIs to synthetic pairs in an nnU-Net dataset, and what they are worth.

This file declares the commands and says in one line what is wrong with what was typed; the work is done elsewhere, by
modules that are loaded when a command runs, so that help is quick.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import fields, replace
from pathlib import Path
from typing import Annotated, Any, get_args

import typer

from sbldm.commands.launch import Training
from sbldm.commands.question import FLAIR, Question, Scores
from sbldm.run.errors import InputError, finish, loading
from sbldm.run.limits import MOST_PAIRS, Channel
from sbldm.run.options import (
    DATASET,
    PROCESSES,
    RUN,
    BatchOption,
    CanvasOption,
    ClusterOption,
    Drawing,
    FirstSeedOption,
    MovedOption,
    Numbers,
    OutOption,
    OwnOption,
    PairsOption,
    Preparation,
    RunOption,
    Sampling,
    SeedOption,
    Stage,
    StepsOption,
    WeightsOption,
    Words,
    WorkersOption,
    Wrong,
    choice_argument,
    nearest,
    number,
    numbers,
    some_of,
    takes,
    whole,
    words,
)

__all__ = ["app", "main"]

PAIRS, WORTH = "Pairs", "What they are worth"
MANY = 10**6
BATCHES = Numbers([1, 4])
CODES = (
    "Exit codes: 0 done; 2 an option is wrong; 3 the data are wrong; 4 a step that must come first is missing, "
    "unfinished or of another preset; 5 the output cannot be written; 6 no cluster that can do the work; "
    "130 stopped by Ctrl-C. The environment says "
    "where to compute: DEVICE=cpu, PRECISION=float32."
)
USAGE = typer.BadParameter.__mro__[1]  # click's, which Typer carries along under a name of its own

app = typer.Typer(
    name="sbldm",
    help="Synthetic FLAIR + tumour-mask pairs for nnU-Net.",
    epilog=CODES,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)


@app.command(rich_help_panel=PAIRS)
@takes(Preparation)
def prepare(
    asked: Preparation,
    folder: Annotated[Path | None, typer.Argument(metavar="[DATA]", help="Folder of cases, as --data.")] = None,
) -> None:
    """Check the cases, draw the lists, and bring the cases onto the working grid."""
    with loading():
        from sbldm.commands import pairs
    if folder and asked.data:
        raise InputError(f"--data {asked.data}: the folder of cases is given twice; leave one out.")
    pairs.prepare(replace(asked, data=folder or asked.data))


@app.command(rich_help_panel=PAIRS)
@takes(Training)
def train(asked: Training, stage: Annotated[Stage, choice_argument(Stage, help="One training.")] = "all") -> None:
    """Train one stage, or all; a stopped training goes on where it was. With --data the cases are prepared first."""
    with loading():
        from sbldm.commands import pairs
    pairs.train(asked, stage)


@app.command(rich_help_panel=PAIRS)
@takes(Drawing)
def synth(asked: Drawing) -> None:
    """Draw pairs into the nnU-Net raw dataset of a run; where nothing is prepared, the shipped generator draws."""
    with loading():
        from sbldm.commands import pairs
    pairs.synth(asked)


@app.command(rich_help_panel=PAIRS)
def copypaste(
    run: RunOption = RUN,
    data: MovedOption = None,
    n: PairsOption = None,
    seed: FirstSeedOption = 0,
    own: OwnOption = None,
    dataset: Annotated[
        int | None, whole(1, 999, help="nnU-Net dataset number", show_default="502; 503 for healed")
    ] = None,
    name: Annotated[str, typer.Option(help="nnU-Net dataset name.", show_default="COPYPASTE, COPYPASTE_HEALED")] = "",
    workers: WorkersOption = PROCESSES,
    cluster: ClusterOption = "",
) -> None:
    """Paste tumours of training cases into other training cases: pairs without any training, the rival to beat."""
    with loading():
        from sbldm.cases.lists import data_folder
        from sbldm.pages import show_pairs
        from sbldm.run.folder import Run
        from sbldm.run.workers import at_work
        from sbldm.synthesis.copypaste import draw_pairs
    with at_work(cluster, Run.at(run).folder, data or data_folder(Run.at(run).folder)):
        draw_pairs(Run.at(run), data, n, seed, show_pairs, dataset, name, own or "kept", workers)


@app.command(rich_help_panel=PAIRS)
def controls(
    run: RunOption = RUN,
    dataset: Annotated[int, whole(1, 999, help="Number of the dataset on canvases")] = DATASET,
    weights: WeightsOption = "",
) -> None:
    """Make the controls of a dataset on canvases: healed canvases alone, and real tumours pasted into them."""
    with loading():
        from sbldm.pages import show_pairs
        from sbldm.run.folder import Run
        from sbldm.synthesis.controls import draw_controls
    draw_controls(Run.at(run), dataset, show_pairs, weights)


@app.command(rich_help_panel=PAIRS)
def weights(
    out: Annotated[Path, typer.Option(help="File to write, .safetensors.")],
    about: Annotated[str, typer.Option(help="What it was trained on, in words.")],
    run: RunOption = RUN,
    licence: Annotated[str, typer.Option(help="On which terms its pairs may be used, in words.")] = "",
    like: Annotated[
        Path | None, typer.Option(help="Image whose grid whole pairs are to have.", show_default="the training cases")
    ] = None,
) -> None:
    """Write a trained generator into one file that can be handed on: no volume, no name, no single case in it."""
    if out.suffix != ".safetensors" or not about:
        raise InputError(f"--out {out} --about '{about}': name a .safetensors file, and what it was trained on.")
    with loading():
        from sbldm.run.files import user_path
        from sbldm.run.folder import Run
        from sbldm.synthesis.export import export_weights
    file = user_path(out)
    export_weights(Run.at(run), file, about, licence, like)
    print(
        f"{file}: {file.stat().st_size / 1e6:.1f} MB. Audit its pairs for copies before you hand it on (sbldm report)."
    )


@app.command(rich_help_panel=WORTH)
def sweep(
    run: RunOption = RUN,
    steps: StepsOption = None,
    seed: SeedOption = 0,
    n: Annotated[
        int | None, whole(1, MOST_PAIRS, help="Seeds of noise for each request, from SEED on", show_default="5")
    ] = None,
    batch: BatchOption = None,
    canvas: CanvasOption = "",
    weights: WeightsOption = "",
) -> None:
    """Draw tumours of five sizes at one place and of one size at five places, all else equal."""
    with loading():
        from sbldm.commands import pairs
    pairs.sweep(run, steps, seed, n, batch, canvas, weights)


@app.command(rich_help_panel=WORTH)
@takes(Question)
def evaluate(asked: Question) -> None:
    """What the pairs are worth: all scores, each beside its floor, as tables and figures.

    Of a run, or of any folders: sbldm evaluate --synthetic DIR --train DIR --heldout DIR --out DIR
    """
    with loading():
        from sbldm.commands import worth
    worth.evaluate_pairs(asked.settled())


@app.command(rich_help_panel=WORTH)
@takes(Question)
def report(asked: Question) -> None:
    """The same as one HTML page with pictures; evaluates first where that is to be done."""
    with loading():
        from sbldm.commands import worth
    worth.make_report(asked.settled())


@app.command(rich_help_panel=WORTH)
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


@app.command(rich_help_panel=WORTH)
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


@app.command(rich_help_panel=WORTH)
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
        Numbers, numbers("numbers with commas between them", int, 1, MANY, help="Drawn at once.", show_default="1,4")
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


@app.command(rich_help_panel="Data")
def phantom(
    out: OutOption = Path("data/phantom"),
    n: Annotated[int, whole(1, MOST_PAIRS, "--n", "--cases-n", help="Number of cases")] = 24,
    seed: SeedOption = 0,
    channels: Annotated[
        Words,
        typer.Option(
            parser=some_of(Channel),
            metavar="WORD,..",
            help=f"Any of {', '.join(get_args(Channel))}.",
            show_default="flair",
        ),
    ] = FLAIR,
) -> None:
    """Write phantom cases in the layout of BraTS 2018-2021, with the three tissues of a tumour."""
    with loading():
        from sbldm.cases.phantom import write_phantoms
        from sbldm.run.files import user_path
    write_phantoms(user_path(out), n, seed, channels=channels)
    print(f"{out}: {n} phantom cases")


@app.command(rich_help_panel="Data")
def download(out: OutOption = Path("data")) -> None:
    """Download MSD Task01_BrainTumour (7.1 GB) through MONAI."""
    with loading():
        from sbldm.cases.download import download_decathlon
        from sbldm.run.files import user_path
    download_decathlon(user_path(out))


@app.command(rich_help_panel="For developers")
def bench(
    rows: Annotated[list[str] | None, typer.Argument(help="How the names of rows begin.", show_default="all")] = None,
    history: Annotated[Path | None, typer.Option(help="JSON list to add the rows to.")] = None,
    here: Annotated[str, typer.Option(hidden=True, help="One row, in this process.")] = "",
    tasks: Annotated[int, whole(0, MANY, help="Time Dask's scheduler with tasks that sleep, in place of rows")] = 0,
    sleep: Annotated[float, number(0, 60, help="Seconds of such a task")] = 0.01,
    workers: WorkersOption = PROCESSES,
    cluster: ClusterOption = "",
) -> None:
    """Measure the speed of this machine: preparation, trainings, sampling; or that of a cluster's scheduler."""
    with loading():
        from sbldm.commands import bench
    if tasks:
        found = bench.simulate(tasks, workers, cluster, sleep)
        print("\n".join(f"{name}: {value:.4g}" for name, value in found.items()))
    else:
        bench.run(rows or (), history, here)


with suppress(ModuleNotFoundError):  # where the bundle folder alone was handed on
    from nnunet_integration.cli import app as nnunet

    app.add_typer(nnunet, name="nnunet", rich_help_panel=WORTH)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; what a user can mend is said in one line.

    Args:
        arguments: what was typed behind `sbldm`; those of this process when None.

    Returns:
        The exit code.
    """
    warnings.filterwarnings("ignore", category=UserWarning, module=r"monai|ignite|torch")
    if "_SBLDM_COMPLETE" in os.environ:  # the shell asks how a line could go on
        app(prog_name="sbldm")
    return finish(lambda: _run(list(sys.argv[1:] if arguments is None else arguments)))


def _run(arguments: list[str]) -> None:
    """Not Typer's own way to run a command, which frames what is wrong and takes Ctrl-C for itself."""
    command = typer.main.get_command(app)
    try:
        with command.make_context("sbldm", _without_empty(arguments)) as context:
            command.invoke(context)
    except typer.Exit:
        pass  # of --help
    except USAGE as error:
        raise InputError(_in_one_line(error)) from None


def _without_empty(arguments: Sequence[str]) -> list[str]:
    """Options whose value is empty, as scripts hand on what is not set (`--out "$OUT"`), are as if left out.

    Typer would take an empty path for the folder that one is in.
    """
    kept: list[str] = []
    for word in arguments:
        if word or not (kept and kept[-1].startswith("--") and "=" not in kept[-1]):
            kept.append(word)
        else:
            kept.pop()
    return [word for word in kept if not (word.startswith("--") and word.endswith("=") and word.count("=") == 1)]


def _in_one_line(error: Any) -> str:
    """What is wrong with what was typed: the option, and what it can be."""
    context = error.ctx
    path = context.command_path if context else "sbldm"
    if isinstance(error, Wrong):
        return f"{_name(error.param)} {error.message}"
    see = f"see `{path} --help`"
    if hasattr(error, "possibilities"):
        known = [option for param in context.command.params for option in param.opts if option.startswith("--")]
        return f"{error.option_name}: no such option of `{path}`{nearest(error.option_name, known) or f'; {see}'}."
    if option := getattr(error, "option_name", ""):
        none = "takes no value (with make: 1, as in KEEP=1)."
        return f"{option}: " + ("its value is missing." if "requires" in error.message else none)
    if param := getattr(error, "param", None):
        what = error.message or (param.help or "").partition(" [")[0]
        return f"{_name(param)}{': ' if error.message else ' is missing: '}{what.rstrip('.')}; {see}."
    return f"{path}: {error.message[:1].lower()}{error.message[1:].rstrip('.?')}; {see}."


def _name(param: Any) -> str:
    return param.opts[0] if param.opts[0].startswith("-") else param.name
