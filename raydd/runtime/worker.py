"""Runs leased segments of units: the same loop in-process, on a Ray Train worker and on an evaluator."""

from __future__ import annotations

import logging
import time
import traceback
from collections import OrderedDict
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any, Protocol, TypeVar

import torch

from raydd.core.checkpoint import Checkpoint, Rows
from raydd.core.errors import NumericsError, RayddError, TornFileError
from raydd.core.numerics import apply_numerics
from raydd.core.rng import generator
from raydd.core.store import Store, device_kind
from raydd.core.tensors import Tensors, digest
from raydd.core.units import Data, Ref, Stage
from raydd.runtime.cache import Cache
from raydd.runtime.leases import Lease
from raydd.runtime.sizes import memory_of

T = TypeVar("T")
log = logging.getLogger(__name__)
MAX_ROWS = 1000
"""Scalars kept of one unit: at most this many steps, evenly spread."""
HELD_STATES = 24
CACHE_SHARE = 0.25
"""Part of the machine's memory, and of the GPU's on one, that a worker fills with what it may need again."""


class Stopped(Exception):
    """The driver asked the worker to stop; its state is saved."""


class TornInput(Exception):
    """An input of the unit is torn; carries its ref."""

    def __init__(self, ref: Ref, text: str) -> None:
        super().__init__(text)
        self.ref = ref


class Desk(Protocol):
    """The ledger as a worker sees it: directly, or through a Ray actor handle."""

    def lease(self, held: list[str]) -> Lease: ...
    def progress(self, key: str, t: int, rows: Rows) -> bool: ...
    def wrote(self, key: str, output: str, seconds: float, rows: Rows) -> None: ...
    def torn(self, key: str, bad: Ref, text: str) -> None: ...
    def fail(self, key: str, text: str) -> None: ...
    def stumbled(self, key: str, text: str) -> None: ...


class Lanes(Protocol):
    """The group that shares the lanes of a unit's step."""

    rank: int
    world: int

    def gather(self, mine: dict[int, Tensors]) -> dict[int, Tensors]:
        """Return every lane's tensors, on every worker."""
        ...

    def agree(self, value: int) -> int:
        """Return rank 0's ``value``, on every worker."""
        ...

    def same(self, text: str) -> bool:
        """Return whether every worker passed the same text."""
        ...


class Alone:
    """A group of one."""

    rank, world = 0, 1

    def gather(self, mine: dict[int, Tensors]) -> dict[int, Tensors]:
        """Return the argument."""
        return mine

    def agree(self, value: int) -> int:
        """Return the argument."""
        return value

    def same(self, text: str) -> bool:
        """Return True."""
        return True


