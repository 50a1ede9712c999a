"""The page of a sweep says who won, on what, and how to use it; names of others stay text."""

from __future__ import annotations

import shlex
from dataclasses import replace
from typing import Any

import pytest
import yaml
from page_tree import Node, check_page
from sweep_reports import EVIL, large, report_of, small, trial

from raydd.pages.blocks import Shown
from raydd.search import results
from raydd.search.results import SweepReport
from raydd.search.sweep_page import SweepFacts, sweep_page

KEY = "method.lr_img"
TESTED = (
    results.Tested("best", "", 1, "dm[epochs=300]", "convnet3", 84.676543, 0.4321, 5),
    results.Tested("random", "best", None, "dm[epochs=300]", "convnet3", 72.33, 1.13, 5),
    results.Tested("job", "", 0, "dm[epochs=300]", "convnet3", 78.9, 0.0, 1),
)


def page(report: SweepReport, **more: Any) -> Node:
    return check_page(sweep_page(SweepFacts(report, **more)))


def tiles(tree: Node) -> list[tuple[str, str]]:
    items = tree.one("ul", class_="figures").all("li")
    return [(n.one("span", class_="value").text, n.one("span", class_="what").text) for n in items]


def rows(tree: Node, section: str, table: int = 0) -> list[list[str]]:
    return tree.one("section", id=section).all("table")[table].cells()


def test_the_winner_comes_first_with_its_error_protocol_and_what_it_is_compared_with() -> None:
    found = tiles(page(small(tested=TESTED)))
    assert [value for value, _ in found] == [
        "80.00 ± 2 %",
        "84.68 ± 0.43 %",
        "78.90 %",
        "72.33 ± 1.13 %",
    ]
    assert found[0][1] == (
        "accuracy on holdout of trial 1, ± its standard error, the best of 3 finished trials; as it was chosen by this"
        " value, it is a little too good"
    )
    assert found[1][1] == "test accuracy of its set (dm[epochs=300], convnet3, 5 fresh students)"
    assert found[2][1] == "test accuracy of the job's own values (+5.78 points)"


def test_trials_stand_best_first_with_short_numbers_and_what_came_of_them() -> None:
    report = small()
    report.trials[1].values = {KEY: 0.5959625743143098}
    table = rows(page(report), "trials")
    assert table[0][:4] == ["trial", "outcome", "accuracy, % (holdout)", KEY]
    assert [row[:4] for row in table[1:]] == [
        ["1 (winner)", "finished", "80 ± 2", "0.596"],
        ["5", "finished", "75 ± 0.5", "0.5"],
        ["0", "finished", "70 ± 0.5", "0.1"],
        ["2", "stopped early, at step 100", "60", "10"],
        ["3", "failed: ConfigError: evaluation.epochs: 0 is too few", "–", "5"],
        ["4", "same as trial 1", "80 ± 0.5", "1"],
    ]


def test_tests_are_listed_without_a_deviation_of_one_student() -> None:
    table = rows(page(small(tested=TESTED)), "tests")
    assert [row[0] for row in table[1:]] == ["best", "random (beside best)", "job"]
    assert [row[4] for row in table[1:]] == ["84.68 ± 0.43", "72.33 ± 1.13", "78.90"]


def test_what_was_searched_and_how() -> None:
    when = {"randint": [1, 50], "when": {"method.kind": ["dc", "dsa"]}}
    space = {
        "keys": {KEY: {"loguniform": [0.01, 10]}, "x": when},
        "budget": {"trials": 6, "seconds": None},
    }
    tree = page(small(), space=space)
    assert rows(tree, "what-was-searched")[1] == [KEY, "0.01 to 10 by factors", "0.1", "1"]
    said = tree.one("section", id="what-was-searched")
    assert [n.text for n in said.all("li")] == ['x only counts with method.kind ["dc", "dsa"]']
    pairs = {n.one("dt").text: n.one("dd").text for n in said.one("dl").all("div")}
    assert pairs["budget.trials"] == "6"
    assert pairs["search"] == "random"
    assert "budget.seconds" not in pairs


