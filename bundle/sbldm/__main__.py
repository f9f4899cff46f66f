"""The command line behind the Makefile: `python -m sbldm COMMAND --help`.

Exit codes: 0 done; 2 a variable or argument is wrong; 3 the data are wrong; 4 a step that must come first is missing,
unfinished or of another preset; 5 the output cannot be written; 130 stopped by Ctrl-C; 1 anything else, a traceback.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sbldm.errors import InputError, StateError, finish, quiet_while_loading

if __name__ == "__main__":
    quiet_while_loading()

from sbldm.files import user_path
from sbldm.models import MODELS, SAMPLING, check_model, configs_of, kind_of, refuse_requests
from sbldm.run.limits import MOST_BATCH, MOST_ITERATIONS, MOST_PAIRS, MOST_PROCESSES, MOST_SEED
from sbldm.run.schema import refuse_expressions
from sbldm.runs import Run, load_preset, within_regions

BUNDLE = Path(__file__).parents[1]
REQUEST = ("volume_ml", "surface_mm2", "sphericity", "centre_mm", "extents_mm", "contrast")
STAGES = dict.fromkeys(stage for model in MODELS.values() for stage in model.stages)


def _whole(name: str, value: str, least: int, most: int) -> int:
    try:
        number = int(value)
    except ValueError:
        raise InputError(f"{name}={value}: not a whole number.") from None
    if number < least:
        raise InputError(f"{name}={value}: must be at least {least}.")
    if number > most:
        raise InputError(f"{name}={value}: must be at most {most}.")
    return number


def _batch(value: str) -> int | None:
    return _whole("BATCH", value, 1, MOST_BATCH) if value else None


def _weights(name: str, run: Run) -> str | None:
    """The generator to draw with: as asked for, else the run's own; the shipped one where nothing is prepared."""
    from sbldm.weights import SHIPPED, Weights

    if not name and (run.preset_file.is_file() or not SHIPPED.is_file()):
        return None
    held = Weights.read(name or "shipped")
    if not name:
        print(f"{run.folder}: nothing is prepared here, so the generator that comes with this package draws.")
    print(f"Generator: {held.path.name}, trained on {held.about['data']}. {held.about['licence']}")
    return str(held.path)


def _plain(file: str) -> str:
    """What pairs of a file of weights are called: SHIPPED, or as the file."""
    from sbldm.weights import SHIPPED

    return "SHIPPED" if Path(file) == SHIPPED else f"W_{re.sub('[^A-Za-z0-9]', '_', Path(file).stem)}"


def _train_is_prepared(canvas: str, run: Run) -> None:
    if canvas == "train" and not run.preset_file.is_file():
        raise InputError("CANVAS=train: no cases are prepared here; name a folder of scans, CANVAS=/path/to/scans.")


def _canvas(where: str) -> str | None:
    return str(user_path(where).absolute()) if where and where != "train" else where or None


def _bundle(configs: Sequence[str], run_id: str, run: Run, **values: Any) -> None:
    """Run one config of the bundle with overlays on a run folder, as `python -m monai.bundle run` does.

    MONAI's parser looks at every string it is given, so what users write reaches it as paths or plain values alone.
    """
    from monai.bundle import ConfigWorkflow

    refuse_expressions(values, "", "the command line")
    folder = Path.cwd()
    os.chdir(BUNDLE)  # macros in the configs are relative to the bundle folder
    try:
        shared = {"meta_file": "configs/metadata.json", "logging_file": "configs/logging.conf", "run_dir": run.folder}
        files = [f"configs/{config}.yaml" for config in configs]
        workflow = ConfigWorkflow(files, run_id=run_id, **shared, **values)
        workflow.initialize()
        workflow.run()
        workflow.finalize()
    finally:
        os.chdir(folder)


def phantom(arguments: argparse.Namespace) -> None:
    """Write phantom cases in the layout of BraTS 2018-2021."""
    from sbldm.cases.phantom import write_phantoms

    n, seed = _whole("CASES_N", arguments.n, 1, MOST_PAIRS), _whole("SEED", arguments.seed, 0, MOST_SEED)
    write_phantoms(user_path(arguments.out), n, seed)
    print(f"{arguments.out}: {n} phantom cases")


def download(arguments: argparse.Namespace) -> None:
    """Download MSD Task01_BrainTumour (7.1 GB) through MONAI."""
    from sbldm.cases.download import download_decathlon

    download_decathlon(user_path(arguments.out))


