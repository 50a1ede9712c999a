"""What a worker may need again: bounded by the memory in which it lies, the least recently used given up first."""

from __future__ import annotations

import threading
from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from raydd.runtime.sizes import sizes_of

T = TypeVar("T")


class Cache:
    """Values by key. ``limits``: bytes of tensors kept, by kind of device (``cpu``, ``cuda``).

    An entry is measured when it is made, and one other with it, in turn: entries may grow, and
    measuring all of them each time would cost as much as there are. Threads may ask at once.
    """

    def __init__(self, limits: Mapping[str, float]) -> None:
        self.limits = dict(limits)
        self._values: OrderedDict[Any, Any] = OrderedDict()
        self._sizes: OrderedDict[Any, Counter[str]] = OrderedDict()
        self._lock = threading.RLock()

    def get(self, key: Any, make: Callable[[], T]) -> T:
        """Return the value of ``key``, made when it is absent."""
        with self._lock:
            if key in self._values:
                self._values.move_to_end(key)
                return self._values[key]
        value = make()
        with self._lock:
            value = self._values.setdefault(key, value)
            self._values.move_to_end(key)
            self._measure(key)
            self._measure(next(iter(self._sizes)))
            self._give_up(key)
        return value

    def drop(self, key: Any) -> None:
        """Forget an entry, if it is there."""
        with self._lock:
            self._values.pop(key, None)
            self._sizes.pop(key, None)

    def _measure(self, key: Any) -> None:
        self._sizes[key] = sizes_of(self._values[key])
        self._sizes.move_to_end(key)

    def _give_up(self, newest: Any) -> None:
        """Drop what was not used for longest, of each kind of memory that is too full; never the newest entry."""
        taken: Counter[str] = sum(self._sizes.values(), Counter())
        for kind, limit in self.limits.items():
            for key in list(self._values):
                if taken[kind] <= limit:
                    break
                if key != newest and self._sizes[key][kind]:
                    taken -= self._sizes[key]
                    self.drop(key)
