"""The stage that reads a trained generator from a file: a folded one of ours, or published weights, folded then
(docs/methods/itgan.md, "Weights from a file").
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar

import torch
from torch import Tensor

from raydd.core.errors import ConfigError, DataError
from raydd.core.tensors import Tensors
from raydd.core.units import Context, Cost, Stage
from raydd.networks.biggan import Generator, fold
from raydd.networks.folded_generator import GanShape, check_folded
from raydd.training.weights import Weights, parse_weights, read_bytes

PUBLISHED = (
    (re.compile(r"^blocks\.(\d+)\.0\.bn([12])\."), r"blocks.\1.norm\2."),
    (re.compile(r"^blocks\.(\d+)\.0\.conv_sc\."), r"blocks.\1.shortcut."),
    (re.compile(r"^blocks\.(\d+)\.0\."), r"blocks.\1."),
    (re.compile(r"^output_layer\.0\."), "norm."),
    (re.compile(r"^output_layer\.2\."), "conv."),
    (re.compile(r"\.stored_(mean|var)$"), r".running_\1"),
    (re.compile(r"\.u0$"), ".u"),
)
"""Names of the published code, and ours."""
_LEFT_OUT = re.compile(r"\.sv0$")
"""The singular value of the last step, which follows from the others."""


@dataclass(frozen=True, kw_only=True)
class ReadGenerator(Stage):
    """Read a generator; output as of :class:`raydd.training.train_generator.TrainGenerator`.

    ``DataError`` for a file that is missing, has changed, or holds no generator; ``ConfigError``
    for one of other sizes.
    """

    phase: ClassVar[str] = "squeeze"

    sizes: GanShape
    weights: Weights

    def units(self) -> tuple[str, ...]:
        """Return the one unit."""
        return ("generator",)

    def steps(self, unit: str) -> int:
        """Return 0: there is nothing to iterate."""
        return 0

    def cost(self, unit: str) -> Cost:
        """Return the bytes of the weights."""
        size = 4 * self.sizes.numbers
        return Cost(peak_bytes=3 * size, output_bytes=size)

    def finish(self, unit: str, state: Tensors, ctx: Context) -> Tensors:
        """Return the folded generator."""
        data = read_bytes(self.weights.url)
        found = hashlib.sha256(data).hexdigest()
        if found != self.weights.digest:
            planned = self.weights.digest[:12] or "missing"
            raise DataError(
                f"{self.weights.url} has changed: its sha256 is {found[:12]}, planned was {planned}"
            )
        return folded_weights(
            parse_weights(data, self.weights.url)[0], self.sizes, self.weights.url
        )


@lru_cache(maxsize=8)
def check_generator(weights: Weights, sizes: GanShape) -> None:
    """Refuse, as reading it will, a file that holds no generator of these sizes; one that is not there is let pass."""
    if weights.digest:
        folded_weights(parse_weights(read_bytes(weights.url), weights.url)[0], sizes, weights.url)


def folded_weights(value: Any, sizes: GanShape, where: str) -> Tensors:
    """Return the folded generator in what a file holds: a state dict, bare or under one key."""
    states = [value, *(value.values() if isinstance(value, Mapping) else ())]
    fitting = [state for state in states if _is_state(state)]
    if len(fitting) != 1:
        raise DataError(
            f"{where} holds {len(fitting) or 'no'} state dict{'s' * (len(fitting) > 1)} of a generator; one is needed"
        )
    state = {name.removeprefix("module."): tensor.float() for name, tensor in fitting[0].items()}
    if "scale" in state:
        try:
            check_folded(state, sizes)
        except ConfigError as error:
            raise ConfigError(f"{where}: {error}") from error
        folded = state
    else:
        folded = fold(_published(state, sizes, where).eval())
    if not all(bool(torch.isfinite(tensor).all()) for tensor in folded.values()):
        raise DataError(f"{where} holds NaN or infinity, or a variance below 0")
    return folded


def _is_state(value: Any) -> bool:
    names = set(value) if isinstance(value, Mapping) else set()
    bare = {str(name).removeprefix("module.") for name in names}
    return {"linear.weight", "linear.bias"} <= bare and all(
        isinstance(tensor, Tensor) for tensor in value.values()
    )


def _published(state: Tensors, sizes: GanShape, where: str) -> Generator:
    """Return the generator of a state dict of published names, or of ours before folding."""
    named: Tensors = {}
    for name, tensor in state.items():
        if _LEFT_OUT.search(name):
            continue
        for pattern, ours in PUBLISHED:
            name = pattern.sub(ours, name)
        named[name] = tensor.flatten() if name.endswith(".u") else tensor
    made = Generator(sizes)
    wanted = made.state_dict()
    for name in (*wanted, *named):
        if name not in named:
            raise ConfigError(f"{where}: the generator has no '{name}'")
        if name not in wanted:
            raise ConfigError(f"{where}: a generator of these sizes has no '{name}'")
        if named[name].shape != wanted[name].shape:
            raise ConfigError(
                f"{where}: '{name}' is {list(named[name].shape)}; that of a generator of these sizes is"
                f" {list(wanted[name].shape)}"
            )
    made.load_state_dict(named)
    return made
