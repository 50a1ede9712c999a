"""HTML as text that knows it is HTML: whatever else comes into an element is escaped."""

from __future__ import annotations

import html
import re

_VOID = {"br", "col", "hr", "img", "input", "link", "meta"}
_SHAPES = {"circle", "line", "path", "polygon", "polyline", "rect"}
_UNSHOWN = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff\ufffe\uffff]")
"""Characters that HTML does not allow."""


class Html(str):
    """Text that is HTML already, and is not escaped again."""


Child = str | int | float | Html | None
"""What an element holds: plain text and numbers are escaped, ``None`` is left out."""


def escaped(value: Child) -> Html:
    """Return a value as HTML: what is HTML already as it is, anything else escaped, for text and
    attributes alike.
    """
    if isinstance(value, Html):
        return value
    return Html("" if value is None else html.escape(_UNSHOWN.sub("\ufffd", str(value))))


def joined(*children: Child) -> Html:
    """Return values one after another as HTML."""
    return Html("".join(map(escaped, children)))


def element(name: str, /, *children: Child, **attributes: Child) -> Html:
    """Return an element. Attributes are called as in HTML, with ``_`` for ``-`` and one at the end
    of Python's own words (``class_``); those that are ``None`` or false are left out, true ones
    have no value.

    Example: ``element("p", "a < b", class_="note")`` is ``<p class="note">a &lt; b</p>``.
    """
    parts = [name]
    for key, value in attributes.items():
        if value is None or value is False:
            continue
        written = key.rstrip("_").replace("_", "-")
        parts.append(written if value is True else f'{written}="{escaped(value)}"')
    if name in _SHAPES and not children:
        return Html(f"<{' '.join(parts)}/>")
    if name in _VOID:
        return Html(f"<{' '.join(parts)}>")
    return Html(f"<{' '.join(parts)}>{joined(*children)}</{name}>")


def slug(text: str) -> str:
    """Return a text as an id: letters, digits and dashes, never empty."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-") or "part"
