"""The kernels that observe a network on a GPU: interpreted everywhere, compiled where CUDA is there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import pytest

pytest.importorskip("triton")

from kernel_cases import LAYERS

pytestmark = pytest.mark.slow  # kernels are interpreted
Found = Mapping[str, Mapping[str, float]]
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


@cache
def found(device: str) -> Found:
    """Return what the cases found in a process of their own."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    environment.pop("TRITON_INTERPRET", None)
    if device == "cpu":
        environment["TRITON_INTERPRET"] = "1"
    command = [
        sys.executable,
        "-W",
        "ignore",
        str(Path(__file__).with_name("kernel_cases.py")),
        device,
    ]
    run = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert run.returncode == 0, run.stderr[-3000:]
    cases: Found = json.loads(run.stdout[run.stdout.index("{") :])
    return cases


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("case", LAYERS)
def test_sums_and_their_gradient_are_those_of_plain_operators(case: str, device: str) -> None:
    """Of float32 and float64 maps, channels first and last, with a batch norm's scale and without."""
    kinds = {
        name: values
        for name, values in found(device).items()
        if name.startswith((f"{case}, float32", f"{case}, float64"))
    }
    assert len(kinds) == 3
    for name, values in kinds.items():
        limit = 1e-5 if "float32" in name else 1e-13
        assert values["sums"] < limit, name
        assert values["gradient"] < limit, name
        assert not values["changed bytes"], name


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("kind", ["with", "without"])
def test_a_frozen_batch_norm_is_differentiated_with_its_sums(kind: str, device: str) -> None:
    values = found(device)[f"network {kind} scales"]
    assert values["logits"] == 0
    assert values["statistics"] < 1e-5
    assert values["gradient"] < 1e-5


@pytest.mark.parametrize("device", DEVICES)
def test_a_layer_costs_few_operators(device: str) -> None:
    counted = found(device)["operators"]
    assert 0 < counted["forward"] <= 8
    assert 0 < counted["backward"] <= 8


def test_machines_without_a_gpu_import_no_triton() -> None:
    code = """
import sys, torch, raydd.networks.taps as taps
tap = taps.StatTap(torch.nn.Conv2d(1, 1, 1), 4, shape=(1, 8, 8))
tap(torch.ones(1, 1, 8, 8, requires_grad=True))[1].sum().backward()
sys.exit("triton" in sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True)
