"""Dictionaries of tensors as bytes (safetensors), and their digests."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch
from safetensors import SafetensorError
from safetensors.torch import load as _load
from safetensors.torch import save as _save

from raydd.core.errors import TornFileError

Tensors = dict[str, torch.Tensor]


def dump_tensors(tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str] | None = None) -> bytes:
    """Serialise named tensors; equal tensors and metadata give equal bytes on every machine."""
    plain = {name: tensors[name].detach().cpu().contiguous() for name in sorted(tensors)}
    seen: set[int] = set()
    for name, tensor in plain.items():
        if tensor.numel() and tensor.data_ptr() in seen:
            plain[name] = tensor.clone()
        seen.add(plain[name].data_ptr())
    return _save(plain, dict(metadata) if metadata else None)


def load_tensors(data: bytes, what: str = "tensors") -> Tensors:
    """Read what :func:`dump_tensors` wrote; raise ``TornFileError`` naming ``what`` if the bytes are not whole."""
    try:
        return _load(data)
    except (SafetensorError, ValueError, KeyError) as error:
        raise TornFileError(f"{what} is torn or not a safetensors file: {error}") from error


def load_metadata(data: bytes) -> dict[str, str]:
    """Return the string metadata in the header of a safetensors byte string (empty if there is none)."""
    import json

    size = int.from_bytes(data[:8], "little")
    return dict(json.loads(data[8 : 8 + size]).get("__metadata__", {}))


def digest(tensors: Mapping[str, torch.Tensor]) -> str:
    """Return the sha256 of named tensors (names, dtypes, shapes and bytes), in hex."""
    h = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        h.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)};".encode())
        h.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return h.hexdigest()
