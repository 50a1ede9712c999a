"""G-VBSM: generalized various backbone and statistical matching (Shao et al., CVPR 2024, arXiv 2311.17950).

As SRe2L, with several networks in turn, convolutions matched as well as batch norms, in patches
too, statistics that remember past updates, and a term that keeps a class's images apart
(docs/methods/gvbsm.md, "The objective"):

    L = CE + r_loss * sum_l w_l sum_stat ||reference_l - stat_l|| + dd_weight * L_DD

Published (ResNet-18): ImageNet-1k 31.4 / 51.8 / 55.7 % at 10 / 50 / 100 images per class;
Tiny-ImageNet 47.6 at 50; CIFAR-100 25.9 / 59.5 / 65.0 at 1 / 10 / 50; CIFAR-10 53.5 / 59.2 at 10 /
50.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import Annotated, ClassVar

from annotated_types import Ge, Gt, Le, Lt

from raydd.labels.label_config import LabelConfig
from raydd.methods.method import register_method
from raydd.methods.recovery.recover_config import EmaCompat
from raydd.methods.recovery.recover_groups import Order
from raydd.methods.recovery.recover_method import Recovering
from raydd.training.statistics import StatisticsConfig


@register_method("gvbsm")
@dataclass(frozen=True, kw_only=True)
class Gvbsm(Recovering):
    """Recovery from the statistics of batch norms and convolutions of several networks.

    ``order``: how images are put in groups: ``class_major``, ``ten_blocks`` (published for
    Tiny-ImageNet; ipc must be a multiple of ten) or ``ipc_major``. ``statistics``: those of
    convolutions' inputs. ``momentum``: of the running statistics. ``drop_rate``: probability that a
    convolution is left out of an update. ``dd_weight``, ``dd_tau``: data densification, over the
    images of a class in a group, and its temperature. ``compat``: see :class:`EmaCompat`. The other
    keys: :class:`Recovering`. Defaults are ImageNet-1k's (80 images on 2 GPUs); published for
    Tiny-ImageNet and CIFAR: ``lr_img: 0.05``, ``momentum: 0.8``, ``drop_rate: 0.4``, ``crop: null``
    with ``pad: 8`` or 4, ``group_size: 50`` (CIFAR-10: 100), ``image_format: png``.
    """

    protocol: ClassVar[str] = "gvbsm"

    networks: tuple[str, ...] = (
        "resnet18",
        "mobilenet_v2",
        "efficientnet_b0",
        "shufflenet_v2_x0_5",
    )
    labels: LabelConfig = field(
        default_factory=partial(LabelConfig, batch=1024, crop=(0.08, 1.0), ensemble="rescaled"),
        metadata={"key": False},
    )
    statistics: StatisticsConfig = field(default_factory=StatisticsConfig)
    group_size: Annotated[int, Ge(1)] = 40
    order: Order = "class_major"
    jitter: tuple[int, int] = (0, 32)
    momentum: Annotated[float, Ge(0), Lt(1)] = 0.4
    drop_rate: Annotated[float, Ge(0), Le(1)] = 0.0
    dd_weight: Annotated[float, Ge(0)] = 1.0
    dd_tau: Annotated[float, Gt(0)] = 4.0
    compat: EmaCompat = field(default_factory=EmaCompat)

    @property
    def image_order(self) -> Order:
        """The job's order."""
        return self.order

    @property
    def tables(self) -> StatisticsConfig | None:
        """Convolutions are matched to the training set's statistics."""
        return self.statistics
