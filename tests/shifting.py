"""A decoding whose sets hold more than images and labels."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import torch

from raydd.artifacts.decoding import (
    DECODERS,
    Decoder,
    Decoding,
    Space,
    as_stored,
    register_decoder,
)
from raydd.core.tensors import Tensors


@pytest.fixture
def shifted() -> Iterator[Decoding]:
    """A decoding that adds each of the stored ``shifts`` to every image."""

    @register_decoder("test_shifts")
    @dataclass(frozen=True, kw_only=True)
    class Shifts(Decoder):
        def reads(self, name: str) -> bool:
            return name == "shifts"

        def count(self, tensors: Tensors) -> int:
            return len(tensors["images"]) * len(tensors["shifts"])

        def rows(self, tensors: Tensors, ids: torch.Tensor) -> torch.Tensor:
            return ids % len(tensors["images"])

        def take(
            self, tensors: Tensors, ids: torch.Tensor | None = None, space: Space = as_stored
        ) -> torch.Tensor:
            ids = torch.arange(self.count(tensors)) if ids is None else ids
            images = space(tensors["images"][self.rows(tensors, ids)])
            return images + tensors["shifts"][ids // len(tensors["images"])].view(-1, 1, 1, 1)

    yield Decoding("test_shifts")
    DECODERS._items.pop("test_shifts")
