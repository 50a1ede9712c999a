"""What a group starts from: its images, and, where asked for, statistics of real images of its own classes.

Worked out in docs/methods/recovery.md, "Start images" and "Statistics of drawn images".
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from raydd.augment.crop import draw_flip
from raydd.core.units import Context
from raydd.data.catalog import DatasetInfo
from raydd.data.memory import normalise
from raydd.methods.pools.image_pool import ImagePool, Sampling, members_of, start_images
from raydd.methods.recovery.recover_objective import batch_statistics
from raydd.networks.network import Shape
from raydd.networks.taps import StatTap

LOCAL_BATCH = 256
"""Real images per forward pass where a group's own class statistics are taken."""


def noise(positions: Sequence[int], ipc: int, shape: Shape, ctx: Context) -> Tensor:
    """Return normal noise ``[n, C, H, W]``, keyed by class and id, for class-major ``positions``."""
    ids = (divmod(p, ipc) for p in positions)
    return torch.stack([torch.randn(shape, generator=ctx.rng("init", c, i)) for c, i in ids])


def from_pool(
    positions: Sequence[int],
    ipc: int,
    pool: ImagePool,
    sampling: Sampling,
    flip: bool,
    ctx: Context,
) -> Tensor:
    """Return pool images uint8 ``[n, C, H, W]`` for class-major ``positions``, drawn per class,
    mirrored at random if ``flip``.

    Reads the inputs ``pool-<unit>``.
    """
    ids = [divmod(p, ipc) for p in positions]
    classes = sorted({c for c, _ in ids})
    chosen = {
        c: start_images(pool.pool, ipc, sampling, ctx.rng("init", c)).tolist() for c in classes
    }
    kept = {c: ctx.load(f"pool-{pool.unit_of(c)}", pool.rows(c))["images"] for c in classes}
    pictures = torch.stack([kept[c][chosen[c][i]] for c, i in ids])
    if not flip:
        return pictures
    return _mirrored(
        pictures, torch.tensor([draw_flip(ctx.rng("init flip", c, i)) for c, i in ids])
    )


def local_statistics(
    taps: Sequence[StatTap],
    group: int,
    labels: Sequence[int],
    expand: int,
    flip: bool,
    info: DatasetInfo,
    ctx: Context,
) -> list[Tensor]:
    """Return ``[2, W]`` for each network: the statistics of ``expand`` real images drawn for every image of a group.

    Drawn uniformly and with replacement from the image's class, mirrored at random if ``flip``; keyed by ``group``.
    """
    draws, ids = ctx.rng("local", group), []
    for label in labels:
        members = members_of(label, ctx)
        ids.append(members[torch.randint(len(members), (expand,), generator=draws)])
    chosen = torch.cat(ids)
    flips = torch.rand(len(chosen), generator=draws) < (0.5 if flip else 0.0)

    def parts() -> Iterator[Tensor]:
        for some, mirrored in zip(chosen.split(LOCAL_BATCH), flips.split(LOCAL_BATCH), strict=True):
            pictures = _mirrored(ctx.data["train"].take(some), mirrored)
            yield normalise(pictures.to(ctx.device), info.mean, info.std)

    return batch_statistics(taps, parts())


def _mirrored(pictures: Tensor, flips: Tensor) -> Tensor:
    return torch.where(flips.view(-1, 1, 1, 1), pictures.flip(3), pictures)
