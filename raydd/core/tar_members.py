"""The members of a tar that somebody else may have written; nothing is written, and no member's name is a path."""

from __future__ import annotations

import re
import tarfile
from collections.abc import Iterator
from typing import IO, Self

_DESCRIPTIONS = (
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
)
_DESCRIBED = 1 << 18
"""Bytes that what describes a member may have: names, times, owners, attributes."""
_DIGITS = re.compile(rb"\d{1000}")
_LARGEST = 1 << 62


class _Member(tarfile.TarInfo):
    """A member whose header says what can be."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        """Return a header's member; ``HeaderError`` for an impossible size."""
        found = super().frombuf(buf, encoding, errors)
        largest = _DESCRIBED if found.type in _DESCRIPTIONS else _LARGEST
        if not 0 <= found.size <= largest:
            raise tarfile.ReadError(f"'{found.name[:100]}' says that it has {found.size} bytes")
        return found

    def _proc_pax(self, tar: tarfile.TarFile) -> tarfile.TarInfo:
        """Read what describes the next member; the library's search in it is slow on rows of digits."""
        file: IO[bytes] = tar.fileobj  # type: ignore[assignment]
        at = file.tell()
        if _DIGITS.search(file.read(self.size)):
            raise tarfile.ReadError(f"what describes a member at byte {self.offset} is none")
        file.seek(at)
        return super()._proc_pax(tar)  # type: ignore[misc]


def open_tar(file: IO[bytes]) -> tarfile.TarFile:
    """Return a tar, opened for :func:`members_of`; ``tarfile.TarError`` if it begins as none does."""
    try:
        return tarfile.open(fileobj=file, mode="r:", tarinfo=_Member)
    except tarfile.TarError:
        raise
    except Exception as error:  # headers are numbers and texts, which the library takes as they are
        raise tarfile.ReadError(_told(error)) from error


def members_of(tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """Yield a tar's members in their order; ``tarfile.TarError`` for headers that do not lead on."""
    at = -1
    while True:
        try:
            member = tar.next()
        except tarfile.TarError:
            raise
        except Exception as error:
            raise tarfile.ReadError(_told(error)) from error
        if member is None:
            return
        if tar.offset <= at or not 0 <= member.size <= _LARGEST:
            raise tarfile.ReadError(f"'{member.name[:100]}' does not end behind its beginning")
        at = tar.offset
        yield member
        # All kept, they would take the square of what the file does.
        member.pax_headers = {}


def _told(error: Exception) -> str:
    deep = isinstance(error, RecursionError)
    return "its headers describe each other" if deep else f"a header cannot be read: {error}"
