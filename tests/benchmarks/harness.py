"""What the benchmarks share: each side in a process of its own, run in turns, timed in CPU seconds of one thread."""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch

from raydd.core.rng import generator
from raydd.core.tensors import Tensors
from raydd.core.units import Data

T = TypeVar("T")
ROOT = Path(__file__).parents[2]


class PlainContext:
    """All that a stage needs beside its fields, without a runner: one worker alone, on any device.

    ``given``: by the first word of a key, in place of what a stage would make. ``inputs``: what
    :meth:`load` returns, by name. ``lanes``: those of the stage. ``rows``: the last scalars, as the
    stage gave them, so that no update waits for the device.
    """

    def __init__(
        self, seed: int, data: dict[str, Data], device: torch.device | str = "cpu", lanes: int = 0
    ) -> None:
        self.device, self.data, self.seed, self.lanes = torch.device(device), data, seed, lanes
        self.made: dict[Any, Any] = {}
        self.given: dict[str, Any] = {}
        self.inputs: dict[str, Tensors] = {}
        self.rows: deque[dict[str, Any]] = deque(maxlen=16)

    def rng(self, stream: str, *ids: int) -> torch.Generator:
        """Return the keyed generator."""
        return generator(self.seed, stream, *ids)

    def cached(self, key: Any, make: Callable[[], T]) -> T:
        """Return what was made for ``key``."""
        if key not in self.made:
            self.made[key] = self.given[key[0]] if key[0] in self.given else make()
        value: T = self.made[key]
        return value

    def load(self, name: str, rows: slice | None = None) -> Tensors:
        """Return an input, or some rows of each of its tensors."""
        return {
            key: value if rows is None else value[rows] for key, value in self.inputs[name].items()
        }

    def each_lane(self, fn: Callable[[int], Tensors]) -> list[Tensors]:
        """Return what every lane gives, one after another."""
        return [fn(lane) for lane in range(self.lanes)]

    def log(self, t: int, **scalars: Any) -> None:
        """Keep the scalars."""
        self.rows.append({"t": t, **scalars})


class Side:
    """A process that runs one side's step when asked and says how long it took."""

    def __init__(self, script: str, name: str, *, tuned: bool, arguments: list[str]) -> None:
        env = {
            k: v
            for k, v in os.environ.items()
            if not k.startswith("MALLOC_") and k != "THP_MEM_ALLOC_ENABLE"
        }
        env |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        env |= {"THP_MEM_ALLOC_ENABLE": "1", "BENCH_TUNED": "1"} if tuned else {}
        command = [sys.executable, script, "--side", name, *arguments]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env
        )

    def __call__(self, request: str = "step") -> dict[str, Any]:
        """Run one request; return the answer."""
        if self.process.stdin is None or self.process.stdout is None:
            raise RuntimeError("no pipes")
        self.process.stdin.write(request + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"the side ended with code {self.process.wait()}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def close(self) -> None:
        """End the process."""
        if self.process.stdin is not None:
            self.process.stdin.close()
        self.process.wait(timeout=300)  # a busy machine takes its time to give memory back


def serve(make: Callable[[], Callable[[str], dict[str, float] | None]]) -> None:
    """Be a side: set up, then answer each line of standard input with the times of one call of what
    ``make`` returned.
    """
    torch.set_num_threads(1)
    if os.environ.get("BENCH_TUNED"):
        from raydd.core.allocator import tune_allocator

        tune_allocator()
    step = make()
    for line in sys.stdin:
        cpu, wall = time.process_time(), time.perf_counter()
        extra = step(line.strip()) or {}
        times = {"cpu": time.process_time() - cpu, "wall": time.perf_counter() - wall}
        sys.stdout.write(json.dumps(times | extra) + "\n")
        sys.stdout.flush()


def in_turns(
    sides: dict[str, Side], rounds: int, requests: tuple[str, ...] = ("step",)
) -> dict[str, dict[str, list[float]]]:
    """Return, for each side and request, the CPU seconds of each round; sides take turns within a round."""
    for side in sides.values():
        for request in requests:
            side(request)
            side(request)
    found: dict[str, dict[str, list[float]]] = {name: {r: [] for r in requests} for name in sides}
    for _ in range(rounds):
        for request in requests:
            for name, side in sides.items():
                found[name][request].append(side(request)["cpu"])
    return found


def ratio(slow: list[float], fast: list[float]) -> dict[str, float]:
    """Return how many times faster the second is: of the medians, of the minima, and the median of
    the rounds' ratios.
    """
    pairs = [a / b for a, b in zip(slow, fast, strict=True)]
    return {
        "of_medians": statistics.median(slow) / statistics.median(fast),
        "of_minima": min(slow) / min(fast),
        "median_of_rounds": statistics.median(pairs),
    }


def machine() -> dict[str, Any]:
    """Return what the figures depend on."""
    cpu = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    lines = dict(line.split(":", 1) for line in cpu.split("\n\n")[0].splitlines() if ":" in line)
    fields = {key.strip(): value.strip() for key, value in lines.items()}
    wanted = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16")
    return {
        "cpu": fields.get("model name", platform.processor()),
        "flags": [flag for flag in wanted if flag in fields.get("flags", "").split()],
        "cores": os.cpu_count(),
        "load_average": list(os.getloadavg()),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "threads": 1,
    }


def fashion() -> dict[str, Any]:
    """Return Fashion-MNIST: its facts, its splits."""
    from raydd.data.config import DatasetConfig
    from raydd.data.datasets import describe, open_data, with_digests

    config = DatasetConfig(name="fashion_mnist")
    data = open_data(config)
    return {"info": with_digests(describe(config), data), "data": data}


def normalised(
    info: Any, data: Data, rows: torch.Tensor | None = None, dtype: torch.dtype = torch.float32
) -> torch.Tensor:
    """Return training images in network space."""
    from raydd.data.memory import normalise

    return normalise(
        data.take(torch.arange(len(data)) if rows is None else rows), info.mean, info.std, dtype
    )