class UnitContext:
    """The :class:`raydd.core.units.Context` of one unit on one worker."""

    def __init__(self, worker: Worker, stage: Stage, unit: str, lanes: Lanes) -> None:
        self.device: torch.device = worker.device
        self._worker, self._stage, self._unit, self._lanes = worker, stage, unit, lanes
        self._every = max(1, stage.steps(unit) // MAX_ROWS)
        self.rows: list[tuple[int, dict[str, float | torch.Tensor]]] = []

    @property
    def data(self) -> Mapping[str, Data]:
        """The splits of the job's data set; opened at the first use."""
        return self._worker.data()

    def rng(self, stream: str, *ids: int) -> torch.Generator:
        """Return the CPU generator keyed by ``(stage.seed, stream, *ids)``."""
        return generator(self._stage.seed, stream, *ids)

    def load(self, name: str, rows: slice | None = None) -> Tensors:
        """Return an input's tensors on the CPU, or some rows of each."""
        ref = self._inputs[name]
        store, known = self._worker.store, ("marker", ref.key, ref.output)
        try:
            if rows is not None and ref.stage.by_row:
                marker = self._worker.cached(known, lambda: store.marker(ref))
                if "rows" in marker:  # else it was made before they were read so
                    return store.load_rows(ref, rows, marker)
            tensors = self._worker.cached(("input", ref.key, ref.output), lambda: store.load(ref))
        except (TornFileError, FileNotFoundError) as error:
            self._worker.cache.drop(known)
            raise TornInput(ref, str(error)) from error
        return {k: v[rows] for k, v in tensors.items()} if rows is not None else dict(tensors)

    @cached_property
    def _inputs(self) -> Mapping[str, Ref]:
        return self._stage.inputs(self._unit)

    def cached(self, key: Any, make: Callable[[], T]) -> T:
        """Return what ``make`` made the first time this worker asked for ``key``."""
        return self._worker.cached(key, make)

    def each_lane(self, fn: Callable[[int], Tensors]) -> list[Tensors]:
        """Run ``fn`` for every lane over the group and return all results in lane order."""
        mine = {
            lane: fn(lane) for lane in range(self._lanes.rank, self._stage.lanes, self._lanes.world)
        }
        everyone = self._lanes.gather(mine)
        return [
            {k: v.to(self.device) for k, v in everyone[lane].items()}
            for lane in range(self._stage.lanes)
        ]

    def log(self, t: int, **scalars: float | torch.Tensor) -> None:
        """Record scalars of update ``t``; long units keep an even selection of steps, and the last."""
        if t % self._every == 0 or t == self._stage.steps(self._unit) - 1:
            self.rows.append(
                (
                    t,
                    {
                        k: v.detach() if isinstance(v, torch.Tensor) else float(v)
                        for k, v in scalars.items()
                    },
                )
            )

    def take_rows(self) -> Rows:
        """Return the scalars recorded since the last call, as numbers; ``NumericsError`` if one is not finite."""
        rows = [(t, {k: float(v) for k, v in values.items()}) for t, values in self.rows]
        self.rows.clear()
        for t, values in rows:
            for name, value in values.items():
                if value != value or value in (float("inf"), float("-inf")):
                    raise NumericsError(
                        f"{self._stage.name} unit '{self._unit}' step {t}: {name} is {value}"
                    )
        return rows


class Worker:
    """Computes segments; keeps data, caches and the states of units it holds between leases.

    ``same_device``: checkpoints that were made on another kind of device are not gone on from.
    ``watch`` is called with a unit, the updates made and its state: when it begins, about twice a second, at its end.
    """

    def __init__(
        self,
        store: Store,
        open_data: Callable[[], Mapping[str, Data]],
        desk: Desk,
        *,
        device: torch.device,
        checkpoint_every: float,
        same_device: bool = False,
        lanes: Lanes | None = None,
        fault: Callable[[str, str, int], None] | None = None,
        watch: Callable[[Ref, int, Tensors], None] | None = None,
    ) -> None:
        self.store, self.desk, self.device = store, desk, device
        self.checkpoint_every = checkpoint_every
        self._kind = device_kind(device)
        self._only = self._kind if same_device else None
        self.lanes: Lanes = lanes or Alone()
        self.fault = fault
        self.watch = watch
        self._open_data = open_data
        self._data: Mapping[str, Data] | None = None
        self._told: set[str] = set()
        self._held: OrderedDict[str, Checkpoint] = OrderedDict()
        kinds = {torch.device("cpu"), device}
        self.cache = Cache({kind.type: CACHE_SHARE * memory_of(kind) for kind in kinds})

    def data(self) -> Mapping[str, Data]:
        """Return the job's splits, opened once per worker."""
        if self._data is None:
            self._data = self._open_data()
        return self._data

    def _new_skips(self) -> dict[str, str]:
        """Return the samples that could not be decoded, with the reasons, and were not yet told of."""
        met = {
            title: why
            for split in (self._data or {}).values()
            for title, why in getattr(split, "skipped", {}).items()
        }
        new = {title: why for title, why in met.items() if title not in self._told}
        self._told |= new.keys()
        return new

    def cached(self, key: Any, make: Callable[[], T]) -> T:
        """Return the cached value of ``key``, made when absent; the least recently used entries are dropped."""
        return self.cache.get(key, make)

    def work(self, idle: Callable[[], None]) -> None:
        """Lease and run segments until the ledger says stop; ``idle`` is called while there is nothing to do."""
        while True:
            lease = self.desk.lease(list(self._held))
            if lease.kind == "stop":
                return
            if lease.kind == "wait":
                idle()
                continue
            lanes = self.lanes if lease.kind == "join" else Alone()
            try:
                self.run(lease, lanes)
            except Stopped:
                return
            except TornInput as torn:
                if lanes.rank == 0:
                    self.desk.torn(lease.ref.key, torn.ref, str(torn))
            except RayddError as error:
                self.desk.fail(lease.ref.key, f"{type(error).__name__}: {error}")
                return
            except Exception as error:
                if lanes.world > 1:
                    raise  # a peer may have died; the whole group starts again
                log.debug(
                    "%s unit '%s'", lease.ref.stage.name, lease.unit, exc_info=True
                )  # the ledger tells it, once
                where = traceback.extract_tb(error.__traceback__)[-1]
                self.desk.stumbled(
                    lease.ref.key,
                    f"{type(error).__name__}: {error} ({where.filename}:{where.lineno})",
                )

    def run(self, lease: Lease, lanes: Lanes) -> None:
        """Run one segment: from the newest state to the leased output, with checkpoints on the way."""
        ref = lease.ref
        stage, unit = ref.stage, ref.unit
        apply_numerics(stage.numerics, self.device)
        context = UnitContext(self, stage, unit, lanes)
        total = stage.steps(unit)
        until = total if ref.step is None else ref.step
        now = self._start(ref, until, context, lanes)
        saved_t, saved_at, told_at, begun = (
            now.t,
            time.monotonic(),
            0.0,
            time.monotonic() - now.seconds,
        )
        next_check = saved_t + 1
        self._watched(ref, now, lanes)
        while now.t < until:
            if self.fault is not None:
                self.fault(stage.name, unit, now.t)
            now.state = stage.step(unit, now.state, now.t, context)
            now.t += 1
            clock = time.monotonic()
            if lanes.world > 1 and now.t < next_check:
                continue
            due = clock - saved_at >= self.checkpoint_every and now.t < until
            stop = False
            if clock - told_at > 0.5 or due:
                told_at = clock
                rows = context.take_rows()
                now.log += rows
                self._watched(ref, now, lanes)
                stop = self.desk.progress(ref.key, now.t, rows)
            if lanes.world > 1:  # one decision for the whole group
                code = lanes.agree(int(due) + 2 * int(stop))
                due, stop = bool(code & 1), bool(code & 2)
                pace = max((clock - saved_at) / max(1, now.t - saved_t), 1e-6)
                next_check = now.t + lanes.agree(max(1, min(1000, int(0.5 / pace))))
            if due or stop:
                now.seconds = clock - begun
                self._checkpoint(ref, now, lanes)
                saved_t, saved_at = now.t, clock
            if stop:
                raise Stopped
        now.seconds = time.monotonic() - begun
        self._watched(ref, now, lanes)
        now.log += context.take_rows()
        self._finish(
            ref,
            lease.outputs,
            now,
            context,
            lanes,
            final=until == total and "final" in lease.outputs,
        )

    def _watched(self, ref: Ref, now: Checkpoint, lanes: Lanes) -> None:
        if self.watch is not None and lanes.rank == 0:
            self.watch(ref, now.t, now.state)

    def _start(self, ref: Ref, until: int, context: UnitContext, lanes: Lanes) -> Checkpoint:
        held = self._held.pop(ref.key, None)
        found = held if held is not None and held.t <= until else None
        if (
            lanes.agree(-1 if found is None else found.t) != (-1 if found is None else found.t)
            or found is None
        ):
            found = self.store.load_checkpoint(ref.key, until, self._only)
            at = lanes.agree(-1 if found is None else found.t)
            if at >= 0 and (found is None or found.t != at):
                found = self.store.load_checkpoint(ref.key, at, self._only)
            if at < 0:
                found = None
        if found is None:
            return Checkpoint(0, self._checked(ref, 0, ref.stage.init(ref.unit, context)), [], 0.0)
        found.state = {name: tensor.to(self.device) for name, tensor in found.state.items()}
        return found

    def _checked(self, ref: Ref, t: int, tensors: Tensors) -> Tensors:
        for name, tensor in tensors.items():
            if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
                raise NumericsError(
                    f"{ref.stage.name} unit '{ref.unit}' step {t}: '{name}' holds NaN or infinity; the last good"
                    " checkpoint is kept"
                )
        return tensors

    def _checkpoint(self, ref: Ref, now: Checkpoint, lanes: Lanes) -> None:
        self._checked(ref, now.t, now.state)
        if lanes.world > 1 and not lanes.same(digest(now.state)):
            raise NumericsError(
                f"{ref.stage.name} unit '{ref.unit}' step {now.t}: the workers of the group no longer hold the same"
                " state"
            )
        if lanes.rank == 0:
            self.store.save_checkpoint(ref.key, now, self._kind)

    def _finish(
        self,
        ref: Ref,
        outputs: tuple[str, ...],
        now: Checkpoint,
        context: UnitContext,
        lanes: Lanes,
        *,
        final: bool,
    ) -> None:
        self._checked(ref, now.t, now.state)
        if not final:
            self._checkpoint(ref, now, lanes)
        result = self._checked(ref, now.t, ref.stage.finish(ref.unit, dict(now.state), context))
        now.log += context.take_rows()
        skipped = self._new_skips()
        if lanes.rank and skipped:
            self.store.note_skipped(ref.key, lanes.rank, skipped)
        if lanes.rank == 0:
            for output in outputs:
                target = Ref(ref.stage, ref.unit, output)
                self.store.save(
                    target,
                    result,
                    device=self.device,
                    seconds=now.seconds,
                    rows=now.log,
                    skipped=skipped,
                )
                if output == "final":  # before it is told: who hears of it finds no checkpoints
                    self.store.drop_checkpoints(ref.key)
                self.desk.wrote(ref.key, output, now.seconds, now.log)
        if not final:
            self._held[ref.key] = now
            while len(self._held) > HELD_STATES:
                self._held.popitem(last=False)
