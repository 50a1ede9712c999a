"""Addresses that are none, and what stands where a head should be; no cluster is started."""

from __future__ import annotations

import contextlib
import http.server
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from raydd.core.errors import ConfigError
from raydd.runtime.ray.ray_address import Cancelled, answers, check_head, split_address, waiting_for
from raydd.runtime.ray.ray_session import ray_session


def never() -> bool:
    return False


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("http://10.0.0.1:8265", "a dashboard's address, for `ray job submit`"),
        ("https://ray.example.org", "a dashboard's address"),
        ("ray://10.0.0.1:10001", "does not run through Ray Client"),
        ("anyscale://cluster", "unknown kind of address 'anyscale://'"),
        ("10.0.0.1", "is no host:port"),
        ("10.0.0.1:", "is no host:port"),
        (":6379", "is no host:port"),
        ("10.0.0.1:63790000", "is no host:port"),
        ("10.0.0.1:0", "is no host:port"),
        ("head:port", "is no host:port"),
    ],
)
def test_what_is_no_address_of_a_head_is_refused(address: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words) as refused:
        split_address(address)
    assert f"RAY_ADDRESS={address}" in str(refused.value)
    assert "RAY_ADDRESS=auto" in str(refused.value), "the remedy"


def test_addresses_are_split() -> None:
    assert split_address("head.example.org:6379") == ("head.example.org", 6379)
    assert split_address("[::1]:6379") == ("::1", 6379)


@pytest.fixture
def silent() -> Iterator[str]:
    """A port that takes connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"127.0.0.1:{server.getsockname()[1]}"


class Page(http.server.BaseHTTPRequestHandler):
    """Answers nothing but 404."""

    def do_GET(self) -> None:
        with contextlib.suppress(ConnectionError):
            self.send_error(404)

    def log_message(self, *_: object) -> None:
        """Be quiet."""


@pytest.fixture
def web() -> Iterator[str]:
    """A web server."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Page) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()


def test_a_dead_port_is_refused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    assert not answers("127.0.0.1:1")
    with pytest.raises(ConfigError, match=r"RAY_ADDRESS=127.0.0.1:1: no cluster there .*refused"):
        check_head("127.0.0.1:1", never)


def test_a_host_that_does_not_exist_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr("socket.create_connection", unknown)
    with pytest.raises(ConfigError, match="there is no host 'nosuch'"):
        check_head("nosuch:6379", never)


def test_a_host_that_swallows_packets_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    def swallow(*_: object, **__: object) -> None:
        raise TimeoutError("timed out")

    monkeypatch.setattr("socket.create_connection", swallow)
    with pytest.raises(ConfigError, match=r"no cluster there \(nothing answers there\)"):
        check_head("10.0.0.1:6379", never)


def test_a_web_server_is_told_from_a_head(web: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", web)
    with pytest.raises(ConfigError, match="a web server answers there, no head"):
        check_head(web, never)


@pytest.mark.ray
def test_a_port_that_says_nothing_is_given_up(silent: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("raydd.runtime.ray.ray_address.CONNECT_SECONDS", 1.0)
    begun = time.monotonic()
    with pytest.raises(ConfigError, match="does not answer as a Ray head does"):
        check_head(silent, never)
    assert time.monotonic() - begun < 15


def test_a_signal_ends_a_wait_that_hangs() -> None:
    asked: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: asked.append(number))
    try:
        threading.Timer(0.3, lambda: os.kill(os.getpid(), signal.SIGTERM)).start()
        begun = time.monotonic()
        with pytest.raises(Cancelled):
            waiting_for(lambda: time.sleep(5), 5, lambda: bool(asked), "a long call")
        assert time.monotonic() - begun < 3
    finally:
        signal.signal(signal.SIGTERM, before)


def test_waits_end_with_what_the_work_does() -> None:
    assert waiting_for(lambda: 3, 5, never, "a short call") == 3
    with pytest.raises(TimeoutError, match=r"a long call took more than 0\.1 s"):
        waiting_for(lambda: time.sleep(3), 0.1, never, "a long call")
    with pytest.raises(ZeroDivisionError):
        waiting_for(lambda: 1 // 0, 5, never, "a bad call")


@pytest.mark.ray
@pytest.mark.parametrize("said", [None, "1"])
def test_workers_share_the_environment_of_uv_unless_another_one_was_asked_for(
    said: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray
    from ray._private import ray_constants

    name = "RAY_ENABLE_UV_RUN_RUNTIME_ENV"
    monkeypatch.setattr(ray_constants, name, True)  # as where Ray was imported first
    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    monkeypatch.delenv(name, raising=False)
    if said is not None:
        monkeypatch.setenv(name, said)
    with ray_session(cpus=1):
        assert getattr(ray_constants, name) is (said is not None)
