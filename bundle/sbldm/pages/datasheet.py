"""The datasheet of a dataset (after Gebru et al. 2021): `datasheet.md` beside `dataset.json`."""

from __future__ import annotations

from pathlib import Path

from sbldm.metrics.copies import REACH
from sbldm.metrics.nearness import too_many_copies
from sbldm.metrics.tumour_copies import TUMOUR_REACH
from sbldm.run.files import atomic_path, read_text
from sbldm.run.manifest import Manifest
from sbldm.run.models import MODELS

__all__ = ["SHEET_AGAIN", "write_datasheet"]

SHEET_AGAIN = "run `sbldm synth` and `sbldm evaluate` again"
TUMOURS = {"none": "no tumour was drawn", "copypaste": "the tumours are those of other cases"}  # on canvases
UNKNOWN = "not stated; the pairs fall under the terms of the real cases they were made from"


def write_datasheet(folder: Path, licence: str = "", findings: list[str] | None = None) -> Path:
    """Write down what a raw dataset was made from, what was checked, what it is for and what it cannot do.

    Args:
        folder: of the dataset, with `dataset.json`, `manifest.csv`, `synthesis.json` and `lineage.json`.
        licence: note on the terms of the real cases; what an earlier sheet says is kept when empty.
        findings: sentences of an evaluation; those of an earlier sheet are kept when None.
    """
    path = folder / "datasheet.md"
    kept = _kept(path)
    manifest = Manifest(folder)
    channels, labels = ", ".join(manifest.channels), ", ".join(manifest.labels)
    if findings is None:
        findings = kept["Evaluation"]
    lines = [
        f"# Datasheet: {folder.name}",
        "",
        f"{len(manifest.pairs)} **synthetic** pairs of image ({channels}) and mask ({labels}); {_brains(manifest)}",
        "",
        "## Made from",
        *_ancestors(manifest),
        *_origin(manifest),
        *_intensities(manifest.settings),
        "",
        "## Licence note",
        f"- {licence or ' '.join(kept['Licence note']) or (manifest.origin or {}).get('licence') or UNKNOWN}",
        "",
        "## Checked while drawing",
        *_checks(manifest),
        "",
        "## Evaluation",
        *(f"- {sentence}" for sentence in findings or ["not evaluated yet: `sbldm evaluate`"]),
        "",
        "## Intended use",
        "- Additional training data for tumour segmentation research, together with real cases.",
        "- Not for diagnosis, not as test or validation data, not as evidence about patients.",
        "",
        "## Limits",
        "- A network must not be tested on a case of `lineage.json`: these pairs have seen it.",
        "- The generator knows only what its training cases show: one kind of scanner preparation, tumour and anatomy.",
        "- A pair that is no copy by the audit can still carry features of a training case.",
        "- Whether pairs help must be measured (`sbldm nnunet eval`); it cannot be seen.",
    ]
    with atomic_path(path) as temporary:
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def _brains(manifest: Manifest) -> str:
    """Whose brains they show."""
    if not (canvases := {pair.canvas for pair in manifest.pairs} - {""}):
        return "nobody was scanned for them."
    tumours = TUMOURS.get(manifest.settings.get("generator"), "the tumours are drawn")
    if second := sum(pair.satellite_ml > 0 for pair in manifest.pairs):
        tumours += f" (a second one in {second} of {len(manifest.pairs)})"
    return (
        f"{tumours}, **the brains are real**: {len(canvases)} canvases, named in "
        "`manifest.csv` with the hashes of their scans. Share these pairs only as you may share the scans."
    )


def _kept(path: Path) -> dict[str, list[str]]:
    """Bullets of the parts of an earlier sheet that other commands filled in."""
    kept: dict[str, list[str]] = {"Licence note": [], "Evaluation": []}
    part = ""
    for line in read_text(path, SHEET_AGAIN).splitlines() if path.is_file() else []:
        if line.startswith("## "):
            part = line.removeprefix("## ")
        elif part in kept and line.startswith("- ") and UNKNOWN not in line and "not evaluated" not in line:
            kept[part].append(line.removeprefix("- "))
    return kept


