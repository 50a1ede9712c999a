"""What a network costs: floating-point operations and parameters."""

from __future__ import annotations

import torch
from torch import nn

from raydd.networks.network import Shape


def flops(net: nn.Module, shape: Shape) -> int:
    """Return the floating-point operations of one image's forward pass, two per multiply-accumulate.

    Convolutions, linear layers and attention count; norms, activations and poolings do not
    (docs/methods/networks.md, "Sizes"). ``shape`` is ``(C, H, W)``. One small batch is computed;
    weights and statistics stay as they are.
    """
    count = 0

    def convolution(
        module: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor
    ) -> None:
        nonlocal count
        weight = module.weight
        assert isinstance(weight, torch.Tensor)
        count += 2 * output.numel() * weight[0].numel()

    def attention(module: nn.Module, inputs: tuple[torch.Tensor, ...], output: object) -> None:
        nonlocal count
        batch, tokens, width = inputs[0].shape
        count += 4 * batch * tokens * tokens * width

    hooks = []
    for module in net.modules():
        if isinstance(module, (nn.modules.conv._ConvNd, nn.Linear)):
            hooks.append(module.register_forward_hook(convolution))
        elif type(module).__name__ in ("Attention", "MultiheadAttention"):
            hooks.append(module.register_forward_hook(attention))
    training = {module: module.training for module in net.modules()}
    parameter = next(net.parameters(), torch.empty(0))
    try:
        net.eval()  # statistics stay, and one image is enough
        with torch.no_grad():
            net(torch.zeros(1, *shape, dtype=parameter.dtype, device=parameter.device))
    finally:
        for module, mode in training.items():
            module.training = mode
        for hook in hooks:
            hook.remove()
    return count


def parameter_count(net: nn.Module) -> int:
    """Return the number of a network's parameters (buffers not counted)."""
    return sum(p.numel() for p in net.parameters())
