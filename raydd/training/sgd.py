"""One explicit step of training, on one network or a stack of them (recipes: :mod:`raydd.training.recipe`).

A training's whole state is a ``dict[str, Tensor]``, so that it can be checkpointed and resumed to the same bytes:
``params.*``, ``momentum.*`` (AdamW's first moment), ``buffers.*``, and where the recipe asks for them ``second.*`` and
``count`` (AdamW), ``ema.*`` (the parameters' moving average), ``alrs.factor`` and ``alrs.loss``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, vmap
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from raydd.core.captured import recordable
from raydd.core.errors import ConfigError
from raydd.core.tensors import Tensors
from raydd.core.units import Numerics
from raydd.losses.soft import SoftTargets, distillation_kl, mse_gt
from raydd.networks.fused import can_be_fused, fused_call
from raydd.training.optimisers import adamw, corrections, sgd
from raydd.training.precision import cancelled_biases, lower_convolutions
from raydd.training.recipe import Recipe
from raydd.training.stacked import OneByOne

__all__ = [
    "Labels",
    "Recipe",
    "TrainingStep",
    "compiled",
    "forget_momentum",
    "fresh_state",
    "part",
    "stack_states",
    "unstack_state",
    "weights_for_test",
]

Labels = Tensor | SoftTargets
_KINDS = ("params", "momentum", "second", "ema", "buffers")
_OTHERS = ("count", "alrs.factor", "alrs.loss")


def fresh_state(network: nn.Module, recipe: Recipe | None = None) -> Tensors:
    """Return a network's parameters and buffers, and an optimiser's empty memory, as a training's state (copies)."""
    named = dict(network.named_parameters())
    state = {f"params.{name}": p.detach().clone() for name, p in named.items()}
    state |= {f"momentum.{name}": torch.zeros_like(p) for name, p in named.items()}
    state |= {f"buffers.{name}": b.detach().clone() for name, b in network.named_buffers()}
    like = next(iter(named.values())).detach()
    if recipe is not None and recipe.optimizer == "adamw":
        state |= {f"second.{name}": torch.zeros_like(p) for name, p in named.items()}
        state["count"] = torch.zeros((), dtype=torch.int64, device=like.device)
    if recipe is not None and recipe.ema is not None:
        state |= {f"ema.{name}": p.detach().clone() for name, p in named.items()}
    if recipe is not None and recipe.schedule == "alrs":
        state["alrs.factor"], state["alrs.loss"] = like.new_ones(()), like.new_full((), torch.inf)
    return state


def part(state: Mapping[str, Tensor], name: str) -> Tensors:
    """Return one part of a state (``params``, ``momentum``, ``buffers``, …), keyed by the network's own names."""
    return {
        key.removeprefix(f"{name}."): value
        for key, value in state.items()
        if key.startswith(f"{name}.")
    }


def is_trained(name: str) -> bool:
    """Return whether an entry of a state is a step's; others may stand beside them."""
    return name in _OTHERS or name.split(".", 1)[0] in _KINDS


def weights_for_test(state: Mapping[str, Tensor]) -> Tensors:
    """Return ``params.*`` and ``buffers.*`` to test with: the parameters' moving average where
    there is one, live buffers.
    """
    averaged = part(state, "ema")
    params = averaged or part(state, "params")
    return {f"params.{k}": v for k, v in params.items()} | {
        f"buffers.{k}": v for k, v in part(state, "buffers").items()
    }


def forget_momentum(state: Mapping[str, Tensor]) -> Tensors:
    """Return the state with its optimiser's memory at zero, as after a new optimiser was made."""
    memory = ("momentum.", "second.", "count")
    return {key: torch.zeros_like(v) if key.startswith(memory) else v for key, v in state.items()}


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


