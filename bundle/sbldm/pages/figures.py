"""The pictures of an evaluation: how the three roles compare, and the pairs themselves.

Every plot is 5 inches wide at 180 dpi: 900 pixels in a report, with text that is still 8 pixels high on a phone. The
patient's left is on the left of every picture, anterior is up in axial planes and on the right in sagittal ones.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import Formatter, LogLocator, MaxNLocator, NullLocator

from sbldm.evaluation.protocols import MEASURES, Score
from sbldm.evaluation.written import EVALUATE_AGAIN, read_scores
from sbldm.pages.style import EXTRAPOLATED, GREY, PLANES, ROLES, STYLE, WIDTH
from sbldm.run.files import atomic_path, read_npz, read_rows
from sbldm.tumour.characteristics import NAMES, SHARES

__all__ = ["draw_figures"]

LOGARITHMIC = ("volume_ml", "surface_mm2")  # spread over two decades


class _Found(NamedTuple):
    """What an evaluation has left."""

    arrays: dict[str, np.ndarray]
    scores: dict[str, Score]  # by protocol
    pairs: list[str]

    def values(self, key: str) -> np.ndarray:
        """Finite values of an array, none where it is absent."""
        values = np.asarray(self.arrays.get(key, ()), np.float64)
        return values[np.isfinite(values)]

    def rows(self, *keys: str) -> np.ndarray:
        """Arrays `[N, D]` beside each other, without rows that hold NaN; none where one is absent."""
        if not all(key in self.arrays for key in keys):
            return np.empty((0, 1))
        joined = np.hstack([self.arrays[key] for key in keys])
        return joined[np.isfinite(joined).all(1)]

    def by_role(self, name: str) -> dict[str, np.ndarray]:
        """The roles that have values of NAME.ROLE."""
        return {role: values for role in ROLES if len(values := self.values(f"{name}.{role}"))}

    def measures(self, group: str) -> list[str]:
        """Names of the measures of a group, in the order of the arrays, that have any value."""
        names = dict.fromkeys(key.split(".")[1] for key in self.arrays if key.startswith(f"{group}."))
        return [name for name in names if self.by_role(f"{group}.{name}")]

    def roles(self, *groups: str) -> list[str]:
        """The roles that have values in one of these groups of arrays."""
        keys = [key for key in self.arrays if key.split(".")[0] in groups and len(self.values(key))]
        return [role for role in ROLES if any(key.endswith(f".{role}") for key in keys)]

    def beside_floor(self, protocol: str, text: str) -> str:
        """A score and its floor as a line below a title; empty where there is none."""
        score = self.scores.get(protocol)
        if score is None or not np.isfinite([score.value, score.floor]).all():
            return ""
        value, floor = (Formatter.fix_minus(f"{number:.2f}") for number in (score.value, score.floor))
        return f"{text} {value}, floor {floor}"


def draw_figures(out: Path) -> list[Path]:
    """Write the figures of an evaluation into its folder `figures`; one that has nothing to show is left out.

    Args:
        out: folder with `arrays.npz` and `evaluation.json` (and `pairs.csv`, for the names of pairs).

    Returns:
        Files written, of `tumours.png`, `place.png`, `slices.png`, `seam.png`, `copies.png`, `worst.png`,
        `requests.png` and `fit.png`, 900 pixels wide. One of an earlier evaluation without data now is removed.

    Raises:
        StateError: the folder holds no evaluation.
        OutputError: a file cannot be written.
    """
    found = _read(Path(out))
    draw = {
        "tumours": _tumours,
        "place": _place,
        "slices": _slices,
        "seam": _seam,
        "copies": _copies,
        "worst": _worst,
        "requests": _requests,
        "fit": _fit,
    }
    written = []
    with matplotlib.rc_context(STYLE):
        for name, function in draw.items():
            path = Path(out) / "figures" / f"{name}.png"
            figure = function(found)
            if figure is None:
                path.unlink(missing_ok=True)
                continue
            with atomic_path(path) as temporary:
                figure.savefig(temporary)
            written.append(path)
    return written


def _read(out: Path) -> _Found:
    arrays = read_npz(out / "arrays.npz", again=EVALUATE_AGAIN, remove=False)
    scores = {score.protocol: score for score in read_scores(out)}
    pairs = []
    if (out / "pairs.csv").is_file():
        pairs = [row["pair"] for row in read_rows(out / "pairs.csv", {"pair": str}, EVALUATE_AGAIN, remove=False)]
    return _Found(arrays, scores, pairs)


# --- plots ------------------------------------------------------------------------------------------------------------


def _number(value: float, _: int) -> str:
    """A tick's label, short enough for a small panel."""
    return Formatter.fix_minus(f"{value / 1000:g}k" if abs(value) >= 1000 else f"{value:g}")


