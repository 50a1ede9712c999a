"""Settings every test runs with: one thread, quiet libraries, no network, helpers importable."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("RAYDD_STORAGE_RETRY_S", "60")
# Ray's workers give way to everything else by default: beside another test they would starve.
os.environ.setdefault("RAY_worker_niceness", "0")
os.environ.setdefault("RAY_prestart_worker_first_driver", "0")  # idle workers that no test uses
# Where a test starts no head of its own, nobody looks at the dashboard: an eighth of what a small job costs.
os.environ.setdefault("RAYDD_RAY_DASHBOARD", "0")
# Under `uv run` each of Ray's workers would build an environment of its own, a minute each.
os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
sys.path.insert(0, str(Path(__file__).parent))
# Ray's workers unpickle the tests' toy stages; `sitecustomize.py` is for all processes.
os.environ["PYTHONPATH"] = os.pathsep.join(
    [str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
).rstrip(os.pathsep)

import pytest
import torch

if TYPE_CHECKING:
    from raydd.core.units import Data

pytest_plugins = ["rooms"]


@pytest.fixture(scope="session")
def digits() -> Mapping[str, Data]:
    """Handwritten digits, open."""
    from raydd.data.config import DatasetConfig
    from raydd.data.datasets import open_data

    return open_data(DatasetConfig(name="digits"))


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)
