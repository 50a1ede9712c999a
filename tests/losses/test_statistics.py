"""The statistics' losses against the reference's golden numbers, and their properties."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from raydd.core.errors import ConfigError, DataError
from raydd.losses import Layer, Layout, class_targets, draw_kept, matching_loss, swap_patches
from raydd.losses.statistics_matching import layer_distances, smooth

GOLDEN: dict[str, Any] = json.loads(
    (Path(__file__).parents[1] / "golden" / "golden_edc.json").read_text()
)
LABELS = torch.tensor([[0, 0, 3, 7]])


def det(
    shape: tuple[int, ...], a: float = 0.37, b: float = 0.11, scale: float = 1.0, shift: float = 0.0
) -> Tensor:
    """Return the golden file's deterministic tensor."""
    i = torch.arange(torch.Size(shape).numel(), dtype=torch.float64)
    return (scale * (torch.sin(a * i + b) + 0.5 * torch.cos(0.013 * i)) + shift).float().view(shape)


def moments(x: Tensor) -> Tensor:
    """Return the channels' statistics of one group, ``[1, 2, K]``."""
    return torch.stack([x.mean((0, 2, 3)), x.var((0, 2, 3), correction=0)])[None]


def bn_references() -> tuple[Layout, Tensor, Tensor]:
    overall = torch.stack([det((6,), 0.9, 0.2, 0.3), det((6,), 0.7, 0.1, 0.2, 1.1).abs()])
    table = torch.stack(
        [det((1000, 6), 0.31, 0.05, 0.4), det((1000, 6), 0.23, 0.07, 0.3, 1.0).abs()], 1
    )
    return Layout((Layer("bn", "bn", 6),)), overall, table


def test_golden_g1_batch_norm_with_its_memory() -> None:
    layout, overall, table = bn_references()
    running = torch.zeros(1, 2, 6)
    for s, want in enumerate(GOLDEN["G1_bn_global"]):
        x = det((4, 6, 9, 9), 0.37 + 0.05 * s, 0.11 * s, 1, 0.1 * s).requires_grad_(True)
        loss, running = matching_loss(
            moments(x),
            running,
            layout,
            overall=overall,
            classes=class_targets(table, LABELS),
            momentum=0.8,
            first_multiplier=1,
        )
        (gradient,) = torch.autograd.grad(loss.sum(), x)
        assert float(loss.detach()) == pytest.approx(want["r"], rel=2e-5)
        assert float(gradient.norm()) == pytest.approx(want["grad_norm"], rel=1e-4)
        torch.testing.assert_close(
            gradient.flatten()[:3], torch.tensor(want["grad_head"][:3]), rtol=1e-4, atol=1e-9
        )
        torch.testing.assert_close(
            running[0, 0], torch.tensor(want["ema_mean"]), rtol=2e-5, atol=1e-7
        )
        torch.testing.assert_close(
            running[0, 1], torch.tensor(want["ema_var"]), rtol=2e-5, atol=1e-7
        )


def test_golden_g9_sre2l_without_memory_or_classes() -> None:
    layout, overall, _ = bn_references()
    loss, _ = matching_loss(
        moments(det((4, 6, 9, 9))),
        torch.zeros(1, 2, 6),
        layout,
        overall=overall,
        first_multiplier=1,
    )
    assert float(loss) == pytest.approx(3.216804, rel=2e-5)


@pytest.mark.parametrize(("class_weight", "want"), [(1.0, 1.531165), (0.5, 2.603017)])
def test_golden_g16_local_references(class_weight: float, want: float) -> None:
    layout, overall, _ = bn_references()
    local = moments(det((8, 6, 9, 9), 0.29, 0.4, 0.9, 0.2))
    loss, _ = matching_loss(
        moments(det((4, 6, 9, 9))), torch.zeros(1, 2, 6), layout, overall=overall, classes=local,
        class_weight=class_weight, momentum=0.8, first_multiplier=1,
    )  # fmt: skip
    assert float(loss) == pytest.approx(want, rel=2e-5)


LAYOUT = Layout((Layer("conv1", "conv", 3, 4), Layer("bn1", "bn", 5), Layer("conv2", "conv", 5, 1)))


def random(*leading: int, seed: int = 0) -> Tensor:
    return torch.randn(*leading, 2, LAYOUT.width, generator=torch.Generator().manual_seed(seed))


