"""Everything of raydd that reads what others may have written, as functions of bytes, and files to begin with.

A :class:`Reader` gets bytes as one file of an otherwise whole folder in memory, reads it as raydd does, and uses what
it got. It may return or raise one of raydd's errors; anything else is a mistake of raydd's.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import os
import sys
import tempfile
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fsspec
import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tests"), str(Path(__file__).resolve().parent)]


PLACE = "memory://reliability"
WORK = Path(tempfile.gettempdir()) / f"raydd-hostile-{os.getpid()}"
"""Where readers of paths of this machine read."""


@dataclass(frozen=True)
class Reader:
    """``read``: takes one file's bytes; ``seeds``: makes whole files to begin with."""

    name: str
    read: Callable[[bytes], object]
    seeds: Callable[[], Sequence[bytes]]


READERS: dict[str, Reader] = {}


def reader(name: str, seeds: Callable[[], Sequence[bytes]]) -> Callable[[Any], Any]:
    """Register a function of bytes."""

    def add(read: Callable[[bytes], object]) -> Callable[[bytes], object]:
        READERS[name] = Reader(name, read, seeds)
        return read

    return add


def folder(name: str, files: dict[str, bytes]) -> str:
    """Put files into a folder in memory in place of what was there; return its URL."""
    memory = fsspec.filesystem("memory")
    root = f"/reliability/{name}"
    for path in [path for path in memory.store if path.startswith(f"{root}/")]:
        del memory.store[path]
    for path, data in files.items():
        memory.pipe_file(f"{root}/{path}", data)
    return f"{PLACE}/{name}"


def file(name: str, data: bytes) -> str:
    """Write a file of this machine; return its path."""
    WORK.mkdir(exist_ok=True)
    path = WORK / name
    path.write_bytes(data)
    return str(path)


def _silent(line: str, *_: object) -> None:
    """Hear a remark."""


# --- jobs and spaces ---------------------------------------------------------------------------------------------


def _jobs() -> list[bytes]:
    return [
        (ROOT / "jobs/quickstart.yaml").read_bytes(),
        b"name: a\ndataset: {name: digits}\nmethod: {name: dm, iterations: 4}\nipc: 1\nseeds: [0, 1]\n",
        b"dataset: {name: digits}\nmethod: edc\nby_ipc:\n  1: {method.iterations: 3}\nipc: 1\n",
        b"a: &a {x: 1}\nb: {<<: *a}\nc: [*a, *a]\n? [d]\n: !!python/name:os.system e\n",
    ]


@reader("job file", _jobs)
def _job(data: bytes) -> object:
    from raydd.config import load_job

    return load_job(file("job.yaml", data)).to_yaml()


@reader("override", lambda: [b"method.iterations=3", b"seeds=[0, 1]", b"dataset={name: digits}"])
def _override(data: bytes) -> object:
    from raydd.config import load_job

    text = data.decode("utf-8", errors="replace")
    return load_job(str(ROOT / "jobs/quickstart.yaml"), [text]).to_yaml()


@cache
def _quickstart() -> Any:
    from raydd.config import read_job

    return read_job(str(ROOT / "jobs/quickstart.yaml"))


@reader(
    "space file",
    lambda: [p.read_bytes() for p in sorted((ROOT / "tune_spaces").glob("*.yaml"))[:3]],
)
def _space(data: bytes) -> object:
    from raydd.search.space_reading import load_space

    return load_space(file("space.yaml", data), _quickstart())


# --- distilled sets ----------------------------------------------------------------------------------------------


@cache
def published() -> dict[str, bytes]:
    """Return the files of a small published set, by path."""
    from raydd.artifacts.published_folder import publish

    url = folder("published", {})
    publish(small_set(20), url)
    memory = fsspec.filesystem("memory")
    cut = len("/reliability/published/")
    return {
        k[cut:]: bytes(memory.cat_file(k)) for k in sorted(memory.find("/reliability/published"))
    }


def _use(distilled: Any) -> object:
    first = torch.arange(min(2, distilled.seen))
    return distilled.take(first), distilled.targets_of(first), distilled.digest


def _read(url: str, **how: Any) -> object:
    from raydd.artifacts.formats import read_set

    return _use(read_set(url, tell=_silent, **how))


def _relisted(files: dict[str, bytes]) -> dict[str, bytes]:
    """Return a published set's files with a manifest that says what they are."""
    manifest = json.loads(files["manifest.json"])
    for path, facts in manifest["files"].items():
        facts |= {"size": len(files[path]), "sha256": hashlib.sha256(files[path]).hexdigest()}
    return files | {"manifest.json": json.dumps(manifest).encode()}


@reader("manifest of a set", lambda: [published()["manifest.json"]])
def _manifest(data: bytes) -> object:
    from raydd.artifacts.published_folder import verify

    url = folder("set", published() | {"manifest.json": data})
    _read(url)
    return verify(url)


