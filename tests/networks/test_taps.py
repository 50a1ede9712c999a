"""Observed statistics against their definition, the golden numbers, and what observing may not change."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from raydd.core.errors import ConfigError
from raydd.core.rng import generator
from raydd.losses import class_targets, matching_loss
from raydd.networks import create_network
from raydd.networks.tap_sums import by_row
from raydd.networks.taps import StatTap

GOLDEN: dict[str, Any] = json.loads(
    (Path(__file__).parents[1] / "golden" / "golden_edc.json").read_text()
)


def det(
    shape: tuple[int, ...], a: float = 0.37, b: float = 0.11, scale: float = 1.0, shift: float = 0.0
) -> Tensor:
    """Return the golden file's deterministic tensor."""
    i = torch.arange(torch.Size(shape).numel(), dtype=torch.float64)
    return (scale * (torch.sin(a * i + b) + 0.5 * torch.cos(0.013 * i)) + shift).float().view(shape)


def written_out(x: Tensor, patch: int) -> Tensor:
    """Return ``[2, K + P]`` of one group, as docs/methods/recovery.md, "Statistics", words it."""
    parts = [torch.stack([x.mean((0, 2, 3)), x.var((0, 2, 3), correction=0)])]
    if patch:
        size = [patch * -(-n // patch) for n in x.shape[2:]]
        large = F.interpolate(x, size, mode="bilinear", align_corners=False)
        cells = (
            large.unfold(2, patch, patch)
            .unfold(3, patch, patch)
            .permute(2, 3, 0, 1, 4, 5)
            .flatten(2)
            .flatten(0, 1)
        )
        parts.append(torch.stack([cells.mean(1), cells.var(1, correction=0)]))
    return torch.cat(parts, 1)


def one_layer(kind: str, shape: tuple[int, int, int], patch: int) -> StatTap:
    layer = nn.Conv2d(shape[0], 2, 1) if kind == "conv" else nn.BatchNorm2d(shape[0])
    return StatTap(nn.Sequential(layer.double()), patch, shape=shape)


@pytest.mark.parametrize(
    "size", [(16, 16), (8, 4), (6, 6), (5, 9), (3, 3), (1, 1), (4, 30), (56, 14)]
)
@pytest.mark.parametrize("patch", [4, 16])
def test_values_and_gradients_are_those_of_the_definition(
    size: tuple[int, int], patch: int
) -> None:
    tap = one_layer("conv", (3, *size), patch)
    x = (
        torch.randn(6, 3, *size, generator=generator(0, "x"), dtype=torch.float64)
        .mul_(2)
        .add_(0.5)
        .requires_grad_(True)
    )
    _, found = tap(x, 2)
    want = torch.stack([written_out(x[:3], patch), written_out(x[3:], patch)])
    torch.testing.assert_close(found, want, rtol=1e-9, atol=1e-9)
    weight = torch.randn(found.shape, generator=generator(0, "weight"), dtype=torch.float64)
    gradients = [torch.autograd.grad((values * weight).sum(), x)[0] for values in (found, want)]
    torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-9)


def test_batch_norms_have_channels_alone() -> None:
    tap = one_layer("bn", (3, 5, 5), 4)
    tap.network.eval()
    x = torch.randn(4, 3, 5, 5, generator=generator(0, "x"), dtype=torch.float64)
    torch.testing.assert_close(tap(x)[1][0], written_out(x, 0))
    assert [
        (layer.name, layer.kind, layer.channels, layer.cells) for layer in tap.layout.layers
    ] == [("0", "bn", 3, 0)]
    torch.testing.assert_close(tap.running(), torch.stack([torch.zeros(3), torch.ones(3)]))


def test_golden_g2_convolution_with_its_memory() -> None:
    tap = StatTap(nn.Sequential(nn.Conv2d(6, 2, 3)), 16, shape=(6, 30, 30))
    overall = torch.zeros(2, 10)
    overall[0, :6], overall[1, :6] = det((6,), 0.9, 0.2, 0.3), det((6,), 0.7, 0.1, 0.2, 1.1).abs()
    overall[0, 6:], overall[1, 6:] = det((4,), 0.5, 0.3, 0.2), det((4,), 0.6, 0.4, 0.2, 1.2).abs()
    table = torch.zeros(1000, 2, 10)
    table[:, 0, :6], table[:, 1, :6] = (
        det((1000, 6), 0.31, 0.05, 0.4),
        det((1000, 6), 0.23, 0.07, 0.3, 1.0).abs(),
    )
    table[:, 0, 6:], table[:, 1, 6:] = (
        det((1000, 4), 0.17, 0.2, 0.2),
        det((1000, 4), 0.19, 0.2, 0.2, 1.0).abs(),
    )
    targets = class_targets(table, torch.tensor([[0, 0, 3, 7]]))
    running = torch.zeros(1, 2, 10)
    for s, want in enumerate(GOLDEN["G2_conv_global_patch16"]):
        x = det((4, 6, 30, 30), 0.37 + 0.05 * s, 0.11 * s, 1, 0.1 * s).requires_grad_(True)
        loss, running = matching_loss(
            tap(x)[1],
            running,
            tap.layout,
            overall=overall,
            classes=targets,
            momentum=0.8,
            first_multiplier=1,
        )
        (gradient,) = torch.autograd.grad(loss.sum(), x)
        assert float(loss.detach()) == pytest.approx(want["r"], rel=2e-5)
        assert float(gradient.norm()) == pytest.approx(want["grad_norm"], rel=1e-4)
        torch.testing.assert_close(
            running[0, 0, 6:], torch.tensor(want["ema_patch_mean"]), rtol=2e-5, atol=2e-7
        )
        torch.testing.assert_close(
            running[0, 1, 6:], torch.tensor(want["ema_patch_var"]), rtol=2e-5, atol=2e-7
        )


class _First(nn.Module):
    """Give the next layer one map, whatever the number of images, as an encoding of positions does."""

    def forward(self, x: Tensor) -> Tensor:
        return x[:1]


@pytest.fixture(scope="module")
def tap() -> StatTap:
    network = (
        create_network("resnet18_cifar_batchnorm", (3, 16, 16), 10, generator(0, "network"))
        .eval()
        .requires_grad_(False)
    )
    return StatTap(network, 4)


def images(count: int, *key: int) -> Tensor:
    return torch.randn(count, 3, 16, 16, generator=generator(0, "images", *key))


def test_layers_stand_in_the_order_of_the_modules(tap: StatTap) -> None:
    names = [
        n for n, m in tap.network.named_modules() if isinstance(m, (nn.BatchNorm2d, nn.Conv2d))
    ]
    assert [layer.name for layer in tap.layout.layers] == names
    assert tap.layout.layers[0].kind == "conv"
    assert tap.layout.layers[0].channels == 3
    assert tap.layout.layers[0].cells == 16
    only = StatTap(tap.network, 4, ("bn",))
    assert [layer.name for layer in only.layout.layers] == [
        x.name for x in tap.layout.layers if x.kind == "bn"
    ]
    only.close()


def test_packed_groups_are_the_groups_one_by_one(tap: StatTap) -> None:
    """So are their statistics and the images' gradients."""
    x = images(12).requires_grad_(True)
    weight = torch.randn(4, 2, tap.layout.width, generator=generator(0, "weight"))
    packed = tap(x, 4)[1]
    (whole,) = torch.autograd.grad((packed * weight).sum(), x)
    for g in range(4):
        alone = x.detach()[3 * g : 3 * g + 3].requires_grad_(True)
        found = tap(alone)[1]
        torch.testing.assert_close(packed[g : g + 1], found, rtol=1e-5, atol=1e-6)
        (gradient,) = torch.autograd.grad((found * weight[g]).sum(), alone)
        torch.testing.assert_close(
            whole[3 * g : 3 * g + 3], gradient, rtol=1e-4, atol=1e-6 * float(gradient.abs().max())
        )


def test_a_whole_network_matches_plain_hooks(tap: StatTap) -> None:
    """Every layer's statistics and the images' gradient, against hooks that write out the definition."""
    x = images(6, 1).requires_grad_(True)
    wanted: list[Tensor] = []
    layers = [m for m in tap.network.modules() if isinstance(m, (nn.BatchNorm2d, nn.Conv2d))]
    hooks = [
        m.register_forward_pre_hook(
            lambda m, args: wanted.append(
                written_out(args[0], 4 if isinstance(m, nn.Conv2d) else 0)
            )
        )
        for m in layers
    ]
    try:
        plain = tap.network(x)
    finally:
        for hook in hooks:
            hook.remove()
    logits, found = tap(x)
    assert torch.equal(logits, plain)
    # Shortcuts run after the convolutions beside them, in the order of the modules too.
    want = torch.cat(wanted, 1)
    torch.testing.assert_close(found[0], want, rtol=2e-5, atol=2e-6)
    weight = torch.randn(want.shape, generator=generator(0, "weight"))
    ours, theirs = (
        torch.autograd.grad((v * weight).sum() + z.square().sum(), x)[0]
        for v, z in ((found[0], logits), (want, plain))
    )
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5 * float(theirs.abs().max()))
    assert float(F.cosine_similarity(ours.flatten(), theirs.flatten(), dim=0)) > 1 - 1e-6


