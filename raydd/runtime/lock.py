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
from functools import lru_cache
from pathlib import Path
from typing import Any

import psutil

from raydd.core.errors import LockedError, RayddError, TornFileError
from raydd.core.sealed import seal, unseal
from raydd.core.storage import Storage

log = logging.getLogger(__name__)
LOCK = "lock.json"
BEAT_SECONDS = 10.0
STALE_SECONDS = 45.0
AHEAD_SECONDS = 3600.0
"""How far the clock of another machine may be ahead of this one's while its signs of life still count."""


def read_lock(output: Storage, notes: list[str] | None = None) -> dict[str, Any] | None:
    """Return what the lock of an output says: ``host``, ``pid``, when its process ``started``,
    ``since`` when it holds it, and its last ``beat``; ``None`` if there is none, or it is torn (told in ``notes``).
    """
    try:
        return _read(output)
    except TornFileError as error:
        if notes is not None:
            notes.append(f"whether a process works on it is not known: {error}")
        return None


def _read(output: Storage) -> dict[str, Any] | None:
    """Return what the lock of an output says, ``None`` if there is none; ``TornFileError`` if it is torn."""

    def shape(values: dict[str, Any]) -> None:
        int(values.get("pid", -1)), float(values.get("beat", 0.0)), float(values.get("since") or 0)

    try:
        return unseal(output.get(LOCK), f"{output.url}/{LOCK}", shape)
    except FileNotFoundError:
        return None


def alive(lock: Mapping[str, Any], now: float) -> bool:
    """Return whether a lock's process lives: seen here where it is of this machine, else by its beat."""
    if lock.get("host") == socket.gethostname():
        if "after_boot" in lock:
            return _identity(int(lock.get("pid", -1))) == (lock.get("boot"), lock["after_boot"])
        return _started(int(lock.get("pid", -1))) == lock.get("started")
    return -AHEAD_SECONDS < now - float(lock.get("beat", 0.0)) < STALE_SECONDS


class Lock:
    """``lock.json`` in an output folder, kept fresh by a thread; a dead owner's lock is taken over.

    ``lost`` is called when another process has taken the lock over although this one lives (it was
    suspended, or cut off from the storage): what runs is to stop, and leaving the lock raises ``LockedError``.
    """

    def __init__(
        self, output: Storage, tell: Callable[[str], None], lost: Callable[[], None] | None = None
    ) -> None:
        self.output, self.tell, self._lost = output, tell, lost
        self.token, self.since = uuid.uuid4().hex, time.time()
        self.taken_by = ""
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True, name="lock")

    def __enter__(self) -> Lock:
        """Take the lock; ``LockedError`` if a living process holds it, or takes it at the same time."""
        self._take()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join(timeout=5)
        if self.taken_by:
            raise LockedError(
                f"{self.output.url} was taken over by {self.taken_by} while this run had it; what it has computed is in"
                " the store"
            )
        try:
            mine = self._now()
            if mine is not None and mine.get("token") == self.token:
                self.output.delete(LOCK)
        except RayddError as error:
            log.warning("the lock was left behind: %s", error)

    def _take(self) -> None:
        try:
            other = _read(self.output)
        except TornFileError as error:
            other = {}
            self._wait_for(other, f"somebody ({error})")
        else:
            if other is not None:
                self._wait_for(other, _who(other))
        if other is None and not self.output.create(LOCK, self._text()):
            # An answer may have been lost: then what lies there is this one's own.
            other = self._now() or {}
            if other.get("token") != self.token:
                raise self._refusal(_who(other))
        elif other is not None:
            self.output.put(LOCK, self._text())
        found = self._now()  # a server that knows no exclusive writes lets two of them pass
        if found is not None and found.get("token") != self.token:
            raise self._refusal(_who(found))

    def _now(self) -> dict[str, Any] | None:
        return read_lock(self.output)

    def _text(self) -> bytes:
        boot, after_boot = _identity(os.getpid()) or ("", None)
        me = {
            "token": self.token,
            "since": self.since,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "started": _started(os.getpid()),
            "boot": boot,
            "after_boot": after_boot,
        }
        return seal(json.dumps({**me, "beat": time.time()}).encode())

    def _refusal(self, who: str) -> LockedError:
        return LockedError(
            f"{self.output.url} is being written by {who}; stop it first, or choose another output"
        )

    def _wait_for(self, other: dict[str, Any], who: str) -> None:
        """Return once the owner of a lock is known to be dead; ``LockedError`` if it lives."""
        if other.get("host") == socket.gethostname():
            if alive(other, time.time()):
                raise self._refusal(who)
            return
        begun, before = time.monotonic(), self._bytes()
        self.tell(
            f"{self.output.url} was locked by {who}; waiting {STALE_SECONDS:.0f} s for a sign of life"
        )
        while time.monotonic() - begun < STALE_SECONDS:
            time.sleep(min(3.0, STALE_SECONDS / 5))
            now = self._bytes()
            if now is None:
                return
            if now != before:
                raise self._refusal(_who(self._now() or other) if other else who)
        self.tell(f"{who} gives no sign of life; taking over")

    def _bytes(self) -> bytes | None:
        try:
            return self.output.get(LOCK)
        except FileNotFoundError:
            return None

    def _beat(self) -> None:
        while not self._done.wait(BEAT_SECONDS):
            try:
                found = self._now()
                if found is not None and found.get("token") != self.token:
                    self.taken_by = _who(found)
                    log.warning("%s was taken over by %s; stopping", self.output.url, self.taken_by)
                    if self._lost is not None:
                        self._lost()
                    return
                self.output.put(LOCK, self._text())
            except RayddError as error:
                log.warning("the lock could not be refreshed: %s", error)


def _who(lock: Mapping[str, Any]) -> str:
    if "pid" not in lock:
        return "another process"
    return f"process {lock.get('pid')} on {lock.get('host')}"


def _started(pid: int) -> float | None:
    """Return when a process of this machine began by the clock, as locks of earlier versions say it."""
    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else process.create_time()
    except (psutil.Error, ValueError):
        return None


def _identity(pid: int) -> tuple[str, float] | None:
    """Return what tells a process of this machine from any other, whatever the clock is set to meanwhile: the boot,
    and the seconds after it when the process began; a pid alone may be somebody else's by now.
    """
    while (
        psutil.LINUX
    ):  # where a process's beginning is its time after boot, and the boot is moved with the clock
        boot, started = psutil.boot_time(), _started(pid)
        if started is None:
            return None
        if boot == psutil.boot_time():
            return _boot(), round(started - boot, 2)
    began = _started(pid)
    return None if began is None else (_boot(), began)


@lru_cache
def _boot() -> str:
    """Return the machine's boot, empty where the system does not name it."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""
