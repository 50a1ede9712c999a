"""Augmentation of training batches: one call for the batches of several networks, each with draws of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from raydd.augment.crop import Crops, draw_flip, draw_resized_crop
from raydd.training.recipe import CROP_SCALE, Augmentation, Recipe

Augment = Callable[[Tensor, Sequence[torch.Generator]], Tensor]
"""``augment(images [R, B, C, H, W], generators of the R networks)`` returns images of the same shape."""


def make_augmentation(recipe: Recipe, size: tuple[int, int], black: Sequence[float] | None = None) -> Augment:
    """Return the augmentation of a recipe; ``ConfigError`` for an operation that does not exist.

    ``dsa``: one operation per batch, with numbers of its own for every image (dc_dsa_dm spec, section 1.2.2, not siamese).
    ``dc``: one operation per image (section 3.4). ``pad_crop_flip``, ``resized_crop_flip``: each image is cropped and, one
    time in two, mirrored (specification edc_sre2l_gvbsm_rded, section 1.3). ``size`` is ``(H, W)``; ``black``: the value of
    a black pixel in each channel, which a padded crop finds outside the image (default: 0, the mean).
    """
    make: dict[Augmentation, Callable[[], Augment]] = {
        "none": lambda: lambda images, generators: images,
        "dsa": lambda: _dsa(recipe.strategy, size),
        "dc": lambda: _dc(recipe.strategy),
        "pad_crop_flip": lambda: _pad_crop_flip(recipe.pad or max(1, min(size) // 8), size, black),
        "resized_crop_flip": lambda: _resized_crop_flip(recipe.scale or CROP_SCALE, size),
    }
    return make[recipe.augmentation]()


def _dsa(strategy: str, size: tuple[int, int]) -> Augment:
    from raydd.augment.dsa import apply_classes, draw, parse_strategy

    parse_strategy(strategy)

    def augment(images: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
        transforms = [draw(strategy, g, size=size, siamese=False, count=images.shape[1]) for g in generators]
        # No derivative is taken through these images, so nothing here needs a backward pass without atomics.
        return apply_classes(transforms, images, deterministic=False)

    return augment


def _dc(strategy: str) -> Augment:
    from raydd.augment.dc import draw_dc, parse_dc_strategy

    parse_dc_strategy(strategy)

    def augment(images: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
        count, (channels, height, width) = images.shape[1], images.shape[2:]
        transforms = [draw_dc(strategy, g, count=count, shape=(channels, height, width)) for g in generators]
        return torch.stack([transform(batch) for transform, batch in zip(transforms, images, strict=True)])

    return augment


def _pad_crop_flip(pad: int, size: tuple[int, int], black: Sequence[float] | None) -> Augment:
    height, width = size

    def augment(images: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
        count = images.shape[1]
        shifts = torch.cat([torch.randint(-pad, pad + 1, (count, 2), generator=g) for g in generators])
        flips = torch.cat([torch.rand(count, generator=g) < 0.5 for g in generators])
        rows = torch.arange(height) + shifts[:, :1]
        columns = torch.arange(width) + shifts[:, 1:]
        columns = torch.where(flips.unsqueeze(1), columns.flip(1), columns)
        inside = ((rows >= 0) & (rows < height)).unsqueeze(2) & ((columns >= 0) & (columns < width)).unsqueeze(1)
        pixels = rows.clamp(0, height - 1).unsqueeze(2) * width + columns.clamp(0, width - 1).unsqueeze(1)
        device, channels = images.device, images.shape[2]
        flat = images.reshape(-1, channels, height * width)
        index = pixels.flatten(1).to(device, non_blocking=True).unsqueeze(1).expand(-1, channels, -1)
        outside = torch.tensor(tuple(black) if black else (0.0,) * channels, dtype=images.dtype, device=device).view(-1, 1)
        taken = torch.where(inside.flatten(1).to(device, non_blocking=True).unsqueeze(1), flat.gather(2, index), outside)
        return taken.reshape(images.shape)

    return augment


def _resized_crop_flip(scale: tuple[float, float], size: tuple[int, int]) -> Augment:
    def augment(images: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
        drawn = [(draw_resized_crop(g, *size, scale), draw_flip(g)) for g in generators for _ in range(images.shape[1])]
        crops = Crops.of([box for box, _ in drawn], [flip for _, flip in drawn], size)
        return crops.apply(images.flatten(0, 1)).reshape(images.shape)

    return augment
