"""Run the tests of this folder and record how many faults they injected and how many inputs they tried.

python tests/reliability/record.py [--nightly] [FILE ...]

writes docs/results/reliability/MODULE.json for each test module that ran, with command, commit, machine and seconds of
the series; what of the other series is there stays. Then it writes the page's tables.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections import defaultdict
from datetime import UTC, datetime

import pytest
from fault_rows import CHECK, HERE, NIGHTLY, RECORDS, ROOT, record_of
from write_table import written


class Recorder:
    """Sums up what tests tell, by module and row."""

    def __init__(self) -> None:
        self.counts: defaultdict[str, defaultdict[str, int]] = defaultdict(lambda: defaultdict(int))
        self.measured: defaultdict[str, dict[str, str]] = defaultdict(dict)

    def add(self, module: str, row: str, count: int, measured: str = "") -> None:
        """Add a test's count to a row's, and keep what it measured."""
        self.counts[module][row] += count
        if measured:
            self.measured[module][row] = measured


class Registered:
    """Hands the recorder to the tests' fixture."""

    def __init__(self, recorder: Recorder) -> None:
        self.recorder = recorder

    @pytest.hookimpl(tryfirst=True)
    def pytest_configure(self, config: pytest.Config) -> None:
        """Register the recorder under the name that the fixture asks for."""
        config.pluginmanager.register(self.recorder, "reliability-recorder")


def main() -> None:
    """Run, record, write the tables; exit with pytest's code if a test fails."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--nightly", action="store_true", help="the long series")
    parser.add_argument("files", nargs="*", help="test files (default: all of this folder)")
    o = parser.parse_args()
    sys.path.append(str(HERE.parent / "benchmarks"))
    from harness import machine

    series, recorder, begun = NIGHTLY if o.nightly else CHECK, Recorder(), time.monotonic()
    chosen = [
        "-m",
        "nightly" if o.nightly else "not nightly",
        f"--ignore={HERE}/test_reliability_page.py",
    ]
    code = pytest.main(
        ["-q", "-n", "0", *chosen, *(o.files or [str(HERE)])], plugins=[Registered(recorder)]
    )
    if code != pytest.ExitCode.OK:
        sys.exit(code)
    head = subprocess.run(
        ["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True, cwd=ROOT
    ).stdout.strip()
    words = ["python", "tests/reliability/record.py", *(["--nightly"] if o.nightly else [])]
    facts = {
        "command": " ".join([*words, *o.files]),
        "commit": head,
        "date": datetime.now(UTC).date().isoformat(),
        "machine": machine(),
        "seconds": round(time.monotonic() - begun, 1),
    }
    RECORDS.mkdir(parents=True, exist_ok=True)
    for module, told in recorder.counts.items():
        path = record_of(module)
        before = json.loads(path.read_text()) if path.exists() else {}
        found = {"counts": dict(sorted(told.items())), "measured": recorder.measured[module]}
        record = before | {series: facts | found}
        path.write_text(json.dumps(record, indent=2) + "\n")
    written()


if __name__ == "__main__":
    main()
