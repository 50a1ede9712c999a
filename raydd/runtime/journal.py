"""What a run writes down while it works: ``log.jsonl`` in its output folder."""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO

from raydd.artifacts.log_lines import checked_line, record_of
from raydd.core.errors import StorageError
from raydd.core.events import Event
from raydd.core.redaction import redacted
from raydd.core.storage import Storage, join

log = logging.getLogger(__name__)
RETRY_SECONDS = 5.0
"""How long a local log that could not be written is left alone."""
REWRITE_SECONDS = 10.0
"""How often the log is written whole where a file system cannot append."""


class _Known:
    """The rows and outputs that are written down, by key."""

    def __init__(self) -> None:
        self.rows: dict[str, set[int]] = {}
        self.outputs: set[tuple[str, str]] = set()
        self.accuracies: set[int] = set()
        self.begun: set[str] = set()

    def is_new(self, record: dict[str, Any]) -> bool:
        """Return whether a record says something new, and remember it."""
        key = str(record.get("key", ""))
        if record["kind"] == "log":
            steps = self.rows.setdefault(key, set())
            new = record.get("t", 0) not in steps
            steps.add(record.get("t", 0))
            return new
        if record["kind"] == "output":
            output = (key, str(record.get("output", "")))
            new = output not in self.outputs
            self.outputs.add(output)
            return new
        if record["kind"] == "start":
            self.begun.add(key)
        if record["kind"] == "accuracy":
            new = record.get("t", 0) not in self.accuracies
            self.accuracies.add(record.get("t", 0))
            return new
        return True

    def add(self, other: _Known) -> None:
        """Remember what ``other`` does."""
        for key, steps in other.rows.items():
            self.rows.setdefault(key, set()).update(steps)
        self.outputs |= other.outputs
        self.accuracies |= other.accuracies


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def _records(event: Event) -> list[dict[str, Any]]:
    """Return an event's lines: its rows, then itself; what is empty is left out."""
    common = {
        "time": _now(),
        "stage": event.stage,
        "unit": event.unit,
        "key": event.key,
    }
    records = [{**common, "kind": "log", "t": t, "values": values} for t, values in event.rows]
    if event.kind in ("start", "output", "failed", "message"):
        facts = {
            "output": event.output,
            "seconds": round(event.seconds, 3),
            "cached": event.cached,
            "worker": event.worker,
            "device": event.device,
            "text": event.text,
        }
        of_unit = {"t": event.t} if event.unit else {}
        records.append({**common, "kind": event.kind, **of_unit, **facts})
    order = (
        "time",
        "kind",
        "stage",
        "unit",
        "key",
        "t",
        "output",
        "seconds",
        "cached",
        "worker",
        "device",
        "values",
        "text",
    )
    return [
        {name: record[name] for name in order if name in record and (name == "t" or record[name])}
        for record in records
    ]


def _encode(record: dict[str, Any]) -> bytes:
    said = (
        record if record.get("kind") == "log" else redacted(record)
    )  # numbers of steps hold no text
    return checked_line(json.dumps(said, ensure_ascii=False).encode())


