"""Files that mean harm, each a few bytes to a few hundred kilobytes, by what they try."""

from __future__ import annotations

import gzip
import io
import json
import os
import pickle
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterator

import numpy as np
import torch
from data_readers import picture, shard, tar
from readers import WORK, published, saved, stored_labels, with_header

MARK = WORK / "executed"
"""What a file that is executed would make."""
Case = tuple[str, str, bytes]
"""A reader's name, what the file is, its bytes."""


class Command:
    """Runs a program when it is unpickled."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {MARK}",)


class Opened:
    """Opens a file when it is unpickled."""

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return open, (str(MARK), "w")


def pickles() -> Iterator[Case]:
    """Yield pickles that name more than tensors and numbers."""
    for value in (Command(), Opened()):
        held = {"images": torch.zeros(1), "labels": value}
        listed = [torch.zeros(4, 4), torch.zeros(4), None, 1.0, None, torch.zeros(4, 10), value]
        for name in (".pt set", "weights"):
            yield name, "in an archive", saved(held)
            yield name, "before archives", saved(held, _use_new_zipfile_serialization=False)
            yield name, "by pickle", pickle.dumps(held)
        yield "FKD labels", "in an archive", saved(listed)
        for codec in ("fp16", "static"):
            yield f"labels of {codec}", "in place of a record", pickle.dumps(value)
        yield "CIFAR batch", "a command", pickle.dumps({"data": value, "labels": [0]}, 2)
        yield "data.safetensors", "in place of tensors", pickle.dumps(value)
        target = io.BytesIO()
        array = np.array([value], dtype=object)
        np.savez(target, running_dd_mean=array, running_dd_var=array)
        yield "npz of statistics", "an array of objects", target.getvalue()
    objects = np.array([{"a": 1}], dtype=object)
    yield "CIFAR batch", "an array of objects", pickle.dumps({"data": objects, "labels": [0]}, 2)


def member(name: str, **facts: object) -> tarfile.TarInfo:
    """Return a tar's header."""
    info = tarfile.TarInfo(name)
    for key, value in facts.items():
        setattr(info, key, value)
    return info


def paths() -> Iterator[Case]:
    """Yield tars, manifests and indices whose names lead elsewhere."""
    image, label = picture("PNG", 8, "L"), b"0"
    for name in (
        "../../raydd-hostile",
        "/var/raydd-hostile",
        "a/../../raydd-hostile",
        "..\\raydd-hostile",
    ):
        plain = tar([(f"{name}.png", image), (f"{name}.cls", label)])
        target = io.BytesIO()
        with tarfile.open(fileobj=target, mode="w") as file:
            for kind, link in (
                (tarfile.SYMTYPE, "/etc/passwd"),
                (tarfile.LNKTYPE, name),
                (tarfile.CHRTYPE, ""),
            ):
                file.addfile(member(f"{name}.png", type=kind, linkname=link))
            file.addfile(member("b.cls", type=tarfile.SYMTYPE, linkname=f"{name}.cls"))
        for reader in ("shard", "shard of a set"):
            yield reader, f"a member {name}", plain
            yield reader, f"links from and to {name}", target.getvalue()
        manifest = json.loads(published()["manifest.json"])
        manifest["files"][name] = {"size": 1, "sha256": "0" * 64}
        yield "manifest of a set", f"a file {name}", json.dumps(manifest).encode()
        labels = json.loads(stored_labels("fp16")["manifest.json"])
        labels["files"][name] = {"size": 1, "sha256": "0" * 64}
        yield "manifest of labels", f"a file {name}", json.dumps(labels).encode()


