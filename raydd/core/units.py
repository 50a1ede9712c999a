"""Stages, units and the keys that name their outputs (docs/architecture.md, "Units and keys")."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Annotated, Any, ClassVar, Literal, Protocol, TypeVar

import torch
from annotated_types import Ge

from raydd.core.errors import ConfigError
from raydd.core.tensors import Tensors

T = TypeVar("T")
_BEFORE = "before"
PHASES = ("squeeze", "init", "distill", "recover", "relabel", "evaluate", "publish")


def unkeyed(**kwargs: Any) -> Any:
    """Return a dataclass field that is in no key: it never changes a byte of any output."""
    return field(metadata={"key": False}, **kwargs)


def added(before: Any, **kwargs: Any) -> Any:
    """Return a dataclass field that came after its class had keys: left out of the key while its value is ``before``.

    ``before``: the value with which all bytes are as they were without the field; also the default,
    unless another is given. It stays when the default changes: what was made without the field was
    made with this value.
    """
    if "default" not in kwargs and "default_factory" not in kwargs:
        kwargs["default"] = before
    return field(metadata={_BEFORE: before}, **kwargs)


@dataclass(frozen=True, kw_only=True)
class Numerics:
    """How numbers are computed; part of every key.

    ``precision``: ``fp32``; ``fp32_strict``; or ``bf16`` for the convolutions of sides that need no
    second derivative. On a GPU ``fp32`` is what published code runs there: convolutions in TF32 (10
    bits of mantissa), matrix products in fp32; under ``fp32_strict`` convolutions are in fp32, too.
    On a CPU both compute the same, under keys of their own. ``convolution``: ``direct``, or
    ``winograd`` for wide 3x3 convolutions of images that need no gradient (DM's real side, tests of
    students): a quarter of the multiplications, a relative error of 2e-6 in place of 4e-7; no
    effect beside ``bf16``, so refused there. ``compile``: fuse first-order paths with
    ``torch.compile``. ``threads``: CPU threads inside one unit. ``deterministic``: no atomics in
    any kernel (always so on CPUs; costs speed on GPUs). ``cudnn_search``: let cuDNN try its
    convolutions and keep the fastest; which one that is may change from run to run, and with it the
    last bits of a result, so refused beside ``deterministic``.
    """

    precision: Literal["fp32", "fp32_strict", "bf16"] = "fp32"
    convolution: Literal["direct", "winograd"] = "direct"
    compile: bool = False
    threads: Annotated[int, Ge(1)] = 1
    deterministic: bool = True
    cudnn_search: bool = added(False)

    @property
    def full(self) -> Numerics:
        """The same without bf16: ``fp32`` in its place."""
        return dataclasses.replace(self, precision="fp32") if self.precision == "bf16" else self

    @property
    def plain(self) -> Numerics:
        """The same without bf16 and eager: for stages that compute in no other way, so that what
        has no effect is in no key.
        """
        return dataclasses.replace(self.full, convolution="direct", compile=False)

    def __post_init__(self) -> None:
        if self.convolution == "winograd" and self.precision == "bf16":
            raise ConfigError(
                f"numerics.convolution=winograd needs numerics.precision=fp32 or fp32_strict, not {self.precision}"
            )
        if self.cudnn_search and self.deterministic:
            raise ConfigError(
                "numerics.cudnn_search=true needs numerics.deterministic=false: the convolution that a search finds the"
                " fastest may be another in the next run, and its last bits are"
            )


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What one unit costs: FLOP in all; bytes at peak, of its state, of its output."""

    flop: float = 0.0
    peak_bytes: int = 0
    state_bytes: int = 0
    output_bytes: int = 0


@dataclass(frozen=True)
class Ref:
    """An output of a unit: ``final``, or a snapshot such as ``step-002000``."""

    stage: Stage
    unit: str
    output: str = "final"

    @property
    def key(self) -> str:
        """The key of the unit, which with ``output`` names the object in the store."""
        return unit_key(self.stage, self.unit)

    @property
    def step(self) -> int | None:
        """The number of updates behind a snapshot; ``None`` for the final output."""
        return None if self.output == "final" else int(self.output.removeprefix("step-"))


def snapshot(step: int) -> str:
    """Return the output name of the state after ``step`` updates, ``step-002000``."""
    return f"step-{step:06d}"


