"""A whole page as one file: style, script and pictures inlined, and a policy that lets it connect to nothing."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from importlib.resources import files

from raydd.pages.blocks import Section
from raydd.pages.html import Html, element, joined


def document(title: str, lead: Html, sections: Sequence[Section], foot: Html) -> str:
    """Return a page: its title, what it says first, sections with a list of contents, and its foot."""
    style, script = _own("page.css"), _own("slider.js")
    links = [element("li", element("a", one.title, href=f"#{one.anchor}")) for one in sections]
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=_policy(style, script)),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        element("meta", name="referrer", content="no-referrer"),
        element("title", title),
        element("style", Html(style)),
    )
    contents = element("nav", element("ul", *links), aria_label="Contents")
    body = element(
        "body",
        element("a", "Skip to the content", href="#content", class_="skip"),
        element("header", element("h1", title), lead),
        contents if len(sections) > 1 else None,
        element("main", *(one.html() for one in sections), id="content", tabindex="-1"),
        element("footer", foot),
        element("script", Html(script)),
    )
    return f"<!doctype html>\n{element('html', joined(head, body), lang='en')}\n"


def _own(name: str) -> str:
    return files("raydd.pages").joinpath(name).read_text(encoding="utf-8")


def _policy(style: str, script: str) -> str:
    """Return the content security policy: nothing is loaded but what stands in the page."""

    def digest(text: str) -> str:
        return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()

    return (
        f"default-src 'none'; img-src data:; style-src 'sha256-{digest(style)}';"
        f" script-src 'sha256-{digest(script)}'; base-uri 'none'; form-action 'none'"
    )
