"""What pairs on canvases must beat: the same brains without what was drawn, and with a real tumour pasted in its place.

Two datasets are made of one: `NAME_HEALED`, the healed canvases alone (the generator off: an arm that gains as much by
them owes nothing to the tumours), and `NAME_PASTED`, a training tumour of the asked volume pasted into each healed
canvas (copy-paste on the same brains with the same volumes: `copypaste`). The model heals, so both descend from all the
cases that it was trained on.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from sbldm.cases.layouts import content_hash, read_arrays
from sbldm.cases.pipeline import original_cases
from sbldm.run.device import choose_device
from sbldm.run.errors import DataError, InputError, StateError
from sbldm.run.folder import Run
from sbldm.run.manifest import MEASURED, REQUESTED, Manifest, PairRecord
from sbldm.run.progress import progress
from sbldm.synthesis.canvas import Canvas
from sbldm.synthesis.canvases import Canvases
from sbldm.synthesis.copypaste import SCALE, paste_tumour
from sbldm.synthesis.model import Model
from sbldm.synthesis.raw_dataset import RawDataset
from sbldm.tumour.characteristics import to_dict

__all__ = ["KINDS", "draw_controls"]

KINDS = ("healed", "pasted")


def draw_controls(run: Run, dataset_id: int, show: Callable[[Path], None], weights: str = "") -> list[Path]:
    """Make both controls of a run's dataset on canvases, a pair for each of its pairs; what is there already stays.

    They get the next free numbers. A donor is a training case other than the canvas, whose tumour reaches the asked
    volume with a scale that `copypaste` allows (.75 to 1.25), or comes as near to it as any.

    Args:
        run: that drew the dataset.
        dataset_id: its number.
        show: what is done with each folder when it is filled (`pages.show_pairs`).
        weights: file of the generator that drew it, where it was not the run's own (see `Weights`).

    Raises:
        InputError: there is no such dataset, or its pairs are not on canvases.
        StateError: it, the run or a model is not whole.
        DataError: a case cannot be read, or pairs for which no tumour finds a place (the others are written).
    """
    found = run.datasets(dataset_id)
    if not found:
        raise InputError(
            f"--dataset {dataset_id}: {run.folder} has no such dataset; "
            f"draw it with `{run.to_draw(number=dataset_id)} --canvas train`."
        )
    dataset, drawn = found[0], Manifest(found[0])
    settings = drawn.settings
    if "canvases" not in settings:
        raise InputError(f"--dataset {dataset_id}: its pairs are not on canvases, which these controls are for.")
    drawn.need("seed", "canvas", "canvas_content")
    drawn.values(REQUESTED, ["volume_ml"])
    model = Model.load(str(run.folder), choose_device(), regions=True, weights=weights or None)
    if settings.get("checkpoint_sha256") != model.sha256:
        raise StateError(
            f"{dataset}: was drawn by other weights than these, which would heal its canvases otherwise; name "
            "those with --weights, or leave it out for the run's own."
        )
    keep = "1" if settings["canvases"]["own"] == "kept" else None
    canvases = Canvases.of_run(str(run.folder), settings["canvases"]["from"], model, keep)
    canvases.prepare(sorted({pair.canvas for pair in drawn.pairs}))
    donors, made, homeless = _Donors(run, model), [], []
    for kind in KINDS:
        output = _open(drawn, kind, model)
        for record in drawn.pairs:
            output.descend(record.canvas, record.canvas_content)
        output.begin()
        for asked in progress(drawn.pairs, f"{kind.capitalize()} canvases", unit="pair"):
            if output.finished(asked.seed):
                continue
            begun, canvas = time.perf_counter(), canvases.get(asked.canvas)
            if canvas.content != asked.canvas_content:
                raise DataError(f"{canvas.name}: holds other voxels than when {dataset.name} was drawn.")
            pair = (canvas.image, canvas.labels, "") if kind == "healed" else donors.paste(canvas, asked)
            if pair is None:
                homeless.append(asked.name)
                continue
            image, labels, donor = pair
            record = {"seed": asked.seed, "donor": donor, "canvas": canvas.name}
            record |= {"canvas_content": canvas.content, "own": settings["canvases"]["own"], "redrawn": 0}
            if kind == "pasted":
                values = model.source.measure(labels, canvas.native.frame(canvas.working))
                measured = to_dict(values, model.source.characteristics)
                record |= {MEASURED + name: value for name, value in measured.items()}
            record["seconds"] = round(time.perf_counter() - begun, 3)
            output.write(asked.seed, image, labels, record, canvas.native.affine())
        print(f"{output.folder}: {output.compile()} pairs.")
        show(output.folder)
        made.append(output.folder)
    if homeless:
        raise DataError(f"{made[-1]}: {len(homeless)} pair(s) not made ({homeless[0]}): no tumour found a place there.")
    return made


def _open(drawn: Manifest, kind: str, model: Model) -> RawDataset:
    """The dataset of a control, begun before or new."""
    dataset, settings = drawn.dataset, drawn.settings
    root, name = dataset.parent, f"{dataset.name.split('_', 1)[1]}_{kind.upper()}"
    there = sorted(root.glob(f"Dataset*_{name}"))
    taken = {int(path.name[7:10]) for path in root.glob("Dataset*_*")}
    number = (
        int(there[0].name[7:10]) if there else min(set(range(1, 1000)) - taken - set(range(1, int(dataset.name[7:10]))))
    )
    return RawDataset.open(
        root=str(root),
        dataset_id=number,
        name=name,
        source=model.source,
        affine=model.native.affine(),
        settings={"generator": "copypaste" if kind == "pasted" else "none", "control_of": dataset.name}
        | {"seed": settings["seed"], "canvases": settings["canvases"] | {"satellites": 0.0}},
        lineage=model.lineage,
    )


class _Donors:
    """Training cases whose tumours are pasted."""

    def __init__(self, run: Run, model: Model) -> None:
        self.cases = {case.name: case for case in original_cases(run, "train")}
        self.source, self.content = model.source, model.lineage
        self.volumes: dict[str, float] = {}
        for name, case in self.cases.items():
            _, labels, affine = read_arrays(case, self.source)
            if labels.any():
                self.volumes[name] = float((labels > 0).sum() * abs(np.linalg.det(affine[:3, :3])) / 1000)

    def paste(self, canvas: Canvas, pair: PairRecord) -> tuple[np.ndarray, np.ndarray, str] | None:
        """Image, labels and donor; None where no donor's tumour finds a place."""
        asked = pair.requested["volume_ml"] + pair.satellite_ml
        rng = np.random.default_rng([pair.seed, 5])
        spacing, affine = canvas.native.spacing, canvas.native.affine()
        left_right = int(np.abs(np.reshape(canvas.native.direction, (3, 3))[0]).argmax())
        for name in self._order(canvas.name, asked, rng):
            image, labels, where = read_arrays(self.cases[name], self.source)
            if content_hash(image[0]) != self.content.get(name) or not np.allclose(
                where[:3, :3], affine[:3, :3], atol=1e-3
            ):
                continue
            scale = float(np.clip(np.cbrt(asked / self.volumes[name]), *SCALE))
            receiver = canvas.image, canvas.labels
            if made := paste_tumour(image, labels, *receiver, rng, spacing, left_right, scale):
                return *made, name
        return None

    def _order(self, canvas: str, asked: float, rng: np.random.Generator) -> Sequence[str]:
        """Those that can be scaled to the asked volume in a random order, then the others from the nearest on."""
        others = [name for name in self.volumes if name != canvas]
        away = {name: abs(np.log(asked / self.volumes[name]) / 3) for name in others}
        near = [name for name in others if away[name] <= -np.log(SCALE[0]) and away[name] <= np.log(SCALE[1])]
        return [*rng.permutation(near), *sorted(set(others) - set(near), key=away.__getitem__)]
