"""Pure losses on tensors."""

from raydd.losses.matching import distribution_matching_loss, gradient_distance, is_matched
from raydd.losses.soft import cross_entropy
from raydd.losses.statistics_matching import (
    Layer,
    Layout,
    class_targets,
    draw_kept,
    matching_loss,
    swap_patches,
)

__all__ = [
    "Layer",
    "Layout",
    "class_targets",
    "cross_entropy",
    "distribution_matching_loss",
    "draw_kept",
    "gradient_distance",
    "is_matched",
    "matching_loss",
    "swap_patches",
]
