"""Several sides measured in turns in one process, on any device: wall and host time, memory,
launches, the device's own peaks.
"""

from __future__ import annotations

import gc
import logging
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from harness import ratio
from torch import Tensor
from torch.autograd.profiler_util import EventList
from torch.utils._python_dispatch import TorchDispatchMode

from raydd.core.numerics import apply_numerics
from raydd.core.units import Numerics

WARM = 4
"""Calls before anything is timed: the first compile, search or allocate, and what is captured is
captured after some more.
"""

CALLS = ("cudaLaunchKernel", "cudaLaunchKernelExC", "cuLaunchKernel", "cuLaunchKernelEx")

_THREADS = torch.get_num_threads()

Row = dict[str, Any]
Step = Callable[[], object]


@dataclass(frozen=True, kw_only=True)
class Side:
    """One way to do a piece of work; ``beside`` names another side that it is compared with, beside the published one.

    ``make``: sets everything up, returns a function that makes one update. ``numerics``: the
    process's settings (``None``: torch's own, as published). ``units``: what one update counts for,
    such as 20 for an epoch of 20 networks. ``cycle``: updates after which everything repeats; whole
    cycles are timed. ``flop``, ``bytes``: of a unit, for shares of the peaks; bytes are the least
    that have to move. ``target``: how many times faster than published it is to be.
    """

    name: str
    make: Callable[[], Step]
    numerics: Numerics | None = None
    units: int = 1
    cycle: int = 1
    flop: float = 0.0
    bytes: float = 0.0
    target: float | None = None
    beside: str | None = None

    def settle(self, device: torch.device) -> None:
        """Put the process's settings as this side has them."""
        if self.numerics is not None:
            apply_numerics(self.numerics, device)
            return
        torch.set_num_threads(1 if device.type == "cpu" else _THREADS)
        torch.set_float32_matmul_precision("highest")
        torch.backends.cudnn.allow_tf32 = True
        torch.backends.cudnn.benchmark = False
        if torch.are_deterministic_algorithms_enabled():
            torch.use_deterministic_algorithms(False)

    def arithmetic(self, device: torch.device) -> str:
        """Return what most products are computed in: ``bf16``, ``tf32`` or ``fp32``; asked after :meth:`settle`."""
        if self.numerics is not None and self.numerics.precision == "bf16":
            return "bf16"
        return "tf32" if device.type == "cuda" and torch.backends.cudnn.allow_tf32 else "fp32"


