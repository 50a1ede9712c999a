"""What a method is: a frozen configuration that plans stages and assembles a set (docs/architecture.md, "Methods")."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

from raydd.artifacts.decoding import SetSize
from raydd.core.errors import ConfigError, TooFew
from raydd.core.plain_types import LARGEST
from raydd.core.registry import Registry
from raydd.core.tensors import Tensors
from raydd.core.units import Numerics, Ref, Stage
from raydd.data.catalog import DatasetInfo

if TYPE_CHECKING:
    from raydd.artifacts.distilled_set import DistilledSet
    from raydd.labels.label_config import LabelConfig
    from raydd.training.backbones import Backbone

DEFAULT_NETWORK = "ConvNet"
"""What students are where neither the job nor the method says so."""
Ipc = Any
"""Images per class: an int, of methods that are :attr:`Method.fractional` also a float."""
DEFAULT_PROTOCOL = "dm"
"""How students are trained where neither the job nor the method says so."""


@dataclass(frozen=True, kw_only=True)
class Problem:
    """What is to be distilled: a data set (its facts and digests), images per class, seed, numerics.

    ``classes``: ids, ascending, of the only classes to distil, as a step of continual learning asks
    (null: all). Labels and networks' outputs stay those of all classes. Only for methods whose
    :meth:`Method.joint` may be true.
    """

    dataset: DatasetInfo
    ipc: Ipc
    seed: int
    numerics: Numerics
    classes: tuple[int, ...] | None = None

    @property
    def present(self) -> Sequence[int]:
        """The classes that are distilled, ascending."""
        return range(self.dataset.classes) if self.classes is None else self.classes


@dataclass(frozen=True, kw_only=True)
class Method:
    """Base of all methods. Fields of a subclass are the YAML keys under ``method:``; see ``methods/dm.py``.

    Field types may be annotated with ``annotated_types`` bounds (``Annotated[float, Gt(0)]``) and ``Literal`` choices:
    the job schema reads them. A field's doc string stands in its ``doc`` metadata.
    """

    name: ClassVar[str]
    soft_labels: ClassVar[bool] = False
    """Whether its sets come with soft labels of their own; then :attr:`label_config` says how they are made."""
    fractional: ClassVar[bool] = False
    """Whether ``ipc`` may be a fraction: its sets are measured in pixels, not in whole images of each class."""
    fractions_with: ClassVar[str] = ""
    """The setting with which ``ipc`` may be a fraction, where it is not one without."""
    drawn_at_random: ClassVar[bool] = False
    """Whether its sets are random subsets: the baseline, of which several draws are judged."""
    protocol: ClassVar[str] = DEFAULT_PROTOCOL
    """How students of its sets are trained, unless the evaluation names another protocol."""
    value_bytes: ClassVar[int] = 4
    """Bytes of a value of its images: 4 of floats, 1 of pixels in 8 bits."""
    stores_pixels: ClassVar[bool] = True
    """Whether its sets store images, and not what images are made of."""

    @property
    def takes_fractions(self) -> bool:
        """Whether ``ipc`` may be a fraction in these settings."""
        return self.fractional

    @property
    def one_image(self) -> bool:
        """Whether its sets are one stored image of all classes, a poster, which has no part of one class alone."""
        return False

    @property
    def label_config(self) -> LabelConfig | None:
        """How the set's soft labels are made; ``None`` for methods with hard labels."""
        return None

    @property
    def made_in(self) -> str:
        """The space of its sets: ``normalised``, or a whitened one of :mod:`raydd.artifacts.whitening`."""
        return "normalised"

    @property
    def student_network(self) -> str:
        """The network that students of its sets have by default."""
        return DEFAULT_NETWORK

    def plan(self, problem: Problem) -> list[Stage]:
        """Return the stages; the units of :meth:`last` are what :meth:`assemble` needs.
        ``ConfigError`` on what cannot be.
        """
        raise TypeError(f"{type(self).__name__} does not define plan()")

    def last(self, problem: Problem) -> list[Stage]:
        """Return the stages of the plan whose outputs make the set: here the last one."""
        return self.plan(problem)[-1:]

    def targets(self, problem: Problem, output: str = "final") -> dict[str, Ref]:
        """Return the outputs that make the set, by name, at the end or at a snapshot.

        Names are those of the units; with several stages, the stage's number in :meth:`last` stands
        before them, ``1/all``. Of a stage that is done by then a snapshot takes the final output.
        """
        last = self.last(problem)
        return {
            unit if len(last) == 1 else f"{place}/{unit}": _at(Ref(stage, unit, output))
            for place, stage in enumerate(last)
            for unit in stage.units()
        }

    def updates(self, problem: Problem) -> int:
        """Return how many updates the set takes, those of the longest of its last stages."""
        return max(stage.steps(unit) for stage in self.last(problem) for unit in stage.units())

    def size(self, problem: Problem) -> SetSize:
        """Return how large the set of a problem is, known before anything runs.

        Here ``ipc`` images of the data set's shape for each class, and a hard label (int64) for
        each; a method whose sets are otherwise says so.
        """
        info, images = problem.dataset, round(problem.ipc * len(problem.present))
        pixels = info.channels * info.height * info.width
        return SetSize(images, images, images * (self.value_bytes * pixels + 8))

    def settled(self, problem: Problem) -> dict[str, dict[str, Any]]:
        """Return what the settings leave open and comes to something, beside fields of the stages, as JSON values."""
        return {}

    def joint(self, problem: Problem) -> bool:
        """Return whether a class's images depend on which other classes are distilled with them,
        and ``problem.classes`` is obeyed.
        """
        return False

    def label_teachers(self, problem: Problem) -> tuple[Backbone, ...]:
        """Return the networks whose soft labels the method's students learn; none for methods with hard labels."""
        return ()

    def missing_teachers(self, problem: Problem) -> list[str]:
        """Return one line for each file of :meth:`label_teachers`' weights that is not there or does not fit."""
        return []

    def fetch(self) -> None:
        """Download what the method needs and its configuration allows to download; nothing is fetched for a dry run."""

    def missing(self, problem: Problem) -> list[str]:
        """Return one line for each file (weights, statistics, images) that the method needs and
        that is not there or does not fit.
        """
        return []

    def keep(self, problem: Problem, load: Callable[[Ref], Tensors], url: str) -> dict[str, str]:
        """Write what other jobs may read (teachers, statistics) below ``url``, the job's output;
        return what it is and where.
        """
        return {}

    def drafts(self, problem: Problem) -> dict[tuple[str, int], dict[str, Ref]]:
        """Return outputs of earlier stages that can be looked at while they run, by a name and the updates behind them.

        :meth:`drafted` makes a set of them, of which a picture is kept.
        """
        return {}

    def drafted(self, problem: Problem, outputs: Mapping[str, Tensors]) -> DistilledSet:
        """Return the set that a picture of one of :meth:`drafts` shows."""
        raise TypeError(f"{type(self).__name__} does not define drafted()")

    def assemble(self, problem: Problem, outputs: Mapping[str, Tensors]) -> DistilledSet:
        """Return the distilled set made of :meth:`targets`' tensors."""
        raise TypeError(f"{type(self).__name__} does not define assemble()")


