"""An index for WebDataset shards that others wrote: one pass over the tar headers, kept beside them
for the next time.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from raydd.core.errors import DataError, RayddError, StorageError
from raydd.core.json_text import parse_json
from raydd.core.storage import Storage, join
from raydd.core.tensors import load_metadata
from raydd.data.inventory import LeftOut
from raydd.data.shard_format import Index
from raydd.data.split import hashed
from raydd.data.tar_samples import LABEL_KEYS, Damage, Scan
from raydd.data.tar_scan import TORN, scan

log = logging.getLogger(__name__)
_RULES = 2
"""Raised whenever other members become samples: indices of before are made anew."""
_KEPT = 2
_GLIMPSE = 16 << 20
_known: dict[tuple[str, str], Scanned] = {}


@dataclass(frozen=True)
class Scanned:
    """What shards hold: the index of their samples, a digest of it, what is no sample, and what is damaged."""

    index: Index
    digest: str
    left_out: LeftOut
    damage: tuple[Damage, ...] = ()


def scan_shards(files: Storage, names: Sequence[str], skip: bool = False) -> Scanned:
    """Return what tar shards hold. The index is kept beside them where that can be written, and
    made anew when one of them changed.

    Damage (a torn shard, a sample with two images or a label that is none) raises ``DataError``, or
    with ``skip`` is among what is left out; of a torn shard that is what comes behind its tear.
    """
    facts, path = _facts(files, names)
    found = _known.get((files.url, facts)) or _kept(files, path, facts)
    if found is None:
        found = _put_together(files, names, _side_by_side(lambda name: scan(files, name), names))
        _keep(files, path, facts, found)
    while len(_known) >= _KEPT:
        _known.pop(next(iter(_known)))
    _known[files.url, facts] = found
    return _checked(found, skip)


def is_indexed(files: Storage, names: Sequence[str]) -> bool:
    """Return whether an index of these shards is known, so that :func:`scan_shards` reads none of them."""
    facts, path = _facts(files, names)
    return (files.url, facts) in _known or _kept(files, path, facts) is not None


def glimpse(files: Storage, names: Sequence[str]) -> tuple[Index, int]:
    """Return an index of what the first and the last shard begin with (or more, if those hold
    nothing), and how many they are.
    """
    names = list(dict.fromkeys((names[0], names[-1], *names)))
    scans: list[Scan] = _side_by_side(lambda name: scan(files, name, _GLIMPSE), names[:2])
    while len(scans) < len(names) and not any(found.samples for found in scans):
        scans.append(scan(files, names[len(scans)], _GLIMPSE))
    return _put_together(files, names[: len(scans)], scans).index, len(scans)


def _facts(files: Storage, names: Sequence[str]) -> tuple[str, str]:
    """Return what says of which bytes an index is, and its path."""
    stamps = _side_by_side(lambda name: _stamp(files, name), names)
    facts = hashlib.sha256(json.dumps([_RULES, list(names), stamps]).encode()).hexdigest()
    return (
        facts,
        f".raydd-index-{hashlib.sha256(json.dumps(list(names)).encode()).hexdigest()[:20]}.safetensors",
    )


def _side_by_side(what: Callable[[str], Any], names: Iterable[str]) -> list[Any]:
    with ThreadPoolExecutor(8) as pool:
        return list(pool.map(what, names))


def _stamp(files: Storage, name: str) -> str:
    try:
        return files.stamp(name)
    except FileNotFoundError as error:
        raise DataError(f"shard {join(files.url, name)} is missing") from error


def _put_together(files: Storage, names: Sequence[str], scans: Sequence[Scan]) -> Scanned:
    samples = [sample for found in scans for sample in found.samples]
    damage = tuple(one for found in scans for one in found.damage)
    left_out = LeftOut().merge(found.left_out for found in scans)
    if not samples:
        raise DataError(_nothing(files, names, scans, damage, left_out))
    index = Index(
        names=list(names),
        shard=np.repeat(np.arange(len(names)), [len(found.samples) for found in scans]),
        offset=np.array([sample.offset for sample in samples]),
        size=np.array([sample.size for sample in samples]),
        label=np.array([sample.label for sample in samples]),
        identity=hashed(
            f"{name}/{sample.key}".encode(errors="surrogateescape")
            for name, found in zip(names, scans)
            for sample in found.samples
        ),
        keys=[sample.key for sample in samples],
    )
    return Scanned(index, hashlib.sha256(index.dump()).hexdigest(), left_out, damage)


def _nothing(
    files: Storage,
    names: Sequence[str],
    scans: Sequence[Scan],
    damage: Sequence[Damage],
    left_out: LeftOut,
) -> str:
    """Return why shards hold no sample at all."""
    if damage:
        return damage[0].message
    place = join(files.url, names[0]) + (f" and {len(names) - 1} more" if len(names) > 1 else "")
    if left_out.reasons.keys() == {"picture without a label"}:
        first = left_out.reasons["picture without a label"].examples[0].partition(": ")[2]
        return (
            f"{place}: sample '{first}' has no label (.cls, or .json with one of {', '.join(LABEL_KEYS)}), nor has any"
            " other"
        )
    formats = sum((found.formats for found in scans), Counter[str]())
    members = ", ".join(
        f"{count} × .{ending}" if ending else f"{count} without an ending"
        for ending, count in formats.most_common(8)
    )
    need = (
        "a sample is a picture (.jpg, .png, …) and a label of the same name (.cls, or .json with one of"
        f" {', '.join(LABEL_KEYS)})"
    )
    return "; ".join(
        [f"{place} holds no labelled images: {members or 'no members'}", *left_out.lines(), need]
    )


def _keep(files: Storage, path: str, facts: str, found: Scanned) -> None:
    if not files.writable:
        return
    damage = [[one.reason, one.name, one.message] for one in found.damage]
    metadata = {
        "facts": facts,
        "left_out": json.dumps(found.left_out.to_dict()),
        "damage": json.dumps(damage),
    }
    try:
        files.put(path, found.index.dump(metadata))
    except StorageError as error:  # nothing may be written there
        log.info("the index of %s is kept in memory: %s", files.url, error)


def _kept(files: Storage, path: str, facts: str) -> Scanned | None:
    """Return what an earlier pass found, if it was over the same bytes by the same rules."""
    try:
        data = files.get(path)
        metadata = load_metadata(data)
        if metadata.get("facts") != facts:
            return None
        index = Index.parse(data, join(files.url, path))
        damage = tuple(Damage(*map(str, one)) for one in parse_json(metadata["damage"]))
        left_out = LeftOut.from_dict(parse_json(metadata["left_out"]))
    except (FileNotFoundError, RayddError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return Scanned(index, hashlib.sha256(index.dump()).hexdigest(), left_out, damage)


def _checked(found: Scanned, skip: bool) -> Scanned:
    if not found.damage:
        return found
    if not skip:
        more = f" (and {len(found.damage) - 1} more)" if len(found.damage) > 1 else ""
        raise DataError(
            f"{found.damage[0].message}{more}; dataset.on_error=skip leaves out and counts what cannot be read"
        )
    left_out = LeftOut().merge([found.left_out])
    for one in found.damage:
        left_out.add(
            f"{one.reason}, read up to its tear" if one.reason == TORN else one.reason, one.name
        )
    return Scanned(found.index, found.digest, left_out, found.damage)
