"""The ConvNet of dataset condensation: blocks of convolution, norm, activation, pooling."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from raydd.networks.layers import Activation, Conv2d, Linear, first_padding, make_norm, make_pooling
from raydd.networks.network import Network, Shape, require_norm, require_size


@dataclass(frozen=True, kw_only=True)
class ConvNetOptions:
    """What a ConvNet's name says: number of blocks, channels, and the kinds of its layers."""

    depth: int = 3
    width: int = 128
    activation: str = "relu"
    norm: str = "instancenorm"
    pooling: str = "avgpool"


class ConvBlock(nn.Module):
    """Convolution 3x3 with bias, norm, activation, pooling."""

    def __init__(
        self,
        channels: int,
        options: ConvNetOptions,
        height: int,
        width: int,
        padding: tuple[int, int],
    ) -> None:
        super().__init__()
        self.conv = Conv2d(channels, options.width, 3, padding=padding)
        self.norm = make_norm(options.norm, options.width, height, width)
        self.activation = Activation(options.activation)
        self.pooling = make_pooling(options.pooling)

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's map of ``x [B, C, H, W]``."""
        return self.pooling(self.activation(self.norm(self.conv(x))))


class ConvNet(Network):
    """``depth`` blocks and a linear layer (docs/methods/networks.md, "ConvNet")."""

    def __init__(self, name: str, shape: Shape, classes: int, options: ConvNetOptions) -> None:
        super().__init__(name, shape, classes)
        channels, height, width = shape
        blocks = []
        padding = first_padding(1, height, width)
        for _ in range(options.depth):
            height, width = height + 2 * padding[0] - 2, width + 2 * padding[1] - 2
            require_norm(name, shape, options.norm, height, width)
            blocks.append(ConvBlock(channels, options, height, width, padding))
            channels, padding = options.width, (1, 1)
            if options.pooling != "nopool":
                height, width = height // 2, width // 2
            require_size(
                name,
                shape,
                min(height, width) > 0,
                f"its {options.depth} blocks halve both sides; use a smaller depth",
            )
        self.features = nn.Sequential(*blocks)
        self.embed_dim = options.width * height * width
        self.classifier = Linear(self.embed_dim, classes)

    def embed(self, x: Tensor) -> Tensor:
        """Return the flattened last map ``[B, embed_dim]``."""
        return self.features(x).flatten(1)
