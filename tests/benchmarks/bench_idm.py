"""One update of IDM or BACON on Fashion-MNIST (ConvNet), against the published loop, part by part.

Parts: ``synthetic``, the images' side alone; ``update``, with the forward pass of the real images;
``queue``, the training of two networks, ten steps each, that follows it. Sides, each a process with
one thread, in turns: the published loop with the default allocator and with raydd's settings; raydd
eager and compiled. Figures are CPU seconds. A whole update counts raydd's queue once for three runs
that share it (``--runs``). Beside them: whether both sides come to the same images in float64.

    python tests/benchmarks/bench_idm.py --rounds 5 --json docs/benchmarks/idm.json
    python tests/benchmarks/bench_idm.py --ipc 1 --rounds 3 --json docs/benchmarks/idm_ipc1.json
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from harness import PlainContext, Side, fashion, in_turns, machine, normalised, ratio, serve
from published import ConvNet, RealImages
from published_dsa import KeyedDraws, augment
from published_idm import Synthesis, Trained
from torch import Tensor

from raydd.augment.dsa import apply_classes
from raydd.core.tensors import Tensors
from raydd.core.units import Numerics
from raydd.data.memory import ClassMemory
from raydd.methods import METHODS
from raydd.methods.matching import embedding_matching
from raydd.methods.matching.queue_matching import MatchUnderQueue
from raydd.methods.method import Problem
from raydd.networks import create_network
from raydd.networks.flat import flatten
from raydd.training.train_queue import network_unit

SIDES = {
    "published": (False, None),
    "published_tuned": (True, None),
    "eager": (True, Numerics()),
    "compiled": (True, Numerics(compile=True)),
}
PARTS = ("synthetic", "update", "queue")
BATCH_REAL = {1: 5000, 10: 256, 50: 256}
WEIGHT = 0.5 * 37.5
"""Of the cross entropy, in the comparison of both sides."""


def stages(set_: dict[str, Any], o: argparse.Namespace, numerics: Numerics) -> MatchUnderQueue:
    """Return a method's stage as a job plans it."""
    problem = Problem(dataset=set_["info"], ipc=o.ipc, seed=0, numerics=numerics)
    method = METHODS.get(o.method)(
        iterations=20_000, batch_real=o.batch_real, classes_per_unit=o.block
    )  # type: ignore[call-arg]
    stage = method.plan(problem)[-1]
    assert isinstance(stage, MatchUnderQueue)
    return stage


class Ours:
    """Raydd's parts, unit after unit, as one worker makes them."""

    def __init__(self, o: argparse.Namespace, numerics: Numerics) -> None:
        self.set_ = fashion()
        self.stage = stages(self.set_, o, numerics)
        self.ctx = PlainContext(0, self.set_["data"])
        self.weights = some_weights(self.set_)
        # The queue's networks would be read from a store, a row of 1.3 MB each.
        object.__setattr__(
            self.stage, "networks", lambda ctx: lambda t: (self.weights, torch.tensor(WEIGHT))
        )
        self.states = {unit: self.stage.init(unit, self.ctx) for unit in self.stage.units()}
        self.t, self.kept = 0, self._reals()
        self.unit = network_unit(0)
        self.training: Tensors | None = None

    def __call__(self, part: str) -> None:
        """Make one part."""
        getattr(self, part)()

    def _reals(self) -> dict[str, Any]:
        """Return the real moments of each unit, for the synthetic side alone."""
        found = {}
        network = self.stage._network(self.ctx)
        embedding_matching.fill_(network.parameters(), self.weights)
        for unit, block in self.stage.blocks.items():
            choice = self.stage.draws(block, self.ctx, self.stage.networks(self.ctx))(0)
            found[unit] = self.stage._real_moments(unit, choice, network, torch.float32, self.ctx)
        return found

    def synthetic(self) -> None:
        """Move all images against moments that are there."""
        network = self.stage._network(self.ctx)
        for unit, block in self.stage.blocks.items():
            facts = self.ctx.cached(
                ("facts", self.stage, unit), partial(self.stage.facts, unit, self.ctx.device)
            )
            choice = self.stage.draws(block, self.ctx, self.stage.networks(self.ctx))(self.t)
            embedding_matching.fill_(network.parameters(), choice.network[0])
            side = embedding_matching.Side(
                network, self.stage._embed(network), facts, choice.network[1:]
            )
            augment_ = partial(apply_classes, choice.transforms)
            self.states[unit], _ = self.stage._moved(
                self.states[unit], self.kept[unit], augment_, side
            )
        self.t += 1

    def update(self) -> None:
        """Make an update of all classes, real images included."""
        for unit in self.stage.units():
            self.states[unit] = self.stage.step(unit, self.states[unit], self.t, self.ctx)
        self.t += 1

    def queue(self) -> None:
        """Train as many networks as an iteration does (one of them, as often)."""
        queue = self.stage.queue
        if self.training is None:
            self.training = queue.init(self.unit, self.ctx)
        for _ in range(queue.queue.fetch_net_num):
            self.training = queue.step(self.unit, self.training, 0, self.ctx)


