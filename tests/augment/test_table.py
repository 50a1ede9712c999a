"""DSA as a table of numbers: the results and derivatives of the operations one by one, by kernels
that depend on no draw.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from raydd.augment.dsa import DEFAULT_STRATEGY, DsaRanges, DsaTransform, apply_classes, draw
from raydd.augment.operations import OPERATIONS
from raydd.augment.table import TransformTable, apply_table, apply_taps, make_table, spread
from raydd.core.captured import Captured
from raydd.core.errors import ConfigError

SIZES = [(1, 8, 8), (3, 9, 14), (3, 5, 5), (1, 12, 7), (2, 1, 4)]
VIEWS = {
    "view",
    "_unsafe_view",
    "expand",
    "slice",
    "unsqueeze",
    "select",
    "unbind",
    "detach",
    "alias",
    "promote_types",
}
ATOMIC = {
    "index_put",
    "index_put_",
    "scatter_add",
    "scatter_add_",
    "index_add",
    "index_add_",
    "grid_sampler_2d_backward",
}


def keyed(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(seed: int, *shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=keyed(seed), dtype=torch.float64).to(dtype)


def drawn(strategy: str, classes: int, size: tuple[int, int], **how: Any) -> list[DsaTransform]:
    return [draw(strategy, keyed(seed), size=size, **how) for seed in range(classes)]


def both(transforms: list[DsaTransform], x: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Return images and gradients by the operations one by one, and by the table."""
    weight, x = normal(99, *x.shape), x.requires_grad_()
    outs = [apply_classes(transforms, x), apply_table(x, make_table(transforms))]
    return [(out, torch.autograd.grad((out * weight).sum(), x)[0]) for out in outs]


def assert_same(transforms: list[DsaTransform], x: Tensor, tolerance: float = 1e-12) -> None:
    (out, gradient), (ours, our_gradient) = both(transforms, x)
    assert float((out - ours).detach().abs().max()) < tolerance
    assert float((gradient - our_gradient).abs().max()) < tolerance


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize(("channels", "height", "width"), SIZES)
@pytest.mark.parametrize("siamese", [True, False])
def test_images_and_gradients_are_those_of_the_operations(
    operation: str, channels: int, height: int, width: int, siamese: bool
) -> None:
    transforms = drawn(operation, 6, (height, width), siamese=siamese, count=3)
    assert_same(transforms, normal(1, 6, 3, channels, height, width))


@pytest.mark.parametrize("siamese", [True, False])
@pytest.mark.parametrize(("channels", "height", "width"), SIZES)
def test_classes_with_operations_of_their_own_go_together(
    channels: int, height: int, width: int, siamese: bool
) -> None:
    transforms = drawn(DEFAULT_STRATEGY, 14, (height, width), siamese=siamese, count=3)
    assert len({t.operations for t in transforms}) == 6
    assert_same(transforms, normal(2, 14, 3, channels, height, width))


@pytest.mark.parametrize("siamese", [True, False])
def test_all_operations_in_order(siamese: bool) -> None:
    transforms = drawn(DEFAULT_STRATEGY, 4, (10, 11), siamese=siamese, count=2, mode="M")
    assert make_table(transforms).numbers.shape[0] == 6
    assert_same(transforms, normal(3, 4, 2, 3, 10, 11), 1e-11)


def test_angles_and_factors_as_far_as_a_table_takes_them() -> None:
    ranges = DsaRanges(rotate=180, scale=1.5)
    assert_same(drawn("rotate", 24, (7, 10), ranges=ranges), normal(4, 24, 1, 1, 7, 10))
    assert_same(drawn("scale", 24, (7, 10), ranges=ranges), normal(4, 24, 1, 1, 7, 10))


def test_some_classes_share_their_numbers_and_some_have_none() -> None:
    transforms = [
        draw("scale", keyed(0), size=(8, 8)),
        draw("rotate", keyed(1), size=(8, 8), siamese=False, count=3),
        draw("color_flip", keyed(2), size=(8, 8), mode="M"),
        draw("none", keyed(2), size=(8, 8)),
    ]
    assert_same(transforms, normal(5, 4, 3, 2, 8, 8))
    x = normal(5, 1, 3, 2, 8, 8)
    assert torch.equal(apply_table(x, make_table(transforms[3:])), x)


@pytest.mark.parametrize("operation", ["crop", "cutout", "flip"])
def test_operations_without_rounding_have_none(operation: str) -> None:
    transforms = drawn(operation, 12, (28, 27))
    x = normal(6, 12, 2, 3, 28, 27, dtype=torch.float32)
    for dtype in (torch.float64, torch.float32):
        assert torch.equal(
            apply_table(x, make_table(transforms, dtype)), apply_classes(transforms, x)
        )


