"""Whether the connected cluster is still there: asked before an error of Ray's is taken for anything else."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from raydd.core.errors import RunFailed, first_line
from raydd.runtime.ray.ray_address import answers, waiting_for

T = TypeVar("T")
_SILENT = "its head does not answer"
GONE_SECONDS = 30.0
"""A head that does not answer for so long is gone: Ray would end this process after 60 s."""
ENDING_SECONDS = 15.0
"""A cluster that is stopped ends its workers first and its head last, some seconds later on a busy machine."""

ANSWER_SECONDS = 5.0
"""For one question to a head that takes connections."""


def cluster_address() -> str:
    """Return host:port of the connected cluster's head."""
    import ray

    return str(ray.get_runtime_context().gcs_address)


def cluster_answers() -> bool:
    """Whether the connected cluster's head takes connections."""
    return answers(cluster_address())


def cluster_gone(how: str) -> RunFailed:
    """Return the error of a run whose cluster has ended."""
    return RunFailed(
        f"the cluster at {cluster_address()} is gone ({how}). The same command goes on once it is back"
    )


def is_outage(error: BaseException) -> bool:
    """Whether an error may be that of a cluster, or of a part of it, that has ended.

    All of Ray's may (objects lost with their owner or their machine, actors and machines that died,
    calls without an answer), and what Python has for connections. An error that a task or an actor
    raised is none, unless it was one of these there.
    """
    from ray.exceptions import RayError, RayTaskError

    if isinstance(error, RayTaskError):
        return isinstance(error.cause, RayError) and is_outage(error.cause)
    return isinstance(error, (RayError, ConnectionError, TimeoutError))


def ends(cancelled: Callable[[], bool]) -> bool:
    """Whether the cluster is gone, or goes within ``ENDING_SECONDS``; it is not waited for that
    once ``cancelled()``.
    """
    until = time.monotonic() + ENDING_SECONDS
    while cluster_answers():
        if cancelled() or time.monotonic() >= until:
            return False
        time.sleep(0.25)
    return True


def machine_ended() -> bool:
    """Whether the machine through which this process is on the cluster has ended, its head has not."""
    import ray

    def ended() -> bool:
        own = ray.get_runtime_context().get_node_id()
        return any(node["NodeID"] == own and not node["Alive"] for node in ray.nodes())

    try:
        return waiting_for(ended, ANSWER_SECONDS, lambda: False, "listing machines")
    except Exception as error:
        if not is_outage(error):
            raise
        return False


def failed(text: str, cancelled: Callable[[], bool]) -> RunFailed:
    """Return the error of a run that ended with an error of Ray's: of a cluster, or of this process's
    own machine there, that is gone, or else with ``text``.
    """
    if ends(cancelled):
        return cluster_gone(_SILENT)
    if machine_ended():
        return RunFailed(
            f"the machine through which this job was on the cluster at {cluster_address()} has ended. "
            "The same command goes on, from any machine of the cluster"
        )
    return RunFailed(text)


@contextmanager
def told_if_gone(cancelled: Callable[[], bool]) -> Iterator[None]:
    """Raise ``RunFailed`` for whatever Ray raises within; it says so where the cluster is gone."""
    try:
        yield
    except Exception as error:
        # Some of Ray's own functions have nothing better than a RuntimeError, but so has other code.
        if is_outage(error):
            raise failed(f"Ray failed: {_said(error)}", cancelled) from error
        if type(error) is RuntimeError and ends(cancelled):
            raise cluster_gone(_SILENT) from error
        raise


class Pulse:
    """Asks the connected cluster, which may be silent for a while."""

    def __init__(self) -> None:
        self._met = time.monotonic()

    def ask(self, question: Callable[[], T]) -> T | None:
        """Return what ``question`` returns; ``None`` where the cluster does not answer now.

        ``RunFailed`` once it has not for ``GONE_SECONDS``.
        """
        now, error = time.monotonic(), None
        try:
            if cluster_answers():
                answer = question()
                self._met = now
                return answer
        except Exception as raised:
            if not is_outage(raised):
                raise
            error = raised
        silent = now - self._met
        if silent <= GONE_SECONDS:
            return None
        if error is None:
            raise cluster_gone(f"no answer for {silent:.0f} s")
        raise RunFailed(
            f"the cluster at {cluster_address()} has not answered a question for {silent:.0f} s: {_said(error)}"
        ) from error


def _said(error: BaseException) -> str:
    return f"{type(error).__name__}: {first_line(error)}"
