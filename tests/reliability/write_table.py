"""Write the tables of docs/reliability.md from the rows that the test modules of this folder declare.

python tests/reliability/write_table.py [--check]

``--check`` writes nothing, and fails if the page differs. Text between the tables is the page's own.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Mapping, Sequence

from fault_rows import CHECK, NIGHTLY, PAGE, PARTS, Row, all_rows, counts, measured

BEGIN, END = "<!-- rows of {part}: begin -->", "<!-- rows of {part}: end -->"


def cell(text: str) -> str:
    """Return a text as a cell of a table."""
    return text.replace("|", "\\|").replace("\n", " ")


def line(cells: Sequence[str]) -> str:
    """Return a line of a table."""
    return f"| {' | '.join(cells)} |"


def link(module: str, row: Row) -> str:
    """Return a row's test as a link to its file."""
    file, _, function = row.test.rpartition("::")
    path = f"tests/{file or module}"
    return f"[{function}](../{path})"


def number(found: Mapping[str, int], row: Row) -> str:
    """Return a count as a cell."""
    return f"{found[row.name]:,}" if row.name in found else ""


def plain(rows: Sequence[tuple[str, Row]]) -> list[str]:
    """Return a table of one line for each row."""
    check, nightly, found = counts(CHECK), counts(NIGHTLY), measured()
    lines = [
        line(["to what", "what is done", "what raydd does", "in the check", "long series", "test"]),
        line(["---", "---", "---", "--:", "--:", "---"]),
    ]
    for module, row in rows:
        said = [number(check, row), number(nightly, row)]
        outcome = row.outcome + (f" ({found[row.name]})" if row.name in found else "")
        lines.append(
            line([cell(row.what), cell(row.fault), cell(outcome), *said, link(module, row)])
        )
    return lines


def crossed(rows: Sequence[tuple[str, Row]]) -> list[str]:
    """Return a table of rows that are one group: what it is done to by what is done; cells are counts, the long
    series' after the check's, empty where none was counted, and a dash where there is no such row.
    """
    check, nightly = counts(CHECK), counts(NIGHTLY)
    faults = list(dict.fromkeys(row.fault for _, row in rows))
    lines = [
        line(["to what", *map(cell, faults)]),
        line(["---", *("--:" for _ in faults)]),
    ]
    by_what: dict[str, dict[str, Row]] = {}
    for _, row in rows:
        by_what.setdefault(row.what, {})[row.fault] = row
    for what, of in by_what.items():
        said = []
        for fault in faults:
            row = of.get(fault)
            pair = [number(check, row), number(nightly, row)] if row else ["–"]
            said.append(" + ".join(part for part in pair if part))
        lines.append(line([cell(what), *said]))
    outcomes = dict.fromkeys((row.outcome, link(module, row)) for module, row in rows)
    return [*lines, "", *(f"{outcome} ({test})." for outcome, test in outcomes)]


def tables(part: str, rows: Sequence[tuple[str, Row]]) -> str:
    """Return the tables of a part: of rows without a group, then of each group."""
    mine = [(module, row) for module, row in rows if row.part == part]
    groups = dict.fromkeys(row.group for _, row in mine)
    blocks: list[list[str]] = []
    for group in sorted(groups, key=bool):
        of = [(module, row) for module, row in mine if row.group == group]
        blocks.append(crossed(of) if group else plain(of))
    check, nightly = counts(CHECK), counts(NIGHTLY)
    sums = [sum(found.get(row.name, 0) for _, row in mine) for found in (check, nightly)]
    blocks.append(
        [f"{len(mine):,} rows; counted: {sums[0]:,} in the check, {sums[1]:,} in the long series."]
    )
    return "\n\n".join("\n".join(block) for block in blocks)


def page() -> str:
    """Return the page as it has to be."""
    text, rows = PAGE.read_text(encoding="utf-8"), list(all_rows())
    for part in PARTS:
        begin, end = BEGIN.format(part=part), END.format(part=part)
        if begin not in text:
            raise SystemExit(f"{PAGE}: no line {begin}")
        body = f"{begin}\n{tables(part, rows)}\n{end}"
        text = re.sub(
            f"{re.escape(begin)}.*?{re.escape(end)}", lambda _, body=body: body, text, flags=re.S
        )
    return text


def written() -> None:
    """Write the page."""
    PAGE.write_text(page(), encoding="utf-8")


def main() -> None:
    """Write the page, or compare it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="write nothing; fail if it differs")
    if not parser.parse_args().check:
        written()
    elif page() != PAGE.read_text(encoding="utf-8"):
        sys.exit(f"{PAGE} is not what the tests declare: run tests/reliability/write_table.py")


if __name__ == "__main__":
    main()
