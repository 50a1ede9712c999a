"""Building blocks of pages: what others wrote stays text, tables and pictures are named, a page loads nothing."""

from __future__ import annotations

import base64
import hashlib

import pytest
from page_tree import check_page, parse

from raydd.artifacts.tables import Table
from raydd.pages.blocks import Shown, bullets, details, facts, figure, plain, section, slider, table
from raydd.pages.document import document
from raydd.pages.html import Html, element, escaped, joined

EVIL = "<script>alert(1)</script>\"'&"
PIXEL = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)


def test_text_is_escaped_and_html_is_not() -> None:
    assert escaped(EVIL) == "&lt;script&gt;alert(1)&lt;/script&gt;&quot;&#x27;&amp;"
    assert element("p", EVIL, Html("<b>x</b>"), title=EVIL) == (
        f'<p title="{escaped(EVIL)}">{escaped(EVIL)}<b>x</b></p>'
    )
    assert joined("a<", 1, None, 2.5) == "a&lt;12.5"
    assert escaped("a\x00b\x1bc\ud800\n") == "a\ufffdb\ufffdc\ufffd\n"


def test_attributes_are_written_as_html_calls_them() -> None:
    drawn = element("input", type="range", aria_label="x", for_="y", hidden=True, id=None, min=0)
    assert drawn == '<input type="range" aria-label="x" for="y" hidden min="0">'
    assert element("rect", x="1") == '<rect x="1"/>'
    assert element("div") == "<div></div>"


def test_a_table_names_its_rows_columns_and_itself() -> None:
    shown = table(Table("Rows <of> it", ["set", "protocol", "%"], [["dm", "p", "1.0"]], left=2))
    tree = parse(shown)
    said = tree.one("p", class_="caption")
    assert said.text == "Rows <of> it"
    assert tree.one("table").attributes == {"aria-labelledby": said.attributes["id"]}
    assert tree.one("div").attributes == {
        "aria-labelledby": said.attributes["id"],
        "class": "scroll",
        "role": "region",
        "tabindex": "0",
    }
    assert [(n.text, n.attributes.get("scope")) for n in tree.all("th")] == [
        ("set", "col"),
        ("protocol", "col"),
        ("%", "col"),
        ("dm", "row"),
    ]
    assert [n.attributes.get("class") for n in tree.all("td")] == [None, "right"]


def test_values_are_shown_for_people() -> None:
    values = {"a": {"b": 0.1, "c": {}}, "d": [1, 2.5], "e": True, "f": None, "g": EVIL}
    tree = parse(facts(values))
    shown = dict(zip((n.text for n in tree.all("dt")), (n.text for n in tree.all("dd"))))
    assert shown == {"a.b": "0.1", "a.c": "–", "d": "1, 2.5", "e": "yes", "f": "–", "g": EVIL}
    assert plain([{"x": 1}, {"y": 2}]) == "x 1, y 2"
    assert facts({}) == "" == bullets([])


def test_a_slider_shows_every_picture_without_scripts() -> None:
    pictures = [Shown(PIXEL, "image/png", f"Step {i}", f"after {i} updates") for i in (0, 5, 9)]
    tree = parse(slider("Updates", pictures))
    assert [n.attributes.get("alt") for n in tree.all("img")] == ["Step 0", "Step 5", "Step 9"]
    assert not any("hidden" in n.attributes for n in tree.all("li"))
    control = tree.one("input")
    assert (control.attributes["min"], control.attributes["max"], control.attributes["value"]) == (
        "0",
        "2",
        "2",
    )
    assert tree.one("label").attributes["for"] == control.attributes["id"]
    assert "hidden" in tree.one("div", class_="control").attributes
    source = str(tree.all("img")[0].attributes["src"])
    assert base64.b64decode(source.removeprefix("data:image/png;base64,")) == PIXEL
    assert "input" not in {n.name for n in parse(slider("Updates", pictures[:1]))}


@pytest.fixture
def page() -> str:
    numbers = Table("Numbers", ["x", "y"], [["1", EVIL]])
    chart = figure(element("svg", role="img", aria_label="a line"), "A line", numbers)
    pictures = [Shown(PIXEL, "image/png", EVIL, EVIL) for _ in range(2)]
    parts = [section(f"{EVIL} one", chart), section("Two", slider("Updates", pictures))]
    return document(EVIL, element("p", EVIL), parts, details("more", EVIL))


def test_a_page_is_whole_and_holds_nobody_elses_code(page: str) -> None:
    tree = check_page(page)
    assert tree.one("h1").text == EVIL
    assert [n.text for n in tree.one("nav").all("a")] == [f"{EVIL} one", "Two"]
    scripts = tree.all("script")
    assert len(scripts) == 1
    assert "alert" not in scripts[0].text
    assert "alert(1)" in tree.one("main").text


def test_the_policy_allows_the_pages_own_style_and_script_alone(page: str) -> None:
    tree = check_page(page)
    policy = str(tree.one("meta", http_equiv="Content-Security-Policy").attributes["content"])
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    for name, rule in (("style", "style-src"), ("script", "script-src")):
        digest = base64.b64encode(hashlib.sha256(tree.one(name).text.encode()).digest()).decode()
        assert rules[rule] == f"'sha256-{digest}'"
    assert rules["default-src"] == rules["form-action"] == rules["base-uri"] == "'none'"
    assert rules["img-src"] == "data:"
    assert len(rules) == 6
