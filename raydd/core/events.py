"""What a runner tells its driver while it works."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class Event:
    """One thing that happened to a unit (or, with an empty ``unit``, to the run).

    ``start``: a worker took the unit. ``progress``: ``t`` of ``steps`` updates made (about once a second).
    ``log``: ``rows`` of scalars ``(t, {name: value})``, each sent at least once, safe to send again.
    ``output``: an output (``final`` or a snapshot) was written, or found done (``cached``).
    ``failed``: the unit cannot be computed, ``text`` says why. ``message``: a line for a person.
    ``device``: of an output, the kind of device that it was made on.
    """

    kind: Literal["start", "progress", "log", "output", "failed", "message"]
    stage: str = ""
    unit: str = ""
    key: str = ""
    output: str = ""
    t: int = 0
    steps: int = 0
    rows: tuple[tuple[int, dict[str, float]], ...] = field(default=())
    seconds: float = 0.0
    cached: bool = False
    worker: str = ""
    device: str = ""
    text: str = ""