class Theirs:
    """The published loop's parts."""

    def __init__(self, o: argparse.Namespace) -> None:
        set_ = fashion()
        train = set_["data"]["train"]
        self.images, self.labels = normalised(set_["info"], train), train.labels
        self.real = RealImages(self.images, self.labels, 10)
        self.net = published_net(some_weights(set_))
        start = torch.cat([self.real.sample(c, o.ipc) for c in range(10)])
        self.synthesis, self.batch_real = Synthesis(start, o.ipc, 10, o.method), o.batch_real
        with torch.no_grad():
            self.kept = [self.net.embed(self.real.sample(c, o.batch_real)) for c in range(10)]
        self.trained, self.random = Trained(ConvNet()), np.random.RandomState(0)

    def __call__(self, part: str) -> None:
        """Make one part."""
        getattr(self, part)()

    def synthetic(self) -> None:
        """Move all images against features that are there."""
        self.synthesis.iteration(self.net, lambda c: self.kept[c], self.real.seed, WEIGHT)

    def update(self) -> None:
        """Make an update of all classes, real images included."""
        seeds = [self.real.seed(c) for c in range(10)]

        def features(c: int) -> Tensor:
            real = augment(self.real.sample(c, self.batch_real), seed=seeds[c])
            return self.net.embed(real).detach()

        self.synthesis.iteration(self.net, features, lambda c: seeds[c], WEIGHT)

    def queue(self) -> None:
        """Train two networks (one of them, as often)."""
        for _ in range(2):
            self.trained.train(self.images, self.labels, 10, self.random)


def some_weights(set_: dict[str, Any]) -> Tensor:
    """Return the weights of a network, the same on both sides."""
    ctx = PlainContext(3, set_["data"])
    network = create_network("convnet3", set_["info"].shape, 10, ctx.rng("network"))
    return flatten(network.parameters())


def published_net(weights: Tensor, dtype: torch.dtype = torch.float32) -> ConvNet:
    """Return the published network with these weights."""
    net = ConvNet()
    torch.nn.utils.vector_to_parameters(weights.clone(), net.parameters())
    return net.to(dtype).eval()


