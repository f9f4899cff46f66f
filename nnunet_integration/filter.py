"""Drop synthetic pairs whose tumour a network of real cases cannot find at all, and keep the hard ones.

Pairs are never ranked: those that a network agrees with most teach it least. Only a mask that it hardly finds anything
of is dropped, as what was drawn there does not look like a tumour.
"""

from __future__ import annotations

import re
import shlex
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from nnunet_integration.evaluation import AGAIN, SETTINGS
from nnunet_integration.figures import GREY, PALETTE
from nnunet_integration.jobs import read_job
from nnunet_integration.pool import link
from nnunet_integration.predict import Model, find_model, predict_folder
from sbldm.cases.volumes import read_image, whole_numbers
from sbldm.pages.datasheet import write_datasheet
from sbldm.run.errors import DataError, InputError, StateError
from sbldm.run.files import atomic_path, make_folder, read_json, user_path, write_csv, write_json
from sbldm.run.folder import Run
from sbldm.run.manifest import ANEW, DRAWN_BY, Manifest, PairRecord
from sbldm.run.progress import progress
from sbldm.run.text import some

__all__ = ["acceptance", "agreement", "filter_pairs", "trained_on"]

SAME_AFFINE_MM = 1e-3


def filter_pairs(
    run: str | Path,
    dataset: int,
    model: str | Path | None = None,
    least: float = 0.1,
    name: str = "",
    to: int | None = None,
) -> Path:
    """Write the pairs of a dataset that a network finds as a dataset of their own, whole or not at all.

    The network's predictions stay in `RUN/filter/DATASET/predictions`, a folder for each network. The files are hard
    links to those of the source. `manifest.csv` has the agreement of each pair. The pairs descend from the network's
    training cases too, which `lineage.json` and the parents of each pair then hold.

    Args:
        run: run folder of the dataset.
        dataset: its number.
        model: see `find_model`; the best real-only job of the run when None.
        least: share of a mask, 0 to 1; a pair is dropped when the network finds less of its mask.
        name, to: of the new dataset; when left out the source's with _KEPT, and the first free number after its own.

    Returns:
        The new dataset; one that is there with the same settings is left as it is.

    Raises:
        InputError: a value is wrong, or the network was trained on synthetic pairs.
        StateError: no such dataset or network, it or the dataset is not whole, or the number is taken.
        DataError: a file cannot be read, the lineage names another image, or no pair is kept.
    """
    if not 0 <= least <= 1:
        raise InputError(f"--least {least:g}: must be from 0 to 1, as it is a share of the mask.")
    run = user_path(run).absolute()
    source, network = _source(run, dataset), find_model(model or run)
    cases, manifest = trained_on(network), Manifest(source)
    pairs, settings, lineage = manifest.pairs, _settings(manifest, network, least), _lineage(source, cases or {})
    target = _target(source, settings, name, to)
    if cases is None:
        print(
            f"Warning: {network.folder}: what it was trained on is not known; it must not have seen a case that is "
            "tested on, as the kept pairs descend from its cases too."
        )
    predictions = run / "filter" / source.name / "predictions" / min(network.identity().values())[:8]
    try:
        predict_folder(model or run, source, predictions, [pair.name for pair in pairs])
    except StateError as error:  # it holds those of pairs that were drawn anew since
        raise StateError(str(error).replace("choose another --out", "remove it and filter again")) from None
    files = [f"{pair.name}.nii.gz" for pair in pairs]
    both = [agreement(predictions / f, source / "labelsTr" / f) for f in progress(files, "Comparing", unit="pair")]
    found = [share for _, share in both]
    figure = _draw(run / "figures" / f"{target.name}_acceptance.png", source.name, found, _real_found(network), least)
    elsewhere = manifest.from_elsewhere
    kept = [
        _kept(pair, *scores, cases or {}, elsewhere)
        for pair, scores in zip(pairs, both, strict=True)
        if scores[1] >= least
    ]
    if not kept:
        raise DataError(
            f"{source}: no pair is kept, the network finds {max(found):.3f} of a mask at most; lower --least (see "
            f"{figure}), or name another network."
        )
    if not target.exists():
        _write(source, target, kept, settings, lineage)
    of_kept, of_all = (np.median([dsc for dsc, share in both if share >= limit]) for limit in (least, 0))
    use = shlex.quote(f"{target.name[11:].lower()}={target}")
    print(
        f"{target}: kept {len(kept)} of {len(pairs)} pairs (--least {least:g}), median DSC {of_kept:.3f} (of all "
        f"{of_all:.3f}), see {figure}; use it with `sbldm nnunet eval --run {shlex.quote(str(run))} --synth {use}`."
    )
    return target


