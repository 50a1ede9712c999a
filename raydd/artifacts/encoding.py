"""A set that went through a codec: the file, and what it is decoded to, published together."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass, replace

from raydd.artifacts import published_folder as folder
from raydd.artifacts import published_manifest
from raydd.artifacts.byte_budget import within
from raydd.artifacts.coded_facts import CodedFacts, ImageCodec
from raydd.artifacts.detection import detect
from raydd.artifacts.distilled_set import DistilledSet
from raydd.artifacts.image_codecs import decode, encode, facts
from raydd.core.errors import ConfigError
from raydd.core.storage import Storage, join


@dataclass(frozen=True, kw_only=True)
class Encoded:
    """``distilled``: what students see of ``data``, the file."""

    distilled: DistilledSet
    data: bytes

    @property
    def facts(self) -> CodedFacts:
        """What the file says of itself."""
        return facts(self.data)


def encoded_set(distilled: DistilledSet, codec: ImageCodec, budget: int | None = None) -> Encoded:
    """Return a set as it comes out of a codec, with the data set's facts and the recipe that it had.

    ``budget``: bytes, from which the codec's bits follow. ``ConfigError`` for a set that cannot be
    coded, and where no file is so small.
    """
    if budget is None:
        data = encode(distilled, codec)
    else:
        codec, data = within(distilled, budget, codec)
    stated = {key: value for key, value in dataclasses.asdict(codec).items() if value is not None}
    recipe = {**distilled.recipe, "images": stated}
    return Encoded(distilled=replace(decode(data, distilled.info), recipe=recipe), data=data)


def coded_file(url: str) -> bytes | None:
    """Return the file of a coded set at ``url``; ``None`` for a set that is not coded."""
    source = detect(url)
    if source.format == "coded":
        return source.storage.get(source.paths[0])
    if source.format == "distilled" and source.storage.exists(folder.CODED):
        return source.storage.get(folder.CODED)
    return None


def publish_coded(coded: Encoded, out: str, source: str) -> Iterator[str]:
    """Publish a coded set in the folder ``out``; yield lines for a person.

    ``source``: where the set came from. ``ConfigError`` for a folder that holds something else.
    """
    storage, of = Storage(out), coded.facts
    there = storage.list()
    if there and not _same(storage, coded):
        raise ConfigError(
            f"{storage.url} is not empty: it holds {there[0]}; name another folder, or remove it"
        )
    said = (
        f"{of.images} images of {of.classes} classes ({of.codec.text}): {of.bytes:,} bytes,"
        f" {of.bits_per_class:,.0f} bits per class; the same images have {of.raw_bytes(8):,} bytes"
        f" at 8 bits and {of.raw_bytes(32):,} at 32"
    )
    if there:
        yield f"{storage.url} is there already, the same: {said}"
        return
    folder.publish(coded.distilled, out, coded=coded.data)
    yield f"wrote {join(storage.url, folder.CODED)}: {said}"
    found = detect(source)
    if found.format == "distilled" and found.storage.exists("labels/manifest.json"):
        yield (
            "soft labels beside the set are of the images before they were coded, and are left out; its job with"
            " images.bits makes those of the coded ones"
        )


def _same(storage: Storage, coded: Encoded) -> bool:
    return (
        storage.exists(published_manifest.MANIFEST)
        and storage.exists(folder.CODED)
        and (storage.get(folder.CODED) == coded.data)
    )
