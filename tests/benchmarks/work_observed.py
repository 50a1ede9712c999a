"""Observed ResNet-18 as work that is measured on a device: the network with its statistics matched,
and EDC's recovery.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import bench_taps
import published_hooks
import torch
from harness import PlainContext
from measuring import Side, Step
from torch import Tensor, nn
from work import FOREVER, PRECISIONS, Setting, forward_flop, running, stepping

from raydd.core.captured import Captured
from raydd.core.rng import generator
from raydd.core.units import Numerics
from raydd.data.catalog import entry
from raydd.methods.edc import Edc, EdcInit
from raydd.methods.method import Problem
from raydd.networks import create_network
from raydd.networks.taps import StatTap
from raydd.training.statistics import StatisticsConfig
from raydd.training.teacher_config import TeacherConfig

RESNET = "torchvision/resnet18"


@dataclass(frozen=True)
class Observed:
    """Images whose network's layers are observed: side in pixels, groups, images of each, side of patches."""

    size: int
    groups: int
    each: int
    patch: int

    @classmethod
    def of(cls, s: Setting) -> Observed:
        """Return EDC's published sizes for ImageNet, or small ones."""
        return cls(32, 2, 5, 8) if s.small else cls(224, 4, 20, 16)

    @property
    def title(self) -> str:
        """What rows are called."""
        return f"ResNet-18 at {self.size}, {self.groups} x {self.each} images"


def taps(s: Setting) -> list[Side]:
    """Return the sides of a forward pass and the images' gradient: the network alone, and observed;
    ours recorded, as recovery is.
    """
    o = Observed.of(s)
    flop = 2 * forward_flop(RESNET, (3, o.size, o.size)) * o.groups * o.each

    def make(kind: str) -> Step:
        return bench_taps.MAKERS[kind](
            bench_taps.Setting(RESNET, o.size, o.groups, o.each, o.patch, s.device)
        )

    def recorded(kind: str) -> Step:
        step = make(kind)
        captured, start = Captured(lambda _: step(), s.device), torch.zeros(1, device=s.device)
        return lambda: captured(start)

    sides = [Side(name=f"{o.title}: published", make=partial(make, "published"), flop=flop)]
    for precision in (p for p in PRECISIONS if p != "bf16"):
        numerics, title = Numerics(precision=precision), f"{o.title}: {precision}"  # type: ignore[arg-type]
        sides.append(
            Side(
                name=f"{title}, alone",
                make=partial(recorded, "alone"),
                numerics=numerics,
                flop=flop,
            )
        )
        observed = partial(recorded, "taps")
        sides.append(
            Side(
                name=f"{title}, taps",
                make=observed,
                numerics=numerics,
                flop=flop,
                target=18,
                beside=f"{title}, alone",
            )
        )
    return sides


def recovery(s: Setting) -> list[Side]:
    """Return the sides of an update of EDC's recovery: views, the observed network, the loss, Adam."""
    o = Observed.of(s)
    info = replace(entry("imagenet10").info, height=o.size, width=o.size)
    method = Edc(
        networks=(RESNET,),
        teachers=TeacherConfig(weights="train"),
        statistics=StatisticsConfig(patch=o.patch),
        init=EdcInit(kind="noise"),
        iterations=FOREVER,
        group_size=o.each,
        groups_per_unit=o.groups,
    )
    stage = method.plan(
        Problem(dataset=info, ipc=o.groups * o.each // 10, seed=0, numerics=s.numerics("fp32"))
    )[-1]

    def network() -> nn.Module:
        return (
            create_network(RESNET, info.shape, 10, generator(0, "network"))
            .eval()
            .requires_grad_(False)
        )

    def tables(observed: nn.Module) -> tuple[Any, dict[str, Tensor], dict[str, Tensor]]:
        with StatTap(observed, o.patch, shape=info.shape) as tap:
            layout = tap.layout
        overall, classes = (
            torch.rand(*lead, 2, layout.width, generator=generator(0, "table"))
            for lead in ((), (10,))
        )
        return layout, layout.split(overall), layout.split(classes)

    def ours() -> Step:
        ctx, observed = PlainContext(0, {}, s.device), network()
        _, overall, classes = tables(observed)
        weights = {f"params.{name}": value for name, value in observed.named_parameters()}
        ctx.inputs["backbone-0"] = weights | {
            f"buffers.{name}": value for name, value in observed.named_buffers()
        }
        ctx.inputs["statistics-0"] = {f"G/{k}": v for k, v in overall.items()} | {
            f"T/{k}": v for k, v in classes.items()
        }
        return running(stage, ctx)

    def theirs() -> Iterator[float]:
        observed = network().to(s.device)
        layout, *found = tables(observed)
        hooks = published_hooks.observe(observed, layout, o.patch, method.momentum)
        overall, classes = ({k: v.to(s.device) for k, v in parts.items()} for parts in found)
        groups = (
            torch.arange(10, device=s.device)
            .repeat_interleave(o.groups * o.each // 10)
            .split(o.each)
        )
        images = torch.randn(o.groups * o.each, *info.shape, device=s.device).split(o.each)
        loss = partial(
            published_hooks.edc_loss,
            observed,
            hooks,
            overall=overall,
            table=classes,
            weight=method.r_loss,
        )
        return published_hooks.recovery_iterations(loss, images, groups, info.mean, info.std)

    flop = 2 * forward_flop(RESNET, info.shape) * o.groups * o.each

    def alone() -> Step:
        return bench_taps.alone(
            bench_taps.Setting(RESNET, o.size, o.groups, o.each, o.patch, s.device)
        )

    title = f"recovery, {o.title}"
    return [
        Side(name=f"{title}: published", make=partial(stepping, theirs), flop=flop),
        Side(name=f"{title}: the network alone", make=alone, numerics=stage.numerics, flop=flop),
        Side(
            name=f"{title}: fp32",
            make=ours,
            numerics=stage.numerics,
            flop=flop,
            target=18,
            beside=f"{title}: the network alone",
        ),
    ]