def test_in_single_precision_nothing_is_lost() -> None:
    transforms = drawn(DEFAULT_STRATEGY, 30, (32, 32))
    x = normal(7, 30, 2, 3, 32, 32)
    exact, table = apply_classes(transforms, x), make_table(transforms)
    assert float((apply_table(x.float(), table) - exact).abs().max()) < 3e-6
    half = apply_table(x.bfloat16(), table)
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.double(), exact, atol=0.05, rtol=0.02)


@pytest.mark.parametrize("siamese", [True, False])
def test_first_and_second_derivatives(siamese: bool) -> None:
    transforms = drawn(DEFAULT_STRATEGY, 7, (4, 5), siamese=siamese, count=2)
    table, x = make_table(transforms), normal(8, 7, 2, 2, 4, 5).requires_grad_()
    assert torch.autograd.gradcheck(lambda y: apply_table(y, table), x, fast_mode=True)
    assert torch.autograd.gradgradcheck(lambda y: apply_table(y, table).square(), x, fast_mode=True)


def test_function_transforms_see_through() -> None:
    table, x = make_table(drawn(DEFAULT_STRATEGY, 5, (6, 6))), normal(9, 3, 5, 2, 1, 6, 6)
    want = torch.stack([apply_table(y, table) for y in x])
    assert float((torch.func.vmap(lambda y: apply_table(y, table))(x) - want).abs().max()) < 1e-12
    gradient = torch.func.vmap(torch.func.grad(lambda y: apply_table(y, table).square().sum()))(x)
    leaf = x.clone().requires_grad_()
    (apart,) = torch.autograd.grad(sum(apply_table(y, table).square().sum() for y in leaf), leaf)
    assert float((gradient - apart).abs().max()) < 1e-12
    with pytest.raises(NotImplementedError, match="numbers of a table"):
        torch.func.vmap(lambda numbers: apply_table(x[0], TransformTable(numbers, (6, 6))))(
            table.numbers.unsqueeze(0)
        )


@pytest.mark.slow
def test_the_kernel_of_a_gpu_gathers_as_the_operators_do() -> None:
    pytest.importorskip("triton")
    command = [sys.executable, "-W", "ignore", str(Path(__file__).with_name("table_cases.py"))]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr[-3000:]
    double, single = map(float, run.stdout.split())
    assert double < 1e-14
    assert single < 1e-6


