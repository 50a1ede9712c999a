"""What Prometheus reads of a run on Ray: units, updates and loss from the ledger, pace and memory from workers.

Ray puts ``ray_`` before the names and serves them on each machine's metrics port
(docs/clusters.md, "Metrics"). Tags are phases, of which there are six: never classes or units.
"""

from __future__ import annotations

import time
from collections import Counter

import torch

from raydd.core.tensors import Tensors
from raydd.core.units import Ref
from raydd.runtime.ledger import Ledger
from raydd.runtime.sizes import taken

EVERY = 1.0
"""Seconds between two looks at the ledger."""
PHASE = ("phase",)


class LedgerMetrics:
    """Gauges of a run, set where its ledger is."""

    def __init__(self, ledger: Ledger) -> None:
        from ray.util.metrics import Gauge

        self._ledger, self._read, self._told = ledger, 0, 0.0
        self._wanted = Gauge("raydd_units", "Units that this run has to compute.", PHASE)
        self._done = Gauge("raydd_units_done", "Units of these that are in the store.", PHASE)
        self._updates = Gauge("raydd_updates_done", "Updates made of these units.", PHASE)
        self._loss = Gauge("raydd_loss", "The newest loss that a worker told of.", PHASE)

    def tell(self) -> None:
        """Set the gauges, at most once in ``EVERY`` seconds."""
        ledger, now = self._ledger, time.monotonic()
        if now - self._told < EVERY and not ledger.finished:
            return
        self._told = now
        wanted: Counter[str] = Counter(node.stage.phase for node in ledger.nodes.values())
        done: Counter[str] = Counter()
        updates: Counter[str] = Counter()
        for node in ledger.nodes.values():
            done[node.stage.phase] += node.complete
            updates[node.stage.phase] += node.t
        for phase, count in wanted.items():
            self._wanted.set(count, {"phase": phase})
            self._done.set(done[phase], {"phase": phase})
            self._updates.set(updates[phase], {"phase": phase})
        events, self._read = ledger.events[self._read :], len(ledger.events)
        for event in events:
            losses = [row["loss"] for _, row in event.rows if "loss" in row]
            if losses and not event.cached:
                self._loss.set(losses[-1], {"phase": event.stage.partition("/")[0]})


class WorkerMetrics:
    """Gauges of a worker: distilled images that it moves in a second, and the memory that it has taken of its device.

    Called with a unit, the updates made and the state about twice a second, and ``idle`` between units.
    """

    def __init__(self, device: torch.device) -> None:
        from ray.util.metrics import Gauge

        self._device = device
        self._pace = Gauge(
            "raydd_images_per_second", "Distilled images moved in a second, by a worker.", PHASE
        )
        self._memory = Gauge(
            "raydd_device_memory_bytes",
            "Memory that a worker has taken of its GPU, or of its machine.",
        )
        self._key, self._t, self._at, self._phase = "", 0, 0.0, ""

    def __call__(self, ref: Ref, t: int, state: Tensors) -> None:
        """Set the gauges."""
        now, phase = time.monotonic(), ref.stage.phase
        if ref.key == self._key and t > self._t and "images" in state:
            moved = len(state["images"]) * (t - self._t)
            self._pace.set(moved / max(now - self._at, 1e-6), {"phase": phase})
            self._phase = phase
        elif phase != self._phase:
            self.idle()
        self._key, self._t, self._at = ref.key, t, now
        self._memory.set(taken(self._device))

    def idle(self) -> None:
        """Say that nothing moves."""
        if self._phase:
            self._pace.set(0.0, {"phase": self._phase})
            self._phase = ""
