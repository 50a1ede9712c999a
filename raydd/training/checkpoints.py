"""The state dict in a file that training left: found among optimisers, counters, averages and other networks.

A file may hold the network's weights bare, or under any keys, at any depth. Where several state
dicts in it fit the network, live weights go before averaged ones, in the order of :data:`LIVE`;
beyond that nothing is guessed: two that fit alike are refused.
"""

from __future__ import annotations

import argparse
import datetime
import pathlib
import re
import types
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from torch import Tensor

from raydd.artifacts.formats import load_pt
from raydd.core.errors import ConfigError, DataError, TornFileError
from raydd.core.tensors import Tensors
from raydd.networks.fitting import AVERAGED, Fit, extra_kind

LIVE = (
    "state_dict",
    "model",
    "net",
    "model_state_dict",
    "network",
    "model_state",
    "net_state_dict",
    "module",
    "weights",
    "params",
)
"""Keys of the weights that are being trained, the first of them to be taken first."""
_AVERAGES = ("state_dict_ema", "model_ema")
_NO_WEIGHTS = re.compile(
    r"optim|sched|scaler|grad|momentum|velocity|exp_avg|mask|hyper|config|arg(s|uments)$",
    re.IGNORECASE,
)
"""Keys below which tensors of the weights' names and shapes may lie that are none."""
_DEPTH = 6
Fits = Callable[[Tensors, str], Fit]


@dataclass(frozen=True)
class FoundWeights:
    """The state dict that fits: its keys in the file (none: it is bare), its names, and the keys of
    others that fit as well.
    """

    path: tuple[str, ...]
    state: Tensors
    fit: Fit
    others: tuple[tuple[str, ...], ...] = ()

    def notes(self) -> list[str]:
        """Return a line for a choice that was made, and one for each kind of thing that was left out."""
        lines = []
        if self.others:
            lines.append(
                f"the weights under {_key(self.path)} are read, those under {' and '.join(map(_key, self.others))}"
                " are not"
            )
        elif self.path and any(AVERAGED.fullmatch(key) for key in self.path):
            lines.append(f"the weights under {_key(self.path)} are read: an average, no other fits")
        elif self.path and self.path[-1] not in LIVE:
            lines.append(f"the weights under {_key(self.path)} are read")
        return [*lines, *self.fit.notes()]


def _emptied(*factory: Any) -> OrderedDict[Any, Any]:
    """Stand for the class ``defaultdict``, whose factory is not called."""
    return OrderedDict()


_SETTINGS = (
    *(
        "yacs.config.CfgNode",
        "easydict.EasyDict",
        "addict.addict.Dict",
        "ml_collections.config_dict.config_dict.ConfigDict",
    ),
    *(
        "lightning.fabric.utilities.data.AttributeDict",
        "lightning_fabric.utilities.data.AttributeDict",
    ),
    *("pytorch_lightning.utilities.parsing.AttributeDict", "mmengine.config.config.ConfigDict"),
)
"""Dictionaries in which libraries keep a training's settings: what they hold is read as a
dictionary, and none of them is imported.
"""
_PLAIN: tuple[Any, ...] = (
    argparse.Namespace,
    types.SimpleNamespace,
    np.ndarray,
    datetime.datetime,
    datetime.timedelta,
)
_BUILTIN: tuple[Any, ...] = (set, frozenset, list, dict, int, float, str)


@lru_cache(maxsize=1)
def _allowed() -> list[Any]:
    """Return what may stand beside weights: values, and classes that do nothing when they are made."""
    kinds = [getattr(np.dtypes, name) for name in dir(np.dtypes) if name.endswith("DType")]
    array: Any = np.zeros(0).__reduce__()[0]
    arrays = [
        (array, f"{module}.multiarray._reconstruct") for module in ("numpy.core", "numpy._core")
    ]
    names = ("PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath", "Path")
    paths = [
        (pathlib.PurePath, f"{module}.{name}")
        for module in ("pathlib", "pathlib._local")
        for name in names
    ]
    builtin = [
        (kind, f"{module}.{kind.__name__}")
        for module in ("builtins", "__builtin__")
        for kind in _BUILTIN
    ]
    settings = [(OrderedDict, name) for name in _SETTINGS]
    return [
        *_PLAIN,
        *builtin,
        *kinds,
        *arrays,
        *paths,
        *settings,
        (_emptied, "collections.defaultdict"),
    ]


