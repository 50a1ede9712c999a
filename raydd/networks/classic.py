"""MLP, LeNet, AlexNet and VGG in their sizes for small images (docs/methods/networks.md, "Small networks")."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from raydd.networks.layers import Activation, Conv2d, Linear, first_padding, make_norm
from raydd.networks.network import Network, Shape, require_size

VGG_WIDTHS: dict[int, tuple[int, ...]] = {
    11: (64, 0, 128, 0, 256, 256, 0, 512, 512, 0, 512, 512, 0),
    13: (64, 64, 0, 128, 128, 0, 256, 256, 0, 512, 512, 0, 512, 512, 0),
    16: (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512, 0),
    19: (
        64,
        64,
        0,
        128,
        128,
        0,
        256,
        256,
        256,
        256,
        0,
        512,
        512,
        512,
        512,
        0,
        512,
        512,
        512,
        512,
        0,
    ),
}
"""Output channels of the convolutions; 0 is a max pooling that halves both sides."""


class Mlp(Network):
    """Two hidden layers of 128 with ReLU; the features are the second one's."""

    def __init__(self, name: str, shape: Shape, classes: int) -> None:
        super().__init__(name, shape, classes)
        self.hidden1 = Linear(shape[0] * shape[1] * shape[2], 128)
        self.hidden2 = Linear(128, 128)
        self.embed_dim = 128
        self.classifier = Linear(128, classes)

    def embed(self, x: Tensor) -> Tensor:
        """Return the second hidden layer ``[B, 128]``."""
        return F.relu(self.hidden2(F.relu(self.hidden1(x.flatten(1)))))


class LeNet(Network):
    """Two 5x5 convolutions with max pooling, then 120, 84 and the classes; the features are the 84."""

    def __init__(self, name: str, shape: Shape, classes: int) -> None:
        super().__init__(name, shape, classes)
        padding = first_padding(0, shape[1], shape[2])
        sides = [
            ((side + 2 * p - 4) // 2 - 4) // 2 for side, p in zip(shape[1:], padding, strict=True)
        ]
        require_size(name, shape, min(sides) > 0, "both sides must be 16 or more")
        self.conv1 = Conv2d(shape[0], 6, 5, padding=padding)
        self.conv2 = Conv2d(6, 16, 5)
        self.hidden1 = Linear(16 * sides[0] * sides[1], 120)
        self.hidden2 = Linear(120, 84)
        self.embed_dim = 84
        self.classifier = Linear(84, classes)

    def embed(self, x: Tensor) -> Tensor:
        """Return the second hidden layer ``[B, 84]``."""
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)
        return F.relu(self.hidden2(F.relu(self.hidden1(x.flatten(1)))))


class AlexNet(Network):
    """Five convolutions (128, 192, 256, 192, 192) with three max poolings, and one linear layer."""

    def __init__(self, name: str, shape: Shape, classes: int, norm: str) -> None:
        super().__init__(name, shape, classes)
        layers: list[nn.Module] = []
        padding = first_padding(2, shape[1], shape[2])
        height, width = shape[1] + 2 * padding[0] - 4, shape[2] + 2 * padding[1] - 4
        channels = shape[0]
        for out, kernel, pad, pool in (
            (128, 5, padding, True),
            (192, 5, (2, 2), True),
            (256, 3, (1, 1), False),
            (192, 3, (1, 1), False),
            (192, 3, (1, 1), True),
        ):
            layers += [
                Conv2d(channels, out, kernel, padding=pad),
                make_norm(norm, out, height, width),
                Activation("relu"),
            ]
            channels = out
            if pool:
                layers.append(nn.MaxPool2d(2, 2))
                height, width = height // 2, width // 2
        require_size(name, shape, min(height, width) > 0, "both sides must be 8 or more")
        self.features = nn.Sequential(*layers)
        self.embed_dim = channels * height * width
        self.classifier = Linear(self.embed_dim, classes)

    def embed(self, x: Tensor) -> Tensor:
        """Return the flattened last map ``[B, embed_dim]``."""
        return self.features(x).flatten(1)


class Vgg(Network):
    """VGG's 3x3 convolutions with a norm after each, five max poolings, and one linear layer."""

    def __init__(self, name: str, shape: Shape, classes: int, layers: int, norm: str) -> None:
        super().__init__(name, shape, classes)
        modules: list[nn.Module] = []
        padding = first_padding(1, shape[1], shape[2])
        channels, height, width = (
            shape[0],
            shape[1] + 2 * padding[0] - 2,
            shape[2] + 2 * padding[1] - 2,
        )
        for out in VGG_WIDTHS[layers]:
            if out == 0:
                modules.append(nn.MaxPool2d(2, 2))
                height, width = height // 2, width // 2
                continue
            modules += [
                Conv2d(channels, out, 3, padding=padding),
                make_norm(norm, out, height, width),
                Activation("relu"),
            ]
            channels, padding = out, (1, 1)
        require_size(name, shape, min(height, width) > 0, "both sides must be 32 (or 28) or more")
        self.features = nn.Sequential(*modules)
        self.embed_dim = channels * height * width
        self.classifier = Linear(self.embed_dim, classes)

    def embed(self, x: Tensor) -> Tensor:
        """Return the flattened last map ``[B, embed_dim]``."""
        return self.features(x).flatten(1)