def bombs() -> Iterator[Case]:
    """Yield files that would unfold to gigabytes."""
    zeros = gzip.compress(bytes(1 << 25), mtime=0) * 64  # 2 GiB
    yield "IDX file", "2 GiB of zeros in gzip", zeros
    yield "shard of a set", "2 GiB of zeros in gzip", zeros
    for reader, name in (
        ("npz of statistics", "running_dd_mean.npy"),
        (".pt set", "archive/data/0"),
        ("weights", "a"),
    ):
        target = io.BytesIO()
        with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
            for number in range(12):
                archive.writestr(name if not number else f"{name}{number}", bytes(1 << 23))
        yield reader, "96 MiB of zeros in a zip archive", target.getvalue()
    spread = {"images": torch.zeros(1).expand(1 << 32), "labels": torch.zeros(1)}
    yield ".pt set", "a tensor of 2^32 values, one of them stored", saved(spread)
    yield "weights", "a tensor of 2^32 values, one of them stored", saved({"state_dict": spread})
    nested: list[object] = [0.5] * 10
    for _ in range(12):
        nested = [nested] * 10
    pair = [[torch.rand(1, 1, 8, 8), torch.zeros(1)]]
    yield (
        ".pt set",
        "10^13 numbers of which ten are stored",
        saved({"data": pair, "accs_all_exps": {"a": nested}}),
    )
    loop: list[object] = []
    loop.append(loop)
    yield ".pt set", "a list that holds itself", saved({"data": pair, "accs_all_exps": {"a": loop}})
    stream = zlib.compress(bytes(1 << 25))
    head = b"MATLAB 5.0 MAT-file".ljust(124) + struct.pack("<H2s", 0x0100, b"IM")
    yield (
        "MATLAB file",
        "2 GiB of zeros",
        head + (struct.pack("<II", 15, len(stream)) + stream) * 64,
    )
    sparse = bytearray(tar([("a.png", b"x"), ("a.cls", b"0")], tarfile.GNU_FORMAT))
    sparse[156:157] = tarfile.GNUTYPE_SPARSE
    sparse[483:495] = b"77777777777\0"
    total = sum(sparse[:148]) + 8 * 32 + sum(sparse[156:512])
    sparse[148:156] = b"%06o\0 " % total
    yield "shard of a set", "8 GiB of a sparse file", bytes(sparse)
    yield "shard", "8 GiB of a sparse file", bytes(sparse)


