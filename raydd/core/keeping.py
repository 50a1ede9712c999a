"""What a store may forget: runs register the units they need, and ``raydd gc`` removes the rest."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from raydd.core.errors import ConfigError, TornFileError
from raydd.core.sealed import seal, unseal
from raydd.core.store import Store
from raydd.core.urls import check_url


def _path(output: str) -> str:
    return f"runs/{hashlib.sha256(output.encode()).hexdigest()[:16]}.json"


def register_run(store: Store, output: str, keys: Collection[str], *, finished: bool) -> None:
    """Note in the store that the run writing ``output`` needs the units ``keys``, or needs them no longer."""
    record = {"output": output, "finished": finished, "keys": sorted(set(keys))}
    store.storage.put(_path(output), seal(json.dumps(record).encode()))


def runs(store: Store) -> tuple[list[dict[str, Any]], list[str]]:
    """Return the registered runs, and the paths of registrations that are torn: what those runs need is not known."""
    found, torn = [], []
    for path in store.storage.list("runs"):
        try:
            where = f"{store.url}/{path}"
            run = unseal(store.storage.get(path), where, _check_run)
            if path != _path(run["output"]):
                raise TornFileError(f"{where} is of another run")
            found.append(run)
        except FileNotFoundError:
            continue  # forgotten at this moment
        except TornFileError:
            torn.append(path)
    return found, torn


def _check_run(run: dict[str, Any]) -> None:
    if not all(isinstance(key, str) for key in [run["output"], *run["keys"]]):
        raise ValueError("it names no output, or no units")
    if not isinstance(run["finished"], bool):
        raise ValueError("it does not say whether the run is finished")


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
    that holds no store or cannot be written; ``TornFileError`` for a run's registration that is torn, unless its
    output is in ``forget``: units that it needs would be lost.
    """
    check_url(store.url, "store", write=True)
    known, torn = runs(store)
    left = [path for path in torn if path not in map(_path, forget)]
    if left:
        raise TornFileError(
            f"{store.url}/{left[0]} is torn: which units its run needs is not known, so nothing is removed; give that"
            " run's command again, which writes it anew, or name its output to forget it"
        )
    for output in forget:
        if output not in {run["output"] for run in known} and _path(output) not in torn:
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
