"""Names of networks: one grammar, the originals' names as aliases, and the pools that papers evaluate.

A zoo name is a family followed by options in any order, joined with ``_``:

- ``convnet<depth>_w<width>`` with one of ``relu sigmoid leakyrelu swish``, one of
  ``instancenorm batchnorm layernorm groupnorm nonorm`` and one of ``avgpool maxpool nopool``
  (defaults: ``convnet3_w128_relu_instancenorm_avgpool``; ``d<depth>`` may stand as an option:
  ``convnet_d4_w256_batchnorm``);
- ``mlp``, ``lenet``; ``alexnet_cifar`` [``batchnorm``]; ``vgg11_cifar`` (13, 16, 19) and
  ``resnet18_cifar`` (34, 50, 101, 152) [``batchnorm``, else instance norm; ResNets also
  ``avgpool``: poolings in place of strides, and ``kaiming``: convolutions initialised as
  N(0, 2 / fan_out)];
- ``wrn_<depth>_<width>`` (``wrn_16_2``), ``mobilenetv2_cifar`` and ``shufflenetv2_cifar`` (both of
  width 0.5), ``mobilenetv2x1_cifar`` (of width 1), ``efficientnetb0_cifar`` and
  ``shufflenetg2_cifar``, with batch norm.

``timm/<name>`` and ``torchvision/<name>`` are those libraries' models (timm's former names stand
for what it calls them now); a bare name that is none of the above is looked up in torchvision, then
in timm. Names are case-sensitive: ``ResNet18`` is an original's name, ``resnet18`` is
torchvision's.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Collection
from dataclasses import dataclass, field

from raydd.core.errors import ConfigError, nearest, unknown
from raydd.networks.classic import VGG_WIDTHS
from raydd.networks.convnet import ConvNetOptions
from raydd.networks.layers import ACTIVATIONS, NORMS, POOLINGS
from raydd.networks.resnet import RESNET_BLOCKS

ALIASES = {
    "MLP": "mlp",
    "LeNet": "lenet",
    "AlexNet": "alexnet_cifar",
    "AlexNetBN": "alexnet_cifar_batchnorm",
    "VGG11": "vgg11_cifar",
    "VGG11BN": "vgg11_cifar_batchnorm",
    "ResNet18": "resnet18_cifar",
    "ResNet18BN": "resnet18_cifar_batchnorm",
    "ResNet18BN_AP": "resnet18_cifar_batchnorm_avgpool",
    "ResNet18_AP": "resnet18_cifar_avgpool",
    **dict.fromkeys(
        ("ConvNet", "ConvNetD3", "ConvNetW128", "ConvNetAR", "ConvNetIN", "ConvNetAP"),
        "convnet3_w128",
    ),
    **{f"ConvNetD{depth}": f"convnet{depth}_w128" for depth in (1, 2, 4)},
    **{f"ConvNetW{width}": f"convnet3_w{width}" for width in (32, 64, 256)},
    "ConvNetAS": "convnet3_w128_sigmoid",
    "ConvNetAL": "convnet3_w128_leakyrelu",
    "ConvNetASwish": "convnet3_w128_swish",
    "ConvNetASwishBN": "convnet3_w128_swish_batchnorm",
    "ConvNetNN": "convnet3_w128_nonorm",
    "ConvNetBN": "convnet3_w128_batchnorm",
    "ConvNetLN": "convnet3_w128_layernorm",
    "ConvNetGN": "convnet3_w128_groupnorm",
    "ConvNetNP": "convnet3_w128_nopool",
    "ConvNetMP": "convnet3_w128_maxpool",
    "MobileNetV2": "mobilenetv2_cifar",
    "WRN_16_2": "wrn_16_2",
    "ShuffleNetV2_0_5": "shufflenetv2_cifar",
    **dict.fromkeys(("EfficientNetB0", "efficientnet"), "efficientnetb0_cifar"),
    **dict.fromkeys(("ShuffleNetG2", "shufflenet"), "shufflenetg2_cifar"),
    "mobilenetV2": "mobilenetv2x1_cifar",
}
"""Names in the code of DC, DSA and DM, then of EDC and G-VBSM (see ``EDC_RESNET18``), then of DWA and INFER, and
what they are called here.
"""

EDC_RESNET18 = "resnet18_cifar_batchnorm_kaiming"
"""What EDC and G-VBSM call ``ResNet18``, which in DC's code is a network with instance norm."""

