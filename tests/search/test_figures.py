"""Pictures of a sweep: values stand where they belong, outcomes are told apart, nothing odd stops them."""

from __future__ import annotations

import io
import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
from PIL import Image
from sweep_reports import EVIL, large, report_of, small, trial

from raydd.search import figures
from raydd.search.figures import pictures
from raydd.search.results import SweepReport
from raydd.search.views import (
    Column,
    best_steps,
    by_state,
    columns,
    course,
    courses,
    far_apart,
    metric_label,
    own_value,
    timed,
)

KEY = "method.lr_img"
USUAL = ["value_over_trials.png", "slices.png", "parallel.png", "accuracy_device_seconds.png"]


def lines_of(axes: Any) -> dict[str, list[tuple[float, float]]]:
    return {
        str(line.get_label()): [(float(x), float(y)) for x, y in line.get_xydata()]
        for line in axes.lines
    }


def marks_of(axes: Any) -> dict[str, list[tuple[float, float]]]:
    from matplotlib.collections import PathCollection

    return {
        str(one.get_label()): [(float(x), float(y)) for x, y in one.get_offsets()]
        for one in axes.collections
        if isinstance(one, PathCollection)
    }


def drawn(figure: Any) -> Any:
    assert figure is not None
    return figure.axes


# -- what is shown ---------------------------------------------------------------------------------------------------


def test_the_best_so_far_goes_up_in_steps_and_on_to_the_last_trial() -> None:
    assert best_steps(small()) == [(0, 70), (1, 70), (1, 80), (5, 80)]
    down = small(mode="min")
    assert best_steps(down) == [(0, 70), (5, 70)]
    assert best_steps(report_of([], {})) == []


def test_trials_are_told_apart_by_what_came_of_them() -> None:
    report = small()
    found = {name: [t.number for t in trials] for name, trials in by_state(report).items()}
    assert found == {"finished": [0, 1, 5], "stopped early": [2], "same as another": [4]}
    assert own_value(report) == 70.0
    ways = courses(report)
    assert {name: [t.number for t in trials] for name, trials in ways.items()} == {
        "finished": [0, 1],
        "stopped early": [2],
    }
    assert course(report.trials[2]) == [(50, 55), (100, 56)]
    assert [seconds for seconds, _ in timed(report.trials)] == [10.0, 20.0, 60.0]


def test_trials_that_were_judged_once_have_no_course() -> None:
    report = small()
    for one in report.trials:
        one.judged = one.judged[:1]
    assert courses(report) == {}
    assert figures._intermediate(report) is None


def test_keys_are_axes_of_numbers_factors_or_categories() -> None:
    values = [
        {"a": 0.1, "b": 0.5, "c": "dm", "d": [1, 2], "e": 256},
        {"a": 0, "b": None, "c": None, "d": [3], "e": 64, "f": 7},
        {"a": 10, "b": 0.25, "c": "dc", "d": [1, 2], "e": 64},
    ]
    keys = {
        "a": "0.01 to 10 by factors",
        "b": "0 to 1",
        "c": "one of null, dc, dm",
        "d": "one of [3], [1, 2]",
        "e": "one of 64, 256",
        "f": "whole numbers from 1 to 9",
        "g": "0 to 1",
    }
    report = report_of([trial(i, 50.0, v) for i, v in enumerate(values)], keys)
    found = {column.key: column for column in columns(report)}
    assert found == {
        "a": Column("a", logarithmic=True),
        "b": Column("b"),
        "c": Column("c", ("null", "dc", "dm")),
        "d": Column("d", ("[3]", "[1, 2]")),
        "e": Column("e", ("64", "256")),
        "f": Column("f"),
    }
    places = {key: [column.place(t) for t in report.trials] for key, column in found.items()}
    assert places == {
        "a": [0.1, None, 10],
        "b": [0.5, None, 0.25],
        "c": [2, 0, 1],
        "d": [1, 0, 1],
        "e": [1, 0, 0],
        "f": [None, 7, None],
    }


def test_spots_of_a_category_stay_near_it_and_apart() -> None:
    column = Column("a", ("x", "y"))
    spots = [column.spot(trial(i, 1.0, {"a": "y"})) or 0.0 for i in range(50)]
    assert all(0.75 <= spot <= 1.25 for spot in spots)
    assert min(abs(a - b) for a, b in itertools.pairwise(spots)) > 0.1
    assert Column("a").spot(trial(3, 1.0, {"a": 2.0})) == 2.0


def test_metrics_have_their_units() -> None:
    metrics = ["accuracy", "accuracy/resnet18", "device_seconds", "label_bytes", "ior"]
    assert [metric_label(small(metric=metric)) for metric in metrics] == [
        "accuracy, % (holdout)",
        "accuracy/resnet18, % (holdout)",
        "device seconds, s (holdout)",
        "label bytes, bytes (holdout)",
        "ior (holdout)",
    ]
    assert [far_apart(v) for v in ([], [0.0, 100.0], [1.0, 20.0], [1.0, 21.0])] == [0, 0, 0, 1]


# -- what is drawn ---------------------------------------------------------------------------------------------------


def test_values_over_trials() -> None:
    (axes,) = drawn(figures._over_trials(small()))
    lines, marks = lines_of(axes), marks_of(axes)
    assert lines["best so far"] == [(0, 70), (1, 70), (1, 80), (5, 80)]
    assert [y for _, y in lines["the job's own values"]] == [70, 70]
    assert marks == {
        "finished": [(0, 70), (1, 80), (5, 75)],
        "stopped early": [(2, 60)],
        "same as another": [(4, 80)],
        "failed (no value)": [(3, 0)],
    }
    (bars,) = [c for c in axes.collections if hasattr(c, "get_segments")]
    assert [[y for _, y in segment] for segment in bars.get_segments()] == [
        [69.5, 70.5],
        [78.0, 82.0],
        [74.5, 75.5],
    ]