def prepare(arguments: argparse.Namespace) -> None:
    """Check the cases, draw the lists, and bring the cases onto the working grid."""
    from sbldm.cases.pipeline import prepare_run

    if arguments.init:
        from sbldm.weights import Weights

        if arguments.preset not in ("", "small") or arguments.model not in ("", "sbldm") or arguments.minutes:
            raise InputError(f"INIT={arguments.init}: brings its own preset; leave PRESET, MODEL and MINUTES out.")
        preset = Weights.read(arguments.init, "INIT").fine_tuning
    else:
        preset = load_preset(arguments.preset or "small", arguments.model, arguments.minutes)
    prepare_run(
        arguments.data,
        Run.at(arguments.run),
        preset,
        arguments.cases,
        arguments.validation_cases,
        _whole("SEED", arguments.seed, 0, MOST_SEED),
        arguments.strict not in ("", "0"),
        _whole("WORKERS", arguments.workers, 1, MOST_PROCESSES),
        arguments.labels,
        arguments.accept,
    )


def train(arguments: argparse.Namespace) -> None:
    """Train one stage, or all; a stopped training goes on where it was. With DATA the cases are prepared first."""
    from sbldm.cases.pipeline import check_same_data, is_prepared

    run, seed = Run.at(arguments.run), _whole("SEED", arguments.seed, 0, MOST_SEED)
    check_model(arguments.model)
    if arguments.init and is_prepared(run):
        from sbldm.weights import Weights

        if (run.preset.get("init") or {}).get("sha256") != Weights.read(arguments.init, "INIT").sha256:
            raise StateError(
                f"{run.folder}: was prepared without these weights; choose another RUN to go on from them."
            )
    if arguments.data and not is_prepared(run):
        prepare(arguments)
    elif arguments.data:
        check_same_data(run, arguments.data)
    preset = run.preset  # says what to do when nothing is prepared
    if arguments.model and arguments.model != preset["model"]:
        raise StateError(
            f"{run.folder}: holds a run of MODEL={preset['model']}, not of {arguments.model}; choose another RUN."
        )
    stages = kind_of(preset).stages
    if arguments.stage == "regions":
        within_regions(preset)  # says so when the preset has none
        _bundle(configs_of(preset, "regions"), "training", run, seed=seed)
        return
    if arguments.stage not in ("all", *stages):
        known = f"has the trainings {', '.join(stages)}" if stages else "trains nothing"
        raise InputError(f"{arguments.stage}: MODEL={preset['model']} {known}.")
    if not stages:
        print(f"{run.folder}: MODEL={preset['model']} trains nothing; go on: make synth RUN={arguments.run} N=100.")
    for stage in stages:
        if arguments.stage in ("all", stage):
            _bundle(configs_of(preset, stage), "training", run, seed=seed)
    if arguments.stage == "all" and preset.get("init"):  # its network knows regions, and is to keep them
        _bundle(configs_of(preset, "regions"), "training", run, seed=seed)


def synth(arguments: argparse.Namespace) -> None:
    """Draw pairs into the nnU-Net raw dataset of the run."""
    from sbldm.synthesis.requests import GAPS, count_pairs, read_asked

    run = Run.at(arguments.run)
    request = {name: getattr(arguments, name) for name in REQUEST}
    table = arguments.requests or None
    if table not in (None, GAPS):
        table = user_path(table).absolute()
    asked = read_asked(table, request)
    count_pairs(arguments.n, len(asked) if table not in (None, GAPS) else 0)  # before any model is loaded
    _train_is_prepared(arguments.canvas, run)
    file = _weights(arguments.weights, run)
    model = "sbldm" if file else run.preset["model"]
    name = arguments.name or (_plain(file) if file else model.upper())
    if model == "copypaste":
        unheeded = (*SAMPLING, "batch", "tol", "canvas", "keep", "push", "satellites")
        refuse_requests(model, asked, {name: getattr(arguments, name) for name in unheeded})
        arguments.name = name
        copypaste(arguments)
        return
    if arguments.own:
        raise InputError(f"OWN={arguments.own}: pairs of MODEL={model} have no receiver; leave it out.")
    _bundle(
        ("inference",),
        "synthesis",
        run,
        weights=file,
        n=arguments.n or None,
        seed=_whole("SEED", arguments.seed, 0, MOST_SEED),
        requests=table,
        request=request,
        sampling={name: getattr(arguments, name) or None for name in SAMPLING},
        batch=_batch(arguments.batch),
        gate=arguments.gate,
        tolerance=arguments.tol,
        canvas=_canvas(arguments.canvas),
        keep=arguments.keep or None,
        push=arguments.push or None,
        satellites=arguments.satellites or None,
        dataset_id=arguments.dataset,
        dataset_name=name,
    )


