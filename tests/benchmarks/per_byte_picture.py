"""Draws accuracy against bytes from a report of coded sets, as the run itself has drawn it.

python tests/benchmarks/per_byte_picture.py docs/results/per_byte/x.json docs/per_byte.png
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from raydd.artifacts.charts import per_byte_chart
from raydd.artifacts.report import Report

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("report", type=Path)
    parser.add_argument("out", type=Path)
    arguments = parser.parse_args()
    report = Report.from_dict(json.loads(arguments.report.read_text()))
    arguments.out.write_bytes(per_byte_chart(report))
