"""Latents that are moved until networks embed what is made of them as real images (docs/methods/itgan.md,
"Learning the latents").

DM's loss of a class's images, and a pull of each to its own real partner, under one transform for all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from typing import ClassVar, Literal

import torch
from torch import Tensor

from raydd.augment.dsa import apply_classes, draw, parse_strategy
from raydd.core.ahead import Ahead
from raydd.core.errors import DataError
from raydd.core.tensors import Tensors
from raydd.core.units import Context, Cost, Ref
from raydd.data.memory import draw_distinct, normalise
from raydd.losses import distribution_matching_loss, partner_distance
from raydd.methods.latents import adam
from raydd.methods.latents.inversion import Invert
from raydd.methods.latents.latent_rows import GENERATOR, LatentStage, Part
from raydd.methods.matching.class_matching import Draws
from raydd.methods.matching.embedding_matching import EmbeddingMatching, Known, Side
from raydd.networks import create_network
from raydd.networks.flat import FreshWeights, fill_
from raydd.training.train_pool import TrainPool, draw_network, draws_of_network

LEAST_RATIO = 1e-5
"""Shares of the pull to partners up to which it is left out, as published."""
CLOSE, SHARE, CHECKED = 2 / 255, 0.999, 64
"""How far half precision may move pixels of [0, 1], how many of them, and of how many latents it is looked at."""
STORED = {"float16": torch.float16, "float32": torch.float32}


def informative_loss(
    features: Tensor, partners: Tensor | None, real_mean: Tensor, ratio_div: float
) -> Tensor:
    """Return IT-GAN's loss, summed over classes: ``(1 - ratio_div)`` times DM's and ``ratio_div`` times the mean
    squared distance from partners.

    ``features``: ``[K, n, d]`` of what is made; ``partners``: the same of real partners, ``None``
    where they count nothing; ``real_mean``: ``[K, d]``.
    """
    loss = (1 - ratio_div) * distribution_matching_loss(real_mean, features)
    return loss if partners is None else loss + ratio_div * partner_distance(partners, features)


@dataclass(frozen=True, kw_only=True)
class MatchLatents(LatentStage):
    """Move latents by Adam under one network an update; a unit is a group of latents of a class.

    ``inversion``: where they start. ``matching``: network, updates, rate, real images and their
    transforms of DM's loop. ``group``: latents of a unit; ``batch_z``: those of them, drawn anew,
    that an update makes images of; all of the unit's make a step of Adam, with a gradient of zero
    where they were not drawn. ``ratio_div``: share of the pull to partners. ``pool``: networks that
    were trained, of which one within ``window`` of accuracies is drawn; ``None``: each update has a
    fresh random one. ``network_draws``: it is ``shared`` by all classes, or drawn for each (``per_class``).
    ``stored``: the type of the output.

    Output: ``z [n, dim_z]`` and ``ids`` of the real partners.
    """

    phase: ClassVar[str] = "distill"

    inversion: Invert
    matching: EmbeddingMatching
    group: int
    batch_z: int
    ratio_div: float
    pool: TrainPool | None
    window: tuple[float, float]
    network_draws: Literal["shared", "per_class"]
    stored: Literal["float16", "float32"]

    @property
    def size(self) -> int:
        """Latents of a unit at most."""
        return self.group

    @cached_property
    def _starts(self) -> dict[int, list[tuple[str, Part]]]:
        """The inversion's units by class, in order."""
        found: dict[int, list[tuple[str, Part]]] = {}
        for name, part in self.inversion.parts.items():
            found.setdefault(part.label, []).append((name, part))
        return found

    def inputs(self, unit: str) -> Mapping[str, Ref]:
        """Return where the latents start, and what updates need: the generator, networks that were trained."""
        part = self.parts[unit]
        found = {
            name: Ref(self.inversion, name)
            for name, of in self._starts[part.label]
            if of.first < part.last and of.last > part.first
        }
        if self.pool is not None and self.steps(unit):
            found |= {name: Ref(self.pool, name) for name in self.pool.units()}
        return {GENERATOR: Ref(self.generator, GENERATOR), **found}

    def steps(self, unit: str) -> int:
        """Return the number of updates."""
        return self.matching.iterations

    def cost(self, unit: str) -> Cost:
        """Return the cost of a group: what is made and its derivative, partners, real images."""
        from raydd.training.training_cost import network_facts

        matching, sizes = self.matching, self.generator.sizes
        facts = network_facts(matching.network, self.dataset.shape, self.dataset.classes)
        count = len(self.parts[unit])
        made = min(self.batch_z, count)
        embedded = 2 * made + (made if self._pulls else 0) + matching.batch_real
        state = 4 * 3 * sizes.dim_z * count
        width = STORED[self.stored].itemsize
        return Cost(
            flop=(2.0 * sizes.generator_flop * made + facts.flop * embedded) * self.steps(unit),
            peak_bytes=matching.resident((self.parts[unit].label,))
            + 2 * state
            + 4 * (sizes.numbers + 2 * facts.parameters)
            + 4 * made * (sizes.generator_activations + 2 * self.pixels)
            + 4 * facts.activations * max(2 * made, matching.batch_real),
            state_bytes=state + 8 * count,
            output_bytes=(width * sizes.dim_z + 8) * count,
        )

    def init(self, unit: str, ctx: Context) -> Tensors:
        """Return the latents that the inversion found, with their partners' indices, and zero moments."""
        part, rows, ids = self.parts[unit], [], []
        for name, of in self._starts[part.label]:
            first, last = max(of.first, part.first), min(of.last, part.last)
            if first < last:
                found = ctx.load(name)
                here = slice(first - of.first, last - of.first)
                rows.append(found["z"][here])
                ids.append(found["ids"][here])
        state = adam.fresh(torch.cat(rows).to(ctx.device))
        return state | {"ids": torch.cat(ids).to(ctx.device)}

    def step(self, unit: str, state: Tensors, t: int, ctx: Context) -> Tensors:
        """Return the state after an update."""
        part, matching = self.parts[unit], self.matching
        block = (part.label,)
        choice = self._draws(unit, ctx)(t)
        network = matching.matched_network(ctx)
        fill_(network.parameters(), choice.network[0])
        augment = partial(apply_classes, choice.transforms) if choice.transforms else _unchanged
        real = matching.real_moments(block, choice, network, state["z"].dtype, ctx)
        side = Side(network, matching.embedding(network), None, ())
        places = self._drawn(part, t, ctx).to(state["z"].device)
        with torch.enable_grad():
            z = state["z"].detach().requires_grad_(True)
            labels = torch.full((len(places),), part.label, device=z.device)
            made = self.decoder.take({"images": z[places], "labels": labels, **self.weights(ctx)})
            features = side.embed(augment(made.unsqueeze(0)).squeeze(0)).unsqueeze(0)
            partners = self._partners(unit, state, places, augment, side, ctx)
            loss = informative_loss(features, partners, real[0], self.ratio_div)
            (gradient,) = torch.autograd.grad(loss, z)
        condensed = distribution_matching_loss(real[0], features.detach())
        apart = (
            {}
            if partners is None
            else {"partner_distance": partner_distance(partners, features.detach())}
        )
        ctx.log(t, loss=loss.detach(), distance=condensed, **apart)
        moved = adam.stepped(
            {name: state[name] for name in ("z", "m", "v")}, gradient, matching.lr_img, t + 1
        )
        return {**moved, "ids": state["ids"]}

    def finish(self, unit: str, state: Tensors, ctx: Context) -> Tensors:
        """Return the latents as they are stored; ``DataError`` if halves move too many pixels too far."""
        z = state["z"].to(STORED[self.stored])
        if self.stored == "float16":
            share = self._unmoved(self.parts[unit].label, state["z"], z, ctx)
            if share < SHARE:
                raise DataError(
                    f"half precision moves {1 - share:.2%} of the pixels by more than two grey levels; set"
                    " method.stored=float32"
                )
        return {"z": z, "ids": state["ids"]}

    @torch.no_grad()
    def _unmoved(self, label: int, full: Tensor, halves: Tensor, ctx: Context) -> float:
        """Return the share of pixels that half precision moves by at most two grey levels, of some latents."""
        weights, some = self.weights(ctx), slice(None, None, max(1, len(full) // CHECKED))
        half = {name: tensor.half() for name, tensor in weights.items()}
        labels = torch.full((len(full[some]),), label, device=full.device)
        made = [
            self.decoder.take({"images": z[some], "labels": labels, **of})
            for z, of in ((full, weights), (halves, half))
        ]
        moved = (made[0] - made[1]).abs() * torch.tensor(self.dataset.std).view(-1, 1, 1).to(full)
        return float((moved <= CLOSE).double().mean())

    @property
    def _pulls(self) -> bool:
        return self.ratio_div > LEAST_RATIO

    def _drawn(self, part: Part, t: int, ctx: Context) -> Tensor:
        """Return the rows of the group whose images an update makes."""
        if self.batch_z >= len(part):
            return torch.arange(len(part))
        return draw_distinct(len(part), self.batch_z, ctx.rng("rows", t, part.label, part.first))

    def _partners(
        self,
        unit: str,
        state: Tensors,
        places: Tensor,
        augment: Callable[[Tensor], Tensor],
        side: Side,
        ctx: Context,
    ) -> Tensor | None:
        """Return the features of real partners ``[1, n, d]``, ``None`` where they count nothing."""
        if not self._pulls:
            return None

        def read() -> Tensor:
            return ctx.data["train"].take(state["ids"].cpu()).to(ctx.device)

        info = self.dataset
        images = normalise(ctx.cached(("partners", self, unit), read)[places], info.mean, info.std)
        with torch.no_grad():
            return side.embed(augment(images.unsqueeze(0)).squeeze(0)).unsqueeze(0)

    def _draws(self, unit: str, ctx: Context) -> Ahead[Draws]:
        """Return what DM's loop draws for a class in every update, real images, a transform and a network."""
        label, matching = self.parts[unit].label, self.matching

        def make() -> Ahead[Draws]:
            memory, size = matching.memory((label,), ctx), self.dataset.shape[1:]
            networks, drawn = self._networks(label, ctx), bool(parse_strategy(matching.dsa))

            def choose(t: int) -> Draws:
                rows = memory.draw([label], matching.batch_real, [ctx.rng("real", t, label)])
                transforms = (
                    [draw(matching.dsa, ctx.rng("dsa", t, label), size=size)] if drawn else []
                )
                weights = (part.to(ctx.device) for part in networks(t))
                return Draws(rows, transforms, network=tuple(weights))

            return Ahead(choose, threaded=ctx.device.type == "cuda", depth=4)

        return ctx.cached(("draws", self, unit), make)

    def _networks(self, label: int, ctx: Context) -> Callable[[int], Known]:
        """Return the network's weights of each update."""
        own = label if self.network_draws == "per_class" else None
        pool, info, name = self.pool, self.dataset, self.matching.network
        if pool is not None:
            units, epochs = pool.units(), pool.steps(pool.units()[0])

            def trained(t: int) -> Known:
                draws = draws_of_network(ctx.rng, t, own)
                return (draw_network(ctx.load, units, epochs, self.window, draws),)

            return trained

        if own is None:
            return self.matching.networks(ctx)

        def make() -> FreshWeights:
            return FreshWeights(
                lambda: create_network(name, info.shape, info.classes, ctx.rng("network"))
            )

        fresh = ctx.cached(("fresh weights", name, info.shape, info.classes), make)
        return lambda t: (fresh(draws_of_network(ctx.rng, t, own)),)


def _unchanged(images: Tensor) -> Tensor:
    return images
