"""Charts: points lie where their values are, axes have ticks, series differ in more than colour, numbers are said."""

from __future__ import annotations

import math
import re

import pytest
from page_tree import Node, parse

from raydd.pages.axes import Axis, number, thinned
from raydd.pages.html import Html
from raydd.pages.plots import (
    Series,
    bar_chart,
    line_chart,
    parallel_chart,
    scatter_chart,
    series_table,
)
from raydd.pages.svg import DASHES

X, Y = Axis(label="updates"), Axis(label="accuracy, %", low=0, high=100)


def wide(chart: Html) -> Node:
    return parse(chart).one("svg", class_="wide")


def positions(path: Node) -> list[tuple[float, float]]:
    """Return the corners of a path of straight lines."""
    found = re.findall(r"[ML](-?[\d.]+) (-?[\d.]+)", str(path.attributes["d"]))
    return [(float(x), float(y)) for x, y in found]


def corner(svg: Node) -> tuple[float, float, float, float]:
    """Return left, top, bottom and right of the axes."""
    found = re.fullmatch(
        r"M([\d.]+) ([\d.]+)V([\d.]+)H([\d.]+)", str(svg.one("path", class_="axis").attributes["d"])
    )
    assert found
    left, top, bottom, right = map(float, found.groups())
    return left, top, bottom, right


def test_a_line_goes_through_its_points() -> None:
    svg = wide(line_chart([Series("", [(0, 0), (50, 25), (100, 100)])], X, Y, title="A"))
    left, top, bottom, right = corner(svg)
    middle = (left + right) / 2, bottom - (bottom - top) / 4
    found = positions(svg.one("path", class_="line"))
    assert found == [pytest.approx(at, abs=0.1) for at in ((left, bottom), middle, (right, top))]


def test_logarithmic_axes_put_powers_of_ten_equally_far_apart_and_leave_out_zero() -> None:
    points = [(1.0, 1.0), (10.0, 10.0), (100.0, 100.0), (0.0, 1.0), (5.0, math.nan)]
    x, y = Axis(label="lr", log=True), Axis(label="loss", log=True)
    svg = wide(scatter_chart([Series("", points)], x, y, title="A"))
    at = [
        (float(str(n.attributes["cx"])), float(str(n.attributes["cy"]))) for n in svg.all("circle")
    ]
    assert len(at) == 3
    assert at[1] == pytest.approx(((at[0][0] + at[2][0]) / 2, (at[0][1] + at[2][1]) / 2), abs=0.1)
    assert "2 points that the axes cannot show are left out." in svg.one("desc").text


def test_series_differ_in_colour_dashes_and_shape_and_are_named() -> None:
    series = [Series(f"set {i}", [(0, i), (1, i + 1)]) for i in range(8)]
    chart = line_chart(series, X, Axis(label="y"), title="Many")
    svg = wide(chart)
    lines = svg.all("path", class_="line")
    assert len({n.attributes["class"] for n in lines}) == 8
    assert len({n.attributes.get("stroke-dasharray") for n in lines}) == 8 == len(set(DASHES))
    marks = [n for n in svg if "mark" in str(n.attributes.get("class"))]
    assert len({n.attributes.get("d") for n in marks}) == 8
    legend = parse(chart).one("ul", class_="legend")
    assert [n.text for n in legend.all("li")] == [f"set {i}" for i in range(8)]
    assert not parse(line_chart(series[:1] and [Series("", [(0, 1)])], X, Y, title="One")).all("ul")


def test_a_chart_says_what_it_shows() -> None:
    chart = line_chart([Series("dm", [(0, 60.5), (300, 91.25)])], X, Y, title="T", description="D.")
    for svg in parse(chart).all("svg", role="img"):
        title, said = svg.all("title")[0], svg.one("desc")
        assert svg.attributes["aria-labelledby"] == title.attributes["id"]
        assert svg.attributes["aria-describedby"] == said.attributes["id"]
        assert title.text == "T"
        assert said.text == (
            "D. dm: 2 points from updates 0 to 300, first 60.5, last 91.25, lowest 60.5, highest 91.25."
        )


def test_names_of_others_stay_text() -> None:
    evil = "<script>alert(1)</script>"
    x = Axis(label=evil, categories=(evil, "b"))
    charts = [
        line_chart(
            [Series(evil, [(0, 1), (1, 2)])], X, Axis(label=evil), title=evil, levels={evil: 1}
        ),
        scatter_chart([Series(evil, [(0, 1), (1, 2)])], x, Y, title=evil, description=evil),
        bar_chart({evil: 1.0}, Axis(label=evil), title=evil),
        parallel_chart([x, Axis(label=evil)], [[0, 1]], title=evil),
    ]
    for chart in charts:
        assert "alert(1)" in chart
        assert not parse(chart).all("script")


def test_a_band_is_one_deviation_wide() -> None:
    svg = wide(line_chart([Series("", [(0, 50), (1, 50)], [10, 20])], X, Y, title="A"))
    _, top, bottom, _ = corner(svg)
    heights = [y for _, y in positions(svg.one("path", class_="band"))]
    unit = (bottom - top) / 100
    assert heights == [pytest.approx(bottom - value * unit, abs=0.1) for value in (60, 70, 30, 40)]
    assert "50 ± 10" in svg.text


