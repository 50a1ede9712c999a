"""Updates of recovery whose batch goes through the network in parts: time of each pass, of an update, and memory.

**Passes**, of one part: the network alone, and what an update in parts does with it, under the same
view. ``forward`` takes statistics without a graph; ``both`` sends back the part's share of the loss.
**Updates** of the whole batch, with views, loss, gradient and Adam: in one piece and in parts. All
take turns in one process with one thread, in CPU seconds. **Memory**: the most that a process ever
had, less what it had before its first of two updates, for each batch in one piece, in parts of one
size, and in one number of parts; beside what a plan says of the same update, and how much of it
grows with the batch (images, their moments and gradients).

    python tests/benchmarks/bench_parts.py --json docs/benchmarks/parts.json
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from harness import Side, in_turns, machine, ratio, serve
from torch import Tensor
from torch.nn.functional import cross_entropy

from raydd.augment.crop import Box, Crops
from raydd.core.rng import generator
from raydd.data.catalog import DatasetInfo
from raydd.methods.recovery.recover import MatchStatistics
from raydd.methods.recovery.recover_config import Matching, Priors
from raydd.methods.recovery.recover_groups import Grouping
from raydd.methods.recovery.recover_objective import Batch, ObservedTeacher
from raydd.methods.recovery.recover_parts import Parts
from raydd.methods.recovery.recover_update import Update
from raydd.networks import create_network
from raydd.networks.taps import StatTap
from raydd.training.backbones import Backbone
from raydd.training.weights import Weights

CLASSES = 1000
MATCHING, PRIORS = Matching(kinds=("bn",), patch=1, r_loss=0.01), Priors()
REQUESTS = ("alone forward", "part forward", "alone both", "part both", "whole", "parts")
TARGETS = {"forward": 1.15, "both": 1.15, "update": 1.6}
"""The most that a pass may take beside the network's alone, and an update in parts beside one in a piece."""


