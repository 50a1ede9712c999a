"""Cross entropy with hard or soft labels."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the mean cross entropy.

    ``logits``: ``[B, classes]``, or ``[M, B, classes]`` for M networks at once (then one mean per network, ``[M]``).
    ``labels``: class indices, or probabilities of the shape of ``logits``.
    """
    log_probabilities = F.log_softmax(logits, -1)
    if labels.is_floating_point():
        return -(labels * log_probabilities).sum(-1).mean(-1)
    return -log_probabilities.gather(-1, labels.unsqueeze(-1)).squeeze(-1).mean(-1)
