"""Convolutions in bfloat16, and the conv biases that a norm right behind them cancels."""

from __future__ import annotations

import copy
import logging

import torch
from torch import Tensor, fx, nn

log = logging.getLogger(__name__)


class LowConv2d(nn.Conv2d):
    """A convolution computed in bfloat16; parameters, input and output keep their type."""

    def forward(self, input: Tensor) -> Tensor:
        """Return the convolution of ``input [B, C, H, W]`` in the input's type."""
        bias = None if self.bias is None else self.bias.to(torch.bfloat16)
        return self._conv_forward(input.to(torch.bfloat16), self.weight.to(torch.bfloat16), bias).to(input.dtype)


def lower_convolutions(network: nn.Module) -> nn.Module:
    """Return a copy of a network whose convolutions run in bfloat16; names of parameters stay the same."""
    network = copy.deepcopy(network)
    for module in network.modules():
        if isinstance(module, nn.Conv2d) and type(module).forward is nn.Conv2d.forward:
            module.__class__ = LowConv2d
    return network


def _takes_mean_away(module: nn.Module) -> bool:
    if isinstance(module, nn.GroupNorm):
        return module.num_groups == module.num_channels
    return isinstance(module, (nn.BatchNorm2d, nn.InstanceNorm2d))


def warn_of_slow_bf16(device: torch.device) -> bool:
    """Return, and log, whether bfloat16 would cost time on this device: an x86 processor that only emulates it.

    Measured on one (AVX-512 without its bf16 part): a student's step takes 2.3 times as long as in fp32.
    """
    if device.type != "cpu":
        return False
    facts = torch.cpu.get_capabilities()
    slow = facts.get("architecture") == "x86_64" and not (facts.get("avx512_bf16") or facts.get("amx_bf16"))
    if slow:
        log.warning("numerics.precision=bf16: %s has no bfloat16 instructions, fp32 is faster", facts.get("cpu_name", "this processor"))
    return slow


class _LayerTracer(fx.Tracer):
    """Traces a network down to its layers."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return not any(True for _ in m.children())


def cancelled_biases(network: nn.Module) -> tuple[str, ...]:
    """Return the names of conv biases whose gradient is zero in training, since a norm takes each channel's mean away.

    True of a convolution whose output goes to one place only: an instance norm (also a group norm of as many groups as
    channels), or a batch norm in train mode. Empty where the network cannot be traced.
    """
    try:
        graph = _LayerTracer().trace(network)
    except Exception as error:  # noqa: BLE001 - tracing runs the network's own code; without a trace nothing is left out
        log.debug("no trace of %s: %s", type(network).__name__, error)
        return ()
    modules = dict(network.named_modules())
    found = []
    for node in graph.nodes:
        conv = modules.get(str(node.target)) if node.op == "call_module" else None
        if not isinstance(conv, nn.Conv2d) or conv.bias is None or len(node.users) != 1:
            continue
        user = next(iter(node.users))
        if user.op == "call_module" and _takes_mean_away(modules[str(user.target)]):
            found.append(f"{node.target}.bias")
    return tuple(found)
