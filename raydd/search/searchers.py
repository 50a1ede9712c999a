"""Who proposes a trial's values. A proposal depends on the space, the trial's number and what is
known of the trials before it, so that a sweep that goes on proposes what it would have proposed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from raydd.core.rng import derive_seed, generator
from raydd.search.space import Space, signature
from raydd.search.trials import Trial


class Searcher(Protocol):
    """Proposes values of the searched keys."""

    def propose(self, number: int, trials: Sequence[Trial]) -> dict[str, Any] | None:
        """Return the values of trial ``number`` after ``trials``; ``None``: there are no more."""
        ...


class GridSearch:
    """All combinations, but for the job's own, which is the first trial."""

    def __init__(self, space: Space, first: int) -> None:
        self.first = first
        self.points = grid_points(space)

    def propose(self, number: int, trials: Sequence[Trial]) -> dict[str, Any] | None:
        place = number - self.first
        return dict(self.points[place]) if place < len(self.points) else None


def grid_points(space: Space) -> list[dict[str, Any]]:
    """Return a grid's combinations that are not tried first."""
    before = [space.own, *map(space.without_idle, space.file.points)]
    tried = set(map(signature, before))
    return [values for values in space.grid() if signature(values) not in tried]


MOST_DRAWS = 100
"""So many draws for one trial, of which none can be, are the end: the last one is tried, and fails."""


def possible(space: Space, draw: Callable[[tuple[int, ...]], dict[str, Any]]) -> dict[str, Any]:
    """Return the first draw that some job can have; ``draw`` is given nothing, then 1, 2, …."""
    for attempt in range(MOST_DRAWS):
        values = draw((attempt,) if attempt else ())
        if space.refusal(values) is None:
            break
    return values


class RandomSearch:
    """Independent draws, keyed by the space's seed and the trial's number; what cannot be is drawn again."""

    def __init__(self, space: Space) -> None:
        self.space = space

    def propose(self, number: int, trials: Sequence[Trial]) -> dict[str, Any]:
        return possible(self.space, lambda again: self._drawn(number, *again))

    def _drawn(self, number: int, *again: int) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for place, key in enumerate(self.space.keys):
            draws = generator(self.space.file.seed, "sweep", number, place, *again)
            value = key.domain.draw(draws)
            if self.space.active(key, values):
                values[key.name] = value
        return values


class TpeSearch:
    """Optuna's tree-structured Parzen estimator, told of all trials anew for each proposal; asked
    again for what cannot be.
    """

    def __init__(self, space: Space) -> None:
        self.space = space

    def propose(self, number: int, trials: Sequence[Trial]) -> dict[str, Any]:
        return possible(self.space, lambda again: self._asked(number, trials, *again))

    def _asked(self, number: int, trials: Sequence[Trial], *again: int) -> dict[str, Any]:
        from optuna.samplers import TPESampler

        sampler = TPESampler(
            n_startup_trials=self.space.file.startup,
            multivariate=False,
            constant_liar=True,
            seed=derive_seed(self.space.file.seed, "tpe", number, *again) % 2**32,
        )
        study = study_of(self.space, trials, sampler=sampler)
        asked = {key.name: key.domain.distribution() for key in self.space.keys}
        params = study.ask(fixed_distributions=asked).params
        values = {key.name: key.domain.value(params[key.name]) for key in self.space.keys}
        return self.space.without_idle(values)


def searcher(space: Space) -> Searcher:
    """Return the one that a space file asks for."""
    if space.file.search == "grid":
        return GridSearch(space, 1 + len(space.file.points))
    return TpeSearch(space) if space.file.search == "tpe" else RandomSearch(space)


def study_of(
    space: Space, trials: Sequence[Trial], sampler: Any = None, storage: Any = None
) -> Any:
    """Return an Optuna study of trials, as its importances and its dashboard want them.

    A value outside its key's range (the job's own may be) is left out: Optuna takes no other.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(
        study_name=space.name,
        direction="maximize" if space.mode == "max" else "minimize",
        sampler=sampler or optuna.samplers.RandomSampler(seed=0),
        storage=storage,
    )
    states = {
        "running": optuna.trial.TrialState.RUNNING,
        "finished": optuna.trial.TrialState.COMPLETE,
        "pruned": optuna.trial.TrialState.PRUNED,
        "failed": optuna.trial.TrialState.FAIL,
    }
    for trial in trials:
        inside = {
            key.name: key.domain
            for key in space.keys
            if key.name in trial.values and key.domain.holds(trial.values[key.name])
        }
        state = trial.state if trial.same is None else trials[trial.same].state
        study.add_trial(
            optuna.trial.create_trial(
                state=states[state],
                value=trial.value if state == "finished" else None,
                params={name: of.param(trial.values[name]) for name, of in inside.items()},
                distributions={name: of.distribution() for name, of in inside.items()},
                intermediate_values={one.step: one.value for one in trial.judged},
                user_attrs={"trial": trial.number, "origin": trial.origin},
            )
        )
    return study