def test_the_winner_is_used_by_a_command_that_reads_the_same_values() -> None:
    values = {
        KEY: 1e-05,
        "method.kind": "null",
        "a.b": [1, "x y"],
        "c": None,
        "d": "it's",
        "e": True,
    }
    report = report_of([trial(0, 50.0, values)], dict.fromkeys(values, "one of"))
    codes = [
        n.text for n in page(report, output="s3://b/a b").one("section", id="use-it").all("code")
    ]
    assert shlex.split(codes[0]) == ["raydd", "distill", "--config", "s3://b/a b/refit.yaml"]
    words = shlex.split(codes[1].replace("\\\n", " "))
    assert words[:4] == ["raydd", "distill", "--config", "JOB.yaml"]
    read = {w.split("=", 1)[0]: yaml.safe_load(w.split("=", 1)[1]) for w in words[4:]}
    assert {**read, KEY: float(read[KEY])} == values


def test_a_sweep_that_selects_nothing_has_no_winner() -> None:
    tree = page(replace(small(), select=False, winner=None, split="test"))
    assert tiles(tree) == [("70.00 to 80.00", "accuracy, % (test) of 3 finished trials")]
    assert [row[0] for row in rows(tree, "trials")[1:]] == list("012345")
    assert not [n for n in tree.all("section") if n.attributes["id"] == "use-it"]


def test_an_unfinished_sweep_says_so() -> None:
    notes = [
        n.text for n in page(small(notes=["Trials 6 are not finished."])).all("p", class_="note")
    ]
    assert notes == [
        "Trials 6 are not finished.",
        "The winner is not tested: the sweep has not come to its end.",
    ]
    failed = page(report_of([trial(0, None, {KEY: 1.0}, state="failed")], {KEY: "0 to 1"}))
    assert [n.text for n in failed.all("p", class_="note")] == ["No trial finished."]


def test_the_charts_are_those_of_the_pictures() -> None:
    tree = page(small(importance={KEY: 0.75}))
    titles = [
        n.all("title")[0].text for n in tree.one("section", id="charts").all("svg", class_="wide")
    ]
    assert titles == [
        "Values in the order of trials",
        "All keys of each finished trial, and its value",
        "How much each key matters",
        "Accuracy of trials on the way",
        "Values over what the sets cost",
        f"Values over {KEY}",
    ]
    said = tree.one("section", id="charts").all("svg", class_="wide")[0].one("desc").text
    assert said == (
        "best so far: 1 line, from 70 to 80. finished: 3 marks, from 70 to 80. stopped early: 1 mark, from 60 to 60."
        " same as another: 1 mark, from 80 to 80. failed (no value, at the lower edge): 1 mark."
    )


def test_reasons_are_short_in_the_table_and_whole_below() -> None:
    tree = page(large(30))
    cell = next(row for row in rows(tree, "trials") if row[0] == "8")[1]
    assert cell.startswith("failed: ConfigError: a long reason")
    assert len(cell) < 70
    whole = tree.one("section", id="trials").all("pre")[0].text
    assert whole.endswith("and more")
    assert len(whole) > 800


def test_names_of_others_stay_text() -> None:
    report = large(40, evil=True)
    text = sweep_page(
        SweepFacts(
            replace(report, job=EVIL, notes=[EVIL], environment={EVIL: EVIL}),
            space={"keys": {EVIL: {"when": {EVIL: EVIL}}}, "trial": {EVIL: EVIL}},
            by_ipc={EVIL: {EVIL: EVIL}},
            output=f"s3://bucket/{EVIL}",
            best_job=EVIL,
            picture=Shown(b"x", "image/png", EVIL, EVIL),
        )
    )
    assert EVIL not in text
    assert "alert(1)" in text
    assert len(check_page(text).all("script")) == 1


@pytest.mark.parametrize("count", [0, 1, 3, pytest.param(500, marks=pytest.mark.slow)])
def test_pages_of_any_size(count: int) -> None:
    tree = page(large(count))
    if count > 50:
        listed, folded = (rows(tree, "trials", i) for i in (0, 1))
        assert (len(listed), len(folded)) == (51, count - 50 + 1)
        assert tree.one("section", id="trials").all("summary")[0].text == "The other 450 trials"
        assert len(sweep_page(SweepFacts(large(count)))) < 2_000_000