def sweep(arguments: argparse.Namespace) -> None:
    """Draw tumours of five sizes at one place and of one size at five places, all else equal."""
    from sbldm.device import choose_device
    from sbldm.synthesis.sweep import SEEDS, draw_sweeps, sweep_figure

    run, seed = Run.at(arguments.run), _whole("SEED", arguments.seed, 0, MOST_SEED)
    steps = _whole("STEPS", arguments.steps, 1, MOST_ITERATIONS) if arguments.steps else None
    n = _whole("N", arguments.n, 1, MOST_PAIRS) if arguments.n else SEEDS
    _train_is_prepared(arguments.canvas, run)
    file, batch, canvas = _weights(arguments.weights, run), _batch(arguments.batch), _canvas(arguments.canvas)
    folder = draw_sweeps(run, choose_device(), steps, seed, n, batch, canvas, file)
    sweep_figure(folder, run.folder / "figures" / f"{folder.name}.png")


def copypaste(arguments: argparse.Namespace) -> None:
    """Paste tumours of training cases into other training cases: pairs without any training."""
    from sbldm.synthesis.copypaste import draw_pairs

    seed = _whole("SEED", arguments.seed, 0, MOST_SEED)
    run, own = Run.at(arguments.run), arguments.own or "kept"
    draw_pairs(run, arguments.data, arguments.n, seed, arguments.dataset, arguments.name, own)


def weights(arguments: argparse.Namespace) -> None:
    """Write a trained generator into one file that can be handed on: no volume, no name, no single case in it."""
    from sbldm.synthesis.export import export_weights

    if not arguments.about or not arguments.out.endswith(".safetensors"):
        raise InputError("OUT=FILE.safetensors ABOUT='what it was trained on': both must be given.")
    run, out = Run.at(arguments.run), user_path(arguments.out)
    export_weights(run, out, arguments.about, arguments.licence, arguments.like)
    print(f"{out}: {out.stat().st_size / 1e6:.1f} MB. Audit its pairs for copies before you hand it on (make report).")


def controls(arguments: argparse.Namespace) -> None:
    """Make the controls of a dataset on canvases: healed canvases alone, and real tumours pasted into them."""
    from sbldm.synthesis.controls import draw_controls

    draw_controls(Run.at(arguments.run), str(_whole("DATASET", arguments.dataset, 1, 999)), arguments.weights)


