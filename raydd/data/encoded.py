"""Splits whose images are stored encoded (files, shards): parallel decoding, read-ahead, damaged samples."""

from __future__ import annotations

import itertools
import logging
import math
import os
import threading
import weakref
from abc import abstractmethod
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import overload

import numpy as np
import numpy.typing as npt
import torch

from raydd.core.errors import DataError
from raydd.data.images import Pixels, Transform, decode_into, decode_jpegs_into, orientation_of
from raydd.data.split import BaseData, Batch

log = logging.getLogger(__name__)
Blob = bytes | memoryview
Ids = npt.NDArray[np.int64]
READ_BYTES = 8 << 20
_FEW = 32
_PIECE_BYTES = 8 << 20
_BLOCK_BYTES = 16 << 20
_ROW = 32
_LOOKED_AT = 48
"""Samples whose headers are looked at for an orientation, where not all bytes have been read anyway."""


def decode_threads() -> int:
    """Return how many threads decode: the cores this process may use, at most 32. It changes no byte."""
    return max(
        1,
        min(
            32,
            len(os.sched_getaffinity(0))
            if hasattr(os, "sched_getaffinity")
            else os.cpu_count() or 1,
        ),
    )


class EncodedData(BaseData):
    """Base of splits that decode on demand. A subclass gives the encoded bytes of samples, their sizes and titles."""

    def __init__(
        self,
        labels: torch.Tensor,
        sizes: np.ndarray,
        transform: Transform,
        digest: str,
        skip: bool,
        threads: int = 0,
    ) -> None:
        self.labels = labels
        self.sizes = sizes.astype(np.int64)
        self.transform = transform
        self.shape = transform.shape
        self.digest = digest
        self.skip = skip
        self.skipped: dict[str, str] = {}
        self.oriented: tuple[int, int] | None = None
        self.threads = threads or decode_threads()
        self.read_ahead = 4
        self._start()

    def _start(self) -> None:
        self._pools: dict[str, ThreadPoolExecutor] = {}
        self._lock = threading.Lock()
        self._buffers, self._encoded = Buffers(), Buffers()

    @abstractmethod
    def blobs(self, ids: Ids) -> Sequence[Blob]:
        """Return the encoded bytes of samples, in the order asked; reads may be joined and run in parallel."""

    @abstractmethod
    def title(self, sample: int) -> str:
        """Return what an error calls a sample: its file, or its shard and key."""

    def remarks(self) -> tuple[str, ...]:
        """Return the notes, and how many images carry an EXIF orientation: of all where that is
        known, else of a sample.
        """
        if self.oriented is None:
            ids = np.unique(np.linspace(0, len(self) - 1, _LOOKED_AT).astype(np.int64))
            self.oriented = len(ids), sum(orientation_of(blob) != 1 for blob in self.blobs(ids))
        looked, found = self.oriented
        if not found:
            return self.notes
        sample = "" if looked == len(self) else "a sample of "
        done = (
            "turned as it says"
            if self.transform.orientation == "exif"
            else "ignored; dataset.orientation=exif turns them"
        )
        where = f" in {self.place}" if self.place else ""
        return (
            *self.notes,
            f"{found} of {sample}{looked} images{where} carry an EXIF orientation, which is {done}",
        )

    def __getstate__(self) -> dict[str, object]:
        return {
            key: value
            for key, value in self.__dict__.items()
            if key not in ("_pools", "_lock", "_buffers", "_encoded")
        }

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        self._start()

    def pool(self, kind: str, workers: int) -> ThreadPoolExecutor:
        """Return this split's thread pool for one kind of work (a pool never waits for work of its own kind)."""
        with self._lock:
            if kind not in self._pools:
                self._pools[kind] = ThreadPoolExecutor(workers, thread_name_prefix=f"raydd-{kind}")
            return self._pools[kind]

    def take(self, ids: torch.Tensor) -> torch.Tensor:
        wanted = self.checked(ids)
        batches = list(self.iterate(wanted, max(1, len(wanted))))
        return (
            batches[0][0].contiguous()
            if batches
            else torch.empty((0, *self.shape), dtype=torch.uint8)
        )

    def iterate(self, ids: torch.Tensor, batch: int) -> Iterator[Batch]:
        """Yield ``(uint8 images [<=batch, C, H, W], labels)``; reads and decodes ahead of the consumer.

        The pixels lie in memory as they are decoded, channels last: ``normalise`` lays them out where it computes.
        """
        order, (channels, height, width) = ids.numpy(), self.shape
        labels = self.labels[ids]
        # Small batches are decoded together: the less other threads do, the less often decoders wait for Python's lock.
        block = batch * max(1, _BLOCK_BYTES // (batch * math.prod(self.shape)))
        pending: deque[tuple[torch.Tensor, torch.Tensor, list[Future[None]]]] = deque()
        stream = _Stream(self._read_ahead(order))
        try:
            for start in range(0, len(order), block):
                chosen = order[start : start + block]
                images, rows = self._buffers.images((len(chosen), height, width, channels))
                futures = self._decode(images, rows, chosen, stream)
                pending.append(
                    (
                        torch.from_numpy(images).permute(0, 3, 1, 2),
                        labels[start : start + block],
                        futures,
                    )
                )
                if len(pending) > 2:
                    yield from _batches(*pending.popleft(), batch)
            while pending:
                yield from _batches(*pending.popleft(), batch)
        finally:
            stream.close()
            for _, _, futures in pending:
                for future in futures:
                    future.cancel()

    def _decode(
        self, images: Pixels, rows: list[Pixels], ids: Ids, stream: _Stream
    ) -> list[Future[None]]:
        pool = self.pool("decode", self.threads)
        pieces = self.threads * -(-images.nbytes // (self.threads * _PIECE_BYTES))
        step = max(4, -(-len(ids) // pieces))
        futures = []
        for start in range(0, len(ids), step):
            here = slice(start, start + step)
            futures.append(
                pool.submit(
                    self._decode_piece, images, rows[here], ids[here], stream.take(len(rows[here]))
                )
            )
        return futures

    def _decode_piece(
        self, images: Pixels, rows: list[Pixels], ids: Ids, blobs: Sequence[Blob]
    ) -> None:
        """Decode some samples into ``rows`` of ``images``; those that are JPEGs of the right size go the short way."""
        exact = self.transform.fit == "exact"
        others = (
            decode_jpegs_into(rows, blobs, self.transform.orientation) if exact else range(len(ids))
        )
        for place in others:
            self._decode_one(rows[place].transpose(2, 0, 1), int(ids[place]), blobs[place])

    def _decode_one(self, target: Pixels, sample: int, blob: Blob) -> None:
        """Decode a sample; the place of a damaged one is filled with the next good one of its class, or it raises."""
        current, attempt = sample, 0
        while True:
            title = self.title(current)
            try:
                decode_into(target, blob, title, self.transform)
                return
            except DataError as error:
                if not self.skip:
                    raise DataError(
                        f"{error}; dataset.on_error=skip takes the next sample of its class instead, and counts"
                    ) from error
                if title not in self.skipped:
                    log.warning("%s; replaced by the next sample of its class", error)
                    self.skipped[title] = str(error)
            attempt += 1
            current = self.replacement(sample, attempt)
            blob = self.blobs(np.array([current]))[0]

    def _read_ahead(self, ids: Ids) -> Generator[Sequence[Blob]]:
        """Yield the encoded samples in order and in groups, as they are read: ``read_ahead`` groups
        before they are needed.
        """
        pool = self.pool("read", self.read_ahead)
        ahead: deque[Future[Sequence[Blob]]] = deque()
        groups = self._groups(ids)
        if len(ids) <= _FEW:
            for group in groups:
                yield self.blobs(group)
            return
        try:
            while True:
                for group in itertools.islice(groups, self.read_ahead - len(ahead)):
                    ahead.append(pool.submit(self.blobs, group))
                if not ahead:
                    return
                yield ahead.popleft().result()
        finally:
            for future in ahead:
                future.cancel()

    def _groups(self, ids: Ids) -> Iterator[Ids]:
        """Cut ``ids`` into runs of about 8 MB of encoded bytes."""
        ends = np.cumsum(self.sizes[ids])
        start = 0
        while start < len(ids):
            before = int(ends[start - 1]) if start else 0
            stop = max(start + 1, int(np.searchsorted(ends, before + READ_BYTES, side="right")))
            yield ids[start:stop]
            start = stop


class _Stream:
    """Encoded samples in order, taken any number at a time from the groups they were read in."""

    def __init__(self, groups: Generator[Sequence[Blob]]) -> None:
        self._groups = groups
        self._group: Sequence[Blob] = ()
        self._used = 0

    def take(self, count: int) -> Sequence[Blob]:
        """Return the next ``count`` samples."""
        parts: list[Sequence[Blob]] = []
        while count:
            if self._used == len(self._group):
                self._group, self._used = next(self._groups), 0
            parts.append(self._group[self._used : self._used + count])
            self._used += len(parts[-1])
            count -= len(parts[-1])
        return parts[0] if len(parts) == 1 else list(itertools.chain.from_iterable(parts))

    def close(self) -> None:
        """Cancel the reads ahead."""
        self._groups.close()


class Cuts(Sequence[Blob]):
    """Encoded samples ``sources[i][begins[i]:ends[i]]``, cut out when they are asked for.

    Thousands of views kept at once would make Python's garbage collector go through all objects again and again.
    """

    def __init__(self, sources: list[memoryview], begins: list[int], ends: list[int]) -> None:
        self._sources, self._begins, self._ends = sources, begins, ends

    def __len__(self) -> int:
        return len(self._sources)

    @overload
    def __getitem__(self, place: int) -> Blob: ...

    @overload
    def __getitem__(self, place: slice) -> Cuts: ...

    def __getitem__(self, place: int | slice) -> Blob | Cuts:
        if isinstance(place, slice):
            return Cuts(self._sources[place], self._begins[place], self._ends[place])
        return self._sources[place][self._begins[place] : self._ends[place]]

    def __iter__(self) -> Iterator[Blob]:
        return map(memoryview.__getitem__, self._sources, map(slice, self._begins, self._ends))


class Buffers:
    """Arrays whose memory is used again once nobody holds them.

    Fresh memory for every batch cost a third of the decoding time in page faults. A tensor made
    with ``from_numpy`` keeps the very array it was given; when that dies, so has every tensor on
    it, and its memory is free.

    An array starts at an address that 16 divides and 32 does not: libjpeg-turbo writes rows at multiples of 32 past the
    cache, which made decoding of 64-pixel images a sixth slower.
    """

    def __init__(self, most: int = 6, most_bytes: int = 512 << 20) -> None:
        self._free: list[_Memory] = []
        self._most, self._most_bytes = most, most_bytes

    def array(self, shape: tuple[int, ...]) -> Pixels:
        """Return an uninitialised uint8 array; pass it whole to whatever outlives the caller, not a slice of it."""
        return self._held(shape)[0]

    def images(self, shape: tuple[int, ...]) -> tuple[Pixels, list[Pixels]]:
        """Return :meth:`array` and a view of each image in it. The views are made once for the
        memory and do not hold the array.
        """
        array, memory = self._held(shape)
        if memory.shape != shape:
            memory.shape, memory.rows = shape, list(memory.cut(shape))
        return array, memory.rows

    def _held(self, shape: tuple[int, ...]) -> tuple[Pixels, _Memory]:
        room = math.prod(shape) + _ROW
        memory = None
        while self._free and (memory is None or memory.data.size < room):
            try:
                memory = self._free.pop()
            except IndexError:
                break
        if memory is None or memory.data.size < room:
            memory = _Memory(room)
        array = memory.cut(shape)
        weakref.finalize(array, self._give_back, memory).atexit = False
        return array, memory

    def _give_back(self, memory: _Memory) -> None:
        if (
            len(self._free) < self._most
            and (len(self._free) + 1) * memory.data.size <= self._most_bytes
        ):
            self._free.append(memory)


class _Memory:
    """``room`` bytes, and the views of images that were cut from them last."""

    def __init__(self, room: int) -> None:
        self.data = np.empty(room, dtype=np.uint8)
        self.shape: tuple[int, ...] = ()
        self.rows: list[Pixels] = []

    def cut(self, shape: tuple[int, ...]) -> Pixels:
        first = (_ROW // 2 - self.data.ctypes.data) % _ROW
        return self.data[first : first + math.prod(shape)].reshape(shape)


def _batches(
    images: torch.Tensor, labels: torch.Tensor, futures: list[Future[None]], batch: int
) -> Iterator[Batch]:
    for future in futures:
        future.result()
    yield from zip(images.split(batch), labels.split(batch))
