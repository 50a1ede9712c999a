"""The fuzzer that coverage guides (fuzz.py), for some seconds."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest
from fault_rows import ROOT

pytestmark = pytest.mark.slow


def test_a_fuzzer_guided_by_coverage_finds_nothing() -> None:
    pytest.importorskip("atheris", reason="no atheris for this machine")
    fuzz = str(ROOT / "tests/reliability/fuzz.py")
    done = subprocess.run(
        [sys.executable, fuzz, "--seconds", "4", "--seed", "7"],
        capture_output=True, text=True, timeout=500, check=False, cwd=ROOT,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    told = re.search(r"^(\d+) inputs, 0 faults", done.stdout, re.MULTILINE)
    assert told is not None, done.stdout
    assert int(told[1]) > 0
