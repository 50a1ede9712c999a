"""``raydd shard``: write a data set as WebDataset shards that jobs stream from any storage."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

import click

from raydd.core.command import command_errors, orientation_option

if TYPE_CHECKING:
    from raydd.data.datasets import FoundData


_KEY = re.compile(
    r"\bdataset\.(name|root|shards|size|resize|fit|on_error|orientation|download)\b(?:=(\w+))?"
)


@click.command("shard", context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("out_url")
@click.option(
    "--dataset", "name", required=True, help="Name in the catalog, image_folder or webdataset."
)
@click.option("--root", help="Folder or URL of the files as their publisher packs them.")
@click.option("--shards", help="Shards to read instead of --root (to write them anew).")
@click.option(
    "--split",
    "splits",
    multiple=True,
    help="Split to write; may be repeated. Default: all there are.",
)
@click.option(
    "--size",
    type=click.IntRange(min=1),
    help="Side of the square images to store. Default: as they are.",
)
@click.option("--resize", type=click.IntRange(min=1), help="Shorter side before the centre crop.")
@click.option("--fit", type=click.Choice(["crop", "squash"]), help="How images come to --size.")
@click.option(
    "--encoding",
    type=click.Choice(["original", "png", "jpg"]),
    default="original",
    show_default=True,
)
@click.option(
    "--quality",
    type=click.IntRange(1, 100),
    default=95,
    show_default=True,
    help="Of JPEG that is encoded here.",
)
@click.option(
    "--shard-size",
    type=click.IntRange(min=1),
    default=2048,
    show_default=True,
    help="Samples per shard.",
)
@click.option(
    "--workers",
    type=click.IntRange(min=0),
    default=0,
    help="Shards written at once. Default: one per core.",
)
@click.option(
    "--on-error", type=click.Choice(["raise", "skip"]), default="raise", show_default=True
)
@orientation_option
@click.option("--download", is_flag=True, help="Fetch missing files where the publisher allows it.")
def main(
    out_url: str,
    name: str,
    root: str | None,
    shards: str | None,
    splits: tuple[str, ...],
    size: int | None,
    resize: int | None,
    fit: Literal["crop", "squash"] | None,
    encoding: Literal["original", "png", "jpg"],
    quality: int,
    shard_size: int,
    workers: int,
    on_error: Literal["raise", "skip"],
    orientation: Literal["ignore", "exif"],
    download: bool,
) -> None:
    """Write a data set as tar shards below OUT_URL (a folder, s3://bucket/folder, ...).

    Interrupted, the same command goes on where it stopped.
    """
    from raydd.data.config import DatasetConfig
    from raydd.data.datasets import FoundData

    settings = {
        "shard_size": shard_size,
        "workers": workers,
        "encoding": encoding,
        "quality": quality,
    }
    with command_errors(), _own_options():
        config = DatasetConfig(
            name=name,
            root=root,
            shards=shards,
            size=size,
            resize=resize,
            fit=fit,
            on_error=on_error,
            orientation=orientation,
            download=download,
        )
        found = FoundData(config).fetched()
        held = found.splits
        for line in found.inventory(found.describe(), held).lines():
            click.echo(line)
        for split in splits or tuple(held):
            _write(found, out_url, split, settings)


@contextmanager
def _own_options() -> Iterator[None]:
    """Have errors about the keys of a job's ``dataset`` name this verb's options."""
    from raydd.core.errors import RayddError

    def option(found: re.Match[str]) -> str:
        key, value = found.groups()
        return f"--{'dataset' if key == 'name' else key.replace('_', '-')}{f' {value}' if value else ''}"

    try:
        yield
    except RayddError as error:
        error.args = (_KEY.sub(option, str(error)),)
        raise


def _write(found: FoundData, out_url: str, split: str, settings: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    from raydd.data.shard_writing import write_shards

    columns = (
        TextColumn(split),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("shards"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(split)

        def show(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total)

        manifest = write_shards(found, out_url, split, progress=show, **settings)
    facts = manifest["splits"][split]
    left_out = (
        f", {facts['skipped']} that could not be decoded left out" if facts["skipped"] else ""
    )
    size = sum(shard["bytes"] for shard in facts["shards"])
    click.echo(
        f"{split}: {facts['count']} images in {len(facts['shards'])} shards, {size / 1e6:.1f} MB, in"
        f" {out_url}{left_out}"
    )


if __name__ == "__main__":
    main()
