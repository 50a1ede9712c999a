"""What a driver learns while its Train group works: the ledger's events, and whether the group waits for machines."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from raydd.core.errors import RunFailed
from raydd.core.events import Event
from raydd.runtime.capacity import Need, describe, room
from raydd.runtime.ray.ray_pulse import Pulse, is_outage
from raydd.runtime.ray.ray_supply import TELL_SECONDS, has_workers, machines, too_long

log = logging.getLogger(__name__)
LOOK_SECONDS = 5.0
"""How often the driver looks whether the cluster is there, and has room for a group that waits."""
START_SECONDS = 30.0
"""What a group may take to start before its driver looks what is in its way."""


class Post:
    """What the driver gets from the ledger, asked again and again."""

    def __init__(self, ledger: Any) -> None:
        self.ledger = ledger
        self.failure: str | None = None
        self.state, self.controller = "", b""
        self._seen, self._identity, self._heard = 0, "", time.monotonic()

    @property
    def working(self) -> bool:
        """Whether the group has workers, as far as is known."""
        return self.state in (
            "RunningState",
            "PreemptingState",
            "ResizingState",
            "ShuttingDownState",
        )

    def fetch(self) -> list[Event]:
        """Return new events: none of a ledger that is silent. One that is being restarted answers again soon."""
        import ray

        try:
            events, self._seen, self.failure, self._identity, state, controller = ray.get(
                self.ledger.poll.options(max_task_retries=0).remote(self._seen, self._identity),
                timeout=5,
            )
        except Exception as error:
            if not is_outage(error):
                raise
            if time.monotonic() - self._heard > 60:
                self._heard = time.monotonic()
                log.warning("the ledger does not answer (%s)", type(error).__name__)
            time.sleep(0.5)
            return []
        self._heard = time.monotonic()
        if state:  # a ledger that was restarted has not heard yet
            self.state, self.controller = state, controller
        return list(events)


class Idle:
    """Notices that the group waits for machines, says so, and ends it after ``limit`` seconds."""

    def __init__(self, need: Need, limit: float, tell: Callable[[str], None]) -> None:
        self.need, self.limit, self.tell = need, limit, tell
        self._since: float | None = None
        self._looked = self._told = time.monotonic()
        self._pulse = Pulse()

    def look(self, post: Post) -> None:
        """``RunFailed`` if the cluster is gone, or has had no room for the least of workers for too long."""
        now = time.monotonic()
        if now - self._looked < LOOK_SECONDS:
            return
        self._looked = now
        need = replace(self.need, evaluators=0)
        idle = self._pulse.ask(
            lambda: (
                not (
                    post.working or has_workers() or room(machines(), need, free=True) >= need.count
                )
            )
        )
        if not idle:
            self._since = None if idle is False else self._since
            return
        if self._since is None:
            self._since, self._told = now, 0.0
        if (
            now - self._since < START_SECONDS
        ):  # its own places are taken before its workers are there
            return
        text = f"waiting for {need}; {describe(need, machines())}"
        if now - self._since > self.limit:
            raise RunFailed(too_long(text, self.limit))
        if now - self._told >= TELL_SECONDS:
            self._told = now
            self.tell(f"{text} (for at most {math.ceil(self.limit - (now - self._since))} s more)")