def check_ipc(method: Method | None, ipc: float) -> None:
    """Raise ``ConfigError`` for a number of images per class that a method cannot make, or, where it is
    not known, none.
    """
    if not abs(ipc) <= LARGEST:  # NaN, too
        raise ConfigError(f"ipc: {str(ipc)[:20]} is no number of images")
    if method is None or method.takes_fractions:
        if ipc <= 0:
            raise ConfigError(f"ipc: Input should be greater than 0, not {ipc:g}")
        return
    if ipc < 1 or ipc != int(ipc):
        parts = sorted(name for name, known in METHODS.items() if known.fractional)
        parts += sorted(
            f"{name} with {known.fractions_with}"
            for name, known in METHODS.items()
            if known.fractions_with
        )
        able = f"; fractions are made by: {', '.join(parts)}" if parts else ""
        raise ConfigError(
            f"ipc: Input should be an integer greater than or equal to 1, not {ipc:g}: '{method.name}' makes whole"
            f" images of each class{able}"
        )


def _at(ref: Ref) -> Ref:
    """Return the output itself, or the final one of a unit that has made all its updates by then."""
    done = ref.step is not None and ref.step >= ref.stage.steps(ref.unit)
    return Ref(ref.stage, ref.unit) if done else ref


def by_stage(outputs: Mapping[str, Tensors]) -> list[dict[str, Tensors]]:
    """Return the outputs of :meth:`Method.targets` of several stages, by unit, stage after stage."""
    found: dict[int, dict[str, Tensors]] = {}
    for name, tensors in outputs.items():
        place, _, unit = name.partition("/")
        found.setdefault(int(place), {})[unit] = tensors
    return [found[place] for place in sorted(found)]


