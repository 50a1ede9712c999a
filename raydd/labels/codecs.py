"""How logits are kept: fp16, int8 with a scale per row, the largest of each row, or float32.

Worked out in docs/methods/soft_labels.md, "What is stored".

A codec stores some tensors, each with a row per image; its layout says which, so that sizes are
known beforehand.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from raydd.core.errors import ConfigError, NumericsError
from raydd.core.registry import Registry
from raydd.core.tensors import Tensors

if TYPE_CHECKING:
    from raydd.labels.label_config import LabelConfig

Layout = dict[str, tuple[torch.dtype, tuple[int, ...]]]
"""Tensors by name: their type, and the shape of one row."""

FP16_MAX = 65_504.0
STATIC = "static"
"""The codec of one row of logits for each image, whatever its views."""


class Codec:
    """Keeps logits of images. What it keeps depends on the label config and the row alone."""

    def layout(self, config: LabelConfig, classes: int) -> Layout:
        """Return what is stored of each image."""
        raise TypeError(f"{type(self).__name__} does not define layout()")

    def encode(self, config: LabelConfig, logits: Tensor) -> Tensors:
        """Return finite logits float32 ``[B, classes]`` as they are stored; ``NumericsError`` for what cannot be."""
        raise TypeError(f"{type(self).__name__} does not define encode()")

    def decode(self, config: LabelConfig, stored: Mapping[str, Tensor], classes: int) -> Tensor:
        """Return logits float32 ``[B, classes]`` of stored rows, on their device."""
        raise TypeError(f"{type(self).__name__} does not define decode()")


class Half(Codec):
    """All logits as fp16."""

    def layout(self, config: LabelConfig, classes: int) -> Layout:
        return {"logits": (torch.float16, (classes,))}

    def encode(self, config: LabelConfig, logits: Tensor) -> Tensors:
        return {"logits": _fits_half(logits).half()}

    def decode(self, config: LabelConfig, stored: Mapping[str, Tensor], classes: int) -> Tensor:
        return stored["logits"].float()


class EightBits(Codec):
    """All logits as 256 levels between a row's least and largest."""

    def layout(self, config: LabelConfig, classes: int) -> Layout:
        return {
            "levels": (torch.uint8, (classes,)),
            "scale": (torch.float32, ()),
            "zero": (torch.float32, ()),
        }

    def encode(self, config: LabelConfig, logits: Tensor) -> Tensors:
        zero, high = logits.amin(1), logits.amax(1)
        scale = (high - zero) / 255
        # Rows of equal logits have no scale: all levels are 0.
        levels = (
            ((logits - zero[:, None]) / torch.where(scale > 0, scale, 1)[:, None])
            .round()
            .clamp(0, 255)
        )
        return {"levels": levels.to(torch.uint8), "scale": scale, "zero": zero}

    def decode(self, config: LabelConfig, stored: Mapping[str, Tensor], classes: int) -> Tensor:
        return stored["levels"].float() * stored["scale"][:, None] + stored["zero"][:, None]


class Largest(Codec):
    """The ``top`` largest logits as fp16, and one value for the others."""

    def layout(self, config: LabelConfig, classes: int) -> Layout:
        return {
            "top": (torch.uint16, (_top(config),)),
            "logits": (torch.float16, (_top(config),)),
            "tail": (torch.float32, ()),
        }

    def encode(self, config: LabelConfig, logits: Tensor) -> Tensors:
        values, ids = _fits_half(logits).sort(dim=1, descending=True, stable=True)
        top = _top(config)
        rest = values[:, top:]
        if rest.shape[1] == 0:
            tail = torch.zeros_like(values[:, 0])
        elif config.tail == "mean":
            tail = rest.mean(1)
        else:
            tail = rest.logsumexp(1) - math.log(rest.shape[1])
        return {
            "top": ids[:, :top].to(torch.uint16),
            "logits": values[:, :top].half(),
            "tail": tail,
        }

    def decode(self, config: LabelConfig, stored: Mapping[str, Tensor], classes: int) -> Tensor:
        full = stored["tail"][:, None].expand(-1, classes).clone()
        return full.scatter_(1, stored["top"].long(), stored["logits"].float())


class Whole(Codec):
    """All logits as they are, float32."""

    def layout(self, config: LabelConfig, classes: int) -> Layout:
        return {"logits": (torch.float32, (classes,))}

    def encode(self, config: LabelConfig, logits: Tensor) -> Tensors:
        return {"logits": logits.float()}

    def decode(self, config: LabelConfig, stored: Mapping[str, Tensor], classes: int) -> Tensor:
        return stored["logits"].float()


def _top(config: LabelConfig) -> int:
    if config.top is None:
        raise ConfigError(f"labels.codec={config.codec} needs labels.top")
    return config.top


def _fits_half(logits: Tensor) -> Tensor:
    """Return the logits; ``NumericsError`` for one that fp16 cannot hold."""
    largest = float(logits.abs().max())
    if largest > FP16_MAX:
        raise NumericsError(
            f"a teacher's logit of {largest:g} is beyond fp16 (at most 65504); use labels.codec=int8"
        )
    return logits


def _admit(name: str, found: Any) -> Codec:
    """Return a codec of the class that an entry point names."""
    if not (isinstance(found, type) and issubclass(found, Codec)):
        raise ConfigError(f"{found!r} is no subclass of raydd.labels.codecs.Codec")
    return found()


CODECS: Registry[Codec] = Registry("label codec", "raydd.label_codecs", _admit)
CODECS.register("fp16")(Half())
CODECS.register("int8")(EightBits())
CODECS.register("topk")(Largest())
CODECS.register(STATIC)(Whole())


def layout(config: LabelConfig, classes: int) -> Layout:
    """Return what the config's codec stores of each image (nothing if labels are not stored)."""
    return CODECS.get(config.codec).layout(config, classes) if config.stored else {}


def row_bytes(rows: Layout) -> int:
    """Return the bytes that a layout takes per row."""
    return sum(dtype.itemsize * math.prod(shape) for dtype, shape in rows.values())


def encode(config: LabelConfig, logits: Tensor) -> Tensors:
    """Return logits float32 ``[B, classes]`` as the codec stores them; ``NumericsError`` for what it cannot hold."""
    if not bool(torch.isfinite(logits).all()):
        raise NumericsError("the teachers' logits hold NaN or infinity")
    return CODECS.get(config.codec).encode(config, logits)


def decode(config: LabelConfig, stored: Mapping[str, Tensor], classes: int) -> Tensor:
    """Return logits float32 ``[B, classes]`` of stored rows, on their device."""
    return CODECS.get(config.codec).decode(config, stored, classes)
