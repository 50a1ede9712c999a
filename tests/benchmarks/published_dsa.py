"""Differentiable siamese augmentation, written plainly: what :mod:`published` applies to batches of images."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

ALL_OPERATIONS = "color_crop_cutout_flip_scale_rotate"


class Draws:
    """Where the numbers of an augmentation come from: with a seed, each draw's generator is seeded
    anew, one higher (siamese).
    """

    siamese: bool

    def __init__(self, seed: int) -> None:
        self.seed, self.siamese = seed, seed >= 0

    def _reseed(self) -> None:
        if self.siamese:
            torch.random.manual_seed(self.seed)
            self.seed += 1

    def choice(self, count: int) -> int:
        """Return one integer below ``count``."""
        self._reseed()
        return int(torch.randint(0, count, (1,)).item())

    def uniform(self, device: torch.device | str, *shape: int) -> Tensor:
        """Return a number per image; siamese: the first one's for all."""
        self._reseed()
        return self._shared(torch.rand(shape, device=device))

    def integers(self, low: int, high: int, device: torch.device, *shape: int) -> Tensor:
        """Return an integer from ``low`` to ``high - 1`` per image; siamese: the first one's for all."""
        self._reseed()
        return self._shared(torch.randint(low, high, shape, device=device))

    def _shared(self, values: Tensor) -> Tensor:
        if self.siamese:
            values[:] = values[0].clone()
        return values


class KeyedDraws(Draws):
    """The same, one after another from one CPU generator: for comparisons with code that draws so, on any device."""

    def __init__(self, generator: torch.Generator) -> None:
        self.siamese, self.generator = True, generator

    def choice(self, count: int) -> int:
        """Return one integer below ``count``."""
        return int(torch.randint(0, count, (1,), generator=self.generator).item())

    def uniform(self, device: torch.device | str, *shape: int) -> Tensor:
        """Return one number for all images."""
        return torch.rand(1, generator=self.generator).expand(shape).to(device)

    def integers(self, low: int, high: int, device: torch.device, *shape: int) -> Tensor:
        """Return one integer from ``low`` to ``high - 1`` for all images."""
        return torch.randint(low, high, (1,), generator=self.generator).expand(shape).to(device)


Seed = int | Callable[[], Draws]
"""What an augmentation is drawn from: a seed (-1: every image by itself), or what makes the draws."""


def augment(x: Tensor, strategy: str = ALL_OPERATIONS, seed: Seed = -1) -> Tensor:
    """Return ``x [B, C, H, W]`` after one operation of ``strategy``."""
    draws, names = Draws(seed) if isinstance(seed, int) else seed(), strategy.split("_")
    for function in OPERATIONS[names[draws.choice(len(names))]]:
        x = function(x, draws)
    return x.contiguous()


def _brightness(x: Tensor, draws: Draws) -> Tensor:
    return x + (draws.uniform(x.device, len(x), 1, 1, 1).to(x.dtype) - 0.5) * 1.0


def _saturation(x: Tensor, draws: Draws) -> Tensor:
    mean = x.mean(dim=1, keepdim=True)
    return (x - mean) * (draws.uniform(x.device, len(x), 1, 1, 1).to(x.dtype) * 2.0) + mean


def _contrast(x: Tensor, draws: Draws) -> Tensor:
    mean = x.mean(dim=[1, 2, 3], keepdim=True)
    return (x - mean) * (draws.uniform(x.device, len(x), 1, 1, 1).to(x.dtype) + 0.5) + mean


def _crop(x: Tensor, draws: Draws) -> Tensor:
    count, _, height, width = x.shape
    down, across = int(height * 0.125 + 0.5), int(width * 0.125 + 0.5)
    by_rows = draws.integers(-down, down + 1, x.device, count, 1, 1)
    by_columns = draws.integers(-across, across + 1, x.device, count, 1, 1)
    images, rows, columns = _places(x, count, height, width)
    rows = torch.clamp(rows + by_rows + 1, 0, height + 1)
    columns = torch.clamp(columns + by_columns + 1, 0, width + 1)
    framed = F.pad(x, [1, 1, 1, 1]).permute(0, 2, 3, 1).contiguous()
    return framed[images, rows, columns].permute(0, 3, 1, 2)


def _cutout(x: Tensor, draws: Draws) -> Tensor:
    count, _, height, width = x.shape
    high, wide = int(height * 0.5 + 0.5), int(width * 0.5 + 0.5)
    top = draws.integers(0, height + (1 - high % 2), x.device, count, 1, 1)
    left = draws.integers(0, width + (1 - wide % 2), x.device, count, 1, 1)
    images, rows, columns = _places(x, count, high, wide)
    rows = torch.clamp(rows + top - high // 2, 0, height - 1)
    columns = torch.clamp(columns + left - wide // 2, 0, width - 1)
    mask = torch.ones(count, height, width, dtype=x.dtype, device=x.device)
    mask[images, rows, columns] = 0
    return x * mask.unsqueeze(1)


def _places(x: Tensor, *sizes: int) -> tuple[Tensor, ...]:
    return torch.meshgrid(*(torch.arange(size, device=x.device) for size in sizes), indexing="ij")


def _flip(x: Tensor, draws: Draws) -> Tensor:
    return torch.where(draws.uniform(x.device, len(x), 1, 1, 1) < 0.5, x.flip(3), x)


def _scale(x: Tensor, draws: Draws) -> Tensor:
    low, high = 1 / 1.2, 1.2
    across = draws.uniform("cpu", len(x)).to(x.dtype) * (high - low) + low
    down = draws.uniform("cpu", len(x)).to(x.dtype) * (high - low) + low
    return _sample(x, [[[across[i], 0, 0], [0, down[i], 0]] for i in range(len(x))])


def _rotate(x: Tensor, draws: Draws) -> Tensor:
    angles = (draws.uniform("cpu", len(x)).to(x.dtype) - 0.5) * 2 * 15 / 180 * math.pi
    matrices: list[list[list[Tensor | int]]] = [
        [[torch.cos(a), torch.sin(-a), 0], [torch.sin(a), torch.cos(a), 0]] for a in angles
    ]
    return _sample(x, matrices)


def _sample(x: Tensor, matrices: list[list[list[Tensor | int]]]) -> Tensor:
    grid = F.affine_grid(torch.tensor(matrices, dtype=x.dtype), list(x.shape), align_corners=False)
    return F.grid_sample(x, grid.to(x.device), align_corners=False)


OPERATIONS: dict[str, list[Callable[[Tensor, Draws], Tensor]]] = {
    "color": [_brightness, _saturation, _contrast],
    "crop": [_crop],
    "cutout": [_cutout],
    "flip": [_flip],
    "scale": [_scale],
    "rotate": [_rotate],
}
