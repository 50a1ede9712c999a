"""Whether a PNG file is whole: its chunks carry checksums."""

from __future__ import annotations

import zlib

_BEGIN = b"\x89PNG\r\n\x1a\n"


def is_whole_png(data: bytes) -> bool:
    """Return whether bytes are a PNG from its first to its last chunk, each as it was written."""
    if not data.startswith(_BEGIN):
        return False
    at = len(_BEGIN)
    while at + 12 <= len(data):
        size = int.from_bytes(data[at : at + 4], "big")
        kind, end = data[at + 4 : at + 8], at + 12 + size
        if end > len(data):
            return False
        if zlib.crc32(data[at + 4 : end - 4]) != int.from_bytes(data[end - 4 : end], "big"):
            return False
        if kind == b"IEND":
            return end == len(data)
        at = end
    return False