def test_slices_have_a_part_for_each_key_with_the_trials_that_set_it() -> None:
    report = large(60)
    parts = drawn(figures._slices(report))
    assert [axes.get_xlabel() for axes in parts] == list(report.keys)
    assert [axes.get_xscale() for axes in parts] == ["log", *["linear"] * 5]
    conditional = marks_of(parts[5])["finished"]
    assert len(conditional) == sum(
        "method.inner_loops" in t.values and t.state == "finished" for t in report.trials
    )
    assert 0 < len(conditional) < len(marks_of(parts[0])["finished"])
    assert [t.get_text() for t in parts[3].get_xticklabels()] == ["64", "128", "256"]


def test_parallel_lines_end_at_their_values_the_winner_on_top() -> None:
    axes = drawn(figures._parallel(small()))[0]
    lines = [[float(y) for _, y in line] for line in axes.collections[0].get_segments()]
    half = math.log(5) / math.log(10)
    assert lines == [
        pytest.approx([0, 0]),
        pytest.approx([half, 0.5]),
        pytest.approx([1, 1]),
    ]
    assert lines_of(axes)["best"] == [(0, 1), (1, 1)]


def test_of_equal_values_the_earlier_trial_is_the_best_line() -> None:
    trials = [trial(i, 50.0, {KEY: 10.0**i}) for i in range(3)]
    axes = drawn(figures._parallel(report_of(trials, {KEY: "1 to 100 by factors"})))[0]
    assert lines_of(axes)["best"] == [(0, 0), (1, 0.5)]


def test_trials_on_the_way_differ_in_dash_and_colour() -> None:
    (axes,) = drawn(figures._intermediate(small()))
    found = {str(line.get_label()): (line.get_linestyle(), line.get_color()) for line in axes.lines}
    assert found["finished (2)"] == ("-", figures.COLOURS["finished"])
    assert found["stopped early (1)"] == ("--", figures.COLOURS["stopped early"])
    assert lines_of(axes)["stopped early (1)"] == [(50, 55), (100, 56)]


def test_values_over_seconds_mark_the_winner() -> None:
    (axes,) = drawn(figures._over_seconds(small()))
    assert marks_of(axes) == {
        "finished": [(10, 70), (20, 80), (60, 75)],
        "trial 1, the best": [(20, 80)],
    }


def test_importance_is_drawn_where_it_is_known() -> None:
    assert figures._importance(small()) is None
    (axes,) = drawn(figures._importance(small(importance={"a": 0.2, "b": 0.8})))
    assert [bar.get_width() for bar in axes.patches] == [0.2, 0.8]
    assert [t.get_text() for t in axes.get_yticklabels()] == ["a", "b"]


# -- whatever there is -----------------------------------------------------------------------------------------------


def equal() -> SweepReport:
    return report_of([trial(i, 50.0, {KEY: 0.5}) for i in range(4)], {KEY: "0 to 1"})


def odd() -> SweepReport:
    """Return values that no axis of its key can show, of the job's own."""
    values = [{KEY: 0, "b": None}, {KEY: 0.1, "b": 0.5}, {"b": True}]
    trials = [trial(i, 50.0 + i, v, error=None) for i, v in enumerate(values)]
    return report_of(trials, {KEY: "0.01 to 1 by factors", "b": "0 to 1", "$x_1^2$": "0 to 1"})


def odd_only() -> SweepReport:
    return report_of([trial(0, 1.0, {KEY: 0})], {KEY: "0.01 to 1 by factors"})


@pytest.mark.parametrize(
    ("made", "names"),
    [
        (lambda: report_of([], {KEY: "0 to 1"}), []),
        (
            lambda: report_of([trial(0, None, {KEY: 1.0}, state="failed")], {KEY: "0 to 1"}),
            [],
        ),
        (lambda: report_of([trial(0, 50.0, {KEY: 1.0})], {KEY: "0 to 1"}), USUAL),
        (
            lambda: report_of(
                [trial(0, 50.0, {KEY: 1.0}, state="pruned", facts={})], {KEY: "0 to 1"}
            ),
            USUAL[:2],
        ),
        (equal, USUAL),
        (odd, USUAL),
        (odd_only, ["value_over_trials.png", "parallel.png", "accuracy_device_seconds.png"]),
        (lambda: small(mode="min", name="$a_b$" + EVIL * 5), [*USUAL, "intermediate.png"]),
        pytest.param(
            lambda: large(40, evil=True),
            [*USUAL, "intermediate.png", "importance.png"],
            marks=pytest.mark.slow,
        ),
        pytest.param(
            lambda: large(500),
            [*USUAL, "intermediate.png", "importance.png"],
            marks=pytest.mark.slow,
        ),
    ],
    ids=["none", "failed", "one", "stopped", "equal", "odd", "unseen", "names", "many", "most"],
)
def test_pictures_of_whatever_there_is(made: Callable[[], SweepReport], names: list[str]) -> None:
    found = pictures(made())
    assert set(found) == set(names)
    for data in found.values():
        with Image.open(io.BytesIO(data)) as image:
            image.load()
            assert image.format == "PNG"
            assert min(image.size) > 300
            assert max(image.size) < 4000


def test_the_same_report_gives_the_same_bytes() -> None:
    one, two = (figures._png(figures._over_seconds(small())) for _ in range(2))
    assert one == two
