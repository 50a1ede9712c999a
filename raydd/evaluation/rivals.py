"""What is judged beside a set: a method with its settings, a size, a decoding, a label; see :class:`Rival`."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Annotated, Any, ClassVar, Literal

from annotated_types import Ge, Gt

from raydd.artifacts.decoding import SetSize
from raydd.core.errors import ConfigError, unknown
from raydd.data.catalog import DatasetInfo
from raydd.evaluation.evaluation_config import EvaluationConfig
from raydd.evaluation.packed_set import PackedSet, sized_set
from raydd.evaluation.set_sources import AssembledSet
from raydd.methods.method import METHODS, Method, Problem


@dataclass(frozen=True, kw_only=True)
class Tiling:
    """Several images in each stored one: ``factor`` rows and columns, in the order of ``name``."""

    name: Literal["partition", "grid"] = "partition"
    factor: Annotated[int, Ge(2)] = 2


@dataclass(frozen=True, kw_only=True)
class RivalKeys:
    """Keys of a baseline beside those of its method.

    ``label``: what its rows are called (default: the method's name, with what is stated of these
    keys). ``ipc``: images per class (null: those of the job). ``decoding``: its images are shrunk,
    ``factor²`` of them in each of the ``ipc`` stored ones. ``equal``: what it has as much of as the
    judged set: ``pixels``; ``bytes``, of images and labels, from which its ipc follows; or
    ``updates`` of its students, which are trained for as many epochs as that takes.
    """

    label: str | None = None
    ipc: Annotated[float, Gt(0)] | None = None
    decoding: Tiling | None = None
    equal: Literal["pixels", "bytes", "updates"] = "pixels"


@dataclass(frozen=True, kw_only=True)
class Rival:
    """A baseline: a method, and how its sets and rows differ from the judged set's; see :class:`RivalKeys`."""

    inline: ClassVar[tuple[str, ...]] = ("method", "keys")

    method: Method
    keys: RivalKeys = field(default_factory=RivalKeys)

    def __post_init__(self) -> None:
        keys, label = self.keys, self.keys.label
        if keys.equal == "bytes" and keys.ipc is not None:
            raise ConfigError(
                f"equal: bytes says how many images there are; ipc={keys.ipc:g} says so, too"
            )
        if keys.ipc is not None and keys.ipc == int(keys.ipc):
            object.__setattr__(self, "keys", replace(keys, ipc=int(keys.ipc)))
        if label is not None and (not label.strip() or len(label) > 60 or not label.isprintable()):
            raise ConfigError(f"label: {label!r} must be 1 to 60 printable characters")
        if (
            label == "whole"
            or (label in METHODS and label != self.method.name)
            or (label == self.method.name and not self.plain)
        ):
            raise ConfigError(
                f"label: '{label}' is the name of other rows; choose one that no method has"
            )

    @classmethod
    def of(cls, baseline: Any) -> Rival | None:
        """Return the rival that a baseline states, with settings or as one; ``None`` for a name."""
        return (
            baseline
            if isinstance(baseline, Rival)
            else cls(method=baseline)
            if isinstance(baseline, Method)
            else None
        )

    @property
    def plain(self) -> bool:
        """Whether nothing but the method's settings is stated."""
        return replace(self.keys, label=None) == RivalKeys()

    @property
    def label(self) -> str:
        """What the rows are called."""
        keys = self.keys
        if keys.label is not None:
            return keys.label
        parts = [f"ipc {keys.ipc:g}"] if keys.ipc is not None else []
        parts += [f"{keys.decoding.name} {keys.decoding.factor}"] if keys.decoding else []
        parts += [f"equal {keys.equal}"] if keys.equal != "pixels" else []
        return f"{self.method.name} ({', '.join(parts)})" if parts else self.method.name

    def source(self, problem: Problem, own: SetSize) -> AssembledSet | PackedSet:
        """Return the set for a problem, beside a judged set of the size ``own``; ``ConfigError`` for what cannot be."""
        keys = self.keys
        ipc = problem.ipc if keys.ipc is None else keys.ipc
        if keys.equal == "bytes":
            ipc = self._ipc_of(problem, own.bytes)
        tiles, factor = (keys.decoding.name, keys.decoding.factor) if keys.decoding else (None, 1)
        return sized_set(self.method, problem, ipc, tiles, factor)

    def _ipc_of(self, problem: Problem, held: int) -> float:
        """Return the images per class that ``held`` bytes hold: whole ones, or the part of one."""
        one = self.method.size(replace(problem, ipc=1))
        if held >= one.bytes:
            return held // one.bytes
        labels = 8 * one.stored
        if held <= labels:
            raise ConfigError(f"equal: bytes: {held:,} bytes hold no image of {one.stored} classes")
        return (held - labels) / (one.bytes - labels)

    def students(
        self, config: EvaluationConfig, own: int, images: int, info: DatasetInfo, network: str
    ) -> EvaluationConfig:
        """Return how students of ``images`` images are trained for as many updates as those of ``own`` images."""
        protocol = config.resolve()
        recipe = protocol.recipe(info, network)
        if recipe.draw != "epochs":  # a step is a step, whatever the number of images
            return config
        mine, theirs = (recipe.updates(count) for count in (own, images))
        epochs = max(1, round(recipe.epochs * mine / theirs))
        if epochs == recipe.epochs:
            return config
        one_more = protocol.schedule == "steps"
        changes: dict[str, Any] = {"epochs": max(1, epochs - one_more)}
        for name in ("milestones", "drops"):
            moved = [round(at * epochs / recipe.epochs) for at in getattr(protocol, name) or ()]
            if moved:
                last = changes["epochs"] + one_more - 1
                kept = (max(1, min(at, last)) for at in moved)
                changes[name] = tuple(dict.fromkeys(kept))
        return replace(config, **changes)


def rivals(config: EvaluationConfig) -> dict[str, Rival]:
    """Return what is judged beside a set, by label; ``ConfigError`` for what cannot be, or is there twice.

    A baseline by name has the settings that its method has by default.
    """
    logits, found = config.resolve().learns_logits, dict[str, Rival]()
    for baseline in config.baselines:
        if baseline == "whole":
            continue
        if isinstance(baseline, str):
            check_baseline(baseline, logits=logits)
            baseline = METHODS.get(baseline)()
        rival = baseline if isinstance(baseline, Rival) else Rival(method=baseline)
        check_baseline(rival.method.name, logits=logits)
        if found.setdefault(rival.label, rival) != rival:
            raise ConfigError(
                f"evaluation.baselines: '{rival.label}' stands there twice, with other settings; give one a label"
            )
    return found


def check_baseline(name: str, key: str = "evaluation.baselines", *, logits: bool = False) -> None:
    """Raise ``ConfigError`` that begins with ``key`` for what is no baseline.

    ``logits``: whether students learn those of the judged set's teachers. Else methods with soft
    labels of their own are none.
    """
    if name == "whole" or (name in METHODS and (logits or not METHODS.get(name).soft_labels)):
        return
    allowed = sorted(known for known, method in METHODS.items() if logits or not method.soft_labels)
    allowed.append("whole")
    if name in METHODS:
        raise ConfigError(
            f"{key}: the sets of '{name}' have soft labels of their own; allowed: {', '.join(allowed)}"
        )
    raise ConfigError(f"{key}: {unknown('baseline', name, allowed)}")