_POOLS = {
    "M": ("MLP", "ConvNet", "LeNet", "AlexNet", "VGG11", "ResNet18"),
    "B": ("ConvNetBN", "ConvNetASwishBN", "AlexNetBN", "VGG11BN", "ResNet18BN"),
    "W": ("ConvNetW32", "ConvNetW64", "ConvNetW128", "ConvNetW256"),
    "D": ("ConvNetD1", "ConvNetD2", "ConvNetD3", "ConvNetD4"),
    "A": ("ConvNetAS", "ConvNetAR", "ConvNetAL", "ConvNetASwish"),
    "P": ("ConvNetNP", "ConvNetMP", "ConvNetAP"),
    "N": ("ConvNetNN", "ConvNetBN", "ConvNetLN", "ConvNetIN", "ConvNetGN"),
}
POOLS = ("S", "SS", *_POOLS)
"""Letters that :func:`pool` knows."""

_FAMILY = re.compile(
    r"(convnet|vgg|resnet)(\d*)|mlp|lenet|alexnet|wrn|mobilenetv2(x1)?|shufflenet(v2|g2)|efficientnetb0"
)
_LIBRARIES = ("timm", "torchvision")


@dataclass(frozen=True, kw_only=True)
class ZooName:
    """A parsed zoo name.

    ``layers``: of a VGG, ResNet or WideResNet. ``width``: of a WideResNet. ``pooled``: the
    average-pool variant of a ResNet; ``kaiming``: its initialisation.
    """

    family: str
    convnet: ConvNetOptions = field(default_factory=ConvNetOptions)
    layers: int = 0
    norm: str = "nonorm"
    pooled: bool = False
    kaiming: bool = False
    width: int = 0

    def __str__(self) -> str:
        if self.family == "convnet":
            o, d = self.convnet, ConvNetOptions()
            kinds = [
                k
                for k, default in (
                    (o.activation, d.activation),
                    (o.norm, d.norm),
                    (o.pooling, d.pooling),
                )
                if k != default
            ]
            return "_".join([f"convnet{o.depth}", f"w{o.width}", *kinds])
        if self.family in ("mlp", "lenet"):
            return self.family
        if self.family == "wrn":
            return f"wrn_{self.layers}_{self.width}"
        name = f"{self.family}{self.layers or ''}_cifar"
        return (
            name
            + "_batchnorm" * (self.norm == "batchnorm")
            + "_avgpool" * self.pooled
            + "_kaiming" * self.kaiming
        )


def zoo_names() -> list[str]:
    """Return the zoo's canonical names (of ConvNets the published ones; any depth and width exists)."""
    norms = ("", "_batchnorm")
    vgg = [f"vgg{n}_cifar{norm}" for n in VGG_WIDTHS for norm in norms]
    resnet = [
        f"resnet{n}_cifar{norm}{ap}"
        for n in RESNET_BLOCKS
        for norm in norms
        for ap in ("", "_avgpool")
    ]
    return sorted({*ALIASES.values(), EDC_RESNET18, *vgg, *resnet})


def parse_zoo_name(name: str) -> ZooName | None:
    """Return the meaning of a zoo name or alias; ``None`` if it is no zoo name; ``ConfigError`` if
    it is one with bad options.
    """
    head, *options = ALIASES.get(name, name).split("_")
    match = _FAMILY.fullmatch(head)
    if not match:
        return None
    family, number = match.group(1) or head, match.group(2) or ""
    if family == "convnet":
        return ZooName(family=family, convnet=_convnet_options(name, number, options))
    if family in ("mlp", "lenet"):
        if options:
            raise ConfigError(f"network '{name}': {family} has no options, got '{options[0]}'")
        return ZooName(family=family)
    if family == "wrn":
        return _wrn_name(name, options)
    if not options or options[0] != "cifar":
        return None
    return _cifar_name(name, family, number, options[1:])