class _Activated(nn.BatchNorm2d):
    """A batch norm with an activation within, as timm's are."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input).sin()


def _block(kind: str) -> nn.Sequential:
    """Return two convolutions with a batch norm and an activation in place between them, float64,
    with other than fresh values.
    """
    norm = (
        _Activated(5) if kind == "subclass" else nn.BatchNorm2d(5, eps=0.1, affine=kind != "plain")
    )
    net = (
        nn.Sequential(nn.Conv2d(3, 5, 3), norm, nn.ReLU(inplace=True), nn.Conv2d(5, 4, 3))
        .double()
        .eval()
        .requires_grad_(False)
    )
    for name, value in net.state_dict().items():
        if value.is_floating_point():
            value.copy_(
                torch.rand(value.shape, generator=generator(0, name), dtype=torch.float64) + 0.2
            )
    if kind == "parameters":
        norm.requires_grad_(True)
    if kind == "batch statistics":
        norm.train()
    if kind == "hook":
        norm.register_forward_hook(lambda m, args, out: 3 * out * out)
    return net


@pytest.mark.parametrize(
    "kind", ["affine", "plain", "subclass", "parameters", "batch statistics", "hook"]
)
def test_batch_norms_are_differentiated_with_their_statistics(kind: str) -> None:
    """Frozen ones by a formula of their own, others by autograd: the logits exactly, the gradients in float64."""
    net = _block(kind)
    x = torch.randn(6, 3, 9, 9, generator=generator(0, "x"), dtype=torch.float64).requires_grad_(
        True
    )
    wanted: list[Tensor] = []
    hook = net[1].register_forward_pre_hook(
        lambda m, args: wanted.append(torch.stack([written_out(p, 0) for p in args[0].chunk(2)]))
    )
    plain = net(x)
    hook.remove()
    with StatTap(net, 4, ("bn",), (3, 9, 9)) as tap:
        logits, found = tap(x, 2)
    assert torch.equal(logits, plain)
    torch.testing.assert_close(found, wanted[0], rtol=1e-12, atol=1e-12)
    weight = torch.randn(found.shape, generator=generator(0, "weight"), dtype=torch.float64)
    leaves = [x, *(p for p in net.parameters() if p.requires_grad)]
    both = [
        torch.autograd.grad((v * weight).sum() + z.square().sum(), leaves)
        for v, z in ((found, logits), (wanted[0], plain))
    ]
    for ours, theirs in zip(*both, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


def test_rows_are_scaled_alike_on_every_device() -> None:
    maps, slope, constant = torch.rand(6, 5), torch.rand(6), torch.rand(6)
    torch.testing.assert_close(
        by_row(maps, slope, constant), maps * slope[:, None] + constant[:, None]
    )
    assert by_row(maps.to("meta"), slope.to("meta"), constant.to("meta")).shape == maps.shape


def test_calling_the_network_itself_observes_nothing_and_changes_nothing(tap: StatTap) -> None:
    x = images(4, 2)
    logits, before = tap(x)
    assert torch.equal(tap.network(images(8, 3)[:4]), tap(images(8, 3)[:4])[0])
    assert torch.equal(tap(x)[1], before)
    assert torch.equal(tap.network(x), logits)


def test_nothing_is_kept_after_an_error(tap: StatTap) -> None:
    x = images(4, 2)
    before = tap(x)[1]
    with pytest.raises(RuntimeError):
        tap(torch.randn(4, 5, 16, 16))
    assert torch.equal(tap(x)[1], before)
    assert not tap._found
    assert not tap._seen


def test_inputs_that_two_layers_share_are_summed_once(
    tap: StatTap, monkeypatch: pytest.MonkeyPatch
) -> None:
    import raydd.networks.taps as module

    calls = []
    original = module.Sums.forward
    monkeypatch.setattr(
        module.Sums, "forward", staticmethod(lambda *a: (calls.append(1), original(*a))[1])
    )
    with torch.no_grad():
        tap(images(2))
    shortcuts = sum(
        "shortcut" in layer.name and layer.kind == "conv" for layer in tap.layout.layers
    )
    assert shortcuts == 3
    assert len(calls) == len(tap.layout.layers) - shortcuts


class _ChangedInPlace(nn.Module):
    """Two layers of one kind read one tensor, which is changed between them."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Conv2d(3, 2, 1) if kind == "conv" else nn.BatchNorm2d(3) for _ in range(2)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = x + 1
        before = self.layers[0](x)
        found: Tensor = before + self.layers[1](x.mul_(2))
        return found


