"""The store: outputs of units under their keys, each with a marker written last, and checkpoints of unfinished ones.

Layout, below the store's URL::

    units/<k>/<key>/<output>.safetensors     an output: "final", or a snapshot such as "step-002000"
    units/<k>/<key>/<output>.json            its marker: written last; sizes, checksums, device,
                                             precision, versions, log; of tensors that are read
                                             by row, where they lie and a checksum of each row
    units/<k>/<key>/state-<t>.safetensors    a checkpoint: one object put whole, its own marker
                                             inside

Outputs of stages that have a place of their own (label records, which go straight into the distilled set) lie there as
``<unit>.safetensors`` and ``<unit>.json``; a marker of another key counts as none.
"""

from __future__ import annotations

import hashlib
import json
import logging
import platform
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch

from raydd.core.errors import StorageError, TornFileError
from raydd.core.json_text import parse_json
from raydd.core.storage import Storage
from raydd.core.tensors import (
    Tensors,
    digest,
    dump_tensors,
    load_metadata,
    load_tensors,
    row_facts,
    rows_from,
)
from raydd.core.units import Ref, stage_digest

log = logging.getLogger(__name__)
Rows = list[tuple[int, dict[str, float]]]


@lru_cache
def versions() -> dict[str, str]:
    """Return the versions that may change a byte: raydd, torch, numpy, python."""
    import numpy

    import raydd

    return {
        "raydd": raydd.__version__,
        "torch": torch.__version__,
        "numpy": numpy.__version__,
        "python": platform.python_version(),
    }


