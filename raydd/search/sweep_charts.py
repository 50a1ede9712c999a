"""The charts of a sweep's page, as SVG: the same that :mod:`raydd.search.figures` draws as PNG."""

from __future__ import annotations

from collections.abc import Sequence

from raydd.artifacts.tables import Table
from raydd.pages.axes import Axis, number
from raydd.pages.blocks import figure, subsection
from raydd.pages.html import Html, joined
from raydd.pages.kinds import Kind, Point, kinds_chart
from raydd.pages.plots import bar_chart, parallel_chart
from raydd.search.results import SweepReport
from raydd.search.trials import Trial, ranked
from raydd.search.views import (
    Column,
    best_steps,
    by_state,
    columns,
    counted,
    course,
    courses,
    far_apart,
    metric_label,
    own_value,
    timed,
    value,
    with_value,
)

STYLES = {
    "finished": 0,
    "same as another": 1,
    "best": 2,
    "failed": 4,
    "stopped early": 5,
    "failed or unfinished": 6,
}
"""Colours and shapes of marks: circle, square, triangle, cross, triangle upside down, plus."""
MANY = 200
LISTED = 30
"""Trials of which the table beside the chart of those on the way has a line."""


def charts(report: SweepReport) -> list[Html]:
    """Return the charts that there is something to show of, each with its caption."""
    found = [
        _over_trials(report),
        _parallel(report),
        _importance(report),
        _intermediate(report),
        _over_seconds(report),
        _slices(report),
    ]
    return [chart for chart in found if chart]


def _levels(report: SweepReport) -> dict[str, float]:
    own = own_value(report)
    return {} if own is None else {"the job's own values": own}


def _names(trials: Sequence[Trial]) -> list[str]:
    return [f"trial {trial.number}" for trial in trials]


def _over_trials(report: SweepReport) -> Html:
    found = by_state(report)
    if not any(found.values()):
        return Html("")
    many = len(report.trials) > MANY
    steps = best_steps(report)
    kinds = [Kind(name="best so far", style=STYLES["best"], lines=[steps] if steps else [])]
    for name, trials in found.items():
        kinds.append(
            Kind(
                name=name,
                style=STYLES[name],
                points=[(float(trial.number), value(trial)) for trial in trials],
                errors=[0.0 if trial.same is not None else trial.error or 0.0 for trial in trials],
                called=_names(trials),
                hollow=name == "same as another",
                many=many,
            )
        )
    lost = [trial for trial in report.trials if trial.state == "failed"]
    edge: list[Point] = [(float(trial.number), None) for trial in lost]
    failed = "failed (no value, at the lower edge)"
    kinds.append(
        Kind(name=failed, style=STYLES["failed"], points=edge, called=_names(lost), many=many)
    )
    x = Axis(label="trial", whole=True)
    y = Axis(label=metric_label(report))
    title = "Values in the order of trials"
    chart = kinds_chart(kinds, x, y, title=title, levels=_levels(report))
    bars = "; bars are standard errors over students" if _errors(report) else ""
    return figure(chart, f"{title}, and the best of the finished ones so far{bars}.")


def _errors(report: SweepReport) -> bool:
    return any(trial.error for trial in report.trials)


def _slices(report: SweepReport) -> Html:
    parts = [part for column in columns(report) if (part := _slice(report, column))]
    return joined(subsection("Values over each key", *parts)) if parts else Html("")


def _slice(report: SweepReport, column: Column) -> Html:
    """Return values over one key, of the trials that set it to something its axis has."""
    kinds = []
    for name, trials in by_state(report).items():
        spots = [(spot, trial) for trial in trials if (spot := column.spot(trial)) is not None]
        kinds.append(
            Kind(
                name=name,
                style=STYLES[name],
                points=[(spot, value(trial)) for spot, trial in spots],
                called=_names([trial for _, trial in spots]),
                hollow=name == "same as another",
                many=len(report.trials) > MANY,
            )
        )
    if not any(kind.points for kind in kinds):
        return Html("")
    x = Axis(label=column.key, log=column.logarithmic, categories=column.categories)
    title = f"Values over {column.key}"
    y = Axis(label=metric_label(report))
    chart = kinds_chart(kinds, x, y, title=title, levels=_levels(report))
    there, all_ = sum(len(kind.points) for kind in kinds), sum(map(len, by_state(report).values()))
    some = f" ({there} of {all_} trials set it)" if there < all_ else ""
    return figure(chart, f"{title}{some}: {report.keys[column.key]}.")


