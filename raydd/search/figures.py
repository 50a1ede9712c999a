"""Pictures of a sweep as PNG files: values over trials, keys and seconds, all keys at once, trials on the way."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from raydd.pages.svg import shortened
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

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = {
    "finished": "#0b61a4",
    "stopped early": "#a61c3c",
    "same as another": "#b5420a",
    "failed": "#7a5c00",
    "failed or unfinished": "#44576b",
}
MARKS = {"finished": "o", "stopped early": "v", "same as another": "s"}
DASHES = {"finished": "-", "stopped early": "--", "failed or unfinished": ":"}
BEST, OWN = "#00735a", "#777777"
MANY = 200
"""More trials than these are drawn smaller and fainter."""


def pictures(report: SweepReport) -> dict[str, bytes]:
    """Return PNG files by name, of all that there is something to show of."""
    drawn: dict[str, Figure | None] = {
        "value_over_trials.png": _over_trials(report),
        "slices.png": _slices(report),
        "parallel.png": _parallel(report),
        "importance.png": _importance(report),
        "intermediate.png": _intermediate(report),
        "accuracy_device_seconds.png": _over_seconds(report),
    }
    return {name: _png(figure) for name, figure in drawn.items() if figure is not None}


def _figure(width: float = 7.2, height: float = 4.3) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=150, layout="constrained")


def _png(figure: Figure) -> bytes:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    out = io.BytesIO()
    FigureCanvasAgg(figure).print_png(out, metadata={"Software": None})
    return out.getvalue()


def _finish(axes: Axes, report: SweepReport, x_label: str, y_label: str = "") -> None:
    axes.set_xlabel(_plain(x_label))
    axes.set_ylabel(_plain(y_label))
    axes.grid(visible=True, alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)


def _plain(text: str, width: float = 480.0) -> str:
    """Return a text that matplotlib takes as it is, cut where it is too long."""
    return shortened(text, width).replace("$", r"\$")


def _title(report: SweepReport, what: str) -> str:
    return f"{_plain(report.job, 220.0)}, sweep {_plain(report.name, 220.0)}\n{what}"


def _legend(figure: Figure) -> None:
    """Name what is drawn, below the charts; nothing for a single kind."""
    handles: dict[str, Any] = {}
    for axes in figure.axes:
        handles |= {name: h for h, name in zip(*axes.get_legend_handles_labels(), strict=True)}
    if len(handles) > 1:
        figure.legend(
            handles.values(),
            handles.keys(),
            loc="outside lower center",
            ncols=min(3, len(handles)),
            frameon=False,
            fontsize=9,
        )


def _marks(axes: Axes, name: str, x: Sequence[float], y: Sequence[float], many: int) -> None:
    """Draw trials of one outcome; those that only repeat another one are hollow."""
    hollow = name == "same as another"
    axes.scatter(
        x,
        y,
        marker=MARKS[name],
        label=name,
        edgecolors=COLOURS[name],
        facecolors="none" if hollow else COLOURS[name],
        zorder=3,
        s=26.0 if many <= MANY else 12.0,
        alpha=0.9 if many <= MANY else 0.55,
    )


def _own_line(axes: Axes, report: SweepReport) -> None:
    own = own_value(report)
    if own is not None:
        axes.axhline(own, color=OWN, linestyle="--", linewidth=1.2, label="the job's own values")


def _over_trials(report: SweepReport) -> Figure | None:
    """Draw values in the order of trials, the best so far as steps, failures at the lower edge."""
    if not any(by_state(report).values()):
        return None
    from matplotlib.ticker import MaxNLocator

    figure, many = _figure(), len(report.trials)
    axes = figure.add_subplot()
    _own_line(axes, report)
    steps = best_steps(report)
    if steps:
        axes.plot(*zip(*steps, strict=True), color=BEST, linewidth=1.8, label="best so far")
    for name, trials in by_state(report).items():
        if not trials:
            continue
        x, y = [trial.number for trial in trials], [value(trial) for trial in trials]
        errors = [trial.error or 0.0 for trial in trials]
        if any(errors) and name != "same as another":
            axes.errorbar(x, y, errors, fmt="none", ecolor=COLOURS[name], alpha=0.5, linewidth=1.0)
        _marks(axes, name, x, y, many)
    failed = [trial.number for trial in report.trials if trial.state == "failed"]
    if failed:
        across = axes.get_xaxis_transform()
        axes.scatter(
            failed,
            [0.0] * len(failed),
            marker="x",
            color=COLOURS["failed"],
            label="failed (no value)",
            transform=across,
            clip_on=False,
            zorder=4,
        )
    axes.set_xlim(-0.02 * many - 0.5, 1.02 * many - 0.5)
    axes.xaxis.set_major_locator(MaxNLocator(nbins="auto", steps=[1, 2, 5, 10], integer=True))
    _finish(axes, report, "trial", metric_label(report))
    axes.set_title(_title(report, counted(many, "trial")), fontsize=11)
    _legend(figure)
    return figure


def _slices(report: SweepReport) -> Figure | None:
    """Draw values over each key, of the trials that set it."""
    shown = [column for column in columns(report) if _placed(report, column)]
    if not shown:
        return None
    across = min(3, len(shown))
    rows = math.ceil(len(shown) / across)
    figure = _figure(max(4.6, 3.6 * across), 0.5 + 3.1 * rows)
    figure.suptitle(_title(report, "values over each key"), fontsize=11)
    first: Axes | None = None
    for place, column in enumerate(shown):
        axes = figure.add_subplot(rows, across, place + 1, sharey=first)
        first = first or axes
        _slice(axes, report, column)
        _finish(axes, report, column.key, metric_label(report) if place % across == 0 else "")
    _legend(figure)
    return figure


def _placed(report: SweepReport, column: Column) -> dict[str, list[Trial]]:
    """Return the trials of each outcome that have a place on a key's axis."""
    found = {
        name: [trial for trial in trials if column.place(trial) is not None]
        for name, trials in by_state(report).items()
    }
    return {name: trials for name, trials in found.items() if trials}


