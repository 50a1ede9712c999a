"""Facts about a network that decide which shortcuts are exact."""

from __future__ import annotations

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

_RANDOM_DEPTH = ("drop_prob", "p", "drop_rate", "attention_dropout")


def has_batchnorm(net: nn.Module) -> bool:
    """Return whether a network has any batch norm, in whatever mode."""
    return any(isinstance(module, _BatchNorm) for module in net.modules())


def is_per_sample(net: nn.Module) -> bool:
    """Return whether a sample's output depends on that sample alone, with the modes the network is in now.

    False where a batch norm normalises with the batch's statistics (train mode), or where dropout
    or stochastic depth draws. Then batches must not be merged, split or chunked
    (docs/methods/networks.md, "Independence of images").
    """
    for module in net.modules():
        if isinstance(module, _BatchNorm) and (module.training or module.running_mean is None):
            return False
        if not module.training:
            continue
        if isinstance(module, _DropoutNd) and module.p > 0:
            return False
        if type(module).__name__ in (
            "DropPath",
            "StochasticDepth",
            "MultiheadAttention",
        ) or hasattr(module, "attention_dropout"):
            rates = [getattr(module, rate, 0.0) for rate in (*_RANDOM_DEPTH, "dropout")]
            if any(isinstance(rate, float) and rate > 0 for rate in rates):
                return False
    return True
