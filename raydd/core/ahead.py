"""Keyed draws made one update ahead, in a thread, so that a GPU never waits for the CPU's generators."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

T = TypeVar("T")


class Ahead(Generic[T]):
    """``ahead(t)`` returns ``draw(t)``; with ``threaded``, ``draw(t + 1)`` is begun meanwhile. Same values either way."""

    def __init__(self, draw: Callable[[int], T], *, threaded: bool) -> None:
        self._draw = draw
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="draws") if threaded else None
        self._next: tuple[int, Future[T]] | None = None

    def __call__(self, t: int) -> T:
        """Return the draws of update ``t``."""
        if self._pool is None:
            return self._draw(t)
        ready = self._next
        value = ready[1].result() if ready is not None and ready[0] == t else self._draw(t)
        self._next = (t + 1, self._pool.submit(self._draw, t + 1))
        return value
