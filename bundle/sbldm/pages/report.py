"""The page to show to colleagues: what an evaluation found (`findings`), in one HTML file with everything inside."""

from __future__ import annotations

import contextlib
import hashlib
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import numpy as np
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

from sbldm.cases.lists import LISTS_FILE, read_lists
from sbldm.evaluation.findings import (
    CENTRE_LIMITS,
    LARGE_DSC,
    LARGE_SD,
    LARGE_SHARE,
    LARGE_TAIL,
    VOLUME_LIMITS,
    group_of,
    numbers_of,
    sentence,
    summarise,
    without_folders,
)
from sbldm.evaluation.protocols import REFERENCES, Score, protocol
from sbldm.evaluation.written import EVALUATE_AGAIN, GROUPS, read_evaluation, read_scores
from sbldm.pages.datasheet import SHEET_AGAIN
from sbldm.pages.pictures import photograph, pictures_of, plots_of
from sbldm.pages.table1 import report_rows
from sbldm.run.errors import StateError
from sbldm.run.files import atomic_path, read_rows, read_text, sha256
from sbldm.run.folder import Run
from sbldm.run.manifest import Manifest, PairRecord
from sbldm.run.text import number
from sbldm.training.checkpoints import load_checkpoint, read_history

__all__ = ["write_report"]

PAIRS_LISTED = 6
PAIR_COLUMNS = {
    "pair": "pair",
    "nearest_case": "nearest training case",
    "nearest_channel": "channel",
    "nearest_correlation": "correlation",
    "nearest_excess": "beyond the next five",
    "nearest_tumour": "nearest training tumour",
    "tumour_dsc": "DSC, centred",
    "tumour_excess": "beyond the next five",
    "mask_dsc": "DSC in place",
    "feature_ratio": "distance ratio",
}
NEARNESS = ("nearest_excess", "tumour_excess", "nearest_correlation")  # the first that is known orders the pairs
STAGES = {"autoencoder": "Autoencoder", "diffusion": "Latent diffusion", "gan": "Generator and discriminator"}
MANIFEST_TERMS = {
    "sampler": "Sampler",
    "steps": "Steps",
    "eta": "Eta",
    "guidance": "Guidance",
    "gate": "What the gate said of the pairs",
    "checkpoint_sha256": "Checkpoint of the generator (SHA-256)",
}


# --- tables -----------------------------------------------------------------------------------------------------------


class _Reading(NamedTuple):
    """How a score stands to its floor: in words, and whether that is a reason to look."""

    words: str
    stands_out: bool


def _reading(score: Score) -> _Reading:
    """As `Score.reading`; where the floor has no interval, it is what was expected."""
    if score.verdict:
        return _Reading(score.reading, score.verdict in ("worse", "higher", "lower", "beyond real"))
    if not np.isfinite([score.low, score.high, score.floor]).all():
        return _Reading("", False)
    if score.protocol.startswith("request.volume_bias"):  # which shuffling does not change
        words = "none" if score.low <= 0 <= score.high else "too large" if score.low > 0 else "too small"
        return _Reading(words, words != "none")
    above, below = score.low > score.floor, score.high < score.floor
    if score.group == "requests":
        better = above if score.aim == "high" else below
        return _Reading("better than shuffled" if better else "no better than shuffled", not better)
    return _Reading("more than expected" if above else "less than expected" if below else "as expected", above or below)


def _strip(score: Score) -> dict[str, float] | None:
    """Where value, floor, their intervals and the references lie on a strip from 0 to 100."""
    names = ("value", "low", "high", "floor", "floor_low", "floor_high", *REFERENCES)
    places = {name: getattr(score, name) for name in names}
    if not np.isfinite([score.floor_low, score.floor_high]).all():  # one side of a floor can be boundless
        del places["floor_low"], places["floor_high"]
    known = [v for v in places.values() if math.isfinite(v)]
    if not np.isfinite([score.low, score.high, score.floor]).all() or min(known) == max(known):
        return None
    scale = 92 / (max(known) - min(known))
    return {name: round(4 + (v - min(known)) * scale, 2) for name, v in places.items() if math.isfinite(v)}


def _row(score: Score) -> dict[str, Any]:
    """One score as the template shows it."""
    described = {"title": protocol(score.protocol)["title"], "protocol": score.protocol, "note": score.note}
    return described | numbers_of(score) | {"reading": _reading(score), "strip": _strip(score)}


def _protocols(scores: Sequence[Score]) -> list[dict[str, Any]]:
    """Each text once, with the names and titles of the scores that follow it."""
    found: dict[str, list[dict[str, str]]] = {}
    for score in scores:
        described = protocol(score.protocol)
        found.setdefault(described["text"], []).append({"name": score.protocol, "title": described["title"]})
    return [{"text": text, "scores": entries} for text, entries in found.items()]


