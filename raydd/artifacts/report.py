"""The report of a distilled set: no number without its context.

The evaluation writes it as JSON (:meth:`Report.to_dict`); :mod:`raydd.artifacts.rendering` renders it.
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

from raydd.artifacts.accounting import Accounting, Coding
from raydd.artifacts.protocol import Training
from raydd.core.errors import ConfigError, unknown
from raydd.core.plain_types import check_fields
from raydd.core.sealed import CHECKSUM

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
    it. ``device_seconds``: what making the set cost; ``None`` if not measured. ``stored``,
    ``seen``: images that the set keeps, and that students see (``None`` in the reports of earlier
    versions). ``further_bytes``: what it keeps besides images and labels (a whitening, a decoder's
    tensors); ``whitening_bytes``: those of them that are a whitening. ``account``: what that
    comes to for a class, and what the images are in 8 and 32 bits (``None`` in the reports of
    earlier versions). ``coding``: of a set that was coded, how; then ``image_bytes`` are those of
    the file, labels included (mean over seeds or draws).
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
    stored: int | None = None
    seen: int | None = None
    further_bytes: int = 0
    whitening_bytes: int = 0
    account: Accounting | None = None
    coding: Coding | None = None

    @property
    def bytes(self) -> int:
        """Bytes of all that the set keeps."""
        return self.image_bytes + self.label_bytes + self.further_bytes

    def __post_init__(self) -> None:
        if self.account is not None:
            object.__setattr__(self, "account", _build(Accounting, self.account))
        if self.coding is not None:
            object.__setattr__(self, "coding", _build(Coding, self.coding))
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
    and what of its files was left out and why, as plain values. ``random``: sets that are random
    images under other names, and what they have as much of as this set, ``pixels`` or ``updates``.
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
    random: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON values; with several networks, ``table`` shows the rows as set
        × network once more.
        """
        values = dataclasses.asdict(self)
        for name in ("continual", "trainings", "size", "published", "inventory", "random"):
            if not values[name]:
                del values[name]
        for row in values["rows"]:
            for name in ("account", "coding"):
                if row[name] is None:
                    del row[name]
        crossed = cross(self)
        return values if crossed is None else values | {"table": crossed.to_dict()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Report:
        """Return the report of JSON values; ``ConfigError`` on keys that are unknown or missing, and on
        values that cannot be.
        """
        for name in ("rows", "curve", "notes", "continual", "trainings", "published"):
            if not isinstance(values.get(name, ()), (list, tuple)):
                raise ConfigError(f"a report: {name} is no list")
        plain = {key: value for key, value in values.items() if key not in ("table", CHECKSUM)}
        plain["rows"] = tuple(_build(Row, item) for item in plain.get("rows", ()))
        plain["curve"] = tuple(_build(Point, item) for item in plain.get("curve", ()))
        plain["notes"] = tuple(plain.get("notes", ()))
        plain["continual"] = tuple(_build(MemoryRow, item) for item in plain.get("continual", ()))
        plain["trainings"] = tuple(_build(Training, item) for item in plain.get("trainings", ()))
        plain["published"] = tuple(_build(Published, item) for item in plain.get("published", ()))
        return _build(cls, plain)


@dataclass(frozen=True)
class Crossed:
    """A report's rows as set × network: ``cells[set][network]``, ``None`` for what was not run."""

    sets: tuple[str, ...]
    networks: tuple[str, ...]
    cells: tuple[tuple[Row | None, ...], ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the accuracies as JSON values, ``[set][network]``."""
        means, deviations = (
            [[pick(row) for row in line] for line in self.cells] for pick in (_mean, _deviation)
        )
        return {
            "sets": list(self.sets),
            "networks": list(self.networks),
            "accuracy_mean": means,
            "accuracy_std": deviations,
        }


def _mean(row: Row | None) -> float | None:
    return None if row is None else row.accuracy_mean


def _deviation(row: Row | None) -> float | None:
    return None if row is None else row.accuracy_std


def cross(report: Report) -> Crossed | None:
    """Return the rows as set × network, ``None`` with a single network.

    A set under another protocol than the first row's is named with it: ``whole, dm[epochs=60]``.
    """
    names = {
        (r.set, r.protocol): r.set
        if r.protocol == report.rows[0].protocol
        else f"{r.set}, {r.protocol}"
        for r in report.rows
    }
    networks = tuple(dict.fromkeys(row.network for row in report.rows))
    if len(networks) < 2:
        return None
    found = {(row.set, row.protocol, row.network): row for row in report.rows}
    cells = tuple(tuple(found.get((*key, network)) for network in networks) for key in names)
    return Crossed(tuple(names.values()), networks, cells)


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
        made = kind(**values)
    except TypeError as error:
        raise ConfigError(f"not a {kind.__name__.lower()}: {error}") from error
    check_fields(made, f"a {kind.__name__.lower()}")
    return made


def summarise(accuracies: Sequence[Sequence[float]]) -> tuple[float, float]:
    """Return mean and standard deviation (``DDOF``), in percent, of accuracies in [0, 1] by seed
    and network, pooled.
    """
    pooled = [100.0 * value for networks in accuracies for value in networks]
    if not pooled:
        raise ConfigError("no accuracies to summarise")
    return statistics.fmean(pooled), statistics.pstdev(pooled)


def reference(report: Report, name: str) -> float | None:
    """Return the accuracy of the first row of set ``name`` under the curve's protocol, for a line beside the curve."""
    rows = [row for row in report.rows if row.set == name and row.protocol == report.curve_protocol]
    return rows[0].accuracy_mean if rows and math.isfinite(rows[0].accuracy_mean) else None
