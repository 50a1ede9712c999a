"""Small numbers and strings in a file's bytes, read with every length checked first."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from raydd.core.errors import TornFileError


def varint(value: int) -> bytes:
    """Return a whole number of at least 0 in 7 bits a byte, the lowest first."""
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def sized(data: bytes) -> bytes:
    """Return bytes with their number before them."""
    return varint(len(data)) + data


@dataclass
class ByteReader:
    """Bytes that are read from the front; ``TornFileError`` for whatever they are too few for."""

    data: bytes
    at: int = 0

    def take(self, count: int) -> bytes:
        """Return the next ``count`` bytes."""
        left = len(self.data) - self.at
        if count > left:
            raise TornFileError(f"{count} bytes are needed at {self.at}, and {left} are there")
        self.at += count
        return self.data[self.at - count : self.at]

    def byte(self) -> int:
        """Return the next byte."""
        return self.take(1)[0]

    def varint(self) -> int:
        """Return the next number of :func:`varint`, below 2^35."""
        value = 0
        for shift in range(0, 35, 7):
            byte = self.byte()
            value |= (byte & 127) << shift
            if byte < 128:
                return value
        raise TornFileError(f"a number before {self.at} has no end")

    def sized(self) -> bytes:
        """Return the next bytes of :func:`sized`."""
        return self.take(self.varint())

    def floats(self, count: int) -> tuple[float, ...]:
        """Return the next ``count`` float64 values."""
        return struct.unpack(f"<{count}d", self.take(8 * count))

    def end(self) -> None:
        """Raise ``TornFileError`` if bytes are left."""
        if self.at != len(self.data):
            raise TornFileError(f"{len(self.data) - self.at} bytes follow its end")
