"""Files that were whole, with one value in the place of another: every place, every value."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import yaml

DEEP: Any = []
for _ in range(40):
    DEEP = [DEEP]
VALUES: tuple[Any, ...] = (
    None, True, "", "../../raydd-hostile", "/etc/passwd", "<script>alert(1)</script>", "\ud800", "a" * 5000,
    0, -1, 10**6, 2**31, 2**63, 10**400, 0.5, -0.0, 1e308, float("nan"), float("inf"),
    [], [None], [-1], [10**12] * 3, ["x", 1], {}, {"a": {}}, {"": None}, [[0]], DEEP,
)  # fmt: skip
"""What may stand in the place of any value of JSON or YAML."""


def places(tree: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the path of every value in a tree, its own first."""
    yield path
    if isinstance(tree, dict):
        for key, value in tree.items():
            yield from places(value, (*path, key))
    elif isinstance(tree, list):
        for at, value in enumerate(tree[:3]):
            yield from places(value, (*path, at))


def put(tree: Any, path: tuple[Any, ...], value: Any) -> Any:
    """Return a tree with another value at a path."""
    if not path:
        return value
    first, *rest = path
    if isinstance(tree, dict):
        return {k: put(v, tuple(rest), value) if k == first else v for k, v in tree.items()}
    return [put(v, tuple(rest), value) if i == first else v for i, v in enumerate(tree)]


def without(tree: Any, path: tuple[Any, ...]) -> Any:
    """Return a tree without what stands at a path."""
    *above, last = path
    group = tree
    for part in above:
        group = group[part]
    if isinstance(group, dict):
        changed: Any = {k: v for k, v in group.items() if k != last}
    else:
        changed = [v for i, v in enumerate(group) if i != last]
    return put(tree, tuple(above), changed)


def changed(tree: Any) -> Iterator[tuple[str, Any]]:
    """Yield a tree with every value in every place, and without what stands there; and what was changed."""
    for path in places(tree):
        where = ".".join(map(str, path)) or "all"
        for value in VALUES:
            yield f"{where} = {str(value)[:40]}", put(tree, path, value)
        if path:
            yield f"without {where}", without(tree, path)


def json_files(data: bytes) -> Iterator[tuple[str, bytes]]:
    """Yield changed JSON."""
    for what, tree in changed(json.loads(data)):
        yield what, json.dumps(tree).encode()


def line_files(data: bytes) -> Iterator[tuple[str, bytes]]:
    """Yield changed JSON lines: each line in turn."""
    lines = data.splitlines()
    for at, line in enumerate(lines):
        for what, tree in changed(json.loads(line)):
            yield (
                f"line {at}: {what}",
                b"\n".join([*lines[:at], json.dumps(tree).encode(), *lines[at + 1 :]]),
            )


def yaml_files(data: bytes) -> Iterator[tuple[str, bytes]]:
    """Yield changed YAML."""
    try:
        whole = yaml.safe_load(data)
    except yaml.YAMLError:  # it was none
        return
    for what, tree in changed(whole):
        try:
            yield what, yaml.safe_dump(tree).encode()
        except UnicodeEncodeError:  # it cannot be written
            continue
