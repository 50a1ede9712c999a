"""raydd: dataset distillation on Ray."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from raydd.artifacts.dataset import load

__all__ = ["__version__", "load"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    # torch is imported only when something is loaded.
    if name == "load":
        from raydd.artifacts.dataset import load

        return load
    raise AttributeError(f"module 'raydd' has no attribute '{name}'")
