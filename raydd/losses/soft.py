"""What students learn from labels: cross entropy with hard or soft ones, and distances to the logits of teachers."""

from __future__ import annotations

from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor


class SoftTargets(NamedTuple):
    """The teachers' logits ``[B, classes]`` (raw, no softmax) and the hard labels int64 ``[B]`` of
    a batch's own images.

    A mixed image keeps the hard label of the image that was mixed into
    (docs/methods/soft_labels.md, "What students minimise").
    """

    logits: Tensor
    hard: Tensor


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the mean cross entropy.

    ``logits``: ``[B, classes]``, or ``[M, B, classes]`` for M networks at once (then one mean per network, ``[M]``).
    ``labels``: class indices, or probabilities of the shape of ``logits``.
    """
    log_probabilities = F.log_softmax(logits, -1)
    if labels.is_floating_point():
        return -(labels * log_probabilities).sum(-1).mean(-1)
    return -log_probabilities.gather(-1, labels.unsqueeze(-1)).squeeze(-1).mean(-1)


def mse_gt(logits: Tensor, targets: SoftTargets, ce_weight: float) -> Tensor:
    """Return the mean squared distance of logits over images and classes, plus ``ce_weight`` times hard cross entropy.

    ``logits``: ``[B, classes]`` or ``[M, B, classes]``, as of :func:`cross_entropy`; the targets'
    logits may be of another precision. G-VBSM and EDC
    (docs/methods/soft_labels.md, "What students minimise").
    """
    squares = (logits - targets.logits.to(logits.dtype)).square().mean((-2, -1))
    return squares + ce_weight * cross_entropy(logits, targets.hard)


def distillation_kl(
    logits: Tensor, targets: SoftTargets, temperature: float, *, squared: bool = False
) -> Tensor:
    """Return KL(softmax(targets / T) || softmax(logits / T)), summed over classes and averaged over
    images; without a factor T² unless ``squared`` (DWA on Tiny-ImageNet).

    ``logits``: ``[B, classes]`` or ``[M, B, classes]``, as of :func:`cross_entropy`. SRe2L and RDED
    (docs/methods/soft_labels.md, "What students minimise").
    """
    log_p = F.log_softmax(targets.logits.to(logits.dtype) / temperature, -1)
    log_q = F.log_softmax(logits / temperature, -1)
    divergence = (log_p.exp() * (log_p - log_q)).sum(-1).mean(-1)
    return divergence * temperature**2 if squared else divergence
