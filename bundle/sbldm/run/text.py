"""How numbers are written for people."""

from __future__ import annotations

import math

__all__ = ["number"]


def number(value: float, unit: str = "") -> str:
    """Three significant digits, never as a power of ten."""
    if not math.isfinite(value):
        return "-"
    digits = 0 if abs(value) < 1e-9 else min(6, max(0, 2 - math.floor(math.log10(abs(value)))))
    return f"{value:.{digits}f}{' ' + unit if unit else ''}"
