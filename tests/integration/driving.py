"""Drivers as processes of their own: start the command line, watch it, kill it, look at what it left."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil
from click.testing import CliRunner

REPOSITORY = Path(__file__).resolve().parents[2]
CONFIG = str(REPOSITORY / "jobs" / "quickstart.yaml")
TINY = (
    "tracking.uri=none",
    "method.network=convnet1_w8",
    "method.iterations=250",
    "method.classes_per_unit=2",
    "evaluation.epochs=2",
    "evaluation.repeats=1",
    "evaluation.every=125",
    "compute.checkpoint_every=0.5",
)
"""Overrides of the quickstart job: 5 units of 250 updates each, 1 to 10 s on one core."""


def overrides(folder: Path | str, workers: int, *more: str) -> list[str]:
    """Return the tiny job's overrides, with output and store below ``folder`` (a path or a URL)."""
    return [
        *TINY,
        f"output={folder}/out",
        f"store={folder}/store",
        f"compute.workers={workers}",
        *more,
    ]


def environment(**extra: str) -> dict[str, str]:
    """Return this process's environment without what would lead a driver to a cluster or a storage of others."""
    foreign = ("AWS_", "RAY_ADDRESS", "RAY_AUTH", "RAYDD_RAY_TMP", "MLFLOW_TRACKING")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
    kept["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), kept.get("PATH", "")])
    return kept | {"PYTHONUNBUFFERED": "1"} | extra


class Driver:
    """A running ``python -m raydd.<verb>``; its output goes to a file, so that a full pipe never stops it."""

    def __init__(
        self,
        arguments: Sequence[str],
        log: Path,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
    ) -> None:
        self.log, self.begun = log, time.monotonic()
        with log.open("ab") as file:
            command, given = [sys.executable, "-m", *arguments], dict(env or environment())
            place = cwd or REPOSITORY
            # A process group of its own, as a shell gives each command.
            self.process = subprocess.Popen(
                command,
                stdout=file,
                stderr=subprocess.STDOUT,
                env=given,
                cwd=place,
                process_group=0,
            )

    @property
    def text(self) -> str:
        """All that the driver has printed."""
        return self.log.read_text(errors="replace")

    def wait(self, timeout: float) -> int:
        """Return the exit code; fail with the driver's output if it does not end."""
        try:
            return self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"still running after {timeout} s:\n{self.text}") from None

    def until(
        self, what: str, happened: Callable[[], Any], timeout: float = 480, every: float = 0.1
    ) -> Any:
        """Return what ``happened`` returns once it is true, asked ``every`` s; fail if the driver
        ends before, or in ``timeout`` s.
        """
        end = time.monotonic() + timeout
        while True:
            ended = self.process.poll() is not None
            value = happened()
            if value:
                return value
            if ended or time.monotonic() > end:
                self.kill()
                raise AssertionError(
                    f"{'ended' if ended else 'still running'} before {what}:\n{self.text}"
                )
            time.sleep(every)

    def cluster(self) -> list[psutil.Process]:
        """Return the processes below the driver: its cluster (but for Ray's agents, which end in their own time)."""
        return [
            process
            for process in psutil.Process(self.process.pid).children(recursive=True)
            if "Agent" not in process.name()
        ]

    def workers(self) -> list[psutil.Process]:
        """Return the workers of the driver's group."""
        return [process for process in self.cluster() if "RayTrainWorker" in _title(process)]

    def kill(self) -> None:
        """SIGKILL the driver alone."""
        with contextlib.suppress(ProcessLookupError):
            self.process.kill()
        self.process.wait()


def _title(process: psutil.Process) -> str:
    with contextlib.suppress(psutil.Error):  # it has ended meanwhile
        return " ".join(process.cmdline())
    return ""


def distill(
    log: Path, *args: str, env: Mapping[str, str] | None = None, cwd: Path | None = None
) -> Driver:
    """Start ``python -m raydd.distill`` on the quickstart job with overrides."""
    return Driver(["raydd.distill", "--config", CONFIG, *args], log, env, cwd)


def finish(driver: Driver, timeout: float = 480) -> str:
    """Wait for a driver to succeed; return its output."""
    code = driver.wait(timeout)
    assert code == 0, f"exit code {code}:\n{driver.text}"
    return driver.text


def refusal(driver: Driver, timeout: float = 240, code: int = 2) -> str:
    """Wait for a driver that refuses; return its message: one, without a traceback."""
    assert driver.wait(timeout) == code, driver.text
    assert "Traceback" not in driver.text, driver.text
    assert driver.text.count("error: ") == 1, driver.text
    return driver.text[driver.text.index("error: ") :]


def here(verb: str, *arguments: str, code: int = 0) -> str:
    """Run ``raydd <verb>`` in this process, which has imported what it needs; return its output.

    For commands that are neither killed nor in another environment.
    """
    done = CliRunner().invoke(importlib.import_module(f"raydd.{verb}").main, arguments)
    assert done.exit_code == code, done.output
    return done.output


def refused(*args: str, code: int = 2) -> str:
    """Return the message of a quickstart job with overrides that refuses in this process: one, without a traceback."""
    text = here("distill", "--config", CONFIG, *args, code=code)
    assert "Traceback" not in text, text
    assert text.count("error: ") == 1, text
    return text[text.index("error: ") :]


def markers(store: Path) -> dict[str, int]:
    """Return the markers below a local store (of outputs that are done) and when each was written, in ns."""
    return {
        str(path.relative_to(store)): path.stat().st_mtime_ns
        for path in (store / "units").rglob("*.json")
    }


def records(output: Path) -> list[dict[str, Any]]:
    """Return the lines of a job's log."""
    return [json.loads(line) for line in (output / "log.jsonl").read_text().splitlines()]


def left(processes: Sequence[psutil.Process], timeout: float = 60) -> list[psutil.Process]:
    """Return the processes that do not end within ``timeout`` s."""
    return list(psutil.wait_procs(processes, timeout)[1])


def free_ports(count: int) -> Iterator[int]:
    """Yield ports that are free, as is each plus 10,000 (where SeaweedFS puts gRPC), outside those that
    the system hands out and that Ray gives its workers.
    """
    taken: set[int] = set()
    while len(taken) < count:
        port = random.randrange(
            20_000, 22_700
        )  # not seeded: two sessions on a machine must not meet
        if port not in taken and all(map(_is_free, (port, port + 10_000))):
            taken.add(port)
            yield port


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


def end(process: subprocess.Popen[bytes], how: signal.Signals, timeout: float = 30) -> None:
    """Send a signal to a process that a test started, and wait for its end, which is forced after ``timeout`` s."""
    if process.poll() is not None:
        return
    process.send_signal(how)
    try:
        process.wait(timeout)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
