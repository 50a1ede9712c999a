"""Toy stages that exercise the runners: units without lanes, a laned unit, a stage that reads both."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from raydd.core.tensors import Tensors
from raydd.core.units import Ref, Stage


@dataclass(frozen=True, kw_only=True)
class Walk(Stage):
    """Independent random walks: one unit each."""

    phase: ClassVar[str] = "distill"
    count: int = 4
    updates: int = 10
    pause: float = 0.0
    size: int = 8

    def units(self) -> Sequence[str]:
        return tuple(f"walk-{i:02d}" for i in range(self.count))

    def steps(self, unit: str) -> int:
        return self.updates

    def init(self, unit: str, ctx: Any) -> Tensors:
        return {"x": torch.randn(self.size, generator=ctx.rng("init", int(unit[5:])))}

    def step(self, unit: str, state: Tensors, t: int, ctx: Any) -> Tensors:
        time.sleep(self.pause)
        x = 0.9 * state["x"] + torch.randn(self.size, generator=ctx.rng("move", t, int(unit[5:])))
        ctx.log(t, norm=x.norm())
        return {"x": x}


@dataclass(frozen=True, kw_only=True)
class NotedWalk(Walk):
    """A walk that appends time, unit and number of every update to the file ``notes``, whoever makes it."""

    notes: str = ""

    def step(self, unit: str, state: Tensors, t: int, ctx: Any) -> Tensors:
        with open(self.notes, "a") as file:
            file.write(f"{time.time():.3f} {unit} {t}\n")
        return super().step(unit, state, t, ctx)


@dataclass(frozen=True, kw_only=True)
class Choir(Stage):
    """One unit whose every step sums what its lanes sing, in lane order."""

    phase: ClassVar[str] = "distill"
    voices: int = 5
    updates: int = 12
    pause: float = 0.0

    @property
    def lanes(self) -> int:
        return self.voices

    def steps(self, unit: str) -> int:
        return self.updates

    def init(self, unit: str, ctx: Any) -> Tensors:
        return {"x": torch.zeros(64)}

    def step(self, unit: str, state: Tensors, t: int, ctx: Any) -> Tensors:
        time.sleep(self.pause)

        def sing(lane: int) -> Tensors:
            noise = torch.randn(64, generator=ctx.rng("sing", t, lane))
            return {"y": torch.sin(state["x"] * (lane + 1.1)) + noise * 10.0**lane}

        total = torch.zeros(64)
        for lane in ctx.each_lane(sing):
            total = total + lane["y"]
        x = 0.5 * state["x"] + total
        ctx.log(t, norm=x.norm())
        return {"x": x}


@dataclass(frozen=True, kw_only=True)
class Total(Stage):
    """Adds up the walks and the choir at some output."""

    phase: ClassVar[str] = "evaluate"
    walk: Walk
    choir: Choir | None = None
    output: str = "final"

    def inputs(self, unit: str) -> Mapping[str, Ref]:
        refs = {u: Ref(self.walk, u, self.output) for u in self.walk.units()}
        if self.choir is not None:
            refs["choir"] = Ref(self.choir, "all")
        return refs

    def step(self, unit: str, state: Tensors, t: int, ctx: Any) -> Tensors:
        parts = [ctx.load(name)["x"].sum() for name in sorted(self.inputs(unit))]
        return {"total": torch.stack(parts).sum()[None]}
