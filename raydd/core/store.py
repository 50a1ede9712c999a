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
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache, partial
from typing import Any, TypeVar

import torch

from raydd.core.checkpoint import Checkpoint, Rows, dump_checkpoint, read_checkpoint
from raydd.core.errors import StorageError, TornFileError, TornOutput
from raydd.core.sealed import seal, unseal
from raydd.core.storage import Storage
from raydd.core.tensors import (
    Tensors,
    dump_tensors,
    load_tensors,
    row_facts,
    rows_from,
)
from raydd.core.units import Ref, stage_digest

log = logging.getLogger(__name__)
T = TypeVar("T")


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


def _check_marker(marker: dict[str, Any]) -> None:
    """Raise what :func:`unseal` takes for a torn file if a marker lacks what is read of it."""
    facts = next(iter(marker["files"].values()), None)
    if facts is None or not isinstance(marker["key"], str):
        raise ValueError("it names no file, or no unit")
    int(facts["size"]), str(facts["sha256"]), float(marker["seconds"])
    for t, values in marker.get("log", ()):
        int(t), dict(values)


def _is_as_marked(data: bytes, marker: Mapping[str, Any]) -> bool:
    facts = next(iter(marker["files"].values()))
    return (len(data), hashlib.sha256(data).hexdigest()) == (facts["size"], facts["sha256"])


def _read(storage: Storage, path: str, check: Callable[[bytes], T]) -> T:
    """Return what ``check`` makes of an object's bytes; one far away that is torn is read once more, as it may be
    the answer that was.
    """
    try:
        return check(storage.get(path))
    except TornFileError:
        if storage.local:
            raise
        return check(storage.get(path))


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
            facts = unseal(marker, f"{lender.url}/{ref.unit}.json", _check_marker)
            if facts["key"] != ref.key:
                return False
            data = lender.get(f"{ref.unit}.safetensors")
        except (FileNotFoundError, TornFileError):
            return False
        if not _is_as_marked(data, facts):
            return False
        storage.put(f"{path}.safetensors", data)
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
        storage.put(f"{path}.json", seal(json.dumps(marker).encode()))
        return marker

    def marker(self, ref: Ref) -> dict[str, Any]:
        """Return an output's marker; ``FileNotFoundError`` if the output is not done, ``TornOutput`` if
        it is torn.
        """
        storage, path = self.place(ref)
        where = f"{storage.url}/{path}.json"
        try:
            marker = _read(storage, f"{path}.json", lambda data: unseal(data, where, _check_marker))
        except TornFileError as error:
            raise TornOutput(str(error), ref) from error
        if marker["key"] != ref.key or marker.get("output", ref.output) != ref.output:
            raise FileNotFoundError(f"{where} is of another output")
        return marker

    def load(self, ref: Ref, marker: Mapping[str, Any] | None = None) -> Tensors:
        """Return an output's tensors; ``TornOutput`` if they are not what the marker says, which
        is read unless it is given.
        """
        storage, path = self.place(ref)
        data = self._whole(ref, self.marker(ref) if marker is None else marker)
        return load_tensors(data, f"{storage.url}/{path}.safetensors")

    def _whole(self, ref: Ref, marker: Mapping[str, Any]) -> bytes:
        """Return the bytes of an output's file; ``TornOutput`` if they are not what its marker says."""
        storage, path = self.place(ref)
        where = f"{storage.url}/{path}.safetensors"

        def check(data: bytes) -> bytes:
            if _is_as_marked(data, marker):
                return data
            size = next(iter(marker["files"].values()))["size"]
            raise TornOutput(
                f"{where} is torn: {len(data)} bytes, its marker says {size}, or other content", ref
            )

        try:
            return _read(storage, f"{path}.safetensors", check)
        except FileNotFoundError as error:
            raise TornOutput(f"{where} is missing although its marker is there", ref) from error

    def check(self, refs: Sequence[Ref]) -> dict[str, dict[str, Any]]:
        """Return size and checksum of the files of outputs, by name, all of which are read; ``TornOutput``
        for the first that is not what its marker says.
        """

        def of(ref: Ref) -> dict[str, dict[str, Any]]:
            marker = self.marker(ref)
            self._whole(ref, marker)
            return dict(marker["files"])

        with ThreadPoolExecutor(1 if self.storage.local else 8) as pool:
            return {name: facts for files in pool.map(of, refs) for name, facts in files.items()}

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
                raise TornOutput(
                    f"{storage.url}/{name} is missing although its marker is there", ref
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
        self.storage.put(
            f"{self.folder(key)}/state-{checkpoint.t:09d}.safetensors",
            dump_checkpoint(key, checkpoint, device),
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
            at = int(path.rsplit("-", 1)[1].split(".")[0])
            if at > at_most:
                continue
            try:
                where = f"{self.url}/{path}"
                found, made_on = _read(
                    self.storage, path, partial(read_checkpoint, key, at, where=where)
                )
            except FileNotFoundError:
                continue
            except TornFileError as error:
                log.warning("%s; the checkpoint before it is used, or the unit begun anew", error)
                continue
            if device is None or made_on == device:
                return found
        return None

    def note_skipped(self, key: str, rank: int, skipped: Mapping[str, str]) -> None:
        """Write what one worker of a group skipped in a unit whose marker another writes."""
        self.storage.put(
            f"{self.folder(key)}/skipped-{rank}.json",
            seal(json.dumps({"skipped": dict(skipped)}).encode()),
        )

    def skipped(self, ref: Ref) -> dict[str, str]:
        """Return the samples that could not be decoded while an output was made, with the reasons;
        of units of groups, by all workers.
        """
        found = dict(self.marker(ref).get("skipped", {}))
        if ref.stage.lanes:
            for path in self.storage.list(self.folder(ref.key)):
                if path.rsplit("/", 1)[-1].startswith("skipped-"):
                    where = f"{self.url}/{path}"
                    try:
                        told = unseal(self.storage.get(path), where)
                    except TornFileError as error:
                        log.warning("%s; what it said of skipped samples is lost", error)
                        told = {where: "what one worker skipped is not known: this file is torn"}
                    found |= told.get("skipped", told)  # earlier versions wrote them bare
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
