"""Priors on synthetic images: smoothness, size, diversity within a class, agreement with an averaged image.

Every function takes ``G`` groups of ``s`` images and returns one value per group, so that groups
packed into one batch keep losses of their own (docs/methods/recovery.md, "Flatness" and
"Data densification"; docs/methods/sre2l.md, "The objective").
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor

DENSITY_SIZE = 32
"""Side of the pictures that data densification compares."""


def _norm(differences: Tensor) -> Tensor:
    return torch.linalg.vector_norm(differences.flatten(1), dim=1)


def _mean_size(differences: Tensor) -> Tensor:
    return differences.abs().flatten(1).mean(1)


def total_variation(images: Tensor, order: int = 2) -> Tensor:
    """Return the total variation ``[G]`` of images ``[G, s, C, H, W]`` over four directions of neighbours.

    ``order`` 2: the sum of the Frobenius norms of all differences of a group, one per direction
    (SRe2L's ``L_tv``). 1: the sum of the mean absolute differences.
    """
    right = images[..., :, :-1] - images[..., :, 1:]
    down = images[..., :-1, :] - images[..., 1:, :]
    rising = images[..., 1:, :-1] - images[..., :-1, 1:]
    falling = images[..., :-1, :-1] - images[..., 1:, 1:]
    measure = _norm if order == 2 else _mean_size
    return measure(right) + measure(down) + measure(rising) + measure(falling)


def image_norm(images: Tensor) -> Tensor:
    """Return the mean Euclidean norm ``[G]`` of the images ``[G, s, C, H, W]`` of each group."""
    return torch.linalg.vector_norm(images.flatten(2), dim=2).mean(1)


@cache
def pooling(size: int, out: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Return ``[out, size]``: adaptive average pooling along one side as a matrix; kept, since
    recorded graphs read it.
    """
    matrix = torch.zeros(out, size)
    for i in range(out):
        low, high = i * size // out, -(-(i + 1) * size // out)
        matrix[i, low:high] = 1 / (high - low)
    return matrix.to(device, dtype)


def spectrum(images: Tensor) -> Tensor:
    """Return the eigenvalues ``[K, n]``, ascending, of the Gram matrices of ``K`` classes' images ``[K, n, C, H, W]``.

    Of pictures averaged to 32 x 32. Pooling is two matrix products, so no kernel needs atomics.
    """
    rows, columns = (
        pooling(side, DENSITY_SIZE, images.device, images.dtype) for side in images.shape[-2:]
    )
    pictures = (rows @ images @ columns.T).flatten(2)
    return torch.linalg.eigvalsh(pictures @ pictures.transpose(1, 2))


def density(images: Tensor, labels: Sequence[int], tau: float) -> Tensor:
    """Return G-VBSM's data densification of one group, a scalar (docs/methods/recovery.md, "Data densification").

    ``images [s, C, H, W]`` with their classes; every class adds the Kullback-Leibler divergence
    between the softmax of the eigenvalues of its Gram matrix (:func:`spectrum`) at temperature
    ``tau``, held fixed, and at 1. A class of one image adds nothing.
    """
    members: dict[int, list[int]] = {}
    for position, label in enumerate(labels):
        members.setdefault(label, []).append(position)
    total = images.new_zeros(())
    for count in sorted(
        {len(m) for m in members.values()} - {1}
    ):  # classes of one size share a batched decomposition
        chosen = torch.tensor(
            [m for m in members.values() if len(m) == count], device=images.device
        )
        values = spectrum(images[chosen])
        target = torch.log_softmax(values.detach() / tau, dim=1)
        total = total + (target.exp() * (target - torch.log_softmax(values, dim=1))).sum()
    return total


def flatness(logits: Tensor, averaged: Tensor, tau: float) -> Tensor:
    """Return the divergence ``[G]`` of logits ``[G, s, classes]`` from those of the averaged images
    (docs/methods/recovery.md, "Flatness").

    Kullback-Leibler divergence of softmax at temperature ``tau``, averaged over all ``s * classes``
    entries; ``averaged`` gets no gradient.
    """
    target = torch.log_softmax(averaged.detach() / tau, dim=-1)
    terms = target.exp() * (target - torch.log_softmax(logits / tau, dim=-1))
    return terms.flatten(1).mean(1)
