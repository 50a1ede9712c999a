"""A chart of many things in a few kinds: lines, and marks with their errors, each kind in its colour and shape."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from raydd.pages.axes import Axis, number
from raydd.pages.html import Html, element, joined
from raydd.pages.plots import level_line, nothing, renditions
from raydd.pages.svg import COLOURS, Frame, axes, coordinates, mark

TOLD = 200
"""Marks of a kind with more of them do not tell their values to a pointer, so that pages stay small."""

Point = tuple[float, float | None]
"""A position; without a height it is marked at the lower edge."""


@dataclass(frozen=True, kw_only=True)
class Kind:
    """Things that are drawn alike.

    ``style``: index of their colour and shape; ``lines``: each through its points; ``points``:
    marks, with their ``errors`` (0: none) and what each is ``called``; ``dashed`` is of lines,
    ``hollow`` of marks; ``many``: drawn fainter.
    """

    name: str
    style: int
    lines: Sequence[Sequence[tuple[float, float]]] = ()
    points: Sequence[Point] = ()
    errors: Sequence[float] = ()
    called: Sequence[str] = ()
    dashed: bool = False
    hollow: bool = False
    many: bool = False

    def reach(self) -> list[tuple[float, float]]:
        """Return all positions that have a height, errors included."""
        found = [point for line in self.lines for point in line]
        for i, (x, y) in enumerate(self.points):
            error = self.errors[i] if self.errors else 0.0
            found += [] if y is None else [(x, y - error), (x, y + error)]
        return found


def kinds_chart(
    kinds: Sequence[Kind],
    x: Axis,
    y: Axis,
    *,
    title: str,
    description: str = "",
    levels: Mapping[str, float] | None = None,
) -> Html:
    """Return a chart of things in a few kinds, with a legend; ``levels``: values of ``y`` by name, as lines across.

    What the axes cannot show is left out.
    """
    shown = [_shown(kind, x, y) for kind in kinds]
    reach = [point for kind in shown for point in kind.reach()]
    if not reach:
        return nothing(title)
    sides = [a for a, _ in reach] + [a for kind in shown for a, b in kind.points if b is None]
    x = _wider(x, x.fitted(sides, rounded=False))
    y = y.fitted([b for _, b in reach] + list((levels or {}).values()))
    said = " ".join([description, *filter(None, (_said(kind, y) for kind in shown))]).strip()

    def draw(frame: Frame) -> list[Html]:
        parts = [axes(frame, x, y), *(level_line(frame, y, *one) for one in (levels or {}).items())]
        return [*parts, *(_drawn(frame, x, y, kind) for kind in shown)]

    named = [kind for kind in shown if kind.name and (kind.lines or kind.points)]
    return joined(renditions(y, title, said, draw), _legend(named))


def _shown(kind: Kind, x: Axis, y: Axis) -> Kind:
    """Return a kind without what has no place on the axes."""
    kept = [i for i, (a, b) in enumerate(kind.points) if x.shows(a) and (b is None or y.shows(b))]
    lines = [[(a, b) for a, b in line if x.shows(a) and y.shows(b)] for line in kind.lines]
    return replace(
        kind,
        lines=[line for line in lines if line],
        points=[kind.points[i] for i in kept],
        errors=[kind.errors[i] for i in kept] if kind.errors else (),
        called=[kind.called[i] for i in kept] if kind.called else (),
    )


def _wider(given: Axis, x: Axis) -> Axis:
    """Return a fitted axis with a little room beside its first and last marks, where its ends were not given."""
    if given.categories or x.low is None or x.high is None:
        return x
    pad = (x.high / x.low) ** 0.025 if x.log else 0.025 * (x.high - x.low)
    low, high = (x.low / pad, x.high * pad) if x.log else (x.low - pad, x.high + pad)
    low = low if given.low is None else given.low
    return replace(x, low=low, high=high if given.high is None else given.high)


def _said(kind: Kind, y: Axis) -> str:
    """Return what a kind comes to, in words."""
    parts = []
    for what, count in (("line", len(kind.lines)), ("mark", len(kind.points))):
        if count:
            parts.append(f"{count} {what}{'s' * (count != 1)}")
    if not parts:
        return ""
    heights = [b for line in kind.lines for _, b in line]
    heights += [b for _, b in kind.points if b is not None]
    ends = f", from {y.text(min(heights))} to {y.text(max(heights))}" if heights else ""
    return f"{kind.name}: {' and '.join(parts)}{ends}."


def _drawn(frame: Frame, x: Axis, y: Axis, kind: Kind) -> Html:
    parts = [_line(frame, x, y, kind, line) for line in kind.lines]
    for i, (a, b) in enumerate(kind.points):
        if b is not None and kind.errors and kind.errors[i]:
            ends = [
                frame.y(y, min(max(b + sign * kind.errors[i], _low(y)), _high(y)))
                for sign in (-1, 1)
            ]
            path = f"M{coordinates(frame.x(x, a), ends[0])}V{coordinates(ends[1])}"
            parts.append(element("path", d=path, class_=f"whisker s{kind.style % COLOURS}"))
    for i, (a, b) in enumerate(kind.points):
        height = frame.bottom if b is None else frame.y(y, b)
        parts.append(mark(frame.x(x, a), height, kind.style, _told(x, y, kind, i)))
    names = [name for name in ("many", "hollow") if getattr(kind, name)]
    return element("g", *parts, class_=" ".join(names) or None)


def _low(y: Axis) -> float:
    return y.low if y.low is not None else 0.0


def _high(y: Axis) -> float:
    return y.high if y.high is not None else 0.0


def _line(frame: Frame, x: Axis, y: Axis, kind: Kind, line: Sequence[tuple[float, float]]) -> Html:
    if len(line) == 1:
        return mark(frame.x(x, line[0][0]), frame.y(y, line[0][1]), kind.style)
    path = "M" + "L".join(coordinates(frame.x(x, a), frame.y(y, b)) for a, b in line)
    dash = "7 4" if kind.dashed else None
    return element("path", d=path, class_=f"line s{kind.style % COLOURS}", stroke_dasharray=dash)


def _told(x: Axis, y: Axis, kind: Kind, i: int) -> str:
    if len(kind.points) > TOLD:
        return ""
    a, b = kind.points[i]
    name = kind.called[i] if kind.called else kind.name
    give = f" ± {number(kind.errors[i])}" if kind.errors and kind.errors[i] else ""
    height = "" if b is None else f": {y.text(b)}{give}"
    return f"{name}, {x.label} {x.text(a)}{height}"


def _legend(kinds: Sequence[Kind]) -> Html:
    if len(kinds) < 2:
        return Html("")
    items = []
    for kind in kinds:
        drawn = []
        if kind.lines:
            dash = "7 4" if kind.dashed else None
            look = f"line s{kind.style % COLOURS}"
            drawn.append(element("path", d="M0 8L30 8", class_=look, stroke_dasharray=dash))
        if kind.points:
            drawn.append(mark(15, 8, kind.style))
        group = element("g", *drawn, class_="hollow" if kind.hollow else None)
        swatch = element("svg", group, viewBox="0 0 30 16", class_="swatch", aria_hidden="true")
        items.append(element("li", swatch, kind.name))
    return element("ul", *items, class_="legend")
