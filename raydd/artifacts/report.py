"""The report of a distilled set, and its tables: no number without its context.

A report is written by the evaluation as JSON (:meth:`Report.to_dict`) and rendered here, for logs and for the card.
Accuracies are top-1, in percent, of the last epoch; differences are in percentage points; sizes in bytes; times in
device-seconds (seconds of one accelerator, or of one CPU worker where there is none).
"""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar, cast

from raydd.artifacts.protocol import Training
from raydd.artifacts.tables import Table, as_markdown, as_text, continual_table, cross
from raydd.core.errors import ConfigError, unknown

T = TypeVar("T")
PROTOCOLS = "What the protocols come to:"
DDOF = 0
"""The standard deviation is the population's, over all seeds × networks pooled, as the published tables have it."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """What one set reached under one protocol.

    ``set``: the method's name, or ``random``, ``herding``, ``kcenter``, ``whole``.
    ``accuracy_mean``/``accuracy_std``: percent, over ``seeds`` × ``networks`` (repeats of the
    distillation or draws of the subset × networks trained on each). ``best_accuracy``: mean of each
    network's best epoch, chosen on the split that is reported, in percent, where a paper reports
    it. ``device_seconds``: what making the set cost; ``None`` if not measured.
    """

    set: str
    protocol: str
    network: str
    accuracy_mean: float
    accuracy_std: float
    seeds: int
    networks: int
    image_bytes: int
    label_bytes: int
    best_accuracy: float | None = None
    device_seconds: float | None = None

    def __post_init__(self) -> None:
        for name in ("accuracy_mean", "best_accuracy"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 100:
                raise ConfigError(
                    f"{self.set}: {name} must be a percentage from 0 to 100, not {value}"
                )
        if self.seeds < 1 or self.networks < 1:
            raise ConfigError(
                f"{self.set}: seeds and networks must be at least 1, not {self.seeds} and {self.networks}"
            )


@dataclass(frozen=True, kw_only=True)
class Point:
    """The accuracy of a snapshot: after ``step`` updates and ``device_seconds``, in percent, over
    ``networks`` networks.
    """

    step: int
    device_seconds: float
    accuracy_mean: float
    accuracy_std: float
    networks: int


@dataclass(frozen=True, kw_only=True)
class MemoryRow:
    """What students of a growing memory reached after one step of the continual experiment (from 1).

    ``classes``: how many have been seen, of which all test images are tested; ``images``: how many
    are kept of them (the most, where orders differ). Percent, over ``orders`` of the classes ×
    ``networks`` trained on each.
    """

    set: str
    protocol: str
    network: str
    step: int
    classes: int
    images: int
    accuracy_mean: float
    accuracy_std: float
    orders: int
    networks: int


@dataclass(frozen=True, kw_only=True)
class Published:
    """What the file of a set of others says that it reached: percent, over ``networks`` networks of
    one architecture.
    """

    network: str
    accuracy_mean: float
    accuracy_std: float
    networks: int


@dataclass(frozen=True, kw_only=True)
class Report:
    """The rows of one distilled set and its baselines, with their context.

    ``hlr``: hard-label recovery, accuracy on the whole data minus accuracy on the set, both under
    hard labels (lower is better). ``ior``: improvement over random, accuracy on the set minus
    accuracy on random images of the same number under the same protocol (higher is better). Both in
    percentage points, ``None`` if not computed. ``split``: the split that accuracies are of.
    ``curve``: accuracy over the distillation, under ``curve_protocol``. ``notes``: what a reader
    has to know besides, such as samples that were skipped. ``continual``: the continual experiment,
    if it was asked for. ``trainings``: what the rows' protocols come to (none in the reports of
    earlier versions). ``size``: what the set holds, where that is not ``ipc`` images of each class.
    ``published``: accuracies that came with the set. ``inventory``: what was read as the data set,
    and what of its files was left out and why, as plain values.
    """

    dataset: str
    ipc: float
    split: str
    rows: tuple[Row, ...]
    hlr: float | None = None
    ior: float | None = None
    device: str = ""
    curve: tuple[Point, ...] = ()
    curve_protocol: str = ""
    notes: tuple[str, ...] = ()
    ddof: int = DDOF
    continual: tuple[MemoryRow, ...] = ()
    trainings: tuple[Training, ...] = ()
    size: str = ""
    published: tuple[Published, ...] = ()
    inventory: Mapping[str, Any] | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON values; with several networks, ``table`` shows the rows as set
        × network once more.
        """
        values = dataclasses.asdict(self)
        for name in ("continual", "trainings", "size", "published", "inventory"):
            if not values[name]:
                del values[name]
        crossed = cross(self)
        return values if crossed is None else values | {"table": crossed.to_dict()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Report:
        """Return the report of JSON values; ``ConfigError`` on keys that are unknown or missing."""
        plain = {key: value for key, value in values.items() if key != "table"}
        plain["rows"] = tuple(_build(Row, item) for item in plain.get("rows", ()))
        plain["curve"] = tuple(_build(Point, item) for item in plain.get("curve", ()))
        plain["notes"] = tuple(plain.get("notes", ()))
        plain["continual"] = tuple(_build(MemoryRow, item) for item in plain.get("continual", ()))
        plain["trainings"] = tuple(_build(Training, item) for item in plain.get("trainings", ()))
        plain["published"] = tuple(_build(Published, item) for item in plain.get("published", ()))
        return _build(cls, plain)


def _build(kind: type[T], values: T | Mapping[str, Any]) -> T:
    if isinstance(values, kind):
        return values
    if not isinstance(values, Mapping):
        raise ConfigError(
            f"a {kind.__name__.lower()} must be a mapping, not {type(values).__name__}"
        )
    allowed = {field.name for field in dataclasses.fields(cast(Any, kind))}
    for key in values:
        if key not in allowed:
            raise unknown(f"{kind.__name__.lower()} key", key, allowed)
    try:
        return kind(**values)
    except TypeError as error:
        raise ConfigError(f"not a {kind.__name__.lower()}: {error}") from error


def summarise(accuracies: Sequence[Sequence[float]]) -> tuple[float, float]:
    """Return mean and standard deviation (``DDOF``), in percent, of accuracies in [0, 1] by seed
    and network, pooled.
    """
    pooled = [100.0 * value for networks in accuracies for value in networks]
    if not pooled:
        raise ConfigError("no accuracies to summarise")
    return statistics.fmean(pooled), statistics.pstdev(pooled)


def images_per_class(ipc: float) -> str:
    """Return ``1 image per class``, ``10 images per class``."""
    return f"{ipc:g} image{'s' * (ipc != 1)} per class"


def size_of(report: Report) -> str:
    """Return how large a report's set is, for titles."""
    return report.size or images_per_class(report.ipc)


def format_bytes(count: float) -> str:
    """Return a size in decimal units, ``313.6 kB``."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def format_seconds(seconds: float | None) -> str:
    """Return a time in the unit that suits it, ``64 s``, ``4.9 min``, ``2.5 h``."""
    if seconds is None:
        return "–"
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def signed(points: float) -> str:
    """Return a difference with its sign and two decimals; none of ``-0.00``."""
    return f"{round(points, 2) + 0.0:+.2f}"


def _random_beside(report: Report, row: Row) -> Row | None:
    return next(
        (
            r
            for r in report.rows
            if r.set == "random" and (r.protocol, r.network) == (row.protocol, row.network)
        ),
        None,
    )


def _cells(report: Report) -> Table:
    best = any(row.best_accuracy is not None for row in report.rows)
    published = {(report.rows[0].set, item.network): item for item in report.published}
    header = [
        "set",
        "protocol",
        "network",
        "accuracy, %",
        "vs random",
        "seeds × networks",
        "images",
        "labels",
        "device time",
    ]
    if best:
        header.insert(5, "best epoch, %")
    if published:
        header.insert(4, "published, %")
    lines = []
    for row in report.rows:
        random = _random_beside(report, row)
        gain = (
            "–"
            if row.set == "random"
            else "not run"
            if random is None
            else signed(row.accuracy_mean - random.accuracy_mean)
        )
        line = [
            row.set,
            row.protocol,
            row.network,
            f"{row.accuracy_mean:.2f} ± {row.accuracy_std:.2f}",
            gain,
            f"{row.seeds} × {row.networks}",
            format_bytes(row.image_bytes),
            format_bytes(row.label_bytes),
            format_seconds(row.device_seconds),
        ]
        if best:
            line.insert(5, "–" if row.best_accuracy is None else f"{row.best_accuracy:.2f}")
        if published:
            theirs = published.get((row.set, row.network))
            line.insert(
                4,
                "–"
                if theirs is None
                else f"{theirs.accuracy_mean:.2f} ± {theirs.accuracy_std:.2f}",
            )
        lines.append(line)
    return Table("", header, lines, left=3)


def _context(report: Report) -> str:
    device = f", on {report.device}" if report.device else ""
    return (
        f"{report.dataset}, {size_of(report)}, {report.split} split{device}: top-1 accuracy of the last epoch, "
        f"mean ± standard deviation (ddof {report.ddof}) over seeds × networks."
    )


def _remarks(report: Report) -> list[str]:
    remarks = []
    if report.hlr is not None:
        remarks.append(
            f"HLR {signed(report.hlr)} points (whole data minus this set, hard labels; lower is better)."
        )
    if report.ior is not None:
        remarks.append(
            f"IOR {signed(report.ior)} points (this set minus random, same protocol; higher is better)."
        )
    if any(row.best_accuracy is not None for row in report.rows):
        remarks.append(
            f"The best epoch is chosen on the {report.split} split itself: it is shown to compare with papers, not as a"
            " result."
        )
    if not any(row.set == "random" for row in report.rows):
        remarks.append(
            "Random images of the same number were not evaluated: these accuracies have no baseline."
        )
    if report.published:
        shown = (
            f"{p.network} {p.accuracy_mean:.2f} ± {p.accuracy_std:.2f} % ({p.networks})"
            for p in report.published
        )
        remarks.append(
            f"Published in the set's own file, under its makers' protocol (networks): {', '.join(shown)}."
        )
    few = [row.set for row in report.rows if row.set == "random" and row.seeds < 3]
    if few:
        remarks.append(
            "Random was drawn fewer than three times: its accuracy varies by several points between draws."
        )
    return [*remarks, *report.notes]


def _as_report(report: Report | Mapping[str, Any]) -> Report:
    return report if isinstance(report, Report) else Report.from_dict(report)


def _sections(report: Report) -> list[Table]:
    """Return what is shown below the rows: the table set × network, where there are several, and
    the continual experiment.
    """
    crossed = cross(report)
    return [
        *([] if crossed is None else [crossed.table()]),
        *([continual_table(report)] if report.continual else []),
    ]


def render_table(report: Report | Mapping[str, Any]) -> str:
    """Return the report as a plain text table for logs and terminals: context, rows, remarks, further tables."""
    report = _as_report(report)
    parts = [_context(report), "", *as_text(_cells(report)), "", *_remarks(report)]
    for section in _sections(report):
        parts += ["", f"{section.title}:", "", *as_text(section)]
    if report.trainings:
        parts += ["", PROTOCOLS, *(f"  {training.text()}" for training in report.trainings)]
    return "\n".join(parts).rstrip() + "\n"


def render_markdown(report: Report | Mapping[str, Any]) -> str:
    """Return the report as Markdown: context, table, remarks, further tables."""
    report = _as_report(report)
    parts = [
        _context(report),
        "",
        *as_markdown(_cells(report)),
        "",
        *(f"- {remark}" for remark in _remarks(report)),
    ]
    for section in _sections(report):
        parts += ["", f"{section.title}:", "", *as_markdown(section)]
    if report.trainings:
        parts += ["", PROTOCOLS, "", *(f"- {training.text()}" for training in report.trainings)]
    return "\n".join(parts).rstrip() + "\n"


def reference(report: Report, name: str) -> float | None:
    """Return the accuracy of the first row of set ``name`` under the curve's protocol, for a line beside the curve."""
    rows = [row for row in report.rows if row.set == name and row.protocol == report.curve_protocol]
    return rows[0].accuracy_mean if rows and math.isfinite(rows[0].accuracy_mean) else None
