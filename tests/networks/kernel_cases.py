"""Compare the taps' kernels with plain operators, on the device or interpreted, and print what was found as JSON.

Started by test_tap_kernels: Triton decides when it is imported whether kernels are compiled or interpreted.

    TRITON_INTERPRET=1 python tests/networks/kernel_cases.py cpu
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from raydd.core.rng import generator
from raydd.networks import tap_kernels, tap_sums
from raydd.networks.tap_grid import grid_of
from raydd.networks.taps import StatTap

LAYERS = {
    # groups, images of each, channels, height, width, patch (0: channels alone)
    "three groups, odd sizes": (3, 1, 3, 5, 9, 4),
    "one cell of a larger patch": (1, 2, 3, 7, 7, 16),
    "one pixel": (2, 1, 5, 1, 1, 4),
    "nothing resized": (2, 1, 2, 8, 8, 4),
    "several tiles": (1, 1, 20, 9, 8, 4),
    "runs of images": (1, 9, 2, 3, 2, 2),
    "one row": (2, 2, 3, 1, 6, 4),
    "one column": (1, 2, 3, 6, 1, 4),
    "channels alone": (3, 2, 40, 2, 3, 0),
    "channels alone, runs of images": (1, 9, 3, 9, 10, 0),
}


def layer(
    case: str, device: torch.device, dtype: torch.dtype, last: bool, scaled: bool
) -> dict[str, float]:
    """Return how far a layer's sums and gradient are from the plain ones, taken in float64, beside
    the largest value.
    """
    groups, each, channels, height, width, patch = LAYERS[case]
    draw = generator(0, case)
    x, given = (
        torch.randn(groups * each, channels, height, width, generator=draw).to(device, dtype) * 2
        + 0.5
        for _ in range(2)
    )
    scale = torch.rand(channels, generator=draw).to(device, dtype) + 0.5 if scaled else None
    if last:
        x = x.to(memory_format=torch.channels_last)
    grid = grid_of(height, width, patch, device, dtype) if patch else None
    exact = x.double().requires_grad_(True)
    with mock.patch.object(tap_sums, "_by_kernels", return_value=False):
        through, sums = tap_sums.Sums.apply(
            exact, groups, (patch and grid_of(height, width, patch, device, torch.float64)) or None
        )
        weight = torch.randn(sums.shape, generator=draw).to(device, dtype).mT.contiguous().mT
        through = through if scale is None else through * scale.double().view(1, -1, 1, 1)
        (wanted,) = torch.autograd.grad((through * given).sum() + (sums * weight).sum(), exact)
    found = tap_kernels.sums(x, groups, grid)
    gradient = tap_kernels.gradient_of_sums(given, x, weight, scale, grid)
    assert gradient.stride() == x.stride()
    return {
        "sums": float((found - sums).abs().max() / sums.abs().max()),
        "gradient": float((gradient - wanted).abs().max() / wanted.abs().max()),
        "changed bytes": float(not torch.equal(found, tap_kernels.sums(x, groups, grid)))
        if last
        else 0.0,
    }


def block(affine: bool) -> nn.Sequential:
    """Return convolutions around a frozen batch norm with other than fresh values."""
    norm = nn.BatchNorm2d(3, affine=affine)
    net = (
        nn.Sequential(nn.Conv2d(2, 3, 3), norm, nn.ReLU(inplace=True), nn.Conv2d(3, 2, 3))
        .eval()
        .requires_grad_(False)
    )
    for name, value in net.state_dict().items():
        if value.is_floating_point():
            value.copy_(torch.rand(value.shape, generator=generator(0, name)) + 0.2)
    return net


def network(net: nn.Module, device: torch.device, shape: tuple[int, int, int]) -> dict[str, float]:
    """Return how far an observed network's statistics and the images' gradient are from those of plain operators."""
    net = net.to(device)
    images = (
        torch.randn(4, *shape, generator=generator(0, "images")).to(device).requires_grad_(True)
    )
    results = []
    for kernels in (True, False):
        with (
            mock.patch.object(tap_sums, "_by_kernels", return_value=kernels),
            StatTap(net, 4, shape=shape) as tap,
        ):
            logits, found = tap(images, 2)
            weight = torch.randn(found.shape, generator=generator(0, "weight")).to(device)
            results.append(
                (
                    logits,
                    found,
                    torch.autograd.grad((found * weight).sum() + logits.square().sum(), images)[0],
                )
            )
    names = ("logits", "statistics", "gradient")
    return {
        n: float((a - b).abs().max() / b.abs().max())
        for n, a, b in zip(names, *results, strict=True)
    }


class Count(TorchDispatchMode):
    """Counts operators that are not mere views; a kernel is one."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        self.calls += not function.is_view and "detach" not in str(function)
        return function(*args, **(kwargs or {}))

    @contextmanager
    def kernels(self) -> Any:
        """Count a kernel as one operator, whatever it takes to interpret it."""
        original = tap_kernels.launch

        def counted(*args: Any, **constants: Any) -> None:
            self.calls += 1
            with _disable_current_modes():
                original(*args, **constants)

        with mock.patch.object(tap_kernels, "launch", counted), self:
            yield


def operators(device: torch.device) -> dict[str, float]:
    """Return operators per layer that observing adds to a network's forward and backward pass."""
    shape = (2, 3, 3)
    blocks = [
        layer
        for _ in range(6)
        for layer in (nn.Conv2d(2, 2, 3, padding=1), nn.BatchNorm2d(2), nn.ReLU(inplace=True))
    ]
    net = nn.Sequential(*blocks).eval().requires_grad_(False).to(device)
    images = torch.randn(2, *shape, generator=generator(0, "images")).to(device)

    def passes(call: Callable[[Tensor], list[Tensor]]) -> tuple[int, int]:
        x = images.clone().requires_grad_(True)
        with (forward := Count()).kernels():
            found = call(x)
        seeds = [torch.ones_like(value) for value in found]
        with (backward := Count()).kernels():
            torch.autograd.grad(found, x, seeds)
        return forward.calls, backward.calls

    alone = passes(lambda x: [net(x)])
    with (
        StatTap(net, 4, shape=shape) as tap,
        mock.patch.object(tap_sums, "_by_kernels", return_value=True),
    ):
        passes(lambda x: list(tap(x, 2)))  # tables are made
        observed = passes(lambda x: list(tap(x, 2)))
        layers = len(tap.layout.layers)
    return {
        "forward": (observed[0] - alone[0]) / layers,
        "backward": (observed[1] - alone[1]) / layers,
    }


def main() -> None:
    device = torch.device(sys.argv[1])
    torch.set_num_threads(1)
    torch.backends.cudnn.allow_tf32 = False
    found: dict[str, dict[str, float]] = {}
    for i, case in enumerate(LAYERS):
        kinds = [(torch.float32, False), (torch.float32, True), (torch.float64, i % 2 == 0)]
        for j, (dtype, last) in enumerate(kinds):
            found[f"{case}, {str(dtype)[6:]}{', channels last' if last else ''}"] = layer(
                case, device, dtype, last, (i + j) % 2 == 0
            )
    for affine in (True, False):
        found[f"network with{'' if affine else 'out'} scales"] = network(
            block(affine), device, (2, 7, 6)
        )
    found["operators"] = operators(device)
    sys.stdout.write(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
