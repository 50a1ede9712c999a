"""The decoder of images that are stored once and shown several times: as they are, and with offsets added
that all classes share.

INFER's universal compensators, arXiv 2408.06927; docs/methods/dwa_infer.md, "What is stored".
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from raydd.artifacts.decoding import Decoder, Space, as_stored, register_decoder
from raydd.core.errors import ConfigError
from raydd.core.tensors import Tensors
from raydd.data.catalog import DatasetInfo

OFFSETS = "offsets"
"""The tensor ``[M, K, B, C, H, W]``: M offsets for each of B blocks of classes of each of K slices."""
LARGEST = 255
"""Levels beyond which an offset of pixels in 8 bits changes nothing more."""


def composed(images: Tensor, offsets: Tensor) -> Tensor:
    """Return images with offsets added that broadcast with them.

    Pixels uint8 and offsets int16, in levels, give pixels, cut to 0 and 255; floats are added as they
    are, in network space, differentiable, without a bound.
    """
    if images.is_floating_point():
        return images + offsets
    return (images.to(torch.int16) + offsets).clamp_(0, 255).to(torch.uint8)


def levels(offsets: Tensor, std: tuple[float, ...]) -> Tensor:
    """Return offsets ``[..., C, H, W]`` in network space as int16 levels of pixels, rounded down.

    A pixel is a whole number of levels, so ``floor(255 ((p / 255 - m) / s + u) s + 255 m)`` is
    ``p + floor(255 s u)``: what the published code writes, and nothing is lost.
    """
    spread = torch.tensor(std, dtype=torch.float64, device=offsets.device).view(-1, 1, 1)
    return (offsets.double() * spread * 255).floor().clamp(-LARGEST, LARGEST).to(torch.int16)


def slices_within(ipc: float, networks: int, classes: int, group_size: int) -> int:
    """Return the K images of each class that have room, with their offsets, in a budget of ``ipc``
    images of each class.

    K C images and K M B offsets, M being ``networks`` and B the blocks of ``group_size`` classes, are
    at most ``ipc`` C: ``floor(ipc / (M B / C + 1))``, in the published code's order.
    """
    return int(ipc / (networks * -(-classes // group_size) / classes + 1))


@register_decoder("offsets")
@dataclass(frozen=True, kw_only=True)
class Offsets(Decoder):
    """Images ``[N, C, H, W]``, class by class and equally many of each, and offsets that they share.

    A slice is the k-th image of every class; ``group_size`` classes after one another, a block,
    share the slice's M offsets :data:`OFFSETS`. All stored images are seen first, then all with their
    first offset, then all with their second, and so on. Offsets are int16 levels of uint8 images, or
    float32 in network space of float32 images.
    """

    group_size: int

    def __post_init__(self) -> None:
        size = self.group_size
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise ConfigError(
                f"group_size: {size!r} must be a whole number of at least 1: classes that share an offset"
            )

    def reads(self, name: str) -> bool:
        """Return whether it is the offsets."""
        return name == OFFSETS

    def check(self, tensors: Tensors, info: DatasetInfo) -> None:
        """Refuse a set without offsets, offsets that do not fit, and images in another order, too."""
        super().check(tensors, info)
        images, labels, offsets = tensors["images"], tensors["labels"], tensors.get(OFFSETS)
        if offsets is None:
            raise ConfigError(f"decoding 'offsets' needs the tensor '{OFFSETS}' [M, K, B, C, H, W]")
        found = f"{offsets.dtype} {list(offsets.shape)}"
        if offsets.ndim != 6 or offsets.shape[3:] != images.shape[1:] or not offsets.numel():
            wanted = ", ".join(map(str, images.shape[1:]))
            raise ConfigError(f"offsets must be [M, K, B, {wanted}], not {found}")
        kind = torch.float32 if images.is_floating_point() else torch.int16
        if offsets.dtype != kind:
            raise ConfigError(f"offsets of {images.dtype} images must be {kind}, not {found}")
        slices, blocks = offsets.shape[1:3]
        by_class = labels.view(-1, slices) if len(labels) % slices == 0 else labels.view(-1, 1)
        whole = bool((by_class == by_class[:, :1]).all()) and by_class.shape[1] == slices
        if not whole or not bool((by_class[1:, 0] > by_class[:-1, 0]).all()):
            raise ConfigError(
                f"images under {slices} slices of offsets must be {slices} of each class, class by class"
            )
        if blocks != -(-len(by_class) // self.group_size):
            raise ConfigError(
                f"{len(by_class)} classes in blocks of {self.group_size} do not make {blocks} blocks of offsets"
            )

    def count(self, tensors: Tensors) -> int:
        """Return the stored images once for themselves and once for each of the M offsets."""
        return len(tensors["images"]) * (1 + len(tensors[OFFSETS]))

    def rows(self, tensors: Tensors, ids: Tensor) -> Tensor:
        """Return the stored images."""
        return ids % len(tensors["images"])

    def take(self, tensors: Tensors, ids: Tensor | None = None, space: Space = as_stored) -> Tensor:
        """Return images with their offsets, pixels as pixels."""
        images, offsets = tensors["images"], tensors[OFFSETS]
        count, (slices, blocks) = len(images), offsets.shape[1:3]
        if ids is None:
            ids = torch.arange(self.count(tensors))
        ids = ids.to(images.device)
        row, network = ids % count, ids // count - 1  # -1: the image itself
        block = row // slices // self.group_size
        place = (network.clamp_min(0) * slices + row % slices) * blocks + block
        added = offsets.flatten(0, 2)[place]
        return composed(images[row], added * (network >= 0).view(-1, 1, 1, 1).to(added.dtype))

    def within(self, tensors: Tensors, ipc: float) -> int:
        """Return how many slices a budget of ``ipc`` images of each class has room for."""
        networks, held = tensors[OFFSETS].shape[:2]
        classes = len(tensors["images"]) // held
        return slices_within(ipc, networks, classes, self.group_size)

    def first(self, tensors: Tensors, slices: int) -> Tensors:
        """Return the tensors of the set of the first ``slices`` slices, soft labels included."""
        held = tensors[OFFSETS].shape[1]
        kept = {
            name: tensor.unflatten(0, (-1, held))[:, :slices].flatten(0, 1)
            for name, tensor in tensors.items()
            if name != OFFSETS
        }
        return kept | {OFFSETS: tensors[OFFSETS][:, :slices]}
