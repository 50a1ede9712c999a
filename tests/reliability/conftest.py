"""What tests of this folder tell of the faults they inject: compared with the record, or recorded."""

from __future__ import annotations

from collections import defaultdict

import pytest
from fault_rows import CHECK, Row, Tally, counts


@pytest.fixture
def tally(request: pytest.FixtureRequest) -> Tally:
    """Take what a test injected for a row; a count of the check must be the one that the page says."""
    recorder = request.config.pluginmanager.get_plugin("reliability-recorder")
    nightly = request.node.get_closest_marker("nightly") is not None
    told: defaultdict[str, int] = defaultdict(int)

    def tell(row: Row, count: int) -> None:
        assert count > 0, f"{row.name}: nothing was tried"
        told[row.name] += count
        if recorder is not None:
            recorder.add(request.node.path.stem, row.name, count)
        elif not nightly:
            said = counts(CHECK).get(row.name)
            assert said == told[row.name], (
                f"{row.name}: {told[row.name]} tried, its record says {said}: run tests/reliability/record.py"
            )

    return tell
