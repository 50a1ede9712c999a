"""What fails is told once, and what can be done about it."""

from __future__ import annotations

from pathlib import Path

import pytest
from toys import Walk

from raydd.core.errors import RunFailed
from raydd.core.events import Event
from raydd.core.store import Store
from raydd.core.units import Ref
from raydd.runtime.runner import LocalRunner


def test_a_unit_that_raises_is_tried_again_and_its_error_told_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    events: list[Event] = []

    def fault(stage: str, unit: str, t: int) -> None:
        raise ZeroDivisionError("a rare mistake")

    with caplog.at_level("INFO"), pytest.raises(RunFailed, match="a rare mistake") as failed:
        LocalRunner(dict, fault=fault).run(
            [Ref(Walk(seed=0, count=1, updates=2), "walk-00")], Store(str(tmp_path)), events.append
        )
    told = [event.text for event in events if event.kind == "message"]
    assert told == ["distill/Walk unit 'walk-00' failed (ZeroDivisionError) and is tried again"]
    assert str(failed.value).count("a rare mistake") == 1
    assert not caplog.records
