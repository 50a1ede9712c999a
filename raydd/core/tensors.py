"""Dictionaries of tensors as bytes (safetensors), and their digests."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as _load

from raydd.core.errors import TornFileError
from raydd.core.json_text import parse_json

Tensors = dict[str, torch.Tensor]


_DTYPES = {
    torch.uint64: "U64",
    torch.int64: "I64",
    torch.float64: "F64",
    torch.complex64: "C64",
    torch.float32: "F32",
    torch.uint32: "U32",
    torch.int32: "I32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.uint16: "U16",
    torch.int16: "I16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
"""What the format calls types, in the order in which their tensors lie in a file: the widest first,
so that all are aligned.
"""


def dump_tensors(
    tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str] | None = None
) -> bytes:
    """Serialise named tensors; equal tensors and metadata give equal bytes on every machine.

    These are the bytes of the safetensors library, which puts metadata in an order drawn anew each
    time; here they are sorted.
    """
    order = list(_DTYPES)
    plain = {
        name: tensors[name].detach().cpu().contiguous()
        for name in sorted(tensors, key=lambda n: (order.index(tensors[n].dtype), n))
    }
    header: dict[str, Any] = {"__metadata__": dict(sorted(metadata.items()))} if metadata else {}
    end = 0
    for name, tensor in plain.items():
        start, end = end, end + tensor.nbytes
        header[name] = {
            "dtype": _DTYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    parts = (tensor.reshape(-1).view(torch.uint8).numpy().data for tensor in plain.values())
    return b"".join([len(text).to_bytes(8, "little"), text, *parts])


def load_tensors(data: bytes, what: str = "tensors") -> Tensors:
    """Read what :func:`dump_tensors` wrote; raise ``TornFileError`` naming ``what`` if the bytes are not whole."""
    try:
        return _load(data)
    except (SafetensorError, ValueError, KeyError) as error:
        raise TornFileError(f"{what} is torn or not a safetensors file: {error}") from error


def _header(data: bytes, what: str) -> tuple[dict[str, Any], int]:
    """Return the header of a safetensors byte string, and where the tensors begin; ``TornFileError``
    naming ``what`` if there is none.
    """
    begin = 8 + int.from_bytes(data[:8], "little")
    try:
        header = parse_json(data[8:begin])
    except ValueError as error:
        raise TornFileError(f"{what} is torn or not a safetensors file: {error}") from error
    if not isinstance(header, dict):
        raise TornFileError(f"{what} is torn or not a safetensors file: its header is no mapping")
    return header, begin


def load_metadata(data: bytes, what: str = "tensors") -> dict[str, str]:
    """Return the string metadata in the header of a safetensors byte string (empty if there is none);
    ``TornFileError`` naming ``what`` if there is no header.
    """
    found = _header(data, what)[0].get("__metadata__", {})
    if not isinstance(found, dict) or not all(isinstance(v, str) for v in found.values()):
        raise TornFileError(f"{what} is torn or not a safetensors file: its metadata are no texts")
    return found


def row_facts(data: bytes, names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Return what reading rows of some tensors of a safetensors byte string takes.

    By name: ``dtype`` (the format's word), ``shape``, ``begin`` (where the first row lies in the
    file), and the ``sha256`` of each row, in hex.
    """
    header, begin = _header(data, "tensors")
    found = {}
    for name in names:
        start, end = (begin + offset for offset in header[name]["data_offsets"])
        count = header[name]["shape"][0]
        size = (end - start) // max(1, count)
        rows = (data[start + i * size : start + (i + 1) * size] for i in range(count))
        found[name] = {
            "dtype": header[name]["dtype"],
            "shape": header[name]["shape"],
            "begin": start,
            "sha256": [hashlib.sha256(row).hexdigest() for row in rows],
        }
    return found


def rows_from(
    facts: Mapping[str, Any], rows: range, read: Callable[[int, int], bytes], what: str
) -> torch.Tensor:
    """Return consecutive rows of a tensor that :func:`row_facts` tells of.

    ``read(start, end)`` returns bytes of the file. ``TornFileError`` naming ``what`` if a row is
    not the one that was written.
    """
    dtype = next(kind for kind, word in _DTYPES.items() if word == facts["dtype"])
    shape = [len(rows), *facts["shape"][1:]]
    size = math.prod(shape[1:]) * dtype.itemsize
    start = facts["begin"] + rows.start * size
    data = read(start, start + len(rows) * size) if size and len(rows) else b""
    for i, row in enumerate(rows):
        found = hashlib.sha256(data[i * size : (i + 1) * size]).hexdigest()
        if found != facts["sha256"][row]:
            raise TornFileError(f"{what} is torn: row {row} is missing or holds other content")
    if not data:
        return torch.empty(shape, dtype=dtype)
    return torch.frombuffer(bytearray(data), dtype=dtype).view(shape)


def digest(tensors: Mapping[str, torch.Tensor]) -> str:
    """Return the sha256 of named tensors (names, dtypes, shapes and bytes), in hex."""
    h = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        h.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)};".encode())
        h.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return h.hexdigest()
