"""Pure losses on tensors."""

from raydd.losses.matching import distribution_matching_loss, gradient_distance, is_matched
from raydd.losses.soft import cross_entropy

__all__ = ["cross_entropy", "distribution_matching_loss", "gradient_distance", "is_matched"]
