"""8-bit views of a distilled set for programs that know nothing of raydd: WebDataset tars and image folders.

Views cannot say how images are decoded, so they hold the decoded ones, as students see them. Written by raydd, they are
lossless PNG, the same bytes for the same set; read, they may be JPEG, PNG, WebP or BMP of others.
"""

from __future__ import annotations

import io
import json
import re
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from raydd.artifacts.distilled_set import DistilledSet
from raydd.artifacts.grid import MODES, png, to_image
from raydd.core.errors import ConfigError, DataError, TornFileError
from raydd.data.catalog import CATALOG, DatasetInfo

SHARD_BYTES = 1_000_000_000
PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")


@dataclass(frozen=True)
class Pictures:
    """Pixels uint8 ``[N, C, H, W]``, hard labels int64 ``[N]`` and, where there are some, soft ones ``[N, classes]``."""

    pixels: Tensor
    labels: Tensor
    soft_labels: Tensor | None = None


def pictures(distilled: DistilledSet) -> Pictures:
    """Return what students see of a set, in 8 bits."""
    if distilled.decoding.name == "identity":
        return Pictures(distilled.to_uint8(), distilled.labels, distilled.soft_labels)
    images, targets = distilled.tensors()
    soft = targets if targets.is_floating_point() else None
    return Pictures(distilled.to_uint8(images), targets if soft is None else soft.argmax(1), soft)


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    # A fresh TarInfo has time, owner and group 0: equal sets give equal bytes.
    entry = tarfile.TarInfo(name)
    entry.size = len(data)
    tar.addfile(entry, io.BytesIO(data))


def tar_shards(shown: Pictures, limit: int = SHARD_BYTES) -> Iterator[tuple[str, bytes]]:
    """Yield ``(train-000000.tar, its bytes)``, …: ``.png`` and ``.cls`` per sample, ``.json`` with ``soft_label`` if there is one.

    A shard is closed by the sample with which it reaches ``limit`` bytes.
    """
    shard, buffer = 0, io.BytesIO()
    tar = tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT)  # noqa: SIM115 (replaced while looping)
    for i in range(len(shown.pixels)):
        key = f"{i:06d}"
        _add(tar, f"{key}.png", png(to_image(shown.pixels[i])))
        _add(tar, f"{key}.cls", str(int(shown.labels[i])).encode())
        if shown.soft_labels is not None:
            _add(tar, f"{key}.json", json.dumps({"soft_label": shown.soft_labels[i].tolist()}).encode())
        if buffer.tell() >= limit and i + 1 < len(shown.pixels):
            tar.close()
            yield f"train-{shard:06d}.tar", buffer.getvalue()
            shard, buffer = shard + 1, io.BytesIO()
            tar = tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT)  # noqa: SIM115
    tar.close()
    yield f"train-{shard:06d}.tar", buffer.getvalue()


def folder_files(shown: Pictures, classes: int) -> Iterator[tuple[str, bytes]]:
    """Yield ``(003/000012.png, its bytes)``, …: folders that sort as the labels do, files in the order of each class."""
    digits = max(3, len(str(classes - 1)))
    seen = [0] * classes
    for pixels, label in zip(shown.pixels, shown.labels.tolist()):
        yield f"{label:0{digits}d}/{seen[label]:06d}.png", png(to_image(pixels))
        seen[label] += 1


def decode_picture(data: bytes, channels: int, what: str) -> Tensor:
    """Return a picture file's pixels, uint8 ``[C, H, W]``; ``DataError`` naming ``what`` if it cannot be decoded."""
    import numpy as np
    from PIL import Image

    if channels not in MODES:
        raise ConfigError(f"pictures cannot hold images of {channels} channels; allowed: 1 to 4")
    try:
        with Image.open(io.BytesIO(data)) as image:
            array = np.array(image.convert(MODES[channels]))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"{what} cannot be decoded: {error}") from error
    pixels = torch.from_numpy(array)
    return pixels.unsqueeze(0) if pixels.ndim == 2 else pixels.permute(2, 0, 1).contiguous()


def _stack(items: Sequence[tuple[str, Tensor]]) -> Tensor:
    first_name, first = items[0]
    for name, pixels in items:
        if pixels.shape != first.shape:
            raise DataError(f"{name} is {_size(pixels)} pixels but {first_name} is {_size(first)}; a set has images of one size")
    return torch.stack([pixels for _, pixels in items])


def _size(pixels: Tensor) -> str:
    return f"{pixels.shape[2]}×{pixels.shape[1]}"


@dataclass
class _Sample:
    pixels: Tensor | None = None
    label: int | None = None
    soft: list[float] | None = None

    @property
    def empty(self) -> bool:
        return self.pixels is None and self.label is None and self.soft is None


