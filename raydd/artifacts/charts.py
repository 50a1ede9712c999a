"""A report's pictures and their numbers: every set on every network, and the continual experiment, step by step."""

from __future__ import annotations

import csv
import dataclasses
import io
import itertools

from raydd.artifacts import per_byte
from raydd.artifacts.grid import curve
from raydd.artifacts.rendering import size_of
from raydd.artifacts.report import Crossed, MemoryRow, Report, cross
from raydd.artifacts.tables import continual_context

NETWORKS, CONTINUAL, CONTINUAL_ROWS = "networks.png", "continual.png", "continual.csv"


def report_files(report: Report) -> dict[str, bytes]:
    """Return the files that lie beside a report, by name: what it has to show."""
    files: dict[str, bytes] = {}
    crossed = cross(report)
    if crossed is not None:
        what = f"{report.dataset}, {size_of(report)}: accuracy, % ({report.split} split)"
        files[NETWORKS] = matrix(crossed, f"{what}\nprotocol {report.rows[0].protocol}")
    if report.continual:
        files[CONTINUAL] = continual_chart(report)
        files[CONTINUAL_ROWS] = continual_csv(report)
    if per_byte.coded_rows(report):
        files[per_byte.ROWS] = per_byte.per_byte_csv(report)
    if per_byte.series_of(report):
        files[per_byte.CHART] = per_byte_chart(report)
    return files


def matrix(crossed: Crossed, title: str = "") -> bytes:
    """Return a matrix of accuracies as PNG bytes: a row per network, a column per set, darker where
    it is more accurate.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows, columns = len(crossed.networks), len(crossed.sets)
    known = [cell.accuracy_mean for line in crossed.cells for cell in line if cell is not None]
    reach = max(max(known) - min(known), 1.0)
    low, high = (
        min(known) - 0.25 * reach,
        min(known) + reach,
    )  # a little room below: the palest cell is still a cell
    figure = Figure(
        figsize=(max(6.5, 2.6 + 1.5 * columns), 1.5 + 0.34 * rows), dpi=150, layout="constrained"
    )
    axes = figure.add_subplot()
    values = [
        [float("nan") if cell is None else cell.accuracy_mean for cell in of]
        for of in zip(*crossed.cells, strict=True)
    ]
    axes.imshow(values, cmap="Blues", aspect="auto", vmin=low, vmax=high)
    for i, j in itertools.product(range(rows), range(columns)):
        cell = crossed.cells[j][i]
        text = "–" if cell is None else f"{cell.accuracy_mean:.1f} ± {cell.accuracy_std:.1f}"
        dark = values[i][j] > low + 0.6 * (high - low)
        axes.text(
            j, i, text, ha="center", va="center", fontsize=9, color="white" if dark else "#202020"
        )
    axes.set_xticks(range(columns), [name.replace(", ", "\n") for name in crossed.sets])
    axes.xaxis.tick_top()
    axes.set_yticks(range(rows), crossed.networks)
    axes.set_xticks([j + 0.5 for j in range(columns - 1)], minor=True)
    axes.set_yticks([i + 0.5 for i in range(rows - 1)], minor=True)
    axes.grid(which="minor", color="white", linewidth=2)
    axes.tick_params(which="both", length=0)
    axes.spines[:].set_visible(False)
    figure.suptitle(title, fontsize=11)
    out = io.BytesIO()
    FigureCanvasAgg(figure).print_png(out, metadata={"Software": None})
    return out.getvalue()


def continual_chart(report: Report) -> bytes:
    """Return accuracy over the classes seen as PNG bytes, a line per set, its deviation as a band."""
    series: dict[str, list[tuple[float, ...]]] = {}
    for row in report.continual:
        series.setdefault(row.set, []).append((row.classes, row.accuracy_mean, row.accuracy_std))
    return curve(
        series,
        x_label="classes seen",
        y_label=f"accuracy on these classes, % ({report.split} split)",
        title="\n".join([f"{report.dataset}, {size_of(report)} kept", *continual_context(report)]),
    )


def continual_csv(report: Report) -> bytes:
    """Return the continual experiment's rows as CSV, a column per field of :class:`MemoryRow`."""
    out = io.StringIO()
    writer = csv.DictWriter(
        out, [field.name for field in dataclasses.fields(MemoryRow)], lineterminator="\n"
    )
    writer.writeheader()
    writer.writerows(dataclasses.asdict(row) for row in report.continual)
    return out.getvalue().encode()


def per_byte_chart(report: Report) -> bytes:
    """Return accuracy against bytes as PNG bytes, a line for each series, its deviation as a band; beside
    points the images of each class.
    """
    return curve(
        per_byte.series_of(report),
        x_label="bytes of all that students see (beside points: images of each class × bits)",
        y_label=f"accuracy, % ({report.split} split)",
        title="\n".join([report.dataset, *per_byte.students(report)]),
        log_x=True,
        notes=per_byte.notes_of(report),
    )