def device_kind(device: torch.device) -> str:
    """Return what a marker says of the device: its name, or ``cpu``."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


@dataclass
class Checkpoint:
    """The state of a unit after ``t`` updates, with its log and the seconds spent so far."""

    t: int
    state: Tensors
    log: Rows
    seconds: float


class Store:
    """Unit outputs and checkpoints on any fsspec URL.

    ``places`` maps stages (their digest) to URLs of their own; ``lenders`` to URLs from which what
    is missing there is copied.
    """

    def __init__(
        self,
        url: str,
        places: Mapping[str, str] | None = None,
        lenders: Mapping[str, str] | None = None,
    ) -> None:
        self.storage = Storage(url)
        self.places, self.lenders = dict(places or {}), dict(lenders or {})
        self._elsewhere = {digest: Storage(place) for digest, place in self.places.items()}
        self._lenders = {digest: Storage(place) for digest, place in self.lenders.items()}

    def __reduce__(self) -> tuple[type[Store], tuple[str, dict[str, str], dict[str, str]]]:
        return (Store, (self.storage.url, self.places, self.lenders))

    @property
    def url(self) -> str:
        """The store's URL, absolute."""
        return self.storage.url

    @staticmethod
    def folder(key: str) -> str:
        """Return the folder of a unit, relative to the store."""
        return f"units/{key[:2]}/{key}"

    def place(self, ref: Ref) -> tuple[Storage, str]:
        """Return where an output lies, and its path there without the ending."""
        own = self._elsewhere.get(stage_digest(ref.stage)) if self._elsewhere else None
        return (
            (self.storage, f"{self.folder(ref.key)}/{ref.output}")
            if own is None
            else (own, ref.unit)
        )

    def has(self, refs: list[Ref]) -> list[bool]:
        """Return, for each output, whether its marker exists."""
        placed = [self.place(ref) for ref in refs]
        found = [False] * len(refs)
        for storage in {id(storage): storage for storage, _ in placed}.values():
            mine = [i for i, (where, _) in enumerate(placed) if where is storage]
            for i, there in zip(
                mine, storage.exist(f"{placed[i][1]}.json" for i in mine), strict=True
            ):
                found[i] = there and (storage is self.storage or self._is_of(refs[i]))
        for i, ref in enumerate(refs):
            found[i] = found[i] or self._borrowed(ref)
        return found

    def _borrowed(self, ref: Ref) -> bool:
        """Copy an output of a stage with a place of its own from that stage's lender, if that has it."""
        lender = self._lenders.get(stage_digest(ref.stage)) if self._lenders else None
        if lender is None:
            return False
        storage, path = self.place(ref)
        try:
            marker = lender.get(f"{ref.unit}.json")
            if parse_json(marker).get("key") != ref.key:
                return False
            storage.put(f"{path}.safetensors", lender.get(f"{ref.unit}.safetensors"))
        except (FileNotFoundError, ValueError):
            return False
        storage.put(f"{path}.json", marker)
        return True

    def _is_of(self, ref: Ref) -> bool:
        try:
            return bool(self.marker(ref))
        except (FileNotFoundError, TornFileError):
            return False

    def save(
        self,
        ref: Ref,
        tensors: Tensors,
        *,
        device: torch.device,
        seconds: float,
        rows: Rows,
        skipped: Mapping[str, str] | None = None,
    ) -> dict[str, Any]:
        """Write an output, then its marker; return the marker. ``skipped``: samples that could not
        be decoded meanwhile, and why.
        """
        data = dump_tensors(tensors)
        storage, path = self.place(ref)
        name = f"{path.rsplit('/', 1)[-1]}.safetensors"
        storage.put(f"{path}.safetensors", data)
        marker = {
            "key": ref.key,
            "stage": ref.stage.name,
            "unit": ref.unit,
            "output": ref.output,
            "files": {name: {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}},
            "device": device_kind(device),
            "precision": ref.stage.numerics.precision,
            "versions": versions(),
            "seconds": round(seconds, 3),
            "log": rows,
            **({"skipped": dict(skipped)} if skipped else {}),
            **({"rows": row_facts(data, ref.stage.by_row)} if ref.stage.by_row else {}),
        }
        storage.put(f"{path}.json", json.dumps(marker).encode())
        return marker

    def marker(self, ref: Ref) -> dict[str, Any]:
        """Return an output's marker; ``FileNotFoundError`` if the output is not done."""
        storage, path = self.place(ref)
        data = storage.get(f"{path}.json")
        try:
            marker = dict(parse_json(data))
        except ValueError as error:
            raise TornFileError(f"{storage.url}/{path}.json is torn: {error}") from error
        if marker.get("key") != ref.key:
            raise FileNotFoundError(f"{storage.url}/{path}.json is of another unit")
        return marker

    def load(self, ref: Ref, marker: Mapping[str, Any] | None = None) -> Tensors:
        """Return an output's tensors; ``TornFileError`` if they are not what the marker says, which
        is read unless it is given.
        """
        marker = self.marker(ref) if marker is None else marker
        storage, path = self.place(ref)
        facts, where = next(iter(marker["files"].values())), f"{storage.url}/{path}.safetensors"
        try:
            data = storage.get(f"{path}.safetensors")
        except FileNotFoundError as error:
            raise TornFileError(f"{where} is missing although its marker is there") from error
        if len(data) != facts["size"] or hashlib.sha256(data).hexdigest() != facts["sha256"]:
            raise TornFileError(
                f"{where} is torn: {len(data)} bytes, its marker says {facts['size']}, or other content"
            )
        return load_tensors(data, where)

    def load_rows(self, ref: Ref, rows: slice, marker: Mapping[str, Any] | None = None) -> Tensors:
        """Return consecutive rows of the tensors that the stage says are read ``by_row``, and read no others.

        ``TornFileError`` if they are not what the marker says, which is read unless it is given.
        """
        marker = self.marker(ref) if marker is None else marker
        storage, path = self.place(ref)
        name = f"{path}.safetensors"

        def read(start: int, end: int) -> bytes:
            try:
                return storage.get(name, start, end)
            except FileNotFoundError as error:
                raise TornFileError(
                    f"{storage.url}/{name} is missing although its marker is there"
                ) from error

        return {
            tensor: rows_from(
                facts, range(*rows.indices(facts["shape"][0])), read, f"{storage.url}/{name}"
            )
            for tensor, facts in marker["rows"].items()
        }

    def verify(self, ref: Ref) -> dict[str, Any] | None:
        """Return the marker of an output that is whole by size; one that is not is named, unmarked
        and will be redone.
        """
        storage, path = self.place(ref)
        try:
            marker = self.marker(ref)
            size = next(iter(marker["files"].values()))["size"]
            if not self._is_whole(storage, f"{path}.safetensors", size):
                where = f"{storage.url}/{path}.safetensors"
                raise TornFileError(f"{where} is torn or missing although its marker is there")
        except FileNotFoundError:
            return None
        except TornFileError as error:
            log.warning("%s; it will be computed again", error)
            self.discard(ref)
            return None
        return marker

    @staticmethod
    def _is_whole(storage: Storage, path: str, size: int) -> bool:
        try:
            return storage.size(path) == size
        except FileNotFoundError:
            return False

    def verified(self, refs: list[Ref]) -> list[dict[str, Any] | None]:
        """Return :meth:`verify` of those outputs that have a marker, ``None`` for the others; asked in parallel."""
        there = self.has(refs)
        if self.storage.local or sum(there) < 4:
            return [self.verify(ref) if found else None for ref, found in zip(refs, there)]
        with ThreadPoolExecutor(16) as pool:
            asked = [
                pool.submit(self.verify, ref) if found else None for ref, found in zip(refs, there)
            ]
            return [None if answer is None else answer.result() for answer in asked]

    def discard(self, ref: Ref) -> None:
        """Remove an output's marker, so that it counts as not done."""
        storage, path = self.place(ref)
        storage.delete(f"{path}.json")

    def save_checkpoint(self, key: str, checkpoint: Checkpoint, device: str = "") -> None:
        """Write a checkpoint, made on that kind of device, then delete all but it and the one before."""
        metadata = {
            "device": device,
            "t": str(checkpoint.t),
            "seconds": repr(checkpoint.seconds),
            "log": json.dumps(checkpoint.log),
            "sha256": digest(checkpoint.state),
        }
        self.storage.put(
            f"{self.folder(key)}/state-{checkpoint.t:09d}.safetensors",
            dump_tensors(checkpoint.state, metadata),
        )
        for path in self._checkpoints(key)[:-2]:
            self._try_delete(path)

    def load_checkpoint(
        self, key: str, at_most: int, device: str | None = None
    ) -> Checkpoint | None:
        """Return the newest whole checkpoint of at most ``at_most`` updates; torn ones are named and passed over.

        ``device``: passes over those that were not made on that kind of device.
        """
        for path in reversed(self._checkpoints(key)):
            if int(path.rsplit("-", 1)[1].split(".")[0]) > at_most:
                continue
            try:
                data = self.storage.get(path)
                state = load_tensors(data, f"{self.url}/{path}")
                facts = load_metadata(data)
                if digest(state) != facts.get("sha256"):
                    raise TornFileError(f"{self.url}/{path} is torn: its checksum differs")
            except FileNotFoundError:
                continue
            except (TornFileError, ValueError) as error:
                log.warning("%s; the checkpoint before it is used", error)
                continue
            if device is not None and facts.get("device") != device:
                continue
            rows = [(int(t), dict(values)) for t, values in parse_json(facts["log"])]
            return Checkpoint(int(facts["t"]), state, rows, float(facts["seconds"]))
        return None

    def note_skipped(self, key: str, rank: int, skipped: Mapping[str, str]) -> None:
        """Write what one worker of a group skipped in a unit whose marker another writes."""
        self.storage.put(
            f"{self.folder(key)}/skipped-{rank}.json", json.dumps(dict(skipped)).encode()
        )

    def skipped(self, ref: Ref) -> dict[str, str]:
        """Return the samples that could not be decoded while an output was made, with the reasons;
        of units of groups, by all workers.
        """
        found = dict(self.marker(ref).get("skipped", {}))
        if ref.stage.lanes:
            for path in self.storage.list(self.folder(ref.key)):
                if path.rsplit("/", 1)[-1].startswith("skipped-"):
                    found |= parse_json(self.storage.get(path))
        return found

    def drop_checkpoints(self, key: str) -> None:
        """Delete a unit's checkpoints (it is done)."""
        for path in self._checkpoints(key):
            self._try_delete(path)

    def _checkpoints(self, key: str) -> list[str]:
        return [
            path
            for path in self.storage.list(self.folder(key))
            if "/state-" in path and path.endswith(".safetensors")
        ]

    def _try_delete(self, path: str) -> None:
        try:
            self.storage.delete(path)
        except StorageError as error:
            log.warning("left behind: %s", error)
