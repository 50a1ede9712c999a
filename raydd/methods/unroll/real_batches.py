"""The real images of meta-losses: batches that go through a split epoch by epoch, in the space of the networks."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from raydd.core.units import Context, Data
from raydd.training.accuracy import resident

REAL_CHUNK = 128
"""Real images that go through a network together."""


class RealBatches:
    """The images of some classes of a split, shuffled anew in every epoch, with the last, smaller batch kept.

    ``present``: the classes (``None``: all). ``prepare`` brings uint8 images into network space.
    """

    def __init__(
        self,
        data: Data,
        ctx: Context,
        size: int,
        prepare: Callable[[Tensor], Tensor],
        present: tuple[int, ...] | None = None,
    ) -> None:
        self.data, self.size, self.prepare, self.device = data, size, prepare, ctx.device
        self.kept = resident(data, ctx)
        labels = data.labels
        self.ids = (
            torch.arange(len(labels))
            if present is None
            else torch.isin(labels, torch.tensor(present)).nonzero().flatten()
        )

    @property
    def per_epoch(self) -> int:
        """How many batches an epoch has."""
        return -(-len(self.ids) // self.size)

    def batch(self, place: int, order: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return the images float ``[B, C, H, W]`` and labels ``[B]`` of batch ``place`` of an epoch, whose
        order ``order`` draws.
        """
        shuffled = self.ids[torch.randperm(len(self.ids), generator=order)]
        return self._take(shuffled[place * self.size : (place + 1) * self.size])

    def all(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield all images and labels, :data:`REAL_CHUNK` at a time."""
        for ids in self.ids.split(REAL_CHUNK):
            yield self._take(ids)

    def _take(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        if self.kept is not None:
            here = ids.to(self.device)
            return self.prepare(self.kept["images"][here]), self.kept["labels"][here]
        images = self.data.take(ids).to(self.device)
        return self.prepare(images), self.data.labels[ids].to(self.device)
