"""What DM, IDM, BACON, DC and DSA minimise: distances between features, and between gradients, of real and
synthetic images.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from raydd.core.errors import ConfigError, unknown

DISTANCES = ("ours", "mse", "cos")
"""Distances between gradients: row-wise cosine (the papers'), squared error, cosine of the whole gradient."""

_EPS = 1e-6


def distribution_matching_loss(real_mean: Tensor, synthetic_features: Tensor) -> Tensor:
    """Return the squared distance of class means, summed over features and classes.

    ``real_mean``: ``[K, d]``. ``synthetic_features``: ``[K, n, d]``. DM (arXiv 2110.04181),
    docs/methods/dm.md, "The update". Raises ``ConfigError`` if the shapes do not fit.
    """
    if synthetic_features.dim() != 3 or real_mean.shape != synthetic_features.shape[::2]:
        raise ConfigError(
            f"real means must be [K, d] and synthetic features [K, n, d], got {list(real_mean.shape)} and"
            f" {list(synthetic_features.shape)}"
        )
    return (real_mean - synthetic_features.mean(1)).square().sum()


def partner_distance(partners: Tensor, synthetic_features: Tensor) -> Tensor:
    """Return the mean over images of the squared distance of their features from those of their own
    real partners, summed over features and classes.

    Both ``[K, n, d]``, partners in the images' order. IT-GAN (arXiv 2204.07513), docs/methods/itgan.md,
    "Learning the latents". Raises ``ConfigError`` if the shapes do not fit.
    """
    if synthetic_features.dim() != 3 or partners.shape != synthetic_features.shape:
        raise ConfigError(
            f"features of images and of their partners must be [K, n, d] both, got {list(synthetic_features.shape)} and"
            f" {list(partners.shape)}"
        )
    return (synthetic_features - partners).square().sum(2).mean(1).sum()


def gaussian_likelihood_loss(real_mean: Tensor, real_std: Tensor, mean: Tensor) -> Tensor:
    """Return the negative log likelihood of synthetic class means, summed over features and classes.

    ``mean``: of each class's synthetic features, ``[K, d]``, under a normal distribution of the real
    features' ``real_mean`` and of deviations ``exp(real_std)``, features independent. In closed
    form, so that it stays finite and differentiable however far the means are apart. BACON (arXiv
    2406.01112), docs/methods/idm_bacon.md, "BACON's objective".
    """
    z = (mean - real_mean) * torch.exp(-real_std)
    return (0.5 * math.log(2 * math.pi) + real_std + 0.5 * z.square()).sum()


def total_variation_distance(real_mean: Tensor, mean: Tensor) -> Tensor:
    """Return half the absolute difference of class means ``[K, d]``, summed over features and classes.

    BACON (arXiv 2406.01112), docs/methods/idm_bacon.md, "BACON's objective".
    """
    return 0.5 * (mean - real_mean).abs().sum()


def classes_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the sum over classes of the mean cross entropy of a class's images.

    ``logits``: ``[K, n, classes]``; ``labels``: ``[K]``. IDM (arXiv 2307.09742),
    docs/methods/idm_bacon.md, "IDM's objective".
    """
    each = F.cross_entropy(
        logits.flatten(0, 1), labels.repeat_interleave(logits.shape[1]), reduction="none"
    )
    return each.view(logits.shape[:2]).mean(1).sum()


def is_matched(parameter: Tensor, distance: str) -> bool:
    """Return whether a parameter's gradient enters a distance: ``ours`` ignores vectors (biases, norms)."""
    return distance != "ours" or parameter.dim() >= 2


def gradient_distance(
    synthetic: Sequence[Tensor], real: Sequence[Tensor], distance: str = "ours"
) -> Tensor:
    """Return the distance between two gradients, for each class: ``[K]``.

    ``synthetic``, ``real``: a gradient per parameter, in the order of ``net.parameters()``, each
    ``[K, *parameter shape]``. ``ours`` sums ``1 - <a, b> / (|a||b| + 1e-6)`` over rows (output
    channels; channels of layer norms; vectors are ignored), so that a pair of zero rows costs 1;
    ``cos`` is that of all gradients as one row. Differentiable in ``synthetic``: where a row is
    zero, the derivative of its norm counts as zero, and that of the distance is ``-b / 1e-6``, a
    million times the real gradient. Raises ``ConfigError`` for an unknown distance or unequal
    gradients. DC (arXiv 2006.05929), docs/methods/dc_dsa.md, "Distance between gradients".
    """
    if distance not in DISTANCES:
        raise unknown("gradient distance", distance, DISTANCES)
    if not synthetic or [g.shape for g in synthetic] != [g.shape for g in real]:
        raise ConfigError(
            "gradients of real and synthetic images must be of the same parameters and classes"
        )
    if distance == "ours":
        total = synthetic[0].new_zeros(synthetic[0].shape[0])
        for a, b in zip(synthetic, real, strict=True):
            # [K, rows, columns]; a linear weight is [K, out, in], a vector only [K, n].
            if a.dim() > 2:
                total = total + (1 - _cosine(a.flatten(2), b.flatten(2))).sum(1)
        return total
    a = torch.cat([g.flatten(1) for g in synthetic], 1)
    b = torch.cat([g.flatten(1) for g in real], 1)
    if distance == "mse":
        return (a - b).square().sum(1)
    return 1 - (a * b).sum(1) / (_norm(synthetic) * _norm(real) + _EPS)


def _norm(gradients: Sequence[Tensor]) -> Tensor:
    """Return the norm ``[K]`` of whole gradients from those of their rows: one sum over millions of
    squares is 7e-4 off in fp32.
    """
    rows = [g.flatten(2) if g.dim() > 2 else g.unsqueeze(1) for g in gradients]
    return torch.linalg.vector_norm(
        torch.cat([torch.linalg.vector_norm(row, dim=-1) for row in rows], 1), dim=-1
    )


def _cosine(a: Tensor, b: Tensor) -> Tensor:
    # The 1e-6 is added to the product of norms (it is no lower bound): small gradients are damped.
    return (a * b).sum(-1) / (
        torch.linalg.vector_norm(a, dim=-1) * torch.linalg.vector_norm(b, dim=-1) + _EPS
    )
