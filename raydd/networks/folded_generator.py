"""A generator of images of classes as named tensors: its sizes, and what makes images of them, row by row.

That of a conditional BigGAN (arXiv 1809.11096) whose spectral norms and batch norms are folded into constants
(:func:`raydd.networks.biggan.fold`; docs/methods/itgan.md, "The generator").
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from raydd.core.errors import ConfigError

BLOCK_TENSORS = (
    *("scale1", "shift1", "conv1.weight", "conv1.bias"),
    *("scale2", "shift2", "conv2.weight", "conv2.bias"),
    *("shortcut.weight", "shortcut.bias"),
)
"""Names of a block's tensors in a folded generator."""


@dataclass(frozen=True, kw_only=True)
class GanShape:
    """The sizes of a generator and its discriminator.

    Images ``[channels, side, side]`` of ``classes``; ``width``: channels of every block; ``dim_z``:
    length of a latent vector; ``blocks``: each doubles the side, of which the first layer makes
    ``bottom``.
    """

    channels: int
    classes: int
    width: int
    dim_z: int
    bottom: int
    blocks: int

    def __post_init__(self) -> None:
        for name in ("channels", "classes", "width", "dim_z", "bottom", "blocks"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ConfigError(f"{name}: {value!r} must be a whole number of at least 1")

    @property
    def side(self) -> int:
        """Height and width of the images."""
        return int(self.bottom * 2**self.blocks)

    @property
    def pools(self) -> int:
        """How many of the discriminator's blocks halve the side."""
        return max(2, self.blocks - 1)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shapes of a folded generator's tensors, by name."""
        wide, classes = self.width, self.classes
        block = {
            "scale1": (classes, wide),
            "shift1": (classes, wide),
            "conv1.weight": (wide, wide, 3, 3),
            "conv1.bias": (wide,),
            "scale2": (classes, wide),
            "shift2": (classes, wide),
            "conv2.weight": (wide, wide, 3, 3),
            "conv2.bias": (wide,),
            "shortcut.weight": (wide, wide, 1, 1),
            "shortcut.bias": (wide,),
        }
        first = wide * self.bottom**2
        found: dict[str, tuple[int, ...]] = {
            "linear.weight": (first, self.dim_z),
            "linear.bias": (first,),
        }
        for i in range(self.blocks):
            found |= {f"blocks.{i}.{name}": size for name, size in block.items()}
        return found | {
            "scale": (wide,),
            "shift": (wide,),
            "conv.weight": (self.channels, wide, 3, 3),
            "conv.bias": (self.channels,),
        }

    @property
    def numbers(self) -> int:
        """How many numbers a folded generator has, as many as parameters before."""
        return sum(torch.Size(size).numel() for size in self.shapes().values())

    @property
    def generator_flop(self) -> float:
        """FLOP of one image's forward pass, 2 for each multiplication with its addition."""
        wide, total = self.width, self.dim_z * self.width * self.bottom**2
        for i in range(1, self.blocks + 1):
            total += (self.bottom * 2**i) ** 2 * wide * wide * 19
        return 2.0 * (total + self.side**2 * wide * self.channels * 9)

    @property
    def generator_activations(self) -> int:
        """Numbers that one image's forward pass keeps for its derivative."""
        return sum(6 * self.width * (self.bottom * 2**i) ** 2 for i in range(self.blocks + 1))

    @property
    def discriminator_numbers(self) -> int:
        """Parameters of the discriminator."""
        wide, channels = self.width, self.channels
        first = (channels * 9 + 1) * wide + (channels + 1) * wide
        total = first + (wide * 9 + 1) * wide
        for i in range(1, self.pools + 2):
            total += 2 * (wide * 9 + 1) * wide + ((wide + 1) * wide if i < self.pools else 0)
        return total + wide + 1 + self.classes * wide

    @property
    def discriminator_flop(self) -> float:
        """FLOP of one image's forward pass through the discriminator."""
        wide, side = self.width, self.side
        total = side**2 * wide * (self.channels * 9 + wide * 9) + (side // 2) ** 2 * wide * (
            self.channels
        )
        for i in range(1, self.pools + 2):
            side = self.side // 2 ** min(i, self.pools)
            total += side**2 * wide * wide * (19 if i < self.pools else 18)
        return 2.0 * total


def generate(weights: Mapping[str, Tensor], shape: GanShape, z: Tensor, labels: Tensor) -> Tensor:
    """Return the images ``[B, C, side, side]`` in (-1, 1) of a folded generator; differentiable in ``z``."""
    h = F.linear(z, weights["linear.weight"], weights["linear.bias"])
    h = h.view(len(z), shape.width, shape.bottom, shape.bottom)
    for i in range(shape.blocks):
        part = {name: weights[f"blocks.{i}.{name}"] for name in BLOCK_TENSORS}
        a = doubled(_scaled(h, part["scale1"][labels], part["shift1"][labels]))
        a = F.conv2d(a, part["conv1.weight"], part["conv1.bias"], padding=1)
        a = _scaled(a, part["scale2"][labels], part["shift2"][labels])
        a = F.conv2d(a, part["conv2.weight"], part["conv2.bias"], padding=1)
        # Doubling by neighbours and a 1x1 convolution commute: the side is still half here.
        h = a + doubled(F.conv2d(h, part["shortcut.weight"], part["shortcut.bias"]))
    h = _scaled(h, weights["scale"].unsqueeze(0), weights["shift"].unsqueeze(0))
    return torch.tanh(F.conv2d(h, weights["conv.weight"], weights["conv.bias"], padding=1))


def check_folded(weights: Mapping[str, Any], shape: GanShape) -> None:
    """Raise ``ConfigError`` for tensors that are not those of a folded generator of a shape."""
    wanted = shape.shapes()
    for name in (*wanted, *weights):
        if name not in weights:
            raise ConfigError(f"the generator has no tensor '{name}'")
        if name not in wanted:
            raise ConfigError(f"no generator has a tensor '{name}'")
        if tuple(weights[name].shape) != wanted[name]:
            raise ConfigError(
                f"the generator's '{name}' is {list(weights[name].shape)}; that of its sizes is {list(wanted[name])}"
            )


def _scaled(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    return F.relu(torch.addcmul(shift[:, :, None, None], x, scale[:, :, None, None]))


def doubled(x: Tensor) -> Tensor:
    """Return features of twice the side, each a square of four."""
    return F.interpolate(x, scale_factor=2)
