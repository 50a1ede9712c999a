"""Go, wait or refuse: decided from what a cluster reports, without one."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from raydd.runtime.capacity import Growth, Machine, Need, decide, describe, places, room
from raydd.runtime.ray.ray_supply import from_limits

FIXED, FULL, GROWS = Growth("fixed"), Growth("full"), Growth("grows")


def machine(
    cpus: float, gpus: float = 0, *, used: float = 0, used_gpus: float = 0, kind: str = ""
) -> Machine:
    """A machine as Ray reports it: what there is none of is left out."""
    total = {"CPU": cpus, "GPU": gpus, "memory": 1e9}
    free = {"CPU": cpus - used, "GPU": gpus - used_gpus, "memory": 1e9}
    return Machine(
        {k: v for k, v in total.items() if v}, {k: v for k, v in free.items() if v}, kind
    )


@pytest.mark.parametrize(
    ("cpus", "gpus", "each", "gpus_each", "fit"),
    [
        (2, 0, 1, 0, 2),
        (2, 0, 0.3, 0, 6),
        (0.3, 0, 0.1, 0, 3),
        (8, 0, 3, 0, 2),
        (0, 0, 1, 0, 0),
        (8, 2, 1, 1, 2),
        (8, 2, 1, 0.5, 4),
        (8, 2, 1, 0.6, 2),
        (8, 2, 1, 2, 1),
        (8, 3, 1, 2, 1),
        (1, 4, 1, 1, 1),
        (8, 0, 1, 0.1, 0),
        (8, 0.5, 1, 0.25, 2),
    ],
)
def test_workers_on_a_machine(
    cpus: float, gpus: float, each: float, gpus_each: float, fit: int
) -> None:
    assert places(machine(cpus, gpus).total, Need(1, cpus=each, gpus=gpus_each)) == fit


def test_a_worker_is_not_spread_over_machines() -> None:
    small = [machine(2)] * 4
    assert room(small, Need(1, cpus=4)) == 0
    assert room(small, Need(1, cpus=2)) == 4
    assert room([machine(0), machine(2, used=1)], Need(1), free=True) == 1


def test_what_there_is_room_for_starts() -> None:
    assert decide(Need(2), [machine(2)], FIXED).kind == "go"
    assert decide(Need(2, evaluators=1), [machine(0), machine(3)], FULL).kind == "go"


def test_what_others_use_is_waited_for_on_any_cluster() -> None:
    for growth in (FIXED, FULL, GROWS):
        verdict = decide(Need(2), [machine(2, used=1)], growth)
        assert (verdict.kind, verdict.text) == (
            "wait",
            "waiting for 2 workers; the cluster has 2 CPUs (1 CPU free)",
        )


def test_machines_that_may_come_are_waited_for() -> None:
    assert (
        decide(Need(3), [machine(2)], GROWS).text == "waiting for 3 workers; the cluster has 2 CPUs"
    )
    assert (
        decide(Need(3), [], Growth("asked")).text
        == "waiting for 3 workers; the cluster has no machine"
    )
    verdict = decide(
        Need(2, 1, cpus=2, gpus=0.5), [machine(0), machine(4, 1)], Growth("grows", {"gpu": 2})
    )
    wanted = "waiting for 2 workers and 1 evaluator of 2 CPUs and 0.5 GPUs each"
    assert (
        verdict.text
        == f"{wanted}; the cluster has 4 CPUs and 1 GPU on 2 machines; starting 2 × gpu"
    )


@pytest.mark.parametrize(
    ("need", "machines", "growth", "words"),
    [
        (
            Need(3),
            [machine(2)],
            FIXED,
            (
                "compute.workers: 3 workers cannot be placed",
                "has 2 CPUs, and it does not grow",
                "=2)",
            ),
        ),
        (
            Need(3, elastic=True),
            [machine(1), machine(1)],
            FIXED,
            ("on 2 machines", "a minimum of at most 2 workers"),
        ),
        (
            Need(2, evaluators=2),
            [machine(3)],
            FIXED,
            ("2 workers and 2 evaluators cannot", "compute.workers=1", "compute.evaluators"),
        ),
        (Need(1, evaluators=2), [machine(2)], FIXED, ("Ask for fewer evaluators",)),
        (
            Need(1, gpus=1),
            [machine(2)],
            FIXED,
            ("compute.gpus_per_worker: 1 worker of 1 GPU", "2 CPUs and 0 GPUs", "Lower"),
        ),
        (
            Need(1, cpus=4),
            [machine(2)] * 4,
            FIXED,
            ("compute.cpus_per_worker", "8 CPUs on 4 machines, the largest 2 CPUs: room for 0"),
        ),
        (
            Need(3),
            [machine(2)],
            FULL,
            (
                "its autoscaler can start no more machines for them. Ask for fewer workers, or raise",
            ),
        ),
        (Need(2, cpus=2), [machine(0)], FIXED, ("the cluster has 0 CPUs",)),
        (Need(3), [machine(2, used=2)], FIXED, ("2 CPUs (0 CPUs free)",)),
    ],
)
def test_what_can_never_come_is_refused_with_the_remedy(
    need: Need, machines: list[Machine], growth: Growth, words: tuple[str, ...]
) -> None:
    verdict = decide(need, machines, growth)
    assert verdict.kind == "refuse"
    for word in words:
        assert word in verdict.text, verdict.text


def test_sums_that_would_do_name_the_largest_machine() -> None:
    text = describe(Need(2, cpus=3), [machine(4), machine(2)])
    assert text == "the cluster has 6 CPUs on 2 machines, the largest 4 CPUs: room for 1 of 2"


@pytest.mark.parametrize(
    ("most", "there", "state"),
    [(1, 0, "grows"), (2, 2, "full"), (3, 2, "grows"), (-1, 9, "grows"), (0, 0, "full")],
)
def test_kinds_of_machines_below_their_maximum_can_come(most: int, there: int, state: str) -> None:
    """One more machine of 2 CPUs is enough for 3 workers beside a head of one CPU, where none are there."""
    group = SimpleNamespace(name="cpu", resources={"CPU": 2}, max_count=most)
    machines = [machine(1, kind="head"), *[machine(2, kind="cpu")] * there]
    assert from_limits(Need(2 * there + 3), machines, [group]).state == state


def test_kinds_that_are_too_small_cannot_help() -> None:
    group = SimpleNamespace(name="cpu", resources={"CPU": 2}, max_count=-1)
    assert from_limits(Need(1, cpus=4), [machine(1)], [group]).state == "full"
    assert from_limits(Need(1, gpus=1), [machine(1)], [group]).state == "full"
