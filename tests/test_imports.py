"""What the verbs import: help needs nothing heavy, a plan needs torch alone, and neither takes long."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from run_records import RUNNING, line, write_run

from raydd.core.keeping import register_run
from raydd.core.store import Store

ROOT = Path(__file__).parents[1]
HEAVY = ("torch", "ray", "mlflow", "timm", "torchvision", "sklearn", "matplotlib", "boto3")
VERBS = ("distill", "sweep", "evaluate", "status", "report", "shard", "export", "encode", "gc")
STEPS = """
import json, sys, time
{first}
begun = time.process_time()
from click.testing import CliRunner
from raydd.cli import main
print("raydd", time.process_time() - begun, *(m for m in {heavy!r} if m in sys.modules), flush=True)
for arguments in json.loads(sys.argv[1]):
    known = set(sys.modules)
    begun = time.process_time()
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 0, (arguments, done.output)
    seconds = time.process_time() - begun
    print(" ".join(arguments[:1]), seconds, *(m for m in {heavy!r} if m in set(sys.modules) - known), flush=True)
"""


def steps(
    commands: list[list[str]], folder: Path, *, first: str = ""
) -> list[tuple[str, float, set[str]]]:
    """Run ``first`` and command lines in one new process; return for ``import raydd.cli`` and each of them its
    verb, seconds of CPU and the heavy modules that it was the first to import.
    """
    done = subprocess.run(
        [sys.executable, "-c", STEPS.format(heavy=HEAVY, first=first), json.dumps(commands)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},  # seconds as users have them
    )
    assert done.returncode == 0, done.stderr
    rows = [line.split() for line in done.stdout.splitlines()]
    return [(name, float(seconds), set(modules)) for name, seconds, *modules in rows]


def test_a_page_and_a_status_need_neither_torch_nor_ray_nor_mlflow(tmp_path: Path) -> None:
    write_run(tmp_path, [*RUNNING, line(50, "end", status="FINISHED")])
    found = steps([["report", str(tmp_path)], ["status", str(tmp_path)]], ROOT)
    assert [modules for _, _, modules in found] == [set(), set(), set()]
    assert (tmp_path / "report.html").exists()


def test_help_imports_nothing_heavy_and_takes_half_a_second() -> None:
    found = steps([["--help"], *([verb, "--help"] for verb in VERBS)], ROOT)
    assert [(name, modules) for name, _, modules in found] == [
        (name, set()) for name in ("raydd", "--help", *VERBS)
    ]
    assert sum(seconds for _, seconds, _ in found[:2]) < 0.5


@pytest.mark.slow
def test_a_plan_takes_little_more_than_torch_and_no_verb_needs_more(tmp_path: Path) -> None:
    store, foreign = tmp_path / "store", tmp_path / "set.pt"
    register_run(Store(str(store)), "runs/one", [], finished=True)
    torch.save((torch.rand(10, 1, 8, 8), torch.arange(10)), foreign)
    read = ["--dataset", "digits", "--space", "pixels"]
    commands = [
        ["distill", "--config", str(ROOT / "jobs/quickstart.yaml"), "--dry-run"],
        ["evaluate", str(foreign), *read, "--dry-run", f"store={store}"],
        ["export", str(foreign), str(tmp_path / "png"), "--to", "folder", *read],
        ["gc", str(store)],
        ["shard", str(tmp_path / "tars"), "--dataset", "digits"],
    ]
    found = steps(commands, tmp_path, first="import torch")
    # What a verb imports beyond the ones before it stands in its row.
    assert [(name, modules) for name, _, modules in found] == [
        ("raydd", {"torch"}),
        ("distill", set()),
        ("evaluate", set()),
        ("export", set()),
        ("gc", set()),
        ("shard", set()),
    ]
    assert found[1][1] < 3.0


def test_what_computes_nothing_on_ray_imports_no_torch() -> None:
    """The controller of a group, which has handles of both."""
    code = "import sys, raydd.runtime.ray.ray_controller, raydd.runtime.ray.ray_ledger; print('torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=True
    )
    assert done.stdout.split() == ["False"]
