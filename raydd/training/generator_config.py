"""Settings of a generator of a data set's images: its sizes, and how it is trained or where its weights are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge, Gt, Lt

from raydd.augment.dsa import parse_strategy
from raydd.core.errors import ConfigError
from raydd.core.units import added
from raydd.data.catalog import DatasetInfo
from raydd.networks.biggan import Pooling
from raydd.networks.folded_generator import GanShape

SMALLEST = 7
"""A side that is not halved any further, after two times."""
OF_TRAINING = (
    *("rounds", "batch", "d_steps", "lr", "lr_discriminator", "ema", "ema_start"),
    *("augment", "flip", "standing", "pooling"),
)
"""Settings without effect on a generator that is read from a file."""


@dataclass(frozen=True, kw_only=True)
class GeneratorConfig:
    """A conditional generator and its training against a discriminator of equal width.

    ``width``: channels of every block. ``dim_z``: numbers of a latent vector. ``bottom``,
    ``blocks``: the side that the first layer makes, and how often it is doubled (null: twice, and
    more while more than 7 pixels are left). ``rounds``: updates of the generator, each after
    ``d_steps`` of the discriminator on ``batch`` real and as many made images. ``lr``,
    ``lr_discriminator``: of Adam without momentum. ``ema``: decay of the average of the generator's
    weights that is put out, of the rounds from ``ema_start`` on (null: a third of them, at most
    1,000). ``augment``: operations that every image goes through before it is judged, real or made,
    each with its own numbers (null: color, crop and cutout; crop and cutout of grey images);
    ``flip``: half of the real images are mirrored before (null: where that is an augmentation of
    the data set). ``standing``: batches of 256 made images over which the statistics of batch norms
    are taken at the end. ``weights``: a file of a trained generator, in place of a training.
    """

    width: Annotated[int, Ge(1)] = 32
    dim_z: Annotated[int, Ge(1)] = 64
    bottom: Annotated[int, Ge(1)] | None = None
    blocks: Annotated[int, Ge(1)] | None = None
    rounds: Annotated[int, Ge(1)] = 3000
    batch: Annotated[int, Ge(2)] = 64
    d_steps: Annotated[int, Ge(1)] = 2
    lr: Annotated[float, Gt(0)] = 2e-4
    lr_discriminator: Annotated[float, Gt(0)] = 4e-4
    ema: Annotated[float, Gt(0), Lt(1)] = 0.999
    ema_start: Annotated[int, Ge(0)] | None = None
    augment: str | None = None
    flip: bool | None = None
    standing: Annotated[int, Ge(1)] = 50
    pooling: Pooling = added("sum")
    weights: str | None = None

    def __post_init__(self) -> None:
        parse_strategy(self.augment)
        if self.ema_start is not None and self.ema_start >= self.rounds:
            raise ConfigError(
                f"ema_start={self.ema_start} must be below the {self.rounds} rounds, or nothing is averaged"
            )
        if self.weights is None:
            return
        for name in OF_TRAINING:
            if getattr(self, name) != type(self).__dataclass_fields__[name].default:
                raise ConfigError(
                    f"{name}={getattr(self, name)} has no effect: the generator's weights are read from {self.weights}"
                )

    @property
    def averaged_from(self) -> int:
        """The round from which weights are averaged."""
        return min(1000, self.rounds // 3) if self.ema_start is None else self.ema_start

    def operations(self, info: DatasetInfo) -> str:
        """Return the operations that images go through before they are judged, ``none`` for none."""
        if self.augment is not None:
            return self.augment or "none"
        return "color_crop_cutout" if info.channels == 3 else "crop_cutout"

    def mirrors(self, info: DatasetInfo) -> bool:
        """Return whether real images are mirrored."""
        return "flip" in parse_strategy(info.dsa_strategy) if self.flip is None else self.flip

    def sizes(self, info: DatasetInfo) -> GanShape:
        """Return the sizes for a data set; ``ConfigError`` if no generator of these makes its images."""
        if info.height != info.width:
            raise ConfigError(
                f"a generator makes square images; those of {info.name} are {info.height}×{info.width}"
            )
        side = info.width
        bottom, blocks = self.bottom, self.blocks
        if blocks is None:
            blocks = 0
            while (side // (bottom or 1)) % 2 ** (blocks + 1) == 0 and (
                side // 2**blocks > bottom if bottom else blocks < 2 or side // 2**blocks > SMALLEST
            ):
                blocks += 1
        found = GanShape(
            channels=info.channels,
            classes=info.classes,
            width=self.width,
            dim_z=self.dim_z,
            bottom=bottom or max(1, side // 2**blocks),
            blocks=max(1, blocks),
        )
        if found.side != side:
            raise ConfigError(
                f"bottom={found.bottom} doubled {found.blocks} times makes images of {found.side} pixels; those of"
                f" {info.name} have {side}"
            )
        if side % 2**found.pools:
            raise ConfigError(
                f"images of {side} pixels cannot be halved {found.pools} times, as the discriminator does"
            )
        return found
