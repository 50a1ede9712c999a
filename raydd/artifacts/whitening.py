"""The whitening of sets that were made in a whitened space, which their files do not hold: fitted
on the training images.

``zca``: of pixels in [0, 1], centred, ``U (S + 0.1)^-1/2 U^T`` of their covariance (MTT and its
descendants, by kornia's ``ZCAWhitening(eps=0.1)``). ``zca_per_image``: each image is first freed of
its own mean and divided by its own norm; the second moments, not centred, are regularised by a
tenth of their mean eigenvalue (KIP, RaT-BPTT, PoDD).
"""

from __future__ import annotations

from dataclasses import replace

import torch

from raydd.artifacts.distilled_set import DistilledSet, Whitening
from raydd.artifacts.reading import WHITENED
from raydd.core.errors import ConfigError, DataError
from raydd.core.units import Data
from raydd.data.catalog import DatasetInfo
from raydd.data.config import DatasetConfig
from raydd.data.datasets import open_data

EPSILON = 0.1
LARGEST = 20_000
"""Values of an image up to which its covariance is taken apart: Tiny-ImageNet's have 12,288."""
_CHUNK_VALUES = 4_000_000


def check_size(info: DatasetInfo, space: str) -> None:
    """Raise ``ConfigError`` for images too large to be whitened."""
    size = info.channels * info.height * info.width
    if size > LARGEST:
        raise ConfigError(
            f"space={space}: the whitening of images of {size:,} values is a matrix of {size:,}²; at most {LARGEST:,}"
        )


def fit(data: Data, space: str) -> Whitening:
    """Return the whitening of a training split's images, computed in float64, as float32."""
    per_image = space == "zca_per_image"
    size = data.take(torch.arange(1)).numel()
    total, moments = (
        torch.zeros(size, dtype=torch.float64),
        torch.zeros(size, size, dtype=torch.float64),
    )
    for ids in torch.arange(len(data)).split(max(1, _CHUNK_VALUES // size)):
        values = data.take(ids).flatten(1).double() / 255
        if per_image:
            values = values - values.mean(1, keepdim=True)
            values = values / values.norm(dim=1, keepdim=True).clamp_min(1e-12)
        total += values.sum(0)
        moments.addmm_(values.T, values)
    count = len(data)
    mean = torch.zeros_like(total) if per_image else total / count
    covariance = (
        moments / count if per_image else (moments - count * torch.outer(mean, mean)) / (count - 1)
    )
    values, vectors = torch.linalg.eigh(covariance)
    values = values.clamp_min(0)
    regular = EPSILON * values.mean() if per_image else torch.tensor(EPSILON, dtype=torch.float64)
    matrix = (vectors * (values + regular).rsqrt()) @ vectors.T
    return Whitening(matrix=matrix.float(), mean=mean.float(), per_image=per_image)


def whitened(distilled: DistilledSet) -> DistilledSet:
    """Return a set that was read in a whitened space with its whitening, fitted on the files of its
    data set; others as they are.

    ``ConfigError`` if these files are not there.
    """
    space = distilled.recipe.get("space")
    if space not in WHITENED or distilled.whitening is not None:
        return distilled
    check_size(distilled.info, space)
    try:
        data = open_data(DatasetConfig(name=distilled.info.name))["train"]
    except (DataError, ConfigError) as error:
        raise ConfigError(
            f"space={space}: the whitening is that of {distilled.info.name}'s training images: {error}"
        ) from error
    return replace(distilled, whitening=fit(data, space))