def _origin(manifest: Manifest) -> list[str]:
    """What drew the pairs."""
    settings = manifest.settings
    if "checkpoint_sha256" not in settings:
        own = f", the receiver's own tumour {settings['own']}" if "own" in settings else ""
        return [f"- Generator: {settings.get('generator', 'unknown')}{own}, seed {settings.get('seed')}; no training."]
    sampling = ", ".join(f"{name} {value}" for name, value in settings.get("sampling", {}).items())
    if refiner := settings.get("refiner"):
        sampling += f"; images sharpened around the tumour by a refiner, checkpoint {refiner['sha256'][:16]}"
    name = settings.get("model", "sbldm")
    model, extrapolated = MODELS[name], sum(bool(pair.extrapolated) for pair in manifest.pairs)
    asked = f"requests and measured tumours of every pair in `manifest.csv`; {extrapolated} requests lie beyond what "
    asked += "training saw."
    unasked = (
        "measured tumours of every pair in `manifest.csv`. This model takes **no requests**: size, shape and place "
    )
    unasked += "of a tumour cannot be asked for."
    return [
        f"- Generator: {model.title} (model {name}), checkpoint {settings['checkpoint_sha256'][:16]}; {sampling}.",
        f"- Seeds from {settings.get('seed')}; " + (asked if model.conditional else unasked),
    ]


def _ancestors(manifest: Manifest) -> list[str]:
    """The real cases that the pairs descend from."""
    lineage, origin, elsewhere, found = manifest.lineage, manifest.origin, manifest.from_elsewhere, []
    if lineage or not elsewhere:
        what = "scans" if elsewhere else "training cases"
        found.append(f"- {len(lineage)} real {what}, by name and content hash in `lineage.json`.")
    if origin:
        how = "A generator from elsewhere" if elsewhere else "The training went on from a generator"
        found.append(
            f"- {how} that was trained on {origin['data']} ({origin['cases']} cases, in `lineage.json` as salted "
            "hashes that name none). Whether it copies those was looked for before it was handed on, not here."
        )
    return found


def _intensities(settings: dict) -> list[str]:
    """In what the images are written."""
    written = settings.get("intensities", {})  # datasets of before have none
    return [f"- Intensities of {channel.upper()}: {words}." for channel, words in written.items()] + [
        "- Real cases beside them may be in other units: nnU-Net brings each image to mean 0 and SD 1 on its own."
    ] * bool(written)


def _checks(manifest: Manifest) -> list[str]:
    """What the gate did."""
    pairs, settings, overridden = manifest.pairs, manifest.settings, manifest.overridden
    if manifest.is_copypaste or "control_of" in settings:
        return ["- Pairs of this kind pass no gate: each repeats the brain of a real case by design."]
    if pairs[0].gate is None:
        return ["- Nothing: these pairs were drawn before there was a gate."]
    elsewhere = manifest.from_elsewhere  # its training cases are not here to compare with
    near = [pair.near for pair in pairs]
    unseen = 0 if elsewhere else near.count(None)
    canvas = bool(pairs[0].canvas)
    what = "tumours are nearer to a training tumour" if canvas else "pairs are nearer to a training case"
    found = [
        f"- {manifest.drawn or 'An unknown number of'} pairs were drawn, {len(pairs)} accepted, "
        f"{len(manifest.given_up)} requests given up; "
        "every refusal and its reason stands in `manifest.csv` or `given_up.csv`.",
    ]
    if not elsewhere:
        found += [
            f"- {near.count(True)} of {len(pairs) - unseen} {what} than 95 % of held-back cases are "
            "(honest: about 5 %); no copy beyond the limit of the gate was accepted"
            + (" but those below." if overridden else "."),
            *([] if canvas else [f"- {REACH}"]),
            *([f"- {TUMOUR_REACH}"] if "tumour_excess" in pairs[0].cells else []),
        ]
    if verdict := too_many_copies(near, settings["gate"]["honest_cases"]):
        found.append(f"- **Warning**: {verdict}.")
    if overridden:
        first = overridden[0].gate
        found.append(f"- **Warning**: the gate was overridden for {len(overridden)} pairs, the first: {first}.")
    if canvas:
        found.append("- Copies of brains were not looked for: each brain is a canvas's by design.")
    if unseen:
        found.append(f"- **Warning**: {unseen} pairs were not compared with the training cases.")
    return found
