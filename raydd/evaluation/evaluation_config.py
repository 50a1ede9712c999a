"""How a job judges its set: the YAML keys under ``evaluation:``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Lt

from raydd.core.errors import ConfigError
from raydd.evaluation.protocols import OVERRIDES, PROTOCOLS, Protocol, Space
from raydd.methods.method import DEFAULT_PROTOCOL
from raydd.networks import normalise_name, pool
from raydd.networks.names import POOLS
from raydd.training.recipe import Decay, Draw, KlScale, Loss, Optimizer
from raydd.training.schedules import Schedule


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """How a job judges its set; the fields are the YAML keys under ``evaluation:``.

    ``protocol``: a published one by name (null: that of the job's method); ``epochs`` to
    ``space``: changes to it, which its printed name then shows; see
    :class:`raydd.evaluation.protocols.Protocol` (``ema: 0`` tests the live weights).

    ``networks``: architectures, or letters of published pools (empty: the method's own network).
    ``repeats``: students per set and architecture; ``repeats_per_unit``: of them trained together.
    ``seed``: of what students draw (null: the seed of the set's job).
    ``test_every``: also test after every so many epochs, for the best epoch's accuracy (0: the last
    epoch alone). ``after``: also report what the same students reach after so many epochs (steps,
    where each sees a fresh batch), in rows of their own. ``split``: what accuracies are of.
    ``baselines``: what else is judged under the
    same protocol: sets of the same size by any method with hard labels, by name or, with settings
    of its own, as a mapping (``{name: dm, iterations: 2000}``), which may also hold the keys of
    :class:`raydd.evaluation.rivals.RivalKeys`, and ``whole``, students of all real images trained
    for ``whole_epochs``. ``random_draws``: random subsets, at least 3. ``every``:
    evaluate snapshots each so many updates, with ``snapshot_repeats`` students of the first
    architecture (null: the end only).

    ``continual``: also learn class by class, in so many steps of equally many classes (see
    :mod:`raydd.evaluation.continual`; null: no), in ``continual_orders`` orders of the classes
    (shared out among the job's ``seeds`` in turn), with ``continual_repeats`` students of the first
    architecture after each step.
    """

    protocol: str | None = None
    epochs: Annotated[int, Ge(1)] | None = None
    batch: Annotated[int, Ge(1)] | None = None
    accumulate: Annotated[int, Ge(1)] | None = None
    lr: Annotated[float, Gt(0)] | None = None
    optimizer: Optimizer | None = None
    momentum: Annotated[float, Ge(0), Lt(1)] | None = None
    weight_decay: Annotated[float, Ge(0)] | None = None
    decay: Decay | None = None
    schedule: Schedule | None = None
    warmup: Annotated[int, Ge(0)] | None = None
    st: Annotated[float, Ge(1)] | None = None
    milestones: tuple[Annotated[int, Ge(1)], ...] | None = None
    drops: tuple[Annotated[int, Ge(1)], ...] | None = None
    drop_factor: Annotated[float, Gt(0), Lt(1)] | None = None
    loss: Loss | None = None
    ce_weight: Annotated[float, Ge(0)] | None = None
    temperature: Annotated[float, Gt(0)] | None = None
    kl_scale: KlScale | None = None
    ema: Annotated[float, Ge(0), Lt(1)] | None = None
    double_norm: bool | None = None
    strategy: str | None = None
    draw: Draw | None = None
    drop_last: bool | None = None
    space: Space | None = None
    networks: tuple[str, ...] = ()
    repeats: Annotated[int, Ge(1)] = 5
    repeats_per_unit: Annotated[int, Ge(1)] = 5
    seed: Annotated[int, Ge(0)] | None = None
    test_every: Annotated[int, Ge(0)] = 0
    after: tuple[Annotated[int, Ge(1)], ...] = ()
    split: Literal["test", "holdout"] = "test"
    baselines: tuple[Any, ...] = ("random",)
    random_draws: Annotated[int, Ge(3)] = 3
    whole_epochs: Annotated[int, Ge(1)] = 60
    every: Annotated[int, Ge(1)] | None = None
    snapshot_repeats: Annotated[int, Ge(1)] = 1
    continual: Annotated[int, Ge(2)] | None = None
    continual_orders: Annotated[int, Ge(1)] = 5
    continual_repeats: Annotated[int, Ge(1)] = 3

    def __post_init__(self) -> None:
        for name in ("continual_orders", "continual_repeats"):
            value = getattr(self, name)
            if self.continual is None and value != getattr(EvaluationConfig, name):
                raise ConfigError(
                    f"evaluation.{name}={value} has no effect without evaluation.continual, the number of steps"
                )

        twice = [epoch for epoch in self.after if self.after.count(epoch) > 1]
        if twice:
            raise ConfigError(f"evaluation.after: {twice[0]} stands there more than once")

    def resolve(self) -> Protocol:
        """Return the protocol with its changes; ``ConfigError`` for an unknown name or a change without effect."""
        fields = {name: getattr(self, name) for name in OVERRIDES}
        return PROTOCOLS.get(self.protocol or DEFAULT_PROTOCOL).override(
            **{name: value for name, value in fields.items() if value is not None}
        )

    def architectures(self, own: str) -> tuple[str, ...]:
        """Return the canonical names of the networks to train, pools spelt out; ``own`` is the method's network.

        Raises ``ConfigError`` for a name that neither a network nor a pool has.
        """
        letters = [
            entry for entry in self.networks if entry in POOLS or len(entry) < 3
        ]  # no network's name is that short
        names = [
            name
            for entry in self.networks or (own,)
            for name in (pool(entry, own) if entry in letters else (normalise_name(entry),))
        ]
        return tuple(dict.fromkeys(names))
