"""What checkpoints cost: their check, digest, bytes and writing, of states as large as those of every method's jobs.

python tests/benchmarks/bench_checkpoints.py --json docs/benchmarks/checkpoints.json

For each method, the jobs of ``jobs/`` are planned; of each kind of stage the largest state is taken (as its cost says,
in float32), and its checkpoint made as a worker makes it: looked through for NaN, digested, written to a local store
with a log of 1,000 rows, the one before the last deleted. ``share_60`` and ``share_10``: seconds of a checkpoint over
60 and 10 s, the part of a unit's time that they take at that ``compute.checkpoint_every``; ``processor_seconds``
depends less on what runs beside. Between checkpoints a worker tells its progress twice a second (``progress``: that
part of its time).
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent))

from harness import machine

from raydd.config import load_job
from raydd.core.errors import RayddError
from raydd.core.store import Checkpoint, Store
from raydd.core.units import Ref, Stage
from raydd.data.catalog import entry
from raydd.methods import METHODS
from raydd.runtime.estimate import stages_of
from raydd.runtime.ledger import Ledger
from raydd.runtime.planning import make_plan
from raydd.runtime.runner import _DirectDesk
from raydd.runtime.worker import MAX_ROWS, Alone, Worker

ROOT = Path(__file__).parents[2]
PIECES = 8
"""Tensors that a state is cut into."""


@dataclass(frozen=True)
class Largest:
    """The largest state of a kind of stage."""

    bytes: int
    stage: Stage
    unit: str
    job: str


def largest() -> dict[str, dict[str, Largest]]:
    """Return, by method and stage, the largest state of all jobs."""
    found: dict[str, dict[str, Largest]] = {name: {} for name in METHODS.names()}
    for path in sorted((ROOT / "jobs").glob("*.yaml")):
        job = load_job(str(path))
        published = entry(job.dataset.name)
        info = published.info
        if not info.train_counts and published.train_count:
            each = published.train_count // info.classes
            info = replace(info, train_counts=(each,) * info.classes)
        try:
            plan = make_plan(job, info)
        except RayddError as error:
            sys.stderr.write(f"{path.name}: {error}\n")
            continue
        for stage, units, _ in stages_of(plan.targets):
            unit = max(units, key=lambda unit: stage.cost(unit).state_bytes)
            size, of = stage.cost(unit).state_bytes, found[job.method.name]
            if stage.steps(unit) > 1 and size > (of[stage.name].bytes if stage.name in of else 0):
                of[stage.name] = Largest(size, stage, unit, path.name)
    return found


def measured(one: Largest, repeats: int) -> dict[str, Any]:
    """Return seconds of a checkpoint of a state, and of telling progress."""
    length = max(1, one.bytes // 4 // PIECES)
    state = {f"tensor-{i}": torch.randn(length) for i in range(PIECES)}
    rows = [(t, {"loss": 1.0 / (t + 1)}) for t in range(MAX_ROWS)]
    ref = Ref(one.stage, one.unit)
    with tempfile.TemporaryDirectory() as folder:
        store = Store(folder)
        desk = _DirectDesk(Ledger([ref], store), lambda event: None, "cpu")
        worker = Worker(store, dict, desk, device=torch.device("cpu"), checkpoint_every=60)
        seconds, processor = [], time.process_time()
        for t in range(repeats):
            state["tensor-0"][0] = t
            begun = time.perf_counter()
            worker._checkpoint(ref, Checkpoint(t + 1, state, rows, 1.0), Alone())
            seconds.append(time.perf_counter() - begun)
        processor = (time.process_time() - processor) / repeats
        begun = time.perf_counter()
        for t in range(20):
            desk.progress(ref.key, t, rows[:2])
        told = (time.perf_counter() - begun) / 20
    middle = statistics.median(seconds)
    return {
        "job": one.job,
        "state_bytes": one.bytes,
        "seconds": round(middle, 4),
        "processor_seconds": round(processor, 4),
        "share_60": round(middle / 60, 5),
        "share_10": round(middle / 10, 5),
        "progress": round(told / 0.5, 5),
    }


def main() -> None:
    """Measure, print, and write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path)
    parser.add_argument("--repeats", type=int, default=5)
    o = parser.parse_args()
    torch.set_num_threads(1)
    found: dict[str, Any] = {}
    for name, stages in largest().items():
        found[name] = {stage: measured(one, o.repeats) for stage, one in stages.items()}
        for stage, row in found[name].items():
            share = f"{row['share_60']:7.2%} {row['share_10']:7.2%}"
            size = f"{row['state_bytes'] / 1e6:9.1f} MB"
            state = (
                f"{size} {row['seconds']:7.3f} s ({row['processor_seconds']:.3f} of a processor)"
            )
            sys.stdout.write(f"{name:10} {stage:28} {row['job']:32} {state} {share}\n")
    if o.json:
        record = {
            "command": f"python tests/benchmarks/bench_checkpoints.py --json {o.json}",
            "machine": machine(),
            "repeats": o.repeats,
            "methods": found,
        }
        o.json.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