class Journal:
    """A run's log: a JSON line per started unit, row of scalars, output, failure, message and note.

    A row ``(key, t)``, an output ``(key, output)`` and the accuracy of a snapshot are written once,
    however often a resumed run sends them. On a local file system each line is appended and
    flushed; elsewhere a thread writes the object whole. A line that cannot be written is kept in
    memory and tried again: a journal never stops a job.
    """

    def __init__(self, storage: Storage, path: str = "log.jsonl") -> None:
        self.storage, self.path = storage, path
        self._lock = threading.Lock()
        self._known = _Known()
        self._left: frozenset[str] = frozenset()
        self._loaded = False
        self._pending: list[dict[str, Any]] = []
        self._warned = False
        self._failed_at = float("-inf")
        self._writer: _Append | _Rewrite = (
            _Append(Path(storage.root) / path) if storage.local else _Rewrite(storage, path)
        )
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        if storage.local:
            self._flush()
        else:
            self._thread = threading.Thread(target=self._keep_writing, daemon=True, name="journal")
            self._thread.start()

    def on_event(self, event: Event) -> None:
        """Write down what is new in an event (progress is not written)."""
        self._write(_records(event))

    def note(self, kind: str, **facts: Any) -> None:
        """Write down a line of a kind of its own: ``run`` (a process begins), ``end`` (it stops, and
        how), ``accuracy`` (of the snapshot after ``t`` updates).
        """
        self._write([{"time": _now(), "kind": kind, **facts}])

    def accuracy(self, step: int, values: Mapping[str, float]) -> None:
        """Write down the accuracy of a snapshot, once."""
        self.note("accuracy", t=step, values=dict(values))

    def _write(self, records: list[dict[str, Any]]) -> None:
        if not records:
            return
        with self._lock:
            self._pending += [record for record in records if self._known.is_new(record)]
        if self.storage.local and time.monotonic() - self._failed_at >= RETRY_SECONDS:
            self._flush()

    def left_by_others(self) -> frozenset[str]:
        """Return the keys of units that runs before this one began, and of whose end they wrote no line."""
        return self._left

    def close(self) -> None:
        """Write what is left; a storage that fails costs the lines, a warning, and at most 30 s."""
        if self._thread is not None:
            self._stop.set()
            self._thread.join(timeout=30)
        elif self._pending:
            self._flush()
        self._writer.close()
        if self._pending:
            log.warning(
                "%d lines of the log could not be written to %s",
                len(self._pending),
                join(self.storage.url, self.path),
            )

    def _keep_writing(self) -> None:
        pause = 0.0  # the old lines are read at once, so that few new ones wait for them
        while not self._stop.wait(pause):
            begun = time.monotonic()
            self._flush()
            pause = max(REWRITE_SECONDS, 20 * (time.monotonic() - begun))
        self._flush()

    def _flush(self) -> None:
        try:
            self._load()
            with self._lock:
                batch = list(self._pending)
            if batch:
                self._writer.write([_encode(record) for record in batch])
            with self._lock:
                del self._pending[: len(batch)]
            self._warned = False
        except (OSError, StorageError) as error:
            self._failed_at = time.monotonic()
            if not self._warned:
                self._warned = True
                log.warning(
                    "the log %s cannot be written for now: %s",
                    join(self.storage.url, self.path),
                    error,
                )

    def _load(self) -> None:
        """Read, once, the lines that are there; then drop what of the waiting lines they already say."""
        if self._loaded:
            return
        try:
            data = self.storage.get(self.path)
        except FileNotFoundError:
            data = b""
        whole = data[: data.rfind(b"\n") + 1]
        old = _Known()
        for line in whole.splitlines():
            try:
                old.is_new(dict(record_of(line)))
            except (ValueError, KeyError, TypeError, AttributeError):
                continue  # damaged by a crash: it says nothing, and what it said is written again
        finished = {key for key, output in old.outputs if output == "final"}
        with self._lock:
            self._left = frozenset(old.begun - finished)
            self._pending = [record for record in self._pending if old.is_new(record)]
            old.add(self._known)
            self._known = old
            self._writer.begin(whole, torn=len(whole) < len(data))
            self._loaded = True


class _Append:
    """Appends lines to a local file, cutting off first whatever is not a whole line."""

    def __init__(self, path: Path) -> None:
        self.path, self._size = path, 0
        self._file: BinaryIO | None = None

    def begin(self, whole: bytes, *, torn: bool) -> None:
        self._size = len(whole)
        if torn:
            os.truncate(self.path, self._size)

    def write(self, lines: list[bytes]) -> None:
        data = b"".join(lines)
        try:
            if self._file is None:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self._file = self.path.open("ab")
                self._file.truncate(self._size)  # what a failed write left behind
            self._file.write(data)
            self._file.flush()
            self._size += len(data)
        except OSError:
            self.close()
            raise

    def close(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            try:
                file.close()
            except OSError:
                pass  # a full disk, already reported; the bytes are still in memory


class _Rewrite:
    """Writes the whole log as one object each time."""

    def __init__(self, storage: Storage, path: str) -> None:
        self.storage, self.path = storage, path
        self._body = bytearray()

    def begin(self, whole: bytes, *, torn: bool) -> None:
        self._body = bytearray(whole)

    def write(self, lines: list[bytes]) -> None:
        size = len(self._body)
        self._body += b"".join(lines)
        try:
            self.storage.put(self.path, bytes(self._body))
        except BaseException:
            del self._body[size:]  # the lines are still waiting, and come again
            raise

    def close(self) -> None:
        """Nothing is open between two writes."""
