"""Charts as geometry in the units of an SVG's view box; the template draws them."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, floor, log10
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

# Small, so that text which grows and shrinks with the drawing can be read on a phone.
WIDTH, HEIGHT = 360, 210
LEFT, RIGHT, TOP, BOTTOM = 48, 348, 22, 176
MAX_POINTS = 500  # of a line

Series = tuple[str, ArrayLike, ArrayLike]  # name, x, y


class Line(NamedTuple):
    """A drawn series. path: of an SVG; last: its last value, as a text."""

    name: str
    path: str
    last: str


class Place(NamedTuple):
    """A text at a place of an axis."""

    at: float
    text: str


@dataclass(frozen=True)
class Chart:
    """caption: what it shows and what to conclude. mark: a vertical line. filled: down to the axis."""

    title: str
    caption: str
    x_label: str
    y_label: str
    x_ticks: list[Place]
    y_ticks: list[Place]
    lines: list[Line]
    mark: Place | None
    filled: bool


def chart(
    title: str,
    caption: str,
    series: Sequence[Series],
    x_label: str,
    y_label: str,
    y_range: tuple[float, float] | None = None,
    form: str = ".4g",
    mark: Place | None = None,
    filled: bool = False,
) -> Chart | None:
    """None where no series has a finite value; values that are not finite interrupt their line.

    y_range: of what occurs and zero, if None. form: of the last values. mark: `at` in the units of x.
    """
    points = [(name, np.asarray(x, float), np.where(np.isfinite(y), y, np.nan)) for name, x, y in series]
    points = [(name, x, y) for name, x, y in points if np.isfinite(y).any()]
    if not points:
        return None
    x_low, x_high = _range(np.concatenate([x for _, x, _ in points]))
    y_low, y_high = y_range or _with_zero(np.concatenate([y for _, _, y in points]))

    def x_at(value: float) -> float:
        return LEFT + (value - x_low) / (x_high - x_low) * (RIGHT - LEFT)

    def y_at(value: float) -> float:
        return BOTTOM - (value - y_low) / (y_high - y_low) * (BOTTOM - TOP)

    lines = [
        Line(name, _path([(x_at(a), y_at(b)) for a, b in zip(x, y, strict=True)]), f"{y[np.isfinite(y)][-1]:{form}}")
        for name, x, y in points
    ]
    x_ticks = [Place(x_at(value), f"{value:,.10g}") for value in ticks(x_low, x_high)]
    y_ticks = [Place(y_at(value), f"{value:,.10g}") for value in ticks(y_low, y_high)]
    mark = mark and Place(x_at(mark.at), mark.text)
    return Chart(title, caption, x_label, y_label, x_ticks, y_ticks, lines, mark, filled)


def _range(values: NDArray) -> tuple[float, float]:
    low, high = float(np.nanmin(values)), float(np.nanmax(values))
    room = 0 if high > low else 0.1 * abs(high) or 1  # around what is constant
    return low - room, high + room


def _with_zero(values: NDArray) -> tuple[float, float]:
    """An axis that starts elsewhere makes small changes look large."""
    low, high = min(0.0, float(np.nanmin(values))), max(0.0, float(np.nanmax(values)))
    return low, high if high > low else 1.0


def _path(points: Sequence[tuple[float, float]]) -> str:
    parts: list[str] = []
    joined = False
    for x, y in points:
        if not np.isnan(y):
            # The line of no length shows a point that has no neighbour.
            parts.append(f"L{x:.1f} {y:.1f}" if joined else f"M{x:.1f} {y:.1f}h0")
        joined = not np.isnan(y)
    return "".join(parts)


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round values from low to high, about `count` of them: multiples of 1, 2 or 5 times a power of ten."""
    least = (high - low) / count
    power = 10.0 ** floor(log10(least))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= least)
    return [number * step for number in range(ceil(low / step - 1e-9), floor(high / step + 1e-9) + 1)]


def thinned(rows: Sequence) -> tuple[Sequence, int]:
    """Every k-th, so that MAX_POINTS or fewer are left; and k."""
    every = ceil(len(rows) / MAX_POINTS) or 1
    return rows[::every], every


def stairs(edges: NDArray, heights: NDArray) -> tuple[NDArray, NDArray]:
    """x and y of a histogram's outline, from the axis back to it."""
    return np.repeat(edges, 2), np.concatenate([[0], np.repeat(heights, 2), [0]])
