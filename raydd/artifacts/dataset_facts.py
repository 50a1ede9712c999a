"""The facts of a data set as files of sets hold them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from raydd.core.errors import ConfigError
from raydd.core.plain_types import check_fields
from raydd.data.catalog import DatasetInfo

_MOST = {"classes": 1 << 20, "channels": 1 << 12, "height": 1 << 16, "width": 1 << 16}
"""What the facts of a data set may be: lists and images of these sizes are made."""


def info_from(values: Mapping[str, Any]) -> DatasetInfo:
    """Return the data set facts that ``dataclasses.asdict`` and JSON made plain."""
    try:
        plain: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in values.items()
        }
        plain["digests"] = tuple(
            (str(split), str(digest)) for split, digest in plain.get("digests", ())
        )
        info = DatasetInfo(**plain)
    except (TypeError, ValueError, AttributeError) as error:
        raise ConfigError(f"not the facts of a data set: {error}") from error
    check_fields(info, "the facts of a data set")
    for name, most in _MOST.items():
        if not 1 <= getattr(info, name) <= most:
            raise ConfigError(
                f"the facts of a data set: {name} cannot be {getattr(info, name)}; allowed: 1 to {most}"
            )
    return info
