"""Helpers of the recovery tests: golden tensors (docs/methods/parity.md), a context, the micro recovery's two nets."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from stage_context import StageContext
from torch import Tensor, nn

from raydd.core.tensors import Tensors
from raydd.core.units import Context
from raydd.data.catalog import DatasetInfo
from raydd.methods.recovery.recover import MatchStatistics
from raydd.methods.recovery.recover_config import Matching
from raydd.methods.recovery.recover_groups import Group, Grouping
from raydd.methods.recovery.recover_objective import ObservedTeacher
from raydd.networks.taps import StatTap
from raydd.training.backbones import Backbone
from raydd.training.weights import Weights

CIFAR_MEAN, CIFAR_STD = (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)


def det(
    shape: tuple[int, ...], a: float = 0.37, b: float = 0.11, scale: float = 1.0, shift: float = 0.0
) -> Tensor:
    """Return a tensor of docs/methods/parity.md, "Tensors of EDC, SRe2L, G-VBSM and RDED"."""
    i = torch.arange(math.prod(shape), dtype=torch.float64)
    return (scale * (torch.sin(a * i + b) + 0.5 * torch.cos(0.013 * i)) + shift).float().view(shape)


class MicroNet(nn.Module):
    """Network ``k`` of golden G17."""

    def __init__(self, k: int) -> None:
        super().__init__()
        self.c1, self.b1 = nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.c2, self.fc = nn.Conv2d(4, 6, 3, stride=2, padding=1), nn.Linear(6, 5)
        with torch.no_grad():
            for j, parameter in enumerate(self.parameters()):
                parameter.copy_(det(tuple(parameter.shape), 0.41 + 0.07 * j + 0.13 * k, 0.3, 0.4))
            self.b1.running_mean.copy_(det((4,), 0.9 + k, 0.2, 0.1))
            self.b1.running_var.copy_(det((4,), 0.7 + k, 0.1, 0.1, 1).abs())
        self.eval().requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(torch.relu(self.c2(torch.relu(self.b1(self.c1(x))))).mean((2, 3)))


def micro_teacher(k: int) -> ObservedTeacher:
    """Return net ``k`` with the reference statistics of golden G17."""
    tap = StatTap(MicroNet(k), 4, shape=(3, 32, 32))
    overall, table = {}, {}
    for layer, c in (("c1", 3), ("b1", 4), ("c2", 4)):
        table |= {
            f"{layer}/mu": det((10, c), 0.31 + k, 0.05, 0.3),
            f"{layer}/var": det((10, c), 0.23 + k, 0.07, 0.2, 1).abs(),
        }
        if layer == "b1":
            continue
        overall |= {
            f"{layer}/mu": det((c,), 0.9 + k, 0.2, 0.2),
            f"{layer}/var": det((c,), 0.7 + k, 0.1, 0.2, 1).abs(),
        }
        overall |= {
            f"{layer}/pmu": det((64,), 0.5 + k, 0.3, 0.2),
            f"{layer}/pvar": det((64,), 0.6 + k, 0.4, 0.2, 1).abs(),
        }
        table |= {
            f"{layer}/pmu": det((10, 64), 0.17 + k, 0.2, 0.2),
            f"{layer}/pvar": det((10, 64), 0.19 + k, 0.2, 0.2, 1).abs(),
        }
    return ObservedTeacher(tap, tap.layout.join(overall) + tap.running(), tap.layout.join(table))


@dataclass(frozen=True, kw_only=True)
class MicroRecovery(MatchStatistics):
    """Recovery with the micro nets: for images ``x0`` or from noise."""

    golden_start: bool = False

    def teacher(self, k: int, ctx: Context) -> ObservedTeacher:
        return ctx.cached(("micro", k), partial(micro_teacher, k))

    def start(self, groups: Any, ctx: Context) -> Tensor:
        return (
            det((4, 3, 32, 32), 0.37, 0.2, 0.6) if self.golden_start else super().start(groups, ctx)
        )


def micro_info(classes: int = 5) -> DatasetInfo:
    return DatasetInfo(
        name="micro",
        classes=classes,
        channels=3,
        height=32,
        width=32,
        mean=CIFAR_MEAN,
        std=CIFAR_STD,
    )


def micro_stage(**fields: Any) -> MicroRecovery:
    """Return a small recovery with the micro nets; ``matching`` as a dictionary changes some of its fields."""
    matching = {
        "patch": 4,
        "r_loss": 0.01,
        "momentum": 0.8,
        "class_weight": 0.5,
        **fields.pop("matching", {}),
    }
    info = fields.pop("dataset", micro_info())
    named = Backbone(
        network="convnet1_w8_batchnorm", dataset=info, weights=Weights(url="", digest="")
    )
    given = {
        "seed": 5,
        "dataset": info,
        "ipc": 2,
        "backbones": (named, named),
        "grouping": Grouping(group_size=4),
        "iterations": 6,
        "lr_img": 0.05,
        "matching": Matching(**matching),
    }
    return MicroRecovery(**(given | fields))


def recovered(
    stage: MatchStatistics, unit: str | None = None, upto: int | None = None
) -> tuple[Tensors, StageContext]:
    """Return the state of a unit (default: the first) after ``upto`` updates (default: all), and its context."""
    unit, ctx = unit or stage.units()[0], StageContext(stage)
    state = stage.init(unit, ctx)
    for t in range(stage.steps(unit) if upto is None else upto):
        state = stage.step(unit, state, t, ctx)
    return state, ctx


def group_images(stage: MatchStatistics) -> dict[int, Tensor]:
    """Return the final images of every group, by its index, computed unit by unit."""
    found: dict[int, Tensor] = {}
    for unit, groups in stage.groups_of.items():
        images = recovered(stage, unit)[0]["images"]
        for group, own in zip(groups, images.split([len(g.positions) for g in groups])):
            found[group.index] = own
    return found


__all__ = [
    "Group",
    "MicroRecovery",
    "det",
    "group_images",
    "micro_info",
    "micro_stage",
    "recovered",
]
