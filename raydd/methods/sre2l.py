"""SRe2L: squeeze, recover and relabel (Yin, Xing and Shen, NeurIPS 2023, arXiv 2306.13092), and its curriculum, CDA.

Images start as noise and are moved until a trained network is sure of them and sees in them the
statistics that its batch norms have kept of real images (docs/methods/sre2l.md, "The objective"):

    L = CE(f(x~), y) + r_loss * sum_l w_l (||running_var_l - var_l|| + ||running_mean_l - mean_l||)
        + tv L_tv + l2 mean ||x~||

for ``group_size`` images of different classes at a time, x~ being one crop, flip and shift of them
all. CDA (Yin and Shen, arXiv 2311.18838) begins with whole images and comes to small crops:
``crop_curriculum: cosine``.

Published (ImageNet-1k, ResNet-18): 21.3 / 46.8 / 52.8 / 57.0 % at 10 / 50 / 100 / 200 images per
class, with CDA 53.5 at 50; Tiny-ImageNet 41.1 at 50, with CDA 48.7.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import partial
from typing import Annotated, ClassVar

from annotated_types import Ge, Gt, Le

from raydd.labels.label_config import LabelConfig
from raydd.methods.method import register_method
from raydd.methods.recovery.recover_config import Matching
from raydd.methods.recovery.recover_groups import Order
from raydd.methods.recovery.recover_method import Recovering
from raydd.methods.recovery.recover_views import Curriculum, Views


@register_method("sre2l")
@dataclass(frozen=True, kw_only=True)
class Sre2l(Recovering):
    """Recovery from the running statistics of batch norms.

    ``group_size``: classes per group, an image of each. ``tv``, ``l2``: weights of total variation
    and of the images' norm (published scripts: 0). ``crop_curriculum``: how the crop's smallest
    area falls from its largest one to ``crop[0]``, in a ``step``, ``linear`` or along a ``cosine``
    (CDA), over the first ``milestone`` of the updates. The other keys: :class:`Recovering`.
    Defaults are ImageNet-1k's; published for Tiny-ImageNet: ``lr_img: 0.1``, ``r_loss: 1``,
    ``jitter: [-4, 4]``; for CIFAR-100: ``iterations: 1000``, no crop, no flip, ``jitter: [0, 4]``;
    for CDA on Tiny-ImageNet ``lr_img: 0.4``, ``r_loss: 0.05``.
    """

    protocol: ClassVar[str] = "sre2l"

    lr_img: Annotated[float, Gt(0)] = 0.25
    jitter: tuple[int, int] = (0, 32)
    labels: LabelConfig = field(
        default_factory=partial(LabelConfig, batch=1024, crop=(0.08, 1.0)), metadata={"key": False}
    )
    tv: Annotated[float, Ge(0)] = 0.0
    l2: Annotated[float, Ge(0)] = 0.0
    crop_curriculum: Curriculum = "none"
    milestone: Annotated[float, Gt(0), Le(1)] = 1.0

    @property
    def image_order(self) -> Order:
        """Image 0 of every class, then image 1: an id's images are a problem of their own."""
        return "ipc_major"

    def views(self) -> Views:
        """Return how views are drawn."""
        return replace(super().views(), curriculum=self.crop_curriculum, milestone=self.milestone)

    def matching(self) -> Matching:
        """Match batch norms alone."""
        return Matching(
            kinds=("bn",), patch=1, r_loss=self.r_loss, first_multiplier=self.first_multiplier
        )
