"""The desk of a sweep: proposals, journal, decisions, claims, and going on after a kill."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from test_space import space_of

from raydd.core.storage import Storage
from raydd.runtime.sweep.schedulers import scheduler
from raydd.search.desk import Result, SweepDesk
from raydd.search.searchers import searcher
from raydd.search.space import Space
from raydd.search.trials import Trial, TrialJournal, ranked

LR = {"method.lr_img": {"loguniform": [0.01, 10]}}


def result(value: float, **more: Any) -> Result:
    work = {"computed": 2, "reused": 1, "seconds_computed": 3.0, "seconds_reused": 1.5}
    return Result(value, 0.5, 6, {**work, **more}, {})


def desk_of(space: Space, folder: Path, **more: Any) -> SweepDesk:
    return SweepDesk(space, TrialJournal(Storage(str(folder))), searcher(space), **more)


def run(desk: SweepDesk, score: Callable[[dict[str, Any]], float], most: int = 100) -> list[Trial]:
    """Run up to ``most`` trials one at a time."""
    for _ in range(most):
        number = desk.next()
        if number is None:
            break
        task = desk.begin(number)
        assert task is not None
        desk.finished(number, result(score(dict(task.values))))
    return desk.trials


def near_one(values: dict[str, Any]) -> float:
    return -abs(values["method.lr_img"] - 1.0)


@pytest.mark.parametrize("search", ["random", "tpe"])
@pytest.mark.parametrize("kept", [0, 1, 5, 9])
def test_a_sweep_that_goes_on_proposes_what_it_would_have(
    tmp_path: Path, search: str, kept: int
) -> None:
    space = space_of(LR, search=search, budget={"trials": 10})
    whole = run(desk_of(space, tmp_path / "whole"), near_one)
    run(desk_of(space, tmp_path / "cut"), near_one, kept)
    again = run(desk_of(space, tmp_path / "cut"), near_one)
    assert [trial.values for trial in again] == [trial.values for trial in whole]
    assert [trial.value for trial in again] == [trial.value for trial in whole]
    assert all(trial.attempts == 1 for trial in again)
    assert len({trial.values["method.lr_img"] for trial in whole}) == 10


def test_tpe_learns_where_values_are_good(tmp_path: Path) -> None:
    def spread(search: str, seed: int) -> float:
        space = space_of(LR, search=search, budget={"trials": 40}, seed=seed)
        found = run(desk_of(space, tmp_path / f"{search}-{seed}"), near_one)
        late = [abs(trial.values["method.lr_img"] - 1.0) for trial in found[20:]]
        return sorted(late)[len(late) // 2]

    tpe = [spread("tpe", seed) for seed in range(3)]
    drawn = [spread("random", seed) for seed in range(3)]
    assert max(tpe) < min(drawn)


def test_the_job_comes_first_then_points_then_the_search(tmp_path: Path) -> None:
    space = space_of(LR, search="random", budget={"trials": 4}, points=[{"method.lr_img": 2.0}])
    found = run(desk_of(space, tmp_path), near_one)
    assert [trial.origin for trial in found] == ["job", "point", "random", "random"]
    assert [trial.values["method.lr_img"] for trial in found[:2]] == [0.5, 2.0]


def test_a_grid_is_run_once_and_ends(tmp_path: Path) -> None:
    keys = {"ipc": {"grid": [1, 2]}, "method.iterations": {"grid": [6, 3]}}
    found = run(desk_of(space_of(keys, search="grid"), tmp_path), lambda values: 1.0)
    assert [tuple(trial.values.values()) for trial in found] == [(1, 6), (1, 3), (2, 6), (2, 3)]


def test_what_was_set_before_is_not_run_again(tmp_path: Path) -> None:
    space = space_of({"ipc": {"choice": [1, 2]}}, search="random", budget={"trials": 12})
    seen: list[int] = []

    def score(values: dict[str, Any]) -> float:
        seen.append(values["ipc"])
        return float(values["ipc"])

    found = run(desk_of(space, tmp_path), score)
    assert sorted(seen) == [1, 2]
    assert len(found) == 12
    assert {trial.state for trial in found} == {"finished", "same"}
    assert all(trial.value == trial.values["ipc"] for trial in found)


def test_a_search_without_new_values_ends(tmp_path: Path) -> None:
    space = space_of({"ipc": {"choice": [1, 2]}}, search="random", budget={"seconds": 1e9})
    found = run(desk_of(space, tmp_path), lambda values: 1.0)
    assert sum(trial.state == "finished" for trial in found) == 2


def test_a_cut_trial_is_handed_out_again_before_new_ones(tmp_path: Path) -> None:
    space = space_of(LR, search="random", budget={"trials": 3})
    desk = desk_of(space, tmp_path)
    assert (desk.next(), desk.next()) == (0, 1)
    desk.begin(0)
    desk.begin(1)
    desk.finished(1, result(1.0))
    again = desk_of(space, tmp_path)
    assert again.next() == 0
    task = again.begin(0)
    assert task is not None
    assert task.attempt == 2
    again.finished(0, result(2.0))
    assert again.next() == 2


def test_decisions_of_asha_stay_after_a_kill(tmp_path: Path) -> None:
    keys = {"method.lr_img": {"uniform": [0.1, 1]}}
    more = {"scheduler": "asha", "trial": {"evaluation.every": 1}, "stopping": {"reduction": 2}}
    space = space_of(keys, search="random", budget={"trials": 9}, **more)

    def go(desk: SweepDesk, most: int) -> list[tuple[int, bool]]:
        decided = []
        for _ in range(most):
            number = desk.next()
            if number is None:
                break
            task = desk.begin(number)
            assert task is not None
            for step in range(7):
                value = task.values["method.lr_img"] * step
                if desk.judged(number, step, value):
                    decided.append((number, True))
                    desk.pruned(number, {})
                    break
            else:
                decided.append((number, False))
                desk.finished(number, result(value))
        return decided

    rule = scheduler(space, 1, 6)
    whole = go(desk_of(space, tmp_path / "whole", scheduler=rule), 9)
    assert {stopped for _, stopped in whole} == {True, False}
    cut = go(desk_of(space, tmp_path / "cut", scheduler=scheduler(space, 1, 6)), 4)
    cut += go(desk_of(space, tmp_path / "cut", scheduler=scheduler(space, 1, 6)), 9)
    assert cut == whole


def test_a_decision_is_made_once(tmp_path: Path) -> None:
    class Strict:
        asked = 0

        def stops(self, number: int, step: int, value: float) -> bool:
            Strict.asked += 1
            return value < 0.5

        def ended(self, number: int, step: int, value: float) -> None: ...

    space = space_of(LR, search="random", budget={"trials": 3})
    desk = desk_of(space, tmp_path, scheduler=Strict())
    desk.next()
    desk.begin(0)
    assert desk.judged(0, 1, 0.1)
    assert desk.judged(0, 1, 0.9)
    assert Strict.asked == 1


@pytest.mark.parametrize("name", ["median", "asha"])
def test_rules_stop_what_is_worse_at_the_same_update(tmp_path: Path, name: str) -> None:
    more = {"scheduler": name, "trial": {"evaluation.every": 1}}
    for mode, sign in (("max", 1.0), ("min", -1.0)):
        rule = scheduler(space_of(LR, mode=mode, **more), 1, 6)
        assert rule is not None
        for number in range(4):
            for step in range(1, 7):
                assert not rule.stops(number, step, sign * (100.0 + number))
        assert rule.stops(9, 2, sign * 1.0)


def test_a_unit_is_computed_by_one_trial_at_a_time(tmp_path: Path) -> None:
    desk = desk_of(space_of(LR, search="random", budget={"trials": 3}), tmp_path)
    for number in (0, 1):
        desk.next()
        desk.begin(number)
    assert desk.take(0, 1, "key")
    assert desk.take(0, 1, "key")
    assert not desk.take(1, 1, "key")
    desk.free(1, "key")
    assert not desk.take(1, 1, "key")
    desk.free(0, "key")
    assert desk.take(1, 1, "key")
    desk.finished(1, result(1.0))
    assert desk.take(0, 1, "key")


def test_a_trial_that_begins_again_takes_the_place_of_its_lost_process(tmp_path: Path) -> None:
    desk = desk_of(space_of(LR, search="random", budget={"trials": 3}), tmp_path)
    desk.next()
    desk.begin(0)
    assert desk.take(0, 1, "key")
    desk.begin(0)
    assert not desk.take(0, 1, "key")
    assert desk.take(0, 2, "key")
    assert desk.beat(0, 1)
    assert not desk.beat(0, 2)


def test_failures_are_rows_unless_the_first_trials_all_fail(tmp_path: Path) -> None:
    space = space_of(LR, search="random", budget={"trials": 6}, give_up=2)
    desk = desk_of(space, tmp_path / "a")
    for number in range(6):
        assert desk.next() == number
        desk.begin(number)
        if number == 0:
            desk.finished(0, result(1.0))
        else:
            desk.failed(number, "NaN")
    assert desk.next() is None
    assert not desk.trouble
    bad = desk_of(space, tmp_path / "b")
    for number in range(2):
        assert bad.next() == number
        bad.begin(number)
        bad.failed(number, "NaN")
    assert bad.next() is None
    said = "the first 2 trials all failed; trial 1: NaN (sweep.give_up=3 tries another)"
    assert bad.trouble == said
    again = desk_of(space, tmp_path / "b")
    assert (again.next(), again.trouble) == (None, said)
    assert len(again.trials) == 2
    patient = space_of(LR, search="random", budget={"trials": 6}, give_up=3)
    further = desk_of(patient, tmp_path / "b")
    assert further.next() == 2
    further.begin(2)
    further.finished(2, result(1.0))
    assert further.next() == 3


def test_a_value_that_is_not_finite_is_a_failure(tmp_path: Path) -> None:
    desk = desk_of(space_of(LR, search="random", budget={"trials": 3}), tmp_path)
    desk.next()
    desk.begin(0)
    desk.finished(0, result(float("nan")))
    assert desk.trials[0].state == "failed"
    assert TrialJournal(Storage(str(tmp_path))).read()[0].reason == "the metric is nan"


def test_budgets_end_a_sweep(tmp_path: Path) -> None:
    by_device = space_of(LR, search="random", budget={"device_seconds": 7.0})
    assert len(run(desk_of(by_device, tmp_path / "device"), near_one)) == 3
    now = [0.0]
    by_clock = space_of(LR, search="random", budget={"seconds": 10.0})

    def slow(values: dict[str, Any]) -> float:
        now[0] += 4.0
        return 1.0

    clock = {"clock": lambda: now[0]}
    assert len(run(desk_of(by_clock, tmp_path / "clock", **clock), slow, 1)) == 1
    assert len(run(desk_of(by_clock, tmp_path / "clock", **clock), slow)) == 3


def test_ranks_are_by_value_then_by_number() -> None:
    def trial(number: int, value: float | None, state: Any = "finished") -> Trial:
        return Trial(number, {}, "job", state, value)

    trials = [
        trial(0, 1.0),
        trial(1, 3.0),
        trial(2, 3.0),
        trial(3, 9.0, "pruned"),
        trial(4, None, "failed"),
    ]
    assert [one.number for one in ranked(trials, "max")] == [1, 2, 0]
    assert [one.number for one in ranked(trials, "min")] == [0, 1, 2]
