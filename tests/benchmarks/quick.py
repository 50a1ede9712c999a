"""The quickstart job's distillation and evaluation in this process, without a runner."""

from __future__ import annotations

import statistics
import time
from typing import Any

import torch
from harness import PlainContext

from raydd.core.numerics import apply_numerics
from raydd.core.tensors import Tensors
from raydd.core.units import Data, Numerics, Ref
from raydd.data.config import DatasetConfig
from raydd.data.datasets import describe, open_data, with_digests
from raydd.evaluation.protocols import PROTOCOLS
from raydd.evaluation.set_sources import AssembledSet
from raydd.evaluation.stages import Evaluate
from raydd.methods.dm import Dm
from raydd.methods.method import Problem
from raydd.networks import normalise_name


def quickstart(device: torch.device, small: bool) -> dict[str, Any]:
    """Return the accuracy in percent (mean and deviation of five students) of
    jobs/quickstart.yaml's set, and the seconds taken.
    """
    config = DatasetConfig(name="digits")
    data: dict[str, Data] = dict(open_data(config))
    info = with_digests(describe(config), data)
    method = Dm(
        network="convnet2_w8" if small else "convnet2_w64",
        iterations=2 if small else 300,
        lr_img=1.0,
        batch_real=64,
    )
    problem = Problem(dataset=info, ipc=1, seed=0, numerics=Numerics())
    network = normalise_name(method.network)
    stage = Evaluate(
        seed=0,
        numerics=problem.numerics,
        source=AssembledSet(method=method, problem=problem),
        dataset=info.only("test"),
        recipe=PROTOCOLS.get("dm").override(epochs=2 if small else 150).recipe(info, network),
        network=network,
        repeats=5,
    )
    run, begun = _Run(data, device), time.monotonic()
    for ref in stage.source.inputs().values():
        run.output(ref)
    made = time.monotonic()
    (ref,) = stage.refs()
    accuracies = [100 * value for value in run.output(ref)["accuracy"].tolist()]
    return {
        "accuracy_mean": statistics.fmean(accuracies),
        "accuracy_std": statistics.pstdev(accuracies),
        "students": len(accuracies),
        "distillation_s": made - begun,
        "evaluation_s": time.monotonic() - made,
    }


class _Run:
    """Computes outputs and all that they need, each once, as one worker does."""

    def __init__(self, data: dict[str, Data], device: torch.device) -> None:
        self.data, self.device = data, device
        self.outputs: dict[tuple[str, str], Tensors] = {}
        self.made: dict[Any, Any] = {}

    def output(self, ref: Ref) -> Tensors:
        """Return the tensors of an output, on the CPU."""
        name, stage, unit = (ref.key, ref.output), ref.stage, ref.unit
        if name not in self.outputs:
            ctx = PlainContext(stage.seed, self.data, self.device, stage.lanes)
            ctx.made = self.made
            ctx.inputs = {of: self.output(needed) for of, needed in stage.inputs(unit).items()}
            apply_numerics(stage.numerics, self.device)
            state = stage.init(unit, ctx)
            for t in range(stage.steps(unit)):
                state = stage.step(unit, state, t, ctx)
            self.outputs[name] = {
                key: value.detach().cpu() for key, value in stage.finish(unit, state, ctx).items()
            }
        return self.outputs[name]
