"""What the workers of a group tell each other."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist

from raydd.core.tensors import Tensors


def same_moment(now: int, world: int) -> int:
    """Return the first worker's ``now``, on each of ``world`` workers."""
    box = [now]
    if world > 1:
        dist.broadcast_object_list(box, src=0)
    return box[0]


class GlooLanes:
    """The Train group's process group: lanes travel as CPU tensors, in lane order."""

    def __init__(self, rank: int, world: int) -> None:
        self.rank, self.world = rank, world

    def gather(self, mine: dict[int, Tensors]) -> dict[int, Tensors]:
        """Return every lane's tensors, on every worker."""
        boxes: list[Any] = [None] * self.world
        dist.all_gather_object(
            boxes, {lane: {k: v.detach().cpu() for k, v in t.items()} for lane, t in mine.items()}
        )
        return {lane: tensors for box in boxes for lane, tensors in box.items()}

    def agree(self, value: int) -> int:
        """Return rank 0's ``value``, on every worker."""
        box = torch.tensor([value], dtype=torch.int64)
        dist.broadcast(box, src=0)
        return int(box.item())

    def same(self, text: str) -> bool:
        """Return whether every worker passed the same text."""
        boxes: list[Any] = [None] * self.world
        dist.all_gather_object(boxes, text)
        return len(set(boxes)) == 1
