"""ResNets for small images: a 3x3 stem without max pooling (docs/methods/networks.md, "Residual networks")."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from raydd.networks.initialise import fill_defaults_, fill_fan_out_
from raydd.networks.layers import Conv2d, Linear, make_norm
from raydd.networks.network import Network, Shape, require_norm, require_size

RESNET_BLOCKS: dict[int, tuple[int, int, int, int]] = {
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
}
"""Residual blocks of each of the four stages; from 50 layers on the blocks are bottlenecks."""


class _Shortcut(nn.Module):
    """1x1 convolution and norm; the average-pool variant pools between them instead of striding."""

    def __init__(
        self, channels: int, out: int, stride: int, norm: str, pooled: bool, size: tuple[int, int]
    ) -> None:
        super().__init__()
        self.pool = pooled and stride > 1
        self.conv = Conv2d(channels, out, 1, stride=1 if self.pool else stride, bias=False)
        self.norm = make_norm(norm, out, *size)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        return self.norm(F.avg_pool2d(x, 2) if self.pool else x)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions around which the input is added."""

    expansion = 1

    def __init__(
        self,
        channels: int,
        width: int,
        stride: int,
        norm: str,
        pooled: bool,
        sizes: tuple[tuple[int, int], ...],
    ) -> None:
        super().__init__()
        before, after = sizes
        self.pool = pooled and stride > 1
        self.conv1 = Conv2d(
            channels, width, 3, stride=1 if self.pool else stride, padding=1, bias=False
        )
        self.norm1 = make_norm(norm, width, *(before if self.pool else after))
        self.conv2 = Conv2d(width, width, 3, padding=1, bias=False)
        self.norm2 = make_norm(norm, width, *after)
        plain = stride == 1 and channels == width
        self.shortcut: nn.Module = (
            nn.Identity() if plain else _Shortcut(channels, width, stride, norm, pooled, after)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's map of ``x [B, C, H, W]``."""
        y = F.relu(self.norm1(self.conv1(x)))
        y = self.norm2(self.conv2(F.avg_pool2d(y, 2) if self.pool else y))
        return F.relu(y + self.shortcut(x))


class Bottleneck(nn.Module):
    """Convolutions 1x1, 3x3, 1x1 (four times as wide) around which the input is added."""

    expansion = 4

    def __init__(
        self,
        channels: int,
        width: int,
        stride: int,
        norm: str,
        pooled: bool,
        sizes: tuple[tuple[int, int], ...],
    ) -> None:
        super().__init__()
        before, after = sizes
        out = width * self.expansion
        self.pool = pooled and stride > 1
        self.conv1 = Conv2d(channels, width, 1, bias=False)
        self.norm1 = make_norm(norm, width, *before)
        self.conv2 = Conv2d(
            width, width, 3, stride=1 if self.pool else stride, padding=1, bias=False
        )
        self.norm2 = make_norm(norm, width, *(before if self.pool else after))
        self.conv3 = Conv2d(width, out, 1, bias=False)
        self.norm3 = make_norm(norm, out, *after)
        plain = stride == 1 and channels == out
        self.shortcut: nn.Module = (
            nn.Identity() if plain else _Shortcut(channels, out, stride, norm, pooled, after)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's map of ``x [B, C, H, W]``."""
        y = F.relu(self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x))))))
        y = self.norm3(self.conv3(F.avg_pool2d(y, 2) if self.pool else y))
        return F.relu(y + self.shortcut(x))


class ResNet(Network):
    """Four stages of 64, 128, 256, 512 channels with strides 1, 2, 2, 2, a mean over the last map,
    and one linear layer.

    ``pooled`` is the average-pool variant: strides become 2x2 average poolings, and the last map is
    flattened, not averaged. ``kaiming``: convolutions are initialised by fan-out
    (docs/methods/networks.md, "Initialisation"), else as torch does by default.
    """

    def __init__(
        self,
        name: str,
        shape: Shape,
        classes: int,
        layers: int,
        norm: str,
        pooled: bool,
        kaiming: bool = False,
    ) -> None:
        super().__init__(name, shape, classes)
        block: type[BasicBlock] | type[Bottleneck] = BasicBlock if layers < 50 else Bottleneck
        channels, size = 64, (shape[1], shape[2])
        self.pooled, self.kaiming = pooled, kaiming
        self.conv1 = Conv2d(shape[0], channels, 3, padding=1, bias=False)
        self.norm1 = make_norm(norm, channels, *size)
        stages = []
        for width, count, first in zip(
            (64, 128, 256, 512), RESNET_BLOCKS[layers], (1, 2, 2, 2), strict=True
        ):
            blocks: list[nn.Module] = []
            for stride in (first, *([1] * (count - 1))):
                after = size
                if stride == 2:
                    after = (
                        (size[0] // 2, size[1] // 2)
                        if pooled
                        else ((size[0] + 1) // 2, (size[1] + 1) // 2)
                    )
                require_size(name, shape, min(after) > 0, "both sides must be 8 or more")
                require_norm(name, shape, norm, *after)
                blocks.append(block(channels, width, stride, norm, pooled, (size, after)))
                channels, size = width * block.expansion, after
            stages.append(nn.Sequential(*blocks))
        self.stages = nn.Sequential(*stages)
        self.embed_dim = channels * size[0] * size[1] if pooled else channels
        self.classifier = Linear(self.embed_dim, classes)

    def embed(self, x: Tensor) -> Tensor:
        """Return the averaged (or, in the average-pool variant, flattened) last map ``[B, embed_dim]``."""
        x = self.stages(F.relu(self.norm1(self.conv1(x))))
        return x.flatten(1) if self.pooled else x.mean((2, 3))

    def reinitialise_(self, generator: torch.Generator) -> None:
        """Refill all weights in place with fresh draws from ``generator``."""
        (fill_fan_out_ if self.kaiming else fill_defaults_)(self, generator)
