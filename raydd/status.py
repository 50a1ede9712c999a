"""Where a run is: ``raydd status runs/quickstart``."""

from __future__ import annotations

import json
import sys
import time

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

    OUTPUT is a path or URL of a run of raydd distill or raydd evaluate. Reads its folder and its
    store, needs no data, and writes nothing. Exit code: 0 finished, 1 failed, 2 no run is there, 3
    stopped before its end, 4 running.
    """
    setup_logging()
    with command_errors():
        from raydd.runtime.run_status import as_dict, as_lines, run_status

        try:
            while True:
                with refusing():
                    status = run_status(output)
                if watch is not None and not as_json:
                    click.clear()
                click.echo(json.dumps(as_dict(status)) if as_json else "\n".join(as_lines(status)))
                if watch is None or status.state != "running":
                    break
                time.sleep(watch)
        except KeyboardInterrupt:
            sys.exit(EXIT_INTERRUPTED)
    sys.exit(status.code)


if __name__ == "__main__":
    sys.exit(main())
