"""Pictures of an evaluation: the arms beside the baseline case by case, learning curves, and what more data bring."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.transforms import offset_copy

from nnunet_integration.results import ArmResults, Results
from nnunet_integration.statistics import LEAST_TRAININGS, paired_difference, undecided
from sbldm.run.files import atomic_path

__all__ = ["arm_styles", "draw_figures", "n_real_points", "plateau_points", "worst_drops"]

Point = tuple[float, float, float, float]  # position, mean, lower and upper end of its interval
Style = dict[str, Any]

GREY = "#404040"
# At least 23 apart in CIELAB, and from the grey, to normal, protan and deutan eyes (Machado et al. 2009).
PALETTE = ("#0077bb", "#cc3311", "#e69f00", "#332288", "#cc79a7", "#88ccee", "#ee6677", "#ddcc77")
MARKERS = "osD^vPX<>"
DASHES = ("-", (0, (5, 1.5)), (0, (3, 1, 1, 1)), (0, (1, 1)))
DROPS = 10  # bars for each arm
SHARED = "the arms share their test cases, so compare two of them in paired_n*.png"


def draw_figures(results: Results) -> list[Path]:
    """Write the figures of an evaluation into its folder `figures`; one that has nothing to show is left out.

    Returns:
        Files written: paired_n{N}.png and worst_n{N}.png for each number N of real cases, learning_iterations.png,
        learning_n_real.png and plateau.png.
    """
    figures = {}
    for n in results.n_real:
        figures |= {f"paired_n{n}": _paired(results, n), f"worst_n{n}": _worst(results, n)}
    figures |= {
        "learning_iterations": _learning_iterations(results),
        "learning_n_real": _learning_n_real(results),
        "plateau": _plateau(results),
    }
    paths = {results.folder / "figures" / f"{name}.png": figure for name, figure in figures.items() if figure}
    for path, figure in paths.items():
        with atomic_path(path) as temporary:
            figure.savefig(temporary, dpi=110)
    return list(paths)


def arm_styles(results: Results) -> dict[str, Style]:
    """Colour, marker and line style of each arm and each family (an arm's name before "@") in all figures.

    A family has one colour and one marker. Its amounts of pairs are shades, from light (few) to dark, and dashes. The
    baseline is dark grey.
    """
    amounts = {name: arm.amount for (_, name), arm in results.arms.items()}
    families = defaultdict(list)
    for name in amounts:
        if name != results.book.baseline:
            families[_family(name)].append(name)
    styles: dict[str, Style] = {}
    for (family, names), colour, marker in zip(families.items(), cycle(PALETTE), cycle(MARKERS[1:]), strict=False):
        styles[family] = {"color": colour, "marker": marker, "linestyle": "-"}
        shades = np.linspace(0.45, -0.3, len(names)) if len(names) > 1 else [0]
        for name, shade, dashes in zip(sorted(names, key=amounts.get), shades, cycle(DASHES[::-1]), strict=False):
            target = np.full(3, float(shade > 0))
            mixed = tuple((1 - abs(shade)) * np.array(to_rgb(colour)) + abs(shade) * target)
            styles[name] = styles[family] | {"color": mixed, "linestyle": dashes if len(names) > 1 else "-"}
    return styles | {results.book.baseline: {"color": GREY, "marker": MARKERS[0], "linestyle": "-"}}


def n_real_points(results: Results) -> dict[str, list[Point]]:
    """Each arm over the numbers of real cases: (number, mean DSC, low, high), rising; none where all arms have one.

    Amounts of pairs are one line, by the name of their family, where no number of real cases has several of them.
    """
    counted = Counter((n, _family(name)) for n, name in results.arms)
    several = {family for (_, family), count in counted.items() if count > 1}
    points = defaultdict(list)
    for (n, name), arm in results.arms.items():
        points[name if _family(name) in several else _family(name)].append(_point(n, arm))
    return {name: sorted(found) for name, found in points.items()} if len(results.n_real) > 1 else {}


def plateau_points(results: Results, n_real: int) -> dict[str, list[Point]]:
    """The families that have two or more amounts of pairs: (pairs per real case, mean DSC, low, high), rising.

    Amount 0 is the arm of the same name without the generator: `real+aug` of `real+sbldm+aug@2x`.
    """
    arms = results.with_n(n_real)
    points: dict[str, dict[float, Point]] = defaultdict(dict)
    for name, arm in arms.items():
        if arm.amount:
            points[_family(name)][arm.amount] = _point(arm.amount, arm)
    several = {family: found for family, found in points.items() if len(found) > 1}
    for family, found in several.items():
        words = family.split("+")
        for k in range(len(words)):
            without = arms.get("+".join(words[:k] + words[k + 1 :]))
            if without and not without.amount:
                found[0.0] = _point(0.0, without)
    return {family: sorted(found.values()) for family, found in several.items()}


def worst_drops(arm: ArmResults, baseline: ArmResults, count: int = DROPS) -> list[tuple[str, float, float]]:
    """The cases that lose most DSC against the baseline, at most `count`: (case, baseline's DSC, arm's), worst first.

    DSC is the mean over trainings; a case that loses nothing is left out.
    """
    before, after = baseline.scores["dsc"].mean(0), arm.scores["dsc"].mean(0)
    order = np.argsort(after - before, kind="stable")[:count]
    return [(arm.cases[k], float(before[k]), float(after[k])) for k in order if before[k] - after[k] > 1e-9]


def _family(name: str) -> str:
    return name.partition("@")[0]


def _point(position: float, arm: ArmResults) -> Point:
    found = paired_difference(arm.scores["dsc"], np.zeros((1, len(arm.cases))))
    return position, found["difference"], found["low"], found["high"]


def _range(values: Iterable[int], unit: str) -> str:
    low, high = min(values := list(values)), max(values)
    return f"{low} {unit}{'s' * (low != 1)}" if low == high else f"{low} to {high} {unit}s"


def _sizes(arms: Iterable[ArmResults]) -> str:
    """How much the arms rest on, for a title."""
    arms = list(arms)
    text = f"{_range((len(a.cases) for a in arms), 'test case')}, "
    text += _range((len({job["seed"] for job in a.jobs}) for a in arms), "seed")
    folds = [len({job["fold"] for job in a.jobs}) for a in arms]
    return text if max(folds) == 1 else f"{text}, {_range(folds, 'fold')}"


def _interval(arms: Iterable[ArmResults]) -> str:
    """What the intervals of these arms hold."""
    least = min(len(arm.jobs) for arm in arms)
    over = "test cases alone where there is one training" if least == 1 else "test cases and trainings"
    few = f";\nnothing is decided with fewer than {LEAST_TRAININGS} trainings" if undecided(least) else ""
    return f"95 % bootstrap interval over {over}{few}"


def _real(n: int) -> str:
    return f"N = {n} real training case{'s' * (n != 1)}"


def _tidy(panel: Axes) -> None:
    panel.spines[["top", "right"]].set_visible(False)
    panel.grid(axis="y", color="0.9", linewidth=0.6)
    panel.set_axisbelow(True)
    panel.tick_params(labelsize=8)


def _legend(figure: Figure, handles: Sequence[Line2D]) -> None:
    """Below the panels, in as many columns as fit."""
    widest = 0.6 + 0.068 * max(len(handle.get_label()) for handle in handles)
    columns = max(1, min(len(handles), int(figure.get_figwidth() / widest)))
    figure.legend(handles=handles, loc="outside lower center", ncols=columns, fontsize=8, frameon=False)


def _handles(names: Iterable[str], styles: Mapping[str, Style]) -> list[Line2D]:
    return [Line2D([], [], label=name, markersize=5, **styles[name]) for name in names]


def _paired(results: Results, n_real: int) -> Figure | None:
    """Above, the DSC of every case of every arm; below, what each case gains or loses against the baseline."""
    arms, styles = results.with_n(n_real), arm_styles(results)
    baseline = arms.get(results.book.baseline)
    if baseline is None or len(arms) < 2:
        return None
    figure = Figure(figsize=(max(6.5, 1.8 + 0.8 * len(arms)), 8), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True)
    count = len(baseline.cases)
    places = 0.55 * (np.random.default_rng(0).permutation(count) + 0.5) / count - 0.4  # of each case, in all columns
    mark = {"color": "black", "linewidth": 3}
    dots = {"s": 16 if count <= 40 else 9, "alpha": 0.6, "linewidths": 0}
    for column, (name, arm) in enumerate(arms.items()):
        colour, scores = styles[name]["color"], arm.scores["dsc"]
        above.scatter(column + places, scores.mean(0), color=colour, **dots)
        above.hlines(scores.mean(), column + 0.2, column + 0.4, **mark)
        _note(above, column, f"{scores.mean():.3f}")
        if paper := _paper(results, name):
            above.scatter(column + 0.3, paper, marker="D", s=42, facecolor="none", edgecolor="black", zorder=3)
        if arm is baseline:
            _note(below, column, "baseline")
            continue
        below.scatter(column + places, scores.mean(0) - baseline.scores["dsc"].mean(0), color=colour, **dots)
        found = paired_difference(scores, baseline.scores["dsc"])
        below.vlines(column + 0.3, found["low"], found["high"], **mark)
        below.hlines(found["difference"], column + 0.2, column + 0.4, **mark)
        few = undecided(min(len(scores), len(baseline.jobs)))
        _note(below, column, f"{found['difference']:+.3f}" + "\nnot decided" * bool(few))
    below.axhline(0, color=GREY, linewidth=1, zorder=0.5)
    below.set_xticks(range(len(arms)), list(arms), rotation=35, ha="right", rotation_mode="anchor")
    below.set_xlim(-0.6, len(arms) - 0.4)
    above.set_ylabel("DSC", fontsize=9)
    below.set_ylabel(f"DSC minus that of {baseline.name}", fontsize=9)
    for panel in (above, below):
        _tidy(panel)
    figure.suptitle(f"DSC of each test case: {_real(n_real)}\n{_sizes(arms.values())}", fontsize=10)
    point, interval = {"linestyle": "", "color": "black"}, _interval(arms.values())
    handles = [
        Line2D([], [], marker="o", markersize=4, label="a test case, mean over trainings", linestyle="", color="0.6"),
        Line2D([], [], marker="_", markersize=11, markeredgewidth=2, label="mean (its value on top)", **point),
        Line2D([], [], marker="|", markersize=9, markeredgewidth=3.5, label=f"below: {interval}", **point),
    ]
    if any(_paper(results, name) for name in arms):
        label = "the paper's mean, on its own 100 test cases: not comparable case by case"
        handles.append(Line2D([], [], marker="D", markerfacecolor="white", label=label, **point))
    _legend(figure, handles)
    return figure


def _paper(results: Results, name: str) -> float | None:
    """DSC that the paper reports for an arm; it has as many pairs as real cases."""
    return results.book.paper.get(name.removesuffix("@1x"), (None,))[0]


def _note(panel: Axes, column: int, text: str) -> None:
    place = panel.get_xaxis_transform()
    panel.text(column, 1.01, text, transform=place, ha="center", va="bottom", fontsize=8)


def _learning_iterations(results: Results) -> Figure:
    """For each N the DSC of the test cases on the way, above the losses of training and validation.

    Validation is on the cases of the fold; without folds on patches of the test cases.
    """
    styles, columns = arm_styles(results), len(results.n_real)
    figure = Figure(figsize=(max(6.5, 4.6 * columns), 10), layout="constrained")
    rows = figure.subplots(3, columns, sharex="col", sharey="row", squeeze=False, height_ratios=(1.2, 1, 1))
    rows[1, 0].sharey(rows[2, 0])
    for n, (scores, train, validation) in zip(results.n_real, rows.T, strict=True):
        arms = results.with_n(n)
        for name, arm in arms.items():
            style = styles[name]
            iterations = list(arm.snapshots)
            trainings = np.array([dsc.mean(1) for dsc in arm.snapshots.values()])  # [iterations, S]
            mean = trainings.mean(1)
            scores.plot(iterations, mean, markersize=4, linewidth=1.4, **style)
            if trainings.shape[1] > 1:
                sd = trainings.std(1, ddof=1)
                scores.fill_between(iterations, mean - sd, mean + sd, color=style["color"], alpha=0.15, linewidth=0)
            thin = {"color": style["color"], "linestyle": style["linestyle"]}
            epochs = min(len(curve["iterations"]) for curve in arm.curves)
            for panel, column in ((train, "train_loss"), (validation, "validation_loss")):
                losses = np.array([curve[column][:epochs] for curve in arm.curves])  # [S, epochs]
                panel.plot(arm.curves[0]["iterations"][:epochs], losses.mean(0), linewidth=1, **thin)
                if len(losses) > 1:
                    panel.plot(arm.curves[0]["iterations"][:epochs], losses.T, linewidth=0.5, alpha=0.2, **thin)
        scores.set_title(f"{_real(n)}\n{_sizes(arms.values())}", fontsize=9)
        validation.set_xlabel("iterations", fontsize=9)
    for panel in rows.flat:
        _tidy(panel)
    for panel, label in zip(
        rows[:, 0], ("mean DSC of the test cases", "training loss", "validation loss"), strict=True
    ):
        panel.set_ylabel(label, fontsize=9)
    figure.suptitle("Learning curves: mean over trainings; bands: SD over trainings; pale: each training", fontsize=10)
    _legend(figure, _handles(dict.fromkeys(name for _, name in results.arms), styles))
    return figure


def _lines(panel: Axes, points: Mapping[str, Sequence[Point]], styles: Mapping[str, Style]) -> None:
    """A line with intervals for each name, moved apart sideways by a few dots so that the intervals do not hide."""
    for k, (name, found) in enumerate(points.items()):
        x, mean, low, high = np.array(found).T
        apart = min(4, 40 / len(points)) * (k - (len(points) - 1) / 2)
        place = offset_copy(panel.transData, panel.figure, x=apart, units="points")
        errors = np.clip([mean - low, high - mean], 0, None)
        panel.update_datalim([*zip(x, low, strict=True), *zip(x, high, strict=True)])  # which a moved line does not
        panel.errorbar(x, mean, errors, transform=place, markersize=4.5, linewidth=1.3, elinewidth=1, **styles[name])
    positions = sorted({point[0] for found in points.values() for point in found})
    panel.set_xticks(positions, [f"{p:.2g}" if p < 1 else f"{p:g}" for p in positions])
    panel.minorticks_off()
    panel.margins(x=0.1)
    panel.autoscale_view()
    _tidy(panel)


def _learning_n_real(results: Results) -> Figure | None:
    points, styles = n_real_points(results), arm_styles(results)
    if not points:
        return None
    figure = Figure(figsize=(7.5, 6), layout="constrained")
    panel = figure.subplots()
    panel.set_xscale("log")
    _lines(panel, points, styles)
    panel.set_xlabel("N, real training cases", fontsize=9)
    panel.set_ylabel("mean DSC", fontsize=9)
    shown = list(results.arms.values())
    figure.suptitle(f"What more real cases bring: {_sizes(shown)}\nbars: {_interval(shown)};\n{SHARED}", fontsize=10)
    _legend(figure, _handles(points, styles))
    return figure


def _plateau(results: Results) -> Figure | None:
    by_n = {n: points for n in results.n_real if (points := plateau_points(results, n))}
    if not by_n:
        return None
    styles = arm_styles(results)
    figure = Figure(figsize=(max(6.5, 4.2 * len(by_n)), 5), layout="constrained")
    for (n, points), panel in zip(
        by_n.items(), figure.subplots(1, len(by_n), sharey=True, squeeze=False).flat, strict=True
    ):
        least = min(point[0] for found in points.values() for point in found if point[0])
        panel.set_xscale("symlog", base=2, linthresh=least)
        _lines(panel, points, styles)
        panel.set_title(_real(n), fontsize=9)
        panel.set_xlabel("synthetic pairs for each real case", fontsize=9)
    figure.axes[0].set_ylabel("mean DSC", fontsize=9)
    shown = [arm for (n, name), arm in results.arms.items() if _family(name) in by_n.get(n, ())]
    title = f"What more synthetic pairs bring: {_sizes(shown)}\nbars: {_interval(shown)};\n{SHARED}"
    figure.suptitle(title, fontsize=10)
    _legend(figure, _handles(dict.fromkeys(family for points in by_n.values() for family in points), styles))
    return figure


def _worst(results: Results, n_real: int) -> Figure | None:
    """A panel for each arm with the cases that it makes worse."""
    arms, styles = results.with_n(n_real), arm_styles(results)
    baseline = arms.pop(results.book.baseline, None)
    drops = {name: worst_drops(arm, baseline) for name, arm in arms.items()} if baseline else {}
    if not any(drops.values()):
        return None
    columns = min(3, len(drops))
    rows = -(-len(drops) // columns)
    bars = max(map(len, drops.values()))
    width = 2.6 + 0.07 * max(len(case) + 14 for found in drops.values() for case, *_ in found)
    figure = Figure(figsize=(max(6.5, width * columns), 1.1 + rows * (0.8 + 0.2 * bars)), layout="constrained")
    panels = figure.subplots(rows, columns, sharex=True, squeeze=False).flat
    for (name, found), panel in zip(drops.items(), panels, strict=False):
        panel.barh(range(len(found)), [before - after for _, before, after in found], color=styles[name]["color"])
        labels = [f"{case}  {before:.2f} \N{RIGHTWARDS ARROW} {after:.2f}" for case, before, after in found]
        panel.set_yticks(range(len(found)), labels)
        panel.set_ylim(bars - 0.5, -0.5)
        losers = (arms[name].scores["dsc"].mean(0) < baseline.scores["dsc"].mean(0)).sum()
        panel.set_title(f"{name}\n{losers} of {len(baseline.cases)} cases lower", fontsize=9)
        panel.locator_params(axis="x", nbins=4)
        _tidy(panel)
        panel.grid(visible=False)
    for panel in panels:  # those left over
        panel.axis("off")
    figure.supxlabel(f"DSC lost against {results.book.baseline}", fontsize=9)
    title = f"Test cases that lose most DSC against {results.book.baseline} (at most {DROPS} an arm)\n{_real(n_real)}"
    figure.suptitle(f"{title}, {_sizes([baseline, *arms.values()])}", fontsize=10)
    return figure
