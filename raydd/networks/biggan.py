"""A small conditional BigGAN: a generator of images of classes, and a projection discriminator (arXiv 1809.11096).

Every block of both has ``width`` channels; no attention, no shared embedding, no latents beyond the
first layer (docs/methods/itgan.md, "The generator"). Once trained, a generator is :func:`fold`-ed:
spectral norms and batch norms become constants of :mod:`raydd.networks.folded_generator`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from raydd.core.errors import ConfigError
from raydd.core.tensors import Tensors
from raydd.networks.folded_generator import BLOCK_TENSORS, GanShape, doubled
from raydd.networks.initialise import fill_defaults_

NORM_EPS = 1e-5
"""What batch norms add to variances."""
SPECTRAL_EPS = 1e-8
INIT_STD = 0.02
Pooling = Literal["sum", "mean"]


class _Spectral(nn.Module):
    """A weight divided by its largest singular value, found by one power step from the vector ``u``.

    In train mode ``u`` is kept after the step; gradients flow through the quotient.
    """

    weight: Tensor
    u: Tensor

    def divided(self) -> Tensor:
        """Return the weight divided by its singular value."""
        matrix = self.weight.flatten(1)
        with torch.no_grad():
            v = F.normalize(self.u @ matrix, dim=0, eps=SPECTRAL_EPS)
            u = F.normalize(matrix @ v, dim=0, eps=SPECTRAL_EPS)
            if self.training:
                self.u.copy_(u)
        return self.weight / ((matrix @ v) @ u)


class SpectralConv(_Spectral, nn.Conv2d):
    """A convolution whose weight is :class:`_Spectral`."""

    def __init__(self, inside: int, outside: int, kernel: int) -> None:
        super().__init__(inside, outside, kernel, padding=kernel // 2)
        self.register_buffer("u", torch.ones(outside) / outside**0.5)

    def forward(self, x: Tensor) -> Tensor:
        """Return the convolved images."""
        return F.conv2d(x, self.divided(), self.bias, padding=self.padding)


class SpectralLinear(_Spectral, nn.Linear):
    """A linear layer whose weight is :class:`_Spectral`."""

    def __init__(self, inside: int, outside: int) -> None:
        super().__init__(inside, outside)
        self.register_buffer("u", torch.ones(outside) / outside**0.5)

    def forward(self, x: Tensor) -> Tensor:
        """Return the layer's output."""
        return F.linear(x, self.divided(), self.bias)


class SpectralEmbedding(_Spectral, nn.Embedding):
    """A table whose weight is :class:`_Spectral`."""

    def __init__(self, count: int, size: int) -> None:
        super().__init__(count, size)
        self.register_buffer("u", torch.ones(count) / count**0.5)

    def forward(self, labels: Tensor) -> Tensor:
        """Return the rows of labels."""
        return self.divided()[labels]


class _Statistics(nn.Module):
    """A batch norm without scales: statistics of the batch in train mode, else running ones."""

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.taken: list[tuple[Tensor, Tensor]] | None = None
        self.register_buffer("running_mean", torch.zeros(width))
        self.register_buffer("running_var", torch.ones(width))

    def normalised(self, x: Tensor) -> Tensor:
        """Return ``x`` in zero mean and unit variance; running statistics are not changed."""
        if self.training:
            if self.taken is not None:
                var, mean = torch.var_mean(x, (0, 2, 3), correction=0)
                self.taken.append((mean, var))
            return F.batch_norm(x, None, None, training=True, eps=NORM_EPS)
        return F.batch_norm(x, self.running_mean, self.running_var, eps=NORM_EPS)


class ClassNorm(_Statistics):
    """A batch norm with a gain, around 1, and a bias for each class."""

    def __init__(self, classes: int, width: int) -> None:
        super().__init__(width)
        self.gain = nn.Embedding(classes, width)
        self.bias = nn.Embedding(classes, width)

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        """Return ``normalised(x) * (1 + gain[label]) + bias[label]``."""
        gain, bias = self.gain(labels)[:, :, None, None], self.bias(labels)[:, :, None, None]
        return self.normalised(x) * (1 + gain) + bias

    def folded(self) -> tuple[Tensor, Tensor]:
        """Return scale and shift ``[K, C]`` that stand for it in eval mode."""
        scale = (1 + self.gain.weight) / (self.running_var + NORM_EPS).sqrt()
        return scale, self.bias.weight - self.running_mean * scale


class PlainNorm(_Statistics):
    """A batch norm with a gain and a bias."""

    def __init__(self, width: int) -> None:
        super().__init__(width)
        self.gain = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        """Return ``normalised(x) * gain + bias``."""
        gain, bias = self.gain[:, None, None], self.bias[:, None, None]
        return self.normalised(x) * gain + bias

    def folded(self) -> tuple[Tensor, Tensor]:
        """Return scale and shift ``[C]`` that stand for it in eval mode."""
        scale = self.gain / (self.running_var + NORM_EPS).sqrt()
        return scale, self.bias - self.running_mean * scale


