"""Errors of Ray's while its head ends, is gone or lives on; no cluster is started."""

from __future__ import annotations

import pickle
import socket
import threading
import time
from collections.abc import Callable, Iterator

import pytest
import ray.exceptions as rx
import ray.train

from raydd.core.errors import ConfigError, RunFailed
from raydd.runtime.ray import ray_pulse
from raydd.runtime.ray.ray_pulse import Pulse, failed, is_outage, told_if_gone
from raydd.runtime.ray.ray_runner import RayDesk
from raydd.runtime.ray.ray_watch import Post

LOST = ("aa" * 28, None, "")
ACTOR = b"a" * 16
OUTAGES: list[Exception] = [
    rx.ObjectLostError(*LOST),
    rx.OwnerDiedError(*LOST),
    rx.ObjectFetchTimedOutError(*LOST),
    rx.ReferenceCountingAssertionError(*LOST),
    rx.ObjectFreedError(*LOST),
    rx.ObjectReconstructionFailedError(LOST[0], None, None, ""),
    rx.RayActorError(),
    rx.ActorDiedError(),
    rx.ActorUnavailableError("unavailable", ACTOR),
    rx.ActorUnschedulableError("no machine"),
    rx.NodeDiedError("died"),
    rx.LocalRayletDiedError(),
    rx.WorkerCrashedError(),
    rx.RaySystemError("broken pipe"),
    rx.RpcError("failed to connect", 14),
    rx.GetTimeoutError("5 s"),
    rx.TaskUnschedulableError("no machine"),
    rx.RayTaskError("run", "Traceback …", rx.OwnerDiedError(*LOST)).as_instanceof_cause(),
    ConnectionResetError("reset"),
    TimeoutError("looking for the store took more than 600 s"),
]
OTHERS: list[Exception] = [
    rx.RayTaskError("run", "Traceback …", ValueError("a bug")).as_instanceof_cause(),
    rx.RayTaskError("run", "Traceback …", TimeoutError("a bug")).as_instanceof_cause(),
    ConfigError("a job"),
    KeyError("a bug"),
    RuntimeError("a bug"),
]
MACHINE_ENDED = ray_pulse.machine_ended


def never() -> bool:
    return False


def always() -> bool:
    return True


