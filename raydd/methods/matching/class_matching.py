"""What methods share that move each class's images after batches of its real ones: start, draws,
resident real images.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from raydd.augment.dsa import DsaTransform, draw, parse_strategy
from raydd.augment.table import Taps, apply_taps, make_table
from raydd.core.ahead import Ahead
from raydd.core.captured import pinned, recordable
from raydd.core.errors import DataError
from raydd.core.units import Context
from raydd.data.catalog import DatasetInfo
from raydd.data.memory import ClassMemory, normalise
from raydd.methods.method import ClassBlocks, check_counts


@dataclass(frozen=True)
class Draws:
    """The random choices of one update of a block: rows of the resident images ``[K, m]``, a
    transform per class (or none).

    ``network``: weights ``[P]`` of the update's network and what is known of it, where each update
    has a network of its own. ``numbers``, for an update that is recorded: the transforms as a
    table's, none or one. What a GPU reads is in pinned memory.
    """

    rows: Tensor
    transforms: list[DsaTransform]
    numbers: tuple[Tensor, ...] = ()
    network: tuple[Tensor, ...] = ()


def augmented(images: Tensor, taps: Taps | None) -> Tensor:
    """Return ``images [K, B, C, H, W]`` after their classes' operations, if there are any."""
    return images if taps is None else apply_taps(images, taps)


def classes_together(network: str, info: DatasetInfo, each: int, device: torch.device) -> int:
    """Return how many classes' batches of ``each`` images go through a network at once: all, if a
    quarter of a GPU's memory holds them.
    """
    from raydd.training.training_cost import network_facts

    if device.type != "cuda":
        return info.classes
    facts = network_facts(network, info.shape, info.classes)
    memory = torch.cuda.get_device_properties(device).total_memory
    return max(1, int(memory / 4 / (4 * facts.activations * each)))


def check_init(info: DatasetInfo, ipc: int, init: str) -> None:
    """Raise ``ConfigError`` if a class is known to have no real images, or too few of them to start from."""
    advice = "method.init=noise with evaluation.baselines=[] (sets of as many real images)"
    check_counts(info, ipc if init == "real" else 1, advice=advice)


@dataclass(frozen=True, kw_only=True)
class ClassMatching(ClassBlocks):
    """A loop over batches of real images of each class.

    ``ipc``: synthetic images per class. ``batch_real``: real images per class and update.
    ``init_from``: ``noise`` or ``real`` images. ``dsa``: operations of the transform that each
    class's real and synthetic images share. ``classes``: ids, ascending, of the only classes to
    distil (null: all).
    """

    phase: ClassVar[str] = "distill"

    ipc: int
    batch_real: int
    init_from: str
    dsa: str
    classes: tuple[int, ...] | None = None

    @property
    def present(self) -> Sequence[int]:
        """The classes that are distilled, ascending."""
        return super().present if self.classes is None else self.classes

    @property
    def pixels(self) -> int:
        """Numbers of one image."""
        return self.dataset.channels * self.dataset.height * self.dataset.width

    def resident(self, classes: Sequence[int]) -> int:
        """Return the bytes of all real images of ``classes``, 0 where their numbers are not known."""
        counts = self.dataset.train_counts
        return self.pixels * sum(counts[c] for c in classes) if counts else 0

    def memory(self, block: Sequence[int], ctx: Context) -> ClassMemory:
        """Return the real images of a block of classes, read once by each worker."""
        return ctx.cached(
            ("images of classes", "train", block),
            lambda: ClassMemory.load(ctx.data["train"], list(block), ctx.device),
        )

    def start(self, block: Sequence[int], ctx: Context) -> Tensor:
        """Return a block's first images ``[K * ipc, C, H, W]``: real ones drawn per class, or normal noise."""
        parts = []
        for c in block:
            if self.init_from == "noise":
                parts.append(
                    torch.randn((self.ipc, *self.dataset.shape), generator=ctx.rng("init", c)).to(
                        ctx.device
                    )
                )
                continue
            of_class = self.memory(block, ctx).of(c)
            if len(of_class) < self.ipc:
                raise DataError(
                    f"class {c} has {len(of_class)} training images; init=real needs ipc={self.ipc}"
                )
            chosen = torch.randperm(len(of_class), generator=ctx.rng("init", c))[: self.ipc]
            parts.append(
                normalise(of_class[chosen.to(of_class.device)], self.dataset.mean, self.dataset.std)
            )
        return torch.cat(parts)

    def draws(
        self,
        block: Sequence[int],
        ctx: Context,
        networks: Callable[[int], tuple[Tensor, ...]] | None = None,
    ) -> Ahead[Draws]:
        """Return the random choices of a block's updates, by number; for a GPU they are made ahead in threads.

        ``networks``: gives an update's network, where each has one of its own.
        """

        def make() -> Ahead[Draws]:
            memory, size, device = self.memory(block, ctx), self.dataset.shape[1:], ctx.device

            def choose(t: int) -> Draws:
                rows = memory.draw(
                    list(block), self.batch_real, [ctx.rng("real", t, c) for c in block]
                )
                transforms = (
                    [draw(self.dsa, ctx.rng("dsa", t, c), size=size) for c in block]
                    if parse_strategy(self.dsa)
                    else []
                )
                network = () if networks is None else networks(t)
                if not recordable(device):
                    return Draws(rows, transforms, (), network)
                numbers = (pinned(make_table(transforms).numbers, device),) if transforms else ()
                return Draws(
                    pinned(rows, device),
                    transforms,
                    numbers,
                    tuple(pinned(part, device) for part in network),
                )

            return Ahead(choose, threaded=device.type == "cuda", depth=4)

        return ctx.cached(("draws", self, block), make)
