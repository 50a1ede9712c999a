"""Gradient matching, the loop that DC and DSA share (docs/methods/dc_dsa.md, "The loop").

An iteration draws a new network and makes ``outer_loop`` updates of all images; each moves them, by
SGD with momentum, down

    L = sum_c D(grad_theta CE(net(S_c), c), grad_theta CE(net(real_c), c)),

and between two updates the network is trained on them for ``inner_loop`` epochs. With one update
per iteration (one image per class) the network is never trained and images of classes never talk:
blocks of them are units (batch norms are frozen with real images of all classes). Else blocks are
lanes of one unit, which exchange the images' gradients once per update; every worker trains the
same network.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from raydd.augment.dsa import apply_classes, parse_strategy
from raydd.augment.table import TransformTable, spread
from raydd.core.captured import Captured, recordable
from raydd.core.tensors import Tensors
from raydd.core.units import Context, Cost, added
from raydd.data.memory import normalise
from raydd.methods.matching.class_matching import ClassMatching, augmented, classes_together
from raydd.methods.matching.parameter_gradients import (
    class_gradient,
    class_gradients,
    freeze_batchnorm_,
    match,
    prepare_,
    train_step_,
)
from raydd.networks import Network, create_network, fast_forward, has_batchnorm, reinitialise_
from raydd.networks.initialise import scales_at_one_
from raydd.networks.segments import segmented_form
from raydd.networks.twice import twice_differentiable
from raydd.training.augmentation import BatchAugmentation, DrawnAugmentation, make_augmentation
from raydd.training.recipe import Recipe
from raydd.training.recorded import RecordedStep
from raydd.training.sgd import TrainingStep, part
from raydd.training.students import ResidentSet

FREEZE_IMAGES = 16
"""Real images per class that batch norms see before they are frozen."""

_NETWORK = "network"
"""What the names of the network's tensors in a state begin with, before a dot."""