def _slice(axes: Axes, report: SweepReport, column: Column) -> None:
    _own_line(axes, report)
    for name, trials in _placed(report, column).items():
        x = [column.spot(trial) or 0.0 for trial in trials]
        _marks(axes, name, x, [value(trial) for trial in trials], len(report.trials))
    if column.logarithmic:
        _by_factors(axes, [place for trial in report.trials if (place := column.place(trial))])
    if column.categories:
        _categories(axes, column.categories)


def _by_factors(axes: Axes, x: Sequence[float]) -> None:
    """Make the horizontal axis logarithmic, with plain numbers."""
    from matplotlib.ticker import LogLocator, NullFormatter

    axes.set_xscale("log")
    wide = max(x) > 50 * min(x)
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0,) if wide else (1.0, 2.0, 5.0)))
    axes.xaxis.set_major_formatter(lambda at, _: f"{at:g}")
    axes.xaxis.set_minor_formatter(NullFormatter())


def _categories(axes: Axes, names: Sequence[str]) -> None:
    """Name places on the horizontal axis, aslant where the names are long."""
    places = range(len(names))
    long = sum(map(len, names)) > 24
    texts = [_plain(name, 150.0) for name in names]
    axes.set_xticks(places, texts, rotation=30 if long else 0, ha="right" if long else "center")
    axes.set_xlim(-0.6, len(names) - 0.4)


def _parallel(report: SweepReport) -> Figure | None:
    """Draw a line for each finished trial over all keys to its value, coloured by it."""
    trials, shown = with_value(report, "finished"), columns(report)
    if not trials or not shown:
        return None
    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable
    from matplotlib.collections import LineCollection
    from matplotlib.colors import Normalize

    figure = _figure(max(7.2, 1.45 * (len(shown) + 1)), 4.6)
    axes = figure.add_subplot()
    values = [value(trial) for trial in trials]
    scale = Normalize(min(values), max(values))
    colours = ScalarMappable(scale, colormaps["viridis" if report.mode == "max" else "viridis_r"])
    scales = [_scale(axes, at, column, trials) for at, column in enumerate(shown)]
    order = list(reversed(ranked(trials, report.mode)))
    lines = [
        [(at, y) for at, place in enumerate(scales) if (y := place(trial)) is not None]
        + [(len(shown), _share(value(trial), min(values), max(values)))]
        for trial in order
    ]
    axes.add_collection(
        LineCollection(
            lines,
            colors=[colours.cmap(float(scale(value(trial)))) for trial in order],
            linewidths=1.6 if len(trials) <= MANY else 0.8,
            alpha=0.85 if len(trials) <= MANY else 0.45,
        )
    )
    best = lines[-1]
    axes.plot(*zip(*best, strict=True), color="#b5420a", linewidth=2.4, label="best")
    axes.set_xlim(-0.35, len(shown) + 0.1)
    axes.set_ylim(-0.05, 1.05)
    axes.set_xticks(range(len(shown) + 1), [*(_broken(c.key) for c in shown), "value"])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)
    axes.vlines(range(len(shown) + 1), 0, 1, color="#202020", linewidth=1.0, zorder=4)
    figure.colorbar(colours, ax=axes, label=_plain(metric_label(report)), pad=0.02)
    what = f"{counted(len(trials), 'finished trial')}, the best in orange"
    axes.set_title(_title(report, what), fontsize=11)
    return figure


def _broken(key: str) -> str:
    """Return a dotted key on as many lines as it has parts, so that neighbours stay apart."""
    return "\n".join(_plain(part, 130.0) for part in key.split("."))


