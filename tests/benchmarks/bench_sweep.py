"""What a sweep costs beside its trials: trials of about half a minute on digits, one after another on Ray.

    python tests/benchmarks/bench_sweep.py --json docs/benchmarks/sweep.json

Of each trial, but for the first that its process runs: the seconds by the clock from its beginning to the next one's,
less the device-seconds of its units. Where two processes share a core the latter hold waits as well.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml
from harness import machine

from raydd.core.storage import Storage
from raydd.search.trials import TrialJournal

ROOT = Path(__file__).parents[2]
TRIALS = 6


def measure(folder: Path, iterations: int) -> dict[str, Any]:
    """Return what a sweep of trials of so many updates took."""
    space = {
        "search": "random",
        "budget": {"trials": TRIALS},
        "keys": {"method.lr_img": {"loguniform": [0.1, 10.0]}},
        "trial": {"evaluation.every": None, "evaluation.repeats": 2, "evaluation.epochs": 100},
    }
    (folder / "space.yaml").write_text(yaml.safe_dump(space))
    command = [
        *(sys.executable, "-m", "raydd.sweep", "--config", str(ROOT / "jobs" / "quickstart.yaml")),
        *("--space", str(folder / "space.yaml"), f"method.iterations={iterations}"),
        *("tracking.uri=none", f"output={folder}/out", f"store={folder}/store", "compute.workers=1"),
    ]  # fmt: skip
    subprocess.run(command, check=True)
    trials = TrialJournal(Storage(f"{folder}/out")).read()
    rows = []
    for trial, later in zip(trials, [*trials[1:], None], strict=True):
        whole = trial.clock if later is None else later.started - trial.started
        rows.append({"seconds": round(whole, 2), "computed": round(trial.seconds_computed, 2)})
    rest = rows[1:-1]  # after the last one nothing begins
    whole, computed = (sum(row[name] for row in rest) for name in ("seconds", "computed"))
    return {
        "iterations": iterations,
        "trials": rows,
        "first_seconds_beside": round(rows[0]["seconds"] - rows[0]["computed"], 2),
        "seconds_per_trial": round(whole / len(rest), 2),
        "beside_percent": round(100 * (whole - computed) / whole, 1),
    }


def main() -> None:
    """Measure, print and keep the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--iterations", type=int, default=300)
    o = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = {"machine": machine(), **measure(Path(folder), o.iterations)}
    text = json.dumps(found, indent=1) + "\n"
    sys.stdout.write(text)
    if o.json is not None:
        o.json.write_text(text)


if __name__ == "__main__":
    main()
