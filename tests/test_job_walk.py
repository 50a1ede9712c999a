"""A job's path is short: how many functions it is handed to, and how often a reader turns back."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
STOPS, RETURNS = 27, 17
"""At most; docs/architecture.md, "How far a job travels", has what they are."""


@pytest.mark.slow
@pytest.mark.parametrize("mode", [["--dry-run"], ["evaluation.epochs=1", "method.iterations=2"]])
def test_a_job_is_handed_to_few_functions_and_its_data_are_described_once(mode: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "tests/benchmarks/job_walk.py", "--config", "jobs/quickstart.yaml", *mode],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert 10 < found["stops"] <= STOPS
    assert 5 < found["returns"] <= RETURNS
    assert found["catalogue"] == 1