@dataclass(frozen=True, kw_only=True)
class MatchGradients(ClassMatching):
    """The loop; a step is one update of the images and, unless it is a network's last, the network's epochs behind it.

    State: ``images`` and ``momentum`` ``[K * ipc, C, H, W]`` of the unit's classes, and, in the
    middle of an iteration, the network's weights, statistics and (if it has one) momentum as
    ``network.*``. The network has outputs for all classes, also where only some are distilled.

    ``zero_scales``: of norms that the network's library starts at zero (the last of residual
    blocks): ``ones`` in their place, since weights before a zero have no gradient, or ``kept``.
    """

    network: str
    iterations: int
    outer_loop: int
    inner_loop: int
    lr_img: float
    momentum: float
    lr_net: float
    inner_momentum: float
    batch_train: int
    distance: str
    zero_scales: Literal["kept", "ones"] = added("kept")

    @property
    def version(self) -> int:  # type: ignore[override]
        """Return 2 for the distance ``cos``, whose norms were sums over all weights at once; 1 for the others."""
        return 2 if self.distance == "cos" else 1

    @cached_property
    def _units(self) -> dict[str, tuple[Sequence[int], ...]]:
        """Each unit's blocks of classes."""
        if self.outer_loop > 1:
            return {"all": tuple(self.blocks.values())}
        return {name: (block,) for name, block in self.blocks.items()}

    @property
    def lanes(self) -> int:
        """Return the number of class blocks that one unit holds; 0 where a unit is one block."""
        return len(self.blocks) if self.outer_loop > 1 and len(self.blocks) > 1 else 0

    def units(self) -> Sequence[str]:
        """Return ``all``, or the names of the class blocks where the network is never trained."""
        return tuple(self._units)

    def steps(self, unit: str) -> int:
        """Return the number of updates of the images."""
        return self.iterations * self.outer_loop

    def cost(self, unit: str) -> Cost:
        """Return the cost: gradients of real images, first and second derivatives of synthetic
        ones, the network's epochs.
        """
        from raydd.training.training_cost import network_facts

        facts = network_facts(self.network, self.dataset.shape, self.dataset.classes)
        count = sum(len(block) for block in self._units[unit])
        images = 4 * count * self.ipc * self.pixels
        per_iteration = self.outer_loop * count * (3 * self.batch_real + 7 * self.ipc)
        epochs = (self.outer_loop - 1) * self.inner_loop
        resident = sum(self.resident(block) for block in self._units[unit])
        second = 4 * self.ipc * max(len(block) for block in self._units[unit])
        at_once = max(
            2 * self.batch_real,
            second,
            2 * min(self.batch_train, count * self.ipc) if epochs else 0,
        )
        return Cost(
            flop=facts.flop * self.iterations * (per_iteration + 3 * epochs * count * self.ipc),
            peak_bytes=resident
            + 3 * images
            + 4 * facts.activations * at_once
            + 4 * facts.parameters * (3 + 2 * self.classes_per_unit),
            state_bytes=2 * images
            + (
                4 * facts.parameters * (2 if self.inner_momentum else 1)
                if self.outer_loop > 1
                else 0
            ),
            output_bytes=images,
        )

    def init(self, unit: str, ctx: Context) -> Tensors:
        """Return real images drawn per class, or normal noise, and a momentum of zero."""
        images = torch.cat([self.start(block, ctx) for block in self._units[unit]])
        return {"images": images, "momentum": torch.zeros_like(images)}

    def step(self, unit: str, state: Tensors, t: int, ctx: Context) -> Tensors:
        """Return the state after one update of the images and the training of the network that follows it."""
        iteration, outer = divmod(t, self.outer_loop)
        images, blocks = state["images"], self._units[unit]
        network = self._network(images.dtype, ctx)
        if outer == 0:
            reinitialise_(network, ctx.rng("network", iteration))
            if self.zero_scales == "ones":
                scales_at_one_(network)
        else:
            kept = part(state, _NETWORK)
            network.load_state_dict(part(kept, "params") | part(kept, "buffers"))
        prepare_(network, self.distance)
        if has_batchnorm(network):
            freeze_batchnorm_(network, self._freeze_images(t, images.dtype, ctx))
        own = images.split([len(block) * self.ipc for block in blocks])

        def lane(index: int) -> Tensors:
            return self._match(blocks[index], own[index], network, t, ctx)

        parts = ctx.each_lane(lane) if self.lanes else [lane(0)]
        momentum = self.momentum * state["momentum"] + torch.cat(
            [found["gradient"] for found in parts]
        )
        images = images - self.lr_img * momentum
        ctx.log(t, loss=torch.cat([found["distance"] for found in parts]).mean())
        after = {"images": images, "momentum": momentum}
        return (
            after
            if outer == self.outer_loop - 1
            else after | self._train(network, state, images, t, ctx)
        )

    def finish(self, unit: str, state: Tensors, ctx: Context) -> Tensors:
        """Return the images."""
        return {"images": state["images"]}

    def _match(
        self, block: Sequence[int], images: Tensor, network: Network, t: int, ctx: Context
    ) -> Tensors:
        """Return the ``gradient`` of a block's images ``[K * ipc, C, H, W]`` and each class's ``distance`` ``[K]``."""
        choice = self.draws(block, ctx)(t)
        if recordable(ctx.device):
            key = ("matching update", self, tuple(block), images.dtype)
            matched: Captured = ctx.cached(
                key, lambda: Captured(self._matched(block, network, ctx), ctx.device)
            )
            return dict(
                zip(
                    ("gradient", "distance"),
                    matched(images, choice.rows, *choice.numbers),
                    strict=True,
                )
            )
        forward, found = fast_forward(network, self.numerics), []
        for k, c in enumerate(block):
            real = normalise(
                self.memory(block, ctx).gather(choice.rows[k : k + 1]),
                self.dataset.mean,
                self.dataset.std,
                images.dtype,
            )
            if choice.transforms:
                real = apply_classes(choice.transforms[k : k + 1], real)
            found.append(class_gradient(network, forward, real.squeeze(0), c, self.distance))
        gradients = [torch.stack(of_parameter) for of_parameter in zip(*found, strict=True)]
        leaf = images.detach().requires_grad_(True)
        synthetic = leaf.view(len(block), self.ipc, *self.dataset.shape)
        if choice.transforms:
            synthetic = apply_classes(choice.transforms, synthetic)
        values, gradient = match(
            network, synthetic, block, gradients, self.distance, at_once=ctx.device.type != "cpu"
        )
        if choice.transforms:
            (gradient,) = torch.autograd.grad(synthetic, leaf, gradient)
        return {"gradient": gradient.reshape(images.shape), "distance": values}

    def _matched(
        self, block: Sequence[int], network: Network, ctx: Context
    ) -> Callable[..., tuple[Tensor, Tensor]]:
        """Return :meth:`_match` as a pure function of images, rows of the real ones ``[K, m]`` and
        numbers of the augmentation.

        The network's weights and statistics are read at each call.
        """
        info, memory, twin = self.dataset, self.memory(block, ctx), twice_differentiable(network)
        segmented = (
            segmented_form(network, self.numerics.precision) if self.distance == "ours" else None
        )
        together = classes_together(self.network, info, 2 * self.batch_real, ctx.device)
        targets = torch.tensor(list(block), device=ctx.device)

        def gradients(real: Tensor) -> list[Tensor]:
            parts = zip(real.split(together), targets.split(together), strict=True)
            found = [
                class_gradients(network, segmented, part, labels, self.distance)
                for part, labels in parts
            ]
            return [torch.cat(of_parameter) for of_parameter in zip(*found, strict=True)]

        def matched(
            images: Tensor, rows: Tensor, numbers: Tensor | None = None
        ) -> tuple[Tensor, Tensor]:
            taps = (
                None
                if numbers is None
                else spread(TransformTable(numbers, info.shape[1:]), images.dtype)
            )
            with torch.no_grad():
                real = augmented(
                    normalise(memory.gather(rows), info.mean, info.std, images.dtype), taps
                )
            wanted = gradients(real)
            with torch.enable_grad():
                leaf = images.detach().requires_grad_(True)
                synthetic = augmented(leaf.view(len(block), self.ipc, *info.shape), taps)
                values, gradient = match(
                    twin, synthetic, targets, wanted, self.distance, at_once=True
                )
                if taps is not None:
                    (gradient,) = torch.autograd.grad(synthetic, leaf, gradient)
            return gradient.reshape(images.shape), values

        return matched

    def _train(
        self, network: Network, state: Tensors, images: Tensor, t: int, ctx: Context
    ) -> Tensors:
        """Return the network's state, as ``network.*``, after its epochs on the images."""
        if recordable(ctx.device):
            return self._recorded_training(network, state, images, t, ctx)
        named = dict(network.train().requires_grad_(True).named_parameters())
        optimizer = torch.optim.SGD(named.values(), lr=self.lr_net, momentum=self.inner_momentum)
        for name, value in part(state, f"{_NETWORK}.momentum").items():
            optimizer.state[named[name]]["momentum_buffer"] = value.clone()
        forward, augment = fast_forward(network, self.numerics), self._inner_augmentation()
        labels = torch.tensor(self.present, device=images.device).repeat_interleave(self.ipc)
        for epoch in range(self.inner_loop):
            draws = ctx.rng("inner/augment", t, epoch)
            batches = ResidentSet(images, labels).batches(
                epoch, self.batch_train, lambda name, *ids: ctx.rng(f"inner/{name}", t, *ids)
            )
            for batch, of_batch in batches:
                train_step_(
                    forward, optimizer, augment(batch.unsqueeze(0), [draws]).squeeze(0), of_batch
                )
        optimizer.zero_grad()
        kept = (
            network.state_dict()
        )  # without buffers that are rebuilt and not saved, such as tables of positions
        trained: Tensors = {f"params.{name}": value for name, value in named.items()}
        trained |= {f"buffers.{n}": buffer for n, buffer in network.named_buffers() if n in kept}
        if self.inner_momentum:
            trained |= {
                f"momentum.{name}": optimizer.state[p]["momentum_buffer"]
                for name, p in named.items()
            }
        return {f"{_NETWORK}.{name}": value.detach().clone() for name, value in trained.items()}

    def _recorded_training(
        self, network: Network, state: Tensors, images: Tensor, t: int, ctx: Context
    ) -> Tensors:
        """Return what :meth:`_train` does, by one step that a GPU repeats."""

        def make() -> RecordedStep:
            recipe = Recipe(epochs=0, momentum=self.inner_momentum, weight_decay=0.0)
            augmentation = self._inner_augmentation()
            if not isinstance(augmentation, DrawnAugmentation):
                raise TypeError(f"{type(augmentation).__name__} cannot be recorded")
            return RecordedStep(
                TrainingStep(network, self.numerics, recipe), augmentation, ctx.device
            )

        step = ctx.cached(("inner step", self, images.dtype), make)
        before, saved = part(state, f"{_NETWORK}.momentum"), network.state_dict()
        now = {f"params.{name}": p.detach() for name, p in network.named_parameters()}
        now |= {
            f"momentum.{name}": before.get(name, torch.zeros_like(p))
            for name, p in network.named_parameters()
        }
        now |= {f"buffers.{name}": buffer for name, buffer in network.named_buffers()}
        labels = torch.tensor(self.present, device=images.device).repeat_interleave(self.ipc)
        rate = torch.tensor(self.lr_net, dtype=images.dtype, device=images.device)
        for epoch in range(self.inner_loop):
            draws = ctx.rng("inner/augment", t, epoch)
            batches = ResidentSet(images, labels).batches(
                epoch, self.batch_train, lambda name, *ids: ctx.rng(f"inner/{name}", t, *ids)
            )
            for batch, of_batch in batches:
                now, _, _ = step(now, batch, of_batch, rate, [draws])
        kept = {f"buffers.{name}" for name, _ in network.named_buffers() if name in saved}
        wanted = ("params.", "momentum.") if self.inner_momentum else ("params.",)
        return {
            f"{_NETWORK}.{name}": value
            for name, value in now.items()
            if name.startswith(wanted) or name in kept
        }

    def _inner_augmentation(self) -> BatchAugmentation:
        if not parse_strategy(self.dsa):
            return make_augmentation(Recipe(epochs=self.inner_loop), self.dataset.shape[1:])
        return make_augmentation(
            Recipe(epochs=self.inner_loop, augmentation="dsa", strategy=self.dsa),
            self.dataset.shape[1:],
        )

    def _freeze_images(self, t: int, dtype: torch.dtype, ctx: Context) -> Tensor:
        memory, classes = self.memory(self.present, ctx), list(self.present)
        rows = memory.draw(classes, FREEZE_IMAGES, [ctx.rng("freeze", t, c) for c in classes])
        return normalise(
            memory.gather(rows).flatten(0, 1), self.dataset.mean, self.dataset.std, dtype
        )

    def _network(self, dtype: torch.dtype, ctx: Context) -> Network:
        def make() -> Network:
            made = create_network(
                self.network, self.dataset.shape, self.dataset.classes, ctx.rng("network")
            )
            return made.to(ctx.device, dtype)

        return ctx.cached(
            ("matching network", self.network, self.dataset.shape, self.dataset.classes, dtype),
            make,
        )
