"""What all plots share: axes and colours."""

from __future__ import annotations

from typing import Any, TypeAlias

from inferscale._optional import require

Axes: TypeAlias = Any
"""``matplotlib.axes.Axes``."""
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
"""Of lines, told apart with any colour vision and on white: Okabe and Ito's, without their yellow."""


def in_legend(name: str) -> str:
    """A name as it is: matplotlib reads what stands between dollars as a formula, and hides what begins with ``_``."""
    return (" " if name.startswith("_") else "") + name.replace("$", r"\$")


def new_axes(ax: Axes, size: tuple[float, float] = (5.5, 4)) -> Axes:
    """`ax`, or the axes of a new figure of `size` (inches)."""
    if ax is not None:
        return ax
    return require("matplotlib.figure", "plot").Figure(figsize=size, layout="constrained").subplots()