class TrainingStep:
    """One step of a recipe, ``torch.optim.SGD`` or ``torch.optim.AdamW`` without an object that keeps state.

    Made once for an architecture; ``network`` gives the structure only. ``stacked``: the state, the images and the
    labels have a first dimension ``R`` and ``R`` networks are trained by one call.
    """

    def __init__(
        self, network: nn.Module, numerics: Numerics, recipe: Recipe, *, stacked: bool = False
    ) -> None:
        self.network = lower_convolutions(network) if numerics.precision == "bf16" else network
        self.still = cancelled_biases(network)
        self.recipe, self.stacked = recipe, stacked
        named = network.named_parameters()
        self.decayed = {
            name for name, p in named if recipe.decay == "all" or ("weight" in name and p.dim() > 1)
        }
        self.norms = _running_norms(network) if recipe.double_norm else {}
        gradients = grad_and_value(self._loss, has_aux=True)
        # Eager torch.func takes norms apart for a second derivative that nothing here needs: 11 %
        # slower (ConvNet, CPU).
        alone = gradients if numerics.compile else self._plain_gradients
        self._gradients = vmap(gradients) if stacked else alone
        self._run = compiled(self._update) if numerics.compile else self._update
        device = next(network.parameters()).device
        self._fused, self._precision = (
            network if can_be_fused(network) else None,
            numerics.precision,
        )
        if recordable(device):
            one = (
                self._plain_gradients
                if self._fused is not None or not numerics.compile
                else compiled(gradients)
            )
            self._gradients, self._run = OneByOne(one, device) if stacked else one, self._update

    def __call__(
        self, state: Tensors, images: Tensor, labels: Labels, rate: Tensor
    ) -> tuple[Tensors, Tensor, Tensor]:
        """Return the state after one batch, and the batch's sum of losses and count of correct answers (per network).

        ``images`` float ``[B, C, H, W]`` in network space; ``labels`` int64 ``[B]``, probabilities
        ``[B, classes]``, or the :class:`SoftTargets` that a loss ``mse_gt`` or ``kl`` needs;
        ``rate`` the learning rate, a scalar tensor (so that a change of it compiles nothing anew).
        ``ConfigError`` for labels that are not of the loss's kind.
        """
        self._check(labels)
        self.network.train()
        others = {name: value for name, value in state.items() if name in _OTHERS}
        parts, counted, loss, correct = self._run(
            {kind: part(state, kind) for kind in _KINDS}, others, images, labels, rate
        )
        new = {f"{kind}.{name}": value for kind in _KINDS for name, value in parts[kind].items()}
        return new | counted, loss, correct

    def _check(self, labels: Labels) -> None:
        soft = isinstance(labels, SoftTargets)
        if soft == (self.recipe.loss == "ce"):
            has, needs = (
                ("the logits of teachers", "labels")
                if soft
                else ("labels", "the logits of teachers")
            )
            raise ConfigError(f"loss '{self.recipe.loss}' needs {needs}, and the set has {has}")

    def _distance(self, logits: Tensor, labels: Labels) -> Tensor:
        if isinstance(labels, Tensor):
            return F.cross_entropy(logits, labels)
        if self.recipe.loss == "mse_gt":
            return mse_gt(logits, labels, self.recipe.ce_weight or 0.0)
        return distillation_kl(
            logits,
            labels,
            self.recipe.temperature or 1.0,
            squared=self.recipe.kl_scale == "tau2",
        )

    def _loss(
        self, moving: Tensors, still: Tensors, buffers: Tensors, images: Tensor, labels: Labels
    ) -> tuple[Tensor, tuple[Any, ...]]:
        # Batch norm writes its running statistics in place: into copies, so that the step stays a pure function.
        buffers = {name: value.clone() for name, value in buffers.items()}
        params = {**moving, **still}
        if self._fused is None:
            logits = functional_call(self.network, (params, buffers), (images,)).to(images.dtype)
        else:
            logits = fused_call(self._fused, params, images, self._precision)
        loss = self._distance(logits, labels)
        hard = labels if isinstance(labels, Tensor) else labels.hard
        truth = hard if hard.ndim == 1 else hard.argmax(-1)
        return loss, (buffers, (logits.argmax(-1) == truth).sum(), loss.detach() * len(logits))

    def _plain_gradients(
        self, moving: Tensors, still: Tensors, buffers: Tensors, images: Tensor, labels: Labels
    ) -> tuple[Tensors, tuple[Tensor, tuple[Any, ...]]]:
        with torch.enable_grad():
            leaves = {name: value.detach().requires_grad_(True) for name, value in moving.items()}
            loss, rest = self._loss(leaves, still, buffers, images, labels)
            found = torch.autograd.grad(loss, list(leaves.values()), materialize_grads=True)
        return dict(zip(leaves, found, strict=True)), (loss.detach(), rest)

    def _update(
        self,
        parts: dict[str, Tensors],
        others: Tensors,
        images: Tensor,
        labels: Labels,
        rate: Tensor,
    ) -> tuple[dict[str, Tensors], Tensors, Tensor, Tensor]:
        params, before = parts["params"], parts["buffers"]
        still = {name: params[name] for name in self.still}
        moving = {name: value for name, value in params.items() if name not in self.still}
        gradients, buffers, correct, loss = self._accumulated(moving, still, before, images, labels)
        new: dict[str, Tensors] = {"params": {}, "momentum": {}, "second": {}, "ema": {}}
        new["buffers"] = self._normed_again(before, buffers) if self.norms else buffers
        if self.recipe.optimizer == "adamw":
            self._adamw(parts, gradients, others, rate, new)
            others = others | {"count": others["count"] + 1}
        else:
            self._sgd(parts, gradients, others, rate, new)
        if self.recipe.ema is not None:
            kept = self.recipe.ema
            new["ema"] = {
                name: kept * value + (1 - kept) * new["params"][name]
                for name, value in parts["ema"].items()
            }
        return new, others, loss, correct

    def _accumulated(
        self, moving: Tensors, still: Tensors, buffers: Tensors, images: Tensor, labels: Labels
    ) -> tuple[Tensors, Tensors, Tensor, Tensor]:
        """Return a batch's gradients, buffers, count of correct answers and sum of losses, slice after slice."""
        dim, slices = int(self.stacked), self.recipe.accumulate
        if slices == 1:
            gradients, (_, (buffers, correct, loss)) = self._gradients(
                moving, still, buffers, images, labels
            )
            return gradients, buffers, correct, loss
        found: list[tuple[Tensors, Tensor, Tensor]] = []
        for piece, of_piece in zip(
            images.split(self.recipe.slice, dim),
            _split(labels, self.recipe.slice, dim),
            strict=True,
        ):
            gradients, (_, (buffers, correct, loss)) = self._gradients(
                moving, still, buffers, piece, of_piece
            )
            found.append((gradients, correct, loss))
        names = found[0][0]
        total = {
            name: torch.stack([gradients[name] for gradients, _, _ in found]).sum(0) / slices
            for name in names
        }
        return (
            total,
            buffers,
            torch.stack([c for _, c, _ in found]).sum(0),
            torch.stack([value for _, _, value in found]).sum(0),
        )

    def _sgd(
        self,
        parts: dict[str, Tensors],
        gradients: Tensors,
        others: Tensors,
        rate: Tensor,
        new: dict[str, Tensors],
    ) -> None:
        recipe = self.recipe
        for name, value in parts["params"].items():
            new["params"][name], new["momentum"][name] = sgd(
                value,
                gradients.get(name),
                parts["momentum"][name],
                rate=self._rate(name, value, others, rate),
                beta=recipe.momentum,
                decay=recipe.weight_decay if name in self.decayed else None,
            )

    def _adamw(
        self,
        parts: dict[str, Tensors],
        gradients: Tensors,
        others: Tensors,
        rate: Tensor,
        new: dict[str, Tensors],
    ) -> None:
        recipe, bias = self.recipe, corrections(self.recipe.betas, others["count"])
        for name, value in parts["params"].items():
            new["params"][name], new["momentum"][name], new["second"][name] = adamw(
                value,
                gradients.get(name),
                parts["momentum"][name],
                parts["second"][name],
                rate=self._rate(name, value, others, rate),
                corrections=bias,
                betas=recipe.betas,
                decay=recipe.weight_decay if name in self.decayed else None,
            )

    def _rate(self, name: str, value: Tensor, others: Tensors, rate: Tensor) -> Tensor:
        """Return a parameter's rate; of a stack with ``alrs``, whose networks have their own, ``[R, 1, …]``."""
        factor = others.get("alrs.factor")
        if factor is None or name not in self.decayed:
            return rate
        return (
            (rate * factor)
            .to(value.dtype)
            .reshape([-1] + [1] * (value.dim() - 1) if factor.dim() else [])
        )

    def _normed_again(self, before: Tensors, after: Tensors) -> Tensors:
        """Return the buffers as after a second pass of the same batch: its statistics do not depend
        on the running ones.
        """
        again = dict(after)
        for prefix, momentum in self.norms.items():
            for name in (f"{prefix}running_mean", f"{prefix}running_var"):
                again[name] = after[name] + (1 - momentum) * (after[name] - before[name])
            again[f"{prefix}num_batches_tracked"] = after[f"{prefix}num_batches_tracked"] + 1
        return again


def _split(labels: Labels, size: int, dim: int) -> list[Labels]:
    if isinstance(labels, Tensor):
        return list(labels.split(size, dim))
    return [
        SoftTargets(logits, hard)
        for logits, hard in zip(
            labels.logits.split(size, dim), labels.hard.split(size, dim), strict=True
        )
    ]


def _running_norms(network: nn.Module) -> dict[str, float]:
    """Return the prefix of the names of every batch norm with running statistics, and its momentum."""
    found = {}
    for name, module in network.named_modules():
        if not isinstance(module, _BatchNorm) or module.running_mean is None:
            continue
        if module.momentum is None:
            raise ConfigError(
                f"double_norm needs batch norms with a momentum; '{name}' averages over all batches"
            )
        found[f"{name}." if name else ""] = module.momentum
    return found
