"""Draws that threads make ahead."""

from __future__ import annotations

import threading

from raydd.core.ahead import Ahead


def test_draws_made_ahead_are_those_asked_for_in_any_order_and_none_lies_behind_the_end() -> None:
    drawn: list[int] = []
    lock = threading.Lock()

    def draw(t: int) -> int:
        with lock:
            drawn.append(t)
        return t * t

    ahead = Ahead(draw, threaded=True, depth=3, end=8)
    asked = [0, 1, 2, 5, 6, 7, 3, 4]
    assert [ahead(t) for t in asked] == [t * t for t in asked]
    assert max(drawn) == 7
    assert drawn.count(1) == drawn.count(2) == 1


def test_without_threads_each_number_is_drawn_when_it_is_asked_for() -> None:
    drawn: list[int] = []
    ahead = Ahead(lambda t: drawn.append(t), threaded=False, depth=3)
    ahead(4)
    assert drawn == [4]
