"""Looks at what stands at a cluster's address before Ray does: Ray tries for minutes, then ends the process."""

from __future__ import annotations

import json
import os
import platform
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from raydd.core.errors import ConfigError, first_line

T = TypeVar("T")
CONNECT_SECONDS = 5.0
"""For a TCP connection, and for the first answer of a head."""
_HEAD = (
    "the driver runs on a machine of the cluster and wants its head's host:port, such as RAY_ADDRESS=10.0.0.1:6379, or"
    " RAY_ADDRESS=auto"
)
_SETTINGS = b"\x04"
"""The kind of the frame with which both sides of HTTP/2 begin."""
_SUBMIT = "`ray job submit --working-dir . -- python -m raydd.distill …`"


class Cancelled(Exception):
    """The caller no longer wants the answer."""


def waiting_for(
    work: Callable[[], T], timeout: float, cancelled: Callable[[], bool], what: str
) -> T:
    """Return what ``work`` returns, done in a thread: it may hang in C++ code that answers to no signal.

    ``TimeoutError``, which names ``what``, after ``timeout`` seconds; ``Cancelled`` as soon as ``cancelled()`` says so.
    The thread is then left behind.
    """
    box: list[tuple[bool, Any]] = []
    done = threading.Event()

    def run() -> None:
        try:
            box.append((True, work()))
        except BaseException as error:  # noqa: BLE001 - raised again by the caller
            box.append((False, error))
        done.set()

    threading.Thread(target=run, daemon=True, name=what).start()
    end = time.monotonic() + timeout
    while not done.wait(0.1):
        if cancelled():
            raise Cancelled(what)
        if time.monotonic() > end:
            raise TimeoutError(f"{what} took more than {timeout:g} s")
    good, value = box[0]
    if not good:
        raise value
    return value


def split_address(address: str) -> tuple[str, int]:
    """Return host and port of ``RAY_ADDRESS``; ``ConfigError``, which names what is wanted, for anything else."""
    said = f"RAY_ADDRESS={address}"
    scheme, sign, _ = address.partition("://")
    if sign and scheme in ("http", "https"):
        raise ConfigError(
            f"{said} is a dashboard's address, for `ray job submit`: {_SUBMIT} hands the job in there. Here {_HEAD}"
        )
    if sign and scheme == "ray":
        raise ConfigError(
            f"{said}: raydd does not run through Ray Client; {_HEAD}. From outside, hand the job in: {_SUBMIT}"
        )
    if sign:
        raise ConfigError(f"{said}: unknown kind of address '{scheme}://'; {_HEAD}")
    host, sign, port = address.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not sign or not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise ConfigError(f"{said} is no host:port; {_HEAD}")
    return host, int(port)


def find_address(cancelled: Callable[[], bool]) -> str:
    """Return what ``RAY_ADDRESS=auto`` means on this machine; ``ConfigError`` if no cluster runs here."""
    from ray._private.services import canonicalize_bootstrap_address_or_die

    try:
        return waiting_for(
            lambda: canonicalize_bootstrap_address_or_die("auto"),
            2 * CONNECT_SECONDS,
            cancelled,
            "looking for a cluster",
        )
    except (ConnectionError, TimeoutError) as error:
        raise ConfigError(
            f"RAY_ADDRESS=auto: no cluster runs on this machine, or more than one does ({first_line(error)}). Start one"
            " with `ray start --head`, name its host:port, or leave RAY_ADDRESS away: raydd then starts Ray here by"
            " itself"
        ) from error


def check_head(address: str, cancelled: Callable[[], bool]) -> None:
    """Raise ``ConfigError`` unless a head that takes this process's token and runs its versions
    answers at ``host:port``.
    """
    said = f"RAY_ADDRESS={os.environ.get('RAY_ADDRESS', '')}"
    said += "" if said.endswith(f"={address}") else f" ({address})"
    host, port = split_address(address)
    _connect(said, host, port, cancelled)
    versions = _ask(said, address, cancelled)
    try:
        _check_versions(versions)
    except RuntimeError as error:
        ray, python = versions["ray_version"], versions["python_version"]
        raise ConfigError(
            f"{said}: the cluster was started with Ray {ray} on Python {python}, raydd runs with Ray {_ray_version()}"
            f" on Python {platform.python_version()}. Start all of the cluster's machines in raydd's environment (`uv"
            " run ray start …`)"
        ) from error


