"""DSA, dataset condensation with differentiable siamese augmentation (Zhao and Bilen, ICML 2021, arXiv 2102.08259).

DC's loop (:mod:`raydd.methods.matching.gradient_matching`) from real images, with one random transform per
class and update for its real and its synthetic images alike; the network, too, is trained on
augmented images. Worked out in docs/methods/dc_dsa.md, "Siamese augmentation".

Published (ConvNet, DSA protocol) at 1 / 10 / 50 images per class: MNIST 88.7 / 97.8 / 99.2 %;
Fashion-MNIST 70.6 / 84.6 / 88.7; SVHN 27.5 / 79.2 / 84.4; CIFAR-10 28.8 / 52.1 / 60.6; CIFAR-100
13.9 / 32.3 / 42.8 (the last as quoted by later papers).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from raydd.data.catalog import DatasetInfo
from raydd.methods.matching.gradient_method import GradientMatching
from raydd.methods.method import register_method


@register_method("dsa")
@dataclass(frozen=True, kw_only=True)
class Dsa(GradientMatching):
    """Gradient matching under siamese augmentation; the other fields are those of :class:`GradientMatching`.

    ``dsa``: operations joined by ``_``, ``none``, or null for those published for the data set.
    """

    protocol: ClassVar[str] = "dsa"

    init: Literal["real", "noise"] = "real"
    dsa: str | None = None

    def strategy(self, info: DatasetInfo) -> str:
        """Return the operations: the job's, or those published for the data set."""
        return info.dsa_strategy if self.dsa is None else self.dsa