class Operations(TorchDispatchMode):
    """Notes names and shapes of all operations but views."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, tuple[torch.Size, ...]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name not in VIEWS:
            self.seen.append((name, tuple(x.shape for x in args if isinstance(x, Tensor))))
        return func(*args, **(kwargs or {}))

    @property
    def names(self) -> list[str]:
        return [name for name, _ in self.seen]


def operations(strategy: str, seed: int, classes: int, channels: int, gradient: bool) -> Operations:
    transforms = [draw(strategy, keyed(seed + k), size=(8, 8)) for k in range(classes)]
    x, table = (
        normal(11, classes, 2, channels, 8, 8, dtype=torch.float32).requires_grad_(gradient),
        make_table(transforms),
    )
    with Operations() as found:
        out = apply_table(x, table)
        if gradient:
            torch.autograd.grad(out, x, torch.ones_like(out))
    return found


@pytest.mark.parametrize("channels", [1, 3])
def test_few_kernels_whatever_is_drawn_and_none_needs_atomics(channels: int) -> None:
    forward, backward = (
        operations(DEFAULT_STRATEGY, 0, 6, channels, gradient) for gradient in (False, True)
    )
    assert len(forward.names) <= 30
    assert len(backward.names) <= 60
    assert "ceil" not in forward.names, "without a gradient no transposed map is made"
    assert not ATOMIC & set(backward.names)
    assert not {"_local_scalar_dense", "nonzero", "item"} & set(backward.names)
    for seed in range(1, 12):
        assert operations(DEFAULT_STRATEGY, seed, 6, channels, True).seen == backward.seen
    assert operations(DEFAULT_STRATEGY, 0, 30, channels, True).names == backward.names


def test_real_and_synthetic_images_share_what_they_read() -> None:
    transforms = drawn(DEFAULT_STRATEGY, 6, (8, 8))
    taps, table = spread(make_table(transforms), torch.float64), make_table(transforms)
    for count in (1, 5):
        x = normal(12, 6, count, 3, 8, 8)
        with Operations() as found:
            out = apply_taps(x, taps)
        assert torch.equal(out, apply_table(x, table))
        assert len(found.names) <= 8


@pytest.mark.slow
def test_a_compiler_takes_it_whole() -> None:
    x, table = (
        normal(13, 6, 2, 3, 8, 8).requires_grad_(),
        make_table(drawn(DEFAULT_STRATEGY, 6, (8, 8))),
    )
    compiled = torch.compile(
        lambda y, numbers: apply_table(y, TransformTable(numbers, (8, 8))),
        backend="aot_eager",
        fullgraph=True,
    )
    outs = [compiled(x, table.numbers), apply_table(x, table)]
    torch.testing.assert_close(*outs, atol=1e-12, rtol=0)
    gradients = [torch.autograd.grad(out.square().sum(), x)[0] for out in outs]
    torch.testing.assert_close(*gradients, atol=1e-12, rtol=0)


def test_bad_input_is_named() -> None:
    table, x = make_table(drawn("crop", 2, (8, 8))), normal(1, 2, 3, 1, 8, 8)
    with pytest.raises(ConfigError, match="one transform or more"):
        make_table([])
    with pytest.raises(ConfigError, match="one size"):
        make_table([*drawn("crop", 1, (8, 8)), *drawn("crop", 1, (8, 9))])
    with pytest.raises(ConfigError, match="one number of images, got 2 and 3"):
        make_table([draw("crop", keyed(0), size=(8, 8), siamese=False, count=n) for n in (2, 3)])
    with pytest.raises(ConfigError, match="2/3"):
        make_table(
            [DsaTransform((8, 8), ("scale",), (torch.tensor([[0.6, 1.0]], dtype=torch.float64),))]
        )
    with pytest.raises(ConfigError, match="2 groups"):
        apply_table(x[:1], table)
    with pytest.raises(ConfigError, match="8x8 images got 8x7"):
        apply_table(x[..., :7], table)


def test_drawn_numbers_are_a_few_for_each_group() -> None:
    assert make_table(drawn(DEFAULT_STRATEGY, 10, (224, 224))).numbers.numel() == 270
    assert (
        make_table(
            drawn(DEFAULT_STRATEGY, 2, (28, 28), siamese=False, count=5), torch.float32
        ).numbers.dtype
        == torch.float32
    )


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_batches_of_any_size_on_a_gpu(dtype: torch.dtype) -> None:
    device, table = torch.device("cuda"), make_table(drawn(DEFAULT_STRATEGY, 9, (17, 19)))
    for count in (1, 2, 33):
        x = normal(4, 9, count, 3, 17, 19, dtype=dtype)
        found = apply_table(x.to(device), table.to(device)).cpu()
        torch.testing.assert_close(
            found, apply_table(x, table), atol=1e-5 if dtype == torch.float32 else 0.02, rtol=0.01
        )


@pytest.mark.gpu
@pytest.mark.parametrize("siamese", [True, False])
def test_a_gpu_gives_the_cpus_images_the_same_bytes_twice_and_recorded(siamese: bool) -> None:
    transforms = drawn(DEFAULT_STRATEGY, 14, (9, 14), siamese=siamese, count=3)
    x, weight = normal(2, 14, 3, 3, 9, 14), normal(3, 14, 3, 3, 9, 14)

    def function(images: Tensor, scale: Tensor, numbers: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            leaf = images.detach().requires_grad_()
            out = apply_table(leaf, TransformTable(numbers, (9, 14)))
            (gradient,) = torch.autograd.grad((out * scale).sum(), leaf)
        return out.detach(), gradient

    want, device = function(x, weight, make_table(transforms).numbers), torch.device("cuda")
    recorded = Captured(function, device)
    torch.use_deterministic_algorithms(True)
    try:
        for _ in range(2):
            arguments = (x.to(device), weight.to(device), make_table(transforms).numbers.to(device))
            found, again, replayed = (
                function(*arguments),
                function(*arguments),
                recorded(*arguments),
            )
            for a, b, c, d in zip(want, found, again, replayed, strict=True):
                torch.testing.assert_close(b.cpu(), a, atol=1e-12, rtol=0)
                assert torch.equal(b, c)
                assert torch.equal(b, d)
            transforms = drawn(DEFAULT_STRATEGY, 28, (9, 14), siamese=siamese, count=3)[14:]
            want = function(x, weight, make_table(transforms).numbers)
    finally:
        torch.use_deterministic_algorithms(False)
    assert next(iter(recorded._recordings.values())) is not None
