"""Accuracy against bytes: coded sets and the random images that fill their files, as series and CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

from raydd.artifacts.report import Report, Row

CHART, ROWS = "per_byte.png", "per_byte.csv"
FIELDS = (
    "set",
    "fills",
    "network",
    "protocol",
    "codec",
    "bits",
    "budget",
    "bytes",
    "bits_per_class",
    "images_per_class",
    "at_8_bits",
    "at_32_bits",
    "teacher_bytes",
    "accuracy_mean",
    "accuracy_std",
    "seeds",
    "networks",
)


def coded_rows(report: Report) -> list[Row]:
    """Return the rows of coded sets, in their order."""
    return [row for row in report.rows if row.coding is not None]


def series_of(report: Report) -> dict[str, list[tuple[float, float, float]]]:
    """Return ``(bytes, accuracy, deviation)`` by series, ascending, of the first network; nothing
    where fewer than two files of the set are in the report.

    Series: the set, and random images that fill its files, coded alike, or in another way.
    """
    rows = coded_rows(report)
    own = [row for row in rows if row.coding is not None and not row.coding.fills]
    if not own or sum(row.network == own[0].network for row in own) < 2:
        return {}
    network = own[0].network
    found: dict[str, list[tuple[float, float, float]]] = {}
    for row in rows:
        if row.network == network and row.coding is not None:
            found.setdefault(row.coding.series, []).append(_point(row))
    for row in rows:  # random images of one codec beside all files are coded alike beside some
        if row.network == network and row.coding is not None and row.coding.fills:
            other = found.get(f"random at {row.coding.codec}", [])
            other += [] if _point(row) in other else [_point(row)]
    return {name: sorted(points) for name, points in found.items()}


def _point(row: Row) -> tuple[float, float, float]:
    return float(row.bytes), row.accuracy_mean, row.accuracy_std


def notes_of(report: Report) -> dict[tuple[float, float], str]:
    """Return what a chart says beside a point ``(bytes, accuracy)``: images of each class, and their codec."""
    found = {}
    for row in coded_rows(report):
        if row.coding is not None and row.account is not None and row.stored is not None:
            classes = round(8 * row.bytes / row.account.bits_per_class)
            text = f"{row.stored / classes:.0f} × {row.coding.codec}"
            found[float(row.bytes), row.accuracy_mean] = text
    return found


def students(report: Report) -> tuple[str, str]:
    """Return by whom a chart's accuracies are: protocol and network; how many of each set."""
    own = next(row for row in coded_rows(report) if row.coding and not row.coding.fills)
    most = max(row.seeds for row in coded_rows(report) if row.network == own.network)
    return (
        f"protocol {own.protocol}, {own.network}",
        f"{own.seeds} × {own.networks} students of the set, {most} × {own.networks} of random draws",
    )


def images_per_class(row: Row, classes: int) -> str:
    """Return the images per class of a row as text, of draws that differ their mean; ``–`` if it is not known."""
    return "–" if row.stored is None else f"{row.stored / classes:.3g}"


def per_byte_csv(report: Report) -> bytes:
    """Return a line for each coded row, with :data:`FIELDS` as columns."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(FIELDS)
    for row in coded_rows(report):
        writer.writerow(_cells(row))
    return out.getvalue().encode()


def _cells(row: Row) -> Sequence[object]:
    coding, account = row.coding, row.account
    if coding is None or account is None:
        raise TypeError(f"{row.set}: its images are not coded")
    classes = round(8 * row.bytes / account.bits_per_class)
    return (
        row.set,
        coding.fills,
        row.network,
        row.protocol,
        coding.codec,
        coding.bits,
        coding.budget,
        row.bytes,
        account.bits_per_class,
        images_per_class(row, classes),
        account.at_8_bits,
        account.at_32_bits,
        account.teacher_bytes,
        row.accuracy_mean,
        row.accuracy_std,
        row.seeds,
        row.networks,
    )
