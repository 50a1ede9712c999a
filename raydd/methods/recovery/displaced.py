"""Recovery against networks whose weights were pushed uphill on the images that a group starts from
(docs/methods/dwa_infer.md, "The displacement").
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from raydd.augment.crop import Crops
from raydd.core.errors import ConfigError
from raydd.core.tensors import Tensors
from raydd.core.units import Context, Cost
from raydd.methods.recovery.recover import MatchStatistics
from raydd.methods.recovery.recover_groups import Group
from raydd.methods.recovery.recover_objective import ObservedTeacher
from raydd.methods.recovery.recover_parts import parts_of
from raydd.training.training_cost import network_facts

EPS = 1e-12


@dataclass(frozen=True, kw_only=True)
class DwaCompat:
    """Side effects of the published code.

    ``leak_image_grad``: the first update of the images follows the gradients of the ascent's steps,
    too. ``carry_theta``: a group's ascent starts from the weights that the group before it left
    (same images' number; one GPU's order of the original). ``leak_param_grad``: its first step
    follows the sum of all weight gradients of that group's updates, too. The last two concern
    groups of one unit, so that all groups of an images' number must be in one.
    """

    leak_image_grad: bool = False
    carry_theta: bool = False
    leak_param_grad: bool = False

    @property
    def chained(self) -> bool:
        """Whether a group depends on the one before."""
        return self.carry_theta or self.leak_param_grad


def climb(
    network: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    rho: float,
    steps: int,
    see: Callable[[Tensor], Tensor],
    leaked: Tensor | None = None,
    parts: int = 1,
) -> Tensor:
    """Move a network's parameters, in place, by ``rho`` uphill in the mean cross entropy of images, in ``steps`` equal
    steps along the normalised gradient; return the sum of the images' gradients ``[N, C, H, W]`` on the way.

    ``see``: images to their view. ``leaked``: a vector that is added to the first step's gradient.
    ``parts``: that images go through the network in.
    """
    parameters = list(network.parameters())
    shown = images.detach().requires_grad_(True)
    total = torch.zeros_like(images)
    for step in range(steps):
        flat = torch.zeros(())
        for share, at in parts_of(len(images), parts):
            loss = share * cross_entropy(network(see(shown[at])), labels[at])
            own, *gradients = torch.autograd.grad(
                loss, (shown, *parameters), materialize_grads=True
            )
            total = total + own
            flat = flat.to(own) + torch.cat([gradient.flatten() for gradient in gradients])
        if step == 0 and leaked is not None:
            flat = flat + leaked
        moved = parameters_to_vector(parameters).detach() + flat * (
            rho / steps / (flat.norm() + EPS)
        )
        with torch.no_grad():
            vector_to_parameters(moved, parameters)
    return total


@dataclass(frozen=True, kw_only=True)
class MatchDisplaced(MatchStatistics):
    """Recover images as :class:`MatchStatistics` does, against networks displaced for each group.

    A group's networks are moved by ``rho`` in ``ascent_steps`` steps on its start images, seen as
    at the network's first turn. Groups of a unit run one after another. Displaced weights are a
    function of the start images and are computed again where a unit goes on; only with
    ``compat.leak_param_grad`` they are of the state: ``weights.<k>``, and ``leaked.<k>``, the sum
    of weight gradients so far.
    """

    phase: ClassVar[str] = "recover"
    version: ClassVar[int] = 1

    rho: float
    ascent_steps: int
    compat: DwaCompat = field(default_factory=DwaCompat)

    def __post_init__(self) -> None:
        whole = -(-self.dataset.classes // self.grouping.group_size)
        if self.compat.chained and self.grouping.groups_per_unit % whole:
            raise ConfigError(
                f"compat.carry_theta and compat.leak_param_grad join the groups of an image of every class, here"
                f" {whole}: groups_per_unit={self.grouping.groups_per_unit} must be a multiple of it"
            )

    @property
    def chained(self) -> bool:
        """Groups run one after another: each has networks of its own."""
        return True

    def network_of(self, t: int) -> int:
        """Return which network has its turn: every group begins with the first."""
        return t % self.iterations % len(self.backbones)

    def cost(self, unit: str) -> Cost:
        """Return the cost: with the ascent's passes, and a copy of the largest network with its gradient."""
        cost, info = super().cost(unit), self.dataset
        facts = [network_facts(b.network, info.shape, b.dataset.classes) for b in self.backbones]
        count = sum(len(group.positions) for group in self.groups_of[unit])
        weights = 4 * sum(f.parameters for f in facts)
        kept = 2 * weights if self.compat.leak_param_grad else 0
        passes = 3 * self.ascent_steps + (self.iterations if self.compat.leak_param_grad else 0)
        return replace(
            cost,
            flop=cost.flop + passes * count * sum(f.flop for f in facts),
            peak_bytes=cost.peak_bytes + 3 * weights + 2 * kept,
            state_bytes=cost.state_bytes + kept,
        )

    def init(self, unit: str, ctx: Context) -> Tensors:
        """Return the start images and moments of zero; the networks' weights where they are of the state."""
        state = super().init(unit, ctx)
        if self.compat.leak_param_grad:
            for k in range(len(self.backbones)):
                weights = parameters_to_vector(self.teacher(k, ctx).tap.network.parameters())
                state[f"weights.{k}"] = weights.detach().clone()
                state[f"leaked.{k}"] = torch.zeros_like(weights)
        return state

    def step(self, unit: str, state: Tensors, t: int, ctx: Context) -> Tensors:
        """Return the state after one update of the group whose turn it is, after its ascent if it is
        a network's first.
        """
        k, turn, more = self.network_of(t), self._turn(unit, t), None
        first = t % self.iterations == k
        if first and (self.compat.leak_param_grad or self.compat.leak_image_grad):
            teacher, image_gradient = self._displaced(k, unit, turn.start, state, ctx)
            more = image_gradient if self.compat.leak_image_grad else None
            if self.compat.leak_param_grad:
                weights = parameters_to_vector(teacher.tap.network.parameters()).detach()
                state = {
                    **state,
                    f"weights.{k}": weights,
                    f"leaked.{k}": torch.zeros_like(weights),
                }
        return self.updated(unit, state, t, ctx, more)

    def teacher_at(
        self, k: int, unit: str, turn: slice, state: Tensors, ctx: Context
    ) -> ObservedTeacher:
        """Return network ``k`` as it is displaced for a group."""
        if not self.compat.leak_param_grad:
            teacher = self._displaced(k, unit, turn.start, state, ctx)[0]
            teacher.tap.network.requires_grad_(False)
            return teacher
        teacher = self.observed(k, ctx, own=True)
        parameters = teacher.tap.network.requires_grad_(True).parameters()
        with torch.no_grad():
            vector_to_parameters(state[f"weights.{k}"].clone(), parameters)
        return teacher

    def _displaced(
        self, k: int, unit: str, index: int, state: Tensors, ctx: Context
    ) -> tuple[ObservedTeacher, Tensor]:
        """Return network ``k`` after the ascent of a unit's group ``index``, and the images' gradient on the way.

        ``state``: the unit's before the group's first update against it; it counts for ``leak_param_grad`` alone.
        """
        teacher = self.observed(k, ctx, own=True)
        network = teacher.tap.network.requires_grad_(True)
        groups, leaked = self._chain(unit, index), None
        if self.compat.leak_param_grad and len(groups) > 1:
            leaked = state[f"leaked.{k}"]
            if self.compat.carry_theta:
                with torch.no_grad():
                    vector_to_parameters(state[f"weights.{k}"].clone(), network.parameters())
        if self.compat.leak_param_grad or not self.compat.carry_theta:
            groups = groups[-1:]
        gradients = [self._ascend(k, network, group, leaked, ctx) for group in groups]
        return teacher, gradients[-1]

    def _chain(self, unit: str, index: int) -> tuple[Group, ...]:
        """Return a unit's group ``index`` after those that have the same number of image before it."""
        groups = self.groups_of[unit][: index + 1]
        number = groups[-1].positions[0] % self.ipc
        return tuple(group for group in groups if group.positions[0] % self.ipc == number)

    def _ascend(
        self, k: int, network: nn.Module, group: Group, leaked: Tensor | None, ctx: Context
    ) -> Tensor:
        drawn = self.crops((group,), k, ctx)
        crops = Crops(drawn["rows"], drawn["columns"]) if drawn else None
        return climb(
            network,
            self.start((group,), ctx),
            torch.tensor(group.labels(self.ipc), device=ctx.device),
            rho=self.rho,
            steps=self.ascent_steps,
            see=crops.apply if crops is not None else lambda images: images,
            leaked=leaked,
            parts=self.parts,
        )