def _convnet_options(name: str, number: str, options: list[str]) -> ConvNetOptions:
    found: dict[str, str | int] = {"depth": int(number)} if number else {}
    kinds = {
        **dict.fromkeys(ACTIVATIONS, "activation"),
        **dict.fromkeys(NORMS, "norm"),
        **dict.fromkeys(POOLINGS, "pooling"),
    }
    for option in options:
        sized = re.fullmatch(r"([dw])(\d+)", option)
        if not sized and option not in kinds:
            raise unknown(f"option of network '{name}':", option, [*kinds, "d<depth>", "w<width>"])
        key = {"d": "depth", "w": "width"}[sized.group(1)] if sized else kinds[option]
        if key in found:
            raise ConfigError(
                f"network '{name}': {key} is given twice ('{found[key]}' and '{option}')"
            )
        found[key] = int(sized.group(2)) if sized else option
    result = ConvNetOptions(**found)  # type: ignore[arg-type]
    if not (1 <= result.depth <= 12 and 1 <= result.width <= 8192):
        raise ConfigError(
            f"network '{name}': depth must be 1 to 12 and width 1 to 8192, got {result.depth} and {result.width}"
        )
    if result.norm == "groupnorm" and result.width % 4:
        raise ConfigError(
            f"network '{name}': groupnorm has 4 groups, so the width must be a multiple of 4, got {result.width}"
        )
    return result


def _wrn_name(name: str, options: list[str]) -> ZooName:
    if len(options) != 2 or not all(option.isdecimal() for option in options):
        raise ConfigError(
            f"network '{name}': a WideResNet is called wrn_<depth>_<width>, such as wrn_16_2"
        )
    depth, width = int(options[0]), int(options[1])
    if depth < 10 or (depth - 4) % 6 or not 1 <= width <= 64:
        raise ConfigError(
            f"network '{name}': depth must be 10, 16, 22, … (6n + 4) and width 1 to 64, got {depth} and {width}"
        )
    return ZooName(family="wrn", layers=depth, width=width)


def _cifar_name(name: str, family: str, number: str, options: list[str]) -> ZooName:
    families: dict[str, Collection[int]] = {"vgg": VGG_WIDTHS, "resnet": RESNET_BLOCKS}
    sizes = families.get(family, ())
    layers = int(number) if number else 0
    if sizes and layers not in sizes:
        raise unknown("network", name, zoo_names())
    norms = ["batchnorm", "instancenorm"]
    allowed = {"alexnet": norms[:1], "vgg": norms, "resnet": [*norms, "avgpool", "kaiming"]}.get(
        family, []
    )
    for option in options:
        if not allowed:
            raise ConfigError(f"network '{name}': {family}_cifar has no options, got '{option}'")
        if option not in allowed or options.count(option) > 1:
            raise unknown(f"option of network '{name}':", option, allowed)
    if {"batchnorm", "instancenorm"} <= set(options):
        raise ConfigError(f"network '{name}': norm is given twice")
    plain = "instancenorm" if family in families else "nonorm"
    norm = "batchnorm" if "batchnorm" in options else plain
    return ZooName(
        family=family,
        layers=layers,
        norm=norm,
        pooled="avgpool" in options,
        kaiming="kaiming" in options,
    )


