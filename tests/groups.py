"""A group of workers as threads of this process: the ledger, leases and lanes without Ray."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from typing import Any

import torch

from raydd.core.events import Event
from raydd.core.store import Store
from raydd.core.tensors import Tensors
from raydd.core.units import Ref
from raydd.runtime.leases import Lease
from raydd.runtime.ledger import Ledger
from raydd.runtime.worker import Worker


class ThreadLanes:
    """Exchanges lanes between threads through a shared board and a barrier."""

    def __init__(self, rank: int, world: int, board: list[Any], barrier: threading.Barrier) -> None:
        self.rank, self.world, self._board, self._barrier = rank, world, board, barrier

    def _exchange(self, value: Any) -> list[Any]:
        self._board[self.rank] = value
        self._barrier.wait(60)
        everyone = list(self._board)
        self._barrier.wait(60)
        return everyone

    def gather(self, mine: dict[int, Tensors]) -> dict[int, Tensors]:
        return {lane: tensors for part in self._exchange(mine) for lane, tensors in part.items()}

    def agree(self, value: int) -> int:
        return self._exchange(value)[0]

    def same(self, text: str) -> bool:
        return len(set(self._exchange(text))) == 1


class LockedDesk:
    """The ledger behind a lock, for one worker thread."""

    def __init__(self, ledger: Ledger, lock: threading.Lock, worker: str, world: int) -> None:
        self.ledger, self.lock, self.worker, self.world = ledger, lock, worker, world

    def lease(self, held: list[str]) -> Lease:
        with self.lock:
            return self.ledger.lease(self.worker, held, 1, self.world)

    def progress(self, key: str, t: int, rows: Any) -> bool:
        with self.lock:
            return self.ledger.progress(self.worker, key, t, rows, 1)

    def wrote(self, key: str, output: str, seconds: float, rows: Any) -> None:
        with self.lock:
            self.ledger.wrote(self.worker, key, output, seconds, rows)

    def torn(self, key: str, bad: Ref, text: str) -> None:
        with self.lock:
            self.ledger.torn(self.worker, key, bad, text)

    def fail(self, key: str, text: str) -> None:
        with self.lock:
            self.ledger.fail(key, text)

    def stumbled(self, key: str, text: str) -> None:
        with self.lock:
            self.ledger.stumbled(self.worker, key, text)


def run_group(
    targets: Sequence[Ref],
    store: Store,
    world: int,
    open_data: Any = dict,
    checkpoint_every: float = 1e9,
) -> list[Event]:
    """Compute the targets with ``world`` worker threads; return the events."""
    ledger, lock = Ledger(targets, store), threading.Lock()
    board, barrier = [None] * world, threading.Barrier(world)
    errors: list[BaseException] = []

    def body(rank: int) -> None:
        desk = LockedDesk(ledger, lock, f"rank-{rank}", world)
        lanes = ThreadLanes(rank, world, board, barrier)
        try:
            Worker(
                store,
                open_data,
                desk,
                device=torch.device("cpu"),
                checkpoint_every=checkpoint_every,
                lanes=lanes,
            ).work(idle=lambda: time.sleep(0.005))
        except BaseException as error:  # noqa: BLE001 - handed to the test's thread
            errors.append(error)
            barrier.abort()

    threads = [threading.Thread(target=body, args=(rank,)) for rank in range(world)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    assert ledger.failure is None, ledger.failure
    return ledger.events
