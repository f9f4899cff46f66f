"""The scores of each group: who is compared with whom. Names and texts of the scores stand in `protocols.yaml`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np

from sbldm.evaluation.cohort import Cohort, read_image
from sbldm.evaluation.protocols import MEASURES, REFERENCES, Score
from sbldm.evaluation.settings import Evaluation
from sbldm.metrics import distribution, requests, similarity, slices, tumours
from sbldm.metrics.intervals import Estimate, mean_estimate, middle
from sbldm.run.errors import StateError
from sbldm.run.manifest import MEASURED, REQUESTED, Manifest
from sbldm.run.workers import Workers
from sbldm.tumour.characteristics import NAMES, SHARES

__all__ = [
    "LEAST",
    "beside",
    "chosen",
    "comparable",
    "equal",
    "finite",
    "joined",
    "score_distribution",
    "score_requests",
    "score_seam",
    "score_similarity",
    "score_slices",
    "score_tumours",
]

# Cases on every side.
LEAST = {
    "similarity": 2,
    "distribution": 10,
    "channels": 10,
    "tumours": 5,
    "slices": 5,
    "tissues": 5,
    "seam": 5,
    "copies": 3,
    "requests": 3,
}
FID_LEAST = 1000
NAN = float("nan")
PARTNERS = 10  # held-back cases that each case is compared with in all-pairs SSIM
COMPARED = 30  # cases of a reference whose SSIM is computed, which takes the most time of all scores
DIVERSITY_PAIRS = 50
FIRST = "mmd-laplace"  # the figure to look at before all others


def new_score(
    protocol: str,
    group: str,
    value: Estimate | float,
    floor: Estimate | float,
    n: tuple[int, int],
    floor_n: tuple[int, int],
    **more: Any,
) -> Score:
    value, floor = (x if isinstance(x, Estimate) else Estimate(x, NAN, NAN) for x in (value, floor))
    return Score(protocol, group, *value, n, *floor, floor_n, **more)


def beside(
    protocol: str,
    group: str,
    values: Mapping[str, Estimate | float],
    sizes: Mapping[str, tuple[int, int]],
    **more: Any,
) -> Score:
    """One score of all sides: "synthetic", "floor", and what there is of `REFERENCES`."""
    for side in REFERENCES:
        if side in values:
            value = values[side] if isinstance(values[side], Estimate) else Estimate(values[side], NAN, NAN)
            more |= dict(zip((side, f"{side}_low", f"{side}_high"), value, strict=True)) | {f"{side}_n": sizes[side]}
    return new_score(protocol, group, values["synthetic"], values["floor"], sizes["synthetic"], sizes["floor"], **more)


def chosen(count: int, of: int) -> np.ndarray:
    """A seeded choice of so many of the cases of a list, the same for the floor and for the references."""
    return np.random.default_rng(0).permutation(of)[:count]


# --- similarity -------------------------------------------------------------------------------------------------------


def score_similarity(
    found: Evaluation,
    sides: Mapping[str, Cohort],
    heldout: Cohort,
    pool: Workers,
    spacing: tuple[float, float, float],
) -> Iterator[Score]:
    """PSNR, SSIM and MS-SSIM: the paper's way, inside the brain, and among synthetic images alone."""
    rng, another = np.random.default_rng(0), np.random.default_rng(1)
    synthetic, train = sides["synthetic"], sides["floor"]
    references = {side: c for side, c in sides.items() if side in REFERENCES}
    against_train = {"synthetic": synthetic, "floor": heldout, **references}
    random_pairs = {side: rng.integers(len(train), size=len(against_train[side])) for side in ("synthetic", "floor")}
    random_pairs |= {side: _strangers(another, c, train) for side, c in references.items()}
    in_brain = {side: similarity.psnr(*_squared_errors(c, heldout)) for side, c in sides.items()}
    partners = {
        side: _partners(another if side in references else rng, len(c), len(heldout)) for side, c in sides.items()
    }
    jobs = {}
    for side, c in against_train.items():
        jobs[f"random {side}"] = [(c.place(i), train.place(random_pairs[side][i])) for i in _compared(side, c)]
    for side, c in sides.items():
        rows, nearest = _compared(side, c), in_brain[side].argmax(1)
        jobs[f"all {side}"] = [(c.place(i), heldout.place(j)) for i in rows for j in partners[side][i]]
        jobs[f"nearest {side}"] = [(c.place(i), heldout.place(nearest[i])) for i in rows]
    ssim = _in_processes("SSIM", partial(_ssim, spacing=spacing), jobs, pool)

    voxels = np.prod(similarity.PAPER_FOV_MM) / np.prod(spacing)

    def random_psnr(side: str) -> Estimate:
        errors = _squared_errors(against_train[side], train)[0]
        return mean_estimate(similarity.psnr(errors[np.arange(len(errors)), random_pairs[side]], voxels))

    def score(name: str, of: Mapping[str, Cohort], other: Cohort, mean: Callable[[str], Estimate]) -> Score:
        decibel = name.startswith("psnr")  # of all cases, since they cost little
        n = {side: (len(c) if decibel else len(_compared(side, c)), len(other)) for side, c in of.items()}
        return beside(name, "similarity", {side: mean(side) for side in of}, n, unit="dB" if decibel else "")

    yield score("psnr.random-pair.train", against_train, train, random_psnr)
    yield score("ssim.random-pair.train", against_train, train, lambda s: mean_estimate(ssim[f"random {s}"][:, 1]))
    yield score("psnr.all-pairs.heldout", sides, heldout, lambda s: mean_estimate(in_brain[s].mean(1)))
    of_all = {s: ssim[f"all {s}"][:, 0].reshape(-1, partners[s].shape[1]).mean(1) for s in sides}
    yield score("ssim.all-pairs.heldout", sides, heldout, lambda s: mean_estimate(of_all[s]))
    yield score("psnr.nearest-heldout", sides, heldout, lambda s: mean_estimate(in_brain[s].max(1)))
    yield score("ssim.nearest-heldout", sides, heldout, lambda s: mean_estimate(ssim[f"nearest {s}"][:, 0]))

    if min(read_image(synthetic.place(0)).shape) < similarity.LEAST_SIDE:
        reason = f"MS-SSIM: a side of the grid has fewer than {similarity.LEAST_SIDE} voxels."
        found.left_out.append(("similarity.ms-ssim", reason))
        return
    couples = {
        side: (another if side in references else rng).permutation(len(c))[: 2 * min(DIVERSITY_PAIRS, len(c) // 2)]
        for side, c in sides.items()
    }
    jobs = {side: [(c.place(i), c.place(j)) for i, j in couples[side].reshape(-1, 2)] for side, c in sides.items()}
    diversity = _in_processes("MS-SSIM", _ms_ssim, jobs, pool)
    values = {side: mean_estimate(values[:, 0]) for side, values in diversity.items()}
    yield beside("ms-ssim.diversity", "similarity", values, {side: (len(some),) * 2 for side, some in couples.items()})


def _strangers(rng: np.random.Generator, c: Cohort, train: Cohort) -> np.ndarray:
    """For each case `[N]` a training case of another name, drawn at random."""
    names = np.array(train.names)
    return np.array([rng.choice(np.flatnonzero(names != name)) for name in c.names])


def _compared(side: str, c: Cohort) -> np.ndarray:
    """Which cases of a side SSIM is computed of: of a reference, whose mean needs no more, some."""
    return c.first(COMPARED) if side in REFERENCES else np.arange(len(c))


def _squared_errors(c: Cohort, other: Cohort) -> tuple[np.ndarray, np.ndarray]:
    files = (np.load(cohort.file, mmap_mode="r") for cohort in (c, other))
    return similarity.squared_errors(*files, c.rows, other.rows)


def _partners(rng: np.random.Generator, n: int, of: int) -> np.ndarray:
    """For each of n cases so many different others `[n, PARTNERS]`."""
    return np.stack([rng.permutation(of)[:PARTNERS] for _ in range(n)])


def _ssim(x: np.ndarray, y: np.ndarray, spacing: tuple[float, float, float]) -> tuple[float, float]:
    return similarity.ssim(x, y, spacing)


def _ms_ssim(x: np.ndarray, y: np.ndarray) -> tuple[float]:
    return (similarity.ms_ssim(x, y),)


def _applied(function: Callable, job: tuple[tuple[str, int], tuple[str, int]]) -> tuple[float, ...]:
    return function(*map(read_image, job))


def _in_processes(
    title: str, function: Callable, jobs: dict[str, list[tuple[tuple[str, int], tuple[str, int]]]], pool: Workers
) -> dict[str, np.ndarray]:
    """Apply a function of two images to lists of pairs, given by their places: name -> `[pairs, values]`."""
    tasks = [job for group in jobs.values() for job in group]
    results = pool.map(partial(_applied, function), tasks, title, unit="pair")
    ends = np.cumsum([len(group) for group in jobs.values()])
    return dict(zip(jobs, np.split(np.array(results), ends[:-1]), strict=True))


# --- distribution, tumours, slices ------------------------------------------------------------------------------------


def equal(sides: Mapping[str, Cohort], tumour: bool = False) -> dict[str, np.ndarray]:
    """Seeded choices of equally many cases of each side, as many scores depend on it; of those with a tumour."""
    rows = {
        side: np.flatnonzero(np.isfinite(c.tumours["volume_ml"])) if tumour else np.arange(len(c))
        for side, c in sides.items()
    }
    count = min(len(rows["synthetic"]), len(rows["floor"]))
    return {side: r[chosen(count, len(r))] for side, r in rows.items()}


def score_distribution(found: Evaluation, sides: Mapping[str, Cohort], heldout: Cohort, fid: str) -> Iterator[Score]:
    """Feature vectors: synthetic, and as many training images, against held-back ones."""
    rows = equal(sides)
    n = {side: (len(some), len(heldout)) for side, some in rows.items()}
    planes = list(heldout.features)

    def score(name: str, values: Mapping[str, Estimate | float], **more: Any) -> Score:
        return beside(f"{name}.heldout", "distribution", values, n, **more)

    samples = {side: joined(c, rows[side]) for side, c in sides.items()}
    reference = joined(heldout)
    scale = distribution.Scale.of(joined(sides["floor"]))  # of all training cases
    p = {side: distribution.permutation_p(reference, x, scale) for side, x in samples.items()}
    note = f"permutation p {p['synthetic']:.3f}; of the floor {p['floor']:.3f}"
    yield score(FIRST, {s: distribution.mmd(reference, x, scale) for s, x in samples.items()}, aim="low", note=note)
    for plane in planes if len(planes) > 1 else ():
        x, scale = heldout.features[plane], distribution.Scale.of(sides["floor"].features[plane])
        values = {side: distribution.mmd(x, c.features[plane][rows[side]], scale) for side, c in sides.items()}
        yield score(f"{FIRST}.{plane}", values, aim="low")
    yield score("kid", {side: distribution.kid(reference, x) for side, x in samples.items()}, aim="low")
    for plane in planes if len(planes) > 1 else ():
        x = heldout.features[plane]
        values = {side: distribution.kid(x, c.features[plane][rows[side]]) for side, c in sides.items()}
        yield score(f"kid.{plane}", values, aim="low")
    shares = {side: distribution.prdc(reference, x) for side, x in samples.items()}
    for name in shares["synthetic"]:
        yield score(name, {side: four[name] for side, four in shares.items()})
    enough = min(min(sizes) for sizes in n.values()) >= FID_LEAST
    if fid and (enough or fid == "force"):
        note = "" if enough else f"FLAGGED: with fewer than {FID_LEAST} cases its bias exceeds its value"
        values = {side: distribution.frechet(reference, x) for side, x in samples.items()}
        yield score("fid", values, aim="low", note=note)
    elif fid:
        reason = f"FID: fewer than {FID_LEAST} cases, so its bias would exceed its value (--fid force: all the same)."
        found.left_out.append(("distribution.fid", reason))


def joined(c: Cohort, rows: np.ndarray | slice = slice(None)) -> np.ndarray:
    """Feature vectors `[N, D]`, the planes side by side."""
    return np.concatenate([features[rows] for features in c.features.values()], axis=1)


def score_tumours(found: Evaluation, sides: Mapping[str, Cohort], heldout: Cohort) -> Iterator[Score]:
    """Each tumour measure, and where tumours lie, over cases with a tumour."""
    rows = equal(sides, tumour=True)
    with_tumour = np.isfinite(heldout.tumours["volume_ml"])
    for name in [name for name in heldout.tumours if name not in SHARES.values()]:  # these are tissues' scores
        reference = finite(heldout.tumours[name][with_tumour])
        samples = {side: finite(c.tumours[name][rows[side]]) for side, c in sides.items()}
        samples = comparable(found, "tumours", name, reference, samples)
        compared = {side: tumours.compare(values, reference) for side, values in samples.items()}
        n = {side: (len(values), len(reference)) for side, values in samples.items()}
        for k, kind in enumerate(("w1", "ks") if samples else ()):
            values = {side: both[k] for side, both in compared.items()}
            yield beside(f"{kind}.{name}", "tumours", values, n, aim="low")
    reference = heldout.heat[with_tumour]
    n = {side: (len(some), len(reference)) for side, some in rows.items()}
    values = {side: _place(c.heat[rows[side]], reference) for side, c in sides.items()}
    yield beside("tv.place", "tumours", values, n, aim="low")
    for c in (sides["synthetic"], sides["floor"], heldout):
        found.arrays[f"heat.{c.role}"] = c.heat.mean(0)
        for name, measured in c.tumours.items():
            if np.nanmax(heldout.tumours[name]) > np.nanmin(heldout.tumours[name]):
                found.arrays[f"tumours.{name}.{c.role}"] = measured
    drawn = {n: v for n, v in sides["synthetic"].tumours.items() if n in (*NAMES, *SHARES.values())}
    for k, row in enumerate(found.pairs):
        row |= {MEASURED + name: round(float(values[k]), 3) for name, values in drawn.items()}


def _place(heat: np.ndarray, reference: np.ndarray, draws: int = 200) -> Estimate:
    """Total variation of two mean maps, with the spread of half-samples around it (which are farther apart)."""
    value = tumours.heat_distance(heat.mean(0), reference.mean(0))
    rng = np.random.default_rng(0)

    def half(maps: np.ndarray) -> np.ndarray:
        return maps[rng.permutation(len(maps))[: -(-len(maps) // 2)]].mean(0, dtype=np.float32)

    drawn = np.array([tumours.heat_distance(half(heat), half(reference)) for _ in range(draws)])
    low, high = middle(drawn - drawn.mean())
    return Estimate(value, max(0.0, value + low), min(1.0, value + high))


def comparable(
    found: Evaluation, group: str, name: str, reference: np.ndarray, samples: dict[str, np.ndarray], words: str = ""
) -> dict[str, np.ndarray]:
    """The sides whose measure can be compared; none where that of the pairs cannot, and a sentence says why not."""
    known = {side: values for side, values in samples.items() if len(values) >= LEAST[group]}
    if len(reference) < LEAST[group] or not {"synthetic", "floor"} <= known.keys():
        reason = f"fewer than {LEAST[group]} cases on one side have one."
    elif not np.ptp(reference):
        reason = "the same in all held-back cases."
    else:
        return known
    found.left_out.append((f"{group}.{name}", f"{words or MEASURES[name]}: {reason}"))
    return {}


def finite(values: np.ndarray) -> np.ndarray:
    """Without what a case does not have."""
    return values[np.isfinite(values)]


def score_slices(found: Evaluation, sides: Mapping[str, Cohort], heldout: Cohort) -> Iterator[Score]:
    """Consistency from slice to slice."""
    measured = {side: c.slices for side, c in sides.items()}
    yield from _effects(found, "slices", "{}.effect", measured, heldout.slices, equal(sides))
    for c in (sides["synthetic"], sides["floor"], heldout):
        found.arrays[f"curves.{c.role}"] = c.curves
        for name, measured in c.slices.items():
            found.arrays[f"slices.{name}.{c.role}"] = measured


def score_seam(found: Evaluation, sides: Mapping[str, Cohort], heldout: Cohort) -> Iterator[Score]:
    """How what was drawn fits into its brain, over cases with a tumour."""
    measured, rows = {side: c.seams for side, c in sides.items()}, equal(sides, tumour=True)
    yield from _effects(found, "seam", "seam.{}", measured, heldout.seams, rows)
    for c in (sides["synthetic"], sides["floor"], heldout):
        for name, values in c.seams.items():
            found.arrays[f"seam.{name}.{c.role}"] = values


def _effects(
    found: Evaluation,
    group: str,
    title: str,
    sides: Mapping[str, Mapping[str, np.ndarray]],
    heldout: Mapping[str, np.ndarray],
    rows: Mapping[str, np.ndarray],
) -> Iterator[Score]:
    """Measures that have no good value of their own, in SD of the held-back cases from their mean."""
    for name in heldout:
        reference = finite(heldout[name])
        samples = {side: finite(measures[name][rows[side]]) for side, measures in sides.items()}
        if not (samples := comparable(found, group, name, reference, samples)):
            continue
        values = {side: slices.effect_size(x, reference) for side, x in samples.items()}
        n = {side: (len(x), len(reference)) for side, x in samples.items()}
        note = f"mean {samples['synthetic'].mean():.3g}, held-back {reference.mean():.3g}"
        yield beside(title.format(name), group, values, n, note=note)


def score_requests(found: Evaluation, synthetic: Cohort, manifest: Manifest | None) -> None:
    """Requests against what was drawn; those inside the training range and those beyond it apart."""
    if manifest is None:
        found.left_out.append(("requests", "there is no manifest.csv that says what was asked for."))
        return
    try:
        pairs, drawn = {pair.name: pair for pair in manifest.pairs}, manifest.drawn
        if not any(pair.requested for pair in manifest.pairs):
            found.left_out.append(("requests", "these pairs were made without requests."))
            return
        names = (*NAMES, *(n for n in manifest.followed(SHARES.values()) if n in synthetic.tumours))
        requested_of = dict(zip(pairs, manifest.values(REQUESTED, names), strict=True))
        # On a canvas the labels may hold another tumour too: what was measured when it was drawn counts.
        on_canvases = any(pair.canvas for pair in manifest.pairs)
        measured_of = dict(zip(pairs, manifest.values(MEASURED, names), strict=True)) if on_canvases else {}
    except StateError as error:
        found.left_out.append(("requests", str(error)))
        return
    if not pairs.keys() & set(synthetic.names):
        found.left_out.append(("requests", f"{manifest.file}: names none of the pairs."))
        return
    own = np.column_stack([synthetic.characteristics, *(synthetic.tumours[name] for name in names[len(NAMES) :])])
    measurable = np.isfinite(own).all(axis=1)
    known = [k for k, name in enumerate(synthetic.names) if name in pairs and measurable[k]]
    asked = {k: pairs[synthetic.names[k]] for k in known}
    for k, pair in asked.items():
        found.pairs[k] |= {REQUESTED + name: pair.requested[name] for name in names}
        found.pairs[k] |= {"extrapolated": pair.extrapolated, "redrawn": pair.redrawn}
    if drawn is not None:
        found.remarks.append(f"{drawn} pairs were drawn and {len(pairs)} accepted ({100 * len(pairs) / drawn:.0f} %).")
    if given_up := len(manifest.given_up):
        found.remarks.append(f"{given_up} more requests were never met and given up: the scores know the others.")
    for part, beyond in (("", False), (".extrapolated", True)):
        chosen = [k for k in known if bool(asked[k].extrapolated) == beyond]
        if len(chosen) < LEAST["requests"]:
            if chosen:
                few = f"{len(chosen)} pair(s) with a request {'beyond' if beyond else 'within'} the training range"
                found.left_out.append((f"requests{part}", f"{few}; {LEAST['requests']} are the least."))
            continue
        requested = np.array([requested_of[synthetic.names[k]] for k in chosen])
        measured = np.array([measured_of.get(synthetic.names[k], own[k]) for k in chosen])
        found.arrays |= {f"requested{part}": requested, f"measured{part}": measured}
        control, n = requests.shuffled(requested, measured, names), (len(chosen), len(chosen))
        for key, value in requests.fidelity(requested, measured, names).items():
            name, _, kind = key.rpartition("_")
            followed = kind in ("slope", "spearman")
            protocol = f"{kind}.{name}{part}" if followed else f"request.{key}{part}"
            more = {"aim": "high" if followed or kind == "iou" else "low", "unit": "mm" if kind == "mm" else ""}
            found.scores.append(
                new_score(protocol, "requests", value, NAN if kind == "bias" else control.get(key, NAN), n, n, **more)
            )
        if not (spread := requests.spread(requested, measured)):
            if not part:
                found.left_out.append(("requests.control", "Control collapse: no request was drawn three times."))
            continue
        many = (int(spread["pairs"]), int(spread["groups"]))
        note = (
            f"SD of ln V {spread['volume_sd']:.2f}, of the centre {spread['centre_sd_mm']:.1f} mm; {many[1]} requests"
        )
        for key in ("volume_share", "centre_share"):
            found.scores.append(new_score(f"control.{key}{part}", "requests", spread[key], NAN, many, n, note=note))