def read_tars(shards: Iterable[tuple[str, bytes]], channels: int) -> Pictures:
    """Read ``(URL, bytes)`` of WebDataset tars: a picture and ``.cls`` (or ``.json`` with ``soft_label``) per sample, others ignored.

    Raises ``TornFileError`` for a broken tar and ``DataError``, naming shard and key, for a broken or incomplete sample.
    """
    samples: dict[tuple[str, str], _Sample] = {}
    for url, data in shards:
        try:
            with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as tar:
                end = 0
                for member in tar:
                    end = -(-(member.offset_data + (member.size if member.isreg() else 0)) // 512) * 512
                    content = tar.extractfile(member) if member.isreg() else None
                    if content is None:
                        continue
                    folder, _, base = member.name.rpartition("/")
                    stem, _, kind = base.partition(".")
                    _take(samples, (url, f"{folder}/{stem}".lstrip("/")), kind.lower(), content.read(), channels)
                # A tar cut between two members reads like a shorter one, but for the missing block of zeros at its end.
                if data[end : end + 512] != bytes(512):
                    raise TornFileError(f"{url} is torn: it ends after {len(data)} bytes without the mark of a tar's end")
        except tarfile.TarError as error:
            raise TornFileError(f"{url} is torn or not a tar file: {error}") from error
    kept = {key: sample for key, sample in samples.items() if not sample.empty}
    if not kept:
        raise DataError("no sample with a picture and a label in " + (", ".join(sorted({url for url, _ in samples})) or "an empty tar"))
    return _assemble(kept)


def _take(samples: dict[tuple[str, str], _Sample], key: tuple[str, str], kind: str, data: bytes, channels: int) -> None:
    sample = samples.setdefault(key, _Sample())
    what = f"{key[0]}: sample '{key[1]}' (.{kind})"
    try:
        if f".{kind}" in PICTURES:
            sample.pixels = decode_picture(data, channels, what)
        elif kind == "cls":
            sample.label = int(data)
        elif kind == "json":
            values = json.loads(data)
            sample.soft = [float(v) for v in values["soft_label"]] if isinstance(values, dict) and "soft_label" in values else None
    except (ValueError, TypeError) as error:
        raise DataError(f"{what} cannot be read: {error}") from error


def _assemble(samples: dict[tuple[str, str], _Sample]) -> Pictures:
    images, labels, softs = [], [], []
    for (url, key), sample in samples.items():
        if sample.pixels is None or (sample.label is None and sample.soft is None):
            raise DataError(f"{url}: sample '{key}' has no {'picture' if sample.pixels is None else 'label (.cls)'}")
        images.append((f"{url}: sample '{key}'", sample.pixels))
        if sample.soft is not None:
            softs.append(sample.soft)
        labels.append(sample.label if sample.label is not None else max(range(len(softs[-1])), key=softs[-1].__getitem__))
    if softs and (len(softs) != len(images) or len({len(soft) for soft in softs}) != 1):
        raise DataError("soft labels are missing from some samples, or differ in length")
    return Pictures(_stack(images), torch.tensor(labels), torch.tensor(softs) if softs else None)


def class_of_folders(names: Sequence[str], info: DatasetInfo) -> dict[str, int]:
    """Return the label of each class folder.

    The first rule that fits all names holds: a name of ``info.class_names``, or a class folder that the catalog lists for
    the data set, is that class; ``new007`` and plain numbers
    are the number itself (SRe2L, EDC; RDED); any other names (such as WordNet ids), as many as there are classes, are
    numbered in sorted order. ``DataError`` if none fits.
    """
    for listed in (info.class_names, CATALOG[info.name].classes if info.name in CATALOG else ()):
        known = {name: label for label, name in enumerate(listed)}
        if all(name in known for name in names):
            return {name: known[name] for name in names}
    numbers = [re.fullmatch(r"(?:new)?(\d+)", name) for name in names]
    if all(numbers):
        labels = {name: int(found[1]) for name, found in zip(names, numbers) if found}
        if max(labels.values()) >= info.classes or len(set(labels.values())) != len(labels):
            top = max(labels.values())
            raise DataError(f"class folders number up to {top}, or one twice; {info.name} has classes 0 to {info.classes - 1}")
        return labels
    if len(names) != info.classes:
        shown = ", ".join(sorted(names)[:5])
        raise DataError(f"{len(names)} class folders ({shown}, …) but {info.name} has {info.classes} classes: their labels are unknown")
    return {name: label for label, name in enumerate(sorted(names))}


def read_folder(files: Iterable[tuple[str, str, bytes]], info: DatasetInfo) -> Pictures:
    """Read ``(class folder, name to show, bytes)`` of picture files; labels by :func:`class_of_folders`, images by label then file."""
    items = list(files)
    labels = class_of_folders(sorted({folder for folder, _, _ in items}), info)
    items.sort(key=lambda item: (labels[item[0]], item[1]))
    images = [(name, decode_picture(data, info.channels, name)) for _, name, data in items]
    return Pictures(_stack(images), torch.tensor([labels[folder] for folder, _, _ in items]))
