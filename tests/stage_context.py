"""What a stage sees beside its fields, in this thread, for tests that call its functions themselves."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from raydd.core.rng import generator
from raydd.core.store import Store
from raydd.core.tensors import Tensors
from raydd.core.units import Stage


@dataclass
class StageContext:
    """A context whose lanes are computed in turn; scalars are kept in ``rows``.

    ``loaded`` answers :meth:`load`, or else ``store``, with the inputs of the stage's units (all have the same).
    """

    stage: Stage
    data: Mapping[str, Any] = field(default_factory=dict)
    loaded: Mapping[str, Tensors] = field(default_factory=dict)
    store: Store | None = None
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    rows: list[dict[str, float]] = field(default_factory=list)
    _cache: dict[Any, Any] = field(default_factory=dict)

    def rng(self, stream: str, *ids: int) -> torch.Generator:
        return generator(self.stage.seed, stream, *ids)

    def load(self, name: str, rows: slice | None = None) -> Tensors:
        if name in self.loaded or self.store is None:
            return {k: v if rows is None else v[rows] for k, v in self.loaded[name].items()}
        ref = self.stage.inputs(self.stage.units()[0])[name]
        return self.store.load(ref) if rows is None else self.store.load_rows(ref, rows)

    def cached(self, key: Any, make: Callable[[], Any]) -> Any:
        if key not in self._cache:
            self._cache[key] = make()
        return self._cache[key]

    def each_lane(self, fn: Callable[[int], Tensors]) -> list[Tensors]:
        return [fn(lane) for lane in range(self.stage.lanes)]

    def log(self, t: int, **scalars: float | Tensor) -> None:
        self.rows.append({name: float(value) for name, value in scalars.items()})
