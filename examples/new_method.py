"""A new method in one file: `python examples/new_method.py [KEY=VALUE ...]`.

Every distilled image is the mean of real ones: a class is dealt into `ipc` hands. It is a poor method, and enough to
beat random digits at one image per class. KEY=VALUE changes any key of the job (ipc=2). docs/plugins.md: packages.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import ClassVar

import torch

from raydd.artifacts.distilled_set import DistilledSet
from raydd.config import load_job
from raydd.core.tensors import Tensors
from raydd.core.units import Context, Stage
from raydd.methods.method import ClassBlocks, Method, Problem, register_method
from raydd.runtime.pipeline import run_job

JOB = "name=averages dataset.name=digits method.name=average ipc=1 compute.workers=0"


@dataclass(frozen=True, kw_only=True)
class AverageImages(ClassBlocks):
    phase: ClassVar[str] = "distill"
    ipc: int

    def steps(self, unit: str) -> int:
        return 0  # all is done in finish()

    def finish(self, unit: str, state: Tensors, ctx: Context) -> Tensors:
        data, means = ctx.data["train"], []
        for label in self.blocks[unit]:
            members = (data.labels == label).nonzero().flatten()
            dealt = members[torch.randperm(len(members), generator=ctx.rng("deal", label))]
            means += [data.take(hand).float().mean(0) for hand in dealt.tensor_split(self.ipc)]
        return {"images": torch.stack(means).round().to(torch.uint8)}


@register_method("average")
@dataclass(frozen=True, kw_only=True)
class Average(Method):
    value_bytes: ClassVar[int] = 1  # pixels in 8 bits
    per_unit: int = 10

    def plan(self, problem: Problem) -> list[Stage]:
        own = {"ipc": problem.ipc, "classes_per_unit": self.per_unit, "seed": problem.seed}
        return [AverageImages(dataset=problem.dataset.only("train"), **own)]

    def assemble(self, problem: Problem, outputs: dict[str, Tensors]) -> DistilledSet:
        images = torch.cat([outputs[unit]["images"] for unit in sorted(outputs)])
        labels = torch.arange(problem.dataset.classes).repeat_interleave(problem.ipc)
        return DistilledSet(images=images, labels=labels, info=problem.dataset, recipe={})


if __name__ == "__main__":
    print(run_job(load_job(None, [*JOB.split(), *sys.argv[1:]]), print).render())
