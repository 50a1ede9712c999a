"""The chart of accuracy against bytes on a page, with its numbers."""

from __future__ import annotations

from raydd.artifacts.per_byte import series_of, students
from raydd.artifacts.report import Report
from raydd.pages.axes import Axis
from raydd.pages.blocks import figure
from raydd.pages.html import Html
from raydd.pages.plots import Series, line_chart, series_table


def per_byte_figure(report: Report) -> Html:
    """Return the chart, bytes on a logarithmic axis; nothing where the report has no such series."""
    found = series_of(report)
    if not found:
        return Html("")
    series = [
        Series(name, [(a, b) for a, b, _ in points], [s for _, _, s in points])
        for name, points in found.items()
    ]
    x = Axis(label="bytes of all that students see", log=True)
    y = Axis(label=f"accuracy, % ({report.split} split)")
    title = "Accuracy against bytes"
    by = ", ".join(students(report))
    said = f"{title}, {by}; the band is one standard deviation over all of them."
    chart = line_chart(series, x, y, title=title, description=by)
    return figure(chart, said, series_table(series, x, y, title=said))
