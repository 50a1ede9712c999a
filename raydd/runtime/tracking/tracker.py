"""MLflow from the driver, behind a queue and a thread: a server that is down never stops, slows or fails a job."""

from __future__ import annotations

import itertools
import json
import logging
import threading
import time
import uuid
from collections import deque
from collections.abc import Mapping
from typing import Any

from raydd.artifacts.report import Report
from raydd.core.errors import RayddError
from raydd.core.redaction import redact
from raydd.core.storage import Storage, absolute
from raydd.runtime.tracking.mlflow_run import (
    METRICS_AT_ONCE,
    Artifacts,
    Input,
    Item,
    Metric,
    MlflowRun,
    Picture,
    Rejected,
    Tag,
    clean,
)
from raydd.runtime.tracking.note import note, origin
from raydd.runtime.tracking.tracking_uri import (
    quiet,
    resolve_uri,
    show_command,
    sqlite_path,
    web_address,
)
from raydd.runtime.tracking.unsent import Unsent, counts

log = logging.getLogger(__name__)
SAVE_SECONDS = 30.0
CREATE_SECONDS = 60.0
"""How long making a database may take on a busy machine; nothing but its disk is in the way."""
SLOWEST_BYTES_PER_SECOND = 5e6
"""How slow the copy of a file may be before :meth:`Tracker.finish` stops waiting for it."""


