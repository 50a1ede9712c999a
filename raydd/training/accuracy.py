"""Top-1 accuracy of networks on real images, and the real images a worker keeps on its device."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping

import torch
from torch import Tensor, nn

from raydd.core.tensors import Tensors
from raydd.core.units import Context, Data, Numerics
from raydd.networks import Network
from raydd.networks.fast import fast_forward
from raydd.training.sgd import part, weights_for_test

TEST_BATCH = 256
RESIDENT_BYTES = 4 << 30
"""Splits of at most this many bytes of uint8 pixels stay on the device."""

Batch = tuple[Tensor, Tensor]


def evaluate_accuracy(
    network: Callable[[Tensor], Tensor],
    batches: Iterable[Batch],
    prepare: Callable[[Tensor], Tensor],
) -> float:
    """Return the top-1 accuracy in [0, 1] of a network, which should be in eval mode.

    ``batches``: uint8 images ``[B, C, H, W]`` and labels ``[B]`` on the network's device;
    ``prepare`` brings images into the network's space (normalisation, whitening). The device is
    waited for once, at the end.
    """
    correct, seen = None, 0
    with torch.no_grad():
        for images, labels in batches:
            hits = (network(prepare(images)).argmax(1) == labels).sum()
            correct = hits if correct is None else correct + hits
            seen += len(labels)
    return 0.0 if correct is None else int(correct) / seen


class Examiner:
    """Measures the accuracy of a training's states; made once for an architecture (a copy of it is kept)."""

    def __init__(self, network: Network, numerics: Numerics) -> None:
        self.network = copy.deepcopy(network).eval().requires_grad_(False)
        self._run = fast_forward(self.network, numerics)

    def accuracy(
        self,
        state: Mapping[str, Tensor],
        batches: Iterable[Batch],
        prepare: Callable[[Tensor], Tensor],
    ) -> float:
        """Return the accuracy in [0, 1] of one network's state (see :func:`raydd.training.sgd.weights_for_test`)."""
        load_state(self.network, weights_for_test(state))
        return evaluate_accuracy(self._run, batches, prepare)


def load_state(network: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Copy a training's parameters and buffers into a network."""
    with torch.no_grad():
        for kind, named in (
            ("params", network.named_parameters()),
            ("buffers", network.named_buffers()),
        ):
            values = part(state, kind)
            for name, tensor in named:
                tensor.copy_(values[name])


def resident(data: Data, ctx: Context) -> Tensors | None:
    """Return a split's ``images`` (uint8) and ``labels`` on the worker's device, kept there;
    ``None`` if they are too many.
    """
    if not len(data):
        return None
    size = data.take(torch.arange(1)).numel() * len(data)
    if size > RESIDENT_BYTES:
        return None

    def read() -> Tensors:
        parts = [data.take(ids) for ids in torch.arange(len(data)).split(1024)]
        return {"images": torch.cat(parts).to(ctx.device), "labels": data.labels.to(ctx.device)}

    return ctx.cached(("resident", data.digest), read)


def real_batches(data: Data, ctx: Context, batch: int = TEST_BATCH) -> Iterator[Batch]:
    """Yield a split in its own order, uint8 images and labels on the worker's device."""
    kept = resident(data, ctx)
    if kept is not None:
        yield from zip(kept["images"].split(batch), kept["labels"].split(batch), strict=True)
        return
    for ids in torch.arange(len(data)).split(batch):
        yield data.take(ids).to(ctx.device), data.labels[ids].to(ctx.device)
