"""How a program that calls a run steers it: what it hears of it, and how it stops it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from raydd.artifacts.report import Point
from raydd.core.events import Event
from raydd.runtime.leases import Claims


class Stoppable(Protocol):
    """What saves its state and returns early when it is asked to."""

    def stop(self) -> None:
        """Save the state of what is computed, and return from ``run``."""
        ...


@dataclass
class Control:
    """The caller's side of a run: :meth:`stop` may be called from any thread, also before the run begins.

    ``on_event`` hears every event, ``on_point`` the accuracy of a snapshot as soon as its students
    are tested, both on the run's own thread. ``tags``: further tags of the run that MLflow keeps.
    ``claims``: asked before a unit is computed, where several runs share a store at the same time.
    ``show``: whether progress is shown to a person. ``labels``: URL below which records of soft
    labels go that several runs share; the set is then published without them. ``lender``: such a
    URL, from which records are copied that are there. ``copies``: whether MLflow gets a copy of the
    set, or only its place. ``keep``: whether the store keeps the run's units until the caller says
    that they are not needed any more. ``units``: set by a finished run: the device-seconds of each
    unit behind it, whoever computed it.
    """

    on_event: Callable[[Event], None] | None = None
    on_point: Callable[[Point], None] | None = None
    tags: Mapping[str, str] = field(default_factory=dict)
    claims: Claims | None = None
    show: bool = False
    labels: str = ""
    lender: str = ""
    copies: bool = True
    keep: bool = False
    units: Mapping[str, float] = field(default_factory=dict)
    _runner: Stoppable | None = field(default=None, repr=False)
    _asked: bool = False
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    @property
    def stopped(self) -> bool:
        """Whether the run was asked to stop."""
        return self._asked

    def stop(self) -> None:
        """Ask the run to save its state and stop; it then raises ``Interrupted``."""
        with self._lock:
            self._asked = True
            if self._runner is not None:
                self._runner.stop()

    def attach(self, runner: Stoppable) -> None:
        """Hand over what computes; one that was asked to stop before stops at once."""
        with self._lock:
            self._runner = runner
            if self._asked:
                runner.stop()
