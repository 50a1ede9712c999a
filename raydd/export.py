"""``raydd export``: write a distilled set in a format of others."""

from __future__ import annotations

import click

from raydd.core.cli import command_errors
from raydd.core.errors import refusing


@click.command("export", context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("source")
@click.argument("out")
@click.option("--to", required=True, metavar="FORMAT", help="pt (that DC reads), folder (of PNG by class), webdataset or safetensors.")
@click.option("--dataset", metavar="NAME", help="Data set that SOURCE stands for, where its format does not say (a name of the catalog).")
@click.option("--experiment", type=int, default=-1, show_default=True, help="Repetition to take from a .pt file that lists several.")
def main(source: str, out: str, to: str, dataset: str | None, experiment: int) -> None:
    """Read the distilled set SOURCE and write it to OUT as FORMAT.

    SOURCE is a path or URL: raydd's folder (or a run's output), a .safetensors, .pt or .tar file, or a folder of class
    folders or tar shards. OUT is a file for pt and safetensors, an empty or new folder otherwise.
    """
    from raydd.artifacts.formats import read_set, write_set

    with command_errors():
        with refusing():
            distilled = read_set(source, info=dataset, experiment=experiment)
        paths = write_set(distilled, out, to)
    files = "1 file" if len(paths) == 1 else f"{len(paths)} files"
    click.echo(f"wrote {len(distilled)} images of {distilled.info.classes} classes as {to} to {out} ({files})")


if __name__ == "__main__":
    main()
