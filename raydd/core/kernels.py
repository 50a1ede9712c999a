"""Whether kernels of our own can be built and run here: Triton compiles them, and needs a C
compiler and Python's headers for that.
"""

from __future__ import annotations

import logging
import subprocess
from functools import lru_cache

import torch

log = logging.getLogger(__name__)


@lru_cache(maxsize=1)
def kernels_run() -> bool:
    """Return whether a kernel of one line runs on the GPU; tried once in a process, and told where it does not."""
    try:
        runs = try_kernel(torch.device("cuda"))
    except (ImportError, RuntimeError, OSError, subprocess.CalledProcessError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
    else:
        reason = "" if runs else "a kernel of one line wrote nothing"
    if reason:
        log.warning(
            "kernels made for this work cannot be used, torch's own take their place, which is slower: %s (Triton needs"
            " a C compiler and Python's headers)",
            reason,
        )
    return not reason


def try_kernel(device: torch.device) -> bool:
    """Run a kernel of one line; return whether it did what it is to do."""
    from raydd.core.trial_kernel import trial

    out = torch.zeros(1, dtype=torch.int32, device=device)
    trial[(1,)](out)
    return int(out) == 1
