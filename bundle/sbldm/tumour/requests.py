"""Requests for tumours: completed, drawn from the training tumours' joint distribution, checked against it.

The paper (section "Tumour characteristics") draws random conditions one by one from uniform ranges, which asks for
impossible tumours. Here a smoothed bootstrap of the training tumours describes eight shape variables t,

    ln V, ln A/A0, x, y, z, ln w/D, ln h/D, ln d/D    (A0, D: surface and diameter of the sphere of volume V),

in which each of the nine characteristics (lengths, volume and surface as logarithms, sphericity = A0/A too) is one
linear function. A value that a user fixes is therefore one linear constraint on t, whichever it is. The bootstrap is a
mixture of one Gaussian a training tumour, so conditioned on any set of constraints it is exact and closed-form;
surface, volume and sphericity can never disagree. Where labels tell tissues apart, the shares of these belong to the
same mixture (`sbldm.tumour.shares`).

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

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from scipy.linalg import solve_triangular
from scipy.spatial.distance import cdist
from scipy.special import logsumexp

from sbldm.run.errors import InputError
from sbldm.tumour.asking import PARTS, check_request
from sbldm.tumour.characteristics import NAMES, SHARES
from sbldm.tumour.shares import Shares

__all__ = ["TumourModel"]

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
    core, enhancing = (request.get(name, np.nan) for name in SHARES.values())
    if enhancing > core:
        found.append(f"enhancing_percent={enhancing:g} is more than core_percent={core:g}, of which it is a part")
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
        shares: of tissues, one row a component.
    """

    weights: np.ndarray
    means: np.ndarray
    covariances: np.ndarray
    ranges: np.ndarray
    limits: np.ndarray
    floor: float
    shares: Shares = field(default_factory=Shares)

    @property
    def names(self) -> tuple[str, ...]:
        """Of the characteristics: the nine, and the shares that it knows."""
        return (*NAMES, *self.shares.names)

    @classmethod
    def fit(cls, values: np.ndarray, names: Sequence[str] = NAMES) -> TumourModel:
        """Fit to training characteristics [N, K] of these `names`, N >= 1: `NAMES`, then those of shares.

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
        if values.ndim != 2 or values.shape[1] != len(names) or not len(values):
            raise ValueError(f"Characteristics have shape {values.shape}; [N, {len(names)}] with N >= 1 is needed.")
        shares, values = Shares.of(names[len(NAMES) :], values[:, len(NAMES) :]), values[:, : len(NAMES)]
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
            shares=shares,
        )
        own, _ = model._candidates({}, np.random.default_rng(0), 10_000)
        others = _log_normal(shapes, means, model.covariances) + np.log(model.weights)
        if count > 1:  # its own kernel makes each training tumour likely
            np.fill_diagonal(others, -np.inf)
        floor = min(logsumexp(others, axis=1).min(), np.quantile(model._log_density(own), 0.001))
        return cls(**(vars(model) | {"floor": float(floor)}))

    def state(self) -> dict[str, Any]:
        """The model as plain lists and floats, for a checkpoint or JSON."""
        state = {name: np.asarray(value).tolist() for name, value in vars(self).items() if name != "shares"}
        shares = dict(zip(self.shares.names, self.shares.percents.T.tolist(), strict=True))
        return state | ({"shares": shares} if shares else {})

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> TumourModel:
        """Rebuild from `state()`."""
        arrays = {n: np.asarray(state[n], dtype=np.float64) for n in cls.__dataclass_fields__ if n != "shares"}
        shares = state.get("shares", {})
        own = {"shares": Shares.of([*shares], np.array([*shares.values()]).T)} if shares else {}
        return cls(**(arrays | {"floor": float(state["floor"])} | own))

    def _log_density(self, shapes: np.ndarray) -> np.ndarray:
        """Log-density of t [..., 8] under the mixture."""
        flat = _log_normal(shapes.reshape(-1, 8), self.means, self.covariances) + np.log(self.weights)
        return logsumexp(flat, axis=-1).reshape(shapes.shape[:-1])

    def _candidates(
        self, given: Mapping[int, float], rng: np.random.Generator, count: int, beside: np.ndarray | float = 0.0
    ) -> tuple[np.ndarray, np.ndarray]:
        """Draw t [count, 8] from the mixture conditioned on `given` (row of the ten functions -> value).

        `beside` is added to the log-weight of each component, of which comes beside t the number [count].
        """
        rows = _ROWS[list(given)]
        target = np.array(list(given.values())) - _OFFSETS[list(given)]
        cross = self.covariances @ rows.T
        inner = rows @ cross
        gains = np.swapaxes(np.linalg.solve(inner, np.swapaxes(cross, 1, 2)), 1, 2)
        logits = np.log(self.weights) + beside
        if given:
            logits = logits + _log_normal(target[None], self.means @ rows.T, inner)[0]
        component = rng.choice(len(logits), size=count, p=np.exp(logits - logsumexp(logits)))
        noise = rng.standard_normal((count, 8))
        own = component if len(self.covariances) > 1 else np.zeros(count, dtype=int)
        free = self.means[component] + np.einsum("nij,nj->ni", np.linalg.cholesky(self.covariances)[own], noise)
        return free + np.einsum("nij,nj->ni", gains[own], target - free @ rows.T), component

    def _draw(
        self, given: dict[int, float], rng: np.random.Generator, beside: np.ndarray | float
    ) -> tuple[np.ndarray, int]:
        """The ten functions [10] of the first candidate that is plausible, else of the first that is possible.

        With the number of its component; `beside` as in `_candidates`.
        """
        bounded = np.ones(10, dtype=bool)
        bounded[list(given)] = False
        first = None
        for _ in range(32):
            shapes, component = self._candidates(given, rng, 64, beside)
            functions = shapes @ _ROWS.T + _OFFSETS
            inside = _within(functions, self.limits)
            # A sphere has the least surface, a box holds its tumour: the two bounds on ln V, exceeded by so much.
            excess = np.stack([1.5 * functions[:, SPHERICITY], -functions[:, FILL]])
            possible = (excess <= ROUNDING).all(0)
            for i in np.flatnonzero(possible & inside[:, bounded].all(1)):
                if given or self._log_density(shapes[i]) >= self.floor:
                    return functions[i], component[i]
            if first is None and possible.any():
                first = functions[np.argmax(possible)], component[np.argmax(possible)]
        if first is not None:
            return first
        # The given values are so far out that no draw is possible: hold what is violated most at the training limit.
        broken, side = ((SPHERICITY, 1), (FILL, 0))[np.argmax(np.median(excess, axis=1))]
        given = given | {broken: self.limits[broken, side]}
        if np.linalg.matrix_rank(_ROWS[list(given)]) < len(given):
            raise InputError(f"No tumour has these {', '.join(PARTS)} together; leave one of them out.")
        return self._draw(given, rng, beside)

    def sample(self, n: int, seed: int) -> np.ndarray:
        """Draw plausible tumours [n, K]; row i is a pure function of this model and `seed + i`."""
        return np.array([self.complete({}, seed + i) for i in range(n)]).reshape(n, len(self.names))

    def complete(self, partial: Mapping[str, float], seed: int, among: int = 1) -> np.ndarray:
        """Fill up a request that is given in part with a draw from the conditional distribution.

        Two of volume, surface and sphericity fix the third. Draws stay within the training limits where the given
        values allow it; a request far outside is extrapolated along the fitted correlations.

        Args:
            partial: Characteristics by name, any subset of `names`; they come back as given. (A contrast may be among
                them and plays no part.)
            seed: Not negative; equal seeds give equal completions.
            among: So many are drawn, and the one whose size and place are the rarest among the training tumours is
                taken; they are within what training saw, as all draws are.

        Returns:
            [K] in the order of `names`, ml, mm2, 1, mm, %.

        Raises:
            InputError: a name is unknown, a value impossible, or the values contradict each other.
        """
        given = check_request(partial)
        if unknown := [name for name in given if name in SHARES.values() and name not in self.names]:
            raise InputError(
                f"{unknown[0]}: this model knows no such share: its labels do not tell the tissue apart, or an older "
                "version trained it; leave it out, or train one with labels such as necrotic, oedema and enhancing."
            )
        if found := _contradictions(given):
            raise InputError(f"{'; '.join(found)}. Change one of them or leave it out.")
        full = _functions(np.array([given.get(name, np.nan) for name in NAMES]))
        known = {i: full[i] for i, name in enumerate(NAMES) if name in given}
        if {0, 1} <= known.keys():
            known.pop(SPHERICITY, None)
        rng = np.random.default_rng(seed)
        likelihood = self.shares.log_likelihood(given)
        drawn, components = zip(*(self._draw(known, rng, likelihood) for _ in range(among)), strict=True)
        taken = self._rarity(np.array(drawn)).argmax() if among > 1 else 0
        values = _characteristics(drawn[taken])
        values[SPHERICITY] = min(values[SPHERICITY], 1.0)
        if self.shares.names:
            values = np.append(values, self.shares.draw(components[taken], given, rng))
        for i, name in enumerate(self.names):
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
        """Say in what a request [K] lies beyond what training saw; an empty list when in nothing.

        One entry per characteristic more than 2 % of the (logarithmic) range beyond the training range, one when the
        values are impossible together, or possible but jointly less likely than `floor`.

        Raises:
            InputError: a value is not finite, not positive, or a sphericity above 1.
        """
        values = check_request(dict(zip(self.names, request, strict=True)))
        functions = _functions(np.array([values[name] for name in NAMES]))
        found = self.shares.outside(values)
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
