"""The fused blocks of ConvNets: their cases by Triton's interpreter everywhere, on the device
itself where CUDA is there.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from raydd.core.units import Numerics
from raydd.networks import create_network
from raydd.networks.fast import fast_embed, fast_forward
from raydd.networks.fused import can_be_fused, has_fused_form

CASES = Path(__file__).with_name("fused_cases.py")


def run_cases(**environment: str) -> None:
    # In a process of their own: whether Triton interprets is decided when it is imported.
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(CASES)]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | environment,
        timeout=1500,
    )
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    assert "passed" in done.stdout


@pytest.mark.slow
@pytest.mark.timeout(1600)
def test_by_the_interpreter() -> None:
    pytest.importorskip("triton")
    run_cases(TRITON_INTERPRET="1", CUDA_VISIBLE_DEVICES="")


@pytest.mark.gpu
def test_on_the_device() -> None:
    run_cases(TRITON_INTERPRET="0")


def test_which_networks_are_fused() -> None:
    def make(name: str) -> torch.nn.Module:
        return create_network(name, (1, 8, 8), 3, torch.Generator().manual_seed(0))

    assert has_fused_form(make("convnet2_w8"))
    assert has_fused_form(make("convnet2_w8_leakyrelu_maxpool"))
    for name in (
        "convnet2_w8_swish",
        "convnet2_w8_batchnorm",
        "convnet2_w8_groupnorm",
        "convnet2_w8_nonorm",
        "mlp",
    ):
        assert not has_fused_form(make(name))
    assert not can_be_fused(make("convnet2_w8"))  # on a CPU


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_quick_forwards_on_cuda_are_fused_and_near(precision: str) -> None:
    numerics = Numerics(precision=precision, compile=True)  # type: ignore[arg-type]
    net, double = (
        create_network("convnet3", (1, 28, 28), 10, torch.Generator().manual_seed(0)).cuda()
        for _ in range(2)
    )
    double.double()
    x = torch.randn(64, 1, 28, 28, generator=torch.Generator().manual_seed(1)).cuda()
    assert can_be_fused(net)
    assert not can_be_fused(double)
    with torch.no_grad():
        for ours, exact in (
            (fast_embed(net, numerics)(x), double.embed(x.double())),
            (fast_forward(net, numerics)(x), double(x.double())),
        ):
            assert (ours - exact).norm() / exact.norm() < 0.03
