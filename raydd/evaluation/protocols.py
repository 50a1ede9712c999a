"""Published evaluation protocols, by name.

Their sources: docs/methods/evaluation.md, "Protocols".
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

from raydd.augment.dc import parse_dc_strategy
from raydd.augment.dsa import DEFAULT_STRATEGY, parse_strategy
from raydd.core.errors import ConfigError, unknown
from raydd.core.registry import Registry
from raydd.data.catalog import DatasetInfo
from raydd.networks import normalise_name
from raydd.training.recipe import (
    NEEDS,
    SWITCHES,
    Decay,
    Draw,
    KlScale,
    Loss,
    Optimizer,
    Recipe,
    without_effect,
)
from raydd.training.schedules import Schedule

Space = Literal["normalised", "zca", "zca_per_image"]
_OPERATIONS: dict[str, Callable[[str], object]] = {"dsa": parse_strategy, "dc": parse_dc_strategy}
OVERRIDES = (
    "epochs",
    "batch",
    "accumulate",
    "lr",
    "optimizer",
    "momentum",
    "weight_decay",
    "decay",
    "schedule",
    "warmup",
    "st",
    "milestones",
    "drops",
    "drop_factor",
    "loss",
    "ce_weight",
    "temperature",
    "kl_scale",
    "ema",
    "double_norm",
    "strategy",
    "draw",
    "drop_last",
    "space",
)
"""Fields of a protocol that a job may change."""


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """How a student is trained and judged; :data:`OVERRIDES` may be changed, and :attr:`label` then says so.

    ``accumulate``, ``optimizer`` to ``double_norm``: as of :class:`~raydd.training.recipe.Recipe`,
    but ``ema=0`` is none. With the schedule ``steps`` ``epochs`` is E of DC's papers: their loops
    run ``E + 1`` epochs, and after the epoch with index ``E // 2 + 1`` they divide the rate by ten
    and make a new optimiser, whose momentum is zero; or at the epochs ``drops`` (from 0), where
    these are stated. With any other, ``epochs`` are run.

    ``augmentation``: the family; ``strategy``: its operations (``None``: those published for the
    data set and the network; ``none``: no augmentation). ``augmented_epochs``: E instead of
    ``epochs`` where an augmentation is in use. ``network_strategies``, ``network_rates``: pairs
    ``(network, strategy)`` and ``(network, lr)`` of networks with a published value of their own,
    whatever the data set. The accuracy is that of the last epoch.

    ``space``: of the images that students are trained and tested on, of every set alike, and of all
    real images: ``normalised`` (a set that was made whitened stays so, with its tests), or whitened
    (:mod:`raydd.artifacts.whitening`).
    """

    name: str
    epochs: int
    batch: int = 256
    accumulate: int = 1
    lr: float = 0.01
    optimizer: Optimizer = "sgd"
    momentum: float = 0.9
    weight_decay: float = 5e-4
    decay: Decay = "all"
    schedule: Schedule = "steps"
    warmup: int = 0
    st: float | None = None
    milestones: tuple[int, ...] = ()
    drops: tuple[int, ...] | None = None
    drop_factor: float = 0.1
    loss: Loss = "ce"
    ce_weight: float | None = None
    temperature: float | None = None
    kl_scale: KlScale = "one"
    ema: float = 0.0
    double_norm: bool = False
    augmentation: Literal["none", "dsa", "dc"] = "none"
    strategy: str | None = None
    augmented_epochs: int | None = None
    network_strategies: tuple[tuple[str, str], ...] = ()
    network_rates: tuple[tuple[str, float], ...] = ()
    draw: Draw = "epochs"
    drop_last: bool = False
    space: Space = "normalised"

    @property
    def learns_logits(self) -> bool:
        """Whether students learn the logits of teachers, which the set must come with."""
        return self.loss != "ce"

    def override(self, **changes: Any) -> Protocol:
        """Return the protocol with some fields changed; ``epochs`` and ``lr`` hold for every network and augmentation.

        A number that no longer counts (``st`` of a schedule that was changed) is dropped; published
        ``drops`` move along with ``epochs``. Raises
        ``ConfigError`` for a field that does not exist, that makes no difference, or whose change
        needs another field that is not given.
        """
        for key in changes:
            if key not in OVERRIDES:
                raise unknown(f"field of protocol '{self.name}':", key, OVERRIDES)
        if changes.get("strategy") is not None and self.augmentation == "none":
            raise ConfigError(
                f"protocol '{self.name}' has no augmentation, so strategy '{changes['strategy']}' has no effect"
            )
        if changes.get("strategy") is not None:
            _OPERATIONS[self.augmentation](changes["strategy"])
        defaults = {f.name: f.default for f in fields(self)}
        dropped = {}
        for name in OVERRIDES:
            owner = NEEDS[name][0] if name in NEEDS and name != "strategy" else None
            if owner is None or self._counts(name, changes):
                continue
            if name in changes:
                of = changes.get(owner, getattr(self, owner))
                raise ConfigError(
                    f"protocol '{self.name}': {without_effect(name, changes[name], of)}"
                )
            dropped[name] = defaults[name]
        if "epochs" in changes:
            dropped["augmented_epochs"] = None
            # Published ones are at the same part of the training; stated ones stay.
            if self.drops is not None and self.drops == PROTOCOLS.get(self.name).drops:
                dropped["drops"] = tuple(
                    max(1, round(at * changes["epochs"] / self.epochs)) for at in self.drops
                )
        if "lr" in changes:
            dropped["network_rates"] = ()
        changed = replace(self, **{**dropped, **changes})
        try:
            recipe = changed._recipe(max(changed.epochs, changed.augmented_epochs or 0), changed.lr)
        except ConfigError as error:
            raise ConfigError(f"protocol '{self.name}': {error}") from error
        for name in ("milestones", "drops"):
            late = [at for at in changes.get(name, ()) if at >= recipe.epochs]
            if late:
                raise ConfigError(
                    f"protocol '{self.name}': {name}={late[0]} has no effect, there are {recipe.epochs} epochs"
                )
        return changed

    def with_hard_labels(self) -> Protocol:
        """Return the protocol for real images, which come without logits: with cross entropy in
        place of such a loss.
        """
        return self.override(loss="ce") if self.learns_logits else self

    def _counts(self, name: str, changes: dict[str, Any] | None = None) -> bool:
        """Return whether a field makes a difference, given those it depends on."""
        if name not in NEEDS or name == "strategy":
            return True
        owner, kinds = NEEDS[name]
        return (changes or {}).get(owner, getattr(self, owner)) in kinds

    @property
    def label(self) -> str:
        """The name to print: ``dm``, or ``dm[epochs=300]`` for a protocol that is not as published.

        A changed optimiser, schedule or loss is printed with its numbers.
        """
        published = PROTOCOLS.get(self.name)
        parts: dict[str, str] = {}
        for name in OVERRIDES:
            value, owner = getattr(self, name), NEEDS[name][0] if name in NEEDS else None
            same = value == getattr(published, name) and (owner not in parts or name in SWITCHES)
            if name == "epochs":
                same = same and self.augmented_epochs == published.augmented_epochs
            if name == "lr":
                same = same and self.network_rates == published.network_rates
            if not same and self._counts(name):
                parts[name] = "/".join(map(str, value)) if isinstance(value, tuple) else str(value)
        return self.name + (
            f"[{','.join(f'{name}={value}' for name, value in parts.items())}]" if parts else ""
        )

    def operations(self, info: DatasetInfo, network: str) -> str:
        """Return the augmentation's operations for a data set and a network, ``none`` where there are none."""
        if self.augmentation == "none" or self.strategy is not None:
            return self.strategy or "none"
        for name, strategy in self.network_strategies:
            if normalise_name(name) == normalise_name(network):
                return strategy
        return {"dsa": info.dsa_strategy, "dc": info.dc_strategy}[self.augmentation]

    def recipe(self, info: DatasetInfo, network: str) -> Recipe:
        """Return the training recipe for a data set and a network."""
        strategy = self.operations(info, network)
        augmented = strategy.lower() not in ("", "none")
        epochs = (
            self.augmented_epochs
            if augmented and self.augmented_epochs is not None
            else self.epochs
        )
        own = [
            lr for name, lr in self.network_rates if normalise_name(name) == normalise_name(network)
        ]
        recipe = self._recipe(epochs, own[0] if own else self.lr)
        return (
            replace(recipe, augmentation=self.augmentation, strategy=strategy)
            if augmented
            else recipe
        )

    def _drops(self, epochs: int) -> tuple[int, ...]:
        return (epochs // 2 + 2,) if self.drops is None else self.drops

    def _recipe(self, epochs: int, lr: float) -> Recipe:
        """Return the recipe without augmentation."""
        shared = (
            "batch",
            "accumulate",
            "optimizer",
            "momentum",
            "weight_decay",
            "decay",
            "schedule",
            "warmup",
            "st",
            "milestones",
            "drop_factor",
            "draw",
            "drop_last",
        )
        learnt = ("loss", "ce_weight", "temperature", "kl_scale", "double_norm")
        steps = self.schedule == "steps"
        return Recipe(
            epochs=epochs + 1 if steps else epochs,
            lr=lr,
            drops=self._drops(epochs) if steps else (),
            ema=self.ema or None,
            **{name: getattr(self, name) for name in (*shared, *learnt)},
        )


PROTOCOLS: Registry[Protocol] = Registry("protocol")


def _publish(protocol: Protocol) -> None:
    PROTOCOLS.register(protocol.name)(protocol)


_publish(
    Protocol(
        name="dc",
        epochs=300,
        augmentation="dc",
        augmented_epochs=1000,
        network_strategies=(("ConvNetBN", "crop_noise"),),
    )
)
_publish(Protocol(name="dsa", epochs=1000, augmentation="dsa"))
_publish(Protocol(name="dm", epochs=1000, augmentation="dsa"))
_publish(Protocol(name="idm", epochs=1000, augmentation="dsa", strategy=DEFAULT_STRATEGY))
_publish(Protocol(name="itgan", epochs=200, augmentation="dsa", drops=(100,), drop_last=True))

# ImageNet-1k; other data sets are changes of these. Augmentation comes with the labels, since
# teachers saw the same images.
_ADAMW: dict[str, Any] = {
    "optimizer": "adamw",
    "lr": 1e-3,
    "weight_decay": 0.01,
    "decay": "matrices_only",
    "epochs": 300,
}
_RDED_RATES = (
    ("torchvision/efficientnet_b0", 2e-3),
    ("torchvision/mobilenet_v2", 2.5e-3),
    ("torchvision/alexnet", 1e-4),
    ("torchvision/vit_b_16", 1e-4),
    ("torchvision/swin_v2_t", 1e-4),
    ("torchvision/vgg11", 5e-4),
)
_publish(
    Protocol(
        name="sre2l",
        batch=1024,
        accumulate=2,
        schedule="cosine",
        loss="kl",
        temperature=20.0,
        **_ADAMW,
    )
)
_publish(Protocol(name="dwa", batch=128, schedule="cosine", loss="kl", temperature=20.0, **_ADAMW))
# CIFAR-10 and CIFAR-100, static labels: dynamic ones have 80 epochs, 400 / (M + 1).
_publish(
    Protocol(
        name="infer",
        batch=64,
        schedule="cosine",
        loss="kl",
        temperature=30.0,
        **{**_ADAMW, "epochs": 400, "decay": "all"},
    )
)
_publish(
    Protocol(name="gvbsm", batch=1024, schedule="cosine", loss="mse_gt", ce_weight=0.1, **_ADAMW)
)
# "--ls-type cos --st 2" of EDC's script: a line, since another branch replaces the cosine
# (docs/methods/evaluation.md, "Students of soft labels").
_publish(
    Protocol(
        name="edc",
        batch=100,
        schedule="linear_st",
        st=2.0,
        loss="mse_gt",
        ce_weight=0.025,
        ema=0.99,
        **_ADAMW,
    )
)
_publish(
    Protocol(
        name="rded",
        batch=100,
        schedule="cos_st",
        st=2.0,
        loss="kl",
        temperature=20.0,
        double_norm=True,
        network_rates=_RDED_RATES,
        **_ADAMW,
    )
)

# Adam without weight decay, by another name. Steps of which each sees a fresh batch: as many images
# of each class, of all classes (RaT-BPTT), or windows of a poster, whatever their class (PoDD).
_UNROLLED: dict[str, Any] = {
    "optimizer": "adamw",
    "lr": 1e-3,
    "weight_decay": 0.0,
    "schedule": "constant",
    "augmentation": "dsa",
    "strategy": "flip_rotate",
    "space": "zca_per_image",
}
_publish(Protocol(name="rat_bptt", epochs=3000, draw="classes", **_UNROLLED))
_publish(Protocol(name="podd", epochs=2000, draw="images", **_UNROLLED))
