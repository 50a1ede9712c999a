"""Storage that fails: what is told, how often, and for how long it is tried."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

import pytest

from raydd.core import retries
from raydd.core.errors import ConfigError, StorageError, refusing
from raydd.core.storage import Storage


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waits that are over at once on a clock that the tests move."""
    monkeypatch.setattr(retries, "wait_random_exponential", lambda **given: lambda state: 0.0)


def failing(times: int, error: Exception, clock: list[float], step: float) -> Callable[[], str]:
    left = [times]

    def call() -> str:
        if left[0] == 0:
            return "done"
        left[0] -= 1
        clock[0] += step
        raise error

    return call


def test_an_outage_is_told_once_then_ever_more_rarely_with_counts(
    quick: None, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(retries, "RETRY_SECONDS", 1000.0)
    with caplog.at_level(logging.WARNING, "raydd"):
        assert (
            retries.retried(
                "s3://b", "write s3://b/x", failing(100, OSError("no route"), clock, 1.0)
            )
            == "done"
        )
    lines = [record.getMessage() for record in caplog.records]
    assert lines[0].startswith(
        "storage: could not write s3://b/x (OSError: no route); trying again, for up to "
    )
    assert lines[-1] == "storage: s3://b answers again, after 99 s and 100 failed tries"
    assert 4 <= len(lines) <= 8
    assert len(set(lines)) == len(lines)
    assert lines[1].startswith(
        "storage: s3://b still fails after 4 s and 5 tries (OSError); trying for up to "
    )
    caplog.clear()
    with caplog.at_level(logging.WARNING, "raydd"):
        retries.retried("s3://b", "read s3://b/x", failing(1, OSError("again"), clock, 1.0))
    assert len(caplog.records) == 2


def test_an_endpoint_that_refuses_connections_is_named_within_seconds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.delenv("AWS_ENDPOINT_URL_S3", raising=False)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "x")
    monkeypatch.setattr(retries, "REFUSED_SECONDS", 1.0)
    import s3fs

    s3fs.S3FileSystem.clear_instance_cache()
    begun = time.monotonic()
    with pytest.raises(
        ConfigError,
        match=r"cannot write to s3://b/x .*AWS_ENDPOINT_URL is http://127.0.0.1:9: is a server there\?",
    ):
        Storage("s3://b/x").check_writable("output")
    with (
        pytest.raises(ConfigError, match=r"could not list s3://b/x.*AWS_ENDPOINT_URL is"),
        refusing(),
    ):
        Storage("s3://b/x").list()
    assert time.monotonic() - begun < 12
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.mark.parametrize(
    "error", [ValueError("bad endpoint"), TypeError("odd"), KeyError("x"), EOFError("cut")]
)
def test_whatever_a_file_system_raises_names_the_url(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    storage = Storage("memory://any-error")

    def fails(*args: object, **more: object) -> None:
        raise error

    monkeypatch.setattr(storage.fs, "cat_file", fails)
    with pytest.raises(
        StorageError, match=f"could not read memory://any-error/x: {type(error).__name__}"
    ):
        storage.get("x")
