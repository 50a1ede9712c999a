"""Which tensor of a state dict is which of a network's: a bijection of names, up to wrappers and known extras.

Wrappers: what DataParallel, DDP, ``torch.compile``, FSDP and the like put into names at any depth;
what stands before all names alike; and the usual names of an attribute that holds the network.
Known extras, which are no part of what the network computes: counters, auxiliary heads, averaged
weights beside live ones, weights of a loss, tables that the network builds itself. A parameter that
is missing, or one more that is none of these, is refused by name: shapes are compared, and never
decide what a tensor is.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from raydd.core.errors import ConfigError
from raydd.networks.network import Network
from raydd.networks.released import Scheme, schemes

WRAPPERS = (
    "module",
    "_module",
    "_orig_mod",
    "_orig_module",
    "_fsdp_wrapped_module",
    "_checkpoint_wrapped_module",
    "_forward_module",
)
"""Parts of names that wrappers add, at any depth."""
HOLDERS = (
    "model",
    "net",
    "network",
    "backbone",
    "encoder",
    "base",
    "base_model",
    "base_network",
    "trunk",
    "body",
    "feature_extractor",
)
"""What people call the attribute that holds a network whose last layer lies beside it."""
HEADS = re.compile(
    r"(fc|head|heads|classifier|classif|linear|last_linear|cls_head|output)(\.(fc|head|linear|classifier|\d+))?"
)
"""What the last linear layer is called, here and there; only asked where it alone has no partner on both sides."""
AVERAGED = re.compile(r"(?:.*_)?(ema|swa|averaged?|avg|shadow)(?:_.*)?")
"""Keys of a file that hold moving averages of weights."""

_COUNTERS = ("total_ops", "total_params")
_ALONE = (
    *(
        "n_averaged",
        "initted",
        "num_updates",
        "updates",
        "decay",
        "step",
        "steps",
        "global_step",
        "iter",
        "iteration",
        "epoch",
        "loss",
    ),
    *("acc", "best_acc", "best_acc1", "best_prec1", "val_acc", "test_acc"),
)
_FIRST: tuple[tuple[re.Pattern[str], str], ...] = (
    (
        re.compile(r"aux\d+|aux_?logits|aux_classifier|aux(iliary)?_heads?", re.IGNORECASE),
        "auxiliary heads",
    ),
    (re.compile(r"(criterion|loss|loss_fn|loss_func|loss_function)s?"), "weights of a loss"),
    (AVERAGED, "averaged weights"),
)
_TABLES = "tables that the network builds itself"
_BATCHES = "counters of batches"
_OLD = (
    (re.compile(r"(denselayer\d+\.(?:norm|conv))\.([12])\b"), r"\1\2"),
    (re.compile(r"\bmlp\.linear_1\b"), "mlp.0"),
    (re.compile(r"\bmlp\.linear_2\b"), "mlp.3"),
)
"""Torchvision's oldest spellings, of DenseNets and transformers, in which it still publishes weights."""

_Spelling = Mapping[str, str]


@dataclass(frozen=True)
class Fit:
    """``names``: what the state dict calls each of our tensors that it holds. ``dropped``: names
    that are left out, by what they are.
    """

    names: Mapping[str, str]
    dropped: Mapping[str, list[str]] = field(default_factory=dict)

    def notes(self) -> list[str]:
        """Return a line for each kind of thing that was left out, counters of batches aside."""
        kinds = {kind: names for kind, names in self.dropped.items() if kind != _BATCHES}
        return [f"left out: {len(names)} {kind} ({_few(names)})" for kind, names in kinds.items()]


def extra_kind(name: str, tensor: Tensor) -> str | None:
    """Return what a tensor is that no network computes with, by its name; ``None`` for anything else."""
    first, _, rest = name.partition(".")
    last = name.rpartition(".")[2]
    if last == "num_batches_tracked":
        return _BATCHES
    if tensor.numel() == 1 and last in _COUNTERS:
        return "counters of a profiler"
    if tensor.numel() == 1 and (last == "n_averaged" or name in _ALONE):
        return "counters of a training"
    return next((kind for pattern, kind in _FIRST if rest and pattern.fullmatch(first)), None)


