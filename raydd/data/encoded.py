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

import numpy as np
import torch

from raydd.core.errors import DataError
from raydd.data.base import BaseData, Batch
from raydd.data.images import Pixels, Transform, decode_into, decode_jpegs_into

log = logging.getLogger(__name__)
Blob = bytes | memoryview
READ_BYTES = 8 << 20
READ_AHEAD = 4
_FEW = 32
_PIECE_BYTES = 4 << 20
_ROW = 32


def decode_threads() -> int:
    """Return how many threads decode: the cores this process may use, at most 32. It changes no byte."""
    return max(1, min(32, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1))


class EncodedData(BaseData):
    """Base of splits that decode on demand. A subclass gives the encoded bytes of samples, their sizes and titles."""

    def __init__(self, labels: torch.Tensor, sizes: np.ndarray, transform: Transform, digest: str, skip: bool, threads: int = 0) -> None:
        self.labels = labels
        self.sizes = sizes.astype(np.int64)
        self.transform = transform
        self.shape = transform.shape
        self.digest = digest
        self.skip = skip
        self.skipped: dict[str, str] = {}
        self.threads = threads or decode_threads()
        self._start()

    def _start(self) -> None:
        self._pools: dict[str, ThreadPoolExecutor] = {}
        self._lock = threading.Lock()
        self._buffers, self._encoded = Buffers(), Buffers()

    @abstractmethod
    def blobs(self, ids: Sequence[int]) -> list[Blob]:
        """Return the encoded bytes of samples, in the order asked; reads may be joined and run in parallel."""

    @abstractmethod
    def title(self, sample: int) -> str:
        """Return what an error calls a sample: its file, or its shard and key."""

    def __getstate__(self) -> dict[str, object]:
        return {key: value for key, value in self.__dict__.items() if key not in ("_pools", "_lock", "_buffers", "_encoded")}

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
        return batches[0][0].contiguous() if batches else torch.empty((0, *self.shape), dtype=torch.uint8)

    def iterate(self, ids: torch.Tensor, batch: int) -> Iterator[Batch]:
        """Yield ``(uint8 images [<=batch, C, H, W], labels)``; reads and decodes ahead of the consumer.

        The pixels lie in memory as they are decoded, channels last: ``normalise`` lays them out where it computes.
        """
        order, (channels, height, width) = ids.tolist(), self.shape
        pending: deque[tuple[torch.Tensor, torch.Tensor, list[Future[None]]]] = deque()
        stream = self._read_ahead(order)
        try:
            for start in range(0, len(order), batch):
                chosen = order[start : start + batch]
                images = self._buffers.array((len(chosen), height, width, channels))
                futures = self._decode(images, chosen, stream)
                pending.append((torch.from_numpy(images).permute(0, 3, 1, 2), self.labels[ids[start : start + batch]], futures))
                if len(pending) > 2:
                    yield _finished(*pending.popleft())
            while pending:
                yield _finished(*pending.popleft())
        finally:
            stream.close()
            for _, _, futures in pending:
                for future in futures:
                    future.cancel()

    def _decode(self, out: Pixels, ids: list[int], stream: Iterator[Blob]) -> list[Future[None]]:
        pool = self.pool("decode", self.threads)
        futures = []
        step = max(4, min(-(-len(ids) // self.threads), _PIECE_BYTES // math.prod(self.shape)))
        for start in range(0, len(ids), step):
            piece = ids[start : start + step]
            futures.append(pool.submit(self._decode_piece, out, start, piece, [next(stream) for _ in piece]))
        return futures

    def _decode_piece(self, images: Pixels, start: int, ids: list[int], blobs: list[Blob]) -> None:
        """Decode some samples; those that are JPEGs of the right size go the short way."""
        out = images[start : start + len(ids)]
        others = decode_jpegs_into(out, blobs) if self.transform.fit == "exact" else range(len(ids))
        for place in others:
            self._decode_one(out[place].transpose(2, 0, 1), ids[place], blobs[place])

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
                    raise
                if title not in self.skipped:
                    log.warning("%s; replaced by the next sample of its class", error)
                    self.skipped[title] = str(error)
            attempt += 1
            current = self.replacement(sample, attempt)
            blob = self.blobs([current])[0]

    def _read_ahead(self, ids: list[int]) -> Generator[Blob]:
        """Yield the encoded samples in order; reads of about 8 MB, a few of them ahead."""
        pool = self.pool("read", READ_AHEAD)
        ahead: deque[Future[list[Blob]]] = deque()
        groups = self._groups(ids)
        if len(ids) <= _FEW:
            for group in groups:
                yield from self.blobs(group)
            return
        try:
            while True:
                for group in itertools.islice(groups, READ_AHEAD - len(ahead)):
                    ahead.append(pool.submit(self.blobs, group))
                if not ahead:
                    return
                yield from ahead.popleft().result()
        finally:
            for future in ahead:
                future.cancel()

    def _groups(self, ids: list[int]) -> Iterator[list[int]]:
        """Cut ``ids`` into runs of about 8 MB of encoded bytes."""
        if not ids:
            return
        ends = np.cumsum(self.sizes[ids])
        start = 0
        while start < len(ids):
            before = int(ends[start - 1]) if start else 0
            stop = max(start + 1, int(np.searchsorted(ends, before + READ_BYTES, side="right")))
            yield ids[start:stop]
            start = stop


class Buffers:
    """Arrays whose memory is used again once nobody holds them.

    Fresh memory for every batch cost a third of the decoding time in page faults. A tensor made with ``from_numpy`` keeps
    the very array it was given; when that dies, so has every tensor on it, and its memory is free.

    An array starts at an address that 16 divides and 32 does not: libjpeg-turbo writes rows at multiples of 32 past the
    cache, which made decoding of 64-pixel images a sixth slower.
    """

    def __init__(self, most: int = 6, most_bytes: int = 512 << 20) -> None:
        self._free: list[Pixels] = []
        self._most, self._most_bytes = most, most_bytes

    def array(self, shape: tuple[int, ...]) -> Pixels:
        """Return an uninitialised uint8 array; pass it whole to whatever outlives the caller, not a slice of it."""
        size = math.prod(shape)
        room = size + _ROW
        memory = None
        while self._free and (memory is None or memory.size < room):
            try:
                memory = self._free.pop()
            except IndexError:
                break
        if memory is None or memory.size < room:
            memory = np.empty(room, dtype=np.uint8)
        first = (_ROW // 2 - memory.ctypes.data) % _ROW
        view = memory[first : first + size].reshape(shape)
        weakref.finalize(view, self._give_back, memory).atexit = False
        return view

    def _give_back(self, memory: Pixels) -> None:
        if len(self._free) < self._most and (len(self._free) + 1) * memory.size <= self._most_bytes:
            self._free.append(memory)


def _finished(images: torch.Tensor, labels: torch.Tensor, futures: list[Future[None]]) -> Batch:
    for future in futures:
        future.result()
    return images, labels
