"""The work that is measured on a device, as published and as raydd's jobs ask for it; see :mod:`bench_gpu`."""

from __future__ import annotations

import typing
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial

import published
import torch
from harness import PlainContext, normalised
from measuring import Side, Step
from torch import Tensor, nn

from raydd.artifacts.distilled_set import DistilledSet
from raydd.core.rng import generator
from raydd.core.units import Context, Data, Numerics, Ref, Stage
from raydd.data.arrays import ArrayData
from raydd.data.catalog import DatasetInfo, entry
from raydd.data.config import DatasetConfig
from raydd.data.datasets import open_data, with_digests
from raydd.evaluation.protocols import PROTOCOLS
from raydd.evaluation.stages import Evaluate
from raydd.methods.dm import Dm
from raydd.methods.dsa import Dsa
from raydd.methods.matching.gradient_method import published_loops
from raydd.methods.method import Problem
from raydd.networks import create_network, flops, normalise_name
from raydd.networks.network import Shape

FOREVER = 1_000_000
"""Updates of a stage that is never finished."""

PRECISIONS: tuple[str, ...] = typing.get_args(typing.get_type_hints(Numerics)["precision"])


@dataclass(frozen=True)
class Setting:
    """What is measured on ``device``: the whole table's sizes, or ``small`` ones that say nothing
    but that everything runs.
    """

    device: torch.device
    info: DatasetInfo
    data: dict[str, Data]
    small: bool = False

    @property
    def batch_real(self) -> int:
        """Real images per class and update."""
        return 8 if self.small else 256

    @property
    def width(self) -> int:
        """Channels of the ConvNet's layers."""
        return 8 if self.small else 128

    @property
    def network(self) -> str:
        """The ConvNet's name."""
        return normalise_name(f"convnet3_w{self.width}")

    def ipc(self, wanted: int) -> int:
        """Return images per class."""
        return min(wanted, 2) if self.small else wanted

    def numerics(self, precision: str) -> Numerics:
        """Return what a job file with this precision says; small settings compile nothing."""
        return Numerics(precision=precision, compile=not self.small)  # type: ignore[arg-type]

    def problem(self, ipc: int, numerics: Numerics) -> Problem:
        """Return the problem of distilling the data set."""
        return Problem(dataset=self.info, ipc=self.ipc(ipc), seed=0, numerics=numerics)

    @property
    def flop(self) -> float:
        """Operations of one image's forward pass of the ConvNet."""
        return forward_flop(self.network, self.info.shape)

    def real(self) -> tuple[Tensor, Tensor]:
        """Return all training images, normalised, and their labels, on the device as the published code has them."""
        train = self.data["train"]
        return normalised(self.info, train).to(self.device), train.labels.to(self.device)


def forward_flop(network: str, shape: Shape) -> float:
    """Return the operations of one image's forward pass."""
    return float(flops(create_network(network, shape, 10, generator(0, "flops")), shape))


def fashion_mnist(folder: str | None, small: bool) -> tuple[DatasetInfo, dict[str, Data], str]:
    """Return Fashion-MNIST from a folder of idx files, or random images of its shape and number;
    and which of the two it is.
    """
    info = entry("fashion_mnist").info
    data: dict[str, Data]
    if folder is not None:
        data = dict(open_data(DatasetConfig(name="fashion_mnist", root=folder)))
        return with_digests(info, data), data, f"Fashion-MNIST from {folder}"
    counts = {"train": 40, "test": 10} if small else {"train": 6_000, "test": 1_000}
    data = {}
    for split, each in counts.items():
        pixels = torch.randint(
            0, 256, (10 * each, *info.shape), generator=generator(0, split), dtype=torch.uint8
        )
        data[split] = ArrayData(pixels, torch.arange(10).repeat(each))
    return (
        with_digests(info, data),
        data,
        "random images of Fashion-MNIST's shape, as many (times do not depend on pixels)",
    )


def running(stage: Stage, ctx: PlainContext, unit: str | None = None) -> Step:
    """Return a function that makes one update of a unit (by default the only one), as a worker does."""
    if unit is None:
        (unit,) = stage.units()
    ctx.lanes = stage.lanes
    state, t = stage.init(unit, ctx), 0

    def step() -> None:
        nonlocal state, t
        state = stage.step(unit, state, t, ctx)
        t += 1

    return step


def stepping(make: Callable[[], Iterator[float]]) -> Step:
    """Return a function that makes one update of a published loop."""
    updates = make()
    return lambda: next(updates)


def least_bytes(s: Setting, ipc: int, precision: str) -> float:
    """Return the bytes that DM's features move at least: what convolutions and poolings put out, written and read once.

    The first convolution's output is not counted: it can be computed again from one channel.
    """
    network, sizes = create_network(s.network, s.info.shape, 10, generator(0, "bytes")), list[int]()
    layers = [
        module for module in network.modules() if isinstance(module, (nn.Conv2d, nn.AvgPool2d))
    ]
    hooks = [
        layer.register_forward_hook(lambda module, inputs, output: sizes.append(output.numel()))
        for layer in layers[1:]
    ]
    with torch.no_grad():
        network(torch.zeros(1, *s.info.shape))
    for hook in hooks:
        hook.remove()
    return 2 * (2 if precision == "bf16" else 4) * sum(sizes) * 10 * (s.batch_real + 3 * s.ipc(ipc))


