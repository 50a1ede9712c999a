"""A chart of kinds: lines, marks and errors lie where they belong, kinds are told apart."""

from __future__ import annotations

import math
import re

import pytest
from page_tree import Node, parse

from raydd.pages.axes import Axis
from raydd.pages.kinds import TOLD, Kind, kinds_chart

X, Y = Axis(label="trial", low=0, high=10, whole=True), Axis(label="%", low=0, high=100)


def wide(kinds: list[Kind], x: Axis = X, y: Axis = Y, **more: object) -> Node:
    return parse(kinds_chart(kinds, x, y, title="T", **more)).one("svg", class_="wide")  # type: ignore[arg-type]


def ends(svg: Node) -> tuple[float, float, float, float]:
    found = re.fullmatch(
        r"M([\d.]+) ([\d.]+)V([\d.]+)H([\d.]+)", str(svg.one("path", class_="axis").attributes["d"])
    )
    assert found
    left, top, bottom, right = map(float, found.groups())
    return left, top, bottom, right


def test_marks_lie_at_their_values_and_those_without_at_the_lower_edge() -> None:
    svg = wide([Kind(name="a", style=0, points=[(0, 0), (5, 75), (10, None)])])
    left, top, bottom, right = ends(svg)
    at = [
        (float(str(n.attributes["cx"])), float(str(n.attributes["cy"]))) for n in svg.all("circle")
    ]
    middle = ((left + right) / 2, bottom - 0.75 * (bottom - top))
    assert at == [
        pytest.approx((left, bottom)),
        pytest.approx(middle, abs=0.1),
        pytest.approx((right, bottom)),
    ]


def test_errors_are_bars_around_their_marks() -> None:
    svg = wide([Kind(name="a", style=0, points=[(5, 50), (6, 50)], errors=[10, 0])])
    _, top, bottom, _ = ends(svg)
    unit = (bottom - top) / 100
    d = str(svg.one("path", class_="whisker").attributes["d"])
    found = re.fullmatch(r"M[\d.]+ ([\d.]+)V([\d.]+)", d)
    assert found
    assert [float(y) for y in found.groups()] == pytest.approx(
        [bottom - 40 * unit, bottom - 60 * unit], abs=0.1
    )
    assert "trial 5: 50 ± 10" in svg.text
    assert "trial 6: 50 ±" not in svg.text


def test_lines_are_drawn_alike_within_a_kind() -> None:
    lines = [[(0.0, 10.0), (5.0, 20.0)], [(0.0, 30.0), (5.0, 40.0)], [(1.0, 5.0)]]
    svg = wide(
        [
            Kind(name="on", style=0, lines=lines),
            Kind(name="off", style=5, lines=lines[:1], dashed=True),
        ]
    )
    drawn = [
        (n.attributes["class"], n.attributes.get("stroke-dasharray"))
        for n in svg.all("path", class_="line")
    ]
    assert drawn == [("line s0", None), ("line s0", None), ("line s5", "7 4")]
    assert len(svg.all("circle")) == 1, "a line of one point is a mark"


def test_kinds_are_named_and_said() -> None:
    chart = kinds_chart(
        [
            Kind(name="done", style=0, points=[(1, 70), (2, 80)], errors=[1, 1]),
            Kind(name="same", style=1, points=[(3, 80)], hollow=True),
            Kind(name="none", style=4),
        ],
        X,
        Y,
        title="T",
        levels={"own": 50.0},
    )
    tree = parse(chart)
    assert [n.text for n in tree.one("ul", class_="legend").all("li")] == ["done", "same"]
    assert tree.all("g", class_="hollow")
    for svg in tree.all("svg", role="img"):
        assert svg.one("desc").text == "done: 2 marks, from 70 to 80. same: 1 mark, from 80 to 80."
        assert svg.one("text", class_="levelname").text == "own 50"


def test_what_the_axes_cannot_show_is_left_out() -> None:
    x = Axis(label="lr", log=True)
    kind = Kind(
        name="a",
        style=0,
        points=[(0, 1), (1, math.nan), (10, 5)],
        errors=[1, 2, 3],
        called=["x", "y", "z"],
        lines=[[(0, 1)], [(1, 1), (0, 2), (10, 3)]],
    )
    svg = wide([kind], x)
    assert len(svg.all("circle")) == 1
    assert "z, lr 10: 5 ± 3" in svg.text
    assert len(svg.all("path", class_="line")) == 1
    assert parse(kinds_chart([Kind(name="a", style=0)], X, Y, title="T")).one("p").text == (
        "T: there is nothing to draw yet."
    )


def test_many_marks_say_less() -> None:
    few = wide([Kind(name="a", style=0, points=[(i, 1) for i in range(TOLD)])])
    many = wide([Kind(name="a", style=0, points=[(i, 1) for i in range(TOLD + 1)])])
    assert (len(few.all("title")), len(many.all("title"))) == (TOLD + 1, 1)


def test_axes_of_whole_numbers_have_no_ticks_between_and_room_at_their_sides() -> None:
    svg = wide([Kind(name="a", style=0, points=[(0, 1), (2, 2)])], Axis(label="x", whole=True))
    left, _, _, right = ends(svg)
    at = [float(str(n.attributes["cx"])) for n in svg.all("circle")]
    assert left + 5 < at[0] < at[1] < right - 5
    assert {n.text for n in svg.all("text")} >= {"0", "1", "2"}
    assert "0.5" not in {n.text for n in svg.all("text")}
