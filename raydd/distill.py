"""Distil a data set: ``python -m raydd.distill --config jobs/quickstart.yaml [key=value …]``."""

from __future__ import annotations

import sys

import click

from raydd.core.command import EXIT_MISSING, command_errors, setup_logging, verbose_option
from raydd.core.errors import ConfigError, refusing


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--config", required=True, metavar="FILE", help="Job file (YAML), such as jobs/quickstart.yaml."
)
@click.option(
    "--dry-run",
    is_flag=True,
    help="Print the resolved job and its plan, and stop; exit code 3 if data or weights are missing.",
)
@click.option(
    "--contact-sheet",
    "sheet",
    metavar="FILE.png",
    help="With --dry-run: a picture of a few images of each class.",
)
@click.option(
    "--device",
    metavar="NAME",
    help="With --dry-run: plan for this device (h100, h200, a100, l4, cpu), and advise on it.",
)
@verbose_option
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
def main(
    config: str,
    dry_run: bool,
    sheet: str | None,
    device: str | None,
    verbose: bool,
    overrides: tuple[str, ...],
) -> None:
    """Distil a data set as a job file says; the same command goes on where an earlier run of it stopped.

    KEY=VALUE overrides keys of the job, as in: method.lr_img=0.5 compute.workers=2 output=s3://bucket/run
    """
    setup_logging(verbose)
    with command_errors(verbose, dry_run):
        from raydd.config import load_job

        if sheet is not None:
            from raydd.artifacts.sheet import check_sheet

            check_sheet(sheet)
            if not dry_run:
                raise ConfigError(
                    "--contact-sheet needs --dry-run: it shows the data before anything is computed of them"
                )
        if device is not None and not dry_run:
            raise ConfigError(
                "--device needs --dry-run: what a run computes on is what its workers have"
            )
        job = load_job(config, overrides)
        if dry_run:
            from raydd.runtime import planning

            with refusing():
                text, absent = planning.dry_run(job, sheet, device)
            click.echo(text)
            sys.exit(EXIT_MISSING if absent else 0)
        from raydd.runtime import pipeline

        click.echo(pipeline.run_job(job, click.echo).render())


if __name__ == "__main__":
    sys.exit(main())
