"""What tests of this folder tell of the faults they inject: compared with the record, or recorded."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

import pytest
from fault_rows import CHECK, Row, Tally, counts


@pytest.fixture
def tally(request: pytest.FixtureRequest) -> Iterator[Tally]:
    """Take what a test injected for a row; a count of the check must be the one that the page says."""
    recorder = request.config.pluginmanager.get_plugin("reliability-recorder")
    told: defaultdict[str, int] = defaultdict(int)

    def tell(row: Row, count: int, measured: str = "") -> None:
        assert count > 0, f"{row.name}: nothing was tried"
        told[row.name] += count
        if recorder is not None:
            recorder.add(request.node.path.stem, row.name, count, measured)

    yield tell
    if recorder is None and request.node.get_closest_marker("nightly") is None:
        said = counts(CHECK)
        differing = {name: (n, said.get(name)) for name, n in told.items() if said.get(name) != n}
        assert not differing, f"tried, recorded: {differing}; run tests/reliability/record.py"
