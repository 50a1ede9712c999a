"""Views: orders and boxes against golden numbers, images against torchvision's operations one by one."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from raydd.augment.crop import Box, Crops, cutmix_box, draw_resized_crop
from raydd.core.errors import ConfigError
from raydd.core.rng import generator
from raydd.labels.label_config import LabelConfig
from raydd.labels.label_views import (
    DrawnViews,
    Orders,
    draw_views,
    make_views,
    mix,
    resized_crops,
    shuffle_patches,
)
from raydd.labels.records import RecordedEpoch, blank, write_batch

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "golden_edc.json").read_text())
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)


def pixels(count: int, channels: int, size: int) -> Tensor:
    return torch.randint(
        0, 256, (count, channels, size, size), generator=generator(0, "pixels")
    ).to(torch.uint8)


def drawn(config: LabelConfig, count: int = 6, size: int = 16, key: int = 0) -> DrawnViews:
    return draw_views(config, generator(0, "views", key), torch.arange(count), (size, size))


def test_the_order_is_that_of_the_seeded_sampler() -> None:
    golden, orders = GOLDEN["G11_sampler_seed42_n10000"], Orders(42, 10_000)
    assert orders(0)[:8].tolist() == golden["e0"]
    assert orders(1)[:8].tolist() == golden["e1"]
    sampler = torch.utils.data.RandomSampler(range(50), generator=torch.Generator().manual_seed(42))
    theirs = [list(sampler) for _ in range(5)]
    ours = Orders(42, 50)
    for epoch in (0, 3, 3, 1, 4, 2):  # also backwards and again
        assert ours(epoch).tolist() == theirs[epoch]


def test_the_golden_box() -> None:
    np.random.seed(0)
    lam = float(np.random.beta(1, 1))
    row, column = int(np.random.randint(224)), int(np.random.randint(224))
    assert lam == pytest.approx(0.44912526, abs=1e-8)
    assert cutmix_box(lam, row, column, (224, 224)) == (32, 125, 198, 224)


@pytest.mark.parametrize(("channels", "size"), [(3, 16), (1, 28)])
def test_cropped_flipped_and_mixed_images_are_those_of_the_published_pipeline(
    channels: int, size: int
) -> None:
    config, images = LabelConfig(), pixels(6, channels, size)
    mean, std = MEAN[:channels], STD[:channels]
    for key in range(4):
        views = drawn(config, size=size, key=key)
        found = make_views(config, images, views, mean, std)
        theirs = []
        for image, (top, left, height, width), flip in zip(
            images, views.boxes.tolist(), views.flips.tolist(), strict=True
        ):
            crop = F.resized_crop(
                image.float() / 255, top, left, height, width, [size, size], antialias=True
            )
            theirs.append(
                F.normalize(F.horizontal_flip(crop) if flip else crop, list(mean), list(std))
            )
        expected = torch.stack(theirs)
        x1, y1, x2, y2 = views.box
        expected[:, :, x1:x2, y1:y2] = expected[views.perm][:, :, x1:x2, y1:y2]
        torch.testing.assert_close(found, expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize("size", [(28, 28), (24, 20)])
def test_gathered_crops_are_the_products_of_matrices(size: tuple[int, int]) -> None:
    g, images = generator(0, "crops"), torch.rand(30, 2, *size)
    boxes = [draw_resized_crop(g, *size, (0.02, 1.0)) for _ in range(28)] + [
        Box(0, 0, *size),
        Box(3, 4, 1, 1),
    ]
    flips = torch.arange(30) % 2 == 0
    found = resized_crops(
        images, torch.tensor([[b.top, b.left, b.height, b.width] for b in boxes]), flips
    )
    torch.testing.assert_close(
        found, Crops.of(boxes, flips.tolist(), size).apply(images), rtol=0, atol=2e-6
    )
    assert torch.equal(found[28], images[28].flip(2)), "the whole image is itself, mirrored"


def test_padded_crops_are_exact_and_padded_with_black() -> None:
    config, images = LabelConfig(crop=None, pad_crop=3, mix="none"), pixels(40, 3, 16)
    views = drawn(config, count=40)
    found = make_views(config, images, views, MEAN, STD)
    padded = F.pad(images, [3, 3, 3, 3])
    for i, (top, left, _, _) in enumerate(views.boxes.tolist()):
        crop = F.crop(padded[i], top + 3, left + 3, 16, 16)
        expected = F.normalize(
            (F.horizontal_flip(crop) if views.flips[i] else crop).float() / 255,
            list(MEAN),
            list(STD),
        )
        torch.testing.assert_close(found[i], expected, rtol=0, atol=1e-6)
    tops = views.boxes[:, :2].unique().tolist()
    assert tops == list(range(-3, 4)), "every shift is drawn"


def test_without_options_images_stay_as_they_are() -> None:
    config, images = LabelConfig(crop=None, flip=False, mix="none"), pixels(5, 3, 16)
    found = make_views(config, images, drawn(config, count=5), MEAN, STD)
    assert torch.equal(
        found, torch.stack([F.normalize(i.float() / 255, list(MEAN), list(STD)) for i in images])
    )


def test_float_images_are_cropped_in_their_own_space() -> None:
    config, images = LabelConfig(), pixels(6, 3, 16)
    views = drawn(config)
    floats = F.normalize(images.float() / 255, list(MEAN), list(STD))
    in_space, from_pixels = (
        make_views(config, floats, views, MEAN, STD),
        make_views(config, images, views, MEAN, STD),
    )
    torch.testing.assert_close(in_space, from_pixels, rtol=0, atol=1e-5)


@pytest.mark.parametrize("grid", [2, 4])
def test_patches_are_shuffled_by_rows_and_columns(grid: int) -> None:
    images, side = pixels(7, 3, 16), 16 // grid
    config = LabelConfig(crop=None, flip=False, mix="none", shuffle=grid)
    views = drawn(config, count=7)
    assert views.patches is not None
    found = shuffle_patches(images, views.patches)
    for image, (rows, columns), mine in zip(images, views.patches.tolist(), found, strict=True):
        strips = [image[:, r * side : (r + 1) * side] for r in rows]
        strips = [torch.cat(strips, 1)[:, :, c * side : (c + 1) * side] for c in columns]
        assert torch.equal(mine, torch.cat(strips, 2))
    assert len({str(patches) for patches in views.patches.tolist()}) > 1, (
        "every image has a shuffle of its own"
    )
    assert torch.equal(
        make_views(config, images, views, MEAN, STD),
        make_views(config, found, replace(views, patches=None), MEAN, STD),
    )
    with pytest.raises(ConfigError, match="does not divide images of 28x28"):
        drawn(LabelConfig(shuffle=5), size=28)


def test_mixup_is_the_weighted_mean_of_partners() -> None:
    config, images = LabelConfig(mix="mixup", alpha=0.8), torch.randn(6, 1, 8, 8)
    views = drawn(config, size=8)
    expected = views.lam * images + (1 - views.lam) * images[views.perm]
    assert torch.equal(mix(config, images, views), expected)
    assert 0 < views.lam < 1
    assert views.perm.tolist() != list(range(6))


def test_draws_depend_on_their_key_alone() -> None:
    config = LabelConfig(shuffle=2, randaugment=True)
    one, same, other = drawn(config), drawn(config), drawn(config, key=1)
    for name in ("boxes", "flips", "perm", "patches", "operations"):
        assert torch.equal(getattr(one, name), getattr(same, name))
    assert (one.lam, one.box) == (same.lam, same.box)
    assert one.lam != other.lam
    assert not torch.equal(one.boxes, other.boxes)


def test_crops_flips_and_ratios_cover_their_ranges() -> None:
    views = [drawn(LabelConfig(crop=(0.5, 1.0)), count=40, size=64, key=key) for key in range(60)]
    boxes = torch.cat([v.boxes for v in views]).double()
    areas = boxes[:, 2] * boxes[:, 3] / 64**2
    assert 0.47 < float(areas.min()) < 0.52
    assert float(areas.max()) > 0.95
    assert 0.45 < float(torch.cat([v.flips for v in views]).double().mean()) < 0.55
    lams = torch.tensor([v.lam for v in views])
    assert float(lams.min()) < 0.15
    assert float(lams.max()) > 0.85


@pytest.mark.parametrize("size", [28, 32, 64, 96, 128, 224, 256])
def test_a_record_gives_every_box_back(size: int) -> None:
    config = LabelConfig(batch=size * 2)
    sides = torch.arange(size)
    boxes = torch.stack([sides, sides.flip(0), size - sides, sides + 1], 1)
    boxes = torch.cat([boxes, boxes * torch.tensor([-1, -1, 1, 1])])
    count = len(boxes)
    views = DrawnViews(
        index=torch.arange(count),
        boxes=boxes,
        flips=torch.arange(count) % 3 == 0,
        perm=torch.arange(count).flip(0),
        lam=0.1,
    )
    record = blank(config, count, 1, torch.device("cpu"))
    write_batch(record, config, 0, views, (size, size), {"logits": torch.zeros(count, 1).half()})
    assert torch.equal(RecordedEpoch(record, config, 1, (size, size)).views(0).boxes, boxes)


@pytest.mark.parametrize(
    "fields",
    [{}, {"shuffle": 2, "randaugment": True}, {"crop": None, "pad_crop": 2}, {"mix": "none"}],
)
def test_a_record_gives_the_views_back(fields: dict[str, Any]) -> None:
    config = LabelConfig(batch=4, **fields)
    record = blank(config, 7, 3, torch.device("cpu"))
    made = [
        draw_views(config, generator(0, "v", j), torch.arange(7)[j * 4 :][:4] + 300, (16, 16))
        for j in range(2)
    ]
    for j, views in enumerate(made):
        write_batch(
            record, config, j, views, (16, 16), {"logits": torch.zeros(len(views), 3).half()}
        )
    found = RecordedEpoch(record, config, 3, (16, 16))
    assert len(found) == 2
    for j, views in enumerate(made):
        back = found.views(j)
        for name in ("index", "boxes", "flips", "perm", "patches", "operations"):
            mine, theirs = getattr(views, name), getattr(back, name)
            assert (mine is None and theirs is None) or torch.equal(mine, theirs)
        assert (back.lam, back.box) == (views.lam, views.box)
