"""Reports of sweeps that never ran, for tests of what they show."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from typing import Any

from raydd.search.results import SweepReport, Tested, shared_of
from raydd.search.trials import Judged, Trial, ranked

EVIL = "<script>alert(1)</script>"
KEYS = {
    "method.lr_img": "0.001 to 10 by factors",
    "method.kind": "one of dm, dc, null",
    "evaluation.networks": 'one of ["convnet3"], ["convnet3", "resnet18"]',
    "method.batch_real": "one of 64, 128, 256",
    "method.momentum": "0 to 0.9",
    "method.inner_loops": "whole numbers from 1 to 50",
}


def trial(number: int, value: float | None, values: dict[str, Any], **more: Any) -> Trial:
    """Return a finished trial unless ``more`` says otherwise."""
    origin = "job" if number == 0 else "random"
    given = {"error": 0.5, "facts": {"device_seconds": 10.0 * (number + 1)}, **more}
    return Trial(number, values, **{"origin": origin, "state": "finished", "value": value} | given)


def report_of(trials: Sequence[Trial], keys: dict[str, str], **more: Any) -> SweepReport:
    """Return the report of trials; the best one wins."""
    best = ranked(trials, more.get("mode", "max"))
    given: dict[str, Any] = {
        "name": "space",
        "job": "quickstart",
        "metric": "accuracy",
        "mode": "max",
        "search": "random",
        "scheduler": "none",
        "keys": keys,
        "logarithmic": [key for key, text in keys.items() if "factors" in text],
        "split": "holdout",
        "trials": list(trials),
        "winner": best[0].number if best else None,
        "shared": shared_of(trials, 12, 345.6),
    }
    return SweepReport(**given | more)


def small(**more: Any) -> SweepReport:
    """Return six trials of one key, of every outcome: 70, 80, 75 finished, one stopped, one failed, one the same."""
    key = "method.lr_img"
    trials = [
        trial(0, 70.0, {key: 0.1}),
        trial(1, 80.0, {key: 1.0}, error=2.0),
        trial(2, 60.0, {key: 10.0}, state="pruned", error=None, facts={}),
        trial(3, None, {key: 5.0}, state="failed", error=None, facts={}),
        trial(4, 80.0, {key: 1.0}, state="same", same=1, facts={}),
        trial(5, 75.0, {key: 0.5}),
    ]
    for one, last in zip(trials[:3], (70.0, 80.0, 60.0), strict=True):
        steps = (50, 100) if one.state == "pruned" else (50, 100, 150)
        one.judged = [
            Judged(0, step, last - 5 + i, one.state == "pruned" and step == 100)
            for i, step in enumerate(steps)
        ]
    trials[2].reason = "stopped at step 100"
    trials[3].reason = "ConfigError: evaluation.epochs: 0 is too few\nallowed: 1 and more"
    return report_of(trials, {key: "0.01 to 10 by factors"}, **more)


def large(count: int, evil: bool = False) -> SweepReport:
    """Return many trials of six keys, one of them conditional, with every outcome."""
    draw = random.Random(0)
    trials: list[Trial] = []
    for number in range(count):
        kind = draw.choice(["dm", "dc", None, *([EVIL] if evil else [])])
        values: dict[str, Any] = {
            "method.lr_img": 10 ** draw.uniform(-3, 1),
            "method.kind": kind,
            "evaluation.networks": draw.choice([["convnet3"], ["convnet3", "resnet18"]]),
            "method.batch_real": draw.choice([64, 128, 256]),
            "method.momentum": draw.uniform(0, 0.9),
        }
        if kind == "dc":
            values["method.inner_loops"] = draw.randint(1, 50)
        value = 80 - 5 * abs(math.log10(values["method.lr_img"])) + draw.gauss(0, 1)
        one = trial(number, value, values, computed=3, reused=2, seconds_computed=12.3)
        one.judged = [Judged(0, step, value - 500 / step, False) for step in (50, 100, 150)]
        if number and number % 4 == 3:
            one.state, one.reason, one.error, one.facts = "pruned", "stopped at step 100", None, {}
            one.judged = one.judged[:2]
        elif number and number % 9 == 8:
            one.state, one.value, one.error, one.facts = "failed", None, None, {}
            one.reason = "ConfigError: a long reason, " * 30 + (EVIL if evil else "") + "\nand more"
        elif number and number % 11 == 10:
            one.state, one.same, one.values = "same", 0, trials[0].values
            one.value, one.error = trials[0].value, trials[0].error
        trials.append(one)
    keys = {**KEYS, **({EVIL: "0 to 1"} if evil else {})}
    done = ranked(trials, "max")
    winner = done[0].number if done else None
    tested = [
        Tested("best", "", winner, "dm[epochs=300]", "convnet3", 84.676543, 0.4321, 5),
        Tested("random", "best", None, "dm[epochs=300]", "convnet3", 72.33, 1.13, 5),
        Tested("job", "", 0, "dm[epochs=300]", "convnet3", 78.9, 0.6, 5),
    ]
    return report_of(
        trials,
        keys,
        name=EVIL if evil else "wide",
        tested=tested if done else (),
        importance={"method.lr_img": 0.61, "method.kind": 0.27} if count > 9 else {},
    )
