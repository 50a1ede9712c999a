"""How long a thread has waited, for tests of what never waits: a busy machine does not count."""

from __future__ import annotations

import time
from pathlib import Path


def waited() -> float:
    """Return the seconds by the clock less those that this thread ran or was ready to: differences are waiting."""
    now = time.monotonic()
    try:
        ran, ready = Path("/proc/thread-self/schedstat").read_text().split()[:2]
    except OSError:  # a system that does not tell
        return now
    return now - (int(ran) + int(ready)) / 1e9
