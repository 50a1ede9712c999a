"""Pure functions of tensors, which a GPU repeats as one recorded graph of kernels: no Python and no
launches in between.

    update = Captured(function, device)
    images, momentum, loss = update(images, momentum, rows, weights)        # tensors in, a tuple of tensors out

What a recorded function reads beside its arguments (tables, images that stay on the device, a
network's weights) is read again at each replay, at the place where it was when the function was
recorded.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

log = logging.getLogger(__name__)

Function = Callable[..., Sequence[Tensor]]

_WARM_UPS = 2
"""Calls before a function is recorded: libraries choose their kernels and allocate their work space then."""

_KEPT = 16
"""Recordings, each for inputs of other shapes, that one function keeps."""

ANYWHERE = False
"""Tests set this: steps take the form that can be recorded on a CPU as well."""

Signature = tuple[tuple[torch.Size, torch.dtype], ...]


@lru_cache(maxsize=8)
def _pool(device: torch.device) -> Any:
    """Return an empty recording whose memory all others of a device share: they run one after
    another, and what they return is copied.

    It is kept for good: memory that no recording holds any more cannot be recorded into again.
    """
    anchor = torch.cuda.CUDAGraph()
    with torch.cuda.graph(anchor, capture_error_mode="thread_local"):
        torch.zeros(1, device=device)
    return anchor


def recordable(device: torch.device) -> bool:
    """Return whether a step is to be one pure function of tensors: on a GPU; a CPU is as fast in
    small pieces, with less memory.
    """
    return device.type == "cuda" or ANYWHERE


@dataclass(frozen=True)
class _Recording:
    graph: Any
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]


class Captured:
    """``captured(*tensors)`` is ``tuple(function(*tensors))``, on a GPU as one graph recorded at
    the first call with such shapes.

    ``function``: pure in its tensors; it must not wait for the device (``.item()``, ``.cpu()``),
    copy from the host, or make shapes of what tensors hold. Tensors may be on the CPU, best in
    pinned memory: they are copied to ``device`` without waiting. What is returned belongs to the
    caller. A function that cannot be recorded is called as it is, with a warning.
    """

    def __init__(self, function: Function, device: torch.device) -> None:
        self.function, self.device = function, device
        self._recordings: dict[Signature, _Recording | None] = {}

    def __call__(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Return the function's values for ``tensors``."""
        if self.device.type != "cuda":
            return tuple(self.function(*tensors))
        signature = tuple((x.shape, x.dtype) for x in tensors)
        if signature not in self._recordings:
            if len(self._recordings) == _KEPT:
                del self._recordings[next(iter(self._recordings))]
            self._recordings[signature] = self._record(tensors)
        recording = self._recordings[signature]
        if recording is None:
            return tuple(self.function(*(x.to(self.device, non_blocking=True) for x in tensors)))
        _copy(recording.inputs, tensors)
        recording.graph.replay()
        results = tuple(torch.empty_like(x) for x in recording.outputs)
        _copy(results, recording.outputs)
        return results

    def _record(self, tensors: Sequence[Tensor]) -> _Recording | None:
        inputs = tuple(
            torch.empty(x.shape, dtype=x.dtype, device=self.device).copy_(x) for x in tensors
        )
        stream = torch.cuda.Stream(self.device)
        stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(stream):
            for _ in range(_WARM_UPS):
                self.function(*inputs)
        torch.cuda.current_stream(self.device).wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        try:
            # A thread beside this one draws the next update's numbers into pinned memory meanwhile.
            with torch.cuda.graph(
                graph, pool=_pool(self.device).pool(), capture_error_mode="thread_local"
            ):
                outputs = tuple(self.function(*inputs))
        except RuntimeError as error:
            log.warning(
                "a step cannot be recorded and runs kernel by kernel: %s",
                str(error).splitlines()[0],
            )
            return None
        return _Recording(graph, inputs, outputs)


def _copy(places: Sequence[Tensor], tensors: Sequence[Tensor]) -> None:
    """Copy without waiting; what is on the device already, all tensors of a type by one kernel."""
    groups: dict[torch.dtype, tuple[list[Tensor], list[Tensor]]] = {}
    for place, x in zip(places, tensors, strict=True):
        if x.device != place.device:
            place.copy_(x, non_blocking=True)
            continue
        of_type = groups.setdefault(x.dtype, ([], []))
        of_type[0].append(place)
        of_type[1].append(x)
    for into, given in groups.values():
        torch._foreach_copy_(into, given)


def pinned(tensor: Tensor, device: torch.device) -> Tensor:
    """Return a CPU tensor in memory from which a GPU copies while the host goes on; itself where
    ``device`` is a CPU.
    """
    return tensor.pin_memory() if device.type == "cuda" and tensor.device.type == "cpu" else tensor
