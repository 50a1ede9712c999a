"""What a store may forget: runs register the units they need, and ``raydd gc`` removes the rest."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from raydd.core.errors import ConfigError
from raydd.core.json_text import parse_json
from raydd.core.store import Store
from raydd.core.urls import check_url


def _path(output: str) -> str:
    return f"runs/{hashlib.sha256(output.encode()).hexdigest()[:16]}.json"


def register_run(store: Store, output: str, keys: Collection[str], *, finished: bool) -> None:
    """Note in the store that the run writing ``output`` needs the units ``keys``, or needs them no longer."""
    record = {"output": output, "finished": finished, "keys": sorted(set(keys))}
    store.storage.put(_path(output), json.dumps(record).encode())


def runs(store: Store) -> list[dict[str, Any]]:
    """Return the registered runs."""
    found = []
    for path in store.storage.list("runs"):
        try:
            found.append(dict(parse_json(store.storage.get(path))))
        except (FileNotFoundError, ValueError):
            continue  # written at this moment, or torn by a crash: says nothing
    return found


@dataclass(frozen=True)
class Removal:
    """What a collection removed, or would remove: units, objects and bytes; and how many units it kept."""

    units: int
    objects: int
    size: int
    kept: int


def collect(store: Store, *, forget: Collection[str] = (), dry_run: bool = False) -> Removal:
    """Remove every unit that no unfinished run needs; ``forget`` names outputs whose runs will not be finished.

    Raises ``ConfigError`` for an output in ``forget`` that no run has registered, and for a place
    that holds no store or cannot be written.
    """
    check_url(store.url, "store", write=True)
    known = runs(store)
    for output in forget:
        if output not in {run["output"] for run in known}:
            raise ConfigError(
                f"forget: no run wrote to {output}; known:"
                f" {', '.join(sorted(run['output'] for run in known)) or 'none'}"
            )
    needed = {
        key
        for run in known
        if not run["finished"] and run["output"] not in forget
        for key in run["keys"]
    }
    units: dict[str, list[str]] = {}
    for path in store.storage.list("units"):
        if path.count("/") >= 3:  # units/<k>/<key>/<file>; what else lies there is nobody's unit
            units.setdefault(path.split("/")[2], []).append(path)
    if not known and not units:
        raise ConfigError(
            f"{store.url} holds no store: no run has registered there, and it has no units"
        )
    doomed = {key: paths for key, paths in units.items() if key not in needed}
    paths = [path for key in doomed for path in doomed[key]]
    size = sum(store.storage.size(path) for path in paths)
    if not dry_run:
        for path in sorted(
            paths, key=lambda p: not p.endswith(".json")
        ):  # markers first: never a marker without its file
            store.storage.delete(path)
        for output in forget:
            store.storage.delete(_path(output))
    return Removal(len(doomed), len(paths), size, len(units) - len(doomed))
