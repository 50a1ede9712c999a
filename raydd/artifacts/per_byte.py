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
            point = (float(row.bytes), row.accuracy_mean, row.accuracy_std)
            found.setdefault(row.coding.series, []).append(point)
    return {name: sorted(points) for name, points in found.items()}


def students(report: Report) -> str:
    """Return by whom a chart's accuracies are: protocol, network, how many of each."""
    own = next(row for row in coded_rows(report) if row.coding and not row.coding.fills)
    most = max(row.seeds for row in coded_rows(report) if row.network == own.network)
    return (
        f"protocol {own.protocol}, {own.network}, {own.seeds} × {own.networks} students of the set,"
        f" {most} × {own.networks} of random draws"
    )


def images_per_class(row: Row, classes: int) -> str:
    """Return the images per class of a row as text, of draws that differ their mean; ``–`` if it is not known."""
    return "–" if row.stored is None else f"{row.stored / classes:g}"


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
