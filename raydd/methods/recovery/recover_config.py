"""What recovery minimises, as part of its stage's key; and the compat switches that jobs may set.

Worked out in docs/methods/recovery.md, "Running statistics", "Statistics of drawn images" and "Flatness".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from raydd.core.errors import ConfigError
from raydd.core.units import added
from raydd.methods.recovery.recover_groups import Group

EmaInit = Literal["zero", "first"]
EmaCarry = Literal["reset", "chain"]


LOCAL_IMAGES = 50_000
"""Real images that EDC draws on ImageNet-1k for ``category_aware=local``."""


@dataclass(frozen=True, kw_only=True)
class EmaCompat:
    """How the running statistics of the original code behave.

    ``ema_init``: they start at ``zero``, so that they are too small for the first updates
    (published; a defect), or at the ``first`` batch's. ``ema_carry``: every group starts anew
    (``reset``), or the groups of a unit run one after another and each inherits the running
    statistics and the place in the round of networks (``chain``, as one GPU of the original does;
    ``groups_per_unit`` is then the length of the chain).
    """

    ema_init: EmaInit = "zero"
    ema_carry: EmaCarry = "reset"


@dataclass(frozen=True, kw_only=True)
class EdcCompat(EmaCompat):
    """As :class:`EmaCompat`. ``swap_class_patch_stats``: match patch means to the classes' patch
    variances and the reverse, as the published class statistics make the original do; no effect on
    references drawn by ``category_aware=local``.
    """

    swap_class_patch_stats: bool = True


@dataclass(frozen=True, kw_only=True)
class Matching:
    """How statistics are matched; a field of the stage.

    ``kinds``: layers whose inputs count. ``patch``: side of the patches. ``r_loss``: weight of the
    whole term. ``first_multiplier``: of the first layer. ``variance_weight``: of distances of
    variances, those of means having 1. ``skip_silent``: names of batch norms that a network has but
    never runs, which have no statistics. ``momentum``: of the running statistics, 0
    for none. ``drop_rate``: probability that a convolution is left out of an update.
    ``class_weight``: 0 matches the data set's statistics, 1 the classes' alone. ``category_aware``:
    class statistics from the tables (``global``) or from ``local_images`` real images, shared out
    among the whole set's images (``local``). The other fields: :class:`EdcCompat`.

    Raises ``ConfigError`` for settings that exclude each other.
    """

    kinds: tuple[str, ...] = ("bn", "conv")
    patch: int = 16
    r_loss: float
    first_multiplier: float = 10.0
    momentum: float = 0.0
    drop_rate: float = 0.0
    class_weight: float = 0.0
    category_aware: Literal["global", "local"] = "global"
    local_images: int = 0
    ema_init: EmaInit = "zero"
    ema_carry: EmaCarry = "reset"
    swap_class_patch_stats: bool = False
    variance_weight: float = added(1.0)
    skip_silent: tuple[str, ...] = added(())

    def __post_init__(self) -> None:
        if self.drop_rate and "conv" not in self.kinds:
            raise ConfigError(
                f"drop_rate={self.drop_rate} drops convolutions, and none is matched (kinds: {', '.join(self.kinds)})"
            )
        if self.category_aware == "local" and not self.class_weight:
            raise ConfigError(
                "category_aware=local has no effect with class_weight=0; set class_weight above 0"
            )
        if self.category_aware == "local" and self.local_images < 1:
            raise ConfigError(
                f"category_aware=local needs local_images, not {self.local_images}; published: 50000 (ImageNet-1k)"
            )
        if self.category_aware == "global" and self.local_images not in (0, LOCAL_IMAGES):
            raise ConfigError(
                f"local_images={self.local_images} has no effect with category_aware=global"
            )
        if self.skip_silent and set(self.kinds) != {"bn"}:
            raise ConfigError(
                f"skip_silent={list(self.skip_silent)} leaves out batch norms where they alone are matched, not"
                f" {', '.join(self.kinds)}"
            )
        for name, published in (("ema_init", "zero"), ("ema_carry", "reset")):
            if getattr(self, name) != published and not self.momentum:
                raise ConfigError(
                    f"compat.{name}={getattr(self, name)} has no effect with momentum=0: there are no running"
                    " statistics"
                )

    @property
    def local(self) -> bool:
        """Whether classes are matched to real images drawn for each group."""
        return self.category_aware == "local"

    @property
    def chained(self) -> bool:
        """Whether the groups of a unit run one after another."""
        return self.ema_carry == "chain"

    def expand(self, images: int) -> int:
        """Return how many real images are drawn per synthetic one for a set of ``images``; ``ConfigError`` for none."""
        if self.local_images < images:
            raise ConfigError(
                f"local_images={self.local_images} is below the set's {images} images; it needs at least one for each"
            )
        return self.local_images // images


@dataclass(frozen=True, kw_only=True)
class Priors:
    """Terms on the images themselves; a weight of 0 leaves a term out.

    ``tv``, ``l2``: total variation, mean norm. ``dd_weight``, ``dd_tau``: data densification and
    its temperature. ``flatness_weight``, ``flatness_alpha``, ``flatness_tau``: agreement with an
    average of past images, how slowly the average moves, and the temperature. ``ConfigError`` for a
    setting of a term that is left out.
    """

    tv: float = 0.0
    l2: float = 0.0
    dd_weight: float = 0.0
    dd_tau: float = 4.0
    flatness_weight: float = 0.0
    flatness_alpha: float = 0.99
    flatness_tau: float = 4.0

    def __post_init__(self) -> None:
        for name, weight in (
            ("dd_tau", "dd_weight"),
            ("flatness_alpha", "flatness_weight"),
            ("flatness_tau", "flatness_weight"),
        ):
            if getattr(self, name) != getattr(Priors, name) and not getattr(self, weight):
                raise ConfigError(f"{name}={getattr(self, name)} has no effect with {weight}=0")

    @property
    def of_pictures(self) -> bool:
        """Whether a term is of the images alone, without a network."""
        return bool(self.tv or self.l2 or self.dd_weight)

    def check_units(self, units: Sequence[Sequence[Group]], ipc: int) -> None:
        """Raise ``ConfigError`` where data densification compares the images of a class that packed groups split."""
        if not self.dd_weight:
            return
        for groups in units:
            classes = [label for group in groups for label in set(group.labels(ipc))]
            twice = sorted({label for label in classes if classes.count(label) > 1})
            if twice:
                raise ConfigError(
                    f"dd_weight={self.dd_weight} compares the images of a class, and class {twice[0]} is split between"
                    " groups of one unit; set groups_per_unit=1, or with order=class_major group_size to a multiple of"
                    f" ipc={ipc}"
                )
