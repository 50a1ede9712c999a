"""One WebDataset shard that others wrote: a pass over the tar's headers, and which members make which sample."""

from __future__ import annotations

import io
import tarfile

from raydd.core.errors import DataError
from raydd.core.storage import Storage, join
from raydd.core.tar_members import members_of, open_tar
from raydd.data.images import EXTENSIONS
from raydd.data.tar_samples import (
    Damage,
    Label,
    Members,
    Scan,
    match,
    number,
    parsed,
    spoil,
    stem_of,
)

_WINDOW = 4 << 20
_LABEL_BYTES = 1 << 16
_PACKED = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"\x04\x22\x4d\x18": "lz4",
    b"PK": "zip",
}
_POINTER = b"version https://git-lfs"
TORN = "torn shard"


class RangeFile(io.RawIOBase):
    """One object (or its first ``most`` bytes) as a seekable file of range reads.

    To be buffered: a seek past the buffer skips the bytes between.
    """

    def __init__(self, files: Storage, path: str, most: int = 0) -> None:
        self._files, self._path, self._at = files, path, 0
        self.size = min(files.size(path), most) if most else files.size(path)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self.size}[whence]
        return self._at

    def readinto(self, buffer: object) -> int:
        view = memoryview(buffer)  # type: ignore[arg-type]
        stop = min(self._at + len(view), self.size)
        if stop <= self._at:
            return 0
        data = self._files.get(self._path, self._at, stop)
        view[: len(data)] = data
        self._at += len(data)
        return len(data)


def scan(files: Storage, name: str, most: int = 0) -> Scan:
    """Return what a shard holds (``most``: what its first bytes hold, as if the rest were cut off).

    Member names are only names: nothing is written, and no other type is looked at. Members of one
    sample share their path up to the last dot of the name (``img.0001.jpg``, ``img.0001.cls``).
    Where none do that share it up to the first dot (WebDataset's key), one picture and one label of
    that key are a sample (``0001.rgb.jpg``, ``0001.cls``). So no two samples become one, and none
    is lost without a word.
    """
    found, members = Scan(), Members()
    try:
        raw = RangeFile(files, name, most)
        file: io.BufferedReader = io.BufferedReader(raw, _WINDOW)
        torn = _other_format(file.peek(512)[:512]) or _read(
            file, raw.size, join(files.url, name), found, members
        )
    except FileNotFoundError as error:
        raise DataError(f"shard {join(files.url, name)} is missing") from error
    if torn:
        found.damage.insert(0, Damage(TORN, name, f"shard {join(files.url, name)} is torn: {torn}"))
    match(files, name, found, members)
    if not torn and not found.formats and not found.left_out:
        found.left_out.add("shard without members", name)
    return found


def _other_format(start: bytes) -> str:
    """Return why bytes that begin so are no tar, where that can be told."""
    if not start:
        return "it has 0 bytes"
    packed = next((kind for mark, kind in _PACKED.items() if start.startswith(mark)), None)
    if packed:
        return f"it is compressed ({packed}), although its name says tar; unpack it to a tar file"
    return (
        "it is a pointer of Git LFS; fetch the file with 'git lfs pull'"
        if start.startswith(_POINTER)
        else ""
    )


def _read(file: io.BufferedReader, size: int, where: str, found: Scan, members: Members) -> str:
    """Sort the members by what they are; return why the tar is torn, ``""`` if it is whole."""
    seen: dict[str, tarfile.TarInfo] = {}
    links: list[tarfile.TarInfo] = []
    count = 0
    try:
        with open_tar(file) as tar:
            for member in members_of(tar):
                count += 1
                if member.isreg() and member.offset_data + member.size <= size:
                    seen[_plain(member.name)] = member
                    _sort(member, where, file, found, members)
                elif member.issym() or member.islnk():
                    links.append(member)
            end = int(tar.offset)
        for link in links:
            target = seen.get(
                _plain(
                    link.linkname
                    if link.islnk()
                    else f"{link.name.rpartition('/')[0]}/{link.linkname}"
                )
            )
            if target is None:
                found.left_out.add(
                    "link to nothing in the shard", f"{where.rsplit('/', 1)[-1]}: {link.name}"
                )
            else:
                target.name, kept = link.name, target.name
                _sort(target, where, file, found, members)
                target.name = kept
    except tarfile.TarError as error:
        return f"{error} after {count} members" if count else f"it is no tar file ({error})"
    return _end(file, end, size, count)


