"""How far a run is, by its plan and its log: units, updates, rates, what was reused, what nobody needs."""

from __future__ import annotations

from typing import Any

import pytest
from run_records import BEGUN, PLAN, RUNNING, line

from raydd.artifacts.standing import Standing, accuracies


def counts(standing: Standing) -> dict[str, tuple[int, int, int]]:
    return {name: (s.done, s.total, s.reused) for name, s in standing.stages.items()}


def test_units_are_done_reused_begun_or_not_needed() -> None:
    standing = Standing(PLAN, RUNNING)
    assert counts(standing) == {
        "init/Draw": (0, 0, 0),
        "distill/Match": (1, 2, 0),
        "evaluate/Evaluate": (1, 2, 1),
    }
    assert standing.of["i0"][1].needless, "what reads it is there"
    assert counts(Standing(PLAN, RUNNING[:1]))["init/Draw"] == (0, 1, 0), "what reads it is not"
    assert not standing.done
    match = standing.stages["distill/Match"]
    assert (match.made, match.steps, match.loss) == (160, 200, 1.0)
    assert match.seconds == 20.0
    assert match.devices() == {"cpu": 1}
    assert match.workers() == ["rank-0"]
    assert standing.stages["evaluate/Evaluate"].devices() == {"NVIDIA H100": 1}


def test_the_rate_is_of_what_this_run_made_and_tells_what_is_left() -> None:
    match = Standing(PLAN, RUNNING).stages["distill/Match"]
    assert match.rate() == pytest.approx(160 / 40)
    assert match.left() == pytest.approx(40 / 4)
    assert match.rate(BEGUN + 82) == pytest.approx(160 / 80)


def test_updates_of_an_earlier_run_count_but_not_for_the_rate() -> None:
    resumed = [
        *RUNNING,
        line(50, "end", status="KILLED", text="the same command goes on"),
        line(100, "run"),
        line(101, "start", "d1", t=60, worker="rank-0"),
        line(111, "log", "d1", t=79, values={"loss": 0.5}),
    ]
    standing = Standing(PLAN, resumed)
    match = standing.stages["distill/Match"]
    assert match.made == 180
    assert match.rate() == pytest.approx(20 / 10)
    assert match.left() == pytest.approx(10)
    assert standing.ended is None
    assert standing.begun == BEGUN + 100
    stopped = Standing(PLAN, resumed[: len(RUNNING) + 1])
    assert (stopped.ended or {})["status"] == "KILLED"


def test_an_unread_stage_without_a_pace_leaves_the_whole_without_one() -> None:
    standing = Standing(PLAN, RUNNING)
    assert standing.stages["evaluate/Evaluate"].left() is None
    assert standing.left() is None
    assert Standing(PLAN, [*RUNNING, *FINISHED]).left() == 0.0
    assert Standing(PLAN, []).stages["init/Draw"].left() == 0.0, "it makes no updates"


FINISHED = [
    line(60, "output", "d1", t=100, output="final", seconds=38.0, device="cpu"),
    line(61, "start", "e0", t=0),
    line(70, "output", "e0", t=10, output="final", seconds=9.0, device="cpu"),
    line(71, "end", status="FINISHED"),
]


def test_a_finished_run_needs_nothing_more() -> None:
    standing = Standing(PLAN, [*RUNNING, *FINISHED])
    assert standing.done
    assert counts(standing)["distill/Match"] == (2, 2, 0)
    assert sum(unit.needless for unit in standing.units) == 1


def test_a_unit_is_done_by_its_final_output_not_by_a_snapshot() -> None:
    standing = Standing(PLAN, RUNNING[:5])
    assert counts(standing)["distill/Match"] == (0, 2, 0)
    assert standing.of["d0"][1].made == 50


def test_a_unit_whose_end_is_made_here_was_not_reused() -> None:
    log: list[dict[str, Any]] = [
        line(0, "output", "d0", output="step-000050", seconds=5.0, cached=True, device="x"),
        line(9, "output", "d0", t=100, output="final", seconds=11.0, device="cpu"),
        line(1, "output", "d1", output="step-000050", seconds=5.0, cached=True, device="x"),
        line(1, "output", "d1", output="final", seconds=9.0, cached=True, device="x"),
    ]
    standing = Standing(PLAN, log)
    assert [standing.of[key][1].reused for key in ("d0", "d1")] == [False, True]
    assert standing.of["d0"][1].device == "cpu"


def test_without_a_plan_the_log_says_what_it_knows() -> None:
    standing = Standing(None, RUNNING)
    assert not standing.planned
    assert counts(standing) == {"evaluate/Evaluate": (1, 1, 1), "distill/Match": (1, 2, 0)}
    assert standing.stages["distill/Match"].loss == 1.0


def test_accuracies_are_in_order() -> None:
    log = [
        line(1, "accuracy", t=50, values={"a": 2.0}),
        line(2, "accuracy", t=0, values={"a": 1.0}),
    ]
    assert accuracies(log) == [(0, {"a": 1.0}), (50, {"a": 2.0})]
