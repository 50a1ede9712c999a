"""Building blocks of a page: section, table, figure with its numbers, key-value list, pictures with a slider."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from raydd.artifacts.tables import Table
from raydd.core.dotted_keys import flatten
from raydd.pages.html import Child, Html, element, joined, slug


@dataclass(frozen=True)
class Section:
    """A part of a page under a heading of its own, listed in the page's contents."""

    title: str
    body: Html

    @property
    def anchor(self) -> str:
        """The id of the section, for links."""
        return slug(self.title)

    def html(self) -> Html:
        """Return the section."""
        name = f"{self.anchor}-title"
        heading = element("h2", self.title, id=name)
        return element("section", heading, self.body, id=self.anchor, aria_labelledby=name)


def section(title: str, *children: Child) -> Section:
    """Return a section of what it holds."""
    return Section(title, joined(*children))


def subsection(title: str, *children: Child) -> Html:
    """Return a part of a section under a smaller heading."""
    return joined(element("h3", title), *children)


def paragraph(*children: Child) -> Html:
    """Return a paragraph."""
    return element("p", *children)


def note(*children: Child) -> Html:
    """Return a paragraph that stands out: what a reader has to know of what is shown."""
    return element("p", *children, class_="note")


def bullets(items: Iterable[Child]) -> Html:
    """Return a list; nothing for no items."""
    lines = [element("li", item) for item in items]
    return element("ul", *lines) if lines else Html("")


def table(shown: Table, *, caption: str = "") -> Html:
    """Return a table under its caption, in a box of its own that scrolls where the page is narrow.
    The caption is the table's title unless another is given; the first column names the rows.
    """
    title = caption or shown.title or "Table"
    head = [
        element("th", cell, scope="col", class_=_side(shown, i))
        for i, cell in enumerate(shown.header)
    ]
    rows = []
    for line in shown.lines:
        cells = [element("th", line[0], scope="row")]
        cells += [element("td", cell, class_=_side(shown, i)) for i, cell in enumerate(line) if i]
        rows.append(element("tr", *cells))
    inner = joined(element("thead", element("tr", *head)), element("tbody", *rows))
    # Above the box: in it, a long caption would be cut off where the page is narrow.
    name = f"table-{hashlib.sha256(f'{title}{inner}'.encode()).hexdigest()[:10]}"
    whole = element("table", inner, aria_labelledby=name)
    box = {"class_": "scroll", "role": "region", "tabindex": "0", "aria_labelledby": name}
    said = element("p", title, class_="caption", id=name)
    return joined(said, element("div", whole, **box))


def _side(shown: Table, column: int) -> str | None:
    return None if column < shown.left else "right"


def figure(chart: Html, caption: str, numbers: Table | None = None) -> Html:
    """Return a chart with its caption and, folded, its numbers as a table."""
    parts = [chart, element("figcaption", caption)]
    if numbers is not None:
        parts.append(details("The numbers", table(numbers)))
    return element("figure", *parts)


def details(summary: str, *children: Child, opened: bool = False) -> Html:
    """Return what is folded under a line that opens it."""
    return element("details", element("summary", summary), *children, open=opened)


def facts(values: Mapping[str, Any]) -> Html:
    """Return a key-value list; nothing for no values. Nested mappings are shown as ``key.key``."""
    items = []
    for name, value in flatten(values).items():
        shown = value if isinstance(value, Html) else plain(value)
        items.append(element("div", element("dt", name), element("dd", shown)))
    return element("dl", *items, class_="facts") if items else Html("")


def plain(value: Any) -> str:
    """Return a JSON value for people: lists with commas, ``yes`` and ``no``, a dash for nothing."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value is None or value in ("", [], {}):
        return "–"
    if isinstance(value, (list, tuple)):
        return ", ".join(map(plain, value))
    if isinstance(value, Mapping):
        return "; ".join(f"{key} {plain(item)}" for key, item in value.items())
    return f"{value:g}" if isinstance(value, float) else str(value)


@dataclass(frozen=True)
class Shown:
    """A picture of a page: its bytes, their type (``image/png``), what it shows (for those who do
    not see it), and its caption.
    """

    data: bytes
    kind: str
    alt: str
    caption: str


def picture(shown: Shown) -> Html:
    """Return a picture, inlined, with its caption."""
    address = f"data:{shown.kind};base64,{base64.b64encode(shown.data).decode()}"
    image = element("img", src=address, alt=shown.alt, decoding="async")
    return element("figure", image, element("figcaption", shown.caption))


def slider(label: str, pictures: Sequence[Shown]) -> Html:
    """Return pictures of which a control shows one, the last to begin with; all of them where
    scripts do not run, and on paper.

    ``label``: what the control is called.
    """
    if len(pictures) < 2:
        return joined(*map(picture, pictures))
    name = f"{slug(label)}-slider"
    last = str(len(pictures) - 1)
    frames = [element("li", picture(one)) for one in pictures]
    control = element(
        "div",
        element("label", label, for_=name),
        element("input", type="range", id=name, min="0", max=last, step="1", value=last),
        element("output", pictures[-1].caption, for_=name),
        class_="control",
        hidden=True,
    )
    return element("div", control, element("ol", *frames, class_="frames"), data_slider=True)
