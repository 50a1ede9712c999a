"""Curves of what a run logged: means over the units of a stage, a chart for each scalar."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from raydd.artifacts.curves import Curves
from raydd.pages.axes import Axis
from raydd.pages.blocks import details, figure
from raydd.pages.html import Html, joined
from raydd.pages.plots import Series, line_chart, series_table

CHARTS = 24
"""Charts of one page at most, so that it stays readable."""


def logged_curves(plan: Mapping[str, Any], log: Iterable[Mapping[str, Any]]) -> list[Html]:
    """Return a chart for each scalar of the stages that make the set, then, folded, of those before them."""
    stages = plan.get("curves") or {}
    found = means(stages, log)
    charted = set(plan.get("charted") or ())
    own = _charts({name: of for name, of in found.items() if name[0] in charted})
    others = _charts({name: of for name, of in found.items() if name[0] not in charted})
    return [*own, *([details("Curves of the stages before", *others)] if others else [])]


def means(
    stages: Mapping[str, Sequence[str]], log: Iterable[Mapping[str, Any]]
) -> dict[tuple[str, str], list[tuple[float, float]]]:
    """Return the means over a stage's units, ``(t, mean)``, by stage and scalar."""
    curves = Curves(stages)
    found: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for record in log:
        if record["kind"] != "log":
            continue
        rows = [(int(record.get("t") or 0), record.get("values") or {})]
        for label, t, values in curves.add(str(record.get("key", "")), rows):
            for name, value in values.items():
                found.setdefault((label, name), []).append((float(t), float(value)))
    return {name: sorted(points) for name, points in found.items()}


def _charts(found: Mapping[tuple[str, str], Sequence[tuple[float, float]]]) -> list[Html]:
    by_scalar: dict[str, list[Series]] = {}
    for (label, name), points in found.items():
        if len(points) > 1:
            by_scalar.setdefault(name, []).append(Series(label, points))
    names = sorted(by_scalar, key=lambda name: (name != "loss", name))
    return [_chart(name, by_scalar[name]) for name in names[:CHARTS]]


def _chart(name: str, series: Sequence[Series]) -> Html:
    """Return the chart of one scalar; logarithmic where its values are far apart."""
    values = [value for one in series for _, value in one.points]
    far = min(values) > 0 and max(values) / min(values) > 100
    words = name.replace("_", " ")
    x, y = Axis(label="updates"), Axis(label=f"{words} (mean over units)", log=far)
    caption = f"The mean of {words} over the units of a stage, update by update"
    chart = line_chart(series, x, y, title=f"{words} over the updates")
    return joined(figure(chart, f"{caption}.", series_table(series, x, y, title=caption)))
