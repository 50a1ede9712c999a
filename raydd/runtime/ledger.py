"""Who computes what next: the graph of missing outputs, and leases on them. Plain Python; the truth
is the store's markers.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

from raydd.core.events import Event
from raydd.core.store import Store
from raydd.core.units import Ref, Stage
from raydd.runtime.devices import named, reused_lines
from raydd.runtime.leases import Claims, Lease, Node, step_of
from raydd.runtime.ready import Ready

MAX_CRASHES = 10
"""A unit that loses its worker this often in a row without a new checkpoint stops the run."""

MAX_STUMBLES = 2
"""A unit that raises an unexpected exception this often stops the run."""


def _group(worker: str) -> str:
    """Return the set of workers that live and die together: all ranks of the group, or one evaluator."""
    return "rank" if worker.startswith("rank-") else worker


class Ledger:
    """Leases segments of units (up to the next wanted output) to workers, earliest snapshot first.

    ``device``: the only kind of device whose outputs count; others in the store are removed, and
    made anew. Empty: any counts. ``claims``: asked for a unit before it is leased, where other
    runs compute on the same store at the same time.
    """

    def __init__(
        self,
        targets: Sequence[Ref],
        store: Store,
        evaluators: int = 0,
        device: str = "",
        claims: Claims | None = None,
    ) -> None:
        self.store, self.device, self.claims = store, device, claims
        self.kinds: dict[str, set[str]] = {}
        self._told_of_kinds = False
        self.has: dict[str, str] = {}
        self.evaluators = evaluators
        self.nodes: dict[str, Node] = {}
        self.ready = Ready(self._ready)
        self.done: set[tuple[str, str]] = set()
        self.events: list[Event] = []
        self.failure: str | None = None
        self.stopping = False
        self.generations: dict[str, int] = {}
        self.world: dict[str, int] = {}
        self.idle: set[str] = set()
        self.gathering: str | None = None
        self.called: set[str] = set()
        self.tickets = 0
        self._want(targets)

    # -- the graph ---------------------------------------------------------------------------------------------------

    def _want(self, targets: Iterable[Ref]) -> None:
        """Add what is missing of ``targets``, and of all that it needs, to the graph."""
        frontier = list(dict.fromkeys((r.key, r.output, r) for r in targets))
        while frontier:
            new = {
                (k, o): r
                for k, o, r in frontier
                if (k, o) not in self.done and not (k in self.nodes and o in self.nodes[k].wanted)
            }
            refs = list(new.values())
            frontier = []
            for ref, marker in zip(refs, self.store.verified(refs), strict=True):
                if marker is not None and self._note_cached(ref, marker):
                    continue
                node = self._node(ref)
                node.wanted.add(ref.output)
                self.ready.push(node)
                frontier += [
                    (need.key, need.output, need) for need in ref.stage.inputs(ref.unit).values()
                ]

    def _note_cached(self, ref: Ref, marker: dict[str, Any]) -> bool:
        """Note an output that is there; return False if it is of a device that does not count."""
        kind = str(marker.get("device", ""))
        self.kinds.setdefault(kind, set()).add(ref.key)
        if self.device and kind != self.device:
            self.store.discard(ref)
            self.store.drop_checkpoints(ref.key)
            return False
        self.done.add((ref.key, ref.output))
        self.ready.arrived(ref.key, ref.output)
        rows = tuple((int(t), dict(values)) for t, values in marker.get("log", []))
        self._tell(
            ref.stage,
            ref.unit,
            ref.key,
            kind="output",
            output=ref.output,
            cached=True,
            device=kind,
            seconds=marker["seconds"],
            rows=rows,
        )
        return True

    def _node(self, ref: Ref) -> Node:
        node = self.nodes.get(ref.key)
        if node is None:
            inputs = ref.stage.inputs(ref.unit).values()
            node = Node(
                ref.stage,
                ref.unit,
                ref.key,
                order=len(self.nodes),
                needs={(r.key, r.output) for r in inputs},
            )
            node.urgency = min(
                (float(r.step) for r in inputs if r.step is not None), default=math.inf
            )
            self.nodes[ref.key] = node
            self.ready.follow(node)
        return node

    def _tell(self, stage: Stage, unit: str, key: str, **facts: Any) -> None:
        steps = stage.steps(unit)
        self.events.append(Event(stage=stage.name, unit=unit, key=key, steps=steps, **facts))

    @property
    def finished(self) -> bool:
        """Whether nothing is left to do."""
        return not self.ready.open

    def _ready(self, node: Node) -> bool:
        return not node.complete and not node.holders and node.needs <= self.done

    # -- workers -----------------------------------------------------------------------------------------------------

    def hello(self, worker: str, generation: int, world: int) -> bool:
        """Note which incarnation a worker is of; one that replaces another frees what the other held.

        Returns False to a worker of a generation that is over.
        """
        group = _group(worker)
        known = self.generations.get(group, 0)
        if generation < known:
            return False
        if generation > known:
            self.generations[group] = generation
            self.world[group] = world
            self.gathering = None if group == "rank" else self.gathering
            self.idle = {w for w in self.idle if _group(w) != group}
            lost = {
                node.key: node
                for other, nodes in self.ready.holding.items()
                if _group(other) == group
                for node in nodes.values()
            }
            for node in lost.values():
                for other in [w for w in node.holders if _group(w) == group]:
                    self.ready.let_go(node, other)
                if known:
                    self._count_crash(node)
        return True

    def _count_crash(self, node: Node) -> None:
        node.crashes = node.crashes + 1 if node.t == node.crashed_at else 1
        node.crashed_at = node.t
        if node.crashes >= MAX_CRASHES:
            self.fail(node.key, f"its worker died {node.crashes} times in a row at step {node.t}")

    def _meet(self, kind: str) -> None:
        """Say, at the first worker, what the store holds of other kinds of devices; refuse one of a
        kind that does not count.
        """
        if self.device and kind != self.device and self.failure is None:
            self.failure = f"compute.same_device: one worker is on {named(self.device)}, another on {named(kind)}"
        if not self._told_of_kinds:
            self._told_of_kinds = True
            counts = {known: len(keys) for known, keys in self.kinds.items() if known}
            self.events += [
                Event(kind="message", text=line)
                for line in reused_lines(counts, kind, bool(self.device))
            ]

    def lease(
        self,
        worker: str,
        held: Sequence[str],
        generation: int = 0,
        world: int = 1,
        device: str = "",
    ) -> Lease:
        """Return the next segment for a worker that is idle now, on that kind of device (empty: it does not say)."""
        if device:
            self.has[worker] = device
            self._meet(device)
        if (
            not self.hello(worker, generation, world)
            or self.failure
            or self.stopping
            or self.finished
        ):
            return Lease("stop")
        for node in list(
            self.ready.holding.get(worker, {}).values()
        ):  # an idle worker holds nothing
            self.ready.let_go(node, worker)
        if self.gathering:
            return self._gather(worker)
        evaluator = worker.startswith("evaluator")
        kinds = (evaluator,) if self.evaluators else (False, True)
        if not evaluator and not self.ready.any(kinds):
            kinds = (False, True)
        found = next(filter(self._claimed, self.ready.in_order(kinds, held)), None)
        if found is None:
            return Lease("stop") if self.finished else Lease("wait")
        node = found
        if self._together(node):
            self.gathering = node.key
            self.idle, self.called = set(), set()
            return self._gather(worker)
        self.ready.hold(node, worker)
        node.alone = bool(node.stage.lanes)
        self._tell(node.stage, node.unit, node.key, kind="start", t=node.t, worker=worker)
        return Lease("run", node.stage, node.unit, self._segment(node))

    def _claimed(self, node: Node) -> bool:
        """Return whether this run may compute a unit, and something is left to compute: another run
        may have made it meanwhile.
        """
        if self.claims is None:
            return True
        if not self.claims.take(node.key):
            return False
        refs = [Ref(node.stage, node.unit, output) for output in sorted(node.wanted - node.done)]
        for ref, marker in zip(refs, self.store.verified(refs), strict=True):
            if marker is not None and self._note_cached(ref, marker):
                node.done.add(ref.output)
        if node.complete:
            self.ready.push(node)
            self.claims.free(node.key)
        return not node.complete

    def _together(self, node: Node) -> bool:
        """Return whether the whole group shares a unit's lanes: where more workers find work so
        than with a unit for each.

        Lanes give the same bytes either way. While one worker has such a unit to itself, no group
        is called together: it would wait.
        """
        if not node.stage.lanes:
            return False
        held = [other for nodes in self.ready.holding.values() for other in nodes.values()]
        alone = any(other.alone and not other.complete for other in held)
        units = sum(
            1 for other in self.ready.open.values() if other.stage.lanes and self._ready(other)
        )
        return not alone and units < min(node.stage.lanes, self.world.get("rank", 1))

    @staticmethod
    def _segment(node: Node) -> tuple[str, ...]:
        """Return the next output; with it the final one where the last snapshot is the final state."""
        output = node.next_output()
        last = step_of(output) == node.stage.steps(node.unit) and "final" in node.wanted - node.done
        return (output, "final") if last and output != "final" else (output,)

    def _gather(self, worker: str) -> Lease:
        """Hold idle workers until the whole group is, then call all of them into the unit: nobody
        waits in a collective.
        """
        if worker.startswith("evaluator"):
            return Lease("wait")
        node = self.nodes[self.gathering or ""]
        self.idle.add(worker)
        if not self.called:
            if len(self.idle) < self.world["rank"]:
                return Lease("wait")
            self.called = set(self.idle)
            node.alone = False
            for other in self.idle:
                self.ready.hold(node, other)
            self.tickets += 1
            self._tell(node.stage, node.unit, node.key, kind="start", t=node.t, worker="group")
        if worker not in self.called:
            return Lease("wait")
        self.called.discard(worker)
        self.ready.hold(node, worker)
        ticket, lease_node = self.tickets, node
        if not self.called:
            self.gathering = None
        return Lease("join", lease_node.stage, lease_node.unit, self._segment(lease_node), ticket)

    def progress(
        self,
        worker: str,
        key: str,
        t: int,
        rows: Sequence[tuple[int, dict[str, float]]],
        generation: int = 0,
    ) -> bool:
        """Note a worker's progress; return whether it should save its state and stop."""
        if generation < self.generations.get(_group(worker), 0):
            return True
        node = self.nodes.get(key)
        if node is not None:
            node.t = max(node.t, t)
            self.ready.hold(node, worker)
            self._tell(
                node.stage,
                node.unit,
                key,
                kind="log" if rows else "progress",
                t=t,
                rows=tuple(rows),
                worker=worker,
            )
        return self.stopping or self.failure is not None

    def wrote(
        self,
        worker: str,
        key: str,
        output: str,
        seconds: float,
        rows: Sequence[tuple[int, dict[str, float]]],
    ) -> None:
        """Note that an output and its marker are in the store."""
        node = self.nodes.get(key)
        if node is None or output in node.done:
            return
        node.done.add(output)
        self.done.add((key, output))
        self.ready.arrived(key, output)
        if node.complete:
            self.ready.push(node)
        if self.claims is not None and node.complete:
            self.claims.free(key)
        step = step_of(output)
        node.t = node.stage.steps(node.unit) if math.isinf(step) else int(step)
        self._tell(
            node.stage,
            node.unit,
            key,
            kind="output",
            output=output,
            t=node.t,
            seconds=seconds,
            rows=tuple(rows),
            worker=worker,
            device=self.has.get(worker, ""),
        )

    def torn(self, worker: str, key: str, bad: Ref, text: str) -> None:
        """Note that an input turned out to be torn: it is computed again, and the unit waits for it."""
        self.events.append(Event(kind="message", text=f"{text}; it will be computed again"))
        self.store.discard(bad)
        self.done.discard((bad.key, bad.output))
        if bad.key in self.nodes:
            self.nodes[bad.key].done.discard(bad.output)
            self.ready.push(self.nodes[bad.key])
        self._want([bad])
        self.ready.let_go(self.nodes[key], worker)

    def stumbled(self, worker: str, key: str, text: str) -> None:
        """Note an unexpected exception: the unit is tried again from its checkpoint, ``MAX_STUMBLES`` times in all."""
        node = self.nodes[key]
        self.ready.let_go(node, worker)
        node.stumbles += 1
        if node.stumbles >= MAX_STUMBLES:
            self.fail(key, text)
        else:
            # What went wrong is told once: if it does again, as the error that ends the run.
            said = f"{node.stage.name} unit '{node.unit}' failed ({text.partition(':')[0]}) and is tried again"
            self.events.append(Event(kind="message", text=said))

    def fail(self, key: str, text: str) -> None:
        """Note that a unit cannot be computed; the run stops."""
        if self.failure is None:
            node = self.nodes[key]
            self.failure = f"{node.stage.name} unit '{node.unit}': {text}"
            self._tell(node.stage, node.unit, key, kind="failed", t=node.t, text=text)

    def stop(self) -> None:
        """Ask every worker to save its state and stop."""
        self.stopping = True

    def poll(self, since: int) -> tuple[list[Event], bool, str | None]:
        """Return the events after number ``since``, whether all is done, and why the run failed, if it did."""
        return self.events[since:], self.finished, self.failure
