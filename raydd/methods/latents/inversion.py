"""Latents of real images: those of which a frozen generator makes images most like them (docs/methods/itgan.md,
"Inversion").

Each latent has a loss, and a start, of its own, so that it is the same whichever others it is found with.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from raydd.artifacts.generated import Generated
from raydd.core.tensors import Tensors
from raydd.core.units import Context, Cost, Ref
from raydd.data.memory import normalise
from raydd.methods.latents import adam
from raydd.methods.latents.latent_rows import GENERATOR, LatentStage
from raydd.networks.fast import fast_embed
from raydd.training.train_network import TrainNetwork, restore_network


class InversionWeights(NamedTuple):
    """What the parts of an inversion's loss count."""

    feature: float
    pixel: float
    penalty: float


class Errors(NamedTuple):
    """The parts of an inversion's loss, of each latent ``[n]``: mean squares over features, pixels, the latent."""

    feature: Tensor
    pixel: Tensor
    size: Tensor

    def weighted(self, weights: InversionWeights) -> Tensor:
        """Return the loss of each latent."""
        return (
            weights.feature * self.feature
            + weights.pixel * self.pixel
            + weights.penalty * self.size
        )


class Goal(NamedTuple):
    """What latents are inverted to: real images in network space, their features ``[n, d]``, their labels."""

    images: Tensor
    features: Tensor
    labels: Tensor


def errors(
    z: Tensor, goal: Goal, weights: Tensors, decoder: Generated, embed: Callable[[Tensor], Tensor]
) -> Errors:
    """Return the errors of latents ``[n, dim_z]``; ``weights``: the generator's, as the decoder reads them."""
    made = decoder.take({"images": z, "labels": goal.labels, **weights})
    feature = (embed(made) - goal.features).square().mean(1)
    return Errors(feature, (made - goal.images).square().flatten(1).mean(1), z.square().mean(1))


def inverted(
    state: Tensors,
    count: int,
    goal: Goal,
    weights: Tensors,
    decoder: Generated,
    embed: Callable[[Tensor], Tensor],
    lr: float,
    parts: InversionWeights,
) -> tuple[Tensors, Errors]:
    """Return latents and moments after Adam's update number ``count``, from 1, and the errors before it."""
    with torch.enable_grad():
        z = state["z"].detach().requires_grad_(True)
        found = errors(z, goal, weights, decoder, embed)
        (gradient,) = torch.autograd.grad(found.weighted(parts).sum(), z)
    return adam.stepped(state, gradient, lr, count), Errors(*(part.detach() for part in found))


@dataclass(frozen=True, kw_only=True)
class Invert(LatentStage):
    """Find a latent for each real image, by Adam from a normal start; a unit is a block of images of a class.

    ``teacher``: a stage of one network, whose features are compared. ``iterations``: updates, none
    for latents as they start. ``lr``: Adam's. ``feature_weight``, ``pixel_weight``: of the mean
    squared difference of features and of pixels in network space; ``z_penalty``: of the latent's
    mean square. ``block``: images of a unit.

    Output: ``z`` float32 ``[n, dim_z]``, ``ids`` of the real images, and after updates
    ``feature_error``, ``pixel_error`` ``[n]``.
    """

    phase: ClassVar[str] = "init"

    teacher: TrainNetwork
    iterations: int
    lr: float
    feature_weight: float
    pixel_weight: float
    z_penalty: float
    block: int

    @property
    def size(self) -> int:
        """Images of a unit at most."""
        return self.block

    def inputs(self, unit: str) -> Mapping[str, Ref]:
        """Return the generator and the network, where they are needed, and what chose the images."""
        found = self.picked(self.parts[unit])
        if not self.iterations:
            return found
        teacher = Ref(self.teacher, self.teacher.units()[0])
        return {GENERATOR: Ref(self.generator, GENERATOR), "teacher": teacher, **found}

    def steps(self, unit: str) -> int:
        """Return the number of updates."""
        return self.iterations

    def cost(self, unit: str) -> Cost:
        """Return the cost of a block: forward and derivative of the generator and of the network."""
        from raydd.training.training_cost import network_facts

        facts = network_facts(self.teacher.network, self.dataset.shape, self.dataset.classes)
        sizes, count = self.generator.sizes, len(self.parts[unit])
        state = 4 * 3 * sizes.dim_z * count
        return Cost(
            flop=2.0 * (sizes.generator_flop + facts.flop) * count * self.iterations,
            peak_bytes=state
            + 4 * (sizes.numbers + facts.parameters)
            + 4 * count * (sizes.generator_activations + facts.activations + 3 * self.pixels),
            state_bytes=state,
            output_bytes=(4 * sizes.dim_z + 16) * count,
        )

    def init(self, unit: str, ctx: Context) -> Tensors:
        """Return normal latents, each drawn by its image's index, and zero moments."""
        size = self.generator.sizes.dim_z
        rows = [
            torch.randn(size, generator=ctx.rng("latent", image))
            for image in self.ids(unit, ctx).tolist()
        ]
        return adam.fresh(torch.stack(rows).to(ctx.device))

    def step(self, unit: str, state: Tensors, t: int, ctx: Context) -> Tensors:
        """Return the state after an update."""
        embed, goal = self._embed(ctx), self._goal(unit, ctx)
        parts = InversionWeights(self.feature_weight, self.pixel_weight, self.z_penalty)
        new, found = inverted(
            state, t + 1, goal, self.weights(ctx), self.decoder, embed, self.lr, parts
        )
        ctx.log(
            t,
            loss=found.weighted(parts).mean(),
            feature_error=found.feature.mean(),
            pixel_error=found.pixel.mean(),
        )
        return new

    def finish(self, unit: str, state: Tensors, ctx: Context) -> Tensors:
        """Return the latents and how far their images are from the real ones."""
        output = {"z": state["z"], "ids": self.ids(unit, ctx)}
        if not self.iterations:
            return output
        with torch.no_grad():
            found = errors(
                state["z"], self._goal(unit, ctx), self.weights(ctx), self.decoder, self._embed(ctx)
            )
        return output | {"feature_error": found.feature, "pixel_error": found.pixel}

    def _embed(self, ctx: Context) -> Callable[[Tensor], Tensor]:
        def make() -> Callable[[Tensor], Tensor]:
            weights = ctx.load("teacher")
            network = restore_network(self.teacher.network, self.dataset, weights, ctx.device)
            # bf16 is for sides without a gradient.
            return fast_embed(network, self.numerics.full)

        key = Ref(self.teacher, self.teacher.units()[0]).key
        return ctx.cached(("features to invert", key), make)

    def _goal(self, unit: str, ctx: Context) -> Goal:
        def make() -> Goal:
            info, ids = self.dataset, self.ids(unit, ctx)
            images = normalise(ctx.data["train"].take(ids).to(ctx.device), info.mean, info.std)
            with torch.no_grad():
                features = self._embed(ctx)(images)
            labels = torch.full((len(ids),), self.parts[unit].label, device=ctx.device)
            return Goal(images, features, labels)

        return ctx.cached(("goal", self, unit), make)
