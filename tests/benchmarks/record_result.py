"""Keep a run's report among the published results, with the command, the commit and the hardware that made it.

python tests/benchmarks/record_result.py runs/x/report.json docs/results/x.json --command "raydd
distill --config jobs/x.yaml"
"""

from __future__ import annotations

import argparse
import json
import subprocess
from pathlib import Path

from harness import machine


def main() -> None:
    """Copy the report with three notes."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("report", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("--command", required=True, help="what made the run")
    parser.add_argument("--commit", help="of the code that ran (default: the checkout's)")
    parser.add_argument(
        "--hardware", help="that ran it, where that is another machine than this one"
    )
    parser.add_argument(
        "--shared",
        action="store_true",
        help="other work ran beside it, so that times are upper bounds",
    )
    o = parser.parse_args()
    head = subprocess.run(
        ["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True
    ).stdout.strip()
    here = machine()
    hardware = o.hardware or f"{here['cores']} cores of an {here['cpu']}; torch {here['torch']}"
    report = json.loads(o.report.read_text())
    shared = ", shared with other work, so times are upper bounds" if o.shared else ""
    report["notes"] += [
        f"command: {o.command}",
        f"commit: {o.commit or head}",
        f"hardware: {hardware}{shared}",
    ]
    o.target.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
