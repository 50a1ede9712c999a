"""Pure losses on tensors."""

from raydd.losses.matching import (
    classes_cross_entropy,
    distribution_matching_loss,
    gaussian_likelihood_loss,
    gradient_distance,
    is_matched,
    partner_distance,
    total_variation_distance,
)
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
    "classes_cross_entropy",
    "cross_entropy",
    "distribution_matching_loss",
    "draw_kept",
    "gaussian_likelihood_loss",
    "gradient_distance",
    "is_matched",
    "matching_loss",
    "partner_distance",
    "swap_patches",
    "total_variation_distance",
]
