"""DSA against the golden numbers (T4 of docs/methods/parity.md), against formulas written out in numpy, and its
siamese and class-wise promises.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from raydd.augment import sampling
from raydd.augment.dsa import (
    DEFAULT_STRATEGY,
    DsaTransform,
    apply_classes,
    draw,
    parse_strategy,
    reference_cpu_draw,
)
from raydd.augment.operations import OPERATIONS
from raydd.augment.table import apply_table, make_table
from raydd.core.errors import ConfigError

FILE = json.loads((Path(__file__).parents[1] / "golden" / "golden_dc_dsa_dm.json").read_text())
GOLDEN = FILE["dsa"]
TOLERANCE = {"crop": 1e-9, "cutout": 1e-9, "flip": 1e-9, "color": 2e-6}


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def normal(seed: int, *shape: int) -> torch.Tensor:
    return torch.from_numpy(np.random.RandomState(seed).standard_normal(shape))


def keyed(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("key", GOLDEN)
def test_golden_t4(key: str) -> None:
    geometry, name, seed = key.split("/")
    channels, side = int(geometry[1]), int(geometry[3:])
    x = normal(9, 3, channels, side, side).float()
    strategy = DEFAULT_STRATEGY if "all6" in name else name
    if seed == "nonsiamese_ms77":
        transform = reference_cpu_draw(strategy, 77, size=(side, side), siamese=False, count=3)
    else:
        mode = "M" if name.startswith("M_") else "S"
        transform = reference_cpu_draw(
            strategy, int(seed.removeprefix("seed")), size=(side, side), mode=mode
        )
    expected = GOLDEN[key]
    tolerance = (
        TOLERANCE.get(transform.operations[0], 3e-5) if len(transform.operations) == 1 else 3e-5
    )
    for out in (
        transform(x).double(),
        apply_table(x.unsqueeze(0), make_table([transform]))[0].double(),
    ):
        assert out.flatten()[:4].tolist() == pytest.approx(expected["first"], abs=tolerance)
        assert float(out.square().sum()) == pytest.approx(expected["sq"], rel=tolerance)
        assert float(out.abs().sum()) == pytest.approx(expected["abssum"], rel=tolerance)
        assert float(out.sum()) == pytest.approx(
            expected["sum"], abs=tolerance * expected["abssum"]
        )


@pytest.mark.parametrize("seed", FILE["dsa_cpu_params"])
def test_golden_draws(seed: str) -> None:
    golden = FILE["dsa_cpu_params"][seed]
    chosen = reference_cpu_draw(DEFAULT_STRATEGY, int(seed), size=(32, 32))
    assert OPERATIONS.index(chosen.operations[0]) == golden["choice6"]
    five = "color_crop_cutout_scale_rotate"
    assert (
        five.split("_").index(reference_cpu_draw(five, int(seed), size=(32, 32)).operations[0])
        == golden["choice5"]
    )
    brightness, saturation, contrast = (
        reference_cpu_draw("color", int(seed), size=(32, 32)).values[0][0].tolist()
    )
    assert [brightness + 0.5, saturation / 2, contrast - 0.5] == pytest.approx(
        [golden[f"u(s+{i})"] for i in (1, 2, 3)], abs=1e-7
    )
    for side in (28, 32, 64):
        crop = reference_cpu_draw("crop", int(seed), size=(side, side)).values[0][0]
        assert crop.tolist() == golden[f"crop{side}"]
        first, last = (
            reference_cpu_draw("cutout", int(seed), size=(side, side))
            .values[0][0]
            .view(2, 2)
            .unbind(1)
        )
        hole, centre = side // 2, torch.tensor(golden[f"cut{side}"])
        assert torch.equal(first, (centre - hole // 2).clamp(0, side - 1).double())
        assert torch.equal(last, (centre - hole // 2 + hole - 1).clamp(0, side - 1).double())


def bilinear(x: np.ndarray, row: float, column: float) -> np.ndarray:
    """Return x [C, H, W] at a point, 0 outside."""
    total = np.zeros(x.shape[0])
    for r in (math.floor(row), math.floor(row) + 1):
        for c in (math.floor(column), math.floor(column) + 1):
            if 0 <= r < x.shape[1] and 0 <= c < x.shape[2]:
                total += (1 - abs(row - r)) * (1 - abs(column - c)) * x[:, r, c]
    return total


def by_formula(operation: str, x: np.ndarray, v: list[float]) -> np.ndarray:
    """Return one image [C, H, W] after an operation, as docs/methods/dc_dsa.md, "Operations of DSA", writes it."""
    _, height, width = x.shape
    cy, cx = (height - 1) / 2, (width - 1) / 2
    out = np.zeros_like(x)
    if operation == "color":
        x = x + v[0]
        grey = x.mean(0, keepdims=True)
        x = (x - grey) * v[1] + grey
        return (x - x.mean()) * v[2] + x.mean()
    if operation == "flip":
        return x[:, :, ::-1] if v[0] else x
    if operation == "cutout":
        out = x.copy()
        out[:, int(v[0]) : int(v[1]) + 1, int(v[2]) : int(v[3]) + 1] = 0
        return out
    for i in range(height):
        for j in range(width):
            if operation == "crop":
                row, column = i + v[0], j + v[1]
            elif operation == "scale":
                row, column = cy + v[1] * (i - cy), cx + v[0] * (j - cx)
            else:
                sin, cos = math.sin(v[0]), math.cos(v[0])
                row, column = (
                    cy + sin * (j - cx) + cos * (i - cy),
                    cx + cos * (j - cx) - sin * (i - cy),
                )
            out[:, i, j] = bilinear(x, row, column)
    return out


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize(("channels", "height", "width"), [(1, 8, 8), (3, 9, 14)])
@pytest.mark.parametrize("siamese", [True, False])
def test_operations_equal_the_formulas(
    operation: str, channels: int, height: int, width: int, siamese: bool
) -> None:
    x = normal(3, 4, channels, height, width)
    for seed in range(4):
        transform = draw(operation, keyed(seed), size=(height, width), siamese=siamese, count=4)
        out = transform(x).numpy()
        for i in range(4):
            values = transform.values[0][0 if siamese else i].tolist()
            np.testing.assert_allclose(
                out[i], by_formula(operation, x[i].numpy(), values), atol=1e-12
            )


@pytest.mark.parametrize("operation", OPERATIONS)
def test_siamese_batches_of_any_size_see_the_same_transform(operation: str) -> None:
    transform = draw(operation, keyed(5), size=(12, 12))
    image = normal(4, 1, 3, 12, 12)
    many, one = transform(image.expand(40, -1, -1, -1)), transform(image)
    assert (many - one).abs().max() < 1e-12
    assert transform.count == 1


def test_per_sample_shares_the_operation_but_not_its_numbers() -> None:
    image = normal(4, 1, 1, 12, 12).expand(16, -1, -1, -1)
    transform = draw(DEFAULT_STRATEGY, keyed(0), size=(12, 12), siamese=False, count=16)
    assert len(transform.operations) == 1
    assert (
        len(
            {
                tuple(row.flatten().tolist())
                for row in draw("rotate", keyed(1), size=(12, 12), siamese=False, count=16)(image)
            }
        )
        == 16
    )


def test_draws_are_uniform_over_operations_and_in_range() -> None:
    rng = keyed(0)
    drawn = [draw(DEFAULT_STRATEGY, rng, size=(28, 28)) for _ in range(1800)]
    counts = [sum(t.operations == (operation,) for t in drawn) for operation in OPERATIONS]
    assert min(counts) > 230
    assert max(counts) < 370
    crops = torch.cat([draw("crop", rng, size=(28, 64), siamese=False, count=900).values[0]])
    assert crops.min(0).values.tolist() == [-4, -8]
    assert crops.max(0).values.tolist() == [4, 8]
    scales = draw("scale", rng, size=(28, 28), siamese=False, count=900).values[0]
    assert 1 / 1.2 <= float(scales.min()) < 0.84
    assert 1.19 < float(scales.max()) < 1.2
    angles = draw("rotate", rng, size=(28, 28), siamese=False, count=900).values[0] * 180 / math.pi
    assert -15 <= float(angles.min()) < -14.5
    assert 14.5 < float(angles.max()) < 15
    holes = draw("cutout", rng, size=(28, 28), siamese=False, count=900).values[0]
    assert (holes[:, 1] - holes[:, 0]).max() == 13
    assert ((holes[:, 1] - holes[:, 0]) >= 0).all()
    flips = draw("flip", rng, size=(28, 28), siamese=False, count=900).values[0]
    assert 0.42 < float(flips.mean()) < 0.58


def test_mode_m_applies_all_in_order() -> None:
    transform = draw(DEFAULT_STRATEGY, keyed(2), size=(10, 10), mode="M")
    assert transform.operations == OPERATIONS
    x = normal(6, 2, 3, 10, 10)
    expected = np.stack(list(x.numpy()))
    for operation, values in zip(transform.operations, transform.values, strict=True):
        expected = np.stack(
            [by_formula(operation, image, values[0].tolist()) for image in expected]
        )
    np.testing.assert_allclose(transform(x).numpy(), expected, atol=1e-11)


@pytest.mark.parametrize("siamese", [True, False])
def test_class_batches_equal_class_by_class(siamese: bool) -> None:
    transforms = [
        draw(DEFAULT_STRATEGY, keyed(seed), size=(9, 11), siamese=siamese, count=3)
        for seed in range(14)
    ]
    assert len({t.operations for t in transforms}) == 6
    x = normal(8, 14, 3, 2, 9, 11).requires_grad_()
    weight = normal(9, *x.shape)
    together = apply_classes(transforms, x)
    apart = torch.stack([t(images) for t, images in zip(transforms, x, strict=True)])
    assert (together - apart).abs().max() < 1e-12
    (a,) = torch.autograd.grad((together * weight).sum(), x)
    (b,) = torch.autograd.grad((apart * weight).sum(), x)
    assert (a - b).abs().max() < 1e-12


def test_classes_without_rotation_never_pass_the_sampler(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    rotate = sampling.rotate
    monkeypatch.setattr(
        sampling, "rotate", lambda x, *rest: seen.append(len(x)) or rotate(x, *rest)
    )
    transforms = [draw(op, keyed(0), size=(8, 8)) for op in ("rotate", "crop", "rotate", "flip")]
    apply_classes(transforms, normal(1, 4, 2, 1, 8, 8))
    assert seen == [2]


def test_mixed_siamese_and_per_sample_classes() -> None:
    transforms = [
        draw("scale", keyed(0), size=(8, 8)),
        draw("scale", keyed(1), size=(8, 8), siamese=False, count=3),
    ]
    x = normal(1, 2, 3, 1, 8, 8)
    assert (
        apply_classes(transforms, x)
        - torch.stack([t(y) for t, y in zip(transforms, x, strict=True)])
    ).abs().max() < 1e-12


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("siamese", [True, False])
def test_gradients_are_right(operation: str, siamese: bool) -> None:
    transform = draw(operation, keyed(3), size=(5, 6), siamese=siamese, count=2)
    assert torch.autograd.gradcheck(transform, normal(2, 2, 2, 5, 6).requires_grad_())


def test_views_and_channels_last_are_taken() -> None:
    x = normal(5, 6, 10, 12, 3).permute(0, 3, 1, 2)
    for operation in OPERATIONS:
        for siamese in (True, False):
            transform = draw(operation, keyed(1), size=(10, 12), siamese=siamese, count=6)
            assert (transform(x) - transform(x.contiguous())).abs().max() < 1e-12


def test_drawing_leaves_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    draw(DEFAULT_STRATEGY, keyed(0), size=(8, 8), mode="M")
    reference_cpu_draw(DEFAULT_STRATEGY, 3, size=(8, 8))
    assert torch.equal(before, torch.get_rng_state())


def test_none_is_the_identity_and_bad_input_is_named() -> None:
    x = normal(1, 2, 1, 8, 8)
    assert parse_strategy("None") == parse_strategy(None) == parse_strategy("") == ()
    assert draw("none", keyed(0), size=(8, 8))(x) is x
    with pytest.raises(ConfigError, match="did you mean 'cutout'"):
        draw("crop_cutot", keyed(0), size=(8, 8))
    with pytest.raises(ConfigError, match="twice"):
        draw("crop_crop", keyed(0), size=(8, 8))
    with pytest.raises(ConfigError, match="mode must be"):
        draw("crop", keyed(0), size=(8, 8), mode="X")
    with pytest.raises(ConfigError, match="9x9 images got 8x8"):
        draw("crop", keyed(0), size=(9, 9))(x)
    with pytest.raises(ConfigError, match="numbers for 3 images got 2"):
        draw("crop", keyed(0), size=(8, 8), siamese=False, count=3)(x)
    with pytest.raises(ConfigError, match="transforms need images"):
        apply_classes([DsaTransform((8, 8))], x)
