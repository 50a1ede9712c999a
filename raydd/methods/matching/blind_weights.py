"""Networks that hide: the share of the weights whose gradients are compared that are exactly zero,
seen before anything starts.

Some libraries start networks so that most weights have no gradient: a last layer of zeros hides all
before it (torchvision's transformers), a last scale of zeros hides a whole residual block. Images
that follow gradients then follow almost nothing.
"""

from __future__ import annotations

import logging
from functools import lru_cache

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from raydd.core.errors import ConfigError
from raydd.core.rng import generator
from raydd.methods.matching.parameter_gradients import class_gradient, freeze_batchnorm_, prepare_
from raydd.networks import create_network, has_batchnorm
from raydd.networks.initialise import scales_at_one_
from raydd.networks.network import Shape
from raydd.training.training_cost import network_facts

WARN, REFUSE = 0.05, 0.9
"""Shares of matched weights without gradient above which a job is warned of, or refused.

Single weights of a tensor may have none for good reasons: units that these images leave dead, parts
of a kernel that see only the padding around small maps. A network is refused only if most of its
weights lie in tensors that are zero throughout.
"""
_IMAGES, _FEW, _FLOP = 16, 8, 2e9

log = logging.getLogger(__name__)


@lru_cache(maxsize=64)
def blind_share(
    name: str, shape: Shape, classes: int, distance: str, zero_scales: str = "kept"
) -> tuple[float, float, int]:
    """Return which share of a fresh network's matched weights has a gradient of exactly zero, which
    share lies in tensors that are zero throughout, and on how many images of noise that was seen
    (up to 16, two of large networks).

    Modes are those of matching: see :func:`raydd.methods.matching.parameter_gradients.prepare_`. ``zero_scales``: as of
    :class:`raydd.methods.matching.gradient_matching.MatchGradients`.
    """
    network = create_network(name, shape, classes, generator(0, "probe"))
    if zero_scales == "ones":
        scales_at_one_(network)
    count = int(min(_IMAGES, max(2, _FLOP // network_facts(name, shape, classes).flop)))
    images = torch.randn(count, *shape, generator=generator(0, "probe/images"))
    prepare_(network, distance)
    if has_batchnorm(network):
        freeze_batchnorm_(network, images)
    with sdpa_kernel(SDPBackend.MATH):
        found = class_gradient(network, network, images, 0, distance)
    total = sum(gradient.numel() for gradient in found)
    zeros = sum(int((gradient == 0).sum()) for gradient in found)
    whole = sum(gradient.numel() for gradient in found if not gradient.any())
    return zeros / total, whole / total, count


@lru_cache(maxsize=64)
def check_blindness(
    name: str, shape: Shape, classes: int, distance: str, zero_scales: str = "kept"
) -> None:
    """Raise ``ConfigError`` for a network most of whose weights have no gradient to be matched,
    warn of one with many (once).
    """
    share, whole, count = blind_share(name, shape, classes, distance, zero_scales)
    found = f"of the weights whose gradients are matched, {share:.0%} have none at all in a fresh network"
    if share > REFUSE and whole > 0.5:
        raise ConfigError(
            f"method.network={name}: {found}, so that images would follow almost nothing: its library starts a layer"
            " behind them at zero; use a network that starts otherwise, such as convnet3, torchvision/resnet18 or"
            " timm/vit_tiny_patch16_224"
        )
    if share > WARN and (count >= _FEW or whole > WARN):
        log.warning("method.network=%s: %s (seen on %d images of noise)", name, found, count)
