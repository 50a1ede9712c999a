"""A training set of which every step sees a fresh batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from raydd.core.rng import KeyedRng

Take = Callable[[Tensor], tuple[Tensor, Tensor]]


class DrawnBatches:
    """Images of which an epoch is one batch, drawn without replacement, in ascending order.

    ``classes``: hard labels ``[N]`` of all images; ``take`` returns images and labels by id.
    ``by_class``: as many images of each class as go into the batch; where it has fewer images than
    there are classes, one of each of as many classes, which are drawn, too.
    """

    def __init__(self, classes: Tensor, take: Take, *, by_class: bool) -> None:
        self._take, self._count = take, len(classes)
        present = classes.cpu().unique()
        self._members = (
            [(classes.cpu() == c).nonzero().flatten() for c in present]
            if by_class
            else [torch.arange(self._count)]
        )

    def batches(self, epoch: int, size: int, rng: KeyedRng) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the batch of ``epoch``, at most ``size`` images; all of them come in their own order."""
        yield self._take(self._drawn(size, rng("batches", epoch)))

    def _drawn(self, size: int, generator: torch.Generator) -> Tensor:
        members = self._members
        if size >= self._count:
            return torch.arange(self._count)
        if size < len(members):
            chosen = torch.randperm(len(members), generator=generator)[:size]
            members = [members[i] for i in chosen.tolist()]
        each = max(1, size // len(members))
        parts = [ids[torch.randperm(len(ids), generator=generator)[:each]] for ids in members]
        return torch.cat(parts).sort().values
