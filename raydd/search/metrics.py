"""What trials are ranked by: a number of an evaluation's report."""

from __future__ import annotations

import math

from raydd.artifacts.report import Report, Row
from raydd.core.errors import ConfigError, nearest
from raydd.evaluation.evaluation_config import EvaluationConfig

_ROW = {
    "accuracy": "accuracy_mean",
    "best_accuracy": "best_accuracy",
    "device_seconds": "device_seconds",
    "image_bytes": "image_bytes",
    "label_bytes": "label_bytes",
}
METRICS = (*_ROW, "hlr", "ior")
_LOWER = ("device_seconds", "image_bytes", "label_bytes", "hlr")


def lower_is_better(metric: str) -> bool:
    """Return whether a metric is better the lower it is."""
    return metric.partition("/")[0] in _LOWER


def check_metric(metric: str, evaluation: EvaluationConfig, where: str) -> None:
    """Raise ``ConfigError`` for a metric that this evaluation does not make.

    ``accuracy`` is of the first network, ``accuracy/<network>`` of another one.
    """
    name, slash, network = metric.partition("/")
    if name not in METRICS or (slash and name not in ("accuracy", "best_accuracy")):
        raise ConfigError(
            f"{where}: metric: '{metric}'{nearest(name, METRICS)}; allowed: {', '.join(METRICS)}, and accuracy/NETWORK"
        )
    if network:
        own = evaluation.architectures("") if evaluation.networks else ()
        if network not in own:
            there = ", ".join(own) or "the method's own alone; set evaluation.networks"
            raise ConfigError(
                f"{where}: metric: no student is a '{network}'{nearest(network, own)}; there are: {there}"
            )
    if name == "best_accuracy" and not evaluation.test_every:
        raise ConfigError(f"{where}: metric: best_accuracy needs evaluation.test_every above 0")
    needs = {"hlr": "whole", "ior": "random"}.get(name)
    if needs and needs not in evaluation.baselines:
        raise ConfigError(
            f"{where}: metric: {name} compares with '{needs}', which is not among evaluation.baselines"
        )


def row_of(metric: str, report: Report, name: str) -> Row:
    """Return the row of the set ``name`` that a metric is taken from."""
    network = metric.partition("/")[2]
    rows = [row for row in report.rows if row.set == name and network in ("", row.network)]
    if not rows:
        raise ConfigError(f"metric: the report has no row of '{name}' for '{metric}'")
    return rows[0]


def value_of(metric: str, report: Report, name: str) -> tuple[float, float | None]:
    """Return a report's value of a metric for the set ``name``, and the standard error of an
    accuracy's mean over students (``None`` where there is one student, or none).

    ``ConfigError`` if it is missing or not finite.
    """
    row, kind = row_of(metric, report, name), metric.partition("/")[0]
    value = getattr(report, kind) if kind in ("hlr", "ior") else getattr(row, _ROW[kind])
    if value is None or not math.isfinite(value):
        raise ConfigError(f"metric: {metric} is {value} in the report")
    count = row.seeds * row.networks
    known = kind == "accuracy" and count > 1
    return float(value), standard_error(row.accuracy_std, count) if known else None


def standard_error(std: float, count: int) -> float:
    """Return the standard error of a mean from the population's standard deviation of ``count`` values."""
    return std / math.sqrt(count - 1)