def test_the_loss_is_the_written_out_sum_of_norms() -> None:
    values, overall, classes = random(3, seed=1), random(seed=2), random(3, seed=3)
    loss, _ = matching_loss(
        values, torch.zeros_like(values), LAYOUT, overall=overall, classes=classes, class_weight=0.3
    )
    want = torch.zeros(3)
    for layer in LAYOUT.layers:
        for name in ("mu", "var", "pmu", "pvar")[: 4 if layer.cells else 2]:
            for weight, reference in ((0.7, overall), (0.3, classes)):
                parts, target = LAYOUT.split(values), LAYOUT.split(reference)
                key = f"{layer.name}/{name}"
                want += (
                    (10 if layer.name == "conv1" else 1)
                    * weight
                    * (target[key] - parts[key]).norm(dim=-1)
                )
    torch.testing.assert_close(loss, want)


WIDTHS = Layout(
    (
        Layer("a", "conv", 1, 63),
        Layer("b", "bn", 64),
        Layer("c", "conv", 65, 200),
        Layer("d", "bn", 129),
        Layer("e", "conv", 2, 1),
    )
)


def test_norms_of_any_length_are_exact() -> None:
    g = torch.Generator().manual_seed(0)
    values, reference = (
        torch.randn(3, 2, WIDTHS.width, generator=g) * 10 ** torch.randn(WIDTHS.width, generator=g)
        for _ in range(2)
    )
    wide = values.double().requires_grad_(True)
    of_layers = [[part for part in parts if part.stop > part.start] for _, *parts in WIDTHS.spans]
    want = torch.stack(
        [
            sum((wide - reference)[..., part].norm(dim=-1).sum(-1) for part in parts)
            for parts in of_layers
        ],
        -1,
    )
    narrow = values.requires_grad_(True)
    found = layer_distances(narrow, reference, WIDTHS)
    torch.testing.assert_close(found.double(), want, rtol=2e-7, atol=0)
    weight = torch.rand(found.shape, generator=g)
    gradients = [
        torch.autograd.grad((each * weight).sum(), x)[0].double()
        for each, x in ((found, narrow), (want, wide))
    ]
    torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-9)
    layers = [i for i, layer in enumerate(WIDTHS.layers) for _ in range(layer.width)]
    assert WIDTHS.layer_of(torch.device("cpu")).tolist() == layers