def _share(at: float, low: float, high: float) -> float:
    return 0.5 if high == low else (at - low) / (high - low)


def _scale(axes: Axes, at: int, column: Column, trials: Sequence[Trial]) -> Any:
    """Draw a key's ticks at ``at``; return the function from a trial to its height in ``[0, 1]``."""
    from matplotlib.ticker import LogLocator, MaxNLocator

    places = [place for trial in trials if (place := column.place(trial)) is not None]
    low, high = (min(places), max(places)) if places else (0.0, 0.0)
    if column.categories:
        low, high = 0.0, float(len(column.categories) - 1)
        ticks = [(float(i), name) for i, name in enumerate(column.categories)]
    elif low == high:
        ticks = [(low, f"{low:.4g}")] if places else []
    else:
        locator = LogLocator(subs=(1.0,)) if column.logarithmic else MaxNLocator(5)
        found = [float(t) for t in locator.tick_values(low, high) if low <= t <= high]
        found = found if len(found) > 1 else [low, high]
        ticks = [(tick, f"{tick:.4g}") for tick in found]

    def height(position: float) -> float:
        if column.logarithmic:
            return _share(math.log(position), math.log(low), math.log(high))
        return _share(position, low, high)

    def place_of(trial: Trial) -> float | None:
        place = column.place(trial)
        return None if place is None else height(place)

    for tick, text in ticks[:: -(-len(ticks) // 14) or 1]:
        axes.annotate(
            _plain(text, 100.0),
            (at, height(tick)),
            (-5, 0),
            textcoords="offset points",
            ha="right",
            va="center",
            fontsize=9,
            zorder=6,
            bbox={"facecolor": "white", "alpha": 0.75, "edgecolor": "none", "pad": 0.8},
        )
    return place_of


def _importance(report: SweepReport) -> Figure | None:
    if not report.importance:
        return None
    found = sorted(report.importance.items(), key=lambda pair: pair[1])
    figure = _figure(height=1.4 + 0.36 * len(found))
    axes = figure.add_subplot()
    names = [_plain(name, 250.0) for name, _ in found]
    bars = axes.barh(range(len(found)), [share for _, share in found], color=COLOURS["finished"])
    axes.set_yticks(range(len(found)), names)
    axes.bar_label(bars, fmt="%.2f", padding=3, fontsize=9)
    axes.set_xlim(0, max(1e-9, *(share for _, share in found)) * 1.12)
    _finish(axes, report, "share of what the keys explain of the value (PED-ANOVA)")
    axes.set_title(_title(report, "how much each key matters"), fontsize=11)
    return figure


def _intermediate(report: SweepReport) -> Figure | None:
    """Draw accuracies on the way, trials that were stopped early in dashes."""
    found = courses(report)
    if not found:
        return None
    count = sum(map(len, found.values()))
    figure = _figure()
    axes = figure.add_subplot()
    for name, trials in found.items():
        for place, trial in enumerate(trials):
            x, y = zip(*course(trial), strict=True)
            axes.plot(
                x,
                y,
                color=COLOURS[name],
                linestyle=DASHES[name],
                linewidth=1.4 if count <= 60 else 0.8,
                marker="o" if len(x) == 1 else "",
                markersize=3,
                alpha=0.8 if count <= 60 else 0.35,
                label=f"{name} ({len(trials)})" if not place else None,
            )
            if name == "stopped early":
                size = 5 if count <= 60 else 3
                axes.plot(x[-1], y[-1], marker="v", color=COLOURS[name], markersize=size, alpha=0.8)
    _finish(axes, report, "updates of the images", f"accuracy of snapshots, % ({report.split})")
    axes.set_title(_title(report, f"{counted(count, 'trial')} on the way"), fontsize=11)
    _legend(figure)
    return figure


def _over_seconds(report: SweepReport) -> Figure | None:
    """Draw values over the device-seconds of making the sets."""
    found = timed(with_value(report, "finished"))
    if not found:
        return None
    figure = _figure()
    axes = figure.add_subplot()
    _own_line(axes, report)
    x, y = [seconds for seconds, _ in found], [value(trial) for _, trial in found]
    _marks(axes, "finished", x, y, len(report.trials))
    for seconds, trial in found:
        if trial.number == report.winner:
            axes.scatter([seconds], [value(trial)], s=90, marker="o", facecolors="none")
            axes.collections[-1].set_edgecolor(BEST)
            axes.collections[-1].set_linewidth(2)
            axes.collections[-1].set_label(f"trial {trial.number}, the best")
    if far_apart(x):
        _by_factors(axes, x)
    _finish(axes, report, "device-seconds of making a trial's set", metric_label(report))
    axes.set_title(_title(report, "values over device-seconds"), fontsize=11)
    _legend(figure)
    return figure