def equality(o: argparse.Namespace) -> dict[str, float]:
    """Return how far two iterations in float64 are from the published loop's, with the same draws."""
    set_ = fashion()
    info, train = set_["info"], set_["data"]["train"]
    ours = Ours(argparse.Namespace(**{**vars(o), "block": 10, "batch_real": 64}), Numerics())
    stage, ctx, (unit,) = ours.stage, ours.ctx, ours.stage.units()
    ctx.made.clear()
    network = create_network("convnet3", info.shape, 10, ctx.rng("network"))
    ctx.given["matched network"] = network.requires_grad_(False).double()
    start = stage.init(unit, ctx)["images"].double()
    state: Tensors = {"images": start, "momentum": torch.zeros_like(start)}
    synthesis = Synthesis(start, o.ipc, 10, o.method)
    net, memory = published_net(ours.weights, torch.float64), ClassMemory.load(train)
    loss, gap = 0.0, 0.0
    for t in range(2):
        state = stage.step(unit, state, t, ctx)
        rows = memory.draw(list(range(10)), 64, [ctx.rng("real", t, c) for c in range(10)])
        draws = [partial(lambda t, c: KeyedDraws(ctx.rng("dsa", t, c)), t, c) for c in range(10)]

        def features(c: int, rows: Tensor = rows, draws: Any = draws) -> Tensor:
            real = normalised(info, train, memory.ids[rows[c]], torch.float64)
            return net.embed(augment(real, seed=draws[c])).detach()

        loss = synthesis.iteration(net, features, lambda c, draws=draws: draws[c], WEIGHT)  # type: ignore[misc]
        gap = abs(float(ctx.rows[-1]["loss"]) * 10 / loss - 1)
    moved = (synthesis.images.detach() - start).norm()
    return {
        "loss": gap,
        "images": float((state["images"] - synthesis.images.detach()).norm() / moved),
    }


def make(o: argparse.Namespace) -> Callable[[str], None]:
    """Return a side's parts."""
    numerics = SIDES[o.side][1]
    return Theirs(o) if numerics is None else Ours(o, numerics)


def main() -> None:
    """Measure, print a table, write the figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--side", choices=SIDES, help="be one side (used by the program itself)")
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=list(SIDES))
    parser.add_argument("--method", choices=["idm", "bacon"], default="idm")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--ipc", type=int, choices=BATCH_REAL, default=10)
    parser.add_argument("--batch-real", type=int, help="default: published")
    parser.add_argument("--block", type=int, default=5, help="classes per unit")
    parser.add_argument("--runs", type=int, default=3, help="runs that share a queue")
    parser.add_argument("--json", type=Path, help="write the figures there")
    o = parser.parse_args()
    o.batch_real = o.batch_real or BATCH_REAL[o.ipc]
    torch.set_num_threads(1)
    if o.side:
        serve(lambda: make(o))
        return
    words = {"method": o.method, "ipc": o.ipc, "batch-real": o.batch_real, "block": o.block}
    arguments = [word for key, value in words.items() for word in (f"--{key}", str(value))]
    script = str(Path(__file__).resolve())
    sides = {
        name: Side(script, name, tuned=SIDES[name][0], arguments=arguments) for name in o.sides
    }
    found = in_turns(sides, o.rounds, PARTS)
    for side in sides.values():
        side.close()
    result: dict[str, Any] = {"machine": machine(), **words, "runs": o.runs, "sides": {}}
    for name, parts in found.items():
        shared = 1 if SIDES[name][1] is None else o.runs
        whole = [u + q / shared for u, q in zip(parts["update"], parts["queue"], strict=True)]
        parts["whole"] = whole
        row = {part: {"cpu_s": s, "median_s": statistics.median(s)} for part, s in parts.items()}
        result["sides"][name] = row
    others = [name for name in found if name.startswith("published")]
    for name, row in result["sides"].items():
        line = f"{name:16s}"
        for part in (*PARTS, "whole"):
            gains = {other: ratio(found[other][part], found[name][part]) for other in others}
            row[part] |= {f"speedup_over_{other}": gain for other, gain in gains.items()}
            shown = " ".join(f"{gain['of_medians']:5.2f}x" for gain in gains.values())
            line += f"  {part} {row[part]['median_s']:7.3f} s {shown}"
        sys.stdout.write(f"{line}\n")
    result["difference_from_published"] = equality(o)
    sys.stdout.write(json.dumps(result["difference_from_published"]) + "\n")
    if o.json:
        o.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
