"""8-bit views of a distilled set for programs that know nothing of raydd: WebDataset tars and image folders.

Views cannot say how images are decoded, so they hold the decoded ones, as students see them. Written by raydd, they are
lossless PNG, the same bytes for the same set; read, they may be pictures of others in any format that is read.

What a method made may lie outside the range of pixels. A view keeps it: its 8 bits then stand for
``offset + scale * value / 255``, by channel (:class:`Range`), which is written beside the view and
into every sample of a tar, and undone when it is read. A set inside the range is written as it is.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from raydd.artifacts.class_folders import Tell, class_folders, class_of_folders
from raydd.artifacts.grid import MODES, png, to_image
from raydd.artifacts.pictures import SIDE_FILE, Pictures, Range, SeenPictures
from raydd.core.errors import ConfigError, DataError, TornFileError
from raydd.core.json_text import parse_json
from raydd.core.tar_members import members_of, open_tar
from raydd.core.unpacking import gunzipped
from raydd.data.catalog import DatasetInfo
from raydd.data.images import (
    EXTENSIONS,
    Orientation,
    check_jpeg,
    check_pixels,
    decode,
    orientation_of,
    turned,
)
from raydd.data.tar_samples import LABEL_KEYS

JPEG = b"\xff\xd8"
SHARD_BYTES = 1_000_000_000
PICTURES = tuple(f".{extension}" for extension in EXTENSIONS)


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    # A fresh TarInfo has time, owner and group 0: equal sets give equal bytes.
    entry = tarfile.TarInfo(name)
    entry.size = len(data)
    tar.addfile(entry, io.BytesIO(data))


def tar_shards(shown: SeenPictures, limit: int = SHARD_BYTES) -> Iterator[tuple[str, bytes]]:
    """Yield ``(train-000000.tar, its bytes)``, …: ``.png`` and ``.cls`` per sample.

    ``.json`` holds the ``soft_label`` and the range (``view``) if there are any.

    A shard is closed by the sample with which it reaches ``limit`` bytes.
    """
    shard, buffer = 0, io.BytesIO()
    tar = tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT)  # noqa: SIM115 (replaced while looping)
    for i, (pixels, label, soft) in enumerate(shown):
        key = f"{i:06d}"
        _add(tar, f"{key}.png", png(to_image(pixels)))
        _add(tar, f"{key}.cls", str(label).encode())
        values: dict[str, Any] = {} if soft is None else {"soft_label": soft}
        if shown.range is not None:
            values["view"] = shown.range.to_json()
        if values:
            _add(tar, f"{key}.json", json.dumps(values).encode())
        if buffer.tell() >= limit and i + 1 < len(shown):
            tar.close()
            yield f"train-{shard:06d}.tar", buffer.getvalue()
            shard, buffer = shard + 1, io.BytesIO()
            tar = tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT)  # noqa: SIM115
    tar.close()
    yield f"train-{shard:06d}.tar", buffer.getvalue()


def folder_files(shown: SeenPictures, info: DatasetInfo) -> Iterator[tuple[str, bytes]]:
    """Yield ``(cat/000012.png, its bytes)``, …: folders of :func:`class_folders`, files in the order of each class."""
    folders = class_folders(info)
    seen = [0] * info.classes
    for pixels, label, _ in shown:
        yield f"{folders[label]}/{seen[label]:06d}.png", png(to_image(pixels))
        seen[label] += 1


def decode_picture(
    data: bytes, channels: int, what: str, orientation: Orientation = "ignore"
) -> Tensor:
    """Return a picture file's pixels, uint8 ``[C, H, W]``; ``DataError`` naming ``what`` if it cannot be decoded.

    ``orientation``: ``exif`` turns it as it says it is to be shown.
    """
    import numpy as np
    from PIL import Image

    if channels not in MODES:
        raise ConfigError(f"pictures cannot hold images of {channels} channels; allowed: 1 to 4")
    try:
        if channels in (1, 3) and data[:2] != JPEG:
            array = decode(data, channels, orientation)
        else:  # of JPEG, training code that is compared with sees what Pillow makes
            if data[:2] == JPEG:
                check_jpeg(data)
            with Image.open(
                io.BytesIO(data), formats=("JPEG", "PNG", "WEBP", "TIFF", "GIF")
            ) as image:
                check_pixels(image.height, image.width)
                array = np.array(image.convert(MODES[channels]))
            array = turned(array, orientation_of(data)) if orientation == "exif" else array
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"{what} cannot be decoded: {error}") from error
    pixels = torch.from_numpy(array)
    return pixels.unsqueeze(0) if pixels.ndim == 2 else pixels.permute(2, 0, 1).contiguous()


def _stack(items: Sequence[tuple[str, Tensor]]) -> Tensor:
    first_name, first = items[0]
    for name, pixels in items:
        if pixels.shape != first.shape:
            raise DataError(
                f"{name} is {_size(pixels)} pixels but {first_name} is {_size(first)}; a set has images of one size"
            )
    return torch.stack([pixels for _, pixels in items])


def _size(pixels: Tensor) -> str:
    return f"{pixels.shape[2]}×{pixels.shape[1]}"


@dataclass
class _Sample:
    pixels: Tensor | None = None
    label: int | None = None
    soft: list[float] | None = None
    range: Range | None = None

    def labelled(self, labels: Iterable[int], what: str) -> None:
        for label in labels:
            if self.label not in (None, label):
                raise DataError(f"{what} has two labels, {self.label} and {label}")
            self.label = label

    @property
    def empty(self) -> bool:
        return self.pixels is None and self.label is None and self.soft is None


def read_tars(
    shards: Iterable[tuple[str, bytes]], channels: int, orientation: Orientation = "ignore"
) -> Pictures:
    """Read ``(URL, bytes)`` of WebDataset tars: a picture and a label per sample, others ignored.

    A label is ``.cls``, or ``.json`` with ``soft_label`` or one of :data:`LABEL_KEYS`. The two
    share their name up to the first dot, or, where none do, up to the last (``img.0001.jpg``,
    ``img.0001.cls``). Raises ``TornFileError`` for a broken tar and ``DataError``, naming shard and
    key, for a broken or incomplete sample.
    """
    members = [
        (url, name, content) for url, data in shards for name, content in _members(url, data)
    ]
    for split in (str.partition, str.rpartition):
        samples: dict[tuple[str, str], _Sample] = {}
        for url, name, content in members:
            folder, _, base = name.rpartition("/")
            stem, _, kind = split(base, ".")
            _take(
                samples,
                (url, f"{folder}/{stem}".lstrip("/")),
                kind.lower(),
                content,
                channels,
                orientation,
            )
        kept = {key: sample for key, sample in samples.items() if not sample.empty}
        if kept:
            return _assemble(kept)
    raise DataError(
        "no sample with a picture and a label in "
        + (", ".join(sorted({url for url, _, _ in members})) or "an empty tar")
    )


def _members(url: str, data: bytes) -> Iterator[tuple[str, bytes]]:
    """Yield name and content of a tar's files; ``TornFileError`` for one that is not whole."""
    try:
        data = gunzipped(data, url) if data[:2] == b"\x1f\x8b" else data
        with open_tar(io.BytesIO(data)) as tar:
            end = 0
            for member in members_of(tar):
                end = -(-(member.offset_data + (member.size if member.isreg() else 0)) // 512) * 512
                if member.sparse is not None:
                    raise DataError(
                        f"{url}: '{member.name}' is stored as a sparse file; pack the tar without --sparse"
                    )
                content = tar.extractfile(member) if member.isreg() else None
                if content is not None:
                    yield member.name, content.read()
            # A tar cut between two members reads like a shorter one, but for the missing block of zeros at its end.
            if data[end : end + 512] != bytes(512):
                raise TornFileError(
                    f"{url} is torn: it ends after {len(data)} bytes without the mark of a tar's end"
                )
    except tarfile.TarError as error:
        raise TornFileError(f"{url} is torn or not a tar file: {error}") from error


def _take(
    samples: dict[tuple[str, str], _Sample],
    key: tuple[str, str],
    kind: str,
    data: bytes,
    channels: int,
    orientation: Orientation,
) -> None:
    sample = samples.setdefault(key, _Sample())
    what = f"{key[0]}: sample '{key[1]}' (.{kind})"
    try:
        if f".{kind}" in PICTURES:
            if sample.pixels is not None:
                raise DataError(f"{key[0]}: sample '{key[1]}' has two images")
            sample.pixels = decode_picture(data, channels, what, orientation)
        elif kind == "cls":
            sample.labelled([int(data)], f"{key[0]}: sample '{key[1]}'")
        elif kind == "json":
            values = parse_json(data)
            values = values if isinstance(values, dict) else {}
            sample.soft = (
                [float(v) for v in values["soft_label"]] if "soft_label" in values else None
            )
            sample.range = (
                Range.from_json(values["view"], channels, what)
                if _is_range(values.get("view"))
                else None
            )
            named = [values[name] for name in LABEL_KEYS if isinstance(values.get(name), int)]
            sample.labelled(named, f"{key[0]}: sample '{key[1]}'")
    except (ValueError, TypeError) as error:
        raise DataError(f"{what} cannot be read: {error}") from error


def _is_range(value: Any) -> bool:
    """Return whether a sample's ``view``, which may be anything in files of others, is meant as a range."""
    return isinstance(value, dict) and {"offset", "scale"} <= set(value)


def _assemble(samples: dict[tuple[str, str], _Sample]) -> Pictures:
    images, labels, softs = [], [], []
    for (url, key), sample in samples.items():
        if sample.pixels is None or (sample.label is None and sample.soft is None):
            raise DataError(
                f"{url}: sample '{key}' has no {'picture' if sample.pixels is None else 'label (.cls)'}"
            )
        images.append((f"{url}: sample '{key}'", sample.pixels))
        if sample.soft is not None:
            softs.append(sample.soft)
        labels.append(
            sample.label
            if sample.label is not None
            else max(range(len(softs[-1])), key=softs[-1].__getitem__)
        )
    ranges = {sample.range for sample in samples.values()}
    if len(ranges) > 1:
        raise DataError("samples are 8-bit views of different ranges: they are of different sets")
    if softs and (len(softs) != len(images) or len({len(soft) for soft in softs}) != 1):
        raise DataError("soft labels are missing from some samples, or differ in length")
    return Pictures(
        _stack(images), torch.tensor(labels), torch.tensor(softs) if softs else None, ranges.pop()
    )


def read_folder(
    files: Iterable[tuple[str, str, bytes]],
    info: DatasetInfo,
    side: Mapping[str, Any] | None = None,
    empty: Sequence[str] = (),
    orientation: Orientation = "ignore",
    tell: Tell | None = None,
) -> Pictures:
    """Read ``(class folder, name to show, bytes)`` of picture files; labels by
    :func:`class_of_folders`, images by label then file.

    ``side``: what :data:`SIDE_FILE` holds beside the data set's facts. ``empty``: class folders
    without a picture, which count where folders are numbered in sorted order.
    """
    items, side = list(files), side or {}
    names = sorted({folder for folder, _, _ in items})
    try:
        labels = class_of_folders(names, info, side.get("folders", ()), tell)
    except DataError:
        if not empty or side.get("folders"):
            raise
        labels = class_of_folders(sorted({*names, *empty}), info, tell=tell)
    items.sort(key=lambda item: (labels[item[0]], item[1]))
    images = [
        (name, decode_picture(data, info.channels, name, orientation)) for _, name, data in items
    ]
    found = (
        Range.from_json(side["view"], info.channels, SIDE_FILE)
        if side.get("view") is not None
        else None
    )
    return Pictures(
        _stack(images), torch.tensor([labels[folder] for folder, _, _ in items]), range=found
    )