@pytest.fixture
def head(monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """A port that takes connections as a head's does, until it is closed; time for its end is short."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        monkeypatch.setattr(ray_pulse, "cluster_address", lambda: address)
        monkeypatch.setattr(ray_pulse, "ENDING_SECONDS", 0.5)
        monkeypatch.setattr(ray_pulse, "machine_ended", lambda: False)
        yield server


def named(error: Exception) -> str:
    return type(error).__name__


@pytest.mark.parametrize("error", OUTAGES, ids=named)
def test_whatever_ray_raises_a_cluster_that_is_gone_is_told(
    error: Exception, head: socket.socket
) -> None:
    assert is_outage(error)
    address = ray_pulse.cluster_address()
    head.close()
    with (
        pytest.raises(
            RunFailed, match=rf"^the cluster at {address} is gone .*The same command goes on"
        ) as raised,
        told_if_gone(never),
    ):
        raise error
    assert raised.value.__cause__ is error


@pytest.mark.parametrize("error", OUTAGES, ids=named)
def test_of_a_cluster_that_lives_on_rays_own_error_is_told(
    error: Exception, head: socket.socket
) -> None:
    with pytest.raises(RunFailed, match=r"^Ray failed: ") as raised, told_if_gone(always):
        raise error
    assert raised.value.__cause__ is error


@pytest.mark.parametrize("error", OTHERS, ids=named)
def test_what_other_code_raised_stays_what_it_is(error: Exception, head: socket.socket) -> None:
    assert not is_outage(error)
    with pytest.raises(type(error)) as raised, told_if_gone(always):
        raise error
    assert raised.value is error


def test_a_head_that_ends_after_its_workers_is_waited_for(
    head: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_pulse, "ENDING_SECONDS", 30.0)
    later = threading.Timer(0.6, head.close)
    later.start()
    begun = time.monotonic()
    assert "is gone (its head does not answer)" in str(
        failed("the Ray Train group ended: objects were lost", never)
    )
    assert 0.5 < time.monotonic() - begun < 10
    later.join()


def test_a_head_that_stays_is_waited_for_a_while_but_not_after_a_signal(
    head: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = time.monotonic()
    assert str(failed("the Ray Train group ended", never)) == "the Ray Train group ended"
    assert 0.5 <= time.monotonic() - begun < 10
    monkeypatch.setattr(ray_pulse, "ENDING_SECONDS", 1e9)
    assert str(failed("the Ray Train group ended", always)) == "the Ray Train group ended"


@pytest.mark.parametrize(
    ("alive", "told"), [({"aa": False, "bb": True}, True), ({"aa": True, "bb": False}, False)]
)
def test_a_machine_that_ends_under_its_driver_is_told(
    alive: dict[str, bool], told: bool, head: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Here:
        def get_node_id(self) -> str:
            return "aa"

    monkeypatch.setattr(ray_pulse, "machine_ended", MACHINE_ENDED)
    monkeypatch.setattr("ray.get_runtime_context", Here)
    nodes = [{"NodeID": node, "Alive": ok} for node, ok in alive.items()]
    monkeypatch.setattr("ray.nodes", lambda: nodes)
    text = str(failed("the Ray Train group ended", never))
    assert text.startswith("the machine through which this job was on the cluster at 127.") is told
    assert text.startswith("the Ray Train group ended") is not told
    monkeypatch.setattr("ray.nodes", raising(rx.RpcError("unavailable", 14)))
    assert str(failed("the Ray Train group ended", never)) == "the Ray Train group ended"


def raising(error: Exception) -> Callable[[], bool]:
    def question() -> bool:
        raise error

    return question


def test_a_cluster_may_be_silent_for_a_while(
    head: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    pulse, now = Pulse(), time.monotonic()
    assert pulse.ask(lambda: False) is False
    assert pulse.ask(raising(rx.RpcError("unavailable", 14))) is None
    with pytest.raises(KeyError):
        pulse.ask(raising(KeyError("a bug")))
    monkeypatch.setattr(time, "monotonic", lambda: now + 100)
    with pytest.raises(
        RunFailed, match="has not answered a question for 100 s: RpcError: unavailable"
    ):
        pulse.ask(raising(rx.RpcError("unavailable", 14)))
    assert pulse.ask(lambda: True) is True, "it answers again"
    head.close()
    assert pulse.ask(lambda: True) is None
    monkeypatch.setattr(time, "monotonic", lambda: now + 200)
    with pytest.raises(RunFailed, match=r"is gone \(no answer for 100 s\)"):
        pulse.ask(lambda: True)


class Silent:
    """An actor's handle whose calls end in an error."""

    def __getattr__(self, name: str) -> Silent:
        return self

    def options(self, **settings: object) -> Silent:
        return self

    def remote(self, *args: object) -> Silent:
        return self


@pytest.mark.parametrize("error", OUTAGES, ids=named)
def test_a_driver_and_a_worker_ask_again(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    answers: list[Exception | str] = [error, "lease"]

    def get(refs: object, timeout: float) -> object:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr("ray.get", get)
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    assert RayDesk(Silent(), "rank-0", 1, 1, "cpu").lease([]) == "lease"
    answers.append(error)
    assert Post(Silent()).fetch() == []


@pytest.mark.parametrize("error", OTHERS, ids=named)
def test_what_is_wrong_in_the_ledger_is_raised(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def get(refs: object, timeout: float) -> object:
        raise error

    monkeypatch.setattr("ray.get", get)
    for ask in (lambda: RayDesk(Silent(), "rank-0", 1, 1, "cpu").lease([]), Post(Silent()).fetch):
        with pytest.raises(type(error)):
            ask()


def test_a_driver_owns_nothing_in_the_store_of_its_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray ends a driver that does without a word, together with that machine."""
    from ray._private.worker import SCRIPT_MODE, WORKER_MODE, global_worker
    from ray.train.v2._internal.callbacks.datasets import DatasetsCallback
    from ray.train.v2._internal.callbacks.placement_group_callback import (
        PlacementGroupCleanerCallback,
    )

    from raydd.runtime.ray import ray_controller, ray_group

    class Put:
        _ref: object | None = "the only reference"

        def get(self) -> Callable[[], bool]:
            return never

    given: dict[str, object] = {}
    monkeypatch.setattr(
        ray_group.TorchTrainer,
        "_initialize_and_run_controller",
        lambda self, **all: given.update(all),
    )
    trainer, put = object.__new__(ray_group._Trainer), Put()
    monkeypatch.setattr(
        trainer, "scaling_config", ray.train.ScalingConfig(num_workers=1), raising=False
    )
    needless = object.__new__(DatasetsCallback)
    cleaner = object.__new__(PlacementGroupCleanerCallback)
    callbacks = [needless, cleaner, "another"]
    for mode, left in ((SCRIPT_MODE, ["another"]), (WORKER_MODE, [cleaner, "another"])):
        monkeypatch.setattr(global_worker, "mode", mode)
        trainer._initialize_and_run_controller(train_fn_ref=put, callbacks=callbacks)
        assert given["callbacks"] == left, (
            "no actor for Ray's own data sets; one that cleans up after a controller where no driver's end does"
        )
    carried = given["train_fn_ref"]
    assert isinstance(carried, ray_controller.Carried)
    assert pickle.loads(pickle.dumps(carried)).get() is never
    assert put._ref is None
