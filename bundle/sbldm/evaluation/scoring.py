"""The scores of each group: who is compared with whom. Names and texts of the scores stand in `protocols.yaml`."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.spatial.distance import cdist

from sbldm.errors import DataError, StateError
from sbldm.evaluation import copies, distribution, fit, requests, similarity, slices, tumours
from sbldm.evaluation.cohort import Cohort, read_image
from sbldm.evaluation.disguises import DISGUISES
from sbldm.evaluation.protocols import MEASURES, Estimate, Score, mean_estimate
from sbldm.manifest import read_given_up
from sbldm.run.workers import Workers
from sbldm.tumour.characteristics import NAMES

if TYPE_CHECKING:
    from sbldm.evaluation.evaluate import Evaluation, Settings

__all__ = [
    "LEAST",
    "score_copies",
    "score_distribution",
    "score_fit",
    "score_requests",
    "score_similarity",
    "score_slices",
    "score_tumours",
]

# Cases on every side.
LEAST = {"similarity": 2, "distribution": 10, "tumours": 5, "slices": 5, "copies": 3, "requests": 3}
LEAST_HELDOUT = 5  # for floors of the copies; their count itself needs none
PLANTED = 20
FID_LEAST = 1000
NAN = float("nan")
PARTNERS = 10  # held-back cases that each case is compared with in all-pairs SSIM
DIVERSITY_PAIRS = 50
WORST = 6  # pairs shown
QUANTILES = {"1st percentile": 0.01, "5th percentile": 0.05}


def _score(
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


# --- similarity -------------------------------------------------------------------------------------------------------


def score_similarity(
    found: Evaluation,
    synthetic: Cohort,
    train: Cohort,
    heldout: Cohort,
    pool: Workers,
    spacing: tuple[float, float, float],
) -> Iterator[Score]:
    """PSNR, SSIM and MS-SSIM: the paper's way, inside the brain, and among synthetic images alone."""
    rng = np.random.default_rng(0)
    random_pairs = {
        "synthetic": rng.integers(len(train), size=len(synthetic)),
        "heldout": rng.integers(len(train), size=len(heldout)),
    }
    squares = {c.role: _squared_errors(c, heldout) for c in (synthetic, train)}
    in_brain = {role: similarity.psnr(*found) for role, found in squares.items()}
    partners = {c.role: _partners(rng, len(c), len(heldout)) for c in (synthetic, train)}
    jobs = {}
    for c in (synthetic, heldout):
        jobs[f"random {c.role}"] = [(c.place(i), train.place(j)) for i, j in enumerate(random_pairs[c.role])]
    for c in (synthetic, train):
        places = [[heldout.place(j) for j in row] for row in partners[c.role]]
        jobs[f"all {c.role}"] = [(c.place(i), place) for i, row in enumerate(places) for place in row]
        nearest = in_brain[c.role].argmax(1)
        jobs[f"nearest {c.role}"] = [(c.place(i), heldout.place(j)) for i, j in enumerate(nearest)]
    ssim = _in_processes("SSIM", partial(_ssim, spacing=spacing), jobs, pool)

    voxels = np.prod(similarity.PAPER_FOV_MM) / np.prod(spacing)

    def random_psnr(c: Cohort, others: np.ndarray) -> np.ndarray:
        return similarity.psnr(_squared_errors(c, train)[0][np.arange(len(c)), others], voxels)

    n, floor_n = (len(synthetic), len(train)), (len(heldout), len(train))
    values = [mean_estimate(random_psnr(c, random_pairs[c.role])) for c in (synthetic, heldout)]
    yield _score("psnr.random-pair.train", "similarity", *values, n, floor_n, unit="dB")
    values = [mean_estimate(ssim[f"random {role}"][:, 1]) for role in ("synthetic", "heldout")]
    yield _score("ssim.random-pair.train", "similarity", *values, n, floor_n)

    n, floor_n = (len(synthetic), len(heldout)), (len(train), len(heldout))
    values = [mean_estimate(in_brain[c.role].mean(1)) for c in (synthetic, train)]
    yield _score("psnr.all-pairs.heldout", "similarity", *values, n, floor_n, unit="dB")
    values = [mean_estimate(ssim[f"all {c.role}"][:, 0].reshape(len(c), -1).mean(1)) for c in (synthetic, train)]
    yield _score("ssim.all-pairs.heldout", "similarity", *values, n, floor_n)
    values = [mean_estimate(in_brain[c.role].max(1)) for c in (synthetic, train)]
    yield _score("psnr.nearest-heldout", "similarity", *values, n, floor_n, unit="dB")
    values = [mean_estimate(ssim[f"nearest {c.role}"][:, 0]) for c in (synthetic, train)]
    yield _score("ssim.nearest-heldout", "similarity", *values, n, floor_n)

    if min(read_image(synthetic.place(0)).shape) < similarity.LEAST_SIDE:
        reason = f"MS-SSIM: a side of the grid has fewer than {similarity.LEAST_SIDE} voxels."
        found.left_out.append(("similarity.ms-ssim", reason))
        return
    couples = {c.role: rng.permutation(len(c))[: 2 * min(DIVERSITY_PAIRS, len(c) // 2)] for c in (synthetic, train)}
    jobs = {c.role: [(c.place(i), c.place(j)) for i, j in couples[c.role].reshape(-1, 2)] for c in (synthetic, train)}
    diversity = _in_processes("MS-SSIM", _ms_ssim, jobs, pool)
    values = [mean_estimate(diversity[role][:, 0]) for role in ("synthetic", "train")]
    sizes = [(len(couples[role]),) * 2 for role in ("synthetic", "train")]
    yield _score("ms-ssim.diversity", "similarity", *values, *sizes)


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


def _compared(function: Callable, job: tuple[tuple[str, int], tuple[str, int]]) -> tuple[float, ...]:
    return function(*map(read_image, job))


def _in_processes(
    title: str, function: Callable, jobs: dict[str, list[tuple[tuple[str, int], tuple[str, int]]]], pool: Workers
) -> dict[str, np.ndarray]:
    """Apply a function of two images to lists of pairs, given by their places: name -> `[pairs, values]`."""
    tasks = [job for group in jobs.values() for job in group]
    results = pool.map(partial(_compared, function), tasks, title, unit="pair")
    ends = np.cumsum([len(group) for group in jobs.values()])
    return dict(zip(jobs, np.split(np.array(results), ends[:-1]), strict=True))


# --- distribution, tumours, slices ------------------------------------------------------------------------------------


def _equal(*cohorts: Cohort, tumour: bool = False) -> list[np.ndarray]:
    """Seeded choices of equally many cases of each, as many scores depend on the number; of those with a tumour."""
    rows = [np.flatnonzero(np.isfinite(c.tumours["volume_ml"])) if tumour else np.arange(len(c)) for c in cohorts]
    count = min(map(len, rows))
    return [np.random.default_rng(0).permutation(r)[:count] for r in rows]


def score_distribution(
    found: Evaluation, synthetic: Cohort, train: Cohort, heldout: Cohort, fid: str
) -> Iterator[Score]:
    """Feature vectors: synthetic, and as many training images, against held-back ones."""
    some, others = _equal(synthetic, train)
    n, floor_n = (len(some), len(heldout)), (len(others), len(heldout))
    planes = list(heldout.features)

    def joined(c: Cohort, rows: np.ndarray | slice = slice(None)) -> np.ndarray:
        return np.concatenate([c.features[plane][rows] for plane in planes], axis=1)

    reference, sample, real = joined(heldout), joined(synthetic, some), joined(train, others)
    values = [distribution.kid(reference, x) for x in (sample, real)]
    yield _score("kid.heldout", "distribution", *values, n, floor_n, aim="low")
    if len(planes) > 1:
        for plane in planes:
            x, y, z = (
                c.features[plane][rows] for c, rows in ((heldout, slice(None)), (synthetic, some), (train, others))
            )
            values = [distribution.kid(x, y), distribution.kid(x, z)]
            yield _score(f"kid.{plane}.heldout", "distribution", *values, n, floor_n, aim="low")
    (value, p), (floor, floor_p) = (distribution.mmd(reference, x) for x in (sample, real))
    note = f"permutation p {p:.3f}; of the floor {floor_p:.3f}"
    yield _score("mmd.heldout", "distribution", value, floor, n, floor_n, aim="low", note=note)
    quality, best = (distribution.prdc(reference, x) for x in (sample, real))
    for name in quality:
        yield _score(f"{name}.heldout", "distribution", quality[name], best[name], n, floor_n)
    enough = min(*n, *floor_n) >= FID_LEAST
    if fid and (enough or fid == "force"):
        values = [distribution.frechet(reference, x) for x in (sample, real)]
        note = "" if enough else f"FLAGGED: with fewer than {FID_LEAST} cases its bias exceeds its value"
        yield _score("fid.heldout", "distribution", *values, n, floor_n, aim="low", note=note)
    elif fid:
        reason = f"FID: fewer than {FID_LEAST} cases, so its bias would exceed its value; FID=force gives it, flagged."
        found.left_out.append(("distribution.fid", reason))


def score_tumours(found: Evaluation, synthetic: Cohort, train: Cohort, heldout: Cohort) -> Iterator[Score]:
    """Each tumour measure, and where tumours lie, over cases with a tumour."""
    some, others = _equal(synthetic, train, tumour=True)
    with_tumour = np.isfinite(heldout.tumours["volume_ml"])
    for name in heldout.tumours:
        reference, sample, real = _finite(
            heldout.tumours[name][with_tumour], synthetic.tumours[name][some], train.tumours[name][others]
        )
        if not _comparable(found, "tumours", name, reference, sample, real):
            continue
        values, floors = tumours.compare(sample, reference), tumours.compare(real, reference)
        n, floor_n = (len(sample), len(reference)), (len(real), len(reference))
        for kind, value, floor in zip(("w1", "ks"), values, floors, strict=True):
            yield _score(f"{kind}.{name}", "tumours", value, floor, n, floor_n, aim="low")
    reference = heldout.heat[with_tumour]
    n, floor_n = (len(some), len(reference)), (len(others), len(reference))
    values = [_place(c.heat[rows], reference) for c, rows in ((synthetic, some), (train, others))]
    yield _score("tv.place", "tumours", *values, n, floor_n, aim="low")
    for c in (synthetic, train, heldout):
        found.arrays[f"heat.{c.role}"] = c.heat.mean(0)
        for name, measured in c.tumours.items():
            if np.nanmax(heldout.tumours[name]) > np.nanmin(heldout.tumours[name]):
                found.arrays[f"tumours.{name}.{c.role}"] = measured
    for row, measured in zip(found.pairs, synthetic.characteristics, strict=True):
        row |= {f"measured_{name}": round(float(v), 3) for name, v in zip(NAMES, measured, strict=True)}


def _place(heat: np.ndarray, reference: np.ndarray, draws: int = 200) -> Estimate:
    """Total variation of two mean maps, with the spread of half-samples around it (which are farther apart)."""
    value = tumours.heat_distance(heat.mean(0), reference.mean(0))
    rng = np.random.default_rng(0)

    def half(maps: np.ndarray) -> np.ndarray:
        return maps[rng.permutation(len(maps))[: -(-len(maps) // 2)]].mean(0, dtype=np.float32)

    drawn = np.array([tumours.heat_distance(half(heat), half(reference)) for _ in range(draws)])
    low, high = np.quantile(drawn - drawn.mean(), [0.025, 0.975])
    return Estimate(value, max(0.0, value + low), min(1.0, value + high))


def _comparable(found: Evaluation, group: str, name: str, reference: np.ndarray, *others: np.ndarray) -> bool:
    """Whether a measure can be compared; a sentence says why not."""
    if min(map(len, (reference, *others))) < LEAST[group]:
        reason = f"fewer than {LEAST[group]} cases on one side have one."
    elif not np.ptp(reference):
        reason = "the same in all held-back cases."
    else:
        return True
    found.left_out.append((f"{group}.{name}", f"{MEASURES[name]}: {reason}"))
    return False


def _finite(*columns: np.ndarray) -> list[np.ndarray]:
    """Each without what a case does not have."""
    return [column[np.isfinite(column)] for column in columns]


def score_slices(found: Evaluation, synthetic: Cohort, train: Cohort, heldout: Cohort) -> Iterator[Score]:
    """Consistency from slice to slice."""
    some, others = _equal(synthetic, train)
    for name in heldout.slices:
        x, y, z = _finite(heldout.slices[name], synthetic.slices[name][some], train.slices[name][others])
        if not _comparable(found, "slices", name, x, y, z):
            continue
        values = [slices.effect_size(v, x) for v in (y, z)]
        note = f"mean {y.mean():.3g}, held-back {x.mean():.3g}"
        yield _score(f"{name}.effect", "slices", *values, (len(y), len(x)), (len(z), len(x)), note=note)
    for c in (synthetic, train, heldout):
        found.arrays[f"curves.{c.role}"] = c.curves
        for name, measured in c.slices.items():
            found.arrays[f"slices.{name}.{c.role}"] = measured


# --- requests, copies, fit --------------------------------------------------------------------------------------------


def score_copies(found: Evaluation, synthetic: Cohort, train: Cohort, heldout: Cohort) -> Iterator[Score]:
    """Nearest training cases in image, mask and features, each against what held-back cases have."""
    by_name = dict(zip(train.names, train.fingerprints, strict=True))
    memory = copies.Memory.build(by_name, dict(zip(heldout.names, heldout.fingerprints, strict=True)))
    found.remarks.append(f"Copies: limits set by {memory.calibration}. {copies.REACH}")
    nearest = [memory.nearest(fingerprint) for fingerprint in synthetic.fingerprints]
    excess = np.array([n.excess for n in nearest])
    n, floor_n = (len(synthetic), len(train)), (memory.honest, len(train))
    floors = {"near": copies.near_floor(len(synthetic), memory.honest), "sure": copies.SURE}
    for name, limit in (("near", memory.near), ("sure", memory.copy)):
        count, rate = copies.copy_rate(excess, limit)
        note = f"{count} pairs beyond an excess of r = {limit:.3f}"
        yield _score(f"copies.{name}", "copies", rate, floors[name], n, floor_n, aim="low", note=note)
    planted = {kind: [memory.nearest(print_).excess for print_ in prints] for kind, prints in _planted(train).items()}
    told = [f"{kind} {sum(e > memory.copy for e in found)} of {len(found)}" for kind, found in planted.items()]
    _, rate = copies.copy_rate(np.concatenate(list(planted.values())), memory.copy)
    of = (sum(map(len, planted.values())), len(train))
    yield _score("copies.planted", "copies", rate, 1.0, of, (0, 0), aim="high", note="; ".join(told))

    worst = np.argsort(-excess)[:WORST]
    found.arrays |= {
        "copies.excess.synthetic": excess,
        "copies.excess.heldout": memory.heldout_excess,
        "copies.limits": np.array([memory.near, memory.copy]),
        "copies.worst": worst,
        "copies.differences": np.stack(
            [
                copies.aligned(synthetic.fingerprints[k], by_name[nearest[k].name]) - by_name[nearest[k].name]
                for k in worst
            ]
        ),
    }
    for pair, near in zip(found.pairs, nearest, strict=True):
        pair |= {"nearest_case": near.name, "nearest_correlation": round(near.correlation, 4)}
        pair |= {"nearest_excess": round(near.excess, 4)}
    yield from _copied_masks(found, synthetic, train, heldout)
    if len(heldout) < LEAST_HELDOUT:
        few = f"{len(heldout)} held-back case(s); {LEAST_HELDOUT} are the least"
        found.left_out.append(("copies.ratio", f"Distances in features to training and held-back cases: {few}."))
        return
    yield from _copied_features(found, synthetic, train, heldout)


def _planted(train: Cohort) -> dict[str, list[np.ndarray]]:
    """Fingerprints of training images in disguise, each image in one."""
    prints: dict[str, list[np.ndarray]] = {}
    for (kind, disguise), k in zip(itertools.cycle(DISGUISES.items()), train.first(PLANTED), strict=False):
        image = disguise(read_image(train.place(k)), train.spacing, np.random.default_rng(k))
        prints.setdefault(kind, []).append(copies.fingerprint(image, train.spacing))
    return prints


def _copied_masks(found: Evaluation, synthetic: Cohort, train: Cohort, heldout: Cohort) -> Iterator[Score]:
    prints = {name: mask for name, mask in zip(train.names, train.mask_prints, strict=True) if mask.any()}
    overlaps = []
    for c in (synthetic, heldout):
        kept = [k for k, mask in enumerate(c.mask_prints) if mask.any()]
        nearest = [copies.nearest_mask(c.mask_prints[k], prints) for k in kept] if prints else []
        overlaps.append(np.array([overlap for _, overlap in nearest]))
        if c is synthetic:
            for k, (name, overlap) in zip(kept, nearest, strict=False):
                found.pairs[k] |= {"nearest_mask": name, "mask_dsc": round(float(overlap), 4)}
    if not all(map(len, overlaps)):
        found.left_out.append(("copies.masks", "Masks against training masks: one side has none."))
        return
    sizes = [(len(values), len(prints)) for values in overlaps]
    yield _score("copies.masks", "copies", *map(mean_estimate, overlaps), *sizes, aim="low")


def _copied_features(found: Evaluation, synthetic: Cohort, train: Cohort, heldout: Cohort) -> Iterator[Score]:
    samples, of_train, of_heldout = (
        np.concatenate(list(c.features.values()), axis=1) for c in (synthetic, train, heldout)
    )
    ratios = copies.feature_ratio(samples, of_train, of_heldout)
    honest = np.concatenate(
        [
            copies.feature_ratio(of_heldout[k : k + 1], of_train, np.delete(of_heldout, k, axis=0))
            for k in range(len(heldout))
        ]
    )
    n, floor_n = (len(synthetic), len(train)), (len(heldout), len(train))
    for name, share in QUANTILES.items():
        values = [_quantile(x, share) for x in (ratios, honest)]
        yield _score(f"copies.ratio.{name}", "copies", *values, n, floor_n, aim="high")
    shares = []
    for x in (samples, of_heldout):
        authentic = round(copies.authenticity(x, of_train) * len(x))
        shares.append(copies.copy_rate(np.arange(len(x)) < authentic, 0.5)[1])
    yield _score("copies.authpct", "copies", *shares, n, floor_n, aim="high")
    distances = cdist(samples, of_train).min(axis=1)
    for pair, ratio, distance in zip(found.pairs, ratios, distances, strict=True):
        pair |= {"feature_distance": round(float(distance), 4), "feature_ratio": round(float(ratio), 4)}


def _quantile(values: np.ndarray, share: float) -> Estimate:
    """A quantile with the percentile interval of a bootstrap."""
    drawn = np.random.default_rng(0).choice(values, size=(2000, len(values)))
    low, high = np.quantile(np.quantile(drawn, share, axis=1), [0.025, 0.975])
    return Estimate(float(np.quantile(values, share)), float(low), float(high))


def score_requests(found: Evaluation, synthetic: Cohort, manifest: Path | None) -> None:
    """Requests against what was drawn; those inside the training range and those beyond it apart."""
    if manifest is None or not manifest.is_file():
        found.left_out.append(("requests", "there is no manifest.csv that says what was asked for."))
        return
    try:
        rows = {row["pair"]: row for row in requests.read_manifest(manifest)}
    except DataError as error:
        found.left_out.append(("requests", str(error)))
        return
    if not rows:
        found.left_out.append(("requests", "these pairs were made without requests."))
        return
    if not rows.keys() & set(synthetic.names):
        found.left_out.append(("requests", f"{manifest}: names none of the pairs."))
        return
    measurable = np.isfinite(synthetic.characteristics).all(axis=1)
    known = [k for k, name in enumerate(synthetic.names) if name in rows and measurable[k]]
    asked = {k: rows[synthetic.names[k]] for k in known}
    for k, row in asked.items():
        found.pairs[k] |= {name: row[name] for name in row if name.startswith("requested_")}
        found.pairs[k] |= {"extrapolated": row["extrapolated"], "redrawn": row["redrawn"]}
    given_up = read_given_up(manifest.parent)
    drawn = len(rows) + sum(row["redrawn"] for row in rows.values()) + sum(given_up)
    found.remarks.append(f"{drawn} pairs were drawn and {len(rows)} accepted ({100 * len(rows) / drawn:.0f} %).")
    if given_up:
        found.remarks.append(f"{len(given_up)} more requests were never met and given up: the scores know the others.")
    for part, beyond in (("", False), (".extrapolated", True)):
        chosen = [k for k in known if bool(asked[k]["extrapolated"]) == beyond]
        if len(chosen) < LEAST["requests"]:
            if chosen:
                few = f"{len(chosen)} pair(s) with a request {'beyond' if beyond else 'within'} the training range"
                found.left_out.append((f"requests{part}", f"{few}; {LEAST['requests']} are the least."))
            continue
        requested = np.array([[asked[k][f"requested_{name}"] for name in NAMES] for k in chosen])
        measured = synthetic.characteristics[chosen]
        found.arrays |= {f"requested{part}": requested, f"measured{part}": measured}
        control, n = requests.shuffled(requested, measured), (len(chosen), len(chosen))
        for key, value in requests.fidelity(requested, measured).items():
            name, _, kind = key.rpartition("_")
            followed = kind in ("slope", "spearman")
            protocol = f"{kind}.{name}{part}" if followed else f"request.{key}{part}"
            more = {"aim": "high" if followed or kind == "iou" else "low", "unit": "mm" if kind == "mm" else ""}
            found.scores.append(
                _score(protocol, "requests", value, NAN if kind == "bias" else control.get(key, NAN), n, n, **more)
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
            found.scores.append(_score(f"control.{key}{part}", "requests", spread[key], NAN, many, n, note=note))


def score_fit(found: Evaluation, cohorts: dict[str, Cohort], settings: Settings) -> None:
    """Masks against what a network trained on real cases alone segments."""
    if not settings.predictions:
        reason = "no predictions of a network trained on real cases; train one: make nnunet-eval ARMS=real+aug."
        found.left_out.append(("fit", settings.no_predictions or reason))
        return
    rows = {}
    try:
        for role in ("synthetic", "heldout"):
            whole = {name for name, mask in zip(cohorts[role].names, cohorts[role].has_mask, strict=True) if mask}
            cases = [case for case in getattr(settings, role) if case.name in whole]
            rows[role] = fit.agreement(settings.predictions[role], cases, settings.source)
            if len(rows[role]) < len(cases):
                found.remarks.append(f"{len(cases) - len(rows[role])} of {len(cases)} {role} cases have no prediction.")
    except (DataError, StateError) as error:
        found.left_out.append(("fit", str(error)))
        return
    n = tuple(len(rows[role]) for role in ("synthetic", "heldout"))
    for name, key in (("dsc", "dsc"), ("nsd", "nsd_1mm")):
        values = {role: np.array([row[key] for row in rows[role]]) for role in rows}
        for role, scores in values.items():
            found.arrays[f"fit.{name}.{role}"] = scores
        compared = fit.compare_fit(values["synthetic"], values["heldout"])
        means = compared["synthetic_mean"], compared["heldout_mean"]
        found.scores.append(_score(f"fit.{name}", "fit", *means, (n[0], n[0]), (n[1], n[1])))
        if name == "dsc":
            for part, floor in (("low_tail", "tail"), ("high_tail", "tail"), ("overlap", "overlap")):
                protocol, best = f"fit.{part.replace('_', '-')}", compared[f"{floor}_floor"]
                found.scores.append(_score(protocol, "fit", compared[part], best, n, n))
    by_name = {row["case"]: row for row in rows["synthetic"]}
    for pair in found.pairs:
        if row := by_name.get(pair["pair"]):
            pair |= {"fit_dsc": round(row["dsc"], 4), "fit_nsd_1mm": round(row["nsd_1mm"], 4)}
