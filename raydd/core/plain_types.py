"""Whether plain values, as JSON gives them, are what annotations say."""

from __future__ import annotations

import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Le, Lt

from raydd.core.errors import ConfigError

LARGEST = 1e100
"""The largest number that is read as a float: sums and squares of a few stay numbers."""
_LISTS = (tuple, list, Sequence)


def is_of(value: Any, hint: Any) -> bool:
    """Return whether a value is of a type: numbers are finite and of usual size, texts can be
    written, lists stand for tuples, and what they hold is looked at, too.
    """
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        return is_of(value, parts[0]) and all(_keeps(value, bound) for bound in parts[1:])
    if origin in (typing.Union, types.UnionType):
        return any(is_of(value, part) for part in parts)
    if origin is Literal:
        return any(value == part and type(value) is type(part) for part in parts)
    if origin is tuple and parts[-1] is not Ellipsis:
        whole = isinstance(value, (tuple, list)) and len(value) == len(parts)
        return whole and all(map(is_of, value, parts))
    if origin in _LISTS:
        return isinstance(value, (tuple, list)) and all(is_of(one, parts[0]) for one in value)
    if origin in (dict, Mapping):
        return isinstance(value, Mapping) and all(
            is_of(key, parts[0]) and is_of(one, parts[1]) for key, one in value.items()
        )
    return _is_one(value, hint)


def _keeps(value: Any, bound: Any) -> bool:
    """Return whether a number keeps a bound of annotated_types; other annotations say nothing here."""
    return not (
        (isinstance(bound, Ge) and value < bound.ge)
        or (isinstance(bound, Gt) and value <= bound.gt)
        or (isinstance(bound, Le) and value > bound.le)
        or (isinstance(bound, Lt) and value >= bound.lt)
    )


def _is_one(value: Any, hint: Any) -> bool:
    if hint is Any:
        return True
    if hint in (None, type(None)):
        return value is None
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 1 << 63
    if hint is float:
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        return number and abs(value) <= LARGEST
    if hint is str:
        return isinstance(value, str) and not any("\ud800" <= c <= "\udfff" for c in value)
    return isinstance(value, hint) if isinstance(hint, type) else True


def check_fields(made: Any, what: str) -> None:
    """Raise ``ConfigError`` naming ``what`` and the field of a dataclass that is not of its type."""
    hints = typing.get_type_hints(type(made), include_extras=True)
    for f in fields(made):
        value = getattr(made, f.name)
        if not is_dataclass(value) and not is_of(value, hints[f.name]):
            shown = ascii(value)
            raise ConfigError(f"{what}: {f.name} cannot be {shown[:60]}{'…' * (len(shown) > 60)}")
