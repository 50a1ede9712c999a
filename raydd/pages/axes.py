"""Axes of charts: from values to positions, and the ticks beside them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace


@dataclass(frozen=True, kw_only=True)
class Axis:
    """What an axis shows, and how.

    ``log``: powers of ten are equally far apart; values of 0 and below cannot be shown. ``low``,
    ``high``: where it ends (``None``: at the data's ends, rounded to ticks). ``whole``: ticks are
    whole numbers. ``categories``: names in place of numbers, whose values are their indices.
    """

    label: str
    log: bool = False
    low: float | None = None
    high: float | None = None
    whole: bool = False
    categories: tuple[str, ...] = ()

    def shows(self, value: float) -> bool:
        """Return whether a value has a place on the axis."""
        return math.isfinite(value) and (value > 0 or not self.log)

    def fitted(self, values: Iterable[float], *, rounded: bool = True) -> Axis:
        """Return the axis with its ends: the given ones, or those of the values that it shows;
        ``rounded``: to the next tick.
        """
        if self.categories:
            return replace(self, low=-0.5, high=len(self.categories) - 0.5, log=False)
        shown = [value for value in values if self.shows(value)] or [1.0]
        low = min(shown) if self.low is None else self.low
        high = max(shown) if self.high is None else self.high
        if low == high:
            pad = 0.5 * abs(low) or 1.0
            low, high = (low / 2, high * 2) if self.log else (low - pad, high + pad)
        if rounded and not self.log:
            step = _step(low, high)
            low = low if self.low is not None else math.floor(low / step + 1e-9) * step
            high = high if self.high is not None else math.ceil(high / step - 1e-9) * step
        return replace(self, low=low, high=high)

    def position(self, value: float, start: float, end: float) -> float:
        """Return where a value lies between the positions ``start`` and ``end`` of a fitted axis's ends."""
        low, high = self._ends()
        if self.log:
            value, low, high = math.log10(value), math.log10(low), math.log10(high)
        return start + (end - start) * (value - low) / (high - low)

    def ticks(self, most: int = 6) -> list[tuple[float, str]]:
        """Return values of a fitted axis that are marked, with their texts."""
        if self.categories:
            return [(float(i), name) for i, name in enumerate(self.categories)]
        low, high = self._ends()
        if self.log:
            return [(value, number(value)) for value in _powers(low, high, most)]
        step = max(_step(low, high, most), 1.0 if self.whole else 0.0)
        first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
        return [(i * step, number(i * step)) for i in range(first, last + 1)]

    def text(self, value: float) -> str:
        """Return a value as it is said: its category, or the number."""
        if self.categories:
            return self.categories[round(value)]
        return number(value)

    def _ends(self) -> tuple[float, float]:
        if self.low is None or self.high is None:
            raise ValueError(f"the axis '{self.label}' is not fitted to any values")
        return self.low, self.high


def _step(low: float, high: float, most: int = 6) -> float:
    """Return the distance of at most ``most`` ticks or so: 1, 2 or 5 times a power of ten."""
    rough = (high - low) / max(1, most - 1)
    power = 10.0 ** math.floor(math.log10(rough))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)


def _powers(low: float, high: float, most: int) -> list[float]:
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    for factors in ((1, 2, 5), (1, 3), (1,)):
        found = [factor * 10.0**k for k in range(first, last + 1) for factor in factors]
        found = [value for value in found if low * 0.999 <= value <= high * 1.001]
        if 2 <= len(found) <= most:
            return found
    if len(found) < 2:
        return [low, high]
    return found[:: -(-len(found) // most)]


def number(value: float) -> str:
    """Return a number for people: four digits, no exponent where it is of a common size."""
    if not math.isfinite(value):
        return "–"
    if value == int(value) and abs(value) < 1e7:
        return f"{int(value):,}"
    return f"{value:.4g}"


def thinned(points: Sequence[tuple[float, float]], most: int = 400) -> list[tuple[float, float]]:
    """Return at most so many points of a line that looks the same: of each stretch its lowest and
    highest, in order, and both ends.
    """
    if len(points) <= most:
        return list(points)
    stretch = math.ceil((len(points) - 2) / ((most - 2) / 2))
    kept = {0, len(points) - 1}
    for start in range(1, len(points) - 1, stretch):
        span = range(start, min(start + stretch, len(points) - 1))
        kept |= {min(span, key=lambda i: points[i][1]), max(span, key=lambda i: points[i][1])}
    return [points[i] for i in sorted(kept)]
