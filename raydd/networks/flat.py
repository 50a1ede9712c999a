"""A network's weights as one vector: drawn at once, copied to a GPU at once."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from raydd.networks.network import Network


class FreshWeights:
    """``fresh(generator)``: the weights of a newly initialised network, a vector ``[P]`` on the
    CPU; any thread may ask.

    ``make`` returns a network of the structure; each thread fills one of its own, again and again.
    """

    def __init__(self, make: Callable[[], Network]) -> None:
        self._make, self._own = make, threading.local()

    def __call__(self, generator: torch.Generator) -> Tensor:
        """Return what ``reinitialise_`` draws from ``generator``, in the order of ``network.parameters()``."""
        if not hasattr(self._own, "network"):
            self._own.network = self._make()
        self._own.network.reinitialise_(generator)
        return flatten(self._own.network.parameters())


def flatten(parameters: Iterable[Tensor]) -> Tensor:
    """Return a copy of all numbers, one after another, ``[P]``."""
    return torch.cat([p.detach().flatten() for p in parameters])


@torch.no_grad()
def fill_(parameters: Iterable[Tensor], weights: Tensor) -> None:
    """Write what :func:`flatten` returned, ``[P]`` on the same device, into parameters."""
    places: list[Tensor] = list(parameters)
    pieces = weights.split([p.numel() for p in places])
    torch._foreach_copy_(
        places, [piece.view_as(p) for piece, p in zip(pieces, places, strict=True)]
    )
