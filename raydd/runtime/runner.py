"""Runs a plan in this process: one worker and its ledger, a plain loop."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

from raydd.core.checkpoint import Rows
from raydd.core.errors import RunFailed
from raydd.core.events import Event
from raydd.core.numerics import pick_device
from raydd.core.store import Store, device_kind
from raydd.core.units import Data, Ref
from raydd.data.config import DatasetConfig
from raydd.data.datasets import located, open_data
from raydd.runtime.leases import Claims, Lease
from raydd.runtime.ledger import Ledger
from raydd.runtime.worker import Worker

OnEvent = Callable[[Event], None]
DataSource = Callable[[], Mapping[str, Data]]


@dataclass(frozen=True)
class OpenData:
    """Opens a job's data set on any worker, where the process that made this would: workers run in
    folders of their own. ``opened``: the splits, where this process has them open; they do not travel.
    """

    config: DatasetConfig
    opened: Mapping[str, Data] | None = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        if self.opened is None:  # else it was found where they are
            object.__setattr__(self, "config", located(self.config))

    def __getstate__(self) -> dict[str, Any]:
        return {"config": self.config, "opened": None}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        for name, value in state.items():
            object.__setattr__(self, name, value)

    def __call__(self) -> Mapping[str, Data]:
        """Return the splits."""
        return open_data(self.config) if self.opened is None else self.opened


class Runner(Protocol):
    """Computes what is missing of the targets and of all they need."""

    def run(self, targets: Sequence[Ref], store: Store, on_event: OnEvent) -> None:
        """Return when every target's marker is in the store; ``RunFailed`` if a unit cannot be computed."""
        ...

    def stop(self) -> None:
        """Ask a running :meth:`run` to save its state and return early."""
        ...


@dataclass
class _DirectDesk:
    """The ledger as the in-process worker sees it; events go to the driver at once."""

    ledger: Ledger
    on_event: OnEvent
    device: str
    sent: int = 0

    def flush(self) -> None:
        events, _, _ = self.ledger.poll(self.sent)
        self.sent += len(events)
        for event in events:
            self.on_event(event)

    def lease(self, held: list[str]) -> Lease:
        lease = self.ledger.lease("rank-0", held, device=self.device)
        self.flush()
        return lease

    def progress(self, key: str, t: int, rows: Rows) -> bool:
        stop = self.ledger.progress("rank-0", key, t, rows)
        self.flush()
        return stop

    def wrote(self, key: str, output: str, seconds: float, rows: Rows) -> None:
        self.ledger.wrote("rank-0", key, output, seconds, rows)
        self.flush()

    def torn(self, key: str, bad: Ref, text: str) -> None:
        self.ledger.torn("rank-0", key, bad, text)
        self.flush()

    def fail(self, key: str, text: str) -> None:
        self.ledger.fail(key, text)
        self.flush()

    def stumbled(self, key: str, text: str) -> None:
        self.ledger.stumbled("rank-0", key, text)
        self.flush()


class LocalRunner:
    """Everything in this process, one unit after another. ``same_device``: what another kind of
    device made is made anew. ``claims``: see :class:`raydd.runtime.ledger.Ledger`.

    ``fault(stage, unit, t)`` is called before each update (tests kill the run from there).
    """

    def __init__(
        self,
        open_data: DataSource,
        *,
        checkpoint_every: float = 60.0,
        same_device: bool = False,
        device: torch.device | None = None,
        claims: Claims | None = None,
        fault: Callable[[str, str, int], None] | None = None,
    ) -> None:
        self.open_data, self.checkpoint_every, self.fault = open_data, checkpoint_every, fault
        self.device, self.same_device = device or pick_device(), same_device
        self.claims = claims
        self._ledger: Ledger | None = None
        self._stop = threading.Event()

    def run(self, targets: Sequence[Ref], store: Store, on_event: OnEvent) -> None:
        """Compute what is missing; see :class:`Runner`."""
        kind = device_kind(self.device)
        ledger = self._ledger = Ledger(
            targets, store, device=kind if self.same_device else "", claims=self.claims
        )
        if self._stop.is_set():
            ledger.stop()
        desk = _DirectDesk(ledger, on_event, kind)
        worker = Worker(
            store,
            self.open_data,
            desk,
            device=self.device,
            checkpoint_every=self.checkpoint_every,
            same_device=self.same_device,
            fault=self.fault,
        )
        worker.work(idle=lambda: time.sleep(0.05))
        desk.flush()
        self._stop.clear()
        if ledger.failure:
            raise RunFailed(ledger.failure)

    def stop(self) -> None:
        """Save the state of the running unit and return from :meth:`run`; before that begins: at once."""
        self._stop.set()
        if self._ledger is not None:
            self._ledger.stop()