class Tracker:
    """A job's MLflow run. Every method but ``finish`` and ``places`` puts something into a queue and returns at once.

    ``uri``: a tracking server or database; ``None``: ``MLFLOW_TRACKING_URI``, else
    ``runs/mlflow.db`` below the current folder, with artifacts beside it; ``"none"``: nothing is
    tracked. ``params`` (flat, without secrets) are logged once. The run's id is kept in
    ``tracking.json`` in ``output``, with what could not be sent: the next tracker on the same
    output continues the run, and asks the server what it has, so that nothing is there twice.
    Raises ``ConfigError`` for a URI that names no server or database.
    """

    def __init__(
        self,
        uri: str | None,
        experiment: str,
        run_name: str,
        output: Storage,
        params: Mapping[str, Any],
        tags: Mapping[str, str],
    ) -> None:
        self._unsent = Unsent(output)
        self._wake = threading.Condition()
        self._saving = threading.Lock()
        self._light: deque[Item] = deque()
        self._heavy: deque[Item] = deque()
        self._error = ""
        self._warned: set[str] = set()
        self._opened = self._loaded = self._dirty = self._kept_some = False
        self._attempts = 0
        self._deadline: float | None = None
        self._patience = 20.0
        self._status = ""
        self._ended = False
        self._saved_at = 0.0
        self._kept_id: str | None = None
        self._run: MlflowRun | None = None
        if uri == "none":
            return
        quiet()
        # Where a run is tracked is no fact about it, and an address may hold a password.
        flat = {
            clean(key): str(value)[:5000]
            for key, value in params.items()
            if not key.startswith("tracking.")
        }
        self._run = MlflowRun(
            resolve_uri(uri),
            experiment,
            run_name,
            token=uuid.uuid4().hex,
            params=flat,
            tags=origin() | dict(tags),
        )
        self._thread = threading.Thread(target=self._work, daemon=True, name="tracking")
        self._thread.start()

    # -- what a job calls --------------------------------------------------------------------------------------------

    def metrics(self, name: str, value: float, step: int, timestamp: float | None = None) -> None:
        """Log a scalar of an update; ``timestamp`` in seconds since 1970 (default: now). A second
        value of a step is ignored.
        """
        self.batch({name: value}, step, timestamp)

    def batch(self, values: Mapping[str, float], step: int, timestamp: float | None = None) -> None:
        """Log the scalars of an update; see :meth:`metrics`."""
        milliseconds = _milliseconds(timestamp)
        self._put(
            *(
                Metric(clean(name), float(value), step, milliseconds)
                for name, value in values.items()
            )
        )

    def report(self, report: Report, step: int, picture: str | None = None) -> None:
        """Log a report's accuracies and scores at ``step``, those of continual learning by the
        number of classes seen, and describe it.

        ``picture``: path of an artifact that the run's description shows.
        """
        self.tag("mlflow.note.content", note(report, picture))
        for row in report.rows:
            self.metrics(f"accuracy/{row.set}/{row.network}", row.accuracy_mean, step)
        for point in report.curve:
            self.metrics("accuracy/snapshot", point.accuracy_mean, point.step)
        for kept in report.continual:
            self.metrics(f"continual/{kept.set}/{kept.network}", kept.accuracy_mean, kept.classes)
        for name, value in (("hlr", report.hlr), ("ior", report.ior)):
            if value is not None:
                self.metrics(name, value, step)

    def picture(self, key: str, step: int, png_bytes: bytes) -> None:
        """Log a PNG of an update; pictures with one key share a slider over the steps."""
        self._put(Picture(clean(key), step, _milliseconds(None), png_bytes))

    def input_dataset(
        self, name: str, digest: str, source: str, context: str, profile: Mapping[str, Any]
    ) -> None:
        """Note a data set that the job reads: ``context`` is its role (``train``), ``profile`` any facts about it."""
        self._put(Input(name, digest[:36], source, context, json.dumps(dict(profile))))

    def artifacts(
        self, source: Storage | str, artifact_path: str, names: tuple[str, ...] = ()
    ) -> None:
        """Copy a folder into the run, below ``artifact_path``, or its files ``names`` alone; files the
        run has already are left out.
        """
        url = source.url if isinstance(source, Storage) else absolute(source)
        self._put(Artifacts(url, artifact_path, names))

    def tag(self, key: str, value: str, run: str = "") -> None:
        """Set a tag of the run, or of the one with the id ``run`` on the same server."""
        self._put(Tag(key, str(value), run))

    def beginning(self) -> str:
        """Return a line for the start of a job: where it is tracked, known before the run is; empty for nowhere."""
        if self._run is None:
            return ""
        return f"tracking: {show_command(self._run.uri) or redact(self._run.uri)} (experiment {self._run.experiment})"

    def places(self) -> dict[str, str]:
        """Return what to tell a person who wants to see the run: its link as ``tracking``, and the
        command that must run for it.

        Waits up to 15 s for a server's first answer.
        """
        if self._run is None:
            return {"tracking": "not tracked (tracking.uri: none)"}
        with self._wake:
            self._wake.wait_for(
                lambda: self._opened or self._attempts > 0, 15.0 + self._creating(self._run)
            )
        if self._run.run_id is None:
            return {"tracking": f"{redact(self._run.uri)} (not reached yet)"}
        command = show_command(self._run.uri)
        link = web_address(self._run.uri, self._run.experiment_id, self._run.run_id)
        return {**({"MLflow": command} if command else {}), "tracking": link}

    def run_id(self) -> str | None:
        """Return the run's id, once it is there; ``None`` for no run, or a server that does not answer within 15 s."""
        if self._run is None:
            return None
        with self._wake:
            self._wake.wait_for(
                lambda: self._opened or self._attempts > 0, 15.0 + self._creating(self._run)
            )
        return self._run.run_id

    def finish(self, status: str, patience: float = 20.0) -> str | None:
        """Wait until everything is sent and end the run with ``FINISHED``, ``FAILED`` or ``KILLED``.

        Gives up when nothing could be sent for ``patience`` seconds (longer while a large file is
        on its way); then what is left is kept in the output folder, and the sentence returned tells
        a person so.
        """
        run = self._run
        if run is None or self._status:
            return None
        with self._wake:
            self._status, self._patience = status, patience
            self._deadline = time.monotonic() + patience + self._creating(run)
            self._wake.notify_all()
        while self._thread.is_alive() and time.monotonic() < self._deadline + 1.0:
            self._thread.join(0.1)
        if self._ended:
            return None
        kept = self._save()
        left = counts([*self._light, *self._heavy]) or "the run's end"
        fate = (
            "kept, and sent when the same command runs again"
            if kept
            else "and not kept, since the output folder cannot be written"
        )
        return f"tracking: {left} could not be sent to {redact(run.uri)} ({self._error or 'no answer'}); {fate}"

    def _creating(self, run: MlflowRun) -> float:
        return CREATE_SECONDS if self._attempts == 0 and sqlite_path(run.uri) is not None else 0.0

    def _put(self, *items: Item) -> None:
        if self._run is None or not items:
            return
        with self._wake:
            for item in items:
                (self._light if isinstance(item, (Metric, Tag)) else self._heavy).append(item)
            self._wake.notify_all()

    # -- the thread --------------------------------------------------------------------------------------------------

    def _work(self) -> None:
        run = self._run
        delay = 0.0
        while run is not None and not self._over():
            try:
                if not self._opened:
                    self._open(run)
                self._send_next(run)
                delay, self._error = 0.0, ""
                self._warned.discard("away")
                self._extend(0)
            except Exception as error:  # noqa: BLE001 - whatever MLflow raises, the job goes on
                self._failed(error)
                delay = min(30.0, max(1.0, 2 * delay))
            if self._dirty and time.monotonic() - self._saved_at > SAVE_SECONDS:
                self._save()
            self._rest(delay)
        if not self._ended or self._dirty:
            self._save()

    def _over(self) -> bool:
        return self._ended or (self._deadline is not None and time.monotonic() > self._deadline)

    def _rest(self, delay: float) -> None:
        """Wait for something to do; after a failure wait ``delay`` seconds, at most one when the job is ending."""
        with self._wake:
            self._attempts += 1
            self._wake.notify_all()
            if delay:
                self._wake.wait_for(lambda: bool(self._status), delay)
            else:
                self._wake.wait_for(
                    lambda: bool(self._light or self._heavy or self._status), SAVE_SECONDS
                )
        if delay and self._status and not self._over():
            time.sleep(min(1.0, delay))

    def _open(self, run: MlflowRun) -> None:
        if not self._loaded:
            self._load(run)
        run.open(run.run_id or self._kept_id)
        new = run.run_id != self._kept_id
        self._kept_id = run.run_id
        if new:
            self._save()
        with self._wake:
            self._opened = True
            self._wake.notify_all()

    def _send_next(self, run: MlflowRun) -> None:
        """Send one batch of what is light, else one heavy thing, else the run's end; what is sent leaves its queue."""
        queue = self._light or self._heavy
        if not queue:
            if self._status:
                run.end(self._status)
                self._ended = True
            return
        with self._wake:
            first = type(queue[0])
            most = METRICS_AT_ONCE if queue is self._light else 1
            items = list(
                itertools.takewhile(lambda item: type(item) is first, itertools.islice(queue, most))
            )
        try:
            run.send(items, self._extend)
        except Rejected as error:
            self._warn(f"refused: {error}", f"the server refuses {counts(items)}: {error}")
        except Exception:
            if queue is self._heavy:
                with self._wake:
                    queue.rotate(-1)  # one file that fails must not hold up the others
            raise
        self._dirty = self._dirty or queue is self._heavy or self._kept_some
        with self._wake:
            for _ in items:  # others only add at the other end
                queue.popleft()

    def _extend(self, size: int) -> None:
        """Put off the deadline: something went out, or a file of ``size`` bytes goes out now."""
        if self._deadline is not None and not self._error:
            self._deadline = max(
                self._deadline, time.monotonic() + self._patience + size / SLOWEST_BYTES_PER_SECOND
            )

    def _failed(self, error: Exception) -> None:
        self._opened = False  # what the server has is asked again: a request without an answer may have been heard
        self._dirty = True
        # What matters stands behind the last "Caused by" of a request's error.
        self._error = redact((str(error).splitlines() or [type(error).__name__])[0]).rsplit(
            "Caused by ", 1
        )[-1][:200]
        if self._deadline is not None:
            self._deadline = min(self._deadline, time.monotonic() + self._patience)
        self._warn(
            "away",
            f"nothing can be sent for now ({self._error}); the job goes on, and it is tried again",
        )

    def _warn(self, kind: str, text: str) -> None:
        if kind not in self._warned:
            self._warned.add(kind)
            log.warning("tracking: %s", text)

    # -- what is kept in the output folder ---------------------------------------------------------------------------

    def _load(self, run: MlflowRun) -> None:
        """Take up where an earlier run of the job left off."""
        state, kept = self._unsent.read()
        run.token = str(state.get("token", run.token))
        self._kept_id = state.get("run_id")
        run.files |= state.get("files", {})
        with self._wake:
            self._light.extendleft(
                reversed([item for item in kept if isinstance(item, (Metric, Tag))])
            )
            self._heavy.extendleft(
                reversed([item for item in kept if not isinstance(item, (Metric, Tag))])
            )
        self._loaded = True
        if not state:
            self._save()  # the token first: should the answer to "create a run" get lost, the run is found by it

    def _save(self) -> bool:
        """Write the run's id and what is unsent to the output folder; return whether that worked."""
        run = self._run
        if run is None or not self._loaded or not self._saving.acquire(timeout=self._patience):
            return False
        try:
            with self._wake:
                items = [*self._light, *self._heavy]
            state = {
                "run_id": self._kept_id,
                "token": run.token,
                "uri": redact(run.uri),
                "experiment": run.experiment,
                "files": dict(run.files),
            }
            self._unsent.write(state, items)
        except (RayddError, OSError) as error:
            self._warn("keep", f"its state cannot be kept: {error}")
            return False
        finally:
            self._saving.release()
        self._dirty, self._kept_some, self._saved_at = False, bool(items), time.monotonic()
        return True


def _milliseconds(timestamp: float | None) -> int:
    return int((time.time() if timestamp is None else timestamp) * 1000)