def agreement(prediction: Path, mask: Path) -> tuple[float, float]:
    """DSC of a prediction with a mask, and the share of the mask's voxels that it finds; foreground is all above 0.

    Of an empty mask all is found; its DSC is 1 when the prediction is empty too, else 0.

    Raises:
        DataError: a file cannot be read, or their shapes or affines (by more than 0.001 mm) differ.
    """
    again = f"remove {prediction} and run the same command again"
    ours, theirs = read_image(prediction, again), read_image(mask, DRAWN_BY)
    if ours.shape != theirs.shape or not (abs(ours.affine - theirs.affine) <= SAME_AFFINE_MM).all():
        raise DataError(f"{prediction}: lies on another grid than {mask}; {again}.")
    found, drawn = (whole_numbers(np.asanyarray(image.dataobj)) > 0 for image in (ours, theirs))
    both, total, size = int((found & drawn).sum()), int(found.sum() + drawn.sum()), int(drawn.sum())
    return 2 * both / total if total else 1.0, both / size if size else 1.0


def acceptance(found: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """Share of the masks that are kept against the least share, from 0 to 1.

    Returns:
        Levels `[L]`, rising, and shares `[L]`: each holds from its level down to above the one before ("pre" steps).
    """
    levels = np.unique([0.0, *found, 1.0])
    return levels, (np.asarray(found) >= levels[:, None]).mean(1)


def trained_on(model: Model) -> dict[str, str] | None:
    """Content hash of each real case that a network of our jobs was trained on, by name; None of any other network.

    Raises:
        InputError: it was trained on synthetic pairs too, and would keep what looks like those.
        StateError: the job or its evaluation is damaged.
    """
    if model.job is None:
        return None
    path, names = model.job.parents[1] / SETTINGS, set()
    contents = read_json(path, {"real": {str: str}}, AGAIN)["real"]
    for case in read_job(model.job)["train"]:
        origin, _, name = case.partition("__")
        if origin not in ("real", "aug5"):
            raise InputError(
                f"{model.job}: this network was trained on synthetic pairs too; name one of --arms real+aug."
            )
        names.add(name if origin == "real" else name.rpartition("_")[0])  # a copy has its number last
    if lost := names - contents.keys():
        raise StateError(f"{path}: does not hold {some(lost)}, which {model.job.name} was trained on; {AGAIN}.")
    return {name: contents[name] for name in sorted(names)}


def _source(run: Path, dataset: int) -> Path:
    """The finished dataset of this number."""
    if found := Run(run).datasets(dataset):
        return found[0]
    raise StateError(f"{run / 'nnUNet_raw'}: no dataset {dataset}; draw one: {Run(run).to_draw(20, dataset)}.")


def _settings(manifest: Manifest, network: Model, least: float) -> dict[str, Any]:
    """`synthesis.json` of the source, and by what its pairs are filtered; their number, as more may be drawn later."""
    settings = manifest.settings
    earlier = {"earlier": settings["filter"]} if "filter" in settings else {}
    by = {"model": (network.job or network.folder).name, "checkpoints": network.identity()}
    return settings | {
        "filter": {"of": manifest.dataset.name, "pairs": len(manifest.pairs), "least": least} | by | earlier
    }


def _lineage(source: Path, cases: Mapping[str, str]) -> dict[str, Any]:
    """`lineage.json` of the source, whatever it holds, with the network's cases beside its own."""
    path = source / "lineage.json"
    content = read_json(path, {"cases": {str: str}}, ANEW, remove=False)
    if other := [name for name, found in cases.items() if content["cases"].get(name, found) != found]:
        raise DataError(f"{path}: {some(other)}: another image than the network was trained on; name another network.")
    return content | {"cases": content["cases"] | dict(cases)}


def _target(source: Path, settings: Mapping[str, Any], name: str, to: int | None) -> Path:
    """Where the kept pairs go, or already are; a `StateError` when other pairs are there."""
    name = name or f"{source.name[11:]}_KEPT"
    if not re.fullmatch("[A-Za-z][A-Za-z0-9_]*", name):
        raise InputError(f"--name {name}: letters, digits and underscores only, a letter first.")
    there = {path: int(path.name[7:10]) for path in sorted(source.parent.glob("Dataset[0-9][0-9][0-9]_*"))}
    after = there[source] + 1
    free = next(number for number in (*range(after, 1000), *range(1, after)) if number not in there.values())
    named = [path for path in there if path.name[11:] == name]
    done = [path for path in named if (path / "dataset.json").is_file() and Manifest(path).settings == settings]
    number = to if to else there[(done or named)[0]] if named else free
    folder = source.parent / f"Dataset{number:03d}_{name}"
    taken = [path for path, own in there.items() if own == number]
    if taken and (taken != [folder] or folder not in done):
        raise StateError(
            f"{taken[0]}: number {number} is taken by other pairs than these; choose another, for example --to {free}."
        )
    return folder


def _kept(pair: PairRecord, dsc: float, found: float, cases: Mapping[str, str], elsewhere: bool) -> dict[str, Any]:
    """The row of a kept pair, with the network's cases among its parents where pairs have some of their own."""
    own = pair.ancestors(elsewhere)
    parents = {} if own is None else {"parents": ";".join(sorted({*own, *cases} - {""}))}
    return {**pair.cells, **parents, "agreement_dsc": round(dsc, 4), "agreement_found": round(found, 4)}


def _real_found(model: Model) -> list[float]:
    """Share that the network finds of each real case that its job was tested on; empty without predictions of a job."""
    if model.job is None:
        return []
    masks = model.job.parents[1] / "nnUNet_raw" / model.folder.parent.name / "labelsTr"
    files = sorted((model.job / "predictions").glob("*.nii.gz"))
    return [agreement(file, masks / file.name)[1] for file in files if (masks / file.name).is_file()]


def _draw(path: Path, pairs: str, found: Sequence[float], real: Sequence[float], least: float) -> Path:
    """The acceptance curve of the pairs, and of the real test cases where there are any."""
    figure = Figure(figsize=(6.5, 5), layout="constrained")
    panel = figure.subplots()
    panel.step(*acceptance(found), color=PALETTE[0], linewidth=1.6, label=f"{pairs}: n = {len(found)} pairs")
    if real:
        label = f"floor: n = {len(real)} real cases that the network was tested on"
        panel.step(*acceptance(real), color=GREY, linewidth=1.4, linestyle=(0, (5, 1.5)), label=label)
    kept = sum(share >= least for share in found)
    panel.axvline(least, color=PALETTE[1], linewidth=1, label=f"least share {least:g}: {kept} of {len(found)} kept")
    panel.set(xlim=(-0.01, 1.01), ylim=(0, 1.02))
    panel.set_xlabel("least share of a mask that the network must find", fontsize=9)
    panel.set_ylabel("share kept", fontsize=9)
    panel.spines[["top", "right"]].set_visible(False)
    panel.grid(axis="y", color="0.9", linewidth=0.6)
    panel.tick_params(labelsize=8)
    figure.suptitle("Pairs whose tumour a network of real cases finds", fontsize=10)
    figure.legend(loc="outside lower center", fontsize=8, frameon=False)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=110)
    return path


def _write(source: Path, target: Path, rows: Sequence[dict[str, Any]], settings: Any, lineage: Any) -> None:
    """Make the dataset beside its place, then move it there as a whole."""
    description, sheet = Manifest(source).description, source / "datasheet.md"
    with atomic_path(target) as new:
        for part in ("imagesTr", "labelsTr"):
            make_folder(new / part)
        for pair in (row["pair"] for row in rows):
            images = [f"imagesTr/{pair}_{k:04d}.nii.gz" for k in range(len(description["channel_names"]))]
            for file in (*images, f"labelsTr/{pair}.nii.gz"):
                link(source / file, new / file)
        write_json(new / "synthesis.json", settings)
        write_json(new / "lineage.json", lineage)
        write_csv(new / "manifest.csv", rows)
        write_json(new / "dataset.json", description | {"numTraining": len(rows)})
        if sheet.is_file():
            shutil.copyfile(sheet, new / sheet.name)  # its licence note stays
        pairs, least = (settings["filter"][key] for key in ("pairs", "least"))
        words = f"{len(rows)} of the {pairs} pairs of {source.name}, those of whose mask a network of real cases finds "
        write_datasheet(new, findings=[f"{words}{least:g} or more; `sbldm evaluate` says more."])