def _percent(value: float, _: int) -> str:
    return f"{100 * value:g} %"


def _words(name: str, width: int = 18) -> str:
    """A measure as a title: in words, with its unit."""
    plain, _, unit = name.rpartition("_")
    units = {"ml": " (ml)", "mm2": " (mm²)", "mm": " (mm)", "percent": " (%)"}
    words = MEASURES.get(name, (plain if unit in units else name).replace("_", " "))
    return textwrap.fill(words + units.get(unit, ""), width)


def _legend(figure: Figure, roles: Iterable[str]) -> None:
    """The roles, above the panels."""
    handles = [Line2D([], [], label=ROLES[role].title, **ROLES[role].line) for role in roles]
    figure.legend(handles=handles, loc="outside upper center", ncols=len(handles), handlelength=2.4)


def _ecdf(panel: Axes, samples: Mapping[str, np.ndarray]) -> None:
    """One rising line for each role: the share of cases up to a value."""
    for role, values in samples.items():
        panel.ecdf(values, **ROLES[role].line)
    panel.set_ylim(0, 1.01)
    panel.yaxis.set_major_formatter(_percent)


def _scale(panel: Axes, name: str, axes: str) -> None:
    """Few ticks on the axes of a measure, "x" or "xy", and a logarithmic scale where its values ask for one."""
    for axis in axes:
        side = getattr(panel, f"{axis}axis")
        if name in LOGARITHMIC:
            panel.set(**{f"{axis}scale": "log"})
            low, high = side.get_data_interval()
            side.set_major_locator(LogLocator(subs=(1, 3) if high < 100 * low else (1,)))
            side.set_minor_locator(NullLocator())
        else:
            panel.locator_params(axis, nbins=4)
        side.set_major_formatter(_number)


