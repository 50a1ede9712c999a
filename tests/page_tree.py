"""A page as a tree, for tests: elements with attributes, refused where tags do not match."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from html.parser import HTMLParser

VOID = {"br", "col", "hr", "img", "input", "link", "meta"}


@dataclass
class Node:
    name: str
    attributes: dict[str, str | None]
    children: list[Node | str] = field(default_factory=list)

    def __iter__(self) -> Iterator[Node]:
        """Yield the element and all below it."""
        yield self
        for child in self.children:
            if isinstance(child, Node):
                yield from child

    def all(self, name: str, **attributes: str) -> list[Node]:
        """Return the elements of a name (``class_``: one of the classes)."""
        wanted = {key.rstrip("_").replace("_", "-"): value for key, value in attributes.items()}

        def fits(node: Node, key: str, value: str) -> bool:
            found = node.attributes.get(key) or ""
            return value in found.split() if key == "class" else found == value

        return [
            n for n in self if n.name == name and all(fits(n, *pair) for pair in wanted.items())
        ]

    def one(self, name: str, **attributes: str) -> Node:
        found = self.all(name, **attributes)
        assert len(found) == 1, (name, attributes, len(found))
        return found[0]

    @property
    def text(self) -> str:
        return "".join(c if isinstance(c, str) else c.text for c in self.children)

    def cells(self) -> list[list[str]]:
        """Return the texts of a table's cells, its header first."""
        rows = self.all("tr")
        return [[c.text for c in row if c.name in ("th", "td")] for row in rows]


class _Parser(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.root = Node("", {})
        self.open = [self.root]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len(dict(attrs)) == len(attrs), f"{tag} has an attribute twice: {attrs}"
        node = Node(tag, dict(attrs))
        self.open[-1].children.append(node)
        if tag not in VOID:
            self.open.append(node)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.open[-1].children.append(Node(tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open[-1].name == tag, f"</{tag}> inside <{self.open[-1].name}>"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        self.open[-1].children.append(data)


def parse(page: str) -> Node:
    """Return the tree of a page or of a part of one; fails where elements are not closed in order."""
    parser = _Parser()
    parser.feed(page)
    parser.close()
    assert parser.open == [parser.root], f"not closed: {[node.name for node in parser.open[1:]]}"
    return parser.root


def check_page(page: str) -> Node:
    """Return the tree of a whole page that holds to what every page does: language, title, one
    heading of the first level and none left out below, ids that are there once and all that are
    referred to, names for pictures and controls, and nothing from elsewhere.
    """
    tree = parse(page)
    assert tree.one("html").attributes["lang"] == "en"
    assert tree.one("head").one("title").text
    levels = [int(n.name[1]) for n in tree if n.name in ("h1", "h2", "h3", "h4")]
    assert levels.count(1) == 1
    assert levels[0] == 1
    assert all(b <= a + 1 for a, b in itertools.pairwise(levels)), levels
    ids = [str(n.attributes["id"]) for n in tree if "id" in n.attributes]
    assert len(ids) == len(set(ids)), sorted(i for i in ids if ids.count(i) > 1)
    for key in ("for", "aria-labelledby", "aria-describedby"):
        for node in tree:
            assert set((node.attributes.get(key) or "").split()) <= set(ids), (key, node)
    links = [str(n.attributes["href"]) for n in tree.all("a")]
    assert {link[1:] for link in links if link.startswith("#")} <= set(ids)
    assert all(n.attributes.get("alt") for n in tree.all("img"))
    for node in tree:
        for key, value in node.attributes.items():
            assert not key.startswith("on"), f"{node.name} has {key}"
            if key in ("src", "href", "data", "action", "srcset", "poster"):
                assert str(value).startswith(("data:image/", "#")), (node.name, key, value)
        assert node.name not in ("link", "iframe", "object", "embed", "base", "form"), node.name
        assert "style" not in node.attributes, "the policy allows no style of an element's own"
    labelled = {n.attributes.get("for") for n in tree.all("label")}
    assert {n.attributes.get("id") for n in tree.all("input")} <= labelled
    assert page.encode()
    return tree
