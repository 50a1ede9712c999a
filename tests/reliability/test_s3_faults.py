"""An S3 server behind a proxy that fails: calls, whole runs, exclusive writes, uploads in parts, listings."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from fault_rows import Row, Tally
from s3_proxy import Fault, Proxy, Weather, behind
from s3_servers import MotoServer, S3Server, servers
from toys import Total, Walk

from raydd.core import retries
from raydd.core.errors import LockedError, StorageError
from raydd.core.storage import Storage
from raydd.core.store import Store
from raydd.core.units import Ref
from raydd.runtime.lock import Lock
from raydd.runtime.runner import LocalRunner

pytestmark = pytest.mark.slow

SERVERS = {"seaweedfs": "SeaweedFS", "moto": "moto"}
CALLS = {
    "slow down": "503 SlowDown, twice",
    "unavailable": "503, twice",
    "internal error": "500, twice",
    "refused": "connection closed, twice",
    "lost": "done, the answer lost, twice",
    "slow": "slow answer",
    "cut": "answer cut in the middle, twice",
    "flipped": "a bit of the answer flipped",
}
CALL = "Tried again until it is right; told where it takes more than the client's own second try"
ROWS_OF_CALLS = [
    Row("storage", f"each call on {title}", fault, CALL, "test_calls", data=(server, how))
    for server, title in SERVERS.items()
    for how, fault in CALLS.items()
]
WEATHER = ("slow down", "unavailable", "internal error", "refused", "lost", "cut", "flipped")
RUNS = [
    Row(
        "storage", f"a run on {title}", "a third of its requests fail, by a seed; at least so many",
        "The same bytes as undisturbed", "test_a_run_in_bad_weather", data=server,
    )
    for server, title in SERVERS.items()
]  # fmt: skip
PARTS = [
    Row("storage", "an upload in parts", fault, "Sent again; the object is whole", "test_uploads_in_parts", data=given)
    for fault, given in {
        "answer to its beginning lost": ("lost", "POST", "uploads"),
        "answer to a part lost": ("lost", "PUT", "partNumber"),
        "answer to its end lost": ("lost", "POST", "uploadId"),
        "its end done, then NoSuchUpload": ("no such upload", "POST", "uploadId"),
        "503 SlowDown at its end": ("slow down", "POST", "uploadId"),
    }.items()
]  # fmt: skip
LOCKS = [
    Row("storage", "the lock of an output on S3", fault, outcome, test)
    for fault, outcome, test in (
        ("it was written, the answer lost", "Read back: it is its own", "test_a_lock_whose_answer_is_lost"),
        (
            "If-None-Match ignored by the server",
            "One of two drivers goes on; the other is told, stops and is refused",
            "test_a_server_without_exclusive_writes",
        ),
    )
]  # fmt: skip
STALE = [
    Row("storage", what, fault, outcome, test)
    for what, fault, outcome, test in (
        (
            "a listing", "stale: without the newest checkpoint", "Older ones are used; the same bytes",
            "test_a_stale_listing",
        ),
        (
            "a permission", "403 in the middle of a run", "Refused at once with the URL; what is done stays",
            "test_a_refusal_is_final",
        ),
        (
            "an outage", "longer than RAYDD_STORAGE_RETRY_S", "Refused with URL and error; the same command goes on",
            "test_an_outage_that_does_not_end",
        ),
    )
]  # fmt: skip
ROWS = [*ROWS_OF_CALLS, *RUNS, *PARTS, *LOCKS, *STALE]


@pytest.fixture(scope="session")
def all_servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Any]]:
    """Start a server when it is first asked for."""
    made: dict[str, Any] = {}

    def get(name: str) -> Any:
        if name not in made:
            made[name] = (
                MotoServer() if name == "moto" else S3Server(tmp_path_factory.mktemp("weed"))
            )
            made[name].start()
        return made[name]

    yield get
    for server in made.values():
        server.kill()


class _Behind:
    """A server's fixtures, reached through the proxy."""

    def __init__(self, server: Any, port: int) -> None:
        self.environment = {**server.environment, "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}"}


@pytest.fixture
def reach(
    all_servers: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[str], Proxy]]:
    """Reach a server through a proxy of its own, with pauses that are short."""
    monkeypatch.setattr(retries, "wait_random_exponential", lambda **_: lambda _: 0.02)
    monkeypatch.setattr(retries, "RETRY_SECONDS", 60.0)
    with contextlib.ExitStack() as stack:

        def through(name: str) -> Proxy:
            server = all_servers(name)
            proxy = stack.enter_context(Proxy(server._port if name == "moto" else server.port))
            stack.enter_context(servers._reached(_Behind(server, proxy.port)))
            return proxy

        yield through


