"""What a step that a GPU records must keep to, seen on a CPU: no wait for the device, nothing
copied to it, the same work each time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from raydd.core import captured
from raydd.training import students

_WAITS = (
    "aten._local_scalar_dense",
    "aten.is_nonzero",
    "aten.nonzero",
    "aten.masked_select",
    "aten.unique",
    "aten.equal",
)
"""Operators whose result the host has to know before it goes on: ``.item()``, ``bool(tensor)``,
shapes that depend on numbers.
"""

_FROM_HOST = "aten.lift_fresh"
"""``torch.tensor`` of Python numbers: on a GPU a copy from the host."""

Work = tuple[tuple[str, tuple[tuple[int, ...], ...]], ...]


class Strict(TorchDispatchMode):
    """Raises on what cannot be recorded; keeps operators (mere views left out) with the shapes of what they read."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, tuple[tuple[int, ...], ...]]] = []

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        name = str(function)
        if name.startswith((*_WAITS, _FROM_HOST)):
            raise AssertionError(f"a step that is recorded calls {name}")
        if not function.is_view and "detach" not in name:
            shapes = tuple(
                tuple(x.shape) for x in tree_leaves((args, kwargs or {})) if isinstance(x, Tensor)
            )
            self.seen.append((name, shapes))
        return function(*args, **(kwargs or {}))


def _no_cpu(self: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    raise AssertionError("a step that is recorded calls .cpu()")


@contextmanager
def recorded() -> Iterator[list[tuple[str, Work]]]:
    """Let steps take their recordable form; yield, call by call, the recorded function's name and its work.

    Each call runs under :class:`Strict`; ``AssertionError`` if one whose inputs have the shapes of
    an earlier one does other work.
    """
    calls: list[tuple[str, Work]] = []
    known: dict[Any, Work] = {}

    def call(self: captured.Captured, *tensors: Tensor) -> tuple[Tensor, ...]:
        key = (id(self), *((tuple(x.shape), x.dtype) for x in tensors))
        if key not in known:
            self.function(
                *tensors
            )  # as before a recording: what is made once and kept is made here
        with Strict() as strict, mock.patch.object(torch.Tensor, "cpu", _no_cpu):
            result: Sequence[Tensor] = self.function(*tensors)
        work = tuple(strict.seen)
        calls.append((getattr(self.function, "__qualname__", type(self.function).__name__), work))
        assert known.setdefault(key, work) == work, (
            "the work of a recorded step changes from call to call"
        )
        return tuple(result)

    _forget()
    try:
        with (
            mock.patch.object(captured, "ANYWHERE", True),
            mock.patch.object(captured.Captured, "__call__", call),
        ):
            yield calls
    finally:
        _forget()


def _forget() -> None:
    """Drop the steps that a process keeps: they are made for one form or the other."""
    students._made_once.cache_clear()
    students._recorded_once.cache_clear()
