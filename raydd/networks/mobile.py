"""Teachers and students of DWA and INFER for images of 32 pixels beside the ResNets: networks made for phones.

See docs/methods/networks.md, "Networks of DWA and INFER". Convolutions and norms are registered in
the order of the originals, which fixes the order in which statistics are matched. The last map is
averaged, so that images of any size can be read.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from raydd.networks.layers import Conv2d, Linear
from raydd.networks.network import Network, Shape


def _conv(channels: int, out: int, side: int, stride: int = 1, groups: int = 1) -> Conv2d:
    return Conv2d(channels, out, side, stride=stride, padding=side // 2, groups=groups, bias=False)


class _Projection(nn.Module):
    """1x1 convolution and norm of what goes past a block."""

    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        self.conv, self.norm = _conv(channels, out, 1), nn.BatchNorm2d(out)

    def forward(self, x: Tensor) -> Tensor:
        """Return the map of ``x [B, C, H, W]`` in the block's channels."""
        return self.norm(self.conv(x))


class _ProjectedResidual(nn.Module):
    """Widening 1x1, depthwise 3x3 and linear 1x1 convolutions; with a stride of 1 the input is
    added, projected where channels change.
    """

    def __init__(self, channels: int, out: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide = channels * expansion
        self.conv1, self.norm1 = _conv(channels, wide, 1), nn.BatchNorm2d(wide)
        self.conv2, self.norm2 = _conv(wide, wide, 3, stride, groups=wide), nn.BatchNorm2d(wide)
        self.conv3, self.norm3 = _conv(wide, out, 1), nn.BatchNorm2d(out)
        self.adds = stride == 1
        if self.adds and channels != out:
            self.shortcut: nn.Module = _Projection(channels, out)
        else:
            self.shortcut = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's map of ``x [B, C, H, W]``."""
        y = F.relu(self.norm1(self.conv1(x)))
        y = F.relu(self.norm2(self.conv2(y)))
        y = self.norm3(self.conv3(y))
        return y + self.shortcut(x) if self.adds else y


class ProjectedMobileNetV2(Network):
    """MobileNetV2 of width 1 with a stem of stride 1, plain ReLUs, and projections past blocks of
    stride 1 that change channels; even its first block has a 1x1 convolution in front.
    """

    SETTINGS = (
        (1, 16, 1, 1),
        (6, 24, 2, 1),
        (6, 32, 3, 2),
        (6, 64, 4, 2),
        (6, 96, 3, 1),
        (6, 160, 3, 2),
        (6, 320, 1, 1),
    )
    """Expansion, channels, blocks and first stride of each stage."""

    def __init__(self, name: str, shape: Shape, classes: int) -> None:
        super().__init__(name, shape, classes)
        channels, self.embed_dim = 32, 1280
        self.conv1, self.norm1 = _conv(shape[0], channels, 3), nn.BatchNorm2d(channels)
        blocks = []
        for expansion, out, count, first in self.SETTINGS:
            for stride in (first, *([1] * (count - 1))):
                blocks.append(_ProjectedResidual(channels, out, stride, expansion))
                channels = out
        self.blocks = nn.Sequential(*blocks)
        self.conv2, self.norm2 = _conv(channels, self.embed_dim, 1), nn.BatchNorm2d(self.embed_dim)
        self.classifier = Linear(self.embed_dim, classes)

    def embed(self, x: Tensor) -> Tensor:
        """Return the averaged last map ``[B, 1280]``."""
        x = self.blocks(F.relu(self.norm1(self.conv1(x))))
        return F.relu(self.norm2(self.conv2(x))).mean((2, 3))


class _Gate(nn.Module):
    """Squeeze and excitation: channels are weighted by what two 1x1 convolutions make of their means."""

    def __init__(self, channels: int, narrow: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = Conv2d(channels, narrow, 1), Conv2d(narrow, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x [B, C, H, W]`` with its channels weighted."""
        means = x.mean((2, 3), keepdim=True)
        return x * torch.sigmoid(self.conv2(F.silu(self.conv1(means))))


class _GatedResidual(nn.Module):
    """Widening 1x1, depthwise and linear 1x1 convolutions with a gate; the input is added where the
    shape allows it. With an expansion of 1 the first convolution and its norm never run.
    """

    def __init__(self, channels: int, out: int, side: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide = channels * expansion
        self.conv1, self.norm1 = _conv(channels, wide, 1), nn.BatchNorm2d(wide)
        self.conv2, self.norm2 = _conv(wide, wide, side, stride, groups=wide), nn.BatchNorm2d(wide)
        self.gate = _Gate(wide, channels // 4)
        self.conv3, self.norm3 = _conv(wide, out, 1), nn.BatchNorm2d(out)
        self.widens, self.adds = expansion > 1, stride == 1 and channels == out

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's map of ``x [B, C, H, W]``."""
        y = F.silu(self.norm1(self.conv1(x))) if self.widens else x
        y = self.gate(F.silu(self.norm2(self.conv2(y))))
        y = self.norm3(self.conv3(y))
        return x + y if self.adds else y


class EfficientNetB0(Network):
    """EfficientNet-B0 with a stem of stride 1 and no head convolution; dropout of 0.2 before the
    last layer, no stochastic depth.
    """

    SETTINGS = (
        (1, 16, 1, 3, 1),
        (6, 24, 2, 3, 2),
        (6, 40, 2, 5, 2),
        (6, 80, 3, 3, 2),
        (6, 112, 3, 5, 1),
        (6, 192, 4, 5, 2),
        (6, 320, 1, 3, 1),
    )
    """Expansion, channels, blocks, side of kernels and first stride of each stage."""
    silent = ("blocks.0.conv1", "blocks.0.norm1")
    """Published files hold them."""

    def __init__(self, name: str, shape: Shape, classes: int) -> None:
        super().__init__(name, shape, classes)
        channels = 32
        self.conv1, self.norm1 = _conv(shape[0], channels, 3), nn.BatchNorm2d(channels)
        blocks = []
        for expansion, out, count, side, first in self.SETTINGS:
            for stride in (first, *([1] * (count - 1))):
                blocks.append(_GatedResidual(channels, out, side, stride, expansion))
                channels = out
        self.blocks = nn.Sequential(*blocks)
        self.dropout = nn.Dropout(0.2)
        self.embed_dim = channels
        self.classifier = Linear(channels, classes)

    def embed(self, x: Tensor) -> Tensor:
        """Return the averaged last map ``[B, 320]``, after dropout in training."""
        x = self.blocks(F.silu(self.norm1(self.conv1(x))))
        return self.dropout(x.mean((2, 3)))


def _shuffled(x: Tensor, groups: int) -> Tensor:
    """Return ``x [B, C, H, W]`` with the channels of its groups in turn."""
    return x.unflatten(1, (groups, -1)).transpose(1, 2).flatten(1, 2)


class _GroupedBottleneck(nn.Module):
    """Grouped 1x1, shuffle, depthwise 3x3 and grouped 1x1 convolutions; the input is added, or with
    a stride of 2 averaged and put beside.
    """

    def __init__(self, channels: int, out: int, stride: int, first: int, groups: int) -> None:
        super().__init__()
        narrow, self.first, self.halves = out // 4, first, stride == 2
        self.conv1, self.norm1 = _conv(channels, narrow, 1, groups=first), nn.BatchNorm2d(narrow)
        self.conv2, self.norm2 = (
            _conv(narrow, narrow, 3, stride, groups=narrow),
            nn.BatchNorm2d(narrow),
        )
        self.conv3, self.norm3 = _conv(narrow, out, 1, groups=groups), nn.BatchNorm2d(out)

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's map of ``x [B, C, H, W]``."""
        y = _shuffled(F.relu(self.norm1(self.conv1(x))), self.first)
        y = F.relu(self.norm2(self.conv2(y)))
        y = self.norm3(self.conv3(y))
        if self.halves:
            return F.relu(torch.cat([y, F.avg_pool2d(x, 3, stride=2, padding=1)], 1))
        return F.relu(x + y)


class ShuffleNetG2(Network):
    """ShuffleNet (the first one) of two groups: a 1x1 stem of stride 1 without pooling."""

    STAGES = ((200, 4), (400, 8), (800, 4))
    """Channels and blocks of each stage; its first block halves both sides."""
    GROUPS = 2

    def __init__(self, name: str, shape: Shape, classes: int) -> None:
        super().__init__(name, shape, classes)
        stem = channels = 24
        self.conv1, self.norm1 = _conv(shape[0], channels, 1), nn.BatchNorm2d(channels)
        stages = []
        for out, count in self.STAGES:
            blocks = []
            for block in range(count):
                made, stride = (out - channels, 2) if block == 0 else (out, 1)
                first = 1 if channels == stem else self.GROUPS
                blocks.append(_GroupedBottleneck(channels, made, stride, first, self.GROUPS))
                channels = out
            stages.append(nn.Sequential(*blocks))
        self.stages = nn.Sequential(*stages)
        self.embed_dim = channels
        self.classifier = Linear(channels, classes)

    def embed(self, x: Tensor) -> Tensor:
        """Return the averaged last map ``[B, 800]``."""
        return self.stages(F.relu(self.norm1(self.conv1(x)))).mean((2, 3))