def test_levels_are_drawn_and_within_reach() -> None:
    chart = line_chart(
        [Series("", [(0, 80), (1, 90)])], X, Axis(label="%"), title="A", levels={"random": 40.0}
    )
    svg = wide(chart)
    _, top, bottom, _ = corner(svg)
    assert svg.one("text", class_="levelname").text == "random 40"
    (at,) = positions(svg.one("path", class_="level"))
    assert top <= at[1] <= bottom


def test_bars_are_as_long_as_their_values() -> None:
    svg = wide(bar_chart({"lr": 0.6, "batch": 0.2}, Axis(label="share"), title="Importance"))
    batch, lr = (float(str(n.attributes["width"])) for n in svg.all("rect"))
    assert lr == pytest.approx(3 * batch, abs=0.2)
    assert {n.text for n in svg.all("text")} >= {"lr", "batch", "0.6", "0.2", "share"}
    assert "lr: 0.6; batch: 0.2." in svg.one("desc").text


def test_parallel_lines_end_where_their_results_are_and_the_best_stands_out() -> None:
    axes = [
        Axis(label="lr", log=True),
        Axis(label="network", categories=("a", "b")),
        Axis(label="%", low=0, high=100),
    ]
    rows = [[0.1, 0.0, 0.0], [1.0, None, 100.0], [0.5, 1.0, 50.0], [0.5, 1.0, None]]
    svg = wide(parallel_chart(axes, rows, title="P"))
    lines = {str(n.attributes["class"]): n for n in svg.all("path", class_="across")}
    assert set(lines) == {"across r1", "across r3", "across r5"}
    best = positions(lines["across r5"])
    assert len(best) == 2, "a value that is not known has no corner"
    assert best[-1][1] == 40
    assert positions(lines["across r1"])[-1][1] == 340 - 14
    assert lines["across r3"].one("title").text == "lr 0.5, network b, % 50"
    worst = wide(parallel_chart(axes, rows, title="P", best="low"))
    assert positions(worst.one("path", class_="r5"))[-1][1] == 340 - 14


def test_nothing_to_draw_is_said() -> None:
    empty = [
        line_chart([Series("a", [])], X, Y, title="T"),
        bar_chart({}, X, title="T"),
        parallel_chart([X, Y], [[1, None]], title="T"),
        scatter_chart([Series("a", [(1, math.inf)])], X, Y, title="T"),
    ]
    assert {parse(chart).one("p").text for chart in empty} == {"T: there is nothing to draw yet."}


@pytest.mark.parametrize(
    ("low", "high", "log", "texts"),
    [
        (0, 100, False, ["0", "20", "40", "60", "80", "100"]),
        (0.3, 0.52, False, ["0.3", "0.35", "0.4", "0.45", "0.5", "0.55"]),
        (1, 1000, True, ["1", "10", "100", "1,000"]),
        (0.5, 5, True, ["0.5", "1", "2", "5"]),
        (7, 7, False, ["2", "4", "6", "8", "10", "12"]),
    ],
)
def test_ticks_are_round(low: float, high: float, log: bool, texts: list[str]) -> None:
    axis = Axis(label="", log=log).fitted([low, high])
    assert [text for _, text in axis.ticks()] == texts


@pytest.mark.parametrize(("low", "high"), [(15.1, 16.4), (0.3, 0.52), (1e-5, 9e-5), (1e4, 9e6)])
def test_ticks_stand_beside_the_axis_whole(low: float, high: float) -> None:
    axis = Axis(label="y", log=high / low > 100)
    chart = line_chart([Series("", [(0, low), (1, high)])], X, axis, title="A")
    texts = [text for _, text in axis.fitted([low, high]).ticks()]
    for svg in parse(chart).all("svg", role="img"):
        assert set(texts) <= {node.text for node in svg.all("text")}


def test_a_long_line_is_thinned_and_keeps_its_peaks() -> None:
    points = [(float(i), math.sin(i / 50)) for i in range(5000)]
    points[2500] = (2500.0, 99.0)
    kept = thinned(points, 200)
    assert len(kept) <= 200
    assert points[2500] in kept
    assert (kept[0], kept[-1]) == (points[0], points[-1])
    assert kept == sorted(kept)
    assert thinned(points[:100], 200) == points[:100]


def test_the_numbers_of_a_chart_stand_in_its_table() -> None:
    series = [Series("a", [(0, 1.25), (10, 2)], [0.5, 0.25]), Series("b", [(10, 3)])]
    found = series_table(series, X, Axis(label="%"), title="T")
    assert found.header == ["updates", "a", "b"]
    assert found.lines == [["0", "1.25 ± 0.5", "–"], ["10", "2 ± 0.25", "3"]]
    many = series_table([Series("a", [(i, i) for i in range(1000)])], X, Y, title="T", most=50)
    assert len(many.lines) <= 51
    assert many.lines[-1] == ["999", "999"]
    assert many.title == f"T ({len(many.lines)} of 1000 lines)"


def test_numbers_are_short() -> None:
    assert [number(v) for v in (0.0, 12345.0, 0.123456, 1e-9, math.nan)] == [
        "0",
        "12,345",
        "0.1235",
        "1e-09",
        "–",
    ]
