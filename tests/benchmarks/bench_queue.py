"""Reading a published queue (CIFAR-10, ten images per class, 18.5 GB) by row, from a server on this machine.

The outputs have the layout, the markers and the row checksums of real ones, but their weights are
zeros in sparse files, so that they take no disk. A worker reads what the updates of a job ask for,
in their order. Printed: what lies there, bytes that the server sent, the worker's memory before and
at most, seconds for each read.

    python tests/benchmarks/bench_queue.py --updates 20000 --json docs/benchmarks/queue.json
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import json
import os
import re
import resource
import sys
import tempfile
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import torch
from harness import machine

from raydd.core.store import Store
from raydd.core.units import Numerics, Ref
from raydd.data.catalog import entry
from raydd.methods.idm import Idm
from raydd.methods.matching.queue_matching import MatchUnderQueue
from raydd.methods.method import Problem
from raydd.networks import parameter_count
from raydd.networks.zoo import create_network
from raydd.runtime.worker import Alone, UnitContext, Worker


class Server(BaseHTTPRequestHandler):
    """Sends objects below a folder, whole or in part, and counts the bytes."""

    folder: Path
    sent = 0
    requests = 0
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = 1 << 16

    def do_HEAD(self) -> None:
        """Answer with an object's size."""
        self._answer(body=False)

    def do_GET(self) -> None:
        """Answer with an object, or the part of it that is asked for."""
        self._answer(body=True)

    def _answer(self, body: bool) -> None:
        path = self.folder / self.path.lstrip("/")
        if not path.is_file():
            self.send_error(404)
            return
        size = path.stat().st_size
        part = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        start, end = (int(part[1]), int(part[2]) + 1) if part else (0, size)
        self.send_response(206 if part else 200)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(end - start))
        if part:
            self.send_header("Content-Range", f"bytes {start}-{end - 1}/{size}")
        self.end_headers()
        if body:
            with path.open("rb") as file:
                file.seek(start)
                self.wfile.write(file.read(end - start))
            Server.sent += end - start
            Server.requests += 1

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


@functools.lru_cache
def checksum(size: int) -> str:
    """Return the sha256 of so many zeros."""
    return hashlib.sha256(bytes(size)).hexdigest()


def put(folder: Path, ref: Ref, ages: int, parameters: int, trainings: int) -> int:
    """Write an output of zeros, sparse, and its marker; return its size."""
    shapes = {"weights": ("F32", [ages, parameters]), "correct": ("I32", [ages, trainings])}
    header, end = {}, 0
    for name, (dtype, shape) in shapes.items():
        start, end = end, end + 4 * shape[0] * shape[1]
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    begin = 8 + len(text)
    path = folder / Store.folder(ref.key)
    path.mkdir(parents=True)
    with (path / "final.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(begin + end)
    rows = {
        name: {
            "dtype": dtype,
            "shape": shape,
            "begin": begin + header[name]["data_offsets"][0],
            "sha256": [checksum(4 * shape[1])] * shape[0],
        }
        for name, (dtype, shape) in shapes.items()
    }
    files = {"final.safetensors": {"size": begin + end, "sha256": ""}}
    marker = {"key": ref.key, "files": files, "seconds": 0.0, "log": [], "rows": rows}
    (path / "final.json").write_text(json.dumps(marker))
    return begin + end


def resident() -> int:
    """Return the bytes of memory that this process has now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def main() -> None:
    """Lay the queue out, read it, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--updates", type=int, default=20_000)
    parser.add_argument("--json", type=Path, help="write the figures there")
    o = parser.parse_args()
    info = entry("cifar10").info
    problem = Problem(dataset=info, ipc=10, seed=0, numerics=Numerics())
    stage = Idm(iterations=20_000).plan(problem)[-1]
    assert isinstance(stage, MatchUnderQueue)
    unit = stage.units()[0]
    parameters = parameter_count(
        create_network("convnet3", info.shape, info.classes, torch.Generator())
    )
    with tempfile.TemporaryDirectory() as name:
        Server.folder = Path(name)
        size = 0
        for ref in stage.inputs(unit).values():
            life = stage.queue.life(ref.unit)
            size += put(Server.folder, ref, len(life.ages), parameters, len(life.trained))
        disk = sum(path.stat().st_blocks * 512 for path in Server.folder.rglob("*"))
        server = ThreadingHTTPServer(("127.0.0.1", 0), Server)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        store = Store(f"http://127.0.0.1:{server.server_port}")
        worker = Worker(
            store,
            lambda: {"train": range(50_000)},  # type: ignore[arg-type, return-value, dict-item]
            None,  # type: ignore[arg-type]
            device=torch.device("cpu"),
            checkpoint_every=60.0,
        )
        read = stage.networks(UnitContext(worker, stage, unit, Alone()))
        before, begun = resident(), time.perf_counter()
        most = before
        for t in range(o.updates):
            weights, _ = read(t)
            assert weights.shape == (parameters,)
            most = max(most, resident()) if t % 20 == 0 else most
        seconds = time.perf_counter() - begun
        server.shutdown()
    result = {
        "machine": machine(),
        "networks": len(stage.inputs(unit)),
        "bytes_of_the_queue": size,
        "bytes_on_disk": disk,
        "updates": o.updates,
        "bytes_sent": Server.sent,
        "requests": Server.requests,
        "memory_before": before,
        "memory_at_most": most,
        "peak_memory_of_the_process": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "seconds_per_read": seconds / o.updates,
    }
    sys.stdout.write(json.dumps(result, indent=1) + "\n")
    if o.json:
        o.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
