"""Random draws keyed by ``(seed, stream, *ids)``: never by rank, wall clock or order of execution."""

from __future__ import annotations

import hashlib
from typing import Protocol

import torch


def derive_seed(seed: int, stream: str, *ids: int) -> int:
    """Return a 63-bit integer that depends on nothing but its arguments."""
    text = "\x1f".join([str(int(seed)), stream, *(str(int(i)) for i in ids)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def generator(seed: int, stream: str, *ids: int) -> torch.Generator:
    """Return a fresh CPU generator for the key ``(seed, stream, *ids)``.

    Torch's CPU generator keeps 32 of the seed's bits, so two of a million keys may share a stream of draws:
    harmless to the statistics, and the same everywhere.
    """
    return torch.Generator().manual_seed(derive_seed(seed, stream, *ids))


class KeyedRng(Protocol):
    """A source of keyed generators, such as ``Context.rng`` or ``partial(generator, seed)``."""

    def __call__(self, stream: str, *ids: int) -> torch.Generator:
        """Return the CPU generator of a stream."""
        ...