class Clock:
    """Seconds since the start, what is left of a budget, and lines that say so."""

    def __init__(self, budget: float) -> None:
        self.begun, self.budget = time.monotonic(), budget

    @property
    def elapsed(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self.begun

    @property
    def left(self) -> float:
        """Seconds until the budget is spent."""
        return self.budget - self.elapsed

    def say(self, text: str) -> None:
        """Write a line of progress."""
        sys.stdout.write(f"[{self.elapsed:6.1f} s] {text}\n")
        sys.stdout.flush()


class Count(TorchDispatchMode):
    """Counts operators that are not mere views."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        self.calls += not function.is_view and "detach" not in str(function)
        return function(*args, **(kwargs or {}))


def wait(device: torch.device) -> None:
    """Wait until the device has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def allocated(device: torch.device) -> int:
    """Return the bytes of tensors on a GPU; 0 on a CPU."""
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else 0


def reserved(device: torch.device) -> int:
    """Return the bytes that this process holds on a GPU, for tensors, recorded graphs and for later; 0 on a CPU."""
    return torch.cuda.memory_reserved(device) if device.type == "cuda" else 0


class Warnings(logging.Handler):
    """Keeps what is logged as a warning, such as that a step cannot be recorded."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep one message."""
        self.texts.append(record.getMessage())


@contextmanager
def kept(row: Row, clock: Clock) -> Iterator[None]:
    """Keep warnings and an error in the row and go on; the rest of the table is made all the same."""
    warnings, logger = Warnings(), logging.getLogger("raydd")
    logger.addHandler(warnings)
    try:
        yield
    except Exception as error:  # noqa: BLE001 - whatever a side raises is its row's result
        row["error"] = f"{type(error).__name__}: {error}"[:500]
        clock.say(f"{row['name']}: {row['error']}")
    finally:
        logger.removeHandler(warnings)
        for text in dict.fromkeys(warnings.texts):
            clock.say(f"{row['name']}: {text}")
            row.setdefault("warnings", []).append(text)


class Turns:
    """Sides that take turns; the first of them is the published one, whom the others are compared with."""

    def __init__(
        self,
        sides: Sequence[Side],
        device: torch.device,
        clock: Clock,
        *,
        rounds: int,
        seconds: float,
        reserve: float,
        warm: int = WARM,
    ) -> None:
        self.sides, self.device, self.clock = sides, device, clock
        self.rounds, self.seconds, self.reserve, self.warm = rounds, seconds, reserve, warm
        self.rows: dict[str, Row] = {
            side.name: {"name": side.name, "target": side.target} for side in sides
        }
        self.steps: dict[str, Step] = {}

    def run(self) -> list[Row]:
        """Measure; return a row for each side, with ``error`` or ``not_run`` in place of figures
        where there are none.
        """
        for side in self.sides:
            if self.clock.left < self.reserve:
                self.rows[side.name]["not_run"] = "the time was over"
                continue
            with kept(self.rows[side.name], self.clock):
                self._set_up(side)
        for turn in range(self.rounds):
            for side in self._alive():
                if turn and self.clock.left < self.reserve / 2:
                    break
                with kept(self.rows[side.name], self.clock):
                    self._time(side, first=turn == 0)
        for side in self._alive():
            with kept(self.rows[side.name], self.clock):
                self._look_into(side)
            self._conclude(side)
        self.steps.clear()
        self._empty()
        return list(self.rows.values())

    def _empty(self) -> None:
        if self.device.type == "cuda":
            gc.collect()
            torch.cuda.empty_cache()

    def _alive(self) -> list[Side]:
        return [
            side
            for side in self.sides
            if side.name in self.steps and "error" not in self.rows[side.name]
        ]

    def _set_up(self, side: Side) -> None:
        row = self.rows[side.name]
        self.clock.say(f"{side.name}: set up")
        side.settle(self.device)
        self._empty()
        before, held, begun = allocated(self.device), reserved(self.device), time.perf_counter()
        step = side.make()
        step()
        wait(self.device)
        row["first_update_s"] = time.perf_counter() - begun
        for _ in range(side.cycle - 1 or self.warm):
            step()
        wait(self.device)
        again = time.perf_counter()
        for _ in range(side.cycle):
            step()
        wait(self.device)
        seconds = time.perf_counter() - again
        row["warm_up_s"] = time.perf_counter() - begun
        row |= {
            "resident_bytes": allocated(self.device) - before,
            "reserved_bytes": reserved(self.device) - held,
        }
        row["updates_per_turn"] = side.cycle * max(1, min(200, round(self.seconds / seconds)))
        row["ms_rounds"], row["host_ms_rounds"] = [], []
        self.steps[side.name] = step
        self.clock.say(
            f"{side.name}: {1000 * seconds / side.cycle / side.units:.3f} ms, first update"
            f" {row['first_update_s']:.1f} s"
        )

    def _time(self, side: Side, *, first: bool) -> None:
        row, step, device = self.rows[side.name], self.steps[side.name], self.device
        side.settle(device)
        wait(device)
        before = allocated(device)
        if first and device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        begun = time.perf_counter()
        for _ in range(row["updates_per_turn"]):
            step()
        host = time.perf_counter() - begun
        wait(device)
        wall, count = time.perf_counter() - begun, row["updates_per_turn"] * side.units
        row["ms_rounds"].append(1000 * wall / count)
        row["host_ms_rounds"].append(1000 * host / count)
        if first and device.type == "cuda":
            row["peak_bytes"] = (
                torch.cuda.max_memory_allocated(device) - before + row["resident_bytes"]
            )

    def _look_into(self, side: Side) -> None:
        """Count one update's launches on a GPU, or the operators that it dispatches on a CPU."""
        row, step = self.rows[side.name], self.steps[side.name]
        side.settle(self.device)
        row["arithmetic"] = side.arithmetic(self.device)
        if self.device.type == "cuda":
            row |= {
                name: value / side.units
                for name, value in launches(profiled(step, self.device)).items()
            }
            return
        with Count() as count:
            step()
        row["operators"] = count.calls / side.units

    def _conclude(self, side: Side) -> None:
        row, base = self.rows[side.name], self.rows[self.sides[0].name]
        if not row.get("ms_rounds"):
            row.setdefault("not_run", "the time was over")
            return
        row["ms"], row["host_ms"] = (
            statistics.median(row["ms_rounds"]),
            statistics.median(row["host_ms_rounds"]),
        )
        row |= {"flop": side.flop, "tflops": side.flop / row["ms"] / 1e9}
        if side.bytes:
            row |= {"bytes": side.bytes, "gbytes_per_s": side.bytes / row["ms"] / 1e6}
        if side is not self.sides[0] and base.get("ms_rounds"):
            both = min(len(base["ms_rounds"]), len(row["ms_rounds"]))
            row["speedup"] = ratio(base["ms_rounds"][:both], row["ms_rounds"][:both])
        if side.beside is not None and "ms" in self.rows[side.beside]:
            row["times_of"] = {side.beside: row["ms"] / self.rows[side.beside]["ms"]}


def profiled(step: Step, device: torch.device) -> torch.profiler.profile:
    """Return the profile of one update."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    wait(device)
    with torch.profiler.profile(activities=activities) as profile:
        step()
        wait(device)
    return profile


def launches(profile: torch.profiler.profile) -> dict[str, float]:
    """Return a profile's ``launches`` of kernels by the host, ``graph_launches``, ``copies`` and
    fills that the host asked for, the ``kernels`` that ran (in graphs, too), and ``busy_ms``, in
    which at least one of them ran.
    """
    events: EventList | list[Any] = profile.events() or []
    on_gpu = [
        e
        for e in events
        if e.device_type.name == "CUDA" and not getattr(e, "is_user_annotation", False)
    ]
    names = [e.name for e in events if e.device_type.name == "CPU"]
    busy, end = 0.0, -1.0
    for start, stop in sorted((e.time_range.start, e.time_range.end) for e in on_gpu):
        busy, end = busy + max(0.0, stop - max(start, end)), max(end, stop)
    return {
        "launches": sum(name in CALLS for name in names),
        "graph_launches": names.count("cudaGraphLaunch"),
        "copies": sum(name.startswith(("cudaMemcpy", "cudaMemset")) for name in names),
        "kernels": sum(not e.name.startswith(("Memcpy", "Memset")) for e in on_gpu),
        "busy_ms": busy / 1000,
    }


def peaks(device: torch.device, small: bool) -> dict[str, float]:
    """Return what the device reaches: TFLOP/s of one large product in ``bf16``, ``tf32`` and
    ``fp32``, GB/s of one ``copy``.
    """
    gpu = device.type == "cuda"
    side, length, times = (
        (8192, 1 << 28, 20) if gpu else ((512, 1 << 20, 3) if small else (2048, 1 << 24, 3))
    )
    found: dict[str, float] = {}

    def best(work: Callable[[], Tensor]) -> float:
        seconds = []
        for _ in range(4):
            wait(device)
            begun = time.perf_counter()
            for _ in range(times):
                work()
            wait(device)
            seconds.append((time.perf_counter() - begun) / times)
        return min(seconds)

    for name, dtype, precision in (
        ("bf16", torch.bfloat16, "highest"),
        ("tf32", torch.float32, "high"),
        ("fp32", torch.float32, "highest"),
    ):
        if name == "tf32" and not gpu:
            continue
        torch.set_float32_matmul_precision(precision)
        a, b = torch.randn(2, side, side, device=device).to(dtype)
        out = torch.empty_like(a)
        found[name] = 2 * side**3 / best(lambda a=a, b=b, out=out: torch.mm(a, b, out=out)) / 1e12  # type: ignore[misc]
    torch.set_float32_matmul_precision("highest")
    x = torch.randn(length, device=device)
    y = torch.empty_like(x)
    found["copy"] = 2 * x.nbytes / best(lambda: y.copy_(x)) / 1e9
    return found
