"""Weights of others: what published files call the layers of our networks, and loading them.

A scheme turns the name of one of our parameters, buffers or layers into that of a published state dict.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor

from raydd.core.errors import ConfigError
from raydd.networks.base import Network
from raydd.networks.convnet import ConvNet
from raydd.networks.external import ExternalNetwork
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
_RESNET = (_stages("layer#"), _NORMS, (r"shortcut\.conv", "shortcut.0"), (r"shortcut\.norm", "shortcut.1"))
_TORCH_RESNET = (_stages("layer#"), _NORMS, (r"shortcut\.conv", "downsample.0"), (r"shortcut\.norm", "downsample.1"))
_LINEAR, _FC = (r"^classifier\b", "linear"), (r"^classifier\b", "fc")
_MOBILENET = (
    (r"^stages\.(\d+)\.(\d+)\.conv(\d)", _in_sequence(0)),
    (r"^stages\.(\d+)\.(\d+)\.norm(\d)", _in_sequence(1)),
    (r"^conv(\d)", r"conv\1.0"),
    (r"^norm(\d)", r"conv\1.1"),
)

_PUBLISHED: dict[type[Network], tuple[tuple[_Substitution, ...], ...]] = {
    ResNet: ((*_RESNET, _LINEAR), (*_TORCH_RESNET, _FC), _RESNET),
    WideResNet: ((_stages("block#.layer"), _NORMS, (r"\bshortcut\b", "convShortcut"), _FC),),
    MobileNetV2: ((*_MOBILENET, (r"^classifier\b", "classifier.0")), _MOBILENET),
    ShuffleNetV2: ((_stages("layer#"), _NORMS, _LINEAR),),
}
"""By architecture: the names of EDC and G-VBSM first; of ResNets then torchvision's, and DC's."""


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
    return re.sub(r"^classifier\b", head, name) if name.startswith("classifier") else name.removeprefix("body.")


def schemes(network: Network) -> list[Scheme]:
    """Return the published spellings of a network's names, the most usual one first; none where only our own is known."""
    if isinstance(network, ExternalNetwork):
        return [partial(_in_library, network.head)]
    if isinstance(network, ConvNet):
        layers = [module for module in network.features[0].children() if type(module).__name__ != "Identity"]
        return [partial(_numbered, len(layers))]
    found = next((schemes for kind, schemes in _PUBLISHED.items() if isinstance(network, kind)), ())
    return [partial(_substitute, substitutions) for substitutions in found]


def published_name(network: Network, name: str) -> str:
    """Return what EDC, G-VBSM or the network's library call one of its layers (``stages.0.0.conv1``) or tensors."""
    found = schemes(network)
    return found[0](name) if found else name


def load_published_(network: Network, state: Mapping[str, Tensor], what: str, *, head: bool = True) -> None:
    """Fill a network in place with weights under our own names or published ones; ``ConfigError`` naming ``what`` on a misfit.

    ``head=False``: all but the last linear layer, which stays as it is whatever the file holds (a new head). Counters of
    batches that old files lack stay, too.
    """
    own = network.state_dict()
    kept = set() if head else {name for name in own if name.startswith("classifier.")}
    wanted = {name for name in own if name not in kept and not name.endswith("num_batches_tracked")}
    candidates = [{name: name for name in own}, *({name: scheme(name) for name in own} for scheme in schemes(network))]

    def misfits(names: Mapping[str, str]) -> tuple[list[str], list[str]]:
        known = set(names.values())
        return [names[name] for name in own if name in wanted and names[name] not in state], [key for key in state if key not in known]

    names = min(candidates, key=lambda names: sum(map(len, misfits(names))))
    missing, extra = misfits(names)
    if missing or extra:
        lacks = f"lacks {_few(missing)}" if missing else ""
        holds = f"also holds {_few(extra)}" if extra else ""
        raise ConfigError(f"{what} does not hold the weights of network '{network.name}': it {' and '.join(filter(None, (lacks, holds)))}")
    found = {name: state[theirs] for name, theirs in names.items() if theirs in state and name not in kept}
    for name, tensor in found.items():
        if tensor.shape != own[name].shape:
            raise ConfigError(f"{what} does not fit: {_difference(network, name, own[name].shape, tensor.shape)}")
    with torch.no_grad():
        for name, tensor in found.items():
            own[name].copy_(tensor)


def _few(names: list[str]) -> str:
    return ", ".join(f"'{name}'" for name in names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _difference(network: Network, name: str, ours: torch.Size, theirs: torch.Size) -> str:
    channels, height, width = network.shape
    if name.startswith("classifier.") and ours[0] != theirs[0]:
        return f"its network '{network.name}' knows {theirs[0]} classes, the data set has {ours[0]}"
    if len(ours) == 4 and len(theirs) == 4 and ours[1] == channels != theirs[1] and ours[0] == theirs[0] and ours[2:] == theirs[2:]:
        return f"its network '{network.name}' reads images of {theirs[1]} channels, the data set has {channels}"
    if name.startswith("classifier."):
        return f"its last layer reads {theirs[1]} features, those of {channels}x{height}x{width} images are {ours[1]}: another image size"
    return f"'{name}' is {list(theirs)}, in network '{network.name}' for {channels}x{height}x{width} images it is {list(ours)}"
