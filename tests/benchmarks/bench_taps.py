"""Forward and backward of a packed batch with its statistics matched: what observing costs beside the network alone.

Sides, each a process with one thread, in turns: the network alone (cross entropy), with raydd's
taps and loss, and with a plain transcription of the published hooks, which take one group at a time
and are therefore called once per group. Figures are CPU seconds of all groups, seconds beside the
network alone, and operators dispatched per image (on a GPU nearly all of them are kernels). Both
losses are compared first.

    python tests/benchmarks/bench_taps.py --rounds 7 --network torchvision/resnet18 \\
        --size 64 --json docs/benchmarks/taps.json
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

import published_hooks
import torch
import torch.nn.functional as F
from harness import Side, in_turns, machine, ratio, serve
from measuring import Count
from torch import Tensor

from raydd.core.rng import generator
from raydd.losses import class_targets, matching_loss
from raydd.networks import create_network
from raydd.networks import tap_sums as observing
from raydd.networks.network import Network
from raydd.networks.taps import StatTap

SIDES = ("alone", "taps", "published")
CLASSES, MOMENTUM, R_LOSS = 10, 0.8, 0.01


class Setting:
    """A network, groups of images and tables, equal for all sides."""

    def __init__(
        self,
        name: str,
        size: int,
        groups: int,
        each: int,
        patch: int,
        device: torch.device | str = "cpu",
    ) -> None:
        self.groups, self.each, self.patch = groups, each, patch
        network = create_network(name, (3, size, size), CLASSES, generator(0, "network"))
        self.network: Network = network.to(device).eval().requires_grad_(False)
        self.images = torch.randn(
            groups * each, 3, size, size, generator=generator(0, "images")
        ).to(device)
        self.labels = torch.randint(
            0, CLASSES, (groups, each), generator=generator(0, "labels")
        ).to(device)
        with StatTap(self.network, patch) as tap:
            self.layout = tap.layout
            width = tap.layout.width
            self.overall = torch.rand(2, width, generator=generator(0, "overall")).to(device)
            own = tap.layout.columns(kind="bn").to(device)
            self.overall = torch.where(own, tap.running(), self.overall)
        self.table = torch.rand(CLASSES, 2, width, generator=generator(0, "table")).to(device)

    @property
    def device(self) -> torch.device:
        """Where everything is."""
        return self.images.device


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
    running, targets = (
        torch.zeros(s.groups, 2, s.layout.width, device=s.device),
        class_targets(s.table, s.labels),
    )

    def step() -> tuple[Tensor, Tensor]:
        x = s.images.detach().requires_grad_(True)
        logits, found = tap(x, s.groups)
        matched, _ = matching_loss(
            found, running, s.layout, overall=s.overall, classes=targets, momentum=MOMENTUM
        )
        loss = F.cross_entropy(logits, s.labels.flatten()) * s.groups + R_LOSS * matched.sum()
        return loss.detach(), torch.autograd.grad(loss, x)[0]

    return step


def published(s: Setting) -> Callable[[], tuple[Tensor, Tensor]]:
    """Return the update with the published hooks, group after group."""
    hooks = published_hooks.observe(s.network, s.layout, s.patch, MOMENTUM)
    overall, table = s.layout.split(s.overall), s.layout.split(s.table)

    def step() -> tuple[Tensor, Tensor]:
        total, gradients = torch.zeros((), device=s.device), []
        for images, labels in zip(s.images.split(s.each), s.labels, strict=True):
            x = images.detach().requires_grad_(True)
            loss = published_hooks.edc_loss(s.network, hooks, x, labels, overall, table, R_LOSS)
            gradients.append(torch.autograd.grad(loss, x)[0])
            total = total + loss.detach()
        return total, torch.cat(gradients)

    return step


MAKERS = {"alone": alone, "taps": taps, "published": published}


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
    """Return how far raydd's loss and gradient are from the published ones, and the operators per
    image of each side.
    """
    torch.set_num_threads(1)
    results, operators = {}, {}
    for name in SIDES:
        step = MAKERS[name](setting(args))
        results[name] = step()
        with (
            Count() as count,
            mock.patch.object(observing, "IN_TURN", sys.maxsize),
        ):  # image by image is for CPUs
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
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
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
    passed = [
        f"--{name}={getattr(args, name)}" for name in ("network", "size", "patch", "groups", "each")
    ]
    found = compare(args)
    sides = {name: Side(__file__, name, tuned=True, arguments=passed) for name in SIDES}
    try:
        times = {name: of_side["step"] for name, of_side in in_turns(sides, args.rounds).items()}
    finally:
        for side in sides.values():
            side.close()
    report = {
        "setting": {
            name: getattr(args, name)
            for name in ("network", "size", "patch", "groups", "each", "rounds")
        },
        "cpu_seconds": {name: statistics.median(values) for name, values in times.items()},
        "beside_the_network_alone": {
            name: ratio(times[name], times["alone"]) for name in ("taps", "published")
        },
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
