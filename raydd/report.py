"""A run as a page: ``raydd report runs/quickstart``."""

from __future__ import annotations

import sys

import click

from raydd.core.command import command_errors, setup_logging
from raydd.core.errors import ConfigError, refusing


@click.command("report", context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("output")
@click.option(
    "--to", metavar="FILE", help="Write the page to this file or URL (default: OUTPUT/report.html)."
)
def main(output: str, to: str | None) -> None:
    """Write what the run in OUTPUT did and reached as one HTML file that needs no network.

    OUTPUT is a path or URL of a run of raydd distill, raydd evaluate or raydd sweep, finished or not.
    """
    setup_logging()
    with command_errors():
        from raydd.artifacts.run_folder import PAGE
        from raydd.core.storage import Storage, absolute, join
        from raydd.runtime.page_file import page_of

        with refusing():
            page, state = page_of(output)
            target = join(absolute(output), PAGE) if to is None else absolute(to)
            folder, _, name = target.rpartition("/")
            if not name or not folder:
                raise ConfigError(f"--to: '{to}' names no file")
            Storage(folder).put(name, page.encode())
    told = "" if state == "finished" else f" ({state})"
    click.echo(f"wrote {target}{told}, {len(page.encode()) / 1e6:.1f} MB")


if __name__ == "__main__":
    sys.exit(main())
