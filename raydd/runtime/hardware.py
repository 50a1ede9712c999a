"""Devices that a plan can be made for without having one: public facts, and the rates that the
library's networks reach of them.
"""

from __future__ import annotations

from dataclasses import dataclass

from raydd.core.errors import unknown
from raydd.core.units import Numerics

TENSOR_CORE_SHARE, FP32_SHARE = 0.17, 0.5
"""Of a GPU's peak, what 3x3 convolutions of ConvNets and ResNets reach (measured on one H100: real
images of a DM update 67 of 495 TFLOP/s in TF32, compiled, and 25 of 67 in fp32; ResNet-18 at 224
pixels 52 and 26), over the 70 % that an estimate takes of a rate.
"""


@dataclass(frozen=True)
class Hardware:
    """A GPU: bytes of memory, bytes/s of it, streaming multiprocessors, and peaks in FLOP/s (dense;
    TF32 and bf16 on tensor cores).
    """

    name: str
    memory: float
    bandwidth: float
    multiprocessors: int
    fp32: float
    tf32: float
    bf16: float

    @property
    def kind(self) -> str:
        """What markers of its outputs begin with."""
        return f"NVIDIA {self.name}"

    def rate(self, numerics: Numerics) -> float:
        """Return the FLOP/s that convolutions reach, as
        :func:`raydd.runtime.estimate.measured_rate` would find them.
        """
        if numerics.precision == "fp32_strict":
            return FP32_SHARE * self.fp32
        return TENSOR_CORE_SHARE * (self.bf16 if numerics.precision == "bf16" else self.tf32)

    def __str__(self) -> str:
        peaks = f"TF32 {self.tf32 / 1e12:g}, bf16 {self.bf16 / 1e12:g}, fp32 {self.fp32 / 1e12:g} TFLOP/s at most"
        return (
            f"{self.kind} ({self.memory / 1e9:g} GB at {self.bandwidth / 1e12:g} TB/s, {self.multiprocessors}"
            f" multiprocessors; {peaks})"
        )


# NVIDIA's data sheets: H100 and H200 Tensor Core GPU (SXM), A100 80GB (SXM), L4; rates with sparsity are halved.
GPUS = {
    "h100": Hardware("H100", 80e9, 3.35e12, 132, 67e12, 495e12, 989e12),
    "h200": Hardware("H200", 141e9, 4.8e12, 132, 67e12, 495e12, 989e12),
    "a100": Hardware("A100", 80e9, 2.039e12, 108, 19.5e12, 156e12, 312e12),
    "l4": Hardware("L4", 24e9, 0.3e12, 58, 30.3e12, 60e12, 121e12),
}
CPU = "cpu"


def named_device(name: str) -> Hardware | None:
    """Return a GPU by its name in small or capital letters, ``None`` for ``cpu``; ``ConfigError``
    for what is not known.
    """
    if name.lower() == CPU:
        return None
    if name.lower() not in GPUS:
        raise unknown("device", name, [*GPUS, CPU])
    return GPUS[name.lower()]
