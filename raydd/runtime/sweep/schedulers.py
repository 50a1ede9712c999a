"""Ray Tune's rules for stopping trials early, asked directly: Tune forgets what its rules knew when a sweep goes on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from raydd.search.space import Space


@dataclass(frozen=True)
class _Named:
    """What the rules ask of a trial."""

    trial_id: str


class _NoOthers:
    """The rules' view of a controller: nothing waits, so that they never pause a trial."""

    def get_live_trials(self) -> list[Any]:
        return []


class TuneRule:
    """One of Ray Tune's schedulers, by the updates that a trial has made."""

    def __init__(self, rule: Any) -> None:
        self._rule = rule
        self._trials: dict[int, _Named] = {}

    def _named(self, number: int) -> _Named:
        if number not in self._trials:
            self._trials[number] = _Named(str(number))
            self._rule.on_trial_add(_NoOthers(), self._trials[number])
        return self._trials[number]

    def stops(self, number: int, step: int, value: float) -> bool:
        """Note what a trial reached, and return whether it is to stop."""
        if step < 1:
            return False
        found = self._rule.on_trial_result(_NoOthers(), self._named(number), _result(step, value))
        return str(found) == "STOP"

    def ended(self, number: int, step: int, value: float) -> None:
        """Note what a trial reached in the end."""
        self._rule.on_trial_complete(_NoOthers(), self._named(number), _result(max(step, 1), value))
        self._trials.pop(number)


def _result(step: int, value: float) -> dict[str, float]:
    return {"step": step, "value": value}


def scheduler(space: Space, every: int, steps: int) -> TuneRule | None:
    """Return the rule that a space file asks for, if any; ``every``: updates between snapshots,
    ``steps``: the most that a trial makes.
    """
    file = space.file
    if file.scheduler == "none":
        return None
    from ray.tune.schedulers import ASHAScheduler, MedianStoppingRule

    common: dict[str, Any] = {"time_attr": "step", "metric": "value", "mode": space.mode}
    grace = min(file.stopping.grace or every, steps)
    if file.scheduler == "median":
        return TuneRule(MedianStoppingRule(grace_period=grace, hard_stop=True, **common))
    return TuneRule(
        ASHAScheduler(
            grace_period=grace,
            max_t=max(steps, 1),
            reduction_factor=file.stopping.reduction,
            stop_last_trials=False,
            **common,
        )
    )