@pytest.mark.parametrize("kind", ["conv", "bn"])
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_an_input_that_was_changed_in_place_is_summed_again(kind: str, mode: Any) -> None:
    x = images(4)
    with StatTap(_ChangedInPlace(kind).eval(), 4, (kind,), (3, 16, 16)) as tap, mode():
        want = [written_out(values, 4 if kind == "conv" else 0) for values in (x + 1, 2 * (x + 1))]
        torch.testing.assert_close(tap(x)[1][0], torch.cat(want, 1))


def test_a_batch_norm_with_another_forward_is_differentiated_as_it_is() -> None:
    norm = nn.BatchNorm2d(3).eval().requires_grad_(False)
    original = norm.forward
    norm.forward = lambda x: 3 * original(x)  # type: ignore[method-assign]
    x = images(4).requires_grad_(True)
    with StatTap(nn.Sequential(norm), 4, ("bn",), (3, 16, 16)) as tap:
        found, want = tap(x)[0], norm(x)
    assert torch.equal(found, want)
    torch.testing.assert_close(
        *(torch.autograd.grad(out.square().sum(), x)[0] for out in (found, want))
    )


def test_no_copy_of_the_activations_is_kept(tap: StatTap) -> None:
    """The graph keeps the layers' inputs, which the network keeps anyway, and nothing else that
    grows with the batch.
    """
    x = images(8).requires_grad_(True)

    def kept(call: Any) -> int:
        storages: dict[int, int] = {}

        def pack(t: Tensor) -> Tensor:
            storages[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
            return t

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            out = call()
        del out
        return sum(storages.values())

    alone = kept(lambda: tap.network(x))
    assert kept(lambda: tap(x, 2)) < 1.05 * alone


def test_closing_removes_the_hooks() -> None:
    network = create_network("convnet1_w4_batchnorm", (1, 8, 8), 10, generator(0, "network")).eval()
    with StatTap(network, 4) as tap:
        assert tap(torch.zeros(1, 1, 8, 8))[1].shape == (1, 2, tap.layout.width)
    assert not any(m._forward_pre_hooks for m in network.modules())


def test_probing_leaves_the_statistics_and_the_mode_alone() -> None:
    network = create_network(
        "convnet1_w4_batchnorm", (1, 8, 8), 10, generator(0, "network")
    ).train()
    before = {k: v.clone() for k, v in network.state_dict().items()}
    StatTap(network, 4).close()
    assert network.training
    assert all(m.training for m in network.modules())
    assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items())


