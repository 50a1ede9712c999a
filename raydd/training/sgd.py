"""How a network is trained from scratch: the recipe, and one explicit step of SGD on one network or a stack of them.

A training's whole state is a ``dict[str, Tensor]`` (``params.*``, ``momentum.*``, ``buffers.*``), so that it can be
checkpointed and resumed to the same bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, vmap
from torch.nn import functional as F

from raydd.core.errors import ConfigError
from raydd.core.tensors import Tensors
from raydd.core.units import Numerics
from raydd.training.precision import cancelled_biases, lower_convolutions

PARTS = ("params", "momentum", "buffers")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a network is trained: SGD over shuffled batches, with the last, smaller batch kept.

    ``epochs``: epochs run, all of them. ``drops``: epochs (from 0) before which the rate is multiplied by
    ``drop_factor`` and the momentum is set back to zero (dc_dsa_dm spec, section 3.5). ``weight_decay``: on every
    parameter. ``augmentation``: the family; ``strategy``: its operations, separated by ``_``.
    """

    epochs: int
    batch: int = 256
    lr: float = 0.01
    momentum: float = 0.9
    weight_decay: float = 5e-4
    drops: tuple[int, ...] = ()
    drop_factor: float = 0.1
    augmentation: Literal["none", "dsa", "dc"] = "none"
    strategy: str = ""

    def __post_init__(self) -> None:
        for name, low in (("epochs", 0), ("batch", 1)):
            if getattr(self, name) < low:
                raise ConfigError(f"{name} must be at least {low}, not {getattr(self, name)}")
        if self.augmentation != "none" and not self.strategy:
            raise ConfigError(f"augmentation '{self.augmentation}' needs a strategy: the operations, separated by '_'")

    def rate(self, epoch: int) -> float:
        """Return the learning rate of an epoch."""
        return self.lr * self.drop_factor ** sum(epoch >= drop for drop in self.drops)


def fresh_state(network: nn.Module) -> Tensors:
    """Return a network's parameters and buffers, and momentum of zero, as a training's state (copies)."""
    state = {f"params.{name}": p.detach().clone() for name, p in network.named_parameters()}
    state |= {f"momentum.{name}": torch.zeros_like(p) for name, p in network.named_parameters()}
    return state | {f"buffers.{name}": b.detach().clone() for name, b in network.named_buffers()}


def part(state: Mapping[str, Tensor], name: str) -> Tensors:
    """Return one part of a state (``params``, ``momentum`` or ``buffers``), keyed by the network's own names."""
    return {key.removeprefix(f"{name}."): value for key, value in state.items() if key.startswith(f"{name}.")}


def forget_momentum(state: Mapping[str, Tensor]) -> Tensors:
    """Return the state with its momentum at zero, as after a new optimiser was made."""
    return {key: torch.zeros_like(v) if key.startswith("momentum.") else v for key, v in state.items()}


def stack_states(states: list[Tensors]) -> Tensors:
    """Stack the states of ``R`` networks of one architecture: every tensor gains a first dimension ``R``."""
    return {name: torch.stack([state[name] for state in states]) for name in states[0]}


def unstack_state(state: Mapping[str, Tensor], index: int) -> Tensors:
    """Return the state of one network of a stack (views)."""
    return {name: value[index] for name, value in state.items()}


def compiled(fn: Callable[..., Any]) -> Callable[..., Any]:
    """Return ``fn`` fused by ``torch.compile``, one kernel per input shape; too many shapes are an error.

    By default torch falls back to eager code after eight shapes, with other rounding: what a unit returns would then
    depend on what ran before it in the process. With ``fullgraph`` the limit raises instead.
    """
    from torch._dynamo import config

    config.recompile_limit = max(config.recompile_limit, 512)
    config.accumulated_recompile_limit = max(config.accumulated_recompile_limit, 512)
    return torch.compile(fn, fullgraph=True, dynamic=False)