class UpBlock(nn.Module):
    """A residual block that doubles the side."""

    def __init__(self, classes: int, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = ClassNorm(classes, width), ClassNorm(classes, width)
        self.conv1, self.conv2 = SpectralConv(width, width, 3), SpectralConv(width, width, 3)
        self.shortcut = SpectralConv(width, width, 1)

    def forward(self, h: Tensor, labels: Tensor) -> Tensor:
        """Return features of twice the side."""
        a = self.conv1(doubled(F.relu(self.norm1(h, labels))))
        a = self.conv2(F.relu(self.norm2(a, labels)))
        return torch.add(a, self.shortcut(doubled(h)))


class Generator(nn.Module):
    """Latent vectors ``[B, dim_z]`` and labels ``[B]`` to images ``[B, C, side, side]`` in (-1, 1)."""

    def __init__(self, shape: GanShape) -> None:
        super().__init__()
        self.shape = shape
        self.linear = SpectralLinear(shape.dim_z, shape.width * shape.bottom**2)
        self.blocks = nn.ModuleList(
            UpBlock(shape.classes, shape.width) for _ in range(shape.blocks)
        )
        self.norm = PlainNorm(shape.width)
        self.conv = SpectralConv(shape.width, shape.channels, 3)

    def forward(self, z: Tensor, labels: Tensor) -> Tensor:
        """Return the images of latent vectors."""
        h = self.linear(z).view(len(z), -1, self.shape.bottom, self.shape.bottom)
        for block in self.blocks:
            h = block(h, labels)
        return torch.tanh(self.conv(F.relu(self.norm(h))))


class DownBlock(nn.Module):
    """A residual block of the discriminator; ``first`` reads images, ``pool`` halves the side."""

    def __init__(self, inside: int, width: int, *, first: bool, pool: bool) -> None:
        super().__init__()
        self.first, self.pool = first, pool
        self.conv1, self.conv2 = SpectralConv(inside, width, 3), SpectralConv(width, width, 3)
        self.shortcut = SpectralConv(inside, width, 1) if pool else None

    def forward(self, x: Tensor) -> Tensor:
        """Return features."""
        h = self.conv2(F.relu(self.conv1(x if self.first else F.relu(x))))
        if self.shortcut is None:
            return torch.add(h, x)
        # Averages and 1x1 convolutions commute; of images the cheaper order is taken.
        beside = (
            self.shortcut(F.avg_pool2d(x, 2)) if self.first else F.avg_pool2d(self.shortcut(x), 2)
        )
        return F.avg_pool2d(h, 2) + beside


class Discriminator(nn.Module):
    """Images in (-1, 1) and labels to scores ``[B]``: high for what looks real.

    ``pooling``: ``sum`` (published) or ``mean`` of features over the side that is left.
    """

    def __init__(self, shape: GanShape, pooling: Pooling = "sum") -> None:
        super().__init__()
        self.pooling = pooling
        if shape.side % 2**shape.pools:
            raise ConfigError(
                f"a discriminator halves the side {shape.side} {shape.pools} times; it must divide by {2**shape.pools}"
            )
        self.blocks = nn.ModuleList(
            DownBlock(
                shape.width if i else shape.channels,
                shape.width,
                first=i == 0,
                pool=i < shape.pools,
            )
            for i in range(shape.pools + 2)
        )
        self.linear = SpectralLinear(shape.width, 1)
        self.embed = SpectralEmbedding(shape.classes, shape.width)

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        """Return the scores of images as ones of their labels."""
        h = images
        for block in self.blocks:
            h = block(h)
        h = F.relu(h)
        h = h.sum((2, 3)) if self.pooling == "sum" else h.mean((2, 3))
        return self.linear(h).squeeze(1) + (h * self.embed(labels)).sum(1)


def initialise_(network: nn.Module, generator: torch.Generator) -> None:
    """Refill a generator or discriminator in place: weights and tables ~ N(0, 0.02²), biases as torch has
    them by default; the vectors of spectral norms ~ N(0, 1).
    """
    fill_defaults_(network, generator)
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear, nn.Embedding)):
                module.weight.copy_(
                    torch.randn(module.weight.shape, generator=generator) * INIT_STD
                )
            if isinstance(module, _Spectral):
                module.u.copy_(torch.randn(module.u.shape, generator=generator))


@torch.no_grad()
def take_statistics_(generator: Generator, batches: Iterable[tuple[Tensor, Tensor]]) -> None:
    """Make the running statistics of a generator's batch norms the mean of those of batches of latents and labels.

    Spectral norms take a power step with each batch, as in training.
    """
    norms = [module for module in generator.modules() if isinstance(module, _Statistics)]
    generator.train()
    for norm in norms:
        norm.taken = []
    for z, labels in batches:
        generator(z, labels)
    for norm in norms:
        taken, norm.taken = norm.taken or [], None
        means, variances = zip(*taken, strict=True)
        norm.running_mean.copy_(torch.stack(means).mean(0))
        norm.running_var.copy_(torch.stack(variances).mean(0))


@torch.no_grad()
def fold(generator: Generator) -> Tensors:
    """Return the tensors that images are generated from, of a generator in eval mode (:meth:`GanShape.shapes`)."""
    if generator.training:
        raise ConfigError("a generator is folded in eval mode, whose statistics are constants")
    found: dict[str, Tensor | None] = {
        "linear.weight": generator.linear.divided(),
        "linear.bias": generator.linear.bias,
    }
    for i, block in enumerate(generator.blocks):
        if not isinstance(block, UpBlock):
            raise TypeError(f"{type(block).__name__} is no block of a generator")
        parts = zip(
            BLOCK_TENSORS,
            (
                *(*block.norm1.folded(), block.conv1.divided(), block.conv1.bias),
                *(*block.norm2.folded(), block.conv2.divided(), block.conv2.bias),
                *(block.shortcut.divided(), block.shortcut.bias),
            ),
            strict=True,
        )
        found |= {f"blocks.{i}.{name}": tensor for name, tensor in parts}
    scale, shift = generator.norm.folded()
    found |= {"scale": scale, "shift": shift}
    found |= {"conv.weight": generator.conv.divided(), "conv.bias": generator.conv.bias}
    return {name: tensor.detach().clone() for name, tensor in found.items() if tensor is not None}
