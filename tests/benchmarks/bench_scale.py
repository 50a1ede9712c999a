"""What many units and changing machines cost: units that wait instead of computing, on Ray, on this machine.

python tests/benchmarks/bench_scale.py --json docs/benchmarks/scale.json

``units``: 10,000 units of 0.1 s and 1,000 of 1 s on 8 workers: seconds by the clock over those that the units
alone take. ``elastic``: one job on a cluster that has 1, then 3, then 1 machines, the last two of which vanish
at once: the same bytes as without Ray, updates that were made twice, and how long nothing was computed.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import socket
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parent))

from harness import machine
from toys import NotedWalk, Walk

from raydd.core.events import Event
from raydd.core.store import Store
from raydd.core.tensors import digest
from raydd.core.units import Numerics, Ref
from raydd.runtime.ray.ray_runner import RayRunner
from raydd.runtime.runner import LocalRunner

WORKERS = 8


def units(count: int, seconds: float, folder: str) -> dict[str, Any]:
    """Return what ``count`` units of one update of ``seconds`` took on :data:`WORKERS` workers."""
    import ray

    stage = Walk(seed=count, numerics=Numerics(), count=count, updates=1, pause=seconds)
    refs = [Ref(stage, unit) for unit in stage.units()]
    starts: list[float] = []
    ends: list[float] = []

    def on_event(event: Event) -> None:
        if event.kind == "start":
            starts.append(time.monotonic())
        elif event.kind == "output":
            ends.append(time.monotonic())

    ray.init(num_cpus=WORKERS, include_dashboard=True, log_to_driver=False)
    begun = time.monotonic()
    try:
        runner = RayRunner(dict, workers=WORKERS, cpus_per_worker=1.0)
        runner.run(refs, Store(folder), on_event)
    finally:
        whole = time.monotonic() - begun
        ray.shutdown()
    ideal, working = count * seconds / WORKERS, ends[-1] - starts[0]
    return {
        "units": count,
        "unit_seconds": seconds,
        "workers": WORKERS,
        "ideal_seconds": ideal,
        "working_seconds": round(working, 2),
        "overhead_percent": round(100 * (working / ideal - 1), 1),
        "overhead_ms_per_unit_and_worker": round(1000 * (working - ideal) * WORKERS / count, 2),
        "start_seconds": round(whole - working, 1),
    }


def elastic(
    folder: Path, count: int = 12, updates: int = 200, pause: float = 0.1
) -> dict[str, Any]:
    """Return what changes from 1 to 3 machines and back, by death, cost."""
    import ray
    from ray.cluster_utils import Cluster

    notes = folder / "updates"
    size = {"seed": 1, "numerics": Numerics(), "count": count, "updates": updates}
    stage = NotedWalk(**size, pause=pause, notes=str(notes))
    plain = NotedWalk(**size, notes=os.devnull)
    refs = [Ref(stage, unit) for unit in stage.units()]
    store, alone = Store(str(folder / "ray")), Store(str(folder / "alone"))
    LocalRunner(dict).run([Ref(plain, unit) for unit in plain.units()], alone, lambda event: None)
    events: list[tuple[float, Event]] = []
    told: list[str] = []
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    head = {"num_cpus": 1, "include_dashboard": True, "dashboard_port": port}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    ray.init(address=cluster.address, log_to_driver=False)
    error: list[BaseException] = []

    def run() -> None:
        runner = RayRunner(dict, workers=(1, 3), checkpoint_every=5.0)
        try:
            runner.run(refs, store, on_event)
        except BaseException as found:  # noqa: BLE001 - handed to the main thread
            error.append(found)

    def on_event(event: Event) -> None:
        events.append((time.monotonic(), event))
        if event.kind == "message":
            told.append(event.text)

    thread = threading.Thread(target=run)
    begun = time.monotonic()
    thread.start()
    changes: list[tuple[float, str]] = []

    def done() -> int:
        return sum(event.kind == "output" for _, event in events)

    def wait(what: Any) -> None:
        while thread.is_alive() and not what():
            time.sleep(0.2)

    try:
        wait(lambda: done() >= 2)
        nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
        changes.append((time.time(), "two machines more"))
        wait(lambda: len({e.worker for _, e in events if e.worker.startswith("rank")}) >= 3)
        goal = done() + 3
        wait(lambda: done() >= goal)
        for node in nodes:
            cluster.remove_node(node, allow_graceful=False)
        changes.append((time.time(), "the two vanish"))
        thread.join()
    finally:
        ray.shutdown()
        cluster.shutdown()
    if error:
        raise error[0]
    same = all(digest(store.load(ref)) == digest(alone.load(Ref(plain, ref.unit))) for ref in refs)
    made = [line.split() for line in notes.read_text().splitlines()]
    at = [float(line[0]) for line in made]
    gaps = []
    ends = [when for when, _ in changes[1:]] + [at[-1] + 1]
    for (when, what), end in zip(changes, ends, strict=True):
        silent = max(b - a for a, b in itertools.pairwise(at) if when - 1 < b < end)
        gaps.append({"change": what, "longest_silence_seconds": round(silent, 1)})
    return {
        "units": count,
        "updates": updates,
        "update_seconds": pause,
        "same_bytes_as_without_ray": same,
        "most_workers": len({e.worker for _, e in events if e.worker.startswith("rank")}),
        "updates_made_twice": len(made) - len({tuple(line[1:]) for line in made}),
        "updates_in_all": count * updates,
        "changes": gaps,
        "seconds": round(time.monotonic() - begun, 1),
    }


def main() -> None:
    """Measure, print and keep the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--only", default="units,elastic")
    parser.add_argument("--scale", type=float, default=1.0, help="of the numbers of units")
    o = parser.parse_args()
    # Ray's workers unpickle the stages of the tests.
    os.environ["PYTHONPATH"] = os.pathsep.join(sys.path[:2])
    kept = o.json is not None and o.json.exists()
    found: dict[str, Any] = json.loads(o.json.read_text()) if kept else {}
    found["machine"] = machine()
    with tempfile.TemporaryDirectory() as folder:
        if "units" in o.only:
            found["units"] = []
            for count, seconds in ((10_000, 0.1), (1_000, 1.0)):
                row = units(int(count * o.scale), seconds, f"{folder}/{count}")
                found["units"].append(row)
                sys.stdout.write(json.dumps(row) + "\n")
        if "elastic" in o.only:
            found["elastic"] = elastic(Path(folder))
            sys.stdout.write(json.dumps(found["elastic"]) + "\n")
    if o.json is not None:
        o.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
