"""On which kinds of devices the units of a job were computed, in words."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from raydd.core.errors import TornFileError
from raydd.core.numerics import pick_device
from raydd.core.store import Store, device_kind
from raydd.core.tensors import Tensors
from raydd.core.units import Ref
from raydd.runtime.estimate import stages_of

T = TypeVar("T")


class Markers:
    """What the markers of a store say of outputs, each read once: its seconds, its kind of device, its file."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._known: dict[tuple[str, str], dict[str, Any]] = {}

    def _of(self, ref: Ref) -> dict[str, Any]:
        """Return a marker without its log; ``FileNotFoundError`` for an output that is not there."""
        name = (ref.key, ref.output)
        if name not in self._known:
            marker = self._store.marker(ref)
            self._known[name] = {key: value for key, value in marker.items() if key != "log"}
        return self._known[name]

    def ahead(self, refs: Iterable[Ref]) -> None:
        """Read the markers of many outputs at once, those that are there; afterwards nothing is waited for."""
        new = [ref for ref in refs if (ref.key, ref.output) not in self._known]

        def look(ref: Ref) -> None:
            try:
                self._of(ref)
            except (FileNotFoundError, TornFileError):
                pass  # whoever needs it is told then

        self._each(look, new)

    def load_each(self, refs: Mapping[str, Ref]) -> dict[str, Tensors]:
        """Return :meth:`load` of many outputs, by their names."""
        return dict(zip(refs, self._each(self.load, list(refs.values())), strict=True))

    def _each(self, ask: Callable[[Ref], T], refs: Sequence[Ref]) -> list[T]:
        if self._store.storage.local or len(refs) < 4:
            return [ask(ref) for ref in refs]
        with ThreadPoolExecutor(16) as pool:
            return list(pool.map(ask, refs))

    def files(self, ref: Ref) -> dict[str, dict[str, Any]]:
        """Return size and sha256 of an output's files, by name."""
        return dict(self._of(ref)["files"])

    def forget(self, ref: Ref) -> None:
        """Read an output's marker again when it is asked for: the output is made anew."""
        self._known.pop((ref.key, ref.output), None)

    def seconds(self, ref: Ref) -> float:
        """Return the seconds that computing a unit up to an output took."""
        return float(self._of(ref)["seconds"])

    def kinds(self, targets: Sequence[Ref]) -> dict[str, int]:
        """Return :func:`kinds_behind` the targets."""
        return kinds_behind(targets, lambda ref: str(self._of(ref).get("device", "")))

    def load(self, ref: Ref) -> Tensors:
        """Return an output's tensors, see :meth:`Store.load`."""
        return self._store.load(ref, self._of(ref))


def named(kind: str) -> str:
    """Return a device kind with its article: ``a CPU``, ``an NVIDIA H100 80GB HBM3``."""
    if kind == "cpu":
        return "a CPU"
    return f"{'an' if kind.startswith(('NVIDIA', 'AMD', 'Intel')) else 'a'} {kind}"


def kinds_behind(targets: Sequence[Ref], device_of: Callable[[Ref], str]) -> dict[str, int]:
    """Return how many units behind the targets were computed on each kind of device, most first.

    ``device_of`` returns what an output's marker says, empty where it says nothing; outputs that nobody made may raise
    ``FileNotFoundError``. A unit whose outputs are of several kinds counts for each.
    """
    found: dict[str, set[str]] = {}
    for stage, units, outputs in stages_of(targets):
        for ref in (Ref(stage, unit, output) for unit in units for output in sorted(outputs)):
            try:
                kind = device_of(ref)
            except FileNotFoundError:
                continue
            if kind:
                found.setdefault(kind, set()).add(ref.key)
    return dict(
        sorted(
            ((kind, len(keys)) for kind, keys in found.items()),
            key=lambda item: (-item[1], item[0]),
        )
    )


def stored_kinds(store: Store, targets: Sequence[Ref]) -> dict[str, int]:
    """Return :func:`kinds_behind` of what is in a store so far."""
    refs = [
        Ref(stage, unit, output)
        for stage, units, outputs in stages_of(targets)
        for unit in units
        for output in sorted(outputs)
    ]
    there = {
        (ref.key, ref.output) for ref, found in zip(refs, store.has(refs), strict=True) if found
    }

    def device_of(ref: Ref) -> str:
        return str(store.marker(ref).get("device", "")) if (ref.key, ref.output) in there else ""

    return kinds_behind(targets, device_of)


def store_lines(store: Store, targets: Sequence[Ref], here: str, same_device: bool) -> list[str]:
    """Return :func:`reused_lines` for what a store holds of the targets, for a dry run: of stores
    in folders, which answer at once.
    """
    if not store.storage.local:
        return []
    return [
        f"in the store: {line}"
        for line in reused_lines(stored_kinds(store, targets), here, same_device)
    ]


def reused_lines(kinds: Mapping[str, int], here: str, same_device: bool = False) -> list[str]:
    """Return a line for each kind of device, other than ``here``, that units in the store were computed on.

    ``here`` may be the beginning of a kind's name, ``NVIDIA H100``.
    """

    def then(count: int) -> str:
        they, them = ("they are", "them") if count != 1 else ("it is", "it")
        return (
            f"{they} made anew"
            if same_device
            else f"{they} used as {they} (compute.same_device=true makes {them} anew)"
        )

    others = {
        kind: count
        for kind, count in kinds.items()
        if kind != here and not kind.startswith((f"{here} ", f"{here}-"))
    }
    return [
        f"{_units(count)} computed on {named(kind)}; {then(count)} on {named(here)}"
        for kind, count in others.items()
    ]


def main_kind(kinds: Mapping[str, int]) -> str:
    """Return the kind of device that most units were computed on; this process's, where no unit says one."""
    return next(iter(kinds), "") or device_kind(pick_device())


def mixed_line(kinds: Mapping[str, int]) -> list[str]:
    """Return the line that a report says of units of several kinds of devices; none where all are of one."""
    main, *others = kinds or {"": 0}
    parts = [f"{_units(kinds[kind])} computed on {named(kind)}" for kind in others]
    return [f"{', '.join(parts)}, the other {kinds[main]} on {named(main)}."] if parts else []


def _units(count: int) -> str:
    return f"{count} unit{'s were' if count != 1 else ' was'}"
