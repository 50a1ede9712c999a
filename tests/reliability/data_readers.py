"""More of :mod:`readers`: data sets, pictures, statistics and the pages of runs."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import pickle
import tarfile
from functools import cache
from types import SimpleNamespace
from typing import Any

import fsspec
import numpy as np
import torch
from readers import PLACE, folder, reader, small_set

from raydd.core.storage import Storage


def picture(kind: str, side: int = 8, mode: str = "RGB") -> bytes:
    """Return a small picture of a format."""
    from PIL import Image

    values = np.arange(side * side * 3, dtype=np.uint8).reshape(side, side, 3)
    target = io.BytesIO()
    Image.fromarray(values).convert(mode).save(target, kind)
    return target.getvalue()


FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "PPM", "TIFF", "JPEG2000", "PCX", "SGI")


@reader("picture", lambda: [picture(kind) for kind in FORMATS])
def _picture(data: bytes) -> object:
    from raydd.artifacts.eight_bit import decode_picture
    from raydd.core.errors import DataError
    from raydd.data.images import Transform, decode_into, size_of

    out = np.empty((3, 8, 8), np.uint8)
    size_of(data, "exif")
    try:
        decode_into(
            out,
            data,
            "picture",
            Transform(channels=3, height=8, width=8, fit="squash", orientation="exif"),
        )
    except DataError:
        pass
    return decode_picture(data, 3, "picture")


def tar(members: list[tuple[str, bytes]], form: int = tarfile.USTAR_FORMAT) -> bytes:
    """Return a tar of files."""
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w", format=form) as file:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))
    return target.getvalue()


def shard(form: int = tarfile.USTAR_FORMAT) -> bytes:
    """Return a small shard: pictures, labels, JSON."""
    members: list[tuple[str, bytes]] = []
    for i in range(3):
        members += [(f"{i:04d}.png", picture("PNG", 8, "L")), (f"{i:04d}.cls", str(i).encode())]
    return tar([*members, ("0003.jpg", picture("JPEG")), ("0003.json", b'{"label": 3}')], form)


@reader("shard", lambda: [shard(), shard(tarfile.PAX_FORMAT), shard(tarfile.GNU_FORMAT)])
def _shard(data: bytes) -> object:
    from raydd.data.tar_scan import scan

    return scan(Storage(folder("shards", {"train-000000.tar": data})), "train-000000.tar")


@reader("shard of a set", lambda: [shard(), gzip.compress(shard(), mtime=0)])
def _set_shard(data: bytes) -> object:
    from raydd.artifacts.eight_bit import read_tars

    return read_tars([("memory://a.tar", data)], 1)


@cache
def sharded() -> dict[str, bytes]:
    """Return a folder that ``raydd shard`` would have written: manifest, index, one shard."""
    from raydd.data.shard_format import FORMAT, Index
    from raydd.data.tar_scan import scan

    data = shard()
    found = scan(Storage(folder("shards", {"train-000000.tar": data})), "train-000000.tar")
    columns = {
        n: np.array([getattr(s, n) for s in found.samples]) for n in ("offset", "size", "label")
    }
    count = len(found.samples)
    index = Index(
        names=["train-000000.tar"], shard=np.zeros(count, np.int32), keys=[s.key for s in found.samples],
        identity=np.zeros((count, 32), np.uint8), **columns,
    ).dump()  # fmt: skip
    facts = {
        "name": "train-000000.tar",
        "count": count,
        "bytes": len(data),
        "sha256": hashlib.sha256(data).hexdigest(),
    }
    split = {"count": count, "index_sha256": hashlib.sha256(index).hexdigest(), "shards": [facts]}
    info = {
        "name": "tiny", "classes": 10, "channels": 1, "height": 8, "width": 8, "mean": [0.5], "std": [0.25],
        "class_names": [str(i) for i in range(10)],
    }  # fmt: skip
    manifest = {"format": FORMAT, "dataset": info, "splits": {"train": split, "test": split}}
    return {
        "train-000000.tar": data,
        "index-train.safetensors": index,
        "index-test.safetensors": index,
        "manifest.json": json.dumps(manifest).encode(),
    }


def _open_shards(files: dict[str, bytes]) -> object:
    from raydd.data.config import DatasetConfig
    from raydd.data.datasets import open_data

    splits = open_data(DatasetConfig(name="webdataset", shards=folder("sharded", files)))
    return [split.take(torch.arange(min(2, len(split)))) for split in splits.values()]


@reader("manifest of shards", lambda: [sharded()["manifest.json"]])
def _shard_manifest(data: bytes) -> object:
    return _open_shards(sharded() | {"manifest.json": data})


@reader("index of shards", lambda: [sharded()["index-train.safetensors"]])
def _shard_index(data: bytes) -> object:
    manifest = json.loads(sharded()["manifest.json"])
    for split in manifest["splits"].values():
        split["index_sha256"] = hashlib.sha256(data).hexdigest()
    index = {f"index-{split}.safetensors": data for split in ("train", "test")}
    return _open_shards(sharded() | index | {"manifest.json": json.dumps(manifest).encode()})


def _idx() -> bytes:
    return bytes([0, 0, 8, 3, 0, 0, 0, 2, 0, 0, 0, 4, 0, 0, 0, 4]) + bytes(32)


@reader("IDX file", lambda: [gzip.compress(_idx(), mtime=0), gzip.compress(_idx()[:20], mtime=0)])
def _idx_file(data: bytes) -> object:
    from raydd.data.sources.idx import IdxSource

    files = Storage(folder("idx", {"a.gz": data, "a": data}))
    source = IdxSource()
    source._find = lambda files, entry, stem: stem  # type: ignore[method-assign, assignment]
    return source._read(files, SimpleNamespace(), "a.gz")  # type: ignore[arg-type]


@reader(
    "CIFAR batch",
    lambda: [
        pickle.dumps({"data": np.zeros((2, 3072), np.uint8), "labels": [0, 1]}, protocol)
        for protocol in (2, 4)
    ],
)
def _cifar(data: bytes) -> object:
    from raydd.data.sources.cifar import _from_python

    return _from_python(data, "memory://data_batch_1", False)


def _mat() -> bytes:
    import scipy.io

    target = io.BytesIO()
    values = {"X": np.zeros((32, 32, 3, 2), np.uint8), "y": np.ones((2, 1), np.uint8)}
    scipy.io.savemat(target, values, do_compression=True)
    return target.getvalue()


@reader("MATLAB file", lambda: [_mat()])
def _svhn(data: bytes) -> object:
    from raydd.data.catalog import entry
    from raydd.data.config import DatasetConfig
    from raydd.data.listing import Tree
    from raydd.data.sources.svhn import SvhnSource

    url = folder("svhn", {"train_32x32.mat": data, "test_32x32.mat": data})
    return SvhnSource().open(Tree(url), entry("svhn"), DatasetConfig(name="svhn"))


def _npz() -> bytes:
    target = io.BytesIO()
    np.savez(target, running_dd_mean=np.zeros(4, np.float32), running_dd_var=np.ones(4, np.float32))
    return target.getvalue()


@reader("npz of statistics", lambda: [_npz()])
def _statistics(data: bytes) -> object:
    from raydd.training.statistics_tree import read_npz

    return read_npz(Storage(folder("npz", {"running.npz": data})), "running.npz")


@cache
def _coded(**codec: Any) -> bytes:
    from raydd.artifacts.image_codecs import ImageCodec, encode

    return encode(small_set(20), ImageCodec(**codec))


def _coded_seeds() -> list[bytes]:
    kinds: list[dict[str, Any]] = [{"bits": 2}, {"bits": 8}, {"codec": "avif"}, {"codec": "webp"}]
    return [_coded(**kind) for kind in [*kinds, {"bits": 1, "size": 2, "table": "image"}]]


@reader("set.rdd", _coded_seeds)
def _set_rdd(data: bytes) -> object:
    from raydd.artifacts.formats import read_set

    found = read_set(f"{folder('coded', {'set.rdd': data})}/set.rdd")
    return found.tensors(), found.digest


@reader("inside set.rdd", lambda: [data[data.index(b"lib") - 6 :] for data in _coded_seeds()])
def _inside_rdd(data: bytes) -> object:
    """Bytes whose checksum is right."""
    from raydd.artifacts.set_file import sealed

    return _set_rdd(sealed(data))


def _run_files() -> dict[str, bytes]:
    from run_records import JOB, PLAN, RUNNING

    log = "".join(json.dumps(record) + "\n" for record in RUNNING)
    plain: dict[str, Any] = {"job.yaml": JOB, "plan.json": PLAN}
    return {name: json.dumps(value).encode() for name, value in plain.items()} | {
        "log.jsonl": log.encode()
    }


def _page(name: str, data: bytes) -> object:
    from raydd.runtime.page_file import page_of

    page, state = page_of(folder("run", _run_files() | {name: data}))
    return page.encode(), state


for _name in ("job.yaml", "plan.json", "log.jsonl", "report.json"):
    reader(f"page of a run: {_name}", lambda name=_name: [_run_files().get(name) or _report()])(
        lambda data, name=_name: _page(name, data)
    )


def _report() -> bytes:
    return (json.dumps(json.loads((_root() / "docs/results/quickstart.json").read_text()))).encode()


def _root() -> Any:
    from readers import ROOT

    return ROOT


assert PLACE
assert small_set
assert fsspec
