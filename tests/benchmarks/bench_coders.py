"""Bytes of levels and pixels by several coders and layouts, and of whole files, for sets and for random images.

The first ten training images of each class stand for random ones; sets are named. A layout is how many images lie
side by side; JPEG XL at efforts 9 and 10, zlib and PNG of the square layout, and levels packed without a coder.

    python tests/benchmarks/bench_coders.py --dataset fashion_mnist --json docs/benchmarks/coders.json \\
        dm=runs/dm10/distilled

Made for docs/per_byte.md of a set of
``raydd distill --config jobs/fashion_mnist_dm_small.yaml ipc=10 method.network=convnet3_w64 method.iterations=100
method.batch_real=64 numerics.compile=false compute.workers=0``.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
import time
import zlib
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import torch
from harness import machine
from PIL import Image
from torch import Tensor

import raydd
from raydd.artifacts.distilled_set import DistilledSet
from raydd.artifacts.image_codecs import ImageCodec, decode, encode, pixels_of
from raydd.artifacts.levels import levels_of, lloyd_max
from raydd.data.catalog import entry
from raydd.data.config import DatasetConfig
from raydd.data.datasets import open_data

LAYOUTS = {"one column": 1, "5": 5, "square": 0, "20": 20, "one row": -1}


def random_set(name: str, ipc: int) -> DistilledSet:
    """Return the first images of each class."""
    info, train = entry(name).info, open_data(DatasetConfig(name=name))["train"]
    ids = torch.cat([(train.labels == c).nonzero().flatten()[:ipc] for c in range(info.classes)])
    return DistilledSet(images=train.take(ids), labels=train.labels[ids], info=info)


def levels(distilled: DistilledSet, bits: int) -> Tensor:
    """Return the levels uint8 ``[N, C, H, W]`` of a set, at 8 bits its pixels."""
    pixels = pixels_of(distilled)
    if bits == 8:
        return (255 * pixels).round().to(torch.uint8)
    channels = pixels.transpose(0, 1)
    found = torch.stack([levels_of(one, lloyd_max(one, 1 << bits)) for one in channels])
    return found.transpose(0, 1).to(torch.uint8)


def page(images: Tensor, columns: int) -> np.ndarray[Any, Any]:
    """Return images side by side, in so many columns (0: square, -1: all), ``[h, w]`` or ``[h, w, C]``."""
    count, channels, height, width = images.shape
    columns = {0: int(np.ceil(np.sqrt(count))), -1: count}.get(columns, columns)
    rows = -(-count // columns)
    full = images.new_zeros(rows * columns, channels, height, width)
    full[:count] = images
    tiles = full.unflatten(0, (rows, columns)).permute(0, 3, 1, 4, 2)
    whole = tiles.reshape(rows * height, columns * width, channels).numpy()
    return np.ascontiguousarray(whole[:, :, 0] if channels == 1 else whole)


def jpegxl(pixels: np.ndarray[Any, Any], effort: int) -> int:
    """Return the bytes of a lossless JPEG XL picture."""
    return len(
        imagecodecs.jpegxl_encode(
            pixels, lossless=True, effort=effort, usecontainer=False, numthreads=1
        )
    )


def row(name: str, distilled: DistilledSet, bits: int) -> dict[str, Any]:
    """Return the bytes of one set at one number of bits."""
    found = levels(distilled, bits)
    square = page(found, 0)
    file = io.BytesIO()
    Image.fromarray(square).save(file, "PNG", optimize=True)
    codec = ImageCodec(bits=bits)  # type: ignore[arg-type]
    begun = time.process_time()
    data = encode(distilled, codec)
    seconds = time.process_time() - begun
    assert encode(decode(data), codec) == data
    return {
        "set": name,
        "bits": bits,
        "packed": -(-found.numel() * bits // 8),
        "zlib 9": len(zlib.compress(square.tobytes(), 9)),
        "png": len(file.getvalue()),
        **{f"jpegxl 9, {label}": jpegxl(page(found, n), 9) for label, n in LAYOUTS.items()},
        "jpegxl 10, square": jpegxl(square, 10),
        "set.rdd": len(data),
        "float32 / set.rdd": round(4 * found.numel() / len(data), 1),
        "seconds": round(seconds, 2),
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("sets", nargs="*", metavar="NAME=URL")
    parser.add_argument("--dataset", default="fashion_mnist")
    parser.add_argument("--ipc", type=int, default=10)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    sets = {f"random {args.ipc}": random_set(args.dataset, args.ipc)}
    for word in args.sets:
        name, _, url = word.partition("=")
        sets[name] = raydd.load(url, info=args.dataset).distilled
    rows = [row(name, one, bits) for name, one in sets.items() for bits in (8, 4, 3, 2, 1)]
    for found in rows:
        sys.stdout.write(", ".join(f"{key} {value}" for key, value in found.items()) + "\n")
    if args.json is not None:
        given = f"python tests/benchmarks/bench_coders.py --dataset {args.dataset} --ipc {args.ipc}"
        command = " ".join([given, *(word.partition("=")[0] + "=…" for word in args.sets)])
        facts = {"command": command, "machine": machine(), "dataset": args.dataset, "rows": rows}
        facts["coder"] = imagecodecs.jpegxl_version()
        args.json.write_text(json.dumps(facts, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