def parser() -> argparse.ArgumentParser:
    """All commands and their options."""
    top = argparse.ArgumentParser("python -m sbldm", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(function: Any, **options: tuple[str, str]) -> argparse.ArgumentParser:
        sub = commands.add_parser(function.__name__, help=function.__doc__, description=function.__doc__)
        sub.set_defaults(function=function)
        for name, (default, text) in options.items():
            shown = f"{text} (default: {default})" if default else text
            sub.add_argument(f"--{name.replace('_', '-')}", default=default, help=shown)
        return sub

    run = ("runs/default", "run folder")
    seed = ("0", "seed")
    command(phantom, out=("data/phantom", "folder to write to"), n=("24", "number of cases"), seed=seed)
    command(download, out=("data", "folder to write to"))
    cases = {
        "data": ("", "folder of cases; the layout is detected"),
        "run": run,
        "model": ("", f"{', '.join(MODELS)} (default: sbldm)"),
        "preset": ("", "demo, small, fast, paper, or a YAML file (default: small)"),
        "minutes": ("", "training time to aim at, in place of the preset's own"),
        "init": ("", "weights to go on from in place of random ones: shipped, or a .safetensors file"),
        "cases": ("", "file with the names of the cases to use, one a line"),
        "validation_cases": ("", "file with the names of the held-back cases"),
        "labels": ("", "what the numbers in the masks mean: auto, brats21, brats23, brats24, peds, or a YAML file"),
        "seed": seed,
        "strict": ("", "1: stop when pre-flight finds anything"),
        "accept": ("", "doubts of pre-flight to overrule: CASE, CASE:check or all:check, blanks between"),
        "workers": ("2", "processes"),
    }
    command(prepare, **cases)
    command(train, **cases | {"data": ("", "folder of cases, to prepare them first")}).add_argument(
        "stage",
        nargs="?",
        default="all",
        choices=("all", *STAGES, "regions"),
        help="one training of the model (default: all)",
    )
    command(
        synth,
        run=run,
        n=("", "number of pairs"),
        seed=("0", "pair i has the seed SEED + i"),
        requests=("", "CSV table of requests; gaps: drawn where real tumours are rare"),
        volume_ml=("", "one request for all pairs: volume (ml)"),
        surface_mm2=("", "surface (mm2)"),
        sphericity=("", "sphericity, above 0 to 1"),
        centre_mm=("", "R,A,S from the centre of the brain's box (mm)"),
        extents_mm=("", "bounding box along R,A,S (mm)"),
        contrast=("", "on canvases: brightness above the brain around, in SD of the brain"),
        sampler=("", "ddim, ddpm, dpm_solver, unipc or heun; as the preset says when empty"),
        steps=("", "network evaluations"),
        spacing=("", "of the steps of dpm_solver, unipc and heun: karras or logsnr"),
        sigma_min=("", "noise below which these three draw no detail, of latents of deviation 1"),
        eta=("", "share of fresh noise in ddim"),
        guidance=("", "1: the request alone; above 1: followed more strictly"),
        guide=(
            "",
            "whose answer without a request guidance leads away from: early (weights) or unasked (the same network)",
        ),
        batch=("", "pairs drawn at once; as the preset says when empty"),
        tol=("", "draw again until within per cent of the volume and mm of the centre: 20,10"),
        gate=("on", "off: write copies and implausible pairs too, marked in the manifest"),
        canvas=("", "draw into real brains: train (the run's training cases), or a folder of cases of your own"),
        keep=("", "1: each canvas keeps its own tumour, which is healed otherwise"),
        push=("", "1: new tumours push aside what lies around them on a canvas"),
        satellites=(
            "",
            "share of pairs that get a second, smaller tumour near the first on a canvas (real: 0.1)",
        ),
        dataset=("501", "nnU-Net dataset number"),
        name=("", "nnU-Net dataset name (default: that of the model)"),
        weights=("", "a generator from elsewhere: shipped (the package's own), or a .safetensors file"),
        data=("", "folder of the cases, for MODEL=copypaste; as prepared when empty"),
        own=("", "for MODEL=copypaste: kept or healed, the receiver's own tumour (default: kept)"),
    )
    command(
        sweep,
        run=run,
        steps=("", "network evaluations an image; as the preset says when empty"),
        seed=("0", "of the noise of the pictures, the same for every request"),
        n=("", "seeds of noise for each request, from SEED on; errors are means over them (default: 5)"),
        batch=("", "images drawn at once; as the preset says when empty"),
        canvas=("", "draw all into one real brain: of train (the training cases), or of a folder of cases"),
        weights=("", "a generator from elsewhere: shipped (the package's own), or a .safetensors file"),
    )
    command(
        copypaste,
        run=run,
        data=("", "folder of the cases; as prepared when empty"),
        n=("", "number of pairs"),
        seed=("0", "pair i has the seed SEED + i"),
        own=("", "kept, or healed as a control: the receiver's own tumour (default: kept)"),
        dataset=("", "nnU-Net dataset number (default: 502; 503 for own=healed)"),
        name=("", "nnU-Net dataset name (default: COPYPASTE, COPYPASTE_HEALED)"),
    )
    command(
        weights,
        run=run,
        out=("", "file to write, .safetensors"),
        about=("", "what it was trained on, in words"),
        licence=("", "on which terms its pairs may be used, in words"),
        like=("", "image whose grid whole pairs are to have; that of the training cases when empty"),
    )
    command(
        controls,
        run=run,
        dataset=("501", "number of the dataset on canvases"),
        weights=("", "that drew it, where it was not the run's own: shipped, or a .safetensors file"),
    )
    return top


def main() -> int:
    """Run one command; what a user can mend is said in one line."""
    warnings.filterwarnings("ignore", category=UserWarning, module=r"monai|ignite|torch")
    arguments = parser().parse_args()
    return finish(lambda: arguments.function(arguments))


if __name__ == "__main__":
    sys.exit(main())