def _parallel(report: SweepReport) -> Html:
    trials, shown = with_value(report, "finished"), columns(report)
    if not trials or not shown:
        return Html("")
    axes = [
        Axis(label=column.key, log=column.logarithmic, categories=column.categories)
        for column in shown
    ]
    rows = [
        [*(column.place(trial) for column in shown), value(trial)]
        for trial in reversed(ranked(trials, report.mode))
    ]
    title = "All keys of each finished trial, and its value"
    chart = parallel_chart(
        [*axes, Axis(label=metric_label(report))],
        rows,
        title=title,
        best="high" if report.mode == "max" else "low",
    )
    return figure(chart, f"{title}: {counted(len(trials), 'trial')}, the best in orange.")


def _importance(report: SweepReport) -> Html:
    if not report.importance:
        return Html("")
    found = dict(sorted(report.importance.items(), key=lambda pair: -pair[1]))
    title = "How much each key matters"
    axis = Axis(label="share of what the keys explain", low=0.0)
    said = "as PED-ANOVA finds it from the finished trials; small shares may be chance"
    return figure(bar_chart(found, axis, title=title), f"{title}, {said}.")


def _intermediate(report: SweepReport) -> Html:
    found = courses(report)
    if not found:
        return Html("")
    count = sum(map(len, found.values()))
    kinds = [
        Kind(
            name=f"{name} ({len(trials)})",
            style=STYLES[name],
            lines=[course(trial) for trial in trials],
            dashed=name != "finished",
            many=count > 60,
        )
        for name, trials in found.items()
    ]
    x = Axis(label="updates of the images")
    y = Axis(label=f"accuracy of snapshots, % ({report.split})")
    title = "Accuracy of trials on the way"
    said = f"{title}; those that were stopped early end where they were."
    return figure(kinds_chart(kinds, x, y, title=title), said, _on_the_way(report))


def _on_the_way(report: SweepReport) -> Table:
    """Return the accuracies of the first trials at up to eight of the steps."""
    trials = [trial for trial in report.trials if trial.judged]
    steps = sorted({one.step for trial in trials for one in trial.judged})
    steps = steps[:: -(-len(steps) // 8)]
    lines = []
    for trial in trials[:LISTED]:
        at = {one.step: one.value for one in trial.judged}
        values = [number(at[step]) if step in at else "–" for step in steps]
        lines.append([str(trial.number), trial.state, *values])
    some = f" ({LISTED} of {len(trials)} trials)" if len(trials) > LISTED else ""
    header = ["trial", "outcome", *(f"{step:,}" for step in steps)]
    return Table(f"Accuracy after so many updates, %{some}", header, lines, left=2)


def _over_seconds(report: SweepReport) -> Html:
    found = timed(with_value(report, "finished"))
    if not found:
        return Html("")
    winner = [(s, t) for s, t in found if t.number == report.winner]
    rest = [(s, t) for s, t in found if t.number != report.winner]
    kinds = [
        Kind(
            name=name,
            style=STYLES[style],
            points=[(seconds, value(trial)) for seconds, trial in pairs],
            called=_names([trial for _, trial in pairs]),
            many=len(pairs) > MANY,
        )
        for name, style, pairs in (("finished", "finished", rest), ("the best", "best", winner))
    ]
    x = Axis(
        label="device-seconds of making the set", log=far_apart([seconds for seconds, _ in found])
    )
    y = Axis(label=metric_label(report))
    title = "Values over what the sets cost"
    chart = kinds_chart(kinds, x, y, title=title, levels=_levels(report))
    return figure(chart, f"{title}, shared units included.")
