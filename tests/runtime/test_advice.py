"""What a dry run says for a device that is not there: its time, and sizes of units that suit it."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from small import small_fields

from raydd.cli import main
from raydd.config import Job, parse_job
from raydd.core.errors import ConfigError
from raydd.core.units import Numerics
from raydd.data.catalog import entry
from raydd.methods import METHODS
from raydd.runtime.advice import advice
from raydd.runtime.hardware import GPUS, Hardware, named_device
from raydd.runtime.planning import dry_run, make_plan, most_workers

INFO = replace(entry("digits").info, train_counts=(140,) * 10)
H100 = GPUS["h100"]


def tree(name: str, workers: int = 0, **method: Any) -> dict[str, Any]:
    return {
        "dataset": {"name": "digits"},
        "ipc": 2,
        "method": {"name": name, **small_fields(name), **method},
        "evaluation": {"repeats": 20, "baselines": [], "networks": ["convnet1_w4"]},
        "compute": {"workers": workers, "gpus_per_worker": int(workers > 0)},
    }


def lines(job: Job, gpu: Hardware | None = H100) -> list[str]:
    plan = make_plan(job, INFO)
    return advice(job, plan.problems[0], plan.evaluation, gpu, most_workers(job.compute))


def advised(job: Job, gpu: Hardware | None = H100) -> dict[str, int]:
    """Return the values that are advised, by key."""
    found = [
        re.match(r"  - ([\w.]+)=(\d+) \((\d+) now\): .{20,}$", line)
        for line in lines(job, gpu)[1:-1]
    ]
    assert all(found)
    return {match[1]: int(match[2]) for match in found if match}


@pytest.mark.parametrize("gpu", [H100, GPUS["l4"], None], ids=str)
@pytest.mark.parametrize("workers", [0, 4])
@pytest.mark.parametrize("name", METHODS.names())
def test_what_is_advised_is_accepted_and_then_advised_no_more(
    name: str, workers: int, gpu: Hardware | None
) -> None:
    settings = tree(name, workers)
    if METHODS.get(name).__dataclass_fields__.keys() & {"labels"}:
        settings["evaluation"]["protocol"] = name
    for key, value in advised(parse_job(settings), gpu).items():
        group, field = key.split(".")
        settings[group][field] = value
    assert advised(parse_job(settings), gpu) == {}


def test_one_worker_with_a_gpu_takes_all_classes_groups_and_students() -> None:
    assert advised(parse_job(tree("dm"))) == {
        "method.classes_per_unit": 10,
        "evaluation.repeats_per_unit": 20,
    }
    assert "method.classes_per_unit" not in advised(parse_job(tree("dm")), None), (
        "a CPU is as fast class by class"
    )
    settings = tree("sre2l", group_size=2)
    settings["evaluation"]["protocol"] = "sre2l"
    assert advised(parse_job(settings))["method.groups_per_unit"] == 10
    (line,) = [line for line in lines(parse_job(tree("dsa"))) if "classes_per_unit" in line]
    assert re.search(
        r"classes_per_unit=10 \(4 now\): an update of 4 classes is about [\d.e-]+ ms of arithmetic there",
        line,
    )


def test_workers_and_seeds_share_the_classes() -> None:
    assert advised(parse_job(tree("dm", 2)))["method.classes_per_unit"] == 5
    for gpu in (H100, None):
        assert advised(parse_job(tree("dm", 5)), gpu)["method.classes_per_unit"] == 2
    assert "method.classes_per_unit" not in advised(parse_job(tree("dm", 5) | {"seeds": [0, 1]}))


def test_memory_bounds_what_is_advised() -> None:
    job = parse_job(tree("dm", network="convnet3", batch_real=128, classes_per_unit=1))
    sizes = [
        advised(job, replace(H100, memory=memory)).get("method.classes_per_unit", 1)
        for memory in (80e9, 60e6, 20e6)
    ]
    assert sizes[0] == 10
    assert 10 > sizes[1] > sizes[2] >= 1
    large = parse_job(tree("dm", network="convnet3", batch_real=128, classes_per_unit=10))
    said = [line for line in lines(large, replace(H100, memory=60e6)) if "classes_per_unit" in line]
    assert f"classes_per_unit={sizes[1]} (10 now): 10 classes take about" in said[0]


def test_an_update_that_keeps_the_gpu_busy_is_left_as_it_is() -> None:
    (line,) = [line for line in lines(parse_job(tree("dm"))) if "classes_per_unit" in line]
    times = 20 / float(re.search(r"about ([\d.e-]+) ms", line)[1])  # type: ignore[index] - so much slower, four classes take 20 ms
    for slower, value in ((1.2, None), (0.5, 8)):
        found = advised(parse_job(tree("dm")), replace(H100, tf32=H100.tf32 / times / slower))
        assert found.get("method.classes_per_unit") == value


def test_batch_norms_that_see_all_classes_leave_nothing_to_advise() -> None:
    assert "method.classes_per_unit" not in advised(
        parse_job(tree("dm", network="convnet1_w8_batchnorm"))
    )


def test_workers_have_to_ask_for_their_gpus() -> None:
    blind = tree("random", 1) | {"compute": {"workers": 1}}
    assert advised(parse_job(blind))["compute.gpus_per_worker"] == 1
    assert lines(parse_job(blind), None) == ["advice for 1 worker on CPUs: nothing to change"]


def test_a_dry_run_estimates_with_the_device_that_is_named() -> None:
    text, _ = dry_run(parse_job(tree("dm")), device="L4")
    assert "at the 10 TFLOP/s that networks of this kind reach on an NVIDIA L4" in text
    assert (
        "advice for 1 worker on an NVIDIA L4 (24 GB at 0.3 TB/s, 58 multiprocessors; TF32 60, bf16 121, fp32 30.3"
        in text
    )
    text, _ = dry_run(parse_job(tree("dm")), device="cpu")
    assert "this machine's cpu" in text
    assert "advice for 1 worker on CPUs" in text
    assert "advice" not in dry_run(parse_job(tree("dm")))[0]


def test_rates_follow_the_precision() -> None:
    rates = [
        H100.rate(Numerics(precision=precision)) for precision in ("fp32_strict", "fp32", "bf16")
    ]  # type: ignore[arg-type]
    assert rates == sorted(rates)
    assert rates[2] / rates[1] == pytest.approx(2, rel=0.01)


def test_what_is_no_device_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError,
        match=r"unknown device 'h10' \(did you mean 'h100'\?\); allowed: a100, cpu, h100, h200, l4",
    ):
        named_device("h10")
    assert named_device("CPU") is None
    result = CliRunner().invoke(
        main, ["distill", "--config", "jobs/quickstart.yaml", "--device", "h100"]
    )
    assert result.exit_code == 2
    assert "--device needs --dry-run" in result.output
