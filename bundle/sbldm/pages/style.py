"""How all plots of an evaluation look: size, fonts, and what each role is drawn with."""

from __future__ import annotations

from typing import Any, NamedTuple

__all__ = []

WIDTH, DPI = 5.0, 180  # inches and pixels per inch
STYLE = {
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.labelsize": 9,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "legend.fontsize": 9,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "0.9",
    "grid.linewidth": 0.6,
    "savefig.dpi": DPI,
}
OUTLINES = ("#ff9d3b", "#4fc3f7", "#f06292")  # of the first label, the second, the third
GREY = "#404040"
EXTRAPOLATED = "#332288"


class _Role(NamedTuple):
    title: str
    line: dict[str, Any]

    @property
    def colour(self) -> str:
        return self.line["color"]


# Three of the colours of the downstream figures, which protan and deutan eyes tell apart; dashes for those without any.
ROLES = {
    "synthetic": _Role("synthetic", {"color": "#cc3311", "linestyle": "-", "linewidth": 1.8, "zorder": 3}),
    "train": _Role("training", {"color": "#0077bb", "linestyle": (0, (5, 1.5)), "linewidth": 1.4}),
    "heldout": _Role("held-back", {"color": GREY, "linestyle": (0, (1, 1)), "linewidth": 1.6}),
}
PLANES = {"axial": 2, "coronal": 1, "sagittal": 0}  # and the axis across
