"""How a network is trained: optimiser, schedule, loss, augmentation, and which of their numbers count."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

from raydd.core.errors import ConfigError, unknown
from raydd.core.units import added
from raydd.training.schedules import Schedule, rate, warmed_up

Optimizer = Literal["sgd", "adamw"]
Decay = Literal["all", "matrices_only"]
Draw = Literal["epochs", "images", "classes"]
Loss = Literal["ce", "mse_gt", "kl"]
KlScale = Literal["one", "tau2"]
Augmentation = Literal["none", "dsa", "dc", "pad_crop_flip", "resized_crop_flip"]

_CHOICES = {
    "optimizer": get_args(Optimizer),
    "decay": get_args(Decay),
    "draw": get_args(Draw),
    "schedule": get_args(Schedule),
    "loss": get_args(Loss),
    "kl_scale": get_args(KlScale),
    "augmentation": get_args(Augmentation),
}
NEEDS: dict[str, tuple[str, tuple[str, ...]]] = {
    "momentum": ("optimizer", ("sgd",)),
    "betas": ("optimizer", ("adamw",)),
    "drops": ("schedule", ("steps",)),
    "drop_factor": ("schedule", ("steps", "multistep")),
    "milestones": ("schedule", ("multistep",)),
    "st": ("schedule", ("linear_st", "cos_st", "cos2_st")),
    "ce_weight": ("loss", ("mse_gt",)),
    "temperature": ("loss", ("kl",)),
    "kl_scale": ("loss", ("kl",)),
    "warmup": ("schedule", ("constant", "cosine", "linear_st", "cos_st", "cos2_st")),
    "drop_last": ("draw", ("epochs",)),
    "strategy": ("augmentation", ("dsa", "dc")),
    "pad": ("augmentation", ("pad_crop_flip",)),
    "scale": ("augmentation", ("resized_crop_flip",)),
}
"""Fields of a recipe that count only where another field has one of some values."""
_REQUIRED = {
    "milestones": "milestones: the epochs from which the rate is multiplied by drop_factor",
    "st": "st: after how many times all epochs the rate would be at zero",
    "ce_weight": "a ce_weight: the weight of the cross entropy with hard labels",
    "temperature": "a temperature",
    "strategy": "a strategy: the operations, separated by '_'",
}
CROP_SCALE = (0.08, 1.0)
"""Of the area, for crops without a ``scale`` of their own."""
SWITCHES = (
    "accumulate",
    "drops",
    "drop_last",
    "ema",
    "double_norm",
    "draw",
    "kl_scale",
    "warmup",
)
"""Fields that do nothing at their default."""
_RANGES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "epochs": (lambda v: v >= 0, "at least 0"),
    "batch": (lambda v: v >= 1, "at least 1"),
    "accumulate": (lambda v: v >= 1, "at least 1"),
    "st": (lambda v: v >= 1, "at least 1"),
    "warmup": (lambda v: v >= 0, "at least 0"),
    "ce_weight": (lambda v: v >= 0, "at least 0"),
    "temperature": (lambda v: v > 0, "above 0"),
    "ema": (lambda v: 0 < v < 1, "between 0 and 1"),
    "betas": (lambda v: all(0 <= beta < 1 for beta in v), "two numbers from 0 to below 1"),
    "pad": (lambda v: v >= 1, "at least 1"),
    "scale": (lambda v: 0 < v[0] <= v[1] <= 1, "a range within (0, 1]"),
}


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a network is trained: shuffled batches, with the last, smaller batch kept, or left out
    where ``drop_last`` is set and there is a whole one.

    ``accumulate``: a batch goes through the network in so many slices, whose gradients are averaged
    before one step; batch norms see slices. A smaller last batch has fewer slices of the same size,
    and is divided by as many as the others (published;
    docs/methods/evaluation.md, "Students of soft labels"). ``epochs``: epochs
    run, all of them. ``draw``: ``epochs``, as said; ``images`` or ``classes``: an epoch is one step,
    on a fresh batch (:class:`raydd.training.drawn_batches.DrawnBatches`). ``optimizer``: ``sgd`` with
    ``momentum``, or ``adamw`` with ``betas``. ``weight_decay``: on all parameters, or on
    ``matrices_only`` (those of more than one dimension whose name holds "weight").

    ``schedule``: of the rate, see :func:`raydd.training.schedules.rate`; ``st``, ``milestones``,
    ``drop_factor``: its numbers. ``steps``: at the epochs ``drops`` (from 0) the rate is multiplied
    by ``drop_factor`` and the optimiser's memory is set back to zero
    (docs/methods/evaluation.md, "Students of hard labels"). ``warmup``: in so many epochs the rate
    first rises along a line, and the schedule is that of the epochs after them.

    ``loss``: ``ce``, cross entropy with the set's labels; ``mse_gt`` (with ``ce_weight``) and
    ``kl`` (with ``temperature``, times its square where ``kl_scale`` is ``tau2``) learn teachers'
    logits (:class:`~raydd.losses.soft.SoftTargets`). ``ema``: tests use a
    moving average of the parameters with this decay. ``double_norm``: every batch updates the
    running statistics of batch norms twice, as RDED's loop does.

    ``augmentation``: the family; ``strategy``: its operations, separated by ``_``; ``pad``: pixels
    around the images that are cropped (default: an eighth of their size); ``scale``: of the area
    (default: 0.08 to 1).
    """

    epochs: int
    batch: int = 256
    accumulate: int = 1
    lr: float = 0.01
    optimizer: Optimizer = "sgd"
    momentum: float = 0.9
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 5e-4
    decay: Decay = "all"
    schedule: Schedule = "steps"
    drops: tuple[int, ...] = ()
    drop_factor: float = 0.1
    milestones: tuple[int, ...] = ()
    st: float | None = None
    loss: Loss = "ce"
    ce_weight: float | None = None
    temperature: float | None = None
    ema: float | None = None
    double_norm: bool = False
    augmentation: Augmentation = "none"
    strategy: str = ""
    pad: int | None = None
    scale: tuple[float, float] | None = None
    draw: Draw = added("epochs")
    kl_scale: KlScale = added("one")
    warmup: int = added(0)
    drop_last: bool = added(False)

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if value not in _CHOICES.get(field.name, (value,)):
                raise unknown(field.name, value, _CHOICES[field.name])
            good, allowed = _RANGES.get(field.name, (None, ""))
            if good is not None and value is not None and not good(value):
                raise ConfigError(f"{field.name} must be {allowed}, not {value}")
            owner, kinds = NEEDS.get(field.name, (None, ()))
            if owner is None:
                continue
            if getattr(self, owner) in kinds:
                if value in (None, (), "") and field.name in _REQUIRED:
                    raise ConfigError(
                        f"{owner} '{getattr(self, owner)}' needs {_REQUIRED[field.name]}"
                    )
            elif value != field.default:
                raise without_effect(field.name, value, getattr(self, owner))
        if self.warmup and self.warmup >= self.epochs > 0:
            raise ConfigError(f"warmup={self.warmup} must be below the {self.epochs} epochs")
        if self.accumulate > self.batch:
            raise ConfigError(
                f"accumulate={self.accumulate} slices are more than the {self.batch} images of a batch"
            )
        if self.accumulate > 1 and self.double_norm:
            raise ConfigError(
                f"accumulate={self.accumulate} and double_norm: the published loops have one or the other"
            )

    @property
    def slice(self) -> int:
        """Images that go through the network at once."""
        return -(-self.batch // self.accumulate)

    def seen(self, images: int) -> int:
        """Return how many of ``images`` an epoch goes through."""
        if self.draw != "epochs":
            return min(images, self.batch)
        left_out = images % self.batch if self.drop_last and images > self.batch else 0
        return images - left_out

    def updates(self, images: int) -> int:
        """Return how many steps an epoch of ``images`` has."""
        return -(-self.seen(images) // self.batch)

    @property
    def copies(self) -> int:
        """How many tensors of each parameter's size a training keeps: the parameter, and what the
        optimiser remembers.
        """
        return 2 + (self.optimizer == "adamw") + (self.ema is not None)

    def rate(self, epoch: int) -> float:
        """Return the learning rate of an epoch."""
        if epoch < self.warmup:
            return warmed_up(self.lr, epoch, self.warmup)
        milestones = self.drops if self.schedule == "steps" else self.milestones
        left, epochs = epoch - self.warmup, self.epochs - self.warmup
        return rate(self.schedule, self.lr, left, epochs, self.st, milestones, self.drop_factor)

    def effective(self, size: tuple[int, int]) -> dict[str, Any]:
        """Return what counts for images of ``size`` ``(H, W)`` as plain values, by field: nothing
        switched off or without effect.
        """
        values: dict[str, Any] = {}
        for field in fields(self):
            owner, kinds = NEEDS.get(field.name, (None, ()))
            value = getattr(self, field.name)
            if (owner is None or getattr(self, owner) in kinds) and not (
                field.name in SWITCHES and value == field.default
            ):
                values[field.name] = list(value) if isinstance(value, tuple) else value
        if values.get("pad", 0) is None:
            values["pad"] = max(1, min(size) // 8)
        if values.get("scale", ()) is None:
            values["scale"] = list(CROP_SCALE)
        if not (self.drops or self.milestones):
            values.pop("drop_factor", None)
        return values

    def of_step(self) -> Recipe:
        """Return the recipe with only what a single step depends on; trainings that differ in the rest share a step."""
        known = (
            "optimizer",
            "momentum",
            "betas",
            "weight_decay",
            "decay",
            "loss",
            "ce_weight",
            "temperature",
            "kl_scale",
            "ema",
            "double_norm",
        )
        sliced = ("batch", "accumulate") if self.accumulate > 1 else ()
        return Recipe(epochs=0, **{name: getattr(self, name) for name in (*known, *sliced)})


def without_effect(name: str, value: Any, of: str) -> ConfigError:
    """Return the error for a recipe's field that does not count, ``of`` being what another field is."""
    owner, kinds = NEEDS[name]
    return ConfigError(
        f"{name}={value} has no effect with {owner} '{of}'; it needs {owner} {' or '.join(kinds)}"
    )
