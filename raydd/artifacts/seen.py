"""What students see of a distilled set, or of several as of one, batch by batch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from raydd.artifacts.decoding import Shape
from raydd.core.errors import ConfigError
from raydd.core.rng import KeyedRng

if TYPE_CHECKING:
    from raydd.artifacts.distilled_set import Batch, Whitening


class Seen(Protocol):
    """What students see of: one set, or several as one."""

    @property
    def seen(self) -> int: ...
    @property
    def shape(self) -> Shape: ...
    @property
    def mean(self) -> tuple[float, ...]: ...
    @property
    def std(self) -> tuple[float, ...]: ...
    @property
    def whitening(self) -> Whitening | None: ...
    def normalised(self, images: Tensor) -> Tensor: ...
    def take(self, ids: Tensor | None = None) -> Tensor: ...
    def labels_of(self, ids: Tensor | None = None) -> Tensor: ...
    def targets_of(self, ids: Tensor | None = None) -> Tensor: ...


def batches_of(
    of: Seen, epoch: int, size: int, rng: KeyedRng, ids: Tensor | None = None
) -> Iterator[Batch]:
    """Yield an epoch of what students see of a set; see :meth:`DistilledSet.batches`."""
    if size < 1:
        raise ConfigError(f"batch size must be at least 1, not {size}")
    count = of.seen if ids is None else len(ids)
    if count <= size:
        yield of.normalised(of.take(ids)), of.targets_of(ids)
        return
    order = torch.randperm(count, generator=rng("batches", epoch))
    for part in (order if ids is None else ids[order]).split(size):
        yield of.normalised(of.take(part)), of.targets_of(part)
