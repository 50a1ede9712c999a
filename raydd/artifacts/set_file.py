"""The bytes of a coded set's file, ``set.rdd`` (docs/per_byte.md, "The file").

Everything is checked before it is used: the file's size and a checksum of all that follows, then
every length inside, then the size of the images against that of the file.
"""

from __future__ import annotations

import hashlib
import json
import math
import struct
from dataclasses import dataclass

import torch
from torch import Tensor

from raydd.artifacts.byte_reader import ByteReader, sized, varint
from raydd.artifacts.coded_facts import CodedFacts, ImageCodec
from raydd.artifacts.coders import page_sizes
from raydd.artifacts.decoding import Decoding
from raydd.artifacts.distilled_set import DistilledSet
from raydd.core.errors import ConfigError, DataError, RayddError, TornFileError
from raydd.core.json_text import parse_json
from raydd.core.tensors import Tensors, dump_tensors, load_tensors
from raydd.data.catalog import DatasetInfo

MAGIC = b"RDD1"
CHECK = 8
"""Bytes of a checksum: of sha256."""
CODECS = ("levels", "avif", "webp")
FREE_VALUES, VALUES_PER_BYTE = 1 << 24, 1 << 12
"""Values of images that any file may decode to, and how many more each of its bytes allows."""
COUNTED, LISTED = 0, 1
"""Hard labels as the number of images of each class, which lie class by class; or one by one."""


