"""DC, dataset condensation with gradient matching (Zhao, Mopuri and Bilen, ICLR 2021, arXiv 2006.05929).

The loop is :mod:`raydd.methods.matching.gradient_matching` (algorithm 1); images start as noise
and nothing is augmented. Worked out in docs/methods/dc_dsa.md, "The loop".

Published (ConvNet, DC protocol) at 1 / 10 / 50 images per class: MNIST 91.7 / 97.4 / 98.8 %;
Fashion-MNIST 70.5 / 82.3 / 83.6; SVHN 31.2 / 76.1 / 82.3; CIFAR-10 28.3 / 44.9 / 53.9; CIFAR-100
12.8 / 25.2 (at 1 / 10).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from raydd.methods.matching.gradient_method import GradientMatching
from raydd.methods.method import register_method


@register_method("dc")
@dataclass(frozen=True, kw_only=True)
class Dc(GradientMatching):
    """Gradient matching without augmentation; the fields are those of :class:`GradientMatching`."""

    protocol: ClassVar[str] = "dc"