def pictures() -> Iterator[Case]:
    """Yield pictures of very many pixels, or of very many passes over them."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    for side in (12_000, 30_000, 60_000):
        rows = zlib.compress(bytes((side // 8 + 1) * min(side, 4000)))
        head = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0))
        yield (
            "picture",
            f"PNG of {side}²",
            b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", rows) + chunk(b"IEND", b""),
        )
        jpeg = bytearray(picture("JPEG"))
        at = jpeg.index(b"\xff\xc0")
        jpeg[at + 5 : at + 9] = struct.pack(">HH", side, side)
        yield "picture", f"JPEG of {side}²", bytes(jpeg)
        gif = bytearray(picture("GIF"))
        gif[6:10] = struct.pack("<HH", side, side)
        yield "picture", f"GIF of {side}²", bytes(gif)
        yield "picture", f"PPM of {side}²", b"P6\n%d %d\n255\n" % (side, side)
        bmp = bytearray(picture("BMP"))
        bmp[18:26] = struct.pack("<ii", side, side)
        yield "picture", f"BMP of {side}²", bytes(bmp)
    jpeg_data = picture("JPEG", 512)
    at = jpeg_data.index(b"\xff\xda")
    yield (
        "picture",
        "JPEG of 20,000 passes",
        jpeg_data[:-2] + jpeg_data[at : at + 40] * 20_000 + b"\xff\xd9",
    )


def headers() -> Iterator[Case]:
    """Yield headers that say absurd sizes."""
    data = published()["data.safetensors"]
    for size in (1 << 20, 1 << 40, (1 << 63) - 1, (1 << 64) - 1):
        yield "data.safetensors", f"a header of {size} bytes", size.to_bytes(8, "little") + data[8:]
        many = {
            "images": {
                "dtype": "F32",
                "shape": [size],
                "data_offsets": [0, min(4 * size, (1 << 64) - 1)],
            }
        }
        text = json.dumps(many).encode()
        yield "data.safetensors", f"a tensor of {size} values", with_header(data, text)
    for shape in ((255,) * 4, (127, 255, 255, 255)):
        yield (
            "IDX file",
            f"{shape} images",
            gzip.compress(bytes([0, 0, 8, 3, *shape, *shape, *shape]), mtime=0),
        )
    for count in (10**9, 10**15):
        target = io.BytesIO()
        with zipfile.ZipFile(target, "w") as archive:
            head = (
                f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({count},), }}".ljust(
                    117
                ).encode()
                + b"\n"
            )
            archive.writestr(
                "running_dd_mean.npy", b"\x93NUMPY\x01\x00" + struct.pack("<H", len(head)) + head
            )
        yield "npz of statistics", f"an array of {count} values", target.getvalue()
    facts = json.loads(stored_labels("fp16")["manifest.json"])
    for key in ("images", "classes"):
        yield "manifest of labels", f"10^15 {key}", json.dumps(facts | {key: 10**15}).encode()
    for size in (
        b"\xff" * 12,
        b"\x80" + b"\xff" * 11,
        b"\x80" + b"\x00" * 3 + b"\x7f" + b"\xff" * 7,
    ):
        whole = bytearray(shard())
        whole[124:136] = size
        whole[148:156] = b"%06o\0 " % (sum(whole[:148]) + 256 + sum(whole[156:512]))
        for name in ("shard", "shard of a set"):
            yield (
                name,
                f"a member of {int.from_bytes(size, 'big', signed=True)} bytes",
                bytes(whole),
            )
    for key, value in (
        ("size", "-1"),
        ("size", "9" * 30),
        ("hdrcharset", "9" * 5000),
        ("path", "x" * 200_000),
    ):
        target = io.BytesIO()
        with tarfile.open(fileobj=target, mode="w", format=tarfile.PAX_FORMAT) as file:
            for n in range(50):
                info = member(f"{n}.png", size=3, pax_headers={key: value})
                file.addfile(info, io.BytesIO(b"abc"))
        for name in ("shard", "shard of a set"):
            yield name, f"members described by {key}={value[:20]}", target.getvalue()
    link = member("x", type=tarfile.GNUTYPE_LONGNAME, size=4).tobuf(
        tarfile.GNU_FORMAT
    ) + b"abc".ljust(512, b"\0")
    for name in ("shard", "shard of a set"):
        yield name, "3,000 names of a name", link * 3000 + bytes(1024)


def yamls() -> Iterator[Case]:
    """Yield YAML that makes objects, or unfolds."""
    tags = (
        f"!!python/object/apply:os.system ['touch {MARK}']",
        f"!!python/object/new:os.system ['touch {MARK}']",
        "!!python/name:os.system", "!!python/module:os", "!!python/tuple [1, 2]", "!!binary aGVsbG8=", "!!set {a, b}",
        "!!timestamp 2001-99-99", "2001-01-01", "!!int 0b", "!!float x", "9" * 5000, "!!merge x", "!<tag:x> y",
    )  # fmt: skip
    for text in tags:
        yield "job file", text, f"name: a\ndataset: {{name: digits}}\nmethod: {text}\n".encode()
        yield "space file", text, f"metric: {text}\nkeys: {{method.lr_img: {text}}}\n".encode()
        yield "override", text, f"method.iterations={text}".encode()
    lists = "".join(
        f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10) if n else '1'}]\n" for n in range(12)
    )
    maps = "".join(
        f"m{n}: &m{n} {{<<: [{', '.join([f'*m{n - 1}'] * 10)}], k{n}: 1}}\n" for n in range(1, 12)
    )
    for kind, text in (
        ("10^11 values by aliases", lists),
        ("10^11 keys by merging", f"m0: &m0 {{a: 1}}\n{maps}"),
        ("20,000 merged at once", f"m: &m {{a: 1}}\nn: {{<<: [{', '.join(['*m'] * 20_000)}]}}\n"),
        ("an alias of what it stands in", "a: &a [*a]\n"),
        ("100,000 lists in each other", f"a: {'[' * 100_000}"),
        ("1,000 mappings in each other", "a: " + "{a: " * 1000 + "}" * 1000),
        ("2 MB of text", f"a: '{'x' * (2 << 20)}'\n"),
        ("a key that is a list", "? [a]\n: 1\n"),
        ("bytes that are no text", "\x00\x01"),
    ):
        for name in ("job file", "space file", "page of a run: job.yaml"):
            yield name, kind, text.encode()


def jsons() -> Iterator[Case]:
    """Yield JSON that is deep or long."""
    readers = (
        "manifest of a set", "facts of a set", "recipe", "manifest of labels", "manifest of shards",
        "page of a run: plan.json", "page of a run: log.jsonl", "page of a run: report.json",
        "header of data.safetensors",
    )  # fmt: skip
    for name in readers:
        for kind, text in (
            ("100,000 lists in each other", "[" * 100_000 + "]" * 100_000),
            ("500 mappings in each other", '{"format":' * 500 + "1" + "}" * 500),
            ("a number of 5,000 digits", '{"format": ' + "9" * 5000 + "}"),
            ("NaN", '{"format": NaN, "version": -Infinity, "splits": NaN}'),
            ("bytes that are no text", "\ud800"),
        ):
            yield name, kind, text.encode(errors="surrogatepass")


KINDS = {
    "pickles": pickles,
    "paths": paths,
    "bombs": bombs,
    "pictures": pictures,
    "headers": headers,
    "yamls": yamls,
    "jsons": jsons,
}
