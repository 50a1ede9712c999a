"""Whole jobs of the statistics-matching family: every variant runs, and what is published is enough to repeat the evaluation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from family_jobs import NETWORKS, job, raydd

from raydd.artifacts.folder import verify

VARIANTS: list[tuple[str, dict[str, Any], tuple[str, ...]]] = [
    ("edc", {"compat": {"ema_carry": "chain"}, "groups_per_unit": 3}, ()),
    ("edc", {"category_aware": "local", "local_images": 40, "class_weight": 1.0}, ()),
    ("edc", {"flatness_weight": 1.0, "drop_rate": 0.4, "compat": {"ema_init": "first"}}, ("evaluation.every=1",)),
    ("gvbsm", {"order": "ten_blocks", "group_size": 20}, ("ipc=10",)),
    ("sre2l", {"crop_curriculum": "cosine", "tv": 1e-3, "l2": 1e-3}, ("evaluation.every=1",)),
    ("rded", {"factor": 1}, ("evaluation.epochs=2",)),
    ("rded", {"factor": 2, "labels": {"batch": 5, "epochs": 2, "codec": "topk", "top": 3, "tail": "mass"}}, ()),
]


@pytest.mark.parametrize(("method", "fields", "overrides"), VARIANTS, ids=lambda value: value if isinstance(value, str) else "")
def test_variants_run(method: str, fields: dict[str, Any], overrides: tuple[str, ...], tmp_path: Path) -> None:
    result = job(tmp_path, method, fields, overrides)
    assert result.exit_code == 0, result.output
    verify(str(tmp_path / "out" / "distilled"))
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert [row["set"] for row in report["rows"]] == [method]
    assert len(report["curve"]) == (3 if "evaluation.every=1" in overrides else 0), "snapshots are evaluated with soft labels too"


def test_each_seed_publishes_labels_that_repeat_its_evaluation_without_the_store(tmp_path: Path) -> None:
    assert job(tmp_path, "edc", {}, ("seeds=[0,1]",)).exit_code == 0
    folders = [tmp_path / "out" / "distilled" / f"seed-{seed}" for seed in (0, 1)]
    before = {path: path.read_bytes() for folder in folders for path in folder.rglob("*") if path.is_file()}
    assert {path.name for path in before if path.parent.name == "labels"} >= {"epoch-000.safetensors", "epoch-001.safetensors"}
    collected = raydd("gc", str(tmp_path / "store"))
    assert collected.exit_code == 0
    assert "0 are still needed" in collected.output
    found = []
    for seed, folder in enumerate(folders):
        args = ["--networks", NETWORKS[0], "--repeats", "1", "--output", str(tmp_path / str(seed))]
        again = raydd("evaluate", str(folder), *args, "evaluation.baselines=[]", f"seed={seed}", f"store={tmp_path / 'other'}")
        assert again.exit_code == 0, again.output
        (row,) = json.loads((tmp_path / str(seed) / "report.json").read_text())["rows"]
        found.append(row["accuracy_mean"])
        verify(str(folder))
    (row,) = json.loads((tmp_path / "out" / "report.json").read_text())["rows"]
    assert row["accuracy_mean"] == pytest.approx(sum(found) / 2, abs=1e-9)
    assert before == {path: path.read_bytes() for path in before}
    other = raydd("evaluate", str(folders[0]), "--labels", str(folders[1]), *args, f"store={tmp_path / 'other'}")
    assert (other.exit_code, "labels of another set" in other.output) == (2, True), other.output
