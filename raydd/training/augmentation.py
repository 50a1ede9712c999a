"""Augmentation of training batches: one call for the batches of several networks, each with draws of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor

Augment = Callable[[Tensor, Sequence[torch.Generator]], Tensor]
"""``augment(images [R, B, C, H, W], generators of the R networks)`` returns images of the same shape."""


def make_augmentation(kind: Literal["none", "dsa", "dc"], strategy: str, size: tuple[int, int]) -> Augment:
    """Return the augmentation of a recipe; ``ConfigError`` for an operation that does not exist.

    ``dsa``: one operation per batch, with numbers of its own for every image (dc_dsa_dm spec, section 1.2.2, not siamese).
    ``dc``: one operation per image (section 3.4). ``size`` is ``(H, W)``.
    """
    if kind == "none":
        return lambda images, generators: images
    if kind == "dsa":
        return _dsa(strategy, size)
    return _dc(strategy)


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
