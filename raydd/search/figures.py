"""Pictures of a sweep."""

from __future__ import annotations

from raydd.search.results import SweepReport


def pictures(report: SweepReport) -> dict[str, bytes]:
    """Return PNG files by name."""
    return {}
