"""EDC: elucidating the design space of dataset condensation (Shao et al., NeurIPS 2024, arXiv 2404.13733).

Images start as tiles of real crops and are moved a little, against several networks in turn,
towards the statistics of the training set and, in equal parts, of their own classes
(docs/methods/edc.md, "The objective"):

    L = CE + r_loss * sum_l w_l [ (1 - a) sum_stat ||G_l - stat_l||
                                  + a sum_stat ||T_l(y) - stat_l|| ],    a = class_weight = 1/2

where a statistic is a running one with the gradient of the present batch's. Published as part of
the method, but off in its scripts: ``flatness_weight``, agreement with an average of past images.

Published (ImageNet-1k, 1 / 10 / 50 images per class): ResNet-18 12.8 / 48.6 / 58.0 %; ResNet-50
54.1 / 64.3 at 10 / 50; CIFAR-10 32.6 / 79.1 / 87.0; CIFAR-100 39.7 / 63.7 / 68.6; Tiny-ImageNet
39.2 / 51.2 / 57.2; ImageNet-10 45.2 / 63.4 / 82.2.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal

from annotated_types import Ge, Gt, Le, Lt

from raydd.core.units import unkeyed
from raydd.methods.method import register_method
from raydd.methods.pools.init_config import InitConfig, Sampling
from raydd.methods.recovery.recover_config import LOCAL_IMAGES, EdcCompat
from raydd.methods.recovery.recover_method import Recovering
from raydd.training.statistics import StatisticsConfig


@dataclass(frozen=True, kw_only=True)
class EdcInit(InitConfig):
    """:class:`InitConfig` with EDC's draws, with replacement from RDED's 50 images per class, as the default."""

    pool: Annotated[int, Ge(1)] | None = 50
    sampling: Sampling = "with_replacement"


@register_method("edc")
@dataclass(frozen=True, kw_only=True)
class Edc(Recovering):
    """Recovery of real crops from the statistics of the training set and of its classes.

    ``init``: what images start as. ``statistics``: those of layers' inputs, over all images and for
    each class. ``momentum``: of the running statistics. ``drop_rate``: probability that a
    convolution is left out of an update. ``class_weight``: share of the classes' statistics.
    ``category_aware``: class statistics from the tables (``global``) or from ``local_images`` real
    images shared out among the set's images (``local``; hurts at one image per class).
    ``flatness_weight``, ``flatness_alpha``, ``flatness_tau``: agreement with the average of past
    images, how slowly it moves, temperature. ``dd_weight``, ``dd_tau``: G-VBSM's data
    densification. ``compat``: see :class:`EdcCompat`. The other keys: :class:`Recovering`. Defaults
    are ImageNet-1k's (80 images on 4 GPUs); published elsewhere: ``r_loss: 0.01`` with
    ``iterations`` 2000 (Tiny-ImageNet, CIFAR-100), 75 (CIFAR-10, with ``crop: [0.08, 1]``) or 50
    (ImageNet-10, with ``momentum: 0``); ``group_size`` 25, 25, 10, 100.
    """

    protocol: ClassVar[str] = "edc"

    networks: tuple[str, ...] = (
        "resnet18",
        "mobilenet_v2",
        "efficientnet_b0",
        "shufflenet_v2_x0_5",
        "alexnet",
    )
    label_networks: tuple[str, ...] = unkeyed(
        default=("resnet18", "mobilenet_v2", "shufflenet_v2_x0_5", "alexnet")
    )
    init: EdcInit = field(default_factory=EdcInit)
    statistics: StatisticsConfig = field(default_factory=StatisticsConfig)
    iterations: Annotated[int, Ge(1)] = 1000
    lr_img: Annotated[float, Gt(0)] = 0.05
    group_size: Annotated[int, Ge(1)] = 20
    groups_per_unit: Annotated[int, Ge(1)] = 4
    r_loss: Annotated[float, Ge(0)] = 0.1
    crop: tuple[float, float] | None = (0.5, 1.0)
    momentum: Annotated[float, Ge(0), Lt(1)] = 0.8
    drop_rate: Annotated[float, Ge(0), Le(1)] = 0.0
    class_weight: Annotated[float, Ge(0), Le(1)] = 0.5
    category_aware: Literal["global", "local"] = "global"
    local_images: Annotated[int, Ge(1)] = LOCAL_IMAGES
    flatness_weight: Annotated[float, Ge(0)] = 0.0
    flatness_alpha: Annotated[float, Ge(0), Lt(1)] = 0.99
    flatness_tau: Annotated[float, Gt(0)] = 4.0
    dd_weight: Annotated[float, Ge(0)] = 0.0
    dd_tau: Annotated[float, Gt(0)] = 4.0
    compat: EdcCompat = field(default_factory=EdcCompat)

    @property
    def start(self) -> InitConfig:
        """The job's start."""
        return self.init

    @property
    def tables(self) -> StatisticsConfig | None:
        """Layers are matched to the training set's and the classes' statistics."""
        return self.statistics
