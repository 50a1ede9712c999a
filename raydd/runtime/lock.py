"""Who writes an output folder: a lock with a heartbeat."""

from __future__ import annotations

import json
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from typing import Any

import psutil

from raydd.core.errors import LockedError, RayddError
from raydd.core.json_text import parse_json
from raydd.core.storage import Storage

log = logging.getLogger(__name__)
LOCK = "lock.json"
BEAT_SECONDS = 10.0
STALE_SECONDS = 45.0


def read_lock(output: Storage) -> dict[str, Any] | None:
    """Return what the lock of an output says: ``host``, ``pid``, when its process ``started``,
    ``since`` when it holds it, and its last ``beat``; ``None`` if there is none.
    """
    try:
        return dict(parse_json(output.get(LOCK)))
    except (FileNotFoundError, ValueError, TypeError):
        return None


def alive(lock: Mapping[str, Any], now: float) -> bool:
    """Return whether a lock's process lives: seen here where it is of this machine, else by its beat."""
    if lock.get("host") == socket.gethostname():
        return _started(int(lock.get("pid", -1))) == lock.get("started")
    return now - float(lock.get("beat", 0.0)) < STALE_SECONDS


class Lock:
    """``lock.json`` in an output folder, kept fresh by a thread; a dead owner's lock is taken over."""

    def __init__(self, output: Storage, tell: Callable[[str], None]) -> None:
        self.output, self.tell = output, tell
        self.token, self.since = uuid.uuid4().hex, time.time()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True, name="lock")

    def __enter__(self) -> Lock:
        """Take the lock; ``LockedError`` if a living process holds it."""
        other = self._read()
        if other is not None:
            self._wait_for(other)
        self._write()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join(timeout=5)
        try:
            mine = self._read()
            if mine is not None and mine.get("token") == self.token:
                self.output.delete(LOCK)
        except RayddError as error:
            log.warning("the lock was left behind: %s", error)

    def _read(self) -> dict[str, Any] | None:
        return read_lock(self.output)

    def _write(self) -> None:
        me = {
            "token": self.token,
            "since": self.since,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "started": _started(os.getpid()),
        }
        facts = {**me, "beat": time.time()}
        self.output.put(LOCK, json.dumps(facts).encode())

    def _wait_for(self, other: dict[str, Any]) -> None:
        who = f"process {other.get('pid')} on {other.get('host')}"
        if other.get("host") == socket.gethostname():
            if alive(other, time.time()):
                raise LockedError(
                    f"{self.output.url} is being written by {who}; stop it first, or choose another output"
                )
            return
        begun = time.monotonic()
        self.tell(
            f"{self.output.url} was locked by {who}; waiting {STALE_SECONDS:.0f} s for a sign of life"
        )
        while time.monotonic() - begun < STALE_SECONDS:
            time.sleep(3)
            now = self._read()
            if now is None:
                return
            if now != other:
                raise LockedError(
                    f"{self.output.url} is being written by {who}; stop it first, or choose another output"
                )
        self.tell(f"{who} gives no sign of life; taking over")

    def _beat(self) -> None:
        while not self._done.wait(BEAT_SECONDS):
            try:
                self._write()
            except RayddError as error:
                log.warning("the lock could not be refreshed: %s", error)


def _started(pid: int) -> float | None:
    """Return when a process of this machine began (a pid alone may be somebody else's by now)."""
    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else process.create_time()
    except (psutil.Error, ValueError):
        return None