class Setting:
    """A network with random weights, a batch of one group, its view."""

    def __init__(self, name: str, size: int, batch: int) -> None:
        network = create_network(name, (3, size, size), CLASSES, generator(0, "network"))
        tap = StatTap(network.eval().requires_grad_(False), 1, ("bn",))
        self.network, self.teacher = network, ObservedTeacher(tap, tap.running(), None)
        self.images = torch.randn(batch, 3, size, size, generator=generator(0, "images"))
        self.labels = torch.arange(batch).unsqueeze(0) % CLASSES
        box = Box(size // 8, size // 16, size // 2, size // 2)
        self.crops = Crops.of([box], [True], (size, size))

    def batch(self, images: Tensor) -> Batch:
        """Return what an update sees of images."""
        return Batch(images, self.labels, self.labels.tolist(), self.crops)


def passes(args: argparse.Namespace) -> Callable[[str], dict[str, float] | None]:
    """Return what answers each of ``REQUESTS`` by doing it once."""
    s = Setting(args.network, args.size, args.batch)
    share, at = Parts(s.teacher, s.batch(s.images), args.parts).shares()[0]
    width = s.teacher.width
    mean, pull = (
        torch.randn(shape, generator=generator(0, "pull")) for shape in ((1, width), (1, 2, width))
    )

    def alone(gradient: bool) -> None:
        part = s.images[at].requires_grad_(gradient)
        with torch.set_grad_enabled(gradient):
            logits = s.network(s.crops.apply(part))
        if gradient:
            torch.autograd.grad(cross_entropy(logits, s.labels[0, at]), part)

    def in_part(gradient: bool) -> None:
        cut = Parts(s.teacher, s.batch(s.images), args.parts)
        if not gradient:
            cut.statistics(at)
            return
        images = cut.images(s.images, at).requires_grad_(True)
        sent, _ = cut.loss(share, at, cut.look(images), mean, pull, PRIORS)
        torch.autograd.grad(sent.sum(), images)

    updates = {"whole": update(s, 1), "parts": update(s, args.parts)}

    def answer(request: str) -> None:
        if request in updates:
            updates[request]()
        else:
            kind, gradient = request.split()
            (alone if kind == "alone" else in_part)(gradient == "both")

    return answer


def update(s: Setting, parts: int) -> Callable[[], None]:
    """Return an update of the whole batch."""
    made = Update(
        teacher=s.teacher,
        matching=MATCHING,
        priors=PRIORS,
        betas=(0.5, 0.9),
        classes=s.labels.tolist(),
        render=lambda x: x,
        project=lambda x: x.clamp(-2, 2),
        parts=parts,
    )
    given = {"labels": s.labels, "rows": s.crops.rows, "columns": s.crops.columns}
    given |= {"rate": torch.tensor(0.25), "root": torch.tensor(0.3)}
    state = {
        "images": s.images,
        "first": torch.zeros_like(s.images),
        "second": torch.zeros_like(s.images),
    }

    def step() -> None:
        found = made({**given, **state})
        state.update({name: found[name] for name in state})

    return step


def peak() -> int:
    """Return the most bytes that this process ever had."""
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def memory(args: argparse.Namespace) -> Callable[[str], dict[str, float]]:
    """Return what answers with the bytes that two updates took beyond the network and the images."""

    def answer(_: str) -> dict[str, float]:
        small = Setting(args.network, args.size, 1)
        update(small, 1)()  # what libraries keep
        s = Setting(args.network, args.size, args.batch)
        before = peak()
        step = update(s, args.parts)
        step()
        step()
        return {"bytes": peak() - before}

    return answer


def planned(network: str, size: int, batch: int, parts: int) -> int:
    """Return the bytes at peak that a plan says of such an update."""
    info = DatasetInfo(
        name="benchmark",
        classes=CLASSES,
        channels=3,
        height=size,
        width=size,
        mean=(0.5,) * 3,
        std=(0.25,) * 3,
    )
    stage = MatchStatistics(
        seed=0,
        dataset=info,
        ipc=1,
        backbones=(Backbone(network=network, dataset=info, weights=Weights(url="", digest="")),),
        grouping=Grouping(order="ipc_major", group_size=batch),
        iterations=1,
        lr_img=0.25,
        matching=MATCHING,
    )
    stage = replace(stage, parts=parts)
    return stage.cost(stage.units()[0]).peak_bytes


def measured(args: argparse.Namespace) -> dict[str, Any]:
    """Return seconds of passes and updates, and the memory of each batch."""
    shared = [f"--network={args.network}", f"--size={args.size}"]

    def run(name: str, batch: int, parts: int) -> Side:
        more = [*shared, f"--batch={batch}", f"--parts={parts}"]
        return Side(__file__, name, tuned=True, arguments=more)

    side = run("passes", args.batch, args.parts)
    try:
        cpu = in_turns({"passes": side}, args.rounds, REQUESTS)["passes"]
    finally:
        side.close()
    beside = {
        "forward": ratio(cpu["part forward"], cpu["alone forward"]),
        "both": ratio(cpu["part both"], cpu["alone both"]),
        "update": ratio(cpu["parts"], cpu["whole"]),
    }
    part = args.batch // args.parts
    rows = []
    for batch in (args.batch // 4, args.batch // 2, args.batch) if args.memory else ():
        for parts in dict.fromkeys((1, batch // part, args.parts)):
            side = run("memory", batch, parts)
            try:
                row = {"batch": batch, "parts": parts, "bytes": side()["bytes"]}
            finally:
                side.close()
            row["planned"] = planned(args.network, args.size, batch, parts)
            row["images"] = 12 * batch * args.size**2
            rows.append(row)
    return {
        "cpu_seconds": {name: statistics.median(values) for name, values in cpu.items()},
        "beside": beside,
        "targets": TARGETS,
        "held": {name: beside[name]["of_medians"] <= most for name, most in TARGETS.items()},
        "memory": rows,
    }


def shown(found: dict[str, Any]) -> str:
    """Return the figures for people."""
    lines = [
        f"{name}: {of['of_medians']:.3f} of medians, {of['median_of_rounds']:.3f} median of rounds,"
        f" at most {TARGETS[name]}"
        for name, of in found["beside"].items()
    ]
    lines.append(f"{'batch':>6}{'parts':>7}{'part':>6}{'MB':>9}{'planned':>9}{'one image set':>15}")
    lines += [
        f"{row['batch']:>6}{row['parts']:>7}{row['batch'] // row['parts']:>6}{row['bytes'] / 1e6:>9.0f}"
        f"{row['planned'] / 1e6:>9.0f}{row['images'] / 1e6:>15.1f}"
        for row in found["memory"]
    ]
    return "\n".join(lines)


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--network", default="torchvision/resnet18")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--parts", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--memory", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--side", choices=("passes", "memory"))
    args = parser.parse_args()
    if args.side:
        serve(lambda: (passes if args.side == "passes" else memory)(args))
        return
    found = measured(args)
    sys.stdout.write(shown(found) + "\n")
    if args.json:
        names = ("network", "size", "batch", "parts", "rounds")
        settings = {name: getattr(args, name) for name in names}
        text = json.dumps({"settings": settings, "machine": machine(), **found}, indent=1)
        args.json.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
