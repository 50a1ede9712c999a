"""What a Ray cluster has and may yet get, and waiting until it has what a job needs."""

from __future__ import annotations

import json
import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import Any

from raydd.core.errors import ConfigError, RunFailed
from raydd.runtime.capacity import Growth, Machine, Need, Verdict, decide, describe, places
from raydd.runtime.ray.ray_pulse import Pulse, cluster_answers

TELL_SECONDS = 60.0
"""How often a person is told what is waited for."""
NEWS_SECONDS = 10.0
"""How often at most, when that has changed."""
REPORT_SECONDS = 10.0
"""An autoscaler that has said nothing for so long is none: a head's first report comes within 5 s."""
IDLE_SECONDS = 30.0
"""The first autoscaler does not say what it cannot get; one that starts nothing for so long will not."""


def machines() -> list[Machine]:
    """Return the machines of the connected cluster."""
    import ray
    from ray._private.state import state

    free, kinds = state.available_resources_per_node(), _kinds()
    alive = [node for node in ray.nodes() if node["Alive"]]
    return [
        Machine(node["Resources"], free.get(node["NodeID"], {}), kinds.get(node["NodeID"], ""))
        for node in alive
    ]


def has_workers() -> bool:
    """Whether this job's Train group has, or is starting, workers: their places are taken by then."""
    import ray
    from ray._private.state import state

    own = state.actor_table(None, ray.JobID.from_hex(ray.get_runtime_context().get_job_id()))
    return any(
        actor["ActorClassName"] == "RayTrainWorker" and actor["State"] != "DEAD"
        for actor in own.values()
    )


def _state() -> Any:
    """Return what the head tells autoscalers and they tell it."""
    from ray._private.worker import global_worker
    from ray.core.generated.autoscaler_pb2 import GetClusterStatusReply

    reply = GetClusterStatusReply()
    reply.ParseFromString(global_worker.gcs_client.get_cluster_status(timeout_s=10))
    return reply


def _kinds() -> dict[str, str]:
    return {
        node.node_id.hex(): node.ray_node_type_name
        for node in _state().cluster_resource_state.node_states
    }


class Supply:
    """Asks the cluster for room, as a placement group that its autoscaler sees, and reports what comes of it."""

    def __init__(self, need: Need) -> None:
        self.need = need
        self._begun = time.monotonic()
        self._group: Any = None
        self._asked_at: int | None = None
        self._started: float | None = None

    def __enter__(self) -> Supply:
        return self

    def __exit__(self, *_: object) -> None:
        if self._group is not None and cluster_answers():
            from ray.exceptions import RayError
            from ray.util import remove_placement_group

            with suppress(RayError):  # a cluster that ends meanwhile has no groups
                remove_placement_group(self._group)

    def verdict(self) -> Verdict:
        """Return whether to start, to wait, or to give up now."""
        from ray.util import placement_group

        if self._group is not None and self._group.wait(timeout_seconds=0.01):
            return Verdict("go")
        found = decide(self.need, machines(), self._growth())
        if self._group is None and found.kind != "refuse":
            self._group = placement_group([self.need.bundle] * self.need.count, strategy="PACK")
            if self._group.wait(timeout_seconds=1.0):
                return Verdict("go")
        # Room on paper is none until the group has it: two may have been promised the same.
        return (
            Verdict("wait", f"waiting for {self.need}; {describe(self.need, machines())}")
            if found.kind == "go"
            else found
        )

    # -- what the autoscaler says ------------------------------------------------------------------------------------

    def _growth(self) -> Growth:
        from ray._private.state import state
        from ray.autoscaler.v2.utils import is_autoscaler_v2

        config = state.get_cluster_config()
        if config is not None and config.node_group_configs:
            return from_limits(self.need, machines(), config.node_group_configs)
        return self._second() if is_autoscaler_v2() else self._first()

    def _unheard(self) -> Growth:
        return Growth("asked" if time.monotonic() - self._begun < REPORT_SECONDS else "fixed")

    def _second(self) -> Growth:
        """Read the second autoscaler's state: it names the requests that it cannot meet."""
        reply = _state()
        said, seen = reply.autoscaling_state, reply.cluster_resource_state
        if not said.autoscaler_state_version:
            return self._unheard()
        own = self._group.id.hex() if self._group is not None else ""
        if own and any(
            request.details.startswith(own) for request in said.infeasible_gang_resource_requests
        ):
            return Growth("full")
        coming = _coming((r.ray_node_type_name, r.count) for r in said.pending_instance_requests)
        coming.update(Counter(r.ray_node_type_name for r in said.pending_instances))
        if self._asked_at is None and any(
            request.details.startswith(own)
            for request in seen.pending_gang_resource_requests
            if own
        ):
            self._asked_at = seen.cluster_resource_state_version
        answered = (
            self._asked_at is not None
            and said.last_seen_cluster_resource_state_version >= self._asked_at
        )
        return Growth("grows" if coming or answered else "asked", coming)

    def _first(self) -> Growth:
        """Read the first autoscaler's report, which a head without autoscaler writes, too, a kind
        for each of its machines.
        """
        from ray.experimental.internal_kv import _internal_kv_get

        report = json.loads(_internal_kv_get("__autoscaling_status") or b"{}")
        said = report.get("autoscaler_report")
        if not said:
            return self._unheard()
        if all(
            kind == f"node_{machine}" for machine, kind in (said["node_type_mapping"] or {}).items()
        ):
            return Growth("fixed")
        coming = _coming((said["pending_launches"] or {}).items())
        coming.update(Counter(kind for _, kind, _ in said["pending_nodes"]))
        now = time.monotonic()
        if (
            coming
            or self._started is None
            or not report["load_metrics_report"]["pg_demand"]
            or said["failed_nodes"]
        ):
            self._started = now
        return Growth("grows" if now - self._started < IDLE_SECONDS else "full", coming)


