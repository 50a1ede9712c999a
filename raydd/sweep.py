"""Search keys of a job: ``python -m raydd.sweep --config jobs/x.yaml --space tune_spaces/y.yaml [key=value …]``."""

from __future__ import annotations

import sys
from dataclasses import replace

import click

from raydd.core.command import EXIT_MISSING, command_errors, setup_logging
from raydd.core.errors import refusing


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--config", required=True, metavar="FILE", help="Job file (YAML).")
@click.option(
    "--space",
    required=True,
    metavar="FILE",
    help="Space file (YAML): which keys are searched, such as tune_spaces/quickstart.yaml.",
)
@click.option(
    "--dry-run", is_flag=True, help="Print trials, shared stages, time and storage, and stop."
)
@click.option(
    "--refit", is_flag=True, help="In the end distil the winner anew, of all training images."
)
@click.option("-v", "--verbose", is_flag=True, help="Also print debugging messages and tracebacks.")
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
def main(
    config: str,
    space: str,
    dry_run: bool,
    refit: bool,
    verbose: bool,
    overrides: tuple[str, ...],
) -> None:
    """Search keys of a job as a space file says; the same command goes on where an earlier run of it stopped.

    KEY=VALUE overrides keys of the job, and, below sweep, of the space: method.iterations=500
    sweep.budget.trials=20 output=s3://bucket/sweep
    """
    setup_logging(verbose)
    with command_errors(verbose, dry_run):
        from raydd.config import read_job
        from raydd.core.errors import ConfigError
        from raydd.core.storage import absolute
        from raydd.core.yaml_tree import given
        from raydd.runtime.sweep import sweeping
        from raydd.runtime.sweep.dry import dry_run as plan_of

        own = tuple(one for one in overrides if not one.startswith("sweep."))
        of_space = tuple(
            one.removeprefix("sweep.") for one in overrides if one.startswith("sweep.")
        )
        with refusing():
            job = read_job(config, own)
            if not given(config, "output", own):
                place = absolute(f"runs/{job.job().name}_sweep")
                job = replace(job, tree={**job.tree, "output": place})
            sweep = sweeping.make_sweep(job, space, of_space)
            if refit and not sweep.space.file.winner:
                raise ConfigError(f"--refit: {space} has winner: false, so there is none")
        if dry_run:
            with refusing():
                text, absent = plan_of(sweep)
            click.echo(text)
            sys.exit(EXIT_MISSING if absent else 0)
        click.echo(sweeping.run_sweep(sweep, click.echo, refit).render())


if __name__ == "__main__":
    sys.exit(main())
