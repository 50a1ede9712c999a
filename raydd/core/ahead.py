"""Keyed draws made some updates ahead, in threads, so that a GPU never waits for the CPU's generators."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

T = TypeVar("T")


class Ahead(Generic[T]):
    """``ahead(t)`` returns ``draw(t)``; with ``threaded``, the next ``depth`` draws are begun
    meanwhile. Same values either way.

    ``draw`` runs in as many threads at once; it is asked for no number from ``end`` on.
    """

    def __init__(
        self, draw: Callable[[int], T], *, threaded: bool, depth: int = 1, end: int | None = None
    ) -> None:
        self._draw, self._depth, self._end = draw, depth, end
        self._pool = ThreadPoolExecutor(depth, thread_name_prefix="draws") if threaded else None
        self._begun: dict[int, Future[T]] = {}

    def __call__(self, t: int) -> T:
        """Return the draws of update ``t``."""
        if self._pool is None:
            return self._draw(t)
        ready = self._begun.pop(t, None)
        value = self._draw(t) if ready is None else ready.result()
        wanted = range(
            t + 1, t + 1 + self._depth if self._end is None else min(t + 1 + self._depth, self._end)
        )
        for left in [
            i for i in self._begun if i not in wanted
        ]:  # after a jump, what was begun is of no use
            self._begun.pop(left).cancel()
        for i in wanted:
            if i not in self._begun:
                self._begun[i] = self._pool.submit(self._draw, i)
        return value