def _nearest_pairs(out: Path) -> dict[str, Any] | None:
    """The pairs nearest to a training case, of real brains by their tumours, as numbers."""
    if not (out / "pairs.csv").is_file():
        return None
    rows = read_rows(out / "pairs.csv", {"pair": str}, EVALUATE_AGAIN, remove=False)
    order = next((key for key in NEARNESS if any(row.get(key) for row in rows)), None)
    if order is None:
        return None
    rows = sorted((row for row in rows if row.get(order)), key=lambda row: -float(row[order]))
    columns = {key: heading for key, heading in PAIR_COLUMNS.items() if key in rows[0]}
    names = ("pair", "nearest_case", "nearest_channel", "nearest_tumour")
    return {
        "headings": list(columns.values()),
        "numeric": [key not in names for key in columns],
        "rows": [
            [row[key] if key in names or not row[key] else f"{float(row[key]):.3f}" for key in columns]
            for row in rows[:PAIRS_LISTED]
        ],
        "of": len(rows),
    }


def _plain(value: Any) -> str:
    """A setting in words."""
    if isinstance(value, dict):
        value = [f"{name} {_plain(part)}" for name, part in value.items()]
    return ", ".join(map(_plain, value)) if isinstance(value, list) else without_folders(str(value))


def _costs(run: Run | None, pairs: Sequence[PairRecord], minutes: float | None) -> dict[str, Any]:
    """What each step has taken, as far as it is known."""
    seconds = [pair.seconds for pair in pairs if pair.seconds is not None]
    redrawn = [pair.redrawn for pair in pairs if pair.redrawn is not None]
    found: dict[str, Any] = {"minutes": minutes, "stages": []}
    if seconds:
        found["seconds"] = {"median": number(float(np.median(seconds))), "n": len(seconds)}
    if redrawn:
        found["drawn"] = {"all": len(redrawn) + sum(redrawn), "accepted": len(redrawn)}
    if run is not None:
        stages = ((title, _stage(run, stage)) for stage, title in STAGES.items())
        found["stages"] = [{"title": title} | stage for title, stage in stages if stage]
        drawers = ("regions",) if pairs and pairs[0].canvas else ("diffusion", "gan")
        made = [run.checkpoint(stage) for stage in drawers if run.checkpoint(stage).is_file()]
        drawn_by = {pair.checkpoint for pair in pairs}
        found["other_checkpoint"] = any(drawn_by) and bool(made) and drawn_by != {sha256(made[0])}
    return found


def _stage(run: Run, stage: str) -> dict[str, str]:
    """Iterations, time and parameters of one stage of training; only what its files say."""
    folder, found = run.folder / stage, {}
    if history := read_history(run, stage):
        found["iterations"] = f"{int(history[-1]['iteration']):,}"
    if hours := _hours(folder / "tensorboard"):
        found["time"] = f"{hours:.1f} h" if hours >= 2 else f"{60 * hours:.0f} min"
    if run.checkpoint(stage).is_file():
        content = load_checkpoint(run.checkpoint(stage), stage)
        found["parameters"] = f"{sum(value.numel() for value in content['network'].values()):,}"
    return found


def _hours(logs: Path) -> float:
    """Hours in which a training wrote its logs: of each session from the first entry to the last, overlaps once."""
    spans = []
    for path in logs.glob("events.out.tfevents.*"):
        times: list[float] = []
        with contextlib.suppress(Exception):  # of a damaged log, what can be read before the damage
            times.extend(event.wall_time for event in EventFileLoader(str(path)).Load())
        if times:
            spans.append((min(times), max(times)))
    total, end = 0.0, -math.inf
    for first, last in sorted(spans):
        total += max(0.0, last - max(first, end))
        end = max(end, last)
    return total / 3600


def _table1(run: Run | None) -> dict[str, Any] | None:
    """The Table 1 in the run folder, its picture inlined; None where there is none."""
    found = report_rows(run) if run is not None else None
    if found and found["picture"]:
        found["picture"] = photograph(found["picture"])
    return found


def _provenance(content: Mapping[str, Any], manifest: Manifest) -> list[tuple[str, str]]:
    """Terms and values: how the evaluation was made, and how the pairs were."""
    provenance = content["provenance"]
    spacing = " x ".join(f"{s:g}" for s in provenance.get("spacing_mm", ()))
    versions = ", ".join(f"{name} {version}" for name, version in provenance.get("versions", {}).items())
    pairs = manifest.readable
    seeds = sorted({pair.seed for pair in pairs if pair.seed is not None})
    found = {
        "Run": provenance.get("run", ""),
        "Channel looked at": provenance.get("first_channel", ""),
        "All channels": ", ".join(provenance.get("channels", ())),
        "Grid of the evaluation": f"{spacing} mm" if spacing else "",
        "Features": provenance.get("features", ""),
        "Versions": versions,
        "Seeds of the pairs": f"{seeds[0]} to {seeds[-1]}" if seeds else "",
    }
    for key, term in MANIFEST_TERMS.items():
        counts = Counter(pair.cells[key].partition(":")[0] for pair in pairs if pair.cells.get(key))
        found[term] = ", ".join(counts if len(counts) == 1 else (f"{value} ({n} pairs)" for value, n in counts.items()))
    if manifest.has_settings:
        settings = {key: _plain(value) for key, value in manifest.settings.items()}
        found |= {f"Synthesis, {key.replace('_', ' ')}": value for key, value in settings.items()}
    return [(term, value) for term, value in found.items() if value]


