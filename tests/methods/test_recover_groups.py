"""Groups, units and views of recovery (docs/methods/recovery.md, "Groups"; G10 of docs/methods/parity.md)."""

from __future__ import annotations

import pytest
import torch
from recovering import det

from raydd.core.errors import ConfigError
from raydd.core.rng import generator
from raydd.methods.recovery.recover_groups import Grouping
from raydd.methods.recovery.recover_views import Views


def seen(views: Views, images: torch.Tensor, *generators: torch.Generator) -> torch.Tensor:
    """Return one view per generator of as many equal parts of the images."""
    height, width = images.shape[2:]
    drawn = [views.draw(g, 0.0, height, width) for g in generators]
    return views.matrices(drawn, height, width, torch.device("cpu")).apply(images)


def positions(grouping: Grouping, classes: int, ipc: int) -> list[int]:
    return [p for group in grouping.groups(classes, ipc) for p in group.positions]


def test_golden_order_is_class_major() -> None:
    flat = positions(Grouping(group_size=4), 3, 2)
    assert [divmod(p, 2) for p in flat] == [(0, 0), (0, 1), (1, 0), (1, 1), (2, 0), (2, 1)]


def test_ids_apart_hold_distinct_classes() -> None:
    groups = Grouping(order="ipc_major", group_size=4).groups(10, 3)
    assert [len(g.positions) for g in groups] == [4, 4, 2] * 3
    for group in groups:
        assert len({p % 3 for p in group.positions}) == 1
        assert list(group.labels(3)) == sorted(set(group.labels(3)))
    assert groups[3].positions == (1, 4, 7, 10)


def test_ten_blocks_hold_a_tenth_of_each_class() -> None:
    flat = positions(Grouping(order="ten_blocks", group_size=6), 3, 20)
    assert [divmod(p, 20) for p in flat[:8]] == [
        (0, 0),
        (0, 1),
        (1, 0),
        (1, 1),
        (2, 0),
        (2, 1),
        (0, 2),
        (0, 3),
    ]
    with pytest.raises(ConfigError, match="multiple of 10, not 15"):
        Grouping(order="ten_blocks", group_size=6).groups(3, 15)


@pytest.mark.parametrize("order", ["class_major", "ipc_major", "ten_blocks"])
@pytest.mark.parametrize(("size", "packed"), [(1, 1), (7, 3), (4, 2), (1000, 5)])
def test_every_image_is_in_one_unit_and_packed_groups_are_of_one_size(
    order: str, size: int, packed: int
) -> None:
    units = Grouping(order=order, group_size=size, groups_per_unit=packed).units(5, 10)  # type: ignore[arg-type]
    assert sorted(p for groups in units.values() for g in groups for p in g.positions) == list(
        range(50)
    )
    assert all(
        len({len(g.positions) for g in groups}) == 1 and len(groups) <= packed
        for groups in units.values()
    )


def test_a_chain_may_end_with_a_smaller_group() -> None:
    units = Grouping(group_size=4, groups_per_unit=2).units(5, 2, mixed=True)
    assert [[len(g.positions) for g in groups] for groups in units.values()] == [[4, 4], [2]]
    units = Grouping(group_size=4, groups_per_unit=3).units(5, 2, mixed=True)
    assert [[len(g.positions) for g in groups] for groups in units.values()] == [[4, 4, 2]]


@pytest.mark.parametrize("fields", [{"group_size": 0}, {"group_size": 3, "groups_per_unit": 0}])
def test_groups_need_images(fields: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match="must be at least 1"):
        Grouping(**fields)  # type: ignore[arg-type]


