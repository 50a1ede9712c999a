"""Class-indexed memory: uniform, keyed, independent of the classes that share a call."""

from __future__ import annotations

import pytest
import torch

from raydd.core.errors import ConfigError, DataError
from raydd.core.rng import generator
from raydd.data.arrays import ArrayData
from raydd.data.config import DatasetConfig
from raydd.data.datasets import open_data
from raydd.data.memory import ClassMemory, normalise


def numbered(counts: list[int]) -> ArrayData:
    """Return images whose two pixels tell index (mod 256) and class, in mixed order."""
    labels = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    labels = labels[torch.randperm(len(labels), generator=generator(0, "mix"))]
    images = torch.stack([torch.arange(len(labels)) % 256, labels], dim=1).to(torch.uint8)
    return ArrayData(images.view(-1, 1, 1, 2), labels)


def test_only_the_classes_asked_for_are_resident_and_sorted() -> None:
    data = numbered([40, 50, 60])
    memory = ClassMemory.load(data, [2, 0], batch=7)
    assert memory.classes == (0, 2)
    assert memory.counts == (40, 60)
    assert memory.smallest == 40
    assert torch.equal(memory.images, data.images[memory.ids])
    assert set(memory.of(2)[:, 0, 0, 1].tolist()) == {2}
    with pytest.raises(ConfigError, match="class 1 is not resident"):
        memory.of(1)
    with pytest.raises(DataError, match="no images of class 7"):
        ClassMemory.load(data, [7])


@pytest.mark.parametrize("m", [5, 30])
def test_a_draw_is_distinct_of_its_class_and_keyed(m: int) -> None:
    memory = ClassMemory.load(numbered([90, 120, 150]))
    draw = [
        memory.draw([0, 1, 2], m, [generator(s, "real", c) for c in range(3)]) for s in (1, 1, 2)
    ]
    assert torch.equal(draw[0], draw[1])
    assert not torch.equal(draw[0], draw[2])
    for row in draw[0]:
        assert len(row.unique()) == m
    images = memory.sample([0, 1, 2], m, [generator(1, "real", c) for c in range(3)])
    assert images.shape == (3, m, 1, 1, 2)
    assert torch.equal(
        images[..., 1].squeeze(), torch.arange(3, dtype=torch.uint8)[:, None].expand(3, m)
    )


@pytest.mark.parametrize("m", [5, 40])
def test_a_class_draws_the_same_alone_and_in_any_company(m: int) -> None:
    data = numbered([90, 120, 150])
    together = ClassMemory.load(data).sample(
        [0, 1, 2], m, [generator(1, "real", c) for c in range(3)]
    )
    alone = ClassMemory.load(data, [1]).sample(1, m, generator(1, "real", 1))
    assert torch.equal(together[1], alone[0])


def test_small_classes_bound_every_class() -> None:
    memory = ClassMemory.load(numbered([20, 50]))
    assert memory.sample([0, 1], 30, [generator(0, "a"), generator(0, "b")]).shape[1] == 20
    assert ClassMemory.load(numbered([20, 50]), [1]).sample(1, 30, generator(0, "b")).shape[1] == 20


@pytest.mark.slow
@pytest.mark.parametrize(("n", "m"), [(12, 3), (12, 6)])
def test_every_image_is_drawn_equally_often_at_every_place(n: int, m: int) -> None:
    memory = ClassMemory.load(numbered([n]))
    rounds = 6000
    first, anywhere = torch.zeros(n), torch.zeros(n)
    for i in range(rounds):
        rows = memory.draw(0, m, generator(3, "uniform", i))[0]
        first[rows[0]] += 1
        anywhere[rows] += 1
    assert (first / rounds - 1 / n).abs().max() < 5 * (1 / n / rounds) ** 0.5
    assert (anywhere / rounds - m / n).abs().max() < 5 * (m / n / rounds) ** 0.5


def test_wrong_arguments_are_refused() -> None:
    memory = ClassMemory.load(numbered([20, 50]))
    with pytest.raises(ConfigError, match="1 generators for 2 classes"):
        memory.draw([0, 1], 3, generator(0, "x"))
    with pytest.raises(ConfigError, match="0 images per class"):
        memory.draw(0, 0, generator(0, "x"))


def test_normalise_gives_zero_mean_and_unit_deviation_on_digits() -> None:
    from raydd.data.datasets import describe

    info = describe(DatasetConfig(name="digits"))
    images = normalise(
        open_data(DatasetConfig(name="digits"))["train"].take(torch.arange(1438)),
        info.mean,
        info.std,
    )
    assert images.is_contiguous()
    assert abs(images.mean().item()) < 1e-3
    assert abs(images.std().item() - 1) < 1e-3
    exact = (torch.tensor(128) / 255 - 0.5) / 0.25
    assert normalise(
        torch.full((1, 1, 1), 128, dtype=torch.uint8), [0.5], [0.25]
    ).item() == pytest.approx(exact.item(), abs=1e-6)
    with pytest.raises(ConfigError, match="3 means"):
        normalise(torch.zeros(1, 2, 2, dtype=torch.uint8), [0.5] * 3, [0.2] * 3)