def load_checkpoint(data: bytes, what: str) -> Any:
    """Return what a ``.pth`` file holds: tensors, numbers, and the arguments and paths that
    training scripts keep beside them.

    ``DataError`` naming ``what`` and the class for anything else, a whole pickled network included;
    ``TornFileError`` for broken bytes.
    """
    try:
        return load_pt(data, what, _allowed())
    except TornFileError as error:
        if "TorchScript" in str(error):
            raise DataError(
                f"{what} is a network compiled by TorchScript, which is code; save its state_dict()"
            ) from error
        raise


def find_weights(value: Any, what: str, fits: Fits) -> FoundWeights:
    """Return the state dict in ``value`` that ``fits`` a network (``ConfigError`` if it does not).

    ``DataError`` if there is none at all; ``ConfigError`` if none fits, saying why the likeliest
    does not, or if several fit alike.
    """
    if not isinstance(value, Mapping):
        raise DataError(f"{what} holds a {type(value).__name__}; a state dict is read")
    misfits: list[tuple[tuple[str, ...], int, ConfigError]] = []
    found = _search(value, (), what, fits, misfits)
    if found is not None:
        return found
    if not misfits:
        keys = sorted(map(str, value))[:8]
        raise DataError(
            f"{what} holds {keys}; a state dict is read, plain or under {', '.join(LIVE[:5])} or any other key"
        )
    raise min(misfits, key=lambda misfit: (_rank(misfit[0]), -misfit[1]))[2]


def _search(
    value: Mapping[Any, Any],
    path: tuple[str, ...],
    what: str,
    fits: Fits,
    misfits: list[tuple[tuple[str, ...], int, ConfigError]],
) -> FoundWeights | None:
    """Return the state dict in ``value`` that fits; add those that do not, with their number of
    tensors and the reason, to ``misfits``.
    """

    def try_out(state: Tensors) -> FoundWeights | None:
        try:
            return FoundWeights(path, state, fits(state, what))
        except ConfigError as error:
            misfits.append((path, len(state), error))
            return None

    own: Tensors = {str(key): part for key, part in value.items() if isinstance(part, Tensor)}
    found = try_out(own) if own else None
    if found is not None or len(path) >= _DEPTH:
        return found
    below = {
        str(key): part
        for key, part in value.items()
        if isinstance(part, Mapping) and not _NO_WEIGHTS.search(str(key))
    }
    inner = {
        key: _search(part, (*path, key), what, fits, misfits)
        for key, part in {**_averages(own), **below}.items()
    }
    fitting = {key: one for key, one in inner.items() if one is not None}
    if fitting:
        return _chosen(fitting, what)
    parts = [_flat(part, f"{key}.") for key, part in below.items()]
    whole = own | {name: tensor for part in parts for name, tensor in part.items()}
    return try_out(whole) if sum(map(bool, [own, *parts])) > 1 else None


def _averages(state: Tensors) -> dict[str, Tensors]:
    """Return the averaged weights in a state dict, by the first part of their names, if nothing
    else in it is a weight.
    """
    groups: dict[str, Tensors] = {}
    for name, tensor in state.items():
        first, _, rest = name.partition(".")
        if rest and AVERAGED.fullmatch(first):
            groups.setdefault(first, {})[rest] = tensor
        elif extra_kind(name, tensor) is None:
            return {}
    return groups


def _flat(value: Mapping[Any, Any], prefix: str) -> Tensors:
    found: Tensors = {}
    for key, part in value.items():
        if isinstance(part, Tensor):
            found[f"{prefix}{key}"] = part
        elif isinstance(part, Mapping) and not _NO_WEIGHTS.search(str(key)):
            found |= _flat(part, f"{prefix}{key}.")
    return found


def _chosen(fitting: Mapping[str, FoundWeights], what: str) -> FoundWeights:
    """Return the one to take of those that fit, by the keys they lie under; ``ConfigError`` if nothing tells."""
    known = [key for key in (*LIVE, *_AVERAGES) if key in fitting]
    if len(fitting) > 1 and (
        not known or (known[0] in _AVERAGES and any(not AVERAGED.fullmatch(key) for key in fitting))
    ):
        keys = " and ".join(_key(found.path) for found in fitting.values())
        raise ConfigError(
            f"{what} holds weights that fit under {keys}: save those that are meant alone, or under 'state_dict'"
        )
    first = known[0] if known else next(iter(fitting))
    found = fitting[first]
    others = [
        path
        for key, other in fitting.items()
        if key != first
        for path in (other.path, *other.others)
    ]
    return FoundWeights(found.path, found.state, found.fit, (*found.others, *others))


def _rank(path: tuple[str, ...]) -> tuple[int, ...]:
    order = (*LIVE, *_AVERAGES)
    return tuple(order.index(key) if key in order else len(order) for key in path)


def _key(path: tuple[str, ...]) -> str:
    return "'" + "'/'".join(path) + "'" if path else "no key"