@reader("data.safetensors", lambda: [published()["data.safetensors"]])
def _data(data: bytes) -> object:
    from raydd.artifacts.formats import data_set_at

    url = folder("set", _relisted(published() | {"data.safetensors": data}))
    data_set_at(f"{url}/data.safetensors")
    return _read(url)


def _facts() -> list[bytes]:
    from raydd.core.tensors import load_metadata

    plain = load_metadata(published()["data.safetensors"])["raydd"]
    other = json.loads(plain)
    other["decoding"] = {"name": "partition", "parameters": {"factor": 2}}
    return [plain.encode(), json.dumps(other).encode()]


@reader("facts of a set", _facts)
def _set_facts(data: bytes) -> object:
    from raydd.core.tensors import dump_tensors, load_tensors

    tensors = load_tensors(published()["data.safetensors"])
    text = data.decode("utf-8", errors="replace")
    whole = dump_tensors(tensors, {"raydd": text})
    return _read(f"{folder('one', {'data.safetensors': whole})}/data.safetensors")


@reader(
    "recipe", lambda: [published()["recipe.json"], b'{"method": {"name": "dm"}, "job": {"ipc": 1}}']
)
def _recipe(data: bytes) -> object:
    return _read(folder("set", _relisted(published() | {"recipe.json": data})))


def saved(value: Any, **how: Any) -> bytes:
    """Return what ``torch.save`` writes."""
    target = io.BytesIO()
    torch.save(value, target, **how)
    return target.getvalue()


def _pts() -> list[bytes]:
    images, labels = torch.rand(10, 1, 8, 8), torch.arange(10)
    return [
        saved((images, labels)),
        saved({"data": [[images, labels]], "accs_all_exps": {"ConvNet": [0.5, 0.6]}}),
        saved({"images": images, "labels": labels}, _use_new_zipfile_serialization=False),
    ]


@reader(".pt set", _pts)
def _pt(data: bytes) -> object:
    return _read(f"{folder('pt', {'set.pt': data})}/set.pt", info="digits")


def pickled(pickle: bytes) -> bytes:
    """Return a file of ``torch.save`` whose pickle is another."""
    whole, target = zipfile.ZipFile(io.BytesIO(_pts()[0])), io.BytesIO()
    with zipfile.ZipFile(target, "w") as archive:
        for member in whole.infolist():
            own = member.filename.endswith("data.pkl")
            archive.writestr(member.filename, pickle if own else whole.read(member))
    return target.getvalue()


def _pickles() -> list[bytes]:
    found = []
    for data in _pts()[:2]:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            (name,) = (n for n in archive.namelist() if n.endswith("data.pkl"))
            found.append(archive.read(name))
    return found


@reader("pickle of a .pt set", _pickles)
def _pickle(data: bytes) -> object:
    return _pt(pickled(data))


@reader("header of data.safetensors", lambda: [headed(published()["data.safetensors"])])
def _header(data: bytes) -> object:
    return _data(with_header(published()["data.safetensors"], data))


def headed(data: bytes) -> bytes:
    """Return the header of a safetensors file."""
    return data[8 : 8 + int.from_bytes(data[:8], "little")]


def with_header(data: bytes, header: bytes) -> bytes:
    """Return a safetensors file with another header."""
    rest = data[8 + int.from_bytes(data[:8], "little") :]
    return len(header).to_bytes(8, "little") + header + rest


@reader(
    "weights", lambda: [*_pts()[:1], saved({"state_dict": {"w": torch.ones(2, 2)}, "epoch": 3})]
)
def _weights(data: bytes) -> object:
    from raydd.networks.fitting import fit
    from raydd.networks.zoo import create_network
    from raydd.training.checkpoints import find_weights
    from raydd.training.weights import parse_weights

    value, _, _ = parse_weights(data, "memory://weights.pth")
    network = create_network("convnet1_w4", (1, 8, 8), 10, torch.Generator())
    return find_weights(value, "memory://weights.pth", lambda s, w: fit(network, s, w))


@cache
def coded() -> tuple[bytes, ...]:
    """Return small coded sets, one for each kind of codec."""
    from raydd.artifacts.coded_facts import ImageCodec
    from raydd.artifacts.image_codecs import encode

    kinds = (ImageCodec(bits=2), ImageCodec(bits=8), ImageCodec(codec="webp"))
    return tuple(encode(small_set(20), kind) for kind in kinds)


@reader("set.rdd", lambda: list(coded()))
def _coded(data: bytes) -> object:
    return _read(f"{folder('coded', {'set.rdd': data})}/set.rdd", info="digits")


def _bodies() -> list[bytes]:
    from raydd.artifacts.byte_reader import ByteReader
    from raydd.artifacts.set_file import CHECK, MAGIC

    found = []
    for data in coded():
        reader = ByteReader(data, len(MAGIC))
        reader.varint()
        reader.take(CHECK)
        found.append(data[reader.at :])
    return found


