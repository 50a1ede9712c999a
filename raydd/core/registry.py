"""A name → object table with pattern listing and helpful misses."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from raydd.core.errors import ConfigError, unknown

T = TypeVar("T")


class Registry(Generic[T]):
    """Objects of one kind (``what``) by name; ``registry.register("name")`` is the decorator that adds one."""

    def __init__(self, what: str) -> None:
        self.what = what
        self._items: dict[str, T] = {}

    def register(self, name: str) -> Callable[[T], T]:
        """Return a decorator that stores its argument under ``name``; a name taken twice is a ``ConfigError``."""

        def add(item: T) -> T:
            if name in self._items:
                raise ConfigError(f"{self.what} '{name}' is registered twice")
            self._items[name] = item
            return item

        return add

    def get(self, name: str) -> T:
        """Return the object called ``name``, or raise ``ConfigError`` with the nearest match."""
        if name not in self._items:
            raise unknown(self.what, name, self._items)
        return self._items[name]

    def names(self, pattern: str = "*") -> list[str]:
        """Return the sorted names that match a shell pattern such as ``"*resnet*"``."""
        return sorted(fnmatch.filter(self._items, pattern))

    def __contains__(self, name: object) -> bool:
        return name in self._items

    def __iter__(self) -> Iterator[str]:
        return iter(self.names())

    def __len__(self) -> int:
        return len(self._items)
