"""A plain tree of keys and values: read from a YAML file, changed by ``key.sub=value``."""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from raydd.core.errors import ConfigError, nearest
from raydd.core.redaction import redact, secret_in

TAKEN = "<<"
"""The key of a tree below which lie the mappings of which a mapping takes what it does not say itself."""
_MERGE = "tag:yaml.org,2002:merge"
DEPTH, VALUES = 32, 100_000
"""Groups of keys and lists within each other; values in a file, those of aliases counted wherever they stand."""
_SECRETS = (
    "credentials belong in the environment (docs/storage.md; for MLflow MLFLOW_TRACKING_USERNAME and"
    " MLFLOW_TRACKING_PASSWORD)"
)
_LENGTH, _MERGED, _KEYS = 1 << 20, 16, 4096


class _Strict(yaml.SafeLoader):
    """YAML's safe loader, which also refuses a key that stands twice, or is no plain value, and what
    unfolds to much more than is written.

    What a mapping takes from others (``<<: *name``) stays below :data:`TAKEN`, as the very mappings,
    so that it changes with them: :func:`settled`.
    """

    def __init__(self, stream: Any) -> None:
        super().__init__(stream)
        self._depth = 0

    def compose_node(self, parent: Any, index: Any) -> yaml.Node | None:
        """Read a value; one that lies too deep is an error."""
        self._depth += 1
        if self._depth > DEPTH:
            raise ConfigError(f"line {self.line + 1}: it is nested deeper than {DEPTH}")
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Build a mapping; a repeated key is an error that names its line."""
        seen: set[Any] = set()
        own: list[tuple[yaml.Node, yaml.Node]] = []
        taken: list[yaml.Node] = []
        for key_node, value_node in node.value:
            if key_node.tag == _MERGE:
                several = isinstance(value_node, yaml.SequenceNode)
                taken += value_node.value if several else [value_node]
                continue
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, (str, int, float)) and key is not None:
                raise ConfigError(
                    f"line {key_node.start_mark.line + 1}: a key is a word or a number, no {type(key).__name__}"
                )
            if key in seen:
                raise ConfigError(
                    f"line {key_node.start_mark.line + 1}: the key '{key}' stands twice"
                )
            seen.add(key)
            own.append((key_node, value_node))
        line = node.start_mark.line + 1
        if len(taken) > _MERGED:
            raise ConfigError(f"line {line}: '<<' takes more than {_MERGED} mappings")
        if len(own) > _KEYS:
            raise ConfigError(f"line {line}: a mapping of more than {_KEYS} keys")
        for other in taken:
            if not isinstance(other, yaml.MappingNode):
                raise ConfigError(
                    f"line {other.start_mark.line + 1}: '<<' takes the keys of a mapping, or of a list of them"
                )
        found = super().construct_mapping(
            yaml.MappingNode(node.tag, own, node.start_mark, node.end_mark), deep
        )
        others = [self.construct_object(other, deep=deep) for other in taken]
        return {TAKEN: others, **found} if others else found


def settled(tree: Any) -> Any:
    """Return a tree in which mappings hold what they take from others, as these are now."""
    if isinstance(tree, Mapping):
        found: dict[Any, Any] = {}
        for other in reversed(tree.get(TAKEN, ())):
            found |= settled(other)
        return found | {key: settled(value) for key, value in tree.items() if key != TAKEN}
    return [settled(value) for value in tree] if isinstance(tree, list) else tree


def parse_yaml(text: str | bytes) -> Any:
    """Return the plain values (no dates, sets or bytes) that a YAML text holds.

    ``ConfigError`` for any other text: one that is no YAML, too long, nested too deeply, or whose
    aliases unfold to more than :data:`VALUES` values.
    """
    if len(text) > _LENGTH:
        raise ConfigError(f"{len(text)} characters; at most {_LENGTH} are read")
    try:
        value = yaml.load(text, Loader=_Strict)  # noqa: S506 - a subclass of the safe loader
        _unfold(value, {}, set())
    except ConfigError:
        raise
    except (
        Exception
    ) as error:  # numbers and dates that are none, and whatever else the library meets
        raise ConfigError(" ".join(str(error).split()) or type(error).__name__) from error
    return value


def _unfold(value: Any, sizes: dict[int, int], within: set[int]) -> int:
    """Return how many values a value holds; ``ConfigError`` for too many, and for others than plain ones."""
    if value is None or isinstance(value, (str, int, float)):
        return 1
    if not isinstance(value, (dict, list)):
        raise ConfigError(f"'{value}' is a {type(value).__name__}; write it in quotes")
    if id(value) in within:
        raise ConfigError("an alias stands within what it names")
    if id(value) not in sizes:
        within.add(id(value))
        parts = value.values() if isinstance(value, dict) else value
        sizes[id(value)] = 1 + sum(_unfold(part, sizes, within) for part in parts)
        within.discard(id(value))
        if sizes[id(value)] > VALUES:
            raise ConfigError(f"its aliases unfold to more than {VALUES} values")
    return sizes[id(value)]


def read_tree(path: str) -> dict[str, Any]:
    """Return the mapping that a YAML file holds, what mappings take from others not :func:`settled`;
    ``ConfigError`` for a file that is missing or holds none.
    """
    try:
        with open(path, encoding="utf-8") as file:
            text = file.read(_LENGTH + 1)
        tree = parse_yaml(text)
    except FileNotFoundError as error:
        folder = os.path.dirname(path) or "."
        there = (
            [os.path.join(folder, f) for f in os.listdir(folder) if f.endswith((".yaml", ".yml"))]
            if os.path.isdir(folder)
            else []
        )
        raise ConfigError(f"{path}: no such file{nearest(path, there)}") from error
    except (ConfigError, UnicodeDecodeError, OSError) as error:
        raise ConfigError(
            f"{path}: not a readable YAML file: {' '.join(str(error).split())}"
        ) from error
    _refuse_secrets(tree, path)
    if not isinstance(tree, dict):
        found = "is empty" if tree is None else f"holds a {type(tree).__name__}"
        raise ConfigError(f"{path}: {found}; a mapping of keys to values is needed (key: value)")
    return tree


def _refuse_secrets(tree: Any, path: str) -> None:
    """Raise ``ConfigError`` for a credential in a tree; what a job says is kept, shown and sent to others."""
    found = secret_in(tree)
    if found is not None:
        raise ConfigError(f"{path}: {_SECRETS}, not in {found or 'it'}")


def apply_override(tree: dict[str, Any], override: str) -> None:
    """Set ``a.b=value`` in the tree; the value is read as YAML."""
    key, sign, text = override.partition("=")
    if redact(override) != override:
        raise ConfigError(f"override: {_SECRETS}, not in {redact(key)}")
    parts = key.strip().split(".")
    if not sign or not all(parts) or TAKEN in parts:
        raise ConfigError(f"override '{override}': write key.sub=value")
    try:
        value = parse_yaml(text)
    except ConfigError as error:
        raise ConfigError(f"override '{override}': the value is not YAML: {error}") from error
    if parts[0] in {"seed", "seeds"}:
        tree.pop("seeds" if parts[0] == "seed" else "seed", None)
    for depth, part in enumerate(parts[:-1]):
        make_own_(tree, part)
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
    make_own_(tree, parts[-1])
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


def make_own_(tree: dict[str, Any], key: str) -> None:
    """Give a mapping a copy of a key that it takes from another, so that it alone changes."""
    known = settled(tree) if TAKEN in tree and key not in tree else {}
    if key in known:
        tree[key] = copy.deepcopy(known[key])


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


def given(path: str, key: str, overrides: Sequence[str]) -> bool:
    """Return whether a job file or an override of it sets a top key."""
    return key in settled(read_tree(path)) or any(
        one.split("=")[0].strip() == key for one in overrides
    )
