"""How logits are kept: fp16, int8 with a scale per row, or the largest of each row.

Worked out in docs/methods/soft_labels.md, "What is stored".

Every codec stores some tensors, each with a row per image; :func:`layout` says which, so that sizes
are known beforehand.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from raydd.core.errors import NumericsError
from raydd.core.tensors import Tensors
from raydd.labels.label_config import LabelConfig

Layout = dict[str, tuple[torch.dtype, tuple[int, ...]]]
"""Tensors by name: their type, and the shape of one row."""

FP16_MAX = 65_504.0


def layout(config: LabelConfig, classes: int) -> Layout:
    """Return what the config's codec stores of each image (nothing if labels are not stored)."""
    if config.codec == "fp16":
        return {"logits": (torch.float16, (classes,))}
    if config.codec == "int8":
        return {
            "levels": (torch.uint8, (classes,)),
            "scale": (torch.float32, ()),
            "zero": (torch.float32, ()),
        }
    if config.top is not None:
        return {
            "top": (torch.uint16, (config.top,)),
            "logits": (torch.float16, (config.top,)),
            "tail": (torch.float32, ()),
        }
    return {}


def row_bytes(rows: Layout) -> int:
    """Return the bytes that a layout takes per row."""
    return sum(dtype.itemsize * math.prod(shape) for dtype, shape in rows.values())


def encode(config: LabelConfig, logits: Tensor) -> Tensors:
    """Return logits float32 ``[B, classes]`` as the codec stores them; ``NumericsError`` for what it cannot hold."""
    if not bool(torch.isfinite(logits).all()):
        raise NumericsError("the teachers' logits hold NaN or infinity")
    if config.codec == "int8":
        zero, high = logits.amin(1), logits.amax(1)
        scale = (high - zero) / 255
        # Rows of equal logits have no scale: all levels are 0.
        levels = (
            ((logits - zero[:, None]) / torch.where(scale > 0, scale, 1)[:, None])
            .round()
            .clamp(0, 255)
        )
        return {"levels": levels.to(torch.uint8), "scale": scale, "zero": zero}
    if float(logits.abs().max()) > FP16_MAX:
        raise NumericsError(
            f"a teacher's logit of {float(logits.abs().max()):g} is beyond fp16 (at most 65504); use labels.codec=int8"
        )
    if config.top is None:
        return {"logits": logits.half()}
    values, ids = logits.sort(dim=1, descending=True, stable=True)
    rest = values[:, config.top :]
    if rest.shape[1] == 0:
        tail = torch.zeros_like(values[:, 0])
    elif config.tail == "mean":
        tail = rest.mean(1)
    else:
        tail = rest.logsumexp(1) - math.log(rest.shape[1])
    return {
        "top": ids[:, : config.top].to(torch.uint16),
        "logits": values[:, : config.top].half(),
        "tail": tail,
    }


def decode(config: LabelConfig, stored: Mapping[str, Tensor], classes: int) -> Tensor:
    """Return logits float32 ``[B, classes]`` of stored rows, on their device."""
    if config.codec == "int8":
        return stored["levels"].float() * stored["scale"][:, None] + stored["zero"][:, None]
    logits = stored["logits"].float()
    if config.top is None:
        return logits
    full = stored["tail"][:, None].expand(-1, classes).clone()
    return full.scatter_(1, stored["top"].long(), logits)
