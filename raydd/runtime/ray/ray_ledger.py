"""The ledger as a Ray actor. Whoever has its handle imports this file: it imports no torch."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from raydd.core.events import Event

if TYPE_CHECKING:
    from raydd.core.store import Store
    from raydd.core.units import Ref


class LedgerActor:
    """The ledger as a Ray actor; when it is restarted it lists the store again."""

    def __init__(
        self, targets: Sequence[Ref], store: Store, evaluators: int, device: str = ""
    ) -> None:
        from raydd.runtime.ledger import Ledger
        from raydd.runtime.ray.ray_metrics import LedgerMetrics

        self.ledger = Ledger(targets, store, evaluators, device)
        self.metrics = LedgerMetrics(self.ledger)
        self.identity = uuid.uuid4().hex
        self.group: tuple[str, bytes] = ("", b"")

    def attend(self, state: str, controller: bytes) -> None:
        """Note what the Train group's controller does, and its handle, pickled."""
        self.group = (state, controller)

    def call(self, method: str, args: tuple[Any, ...]) -> Any:
        """Call a method of the ledger."""
        return getattr(self.ledger, method)(*args)

    def note(self, text: str) -> None:
        """Pass a line for a person on to the driver."""
        self.ledger.events.append(Event(kind="message", text=text))

    def poll(
        self, since: int, identity: str
    ) -> tuple[list[Event], int, str | None, str, str, bytes]:
        """Return events after ``since`` (all of them to a driver that knew another incarnation),
        and the run's and the group's state.
        """
        self.metrics.tell()
        events, _, failure = self.ledger.poll(since if identity == self.identity else 0)
        return events, len(self.ledger.events), failure, self.identity, *self.group
