"""How much memory a device has, and how much of it objects take."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
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


def sizes_of(value: Any, depth: int = 4) -> Counter[str]:
    """Return the bytes of the tensors that an object holds, some levels deep, by kind of device."""
    found: Counter[str] = Counter()
    if isinstance(value, torch.Tensor):
        found[value.device.type] += value.numel() * value.element_size()
        return found
    if isinstance(value, torch.nn.Module):
        inner: Iterable[Any] = (*value.parameters(), *value.buffers())
        depth = max(depth, 1)
    elif isinstance(value, Mapping):
        inner = value.values()
    elif isinstance(value, (list, tuple)):
        inner = value
    else:
        inner = getattr(value, "__dict__", {}).values()
    for item in inner if depth else ():
        found.update(sizes_of(item, depth - 1))
    return found
