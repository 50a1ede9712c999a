"""Scores of a distilled set: pooled accuracies, and those of DD-Ranking (arXiv 2505.13300).

Accuracies are fractions in [0, 1] throughout; multiply by 100 for percent and percentage points.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from raydd.core.errors import ConfigError


def hard_label_recovery(whole: float, distilled: float) -> float:
    """Return HLR, accuracy on the whole data minus accuracy on the distilled set, both under hard
    labels; lower is better.
    """
    _fractions(whole, distilled)
    return whole - distilled


def improvement_over_random(distilled: float, random: float) -> float:
    """Return IOR, accuracy on the set minus accuracy on random images of the same number, same
    protocol; higher is better.
    """
    _fractions(distilled, random)
    return distilled - random


def label_robust_score(ior: float, hlr: float, weight: float = 0.5) -> float:
    """Return LRS in [0, 1]: ``w IOR - (1 - w) HLR``, through ``(exp(a) - exp(-1)) / (exp(1) - exp(-1))``.

    A set as good as the whole data and as random images scores 0.27; ``weight`` is 0.5 on the leaderboard.
    """
    if not 0 <= weight <= 1:
        raise ConfigError(f"the weight of a score must be in [0, 1], not {weight}")
    if max(abs(ior), abs(hlr)) > 1:
        raise ConfigError(
            f"scores are of accuracies in [0, 1]; a difference of {max(abs(ior), abs(hlr)):g} looks like percent"
        )
    mixed = weight * ior - (1 - weight) * hlr
    return (math.exp(mixed) - math.exp(-1)) / (math.e - math.exp(-1))


def _fractions(*accuracies: float) -> None:
    for value in accuracies:
        if not 0 <= value <= 1:
            raise ConfigError(f"an accuracy must be a fraction in [0, 1], not {value}")


@dataclass(frozen=True)
class Pooled:
    """Accuracies pooled over ``seeds`` (distillations, or draws) times ``networks`` (students of
    each): mean and deviation.

    ``std`` is the population's (ddof 0) over all ``seeds * networks`` values, as the field reports it.
    """

    mean: float
    std: float
    seeds: int
    networks: int


def pool_accuracies(accuracies: Sequence[Sequence[float]]) -> Pooled:
    """Pool accuracies by seed and network; ``ConfigError`` if a seed has another number of
    networks, or there are none.
    """
    counts = {len(row) for row in accuracies}
    if len(counts) != 1 or counts == {0}:
        raise ConfigError(
            f"accuracies must be given for the same number of networks per seed, at least one; got {sorted(counts)}"
        )
    values = [float(value) for row in accuracies for value in row]
    _fractions(*values)
    return Pooled(
        statistics.fmean(values), statistics.pstdev(values), len(accuracies), counts.pop()
    )


def pooled_deviation(first: Pooled, second: Pooled) -> float:
    """Return the root mean square of two standard deviations, each counted with its number of values."""
    n, m = first.seeds * first.networks, second.seeds * second.networks
    return math.sqrt((n * first.std**2 + m * second.std**2) / (n + m))


def beats(first: Pooled, second: Pooled, deviations: float = 1.0) -> bool:
    """Return whether ``first`` is better than ``second`` by more than so many pooled standard deviations."""
    return first.mean - second.mean > deviations * pooled_deviation(first, second)
