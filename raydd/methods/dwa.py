"""DWA: diversity-driven synthesis by directed weight adjustment (Du et al., NeurIPS 2024, arXiv 2409.17612).

As SRe2L, from real images and with weights that are another's for every group of them: those of a
trained network, moved uphill on the images that the group starts from
(docs/methods/dwa_infer.md, "The objective"):

    theta <- theta + (rho / K) g / ||g||,  g = grad_theta CE(f_theta(x~), y),  K times
    L = CE(f_theta(x~), y) + r_loss * sum_l w_l (v ||running_var_l - var_l|| + ||running_mean_l - mean_l||)

Published (ResNet-18): CIFAR-10 32.6 / 53.1 % at 10 / 50 images per class; CIFAR-100 39.6 / 60.9;
Tiny-ImageNet 52.8 / 56.0 at 50 / 100; ImageNet-1k 37.9 / 55.2 / 59.2 at 10 / 50 / 100.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import Annotated, Any, ClassVar

from annotated_types import Ge, Gt

from raydd.labels.label_config import LabelConfig
from raydd.methods.method import register_method
from raydd.methods.pools.init_config import InitConfig
from raydd.methods.recovery.displaced import DwaCompat, MatchDisplaced
from raydd.methods.recovery.recover import MatchStatistics
from raydd.methods.recovery.recover_config import Matching
from raydd.methods.recovery.recover_groups import Order
from raydd.methods.recovery.recover_method import Recovering


@register_method("dwa")
@dataclass(frozen=True, kw_only=True)
class Dwa(Recovering):
    """Recovery of real images from the running statistics of batch norms, against displaced networks.

    ``init``: what images start as, and networks are displaced on. ``rho``: length of the
    displacement; ``ascent_steps``: steps that it is made in. ``variance_weight``: of distances of
    variances, those of means having 1. ``group_size``: classes per group, an image of each.
    ``groups_per_unit``: groups that one worker computes one after another. ``compat``: see
    :class:`DwaCompat`. The other keys: :class:`Recovering`. Defaults are ImageNet-1k's; published
    for CIFAR: ``iterations: 1000``, ``variance_weight: 11``, ``ascent_steps: 12``, ``crop: null``,
    ``flip: false``, ``jitter: [0, 4]``; for Tiny-ImageNet ``lr_img: 0.1``, ``variance_weight: 11``,
    ``ascent_steps: 12``, ``group_size: 200``, ``jitter: [0, 4]``.
    """

    protocol: ClassVar[str] = "dwa"

    labels: LabelConfig = field(
        default_factory=partial(LabelConfig, batch=128, crop=(0.08, 1.0), codec="online"),
        metadata={"key": False},
    )
    init: InitConfig = field(default_factory=partial(InitConfig, kind="real"))
    iterations: Annotated[int, Ge(1)] = 2000
    lr_img: Annotated[float, Gt(0)] = 0.25
    jitter: tuple[int, int] = (0, 32)
    rho: Annotated[float, Ge(0)] = 0.015
    ascent_steps: Annotated[int, Ge(1)] = 15
    variance_weight: Annotated[float, Ge(0)] = 2.0
    compat: DwaCompat = field(default_factory=DwaCompat)

    @property
    def start(self) -> InitConfig:
        """The job's start."""
        return self.init

    @property
    def image_order(self) -> Order:
        """Image 0 of every class, then image 1: an id's images are a problem of their own."""
        return "ipc_major"

    def matching(self) -> Matching:
        """Match batch norms alone."""
        return Matching(
            kinds=("bn",),
            patch=1,
            r_loss=self.r_loss,
            first_multiplier=self.first_multiplier,
            variance_weight=self.variance_weight,
        )

    def recovery(self, **fields: Any) -> MatchStatistics:
        """Return the stage that recovers the images; they are not mirrored before."""
        return MatchDisplaced(
            **fields,
            mirror_start=False,
            rho=self.rho,
            ascent_steps=self.ascent_steps,
            compat=self.compat,
        )
