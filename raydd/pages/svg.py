"""Pieces of charts: canvas, axes with grid, lines, marks. Colours are classes, which the page gives to either theme."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from raydd.pages.axes import Axis
from raydd.pages.html import Html, element, joined

COLOURS = 8
"""Colours that a page has for series, one class each: ``s0`` to ``s7``."""
DASHES = ("", "8 4", "2 4", "10 4 2 4", "5 3", "14 4", "2 2", "10 3 2 3 2 3")
_LETTER = 7.2
"""Width of a letter of the texts in charts, in pixels, about."""


@dataclass(frozen=True)
class Frame:
    """The box of a chart in pixels: its size and the ends of the axes, ``top`` and ``left`` first."""

    width: float
    height: float
    left: float
    right: float
    top: float
    bottom: float

    def x(self, axis: Axis, value: float) -> float:
        """Return where a value of the horizontal axis lies."""
        return axis.position(value, self.left, self.right)

    def y(self, axis: Axis, value: float) -> float:
        """Return where a value of the vertical axis lies."""
        return axis.position(value, self.bottom, self.top)


def frame_for(y: Axis, width: float, height: float) -> Frame:
    """Return the frame that leaves room for the texts of a vertical axis."""
    longest = max((len(text) for _, text in y.ticks()), default=1)
    left = 30 + min(_LETTER * longest, 0.4 * width)
    return Frame(width, height, left, width - 16, 12, height - 48)


def coordinates(*values: float) -> str:
    """Return positions as SVG writes them, rounded to a tenth of a pixel."""
    return " ".join(f"{value:.1f}".removesuffix(".0") for value in values)


def canvas(frame: Frame, title: str, description: str, *drawn: Html, size: str) -> Html:
    """Return the picture with what is said of it where it is not seen; ``size``: the class that
    shows it on ``wide`` or ``narrow`` pages.
    """
    own = hashlib.sha256(f"{size}{title}{description}{drawn}".encode()).hexdigest()[:10]
    return element(
        "svg",
        element("title", title, id=f"t{own}"),
        element("desc", description, id=f"d{own}"),
        *drawn,
        class_=f"chart {size}",
        viewBox=f"0 0 {coordinates(frame.width, frame.height)}",
        role="img",
        aria_labelledby=f"t{own}",
        aria_describedby=f"d{own}",
    )


def text(x: float, y: float, words: str, anchor: str = "middle", **attributes: str) -> Html:
    """Return a text at a position."""
    place = {"x": coordinates(x), "y": coordinates(y), "text_anchor": anchor}
    return element("text", words, **place, **attributes)


def shortened(words: str, width: float) -> str:
    """Return a text that fits into so many pixels, cut with ``…`` where it does not."""
    most = max(2, int(width / _LETTER + 0.01))
    return words if len(words) <= most else words[: most - 1] + "…"


def axes(frame: Frame, x: Axis, y: Axis) -> Html:
    """Return grid, ticks and labels of both axes."""
    parts = [_horizontal(frame, y), _vertical(frame, x)]
    base = f"M{coordinates(frame.left, frame.top)}V{coordinates(frame.bottom)}H{coordinates(frame.right)}"
    parts.append(element("path", d=base, class_="axis"))
    middle = (frame.left + frame.right) / 2, (frame.top + frame.bottom) / 2
    room = frame.bottom - frame.top
    parts.append(text(middle[0], frame.height - 6, shortened(x.label, frame.width), class_="label"))
    turned = f"rotate(-90 14 {coordinates(middle[1])})"
    parts.append(text(14, middle[1], shortened(y.label, room), class_="label", transform=turned))
    return joined(*parts)


def _horizontal(frame: Frame, y: Axis) -> Html:
    parts = []
    for value, words in y.ticks(6):
        at = frame.y(y, value)
        ends = f"M{coordinates(frame.left, at)}H{coordinates(frame.right)}"
        parts.append(element("path", d=ends, class_="grid"))
        words = shortened(words, frame.left - 30)
        parts.append(text(frame.left - 6, at + 4.5, words, "end"))
    return joined(*parts)


def _vertical(frame: Frame, x: Axis) -> Html:
    room = frame.right - frame.left
    ticks = x.ticks(max(3, int(room / 90)))
    each = room / max(1, len(ticks))
    parts = []
    for value, words in ticks:
        at = frame.x(x, value)
        ends = f"M{coordinates(at, frame.top)}V{coordinates(frame.bottom)}"
        parts.append(element("path", d=ends, class_="grid"))
        words = shortened(words, max(each, 28) - 4) if x.categories else words
        parts.append(text(min(at, frame.width - 3.6 * len(words)), frame.bottom + 18, words))
    return joined(*parts)


def line(points: Sequence[tuple[float, float]], index: int) -> Html:
    """Return a series' line through positions, in its colour and dashes."""
    path = "M" + "L".join(coordinates(*point) for point in points)
    dash = DASHES[index % len(DASHES)] or None
    return element("path", d=path, class_=f"line s{index % COLOURS}", stroke_dasharray=dash)


def band(
    upper: Sequence[tuple[float, float]], lower: Sequence[tuple[float, float]], index: int
) -> Html:
    """Return the area between two lines, in a series' colour."""
    around = "M" + "L".join(coordinates(*point) for point in [*upper, *reversed(lower)]) + "Z"
    return element("path", d=around, class_=f"band s{index % COLOURS}")


_MARKS = {
    "square": "M-4 -4H4V4H-4Z",
    "triangle": "M0 -5L5 4H-5Z",
    "diamond": "M0 -5.5L5.5 0L0 5.5L-5.5 0Z",
    "cross": "M-5 -3L-3 -5L0 -2L3 -5L5 -3L2 0L5 3L3 5L0 2L-3 5L-5 3L-2 0Z",
    "down": "M0 5L5 -4H-5Z",
    "plus": "M-1.5 -5H1.5V-1.5H5V1.5H1.5V5H-1.5V1.5H-5V-1.5H-1.5Z",
    "bar": "M-5 -2H5V2H-5Z",
}


def mark(x: float, y: float, index: int, said: str = "") -> Html:
    """Return a series' mark, of a shape of its own, at a position; ``said``: what a pointer over it tells."""
    told = [element("title", said)] if said else []
    kind = f"mark s{index % COLOURS}"
    if index % COLOURS == 0:
        place = {"cx": coordinates(x), "cy": coordinates(y)}
        return element("circle", *told, r="4", class_=kind, **place)
    shape = list(_MARKS.values())[index % COLOURS - 1]
    move = f"translate({coordinates(x, y)})"
    return element("path", *told, d=shape, transform=move, class_=kind)


def legend(names: Sequence[str], *, lines: bool = True) -> Html:
    """Return what each series is called, beside its line and mark; nothing for a single nameless one."""
    if not any(names):
        return Html("")
    items = []
    for index, name in enumerate(names):
        drawn = [line([(0, 8), (30, 8)], index)] if lines else []
        swatch = element(
            "svg",
            *drawn,
            mark(15, 8, index),
            viewBox="0 0 30 16",
            class_="swatch",
            aria_hidden="true",
        )
        items.append(element("li", swatch, name))
    return element("ul", *items, class_="legend")
