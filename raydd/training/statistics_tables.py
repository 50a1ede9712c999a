"""Tables of statistics: what a network's statistics are to match, of a stage's output, by layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from raydd.core.errors import DataError
from raydd.core.rng import generator
from raydd.core.tensors import Tensors
from raydd.core.units import Context, Ref, Stage
from raydd.losses.statistics_matching import Layer, Layout, swap_patches
from raydd.networks import create_network
from raydd.networks.network import Shape
from raydd.networks.released import schemes
from raydd.networks.taps import StatTap


class Tables(NamedTuple):
    """What a network's statistics are to match: ``overall [2, W]``; ``classes [C, 2, W]``, or
    ``None`` if not asked for.
    """

    overall: Tensor
    classes: Tensor | None


@dataclass(frozen=True, kw_only=True)
class TableStage(Stage):
    """A stage whose unit ``all`` puts out the tables of one network, to be read by :func:`load_tables`."""

    phase: ClassVar[str] = "squeeze"

    def inputs_of(self, name: str) -> dict[str, Ref]:
        """Return the tables as an input called ``name`` of another stage."""
        return {name: Ref(self, "all")}


def load_tables(
    ctx: Context, name: str, tap: StatTap, *, classes: bool = True, swap: bool = False
) -> Tables:
    """Return the tables of the input ``name`` for an observed network, on the worker's device.

    Batch norms' overall statistics are the network's own. ``swap``: exchange the patch means and
    variances of classes, as the published files have them. ``DataError`` if a layer that is
    observed is not in the tables, or not of its width.
    """
    found = ctx.load(name)
    parts: dict[str, Tensors] = {
        kind: {k[2:]: v for k, v in found.items() if k.startswith(f"{kind}/")} for kind in "GT"
    }
    what = f"the tables '{name}'"
    overall = tap.running()
    convolutions = [layer for layer in tap.layout.layers if layer.kind == "conv"]
    if convolutions:
        require_layers(parts["G"], convolutions, f"{what} of the data set")
        own = tap.layout.columns(kind="bn").to(overall.device)
        overall = torch.where(
            own, overall, tap.layout.join(parts["G"], what=what).to(overall.device)
        )
    if not classes:
        return Tables(overall, None)
    require_layers(parts["T"], tap.layout.layers, f"{what} of classes")
    table = tap.layout.join(parts["T"], what=what).to(overall.device)
    return Tables(overall, swap_patches(table, tap.layout) if swap else table)


def require_layers(parts: Mapping[str, Tensor], layers: Sequence[Layer], what: str) -> None:
    absent = [layer.name for layer in layers if f"{layer.name}/mu" not in parts]
    if absent:
        raise DataError(
            f"{what} lack {len(absent)} of {len(layers)} layers:"
            f" {', '.join(absent[:4])}{', …' if len(absent) > 4 else ''}"
        )


class Observed(NamedTuple):
    """The layers of a network, and for each way of naming them what ours are called there."""

    layout: Layout
    spelled: list[dict[str, str]]


@lru_cache(maxsize=64)
def observe(name: str, shape: Shape, classes: int, patch: int) -> Observed:
    """Return the layers of a network that statistics are taken of, for its name alone."""
    network = create_network(name, shape, classes, generator(0, "facts"))
    with StatTap(network, patch) as tap:
        layers = [layer.name for layer in tap.layout.layers]
        return Observed(
            tap.layout,
            [{ours: scheme(ours) for ours in layers} for scheme in (_same, *schemes(network))],
        )


def _same(name: str) -> str:
    return name