def normalise_name(name: str) -> str:
    """Return the one spelling of a network's name that goes into keys and reports.

    Raises ``ConfigError`` with the nearest match for a name that neither the zoo, torchvision nor timm knows.
    """
    zoo = parse_zoo_name(name)
    if zoo is not None:
        return str(zoo)
    from raydd.networks.external import external_name

    if "/" in name:
        library, model = name.split("/", 1)
        if library not in _LIBRARIES:
            raise ConfigError(
                f"unknown network '{name}': the part before '/' must be timm or"
                f" torchvision{nearest(library, _LIBRARIES)}"
            )
        found = external_name(library, model)
        if found is None:
            raise unknown(f"{library} model", model, list_networks(f"{library}/*", bare=True))
        return f"{library}/{found}"
    for library in ("torchvision", "timm"):
        if (found := external_name(library, name)) is not None:
            return f"{library}/{found}"
    known = [
        *zoo_names(),
        *ALIASES,
        *list_networks("torchvision/*", bare=True),
        *list_networks("timm/*", bare=True),
    ]
    hint = nearest(name, known)
    raise ConfigError(
        f"unknown network '{name}'{hint}; allowed: {', '.join(zoo_names()[:8])}, …, or any model of torchvision or timm"
    )


def spellings(name: str) -> list[str]:
    """Return what files call a network: its canonical name without a library's, then the originals'
    names, or timm's former ones.
    """
    from raydd.networks.external import former_names

    canonical = normalise_name(name)
    theirs = [alias for alias, network in ALIASES.items() if network == canonical]
    small = re.fullmatch(r"(resnet\d+)_cifar_batchnorm(_kaiming)?", canonical)
    return [
        canonical.split("/", 1)[-1],
        *theirs,
        *(["ResNet18"] if canonical == EDC_RESNET18 else []),
        *([small.group(1)] if small else []),  # DWA and INFER, of ResNets for small images
        *former_names(canonical),
    ]


def list_networks(pattern: str = "*", *, bare: bool = False) -> list[str]:
    """Return the canonical names that match a shell pattern such as ``"*resnet*"``; with ``bare``,
    without library prefixes.
    """
    from raydd.networks.external import external_names

    names = zoo_names()
    for library in _LIBRARIES:
        names += [f"{library}/{name}" for name in external_names(library)]
    found = fnmatch.filter(names, pattern)
    return [name.split("/", 1)[-1] for name in found] if bare else found


def strip_batchnorm(name: str) -> str:
    """Return the network that pool ``S`` evaluates in place of one with batch norm.

    See docs/methods/evaluation.md, "Pools of networks".

    Everything from "BN" on is cut off the original name: instance norm takes its place in ConvNets,
    VGGs and ResNets (whose average-pool variant becomes the strided one), and nothing takes it in
    AlexNet. Names without batch norm are unchanged.
    """
    zoo = parse_zoo_name(name)
    if zoo is None:
        return normalise_name(name)
    if zoo.family == "convnet" and zoo.convnet.norm == "batchnorm":
        # In an original's name whatever follows "BN" would go too; only an activation ever precedes
        # it, and a pooling never follows.
        options = zoo.convnet
        kept = ConvNetOptions(
            depth=options.depth,
            width=options.width,
            activation=options.activation,
            pooling=options.pooling,
        )
        return str(ZooName(family="convnet", convnet=kept))
    if zoo.norm == "batchnorm":
        plain = "nonorm" if zoo.family == "alexnet" else "instancenorm"
        return str(ZooName(family=zoo.family, layers=zoo.layers, norm=plain, kaiming=zoo.kaiming))
    return str(zoo)


def pool(letter: str, network: str) -> tuple[str, ...]:
    """Return the canonical names that an evaluation pool holds (docs/methods/evaluation.md, "Pools of networks").

    ``S``: the network that distilled, without its batch norm; ``SS``: as it is; ``M B W D A P N``:
    the published sets of architectures, batch-norm networks, widths, depths, activations, poolings,
    norms.
    """
    if letter not in POOLS:
        raise unknown("evaluation pool", letter, POOLS)
    if letter == "S":
        return (strip_batchnorm(network),)
    if letter == "SS":
        return (normalise_name(network),)
    return tuple(ALIASES[name] for name in _POOLS[letter])
