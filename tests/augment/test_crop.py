"""Crops against torchvision's, and their draws."""

from __future__ import annotations

import pytest
import torch
from torchvision.transforms.v2 import functional as F

from raydd.augment.crop import Box, Crops, cutmix_box, draw_beta, draw_flip, draw_resized_crop
from raydd.core.rng import generator


@pytest.mark.parametrize("out", [None, 16, 40])
@pytest.mark.parametrize("flip", [False, True])
def test_a_crop_is_torchvisions_bilinear_one(out: int | None, flip: bool) -> None:
    images = torch.rand(3, 2, 24, 20)
    boxes = [Box(0, 0, 24, 20), Box(3, 5, 7, 11), Box(20, 0, 4, 1)]
    found = Crops.of(boxes, [flip] * 3, (24, 20), out).apply(images)
    for image, box, mine in zip(images, boxes, found, strict=True):
        size = [out or 24, out or 20]
        theirs = F.resized_crop(
            image, box.top, box.left, box.height, box.width, size, antialias=False
        )
        torch.testing.assert_close(
            mine, F.horizontal_flip(theirs) if flip else theirs, rtol=0, atol=2e-6
        )


@pytest.mark.parametrize("flip", [False, True])
def test_crops_read_from_numbers_are_the_same_crops(flip: bool) -> None:
    boxes = [Box(0, 0, 24, 20), Box(3, 5, 7, 11), Box(20, 0, 4, 1), Box(2, 19, 22, 1)]
    numbers = torch.tensor([(box.top, box.left, box.height, box.width, flip) for box in boxes])
    want, found = (
        Crops.of(boxes, [flip] * 4, (24, 20)),
        Crops.read(numbers, (24, 20), torch.float64),
    )
    assert torch.equal(found.rows, want.rows)
    assert torch.equal(found.columns, want.columns)
    assert Crops.read(numbers, (24, 20), torch.float32).rows.dtype == torch.float32


def test_images_of_a_group_share_a_crop_and_gradients_flow() -> None:
    images = torch.rand(4, 1, 8, 8, dtype=torch.float64, requires_grad=True)
    crops = Crops.of([Box(1, 2, 5, 4), Box(0, 0, 8, 8)], [True, False], (8, 8))
    alone = [Crops.of([Box(1, 2, 5, 4)], [True], (8, 8)).apply(images[:2]), images[2:]]
    torch.testing.assert_close(crops.apply(images), torch.cat(alone))
    assert torch.autograd.gradcheck(crops.apply, images)


def test_draws_stay_inside_and_cover_the_range() -> None:
    g = generator(0, "crops")
    boxes = [draw_resized_crop(g, 32, 32, (0.08, 1.0)) for _ in range(400)]
    assert all(
        b.top >= 0 and b.left >= 0 and b.top + b.height <= 32 and b.left + b.width <= 32
        for b in boxes
    )
    areas = [b.height * b.width / 1024 for b in boxes]
    assert min(areas) < 0.12
    assert max(areas) > 0.9
    assert all(0.7 < b.width / b.height < 1.45 for b in boxes)
    assert draw_resized_crop(g, 32, 32, (1.0, 1.0), (1.0, 1.0)) == Box(0, 0, 32, 32)
    assert draw_resized_crop(g, 10, 100, (1.0, 1.0)) == Box(0, 43, 10, 13), (
        "misfits fall back to the middle"
    )
    assert 150 < sum(draw_flip(g) for _ in range(400)) < 250


def test_a_box_of_cutmix() -> None:
    assert cutmix_box(0.44912526, 115, 186, (224, 224)) == (32, 103, 198, 224)
    assert cutmix_box(1.0, 3, 3, (8, 8)) == (3, 3, 3, 3)
    assert cutmix_box(0.0, 4, 4, (8, 8)) == (0, 0, 8, 8)


@pytest.mark.parametrize("alpha", [0.8, 1.0])
def test_beta_has_its_mean_and_variance(alpha: float) -> None:
    g = generator(1, "beta")
    draws = torch.tensor([draw_beta(g, alpha) for _ in range(4000)])
    assert abs(float(draws.mean()) - 0.5) < 0.02
    assert abs(float(draws.var()) - 1 / (4 * (2 * alpha + 1))) < 0.006
