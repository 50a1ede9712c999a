"""Augmentation of training batches: one call for the batches of several networks, each with draws of its own."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import ClassVar

import torch
from torch import Tensor

from raydd.augment.crop import Box, Crops, draw_flip, draw_resized_crop
from raydd.augment.dsa import DsaTransform, apply_classes, draw, parse_strategy
from raydd.augment.table import TransformTable, apply_table, make_table
from raydd.training.recipe import CROP_SCALE, Augmentation, Recipe

Augment = Callable[[Tensor, Sequence[torch.Generator]], Tensor]
"""``augment(images [R, B, C, H, W], generators of the R networks)`` returns images of the same shape."""


class BatchAugmentation(ABC):
    """An :data:`Augment`. ``capturable``: it can be recorded with a step on a GPU; then it is a
    :class:`DrawnAugmentation`.
    """

    capturable: ClassVar[bool] = False

    @abstractmethod
    def __call__(self, images: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
        """Return the images ``[R, B, C, H, W]``, each network's augmented by the draws of its own
        generator (on the CPU).
        """


class DrawnAugmentation(BatchAugmentation):
    """Numbers, which can be drawn ahead, and a pure function of images and numbers, which waits for nothing.

    A call is both, up to rounding: on a CPU some take a faster way to the same images.
    """

    capturable = True

    @abstractmethod
    def draw(self, generators: Sequence[torch.Generator], count: int) -> Tensor:
        """Return what the next call draws for ``count`` images of each network: ``[R, count, k]``, on the CPU."""

    @abstractmethod
    def apply(self, images: Tensor, numbers: Tensor) -> Tensor:
        """Return the augmented images; ``numbers`` are those of :meth:`draw`, where the images are."""

    def __call__(self, images: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
        return self.apply(
            images, self.draw(generators, images.shape[1]).to(images.device, non_blocking=True)
        )


def make_augmentation(
    recipe: Recipe, size: tuple[int, int], black: Sequence[float] | None = None
) -> BatchAugmentation:
    """Return the augmentation of a recipe; ``ConfigError`` for an operation that does not exist.

    ``dsa``: one operation per batch, with numbers of its own for every image (not
    siamese; docs/methods/dc_dsa.md, "Siamese augmentation"). ``dc``: one operation per image
    (docs/methods/evaluation.md, "DC's augmentation"). ``pad_crop_flip``, ``resized_crop_flip``: each
    image is cropped and, one time in two, mirrored (docs/methods/recovery.md, "Teachers").
    ``size`` is ``(H, W)``; ``black``: the value of a black pixel in each channel, which a padded
    crop finds outside the image (default: 0, the mean).
    """
    make: dict[Augmentation, Callable[[], BatchAugmentation]] = {
        "none": _Nothing,
        "dsa": lambda: (
            _Dsa(recipe.strategy, size) if parse_strategy(recipe.strategy) else _Nothing()
        ),
        "dc": lambda: _Dc(recipe.strategy),
        "pad_crop_flip": lambda: _PadCropFlip(recipe.pad or max(1, min(size) // 8), size, black),
        "resized_crop_flip": lambda: _ResizedCropFlip(recipe.scale or CROP_SCALE, size),
    }
    return make[recipe.augmentation]()


class _Nothing(DrawnAugmentation):
    def draw(self, generators: Sequence[torch.Generator], count: int) -> Tensor:
        return torch.empty(len(generators), count, 0)

    def apply(self, images: Tensor, numbers: Tensor) -> Tensor:
        return images


class _Dsa(DrawnAugmentation):
    def __init__(self, strategy: str, size: tuple[int, int]) -> None:
        self.strategy, self.size = strategy, size

    def _transforms(self, generators: Sequence[torch.Generator], count: int) -> list[DsaTransform]:
        return [
            draw(self.strategy, g, size=self.size, siamese=False, count=count) for g in generators
        ]

    def draw(self, generators: Sequence[torch.Generator], count: int) -> Tensor:
        # One operation per batch: a table of one operation, with a group for each image.
        numbers = make_table(self._transforms(generators, count), torch.float32).numbers
        return numbers.view(len(generators), count, -1)

    def apply(self, images: Tensor, numbers: Tensor) -> Tensor:
        return apply_table(images, TransformTable(numbers.flatten(0, 1).unsqueeze(0), self.size))

    def __call__(self, images: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
        if images.device.type != "cpu":
            return super().__call__(images, generators)
        return apply_classes(self._transforms(generators, images.shape[1]), images)


class _Dc(BatchAugmentation):
    """Not capturable: each image has an operation of its own, and rotations are made on the CPU."""

    def __init__(self, strategy: str) -> None:
        from raydd.augment.dc import parse_dc_strategy

        parse_dc_strategy(strategy)
        self.strategy = strategy

    def __call__(self, images: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
        from raydd.augment.dc import draw_dc

        count, (channels, height, width) = images.shape[1], images.shape[2:]
        transforms = [
            draw_dc(self.strategy, g, count=count, shape=(channels, height, width))
            for g in generators
        ]
        return torch.stack(
            [transform(batch) for transform, batch in zip(transforms, images, strict=True)]
        )


class _PadCropFlip(DrawnAugmentation):
    """Numbers: rows and columns that an image is shifted by, and whether it is mirrored."""

    def __init__(self, pad: int, size: tuple[int, int], black: Sequence[float] | None) -> None:
        self.pad, self.size, self.black = pad, size, tuple(black or ())
        self._outside: dict[tuple[int, torch.dtype, torch.device], Tensor] = {}

    def draw(self, generators: Sequence[torch.Generator], count: int) -> Tensor:
        shifts = [
            torch.randint(-self.pad, self.pad + 1, (count, 2), generator=g) for g in generators
        ]
        flips = [torch.rand(count, generator=g) < 0.5 for g in generators]
        return torch.cat([torch.stack(shifts), torch.stack(flips).unsqueeze(2)], 2)

    def apply(self, images: Tensor, numbers: Tensor) -> Tensor:
        (height, width), channels, device = self.size, images.shape[2], images.device
        drawn = numbers.flatten(0, 1)
        rows = torch.arange(height, device=device) + drawn[:, :1]
        columns = torch.arange(width, device=device) + drawn[:, 1:2]
        columns = torch.where(drawn[:, 2:] > 0, columns.flip(1), columns)
        inside = ((rows >= 0) & (rows < height)).unsqueeze(2) & (
            (columns >= 0) & (columns < width)
        ).unsqueeze(1)
        pixels = rows.clamp(0, height - 1).unsqueeze(2) * width + columns.clamp(
            0, width - 1
        ).unsqueeze(1)
        flat = images.reshape(-1, channels, height * width)
        index = pixels.flatten(1).unsqueeze(1).expand(-1, channels, -1)
        return torch.where(
            inside.flatten(1).unsqueeze(1), flat.gather(2, index), self._outside_of(images)
        ).reshape(images.shape)

    def _outside_of(self, images: Tensor) -> Tensor:
        """Return the black pixel ``[C, 1]``, copied to the images' device once and kept for as long
        as a recording may read it.
        """
        key = (images.shape[2], images.dtype, images.device)
        if key not in self._outside:
            self._outside[key] = torch.tensor(
                self.black or (0.0,) * key[0], dtype=key[1], device=key[2]
            ).view(-1, 1)
        return self._outside[key]


class _ResizedCropFlip(DrawnAugmentation):
    """Numbers: a crop's first row and column, its height and width, and whether it is mirrored."""

    def __init__(self, scale: tuple[float, float], size: tuple[int, int]) -> None:
        self.scale, self.size = scale, size

    def _drawn(self, generators: Sequence[torch.Generator], count: int) -> list[tuple[Box, bool]]:
        return [
            (draw_resized_crop(g, *self.size, self.scale), draw_flip(g))
            for g in generators
            for _ in range(count)
        ]

    def draw(self, generators: Sequence[torch.Generator], count: int) -> Tensor:
        drawn = [
            (box.top, box.left, box.height, box.width, flip)
            for box, flip in self._drawn(generators, count)
        ]
        return torch.tensor(drawn).view(len(generators), count, 5)

    def apply(self, images: Tensor, numbers: Tensor) -> Tensor:
        return (
            Crops.read(numbers.flatten(0, 1), self.size, images.dtype)
            .apply(images.flatten(0, 1))
            .reshape(images.shape)
        )

    def __call__(self, images: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
        if images.device.type != "cpu":
            return super().__call__(images, generators)
        boxes, flips = zip(*self._drawn(generators, images.shape[1]), strict=True)
        return Crops.of(boxes, flips, self.size).apply(images.flatten(0, 1)).reshape(images.shape)
