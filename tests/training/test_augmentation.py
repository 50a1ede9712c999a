"""Augmentation of batches of several networks: each network's batch depends on its own draws alone."""

from __future__ import annotations

import pytest
import torch

from raydd.core.errors import ConfigError
from raydd.core.rng import generator
from raydd.training.augmentation import make_augmentation

STRATEGIES = [("dsa", "color_crop_cutout_flip_scale_rotate"), ("dc", "crop_scale_rotate"), ("dc", "crop_noise")]


def _images(networks=3, count=6):
    return torch.randn(networks, count, 3, 12, 12, generator=generator(0, "images"))


@pytest.mark.parametrize(("kind", "strategy"), STRATEGIES)
def test_batches_together_are_batches_apart(kind, strategy):
    augment, images = make_augmentation(kind, strategy, (12, 12)), _images()
    together = augment(images, [generator(1, "draw", r) for r in range(3)])
    for r in range(3):
        alone = augment(images[r : r + 1], [generator(1, "draw", r)])[0]
        torch.testing.assert_close(together[r], alone, rtol=1e-6, atol=1e-6)
    assert together.shape == images.shape
    assert not torch.equal(together, images)


def test_images_of_a_batch_have_numbers_of_their_own():
    augment = make_augmentation("dsa", "scale", (12, 12))
    same = torch.randn(1, 1, 1, 12, 12, generator=generator(0, "x")).expand(1, 5, 1, 12, 12)
    out = augment(same, [generator(0, "draw")])[0]
    assert len({tuple(image.flatten().tolist()) for image in out}) == 5


def test_no_augmentation_changes_nothing():
    images = _images()
    assert make_augmentation("none", "", (12, 12))(images, []) is images


@pytest.mark.parametrize("kind", ["dsa", "dc"])
def test_operations_that_do_not_exist_are_refused_before_training(kind):
    with pytest.raises(ConfigError, match=r"'crops'.*did you mean 'crop'"):
        make_augmentation(kind, "crops_scale", (12, 12))
