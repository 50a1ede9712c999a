"""DM, distribution matching (Zhao and Bilen, WACV 2023, arXiv 2110.04181).

Every update draws a new random network, embeds a batch of real and all synthetic images of each
class under one shared DSA transform per class, and moves the images down

    L = sum_c || mean_i embed(real_{c,i}) - mean_j embed(S_{c,j}) ||^2

by SGD with momentum 0.5. Classes never talk, unless the network has batch norm: then one unit holds them all.
Worked out in docs/methods/dm.md, "The update".

Published (ConvNet, DM protocol): CIFAR-10 26.0 / 48.9 / 63.0 % at 1 / 10 / 50 images per class; CIFAR-100 11.4 / 29.7 /
43.6; Tiny-ImageNet 3.9 / 12.9 / 24.1; Fashion-MNIST 70.7 / 83.5 / 88.1 (the last as quoted by later papers).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from annotated_types import Ge, Gt, Lt
from torch import Tensor

from raydd.artifacts.distilled_set import DistilledSet
from raydd.augment.dsa import apply_classes, parse_strategy
from raydd.augment.table import TransformTable, spread
from raydd.core.captured import Captured, recordable
from raydd.core.tensors import Tensors
from raydd.core.units import Context, Cost, Stage
from raydd.data.catalog import DatasetInfo
from raydd.data.memory import normalise
from raydd.losses import distribution_matching_loss
from raydd.methods.matching.class_matching import (
    ClassMatching,
    Draws,
    augmented,
    check_init,
    classes_together,
)
from raydd.methods.method import Method, Problem, register_method
from raydd.networks import Network, create_network, is_per_sample, normalise_name, reinitialise_
from raydd.networks.fast import fast_embed
from raydd.networks.flat import FreshWeights, fill_
from raydd.training.batches import check_batches
from raydd.training.recipe import Recipe


@dataclass(frozen=True, kw_only=True)
class MatchDistributions(ClassMatching):
    """DM's loop; a unit is a block of classes, its state their images and momentum ``[K * ipc, C, H, W]``."""

    network: str
    iterations: int
    lr_img: float
    momentum: float

    def steps(self, unit: str) -> int:
        """Return the number of updates."""
        return self.iterations

    def cost(self, unit: str) -> Cost:
        """Return the cost of a block: one forward of the real batch, forward and backward of the synthetic images."""
        from raydd.training.training_cost import network_facts

        facts = network_facts(self.network, self.dataset.shape, self.dataset.classes)
        block = self.blocks[unit]
        count, images = len(block), 4 * len(block) * self.ipc * self.pixels
        at_once = max(self.batch_real, 2 * count * self.ipc)
        return Cost(
            flop=facts.flop * self.iterations * count * (self.batch_real + 2 * self.ipc),
            peak_bytes=self.resident(block)
            + 3 * images
            + 4 * facts.activations * at_once
            + 4 * facts.parameters,
            state_bytes=2 * images,
            output_bytes=images,
        )

    def init(self, unit: str, ctx: Context) -> Tensors:
        """Return real images drawn per class, or normal noise, and a momentum of zero."""
        images = self.start(self.blocks[unit], ctx)
        return {"images": images, "momentum": torch.zeros_like(images)}

    def step(self, unit: str, state: Tensors, t: int, ctx: Context) -> Tensors:
        """Return the state after one update of all the block's images against one new network."""
        if recordable(ctx.device):
            return self._recorded_step(unit, state, t, ctx)
        choice = self.draws(self.blocks[unit], ctx)(t)
        network: Network = ctx.cached(
            ("dm network", self.network, self.dataset.shape, self.dataset.classes),
            lambda: self._network(ctx),
        )
        reinitialise_(network, ctx.rng("network", t))
        count = len(self.blocks[unit])
        images = state["images"].detach().requires_grad_(True)
        synthetic = images.view(count, self.ipc, *self.dataset.shape)
        if choice.transforms:
            synthetic = apply_classes(choice.transforms, synthetic)
        real_mean = self._real_means(unit, choice, network, images.dtype, ctx)
        # bf16 is for the side without a gradient: pixels move by small differences.
        embed = fast_embed(network, self.numerics.full)
        features = embed(synthetic.flatten(0, 1)).view(count, self.ipc, -1)
        loss = distribution_matching_loss(real_mean, features)
        (gradient,) = torch.autograd.grad(loss, images)
        ctx.log(t, loss=loss.detach() / count)
        momentum = self.momentum * state["momentum"] + gradient
        return {"images": state["images"] - self.lr_img * momentum, "momentum": momentum}

    def _recorded_step(self, unit: str, state: Tensors, t: int, ctx: Context) -> Tensors:
        """Return the state after one update as one piece: real side, synthetic side, gradient and
        momentum of all classes.
        """
        fresh = ctx.cached(
            ("fresh weights", self.network, self.dataset.shape, self.dataset.classes),
            lambda: self._fresh(ctx),
        )
        choice = self.draws(self.blocks[unit], ctx, lambda t: fresh(ctx.rng("network", t)))(t)
        weights = fresh(ctx.rng("network", t)) if choice.weights is None else choice.weights
        update: Captured = ctx.cached(
            ("dm update", self, unit), lambda: Captured(self.update(unit, ctx), ctx.device)
        )
        images, momentum, loss = update(
            state["images"], state["momentum"], choice.rows, weights, *choice.numbers
        )
        ctx.log(t, loss=loss)
        return {"images": images, "momentum": momentum}

    def update(self, unit: str, ctx: Context) -> Callable[..., tuple[Tensor, Tensor, Tensor]]:
        """Return an update as a pure function of tensors on the device.

        It takes images and momentum ``[K * ipc, C, H, W]``, rows of the real images ``[K, m]``, the
        network's weights ``[P]`` and the numbers of the augmentation's table (nothing without one),
        and returns images, momentum and the mean loss of the classes.
        """
        block, info = self.blocks[unit], self.dataset
        network: Network = ctx.cached(
            ("dm network", self.network, info.shape, info.classes), lambda: self._network(ctx)
        )
        memory, parameters, count = self.memory(block, ctx), list(network.parameters()), len(block)
        of_real, of_synthetic = (
            fast_embed(network, self.numerics),
            fast_embed(network, self.numerics.full),
        )
        together = classes_together(self.network, info, self.batch_real, ctx.device)

        def update(
            images: Tensor,
            momentum: Tensor,
            rows: Tensor,
            weights: Tensor,
            numbers: Tensor | None = None,
        ) -> tuple[Tensor, Tensor, Tensor]:
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
                means = [
                    of_real(part.flatten(0, 1)).view(*part.shape[:2], -1).mean(1)
                    for part in real.split(together)
                ]
            with torch.enable_grad():
                leaf = images.detach().requires_grad_(True)
                synthetic = augmented(leaf.view(count, self.ipc, *info.shape), taps)
                features = of_synthetic(synthetic.flatten(0, 1)).view(count, self.ipc, -1)
                loss = distribution_matching_loss(torch.cat(means), features)
                (gradient,) = torch.autograd.grad(loss, leaf)
            momentum = self.momentum * momentum + gradient
            return images - self.lr_img * momentum, momentum, loss.detach() / count

        return update

    def finish(self, unit: str, state: Tensors, ctx: Context) -> Tensors:
        """Return the images."""
        return {"images": state["images"]}

    @torch.no_grad()
    def _real_means(
        self, unit: str, choice: Draws, network: Network, dtype: torch.dtype, ctx: Context
    ) -> Tensor:
        """Return the mean feature of each class's augmented real batch, ``[K, d]``."""
        memory = self.memory(self.blocks[unit], ctx)
        embed = fast_embed(network, self.numerics)
        # A CPU is as fast class by class and needs less memory; batch norm's definition is one batch of all classes.
        at_once = 1 if ctx.device.type == "cpu" and is_per_sample(network) else len(choice.rows)
        means = []
        for start in range(0, len(choice.rows), at_once):
            rows = choice.rows[start : start + at_once]
            real = normalise(memory.gather(rows), self.dataset.mean, self.dataset.std, dtype)
            if choice.transforms:
                real = apply_classes(choice.transforms[start : start + at_once], real)
            means.append(embed(real.flatten(0, 1)).view(*rows.shape, -1).mean(1))
        return torch.cat(means)

    def _fresh(self, ctx: Context) -> FreshWeights:
        return FreshWeights(
            lambda: create_network(
                self.network, self.dataset.shape, self.dataset.classes, ctx.rng("network")
            )
        )

    def _network(self, ctx: Context) -> Network:
        network = create_network(
            self.network, self.dataset.shape, self.dataset.classes, ctx.rng("network")
        )
        return network.requires_grad_(False).train().to(ctx.device)


