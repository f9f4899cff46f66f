"""Variants of a recipe at equal processor time: train, draw, score, one row each.

  sbldm ablation --run RUN --variants variants.yaml --out runs/ablation

RUN is a prepared run, whose cases and preset all variants share (after `sbldm nnunet eval --arms real+aug` its network
validates the masks). The file names one variant a line by the values of the preset that it changes:

  budget: {autoencoder: 10, diffusion: 10}     # minutes of processor time of each training, in one thread
  pairs: 50                                    # drawn with the same requests and seeds
  common: {autoencoder.kl_weight: 1.0e-6}      # of all variants
  variants:
    chosen: {}
    uniform times: {diffusion.noise_levels: {distribution: uniform}}
    half the time: {budget: 0.5}

Variants that change nothing of stage 1 share the autoencoder of the first. Without a `budget` RUN is a trained one, the
networks of which all variants share: they then differ in `sampling` alone (docs/steps.yaml). What is done is not done
again, so the same command goes on where it was stopped; `ablation.csv` and `ablation.md` hold what is known so far,
and `ablation.png` shows KID against processor minutes.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from sbldm.cases.lists import read_lists
from sbldm.pages.style import GREY, ROLES, STYLE, WIDTH
from sbldm.run.errors import InputError, SbldmError, StateError
from sbldm.run.files import atomic_path, make_folder, write_csv
from sbldm.run.folder import Run
from sbldm.run.manifest import Manifest
from sbldm.run.preset import Preset
from sbldm.run.processes import killed_with_parent
from sbldm.training.checkpoints import read_history, unfinished
from sbldm.training.deformation import copies_of_each

STAGES = ("autoencoder", "diffusion")
TRIALS = (20, 60)  # iterations of two short trainings, whose difference in time tells the speed
ENDS = ("", " low", " high")
EPOCHS = 8  # validations and checkpoints of a training
UPSTREAM = ("autoencoder", "data", "grid", "intensity", "mirror")  # what makes the latents
VARIANTS = Path(__file__).parents[3] / "docs" / "ablation.yaml"
SHARED = ("files.json", "lists.json", "preflight.csv", "prepared")
TRAINED = ("autoencoder", "latents", "diffusion")
KID = "kid.heldout"
COLUMNS = {  # of the table: scores by their protocol
    "mmd-laplace.heldout": "MMD",
    KID: "KID as before",
    "precision.heldout": "precision",
    "recall.heldout": "recall",
    "coverage.heldout": "coverage",
    "z_gradient_ratio.effect": "gradient across slices, SD",
    "request.volume_error": "volume off",
    "request.centre_mm": "centre off, mm",
    "spearman.sphericity": "rank of sphericity",
    "fit.dsc": "mask against real-trained nnU-Net, DSC",
    "copies.near": "near copies",
}


def changed(preset: Preset, changes: dict[str, Any]) -> Preset:
    """A preset with some values replaced, named by dotted keys; a mapping is replaced as a whole.

    Raises:
        InputError: a key leads nowhere, or the result is no preset.
    """
    values = preset.state()
    for key, value in changes.items():
        *path, last = key.split(".")
        place = values
        for part in path:
            if not isinstance(place.get(part), dict):
                raise InputError(f"{key}: the preset has no {part}.")
            place = place[part]
        place[last] = value
    return Preset.of(values, f"{', '.join(changes)}: ")


def main_table(rows: list[dict[str, Any]]) -> str:
    """Markdown: a row a variant, each score with its interval, the floor first."""
    shown = [name for name in COLUMNS if any(name in row["scores"] for row in rows)]
    head = ["variant", "iterations", "s a pair", *(COLUMNS[name] for name in shown)]
    head.insert(2, "processor minutes")
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    floor = {name: rows[0]["floors"].get(name) for name in shown}
    cells = ["floor: real cases", "", "", "", *("" if v is None or v != v else f"{v:.3g}" for v in floor.values())]
    lines.append("| " + " | ".join(cells) + " |")
    for row in rows:
        cells = [row["variant"], " + ".join(f"{n:,}" for n in row["iterations"])]
        cells += [f"{row['minutes']:.0f}", f"{row['seconds']:.2f}"]
        for name in shown:
            value, low, high = row["scores"].get(name, ("", "", ""))
            interval = "" if low in ("", None) or low != low else f" [{low:.3g}, {high:.3g}]"
            cells.append("" if value == "" else f"{value:.3g}{interval}")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def cost_figure(rows: list[dict[str, Any]], path: Path) -> None:
    """KID against processor minutes, with intervals, each variant by its name; the floor as a line."""
    known = [row for row in rows if KID in row["scores"]]
    if not known:
        return
    with matplotlib.rc_context(STYLE):
        figure = Figure((WIDTH, 0.7 * WIDTH), layout="constrained")
        panel = figure.subplots()
        for row in known:
            value, low, high = row["scores"][KID]
            ends = [[value - low], [high - value]] if low is not None and low == low else None
            style = {"fmt": "o", "markersize": 4, "capsize": 2, "color": ROLES["synthetic"].colour}
            panel.errorbar([row["minutes"]], [value], yerr=ends, **style)
            panel.annotate(row["variant"], (row["minutes"], value), (5, 3), textcoords="offset points", fontsize=8)
        if (floor := known[0]["floors"].get(KID)) is not None and floor == floor:
            panel.axhline(floor, color=GREY, linestyle=":", linewidth=1.2)
            panel.annotate("real cases", (0, floor), (3, 3), textcoords="offset points", fontsize=8, color=GREY)
        panel.set(xlabel="processor minutes of training", ylabel="KID to held-back cases (lower is better)")
        panel.margins(0.15)
        panel.set_xlim(left=0)
        with atomic_path(path) as temporary:
            figure.savefig(temporary, format="png")


def _flat(row: dict[str, Any]) -> dict[str, Any]:
    """A row of the CSV: every score with its interval in columns of its own."""
    ends = {
        f"{name}{end}": value for name, three in row["scores"].items() for end, value in zip(ENDS, three, strict=True)
    }
    iterations = dict(zip(STAGES, row["iterations"], strict=True))
    return {"variant": row["variant"], **iterations, "minutes": row["minutes"], "seconds": row["seconds"], **ends}


class Ablation:
    """One file of variants on one prepared run.

    Attributes:
        base: the prepared run.
        out: folder of the variants' runs, of the table, and of what is known of each case.
        plan: content of the file.
        nnunet: folder of a trained nnU-Net, or None.

    Raises:
        InputError: a plan without a budget changes what is trained.
    """

    def __init__(self, base: Run, plan: dict[str, Any], out: Path, nnunet: Path | None = None) -> None:
        self.base, self.plan, self.out, self.nnunet = base, plan, out, nnunet
        self.first = next(iter(plan["variants"]))
        for changes in [plan.get("common"), *plan["variants"].values()] if "budget" not in plan else []:
            for key in changes or {}:
                if not key.startswith("sampling."):
                    raise InputError(f"{key}: a plan without a budget trains nothing; it changes sampling alone.")

    def run(self) -> None:
        """All variants, one after the other; one that fails keeps no other from its row.

        Raises:
            StateError: some failed, or the first did, on which others build.
        """
        rows, failed = [], []
        for name in self.plan["variants"]:
            try:
                rows.append(self._row(name, self._finished(name)))
            except SbldmError as error:
                if name == self.first:
                    raise
                print(f"{name}: {error}", file=sys.stderr)
                failed.append(name)
                continue
            with atomic_path(self.out / "ablation.md") as temporary:
                temporary.write_text(main_table(rows))
            write_csv(self.out / "ablation.csv", [_flat(row) for row in rows])
            cost_figure(rows, self.out / "ablation.png")
        print((self.out / "ablation.md").read_text())
        if failed:
            raise StateError(
                f"no row for {', '.join(failed)}: see above; if the plan was wrong, remove the folder in {self.out}."
            )

    def _folder(self, name: str) -> Run:
        return Run(self.out / re.sub(r"[^\w.+-]+", "_", name))

    def _finished(self, name: str) -> Run:
        """The run of a variant, trained, drawn and scored."""
        changes = dict(self.plan["variants"][name] or {})
        share, run = changes.pop("budget", 1.0), self._folder(name)
        if not (run.folder / "preset.yaml").is_file():
            self._begin(run, changed(self.base.preset, self._with_common(changes)))
        if "budget" in self.plan:
            self._train(name, run, changes, share)
        every = self._with_common(changes)  # a trained model has its own preset: it is told these
        asked = {k.removeprefix("sampling."): v for k, v in every.items() if k.startswith("sampling.")}
        sampling = [f"--{name.replace('_', '-')}={value}" for name, value in asked.items()]
        drawn = f"--n={self.plan.get('pairs', 50)}", "--gate=off"
        self._call("synth", f"--run={run.folder}", *drawn, *sampling)
        if not (run.evaluation / "evaluation.json").is_file():
            own = [f"--nnunet={self.nnunet}"] * bool(self.nnunet)
            scores = " ".join(["distribution", "slices", "requests", "copies", *["fit"] * bool(self.nnunet)])
            folders = f"--out={run.evaluation}", f"--cache={self.out / 'cache'}", *own
            self._call("evaluate", f"--run={run.folder}", f"--scores={scores}", "--workers=1", *folders)
        return run

    def _with_common(self, changes: dict[str, Any]) -> dict[str, Any]:
        """The values of a variant after those that all variants have, so that a whole part of its own is not mended."""
        return {k: v for k, v in (self.plan.get("common") or {}).items() if k not in changes} | changes

    def _train(self, name: str, run: Run, changes: dict[str, Any], share: float) -> None:
        """Both stages of a variant, within its budget."""
        if name != self.first and not any(key.startswith(UPSTREAM) for key in changes) and share == 1:
            self._share_autoencoder(run)
        for stage in STAGES:
            if not _mark(run, stage).is_file():
                self._budget(run, stage, 60 * share * self.plan["budget"][stage])
            elif run.checkpoint(stage).is_file() and not unfinished(run, stage):
                continue  # the budget of the other stage, set since, is a change that a training would refuse
            self._call("train", stage, f"--run={run.folder}")

    def _begin(self, run: Run, preset: Preset) -> None:
        """A run folder on the cases of the base."""
        make_folder(run.folder)
        for part in SHARED if "budget" in self.plan else (*SHARED, *TRAINED):
            if not (run.folder / part).exists():
                (run.folder / part).symlink_to((self.base.folder / part).resolve())
        run.save_preset(preset)

    def _share_autoencoder(self, run: Run) -> None:
        """Take stage 1 of the first variant; latents of the same brains too, however they are centred then."""
        if _mark(run, "autoencoder").is_file():
            return
        first = self._finished(self.first)
        cases = len(read_lists(run.folder)["train"])
        one, other = (copies_of_each(preset.diffusion, cases) for preset in (first.preset, run.preset))
        for part in ("autoencoder", *["latents"] * (one == other)):
            shutil.copytree(first.folder / part, run.folder / part, dirs_exist_ok=True)
        for name in ("constants.json", "autoencoder.json"):
            (run.latents / name).unlink(missing_ok=True)
        run.save_preset(run.preset.but(autoencoder=first.preset.autoencoder))
        shutil.copy(_mark(first, "autoencoder"), _mark(run, "autoencoder"))

    def _budget(self, run: Run, stage: str, seconds: float) -> None:
        """Set the iterations of a stage to what fits into so many seconds of one thread, by two short trials."""
        preset, spent = run.preset, []
        for trial in TRIALS:
            shutil.rmtree(run.folder / stage, ignore_errors=True)  # of a trial
            run.save_preset(changed(preset, {f"{stage}.iterations": trial, f"{stage}.iterations_per_epoch": trial}))
            self._call("train", stage, f"--run={run.folder}")
            spent.append(float(read_history(run, stage)[-1]["cpu_seconds"]))
        shutil.rmtree(run.folder / stage)
        speed = (TRIALS[1] - TRIALS[0]) / (spent[1] - spent[0])
        epoch = max(1, round(seconds * speed / EPOCHS))
        found = {f"{stage}.iterations": EPOCHS * epoch, f"{stage}.iterations_per_epoch": epoch}
        run.save_preset(changed(preset, found))
        _mark(run, stage).write_text(f"{seconds:g} s\n")

    def _row(self, name: str, run: Run) -> dict[str, Any]:
        scores = json.loads((run.evaluation / "evaluation.json").read_text())["scores"]
        manifest = Manifest(next(run.raw.iterdir()))
        manifest.need("seconds")
        histories = [read_history(run, stage)[-1] for stage in STAGES]
        return {
            "variant": name,
            "iterations": [int(last["iteration"]) for last in histories],
            "minutes": sum(float(last["cpu_seconds"]) for last in histories) / 60,
            "seconds": statistics.median(pair.seconds for pair in manifest.pairs),
            "scores": {s["protocol"]: (s["value"], s["low"], s["high"]) for s in scores},
            "floors": {s["protocol"]: s["floor"] for s in scores},
        }

    def _call(self, *arguments: str) -> None:
        """Another command of ours, in one thread.

        Raises:
            StateError: it failed.
        """
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "sbldm", *arguments]
        if subprocess.run(command, env=environment, check=False, preexec_fn=killed_with_parent).returncode:
            raise StateError(f"`{shlex.join(command)}` failed; the same command goes on from here.")


def _mark(run: Run, stage: str) -> Path:
    """The file that says that the iterations of a stage are those of its budget, and no trial's."""
    return run.folder / f"{stage}.budget"