def test_the_curriculum_comes_from_whole_images_to_small_crops() -> None:
    cosine = Views(crop=(0.08, 1.0), curriculum="cosine")
    assert cosine.scale(0.0) == (1.0, 1.0)
    assert cosine.scale(0.5)[0] == pytest.approx(0.54)
    assert cosine.scale(0.999)[0] == pytest.approx(0.08, abs=1e-4)
    half = Views(crop=(0.08, 1.0), curriculum="linear", milestone=0.5)
    assert half.scale(0.25)[0] == pytest.approx(0.54)
    assert half.scale(0.5) == (0.08, 1.0)
    step = Views(crop=(0.08, 1.0), curriculum="step", milestone=0.5)
    assert (step.scale(0.49)[0], step.scale(0.5)[0]) == (1.0, 0.08)
    assert Views(crop=(0.08, 1.0)).scale(0.0) == (0.08, 1.0)


def test_a_shift_is_circular_and_a_window_has_black_around() -> None:
    images = det((2, 3, 9, 7))
    for seed in range(5):
        down, right = torch.randint(-2, 4, (2,), generator=generator(seed, "v")).tolist()
        assert torch.equal(
            seen(Views(jitter=(-2, 3)), images, generator(seed, "v")),
            images.roll((down, right), (2, 3)),
        )
        top, left = torch.randint(0, 5, (2,), generator=generator(seed, "w")).tolist()
        padded = torch.nn.functional.pad(images, (2, 2, 2, 2))
        assert torch.equal(
            seen(Views(pad=2), images, generator(seed, "w")),
            padded[:, :, top : top + 9, left : left + 7],
        )


def test_the_shift_comes_after_crop_and_flip() -> None:
    images, plain = det((2, 3, 8, 8)), Views(crop=(0.5, 1.0), flip=True)
    for seed in range(4):
        shifted = seen(
            Views(crop=(0.5, 1.0), flip=True, jitter=(3, 3)), images, generator(seed, "v")
        )
        assert torch.allclose(
            shifted, seen(plain, images, generator(seed, "v")).roll((3, 3), (2, 3)), atol=1e-6
        )


@pytest.mark.parametrize(
    "views",
    [
        Views(crop=(0.3, 1.0), flip=True, jitter=(-2, 2)),
        Views(pad=3, flip=True, jitter=(0, 2)),
        Views(flip=True),
    ],
)
def test_every_group_has_its_own_view_whoever_is_beside_it(views: Views) -> None:
    images = det((6, 3, 8, 8))
    together = seen(views, images, *(generator(g, "v") for g in range(3)))
    alone = [seen(views, part, generator(g, "v")) for g, part in enumerate(images.split(2))]
    assert torch.allclose(together, torch.cat(alone), atol=1e-6)


def test_flips_happen_half_of_the_time() -> None:
    images, mirrored = det((1, 1, 4, 4)), 0
    for seed in range(200):
        view = seen(Views(flip=True), images, generator(seed, "flip"))
        mirrored += torch.equal(view, images.flip(3))
        assert torch.equal(view, images.flip(3)) or torch.equal(view, images)
    assert 70 < mirrored < 130


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"crop": (0.5, 1.2)}, "smallest <= largest <= 1"),
        ({"crop": (0.0, 1.0)}, "0 < smallest"),
        ({"crop": (0.5, 1.0), "pad": 4}, "two ways to crop"),
        ({"jitter": (3, 1)}, "smallest shift is above"),
        ({"curriculum": "cosine"}, "needs a crop"),
        ({"pad": -1}, "must not be negative"),
        ({"crop": (0.5, 1.0), "curriculum": "cosine", "milestone": 0.0}, "above 0"),
        ({"crop": (0.5, 1.0), "milestone": 0.5}, "no effect with crop_curriculum=none"),
    ],
)
def test_views_that_cannot_be_are_refused(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Views(**fields)  # type: ignore[arg-type]


def test_a_jitter_larger_than_the_image_is_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"jitter=\[0, 32\] is larger than the images of 8x8; allowed: up to 7"
    ):
        Views(jitter=(0, 32)).check(8, 8)
    with pytest.raises(ConfigError, match="pad=8"):
        Views(pad=8).check(8, 16)
    Views(jitter=(-7, 7), pad=7).check(8, 8)
