"""Forward and backward of a packed batch with its statistics matched: what observing costs beside the network alone.

Sides, each a process with one thread, in turns: the network alone (cross entropy), with raydd's taps and loss, and with a plain
transcription of the published hooks (specification edc_sre2l_gvbsm_rded, sections 1.4 and 2.4), which take one group at a time
and which are therefore called once per group. Figures are CPU seconds of all groups, seconds beside the network alone, and
operators dispatched per image (on a GPU nearly all of them are kernels). Both losses are compared first.

    python tests/benchmarks/bench_taps.py --rounds 7 --network torchvision/resnet18 --size 64 --json docs/benchmarks/taps.json
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from harness import Side, in_turns, machine, ratio, serve
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from raydd.core.rng import generator
from raydd.losses import class_targets, matching_loss
from raydd.networks import create_network
from raydd.networks import taps as observing
from raydd.networks.base import Network
from raydd.networks.taps import StatTap

SIDES = ("alone", "taps", "published")
CLASSES, MOMENTUM, R_LOSS = 10, 0.8, 0.01


class Setting:
    """A network, groups of images and tables, equal for all sides."""

    def __init__(self, name: str, size: int, groups: int, each: int, patch: int) -> None:
        self.groups, self.each, self.patch = groups, each, patch
        self.network: Network = create_network(name, (3, size, size), CLASSES, generator(0, "network")).eval().requires_grad_(False)
        self.images = torch.randn(groups * each, 3, size, size, generator=generator(0, "images"))
        self.labels = torch.randint(0, CLASSES, (groups, each), generator=generator(0, "labels"))
        with StatTap(self.network, patch) as tap:
            self.layout = tap.layout
            width = tap.layout.width
            self.overall = torch.rand(2, width, generator=generator(0, "overall"))
            own = tap.layout.columns(kind="bn")
            self.overall = torch.where(own, tap.running(), self.overall)
        self.table = torch.rand(CLASSES, 2, width, generator=generator(0, "table"))


def alone(s: Setting) -> Callable[[], tuple[Tensor, Tensor]]:
    """Return the update without statistics."""

    def step() -> tuple[Tensor, Tensor]:
        x = s.images.detach().requires_grad_(True)
        loss = F.cross_entropy(s.network(x), s.labels.flatten())
        return loss.detach(), torch.autograd.grad(loss, x)[0]

    return step


def taps(s: Setting) -> Callable[[], tuple[Tensor, Tensor]]:
    """Return the update with raydd's taps."""
    tap = StatTap(s.network, s.patch)
    running, targets = torch.zeros(s.groups, 2, s.layout.width), class_targets(s.table, s.labels)

    def step() -> tuple[Tensor, Tensor]:
        x = s.images.detach().requires_grad_(True)
        logits, found = tap(x, s.groups)
        matched, _ = matching_loss(found, running, s.layout, overall=s.overall, classes=targets, momentum=MOMENTUM)
        loss = F.cross_entropy(logits, s.labels.flatten()) * s.groups + R_LOSS * matched.sum()
        return loss.detach(), torch.autograd.grad(loss, x)[0]

    return step


