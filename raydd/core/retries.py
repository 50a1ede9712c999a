"""Storage calls that fail and may pass: for how long they are tried again, and what a person is told meanwhile."""

from __future__ import annotations

import errno
import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TypeVar

from tenacity import RetryCallState, Retrying, retry_if_exception, wait_random_exponential

from raydd.core.errors import first_line

T = TypeVar("T")
log = logging.getLogger(__name__)

RETRY_SECONDS = float(os.environ.get("RAYDD_STORAGE_RETRY_S", "180"))
"""For how long a failing storage call is repeated (environment: ``RAYDD_STORAGE_RETRY_S``)."""

START_SECONDS, REFUSED_SECONDS = 20.0, 5.0
"""The same before work starts: of a place that fails, and of one where nothing listens."""

_FINAL = {
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EROFS,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.ENAMETOOLONG,
    errno.EACCES,
    errno.EFBIG,
}

_BUSY = {408, 425, 429, 500, 502, 503, 504}
"""Answers of an HTTP server that may be others a little later."""

_CLIENTS = {"botocore", "aiobotocore"}
_MISTAKES = {"NoCredentialsError", "ParamValidationError", "PartialCredentialsError"}
_starting = 0


@contextmanager
def before_work() -> Iterator[None]:
    """Be less patient: nothing is lost yet, and a person waits to hear that an address is wrong."""
    global _starting
    _starting += 1
    try:
        yield
    finally:
        _starting -= 1


def transient(error: BaseException) -> bool:
    """Return whether the same call may succeed a little later."""
    if isinstance(
        error,
        (
            FileNotFoundError,
            PermissionError,
            FileExistsError,
            IsADirectoryError,
            NotADirectoryError,
        ),
    ):
        return False
    module = type(error).__module__.split(".")[0]
    status = getattr(error, "status", None)
    if module == "aiohttp" and isinstance(
        status, int
    ):  # an answer: a server that refuses a request refuses it again
        return status in _BUSY
    if isinstance(error, OSError):
        return error.errno not in _FINAL
    if module in _CLIENTS:
        return type(error).__name__ not in _MISTAKES
    return module in {"aiohttp", "urllib3", "requests"} or isinstance(
        error, (TimeoutError, ConnectionError)
    )


def precondition_failed(error: BaseException) -> bool:
    """Return whether an S3 server refused an exclusive write because an object is there."""
    answer = getattr(error.__cause__, "response", None)
    code = answer.get("Error", {}).get("Code") if isinstance(answer, dict) else None
    return code in ("PreconditionFailed", "412")


def unreachable(error: BaseException | None) -> bool:
    """Return whether nothing answers: a connection that is refused, or a host that has no address."""
    while error is not None:
        if (
            isinstance(error, (ConnectionRefusedError, socket.gaierror))
            or type(error).__name__ == "EndpointConnectionError"
        ):
            return True
        error = error.__cause__ or error.__context__
    return False


def endpoint_hint(url: str, error: BaseException) -> str:
    """Return which server an S3 URL leads to, where that one does not answer or takes no unsigned
    request; else nothing.
    """
    if not url.startswith(("s3://", "s3a://")):
        return ""
    if type(error).__name__ == "NoCredentialsError":
        return "; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
    name = next(
        (name for name in ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL") if os.environ.get(name)), None
    )
    if name is None:
        return (
            "; no AWS_ENDPOINT_URL is set, so Amazon's servers were asked"
            if unreachable(error)
            else ""
        )
    if unreachable(error) or "nvalid endpoint" in str(error):
        return f"; {name} is {os.environ[name]}: is a server there?"
    return ""


@dataclass
class _Outage:
    """What was told of a place that fails: since when, how often it was tried, when to tell again, of what error."""

    since: float
    kind: str
    tries: int = 0
    tell_at: float = 0.0


@dataclass
class Outages:
    """Says once that a place fails, then ever more rarely how often and how much longer it is
    tried; and that it answers again.
    """

    lock: threading.Lock = field(default_factory=threading.Lock)
    places: dict[str, _Outage] = field(default_factory=dict)

    def failed(self, place: str, what: str, error: BaseException, left: float) -> None:
        """Count a failed try of ``what`` (``write s3://…``) at ``place``; ``left``: seconds for
        which it is tried again.
        """
        now, kind = time.monotonic(), type(error).__name__
        with self.lock:
            outage = self.places.get(place)
            if outage is None or outage.kind != kind:
                outage = self.places[place] = _Outage(
                    outage.since if outage else now, kind, outage.tries if outage else 0
                )
            outage.tries += 1
            if now < outage.tell_at:
                return
            first = outage.tell_at == 0.0
            outage.tell_at = now + max(4.0, now - outage.since)  # after 4, 8, 16 … seconds
            tries, lasted = outage.tries, now - outage.since
        if first:
            log.warning(
                "storage: could not %s (%s: %s); trying again, for up to %.0f s",
                what,
                kind,
                first_line(error),
                left,
            )
        else:
            again = "storage: %s still fails after %.0f s and %d tries (%s); trying for up to %.0f s more"
            log.warning(again, place, lasted, tries, kind, left)

    def passed(self, place: str) -> None:
        """Say that ``place``, which had failed, answers again."""
        with self.lock:
            outage = self.places.pop(place, None)
        if outage is not None:
            lasted = time.monotonic() - outage.since
            log.warning(
                "storage: %s answers again, after %.0f s and %d failed tries",
                place,
                lasted,
                outage.tries,
            )

    def ended(self, place: str) -> None:
        """Forget ``place``: the error goes to the caller."""
        with self.lock:
            self.places.pop(place, None)


_outages = Outages()


def retried(place: str, what: str, fn: Callable[[], T]) -> T:
    """Return what ``fn`` does, tried again while what it raises may pass and there is time."""

    def limit(error: BaseException | None) -> float:
        if not _starting:
            return RETRY_SECONDS
        return min(RETRY_SECONDS, REFUSED_SECONDS if unreachable(error) else START_SECONDS)

    def error_of(state: RetryCallState) -> BaseException | None:
        return state.outcome.exception() if state.outcome else None

    def report(state: RetryCallState) -> None:
        error = error_of(state)
        if error is not None:
            _outages.failed(
                place, what, error, max(0.0, limit(error) - (state.seconds_since_start or 0.0))
            )

    retrying = Retrying(
        retry=retry_if_exception(transient),
        wait=wait_random_exponential(multiplier=0.2, max=5),
        stop=lambda state: (state.seconds_since_start or 0.0) >= limit(error_of(state)),
        before_sleep=report,
        reraise=True,
    )
    try:
        result = retrying(fn)
    except BaseException:
        if retrying.statistics.get("attempt_number", 1) > 1:
            _outages.ended(place)
        raise
    if retrying.statistics.get("attempt_number", 1) > 1:
        _outages.passed(place)
    return result
