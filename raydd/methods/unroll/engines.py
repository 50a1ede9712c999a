"""Meta-gradients: how a loss behind an unroll depends on the distilled images and targets.

    L(theta_T),  theta_{t+1} = step(theta_t, grad_theta CE(net(theta_t, x_t), y_t)),  t in the window

``graph`` records the window by autograd and differentiates the record: the definition, whose memory
grows with the window by a whole graph per step. ``adjoint`` keeps the weights, the optimiser's
memory and the gradient of each step, and goes back step by step with the optimiser's adjoint
written out; what is left to autograd is one Hessian-vector product of one batch, so that memory
grows with the window by parameters only. Worked out in docs/methods/rat_bptt_podd.md, "The adjoint".
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.func import grad, grad_and_value
from torch.nn import functional as F

from raydd.methods.unroll.inner_steps import InnerOptimizer, Moments, StepNumber
from raydd.methods.unroll.weight_vector import WeightVector
from raydd.training.sgd import compiled

Engine = Literal["adjoint", "graph"]
Augmented = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class InnerBatch:
    """The batch of one inner step: ``ids`` int64 ``[B]``, each once, and how its images are ``augmented``."""

    ids: Tensor
    augmented: Augmented


@dataclass(frozen=True)
class UnrollPlan:
    """All that is drawn for one unroll: the fresh network's ``weights`` ``[P]``, the ``batches`` of its inner
    steps, and how many of these, at the beginning, are ``warmup`` and not differentiated.
    """

    weights: Tensor
    batches: Sequence[InnerBatch]
    warmup: int

    def number(self, step: int) -> StepNumber:
        """Return the number of the step with this index."""
        return StepNumber(step + 1, step >= self.warmup, self.warmup > 0)


class MetaGradient(NamedTuple):
    """``loss`` behind the unroll; its derivatives in all images ``[M, C, H, W]`` and in all targets
    (``None``, if these are classes); mean losses of the window's inner steps ``[T]``.
    """

    loss: Tensor
    of_images: Tensor
    of_targets: Tensor | None
    inner: Tensor


OuterLoss = Callable[[Tensor], tuple[Tensor, Tensor]]
"""``outer(theta [P])`` returns a loss and its derivative ``[P]``."""


def mean_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the mean of ``-log softmax(z)_y``, or with soft targets ``[B, C]`` of ``-sum_c y_c log softmax(z)_c``."""
    logs = F.log_softmax(logits, 1)
    if targets.is_floating_point():
        return -(targets * logs).sum(1).mean()
    return -logs.gather(1, targets.unsqueeze(1)).mean()


