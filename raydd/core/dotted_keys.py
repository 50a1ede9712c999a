"""Nested groups of keys and the dotted names of what is in them: ``method.lr_img``."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

_ABSENT = object()


def is_empty(value: Any) -> bool:
    """Return whether there is nothing in a value."""
    return not value


def flatten(
    tree: Mapping[Any, Any], leaf: Callable[[Any], bool] = is_empty, prefix: str = ""
) -> dict[str, Any]:
    """Return nested groups as one mapping with dotted keys; of a key that stands twice the later value.

    ``leaf``: which groups are values themselves; by default those that are empty.
    """
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        name = f"{prefix}{key}"
        nested = isinstance(value, Mapping) and not leaf(value)
        flat |= flatten(value, leaf, f"{name}.") if nested else {name: value}
    return flat


def value_at(tree: Any, name: str) -> Any:
    """Return the value of a dotted key, ``None`` where there is none."""
    found = _found(tree, name)
    return None if found is _ABSENT else found


def has_key(tree: Any, name: str) -> bool:
    """Return whether there is a dotted key."""
    return _found(tree, name) is not _ABSENT


def _found(tree: Any, name: str) -> Any:
    for part in name.split("."):
        tree = tree.get(part, _ABSENT) if isinstance(tree, Mapping) else _ABSENT
    return tree


def with_values(tree: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """Return a tree with values set by dotted key; ``method: null`` before other keys of another method."""
    made: dict[str, Any] = copy.deepcopy(dict(tree))
    for name, value in values.items():
        if value == value_at(made, name):
            continue
        parts, at = name.split("."), made
        for part in parts[:-1]:
            if at.get(part) is None:
                at[part] = {}
            at = at[part]
        at[parts[-1]] = value
    return made
