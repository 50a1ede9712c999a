"""A unit's checkpoint as bytes: its state in safetensors, in the header all else, and a checksum of both."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass

from raydd.core.errors import TornFileError
from raydd.core.json_text import parse_json
from raydd.core.tensors import Tensors, digest, dump_tensors, load_metadata, load_tensors

Rows = list[tuple[int, dict[str, float]]]


@dataclass
class Checkpoint:
    """The state of a unit after ``t`` updates, with its log and the seconds spent so far."""

    t: int
    state: Tensors
    log: Rows
    seconds: float


def dump_checkpoint(key: str, checkpoint: Checkpoint, device: str) -> bytes:
    """Return the checkpoint of the unit ``key``, made on that kind of device, as bytes."""
    facts = {
        "device": device,
        "t": str(checkpoint.t),
        "seconds": repr(checkpoint.seconds),
        "log": json.dumps(checkpoint.log),
        "key": key,
    }
    facts["sha256"] = _checksum(checkpoint.state, facts)
    return dump_tensors(checkpoint.state, facts)


def _checksum(state: Tensors, facts: Mapping[str, str]) -> str:
    said = json.dumps({name: facts[name] for name in sorted(facts) if name != "sha256"})
    return hashlib.sha256(f"{digest(state)} {said}".encode()).hexdigest()


def read_checkpoint(key: str, at: int, data: bytes, where: str) -> tuple[Checkpoint, str]:
    """Return the checkpoint of unit ``key`` after ``at`` updates, and the kind of device that made it.

    ``TornFileError`` naming ``where`` for what is none, or another's. Checkpoints of earlier versions, whose header
    names no unit, have a checksum of their state alone.
    """
    state = load_tensors(data, where)
    try:
        facts = load_metadata(data)
        of = _checksum(state, facts) if "key" in facts else digest(state)
        if of != facts["sha256"]:
            raise ValueError("its checksum differs")
        rows = [(int(t), dict(values)) for t, values in parse_json(facts["log"])]
        found = Checkpoint(int(facts["t"]), state, rows, float(facts["seconds"]))
    except (KeyError, ValueError, TypeError) as error:
        why = f"its header has no {error}" if isinstance(error, KeyError) else str(error)
        raise TornFileError(f"{where} is torn: {why}") from error
    if facts.get("key", key) != key or found.t != at:
        raise TornFileError(
            f"{where} is torn: it is another, of unit {facts.get('key', key)} after {found.t} updates"
        )
    return found, facts.get("device", "")
