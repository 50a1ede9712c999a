"""Process-wide settings that a job's ``numerics`` asks for."""

from __future__ import annotations

import os

import torch

from raydd.core.units import Numerics


def apply_numerics(numerics: Numerics, device: torch.device) -> None:
    """Set threads, TF32, cuDNN's search and determinism of this process as ``numerics`` says.

    TF32 is set by the switches that every torch has; the ``fp32_precision`` of later ones must not be set beside them.
    """
    torch.set_num_threads(numerics.threads)
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = numerics.precision != "fp32_strict"
    torch.backends.cudnn.benchmark = numerics.cudnn_search
    # Under deterministic algorithms every `torch.empty` would be filled, by a kernel of its own;
    # nothing here reads what it did not write.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    if numerics.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    wanted = numerics.deterministic and device.type == "cuda"
    if (
        torch.are_deterministic_algorithms_enabled() != wanted
    ):  # the call imports the compiler: seconds, where nothing changes
        torch.use_deterministic_algorithms(wanted)


def pick_device() -> torch.device:
    """Return the GPU this process may use, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
