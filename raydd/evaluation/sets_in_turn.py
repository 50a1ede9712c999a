"""Sets of several steps, learned as one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from raydd.artifacts.decoding import Shape
from raydd.artifacts.distilled_set import DistilledSet, Whitening
from raydd.core.errors import ConfigError
from raydd.core.tensors import digest


@dataclass(frozen=True)
class SetsInTurn:
    """Sets in one space, one after the other: what students see of them as of one set, each decoded
    in its own way.

    Raises ``ConfigError`` for sets whose spaces or sizes of images differ.
    """

    sets: tuple[DistilledSet, ...]

    def __post_init__(self) -> None:
        first = self.sets[0]
        for one in self.sets[1:]:
            if _space(one) != _space(first):
                raise ConfigError(
                    "sets that are learned as one must have images of one size, normalised and whitened alike"
                )

    @property
    def seen(self) -> int:
        """How many images students see."""
        return sum(one.seen for one in self.sets)

    @property
    def shape(self) -> Shape:
        """Channels, height and width of an image."""
        return self.sets[0].shape

    @property
    def mean(self) -> tuple[float, ...]:
        """The normalisation's means."""
        return self.sets[0].mean

    @property
    def std(self) -> tuple[float, ...]:
        """The normalisation's deviations."""
        return self.sets[0].std

    @property
    def whitening(self) -> Whitening | None:
        """The sets' whitening."""
        return self.sets[0].whitening

    def normalised(self, images: Tensor) -> Tensor:
        """See :meth:`DistilledSet.normalised`."""
        return self.sets[0].normalised(images)

    def take(self, ids: Tensor | None = None) -> Tensor:
        """Return seen images; see :meth:`DistilledSet.take`."""
        return self._each(DistilledSet.take, ids)

    def labels_of(self, ids: Tensor | None = None) -> Tensor:
        """Return their hard labels; see :meth:`DistilledSet.labels_of`."""
        return self._each(DistilledSet.labels_of, ids)

    def targets_of(self, ids: Tensor | None = None) -> Tensor:
        """Return what students learn of them; see :meth:`DistilledSet.targets_of`."""
        return self._each(DistilledSet.targets_of, ids)

    def _each(self, of: Callable[[DistilledSet, Tensor], Tensor], ids: Tensor | None) -> Tensor:
        wanted = torch.arange(self.seen) if ids is None else ids
        found, places, first = [], [], 0
        for one in self.sets:
            here = ((wanted >= first) & (wanted < first + one.seen)).nonzero().flatten()
            if len(here):
                found.append(of(one, wanted[here] - first))
                places.append(here)
            first += one.seen
        return torch.cat(found)[torch.cat(places).argsort()]


def _space(of: DistilledSet) -> tuple[Any, ...]:
    white = of.whitening
    kept = (
        None if white is None else (white.per_image, digest({"m": white.matrix, "c": white.mean}))
    )
    return of.shape, of.mean, of.std, kept, of.images.is_floating_point()