@dataclass(frozen=True, kw_only=True)
class SetFile:
    """What a file holds. ``shape``: of the stored images. ``tables``: uint8, one for each channel, or for each
    channel of each image. ``more``: soft labels and what else the decoding reads, by name. ``streams``: a page each.
    """

    codec: ImageCodec
    coder: str
    shape: tuple[int, int, int, int]
    classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    labels: Tensor
    decoding: Decoding
    more: Tensors
    tables: tuple[Tensor, ...]
    streams: tuple[bytes, ...]
    pixel_digest: bytes = bytes(CHECK)

    @classmethod
    def of(
        cls,
        distilled: DistilledSet,
        codec: ImageCodec,
        coder: str,
        tables: tuple[Tensor, ...],
        streams: list[bytes],
    ) -> SetFile:
        """Return the file of a set whose images were coded; ``pixel_digest`` is still to be put in."""
        count, channels, height, width = distilled.images.shape
        soft = distilled.soft_labels
        return cls(
            codec=codec,
            coder=coder,
            shape=(count, channels, height, width),
            classes=distilled.info.classes,
            mean=distilled.mean,
            std=distilled.std,
            labels=distilled.labels,
            decoding=distilled.decoding,
            more=({} if soft is None else {"soft_labels": soft}) | dict(distilled.extra),
            tables=tables,
            streams=tuple(streams),
        )

    def to_bytes(self) -> bytes:
        """Return the file; ``ConfigError`` for images so uniform that their file would not be read again."""
        codec = self.codec
        body = bytes(
            [
                CODECS.index(codec.codec),
                codec.bits or 0,
                codec.size,
                codec.table == "image",
                codec.quality or 0,
            ]
        )
        body += sized(self.coder.encode())
        body += b"".join(map(varint, (*self.shape, self.classes)))
        body += struct.pack(f"<{2 * self.shape[1]}d", *self.mean, *self.std)
        body += self._labels() + sized(self._decoding())
        body += sized(dump_tensors(self.more) if self.more else b"")
        body += self.pixel_digest + self._tables()
        body += b"".join(varint(len(stream)) for stream in self.streams)
        body += b"".join(self.streams)
        data = sealed(body)
        size = len(data)
        if math.prod(self.shape) > _most(size):
            raise ConfigError(
                f"{size:,} bytes would be decoded to {math.prod(self.shape):,} values; allowed are {_most(size):,}"
            )
        return data

    def _labels(self) -> bytes:
        labels = self.labels
        if bool((labels[1:] >= labels[:-1]).all()):
            counts = torch.bincount(labels, minlength=self.classes).tolist()
            return bytes([COUNTED]) + b"".join(map(varint, counts))
        return bytes([LISTED]) + varint(len(labels)) + b"".join(map(varint, labels.tolist()))

    def _decoding(self) -> bytes:
        if self.decoding == Decoding():
            return b""
        plain = {"name": self.decoding.name, "parameters": dict(self.decoding.parameters)}
        return json.dumps(plain, sort_keys=True, separators=(",", ":")).encode()

    def _tables(self) -> bytes:
        """Return the tables, filled up to 2^bits with their last values."""
        full = 1 << (self.codec.bits or 0)
        padded = (torch.cat([table, table[-1:].expand(full - len(table))]) for table in self.tables)
        return b"".join(table.numpy().tobytes() for table in padded)

    @classmethod
    def from_bytes(cls, data: bytes, what: str = "the file") -> SetFile:
        """Return what is in a file, streams not decoded.

        Raises ``DataError`` for what is no such file, and ``TornFileError`` for one that is not whole.
        """
        if not data.startswith(MAGIC):
            raise DataError(f"{what} is no coded set of raydd: it does not begin with {MAGIC!r}")
        reader = ByteReader(data, len(MAGIC))
        try:
            size = reader.varint()
            if size != len(data):
                raise TornFileError(f"is torn: {len(data)} bytes, it says {size}")
            check = reader.take(CHECK)
            if hashlib.sha256(data[reader.at :]).digest()[:CHECK] != check:
                raise TornFileError("is torn or changed: its checksum is another")
            return cls._read(reader)
        except TornFileError as error:
            raise TornFileError(f"{what} {error}") from error
        except (ValueError, KeyError, TypeError, IndexError, RayddError) as error:
            raise DataError(f"{what} holds what is no set: {error}") from error

    @classmethod
    def _read(cls, reader: ByteReader) -> SetFile:
        kind, bits, size, by_image, quality = (reader.byte() for _ in range(5))
        lossy = kind > 0
        codec = ImageCodec(
            codec=CODECS[kind],  # type: ignore[arg-type] # what is none is refused
            bits=None if lossy else bits,  # type: ignore[arg-type]
            size=size,  # type: ignore[arg-type]
            table=None if lossy else ("set", "image")[by_image],
            quality=quality if lossy else None,
        )
        if size not in (1, 2) or (not lossy and bits not in (1, 2, 3, 4, 8)):
            raise ValueError(f"{bits} bits at size {size}")
        coder = reader.sized().decode("ascii")
        count, channels, height, width, classes = (reader.varint() for _ in range(5))
        if min(count, channels, height, width, classes) < 1:
            raise ValueError(f"{count} images {channels}×{height}×{width} of {classes} classes")
        if count * channels * height * width > _most(len(reader.data)):
            raise ValueError(
                f"{len(reader.data):,} bytes cannot hold {count} images of {channels}×{height}×{width}"
            )
        mean, std = reader.floats(channels), reader.floats(channels)
        if not all(map(math.isfinite, (*mean, *std))):
            raise ValueError(f"mean {mean} and std {std}")
        labels = cls._read_labels(reader, classes)
        decoding = Decoding(**parse_json(text)) if (text := reader.sized()) else Decoding()
        more = (
            load_tensors(stored, "what it holds beside images")
            if (stored := reader.sized())
            else {}
        )
        pixel_digest = reader.take(CHECK)
        tables: tuple[Tensor, ...] = ()
        if not lossy and bits != 8:
            number = channels * (count if by_image else 1)
            held = reader.take(number << bits)
            kept = torch.frombuffer(bytearray(held), dtype=torch.uint8).view(number, -1)
            tables = tuple(kept)
        small = (-(-height // size), -(-width // size))
        planes = count if channels in (1, 3) else count * channels
        lengths = [reader.varint() for _ in page_sizes(planes, *small)]
        streams = tuple(reader.take(length) for length in lengths)
        reader.end()
        return cls(
            codec=codec,
            coder=coder,
            shape=(count, channels, height, width),
            classes=classes,
            mean=mean,
            std=std,
            labels=labels,
            decoding=decoding,
            more=more,
            tables=tables,
            streams=streams,
            pixel_digest=pixel_digest,
        )

    @staticmethod
    def _read_labels(reader: ByteReader, classes: int) -> Tensor:
        kind = reader.byte()
        if kind not in (COUNTED, LISTED):
            raise ValueError(f"labels of kind {kind}")
        if kind == LISTED:
            return torch.tensor([reader.varint() for _ in range(reader.varint())])
        if classes > len(reader.data):
            raise ValueError(f"{classes} classes in {len(reader.data)} bytes")
        counts = torch.tensor([reader.varint() for _ in range(classes)])
        if int(counts.sum()) > _most(len(reader.data)):
            raise ValueError(f"{int(counts.sum()):,} labels in {len(reader.data):,} bytes")
        return torch.arange(classes).repeat_interleave(counts)

    @property
    def facts(self) -> CodedFacts:
        """What the file says of itself."""
        count, channels, height, width = self.shape
        more = len(dump_tensors(self.more)) if self.more else 0
        return CodedFacts(
            codec=self.codec,
            coder=self.coder,
            images=count,
            channels=channels,
            height=height,
            width=width,
            classes=self.classes,
            mean=self.mean,
            std=self.std,
            bytes=len(self.to_bytes()),
            stream_bytes=sum(map(len, self.streams)),
            table_bytes=len(self._tables()),
            label_bytes=len(self._labels()) + more,
            pixel_digest=self.pixel_digest.hex(),
        )

    def distilled(self, images: Tensor, info: DatasetInfo | None, what: str) -> DistilledSet:
        """Return the set of the decoded images; ``DataError`` for what does not fit together, or the data set."""
        channels = self.shape[1]
        if info is not None and (info.classes, info.channels) != (self.classes, channels):
            raise DataError(
                f"{what} has {self.classes} classes and images of {channels} channels; {info.name} has"
                f" {info.classes} and {info.channels}"
            )
        try:
            if info is None:
                height, width = self.decoding.decoder().shape({"images": images})[1:]
                info = DatasetInfo(
                    name="unnamed",
                    classes=self.classes,
                    channels=channels,
                    height=height,
                    width=width,
                    mean=self.mean,
                    std=self.std,
                )
            return DistilledSet(
                images=images,
                labels=self.labels,
                soft_labels=self.more.get("soft_labels"),
                extra={name: one for name, one in self.more.items() if name != "soft_labels"},
                info=info,
                mean=self.mean,
                std=self.std,
                decoding=self.decoding,
            )
        except RayddError as error:
            raise DataError(f"{what} holds what is no set: {error}") from error


def sealed(body: bytes) -> bytes:
    """Return the file of all that follows its checksum."""
    rest = hashlib.sha256(body).digest()[:CHECK] + body
    before = len(MAGIC) + len(rest)
    # The size counts its own bytes, 7 bits of it in each.
    size = next(before + n for n in range(1, 11) if len(varint(before + n)) == n)
    return MAGIC + varint(size) + rest


def _most(size: int) -> int:
    """Return how many values a file of so many bytes may be decoded to."""
    return FREE_VALUES + VALUES_PER_BYTE * size
