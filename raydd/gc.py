"""Free a store's space: ``raydd gc runs/store``."""

from __future__ import annotations

import sys

import click

from raydd.core.command import command_errors, setup_logging
from raydd.core.errors import refusing


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("store", default="runs/store")
@click.option(
    "--forget",
    multiple=True,
    metavar="OUTPUT",
    help="Also drop what the unfinished run of this output folder needs.",
)
@click.option("--dry-run", is_flag=True, help="Only say what would be removed.")
def main(store: str, forget: tuple[str, ...], dry_run: bool) -> None:
    """Remove from a store every unit that no unfinished run needs. Published sets do not depend on it."""
    setup_logging()
    with command_errors():
        from raydd.artifacts.rendering import format_bytes
        from raydd.core.keeping import collect
        from raydd.core.storage import absolute
        from raydd.core.store import Store

        with refusing():
            removed = collect(
                Store(store), forget=[absolute(output) for output in forget], dry_run=dry_run
            )
        verb = "would remove" if dry_run else "removed"
        click.echo(
            f"{verb} {removed.units} units ({removed.objects} files, {format_bytes(removed.size)}); {removed.kept} are"
            " still needed"
        )


if __name__ == "__main__":
    sys.exit(main())