def fit(network: Network, state: Mapping[str, Tensor], what: str, *, head: bool = True) -> Fit:
    """Return which of ``state``'s tensors are which of the network's; ``ConfigError`` naming
    ``what`` if they are not one to one.

    ``head=False``: the last linear layer stays as it is, whatever the file holds. Counters of
    batches and tables of whole numbers, which a network has when it is built, may be missing.
    """
    own = network.state_dict()
    kept = set() if head else {name for name in own if name.startswith("classifier.")}
    wanted = [
        name for name, tensor in own.items() if name not in kept and tensor.is_floating_point()
    ]
    missing, extra, found = _nearest(network, own, wanted, kept, state)
    if missing or extra:
        lacks = f"lacks {_few(missing)}" if missing else ""
        holds = f"also holds {_few(extra)}" if extra else ""
        raise ConfigError(
            f"{what} does not hold the weights of network '{network.name}': it"
            f" {' and '.join(filter(None, (lacks, holds)))}"
        )
    found = Fit(
        {name: theirs for name, theirs in found.names.items() if name not in kept}, found.dropped
    )
    for name, theirs in found.names.items():
        if state[theirs].shape != own[name].shape:
            raise ConfigError(
                f"{what} does not fit: {_difference(network, name, own[name].shape, state[theirs].shape)}"
            )
        if own[name].is_floating_point() and not state[theirs].is_floating_point():
            raise ConfigError(
                f"{what} does not fit: '{theirs}' is {state[theirs].dtype}; weights are read as floating-point numbers"
            )
    return found


def _nearest(
    network: Network,
    own: Mapping[str, Tensor],
    wanted: Sequence[str],
    kept: set[str],
    state: Mapping[str, Tensor],
) -> tuple[list[str], list[str], Fit]:
    """Return what is missing and what is left over in the spelling of names, ours and the file's,
    where these are fewest.
    """
    tables = {name: buffer for name, buffer in network.named_buffers() if name not in own}
    called: list[Scheme] = [str, *schemes(network)]
    known = [
        (
            {name: scheme(name) for name in own},
            {scheme(name): table for name, table in tables.items()},
        )
        for scheme in called
    ]
    best: tuple[list[str], list[str], Fit] | None = None
    for spelling in _spellings(state):
        for names, built in known:
            found = _misfits(names, wanted, spelling, state, built)
            if len(found[0]) + len(found[1]) <= 4:
                found = _other_head(names, kept, *found, spelling)
            if best is None or len(found[0]) + len(found[1]) < len(best[0]) + len(best[1]):
                best = found
            if not found[0] and not found[1]:
                return found
    return best or (list(wanted), [], Fit({}))


def load_published_(
    network: Network, state: Mapping[str, Tensor], what: str, *, head: bool = True
) -> Fit:
    """Fill a network in place with weights under our own names or published ones; ``ConfigError``
    naming ``what`` on a misfit.

    See :func:`fit`, whose result is returned.
    """
    found, own = fit(network, state, what, head=head), network.state_dict()
    with torch.no_grad():
        for name, theirs in found.names.items():
            own[name].copy_(state[theirs])
    return found


def _misfits(
    names: _Spelling,
    wanted: Sequence[str],
    spelling: _Spelling,
    state: Mapping[str, Tensor],
    tables: Mapping[str, Tensor],
) -> tuple[list[str], list[str], Fit]:
    """Return what is missing (their names), what is there besides (as the file has it), and the rest, one to one."""
    known = set(names.values())
    extra: list[str] = []
    dropped: dict[str, list[str]] = {}
    for key, theirs in spelling.items():
        if key in known:
            continue
        kind = extra_kind(key, state[theirs])
        if (
            kind is None
            and key in tables
            and torch.equal(tables[key].cpu(), state[theirs].to(tables[key].dtype))
        ):
            kind = _TABLES
        if kind is None:
            extra.append(theirs)
        else:
            dropped.setdefault(kind, []).append(theirs)
    missing = [names[name] for name in wanted if names[name] not in spelling]
    return (
        missing,
        extra,
        Fit(
            {name: spelling[theirs] for name, theirs in names.items() if theirs in spelling},
            dropped,
        ),
    )


