"""Where a run is: ``raydd status runs/quickstart``."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from typing import Any

import click

from raydd.core.command import EXIT_INTERRUPTED, command_errors, setup_logging
from raydd.core.errors import refusing


@click.command("status", context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("output")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, a line for each look.")
@click.option(
    "--watch",
    type=click.FloatRange(min=0.5),
    metavar="SECONDS",
    help="Look again every so many seconds, until the run no longer runs.",
)
def main(output: str, as_json: bool, watch: float | None) -> None:
    """Print how far the run in OUTPUT is: stages, units, rates, time left, losses and accuracies.

    OUTPUT is a path or URL of a run of raydd distill, raydd evaluate or raydd sweep. Reads its
    folder and its store, needs no data, and writes nothing. Exit code: 0 finished, 1 failed, 2 no run is there, 3
    stopped before its end, 4 running.
    """
    setup_logging()
    with command_errors():
        from raydd.runtime import run_status

        try:
            while True:
                values, lines, code = _look(output)
                if watch is not None and not as_json:
                    click.clear()
                click.echo(json.dumps(values()) if as_json else "\n".join(lines()))
                if watch is None or code != run_status.EXIT_CODES["running"]:
                    break
                time.sleep(watch)
        except KeyboardInterrupt:
            sys.exit(EXIT_INTERRUPTED)
    sys.exit(code)


def _look(output: str) -> tuple[Callable[[], Any], Callable[[], list[str]], int]:
    """Return how to say where a run or a sweep is, as JSON values and as lines, and the exit code."""
    from functools import partial

    from raydd.core.storage import Storage
    from raydd.core.urls import check_url
    from raydd.runtime import run_status
    from raydd.runtime.sweep import sweep_status

    with refusing():
        check_url(output, "output")
        if sweep_status.is_sweep(Storage(output)):
            sweep = sweep_status.sweep_status(Storage(output))
            return (
                partial(sweep_status.as_dict, sweep),
                partial(sweep_status.as_lines, sweep),
                run_status.EXIT_CODES[sweep.state],
            )
        run = run_status.run_status(output)
    return partial(run_status.as_dict, run), partial(run_status.as_lines, run), run.code


if __name__ == "__main__":
    sys.exit(main())
