"""K-center: real images that cover their class (Sener and Savarese, ICLR 2018, arXiv 1708.00489).

In each class the first image is the one whose feature is closest to the class mean; every further
one is the one farthest from the nearest already chosen (the greedy 2-approximation). Features as in
:mod:`raydd.methods.herding`. Worked out in docs/methods/coresets.md, "K-center".

Published (ConvNet, no DSA in evaluation, as quoted by later papers): CIFAR-10 23.3 / 36.4 / 48.7 %
at 1 / 10 / 50 images per class; CIFAR-100 8.6 / 20.7 / 33.6.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from raydd.methods.herding import FeatureSelection, SelectByFeature
from raydd.methods.method import register_method


def k_center(features: Tensor, count: int) -> Tensor:
    """Return the positions of ``count`` rows of ``features [N, d]``: the one closest to the mean,
    then always the farthest.

    Computed in float64; of equally far rows the first is taken. ``count`` must not exceed ``N``.
    """
    phi = features.double()

    def distances(centre: Tensor) -> Tensor:
        return (phi - centre).square().sum(1)

    chosen = [int(distances(phi.mean(0)).argmin())]
    nearest = distances(phi[chosen[0]])
    while len(chosen) < count:
        nearest[chosen] = -1.0  # images that equal a chosen one are still new images
        chosen.append(int(nearest.argmax()))
        nearest = torch.minimum(nearest, distances(phi[chosen[-1]]))
    return torch.tensor(chosen, dtype=torch.int64)


@dataclass(frozen=True, kw_only=True)
class Cover(SelectByFeature):
    """K-center in each class."""

    def select(self, features: Tensor) -> Tensor:
        """Return the positions of the centres."""
        return k_center(features, self.ipc)


@register_method("kcenter")
@dataclass(frozen=True, kw_only=True)
class KCenter(FeatureSelection):
    """K-center; fields: see :class:`~raydd.methods.herding.FeatureSelection`."""

    stage: ClassVar[type[SelectByFeature]] = Cover
