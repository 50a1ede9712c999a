"""``by_ipc:`` of a job file: settings that hold at one number of images per class, in place of the file's others."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

from raydd.core.dotted_keys import flatten
from raydd.core.errors import ConfigError
from raydd.core.yaml_tree import make_own_, parse_yaml, settled

KEY = "by_ipc"
REFUSED = ("ipc", KEY, "name")
"""Top keys that an entry cannot set."""


def take_out(tree: dict[str, Any], where: str) -> dict[float, dict[str, Any]]:
    """Remove ``by_ipc`` from a tree and return its entries, by ipc, as mappings with dotted keys.

    ``by_ipc: {1: {method.batch_real: 5000}}``; groups of keys may also be nested. ``ConfigError``
    naming ``where`` for what is no number of images and for an entry that is no mapping.
    """
    given = tree.pop(KEY, None)
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        raise ConfigError(
            f"{where}: {KEY}: {given!r}; write settings by ipc: {{1: {{method.batch_real: 5000}}}}"
        )
    entries: dict[float, dict[str, Any]] = {}
    for ipc, settings in given.items():
        if isinstance(ipc, bool) or not isinstance(ipc, (int, float)) or not 0 < ipc < float("inf"):
            raise ConfigError(
                f"{where}: {KEY}.{ipc}: {ipc!r} is no number of images per class; allowed: numbers above 0"
            )
        if not isinstance(settings, Mapping):
            raise ConfigError(f"{where}: {KEY}.{ipc}: {settings!r} is no mapping of keys to values")
        entries[ipc] = flatten(settled(settings))
        for key in entries[ipc]:
            if key.split(".")[0] in REFUSED:
                raise ConfigError(f"{where}: {KEY}.{ipc}: '{key}' cannot be set by ipc")
    return entries


def asked(tree: Mapping[str, Any], overrides: Sequence[str], default: float) -> Any:
    """Return the ipc of a job: of the last override that sets it, else the file's, else the default."""
    for override in overrides:
        if override.split("=")[0].strip().split(".")[0] == KEY:
            raise ConfigError(
                f"override '{override}': {KEY} belongs into a file; override the key that is meant"
            )
    for override in reversed(overrides):
        key, sign, text = override.partition("=")
        if sign and key.strip() == "ipc":
            try:
                return parse_yaml(text)
            except ConfigError:
                break  # reported where overrides are applied
    return tree.get("ipc", default)


def merged(tree: Mapping[str, Any], settings: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return the tree with settings (dotted keys) in place of its own; ``ConfigError`` for one below a plain value."""
    changed: dict[str, Any] = copy.deepcopy(dict(tree))
    for key, value in settings.items():
        *groups, last = key.split(".")
        below = changed
        for depth, group in enumerate(groups):
            make_own_(below, group)
            found = below.get(group)
            if group == "method" and depth == 0 and isinstance(found, str):
                found = {"name": found}
            if found is not None and not isinstance(found, dict):
                named = ".".join(groups[: depth + 1])
                raise ConfigError(
                    f"{where}: '{key}': {named} is the value {found!r}, not a group of keys"
                )
            below[group] = {} if found is None else found
            below = below[group]
        below[last] = copy.deepcopy(value)
    return changed
