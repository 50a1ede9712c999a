"""Writes the tables of a Markdown file from what runs reported and what methods say of themselves.

    python tests/benchmarks/results_table.py README.md           rewrite the tables
    python tests/benchmarks/results_table.py README.md --check   fail if they are not up to date

A table stands between ``<!-- results docs/results/*.json -->`` (reports of runs; a pattern relative to the file),
``<!-- per_byte docs/results/per_byte/*.json -->`` (of coded sets) or ``<!-- methods -->``, and ``<!-- end -->``.
"""

from __future__ import annotations

import argparse
import importlib
import json
import re
import sys
from pathlib import Path

from raydd.artifacts.per_byte import coded_rows, images_per_class
from raydd.artifacts.rendering import format_bytes, format_seconds, random_beside
from raydd.artifacts.report import Report, Row

BLOCK = re.compile(
    r"(<!-- (?P<kind>results|per_byte|methods) ?(?P<pattern>\S*) -->\n)(.*?)(<!-- end -->)",
    re.DOTALL,
)


def table(header: list[str], lines: list[list[str]], right: int) -> str:
    """Return a Markdown table whose columns from number ``right`` on are numbers."""
    rule = ["---" if i < right else "--:" for i in range(len(header))]
    return "".join("| " + " | ".join(cells) + " |\n" for cells in [header, rule, *lines])


def _accuracy(row: Row | None) -> str:
    return "not run" if row is None else f"{row.accuracy_mean:.1f} ± {row.accuracy_std:.1f}"


def results(reports: list[Report]) -> str:
    """Return one line per set, network and report, with random images of the same number under the
    same protocol beside it.

    The accuracy is in bold unless random images are better.
    """
    header = [
        "data set",
        "images per class",
        "method",
        "network",
        "protocol",
        "accuracy, %",
        "random images, %",
        "seeds × networks",
    ]
    header += ["size", "device time"]
    lines = []
    for report in sorted(reports, key=lambda r: (r.dataset, r.ipc)):
        for row in report.rows:
            if row.set == "random":
                continue
            beside = next(
                (
                    r
                    for r in report.rows
                    if (r.set, r.protocol, r.network) == ("random", row.protocol, row.network)
                ),
                None,
            )
            accuracy = (
                _accuracy(row)
                if beside is not None and row.accuracy_mean < beside.accuracy_mean
                else f"**{_accuracy(row)}**"
            )
            line = [
                report.dataset,
                f"{report.ipc:g}",
                row.set,
                row.network,
                f"`{row.protocol}`",
                accuracy,
            ]
            line += [_accuracy(beside), f"{row.seeds} × {row.networks}"]
            lines.append(
                [
                    *line,
                    format_bytes(row.image_bytes + row.label_bytes),
                    f"{format_seconds(row.device_seconds)}, {report.device}",
                ]
            )
    return table(header, lines, 5)


def per_byte(reports: list[Report]) -> str:
    """Return one line per coded set, with random images that fill its bytes beside it: coded alike, and in another
    way. In bold unless some of them are better.
    """
    header = ["data set", "method", "coded", "bytes", "bits per class", "network", "protocol"]
    header += ["accuracy, %", "random, coded alike, %", "other random, %", "students, random"]
    lines = []
    for report in sorted(reports, key=lambda r: (r.dataset, r.rows[0].network, r.rows[0].set)):
        for row in coded_rows(report):
            if row.coding is None or row.account is None or row.coding.fills:
                continue
            classes = round(8 * row.bytes / row.account.bits_per_class)
            alike = random_beside(report, row)
            filling = [one for one in coded_rows(report) if _fills(one) == (row.set, row.network)]
            others = [one for one in filling if one is not alike]
            best = max((one.accuracy_mean for one in filling), default=0.0)
            own = _accuracy(row)
            line = [
                report.dataset,
                row.coding.series,
                f"{images_per_class(row, classes)} × {row.coding.codec}",
                f"{row.bytes:,}",
                f"{row.account.bits_per_class:,.0f}",
                row.network,
                f"`{row.protocol}`",
                own if row.accuracy_mean < best else f"**{own}**",
                *(
                    "; ".join(_filled(one, classes) for one in some) or "–"
                    for some in ([alike], others)
                ),
                f"{row.seeds} × {row.networks}, {max(one.seeds for one in filling)} × {row.networks}",
            ]
            lines.append(line)
    return table(header, lines, 7)


def _fills(row: Row) -> tuple[str, str]:
    return ("" if row.coding is None else row.coding.fills, row.network)


def _filled(row: Row | None, classes: int) -> str:
    if row is None or row.coding is None:
        return "not run"
    return f"{_accuracy(row)} ({images_per_class(row, classes)} × {row.coding.codec})"


def methods() -> str:
    """Return one line per registered method: its name, what the first line of its file says, and
    the published figures.
    """
    from raydd.methods import METHODS

    lines = []
    for name in METHODS.names():
        text = importlib.import_module(METHODS.get(name).__module__).__doc__ or ""
        paragraphs = [" ".join(paragraph.split()) for paragraph in text.split("\n\n")]
        what = paragraphs[0].rstrip(".")
        published = next(
            (p.removeprefix("Published ") for p in paragraphs if p.startswith("Published ")), ""
        )
        published = re.sub(r"^\((.*?)\): ", lambda match: f"{match[1]}: ", published)
        lines.append([f"`{name}`", what, published])
    return table(["`method.name`", "what it is", "published"], lines, 3)


def rewrite(text: str, folder: Path) -> str:
    """Return Markdown with every marked table made anew; patterns are relative to ``folder``."""

    def make(match: re.Match[str]) -> str:
        if match["kind"] == "methods":
            body = methods()
        else:
            found = [
                Report.from_dict(json.loads(path.read_text()))
                for path in sorted(folder.glob(match["pattern"]))
            ]
            body = per_byte(found) if match["kind"] == "per_byte" else results(found)
        return f"{match[1]}{body}{match[5]}"

    return BLOCK.sub(make, text)


def main() -> int:
    """Rewrite or check the file named on the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("file", type=Path)
    parser.add_argument(
        "--check",
        action="store_true",
        help="Change nothing; exit with 1 if a table is out of date.",
    )
    options = parser.parse_args()
    old = options.file.read_text(encoding="utf-8")
    new = rewrite(old, options.file.resolve().parent)
    if options.check:
        return int(new != old)
    options.file.write_text(new, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
