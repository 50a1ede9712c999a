"""Reading WebDataset shards: large sequential reads for streams, joined range reads for single samples."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
import torch

from raydd.core.errors import DataError
from raydd.core.storage import Storage, join
from raydd.data.encoded import READ_BYTES, Cuts, EncodedData, Ids
from raydd.data.images import Transform
from raydd.data.shard_format import Index

_GAP = 64 << 10
_SMALL = 256 << 10
_LOCAL_BYTES = 16 << 20


class ShardData(EncodedData):
    """One split of tar shards below ``files``, read through its index.

    Samples are in the order of shards and of their places within them, so a slice is a run of whole shards but for its
    ends. ``shuffled`` permutes blocks of about 8 MB and the samples in each: reads stay large, and ``raydd shard`` has
    mixed the classes over the blocks.
    """

    def __init__(
        self,
        files: Storage,
        index: Index,
        digest: str,
        transform: Transform,
        skip: bool,
        threads: int = 0,
    ) -> None:
        if not len(index):
            raise DataError(f"no samples in the shards of {files.url}")
        self.files = files
        self.index = index
        blocks = np.stack([index.shard.astype(np.int64), index.offset // READ_BYTES])
        self._block = np.cumsum(np.any(np.diff(blocks, axis=1, prepend=blocks[:, :1]) != 0, axis=0))
        labels = torch.from_numpy(index.label.astype(np.int64))
        super().__init__(labels, index.size, transform, digest, skip, threads)
        if files.local:
            self.read_ahead = 1

    def title(self, sample: int) -> str:
        shard = self.index.names[int(self.index.shard[sample])]
        return f"sample '{self.index.keys[sample]}' of {join(self.files.url, shard)}"

    def identities(self) -> np.ndarray:
        return self.index.identity

    def shuffled(self, ids: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        mixed = ids[torch.randperm(len(ids), generator=generator)]
        rank = torch.randperm(int(self._block[-1]) + 1, generator=generator)
        return mixed[torch.argsort(rank[torch.from_numpy(self._block)[mixed]], stable=True)]

    def _groups(self, ids: Ids) -> Iterator[Ids]:
        """Cut ``ids`` where the block changes, so that a shuffled block is one read; join small
        runs, as of single samples.

        Local blocks are joined as well, and read side by side: the fewer groups, the less the decoders are disturbed.
        """
        alone, most = (_LOCAL_BYTES, _LOCAL_BYTES) if self.files.local else (_SMALL, READ_BYTES)
        if not len(ids):
            return
        edges = np.flatnonzero(np.diff(self._block[ids])) + 1
        group: list[Ids] = []
        held = 0
        for start, stop in zip([0, *edges.tolist()], [*edges.tolist(), len(ids)]):
            run = ids[start:stop]
            size = int(self.sizes[run].sum())
            if group and (size >= alone or held + size > most):
                yield np.concatenate(group)
                group, held = [], 0
            group, held = [*group, run], held + size
            if size >= alone:
                yield np.concatenate(group)
                group, held = [], 0
        if group:
            yield np.concatenate(group)

    def blobs(self, ids: Ids) -> Cuts:
        order = np.lexsort((self.index.offset[ids], self.index.shard[ids]))
        shard, first = self.index.shard[ids[order]], self.index.offset[ids[order]]
        last = first + self.index.size[ids[order]]
        far = first[1:] - last[:-1] > _GAP
        apart = (
            far
            | (shard[1:] != shard[:-1])
            | (first[1:] // (2 * READ_BYTES) != first[:-1] // (2 * READ_BYTES))
        )
        edges = [0, *(np.flatnonzero(apart) + 1).tolist(), len(order)]
        spans = list(itertools.pairwise(edges))

        def read(span: tuple[int, int]) -> memoryview:
            here = slice(*span)
            return self._read(int(shard[span[0]]), int(first[span[0]]), int(last[here].max()))

        few = len(spans) == 1 or (self.files.local and len(ids) < 8)
        pieces = list(
            map(read, spans)
            if few
            else self.pool("fetch", 4 if self.files.local else 32).map(read, spans)
        )
        lengths = np.diff(edges)
        place = np.argsort(order)
        begins = (first - np.repeat(first[edges[:-1]], lengths))[place]
        source = np.repeat(np.arange(len(spans)), lengths)[place]
        return Cuts(
            [pieces[i] for i in source.tolist()],
            begins.tolist(),
            (begins + self.index.size[ids]).tolist(),
        )

    def _read(self, shard: int, start: int, stop: int) -> memoryview:
        name = self.index.names[shard]
        data = self._encoded.array((stop - start,)).data
        try:
            count = self.files.fill(name, start, data)
        except FileNotFoundError as error:
            raise DataError(f"shard {join(self.files.url, name)} is missing") from error
        if count != stop - start:
            raise DataError(
                f"shard {join(self.files.url, name)} is torn: {count} bytes at {start}, {stop - start} were written"
            )
        return data
