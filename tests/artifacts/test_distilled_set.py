from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import pytest
import torch

from raydd.artifacts.decoding import Decoding, SetSize
from raydd.artifacts.distilled_set import DistilledSet, Whitening
from raydd.core.errors import ConfigError, NumericsError
from raydd.core.rng import generator

Make = Callable[..., DistilledSet]
rng = partial(generator, 7)


def whitening(size: int, per_image: bool = False) -> Whitening:
    noise = torch.randn(size, size, generator=generator(0, "whitening"))
    return Whitening(
        matrix=torch.eye(size) * 2 + 0.1 * noise,
        mean=torch.linspace(-1, 1, size),
        per_image=per_image,
    )


def test_sizes_and_counts(make: Make) -> None:
    made = make()
    assert len(made) == 30
    assert made.ipc == (3,) * 10
    assert made.image_bytes == 30 * 64 * 4
    assert made.label_bytes == 30 * 8
    assert make(soft_labels=torch.full((30, 10), 0.1)).label_bytes == 30 * 8 + 30 * 10 * 4


def test_a_set_that_fits_one_batch_comes_whole_in_its_order(make: Make) -> None:
    made = make()
    ((images, labels),) = made.batches(3, 30, rng)
    assert torch.equal(images, made.images)
    assert torch.equal(labels, made.labels)


def test_batches_are_keyed_by_epoch_and_keep_the_last_partial_one(make: Make) -> None:
    made = make()
    first, again, other = (
        [labels for _, labels in made.batches(epoch, 8, rng)] for epoch in (0, 0, 1)
    )
    assert [len(part) for part in first] == [8, 8, 8, 6]
    assert torch.equal(torch.cat(first), torch.cat(again))
    assert not torch.equal(torch.cat(first), torch.cat(other))
    assert torch.equal(torch.cat(first).sort().values, made.labels)
    order = torch.randperm(30, generator=generator(7, "batches", 0))
    assert torch.equal(
        torch.cat([images for images, _ in made.batches(0, 8, rng)]), made.images[order]
    )


def test_soft_labels_are_what_students_see(make: Make) -> None:
    soft = torch.rand(30, 10, generator=rng("soft")).softmax(1)
    made = make(soft_labels=soft)
    assert torch.equal(made.tensors()[1], soft)
    ((_, labels),) = made.batches(0, 64, rng)
    assert torch.equal(labels, soft)


def test_uint8_images_are_normalised_for_students(
    make: Make, digits: tuple[torch.Tensor, torch.Tensor]
) -> None:
    made = make(images=digits[0])
    expected = (digits[0].float() / 255 - made.mean[0]) / made.std[0]
    torch.testing.assert_close(made.tensors()[0], expected)
    torch.testing.assert_close(next(iter(made.batches(0, 50, rng)))[0], expected)
    assert torch.equal(made.to_uint8(), digits[0])
    torch.testing.assert_close(made.to_rgb() * 255, digits[0].float())


def test_pictures_undo_the_normalisation_and_are_clamped(
    make: Make, digits: tuple[torch.Tensor, torch.Tensor]
) -> None:
    made = make()
    expected = (digits[0].float() / 255 * 1.2).clamp(0, 1)
    assert float(expected.max()) == 1.0
    torch.testing.assert_close(made.to_rgb(), expected, atol=1e-6, rtol=0)
    assert torch.equal(made.to_uint8(), (made.to_rgb() * 255).round().to(torch.uint8))
    assert float(made.tensors()[0].max()) > (1 - made.mean[0]) / made.std[0]


def test_whitening_is_inverted_for_pictures(make: Make) -> None:
    plain = make()
    white = whitening(64)
    made = make(images=white.apply(plain.images), whitening=white)
    assert not torch.allclose(made.images, plain.images, atol=0.1)
    torch.testing.assert_close(made.to_rgb(), plain.to_rgb(), atol=1e-5, rtol=0)
    assert torch.equal(made.tensors()[0], made.images)


def test_whitening_of_standardised_images_gives_stretched_pictures(make: Make) -> None:
    plain, white = make(), whitening(64, per_image=True)
    torch.testing.assert_close(
        white.apply(3 * plain.images + 1), white.apply(plain.images), atol=1e-5, rtol=0
    )
    rgb = make(images=white.apply(plain.images), whitening=white).to_rgb()
    flat, original = rgb.flatten(1), plain.images.flatten(1)
    low, high = original.amin(1, keepdim=True), original.amax(1, keepdim=True)
    torch.testing.assert_close(flat, (original - low) / (high - low), atol=1e-4, rtol=0)


def test_uint8_images_are_whitened_for_students(
    make: Make, digits: tuple[torch.Tensor, torch.Tensor]
) -> None:
    white = whitening(64)
    expected = white.apply(make(images=digits[0]).tensors()[0])
    torch.testing.assert_close(make(images=digits[0], whitening=white).tensors()[0], expected)


