"""A finished job of many units is started again, its store and output on S3, each request answered 20 ms later.

python tests/benchmarks/bench_resume.py --json docs/benchmarks/resume.json

The job is DM's on pictures of 8x8 pixels in as many classes as there are units, with one student. SeaweedFS keeps the
objects; between it and the second run stands a forwarder that lets each of a connection's bursts wait. ``seconds``: of
the second run, by the clock and of processors, which computes nothing; ``requests``: bursts that were passed on.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import importlib.util
import io
import json
import os
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "integration"))
sys.path.insert(0, str(Path(__file__).parent))

import numpy as np
from harness import machine
from PIL import Image

from raydd.config import load_job
from raydd.core.events import Event
from raydd.runtime.control import Control
from raydd.runtime.pipeline import run_job


class Forwarder:
    """Passes on what connections to it say to a port of this machine, each burst after ``delay`` s."""

    def __init__(self, port: int, delay: float) -> None:
        self.upstream, self.delay, self.bursts, self.port = port, delay, 0, 0
        self._ready = threading.Event()
        threading.Thread(target=lambda: asyncio.run(self._serve()), daemon=True).start()
        self._ready.wait()

    async def _serve(self) -> None:
        server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        self._ready.set()
        await server.serve_forever()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection("127.0.0.1", self.upstream)
        with contextlib.suppress(ConnectionError):
            await asyncio.gather(
                self._pass(reader, back, self.delay), self._pass(there, writer, 0.0)
            )

    async def _pass(
        self, source: asyncio.StreamReader, target: asyncio.StreamWriter, delay: float
    ) -> None:
        while data := await source.read(1 << 20):
            if delay:
                self.bursts += 1
                await asyncio.sleep(delay)
            target.write(data)
            await target.drain()
        target.close()


def s3_server(folder: Path) -> Any:
    """Return a SeaweedFS that the integration tests know how to start."""
    name = "integration_servers"
    path = Path(__file__).parents[1] / "integration" / "conftest.py"
    place = importlib.util.spec_from_file_location(name, path)
    assert place is not None
    assert place.loader is not None
    module = importlib.util.module_from_spec(place)
    sys.modules[name] = module
    place.loader.exec_module(module)
    return module.S3Server(folder)


def pictures(root: Path, classes: int) -> None:
    """Write one picture of each class and split."""
    draw = np.random.default_rng(0)
    for split in ("train", "test"):
        for label in range(classes):
            file, inside = io.BytesIO(), root / split / f"{label:04d}"
            inside.mkdir(parents=True)
            pixels = draw.integers(0, 256, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(file, "PNG")
            (inside / "0.png").write_bytes(file.getvalue())


def run(words: list[str]) -> tuple[int, float, float]:
    """Run a job; return how many outputs were computed, seconds by the clock and of processors."""
    computed = 0

    def on_event(event: Event) -> None:
        nonlocal computed
        computed += event.kind == "output" and not event.cached

    clock, processor = time.monotonic(), time.process_time()
    run_job(load_job(None, words), lambda line: None, Control(on_event=on_event))
    return computed, time.monotonic() - clock, time.process_time() - processor


def measured(units: int, delay: float, folder: Path) -> dict[str, Any]:
    """Return what a second run of a finished job of ``units`` units took."""
    import s3fs

    pictures(folder / "data", units)
    (folder / "s3").mkdir()
    server = s3_server(folder / "s3")
    server.start()
    try:
        os.environ.update(server.environment)
        words = [
            "dataset.name=image_folder", f"dataset.root={folder}/data", "ipc=1", "method.name=dm",
            "method.iterations=1", "method.network=convnet1_w4", "method.batch_real=1",
            "method.classes_per_unit=1", "evaluation.epochs=1", "evaluation.repeats=1",
            "evaluation.baselines=[]", "compute.workers=0", "tracking.uri=none",
            f"output={server.url('out')}", f"store={server.url('store')}",
        ]  # fmt: skip
        first = run(words)
        forwarder = Forwarder(server.port, delay)
        os.environ["AWS_ENDPOINT_URL"] = f"http://127.0.0.1:{forwarder.port}"
        s3fs.S3FileSystem.clear_instance_cache()
        again = run(words)
    finally:
        server.kill()
    if again[0]:
        raise SystemExit(f"{again[0]} outputs were computed again")
    return {
        "units": units,
        "outputs": first[0],
        "delay": delay,
        "seconds": round(again[1], 1),
        "processor_seconds": round(again[2], 1),
        "requests": forwarder.bursts,
        "first_run_seconds": round(first[1], 1),
    }


def main() -> None:
    """Measure, print, and write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path)
    parser.add_argument("--units", type=int, default=1000)
    parser.add_argument("--delay", type=float, default=0.02)
    o = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = measured(o.units, o.delay, Path(folder))
    sys.stdout.write(json.dumps(found) + "\n")
    if o.json:
        command = f"python tests/benchmarks/bench_resume.py --json {o.json}"
        record = {"command": command, "machine": machine(), **found}
        o.json.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