def place(request: pytest.FixtureRequest) -> str:
    return f"s3://raydd/{abs(hash(request.node.name)):x}"


@pytest.mark.parametrize("row", ROWS_OF_CALLS, ids=str)
def test_calls(
    row: Row, reach: Callable[[str], Proxy], request: pytest.FixtureRequest, tally: Tally,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    server, how = row.data
    proxy, storage, data = reach(server), Storage(place(request)), bytes(range(256)) * 40
    storage.put("a", data)
    twice = 1 if how in ("slow", "flipped") else 2
    calls: list[tuple[Callable[[], object], object, Fault]] = [
        (lambda: storage.get("a"), data, Fault(how, twice, "GET", "/a")),
        (lambda: storage.list(), ["a"], Fault(how, twice, listing=True)),
    ]
    if how not in ("cut", "flipped"):
        calls += [
            (lambda: storage.put("a", data), None, Fault(how, twice, "PUT")),
            (lambda: storage.size("a"), len(data), Fault(how, twice, "HEAD")),
            (lambda: storage.exists("b"), False, Fault(how, twice, "HEAD")),
            (
                lambda: storage.create("c", data),
                how not in ("lost",),
                Fault(how, twice, "PUT", "/c"),
            ),
        ]
    elif how == "flipped":
        del calls[1]  # of a listing S3 says no checksum
    with caplog.at_level(logging.WARNING, "raydd"):
        for call, expected, fault in calls:
            with behind(proxy, fault):
                assert call() == expected, fault
    assert storage.get("a") == data
    if how in ("slow down", "unavailable", "internal error", "cut"):
        assert any(storage.url in line.getMessage() for line in caplog.records), "nothing was told"
    tally(row, proxy.injected[how])


def targets() -> list[Ref]:
    total = Total(seed=1, walk=Walk(seed=1, count=3, updates=4))
    return [*total.walk.refs(), *total.refs()]


def run(store: Store, every: float = 60.0, stop_at: int | None = None) -> None:
    def fault(stage: str, unit: str, t: int) -> None:
        if stop_at is not None and unit == "walk-01" and t == stop_at:
            raise KeyboardInterrupt

    LocalRunner(dict, checkpoint_every=every, fault=fault).run(targets(), store, lambda event: None)


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], bytes]:
    store = Store(str(tmp_path_factory.mktemp("undisturbed")))
    run(store)
    return stored(store)


def stored(store: Store) -> dict[tuple[str, str], bytes]:
    """Return the bytes of all targets, each as its marker says."""
    store.check(targets())
    return {
        (ref.key, ref.output): where.get(f"{path}.safetensors")
        for ref in targets()
        for where, path in [store.place(ref)]
    }


@pytest.mark.parametrize("row", RUNS, ids=str)
def test_a_run_in_bad_weather(
    row: Row, reach: Callable[[str], Proxy], request: pytest.FixtureRequest, tally: Tally,
    expected: dict[tuple[str, str], bytes],
) -> None:  # fmt: skip
    proxy, store = reach(row.data), Store(place(request))
    proxy.weather = Weather(WEATHER, 0.33, seed=5)
    run(store, every=0.001)
    proxy.weather = None
    assert stored(store) == expected
    assert (
        sum(proxy.injected.values()) >= 12
    )  # how many exactly depends on requests that are made in parallel
    tally(row, 12)


@pytest.mark.nightly
@pytest.mark.timeout(900)
@pytest.mark.parametrize("row", RUNS, ids=str)
def test_runs_in_bad_weather_long(
    row: Row, reach: Callable[[str], Proxy], request: pytest.FixtureRequest, tally: Tally,
    expected: dict[tuple[str, str], bytes],
) -> None:  # fmt: skip
    proxy = reach(row.data)
    for seed in range(12):
        store = Store(f"{place(request)}/{seed}")
        proxy.weather = Weather(WEATHER, 0.33, seed=seed)
        with pytest.raises(KeyboardInterrupt):
            run(store, every=0.001, stop_at=seed % 4)
        run(store, every=0.001)
        proxy.weather = None
        assert stored(store) == expected, seed
    tally(row, sum(proxy.injected.values()))


