"""A distilled set as one small file: its images in a few levels, or as lossy pictures (docs/per_byte.md).

``levels``: each channel's pixels are replaced by 2^bits values, the same for the whole set, and
which of them each pixel takes is coded without loss; at 8 bits the pixels themselves are. ``avif``
and ``webp``: lossy pictures. Pure functions, no disk; :mod:`raydd.artifacts.set_file` has the bytes.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace

import torch
from torch import Tensor

from raydd.artifacts.coded_facts import CodedFacts as CodedFacts
from raydd.artifacts.coded_facts import ImageCodec as ImageCodec
from raydd.artifacts.coders import coder_version, decode_pages, encode_pages
from raydd.artifacts.distilled_set import DistilledSet
from raydd.artifacts.generated import Generated
from raydd.artifacts.levels import doubled, halved, levels_of, lloyd_max
from raydd.artifacts.offsets import OFFSETS
from raydd.artifacts.reading import WHITENED
from raydd.artifacts.set_file import SetFile
from raydd.core.errors import ConfigError, DataError, TornFileError
from raydd.data.catalog import DatasetInfo


def codable(distilled: DistilledSet) -> None:
    """Raise ``ConfigError`` saying why a set's images cannot be coded, if they cannot."""
    if distilled.whitening is not None or distilled.recipe.get("space") in WHITENED:
        raise ConfigError(
            "the set's images are whitened: their values are no pixels, and levels of them would be those of a"
            " picture that no student sees; only sets of pixels, or of normalised ones, can be coded"
        )
    if isinstance(distilled.decoder, Generated):
        raise ConfigError(
            "the set stores latent vectors of a generator, which are no pixels; write its images first (raydd"
            " export --to safetensors keeps latents, --to folder writes pictures)"
        )
    if OFFSETS in distilled.extra and distilled.images.is_floating_point():
        raise ConfigError(
            "the set's offsets are floats, for images in floats: in 8 bits they need whole numbers"
        )
    if not len(distilled):
        raise ConfigError("the set holds no image")


def pixels_of(distilled: DistilledSet) -> Tensor:
    """Return the stored images as pixels in [0, 1], clamped, float64."""
    images = distilled.images
    if not images.is_floating_point():
        return images.double() / 255
    mean, std = (
        torch.tensor(values, dtype=torch.float64).view(1, -1, 1, 1)
        for values in (distilled.mean, distilled.std)
    )
    return (images.double() * std + mean).clamp(0, 1)


def encode(distilled: DistilledSet, codec: ImageCodec) -> bytes:
    """Return the file of a set; equal sets give equal bytes, with one version of the coder.

    ``ConfigError`` for a set that cannot be coded (:func:`codable`) and a coder that is not there.
    """
    codec.check()
    codable(distilled)
    tables: tuple[Tensor, ...] = ()
    levelled = codec.codec == "levels" and codec.bits != 8
    if codec.size == 1 and not levelled and not distilled.images.is_floating_point():
        small = distilled.images
    else:
        small = pixels_of(distilled)
        small = halved(small) if codec.size == 2 else small
        if levelled:
            tables, small = _levels(small, 1 << (codec.bits or 0), codec.table == "image")
        else:
            small = (small * 255).round().to(torch.uint8)
    streams = encode_pages(small, codec.coder, codec.quality or 0)
    file = SetFile.of(distilled, codec, coder_version(codec.coder), tables, streams)
    return replace(file, pixel_digest=pixel_digest(_pixels(file))).to_bytes()


def facts(data: bytes, what: str = "the file") -> CodedFacts:
    """Return what a file says of itself; ``TornFileError`` for one that is torn, ``DataError`` for what is none."""
    return SetFile.from_bytes(data, what).facts


def decode(data: bytes, info: DatasetInfo | None = None, what: str = "the file") -> DistilledSet:
    """Return the set in a file: uint8 images, labels, normalisation, decoding.

    ``info``: the data set that it stands for; else its facts are those of the file, without a name.
    ``what``: names the file in errors. ``TornFileError`` for one that is torn or changed,
    ``DataError`` for what is none, does not fit ``info``, or is decoded to other pixels than when it
    was written.
    """
    file = SetFile.from_bytes(data, what)
    try:
        images = _pixels(file)
    except TornFileError as error:
        raise TornFileError(f"{what}: {error}") from error
    if pixel_digest(images) != file.pixel_digest:
        raise DataError(
            f"{what} was written by {file.coder} and is decoded to other pixels by"
            f" {coder_version(file.codec.coder)}: install that version, or encode the set anew"
        )
    return file.distilled(images, info, what)


def _levels(images: Tensor, count: int, by_image: bool) -> tuple[tuple[Tensor, ...], Tensor]:
    """Return a table for each channel (``by_image``: of each image), and the images' levels, uint8."""
    groups = images.flatten(0, 1).unsqueeze(1) if by_image else images.transpose(0, 1)
    tables = tuple(lloyd_max(group, count) for group in groups)
    found = torch.stack(
        [levels_of(group, table) for group, table in zip(groups, tables, strict=True)]
    ).to(torch.uint8)
    return tables, found.reshape(images.shape) if by_image else found.transpose(0, 1).contiguous()


def _pixels(file: SetFile) -> Tensor:
    """Return the decoded images uint8 ``[N, C, H, W]`` of a file."""
    codec, (count, channels, height, width) = file.codec, file.shape
    sides = (height, width) if codec.size == 1 else (-(-height // 2), -(-width // 2))
    images = decode_pages(list(file.streams), codec.coder, (count, channels, *sides))
    if file.tables:
        by_image = codec.table == "image"
        groups = images.flatten(0, 1).unsqueeze(1) if by_image else images.transpose(0, 1)
        if max(int(group.max()) - len(table) for group, table in zip(groups, file.tables)) >= 0:
            raise TornFileError("it holds levels that its tables lack")
        values = torch.stack(
            [table[group.long()] for group, table in zip(groups, file.tables, strict=True)]
        )
        images = values.reshape(images.shape) if by_image else values.transpose(0, 1).contiguous()
    return doubled(images, height, width) if codec.size == 2 else images


def pixel_digest(images: Tensor) -> bytes:
    """Return the sha256, cut, of uint8 images, by which a file knows what it is decoded to."""
    return hashlib.sha256(images.contiguous().numpy().tobytes()).digest()[:8]
