"""What a tracking server did not get, kept in the job's output folder for the next run of the same job."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from raydd.core.errors import TornFileError
from raydd.core.sealed import seal, unseal
from raydd.core.storage import Storage
from raydd.runtime.tracking.mlflow_run import KINDS, Item, Picture

log = logging.getLogger(__name__)
STATE = "tracking.json"
FOLDER = "tracking"


class Unsent:
    """The file ``tracking.json`` of an output folder, with the pictures it names beside it."""

    def __init__(self, output: Storage) -> None:
        self.output = output
        self._pictures: set[str] = set()

    def read(self) -> tuple[dict[str, Any], list[Item]]:
        """Return the state that was kept, and the items; nothing where there is none, or none that can be read."""
        try:
            state = unseal(self.output.get(STATE), f"{self.output.url}/{STATE}")
            kept = [self._revive(dict(facts)) for facts in state.get("unsent", [])]
        except FileNotFoundError:
            return {}, []
        except (TornFileError, ValueError, KeyError, TypeError) as error:
            log.warning(
                "tracking: %s/%s cannot be read (%s); a new run is made",
                self.output.url,
                STATE,
                error,
            )
            return {}, []
        return state, [item for item in kept if item is not None]

    def write(self, state: Mapping[str, Any], items: Sequence[Item]) -> None:
        """Keep the state and the items in place of what was kept before."""
        unsent, pictures = [], set()
        for item in items:
            facts = {"kind": item.kind, **asdict(item)}
            if isinstance(item, Picture):
                del facts["png"]
                facts["file"] = f"{FOLDER}/{item.key.replace('/', '~')}-{item.step:06d}.png"
                pictures.add(facts["file"])
                if facts["file"] not in self._pictures:
                    self.output.put(facts["file"], item.png)
            unsent.append(facts)
        self.output.put(STATE, seal(json.dumps({**state, "unsent": unsent}).encode()))
        for name in self._pictures - pictures:
            self.output.delete(name)
        self._pictures = pictures

    def _revive(self, facts: dict[str, Any]) -> Item | None:
        cls = KINDS[facts.pop("kind")]
        if cls is Picture:
            name = str(facts.pop("file"))
            self._pictures.add(name)
            try:
                facts["png"] = self.output.get(name)
            except FileNotFoundError:
                return None
        return cls(**facts)


def counts(items: Iterable[Item]) -> str:
    """Return what the items are, ``12 metrics and 1 picture``."""
    number: dict[str, int] = {}
    for item in items:
        number[item.kind] = number.get(item.kind, 0) + 1
    names = [
        f"{count} {kind}{'s' * (count != 1 and not kind.endswith('s'))}"
        for kind, count in number.items()
    ]
    return " and ".join(names)