class Hook:
    """A published hook, plainly: copies of the input with channels last, patches as a permuted copy of the resized input."""

    def __init__(self, module: nn.Module, patch: int, references: list[list[Tensor]]) -> None:
        self.patch, self.references = patch, references
        self.running: list[Tensor] = []
        self.loss = torch.zeros(())
        module.register_forward_hook(self)

    def __call__(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        x = inputs[0]
        channels = x.shape[1]
        mean = x.mean([0, 2, 3])
        spread = x.permute(1, 0, 2, 3).contiguous().reshape(channels, -1).var(1, unbiased=False)
        found = [mean, spread]
        if self.patch:
            p = self.patch
            height, width = (-(-n // p) * p for n in x.shape[2:])
            large = F.interpolate(x, (height, width), mode="bilinear", align_corners=False)
            cut = large.reshape(len(x), channels, height // p, p, width // p, p).permute(2, 4, 0, 1, 3, 5)
            cut = cut.reshape(-1, len(x) * channels * p * p)
            found += [cut.mean(1), cut.var(1, unbiased=False)]
        smoothed = [(1 - MOMENTUM) * value.detach() + (value - value.detach()) for value in found]  # memories of zero
        pairs = [pair for references in self.references for pair in zip(references, smoothed, strict=True)]
        self.loss = 0.5 * torch.stack([torch.norm(wanted - value, 2) for wanted, value in pairs]).sum()


def published(s: Setting) -> Callable[[], tuple[Tensor, Tensor]]:
    """Return the update with the published hooks, group after group."""
    parts, table = s.layout.split(s.overall), s.layout.split(s.table)
    modules = dict(s.network.named_modules())
    hooks = []
    for layer in s.layout.layers:
        keys = [f"{layer.name}/{k}" for k in ("mu", "var", "pmu", "pvar")[: 4 if layer.cells else 2]]
        hooks.append((Hook(modules[layer.name], s.patch if layer.cells else 0, []), keys))

    def step() -> tuple[Tensor, Tensor]:
        total, gradients = torch.zeros(()), []
        for g, images in enumerate(s.images.split(s.each)):
            for hook, keys in hooks:
                hook.references = [[parts[k] for k in keys], [table[k][s.labels[g]].mean(0) for k in keys]]
            x = images.detach().requires_grad_(True)
            logits = s.network(x)
            weighted = sum(hook.loss * (10 if i == 0 else 1) for i, (hook, _) in enumerate(hooks))
            loss = F.cross_entropy(logits, s.labels[g]) + R_LOSS * weighted
            gradients.append(torch.autograd.grad(loss, x)[0])
            total = total + loss.detach()
        return total, torch.cat(gradients)

    return step


MAKERS = {"alone": alone, "taps": taps, "published": published}


class Count(TorchDispatchMode):
    """Counts operators that are not mere views."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls += not function.is_view and "detach" not in str(function)
        return function(*args, **(kwargs or {}))


def setting(args: argparse.Namespace) -> Setting:
    """Return what the command line asks for."""
    return Setting(args.network, args.size, args.groups, args.each, args.patch)


def serve_side(args: argparse.Namespace) -> None:
    """Be one side."""

    def make() -> Callable[[str], dict[str, float] | None]:
        step = MAKERS[args.side](setting(args))
        return lambda _: (step(), None)[1]

    serve(make)


def compare(args: argparse.Namespace) -> dict[str, Any]:
    """Return how far raydd's loss and gradient are from the published ones, and the operators per image of each side."""
    torch.set_num_threads(1)
    results, operators = {}, {}
    for name in SIDES:
        step = MAKERS[name](setting(args))
        results[name] = step()
        with Count() as count, mock.patch.object(observing, "_IN_TURN", sys.maxsize):  # image by image is for CPUs
            step()
        operators[name] = count.calls / (args.groups * args.each)
    (loss, gradient), (wanted, theirs) = results["taps"], results["published"]
    return {
        "relative_difference_of_loss": abs(float(loss / wanted) - 1),
        "relative_difference_of_gradient": float((gradient - theirs).norm() / theirs.norm()),
        "operators_per_image": operators,
    }


def main() -> None:
    """Run the sides in turns and print what they take."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", default="torchvision/resnet18")
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--patch", type=int, default=4)
    parser.add_argument("--groups", type=int, default=4)
    parser.add_argument("--each", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--side", choices=SIDES)
    args = parser.parse_args()
    if args.side:
        serve_side(args)
        return
    passed = [f"--{name}={getattr(args, name)}" for name in ("network", "size", "patch", "groups", "each")]
    found = compare(args)
    sides = {name: Side(__file__, name, tuned=True, arguments=passed) for name in SIDES}
    try:
        times = {name: of_side["step"] for name, of_side in in_turns(sides, args.rounds).items()}
    finally:
        for side in sides.values():
            side.close()
    report = {
        "setting": {name: getattr(args, name) for name in ("network", "size", "patch", "groups", "each", "rounds")},
        "cpu_seconds": {name: statistics.median(values) for name, values in times.items()},
        "beside_the_network_alone": {name: ratio(times[name], times["alone"]) for name in ("taps", "published")},
        "published_over_taps": ratio(times["published"], times["taps"]),
        **found,
        "machine": machine(),
    }
    text = json.dumps(report, indent=1)
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(text + "\n")
    sys.stdout.write(text + "\n")


if __name__ == "__main__":
    main()
