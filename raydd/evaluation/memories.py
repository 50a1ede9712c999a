"""What is kept of a set in continual learning: its images in the order in which classes come."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from raydd.artifacts.seen import Seen, batches_of
from raydd.core.errors import DataError
from raydd.core.rng import KeyedRng
from raydd.training.accuracy import RESIDENT_BYTES
from raydd.training.students import ResidentSet, TrainingSet


@dataclass(frozen=True)
class Memory:
    """A set's images in the order in which classes come: what is kept after a step is a part at the start.

    ``ids``: of the seen images, in that order. ``ends``: where each class of the order ends.
    ``distilled``: the set, or several in turn, which says how test images are read, too. ``resident``: images and
    labels in that order, where they stay on a device.
    """

    distilled: Seen
    ids: Tensor
    ends: tuple[int, ...]
    resident: ResidentSet | None = None

    def of(self, seen: int) -> TrainingSet:
        """Return what is kept of the first ``seen`` classes."""
        end = self.ends[seen - 1]
        if self.resident is None:
            return PartOfSet(self.distilled, self.ids[:end])
        return ResidentSet(self.resident.images[:end], self.resident.labels[:end])

    def on(self, device: torch.device) -> Memory:
        """Return the memory with its images on a device, if they are few enough to stay there."""
        if 4 * len(self.ids) * math.prod(self.distilled.shape) > RESIDENT_BYTES:
            return self
        images = self.distilled.normalised(self.distilled.take(self.ids)).to(device)
        kept = ResidentSet(images, self.distilled.targets_of(self.ids).to(device))
        return replace(self, resident=kept)


@dataclass(frozen=True)
class PartOfSet:
    """Some of a set's seen images, decoded as they are asked for: a training set."""

    distilled: Seen
    ids: Tensor

    def batches(self, epoch: int, size: int, rng: KeyedRng) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield an epoch, see :meth:`DistilledSet.batches`."""
        return batches_of(self.distilled, epoch, size, rng, self.ids)


def check_classes(labels: Tensor, classes: Iterable[int]) -> None:
    """Raise ``DataError`` for one of the ``classes`` that no hard label ``[N]`` names."""
    absent = sorted(set(classes) - set(labels.tolist()))
    if absent:
        raise DataError(f"evaluation.continual: the set has no image of class {absent[0]}")


def in_order(distilled: Seen, order: Sequence[int]) -> Memory:
    """Return a set in the order in which classes come, as students see it; classes that ``order``
    does not name are left out.

    ``DataError`` for a class without images.
    """
    hard = distilled.labels_of()
    check_classes(hard, order)
    of_class = [(hard == c).nonzero().reshape(-1) for c in order]
    ends = tuple(itertools.accumulate(map(len, of_class)))
    return Memory(distilled, torch.cat(of_class), ends)
