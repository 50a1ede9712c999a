"""What has been computed is found again: the keys of every job file are those that were written down once.

``python tests/test_job_keys.py`` writes down the keys of job files that are new. It changes none
that are there: a key changes only where bytes do, and then its lines are taken out of the file by
hand, in the commit that says why.
"""

from __future__ import annotations

import hashlib
import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from raydd.config import load_job
from raydd.core.units import unit_key
from raydd.data.catalog import entry
from raydd.data.datasets import describe
from raydd.runtime.estimate import stages_of
from raydd.runtime.planning import make_plan

JOBS = sorted((Path(__file__).parents[1] / "jobs").glob("*.yaml"))
WRITTEN = Path(__file__).parent / "golden" / "job_keys.json"


def keys_of(job_file: Path) -> dict[str, str]:
    """Return a hash of the keys of each kind of stage behind a job, planned without the data and without weights."""
    job = load_job(str(job_file))
    splits = ("holdout", "test", "train") if job.dataset.holdout else ("test", "train")
    digests = tuple((split, f"{split}'s digest") for split in splits)
    info = replace(describe(job.dataset), digests=digests)
    if not info.train_counts and (published := entry(job.dataset.name).train_count):
        info = replace(info, train_counts=(published // info.classes,) * info.classes)
    found: dict[str, list[str]] = {}
    for stage, units, outputs in stages_of(make_plan(job, info).targets):
        found.setdefault(stage.name, []).extend(
            f"{unit_key(stage, unit)} {sorted(outputs)}" for unit in units
        )
    return {
        name: hashlib.sha256("\n".join(sorted(keys)).encode()).hexdigest()[:16]
        for name, keys in sorted(found.items())
    }


@pytest.mark.parametrize("job_file", JOBS, ids=[path.stem for path in JOBS])
def test_the_keys_of_a_job_stay(
    job_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))  # weights that lie there are part of the keys
    assert keys_of(job_file) == json.loads(WRITTEN.read_text())[job_file.stem]


if __name__ == "__main__":
    there = json.loads(WRITTEN.read_text()) if WRITTEN.exists() else {}
    for path in JOBS:
        if path.stem not in there:
            there[path.stem] = keys_of(path)
            sys.stdout.write(f"{path.stem}\n")
    WRITTEN.write_text(json.dumps(there, indent=1, sort_keys=True) + "\n")
