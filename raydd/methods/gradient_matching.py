"""Gradient matching, the loop that DC and DSA share (specification of DC, sections 1.0 to 1.2).

An iteration draws a new network and makes ``outer_loop`` updates of all images; each moves them, by SGD with momentum, down

    L = sum_c D(grad_theta CE(net(S_c), c), grad_theta CE(net(real_c), c)),

and between two updates the network is trained on them for ``inner_loop`` epochs. With one update per iteration (one image per
class) the network is never trained and classes never talk: blocks of them are units. Else blocks are lanes of one unit, which
exchange the images' gradients once per update; every worker trains the same network.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import torch
from torch import Tensor

from raydd.augment.dsa import DsaTransform, apply_classes, draw, parse_strategy
from raydd.core.ahead import Ahead
from raydd.core.errors import DataError
from raydd.core.tensors import Tensors
from raydd.core.units import Context, Cost, Stage
from raydd.data.catalog import DatasetInfo
from raydd.data.memory import ClassMemory, normalise
from raydd.methods.base import class_blocks
from raydd.methods.parameter_gradients import class_gradient, freeze_batchnorm_, match, prepare_, train_step_
from raydd.networks import Network, create_network, fast_forward, has_batchnorm, reinitialise_
from raydd.training.augmentation import Augment, make_augmentation
from raydd.training.recipe import Recipe
from raydd.training.sgd import part
from raydd.training.students import ResidentSet

FREEZE_IMAGES = 16
"""Real images per class that batch norms see before they are frozen."""

_NETWORK = "network"
"""What the names of the network's tensors in a state begin with, before a dot."""


@dataclass(frozen=True)
class _Draws:
    """The random choices of one update of a block: rows of the resident images ``[K, m]``, a transform per class."""

    rows: Tensor
    transforms: list[DsaTransform]


