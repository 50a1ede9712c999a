"""Charts as inline SVG, each drawn for wide and for narrow pages: lines, scatter, bars, parallel coordinates.

Series differ in colour, dashes and the shape of their marks. Every chart has a title and a
description for those who do not see it; its numbers belong beside it
(:func:`raydd.pages.blocks.figure`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from raydd.artifacts.tables import Table
from raydd.pages.axes import Axis, number, thinned
from raydd.pages.html import Html, element, joined
from raydd.pages.svg import (
    COLOURS,
    Frame,
    axes,
    band,
    canvas,
    coordinates,
    frame_for,
    legend,
    line,
    mark,
    shortened,
    text,
)

SIZES = (("wide", 760.0, 340.0), ("narrow", 370.0, 300.0))
"""The renditions of a chart: class, width and height in pixels."""
MARKED = 40
"""Lines of more points are marked at a few of them only, so that they are told apart by shape."""


@dataclass(frozen=True)
class Series:
    """Points ``(x, y)`` under a name, and, where it is known, the deviation of each ``y``."""

    name: str
    points: Sequence[tuple[float, float]]
    spread: Sequence[float] = ()


def line_chart(
    series: Sequence[Series],
    x: Axis,
    y: Axis,
    *,
    title: str,
    description: str = "",
    levels: Mapping[str, float] | None = None,
) -> Html:
    """Return lines over ``x``, with a band of one deviation where it is known; ``levels``: values of
    ``y`` by name that the lines are compared with.

    Points that the axes cannot show (not finite; 0 and below on logarithmic ones) are left out,
    which the description says.
    """
    return _chart(series, x, y, title, description, levels or {}, lines=True)


def scatter_chart(
    series: Sequence[Series],
    x: Axis,
    y: Axis,
    *,
    title: str,
    description: str = "",
    levels: Mapping[str, float] | None = None,
) -> Html:
    """Return a mark for each point; as :func:`line_chart` otherwise."""
    return _chart(series, x, y, title, description, levels or {}, lines=False)


def _chart(
    series: Sequence[Series],
    x: Axis,
    y: Axis,
    title: str,
    description: str,
    levels: Mapping[str, float],
    *,
    lines: bool,
) -> Html:
    shown = [_shown(one, x, y) for one in series]
    if not any(one.points for one in shown):
        return nothing(title)
    x = x.fitted((a for one in shown for a, _ in one.points), rounded=False)
    y = y.fitted([b for one in shown for b in _reach(one)] + list(levels.values()))
    said = " ".join([description, _summary(shown, x, y), _left_out(series, shown)]).strip()

    def draw(frame: Frame) -> list[Html]:
        parts = [axes(frame, x, y), *(level_line(frame, y, *level) for level in levels.items())]
        for index, one in enumerate(shown):
            parts += [_band(frame, x, y, one, index)] if lines else []
        for index, one in enumerate(shown):
            parts.append(_drawn(frame, x, y, one, index, lines=lines))
        return parts

    return joined(renditions(y, title, said, draw), legend([s.name for s in series], lines=lines))


def _shown(one: Series, x: Axis, y: Axis) -> Series:
    """Return a series without the points that have no place on the axes."""
    kept = [i for i, (a, b) in enumerate(one.points) if x.shows(a) and y.shows(b)]
    spread = [one.spread[i] for i in kept] if one.spread else ()
    return Series(one.name, [one.points[i] for i in kept], spread)


def _reach(one: Series) -> list[float]:
    values = [b for _, b in one.points]
    if not one.spread:
        return values
    return [b + sign * s for b, s in zip(values, one.spread, strict=True) for sign in (-1, 1)]


def _summary(series: Sequence[Series], x: Axis, y: Axis) -> str:
    """Return what the lines do, in words: from where to where, lowest and highest."""
    parts = []
    for one in series[:COLOURS]:
        if one.points:
            values = [b for _, b in one.points]
            name = one.name or y.label
            parts.append(
                f"{name}: {len(values)} point{'s' * (len(values) != 1)} from {x.label}"
                f" {x.text(one.points[0][0])} to {x.text(one.points[-1][0])}, first {y.text(values[0])}, last"
                f" {y.text(values[-1])}, lowest {y.text(min(values))}, highest {y.text(max(values))}."
            )
    more = len(series) - COLOURS
    return " ".join(parts) + (f" And {more} more." if more > 0 else "")


def _left_out(series: Sequence[Series], shown: Sequence[Series]) -> str:
    count = sum(len(s.points) for s in series) - sum(len(s.points) for s in shown)
    return f"{count} points that the axes cannot show are left out." if count else ""


def renditions(
    y: Axis, title: str, said: str, draw: Callable[[Frame], list[Html]], *, height: float = 0.0
) -> Html:
    """Return a chart drawn for wide and for narrow pages; ``said``: its description; ``height``: in
    pixels, of both (0: the usual ones).
    """
    pictures = []
    for size, width, usual in SIZES:
        frame = frame_for(y, width, height or usual)
        pictures.append(canvas(frame, title, said, *draw(frame), size=size))
    return joined(*pictures)


def nothing(title: str) -> Html:
    """Return what stands in place of a chart without data."""
    return element("p", f"{title}: there is nothing to draw yet.", class_="note")


def level_line(frame: Frame, y: Axis, name: str, value: float) -> Html:
    """Return a line across a chart at a value of the vertical axis, with its name."""
    if not y.shows(value):
        return Html("")
    at = frame.y(y, value)
    across = f"M{coordinates(frame.left, at)}H{coordinates(frame.right)}"
    words = shortened(f"{name} {number(value)}", frame.right - frame.left)
    above = at - 5 if at > frame.top + 16 else at + 15
    return joined(
        element("path", d=across, class_="level"),
        text(frame.right - 2, above, words, "end", class_="levelname"),
    )


def _band(frame: Frame, x: Axis, y: Axis, one: Series, index: int) -> Html:
    if not one.spread or len(one.points) < 2:
        return Html("")
    low = y.low if y.low is not None else 0.0
    sides = [
        [
            (frame.x(x, a), frame.y(y, max(b + sign * s, low)))
            for (a, b), s in zip(one.points, one.spread, strict=True)
        ]
        for sign in (1, -1)
    ]
    return band(sides[0], sides[1], index)


def _drawn(frame: Frame, x: Axis, y: Axis, one: Series, index: int, *, lines: bool) -> Html:
    points = thinned(one.points, int(frame.width / 2)) if lines else list(one.points)
    at = [(frame.x(x, a), frame.y(y, b)) for a, b in points]
    parts = [line(at, index)] if lines and len(at) > 1 else []
    every = 1 if not lines or len(at) <= MARKED else -(-len(at) // 8)
    spread = one.spread if len(points) == len(one.points) else ()
    for i in range(0 if every == 1 else every // 2, len(at), every):
        give = f" ± {number(spread[i])}" if spread else ""
        name = f"{one.name}, " if one.name else ""
        said = f"{name}{x.label} {x.text(points[i][0])}: {y.text(points[i][1])}{give}"
        parts.append(mark(*at[i], index, said))
    return joined(*parts)


def bar_chart(bars: Mapping[str, float], axis: Axis, *, title: str, description: str = "") -> Html:
    """Return horizontal bars from 0, a row for each name, with their values as text; all of one colour."""
    shown = {name: value for name, value in bars.items() if axis.shows(value)}
    if not shown:
        return nothing(title)
    x = axis.fitted([*shown.values(), *([] if axis.log else [0.0])])
    said = f"{description} {'; '.join(f'{n}: {number(v)}' for n, v in shown.items())}.".strip()
    names = Axis(label="", categories=tuple(reversed(shown))).fitted(())

    def draw(frame: Frame) -> list[Html]:
        parts = [axes(frame, x, names)]
        zero = frame.x(x, 0.0 if not x.log else x.low or 1.0)
        for i, value in enumerate(reversed(shown.values())):
            at, end = frame.y(names, i), frame.x(x, value)
            left, right = min(zero, end), max(zero, end)
            box = {"x": coordinates(left), "y": coordinates(at - 9), "height": "18"}
            width = coordinates(max(right - left, 1))
            parts.append(element("rect", class_="bar s0", width=width, **box))
            inside = right > frame.right - 60
            place = (right - 6, "end", "inbar") if inside else (right + 6, "start", "atbar")
            parts.append(text(place[0], at + 4.5, number(value), place[1], class_=place[2]))
        return parts

    return renditions(names, title, said, draw, height=64 + 30 * len(shown))


def parallel_chart(
    axes_: Sequence[Axis],
    lines: Sequence[Sequence[float | None]],
    *,
    title: str,
    description: str = "",
    best: Literal["high", "low"] = "high",
) -> Html:
    """Return parallel coordinates: a vertical axis for each column, a line for each row of values
    (of categories their indices), ``None`` where a row has none.

    Lines are coloured by their place on the last axis, the best of them the strongest, so that they
    are followed back to where they began.
    """
    rows = [row for row in lines if _finite(axes_[-1], row[-1])]
    if not rows or len(axes_) < 2:
        return nothing(title)
    fitted = [
        axis.fitted([v for row in rows if (v := row[i]) is not None])
        for i, axis in enumerate(axes_)
    ]
    order = sorted(rows, key=lambda row: float(row[-1] or 0), reverse=best == "low")
    last = fitted[-1]
    top = order[-1]
    said = (
        f"{description} {len(rows)} lines over {', '.join(axis.label for axis in fitted)}. The best,"
        f" {last.text(float(top[-1] or 0))}: {_values(fitted, top)}."
    ).strip()

    def draw(frame: Frame) -> list[Html]:
        inner = Frame(frame.width, frame.height, 54, frame.width - 54, 40, frame.height - 14)
        at = [
            inner.left + i * (inner.right - inner.left) / (len(fitted) - 1)
            for i in range(len(fitted))
        ]
        parts = []
        for place, row in enumerate(order):
            strength = 5 if len(order) == 1 else 1 + place * 4 // (len(order) - 1)
            parts.append(_across(inner, fitted, at, row, strength))
        room = (inner.right - inner.left) / (len(fitted) - 1)
        parts += [_upright(inner, axis, x, i, room) for i, (axis, x) in enumerate(zip(fitted, at))]
        return parts

    return renditions(Axis(label="", low=0, high=1), title, said, draw, height=340)


def _finite(axis: Axis, value: float | None) -> bool:
    return value is not None and axis.shows(value)


def _values(fitted: Sequence[Axis], row: Sequence[float | None]) -> str:
    pairs = zip(fitted, row, strict=True)
    return ", ".join(f"{a.label} {a.text(v)}" for a, v in pairs if v is not None and a.shows(v))


def _across(
    frame: Frame,
    fitted: Sequence[Axis],
    at: Sequence[float],
    row: Sequence[float | None],
    strength: int,
) -> Html:
    points = [
        (x, frame.y(axis, value))
        for axis, x, value in zip(fitted, at, row, strict=True)
        if value is not None and axis.shows(value)
    ]
    path = "M" + "L".join(coordinates(*point) for point in points)
    said = element("title", _values(fitted, row))
    return element("path", said, d=path, class_=f"across r{strength}")


def _upright(frame: Frame, axis: Axis, x: float, index: int, room: float) -> Html:
    ends = f"M{coordinates(x, frame.top)}V{coordinates(frame.bottom)}"
    above = 14 if index % 2 == 0 else 29  # neighbours' labels stand at two heights
    parts = [
        element("path", d=ends, class_="axis"),
        text(x, above, shortened(axis.label, min(2 * room, 108) - 4), class_="label"),
    ]
    for value, words in axis.ticks(5):
        words = shortened(words, max(room - 12, 40))
        parts.append(text(x + 5, frame.y(axis, value) + 4, words, "start", class_="on"))
    return joined(*parts)


def series_table(
    series: Sequence[Series], x: Axis, y: Axis, *, title: str = "", most: int = 60
) -> Table:
    """Return the numbers of a chart: a line for each ``x``, a column for each series. Of more than
    ``most`` lines evenly many are left out, which the title says.
    """
    values: dict[float, dict[int, str]] = {}
    for index, one in enumerate(series):
        for i, (a, b) in enumerate(one.points):
            give = f" ± {number(one.spread[i])}" if one.spread else ""
            values.setdefault(a, {})[index] = f"{y.text(b)}{give}"
    places = sorted(values)
    every = -(-len(places) // most)
    kept = [a for i, a in enumerate(places) if i % every == 0 or i == len(places) - 1]
    left = f" ({len(kept)} of {len(places)} lines)" if len(kept) < len(places) else ""
    names = [one.name or y.label for one in series]
    lines = [[x.text(a), *(values[a].get(i, "–") for i in range(len(series)))] for a in kept]
    return Table(f"{title or y.label}{left}", [x.label, *names], lines)
