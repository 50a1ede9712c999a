"""A queue of networks that are trained on real images while a set is distilled (IDM, arXiv 2307.09742): who is in it,
who is trained and who is matched, in each iteration.

All of it is known before anything is trained: it depends on the queue's settings and seed alone,
neither on the images that are distilled nor on how many iterations are run
(docs/methods/idm_bacon.md, "The queue").
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, Literal, NamedTuple

import torch
from annotated_types import Ge, Gt
from torch import Tensor

from raydd.core.rng import generator
from raydd.training.recipe import Recipe

FIRST = 3
"""Networks in the queue before the first iteration, which adds one."""

_BLOCK = 1024
"""Iterations whose draws come from one generator."""

_MOMENTUM, _WEIGHT_DECAY = 0.9, 5e-4


@dataclass(frozen=True, kw_only=True)
class QueueConfig:
    """How the queue's networks come, are trained and go; the fields are the YAML keys under ``method.queue``.

    ``seed``: of all the queue's draws; jobs with the same settings, data, network and seed share
    one queue. ``net_num``: the most networks in it; a new one takes the place of the oldest.
    ``net_generate_interval``: iterations between new networks. ``fetch_net_num``: networks that are
    trained in each iteration, drawn anew, ``model_train_steps`` steps each on batches of
    ``trained_bs`` real images. ``lr_net``: their rate. ``net_decay``: train with momentum 0.9 and
    weight decay 5e-4. ``storage``: type in which trained weights are kept for those who match them.
    """

    seed: int = 0
    net_num: Annotated[int, Ge(FIRST)] = 100
    net_generate_interval: Annotated[int, Ge(1)] = 30
    fetch_net_num: Annotated[int, Ge(1)] = 2
    model_train_steps: Annotated[int, Ge(1)] = 10
    trained_bs: Annotated[int, Ge(1)] = 256
    lr_net: Annotated[float, Gt(0)] = 0.01
    net_decay: bool = True
    storage: Literal["fp32", "bf16"] = "fp32"

    @property
    def dtype(self) -> torch.dtype:
        """The type in which weights are kept."""
        return torch.bfloat16 if self.storage == "bf16" else torch.float32

    @property
    def recipe(self) -> Recipe:
        """How a network is trained."""
        momentum, decay = (_MOMENTUM, _WEIGHT_DECAY) if self.net_decay else (0.0, 0.0)
        return Recipe(
            epochs=1,
            batch=self.trained_bs,
            lr=self.lr_net,
            momentum=momentum,
            weight_decay=decay,
            schedule="constant",
        )

    @property
    def plan(self) -> QueuePlan:
        """Who is trained and who is matched when."""
        return _plan(self.seed, self.net_num, self.net_generate_interval, self.fetch_net_num)


class Life(NamedTuple):
    """A network's time in the queue.

    ``born``, ``dies``: its first iteration, and the first without it. ``trained``: the iterations
    in which it is trained, ascending. ``ages``: those of its ages (times that it was trained
    before) at which some iteration matches it, ascending.
    """

    born: int
    dies: int
    trained: tuple[int, ...]
    ages: tuple[int, ...]


class Matched(NamedTuple):
    """The network that an iteration matches, how often it was trained before, and which of its kept rows that is."""

    network: int
    age: int
    row: int


@lru_cache(maxsize=64)
def _plan(seed: int, net_num: int, interval: int, fetch: int) -> QueuePlan:
    return QueuePlan(seed, net_num, interval, fetch)


class QueuePlan:
    """The queue of every iteration. Networks are numbered from 0 in the order in which they come.

    An iteration first adds a network, if it is one of each ``interval`` (the first is), then
    matches one, then trains ``fetch``. Draws are kept as they are asked for.
    """

    def __init__(self, seed: int, net_num: int, interval: int, fetch: int) -> None:
        self.seed, self.net_num, self.interval, self.fetch = seed, net_num, interval, fetch
        self._blocks: list[tuple[list[int], list[list[int]]]] = []
        self._lives: dict[int, Life] = {}

    def alive(self, t: int) -> range:
        """Return the networks that are in the queue in iteration ``t``."""
        came = FIRST + t // self.interval + 1
        return range(max(0, came - self.net_num), came)

    def matched(self, t: int) -> int:
        """Return the network that iteration ``t`` matches."""
        return self._block(t)[0][t % _BLOCK]

    def trained(self, t: int) -> Sequence[int]:
        """Return the networks that are trained at the end of iteration ``t``, ascending."""
        return self._block(t)[1][t % _BLOCK]

    def life(self, network: int) -> Life:
        """Return all of a network's time in the queue."""
        if network not in self._lives:
            born = self.interval * max(0, network - FIRST)
            dies = self.interval * max(0, network + self.net_num - FIRST)
            trained = tuple(t for t in range(born, dies) if network in self.trained(t))
            met = [t for t in range(born, dies) if self.matched(t) == network]
            ages = tuple(sorted({bisect_left(trained, t) for t in met}))
            self._lives[network] = Life(born, dies, trained, ages)
        return self._lives[network]

    def reading(self, t: int) -> Matched:
        """Return what iteration ``t`` matches."""
        network = self.matched(t)
        life = self.life(network)
        age = bisect_left(life.trained, t)
        return Matched(network, age, life.ages.index(age))

    def since_reset(self, t: int, period: int | None) -> range:
        """Return which of its trainings, by number, the accuracy of iteration ``t``'s network is of.

        ``period``: all accuracies are forgotten at the start of each iteration that is a multiple
        of it (null: never).
        """
        network, age, _ = self.reading(t)
        reset = 0 if period is None else t - t % period
        return range(min(age, bisect_left(self.life(network).trained, reset)), age)

    def percent(self, t: int, period: int | None, correct: Tensor, seen: int) -> float:
        """Return the accuracy, in per cent, of iteration ``t``'s network on its training batches
        since the last reset; 0 if there were none.

        ``correct``: of each of its trainings, how many images it knew before it learned them;
        ``seen``: images of one training.
        """
        events = self.since_reset(t, period)
        if not events:
            return 0.0
        return 100.0 * int(correct[events.start : events.stop].sum()) / (seen * len(events))

    def needed(self, iterations: int) -> Sequence[int]:
        """Return the networks that are matched in the first ``iterations`` iterations, ascending."""
        return sorted({self.matched(t) for t in range(iterations)})

    def _block(self, t: int) -> tuple[list[int], list[list[int]]]:
        while len(self._blocks) <= t // _BLOCK:
            self._blocks.append(self._drawn(len(self._blocks)))
        return self._blocks[t // _BLOCK]

    def _drawn(self, block: int) -> tuple[list[int], list[list[int]]]:
        lines = [self.alive(t) for t in range(block * _BLOCK, (block + 1) * _BLOCK)]
        first = torch.tensor([line.start for line in lines])
        sizes = torch.tensor([len(line) for line in lines])
        draws = torch.rand(_BLOCK, dtype=torch.float64, generator=self._draws("match", block))
        matched = first + (draws * sizes).long()
        order = torch.rand(
            _BLOCK, self.net_num, dtype=torch.float64, generator=self._draws("train", block)
        )
        order.masked_fill_(torch.arange(self.net_num) >= sizes[:, None], 2.0)
        chosen = order.argsort(1)[:, : self.fetch] + first[:, None]
        trained = [
            sorted(row[:size]) for row, size in zip(chosen.tolist(), sizes.tolist(), strict=True)
        ]
        return matched.tolist(), trained

    def _draws(self, what: str, block: int) -> torch.Generator:
        return generator(self.seed, f"queue/{what}", block)
