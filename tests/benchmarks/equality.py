"""How far one update is from the published loop's in float64, on any device, with the same images,
numbers and weights.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import bench_taps
import published
import published_dsa
import torch
from harness import PlainContext, normalised
from measuring import Clock, Row, Side, kept
from torch import Tensor
from work import FOREVER, PRECISIONS, Setting
from work_observed import RESNET, Observed

from raydd.core.units import Numerics, Stage
from raydd.data.memory import ClassMemory
from raydd.methods.dm import Dm
from raydd.methods.dsa import Dsa
from raydd.networks import create_network, reinitialise_

IPC = 10
Loss = Callable[..., Tensor]


def differences(s: Setting, clock: Clock) -> dict[str, Row]:
    """Return relative differences of loss and gradient, by work and by what is compared with the
    published loop in float64.

    ``published``: the same loop in its own arithmetic. ``float64``: raydd's, eager. The others:
    raydd's, as jobs run it; of the observed network from the published hooks in the same
    arithmetic.
    """
    found: dict[str, Row] = {}

    def add(name: str, compare: Callable[[], Row]) -> None:
        found[name] = {}
        row: Row = {"name": name}
        with kept(row, clock):
            found[name] = compare()
            clock.say(f"{name}: from published in float64: {found[name]}")
        found[name] |= {"error": row["error"]} if "error" in row else {}

    dm = partial(
        Dm, network=s.network, iterations=FOREVER, batch_real=s.batch_real, classes_per_unit=10
    )
    dsa = partial(
        Dsa,
        network=s.network,
        iterations=FOREVER,
        outer_loop=1,
        batch_real=s.batch_real,
        classes_per_unit=10,
    )
    for name, method, loss in (
        ("dm", dm, published.dm_loss),
        ("dsa", dsa, published.gradient_loss),
    ):
        known = _Update(s, method, loss)
        add(f"{name}: published", known.published)
        add(f"{name}: float64", partial(known.ours, Numerics(), torch.float64))
        for precision in PRECISIONS:
            add(f"{name}: {precision}", partial(known.ours, s.numerics(precision), torch.float32))
    for precision in (p for p in PRECISIONS if p != "bf16"):
        add(f"{RESNET}: {precision}", partial(_observed, s, precision))
    return found


class _Update:
    """One update of all classes: its first images and what the published loop makes of them in float64."""

    def __init__(self, s: Setting, method: Callable[..., Any], loss: Loss) -> None:
        self.s, self.method, self.loss = s, method, loss
        stage, ctx = self._stage(Numerics())
        (unit,) = stage.units()
        self.images = stage.init(unit, ctx)["images"].double()
        self.wanted = self._theirs(torch.float64)

    def _stage(self, numerics: Numerics) -> tuple[Stage, PlainContext]:
        (stage,) = self.method().plan(self.s.problem(IPC, numerics))
        return stage, PlainContext(stage.seed, self.s.data, self.s.device, stage.lanes)

    def ours(self, numerics: Numerics, dtype: torch.dtype) -> Row:
        """Return how far raydd's update is."""
        stage, ctx = self._stage(numerics)
        (unit,) = stage.units()
        Side(name="ours", make=lambda: lambda: None, numerics=numerics).settle(self.s.device)
        if dtype == torch.float64:  # DM's networks are in float32 otherwise
            network = create_network(self.s.network, self.s.info.shape, 10, ctx.rng("network"))
            ctx.given["matched network"] = (
                network.requires_grad_(False).train().to(self.s.device, dtype)
            )
        images = self.images.to(dtype)
        state = stage.step(unit, {"images": images, "momentum": torch.zeros_like(images)}, 0, ctx)
        return self._compared(float(ctx.rows[-1]["loss"]) * 10, state["momentum"])

    def published(self) -> Row:
        """Return how far the published loop's own arithmetic is."""
        return self._compared(*self._theirs(torch.float32))

    def _theirs(self, dtype: torch.dtype) -> tuple[float, Tensor]:
        s, ctx, classes = self.s, PlainContext(0, self.s.data), list(range(10))
        Side(name="theirs", make=lambda: lambda: None).settle(s.device)
        memory = ClassMemory.load(s.data["train"], classes)
        rows = memory.draw(classes, s.batch_real, [ctx.rng("real", 0, c) for c in classes])
        network = create_network(s.network, s.info.shape, 10, ctx.rng("network"))
        reinitialise_(network, ctx.rng("network", 0))
        plain = published.ConvNet(width=s.width).train()
        with torch.no_grad():
            for theirs, ours in zip(plain.parameters(), network.parameters(), strict=True):
                theirs.copy_(ours)
        plain = plain.to(s.device, dtype)
        leaf = self.images.to(dtype).requires_grad_(True)
        real = [
            normalised(s.info, s.data["train"], memory.ids[rows[c]], dtype).to(s.device)
            for c in classes
        ]
        draws = [
            partial(lambda c: published_dsa.KeyedDraws(ctx.rng("dsa", 0, c)), c) for c in classes
        ]
        loss = self.loss(plain, leaf, s.ipc(IPC), 10, lambda c: real[c], lambda c: draws[c])
        (gradient,) = torch.autograd.grad(loss, leaf)
        return float(loss.detach()), gradient.double()

    def _compared(self, loss: float, gradient: Tensor) -> Row:
        return _differences(loss, gradient, *self.wanted)


def _observed(s: Setting, precision: str) -> Row:
    """Return how far loss and gradient under raydd's taps are from the published hooks', both in this precision."""
    o = Observed.of(s)
    Side(name="ours", make=lambda: lambda: None, numerics=Numerics(precision=precision)).settle(
        s.device
    )  # type: ignore[arg-type]
    made = {
        kind: bench_taps.MAKERS[kind](
            bench_taps.Setting(RESNET, o.size, o.groups, o.each, o.patch, s.device)
        )
        for kind in bench_taps.SIDES
    }
    (loss, gradient), (wanted, theirs) = made["taps"](), made["published"]()
    return _differences(float(loss), gradient, float(wanted), theirs)


def _differences(loss: float, gradient: Tensor, wanted: float, theirs: Tensor) -> Row:
    return {
        "loss": abs(loss / wanted - 1),
        "gradient": float((gradient.double() - theirs.double()).norm() / theirs.double().norm()),
    }
