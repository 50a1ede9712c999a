"""What a dry run says of bytes: each unit counts by the outputs that are asked of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import pytest
from toys import Walk

from raydd.core.units import Cost, Ref, snapshot
from raydd.runtime.estimate import StageCost, costs, duration, too_long


@dataclass(frozen=True, kw_only=True)
class Weighed(Walk):
    """Walks of 10, 20, … updates whose outputs are 100, 200, … bytes."""

    phase: ClassVar[str] = "squeeze"
    keyed_as: ClassVar[str] = "weighed"

    def cost(self, unit: str) -> Cost:
        return Cost(flop=1.0, output_bytes=100 * self._number(unit), state_bytes=7)

    def steps(self, unit: str) -> int:
        return 10 * self._number(unit)

    def _number(self, unit: str) -> int:
        return int(unit.removeprefix("walk-")) + 1


def test_bytes_are_those_of_each_units_own_outputs() -> None:
    stage = Weighed(seed=0, count=3)
    refs = [
        *(Ref(stage, "walk-00", snapshot(step)) for step in (1, 2, 3)),
        Ref(stage, "walk-01", snapshot(4)),
        Ref(stage, "walk-02"),
    ]
    (row,) = costs(refs)
    assert row.output_bytes == 3 * 100 + 200 + 300, "five outputs of 3 units, none of them 15"
    assert (row.units, row.flop, row.state_bytes) == (3, 3.0, 21)


def test_units_of_unequal_length_share_a_row_with_their_mean() -> None:
    one, two = Weighed(seed=0, count=4), Weighed(seed=1, count=4)
    (row,) = costs([*one.refs(), *two.refs()])
    assert (row.units, row.updates) == (8, 25)
    short = Weighed(seed=2, count=1)
    assert {row.updates for row in costs([*one.refs(), *short.refs()])} == {25, 10}


@pytest.mark.parametrize(
    ("days", "text"),
    [
        (1.5, "36.0 h"),
        (2.1, "2.1 days"),
        (60.0, "60.0 days"),
        (123.0, "4.0 months"),
        (365.25 * 3.1, "3.1 years"),
    ],
)
def test_long_times_are_in_units_that_can_be_read(days: float, text: str) -> None:
    assert duration(86400 * days) == text


def test_a_plan_is_warned_of_above_the_longest_time() -> None:
    """10,000 updates of one unit, 2.1e15 FLOP at 70 % of 1 GFLOP/s: 34.7 days and some overhead."""
    row = StageCost("distill/Walk", "distill", 1, 10_000, 0, 2.1e15, 1, 1, 1)
    facts = {"rate": 1e9, "workers": 4}
    assert too_long([row], longest=35, **facts) == []
    first, second = too_long([row], longest=7, instead=("NVIDIA H100", 1e12), **facts)
    assert first == ("warning: about 34.7 days with 4 workers is more than compute.longest=7 days")
    # 3,000 s of arithmetic, 50 s of updates, 15 s to start.
    assert second == (
        "  one NVIDIA H100 would take about 51 min, at 1 TFLOP/s: raydd distill --dry-run --device h100"
    )
    (alone,) = too_long([row], longest=7, **facts)
    assert alone == first
