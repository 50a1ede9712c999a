"""How many images of each class fit a budget, before they are distilled (docs/per_byte.md, "Budgets")."""

from __future__ import annotations

import dataclasses
import math

import torch

from raydd.artifacts.byte_filling import none_fits
from raydd.artifacts.coded_facts import ImageCodec
from raydd.artifacts.distilled_set import DistilledSet
from raydd.artifacts.image_codecs import encode
from raydd.config import Job
from raydd.core.errors import ConfigError
from raydd.core.rng import generator
from raydd.data.datasets import Described
from raydd.methods.method import check_ipc

SHARE = 0.9
"""Of a budget, that real images fill: distilled ones take up to a tenth more."""
SAMPLE = 20
"""Real images of each class whose bytes are measured."""


def with_ipc(job: Job, data: Described) -> Job:
    """Return a job with a number in place of ``ipc: auto``.

    It is the number of real images that fill :data:`SHARE` of the budget at the codec's bits, at 2
    where the budget chooses them; they are the first that the method ``random`` draws by the job's
    first seed. ``ConfigError`` without the data, and, naming the smallest file, for too small a
    budget.
    """
    rule = None if job.images is None else job.images.rule
    if job.ipc != "auto" or rule is None or rule.budget is None:
        return job
    if data.splits is None:
        raise ConfigError(
            f"ipc: auto is found by coding images of '{data.info.name}', which are not here: {', '.join(data.absent)}"
        )
    found = images_within(job.seeds[0], data, rule.codec, rule.budget)
    check_ipc(job.method, found)
    return dataclasses.replace(job, ipc=found)


def images_within(seed: int, data: Described, codec: ImageCodec, budget: int) -> int:
    """Return how many images of each class fit a budget, judged by real ones."""
    if data.splits is None:
        raise TypeError("the data are not open")
    train, classes = data.splits["train"], data.info.classes
    orders = []
    for label in range(classes):
        members = (train.labels == label).nonzero().flatten()
        draws = generator(seed, "random", label)
        orders.append(members[torch.randperm(len(members), generator=draws)])

    def size(count: int) -> int:
        ids = torch.cat([order[:count] for order in orders])
        labels = torch.arange(classes).repeat_interleave(count)
        return len(
            encode(DistilledSet(images=train.take(ids), labels=labels, info=data.info), codec)
        )

    least = min(map(len, orders))
    many = min(SAMPLE, least)
    few = max(1, many // 2)
    rate = (size(many) - size(few)) / (many - few) if many > few else size(many)
    fixed = size(few) - rate * few
    found = math.floor((SHARE * budget - fixed) / rate)
    if found < 1:
        how = f"{codec.text}, one real image of each class"
        raise none_fits("images.budget", budget, size(1), how)
    return min(found, least)
