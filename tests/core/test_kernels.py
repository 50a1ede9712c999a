"""Whether kernels of our own run: without a GPU they do not, and with Triton's interpreter the
trial does what it is to do.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from unittest import mock

import pytest
import torch

from raydd.core import kernels


@pytest.mark.parametrize(
    "error",
    [
        ModuleNotFoundError("No module named 'triton'"),
        RuntimeError("Failed to find C compiler"),
        subprocess.CalledProcessError(1, ["gcc"]),
    ],
    ids=["no triton", "no compiler", "no headers"],
)
def test_where_no_kernel_can_be_built_it_is_told_and_plain_operators_are_used(
    error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    kernels.kernels_run.cache_clear()
    with (
        mock.patch.object(kernels, "try_kernel", side_effect=error),
        caplog.at_level(logging.WARNING),
    ):
        assert not kernels.kernels_run()
        assert not kernels.kernels_run()
    assert str(error) in caplog.text
    assert len(caplog.records) == 1
    kernels.kernels_run.cache_clear()


@pytest.mark.slow
def test_the_trial_does_what_it_is_to_do() -> None:
    pytest.importorskip("triton")
    code = "import torch; from raydd.core.kernels import try_kernel; print(try_kernel(torch.device('cpu')))"
    env = os.environ | {"TRITON_INTERPRET": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False
    )
    assert done.stdout.strip() == "True", done.stderr


@pytest.mark.gpu
def test_kernels_run_on_a_gpu_with_a_compiler() -> None:
    assert kernels.try_kernel(torch.device("cuda"))
