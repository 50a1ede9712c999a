"""Networks by name."""

from __future__ import annotations

import torch

from raydd.core.errors import ConfigError
from raydd.networks.classic import AlexNet, LeNet, Mlp, Vgg
from raydd.networks.convnet import ConvNet
from raydd.networks.mobile import EfficientNetB0, ProjectedMobileNetV2, ShuffleNetG2
from raydd.networks.names import ZooName, normalise_name, parse_zoo_name
from raydd.networks.network import Network, Shape
from raydd.networks.resnet import ResNet
from raydd.networks.small_teachers import MobileNetV2, ShuffleNetV2, WideResNet

_PLAIN: dict[str, type[Network]] = {
    "mlp": Mlp,
    "lenet": LeNet,
    "mobilenetv2": MobileNetV2,
    "shufflenetv2": ShuffleNetV2,
    "mobilenetv2x1": ProjectedMobileNetV2,
    "efficientnetb0": EfficientNetB0,
    "shufflenetg2": ShuffleNetG2,
}
"""Families without options."""


def create_network(name: str, shape: Shape, classes: int, generator: torch.Generator) -> Network:
    """Return a freshly initialised network on the CPU, in train mode; equal generators give equal weights.

    ``name``: see :mod:`raydd.networks.names`. ``shape``: of an image, ``(C, H, W)``; any sizes the
    network's depth allows. Raises ``ConfigError`` for an unknown name (with the nearest match), bad
    sizes, or images too small for the network.
    """
    channels, height, width = shape
    if min(channels, height, width, classes) < 1:
        raise ConfigError(
            f"network '{name}': channels, height, width and classes must be positive, got {shape} and {classes}"
        )
    zoo = parse_zoo_name(name)
    if zoo is None:
        from raydd.networks.external import ExternalNetwork

        return ExternalNetwork(normalise_name(name), (channels, height, width), classes, generator)
    net = _build(zoo, (channels, height, width), classes)
    net.reinitialise_(generator)
    return net


def _build(zoo: ZooName, shape: Shape, classes: int) -> Network:
    name = str(zoo)
    if zoo.family == "convnet":
        return ConvNet(name, shape, classes, zoo.convnet)
    if zoo.family == "alexnet":
        return AlexNet(name, shape, classes, zoo.norm)
    if zoo.family == "vgg":
        return Vgg(name, shape, classes, zoo.layers, zoo.norm)
    if zoo.family == "wrn":
        return WideResNet(name, shape, classes, zoo.layers, zoo.width)
    if zoo.family in _PLAIN:
        return _PLAIN[zoo.family](name, shape, classes)
    return ResNet(name, shape, classes, zoo.layers, zoo.norm, zoo.pooled, zoo.kaiming)


def reinitialise_(net: Network, generator: torch.Generator) -> None:
    """Refill a network's weights and statistics in place, as :func:`create_network` would with this generator."""
    net.reinitialise_(generator)