class Data(Protocol):
    """One split of a data set, in memory, a folder or shards."""

    digest: str
    labels: torch.Tensor

    def __len__(self) -> int: ...

    def take(self, ids: torch.Tensor) -> torch.Tensor:
        """Return uint8 images ``[len(ids), C, H, W]`` by index, in the order asked."""
        ...

    def stream(self, part: int, parts: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Yield ``(uint8 images [B, C, H, W], labels [B])`` of one of ``parts`` fixed slices."""
        ...


class Context(Protocol):
    """All that a stage may see beside its own fields."""

    device: torch.device

    @property
    def data(self) -> Mapping[str, Data]:
        """The splits of the job's data set: ``train``, ``test``, ``holdout``."""
        ...

    def rng(self, stream: str, *ids: int) -> torch.Generator:
        """Return the CPU generator keyed by ``(stage.seed, stream, *ids)``."""
        ...

    def load(self, name: str, rows: slice | None = None) -> Tensors:
        """Return the tensors of the input called ``name`` (on the CPU), or some rows of each.

        Rows of a stage that says which tensors are read ``by_row`` are of these alone, and nothing
        else is read; any thread may ask for them.
        """
        ...

    def cached(self, key: Any, make: Callable[[], T]) -> T:
        """Return what ``make`` made the first time this worker asked for ``key`` (resident data, networks, tables)."""
        ...

    def each_lane(self, fn: Callable[[int], Tensors]) -> list[Tensors]:
        """Run ``fn(lane)`` for every lane, over all workers of the group; every worker gets all
        results, in lane order.
        """
        ...

    def log(self, t: int, **scalars: float | torch.Tensor) -> None:
        """Record scalars of update ``t``; kept with the checkpoint, so that no step is recorded twice."""
        ...


def _hash_once(stage: Stage) -> int:
    kept: int | None = stage.__dict__.get("_hash")
    if kept is None:
        kept = hash(
            (type(stage), *(getattr(stage, f.name) for f in dataclasses.fields(stage) if f.compare))
        )
        stage.__dict__["_hash"] = kept
    return kept


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One kind of work, cut into units. Subclasses are frozen, keyword-only dataclasses.

    Any step's state may be asked for as an output (``Ref(stage, unit, snapshot(2000))``); which
    ones are changes no byte and is in no key. ``version`` is raised when the same fields give other
    bytes.

    ``by_row``: tensors of an output whose rows other units read alone (``ctx.load(name, rows)``).

    A class that is renamed states the name under which it is keyed, ``keyed_as: ClassVar[str]``,
    and a field that comes later is :func:`added`: so the keys of what was made before stay.

    A stage's hash is computed once: plans look their stages up again and again, and some hold a
    number for each of ImageNet's classes.
    """

    phase: ClassVar[str] = ""
    version: ClassVar[int] = 1
    place: ClassVar[str] = "store"
    by_row: ClassVar[tuple[str, ...]] = ()

    seed: int
    numerics: Numerics = Numerics()

    def __init_subclass__(cls, **options: Any) -> None:
        """Give the class a hash of its own, which the dataclass decorator leaves in place."""
        super().__init_subclass__(**options)
        cls.__hash__ = _hash_once  # type: ignore[method-assign, assignment]

    def __getstate__(self) -> dict[str, Any]:
        """Leave the hash behind: in another process equal values have another."""
        return {key: value for key, value in self.__dict__.items() if key != "_hash"}

    @property
    def name(self) -> str:
        """What progress and logs call the stage."""
        return f"{self.phase}/{type(self).__name__}"

    @property
    def lanes(self) -> int:
        """Number of lanes of every step; 0 for units that one worker computes alone."""
        return 0

    def units(self) -> Sequence[str]:
        """Return the names of the units; never a function of the number of workers."""
        return ("all",)

    def inputs(self, unit: str) -> Mapping[str, Ref]:
        """Return the outputs of other units that this one reads, by the name ``ctx.load`` takes."""
        return {}

    def cost(self, unit: str) -> Cost:
        """Return the estimated cost of one unit."""
        return Cost()

    def steps(self, unit: str) -> int:
        """Return how many updates the unit makes."""
        return 1

    def init(self, unit: str, ctx: Context) -> Tensors:
        """Return the whole state before the first update."""
        return {}

    def step(self, unit: str, state: Tensors, t: int, ctx: Context) -> Tensors:
        """Return the state after update number ``t`` (counted from 0)."""
        raise TypeError(f"{type(self).__name__} does not define step()")

    def finish(self, unit: str, state: Tensors, ctx: Context) -> Tensors:
        """Return the output that belongs to a state; called for snapshots too."""
        return state

    def refs(self, output: str = "final") -> list[Ref]:
        """Return the given output of every unit."""
        return [Ref(self, unit, output) for unit in self.units()]


def canonical(value: Any) -> Any:
    """Return a JSON value that identifies ``value`` (plain values, tuples, mappings, frozen dataclasses, refs)."""
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return {"float": value.hex()}
    if isinstance(value, Ref):
        return {"ref": value.key, "output": value.output}
    if isinstance(value, (tuple, list)):
        return [canonical(item) for item in value]
    if isinstance(value, Mapping):
        return {"map": [[canonical(k), canonical(value[k])] for k in sorted(value)]}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {"class": key_name(type(value)), **dict(_keyed_fields(value))}
    raise TypeError(f"a {type(value).__name__} cannot be part of a key: {value!r}")


def key_name(cls: type) -> str:
    """Return the name under which a dataclass is keyed: its ``keyed_as`` (its own, no base's), else
    the class's name.
    """
    return str(vars(cls).get("keyed_as", cls.__name__))


def _keyed_fields(value: Any) -> Iterator[tuple[str, Any]]:
    for f in dataclasses.fields(value):
        if not f.metadata.get("key", True):
            continue
        found = canonical(getattr(value, f.name))
        if _BEFORE not in f.metadata or found != canonical(f.metadata[_BEFORE]):
            yield f.name, found


def _hash(value: Any) -> str:
    return hashlib.sha256(
        json.dumps(value, sort_keys=True, separators=(",", ":")).encode()
    ).hexdigest()[:40]


@lru_cache(maxsize=100_000)
def stage_digest(stage: Stage) -> str:
    """Return the part of a unit's key that all units of the stage share: class, version and fields."""
    return _hash({"phase": stage.phase, "version": stage.version, "stage": canonical(stage)})


@lru_cache(maxsize=1_000_000)
def unit_key(stage: Stage, unit: str) -> str:
    """Return the key of a unit: hash of class, version, fields, unit and the keys of its inputs."""
    inputs = {name: canonical(ref) for name, ref in stage.inputs(unit).items()}
    return _hash({"stage": stage_digest(stage), "unit": unit, "inputs": inputs})