def _other_head(
    names: _Spelling,
    kept: set[str],
    missing: list[str],
    extra: list[str],
    found: Fit,
    spelling: _Spelling,
) -> tuple[list[str], list[str], Fit]:
    """Pair the last linear layer with one of another usual name, if these two are all that has no partner."""
    back = {theirs: name for name, theirs in spelling.items()}
    ours = {
        name.removeprefix("classifier."): name for name in names if name.startswith("classifier.")
    }
    theirs = {back[name].rpartition(".")[2]: name for name in extra}
    called = {back[name].rpartition(".")[0] for name in extra}
    if (
        len(called) != 1
        or not HEADS.fullmatch(next(iter(called)))
        or set(theirs) != set(ours)
        or len(theirs) != len(extra)
    ):
        return missing, extra, found
    if kept and not missing:
        return [], [], found
    if set(missing) != {names[name] for name in ours.values()}:
        return missing, extra, found
    return (
        [],
        [],
        Fit({**found.names, **{ours[part]: theirs[part] for part in ours}}, found.dropped),
    )


def _spellings(state: Mapping[str, Tensor]) -> Iterator[_Spelling]:
    """Yield ways to read a state dict's names, from new name to its own, the nearest first; none
    makes two names one.
    """
    as_is = {name: name for name in state}
    seen: list[_Spelling] = []
    for first in (as_is, _renamed(as_is, _modern)):
        for base in (first, _renamed(first, _unwrapped)):
            if base is None:
                continue
            weights = [name for name in base if extra_kind(name, state[base[name]]) is None]
            options = [
                base,
                *(_renamed(base, _cut(prefix)) for prefix in _shared(weights)),
                _renamed(base, _released),
            ]
            for option in options:
                if option is not None and option not in seen:
                    seen.append(option)
                    yield option


def _renamed(names: _Spelling | None, change: Callable[[str], str]) -> dict[str, str] | None:
    changed = {change(name): theirs for name, theirs in (names or {}).items()}
    return changed if names is not None and len(changed) == len(names) else None


def _modern(name: str) -> str:
    for pattern, replacement in _OLD:
        name = pattern.sub(replacement, name)
    return name


def _unwrapped(name: str) -> str:
    return ".".join(part for part in name.split(".") if part not in WRAPPERS) or name


def _released(name: str) -> str:
    parts = name.split(".")
    while len(parts) > 1 and parts[0] in HOLDERS:
        parts = parts[1:]
    return ".".join(parts)


def _cut(prefix: str) -> Callable[[str], str]:
    return lambda name: name.removeprefix(prefix)


def _shared(names: list[str]) -> list[str]:
    """Return what stands before all names alike, ``a.`` and then ``a.b.``."""
    shared, parts = [], [name.split(".")[:-1] for name in names]
    for depth in range(1, min(map(len, parts), default=0) + 1):
        if len({tuple(part[:depth]) for part in parts}) > 1:
            break
        shared.append(".".join([*parts[0][:depth], ""]))
    return shared


def _few(names: list[str]) -> str:
    return ", ".join(f"'{name}'" for name in names[:3]) + (
        f" and {len(names) - 3} more" if len(names) > 3 else ""
    )


def _difference(network: Network, name: str, ours: torch.Size, theirs: torch.Size) -> str:
    channels, height, width = network.shape
    if name.startswith("classifier.") and ours[0] != theirs[0]:
        return f"its network '{network.name}' knows {theirs[0]} classes, the data set has {ours[0]}"
    if (
        len(ours) == 4
        and len(theirs) == 4
        and ours[1] == channels != theirs[1]
        and ours[0] == theirs[0]
        and ours[2:] == theirs[2:]
    ):
        return f"its network '{network.name}' reads images of {theirs[1]} channels, the data set has {channels}"
    if name.startswith("classifier."):
        return (
            f"its last layer reads {theirs[1]} features, those of {channels}x{height}x{width} images are {ours[1]}:"
            " another image size"
        )
    return (
        f"'{name}' is {list(theirs)}, in network '{network.name}' for {channels}x{height}x{width} images it is"
        f" {list(ours)}"
    )
