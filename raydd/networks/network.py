"""What every network offers: features before the last linear layer, and logits."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from raydd.core.errors import ConfigError

Shape = tuple[int, int, int]
"""Image shape ``(channels, height, width)``."""


class Network(nn.Module):
    """A classifier of images ``[B, C, H, W]``: ``classifier(embed(x))``.

    ``name``: canonical name. ``shape``: image shape. ``embed_dim``: length of the features that :meth:`embed` returns.
    ``silent``: names of layers that never run, and are there for the files that hold them.
    """

    classifier: nn.Module
    silent: ClassVar[tuple[str, ...]] = ()

    def __init__(self, name: str, shape: Shape, classes: int) -> None:
        super().__init__()
        self.name = name
        self.shape = shape
        self.classes = classes
        self.embed_dim = 0

    def embed(self, x: Tensor) -> Tensor:
        """Return the features ``[B, embed_dim]`` that the final linear layer reads."""
        raise TypeError(f"{type(self).__name__} does not define embed()")

    def forward(self, x: Tensor) -> Tensor:
        """Return logits ``[B, classes]``."""
        return self.classifier(self.embed(x))

    def reinitialise_(self, generator: torch.Generator) -> None:
        """Refill all weights in place with fresh draws from ``generator``."""
        from raydd.networks.initialise import fill_defaults_

        fill_defaults_(self, generator)


def require_size(name: str, shape: Shape, ok: bool, need: str) -> None:
    """Raise ``ConfigError`` unless ``ok``: the image is too small for the network."""
    if not ok:
        raise ConfigError(
            f"network '{name}' cannot read {shape[0]}x{shape[1]}x{shape[2]} images: {need}"
        )


def require_norm(name: str, shape: Shape, norm: str, height: int, width: int) -> None:
    """Raise ``ConfigError`` where instance norm would see maps of one pixel, which it turns into constants."""
    need = "instance norm makes its last maps, of one pixel, constant; use a smaller depth or another norm"
    require_size(name, shape, norm != "instancenorm" or height * width > 1, need)
