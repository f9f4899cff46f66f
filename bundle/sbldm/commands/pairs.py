"""What the package's own commands do, in values: `sbldm.cli` reads them from the command line."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sbldm.cases.lists import data_folder
from sbldm.cases.pipeline import check_same_data, is_prepared, prepare_run
from sbldm.commands.launch import Training, devices_for, launch
from sbldm.run.errors import InputError, StateError
from sbldm.run.files import BUNDLE, user_path
from sbldm.run.folder import Run, load_preset, with_refiner, within_regions
from sbldm.run.models import LATER, configs_of, refuse_requests
from sbldm.run.options import DATASET, Drawing, Preparation
from sbldm.run.preset import Preset
from sbldm.run.schema import refuse_expressions
from sbldm.run.workers import at_work

__all__ = ["prepare", "sweep", "synth", "train"]


def prepare(asked: Preparation) -> None:
    """Check the cases, draw the lists, and bring the cases onto the working grid."""
    if asked.init:
        from sbldm.training.weights import Weights

        if asked.preset not in ("", "small") or asked.model not in (None, "sbldm") or asked.minutes:
            raise InputError(f"--init {asked.init}: brings its own preset; leave --preset, --model and --minutes out.")
        preset = Weights.read(asked.init, "--init").fine_tuning
    else:
        preset = load_preset(asked.preset or "small", asked.model or "", asked.minutes)
    run = Run.at(asked.run)
    with at_work(asked.cluster, run.folder, asked.data):
        prepare_run(
            asked.data,
            run,
            preset,
            asked.cases,
            asked.validation_cases,
            asked.seed,
            asked.strict,
            asked.workers,
            asked.labels,
            asked.accept or (),
        )


def train(asked: Training, stage: str) -> None:
    """Train one stage, or all; a stopped training goes on where it was. With `data` the cases are prepared first."""
    from sbldm.run.group import launched

    run = Run.at(asked.run)
    devices_for(asked.gpus)
    if asked.data and launched() > 1:
        raise InputError(f"--data {asked.data}: several processes cannot prepare cases; call `sbldm prepare` before.")
    if asked.init and is_prepared(run):
        from sbldm.training.weights import Weights

        if getattr(run.preset.begins_with, "sha256", None) != Weights.read(asked.init, "--init").sha256:
            raise StateError(
                f"{run.folder}: was prepared without these weights; choose another --run to go on from them."
            )
    if asked.data and not is_prepared(run):
        prepare(asked)
    elif asked.data:
        check_same_data(run, asked.data)
    preset = run.preset  # says what to do when nothing is prepared
    if asked.model and asked.model != preset.model:
        raise StateError(
            f"{run.folder}: holds a run of the model {preset.model}, not of {asked.model}; choose another --run."
        )
    stages = preset.stages
    if stage in LATER:
        own = (within_regions if stage == "regions" else with_refiner)(preset)  # says so when the preset has none
        _train(asked, run, own, [stage])
        return
    if stage not in ("all", *stages):
        known = f"has the trainings {', '.join(stages)}" if stages else "trains nothing"
        raise InputError(f"{stage}: the model {preset.model} {known}.")
    if not stages:
        print(f"{run.folder}: the model {preset.model} trains nothing; go on: {run.to_draw()}.")
    chosen = [own for own in stages if stage in ("all", own)]
    if stage == "all" and preset.begins_with:  # its network knows regions, and is to keep them
        chosen.append("regions")
    _train(asked, run, preset, chosen)


def _train(asked: Training, run: Run, preset: Preset, stages: Sequence[str]) -> None:
    """Train these stages, here or in several processes, of which this may be one."""
    from sbldm.run.group import check_shared, launched

    if asked.gpus > 1:
        for stage in stages:
            own = preset.stage("diffusion" if stage == "regions" else stage)
            check_shared(own, stage, asked.gpus, f"--gpus {asked.gpus}")
    if launched() > 1 and len(stages) > 1:
        raise InputError(f"several processes train one after the other: name one of {', '.join(stages)}.")
    values = {"seed": asked.seed, "accumulate": asked.accumulate, "checkpointing": asked.checkpointing}
    for stage in stages:
        if asked.gpus > 1:
            spared = ["--accumulate", asked.accumulate, *["--checkpointing"] * asked.checkpointing]
            launch(asked.gpus, ["train", stage, "--run", asked.run, "--seed", asked.seed, *spared])
        else:
            together = ("multi_gpu",) if launched() > 1 else ()
            _bundle((*configs_of(preset, stage), *together), "training", run, **values)


def synth(asked: Drawing) -> None:
    """Draw pairs into the nnU-Net raw dataset of the run."""
    from sbldm.synthesis.requests import GAPS, count_pairs, read_asked

    run, table = Run.at(asked.run), asked.requests or None
    if table not in (None, GAPS):
        table = user_path(table).absolute()
    requests = read_asked(table, asked.request)
    count_pairs(asked.n, len(requests) if table not in (None, GAPS) else 0)  # before any model is loaded
    _train_is_prepared(asked.canvas, run)
    file = _weights(asked.weights, run)
    model = "sbldm" if file else run.preset.model
    name = asked.name or (_plain(file) if file else model.upper())
    if model == "copypaste":
        from sbldm.pages import show_pairs
        from sbldm.synthesis.copypaste import draw_pairs

        others = {name: getattr(asked, name) or None for name in ("batch", "tol", "canvas", "keep", "push", "refine")}
        refuse_requests(model, requests, asked.sampling | others | {"satellites": asked.satellites})
        own = asked.own or "kept"
        with at_work(asked.cluster, run.folder, asked.data or data_folder(run.folder)):
            draw_pairs(run, asked.data, asked.n, asked.seed, show_pairs, asked.dataset, name, own, asked.workers)
        print(_next(run, asked.dataset))
        return
    if asked.own:
        raise InputError(f"--own {asked.own}: pairs of the model {model} have no receiver; leave it out.")
    scans = {"": None, "train": data_folder(run.folder)}.get(asked.canvas, asked.canvas)
    with at_work(asked.cluster, run.folder, scans and user_path(scans), file and Path(file)):
        _bundle(
            ("inference",),
            "synthesis",
            run,
            weights=file,
            n=asked.n,
            seed=asked.seed,
            requests=table,
            request=asked.request,
            sampling=asked.sampling,
            batch=asked.batch,
            gate=asked.gate,
            tolerance=list(asked.tol) if asked.tol else "",
            canvas=_canvas(asked.canvas),
            keep=asked.keep or None,
            push=asked.push or None,
            satellites=asked.satellites,
            refine=asked.refine or None,
            workers=asked.workers,
            dataset_id=asked.dataset,
            dataset_name=name,
        )
    print(_next(run, asked.dataset))


def _next(run: Run, dataset: int) -> str:
    """What can be done with pairs: asked whether they help, or, where there are no real cases to ask, used."""
    if not run.preset_file.is_file():
        (folder,) = run.datasets(dataset)
        return f"Next: nnU-Net finds these pairs, {folder}, by `export nnUNet_raw={shlex.quote(str(run.raw))}`."
    number = "" if dataset == DATASET else f" --dataset {dataset}"
    return (
        f"Next: `sbldm nnunet eval --run {run.typed}` (do they help?), "
        f"or `sbldm evaluate --run {run.typed}{number}` (how good are they?)."
    )


def sweep(
    folder: Path, steps: int | None, seed: int, n: int | None, batch: int | None, canvas: str, weights: str
) -> None:
    """Draw tumours of five sizes at one place and of one size at five places into a run folder, all else equal."""
    from sbldm.pages.sweeps import sweep_figure
    from sbldm.run.device import choose_device
    from sbldm.synthesis.sweep import SEEDS, draw_sweeps

    run = Run.at(folder)
    _train_is_prepared(canvas, run)
    file = _weights(weights, run)
    out = draw_sweeps(run, choose_device(), steps, seed, n or SEEDS, batch, _canvas(canvas), file)
    sweep_figure(out, run.figures / f"{out.name}.png")


def _weights(name: str, run: Run) -> str | None:
    """The generator to draw with: as asked for, else the run's own; the shipped one where nothing is prepared."""
    from sbldm.training.weights import SHIPPED, Weights

    if not name and (run.preset_file.is_file() or not SHIPPED.is_file()):
        return None
    held = Weights.read(name or "shipped")
    if not name:
        print(f"{run.folder}: nothing is prepared here, so the generator that comes with this package draws.")
    print(f"Generator: {held.path.name}, trained on {held.about['data']}. {held.about['licence']}")
    return str(held.path)


def _plain(file: str) -> str:
    """What pairs of a file of weights are called: SHIPPED, or as the file."""
    from sbldm.training.weights import SHIPPED

    return "SHIPPED" if Path(file) == SHIPPED else f"W_{re.sub('[^A-Za-z0-9]', '_', Path(file).stem)}"


def _train_is_prepared(canvas: str, run: Run) -> None:
    if canvas == "train" and not run.preset_file.is_file():
        raise InputError("--canvas train: no cases are prepared here; name a folder of scans, --canvas /path/to/scans.")


def _canvas(where: str) -> str | None:
    if not where or where == "train":
        return where or None
    if not (folder := user_path(where).absolute()).is_dir():
        raise InputError(f"--canvas {where}: no such folder.")
    return str(folder)


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
