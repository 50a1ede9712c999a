"""A plain tree of keys and values: read from a YAML file, changed by ``key.sub=value``."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import yaml

from raydd.core.errors import ConfigError, nearest

_MERGE = "tag:yaml.org,2002:merge"


class _NoDuplicates(yaml.SafeLoader):
    """YAML's safe loader, which also refuses a key that stands twice.

    Keys that a mapping takes from another (``<<: *name``) give way to its own.
    """

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Build a mapping; a repeated key is an error that names its line."""
        seen: set[Any] = set()
        for key_node, _ in node.value:
            if key_node.tag == _MERGE:
                continue
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise ConfigError(
                    f"line {key_node.start_mark.line + 1}: the key '{key}' stands twice"
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


def read_tree(path: str) -> dict[str, Any]:
    """Return the mapping that a YAML file holds; ``ConfigError`` for a file that is missing or holds none."""
    try:
        with open(path, encoding="utf-8") as file:
            tree = yaml.load(file, Loader=_NoDuplicates)  # noqa: S506 - a subclass of the safe loader
    except FileNotFoundError as error:
        folder = os.path.dirname(path) or "."
        there = (
            [os.path.join(folder, f) for f in os.listdir(folder) if f.endswith((".yaml", ".yml"))]
            if os.path.isdir(folder)
            else []
        )
        raise ConfigError(f"{path}: no such file{nearest(path, there)}") from error
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        raise ConfigError(
            f"{path}: not a readable YAML file: {' '.join(str(error).split())}"
        ) from error
    if not isinstance(tree, dict):
        found = "is empty" if tree is None else f"holds a {type(tree).__name__}"
        raise ConfigError(f"{path}: {found}; a mapping of keys to values is needed (key: value)")
    return tree


def apply_override(tree: dict[str, Any], override: str) -> None:
    """Set ``a.b=value`` in the tree; the value is read as YAML."""
    key, sign, text = override.partition("=")
    parts = key.strip().split(".")
    if not sign or not all(parts):
        raise ConfigError(f"override '{override}': write key.sub=value")
    try:
        value = yaml.load(text, Loader=_NoDuplicates)  # noqa: S506
    except yaml.YAMLError as error:
        raise ConfigError(
            f"override '{override}': the value is not YAML: {' '.join(str(error).split())}"
        ) from error
    if parts[0] in {"seed", "seeds"}:
        tree.pop("seeds" if parts[0] == "seed" else "seed", None)
    for depth, part in enumerate(parts[:-1]):
        below = tree.setdefault(part, {})
        if isinstance(below, str) and part == "method":
            below = tree[part] = {"name": below}
        if below is None:
            below = tree[part] = {}
        if not isinstance(below, dict):
            raise ConfigError(
                f"override '{override}': {'.'.join(parts[: depth + 1])} is the value {below!r}, not a group of keys"
            )
        tree = below
    whole = ".".join(parts)
    lost = _lost(
        tree.get(parts[-1]),
        {"name": value} if whole == "method" and isinstance(value, str) else value,
    )
    if lost:
        keep = (
            f"method.name={value}"
            if isinstance(value, str)
            else f"{whole}.KEY=VALUE for what changes"
        )
        named = ", ".join(f"{whole}.{name}" for name in lost)
        raise ConfigError(
            f"override '{override}' would drop {named}; write {keep}, or {whole}=null before it if they shall go"
        )
    tree[parts[-1]] = value


def _lost(old: Any, new: Any) -> list[str]:
    """Return the keys below a group that are no more when another takes its place; what is no group
    is refused elsewhere.
    """
    if not isinstance(old, Mapping) or not isinstance(new, Mapping):
        return []
    lost = [
        [name] if name not in new else [f"{name}.{deeper}" for deeper in _lost(below, new[name])]
        for name, below in old.items()
    ]
    return [key for keys in lost for key in keys]
