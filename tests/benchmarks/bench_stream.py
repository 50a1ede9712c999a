"""How fast shards stream, against the fastest plain decode loop on the same threads.

The plain loop decodes JPEG bytes that are already in memory with simplejpeg, into one picture's
memory (where libjpeg-turbo is fastest: not at a multiple of 32), and does nothing else. The stream
reads tar shards, finds the samples, decodes and batches. Both run with the same number of threads,
in turns, so that a busy machine slows both; the figures are the medians of the ratios, of images
per second of wall time and of images per second of processor time (all threads together), and the
ratio of the best rounds (what is left when the rest of the machine is quiet).

    python tests/benchmarks/bench_stream.py --seconds 3 --rounds 7
    python tests/benchmarks/bench_stream.py --seconds 3 --rounds 7 --quality 75 --subsampling 420
"""

from __future__ import annotations

import argparse
import io
import json
import statistics
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import simplejpeg
import torch
from PIL import Image

from raydd.core.storage import Storage
from raydd.data.encoded import Buffers
from raydd.data.images import Transform
from raydd.data.shard_data import ShardData
from raydd.data.tar_index import scan_shards


def make_shards(
    folder: Path, side: int, count: int, shards: int, quality: int, subsampling: str
) -> list[bytes]:
    """Write noisy JPEGs of ``side`` pixels as WebDataset shards; return their bytes."""
    import tarfile

    rng = np.random.default_rng(side)
    blobs = []
    for _ in range(count):
        coarse = Image.fromarray(rng.integers(0, 255, (8, 8, 3), dtype=np.uint8)).resize(
            (side, side), Image.Resampling.BICUBIC
        )
        noisy = np.clip(
            np.asarray(coarse).astype(int) + rng.integers(-10, 10, (side, side, 3)), 0, 255
        ).astype(np.uint8)
        blobs.append(
            simplejpeg.encode_jpeg(np.ascontiguousarray(noisy), quality, "RGB", subsampling)
        )
    for number in range(shards):
        with tarfile.open(
            folder / f"train-{number:06d}.tar", "w", format=tarfile.USTAR_FORMAT
        ) as tar:
            for i in range(number, count, shards):
                for name, content in (
                    (f"{i:08d}.jpg", blobs[i]),
                    (f"{i:08d}.cls", str(i % 10).encode()),
                ):
                    member = tarfile.TarInfo(name)
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
    return blobs


Rates = tuple[float, float]


def rates(count: int, started: tuple[float, float]) -> Rates:
    """Return images per second of wall time and of processor time since ``started``."""
    return count / (time.perf_counter() - started[0]), count / (time.process_time() - started[1])


def plain(blobs: list[bytes], side: int, threads: int) -> Rates:
    """Return the rates of decoding alone."""

    def run(part: list[bytes]) -> None:
        picture = Buffers().array((side, side, 3))
        for blob in part:
            simplejpeg.decode_jpeg(blob, "RGB", buffer=picture)

    started = (time.perf_counter(), time.process_time())
    if threads == 1:
        run(blobs)
    else:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(run, [blobs[i::threads] for i in range(threads)]))
    return rates(len(blobs), started)


def streamed(data: ShardData, batch: int) -> Rates:
    """Return the rates of a whole pass."""
    started = (time.perf_counter(), time.process_time())
    seen = sum(len(labels) for _, labels in data.stream(0, 1, batch=batch))
    return rates(seen, started)


def measure(
    side: int, count: int, threads: int, options: argparse.Namespace
) -> dict[str, float | str]:
    """Return medians over interleaved rounds for one image size."""
    with tempfile.TemporaryDirectory() as folder:
        blobs = make_shards(Path(folder), side, count, 4, options.quality, options.subsampling)
        files = Storage(folder)
        scanned = scan_shards(files, [f"train-{i:06d}.tar" for i in range(4)])
        transform = Transform(channels=3, height=side, width=side)
        data = ShardData(
            files, scanned.index, scanned.digest, transform, skip=False, threads=threads
        )
        streamed(data, options.batch)
        pairs = [
            (plain(blobs, side, threads), streamed(data, options.batch))
            for _ in range(options.rounds)
        ]
    return {
        "side": side,
        "quality": options.quality,
        "subsampling": options.subsampling,
        "bytes_per_image": sum(map(len, blobs)) / len(blobs),
        "threads": threads,
        "plain_images_per_s": statistics.median(p[0] for p, _ in pairs),
        "stream_images_per_s": statistics.median(s[0] for _, s in pairs),
        "stream_over_plain": statistics.median(s[0] / p[0] for p, s in pairs),
        "stream_over_plain_best": max(s[0] for _, s in pairs) / max(p[0] for p, _ in pairs),
        "stream_over_plain_cpu": statistics.median(s[1] / p[1] for p, s in pairs),
    }


def main() -> None:
    """Measure 64- and 224-pixel JPEG shards and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=1.5, help="length of one round, about")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--quality", type=int, default=90, help="of the JPEGs")
    parser.add_argument(
        "--subsampling", default="444", choices=("444", "422", "420"), help="of the JPEGs' colours"
    )
    parser.add_argument("--json", type=Path, help="write the figures there")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for side, rate in ((64, 18_000), (224, 1_700)):
        for threads in options.threads:
            rows.append(measure(side, int(options.seconds * rate), threads, options))
    lines = [
        "side  threads  bytes/image  plain img/s  stream img/s  stream/plain  same, processor time  best round/best"
        " round"
    ]
    for row in rows:
        figures = f"{row['plain_images_per_s']:11.0f}  {row['stream_images_per_s']:12.0f}"
        figures += f"  {row['stream_over_plain']:12.3f}"
        figures += f"  {row['stream_over_plain_cpu']:20.3f}  {row['stream_over_plain_best']:21.3f}"
        lines.append(
            f"{row['side']:4.0f}  {row['threads']:7.0f}  {row['bytes_per_image']:11.0f}  {figures}"
        )
    sys.stdout.write("\n".join(lines) + "\n")
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
