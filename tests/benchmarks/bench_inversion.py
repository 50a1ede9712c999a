"""Inversion of real images one by one and in blocks: seconds, and how far latents differ.

The generator of jobs/fashion_mnist_itgan_small.yaml with weights as they start, images of Fashion-MNIST, a
ConvNet of width 32. Each side inverts the same images from the same starts with as many updates, in turns; printed
are CPU seconds of one thread, the ratio of their medians, and, of a part in float64, the largest difference of latents.

    python tests/benchmarks/bench_inversion.py --images 1000 --updates 10 --json docs/benchmarks/inversion.json
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch
from harness import machine
from torch import Tensor

from raydd.artifacts.generated import Generated, stored_weights
from raydd.core.rng import generator
from raydd.core.tensors import Tensors
from raydd.data.catalog import entry
from raydd.data.config import DatasetConfig
from raydd.data.datasets import open_data
from raydd.data.memory import normalise
from raydd.methods.latents import adam
from raydd.methods.latents.inversion import Goal, InversionWeights, inverted
from raydd.networks import create_network
from raydd.networks.biggan import Generator, fold, initialise_
from raydd.networks.network import Network
from raydd.training.generator_config import GeneratorConfig

INFO = entry("fashion_mnist").info
SIZES = GeneratorConfig(width=16, dim_z=32).sizes(INFO)
PARTS = InversionWeights(1.0, 1.0, 0.0)


def folded(dtype: torch.dtype) -> Tensors:
    """Return a generator whose images depend on their latents."""
    made, draws = Generator(SIZES), generator(0, "generator")
    initialise_(made, draws)
    with torch.no_grad():
        for tensor in made.parameters():
            tensor.add_(0.2 * torch.randn(tensor.shape, generator=draws))
    return stored_weights(fold(made.eval()), dtype)


def network_of(dtype: torch.dtype) -> Network:
    """Return the network whose features are compared."""
    made = create_network("convnet3_w32", INFO.shape, INFO.classes, generator(0, "network"))
    return made.to(dtype).eval().requires_grad_(False)


def images_of(count: int) -> tuple[Tensor, Tensor]:
    """Return the first training images and their labels."""
    train = open_data(DatasetConfig(name="fashion_mnist"))["train"]
    return train.take(torch.arange(count)), train.labels[:count]


def invert(
    images: Tensor, labels: Tensor, block: int, updates: int, dtype: torch.dtype
) -> tuple[Tensor, float]:
    """Return the latents of images, inverted ``block`` at a time, and the CPU seconds."""
    decoder = Generated.decoding_of(SIZES, INFO).decoder()
    assert isinstance(decoder, Generated)
    weights, network = folded(dtype), network_of(dtype)
    real = normalise(images, INFO.mean, INFO.std, dtype)
    starts = torch.randn(len(images), SIZES.dim_z, generator=generator(0, "starts")).to(dtype)
    begun, found = time.process_time(), []
    for i in range(0, len(images), block):
        here = slice(i, i + block)
        with torch.no_grad():
            goal = Goal(real[here], network.embed(real[here]), labels[here])
        state = adam.fresh(starts[here])
        for count in range(1, updates + 1):
            state, _ = inverted(state, count, goal, weights, decoder, network.embed, 0.1, PARTS)
        found.append(state["z"])
    return torch.cat(found), time.process_time() - begun


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--updates", type=int, default=10)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument(
        "--exact", type=int, default=100, help="images that are compared in float64"
    )
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    images, labels = images_of(args.images)
    blocks = [1, 10, 50]
    seconds: dict[int, list[float]] = {block: [] for block in blocks}
    invert(images[:50], labels[:50], 50, 2, torch.float32)
    for _ in range(args.turns):
        for block in blocks:
            seconds[block].append(invert(images, labels, block, args.updates, torch.float32)[1])
    some = slice(args.exact)
    exact = {
        block: invert(images[some], labels[some], block, 20, torch.float64)[0] for block in blocks
    }
    rows: list[dict[str, Any]] = [
        {
            "block": block,
            "seconds": round(statistics.median(seconds[block]), 2),
            "of": [round(value, 2) for value in seconds[block]],
            "faster": round(statistics.median(seconds[1]) / statistics.median(seconds[block]), 2),
            "difference": float((exact[block] - exact[1]).abs().max()),
        }
        for block in blocks
    ]
    for row in rows:
        sys.stdout.write(
            f"blocks of {row['block']:>3}: {row['seconds']:7.2f} s for {args.images} images and {args.updates} updates,"
            f" {row['faster']:.2f} times as fast as one by one; latents differ by {row['difference']:.1e} in float64\n"
        )
    if args.json is not None:
        told = {
            "command": f"python tests/benchmarks/bench_inversion.py --images {args.images} --updates {args.updates}",
            "machine": machine(),
            "images": args.images,
            "updates": args.updates,
            "float64": {"images": args.exact, "updates": 20},
            "rows": rows,
        }
        args.json.write_text(json.dumps(told, indent=1) + "\n")


if __name__ == "__main__":
    main()
