"""The smallest kernel: it tells whether Triton works where it is run."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def trial(out):  # type: ignore[no-untyped-def]
    """Write a one."""
    tl.store(out, 1)
