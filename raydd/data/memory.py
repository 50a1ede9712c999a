"""Images of chosen classes, resident on a device as uint8, sorted by class, with cheap keyed sampling."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import torch

from raydd.core.errors import ConfigError, DataError
from raydd.core.units import Data


def normalise(
    images: torch.Tensor,
    mean: Sequence[float],
    std: Sequence[float],
    dtype: torch.dtype = torch.float32,
) -> torch.Tensor:
    """Return ``(images / 255 - mean) / std`` of uint8 images ``[..., C, H, W]``, contiguous,
    computed in float32 or wider.
    """
    if len(mean) != images.shape[-3] or len(std) != images.shape[-3]:
        raise ConfigError(
            f"{len(mean)} means and {len(std)} deviations for images of {images.shape[-3]} channels"
        )
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    centre, scale = (
        _per_channel(tuple(mean), wide, images.device),
        _per_channel(tuple(std), wide, images.device),
    )
    pixels = images.to(wide, memory_format=torch.contiguous_format).div_(255)
    return pixels.sub_(centre).div_(scale).to(dtype)


@lru_cache(maxsize=64)
def _per_channel(
    values: tuple[float, ...], dtype: torch.dtype, device: torch.device
) -> torch.Tensor:
    """Return numbers of channels ``[C, 1, 1]``, kept on the device: copying them there makes the host wait."""
    return torch.tensor(values, dtype=dtype, device=device).view(-1, 1, 1)


class ClassMemory:
    """Uint8 images of ``classes`` on ``device``, sorted by class and, within a class, by index.

    ``images [N, C, H, W]``; ``classes``: class ids in ascending order; ``counts``: images of each
    of them; ``ids [N]``: the images' indices in the split. ``smallest``: images in the smallest
    class of the whole data set, resident or not.
    """

    def __init__(
        self,
        images: torch.Tensor,
        ids: torch.Tensor,
        classes: Sequence[int],
        counts: Sequence[int],
        smallest: int,
    ) -> None:
        self.images = images
        self.ids = ids
        self.classes = tuple(classes)
        self.counts = tuple(counts)
        self.smallest = smallest
        self._slot = {c: slot for slot, c in enumerate(self.classes)}
        self._starts = np.concatenate([[0], np.cumsum(self.counts)]).astype(np.int64)

    @classmethod
    def load(
        cls,
        data: Data,
        classes: Sequence[int] | None = None,
        device: torch.device | str = "cpu",
        batch: int = 1024,
    ) -> ClassMemory:
        """Read the images of ``classes`` (default: all) of a split; ``DataError`` for a class without images."""
        labels = data.labels
        present = torch.unique(labels).tolist()
        chosen = sorted(set(present if classes is None else classes))
        absent = [c for c in chosen if c not in set(present)]
        if absent:
            raise DataError(f"no images of class {absent[0]}; the split has {len(present)} classes")
        members = [(labels == c).nonzero().reshape(-1) for c in chosen]
        order = torch.cat(members)
        first = data.take(order[:1])
        images = torch.empty((len(order), *first.shape[1:]), dtype=torch.uint8, device=device)
        # Ascending indices read shards and folders front to back; every image goes straight to its place.
        ascending, place = torch.sort(order)
        for start in range(0, len(order), batch):
            images[place[start : start + batch].to(device)] = data.take(
                ascending[start : start + batch]
            ).to(device)
        smallest = int(torch.bincount(labels)[present].min())
        return cls(images, order, chosen, [len(m) for m in members], smallest)

    @property
    def device(self) -> torch.device:
        """Where the images are."""
        return self.images.device

    def slot(self, class_id: int) -> int:
        """Return the position of a class among :attr:`classes`; ``ConfigError`` if it is not resident."""
        if class_id not in self._slot:
            raise ConfigError(
                f"class {class_id} is not resident; resident: {list(self.classes)[:20]}"
            )
        return self._slot[class_id]

    def of(self, class_id: int) -> torch.Tensor:
        """Return all images of one class ``[n, C, H, W]`` (a view)."""
        slot = self.slot(class_id)
        return self.images[int(self._starts[slot]) : int(self._starts[slot + 1])]

    def sample(
        self,
        classes: int | Sequence[int],
        m: int,
        generators: torch.Generator | Sequence[torch.Generator],
    ) -> torch.Tensor:
        """Return ``[K, m, C, H, W]`` uint8: for each class ``m`` images, uniform without replacement within the call.

        One CPU generator per class; a single class id gives ``K = 1``. Where ``m`` exceeds :attr:`smallest`, that many
        are drawn of *every* class, so that a class's draw does not depend on which classes share the call.
        See docs/methods/dc_dsa.md, "The loop".
        """
        return self.gather(self.draw(classes, m, generators))

    def gather(self, rows: torch.Tensor) -> torch.Tensor:
        """Return the images ``[*rows.shape, C, H, W]`` in the rows that :meth:`draw` gave."""
        flat = self.images.index_select(0, rows.reshape(-1).to(self.device, non_blocking=True))
        return flat.view(*rows.shape, *self.images.shape[1:])

    def draw(
        self,
        classes: int | Sequence[int],
        m: int,
        generators: torch.Generator | Sequence[torch.Generator],
    ) -> torch.Tensor:
        """Return the rows ``[K, m]`` (CPU, int64) that :meth:`sample` takes; may run ahead in a thread."""
        slots = [self.slot(c) for c in ([classes] if isinstance(classes, int) else classes)]
        keyed = [generators] if isinstance(generators, torch.Generator) else list(generators)
        if len(keyed) != len(slots):
            raise ConfigError(f"{len(keyed)} generators for {len(slots)} classes")
        if m < 1:
            raise ConfigError(f"{m} images per class asked for; at least 1 is allowed")
        m = min(m, self.smallest)
        counts = [self.counts[slot] for slot in slots]
        rows = (
            _permute(counts, m, keyed)
            if 3 * m > self.smallest
            else _reject(counts, m, keyed, self.smallest)
        )
        return torch.from_numpy(rows + self._starts[slots][:, None])


def draw_distinct(count: int, m: int, generator: torch.Generator) -> torch.Tensor:
    """Return ``m`` different numbers below ``count`` (all of them, if they are fewer), uniform, int64."""
    m = min(m, count)
    if 3 * m > count:
        return torch.from_numpy(_permute([count], m, [generator])[0])
    return torch.from_numpy(_reject([count], m, [generator], count)[0])


def _permute(
    counts: Sequence[int], m: int, generators: Sequence[torch.Generator]
) -> npt.NDArray[np.int64]:
    """Return ``[K, m]``: the first ``m`` of a permutation of ``range(n)`` for each ``n`` of ``counts``."""
    return np.stack(
        [torch.randperm(n, generator=g)[:m].numpy() for n, g in zip(counts, generators)]
    )


def _reject(
    counts: Sequence[int], m: int, generators: Sequence[torch.Generator], smallest: int
) -> npt.NDArray[np.int64]:
    """Return what :func:`_permute` does, same in distribution, for ``m`` well below ``smallest``
    (at most all ``counts``).

    A permutation costs as much as ``n`` draws: here independent draws are made and repeats dropped. How many are made
    depends on the data set alone, so that a class's images do not depend on the other classes of the call.
    """
    expected = -smallest * math.log1p(-m / smallest)
    length = int(expected + 6 * math.sqrt(expected * m / smallest + 1)) + 4
    draws = np.stack(
        [torch.randint(n, (length,), generator=g).numpy() for n, g in zip(counts, generators)]
    )
    flat = (draws + np.arange(len(counts))[:, None] * max(counts)).reshape(-1)
    stamp = np.empty(len(counts) * max(counts), dtype=np.int32)
    order = np.arange(len(flat), dtype=np.int32)
    stamp[flat[::-1]] = order[
        ::-1
    ]  # the last write stays: the first place where each value was drawn
    fresh = (stamp[flat] == order).reshape(draws.shape)
    rank = np.cumsum(fresh, axis=1, dtype=np.int32)
    if int(rank[:, -1].min()) >= m:
        return draws[fresh & (rank <= m)].reshape(len(counts), m)
    return np.stack(
        [_top_up(row[keep], n, m, g) for row, keep, n, g in zip(draws, fresh, counts, generators)]
    )


def _top_up(
    values: npt.NDArray[np.int64], n: int, m: int, generator: torch.Generator
) -> npt.NDArray[np.int64]:
    """Return ``m`` distinct values: those given (distinct), then further draws (about once in a billion rows)."""
    chosen = dict.fromkeys(values.tolist())
    while len(chosen) < m:
        chosen.setdefault(int(torch.randint(n, (1,), generator=generator)))
    return np.array(list(chosen)[:m], dtype=np.int64)
