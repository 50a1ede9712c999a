"""Teachers of EDC and G-VBSM for small images beside the ResNet and the ConvNets.

See docs/methods/networks.md, "Teachers for small images".

The networks are those of the knowledge-distillation literature (CRD's collection). Convolutions and
norms are registered in the order of the originals, which fixes the order in which statistics are
matched. Every convolution is without bias, the last map is averaged, so that images of any size can
be read.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from raydd.networks.initialise import fill_fan_out_
from raydd.networks.layers import Conv2d, Linear
from raydd.networks.network import Network, Shape


def _conv(channels: int, out: int, side: int, stride: int = 1, groups: int = 1) -> Conv2d:
    return Conv2d(channels, out, side, stride=stride, padding=side // 2, groups=groups, bias=False)


class _InvertedResidual(nn.Module):
    """Widening 1x1, depthwise 3x3 and linear 1x1 convolutions; the input is added where the shape allows it."""

    def __init__(self, channels: int, out: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide = channels * expansion
        self.conv1, self.norm1 = _conv(channels, wide, 1), nn.BatchNorm2d(wide)
        self.conv2, self.norm2 = _conv(wide, wide, 3, stride, groups=wide), nn.BatchNorm2d(wide)
        self.conv3, self.norm3 = _conv(wide, out, 1), nn.BatchNorm2d(out)
        self.adds = stride == 1 and channels == out

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's map of ``x [B, C, H, W]``."""
        y = F.relu(self.norm1(self.conv1(x)))
        y = F.relu(self.norm2(self.conv2(y)))
        y = self.norm3(self.conv3(y))
        return x + y if self.adds else y


class MobileNetV2(Network):
    """MobileNetV2 of width 0.5 with a stem of stride 2 and plain ReLUs; even its first block widens
    by a 1x1 convolution.
    """

    SETTINGS = (
        (1, 8, 1, 1),
        (6, 12, 2, 2),
        (6, 16, 3, 2),
        (6, 32, 4, 2),
        (6, 48, 3, 1),
        (6, 80, 3, 2),
        (6, 160, 1, 1),
    )
    """Expansion, channels, blocks and first stride of each stage."""

    def __init__(self, name: str, shape: Shape, classes: int) -> None:
        super().__init__(name, shape, classes)
        channels, self.embed_dim = 16, 1280
        self.conv1, self.norm1 = _conv(shape[0], channels, 3, stride=2), nn.BatchNorm2d(channels)
        stages = []
        for expansion, out, count, first in self.SETTINGS:
            blocks = []
            for stride in (first, *([1] * (count - 1))):
                blocks.append(_InvertedResidual(channels, out, stride, expansion))
                channels = out
            stages.append(nn.Sequential(*blocks))
        self.stages = nn.Sequential(*stages)
        self.conv2, self.norm2 = _conv(channels, self.embed_dim, 1), nn.BatchNorm2d(self.embed_dim)
        self.classifier = Linear(self.embed_dim, classes)

    def embed(self, x: Tensor) -> Tensor:
        """Return the averaged last map ``[B, 1280]``."""
        x = self.stages(F.relu(self.norm1(self.conv1(x))))
        return F.relu(self.norm2(self.conv2(x))).mean((2, 3))

    def reinitialise_(self, generator: torch.Generator) -> None:
        """Refill all weights: normal by fan-out, and a last layer of N(0, 0.01) without bias."""
        fill_fan_out_(self, generator, linear_std=0.01)


