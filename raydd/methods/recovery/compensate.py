"""Recovery of offsets that all images of a group share, against one network
(docs/methods/dwa_infer.md, "Compensators").
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor

from raydd.artifacts.codec import stored_as
from raydd.artifacts.offsets import OFFSETS, composed, levels
from raydd.core.errors import ConfigError
from raydd.core.tensors import Tensors
from raydd.core.units import Context, Cost
from raydd.methods.recovery.recover import MatchStatistics
from raydd.methods.recovery.recover_groups import Group
from raydd.methods.recovery.recover_start import from_pool


@dataclass(frozen=True, kw_only=True)
class Compensate(MatchStatistics):
    """Move one offset ``[C, H, W]`` for each group, added to all its start images, as
    :class:`MatchStatistics` moves images; nothing bounds it.

    State of a unit: ``images`` float32 ``[G, C, H, W]``, the offsets of its groups, with Adam's
    moments. ``image_format``: ``png`` puts out the offsets, int16 levels ``[G, C, H, W]``, and
    ``index``, the groups' numbers. Others put out what is composed, uint8 ``images`` as they are stored
    so, with ``index`` (class-major position), and, with ``natural``, the start images under that name.
    ``before_last``: the last update is left out, as the published code saves what it composed before it.
    """

    phase: ClassVar[str] = "recover"
    version: ClassVar[int] = 1

    natural: bool = False
    before_last: bool = False

    def steps(self, unit: str) -> int:
        """Return the number of updates."""
        return self.iterations - self.before_last

    def cost(self, unit: str) -> Cost:
        """Return the cost: that of images, of which offsets are the state."""
        cost, info, groups = super().cost(unit), self.dataset, self.groups_of[unit]
        pixels = info.channels * info.height * info.width
        count = sum(len(group.positions) for group in groups)
        output = len(groups) * (2 * pixels + 8)
        if self.image_format != "png":
            output = (1 + self.natural) * count * (pixels + 16)
        return replace(cost, state_bytes=12 * len(groups) * pixels, output_bytes=output)

    def init(self, unit: str, ctx: Context) -> Tensors:
        """Return offsets and moments of zero."""
        shape = (len(self.groups_of[unit]), *self.dataset.shape)
        return {
            name: torch.zeros(shape, device=ctx.device) for name in ("images", "first", "second")
        }

    def rows(self, unit: str, turn: slice) -> slice:
        """Return where the offsets of some of a unit's groups lie: one row for each."""
        return turn

    def renderer(self, unit: str, turn: slice, ctx: Context) -> Callable[[Tensor], Tensor]:
        """Return what adds the groups' offsets to the start images of some groups."""
        return partial(_shared, self.start(self.groups_of[unit][turn], ctx))

    def project(self, parameters: Tensor, low: Tensor, high: Tensor) -> Tensor:
        """Return the offsets: what they are added to is cut to pixels only when it is put out."""
        return parameters

    def finish(self, unit: str, state: Tensors, ctx: Context) -> Tensors:
        """Return the offsets as they are stored, or the pictures composed of them."""
        groups, offsets = self.groups_of[unit], state["images"].cpu()
        index = torch.tensor([group.index for group in groups])
        kept = levels(offsets, self.dataset.std)
        if self.image_format == "png":
            return {OFFSETS: kept, "index": index}
        return self._pictures(groups, kept, ctx)

    def _pictures(self, groups: Sequence[Group], offsets: Tensor, ctx: Context) -> Tensors:
        positions = [p for group in groups for p in group.positions]
        if self.pool is None:
            raise ConfigError("offsets are added to images of a pool")
        pixels = from_pool(positions, self.ipc, self.pool, self.sampling, False, ctx)
        index = torch.tensor(positions)
        shown = {"images": _shared(pixels, offsets)} | ({"natural": pixels} if self.natural else {})
        stored = {name: stored_as(part, self.image_format) for name, part in shown.items()}
        return {**stored, "index": index}


def _shared(images: Tensor, offsets: Tensor) -> Tensor:
    """Return images ``[G * s, C, H, W]`` of groups of equal size with an offset ``[G, C, H, W]`` for each group."""
    grouped = images.unflatten(0, (len(offsets), -1))
    return composed(grouped, offsets.unsqueeze(1)).flatten(0, 1)
