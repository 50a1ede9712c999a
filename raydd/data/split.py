"""What every split of a data set shares: fixed slices, subsets, and splits keyed by the images' identity."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
import torch

from raydd.core.errors import ConfigError, DataError
from raydd.data.inventory import LeftOut

Batch = tuple[torch.Tensor, torch.Tensor]


def bounds(count: int, part: int, parts: int) -> tuple[int, int]:
    """Return first and one-past-last index of slice ``part`` of ``parts`` equal contiguous slices
    of ``count`` samples.
    """
    if parts < 1 or not 0 <= part < parts:
        raise ConfigError(f"slice {part} of {parts} does not exist; allowed: 0 to parts - 1")
    return count * part // parts, count * (part + 1) // parts


def hashed(names: Iterable[bytes]) -> np.ndarray:
    """Return ``[N, 16]`` uint8: a hash of each name."""
    joined = b"".join(hashlib.blake2b(name, digest_size=16).digest() for name in names)
    return np.frombuffer(joined, np.uint8).reshape(-1, 16)


class BaseData(ABC):
    """One split. ``labels [N]`` int64; ``shape`` of an image ``(C, H, W)``; ``digest`` identifies
    content and transform.

    ``skipped`` maps each sample that could not be decoded to the reason (``on_error: skip``). Such
    a sample is replaced by the next one of its class, in index order and cyclic, that can be
    decoded, so labels and length never change and every worker sees the same images whichever of
    them meets the damage first.

    ``place``: where its files are, for a person. ``left_out``: what its files hold that is no
    sample; ``notes``: what else a person should know of how they were read.
    """

    digest: str
    labels: torch.Tensor
    shape: tuple[int, int, int]
    skipped: dict[str, str]
    place: str = ""
    left_out: LeftOut = LeftOut()
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.labels)

    def remarks(self) -> tuple[str, ...]:
        """Return the notes, and what a look at some of the samples adds to them."""
        return self.notes

    @abstractmethod
    def take(self, ids: torch.Tensor) -> torch.Tensor:
        """Return uint8 images ``[len(ids), C, H, W]`` by index, in the order asked."""

    @abstractmethod
    def identities(self) -> np.ndarray:
        """Return ``[N, 16]`` uint8: for each sample a hash that names it, whatever the order or the
        storage of the samples.
        """

    def iterate(self, ids: torch.Tensor, batch: int) -> Iterator[Batch]:
        """Yield ``(uint8 images [<=batch, C, H, W], labels)`` of ``ids``, in that order."""
        for start in range(0, len(ids), batch):
            chosen = ids[start : start + batch]
            yield self.take(chosen), self.labels[chosen]

    def shuffled(self, ids: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Return ``ids`` in a random order that this kind of storage reads well."""
        return ids[torch.randperm(len(ids), generator=generator)]

    def stream(
        self, part: int, parts: int, *, batch: int = 256, shuffle: torch.Generator | None = None
    ) -> Iterator[Batch]:
        """Yield ``(uint8 images [B, C, H, W], labels [B])`` of slice ``part`` of ``parts``; the
        last batch may be smaller.

        Slices are contiguous and cover every sample once, whatever ``parts``. ``shuffle``: a keyed
        generator for the order within the slice. ``ConfigError`` for a batch below 1.
        """
        if batch < 1:
            raise ConfigError(f"batch {batch}; allowed: at least 1")
        first, last = bounds(len(self), part, parts)
        ids = torch.arange(first, last)
        yield from self.iterate(ids if shuffle is None else self.shuffled(ids, shuffle), batch)

    def checked(self, ids: torch.Tensor) -> torch.Tensor:
        """Return ``ids`` as int64 on the CPU; ``IndexError`` if one is outside the split."""
        ids = torch.as_tensor(ids).to("cpu", torch.int64).reshape(-1)
        if len(ids) and not (int(ids.min()) >= 0 and int(ids.max()) < len(self)):
            raise IndexError(
                f"sample {int(ids.min())} or {int(ids.max())} is outside 0 to {len(self) - 1}"
            )
        return ids

    def replacement(self, sample: int, attempt: int) -> int:
        """Return the sample ``attempt`` places after ``sample`` within its class (cyclic);
        ``DataError`` after a full turn.
        """
        same = (self.labels == self.labels[sample]).nonzero().reshape(-1)
        if attempt >= len(same):
            raise DataError(f"no sample of class {int(self.labels[sample])} can be decoded")
        place = int(torch.searchsorted(same, sample))
        return int(same[(place + attempt) % len(same)])


class Subset(BaseData):
    """Some samples (``ids``, ascending) of another split."""

    def __init__(self, base: BaseData, ids: torch.Tensor) -> None:
        self.base = base
        self.ids = base.checked(ids)
        self.labels = base.labels[self.ids]
        self.shape = base.shape
        self.skipped = base.skipped
        self.place, self.left_out, self.notes = base.place, base.left_out, base.notes
        self.digest = hashlib.sha256(
            base.digest.encode() + self.ids.numpy().astype("<i8").tobytes()
        ).hexdigest()

    def remarks(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys((*self.notes, *self.base.remarks())))

    def take(self, ids: torch.Tensor) -> torch.Tensor:
        return self.base.take(self.ids[self.checked(ids)])

    def identities(self) -> np.ndarray:
        return self.base.identities()[self.ids.numpy()]

    def iterate(self, ids: torch.Tensor, batch: int) -> Iterator[Batch]:
        return self.base.iterate(self.ids[ids], batch)

    def shuffled(self, ids: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        order = self.base.shuffled(self.ids[ids], generator)
        return torch.searchsorted(self.ids, order)


def keyed_split(
    data: BaseData, amount: float, stream: str, names: Callable[[], Sequence[str]] = tuple
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return ascending ids ``(kept, taken)``: from every class a share (``amount`` below 1) or a count is taken.

    Which samples are taken depends on ``stream`` and their identities only. ``DataError`` if a
    class would be left empty, named as ``names`` (asked only then) has it by label.
    """
    key = stream.encode()[:64]
    ranks = [
        hashlib.blake2b(name, key=key, digest_size=8).digest()
        for name in map(bytes, data.identities())
    ]
    numbers = np.frombuffer(b"".join(ranks), dtype=">u8").astype(np.uint64)
    taken = np.zeros(len(data), dtype=bool)
    labels = data.labels.numpy()
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        count = int(amount) if amount >= 1 else max(1, round(amount * len(members)))
        if count >= len(members):
            named = names()
            what = f"'{named[label]}'" if label < len(named) else label
            images = f"{len(members)} image{'s' * (len(members) != 1)}"
            raise DataError(
                f"class {what} has {images}: taking {count} of them for '{stream}' leaves none"
            )
        taken[members[np.argsort(numbers[members], kind="stable")[:count]]] = True
    return torch.from_numpy(np.flatnonzero(~taken)), torch.from_numpy(np.flatnonzero(taken))