def _lists(run: Run | None, contents: Mapping[str, Sequence[str]]) -> list[dict[str, Any]]:
    """Cases by role: the hash of their list, and their names where the run knows them."""
    titles = {"synthetic": "Synthetic pairs", "train": "Training cases", "heldout": "Held-back cases"}
    titles |= {kind: words.capitalize() for kind, words in REFERENCES.items()}
    names: dict[str, list[str]] = {}
    if run is not None and (run.folder / LISTS_FILE).is_file():
        held = read_lists(run.folder)
        names = {"train": held["train"], "heldout": held["validation"]}
    return [
        {
            "title": titles[role],
            "n": len(hashes),
            "sha256": hashlib.sha256("\n".join(sorted(hashes)).encode()).hexdigest(),
            "names": names.get(role, []),
        }
        for role, hashes in contents.items()
    ]


def _licence(dataset: Path, provenance: Mapping[str, Any]) -> str:
    """The licence note of the datasheet, or of the provenance."""
    sheet = dataset / "datasheet.md"
    text = read_text(sheet, SHEET_AGAIN) if sheet.is_file() else ""
    _, _, part = text.partition("## Licence note\n")
    lines = [line.removeprefix("- ").strip() for line in part.partition("\n## ")[0].splitlines()]
    return " ".join(filter(None, lines)) or provenance.get("licence", "")


# --- the page ---------------------------------------------------------------------------------------------------------


def write_report(out: Path, run: Run | None) -> Path:
    """Write `report.html` into the folder of an evaluation: one file that needs no other and no network.

    Figures that are missing and pictures that are out of date are drawn into `figures` first. A picture of a dataset
    that repeats or may hold real cases is left out, and the page says so.

    Args:
        out: folder with `evaluation.json` (and `pairs.csv`, `arrays.npz`).
        run: whose costs, sweeps, other datasets and case lists are shown; None leaves them out.

    Returns:
        The file.

    Raises:
        StateError: the folder holds no evaluation.
        OutputError: a file cannot be written.
    """
    out = Path(out)
    if not (out / "evaluation.json").is_file():
        raise StateError(f"{out}: holds no evaluation; evaluate first: sbldm evaluate.")
    content = read_evaluation(out)
    scores, provenance = read_scores(out), content["provenance"]
    by_group = {group: [score for score in scores if score.group == group] for group in GROUPS}
    left_out = [(key, sentence(why)) for key, why in content["left_out"]]
    *findings, advice = summarise(content)
    pictures, not_shown = pictures_of(out, run, provenance)
    manifest = Manifest(out / provenance.get("dataset", "missing"))
    page = _template().render(
        name=provenance.get("synthetic", out.name),
        made=provenance.get("made", ""),
        cases=provenance.get("cases", {}),
        channels=[name.upper() for name in provenance.get("channels", ())],
        advice=advice,
        findings=findings,
        groups=GROUPS,
        reference_words=REFERENCES,
        sections={
            group: {
                "rows": [_row(score) for score in by_group[group]],
                "references": [k for k in REFERENCES if any(math.isfinite(s.side(k).value) for s in by_group[group])],
                "left_out": [why for key, why in left_out if group_of(key) == group],
            }
            for group in GROUPS
        },
        plots=plots_of(out, [group for group, found in by_group.items() if found]),
        pictures=pictures,
        not_shown=not_shown,
        nearest=_nearest_pairs(out),
        costs=_costs(run, manifest.readable, provenance.get("minutes")),
        table1=_table1(run),
        table2=run is not None and (run.table2 / "table2.md").is_file(),
        protocols=_protocols([score for found in by_group.values() for score in found]),
        provenance=_provenance(content, manifest),
        lists=_lists(run, provenance.get("contents", {}) | provenance.get("references", {})),
        remarks=[sentence(remark) for remark in content["remarks"]],
        left_out=left_out,
        licence=_licence(manifest.dataset, provenance),
        limits={
            "sd": LARGE_SD,
            "share": LARGE_SHARE,
            "dsc": LARGE_DSC,
            "tail": LARGE_TAIL,
            "volume": VOLUME_LIMITS,
            "centre": CENTRE_LIMITS,
        },
    )
    path = out / "report.html"
    with atomic_path(path) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return path


def _template() -> jinja2.Template:
    folder = jinja2.FileSystemLoader(Path(__file__).parent)
    environment = jinja2.Environment(
        loader=folder, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template("report.html.j2")
