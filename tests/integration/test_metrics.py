"""What Prometheus reads while a job runs on a cluster, and the dashboard that asks for it."""

from __future__ import annotations

import json
import re
import urllib.request
from collections import defaultdict
from pathlib import Path

import pytest
from cluster_files import CLUSTER
from conftest import head
from driving import distill, finish, free_ports, overrides

from raydd.core.units import PHASES

pytestmark = [pytest.mark.ray, pytest.mark.timeout(900)]
Samples = dict[str, list[tuple[dict[str, str], float]]]


def dashboard() -> dict[str, list[str]]:
    """Return the names of metrics in each panel's queries."""
    board = json.loads((CLUSTER / "grafana" / "raydd.json").read_text(encoding="utf-8"))
    return {
        panel["title"]: re.findall(r"\bray_\w+", " ".join(t["expr"] for t in panel["targets"]))
        for panel in board["panels"]
    }


def scraped(port: int) -> Samples:
    """Return what a machine's metrics port tells of raydd: tags and value of each sample."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=20) as answer:
        text = answer.read().decode()
    found: Samples = defaultdict(list)
    for name, tags, value in re.findall(r"^(ray_raydd_\w+)\{(.*)\} (\S+)$", text, re.M):
        found[name].append((dict(re.findall(r'(\w+)="([^"]*)"', tags)), float(value)))
    return found


def test_a_job_tells_prometheus_all_that_the_dashboard_asks_for(
    tmp_path: Path, paced: tuple[str, ...]
) -> None:
    wanted = {name for names in dashboard().values() for name in names}
    assert {"ray_raydd_units_done", "ray_raydd_images_per_second", "ray_raydd_loss"} < wanted
    assert all(dashboard().values()), "each panel asks for something"
    (port,) = free_ports(1)
    found: Samples = defaultdict(list)

    def all_there() -> bool:
        for name, samples in scraped(port).items():
            found[name] += samples
        return found.keys() >= wanted

    with head(
        "--node-ip-address=127.0.0.1",
        "--num-cpus=4",
        f"--metrics-export-port={port}",
        RAY_metrics_report_interval_ms="1000",
    ) as cluster:
        env = cluster.environment | {"RAY_ADDRESS": cluster.address}
        driver = distill(tmp_path / "log", *overrides(tmp_path, 2, *paced), env=env)
        driver.until("all metrics", all_there, every=1.0)
        finish(driver)
    assert found.keys() == wanted, "nothing is told that the dashboard does not show"
    phases = {tags["phase"] for name in wanted for tags, _ in found[name] if "phase" in tags}
    assert {"distill", "evaluate"} <= phases <= set(PHASES)
    ours = {tag for samples in found.values() for tags, _ in samples for tag in tags}
    assert not ours & {"unit", "key", "stage", "cls"}, "a class or a unit is no tag"
    units = max(value for tags, value in found["ray_raydd_units"] if tags["phase"] == "distill")
    assert units == 5
    assert all(0 <= value <= 10 for _, value in found["ray_raydd_units_done"])
    assert any(value > 1 for _, value in found["ray_raydd_images_per_second"])
    assert all(20e6 < value < 20e9 for _, value in found["ray_raydd_device_memory_bytes"])
    assert any(value > 0 for _, value in found["ray_raydd_updates_done"])