def _tumours(found: _Found) -> Figure | None:
    """The distribution of each measure of the tumours."""
    names = found.measures("tumours")
    if not names:
        return None
    columns = 3
    rows = -(-len(names) // columns)
    figure = Figure(figsize=(WIDTH, 0.5 + 1.6 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, sharey=True, squeeze=False)
    for panel, name in zip(panels.flat, names, strict=False):
        _ecdf(panel, found.by_role(f"tumours.{name}"))
        _scale(panel, name, "x")
        panel.set_title(_words(name))
        panel.set_xlabel(found.beside_floor(f"ks.{name}", "KS"), fontsize=8, color=GREY)
    for panel in panels.flat[len(names) :]:
        panel.axis("off")
    figure.supylabel("share of cases up to this value", fontsize=9)
    figure.supxlabel("KS: largest gap to the held-back cases; floor: that of the training cases", fontsize=8)
    _legend(figure, found.roles("tumours"))
    return figure


def _place(found: _Found) -> Figure | None:
    """Where tumours lie: the heat maps of all roles seen along each axis."""
    maps = {role: found.arrays[f"heat.{role}"] for role in ROLES if f"heat.{role}" in found.arrays}
    if not maps:
        return None
    # From L, P, S to R, A, S; the mean along the line of sight, as the maximum would grow as cases get fewer.
    seen = {r: {p: heat[::-1, ::-1].mean(axis).T for p, axis in PLANES.items()} for r, heat in maps.items()}
    top = max(view.max() for views in seen.values() for view in views.values())
    shapes = [view.shape for view in seen[next(iter(seen))].values()]
    figure = Figure(figsize=(WIDTH, 6.4), layout="constrained")
    panels = figure.subplots(3, len(maps), squeeze=False, height_ratios=[up / across for up, across in shapes])
    for column, (role, views) in zip(panels.T, seen.items(), strict=True):
        column[0].set_title(ROLES[role].title, color=ROLES[role].colour, fontweight="bold")
        for panel, (plane, view) in zip(column, views.items(), strict=True):
            shown = panel.imshow(view, cmap="inferno", vmin=0, vmax=top or 1, origin="lower", interpolation="nearest")
            _letters(panel, plane, view.shape)
    for panel, plane in zip(panels[:, 0], PLANES, strict=True):
        panel.set_ylabel(plane, labelpad=0)
    bar = figure.colorbar(shown, ax=panels, location="bottom", aspect=35, pad=0.02, format=_percent)
    bar.locator = MaxNLocator(5, steps=[1, 2, 5, 10])
    bar.set_label("share of cases with tumour here, mean along the line of sight")
    if note := found.beside_floor("tv.place", "Total variation from held-back: synthetic"):
        figure.suptitle(note.replace("floor", "training"), fontsize=9)
    return figure


def _letters(panel: Axes, plane: str, shape: tuple[int, int]) -> None:
    """The ends of both axes, in place of numbers."""
    across, up = {"axial": ("LR", "PA"), "coronal": ("LR", "IS"), "sagittal": ("PA", "IS")}[plane]
    panel.set_xticks([0, shape[1] - 1], list(across))
    panel.set_yticks([0, shape[0] - 1], list(up))
    panel.tick_params(length=0)
    panel.grid(visible=False)
    panel.spines[:].set_visible(False)


def _slices(found: _Found) -> Figure | None:
    """Above, likeness of neighbouring slices from the bottom of the brain to its top; below, each slice measure."""
    curves = {role: found.rows(f"curves.{role}") for role in ROLES}
    curves = {role: rows for role, rows in curves.items() if len(rows)}
    names = found.measures("slices")
    if not curves and not names:
        return None
    tall = [2.2] * bool(curves) + [1.15] * len(names)
    figure = Figure(figsize=(WIDTH, sum(tall) + 0.7), layout="constrained")
    panels = [*figure.subplots(len(tall), squeeze=False, height_ratios=tall).flat]
    if curves:
        _curves(panels.pop(0), curves)
    _effects(found, "slices", "{}.effect", figure, panels)
    _legend(figure, found.roles("curves", "slices"))
    return figure


def _seam(found: _Found) -> Figure | None:
    """Each measure of how tumours fit into their brains."""
    names = found.measures("seam")
    if not names:
        return None
    figure = Figure(figsize=(WIDTH, 1.15 * len(names) + 0.7), layout="constrained")
    _effects(found, "seam", "seam.{}", figure, [*figure.subplots(len(names), squeeze=False).flat])
    _legend(figure, found.roles("seam"))
    return figure


def _effects(found: _Found, group: str, protocol: str, figure: Figure, panels: Sequence[Axes]) -> None:
    """All cases in each measure of a group that has no good value of its own, and how far they differ."""
    for panel, name in zip(panels, found.measures(group), strict=True):
        _strips(panel, found.by_role(f"{group}.{name}"))
        effect = found.beside_floor(protocol.format(name), "effect")
        panel.set_title(": ".join(filter(None, [_words(name, 80), effect])))
    note = "Bars: median and quartiles. Effect: mean minus that of held-back cases, in their SD;"
    figure.supxlabel(f"{note}\nfloor: that of the training cases.", fontsize=8)


def _curves(panel: Axes, curves: Mapping[str, np.ndarray]) -> None:
    for role, values in curves.items():
        height = np.linspace(0, 1, values.shape[1])
        low, high = np.quantile(values, [0.1, 0.9], axis=0)
        panel.fill_between(height, low, high, color=ROLES[role].colour, alpha=0.15, linewidth=0)
        panel.plot(height, values.mean(0), **ROLES[role].line)
    panel.set_xticks([0, 0.5, 1], ["bottom of the brain", "middle", "top"])
    for label, side in zip(panel.get_xticklabels(), ("left", "center", "right"), strict=True):
        label.set_ha(side)
    panel.set_xlim(0, 1)
    panel.set_title("SSIM of neighbouring slices: mean and 10 to 90 % of cases")


def _strips(panel: Axes, samples: Mapping[str, np.ndarray]) -> None:
    """All cases as points, with their median and quartiles beside."""
    for row, (role, values) in enumerate(samples.items()):
        places = row - 0.1 + np.random.default_rng(0).uniform(-0.22, 0.22, len(values))
        panel.scatter(values, places, s=8, color=ROLES[role].colour, alpha=0.5, linewidths=0)
        low, middle, high = np.quantile(values, [0.25, 0.5, 0.75])
        panel.hlines(row + 0.28, low, high, color="black", linewidth=2)
        panel.vlines(middle, row + 0.14, row + 0.42, color="black", linewidth=2)
    panel.set_yticks(range(len(samples)), [ROLES[role].title for role in samples])
    for label, role in zip(panel.get_yticklabels(), samples, strict=True):
        label.set_color(ROLES[role].colour)
    panel.set_ylim(len(samples) - 0.5, -0.5)
    panel.grid(visible=False, axis="y")
    panel.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    panel.xaxis.set_major_formatter(_number)


def _copies(found: _Found) -> Figure | None:
    """How near to a training case each pair and each held-back case comes, and from where on that is suspicious."""
    samples = found.by_role("copies.excess")
    if "synthetic" not in samples:
        return None
    limits = dict(zip(("near", "sure"), found.values("copies.limits"), strict=False))
    figure = Figure(figsize=(WIDTH, 3.4), layout="constrained")
    panel = figure.subplots()
    everything = np.concatenate([*samples.values(), [*limits.values()]])
    bins = np.linspace(everything.min(), everything.max() + 1e-6, 21)
    for role, values in samples.items():
        role_line = {"edgecolor" if key == "color" else key: value for key, value in ROLES[role].line.items()}
        panel.hist(
            values,
            bins,
            weights=np.full(len(values), 1 / len(values)),
            histtype="stepfilled",
            facecolor=to_rgba(ROLES[role].colour, 0.2),
            label=f"{ROLES[role].title} (n = {len(values)})",
            **role_line,
        )
    pairs = samples["synthetic"]
    for name, limit in limits.items():
        label = f"{name} copies, above {limit:.2f}: {(pairs > limit).sum()} of {len(pairs)} pairs"
        panel.axvline(limit, color="black", linewidth=1.2, linestyle="--" if name == "near" else "-", label=label)
    panel.set_xlabel("correlation with the nearest training case beyond the next five")
    panel.set_ylabel("share of cases")
    panel.yaxis.set_major_formatter(_percent)
    figure.legend(loc="outside upper left")
    return figure


def _worst(found: _Found) -> Figure | None:
    """The pairs nearest to a training case: what differs, never the real case itself."""
    needed = ("copies.differences", "copies.worst", "copies.excess.synthetic")
    if not all(len(found.arrays.get(key, ())) for key in needed):
        return None
    differences, worst, excess = (found.arrays[key] for key in needed)
    excess = excess[worst]
    top = np.nanpercentile(np.abs(differences), 99.5) or 1
    rows = -(-len(worst) // 2)
    channels = found.arrays.get("copies.channels", [""] * len(worst))  # of several the nearest one
    strips = [_three_planes(difference) for difference in differences]
    up, across = strips[0].shape
    figure = Figure(figsize=(WIDTH, 0.95 + rows * (0.3 + up / across * WIDTH / 2)), layout="constrained")
    panels = figure.subplots(rows, 2, squeeze=False)
    for panel, strip, k, value, channel in zip(panels.flat, strips, worst, excess, channels, strict=False):
        shown = panel.imshow(strip, cmap="RdBu_r", vmin=-top, vmax=top, origin="lower")
        name = found.pairs[k] if k < len(found.pairs) else f"pair {k + 1}"
        panel.set_title(f"{name}: {value:.2f}" + f" ({channel})" * bool(channel))
    for panel in panels.flat:
        panel.axis("off")
    for letter, place, side in (("L", 0.5, "left"), ("R", differences.shape[1] + 0.5, "right")):
        panels[0, 0].text(place, -0.5, letter, fontsize=8, ha=side, va="top")
    bar = figure.colorbar(shown, ax=panels, location="bottom", aspect=35, pad=0.02, ticks=[-top, 0, top])
    bar.ax.set_xticklabels(["pair darker", "no difference", "pair brighter"])
    for label, side in zip(bar.ax.get_xticklabels(), ("left", "center", "right"), strict=True):
        label.set_ha(side)
    title = "Pairs nearest to a training case: the pair minus that case\n(name of the pair and excess correlation)"
    figure.suptitle(title, fontsize=9)
    return figure


def _three_planes(volume: np.ndarray) -> np.ndarray:
    """The middle planes of a volume along L, P, S side by side, NaN around."""
    volume = volume[::-1, ::-1]
    views = [volume.take(volume.shape[axis] // 2, axis).T for axis in PLANES.values()]
    height = max(map(len, views))
    below = [(height - len(view)) // 2 for view in views]
    sides = [((b, height - len(view) - b), (1, 1)) for view, b in zip(views, below, strict=True)]
    return np.hstack([np.pad(view, s, constant_values=np.nan) for view, s in zip(views, sides, strict=True)])


def _requests(found: _Found) -> Figure | None:
    """Each measured characteristic against the one asked for."""
    parts = {part: found.rows(f"requested{part}", f"measured{part}") for part in ("", ".extrapolated")}
    parts = {part: rows for part, rows in parts.items() if len(rows)}
    if not parts:
        return None
    styles = {
        "": {"color": ROLES["synthetic"].colour, "marker": "o", "label": "within the training cases' range"},
        ".extrapolated": {"color": EXTRAPOLATED, "marker": "^", "label": "extrapolated"},
    }
    scored = {protocol.split("_error")[0].removeprefix("request.") for protocol in found.scores}
    names = [*NAMES, *(name for name in SHARES.values() if name.removesuffix("_percent") in scored)]
    lines = -(-len(names) // 3)
    figure = Figure(figsize=(WIDTH, 0.5 + 1.8 * lines), layout="constrained")
    panels = figure.subplots(lines, 3)
    for panel in panels.flat[len(names) :]:
        panel.axis("off")
    for k, (panel, name) in enumerate(zip(panels.flat, names, strict=False)):
        both = np.vstack([rows[:, [k, k + len(names)]] for rows in parts.values()])
        ends = [both.min(), both.max()]
        panel.plot(ends, ends, color="0.6", linewidth=1, zorder=0.5)
        for part, rows in parts.items():
            panel.scatter(rows[:, k], rows[:, k + len(names)], s=9, alpha=0.6, linewidths=0, **styles[part])
        _scale(panel, name, "xy")
        panel.set_title(_words(name))
        panel.set_box_aspect(1)
        score = found.scores.get(f"spearman.{name.rpartition('_')[0] or name}")
        if score and np.isfinite(score.value):
            text = f"\N{GREEK SMALL LETTER RHO} {Formatter.fix_minus(f'{score.value:.2f}')}"
            panel.text(0.04, 0.98, text, transform=panel.transAxes, fontsize=8, va="top", color=GREY)
    handles, labels = panels.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=2)
    figure.supxlabel("requested; \N{GREEK SMALL LETTER RHO}: Spearman's, within the range", fontsize=9)
    figure.supylabel("measured", fontsize=9)
    return figure


def _fit(found: _Found) -> Figure | None:
    """How well a segmentation network that knows real cases alone agrees with the masks."""
    samples = found.by_role("fit.dsc")
    if not samples:
        return None
    figure = Figure(figsize=(WIDTH, 3.2), layout="constrained")
    panel = figure.subplots()
    _ecdf(panel, samples)
    panel.set_xlabel("DSC of mask and segmentation")
    panel.set_ylabel("share of cases up to this value")
    _legend(figure, samples)
    return figure
