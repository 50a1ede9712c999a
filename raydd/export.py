"""``raydd export``: write a distilled set in a format of others."""

from __future__ import annotations

from typing import Any

import click

from raydd.core.command import (
    command_errors,
    set_options,
)
from raydd.core.errors import refusing


@click.command("export", context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("source")
@click.argument("out")
@click.option(
    "--to",
    required=True,
    metavar="FORMAT",
    help="pt (that DC reads), folder (of PNG by class), webdataset or safetensors.",
)
@set_options
def main(
    source: str,
    out: str,
    to: str,
    dataset: str | None,
    **stated: Any,
) -> None:
    """Read the distilled set SOURCE and write it to OUT as FORMAT.

    SOURCE is a path or URL: raydd's folder (or a run's output), a .safetensors, .pt or .tar file,
    or a folder of class folders or tar shards. OUT is a file for pt and safetensors, a folder
    otherwise; what stands there already is refused, unless it is the same.
    """
    from raydd.artifacts.foreign_posters import windows_from
    from raydd.artifacts.formats import read_set, write_set
    from raydd.artifacts.reading import Reading
    from raydd.artifacts.whitening import whitened
    from raydd.artifacts.writing import check_target, written_images

    with command_errors():
        with refusing():
            check_target(out, to)
            reading = Reading(**{**stated, "windows": windows_from(stated["windows"])})
            distilled = whitened(read_set(source, info=dataset, reading=reading, tell=click.echo))
        paths = write_set(distilled, out, to, click.echo)
    files = "1 file" if len(paths) == 1 else f"{len(paths)} files"
    if paths:
        click.echo(
            f"wrote {written_images(distilled, to)} images of {distilled.info.classes} classes as {to} to {out}"
            f" ({files})"
        )


if __name__ == "__main__":
    main()