def test_misfits_are_refused(tap: StatTap) -> None:
    with pytest.raises(ConfigError, match="7 images cannot be cut into 2 groups"):
        tap(images(7), 2)
    with pytest.raises(ConfigError, match=r"unknown kind of layer 'con'.*'conv'"):
        StatTap(tap.network, 4, ("con",))
    with pytest.raises(ConfigError, match="no layer of the kinds bn"):
        StatTap(nn.Sequential(nn.Conv2d(3, 2, 1)), 4, ("bn",), (3, 8, 8))
    with pytest.raises(ConfigError, match="patch=0"):
        StatTap(tap.network, 0)
    with pytest.raises(ConfigError, match=r"layer '2' .* reads 6 maps of 2 images"):
        StatTap(
            nn.Sequential(nn.Flatten(0, 1), nn.Unflatten(0, (-1, 1)), nn.Conv2d(1, 2, 1)),
            4,
            shape=(3, 8, 8),
        )
    with pytest.raises(ConfigError, match=r"layer '1' .* reads 1 maps of 2 images"):
        StatTap(nn.Sequential(_First(), nn.Conv2d(3, 2, 1)), 4, shape=(3, 8, 8))
    shared = nn.Conv2d(3, 3, 1)
    with pytest.raises(ConfigError, match=r"layer '0' .* runs 2 times"):
        StatTap(nn.Sequential(shared, shared), 4, shape=(3, 8, 8))
    assert not shared._forward_pre_hooks


class _Silent(nn.Sequential):
    """Has a batch norm that never runs, as EfficientNet-B0 for small images does."""

    def __init__(self) -> None:
        super().__init__(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
        self.unused = nn.BatchNorm2d(5)

    def forward(self, x: Tensor) -> Tensor:
        return self[1](self[0](x))


def test_batch_norms_that_never_run_are_left_out_by_name() -> None:
    network = _Silent().eval()
    with pytest.raises(ConfigError, match=r"layer 'unused' .* runs 0 times"):
        StatTap(network, 1, ("bn",), (3, 8, 8))
    silent = StatTap(network, 1, ("bn",), (3, 8, 8), ("unused", "of another network"))
    assert [layer.name for layer in silent.layout.layers] == ["1"]
    images = torch.randn(2, 3, 8, 8, generator=generator(0, "images"))
    assert torch.equal(
        silent(images)[1],
        StatTap(nn.Sequential(network[0], network[1]), 1, ("bn",), (3, 8, 8))(images)[1],
    )
    assert silent.running().shape == (2, 4)
    with pytest.raises(ConfigError, match=r"layer '1' .* runs; skip_silent is for layers"):
        StatTap(network, 1, ("bn",), (3, 8, 8), ("1", "unused"))
