"""Compressed files of others: none unfolds to much more than such files do."""

from __future__ import annotations

import gzip
import io
import zipfile
import zlib

from raydd.core.errors import DataError, TornFileError

SMALL = 64 << 20
"""Bytes that any file may unfold to, however small it is."""
TIMES = 100
"""How many times its own bytes a larger one may: pictures and tensors shrink by a few times."""
_CHUNK = 1 << 20


def most(packed: int, times: int = TIMES) -> int:
    """Return the bytes that a file of ``packed`` bytes may unfold to."""
    return max(SMALL, times * packed)


def check_unfolded(size: int, packed: int, what: str, times: int = TIMES) -> None:
    """Raise ``DataError`` naming ``what`` if a file of ``packed`` bytes would unfold to ``size``, too many."""
    if size > most(packed, times):
        raise DataError(
            f"{what}: its {packed} bytes would unfold to more than {most(packed, times)}, as no file of its kind does"
        )


def gunzipped(data: bytes, what: str) -> bytes:
    """Return what a gzip file holds; ``TornFileError`` if it is not whole, ``DataError`` if it is too much."""
    limit = most(len(data))
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(data)) as file:
            held = file.read(limit + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise TornFileError(f"{what} is torn: {error}") from error
    check_unfolded(len(held), len(data), what)
    return held


def inflated_bytes(data: bytes | memoryview, limit: int) -> int:
    """Return how many bytes a zlib stream holds, or ``limit`` + 1 where these are more; ``zlib.error``
    if it is none.
    """
    stream, count, rest = zlib.decompressobj(), 0, bytes(data)
    while rest and not stream.eof and count <= limit:
        count += len(stream.decompress(rest, _CHUNK))
        rest = stream.unconsumed_tail
    return min(count, limit + 1)


def check_zip(data: bytes, what: str, times: int = TIMES) -> None:
    """Raise ``DataError`` naming ``what`` if the members of a zip archive would unfold to too much;
    ``zipfile.BadZipFile`` if it is none.
    """
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        size = sum(member.file_size for member in archive.infolist())
    check_unfolded(size, len(data), what, times)
