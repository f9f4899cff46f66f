"""Requests for tumours: read, completed, drawn from the training tumours' joint distribution, checked against it.

The paper (section "Tumour characteristics") draws random conditions one by one from uniform ranges, which asks for
impossible tumours. Here a smoothed bootstrap of the training tumours describes eight shape variables t,

    ln V, ln A/A0, x, y, z, ln w/D, ln h/D, ln d/D    (A0, D: surface and diameter of the sphere of volume V),

in which each of the nine characteristics (lengths, volume and surface as logarithms, sphericity = A0/A too) is one
linear function. A value that a user fixes is therefore one linear constraint on t, whichever it is. The bootstrap is a
mixture of one Gaussian a training tumour, so conditioned on any set of constraints it is exact and closed-form;
surface, volume and sphericity can never disagree.

Chosen on 100 training tumours (mean 94 ml): mean volume of draws over theirs; Wasserstein-1 distances of 20,000 draws
from them in their SDs, volume and largest of the nine (as many tumours drawn with replacement: .11 and .12 on average;
half against half: .22 and .25); log-likelihood of left-out tumours, ten-fold, of all and of the rest given volume and
centre; share of draws beyond the training limits:

                                            mean   volume  largest  left out  given    rejected
    four Gaussians, fitted as truncated     .91    .16     .19      -12.2     1.85     .35
    the same, 30 rounds instead of 6        .97    .09     .15      -12.2     1.84     .51
    bootstrap, one bandwidth of .2          1.00   .04     .06      -46.4     -29.3    .07
    bootstrap, one bandwidth of .63         .94    .13     .22      -13.2     .91      .20
    bootstrap, .2 and 1.2 (taken)           .99     .04     .10      -12.4     1.6      .14

A mixture of few Gaussians loses the large tumours, which crowd below the upper limit; one narrow bandwidth draws
near-copies, one wide bandwidth loses the limit and the two sides. Hence two: volume and side, far from Gaussian, are
smoothed little, and what the other variables have beyond them much.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.linalg import solve_triangular
from scipy.spatial.distance import cdist
from scipy.special import logsumexp

from sbldm.run.errors import InputError
from sbldm.run.files import read_text, user_path
from sbldm.run.limits import LARGEST
from sbldm.tumour.characteristics import NAMES

__all__ = ["ASKABLE", "PARTS", "TumourModel", "parse_request", "read_requests"]

PARTS = {
    "volume_ml": NAMES[0:1],
    "surface_mm2": NAMES[1:2],
    "sphericity": NAMES[2:3],
    "centre_mm": NAMES[3:6],
    "extents_mm": NAMES[6:9],
    "contrast": ("contrast",),
}
"""Parts of a request and what each one asks for: the nine characteristics, and on canvases the contrast."""

ASKABLE = tuple(name for names in PARTS.values() for name in names)

TITLES = {n: v if len(names) == 1 else f"{v} ({n})" for v, names in PARTS.items() for n in names}
TOLERANCE = 0.1  # relative disagreement of surface, volume and sphericity that surface estimators explain
NARROW, WIDE = 0.2, 1.2  # bandwidths at 100 tumours, in SDs before the shrinkage; those of ln V and x, and of the rest
ROUNDING = 0.005  # what rounded values may exceed the sphere's and the box's bounds by, in logarithms
SPHERICITY, FILL, POSITION = 2, 9, slice(3, 6)

# Rows: the nine characteristics and ln(box volume / V) as linear functions of t.
_ROWS = np.zeros((10, 8))
_ROWS[0, 0] = _ROWS[3, 2] = _ROWS[4, 3] = _ROWS[5, 4] = 1
_ROWS[1, :2] = 2 / 3, 1
_ROWS[2, 1] = -1
_ROWS[6:9, 0] = 1 / 3
_ROWS[6:9, 5:] = np.eye(3)
_ROWS[FILL, 5:] = 1
_BALL = np.log(6 / np.pi)  # ln(D^3 / V)
_OFFSETS = np.array([0, np.log(np.pi) / 3 + 2 / 3 * np.log(6), 0, 0, 0, 0, *[_BALL / 3] * 3, _BALL])
_TO_SHAPE = np.linalg.inv(_ROWS[[0, 1, 3, 4, 5, 6, 7, 8]])


def _functions(values: np.ndarray) -> np.ndarray:
    """Characteristics [..., 9] -> the ten functions [..., 10]; volume in mm3."""
    values = np.array(values, dtype=np.float64)
    values[..., 0] *= 1000
    free = [0, 1, 2, 6, 7, 8]
    values[..., free] = np.log(values[..., free])
    fill = values[..., 6:9].sum(-1, keepdims=True) - values[..., :1]
    return np.concatenate([values, fill], axis=-1)


def _characteristics(functions: np.ndarray) -> np.ndarray:
    """Inverse of `_functions`."""
    values = functions[..., :9].copy()
    free = [0, 1, 2, 6, 7, 8]
    values[..., free] = np.exp(values[..., free])
    values[..., 0] /= 1000
    return values


def _shapes(functions: np.ndarray) -> np.ndarray:
    """The ten functions [..., 10] -> t [..., 8], by volume, surface, centre and extents."""
    free = [0, 1, 3, 4, 5, 6, 7, 8]
    return (functions[..., free] - _OFFSETS[free]) @ _TO_SHAPE.T


def _log_normal(points: np.ndarray, means: np.ndarray, covariances: np.ndarray) -> np.ndarray:
    """Log-densities [N, K] of points [N, D] under K Gaussians: means [K, D], covariances [K, D, D] or one for all."""
    parts = []
    for k, factor in enumerate(np.linalg.cholesky(covariances)):
        own = means if len(covariances) == 1 else means[k : k + 1]
        white = (solve_triangular(factor, x.T, lower=True).T for x in (points, own))
        constant = np.log(np.diag(factor)).sum() + len(factor) / 2 * np.log(2 * np.pi)
        parts.append(-0.5 * cdist(*white, "sqeuclidean") - constant)
    return np.concatenate(parts, axis=1)


def _within(functions: np.ndarray, limits: np.ndarray) -> np.ndarray:
    return (functions >= limits[:, 0]) & (functions <= limits[:, 1])


def _check(request: Mapping[str, float]) -> dict[str, float]:
    """Plain floats, or an `InputError` that names the part."""
    if unknown := [name for name in request if name not in ASKABLE]:
        raise InputError(f"{unknown[0]!r} is no tumour characteristic; choose from {', '.join(ASKABLE)}.")
    checked = {}
    for name, value in request.items():
        try:
            checked[name] = value = float(value)
        except (TypeError, ValueError):
            raise InputError(f"{TITLES[name]}={value!r} is not a number.") from None
        if not np.isfinite(value):
            raise InputError(f"{TITLES[name]}={value} is not a finite number.")
        if abs(value) > LARGEST:
            raise InputError(f"{TITLES[name]}={value:g} is beyond anything in a head.")
        if name not in (*NAMES[POSITION], "contrast") and value <= 0:
            raise InputError(f"{TITLES[name]}={value:g} must be greater than 0.")
        if name == "sphericity" and value > 1:
            raise InputError(f"sphericity={value:g} must lie above 0 and not above 1 (a sphere).")
    return checked


def _contradictions(request: Mapping[str, float]) -> list[str]:
    """What makes the given values impossible together, one sentence each."""
    given = dict.fromkeys(NAMES, np.nan) | dict(request)
    functions = _functions(np.array([given[name] for name in NAMES]))
    sphericity = np.exp((functions - _OFFSETS)[0] * 2 / 3 - (functions - _OFFSETS)[1])
    volume = given["volume_ml"]
    found = []
    if np.isnan(volume):  # a surface and a sphericity fix the volume
        log_volume = 1.5 * (functions[1] - _OFFSETS[1] + functions[SPHERICITY])
        functions[FILL], volume = functions[6:9].sum() - log_volume, np.exp(log_volume) / 1000
    if np.log(sphericity) > ROUNDING:
        least = given["surface_mm2"] * sphericity
        found.append(
            f"surface_mm2={given['surface_mm2']:g} is less than a sphere of volume_ml={volume:g} has ({least:.4g} mm2)"
        )
    elif abs(sphericity / given["sphericity"] - 1) > TOLERANCE:
        found.append(
            f"sphericity={given['sphericity']:g} contradicts volume_ml={volume:g} and "
            f"surface_mm2={given['surface_mm2']:g}, which make it {sphericity:.3g}"
        )
    if functions[FILL] < -ROUNDING:
        box = volume * np.exp(functions[FILL])
        found.append(f"extents_mm make a box of {box:.4g} ml, smaller than volume_ml={volume:.4g}")
    return found


@dataclass(frozen=True, eq=False)
class TumourModel:
    """Joint distribution of the training tumours' characteristics.

    Attributes:
        weights: [K] of the mixture's components, one for each training tumour.
        means: [K, 8] in t (module docstring).
        covariances: [1, 8, 8] in t, one for all; [K, 8, 8] in checkpoints that hold a mixture of few Gaussians.
        ranges: [9, 2] smallest and largest of the training list, in ml, mm2, 1, mm.
        limits: [10, 2] the same in logarithms, with ln(box / volume) as tenth, 2 % wider: draws stay inside.
        floor: log-density below which a tumour counts as implausible: what all training tumours, each by the others'
            part of the density, and 99.9 % of the mixture's own draws exceed.
    """

    weights: np.ndarray
    means: np.ndarray
    covariances: np.ndarray
    ranges: np.ndarray
    limits: np.ndarray
    floor: float

    @classmethod
    def fit(cls, values: np.ndarray) -> TumourModel:
        """Fit to training characteristics [N, 9] in the order of `NAMES`, N >= 1.

        A kernel density estimate that keeps the mean and the covariance (Silverman, Density Estimation, 1986, section
        6.4.1: the tumours are drawn together by as much as the kernel widens them), with two bandwidths: in the
        variables L^-1 t, L the Cholesky factor of the covariance with ln V and x in front, these two are smoothed less
        than the rest. As draws beyond the training limits are rejected, a tumour weighs the more the fewer of the draws
        around it are kept, so that all are drawn equally often. A ridge of 1/N of the variance keeps few or equal
        tumours from a singular kernel.

        Raises:
            ValueError: the shape is wrong or a value is impossible (not finite, not positive, sphericity above 1).
        """
        values = np.asarray(values, dtype=np.float64)
        if values.ndim != 2 or values.shape[1] != len(NAMES) or not len(values):
            raise ValueError(f"Characteristics have shape {values.shape}; [N, {len(NAMES)}] with N >= 1 is needed.")
        lengths = np.delete(values, POSITION, axis=1)
        if not np.isfinite(values).all() or (lengths <= 0).any() or (values[:, SPHERICITY] > 1).any():
            raise ValueError("Characteristics must be finite, sizes positive and sphericities not above 1.")
        functions = _functions(values)
        shapes = _shapes(functions)
        least = np.array([0.01, 0.01, 0.5, 0.5, 0.5, 0.01, 0.01, 0.01])  # a variable that does not vary: 1 %, 0.5 mm
        count, centre = len(shapes), shapes.mean(0)
        ridge = np.maximum(shapes.std(0), least) ** 2 / count
        low, high = functions.min(0), functions.max(0)
        slack = 0.02 * (high - low) + np.where(np.isin(np.arange(10), [3, 4, 5]), 1.0, 0.02)
        limits = np.stack([low - slack, high + slack], axis=1)
        limits[SPHERICITY, 1] = min(limits[SPHERICITY, 1], 0.0)
        limits[FILL, 0] = max(limits[FILL, 0], 0.0)

        front = [0, 2, 1, 3, 4, 5, 6, 7]  # ln V and x, then the rest
        covariance = np.cov(shapes.T, bias=True) if count > 1 else np.zeros((8, 8))
        factor = np.linalg.cholesky((covariance + np.diag(ridge))[np.ix_(front, front)])[np.argsort(front)]
        width = np.where(np.arange(8) < 2, NARROW * (100 / count) ** (1 / 5), WIDE)
        kernel = factor * (width / np.sqrt(1 + width**2))
        shrink = factor / np.sqrt(1 + width**2) @ np.linalg.inv(factor)
        means = centre + (shapes - centre) @ shrink.T
        around = np.random.default_rng(0).standard_normal((500, 8)) @ (_ROWS @ kernel).T
        kept = [_within(mean + around, limits).all(1).mean() for mean in means @ _ROWS.T + _OFFSETS]
        weights = 1 / np.maximum(kept, 0.05)
        model = cls(
            weights=weights / weights.sum(),
            means=means,
            covariances=(kernel @ kernel.T)[None],
            ranges=np.stack([values.min(0), values.max(0)], axis=1),
            limits=limits,
            floor=-np.inf,
        )
        own = model._candidates({}, np.random.default_rng(0), 10_000)
        others = _log_normal(shapes, means, model.covariances) + np.log(model.weights)
        if count > 1:  # its own kernel makes each training tumour likely
            np.fill_diagonal(others, -np.inf)
        floor = min(logsumexp(others, axis=1).min(), np.quantile(model._log_density(own), 0.001))
        return cls(**(vars(model) | {"floor": float(floor)}))

    def state(self) -> dict[str, Any]:
        """The model as plain lists and floats, for a checkpoint or JSON."""
        return {name: np.asarray(value).tolist() for name, value in vars(self).items()}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> TumourModel:
        """Rebuild from `state()`."""
        arrays = {name: np.asarray(state[name], dtype=np.float64) for name in cls.__dataclass_fields__}
        return cls(**(arrays | {"floor": float(state["floor"])}))

    def _log_density(self, shapes: np.ndarray) -> np.ndarray:
        """Log-density of t [..., 8] under the mixture."""
        flat = _log_normal(shapes.reshape(-1, 8), self.means, self.covariances) + np.log(self.weights)
        return logsumexp(flat, axis=-1).reshape(shapes.shape[:-1])

    def _candidates(self, given: Mapping[int, float], rng: np.random.Generator, count: int) -> np.ndarray:
        """Draw t [count, 8] from the mixture conditioned on `given` (row of the ten functions -> value)."""
        rows = _ROWS[list(given)]
        target = np.array(list(given.values())) - _OFFSETS[list(given)]
        cross = self.covariances @ rows.T
        inner = rows @ cross
        gains = np.swapaxes(np.linalg.solve(inner, np.swapaxes(cross, 1, 2)), 1, 2)
        logits = np.log(self.weights)
        if given:
            logits = logits + _log_normal(target[None], self.means @ rows.T, inner)[0]
        component = rng.choice(len(logits), size=count, p=np.exp(logits - logsumexp(logits)))
        noise = rng.standard_normal((count, 8))
        own = component if len(self.covariances) > 1 else np.zeros(count, dtype=int)
        free = self.means[component] + np.einsum("nij,nj->ni", np.linalg.cholesky(self.covariances)[own], noise)
        return free + np.einsum("nij,nj->ni", gains[own], target - free @ rows.T)

    def _draw(self, given: dict[int, float], rng: np.random.Generator) -> np.ndarray:
        """The ten functions [10] of the first candidate that is plausible, else of the first that is possible."""
        bounded = np.ones(10, dtype=bool)
        bounded[list(given)] = False
        first = None
        for _ in range(32):
            shapes = self._candidates(given, rng, 64)
            functions = shapes @ _ROWS.T + _OFFSETS
            inside = _within(functions, self.limits)
            # A sphere has the least surface, a box holds its tumour: the two bounds on ln V, exceeded by so much.
            excess = np.stack([1.5 * functions[:, SPHERICITY], -functions[:, FILL]])
            possible = (excess <= ROUNDING).all(0)
            for i in np.flatnonzero(possible & inside[:, bounded].all(1)):
                if given or self._log_density(shapes[i]) >= self.floor:
                    return functions[i]
            if first is None and possible.any():
                first = functions[np.argmax(possible)]
        if first is not None:
            return first
        # The given values are so far out that no draw is possible: hold what is violated most at the training limit.
        broken, side = ((SPHERICITY, 1), (FILL, 0))[np.argmax(np.median(excess, axis=1))]
        given = given | {broken: self.limits[broken, side]}
        if np.linalg.matrix_rank(_ROWS[list(given)]) < len(given):
            raise InputError(f"No tumour has these {', '.join(PARTS)} together; leave one of them out.")
        return self._draw(given, rng)

    def sample(self, n: int, seed: int) -> np.ndarray:
        """Draw plausible tumours [n, 9]; row i is a pure function of this model and `seed + i`."""
        return np.array([self.complete({}, seed + i) for i in range(n)]).reshape(n, len(NAMES))

    def complete(self, partial: Mapping[str, float], seed: int, among: int = 1) -> np.ndarray:
        """Fill up a request that is given in part with a draw from the conditional distribution.

        Two of volume, surface and sphericity fix the third. Draws stay within the training limits where the given
        values allow it; a request far outside is extrapolated along the fitted correlations.

        Args:
            partial: Characteristics by name, any subset of `NAMES`; they come back as given. (A contrast may be among
                them and plays no part.)
            seed: Not negative; equal seeds give equal completions.
            among: So many are drawn, and the one whose size and place are the rarest among the training tumours is
                taken; they are within what training saw, as all draws are.

        Returns:
            [9] in the order of `NAMES`, ml, mm2, 1, mm.

        Raises:
            InputError: a name is unknown, a value impossible, or the values contradict each other.
        """
        given = _check(partial)
        if found := _contradictions(given):
            raise InputError(f"{'; '.join(found)}. Change one of them or leave it out.")
        full = _functions(np.array([given.get(name, np.nan) for name in NAMES]))
        known = {i: full[i] for i, name in enumerate(NAMES) if name in given}
        if {0, 1} <= known.keys():
            known.pop(SPHERICITY, None)
        rng = np.random.default_rng(seed)
        drawn = np.array([self._draw(known, rng) for _ in range(among)])
        values = _characteristics(drawn[self._rarity(drawn).argmax()] if among > 1 else drawn[0])
        values[SPHERICITY] = min(values[SPHERICITY], 1.0)
        for i, name in enumerate(NAMES):
            values[i] = given.get(name, values[i])
        return values

    def _rarity(self, functions: np.ndarray) -> np.ndarray:
        """`[N]` of the ten functions `[N, 10]`: mean distance to the three nearest training tumours in ln V and centre.

        In SDs of the training tumours.
        """
        rows = _ROWS[[0, *range(10)[POSITION]]]
        known, asked = self.means @ rows.T, _shapes(functions) @ rows.T
        spread = np.maximum(np.sqrt(np.average(np.square(known - known.mean(0)), axis=0, weights=self.weights)), 1e-3)
        return np.sort(cdist(asked / spread, known / spread), axis=1)[:, :3].mean(axis=1)

    def outside(self, request: np.ndarray) -> list[str]:
        """Say in what a request [9] lies beyond what training saw; an empty list when in nothing.

        One entry per characteristic more than 2 % of the (logarithmic) range beyond the training range, one when the
        values are impossible together, or possible but jointly less likely than `floor`.

        Raises:
            InputError: a value is not finite, not positive, or a sphericity above 1.
        """
        values = _check(dict(zip(NAMES, request, strict=True)))
        functions = _functions(np.array(list(values.values())))
        found = []
        for (name, value), position, limits, (low, high) in zip(
            values.items(), functions, self.limits, self.ranges, strict=False
        ):
            if not limits[0] <= position <= limits[1]:
                side = "below" if position < limits[0] else "above"
                found.append(f"{name} {value:.4g} is {side} {low:.3g} to {high:.3g}")
        if impossible := _contradictions(values):
            found.append(f"impossible together: {'; '.join(impossible)}")
        elif self._log_density(_shapes(functions)) < self.floor:
            found.append("the combination is less likely than every training tumour")
        return found


def read_requests(path: Path) -> list[dict[str, float]]:
    """Read requests from a CSV whose header names any of `ASKABLE`; an empty cell means "draw it".

    Raises:
        InputError: the file cannot be read or is empty, or a column or cell is wrong; file, line and column are named.
    """
    legend = f"The columns are any of {', '.join(ASKABLE)}."
    legend_of_file = f"it must be a CSV table of requests. {legend.removesuffix('.')}"
    text = read_text(user_path(path), legend_of_file, remove=False, error=InputError)
    try:
        reader = csv.reader(io.StringIO(text, newline=""), strict=True)
        lines = [(reader.line_num, [cell.strip() for cell in line]) for line in reader if line]
    except csv.Error as error:
        raise InputError(f"{path}: cannot be read as a CSV of requests ({error}). {legend}") from None
    if len(lines) < 2:
        raise InputError(f"{path}: holds no request, a header and at least one row are needed. {legend}")
    header = [name.lower() for name in lines[0][1]]
    for name in header:
        if name not in ASKABLE or header.count(name) > 1:
            problem = "comes twice" if name in ASKABLE else "is unknown"
            raise InputError(f"{path}, line {lines[0][0]}: column {name!r} {problem}. {legend}")
    requests = []
    for number, cells in lines[1:]:
        if len(cells) != len(header):
            raise InputError(f"{path}, line {number}: {len(cells)} cells under {len(header)} columns. {legend}")
        requests.append({})
        for name, cell in zip(header, cells, strict=True):
            try:
                requests[-1] |= _check({name: cell} if cell else {})
            except InputError as error:
                raise InputError(f"{path}, line {number}, column {name}: {error} {legend}") from None
    return requests


def parse_request(**parts: float | str | Sequence[float] | None) -> dict[str, float]:
    """A request from its parts (`PARTS`): one number each, or three, as a sequence or with commas between them.

    `centre_mm` counts millimetres to the right, anterior and superior from the centre of the brain's box, `extents_mm`
    the bounding box along the same axes. What is None or empty is left open.

    Raises:
        InputError: a part is unknown, has too few or too many numbers, or an impossible value.
    """
    request: dict[str, float] = {}
    for part, content in parts.items():
        if part not in PARTS:
            raise InputError(f"{part} is no part of a request; choose from {', '.join(PARTS)}.")
        if content is None or (isinstance(content, str) and not content.strip()):
            continue
        names = PARTS[part]
        values = content.split(",") if isinstance(content, str) else np.atleast_1d(content).tolist()
        if len(values) != len(names):
            form = "one number" if len(names) == 1 else "three numbers along R, A, S, as in 40,35,30,"
            raise InputError(f"{part}={content!r}: {form} needed.")
        request |= _check(dict(zip(names, values, strict=True)))
    return request