def _end(file: io.BufferedReader, at: int, size: int, count: int) -> str:
    """Return what is wrong with the end of a tar whose last member ends at byte ``at``: a block of
    zeros and nothing else comes there.
    """
    file.seek(at)
    block = file.read(tarfile.BLOCKSIZE)
    if len(block) < tarfile.BLOCKSIZE:
        return f"it ends after {count} members without the mark that ends a tar; what came behind them was cut off"
    if any(block):
        return f"no member begins at byte {at}, after {count} members, nor does the tar end there"
    while rest := file.read(_WINDOW):
        if rest.strip(b"\0"):
            return (
                f"it goes on behind its end mark at byte {at} (tars put one after another?); write them as files of"
                " their own"
            )
    return ""


def _plain(path: str) -> str:
    """Return a member's path as others may write it, for comparing: without ``.`` and ``..``."""
    if not path.startswith((".", "/")) and "//" not in path and "/." not in path:
        return path
    parts: list[str] = []
    for part in path.split("/"):
        if part == ".." and parts:
            parts.pop()
        elif part not in ("", ".", ".."):
            parts.append(part)
    return "/".join(parts)


def _sort(
    member: tarfile.TarInfo, where: str, file: io.BufferedReader, found: Scan, members: Members
) -> None:
    """Note a member among those of its kind; ``where``: URL of the shard."""
    title, folders, base = (
        f"{where.rsplit('/', 1)[-1]}: {member.name}",
        member.name.split("/")[:-1],
        member.name.rsplit("/", 1)[-1],
    )
    if (
        base.startswith(".")
        or "__MACOSX" in folders
        or any(part.startswith(".") and part.strip(".") for part in folders)
    ):
        found.left_out.add("hidden file", title)
        return
    ending = base.rpartition(".")[2].lower() if "." in base else ""
    found.formats[ending] += 1
    if not ending:
        return
    raw = member.name[: -len(ending) - 1]
    key = _plain(raw)
    if ending in EXTENSIONS:
        members.order.setdefault(key, raw)
        if member.sparse is not None:
            spoil(
                found,
                members,
                key,
                "sample in a sparse file",
                where,
                "is stored as a sparse file; pack the tar without --sparse",
            )
        elif key in members.pictures:
            spoil(found, members, key, "sample with several images", where, "has two images")
        else:
            members.pictures[key] = (member.offset_data, member.size)
    elif ending == "cls":
        members.order.setdefault(key, raw)
        label = _class(member, file)
        before = members.classes.setdefault(key, label)
        if before.value != label.value:
            spoil(
                found,
                members,
                key,
                "sample with several labels",
                where,
                f"has two labels, {before.value} and {label.value}",
            )
    elif ending == "json":
        members.order.setdefault(key, raw)
        members.metadata[key] = _metadata(member, file, needed=key not in members.classes)
    else:
        members.beside.setdefault(stem_of(key), f".{ending}")


def _content(member: tarfile.TarInfo, file: io.BufferedReader) -> bytes:
    """Return a small member's bytes, from the buffer that its header was read into."""
    back = file.tell()
    file.seek(member.offset_data)
    data = file.read(member.size)
    file.seek(back)
    return data


def _class(member: tarfile.TarInfo, file: io.BufferedReader) -> Label:
    if member.size > _LABEL_BYTES:
        return Label(member.name, mistake=f"it has {member.size} bytes, too many for a label")
    return number(member.name, _content(member, file).decode("utf-8-sig", errors="replace"))


def _metadata(member: tarfile.TarInfo, file: io.BufferedReader, needed: bool) -> Label:
    """Return the label in JSON; large JSON, such as an embedding, is read only if its sample turns
    out to have no other label.
    """
    if member.size > _LABEL_BYTES:
        return Label(member.name, later=(member.offset_data, member.size))
    return parsed(member.name, _content(member, file)) if needed else Label(member.name)
