"""Weights of others: what published files call the layers of our networks (:mod:`raydd.networks.fitting` loads them).

A scheme turns the name of one of our parameters, buffers or layers into that of a published state dict.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial

from raydd.networks.convnet import ConvNet
from raydd.networks.external import ExternalNetwork
from raydd.networks.mobile import EfficientNetB0, ProjectedMobileNetV2, ShuffleNetG2
from raydd.networks.network import Network
from raydd.networks.resnet import ResNet
from raydd.networks.small_teachers import MobileNetV2, ShuffleNetV2, WideResNet

Scheme = Callable[[str], str]
_Substitution = tuple[str, str | Callable[["re.Match[str]"], str]]


def _stages(theirs: str) -> _Substitution:
    """Return the substitution of ``stages.0`` by ``theirs``, in which ``#`` is the stage counted from one."""
    return (r"^stages\.(\d+)", lambda match: theirs.replace("#", str(int(match[1]) + 1)))


def _in_sequence(first: int) -> Callable[[re.Match[str]], str]:
    """Return a replacement that numbers convolution, norm and ReLU of a block through: 0, 1, 2, 3, ..."""
    return lambda match: f"blocks.{match[1]}.{match[2]}.conv.{3 * int(match[3]) - 3 + first}"


_NORMS: _Substitution = (r"\bnorm(\d)", r"bn\1")
_RESNET = (
    _stages("layer#"),
    _NORMS,
    (r"shortcut\.conv", "shortcut.0"),
    (r"shortcut\.norm", "shortcut.1"),
)
_TORCH_RESNET = (
    _stages("layer#"),
    _NORMS,
    (r"shortcut\.conv", "downsample.0"),
    (r"shortcut\.norm", "downsample.1"),
)
_LINEAR, _FC = (r"^classifier\b", "linear"), (r"^classifier\b", "fc")
_MOBILENET = (
    (r"^stages\.(\d+)\.(\d+)\.conv(\d)", _in_sequence(0)),
    (r"^stages\.(\d+)\.(\d+)\.norm(\d)", _in_sequence(1)),
    (r"^conv(\d)", r"conv\1.0"),
    (r"^norm(\d)", r"conv\1.1"),
)

_BLOCKS: _Substitution = (r"^blocks\b", "layers")
_GATED = (_BLOCKS, _NORMS, (r"gate\.conv(\d)", r"se.se\1"), _LINEAR)

_PUBLISHED: dict[type[Network], tuple[tuple[_Substitution, ...], ...]] = {
    ResNet: ((*_RESNET, _LINEAR), (*_TORCH_RESNET, _FC), _RESNET),
    WideResNet: ((_stages("block#.layer"), _NORMS, (r"\bshortcut\b", "convShortcut"), _FC),),
    MobileNetV2: ((*_MOBILENET, (r"^classifier\b", "classifier.0")), _MOBILENET),
    ShuffleNetV2: ((_stages("layer#"), _NORMS, _LINEAR),),
    ProjectedMobileNetV2: ((_BLOCKS, *_RESNET[1:], _LINEAR),),
    EfficientNetB0: (_GATED,),
    ShuffleNetG2: ((_stages("layer#"), _NORMS, _LINEAR),),
}
"""By architecture: the names of EDC, G-VBSM, DWA and INFER first; of ResNets then torchvision's, and DC's."""


def _substitute(substitutions: tuple[_Substitution, ...], name: str) -> str:
    for pattern, replacement in substitutions:
        name = re.sub(pattern, replacement, name)
    return name


def _numbered(per_block: int, name: str) -> str:
    """Return the name in a ConvNet whose layers are one sequence, ``per_block`` of them in a block."""

    def number(match: re.Match[str]) -> str:
        return f"features.{per_block * int(match[1]) + (match[2] == 'norm')}"

    return re.sub(r"^features\.(\d+)\.(conv|norm)\b", number, name)


def _in_library(head: str, name: str) -> str:
    return (
        re.sub(r"^classifier\b", head, name)
        if name.startswith("classifier")
        else name.removeprefix("body.")
    )


def schemes(network: Network) -> list[Scheme]:
    """Return the published spellings of a network's names, the most usual one first; none where
    only our own is known.
    """
    if isinstance(network, ExternalNetwork):
        return [partial(_in_library, network.head)]
    if isinstance(network, ConvNet):
        layers = [
            module
            for module in network.features[0].children()
            if type(module).__name__ != "Identity"
        ]
        return [partial(_numbered, len(layers))]
    found = next((schemes for kind, schemes in _PUBLISHED.items() if isinstance(network, kind)), ())
    return [partial(_substitute, substitutions) for substitutions in found]


def published_name(network: Network, name: str) -> str:
    """Return what EDC, G-VBSM or the network's library call one of its layers (``stages.0.0.conv1``) or tensors."""
    found = schemes(network)
    return found[0](name) if found else name