class Operations(TorchDispatchMode):
    """Notes the names of all operations."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.add(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


def test_no_operation_needs_atomics_on_a_gpu() -> None:
    values = random(2, seed=1).requires_grad_(True)
    with Operations() as operations:
        loss, _ = matching_loss(
            values,
            random(2, seed=2),
            LAYOUT,
            overall=random(seed=3),
            classes=random(2, seed=4),
            momentum=0.8,
        )
        torch.autograd.grad(loss.sum(), values)
    assert not operations.names & {
        "index_add",
        "index_add_",
        "scatter_add",
        "scatter_add_",
        "cumsum",
        "scatter_reduce",
        "bincount",
    }
    assert "index" in operations.names


def test_packed_groups_are_the_groups_one_by_one() -> None:
    values, running, overall, classes = (
        random(4, seed=1),
        random(4, seed=2),
        random(seed=3),
        random(4, seed=4),
    )
    kept = torch.tensor(
        [[True, True, True], [False, True, True], [True, True, False], [False, True, False]]
    )
    packed = matching_loss(
        values, running, LAYOUT, overall=overall, classes=classes, momentum=0.8, kept=kept
    )
    for g in range(4):
        row = slice(g, g + 1)
        alone = matching_loss(
            values[row],
            running[row],
            LAYOUT,
            overall=overall,
            classes=classes[row],
            momentum=0.8,
            kept=kept[row],
        )
        assert torch.equal(packed[0][row], alone[0])
        assert torch.equal(packed[1][row], alone[1])


def test_the_gradient_passes_the_memory_undamped() -> None:
    values = random(2, seed=1).requires_grad_(True)
    running = random(2, seed=2)
    matched, moved = smooth(values, running, 0.9)
    torch.testing.assert_close(matched, moved)
    (gradient,) = torch.autograd.grad(matched.sum(), values)
    assert torch.equal(gradient, torch.ones_like(values))
    assert not moved.requires_grad
    torch.testing.assert_close(moved, 0.9 * running + 0.1 * values.detach())


def test_a_distance_of_zero_has_a_gradient_of_zero() -> None:
    values = random(1, seed=1).requires_grad_(True)
    (gradient,) = torch.autograd.grad(
        layer_distances(values, values.detach()[0], LAYOUT).sum(), values
    )
    assert torch.equal(gradient, torch.zeros_like(values))


def test_dropping_every_convolution_leaves_the_batch_norms_and_the_memory() -> None:
    kept = draw_kept(torch.Generator().manual_seed(0), LAYOUT, 1.0)
    assert kept.tolist() == [False, True, False]
    values, running, overall = (
        random(2, seed=1).requires_grad_(True),
        random(2, seed=2),
        random(seed=3),
    )
    loss, moved = matching_loss(values, running, LAYOUT, overall=overall, momentum=0.8, kept=kept)
    bn = LAYOUT.columns(kind="bn")
    assert torch.equal(moved[..., ~bn], running[..., ~bn])
    assert not torch.equal(moved[..., bn], running[..., bn])
    torch.testing.assert_close(
        loss, layer_distances(smooth(values, running, 0.8)[0], overall, LAYOUT)[:, 1]
    )
    (gradient,) = torch.autograd.grad(loss.sum(), values)
    assert not gradient[..., ~bn].any()
    assert gradient[..., bn].any()


def test_the_drop_rate_is_a_share_of_the_convolutions() -> None:
    layout = Layout(tuple(Layer(f"c{i}", "conv" if i % 2 else "bn", 1) for i in range(4000)))
    kept = draw_kept(torch.Generator().manual_seed(1), layout, 0.4)
    assert kept[::2].all()
    assert abs(float((~kept[1::2]).float().mean()) - 0.4) < 0.05
    assert draw_kept(torch.Generator().manual_seed(1), layout, 0.0).all()


def test_swapping_changes_patches_alone() -> None:
    table = random(10, seed=5)
    swapped = swap_patches(table, LAYOUT)
    before, after = LAYOUT.split(table), LAYOUT.split(swapped)
    for layer in LAYOUT.layers:
        assert torch.equal(before[f"{layer.name}/mu"], after[f"{layer.name}/mu"])
        assert torch.equal(before[f"{layer.name}/var"], after[f"{layer.name}/var"])
        if layer.cells:
            assert torch.equal(before[f"{layer.name}/pmu"], after[f"{layer.name}/pvar"])
            assert torch.equal(before[f"{layer.name}/pvar"], after[f"{layer.name}/pmu"])
    assert torch.equal(swap_patches(swapped, LAYOUT), table)
    values, overall = random(1, seed=6), random(seed=7)
    losses = [
        matching_loss(
            values,
            torch.zeros_like(values),
            LAYOUT,
            overall=overall,
            classes=class_targets(t, torch.tensor([[1, 2]])),
        )[0]
        for t in (table, swapped)
    ]
    only_bn = Layout((LAYOUT.layers[1],))
    columns = LAYOUT.columns(kind="bn")
    assert not torch.equal(*losses)
    assert torch.equal(
        *[
            layer_distances(values[..., columns], t[..., columns].mean(0), only_bn)
            for t in (table, swapped)
        ]
    )


def test_class_targets_are_means_over_the_groups_images() -> None:
    table = random(10, seed=5)
    got = class_targets(table, torch.tensor([[1, 1, 2], [9, 0, 4]]))
    torch.testing.assert_close(got[0], (2 * table[1] + table[2]) / 3)
    torch.testing.assert_close(got[1], (table[9] + table[0] + table[4]) / 3)


def test_join_undoes_split_and_refuses_what_does_not_fit() -> None:
    values = random(5, seed=8)
    parts = LAYOUT.split(values)
    assert list(parts) == [
        "conv1/mu", "conv1/var", "conv1/pmu", "conv1/pvar", "bn1/mu", "bn1/var", "conv2/mu", "conv2/var",
        "conv2/pmu", "conv2/pvar"
    ]  # fmt: skip
    assert torch.equal(LAYOUT.join(parts), values)
    without = {k: v for k, v in parts.items() if not k.startswith("bn1")}
    assert not LAYOUT.join(without)[..., LAYOUT.columns(kind="bn")].any()
    with pytest.raises(DataError, match="layer 'conv1' lacks pvar"):
        LAYOUT.join({k: v for k, v in parts.items() if k != "conv1/pvar"})
    with pytest.raises(
        DataError, match=r"table: 'bn1/mu' is \[5, 4\], this network needs \[5, 5\]"
    ):
        LAYOUT.join(parts | {"bn1/mu": parts["bn1/mu"][:, :4]}, what="table")
    with pytest.raises(DataError, match="hold none of the layers conv1, bn1"):
        LAYOUT.join({"other/mu": values})


def test_nothing_to_match_and_wrong_widths_are_refused() -> None:
    values = random(1)
    with pytest.raises(ConfigError, match="nothing to match"):
        matching_loss(values, values, LAYOUT, overall=None)
    with pytest.raises(ConfigError, match=r"must be \[G, 2, 18\]"):
        layer_distances(values[..., :4], values, LAYOUT)