class SgdStep:
    """One step of SGD, ``torch.optim.SGD`` without an object that keeps state.

    Made once for an architecture; ``network`` gives the structure only. ``stacked``: the state, the images and the
    labels have a first dimension ``R`` and ``R`` networks are trained by one call.
    """

    def __init__(
        self, network: nn.Module, numerics: Numerics, *, momentum: float = 0.9, weight_decay: float = 5e-4, stacked: bool = False
    ) -> None:
        self.network = lower_convolutions(network) if numerics.precision == "bf16" else network
        self.still = cancelled_biases(network)
        self.momentum, self.weight_decay = momentum, weight_decay
        gradients = grad_and_value(self._loss, has_aux=True)
        # Eager torch.func takes norms apart for a second derivative that nothing here needs: 11 % slower (ConvNet, CPU).
        alone = gradients if numerics.compile else self._plain_gradients
        self._gradients = vmap(gradients) if stacked else alone
        self._run = compiled(self._update) if numerics.compile else self._update

    def __call__(self, state: Tensors, images: Tensor, labels: Tensor, rate: Tensor) -> tuple[Tensors, Tensor, Tensor]:
        """Return the state after one batch, and the batch's sum of losses and count of correct answers (per network).

        ``images`` float ``[B, C, H, W]`` in network space, ``labels`` int64 ``[B]`` or probabilities ``[B, classes]``,
        ``rate`` the learning rate, a scalar tensor (so that a change of it compiles nothing anew).
        """
        self.network.train()
        params, momentum, buffers = (part(state, name) for name in PARTS)
        params, momentum, buffers, loss, correct = self._run(params, momentum, buffers, images, labels, rate)
        new = {f"params.{k}": v for k, v in params.items()} | {f"momentum.{k}": v for k, v in momentum.items()}
        return new | {f"buffers.{k}": v for k, v in buffers.items()}, loss, correct

    def _loss(self, moving: Tensors, still: Tensors, buffers: Tensors, images: Tensor, labels: Tensor) -> tuple[Tensor, tuple[Any, ...]]:
        # Batch norm writes its running statistics in place: into copies, so that the step stays a pure function.
        buffers = {name: value.clone() for name, value in buffers.items()}
        logits = functional_call(self.network, ({**moving, **still}, buffers), (images,)).to(images.dtype)
        loss = F.cross_entropy(logits, labels)
        truth = labels if labels.ndim == 1 else labels.argmax(-1)
        return loss, (buffers, (logits.argmax(-1) == truth).sum(), logits.new_tensor(len(logits)) * loss.detach())

    def _plain_gradients(
        self, moving: Tensors, still: Tensors, buffers: Tensors, images: Tensor, labels: Tensor
    ) -> tuple[Tensors, tuple[Tensor, tuple[Any, ...]]]:
        with torch.enable_grad():
            leaves = {name: value.detach().requires_grad_(True) for name, value in moving.items()}
            loss, rest = self._loss(leaves, still, buffers, images, labels)
            found = torch.autograd.grad(loss, list(leaves.values()), materialize_grads=True)
        return dict(zip(leaves, found, strict=True)), (loss.detach(), rest)

    def _update(
        self, params: Tensors, momentum: Tensors, buffers: Tensors, images: Tensor, labels: Tensor, rate: Tensor
    ) -> tuple[Any, ...]:
        still = {name: params[name] for name in self.still}
        moving = {name: value for name, value in params.items() if name not in self.still}
        gradients, (_, (buffers, correct, loss)) = self._gradients(moving, still, buffers, images, labels)
        new_params, new_momentum = {}, {}
        for name, value in params.items():
            decay = self.weight_decay * value
            direction = gradients[name] + decay if name in gradients else decay
            new_momentum[name] = self.momentum * momentum[name] + direction
            new_params[name] = value - rate * new_momentum[name]
        return new_params, new_momentum, buffers, loss, correct
