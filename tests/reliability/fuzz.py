"""A coverage-guided fuzzer over all :mod:`readers`, in one process.

python tests/reliability/fuzz.py [--seconds 600] [--seed 1] [--corpus FOLDER] [--only NAME] [--record]

libFuzzer (by atheris) changes files that were whole and keeps those changes that reach new lines of raydd or of
Python's tarfile; the first byte of an input says which reader it is for. An input is wrong as :func:`watching.fault`
says; fuzzing goes on after it, and ends with exit code 1. ``--record`` writes docs/results/reliability/fuzz.json.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path

import atheris
import click

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(HERE), str(HERE.parent / "benchmarks"), str(ROOT)]
LONGEST = 1 << 14
RECORD = ROOT / "docs/results/reliability/fuzz.json"

with atheris.instrument_imports(include=["raydd", "tarfile"]):
    from watching import READERS, fault

NAMES = list(READERS)


def corpus(folder: Path) -> int:
    """Write the files to begin with; return how many they are."""
    count = 0
    for number, name in enumerate(NAMES):
        for seed in READERS[name].seeds():
            if len(seed) < LONGEST:
                (folder / f"{number:02d}-{count}").write_bytes(bytes([number]) + seed)
                count += 1
    return count


def record(
    seconds: float, seed: int, inputs: Counter[str], faults: dict[str, bytes], kept: int
) -> None:
    """Write what was tried."""
    from harness import machine

    head = subprocess.run(
        ["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True, cwd=ROOT
    )
    facts = {
        "command": f"python tests/reliability/fuzz.py --seconds {seconds:g} --seed {seed} --record",
        "fuzzer": f"libFuzzer by atheris {atheris_version()}",
        "commit": head.stdout.strip(),
        "date": datetime.now(UTC).date().isoformat(),
        "machine": machine(),
        "seconds": seconds,
        "seed": seed,
        "inputs": sum(inputs.values()),
        "files_to_begin_with": kept,
        "inputs_by_reader": dict(sorted(inputs.items())),
        "faults": sorted(faults),
    }
    RECORD.parent.mkdir(parents=True, exist_ok=True)
    RECORD.write_text(json.dumps(facts, indent=2) + "\n")


def atheris_version() -> str:
    """Return the fuzzer's version."""
    from importlib.metadata import version

    return version("atheris")


def main() -> None:
    """Fuzz."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--corpus", type=Path, help="where inputs are kept (default: a temporary folder)"
    )
    parser.add_argument("--only", help="one reader")
    parser.add_argument("--record", action="store_true")
    o = parser.parse_args()
    folder = o.corpus or Path(tempfile.mkdtemp(prefix="raydd-fuzz-"))
    folder.mkdir(parents=True, exist_ok=True)
    kept, only = corpus(folder), o.only and NAMES.index(o.only)
    inputs: Counter[str] = Counter()
    faults: dict[str, bytes] = {}
    until = time.monotonic() + o.seconds

    def one(data: bytes) -> None:
        if time.monotonic() > until:
            end()
        if len(data) < 2:
            return
        number = data[0] % len(NAMES) if only is None else only
        name = NAMES[number]
        inputs[name] += 1
        found = fault(name, data[1:])
        if found:
            said = f"{name}: {found}"
            what = (
                said
                if " at " not in said
                else f"{name} {said.rpartition(' at ')[2]} {said.split(':')[1]}"
            )
            if what not in faults:
                faults[what] = data[1:]
                (folder.parent / f"{folder.name}-fault-{len(faults)}").write_bytes(data[1:])
                click.echo(f"FAULT {len(faults)} ({folder}-fault-{len(faults)}): {said}")

    def end() -> None:
        click.echo(
            f"{sum(inputs.values())} inputs, {len(faults)} faults; seed {o.seed}, {o.seconds:g} s"
        )
        for name, count in sorted(inputs.items()):
            click.echo(f"  {name}: {count}")
        if o.record:
            record(o.seconds, o.seed, inputs, faults, kept)
        sys.stdout.flush()
        os._exit(1 if faults else 0)

    options = [
        f"-seed={o.seed}",
        f"-max_len={LONGEST}",
        "-timeout=60",
        "-rss_limit_mb=8192",
        "-verbosity=0",
        f"-artifact_prefix={folder}-",
    ]
    atheris.Setup([sys.argv[0], *options, str(folder)], one)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
