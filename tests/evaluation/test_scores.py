"""Scores: formulas, limits, and refusal of percent where fractions are meant."""

from __future__ import annotations

import math

import numpy as np
import pytest

from raydd.core.errors import ConfigError
from raydd.evaluation.scores import (
    Pooled,
    beats,
    hard_label_recovery,
    improvement_over_random,
    label_robust_score,
    pool_accuracies,
    pooled_deviation,
)


def test_recovery_and_improvement_are_differences():
    assert hard_label_recovery(0.85, 0.5) == pytest.approx(0.35)
    assert improvement_over_random(0.5, 0.6) == pytest.approx(-0.1)
    with pytest.raises(ConfigError, match="fraction"):
        improvement_over_random(50.0, 26.0)


def test_label_robust_score_is_that_of_dd_ranking():
    alpha = 0.5 * 0.2 - 0.5 * 0.3
    assert label_robust_score(0.2, 0.3) == pytest.approx(
        (math.exp(alpha) - math.exp(-1)) / (math.exp(1) - math.exp(-1))
    )
    assert label_robust_score(0.2, 0.9, weight=1.0) == label_robust_score(0.2, 0.0, weight=1.0)
    assert (label_robust_score(1, -1), label_robust_score(-1, 1)) == pytest.approx((1, 0))
    with pytest.raises(ConfigError, match="percent"):
        label_robust_score(20.0, 30.0)
    with pytest.raises(ConfigError, match="weight"):
        label_robust_score(0.2, 0.3, weight=1.5)


def test_accuracies_are_pooled_over_seeds_and_networks():
    values = np.random.RandomState(0).rand(3, 5)
    pooled = pool_accuracies(values.tolist())
    assert pooled.mean == pytest.approx(values.mean())
    assert pooled.std == pytest.approx(values.std(ddof=0))
    assert (pooled.seeds, pooled.networks) == (3, 5)
    with pytest.raises(ConfigError, match="same number"):
        pool_accuracies([[0.1, 0.2], [0.3]])
    with pytest.raises(ConfigError, match="at least one"):
        pool_accuracies([])


def test_pooled_deviation_weighs_by_count():
    first, second = Pooled(0.5, 0.1, 1, 1), Pooled(0.2, 0.2, 3, 1)
    assert pooled_deviation(first, second) == pytest.approx(math.sqrt((0.01 + 3 * 0.04) / 4))
    assert beats(first, second)
    assert not beats(first, second, deviations=2.0)
    assert not beats(second, first, deviations=0.0)
