"""IDM, improved distribution matching (Zhao, Li, Qin and Yu, CVPR 2023, arXiv 2307.09742).

Each stored image holds four; every update draws a network of a queue that learns from real images
meanwhile, and moves the images down

    L = sum_c || mean_i embed(real_{c,i}) - mean_j embed(seen_{c,j}) ||^2 + ce_weight * accuracy * CE(seen_c)

Worked out in docs/methods/idm_bacon.md, "IDM's objective".

Published (ConvNet, protocol idm), as BACON's authors give them, at 1 / 10 / 50 images per class:
MNIST 93.8 / 96.3 / 97.0 %; Fashion-MNIST 78.2 / 82.5 / 84.0; SVHN 69.5 / 83.0 / 87.5; CIFAR-10
45.6 / 58.6 / 67.5; CIFAR-100 20.1 / 45.1 / 50.0; Tiny-ImageNet 10.1 / 21.9 at 1 / 10.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from raydd.methods.matching.queue_matching import MatchUnderQueue
from raydd.methods.matching.queue_method import QueueMatching
from raydd.methods.method import register_method


@register_method("idm")
@dataclass(frozen=True, kw_only=True)
class Idm(QueueMatching):
    """Improved distribution matching; the fields are those of :class:`QueueMatching`."""

    stage: ClassVar[type[MatchUnderQueue]] = MatchUnderQueue
