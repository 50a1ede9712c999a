"""Reports as text and as Markdown: rows beside random and whole, their protocols, what is remarkable."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from raydd.artifacts.report import PROTOCOLS, Report, Row, cross
from raydd.artifacts.tables import (
    Table,
    as_markdown,
    as_text,
    continual_table,
    crossed_table,
    inline,
)


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


def is_random(report: Report, row: Row) -> bool:
    """Return whether a row is of random images, as many as the set has, or as its file holds, by whatever name."""
    filling = row.coding is not None and bool(row.coding.fills)
    return filling or row.set == "random" or row.set in report.random


def random_beside(report: Report, row: Row) -> Row | None:
    """Return the row of random images that a row is compared with, on the same network: one under the
    same protocol; where there is none, beside the report's own set, one for as many updates. Of a
    coded set those that fill its file, coded alike.
    """
    if row.coding is not None:
        filling = [
            r
            for r in report.rows
            if r.coding is not None
            and (r.coding.fills, r.protocol, r.network) == (row.set, row.protocol, row.network)
        ]
        return filling[0] if filling else None
    rows = [r for r in report.rows if is_random(report, r) and r.network == row.network]
    rows.sort(key=lambda r: r.set != "random")
    same = [r for r in rows if r.protocol == row.protocol]
    if row.set == report.rows[0].set:
        same += [r for r in rows if report.random.get(r.set) == "updates"]
    return same[0] if same else None


def rows_table(report: Report) -> Table:
    """Return the report's rows, each beside random images (:func:`random_beside`).

    Images stored and seen have columns where they differ, and so has what is stored in all where it
    is more than images and labels, and a whitening.
    """
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
    counts = _counts_matter(report)
    if counts:
        header[-3:-3] = ["stored", "seen"]
    coded = any(row.coding is not None for row in report.rows)
    if coded:
        header.insert(1, "coded")
    further = any(row.further_bytes for row in report.rows)
    whitened = any(row.whitening_bytes for row in report.rows)
    if whitened:
        header.insert(-1, "whitening")
    if further:
        header.insert(-1, "in all")
    lines = []
    for row in report.rows:
        random = random_beside(report, row)
        gain = (
            "–"
            if is_random(report, row)
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
        if counts:
            line[-3:-3] = ["–" if n is None else f"{n:,}" for n in (row.stored, row.seen)]
        if whitened:
            line.insert(-1, format_bytes(row.whitening_bytes) if row.whitening_bytes else "–")
        if further:
            line.insert(-1, format_bytes(row.bytes))
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
        if coded:
            line.insert(1, "–" if row.coding is None else row.coding.codec)
        lines.append(line)
    return Table("", header, lines, left=3 + coded)


def weights_table(report: Report) -> Table | None:
    """Return what the sets weigh, a line per set: bytes, bits per class, and the same images in 8 and in 32 bits.

    ``None`` for the reports of earlier versions.
    """
    found = {row.set: (row, row.account) for row in report.rows if row.account is not None}
    if not found:
        return None
    header = ["set", "bytes", "bits per class", "its images in 8 bits", "in 32 bits"]
    teachers = any(of.teacher_bytes is not None for _, of in found.values())
    if teachers:
        header.append("teachers, not counted")
    lines = []
    for name, (row, of) in found.items():
        line = [
            name,
            f"{row.bytes:,}",
            f"{of.bits_per_class:,.0f}",
            format_bytes(of.at_8_bits),
            format_bytes(of.at_32_bits),
        ]
        if teachers:
            line.append("–" if of.teacher_bytes is None else format_bytes(of.teacher_bytes))
        lines.append(line)
    return Table("What the sets weigh", header, lines)


def _counts_matter(report: Report) -> bool:
    """Return whether numbers of images have columns: students see others than are stored, or sets differ in them."""
    rows = [row for row in report.rows if row.stored is not None and row.set != "whole"]
    return any((row.stored, row.seen) != (rows[0].stored, rows[0].stored) for row in rows)


def context(report: Report) -> str:
    """Return what the accuracies are of."""
    device = f", on {report.device}" if report.device else ""
    return (
        f"{report.dataset}, {size_of(report)}, {report.split} split{device}: top-1 accuracy of the last epoch, "
        f"mean ± standard deviation (ddof {report.ddof}) over seeds × networks."
    )


def remarks(report: Report) -> list[str]:
    """Return HLR, IOR and what has to be known of the numbers."""
    said = []
    if report.hlr is not None:
        said.append(
            f"HLR {signed(report.hlr)} points (whole data minus this set, hard labels; lower is better)."
        )
    if report.ior is not None:
        said.append(
            f"IOR {signed(report.ior)} points (this set minus random, same protocol; higher is better)."
        )
    if any(row.best_accuracy is not None for row in report.rows):
        said.append(
            f"The best epoch is chosen on the {report.split} split itself: it is shown to compare with papers, not as a"
            " result."
        )
    said += _for_as_many_updates(report)
    if not any(is_random(report, row) for row in report.rows):
        said.append(
            "Random images of the same number were not evaluated: these accuracies have no baseline."
        )
    if report.published:
        shown = (
            f"{p.network} {p.accuracy_mean:.2f} ± {p.accuracy_std:.2f} % ({p.networks})"
            for p in report.published
        )
        said.append(
            f"Published in the set's own file, under its makers' protocol (networks): {', '.join(shown)}."
        )
    few = [row.set for row in report.rows if is_random(report, row) and row.seeds < 3]
    if few:
        said.append(
            "Random was drawn fewer than three times: its accuracy varies by several points between draws."
        )
    return [*said, *_coded(report), *report.notes]


def _coded(report: Report) -> list[str]:
    """Return what has to be known of coded sets: what random images beside them are, and what is left of budgets."""
    rows = [row for row in report.rows if row.coding is not None]
    if not rows:
        return []
    said = [
        "Students see images as they come out of a coded file. Random images beside a set are coded, too, as many of"
        " each class as its file's bytes hold; vs random is against those coded alike."
    ]
    for row in rows:
        if row.coding is not None and row.coding.left is not None and not row.coding.fills:
            said.append(
                f"{row.set}: {row.coding.codec}, {max(row.coding.files):,} bytes; {row.coding.left:,} of"
                f" {row.coding.budget:,} are left over."
            )
    return said


def _for_as_many_updates(report: Report) -> list[str]:
    """Return what the set is worth beside random images for as many updates as its students had, under a
    protocol of their own.
    """
    own = report.rows[0]
    rows = [
        row
        for row in report.rows
        if report.random.get(row.set) == "updates"
        and row.network == own.network
        and row.protocol != own.protocol
    ]
    return [
        f"{signed(own.accuracy_mean - row.accuracy_mean)} points beside random images for as many updates ({row.set})."
        for row in rows
    ]


def _as_report(report: Report | Mapping[str, Any]) -> Report:
    return report if isinstance(report, Report) else Report.from_dict(report)


def further_tables(report: Report) -> list[Table]:
    """Return what is shown below the rows: what the sets weigh, the table set × network, where
    there are several, and the continual experiment.
    """
    crossed, weights = cross(report), weights_table(report)
    return [
        *([] if weights is None else [weights]),
        *([] if crossed is None else [crossed_table(crossed)]),
        *([continual_table(report)] if report.continual else []),
    ]


def render_table(report: Report | Mapping[str, Any]) -> str:
    """Return the report as a plain text table for logs and terminals: context, rows, remarks, further tables."""
    report = _as_report(report)
    parts = [context(report), "", *as_text(rows_table(report)), "", *remarks(report)]
    for section in further_tables(report):
        parts += ["", f"{section.title}:", "", *as_text(section)]
    if report.trainings:
        parts += ["", PROTOCOLS, *(f"  {training.text()}" for training in report.trainings)]
    return "\n".join(map(inline, parts)).rstrip() + "\n"


def render_markdown(report: Report | Mapping[str, Any]) -> str:
    """Return the report as Markdown: context, table, remarks, further tables."""
    report = _as_report(report)
    parts = [
        context(report),
        "",
        *as_markdown(rows_table(report)),
        "",
        *(f"- {remark}" for remark in remarks(report)),
    ]
    for section in further_tables(report):
        parts += ["", f"{section.title}:", "", *as_markdown(section)]
    if report.trainings:
        parts += ["", PROTOCOLS, "", *(f"- {training.text()}" for training in report.trainings)]
    return "\n".join(map(inline, parts)).rstrip() + "\n"
