"""Augmentation of batches of several networks: each network's batch depends on its own draws alone."""

from __future__ import annotations

import pytest
import torch

from raydd.core.captured import Captured
from raydd.core.errors import ConfigError
from raydd.core.rng import generator
from raydd.training.augmentation import DrawnAugmentation, make_augmentation
from raydd.training.recipe import Recipe

STRATEGIES = [
    ("dsa", "color_crop_cutout_flip_scale_rotate"),
    ("dc", "crop_scale_rotate"),
    ("dc", "crop_noise"),
    ("pad_crop_flip", ""),
    ("resized_crop_flip", ""),
]


def _augmentation(kind, strategy="", size=(12, 12), black=None, **fields):
    return make_augmentation(
        Recipe(epochs=1, augmentation=kind, strategy=strategy, **fields), size, black
    )


def _images(networks=3, count=6):
    return torch.randn(networks, count, 3, 12, 12, generator=generator(0, "images"))


@pytest.mark.parametrize(("kind", "strategy"), STRATEGIES)
def test_batches_together_are_batches_apart(kind, strategy):
    augment, images = _augmentation(kind, strategy), _images()
    together = augment(images, [generator(1, "draw", r) for r in range(3)])
    for r in range(3):
        alone = augment(images[r : r + 1], [generator(1, "draw", r)])[0]
        torch.testing.assert_close(together[r], alone, rtol=1e-6, atol=1e-6)
    assert together.shape == images.shape
    assert not torch.equal(together, images)


def test_images_of_a_batch_have_numbers_of_their_own():
    augment = _augmentation("dsa", "scale")
    same = torch.randn(1, 1, 1, 12, 12, generator=generator(0, "x")).expand(1, 5, 1, 12, 12)
    out = augment(same, [generator(0, "draw")])[0]
    assert len({tuple(image.flatten().tolist()) for image in out}) == 5


def test_no_augmentation_changes_nothing():
    images = _images()
    assert _augmentation("none")(images, []) is images


@pytest.mark.parametrize("kind", ["dsa", "dc"])
def test_operations_that_do_not_exist_are_refused_before_training(kind):
    with pytest.raises(ConfigError, match=r"'crops'.*did you mean 'crop'"):
        _augmentation(kind, "crops_scale")


def test_padded_crops_are_shifts_over_black_and_mirrored_half_of_the_time():
    pad, black = 2, (-1.0, -2.0, -3.0)
    augment = _augmentation("pad_crop_flip", size=(6, 8), black=black, pad=pad)
    images = torch.randn(1, 200, 3, 6, 8, generator=generator(0, "x"))
    out = augment(images, [generator(0, "draw")])[0]
    framed = torch.tensor(black).view(1, 3, 1, 1).expand(200, 3, 6 + 2 * pad, 8 + 2 * pad).clone()
    framed[:, :, pad : pad + 6, pad : pad + 8] = images[0]
    found = []
    for image, frame in zip(out, framed):
        shifts = [
            (top, left, flip)
            for top in range(2 * pad + 1)
            for left in range(2 * pad + 1)
            for flip in (False, True)
            if torch.equal(
                image,
                frame[:, top : top + 6, left : left + 8].flip(2)
                if flip
                else frame[:, top : top + 6, left : left + 8],
            )
        ]
        assert len(shifts) == 1
        found += shifts
    assert {top for top, _, _ in found} == {left for _, left, _ in found} == set(range(5))
    assert 70 < sum(flip for _, _, flip in found) < 130


def test_the_padding_is_an_eighth_of_the_image():
    images = torch.ones(1, 300, 1, 32, 32)
    out = _augmentation("pad_crop_flip", size=(32, 32))(images, [generator(0, "draw")])[0]
    missing = (out == 0).all(3).sum(2)
    assert int(missing.max()) == 4


def test_resized_crops_are_those_of_the_crop_module():
    from raydd.augment.crop import Crops, draw_flip, draw_resized_crop

    images, draws = _images(1, 9), generator(3, "draw")
    drawn = [(draw_resized_crop(draws, 12, 12, (0.5, 0.7)), draw_flip(draws)) for _ in range(9)]
    expected = Crops.of([box for box, _ in drawn], [flip for _, flip in drawn], (12, 12)).apply(
        images[0]
    )
    out = _augmentation("resized_crop_flip", scale=(0.5, 0.7))(images, [generator(3, "draw")])[0]
    assert torch.equal(out, expected)
    assert len({box for box, _ in drawn}) > 5


DRAWN = [kind for kind in STRATEGIES if kind[0] != "dc"] + [("none", ""), ("dsa", "none")]


def _drawn(kind, strategy, black=None):
    augment = _augmentation(kind, strategy, black=black)
    assert isinstance(augment, DrawnAugmentation)
    return augment


def _keys(networks=3, seed=1):
    return [generator(seed, "draw", r) for r in range(networks)]


@pytest.mark.parametrize(("kind", "strategy"), DRAWN)
def test_numbers_drawn_ahead_are_those_of_the_call(kind, strategy):
    augment, images, apart = _drawn(kind, strategy, (-1.0, 0.0, 2.0)), _images(), _keys()
    together = _keys()
    for _ in range(4):
        numbers = augment.draw(together, 6)
        assert numbers.shape[:2] == (3, 6)
        out = augment.apply(images, numbers)
        torch.testing.assert_close(out, augment(images, apart), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(
            augment.apply(images[1:2], numbers[1:2]), out[1:2], rtol=1e-5, atol=1e-5
        )
    assert torch.equal(torch.rand(3, generator=together[2]), torch.rand(3, generator=apart[2]))


def test_padded_crops_are_the_same_bytes_either_way():
    augment = _drawn("pad_crop_flip", "")
    assert torch.equal(
        augment.apply(_images(), augment.draw(_keys(), 6)), augment(_images(), _keys())
    )


def test_what_is_not_a_function_of_numbers_says_so():
    assert not _augmentation("dc", "crop_scale_rotate").capturable
    assert all(_augmentation(*kind).capturable for kind in DRAWN)


@pytest.mark.gpu
@pytest.mark.parametrize(("kind", "strategy"), DRAWN)
def test_a_gpu_records_it_and_gives_the_cpus_images(kind, strategy):
    device = torch.device("cuda")
    augment, images = _drawn(kind, strategy, (-1.0, 0.0, 2.0)), _images()
    recorded = Captured(lambda x, numbers: (augment.apply(x, numbers),), device)
    for seed in range(4):
        want = augment(images, _keys(seed=seed))
        (found,) = recorded(images.to(device), augment.draw(_keys(seed=seed), 6))
        torch.testing.assert_close(found.cpu(), want, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(
            augment(images.to(device), _keys(seed=seed)).cpu(), want, rtol=1e-5, atol=1e-5
        )
    assert next(iter(recorded._recordings.values())) is not None
