"""Files of ``torch.save`` that others wrote: tensors and plain values, and no more of them than the file's bytes."""

from __future__ import annotations

import io
import pickle
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from raydd.core.errors import DataError, TornFileError, first_line
from raydd.core.unpacking import check_unfolded, check_zip

DEPTH, VALUES = 64, 1_000_000
"""Lists and mappings within each other, and values in them, each counted as often as it is reached."""
_TIMES = 4
"""How many times a file's bytes its tensors may take: weights that are tied are stored once."""


def load_torch(data: bytes, what: str, allowed: Sequence[Any] = ()) -> Any:
    """Return what ``torch.save`` wrote; ``allowed``: classes and functions that may be named in it, as
    ``torch.serialization.safe_globals`` takes them.

    ``pickle.UnpicklingError`` where it names others, ``TornFileError`` naming ``what`` for broken bytes,
    ``DataError`` for values that would take much more memory than the file, that hold themselves,
    or are nested too deeply.
    """
    try:
        check_zip(data, what, _TIMES)
    except (zipfile.BadZipFile, ValueError, NotImplementedError):
        pass  # as before torch wrote archives; else torch says it
    try:
        with torch.serialization.safe_globals(list(allowed)):
            value = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise
    except Exception as error:  # whatever values do that are handed to a tensor
        raise TornFileError(f"{what} is torn or not a .pt file: {first_line(error)}") from error
    _check(value, len(data), what)
    return value


def _check(value: Any, held: int, what: str) -> None:
    """Raise ``DataError`` for what :func:`load_torch` refuses."""
    sizes: dict[int, int] = {}
    bytes_ = 0
    stack: list[tuple[Any, bool]] = [(value, False)]
    open_: set[int] = set()
    while stack:
        one, done = stack.pop()
        if done:
            open_.discard(id(one))
            sizes[id(one)] = 1 + sum(sizes.get(id(inner), 1) for inner in _inner(one))
            if sizes[id(one)] > VALUES:
                raise DataError(f"{what} would unfold to more than {VALUES} values")
            continue
        if id(one) in sizes:
            continue
        if isinstance(one, (Tensor, np.ndarray)):
            sizes[id(one)] = 1
            bytes_ += _bytes(one, what)
            continue
        inner = _inner(one)
        if not inner:
            continue
        if id(one) in open_:
            raise DataError(f"{what} holds a list or mapping that holds itself")
        if len(open_) >= DEPTH:
            raise DataError(f"{what} is nested deeper than {DEPTH}")
        open_.add(id(one))
        stack.append((one, True))
        stack.extend((part, False) for part in inner)
    check_unfolded(bytes_, held, what, _TIMES)


def _inner(value: Any) -> list[Any]:
    """Return the values that a value holds."""
    if isinstance(value, Mapping):
        return [*value.keys(), *value.values()]
    if isinstance(value, (list, tuple, set, frozenset)):
        return list(value)
    return list(vars(value).values()) if hasattr(value, "__dict__") and _plain(value) else []


def _plain(value: Any) -> bool:
    return not isinstance(value, (type, Tensor)) and not callable(value)


def _bytes(value: Tensor | np.ndarray[Any, Any], what: str) -> int:
    if isinstance(value, Tensor):
        kinds: Iterable[tuple[bool, str]] = (
            (value.layout != torch.strided, "is sparse"),
            (value.device.type != "cpu", "holds no values"),
            (value.is_quantized, "is quantised"),
        )
        found = next((text for is_so, text in kinds if is_so), None)
        if found is not None:
            raise DataError(
                f"{what} holds a tensor {list(value.shape)} that {found}; save it as plain numbers"
            )
        return value.numel() * value.element_size()
    return int(value.nbytes)
