"""A small set of real pictures (the bundled digits), as methods assemble it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from raydd.artifacts.decoding import DECODERS, Decoder, Decoding, Space, as_stored, register_decoder
from raydd.artifacts.distilled_set import DistilledSet
from raydd.artifacts.report import Point, Report, Row
from raydd.core.tensors import Tensors
from raydd.data.catalog import entry

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def digits() -> tuple[torch.Tensor, torch.Tensor]:
    """uint8 images ``[30, 1, 8, 8]``, three of each class in label order, and their labels."""
    from sklearn.datasets import load_digits

    data = load_digits()
    ids = [i for c in range(10) for i in (data.target == c).nonzero()[0][:3]]
    images = torch.tensor(data.images[ids] * 255 / 16).round().to(torch.uint8)[:, None]
    return images, torch.tensor(data.target[ids], dtype=torch.int64)


@pytest.fixture
def make(digits: tuple[torch.Tensor, torch.Tensor]) -> Callable[..., DistilledSet]:
    """Build the set: normalised floats (some out of the range of pixels) by default, other fields by name."""

    def build(**fields: Any) -> DistilledSet:
        info = entry("digits").info
        images = (digits[0].float() / 255 * 1.2 - info.mean[0]) / info.std[0]
        recipe = {"method": {"name": "dm", "lr_img": 1.0}, "ipc": 3, "seed": 0}
        return DistilledSet(
            **{"images": images, "labels": digits[1], "info": info, "recipe": recipe, **fields}
        )

    return build


@pytest.fixture
def report() -> Report:
    """A report with the set, its random baseline and a curve."""
    shared = {
        "protocol": "dsa-1000",
        "network": "convnet3-w128",
        "image_bytes": 7680,
        "label_bytes": 240,
    }
    rows = (
        Row(
            set="dm",
            accuracy_mean=83.5,
            accuracy_std=0.31,
            seeds=5,
            networks=20,
            device_seconds=3700.0,
            **shared,
        ),
        Row(set="random", accuracy_mean=73.7, accuracy_std=1.3, seeds=3, networks=20, **shared),
    )
    points = tuple(
        Point(
            step=t, device_seconds=t / 10, accuracy_mean=70 + t / 100, accuracy_std=0.5, networks=5
        )
        for t in (0, 500, 1000)
    )
    return Report(
        dataset="digits",
        ipc=3,
        split="test",
        rows=rows,
        hlr=10.2,
        ior=9.8,
        curve=points,
        curve_protocol="dsa-1000",
    )


@pytest.fixture
def mirrored() -> Iterator[Decoding]:
    """A decoding of which students see the stored images, then their mirror images."""

    @register_decoder("test_mirror")
    @dataclass(frozen=True, kw_only=True)
    class Mirror(Decoder):
        def count(self, tensors: Tensors) -> int:
            return 2 * len(tensors["images"])

        def rows(self, tensors: Tensors, ids: torch.Tensor) -> torch.Tensor:
            return ids % len(tensors["images"])

        def take(
            self, tensors: Tensors, ids: torch.Tensor | None = None, space: Space = as_stored
        ) -> torch.Tensor:
            ids = torch.arange(self.count(tensors)) if ids is None else ids
            images = tensors["images"][self.rows(tensors, ids)]
            turned = (ids >= len(tensors["images"])).view(-1, 1, 1, 1)
            return torch.where(turned, images.flip(-1), images)

    yield Decoding("test_mirror")
    DECODERS._items.pop("test_mirror")
