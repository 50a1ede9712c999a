"""Gradients of a stack of networks, one network after another: for steps that are recorded, whose
launches cost nothing.

``vmap`` makes one grouped convolution of a stack's, which reaches a tenth of a GPU's rate; kernels
of single networks, on several streams, fill it better.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from raydd.core.tensors import Tensors
from raydd.losses.soft import SoftTargets

STREAMS = 8
"""How many networks a GPU works on at once."""

Labels = Tensor | SoftTargets
Found = tuple[Tensors, tuple[Tensor, tuple[Tensors, Tensor, Tensor]]]
"""Gradients, and the loss with buffers, count of correct answers and sum of losses beside it."""


class OneByOne:
    """``vmap(gradients)``, network by network;
    ``gradients(moving, still, buffers, images, labels)`` is that of one network.
    """

    def __init__(self, gradients: Callable[..., Found], device: torch.device) -> None:
        self._gradients = gradients
        self._streams = (
            [torch.cuda.Stream(device) for _ in range(STREAMS)] if device.type == "cuda" else []
        )

    def __call__(
        self, moving: Tensors, still: Tensors, buffers: Tensors, images: Tensor, labels: Labels
    ) -> Found:
        """Return the gradients of ``R`` networks; every tensor has a first dimension ``R``."""
        for stream in self._streams:
            stream.wait_stream(torch.cuda.current_stream(images.device))
        found: list[Found] = []
        for i, batch in enumerate(images):
            of_network = [
                {name: value[i] for name, value in part.items()}
                for part in (moving, still, buffers)
            ]
            of_batch = (
                labels[i]
                if isinstance(labels, Tensor)
                else SoftTargets(*(field[i] for field in labels))
            )
            aside: Any = (
                torch.cuda.stream(self._streams[i % len(self._streams)])
                if self._streams
                else nullcontext()
            )
            with aside:
                found.append(self._gradients(*of_network, batch, of_batch))
        for stream in self._streams:
            torch.cuda.current_stream(images.device).wait_stream(stream)
        # Only now are results given up: no stream writes again where another still reads.
        losses, others = _stack([f[1][0] for f in found]), [f[1][1] for f in found]
        gradients, after = _stack_named([f[0] for f in found]), _stack_named([o[0] for o in others])
        return gradients, (
            losses,
            (after, _stack([o[1] for o in others]), _stack([o[2] for o in others])),
        )


def _stack(parts: Sequence[Tensor]) -> Tensor:
    return torch.stack(list(parts))


def _stack_named(parts: Sequence[Tensors]) -> Tensors:
    return {name: _stack([part[name] for part in parts]) for name in parts[0]}
