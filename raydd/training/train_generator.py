"""The stage that trains a conditional generator against a discriminator, on real images (docs/methods/itgan.md,
"Training the generator").
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from raydd.augment.dsa import draw
from raydd.core.tensors import Tensors
from raydd.core.units import Context, Cost, Stage, added
from raydd.data.catalog import DatasetInfo
from raydd.data.memory import draw_distinct
from raydd.networks.biggan import (
    Discriminator,
    Generator,
    Pooling,
    fold,
    initialise_,
    take_statistics_,
)
from raydd.networks.flat import fill_, flatten
from raydd.networks.folded_generator import GanShape
from raydd.training.accuracy import resident

SQUARES_DECAY, ADAM_EPS = 0.999, 1e-8
STANDING_BATCH = 256


class _Player:
    """A network whose weights, vectors of spectral norms and Adam are flat tensors of a state."""

    def __init__(self, network: nn.Module, prefix: str) -> None:
        self.network, self.prefix = network, prefix
        self.parameters = list(network.parameters())
        self.vectors = [b for name, b in network.named_buffers() if name.split(".")[-1] == "u"]

    def fresh(self, generator: torch.Generator) -> Tensors:
        initialise_(self.network, generator)
        weights = flatten(self.parameters)
        return {
            f"{self.prefix}.weights": weights,
            f"{self.prefix}.squares": torch.zeros_like(weights),
            f"{self.prefix}.vectors": flatten(self.vectors),
        }

    def put_(self, state: Tensors, weights: Tensor | None = None) -> None:
        fill_(self.parameters, state[f"{self.prefix}.weights"] if weights is None else weights)
        fill_(self.vectors, state[f"{self.prefix}.vectors"])

    def stepped(self, state: Tensors, loss: Tensor, lr: float, count: int) -> Tensors:
        """Return the state after an update, number ``count`` from 1, of Adam without momentum."""
        gradient = torch.cat([g.flatten() for g in torch.autograd.grad(loss, self.parameters)])
        squares = state[f"{self.prefix}.squares"].lerp(gradient.square(), 1 - SQUARES_DECAY)
        scale = (squares / (1 - SQUARES_DECAY**count)).sqrt_().add_(ADAM_EPS)
        weights = state[f"{self.prefix}.weights"] - lr * gradient / scale
        fill_(self.parameters, weights)
        return state | {
            f"{self.prefix}.weights": weights,
            f"{self.prefix}.squares": squares,
            f"{self.prefix}.vectors": flatten(self.vectors),
        }


@dataclass(frozen=True, kw_only=True)
class TrainGenerator(Stage):
    """Train a generator; one unit, a step is a round: ``d_steps`` updates of the discriminator, then one of
    the generator.

    The hinge loss, images before the discriminator under DiffAugment (arXiv 2006.10738). Fields as
    of :class:`raydd.training.generator_config.GeneratorConfig`. ``dataset``: narrowed to ``train``.
    Output: the folded average of the generator's weights
    (:mod:`raydd.networks.folded_generator`), its statistics those of ``standing`` fresh batches.
    """

    phase: ClassVar[str] = "squeeze"

    dataset: DatasetInfo
    sizes: GanShape
    rounds: int
    batch: int
    d_steps: int
    lr: float
    lr_discriminator: float
    ema: float
    ema_start: int
    augment: str
    flip: bool
    standing: int
    pooling: Pooling = added("sum")

    def units(self) -> tuple[str, ...]:
        """Return the one unit."""
        return ("generator",)

    def steps(self, unit: str) -> int:
        """Return the number of rounds."""
        return self.rounds

    def cost(self, unit: str) -> Cost:
        """Return the cost of all rounds and of the standing statistics."""
        sizes, info = self.sizes, self.dataset
        made, judged = sizes.generator_flop, sizes.discriminator_flop
        each = self.d_steps * (made + 6 * judged) + 3 * (made + judged)
        weights = 3 * sizes.numbers + 2 * sizes.discriminator_numbers
        pixels = info.channels * info.height * info.width
        return Cost(
            flop=self.rounds * self.batch * each + self.standing * STANDING_BATCH * made,
            peak_bytes=pixels * sum(info.train_counts)
            + 8 * weights
            + 4 * max(2 * self.batch, STANDING_BATCH) * 3 * sizes.generator_activations,
            state_bytes=4 * weights,
            output_bytes=4 * sizes.numbers,
        )

    def init(self, unit: str, ctx: Context) -> Tensors:
        """Return fresh networks."""
        made, judge = self._players(ctx)
        state = made.fresh(ctx.rng("generator")) | judge.fresh(ctx.rng("discriminator"))
        return state | {"average": state["made.weights"].clone()}

    def step(self, unit: str, state: Tensors, t: int, ctx: Context) -> Tensors:
        """Return the state after a round."""
        made, judge = self._players(ctx)
        made.put_(state)
        judge.put_(state)
        draws = ctx.rng("round", t)
        for part in (made.network, judge.network):
            part.train()
        for i in range(self.d_steps):
            real, labels = self._real(draws, ctx)
            with torch.no_grad():
                fake, chosen = self._fake(made.network, len(real), draws, ctx)
            seen = self._augmented(torch.cat([real, fake]), draws)
            scores = judge.network(seen, torch.cat([labels, chosen]))
            against, for_fake = scores.split([len(real), len(fake)])
            loss = F.relu(1 - against).mean() + F.relu(1 + for_fake).mean()
            state = judge.stepped(state, loss, self.lr_discriminator, t * self.d_steps + i + 1)
        fake, chosen = self._fake(made.network, self.batch, draws, ctx)
        won = -judge.network(self._augmented(fake, draws), chosen).mean()
        state = made.stepped(state, won, self.lr, t + 1)
        state["judge.vectors"] = flatten(judge.vectors)
        weights = state["made.weights"]
        state["average"] = (
            weights.clone() if t < self.ema_start else state["average"].lerp(weights, 1 - self.ema)
        )
        ctx.log(t, loss=loss.detach(), generator_loss=won.detach())
        return state

    def finish(self, unit: str, state: Tensors, ctx: Context) -> Tensors:
        """Return the averaged generator, folded."""
        made, _ = self._players(ctx)
        made.put_(state, state["average"])
        network = made.network
        if not isinstance(network, Generator):
            raise TypeError(f"{type(network).__name__} is no generator")

        def batches() -> Iterable[tuple[Tensor, Tensor]]:
            for i in range(self.standing):
                yield self._latents(STANDING_BATCH, ctx.rng("standing", i), ctx)

        take_statistics_(network, batches())
        return fold(network.eval())

    def _latents(self, count: int, draws: torch.Generator, ctx: Context) -> tuple[Tensor, Tensor]:
        z = torch.randn(count, self.sizes.dim_z, generator=draws)
        labels = torch.randint(self.sizes.classes, (count,), generator=draws)
        return z.to(ctx.device), labels.to(ctx.device)

    def _fake(
        self, network: nn.Module, count: int, draws: torch.Generator, ctx: Context
    ) -> tuple[Tensor, Tensor]:
        z, labels = self._latents(count, draws, ctx)
        return network(z, labels), labels

    def _real(self, draws: torch.Generator, ctx: Context) -> tuple[Tensor, Tensor]:
        """Return real images in (-1, 1), and labels."""
        data = ctx.data["train"]
        ids = draw_distinct(len(data), self.batch, draws)
        mirrored = torch.rand(len(ids), generator=draws) < 0.5
        kept = resident(data, ctx)
        if kept is None:
            images, labels = data.take(ids).to(ctx.device), data.labels[ids].to(ctx.device)
        else:
            ids = ids.to(ctx.device)
            images, labels = kept["images"][ids], kept["labels"][ids]
        images = images.float() / 127.5 - 1
        if self.flip:
            images = torch.where(mirrored.to(ctx.device).view(-1, 1, 1, 1), images.flip(3), images)
        return images, labels

    def _augmented(self, images: Tensor, draws: torch.Generator) -> Tensor:
        size = self.dataset.shape[1:]
        return draw(self.augment, draws, size=size, siamese=False, count=len(images), mode="M")(
            images
        )

    def _players(self, ctx: Context) -> tuple[_Player, _Player]:
        def make() -> tuple[_Player, _Player]:
            made = Generator(self.sizes)
            judge = Discriminator(self.sizes, self.pooling)
            return _Player(made.to(ctx.device), "made"), _Player(judge.to(ctx.device), "judge")

        return ctx.cached(("generator and discriminator", self.sizes, self.pooling), make)
