"""Which units can be computed now, the most urgent first, at the cost of a few comparisons however many there are."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator, Sequence

from raydd.core.units import PHASES
from raydd.runtime.leases import Node, step_of

Entry = tuple[float, int, int, str]


class Ready:
    """Units with outputs still wanted, and those of them that wait for nothing.

    Two heaps, of evaluations and of everything else. Their entries may be out of date: they are
    looked at when they come up. So whatever may make a unit ready again has to :meth:`push` it.
    ``open``: units that lack outputs, by key; ``holding``: units by who computes them. ``ready``
    says whether a unit waits for nothing and nobody computes it.
    """

    def __init__(self, ready: Callable[[Node], bool]) -> None:
        self.open: dict[str, Node] = {}
        self._ready = ready
        self._heaps: dict[bool, list[Entry]] = {False: [], True: []}
        self.holding: dict[str, dict[str, Node]] = {}
        self._after: dict[tuple[str, str], list[Node]] = {}

    def follow(self, node: Node) -> None:
        """Note what a unit waits for."""
        for need in node.needs:
            self._after.setdefault(need, []).append(node)

    def arrived(self, key: str, output: str) -> None:
        """Take up what waited for an output that is there now."""
        for node in self._after.get((key, output), ()):
            self.push(node)

    def hold(self, node: Node, worker: str) -> None:
        """Note that a worker computes a unit."""
        node.holders.add(worker)
        self.holding.setdefault(worker, {})[node.key] = node

    def let_go(self, node: Node, worker: str) -> None:
        """Note that a worker computes a unit no more."""
        node.holders.discard(worker)
        self.holding.get(worker, {}).pop(node.key, None)
        if not node.holders:
            self.push(node)

    def push(self, node: Node) -> None:
        """Take up a unit that may be ready now; drop one that is complete."""
        if node.complete:
            self.open.pop(node.key, None)
            return
        self.open[node.key] = node
        heapq.heappush(self._heaps[_evaluates(node)], _entry(node))

    def any(self, evaluations: Sequence[bool]) -> bool:
        """Return whether a unit of these kinds is ready."""
        return self._top(evaluations) is not None

    def in_order(self, evaluations: Sequence[bool], held: Sequence[str]) -> Iterator[Node]:
        """Yield ready units of these kinds, the most urgent first; of equally urgent ones first those
        that are ``held``. What is asked for beyond the first costs a push.
        """
        mine = [self.open[key] for key in held if key in self.open]
        mine = [node for node in mine if _evaluates(node) in evaluations and self._ready(node)]
        mine.sort(key=_entry, reverse=True)
        passed: list[Node] = []
        try:
            while True:
                top = self._top(evaluations)
                if mine and (top is None or _before(mine[-1], top)):
                    yield mine.pop()
                elif top is None:
                    return
                else:
                    yield top
                    heapq.heappop(self._heaps[_evaluates(top)])
                    passed.append(top)
        finally:
            for node in passed:
                self.push(node)

    def _top(self, evaluations: Sequence[bool]) -> Node | None:
        """Return the most urgent ready unit of these kinds; entries out of date go."""
        tops = []
        for evaluation in evaluations:
            heap = self._heaps[evaluation]
            while heap:
                node = self.open.get(heap[0][3])
                if node is None or not self._ready(node):
                    heapq.heappop(heap)
                elif _entry(node) != heap[0]:
                    heapq.heapreplace(heap, _entry(node))
                else:
                    tops.append(node)
                    break
        return min(tops, key=_entry, default=None)


def _evaluates(node: Node) -> bool:
    return node.stage.phase == "evaluate"


def _entry(node: Node) -> Entry:
    urgency = min(node.urgency, step_of(node.next_output()))
    return urgency, PHASES.index(node.stage.phase), node.order, node.key


def _before(held: Node, other: Node) -> bool:
    """Return whether a held unit comes before another one: unless that is more urgent."""
    return _entry(held)[0] <= _entry(other)[0]