@dataclass(frozen=True, kw_only=True)
class MatchGradients(Stage):
    """The loop; a step is one update of the images and, unless it is a network's last, the network's epochs behind it.

    State: ``images`` and ``momentum`` ``[K * ipc, C, H, W]`` of the unit's classes, and, in the middle of an iteration, the
    network's weights, statistics and (if it has one) momentum as ``network.*``.

    ``classes``: ids, ascending, of the only classes to distil (null: all); the network has outputs for all of them either way.
    """

    phase: ClassVar[str] = "distill"

    dataset: DatasetInfo
    ipc: int
    network: str
    iterations: int
    outer_loop: int
    inner_loop: int
    lr_img: float
    momentum: float
    lr_net: float
    inner_momentum: float
    batch_real: int
    batch_train: int
    distance: str
    init_from: str
    dsa: str
    classes_per_unit: int
    classes: tuple[int, ...] | None = None

    @cached_property
    def _classes(self) -> Sequence[int]:
        return range(self.dataset.classes) if self.classes is None else self.classes

    @cached_property
    def _blocks(self) -> dict[str, Sequence[int]]:
        return class_blocks(self._classes, self.classes_per_unit)

    @cached_property
    def _units(self) -> dict[str, tuple[Sequence[int], ...]]:
        """Each unit's blocks of classes."""
        if self.outer_loop > 1:
            return {"all": tuple(self._blocks.values())}
        return {name: (block,) for name, block in self._blocks.items()}

    @property
    def lanes(self) -> int:
        """Return the number of class blocks that one unit holds; 0 where a unit is one block."""
        return len(self._blocks) if self.outer_loop > 1 and len(self._blocks) > 1 else 0

    def units(self) -> Sequence[str]:
        """Return ``all``, or the names of the class blocks where the network is never trained."""
        return tuple(self._units)

    def steps(self, unit: str) -> int:
        """Return the number of updates of the images."""
        return self.iterations * self.outer_loop

    def cost(self, unit: str) -> Cost:
        """Return the cost: gradients of real images, first and second derivatives of synthetic ones, the network's epochs."""
        from raydd.training.cost import network_facts

        facts = network_facts(self.network, self.dataset.shape, self.dataset.classes)
        count = sum(len(block) for block in self._units[unit])
        pixels = self.dataset.channels * self.dataset.height * self.dataset.width
        images = 4 * count * self.ipc * pixels
        per_iteration = self.outer_loop * count * (3 * self.batch_real + 7 * self.ipc)
        epochs = (self.outer_loop - 1) * self.inner_loop
        counts = self.dataset.train_counts
        resident = pixels * sum(counts[c] for block in self._units[unit] for c in block) if counts else 0
        second = 4 * self.ipc * max(len(block) for block in self._units[unit])
        at_once = max(2 * self.batch_real, second, 2 * min(self.batch_train, count * self.ipc) if epochs else 0)
        return Cost(
            flop=facts.flop * self.iterations * (per_iteration + 3 * epochs * count * self.ipc),
            peak_bytes=resident + 3 * images + 4 * facts.activations * at_once + 4 * facts.parameters * (3 + 2 * self.classes_per_unit),
            state_bytes=2 * images + (4 * facts.parameters * (2 if self.inner_momentum else 1) if self.outer_loop > 1 else 0),
            output_bytes=images,
        )

    def init(self, unit: str, ctx: Context) -> Tensors:
        """Return real images drawn per class, or normal noise, and a momentum of zero."""
        parts = []
        for block in self._units[unit]:
            for c in block:
                if self.init_from == "noise":
                    parts.append(torch.randn((self.ipc, *self.dataset.shape), generator=ctx.rng("init", c)).to(ctx.device))
                    continue
                of_class = self._memory(block, ctx).of(c)
                if len(of_class) < self.ipc:
                    raise DataError(f"class {c} has {len(of_class)} training images; init=real needs ipc={self.ipc}")
                chosen = torch.randperm(len(of_class), generator=ctx.rng("init", c))[: self.ipc]
                parts.append(normalise(of_class[chosen.to(of_class.device)], self.dataset.mean, self.dataset.std))
        images = torch.cat(parts)
        return {"images": images, "momentum": torch.zeros_like(images)}

    def step(self, unit: str, state: Tensors, t: int, ctx: Context) -> Tensors:
        """Return the state after one update of the images and the training of the network that follows it."""
        iteration, outer = divmod(t, self.outer_loop)
        images, blocks = state["images"], self._units[unit]
        network = self._network(images.dtype, ctx)
        if outer == 0:
            reinitialise_(network, ctx.rng("network", iteration))
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
        momentum = self.momentum * state["momentum"] + torch.cat([found["gradient"] for found in parts])
        images = images - self.lr_img * momentum
        ctx.log(t, loss=torch.cat([found["distance"] for found in parts]).mean())
        after = {"images": images, "momentum": momentum}
        return after if outer == self.outer_loop - 1 else after | self._train(network, state, images, t, ctx)

    def finish(self, unit: str, state: Tensors, ctx: Context) -> Tensors:
        """Return the images."""
        return {"images": state["images"]}

    def _match(self, block: Sequence[int], images: Tensor, network: Network, t: int, ctx: Context) -> Tensors:
        """Return the ``gradient`` of a block's images ``[K * ipc, C, H, W]`` and each class's ``distance`` ``[K]``."""
        draws: Ahead[_Draws] = ctx.cached(("matching draws", self, block), lambda: self._draw_ahead(block, ctx))
        choice, safe = draws(t), self.numerics.deterministic
        forward, found = fast_forward(network, self.numerics), []
        for k, c in enumerate(block):
            real = normalise(self._memory(block, ctx).gather(choice.rows[k : k + 1]), self.dataset.mean, self.dataset.std, images.dtype)
            if choice.transforms:
                real = apply_classes(choice.transforms[k : k + 1], real, safe)
            found.append(class_gradient(network, forward, real.squeeze(0), c, self.distance))
        gradients = [torch.stack(of_parameter) for of_parameter in zip(*found, strict=True)]
        leaf = images.detach().requires_grad_(True)
        synthetic = leaf.view(len(block), self.ipc, *self.dataset.shape)
        if choice.transforms:
            synthetic = apply_classes(choice.transforms, synthetic, safe)
        values, gradient = match(network, synthetic, block, gradients, self.distance, at_once=ctx.device.type != "cpu")
        if choice.transforms:
            (gradient,) = torch.autograd.grad(synthetic, leaf, gradient)
        return {"gradient": gradient.reshape(images.shape), "distance": values}

    def _train(self, network: Network, state: Tensors, images: Tensor, t: int, ctx: Context) -> Tensors:
        """Return the network's state, as ``network.*``, after its epochs on the images."""
        named = dict(network.train().requires_grad_(True).named_parameters())
        optimizer = torch.optim.SGD(named.values(), lr=self.lr_net, momentum=self.inner_momentum)
        for name, value in part(state, f"{_NETWORK}.momentum").items():
            optimizer.state[named[name]]["momentum_buffer"] = value.clone()
        forward, augment = fast_forward(network, self.numerics), self._inner_augmentation()
        labels = torch.tensor(self._classes, device=images.device).repeat_interleave(self.ipc)
        for epoch in range(self.inner_loop):
            draws = ctx.rng("inner/augment", t, epoch)
            batches = ResidentSet(images, labels).batches(epoch, self.batch_train, lambda name, *ids: ctx.rng(f"inner/{name}", t, *ids))
            for batch, of_batch in batches:
                train_step_(forward, optimizer, augment(batch.unsqueeze(0), [draws]).squeeze(0), of_batch)
        optimizer.zero_grad()
        kept = network.state_dict()  # without buffers that are rebuilt and not saved, such as tables of positions
        trained: Tensors = {f"params.{name}": value for name, value in named.items()}
        trained |= {f"buffers.{n}": buffer for n, buffer in network.named_buffers() if n in kept}
        if self.inner_momentum:
            trained |= {f"momentum.{name}": optimizer.state[p]["momentum_buffer"] for name, p in named.items()}
        return {f"{_NETWORK}.{name}": value.detach().clone() for name, value in trained.items()}

    def _inner_augmentation(self) -> Augment:
        if not parse_strategy(self.dsa):
            return lambda images, draws: images
        return make_augmentation(Recipe(epochs=self.inner_loop, augmentation="dsa", strategy=self.dsa), self.dataset.shape[1:])

    def _freeze_images(self, t: int, dtype: torch.dtype, ctx: Context) -> Tensor:
        memory, classes = self._memory(self._classes, ctx), list(self._classes)
        rows = memory.draw(classes, FREEZE_IMAGES, [ctx.rng("freeze", t, c) for c in classes])
        return normalise(memory.gather(rows).flatten(0, 1), self.dataset.mean, self.dataset.std, dtype)

    def _draw_ahead(self, block: Sequence[int], ctx: Context) -> Ahead[_Draws]:
        memory, size = self._memory(block, ctx), self.dataset.shape[1:]

        def draws(t: int) -> _Draws:
            rows = memory.draw(list(block), self.batch_real, [ctx.rng("real", t, c) for c in block])
            transforms = [draw(self.dsa, ctx.rng("dsa", t, c), size=size) for c in block] if parse_strategy(self.dsa) else []
            return _Draws(rows, transforms)

        return Ahead(draws, threaded=ctx.device.type == "cuda")

    def _memory(self, block: Sequence[int], ctx: Context) -> ClassMemory:
        return ctx.cached(("images of classes", "train", block), lambda: ClassMemory.load(ctx.data["train"], list(block), ctx.device))

    def _network(self, dtype: torch.dtype, ctx: Context) -> Network:
        def make() -> Network:
            made = create_network(self.network, self.dataset.shape, self.dataset.classes, ctx.rng("network"))
            return made.to(ctx.device, dtype)

        return ctx.cached(("matching network", self.network, self.dataset.shape, self.dataset.classes, dtype), make)
