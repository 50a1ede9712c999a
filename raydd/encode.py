"""``raydd encode``: a distilled set as one small file, and a folder of what it is decoded to."""

from __future__ import annotations

from typing import Any

import click

from raydd.core.command import command_errors, set_options
from raydd.core.errors import refusing


@click.command("encode", context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("source", metavar="SET")
@click.argument("out")
@click.option(
    "--codec",
    type=click.Choice(["levels", "avif", "webp"]),
    default="levels",
    show_default=True,
    help="levels: a few values per channel, coded without loss; avif, webp: lossy pictures.",
)
@click.option(
    "--bits",
    type=int,
    metavar="B",
    help="Bits of a level: 1, 2, 3, 4, or 8, the pixels (default: 2).",
)
@click.option(
    "--size",
    type=int,
    metavar="S",
    help="2 keeps images of half the size, enlarged again (default: 1).",
)
@click.option(
    "--table",
    metavar="WHOSE",
    help="set: one table of levels for each channel (default); image: one for each image.",
)
@click.option("--quality", type=int, metavar="Q", help="Of avif and webp, 0 to 100 (default: 50).")
@click.option(
    "--budget",
    metavar="BYTES",
    help="The most bits whose file has at most so many bytes, such as 8kB (1 kB is 1,000 bytes); then half the size.",
)
@click.option("--ipc", type=int, metavar="N", help="Only the first N images of each class.")
@set_options
def main(
    source: str,
    out: str,
    codec: str,
    bits: int | None,
    size: int | None,
    table: str | None,
    quality: int | None,
    budget: str | None,
    dataset: str | None,
    **stated: Any,
) -> None:
    """Write the distilled set SET as one small file, OUT/set.rdd, and beside it what it is decoded to.

    SET is a path or URL of any set that raydd evaluate reads. OUT is a folder, published as those of
    a job: raydd evaluate OUT says what the coded set is worth.
    """
    from raydd.artifacts.byte_budget import bytes_of
    from raydd.artifacts.coded_facts import ImageCodec
    from raydd.artifacts.encoding import encoded_set, publish_coded
    from raydd.artifacts.foreign_posters import windows_from
    from raydd.artifacts.formats import read_set
    from raydd.artifacts.reading import Reading
    from raydd.core.errors import ConfigError
    from raydd.core.typed_tree import build

    with command_errors():
        with refusing():
            asked = {"codec": codec, "bits": bits, "size": size, "table": table, "quality": quality}
            given = {name: value for name, value in asked.items() if value is not None}
            chosen = build(ImageCodec, given, "encode")
            most = None if budget is None else bytes_of(budget, "--budget")
            if most is not None and bits is not None:
                raise ConfigError(f"--budget={budget} chooses the bits; leave out --bits={bits}")
            chosen.check()
            reading = Reading(**{**stated, "windows": windows_from(stated["windows"])})
            distilled = read_set(source, info=dataset, reading=reading, tell=click.echo)
            coded = encoded_set(distilled, chosen, most)
        for line in publish_coded(coded, out, source):
            click.echo(line)


if __name__ == "__main__":
    main()