class Unroller:
    """Makes meta-gradients for one architecture and one inner optimiser; ``compile``: by compiled pieces."""

    def __init__(
        self, network: WeightVector, optimizer: InnerOptimizer, *, compile: bool = False
    ) -> None:
        self.network, self.optimizer = network, optimizer
        self._gradient: Callable[..., tuple[Tensor, Tensor]] = self._inner_gradient
        self._product: Callable[..., tuple[Tensor, ...]] = self._hessian_product
        if compile:
            if network.twin is not network.network:
                raise TypeError("compiled second derivatives need WeightVector(..., compile=True)")
            self._gradient = compiled(self._func_gradient)
            self._product = compiled(self._func_product)

    def gradient(
        self, engine: Engine, plan: UnrollPlan, images: Tensor, targets: Tensor, outer: OuterLoss
    ) -> MetaGradient:
        """Return the meta-gradient of ``outer`` in ``images [M, C, H, W]`` and ``targets``."""
        images, targets = images.detach(), targets.detach()
        weights, moments = self.warm_up(plan, images, targets)
        run = self._by_graph if engine == "graph" else self._by_adjoint
        return run(plan, weights, moments, images, targets, outer)

    def warm_up(self, plan: UnrollPlan, images: Tensor, targets: Tensor) -> tuple[Tensor, Moments]:
        """Return weights and optimiser's memory at the beginning of the window."""
        weights, moments = plan.weights, self.optimizer.fresh(plan.weights)
        for step, batch in enumerate(plan.batches[: plan.warmup]):
            ids = batch.ids.to(images.device)
            found, _ = self._gradient(weights, batch.augmented(images[ids]), targets[ids])
            weights, moments = self.optimizer.update(weights, moments, found, plan.number(step))
        return weights, moments

    def loss_and_gradient(
        self, weights: Tensor, images: Tensor, labels: Tensor, chunk: int
    ) -> tuple[Tensor, Tensor]:
        """Return the mean cross entropy of a batch and its derivative ``[P]``, ``chunk`` images at once."""
        loss, total = images.new_zeros(()), torch.zeros_like(weights)
        for part, of_part in zip(images.split(chunk), labels.split(chunk), strict=True):
            found, value = self._gradient(weights, part, of_part)
            share = len(part) / len(images)
            loss, total = loss + share * value, total + share * found
        return loss, total

    # -- the definition ----------------------------------------------------------------------------

    def _by_graph(
        self,
        plan: UnrollPlan,
        weights: Tensor,
        moments: Moments,
        images: Tensor,
        targets: Tensor,
        outer: OuterLoss,
    ) -> MetaGradient:
        soft, inner = targets.is_floating_point(), []
        leaves = [of.requires_grad_(True) for of in (images, targets)[: 1 + soft]]
        with torch.enable_grad():
            weights = weights.detach().requires_grad_(True)
            for step in range(plan.warmup, len(plan.batches)):
                batch = plan.batches[step]
                ids = batch.ids.to(images.device)
                loss = self._loss(weights, batch.augmented(images[ids]), targets[ids])
                (found,) = torch.autograd.grad(loss, weights, create_graph=True)
                weights, moments = self.optimizer.update(weights, moments, found, plan.number(step))
                inner.append(loss.detach())
            value, of_weights = outer(weights.detach())
            derivatives = torch.autograd.grad(weights, leaves, of_weights)
        return MetaGradient(
            value, derivatives[0], derivatives[1] if soft else None, torch.stack(inner)
        )

    # -- the adjoint -------------------------------------------------------------------------------

    def _by_adjoint(
        self,
        plan: UnrollPlan,
        weights: Tensor,
        moments: Moments,
        images: Tensor,
        targets: Tensor,
        outer: OuterLoss,
    ) -> MetaGradient:
        soft, inner = targets.is_floating_point(), []
        kept: list[tuple[Tensor, Tensor, Moments]] = []
        for step in range(plan.warmup, len(plan.batches)):
            batch = plan.batches[step]
            ids = batch.ids.to(images.device)
            found, loss = self._gradient(weights, batch.augmented(images[ids]), targets[ids])
            before = weights
            weights, moments = self.optimizer.update(weights, moments, found, plan.number(step))
            kept.append((before, found, moments))
            inner.append(loss)
        value, of_weights = outer(weights)
        of_moments = self.optimizer.fresh(weights)
        of_images = torch.zeros_like(images)
        of_targets = torch.zeros_like(targets) if soft else None
        for step in reversed(range(plan.warmup, len(plan.batches))):
            batch = plan.batches[step]
            ids = batch.ids.to(images.device)
            before, found, after = kept.pop()
            of_gradient, of_weights, of_moments = self.optimizer.pull(
                of_weights, of_moments, after, found, plan.number(step)
            )
            with torch.enable_grad():
                leaf = images[ids].requires_grad_(True)
                seen = batch.augmented(leaf)
            parts = self._product(before, seen.detach(), targets[ids], of_gradient)
            of_weights = of_weights + parts[0]
            # Ids of a batch differ, so rows are added to once.
            of_images[ids] += torch.autograd.grad(seen, leaf, parts[1])[0]
            if of_targets is not None:
                of_targets[ids] += parts[2]
        return MetaGradient(value, of_images, of_targets, torch.stack(inner))

    # -- one batch ---------------------------------------------------------------------------------

    def _loss(self, weights: Tensor, images: Tensor, targets: Tensor) -> Tensor:
        return mean_cross_entropy(self.network.twice(weights, images), targets)

    def _inner_gradient(
        self, weights: Tensor, images: Tensor, targets: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the inner loss's gradient ``[P]``, and the loss; nothing of it can be differentiated."""
        with torch.enable_grad():
            leaf = weights.detach().requires_grad_(True)
            loss = mean_cross_entropy(self.network.once(leaf, images.detach()), targets.detach())
            (found,) = torch.autograd.grad(loss, leaf)
        return found, loss.detach()

    def _hessian_product(
        self, weights: Tensor, images: Tensor, targets: Tensor, along: Tensor
    ) -> tuple[Tensor, ...]:
        """Return the derivatives of ``<grad_theta loss, along>`` in weights, images and soft targets."""
        with torch.enable_grad():
            leaves = [weights.detach().requires_grad_(True), images.detach().requires_grad_(True)]
            targets = targets.detach()
            if targets.is_floating_point():
                leaves.append(targets.requires_grad_(True))
            loss = self._loss(leaves[0], leaves[1], targets)
            (found,) = torch.autograd.grad(loss, leaves[0], create_graph=True)
            return torch.autograd.grad(found, leaves, along)

    def _func_gradient(
        self, weights: Tensor, images: Tensor, targets: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return what :meth:`_inner_gradient` does, in the form that can be compiled."""

        def loss(theta: Tensor) -> Tensor:
            return mean_cross_entropy(self.network.once(theta, images), targets)

        return grad_and_value(loss)(weights)

    def _func_product(
        self, weights: Tensor, images: Tensor, targets: Tensor, along: Tensor
    ) -> tuple[Tensor, ...]:
        """Return what :meth:`_hessian_product` does, in the form that can be compiled."""
        which = (0, 1, 2) if targets.is_floating_point() else (0, 1)

        def loss(theta: Tensor, x: Tensor, y: Tensor) -> Tensor:
            return mean_cross_entropy(self.network.twice(theta, x), y)

        def slope(theta: Tensor, x: Tensor, y: Tensor) -> Tensor:
            return torch.dot(grad(loss)(theta, x, y), along)

        return grad(slope, argnums=which)(weights, images, targets)
