"""DC's evaluation-time augmentation against the golden numbers (T5 of docs/methods/parity.md) and its own promises."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from raydd.augment.dc import DcTransform, draw_dc, reference_dc_draw
from raydd.core.errors import ConfigError

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "golden_dc_dsa_dm.json").read_text())[
    "dc_augment"
]


def normal(seed: int, *shape: int) -> torch.Tensor:
    return torch.from_numpy(np.random.RandomState(seed).standard_normal(shape)).float()


@pytest.mark.parametrize("key", GOLDEN)
def test_golden_t5(key: str) -> None:
    geometry, strategy, _ = key.split("/")
    channels, side = int(geometry[1]), int(geometry[3:])
    x = normal(11, 4, channels, side, side)
    out = reference_dc_draw(strategy, 3, count=4, shape=(channels, side, side))(x).double()
    expected = GOLDEN[key]
    assert out.flatten()[:4].tolist() == pytest.approx(expected["first"], abs=1e-6)
    assert float(out.abs().sum()) == pytest.approx(expected["abssum"], rel=1e-6)
    assert float(out.square().sum()) == pytest.approx(expected["sq"], rel=1e-6)
    assert float(out.sum()) == pytest.approx(expected["sum"], abs=1e-6 * expected["abssum"])


def test_draws_depend_on_the_generator_alone_and_cover_all_operations() -> None:
    def drawn(seed: int) -> DcTransform:
        return draw_dc(
            "crop_scale_rotate_noise",
            torch.Generator().manual_seed(seed),
            count=400,
            shape=(1, 8, 8),
        )

    a, b, c = drawn(0), drawn(0), drawn(1)
    assert a.choices == b.choices
    assert torch.equal(a.numbers, b.numbers)
    assert a.choices != c.choices
    counts = {name: a.choices.count(name) for name in ("crop", "scale", "rotate", "noise")}
    assert min(counts.values()) > 60
    crops = a.numbers[[i for i, choice in enumerate(a.choices) if choice == "crop"]]
    assert crops.min() == 0
    assert crops.max() == 7
    angles = a.numbers[[i for i, choice in enumerate(a.choices) if choice == "rotate"]]
    assert angles.min() >= -45
    assert angles.max() < 45


def test_crop_pads_with_the_mean_of_the_batch_before_it_changed() -> None:
    x = normal(1, 6, 2, 8, 8)
    transform = draw_dc("crop", torch.Generator().manual_seed(3), count=6, shape=(2, 8, 8))
    out = transform(x)
    means = x.mean((0, 2, 3))
    for i, (r, c) in enumerate(transform.numbers.tolist()):
        for row in range(8):
            for column in range(8):
                y, z = row + r - 4, column + c - 4
                expected = x[i, :, y, z] if 0 <= y < 8 and 0 <= z < 8 else means
                assert torch.allclose(out[i, :, row, column], expected, atol=1e-6)


def test_non_square_images_keep_their_shape() -> None:
    x = normal(2, 12, 3, 8, 14)
    out = draw_dc(
        "crop_scale_rotate_noise", torch.Generator().manual_seed(0), count=12, shape=(3, 8, 14)
    )(x)
    assert out.shape == x.shape
    assert torch.isfinite(out).all()
    assert not torch.equal(out, x)


def test_none_is_the_identity_and_bad_input_is_named() -> None:
    x = normal(2, 2, 1, 8, 8)
    assert draw_dc("none", torch.Generator(), count=2, shape=(1, 8, 8))(x) is x
    with pytest.raises(ConfigError, match="did you mean 'rotate'"):
        draw_dc("crop_rotat", torch.Generator(), count=2, shape=(1, 8, 8))
    with pytest.raises(ConfigError, match="got images"):
        draw_dc("crop", torch.Generator(), count=3, shape=(1, 8, 8))(x)
