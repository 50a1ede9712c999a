"""What methods share that move images until a network embeds them as it embeds real ones: DM and its descendants.

An update takes one network, embeds a batch of real images of each class and what is seen of the
class's synthetic ones, under one transform for both, and moves the images down the gradient of an
objective of the features. Which network, what is seen, the objective and the move are a method's:

======================================  ============================================================
:meth:`EmbeddingMatching.networks`      the network of update ``t``
:meth:`EmbeddingMatching.images_of`     the images that are seen of those that move
:meth:`EmbeddingMatching.moments`       what is kept of real features
:meth:`EmbeddingMatching.objective`     what is minimised
:meth:`EmbeddingMatching.ready`         where the gradient is taken
:meth:`EmbeddingMatching.move`          the state after an update
======================================  ============================================================
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from raydd.augment.dsa import apply_classes, parse_strategy
from raydd.augment.table import TransformTable, spread
from raydd.core.captured import Captured, recordable
from raydd.core.tensors import Tensors
from raydd.core.units import Context, Cost
from raydd.data.catalog import DatasetInfo
from raydd.data.memory import normalise
from raydd.methods.matching.class_matching import ClassMatching, Draws, augmented, classes_together
from raydd.networks import Network, create_network, is_per_sample
from raydd.networks.fast import fast_embed
from raydd.networks.flat import fill_

Moments = tuple[Tensor, ...]
Known = tuple[Tensor, ...]


class Side(NamedTuple):
    """What an update computes with beside its state.

    ``network`` holds the update's weights; ``embed`` is its features, quick; ``facts``: what
    :meth:`EmbeddingMatching.facts` returned; ``known``: what is known of the network.
    """

    network: Network
    embed: Callable[[Tensor], Tensor]
    facts: Any
    known: Known


@dataclass(frozen=True, kw_only=True)
class EmbeddingMatching(ClassMatching):
    """A loop of updates against one network each; a unit is a block of classes, its state their
    images and momentum ``[K * ipc, C, H, W]``.
    """

    network: str
    iterations: int
    lr_img: float
    momentum: float

    real_chunk: ClassVar[int | None] = None
    """Real images that go through the network at once (null: all of a class's)."""

    # -- what a method says ------------------------------------------------------------------------------------------

    def networks(self, ctx: Context) -> Callable[[int], Known]:
        """Return a function that gives the network of update ``t``: its weights, a vector ``[P]``
        on the CPU, and what :meth:`objective` has to know of it. Threads may call it.
        """
        raise TypeError(f"{type(self).__name__} does not define networks()")

    @property
    def expansion(self) -> int:
        """How many images are seen of each that moves."""
        return 1

    def images_of(self, images: Tensor) -> Tensor:
        """Return what is seen, ``[K, expansion * ipc, C, H, W]``, of images ``[K, ipc, C, H, W]``; differentiable."""
        return images

    def seen_of(self, images: Tensor, count: int, facts: Any) -> Tensor:
        """Return what is seen of ``count`` classes, ``[K, n, C, H, W]``, of all that moves; differentiable."""
        return self.images_of(images.view(count, self.ipc, *self.dataset.shape))

    def moments(self, features: Tensor) -> Moments:
        """Return what :meth:`objective` needs of real features ``[k, B, d]``, each ``[k, d]``: their mean."""
        return (features.mean(1),)

    def objective(self, features: Tensor, real: Moments, side: Side) -> Tensor:
        """Return the sum over classes of what is minimised; ``features``: ``[K, n, d]`` of what is seen."""
        raise TypeError(f"{type(self).__name__} does not define objective()")

    def facts(self, unit: str, device: torch.device) -> Any:
        """Return tensors on the device that :meth:`objective`, :meth:`ready` and :meth:`move` read in every update."""
        return None

    def ready(self, state: Tensors, facts: Any) -> Tensors:
        """Return the state in which the gradient is taken."""
        return state

    def move(self, state: Tensors, gradient: Tensor, facts: Any) -> Tensors:
        """Return the state after a step down ``gradient``: here SGD with momentum, all images at once."""
        momentum = self.momentum * state["momentum"] + gradient
        return {"images": state["images"] - self.lr_img * momentum, "momentum": momentum}

    # -- the stage ---------------------------------------------------------------------------------------------------

    def steps(self, unit: str) -> int:
        """Return the number of updates."""
        return self.iterations

    def cost(self, unit: str) -> Cost:
        """Return the cost of a block: one forward of the real batch, forward and backward of what is seen."""
        from raydd.training.training_cost import network_facts

        facts = network_facts(self.network, self.dataset.shape, self.dataset.classes)
        block = self.blocks[unit]
        count, images = len(block), 4 * len(block) * self.ipc * self.pixels
        seen = self.expansion * self.ipc
        at_once = max(min(self.batch_real, self.real_chunk or self.batch_real), 2 * count * seen)
        return Cost(
            flop=facts.flop * self.iterations * count * (self.batch_real + 2 * seen),
            peak_bytes=self.resident(block)
            + (2 + self.expansion) * images
            + 4 * facts.activations * at_once
            + 4 * facts.parameters,
            state_bytes=2 * images,
            output_bytes=images,
        )

    def init(self, unit: str, ctx: Context) -> Tensors:
        """Return the first images, and a momentum of zero."""
        images = self.start(self.blocks[unit], ctx)
        return {"images": images, "momentum": torch.zeros_like(images)}

    def step(self, unit: str, state: Tensors, t: int, ctx: Context) -> Tensors:
        """Return the state after one update of all the block's images against one network."""
        choice = self.draws(self.blocks[unit], ctx, self.networks(ctx))(t)
        facts = ctx.cached(("facts", self, unit), lambda: self.facts(unit, ctx.device))
        if recordable(ctx.device):
            update: Captured = ctx.cached(
                ("update", self, unit), lambda: Captured(self.update(unit, facts, ctx), ctx.device)
            )
            images, momentum, loss = update(
                state["images"], state["momentum"], choice.rows, *choice.network, *choice.numbers
            )
            ctx.log(t, loss=loss)
            return {"images": images, "momentum": momentum}
        network = self.matched_network(ctx)
        fill_(network.parameters(), choice.network[0])
        real = self.real_moments(self.blocks[unit], choice, network, state["images"].dtype, ctx)
        side = Side(network, self.embedding(network), facts, choice.network[1:])
        transforms = choice.transforms
        augment = partial(apply_classes, transforms) if transforms else _unchanged
        new, loss = self._moved(state, real, augment, side)
        ctx.log(t, loss=loss)
        return new

    def update(self, unit: str, facts: Any, ctx: Context) -> Callable[..., tuple[Tensor, ...]]:
        """Return an update as a pure function of tensors on the device.

        It takes images and momentum ``[K * ipc, C, H, W]``, rows of the real images ``[K, m]``, the
        network's weights ``[P]``, what else is known of it, and the numbers of the augmentation's
        table, if there is one; it returns images, momentum and the mean loss of the classes.
        """
        block, info = self.blocks[unit], self.dataset
        network, memory = self.matched_network(ctx), self.memory(block, ctx)
        parameters, of_synthetic = list(network.parameters()), self.embedding(network)
        of_real = fast_embed(network, self.numerics)
        together = classes_together(self.network, info, self.batch_real, ctx.device)
        drawn = bool(parse_strategy(self.dsa))

        def update(
            images: Tensor, momentum: Tensor, rows: Tensor, weights: Tensor, *others: Tensor
        ) -> tuple[Tensor, ...]:
            known, numbers = (others[:-1], others[-1]) if drawn else (others, None)
            taps = (
                None
                if numbers is None
                else spread(TransformTable(numbers, info.shape[1:]), images.dtype)
            )
            with torch.no_grad():
                fill_(parameters, weights)
                real = augmented(
                    normalise(memory.gather(rows), info.mean, info.std, images.dtype), taps
                )
                found = [self._moments_of(of_real, part) for part in real.split(together)]
            state = {"images": images, "momentum": momentum}
            side = Side(network, of_synthetic, facts, known)
            new, loss = self._moved(state, _joined(found), lambda x: augmented(x, taps), side)
            return new["images"], new["momentum"], loss

        return update

    def finish(self, unit: str, state: Tensors, ctx: Context) -> Tensors:
        """Return the images."""
        return {"images": state["images"]}

    def embedding(self, network: Network) -> Callable[[Tensor], Tensor]:
        """Return a network's features for images that move.

        bf16 is for the side without a gradient: pixels move by small differences.
        """
        return fast_embed(network, self.numerics.full)

    def _moved(
        self, state: Tensors, real: Moments, augment: Callable[[Tensor], Tensor], side: Side
    ) -> tuple[Tensors, Tensor]:
        """Return the state after an update, and the mean loss of the classes."""
        state = self.ready(state, side.facts)
        count = len(real[0])
        with torch.enable_grad():
            images = state["images"].detach().requires_grad_(True)
            seen = augment(self.seen_of(images, count, side.facts))
            features = side.embed(seen.flatten(0, 1)).view(count, seen.shape[1], -1)
            loss = self.objective(features, real, side)
            (gradient,) = torch.autograd.grad(loss, images)
        return self.move(state, gradient, side.facts), loss.detach() / count

    @torch.no_grad()
    def real_moments(
        self,
        block: Sequence[int],
        choice: Draws,
        network: Network,
        dtype: torch.dtype,
        ctx: Context,
    ) -> Moments:
        """Return the moments of each class's augmented real batch."""
        memory = self.memory(block, ctx)
        embed = fast_embed(network, self.numerics)
        # A CPU is as fast class by class and needs less memory; batch norm's definition is one batch of all classes.
        at_once = 1 if ctx.device.type == "cpu" and is_per_sample(network) else len(choice.rows)
        found = []
        for start in range(0, len(choice.rows), at_once):
            rows = choice.rows[start : start + at_once]
            real = normalise(memory.gather(rows), self.dataset.mean, self.dataset.std, dtype)
            if choice.transforms:
                real = apply_classes(choice.transforms[start : start + at_once], real)
            found.append(self._moments_of(embed, real))
        return _joined(found)

    def _moments_of(self, embed: Callable[[Tensor], Tensor], real: Tensor) -> Moments:
        """Return the moments of real images ``[k, B, C, H, W]``."""
        images = real.flatten(0, 1)
        parts = [embed(part) for part in images.split(self.real_chunk or len(images))]
        features = parts[0] if len(parts) == 1 else torch.cat(parts)
        return self.moments(features.view(*real.shape[:2], -1))

    def matched_network(self, ctx: Context) -> Network:
        """Return the network that every update fills with weights of its own."""
        facts = (self.network, self.dataset.shape, self.dataset.classes)

        def make() -> Network:
            network = create_network(*facts, ctx.rng("network"))
            return network.requires_grad_(False).train().to(ctx.device)

        return ctx.cached(("matched network", *facts), make)


def _unchanged(images: Tensor) -> Tensor:
    return images


def _joined(parts: Sequence[Moments]) -> Moments:
    return tuple(torch.cat(moment) for moment in zip(*parts, strict=True))


def probe_network(name: str, info: DatasetInfo) -> Network:
    """Return some network of the name, to ask what kind it is."""
    from raydd.core.rng import generator

    return create_network(name, info.shape, info.classes, generator(0, "probe"))