@register_method("dm")
@dataclass(frozen=True, kw_only=True)
class Dm(Method):
    """Distribution matching.

    ``network``: embeds the images; a new random one per update. ``iterations``: updates.
    ``lr_img``: learning rate of the images (published: 1; 10 at 100 images per class and more).
    ``momentum``: of the images' SGD. ``batch_real``: real images per class and update. ``init``:
    start from ``real`` images or ``noise``. ``dsa``: operations joined by ``_``, ``none``, or null
    for those published for the data set. ``classes_per_unit``: classes that one worker moves
    together.
    """

    network: str = "convnet3"
    iterations: Annotated[int, Ge(1)] = 20_000
    lr_img: Annotated[float, Gt(0)] = 1.0
    momentum: Annotated[float, Ge(0), Lt(1)] = 0.5
    batch_real: Annotated[int, Ge(1)] = 256
    init: Literal["real", "noise"] = "real"
    dsa: str | None = None
    classes_per_unit: Annotated[int, Ge(1)] = 5

    @property
    def student_network(self) -> str:
        """The network that students have by default."""
        return self.network

    def plan(self, problem: Problem) -> list[Stage]:
        """Return one stage; ``ConfigError`` if real images are too few for ``init`` or the network
        has no use for the size.
        """
        info = problem.dataset
        strategy = info.dsa_strategy if self.dsa is None else self.dsa
        parse_strategy(strategy)
        check_init(info, problem.ipc, self.init)
        alone = is_per_sample(_probe(self.network, info))
        _check_batch(normalise_name(self.network), problem, self.batch_real)
        return [
            MatchDistributions(
                seed=problem.seed,
                numerics=problem.numerics,
                dataset=info.only("train"),
                ipc=problem.ipc,
                network=normalise_name(self.network),
                iterations=self.iterations,
                lr_img=self.lr_img,
                momentum=self.momentum,
                batch_real=self.batch_real,
                init_from=self.init,
                dsa=strategy or "none",
                classes_per_unit=min(self.classes_per_unit, info.classes)
                if alone
                else info.classes,
                classes=problem.classes,
            )
        ]

    def joint(self, problem: Problem) -> bool:
        """Return whether the network has batch norm, whose statistics are of all classes."""
        return not is_per_sample(_probe(self.network, problem.dataset))

    def assemble(self, problem: Problem, outputs: Mapping[str, Tensors]) -> DistilledSet:
        """Return the blocks' images in class order, with hard labels."""
        images = torch.cat([outputs[unit]["images"] for unit in sorted(outputs)])
        labels = torch.tensor(problem.present).repeat_interleave(problem.ipc)
        return DistilledSet(images=images, labels=labels, info=problem.dataset)


def _probe(name: str, info: DatasetInfo) -> Any:
    from raydd.core.rng import generator

    return create_network(name, info.shape, info.classes, generator(0, "probe"))


def _check_batch(network: str, problem: Problem, batch_real: int) -> None:
    """Raise ``ConfigError`` if the network's batch norms, which see all classes at once, would see one image."""
    info = problem.dataset
    smallest = (
        min((info.train_counts[c] for c in problem.present), default=0) if info.train_counts else 0
    )
    seen = [
        count * len(problem.present)
        for count in (problem.ipc, min(batch_real, smallest) or batch_real)
    ]
    check_batches(
        network,
        info.shape,
        info.classes,
        seen,
        Recipe(epochs=1, batch=max(seen)),
        "method.batch_real",
        "method.network",
    )