@reader("body of set.rdd", _bodies)
def _body(data: bytes) -> object:
    from raydd.artifacts.byte_reader import varint
    from raydd.artifacts.set_file import CHECK, MAGIC

    rest = hashlib.sha256(data).digest()[:CHECK] + data
    size = next(
        n for n in range(len(rest) + 5, len(rest) + 12) if len(MAGIC + varint(n) + rest) == n
    )
    return _coded(MAGIC + varint(size) + rest)


# --- labels ------------------------------------------------------------------------------------------------------


def small_set(count: int) -> Any:
    """Return a set of so many images of the digits."""
    from raydd.artifacts.distilled_set import DistilledSet
    from raydd.data.catalog import entry

    images = torch.arange(count * 64, dtype=torch.float32).reshape(count, 1, 8, 8) / (64 * count)
    return DistilledSet(images=images, labels=torch.arange(count) % 10, info=entry("digits").info)


def _first_batch(labels: Any, made: Any) -> object:
    """Read the first batch of labels as students do."""
    from raydd.core.rng import generator
    from raydd.core.units import Numerics

    ctx = SimpleNamespace(device=torch.device("cpu"), numerics=Numerics())
    found = labels.open(made, ctx)
    return next(iter(found.batches(0, labels.config.batch, partial(generator, 0))), None)


@cache
def stored_labels(codec: str) -> dict[str, bytes]:
    """Return a manifest of stored labels and its one record."""
    from raydd.core.tensors import dump_tensors
    from raydd.labels.codecs import STATIC
    from raydd.labels.label_config import LabelConfig
    from raydd.labels.records import DIGEST_BYTES, blank, layout
    from raydd.labels.relabel import FORMAT, VERSION

    made, config = (
        small_set(20),
        LabelConfig(batch=5, epochs=1, codec=codec, top=3 if codec == "topk" else None),
    )
    digest = torch.frombuffer(bytearray.fromhex(made.digest), dtype=torch.uint8)
    assert len(digest) == DIGEST_BYTES
    if config.static:
        record = {n: torch.zeros(20, *s, dtype=d) for n, (d, s) in layout(config, 10).items()}
    else:
        record = blank(config, 20, 10, torch.device("cpu"))
        record["index"][:] = torch.arange(20)
        record["perm"] = (torch.arange(20) % 5).to(torch.uint16)
        record["coords"][:] = torch.tensor([0.0, 0.0, 1.0, 1.0])
    name = f"{STATIC if config.static else 'epoch-000'}.safetensors"
    data = dump_tensors(record | {"images": digest})
    values = {
        "format": FORMAT, "version": VERSION, "config": dataclasses.asdict(config), "images": 20, "classes": 10,
        "files": {name: {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}},
    }  # fmt: skip
    return {"manifest.json": json.dumps(values).encode(), name: data}


def _label_files(files: dict[str, bytes]) -> object:
    from raydd.labels.published import PublishedLabels

    labels = PublishedLabels.at(folder("labels", files))
    return _first_batch(labels, small_set(20))


CODED = ("fp16", "int8", "topk", "static")


@reader("manifest of labels", lambda: [stored_labels(codec)["manifest.json"] for codec in CODED])
def _label_manifest(data: bytes) -> object:
    return _label_files(stored_labels("fp16") | {"manifest.json": data})


def _record(codec: str, data: bytes) -> object:
    files = dict(stored_labels(codec))
    name = next(name for name in files if name != "manifest.json")
    values = json.loads(files["manifest.json"])
    values["files"] = {name: {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}}
    return _label_files({"manifest.json": json.dumps(values).encode(), name: data})


def _records(codec: str) -> list[bytes]:
    return [data for name, data in stored_labels(codec).items() if name != "manifest.json"]


for _codec in CODED:
    reader(f"labels of {_codec}", lambda codec=_codec: _records(codec))(
        lambda data, codec=_codec: _record(codec, data)
    )


def _fkds() -> list[bytes]:
    n = 4
    head = [
        torch.tensor([[0.0, 0.0, 1.0, 1.0]]).repeat(n, 1),
        torch.zeros(n, dtype=torch.bool),
        torch.randperm(n),
        0.5,
    ]
    box = [np.int64(1), np.int64(1), np.int64(4), np.int64(4)]
    logits = torch.rand(n, 10).half()
    order = torch.zeros(n, 2, 2, dtype=torch.int32)
    return [saved([*head, box, logits]), saved([*head, None, logits, torch.arange(n), order])]


@reader("header of labels", lambda: [headed(_records("fp16")[0])])
def _label_header(data: bytes) -> object:
    return _record("fp16", with_header(_records("fp16")[0], data))


@reader("FKD labels", _fkds)
def _fkd(data: bytes) -> object:
    from raydd.labels.fkd import FkdLabels

    return _first_batch(FkdLabels.at(folder("fkd", {"epoch_0/batch_0.tar": data})), small_set(4))