def _coming(counts: Iterable[tuple[str, int]]) -> Counter[str]:
    return Counter({kind: count for kind, count in counts if count})


def from_limits(need: Need, there: Sequence[Machine], groups: Iterable[Any]) -> Growth:
    """Return what kinds of machines with a ``name``, ``resources`` and a ``max_count`` (-1: none) leave room for."""
    counts = Counter(machine.kind for machine in there)
    more = 0.0
    for group in groups:
        left = float("inf") if group.max_count < 0 else max(0, group.max_count - counts[group.name])
        each = places(dict(group.resources), need)
        more += left * each if each else 0
    have = sum(places(machine.total, need) for machine in there)
    return Growth("grows" if have + more >= need.count else "full")


def wait_for_room(
    need: Need, limit: float, tell: Callable[[str], None], cancelled: Callable[[], bool]
) -> bool:
    """Return True once the cluster has room for ``need``, False as soon as ``cancelled()``.

    ``tell`` hears at once, and every minute, what is waited for. ``ConfigError`` if it can never
    come, ``RunFailed`` if it has not come after ``limit`` seconds.
    """
    begun, told, last, said = time.monotonic(), float("-inf"), "", ""
    pulse = Pulse()
    with Supply(need) as supply:
        while not cancelled():
            verdict = pulse.ask(supply.verdict)
            if verdict is None:
                time.sleep(0.5)
                continue
            now = time.monotonic()
            if verdict.kind == "go":
                return True
            if verdict.kind == "refuse":
                raise ConfigError(verdict.text)
            last = verdict.text or last
            if now - begun >= limit:
                raise RunFailed(too_long(last or f"waiting for {need}", limit))
            if last and now - told >= (TELL_SECONDS if last == said else NEWS_SECONDS):
                tell(f"{last} (for at most {math.ceil(limit - (now - begun))} s more)")
                told, said = now, last
            time.sleep(0.5)
    return False


def too_long(text: str, limit: float) -> str:
    """Return the error of a wait that has lasted for ``limit`` seconds."""
    return (
        f"{text}: not there after {limit:g} s. The same command goes on once it is; compute.wait=… (seconds) waits"
        " longer"
    )