@pytest.mark.parametrize("row", PARTS, ids=str)
def test_uploads_in_parts(
    row: Row, reach: Callable[[str], Proxy], request: pytest.FixtureRequest, tally: Tally,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    how, method, query = row.data
    proxy, storage = reach("moto"), Storage(place(request))
    small = functools.partial(storage.fs.pipe_file, chunksize=5 << 20)
    monkeypatch.setattr(storage.fs, "pipe_file", small)  # S3 allows no smaller parts
    data = os.urandom(10 << 20)
    with behind(proxy, Fault(how, 1, method, query=query)):
        storage.put("a", data)
    assert storage.get("a") == data
    tally(row, proxy.injected[how])


def test_a_lock_whose_answer_is_lost(
    reach: Callable[[str], Proxy], request: pytest.FixtureRequest, tally: Tally
) -> None:
    met = 0
    for server in SERVERS:
        proxy, output = reach(server), Storage(f"{place(request)}/{server}")
        with (
            behind(proxy, Fault("lost", 2, "PUT", "lock.json")),
            Lock(output, lambda line: None),
            pytest.raises(LockedError, match="is being written by process"),
        ):
            Lock(output, lambda line: None).__enter__()
        assert output.list() == [], server
        met += proxy.injected["lost"]
    tally(LOCKS[0], met)


def test_a_server_without_exclusive_writes(
    reach: Callable[[str], Proxy], request: pytest.FixtureRequest, tally: Tally,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    proxy, output = reach("moto"), Storage(place(request))
    first, second = Lock(output, lambda line: None), Lock(output, lambda line: None)
    monkeypatch.setattr("raydd.runtime.lock.BEAT_SECONDS", 0.05)
    lost: list[str] = []
    first._lost = lambda: lost.append("first")
    create, entered = Storage.create, []

    def together(self: Storage, path: str, data: bytes) -> bool:
        """Both have seen that there is no lock before either writes."""
        entered.append(path)
        if len(entered) == 1:
            first.__enter__()
        monkeypatch.setattr(Storage, "exists", lambda *_: False)
        return create(self, path, data)

    proxy.faults = [Fault("unconditional", 9, "PUT")]
    monkeypatch.setattr(Storage, "create", together)
    second.__enter__()
    assert first._thread is not None
    first._thread.join(20)
    assert lost == ["first"], "the one that was overwritten was to be told"
    with pytest.raises(LockedError, match="was taken over by process"):
        first.__exit__()
    second.__exit__()
    assert proxy.injected["unconditional"] == 2
    tally(LOCKS[1], proxy.injected["unconditional"])


def test_a_stale_listing(
    reach: Callable[[str], Proxy], request: pytest.FixtureRequest, tally: Tally,
    expected: dict[tuple[str, str], bytes],
) -> None:  # fmt: skip
    proxy, store = reach("moto"), Store(place(request))
    with pytest.raises(KeyboardInterrupt):
        run(store, every=0.001, stop_at=1)
    for ref in targets():
        store.load_checkpoint(ref.key, 9)  # what is listed now is what stale listings say
    with pytest.raises(KeyboardInterrupt):
        run(store, every=0.001, stop_at=3)
    proxy.faults = [Fault("stale", 10_000, listing=True)]
    run(store, every=0.001)
    proxy.faults = []
    assert stored(store) == expected
    assert proxy.injected["stale"] >= 4
    tally(STALE[0], 4)


def test_a_refusal_is_final(
    reach: Callable[[str], Proxy], request: pytest.FixtureRequest, tally: Tally
) -> None:
    proxy, storage = reach("moto"), Storage(place(request))
    storage.put("a", b"good")
    before = len(proxy.seen)
    refused = pytest.raises(StorageError, match=f"could not write {storage.url}/a: PermissionError")
    with behind(proxy, Fault("denied", 5, "PUT")), refused:
        storage.put("a", b"new")
    assert len(proxy.seen) - before == 1, "it was tried again"
    assert storage.get("a") == b"good"
    tally(STALE[1], proxy.injected["denied"])


def test_an_outage_that_does_not_end(
    reach: Callable[[str], Proxy], request: pytest.FixtureRequest, tally: Tally,
    monkeypatch: pytest.MonkeyPatch, expected: dict[tuple[str, str], bytes],
) -> None:  # fmt: skip
    proxy, store = reach("moto"), Store(place(request))
    with pytest.raises(KeyboardInterrupt):
        run(store, every=0.001, stop_at=2)
    monkeypatch.setattr(retries, "RETRY_SECONDS", 1.0)
    proxy.faults = [Fault("refused", 10_000)]
    with pytest.raises(StorageError, match=f"could not .* {store.url}.*(Connection|Endpoint)"):
        run(store, every=0.001)
    proxy.faults = []
    told = proxy.injected["refused"]
    run(store, every=0.001)
    assert stored(store) == expected
    assert told >= 2
    tally(STALE[2], 1)