def test_decoders_make_what_students_see(make: Make, mirrored: Decoding) -> None:
    made = make(decoding=mirrored)
    images, labels = made.tensors()
    assert torch.equal(images, torch.cat([made.images, made.images.flip(-1)]))
    assert torch.equal(labels, made.labels.repeat(2))
    assert [len(part) for part, _ in made.batches(0, 25, rng)] == [25, 25, 10]
    order = torch.randperm(60, generator=generator(7, "batches", 0))
    assert torch.equal(torch.cat([part for part, _ in made.batches(0, 25, rng)]), images[order])
    assert made.to_rgb().shape == (30, 1, 8, 8)
    assert made.image_bytes == make().image_bytes
    assert made.size == SetSize(30, 60, 30 * 64 * 4 + 30 * 8)


def test_a_part_of_a_set_is_gone_through_alone(make: Make) -> None:
    made, ids = make(), torch.tensor([3, 29, 7])
    ((images, labels),) = made.batches(0, 8, rng, ids)
    assert torch.equal(images, made.images[ids])
    assert torch.equal(labels, made.labels[ids])
    order = torch.randperm(3, generator=generator(7, "batches", 4))
    got = torch.cat([part for part, _ in made.batches(4, 2, rng, ids)])
    assert torch.equal(got, made.images[ids[order]])


def test_whitening_counts_as_stored(make: Make) -> None:
    made = make(whitening=whitening(64))
    assert made.size.bytes == made.image_bytes + made.label_bytes + 4 * 64 * 65


def test_pixels_are_whitened_as_they_are_seen(
    make: Make, digits: tuple[torch.Tensor, torch.Tensor]
) -> None:
    white, tiles = whitening(64), Decoding("partition")
    plain = make(images=digits[0], decoding=tiles)
    made = make(images=digits[0], decoding=tiles, whitening=white)
    torch.testing.assert_close(made.take(), white.apply(plain.take()))
    assert torch.equal(make(decoding=tiles, whitening=white).take(), make(decoding=tiles).take())


def test_an_unknown_decoding_is_named(make: Make) -> None:
    with pytest.raises(ConfigError, match=r"unknown decoding 'identty'.*did you mean 'identity'"):
        make(decoding=Decoding("identty")).tensors()


def test_the_digest_covers_all_that_students_see(make: Make) -> None:
    base = make()
    changed = base.images.clone()
    changed[4, 0, 3, 3] += 1e-3
    others = [
        make(images=changed),
        make(labels=base.labels.flip(0)),
        make(mean=(0.31,)),
        make(std=(0.41,)),
        make(soft_labels=torch.full((30, 10), 0.1)),
        make(whitening=whitening(64)),
        make(whitening=whitening(64, per_image=True)),
        make(decoding=Decoding("grid", {"factor": 2})),
        make(decoding=Decoding("partition", {"factor": 2})),
        make(decoding=Decoding("partition", {"factor": 4})),
    ]
    assert len({made.digest for made in [base, *others]}) == 1 + len(others)
    assert base.digest == make(recipe={"made": "elsewhere"}).digest == replace(base).digest


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"images": torch.zeros(30, 8, 8)}, r"\[N, C, H, W\], not torch.float32 \[30, 8, 8\]"),
        ({"images": torch.zeros(30, 1, 8, 8).double()}, "float32 or uint8"),
        ({"images": torch.zeros(30, 3, 8, 8)}, "3 channels; digits has 1"),
        ({"images": torch.zeros(29, 1, 8, 8)}, "29 images but 30 labels"),
        ({"labels": torch.arange(30)}, "labels range from 0 to 29; allowed: 0 to 9"),
        ({"labels": torch.zeros(30)}, "labels must be int64"),
        ({"soft_labels": torch.zeros(30, 9)}, r"soft labels must be float \[30, 10\]"),
        ({"mean": (0.1, 0.2)}, "must hold 1 values each"),
        ({"std": (0.0,)}, "std above 0"),
        ({"whitening": whitening(60)}, "does not fit images of 64 values"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(
    make: Make, fields: dict[str, object], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        make(**fields)


def test_what_is_not_finite_is_refused(make: Make) -> None:
    images = make().images.clone()
    images[17, 0, 2, 2] = float("nan")
    with pytest.raises(NumericsError, match="1 of 30 images, first: image 17"):
        make(images=images)
    with pytest.raises(NumericsError, match="soft labels"):
        make(soft_labels=torch.full((30, 10), float("inf")))


def test_a_batch_size_below_one_is_refused(make: Make) -> None:
    with pytest.raises(ConfigError, match="at least 1, not 0"):
        next(iter(make().batches(0, 0, rng)))
