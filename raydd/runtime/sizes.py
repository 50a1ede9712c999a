"""How much memory a device has, and how much of it objects take."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import psutil
import torch


def taken(device: torch.device) -> int:
    """Return the bytes that this process has taken of a GPU, or of the machine's memory."""
    if device.type == "cuda":
        return int(torch.cuda.memory_reserved(device))
    return int(psutil.Process().memory_info().rss)


def memory_of(device: torch.device) -> int:
    """Return the bytes of memory a device has."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return int(psutil.virtual_memory().total)


def size_of(value: Any, depth: int = 4) -> int:
    """Return the bytes of the tensors that an object holds, some levels deep."""
    if isinstance(value, torch.Tensor):
        return value.numel() * value.element_size()
    if isinstance(value, torch.nn.Module):
        return sum(size_of(tensor) for tensor in (*value.parameters(), *value.buffers()))
    if depth == 0:
        return 0
    if isinstance(value, Mapping):
        return sum(size_of(item, depth - 1) for item in value.values())
    if isinstance(value, (list, tuple)):
        return sum(size_of(item, depth - 1) for item in value)
    return sum(size_of(item, depth - 1) for item in getattr(value, "__dict__", {}).values())