def check_counts(info: DatasetInfo, needed: int, key: str = "ipc", advice: str = "") -> None:
    """Raise ``ConfigError`` if a class is known to have no training images, or fewer than
    ``needed``, which the job's ``key`` asks for.

    ``advice``: what a job does that needs that many images and has fewer.
    """
    counts = info.train_counts
    empty = [label for label, count in enumerate(counts) if not count]
    if empty:
        shown = ", ".join(map(str, empty[:5])) + (", …" if len(empty) > 5 else "")
        begin = len(empty) if empty == list(range(len(empty))) else 0
        hint = (
            f"labels that begin at {begin} have to be counted from 0"
            if begin
            else "give them images, or leave them out of the labels"
        )
        raise ConfigError(
            f"dataset: no training images of class {shown} (there are {info.classes} classes); {hint}"
        )
    if counts and min(counts) < needed:
        label, count = counts.index(min(counts)), min(counts)
        found = f"{key}={needed}: class {label} has only {count} training images to choose from"
        raise TooFew(found, f"at most {key}={count} is possible", advice)


@dataclass(frozen=True, kw_only=True)
class ClassBlocks(Stage):
    """A stage that cuts the classes into blocks of ``classes_per_unit``, units such as ``classes-0000-0004``."""

    dataset: DatasetInfo
    classes_per_unit: int

    @property
    def present(self) -> Sequence[int]:
        """The classes, ascending."""
        return range(self.dataset.classes)

    @cached_property
    def blocks(self) -> dict[str, Sequence[int]]:
        """The blocks' classes, by name."""
        classes, size = self.present, self.classes_per_unit
        blocks = [classes[first : first + size] for first in range(0, len(classes), size)]
        return {f"classes-{block[0]:04d}-{block[-1]:04d}": block for block in blocks}

    def units(self) -> Sequence[str]:
        """Return the names of the class blocks."""
        return tuple(self.blocks)


def _admit(name: str, found: Any) -> type[Method]:
    """Return what an entry point names as a method, which is then called so."""
    if not (isinstance(found, type) and issubclass(found, Method)):
        raise ConfigError(f"{found!r} is no subclass of raydd.methods.Method")
    if getattr(found, "name", name) != name:
        raise ConfigError(f"the method calls itself '{found.name}'")
    found.name = name
    return found


METHODS: Registry[type[Method]] = Registry("method", "raydd.methods", _admit)


def register_method(name: str) -> Any:
    """Return a class decorator that registers a method under ``name`` and sets its ``name``."""

    def add(cls: type[Method]) -> type[Method]:
        cls.name = name
        return METHODS.register(name)(cls)

    return add