class _PreactivatedBlock(nn.Module):
    """Norm and ReLU before each of two 3x3 convolutions; where channels change, the shortcut starts
    behind the first ReLU.
    """

    def __init__(self, channels: int, out: int, stride: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.BatchNorm2d(channels), _conv(channels, out, 3, stride)
        self.norm2, self.conv2 = nn.BatchNorm2d(out), _conv(out, out, 3)
        self.shortcut = None if channels == out else _conv(channels, out, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's map of ``x [B, C, H, W]``."""
        active = F.relu(self.norm1(x))
        y = self.conv2(F.relu(self.norm2(self.conv1(active))))
        return y + (x if self.shortcut is None else self.shortcut(active))


class WideResNet(Network):
    """Pre-activation WideResNet: three stages of 16, 32, 64 times ``width`` channels with strides 1, 2, 2.

    ``depth``: 6n + 4 layers, n blocks per stage.
    """

    def __init__(self, name: str, shape: Shape, classes: int, depth: int, width: int) -> None:
        super().__init__(name, shape, classes)
        channels = 16
        self.conv1 = _conv(shape[0], channels, 3)
        stages = []
        for out, first in ((16 * width, 1), (32 * width, 2), (64 * width, 2)):
            blocks = []
            for stride in (first, *([1] * ((depth - 4) // 6 - 1))):
                blocks.append(_PreactivatedBlock(channels, out, stride))
                channels = out
            stages.append(nn.Sequential(*blocks))
        self.stages = nn.Sequential(*stages)
        self.norm1 = nn.BatchNorm2d(channels)
        self.embed_dim = channels
        self.classifier = Linear(channels, classes)

    def embed(self, x: Tensor) -> Tensor:
        """Return the averaged last map ``[B, 64 * width]``."""
        return F.relu(self.norm1(self.stages(self.conv1(x)))).mean((2, 3))

    def reinitialise_(self, generator: torch.Generator) -> None:
        """Refill all weights: normal by fan-out, and the default last layer without its bias."""
        fill_fan_out_(self, generator, linear_bias=False)


def _shuffle(x: Tensor) -> Tensor:
    """Interleave the two halves of the channels of ``x [B, C, H, W]``."""
    return x.unflatten(1, (2, -1)).transpose(1, 2).flatten(1, 2)


class _SplitBlock(nn.Module):
    """Half of the channels goes through 1x1, depthwise 3x3 and 1x1 convolutions, the other half stays."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.conv1, self.norm1 = _conv(half, half, 1), nn.BatchNorm2d(half)
        self.conv2, self.norm2 = _conv(half, half, 3, groups=half), nn.BatchNorm2d(half)
        self.conv3, self.norm3 = _conv(half, half, 1), nn.BatchNorm2d(half)

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's map of ``x [B, C, H, W]``."""
        still, y = x.chunk(2, 1)
        y = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(y)))))
        return _shuffle(torch.cat([still, F.relu(self.norm3(self.conv3(y)))], 1))


class _DownBlock(nn.Module):
    """Two branches of stride 2, of half the output's channels each."""

    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        half = out // 2
        self.conv1, self.norm1 = (
            _conv(channels, channels, 3, 2, groups=channels),
            nn.BatchNorm2d(channels),
        )
        self.conv2, self.norm2 = _conv(channels, half, 1), nn.BatchNorm2d(half)
        self.conv3, self.norm3 = _conv(channels, half, 1), nn.BatchNorm2d(half)
        self.conv4, self.norm4 = _conv(half, half, 3, 2, groups=half), nn.BatchNorm2d(half)
        self.conv5, self.norm5 = _conv(half, half, 1), nn.BatchNorm2d(half)

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's map of ``x [B, C, H, W]``."""
        left = F.relu(self.norm2(self.conv2(self.norm1(self.conv1(x)))))
        right = self.norm4(self.conv4(F.relu(self.norm3(self.conv3(x)))))
        return _shuffle(torch.cat([left, F.relu(self.norm5(self.conv5(right)))], 1))


class ShuffleNetV2(Network):
    """ShuffleNetV2 of width 0.5 for small images: a 1x1 stem of stride 1 without max pooling;
    torch's own initialisation.
    """

    STAGES = ((48, 3), (96, 7), (192, 3))
    """Channels of each stage, and the blocks after its first, which halves both sides."""

    def __init__(self, name: str, shape: Shape, classes: int) -> None:
        super().__init__(name, shape, classes)
        channels, self.embed_dim = 24, 1024
        self.conv1, self.norm1 = _conv(shape[0], channels, 1), nn.BatchNorm2d(channels)
        stages = []
        for out, count in self.STAGES:
            stages.append(
                nn.Sequential(_DownBlock(channels, out), *(_SplitBlock(out) for _ in range(count)))
            )
            channels = out
        self.stages = nn.Sequential(*stages)
        self.conv2, self.norm2 = _conv(channels, self.embed_dim, 1), nn.BatchNorm2d(self.embed_dim)
        self.classifier = Linear(self.embed_dim, classes)

    def embed(self, x: Tensor) -> Tensor:
        """Return the averaged last map ``[B, 1024]``."""
        x = self.stages(F.relu(self.norm1(self.conv1(x))))
        return F.relu(self.norm2(self.conv2(x))).mean((2, 3))
