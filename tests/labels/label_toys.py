"""Sets, teachers and a context for tests of labels, all of them small."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from raydd.artifacts.decoding import Decoding, SetSize
from raydd.artifacts.distilled_set import DistilledSet
from raydd.core.rng import generator
from raydd.core.tensors import Tensors, dump_tensors, load_tensors
from raydd.core.units import Context, Numerics, Ref
from raydd.data.catalog import DatasetInfo
from raydd.labels.label_config import LabelConfig
from raydd.labels.label_sources import Labels
from raydd.labels.relabel import Relabel
from raydd.networks import create_network

T = TypeVar("T")


def info(size: int = 16, channels: int = 3, classes: int = 5) -> DatasetInfo:
    mean, std = (0.4, 0.5, 0.6)[:channels], (0.2, 0.25, 0.3)[:channels]
    return DatasetInfo(
        name="toy", classes=classes, channels=channels, height=size, width=size, mean=mean, std=std
    )


@dataclass(frozen=True, kw_only=True)
class ToySource:
    """A set of random images; ``tiled``: four of them in each stored one."""

    dataset: DatasetInfo
    images: int = 14
    draw: int = 0
    floats: bool = False
    tiled: bool = False

    def inputs(self) -> Mapping[str, Ref]:
        return {}

    @property
    def size(self) -> SetSize:
        return self.load().size

    def load(self, ctx: Context | None = None) -> DistilledSet:
        g = generator(self.draw, "images")
        count = self.images // 4 if self.tiled else self.images
        shape = (count, *self.dataset.shape)
        images = (
            torch.randn(shape, generator=g)
            if self.floats
            else torch.randint(0, 256, shape, generator=g).to(torch.uint8)
        )
        return DistilledSet(
            images=images,
            labels=torch.arange(count) % self.dataset.classes,
            info=self.dataset,
            decoding=Decoding("partition") if self.tiled else Decoding(),
        )


SEEN: list[Tensor] = []
"""Every batch that a toy teacher was shown."""


@dataclass(frozen=True, kw_only=True)
class ToyTeacher:
    """A network of given, untrained weights that notes what it is shown."""

    dataset: DatasetInfo
    network: str = "convnet1_w8"
    draw: int = 0
    gain: float = 1.0

    def inputs(self, name: str) -> Mapping[str, Ref]:
        return {}

    def load(self, ctx: Context, name: str) -> Any:
        return ctx.cached(self, self.make)

    def make(self) -> Any:
        network = create_network(
            self.network, self.dataset.shape, self.dataset.classes, generator(self.draw, "weights")
        )
        network.eval().requires_grad_(False)

        def note(module: Any, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
            SEEN.append(inputs[0].clone())
            return output * self.gain

        network.register_forward_hook(note)
        return network


class ToyContext:
    """A context in this process; inputs are looked up among ``outputs``."""

    def __init__(self, outputs: Mapping[str, Tensors] | None = None, seed: int = 0) -> None:
        self.device, self.outputs, self.seed = torch.device("cpu"), dict(outputs or {}), seed
        self.kept: dict[Any, Any] = {}
        self.data: dict[str, Any] = {}
        self.rows: list[tuple[int, dict[str, float]]] = []

    def rng(self, stream: str, *ids: int) -> torch.Generator:
        return generator(self.seed, stream, *ids)

    def load(self, name: str, rows: slice | None = None) -> Tensors:
        return self.outputs[name]

    def cached(self, key: Any, make: Callable[[], T]) -> T:
        if key not in self.kept:
            self.kept[key] = make()
        return self.kept[key]

    def each_lane(self, fn: Callable[[int], Tensors]) -> list[Tensors]:
        return []

    def log(self, t: int, **scalars: Any) -> None:
        self.rows.append((t, {name: float(value) for name, value in scalars.items()}))


def labels_of(config: LabelConfig, source: ToySource, teachers: int = 2, seed: int = 3) -> Labels:
    made = tuple(ToyTeacher(dataset=source.dataset, draw=k, gain=1 + k) for k in range(teachers))
    return Labels(source=source, teachers=made, config=config, seed=seed, numerics=Numerics())


def run_epoch(stage: Relabel, epoch: int, interrupted: bool = False) -> Tensors:
    """Return the record of an epoch; ``interrupted``: every step in a fresh context, its state read from bytes."""
    unit, ctx = stage.units()[epoch], ToyContext()
    state = stage.init(unit, ctx)
    for t in range(stage.steps(unit)):
        state = stage.step(unit, state, t, ctx)
        if interrupted:
            state, ctx = load_tensors(dump_tensors(state)), ToyContext()
    return stage.finish(unit, state, ctx)


def context_of(labels: Labels) -> ToyContext:
    """Return a context that holds the stored epochs of ``labels``, if they are stored."""
    if not labels.config.stored:
        return ToyContext()
    return ToyContext(
        {name: run_epoch(labels.relabel, e) for e, name in enumerate(labels.inputs())}
    )
