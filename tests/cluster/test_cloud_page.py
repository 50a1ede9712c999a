"""The page on clouds says what the files and the dry run say."""

from __future__ import annotations

import re

import pytest
from click.testing import CliRunner
from cluster_files import CLUSTER, ROOT, submissions, text_of

from raydd.cli import main

PAGE = ROOT / "docs" / "cloud.md"


def test_the_page_submits_what_the_file_submits() -> None:
    (page,), (file,) = submissions(PAGE), submissions(CLUSTER / "aws.yaml")
    assert (page.options, page.entrypoint) == (file.options, file.entrypoint)


def test_the_page_names_each_script_and_the_machines_of_the_files() -> None:
    text = text_of(PAGE)
    for provider in ("aws", "gcp", "kuberay"):
        assert f"cluster/{provider}" in text
    machines = re.findall(r"^ +(?:InstanceType|machineType): (\S+)", _launchers(), re.M)
    assert [machine for machine in machines if f"`{machine}`" not in text] == []


def _launchers() -> str:
    return text_of(CLUSTER / "aws.yaml") + text_of(CLUSTER / "gcp.yaml")


@pytest.mark.slow
def test_quantities_are_those_of_the_dry_run() -> None:
    def told(workers: str) -> str:
        words = ["distill", "--config", str(ROOT / "jobs/imagenet_edc.yaml"), "--dry-run"]
        words += ["--device", "l4", f"compute.workers={workers}", "compute.gpus_per_worker=1"]
        return CliRunner().invoke(main, words).output

    alone, eight = told("1"), told("[1,8]")
    (hours,) = re.findall(r"about ([\d.]+) h with 1 worker", alone)
    (wall,) = re.findall(r"about ([\d.]+) h with 8 workers", eight)
    (gigabytes,) = re.findall(r"storage: ([\d.]+) GB of outputs", alone)
    text = text_of(PAGE)
    most = f"{8 * float(wall):.1f}"
    assert f"{hours} of one worker; with eight {wall} h each, {most} at most" in text
    assert f"outputs and labels | {gigabytes} |" in text
    assert f"| {wall} and a little |" in text
