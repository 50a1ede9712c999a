"""Readers of data sets in the files their publishers give out."""

from __future__ import annotations

import importlib
import pkgutil
from functools import lru_cache


@lru_cache(maxsize=1)
def load_sources() -> None:
    """Import every reader, so that each registers itself; done on first use, since jobs on one reader need no other."""
    for module in pkgutil.iter_modules(__path__):
        importlib.import_module(f"{__name__}.{module.name}")