def dm(s: Setting, ipc: int = 10) -> list[Side]:
    """Return the sides of a DM update of all classes."""
    flop = s.flop * 10 * (s.batch_real + 2 * s.ipc(ipc))

    def ours(numerics: Numerics) -> Step:
        method = Dm(
            network=s.network, iterations=FOREVER, batch_real=s.batch_real, classes_per_unit=10
        )
        (stage,) = method.plan(s.problem(ipc, numerics))
        return running(stage, PlainContext(0, s.data, s.device))

    title = f"dm ipc {s.ipc(ipc)}"
    theirs = partial(
        stepping,
        lambda: published.dm_iterations(*s.real(), s.ipc(ipc), s.batch_real, width=s.width),
    )
    sides = [
        Side(name=f"{title}: published", make=theirs, bytes=least_bytes(s, ipc, "fp32"), flop=flop)
    ]
    for precision in PRECISIONS:
        numerics, least = s.numerics(precision), least_bytes(s, ipc, precision)
        sides.append(
            Side(
                name=f"{title}: {precision}",
                make=partial(ours, numerics),
                numerics=numerics,
                bytes=least,
                target=20,
                flop=flop,
            )
        )
    return sides


def dsa(s: Setting, ipc: int, *, whole: bool = False) -> list[Side]:
    """Return the sides of a DSA update of all classes; ``whole``: with the network's epochs that
    follow it, as its job does.
    """
    count = s.ipc(ipc)
    loops = (1, 1) if not whole else ((2, 1) if s.small else published_loops(ipc))
    epochs = (loops[0] - 1) / loops[0] * loops[1]
    flop = s.flop * 10 * (3 * s.batch_real + 7 * count + 3 * epochs * count)

    def ours(numerics: Numerics) -> Step:
        outer, inner = loops
        method = Dsa(
            network=s.network,
            iterations=FOREVER,
            outer_loop=outer,
            inner_loop=inner,
            batch_real=s.batch_real,
            classes_per_unit=10,
        )
        (stage,) = method.plan(s.problem(ipc, numerics))
        return running(stage, PlainContext(0, s.data, s.device))

    title = f"dsa ipc {count}" + " with its network's epochs" * whole
    known = {"batch_real": s.batch_real, "loops": loops, "width": s.width}
    theirs = partial(stepping, lambda: published.gradient_iterations(*s.real(), count, **known))  # type: ignore[arg-type]
    sides = [Side(name=f"{title}: published", make=theirs, flop=flop, cycle=loops[0])]
    for precision in ("fp32",) if whole else ("fp32", "bf16"):
        numerics = s.numerics(precision)
        sides.append(
            Side(
                name=f"{title}: {precision}",
                make=partial(ours, numerics),
                numerics=numerics,
                target=6,
                flop=flop,
                cycle=loops[0],
            )
        )
    return sides


@dataclass(frozen=True, kw_only=True)
class Noise:
    """A set of random images with hard labels, as a source of an evaluation."""

    info: DatasetInfo
    ipc: int

    @property
    def images(self) -> int:
        """Number of images."""
        return self.ipc * self.info.classes

    def inputs(self) -> Mapping[str, Ref]:
        """Return nothing."""
        return {}

    def load(self, ctx: Context) -> DistilledSet:
        """Return the set."""
        pixels = torch.randn(self.images, *self.info.shape, generator=generator(0, "noise"))
        return DistilledSet(
            images=pixels,
            labels=torch.arange(self.info.classes).repeat_interleave(self.ipc),
            info=self.info,
        )


def student(s: Setting) -> list[Side]:
    """Return the sides of a student's epoch on 100 images with DSA, by the number of students that
    are trained together.
    """
    ipc, info = s.ipc(10), s.info
    source = Noise(info=info, ipc=ipc)
    recipe = replace(PROTOCOLS.get("dm").recipe(info, s.network), epochs=FOREVER, drops=())

    def ours(numerics: Numerics, repeats: int) -> Step:
        stage = Evaluate(
            seed=0,
            numerics=numerics,
            source=source,
            dataset=info.only("test"),
            recipe=recipe,
            network=s.network,
            repeats=repeats,
            repeats_per_unit=repeats,
        )
        return running(stage, PlainContext(0, s.data, s.device))

    def theirs() -> Iterator[float]:
        images, labels = source.load(PlainContext(0, s.data)).tensors(s.device)
        return published.student_epochs(images, labels, width=s.width)

    flop = s.flop * 3 * source.images
    sides = [
        Side(
            name=f"student's epoch, {source.images} images: published",
            make=partial(stepping, theirs),
            flop=flop,
        )
    ]
    for precision, repeats in (("fp32", 1), ("fp32", 5), ("fp32", 20), ("bf16", 20)):
        numerics, count = (
            s.numerics(precision),
            {5: 2, 20: 3}.get(repeats, 1) if s.small else repeats,
        )
        name = f"student's epoch, {source.images} images: {precision}, {count} at once"
        sides.append(
            Side(
                name=name,
                make=partial(ours, numerics, count),
                numerics=numerics,
                units=count,
                target=12,
                flop=flop,
            )
        )
    return sides
