"""SIGTERM and Ctrl-C in a plain process: the state is saved within the time that preemption leaves."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
from dying import Life, litter, places_of, plan_of, published, small_job
from fault_rows import Row, Tally

from raydd.config import load_job
from raydd.runtime.control import Control
from raydd.runtime.pipeline import run_job
from raydd.runtime.session import Interrupted

GRACE = 3.0
"""Seconds between SIGTERM and SIGKILL of `ray job stop`."""
STAGES = {
    "dm": "distill/MatchDistributions",
    "dsa": "distill/MatchGradients",
    "edc": "relabel/Relabel",
    "rat_bptt": "distill/Unroll",
    "sre2l": "recover/MatchStatistics",
    "itgan": "init/Invert",
}
ROWS = [
    Row(
        "methods",
        f"{name}, {stage}, compute.workers=0",
        sent.name,
        f"the update under work is ended and in a checkpoint within {GRACE:.0f} s; the same command goes on from it"
        " to the same bytes",
        "test_a_signal_saves_the_state",
        data=(name, stage, sent),
    )
    for number, (name, stage) in enumerate(STAGES.items())
    for sent in ([signal.SIGTERM, signal.SIGINT][number % 2],)
]


@dataclass
class Signalled(Life):
    """A life that is sent a signal in the update ``t`` of a stage, once."""

    stage: str = ""
    number: int = 0
    at: int = 1
    sent: float = 0.0
    key: str = ""

    def step(self, stage: str, unit: str, t: int) -> None:
        """Hear of an update; send the signal."""
        super().step(stage, unit, t)
        if stage == self.stage and t == self.at and not self.sent:
            self.sent, self.key = time.monotonic(), self.current
            os.kill(os.getpid(), self.number)


def run_shown(job: list[str], life: Life) -> None:
    """Run a job in a life, as the command line does: signals stop it."""
    with life.lived():
        run_job(load_job(None, job), lambda line: None, Control(show=True))


@pytest.mark.slow
@pytest.mark.parametrize("row", ROWS, ids=str)
def test_a_signal_saves_the_state(row: Row, tmp_path: Path, tally: Tally) -> None:
    name, stage, number = row.data
    whole, folder = tmp_path / "whole", tmp_path / "stopped"
    undisturbed = Life(places_of(plan_of(name, whole)))
    run_shown(small_job(name, whole), undisturbed)
    life = Signalled(places_of(plan_of(name, folder)), stage=stage, number=int(number))
    with pytest.raises(Interrupted):
        run_shown(small_job(name, folder), life)
    seconds = time.monotonic() - life.sent
    assert life.sent
    assert seconds < GRACE
    states = (folder / "store" / "units" / life.key[:2] / life.key).glob("state-*.safetensors")
    assert max(int(path.stem.removeprefix("state-")) for path in states) == life.at + 1
    assert not (folder / "out" / "lock.json").exists()
    again = Life(places_of(plan_of(name, folder)))
    run_shown(small_job(name, folder), again)
    assert life.steps.total() + again.steps.total() == undisturbed.steps.total(), "nothing is lost"
    assert published(folder) == published(whole)
    assert litter(folder) == []
    tally(row, 1)
