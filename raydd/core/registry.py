"""A name → object table with pattern listing and helpful misses, which installed packages can add to.

A package adds an object by an entry point of the table's group. Entry points are listed when a
table is asked for what it holds, and imported when one is asked for by name.
"""

from __future__ import annotations

import fnmatch
import logging
from collections.abc import Callable, Iterator
from functools import cached_property
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Generic, TypeVar

from raydd.core.errors import ConfigError, first_line, unknown

T = TypeVar("T")
log = logging.getLogger(__name__)


def _place(point: EntryPoint) -> str:
    package = f"{point.dist.name} {point.dist.version}" if point.dist else "a package"
    return f"{package} ({point.value})"


class Registry(Generic[T]):
    """Objects of one kind (``what``) by name; ``registry.register("name")`` is the decorator that adds one.

    ``group``: the entry points that add to it (empty: none do). ``admit``: makes an entry of what
    such a point names, or raises ``ConfigError``.
    """

    def __init__(
        self, what: str, group: str = "", admit: Callable[[str, Any], T] | None = None
    ) -> None:
        self.what, self.group, self._admit = what, group, admit
        self._items: dict[str, T] = {}
        self._modules: dict[str, str] = {}
        self._warned: set[str] = set()

    @cached_property
    def _points(self) -> dict[str, list[EntryPoint]]:
        points: dict[str, list[EntryPoint]] = {}
        for point in entry_points(group=self.group) if self.group else ():
            points.setdefault(point.name, []).append(point)
        return {name: points[name] for name in sorted(points)}

    def register(self, name: str, module: str = "") -> Callable[[T], T]:
        """Return a decorator that stores its argument under ``name``; a name taken twice is a ``ConfigError``.

        ``module``: where the object is from, if it does not say so itself.
        """

        def add(item: T) -> T:
            here = module or str(getattr(item, "__module__", type(item).__module__))
            if name in self._items:
                places = f"by {self._modules[name]} and by {here}"
                raise ConfigError(f"{self.what} '{name}' is registered twice: {places}")
            self._items[name], self._modules[name] = item, here
            return item

        return add

    def get(self, name: str) -> T:
        """Return the object called ``name``, or raise ``ConfigError``: with the nearest match, for a
        name that two packages give, for a package that cannot be imported.
        """
        if name not in self:
            raise unknown(self.what, name, self)
        # What a package registered itself, when it was imported, is not another object of that name.
        own = self._modules.get(name, "").partition(".")[0]
        points = self._points.get(name, [])
        others = [point for point in points if point.module.partition(".")[0] != own]
        places = [self._modules[name]] if own else []
        places += [_place(point) for point in (others if own else points)]
        if len(places) > 1:
            raise ConfigError(
                f"{self.what} '{name}' is given by {' and by '.join(places)}: uninstall one, or rename its"
                f" entry point of '{self.group}'"
            )
        if not own:
            self._load(name, points[0])
        return self._items[name]

    __getitem__ = get

    def _load(self, name: str, point: EntryPoint) -> None:
        try:
            found = point.load()
            admitted = self._admit(name, found) if self._admit else found
        except Exception as error:
            raise ConfigError(
                f"{self.what} '{name}' of {_place(point)} cannot be used: {type(error).__name__}: {first_line(error)}"
            ) from error
        if name not in self._items:  # else its own import registered it
            self.register(name, point.module)(admitted)

    def items(self) -> Iterator[tuple[str, T]]:
        """Yield names and objects; a package's that cannot be used is left out with a warning, once."""
        for name in self:
            try:
                item = self.get(name)
            except ConfigError as error:
                if name not in self._warned:
                    self._warned.add(name)
                    log.warning("%s", error)
                continue
            yield name, item

    def names(self, pattern: str = "*") -> list[str]:
        """Return the sorted names that match a shell pattern such as ``"*resnet*"``."""
        return sorted(fnmatch.filter(self, pattern))

    def __contains__(self, name: object) -> bool:
        return name in self._items or name in self._points

    def __iter__(self) -> Iterator[str]:
        """Yield the names in the order in which they were added, installed packages' last."""
        return iter(dict.fromkeys((*self._items, *self._points)))

    def __len__(self) -> int:
        return len(list(iter(self)))
