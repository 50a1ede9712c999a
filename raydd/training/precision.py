"""Convolutions in bfloat16, and the conv biases that a norm right behind them cancels."""

from __future__ import annotations

import copy
import logging
import math
from typing import Any

import torch
from torch import Tensor, nn

log = logging.getLogger(__name__)


class LowConv2d(nn.Conv2d):
    """A convolution computed in bfloat16; parameters, input and output keep their type."""

    def forward(self, input: Tensor) -> Tensor:
        """Return the convolution of ``input [B, C, H, W]`` in the input's type."""
        bias = None if self.bias is None else self.bias.to(torch.bfloat16)
        return self._conv_forward(
            input.to(torch.bfloat16), self.weight.to(torch.bfloat16), bias
        ).to(input.dtype)


def lower_convolutions(network: nn.Module) -> nn.Module:
    """Return a copy of a network whose convolutions run in bfloat16; names of parameters stay the same."""
    network = copy.deepcopy(network)
    for module in network.modules():
        if isinstance(module, nn.Conv2d) and type(module).forward is nn.Conv2d.forward:
            module.__class__ = LowConv2d
    return network


def _takes_mean_away(node: Any) -> bool:
    """Return whether a node of the autograd graph is a norm that centres every channel of every image or batch."""
    kind = type(node).__name__
    if kind == "NativeGroupNormBackward0":
        return bool(node._saved_group == node._saved_C)
    return kind == "NativeBatchNormBackward0"


def warn_of_slow_bf16(device: torch.device) -> bool:
    """Return, and log, whether bfloat16 would cost time on this device: an x86 processor that only emulates it.

    Measured on one (AVX-512 without its bf16 part): a student's step takes 2.3 times as long as in fp32.
    """
    if device.type != "cpu":
        return False
    facts = torch.cpu.get_capabilities()
    slow = facts.get("architecture") == "x86_64" and not (
        facts.get("avx512_bf16") or facts.get("amx_bf16")
    )
    if slow:
        log.warning(
            "numerics.precision=bf16: %s has no bfloat16 instructions, fp32 is faster",
            facts.get("cpu_name", "this processor"),
        )
    return slow


def cancelled_biases(network: nn.Module) -> tuple[str, ...]:
    """Return the names of conv biases whose gradient is zero in training, since a norm takes each channel's mean away.

    True of a convolution whose output goes to one place only: an instance norm (also a group norm
    of as many groups as channels), or a batch norm in train mode. Read from the autograd graph of
    one forward pass of a copy (``torch.fx`` would patch modules for all threads of the process).
    Empty where the network does not say its images' ``shape``.
    """
    shape = getattr(network, "shape", None)
    if shape is None:
        return ()
    probe = copy.deepcopy(network).cpu().float().eval().requires_grad_(True)
    for module in probe.modules():
        if isinstance(module, nn.modules.batchnorm._NormBase):
            module.train()
    with torch.enable_grad():
        output = probe(torch.linspace(-1, 1, 2 * math.prod(shape)).view(2, *shape))
    names = {id(parameter): name for name, parameter in probe.named_parameters()}
    readers: dict[Any, list[Any]] = {}
    frontier, order = [output.grad_fn], []
    while frontier:
        node = frontier.pop()
        order.append(node)
        for below, _ in node.next_functions:
            if below is not None:
                readers.setdefault(below, []).append(node)
                if len(readers[below]) == 1:
                    frontier.append(below)
    found = set()
    for node in order:
        if (
            type(node).__name__ == "ConvolutionBackward0"
            and len(readers.get(node, ())) == 1
            and _takes_mean_away(readers[node][0])
        ):
            found |= {
                names[id(below.variable)]
                for below, _ in node.next_functions[2:3]
                if below is not None
            }
    return tuple(name for name in names.values() if name in found)