def answers(address: str, timeout: float = 2.0) -> bool:
    """Whether something takes connections at ``host:port``."""
    host, port = split_address(address)
    try:
        socket.create_connection((host, port), timeout).close()
    except OSError:
        return False
    return True


def _ray_version() -> str:
    import ray

    return str(ray.__version__)


def _check_versions(versions: dict[str, Any]) -> None:
    """Raise ``RuntimeError`` for what ``ray.init`` would refuse."""
    from ray._private.utils import check_version_info

    if versions:
        check_version_info(versions, "this process", raise_on_mismatch=True)


def _connect(said: str, host: str, port: int, cancelled: Callable[[], bool]) -> None:
    try:
        connect = lambda: socket.create_connection((host, port), CONNECT_SECONDS)  # noqa: E731
        connection = waiting_for(connect, 2 * CONNECT_SECONDS, cancelled, "connecting")
    except socket.gaierror as error:
        raise ConfigError(f"{said}: there is no host '{host}' ({error.strerror})") from error
    except (OSError, UnicodeError) as error:  # TimeoutError is an OSError
        why = "nothing answers there" if isinstance(error, TimeoutError) else first_line(error)
        raise ConfigError(
            f"{said}: no cluster there ({why}). Is its head running (`ray status`), is this its port, may this machine"
            " reach it? Without RAY_ADDRESS raydd starts Ray on this machine"
        ) from error
    with connection:
        answer = waiting_for(
            lambda: _greeted(connection), 2 * CONNECT_SECONDS, cancelled, "greeting"
        )
    if answer.startswith((b"HTTP/", b"<")):  # some answer with a page alone
        raise ConfigError(
            f"{said}: a web server answers there, no head; is it the dashboard's port? Here {_HEAD}. A dashboard takes"
            f" jobs: {_SUBMIT}"
        )
    if answer[3:4] != _SETTINGS:
        raise ConfigError(
            f"{said}: what listens there does not answer as a Ray head does. Here {_HEAD}"
        )


def _greeted(connection: socket.socket) -> bytes:
    """Return the first bytes of an answer to a client of HTTP/2, which a head speaks; its frames
    begin with length and kind.
    """
    connection.settimeout(CONNECT_SECONDS)
    try:
        connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0" + _SETTINGS + b"\0" * 5)
        return connection.recv(9)
    except OSError:
        return b""


@contextmanager
def _no_stderr() -> Iterator[None]:
    """Drop what C++ code writes meanwhile: Ray's warnings of a connection that fails say less than
    the error that follows.
    """
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def _ask(said: str, address: str, cancelled: Callable[[], bool]) -> dict[str, Any]:
    """Return the versions that a head was started with."""
    import ray.exceptions
    from ray._private.authentication.authentication_token_setup import ensure_token_if_auth_enabled
    from ray._raylet import GcsClient  # type: ignore[attr-defined]

    try:
        ensure_token_if_auth_enabled(create_token_if_missing=False)
    except (
        ray.exceptions.AuthenticationError
    ) as error:  # without a token Ray's own code would abort the process
        raise ConfigError(
            f"RAY_AUTH_MODE=token, but there is no token ({first_line(error).partition('. ')[0]}): set RAY_AUTH_TOKEN,"
            " or RAY_AUTH_TOKEN_PATH (a file), to what the head was started with"
        ) from error

    def ask() -> bytes | None:
        return GcsClient(address=address).internal_kv_get(
            b"CLUSTER_METADATA", b"cluster", timeout=CONNECT_SECONDS
        )

    try:
        with _no_stderr():
            found = waiting_for(ask, 2 * CONNECT_SECONDS, cancelled, "asking the head")
    except ray.exceptions.AuthenticationError as error:
        ours = os.environ.get("RAY_AUTH_MODE") == "token"
        given = "the one given here is not its token" if ours else "none is given here"
        raise ConfigError(
            f"{said}: the cluster wants a token, and {given}. Set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN (or"
            " RAY_AUTH_TOKEN_PATH, a file) to what the head was started with"
        ) from error
    except (
        TimeoutError,
        ray.exceptions.RaySystemError,
        ray.exceptions.RpcError,
        RuntimeError,
        ValueError,
    ) as error:
        raise ConfigError(
            f"{said}: what listens there does not answer as a Ray head does ({first_line(error)}). Here {_HEAD}"
        ) from error
    return dict(json.loads(found)) if found else {}
