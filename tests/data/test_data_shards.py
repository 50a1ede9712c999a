"""Shards: the same bytes every time, resumable, read by ranges and in streams, and shards that others wrote."""

from __future__ import annotations

import functools
import hashlib
import io
import json
import pickle
import re
import shutil
import tarfile
import threading
from collections import Counter
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from raydd.core.errors import ConfigError, DataError, StorageError
from raydd.core.rng import generator
from raydd.core.storage import Storage
from raydd.data import shard_writing as writer
from raydd.data.config import DatasetConfig
from raydd.data.datasets import FoundData, describe, missing, open_data, with_digests
from raydd.data.shard_names import split_pattern
from raydd.data.shard_writing import write_shards
from raydd.data.split import BaseData
from raydd.shard import main

RNG = np.random.default_rng(11)


def picture(side: int) -> Image.Image:
    return Image.fromarray(RNG.integers(0, 255, (6, 6, 3), dtype=np.uint8)).resize(
        (side, side), Image.Resampling.BICUBIC
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for split, count in (("train", 9), ("test", 3)):
        for c in ("a", "b", "c"):
            (tmp_path / "files" / split / c).mkdir(parents=True)
            for i in range(count):
                kind = "png" if i == 1 else "jpg"
                picture(24).save(tmp_path / "files" / split / c / f"{i}.{kind}")
    return tmp_path / "files"


def write_both(config: DatasetConfig, out: Path, **options: Any) -> None:
    for split in ("train", "test"):
        write_shards(config, str(out), split, **options)


def by_identity(data: BaseData) -> dict[bytes, tuple[int, bytes]]:
    images = data.take(torch.arange(len(data)))
    return {
        bytes(key): (int(y), x.numpy().tobytes())
        for key, y, x in zip(data.identities(), data.labels, images)
    }


def digest_of(folder: Path) -> dict[str, str]:
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.glob("*.*"))
    }


@pytest.mark.parametrize("plan", [False, True])
def test_a_look_reads_and_asks_nothing_twice(
    folder: Path, tmp_path: Path, plan: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = DatasetConfig(name="image_folder", root=str(folder))
    write_both(own, tmp_path / "out")
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    for tar in (tmp_path / "out").glob("*.tar"):
        shutil.copy(tar, theirs)
    asked: Counter[str] = Counter()

    def counted(name: str) -> Any:
        real = getattr(Storage, name)

        def call(self: Storage, path: str = "", *more: Any, **options: Any) -> Any:
            asked[f"{name} {path} {more}"] += 1
            return real(self, path, *more, **options)

        return call

    for name in ("get", "exists", "children"):
        monkeypatch.setattr(Storage, name, counted(name))
    for place in ("out", "theirs", "theirs/t*.tar"):
        config = DatasetConfig(name="webdataset", shards=str(tmp_path / place))
        assert FoundData(config).look(plan=plan).splits is not None
        assert asked
        assert {what: count for what, count in asked.items() if count > 1} == {}, place
        asked.clear()
    assert FoundData(own).look(plan=plan).splits is not None
    assert {what: count for what, count in asked.items() if count > 1} == {}


def test_a_folder_and_its_shards_hold_the_same_samples(folder: Path, tmp_path: Path) -> None:
    source = DatasetConfig(name="image_folder", root=str(folder))
    out = str(tmp_path / "out")
    seen: list[tuple[int, int]] = []
    for split in ("train", "test"):
        manifest = write_shards(
            source, out, split, shard_size=7, workers=2, progress=lambda *step: seen.append(step)
        )
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4), (1, 2), (2, 2)]
    assert [shard["count"] for shard in manifest["splits"]["train"]["shards"]] == [7, 7, 7, 6]
    config = DatasetConfig(name="webdataset", shards=out)
    assert missing(config) == []
    info = describe(config)
    assert (info.class_names, info.shape) == (("a", "b", "c"), (3, 24, 24))
    original, read = open_data(source), open_data(config)
    for split in ("train", "test"):
        assert by_identity(original[split]) == by_identity(read[split])
    assert with_digests(info, read).train_counts == (9, 9, 9)
    with tarfile.open(tmp_path / "out" / "train-000000.tar") as tar:
        names = tar.getnames()
        stored = json.load(tar.extractfile(names[2]))
        assert tar.extractfile(names[0]).read() == (folder / stored["source"]).read_bytes()
    assert names[1] == names[0].split(".")[0] + ".cls"
    assert len(set(read["train"].labels[:7].tolist())) > 1


def test_a_holdout_is_the_same_from_files_and_from_shards(folder: Path, tmp_path: Path) -> None:
    write_both(DatasetConfig(name="image_folder", root=str(folder)), tmp_path / "out", shard_size=5)
    from_files = open_data(DatasetConfig(name="image_folder", root=str(folder), holdout=2))
    from_shards = open_data(
        DatasetConfig(name="webdataset", shards=str(tmp_path / "out"), holdout=2)
    )
    for split in ("train", "holdout"):
        assert by_identity(from_files[split]) == by_identity(from_shards[split])
    streamed = torch.cat(
        [y for part in range(3) for _, y in from_shards["holdout"].stream(part, 3, batch=2)]
    )
    assert torch.equal(streamed, from_shards["holdout"].labels)


@pytest.mark.slow
@pytest.mark.parametrize("encoding", ["png", "jpg", "original"])
def test_arrays_are_written_too_and_bytes_do_not_depend_on_workers(
    tmp_path: Path, encoding: str
) -> None:
    for name, workers in (("x", 1), ("y", 3)):
        write_both(
            DatasetConfig(name="digits"),
            tmp_path / name,
            shard_size=400,
            workers=workers,
            encoding=encoding,
        )
    assert digest_of(tmp_path / "x") == digest_of(tmp_path / "y")
    data = open_data(DatasetConfig(name="digits", shards=str(tmp_path / "x")))["train"]
    whole = open_data(DatasetConfig(name="digits"))["train"]
    if encoding == "jpg":
        assert set(by_identity(data)) == set(by_identity(whole))
    else:
        assert by_identity(data) == by_identity(whole)
    config = DatasetConfig(name="digits", shards=str(tmp_path / "x"), size=4)
    assert open_data(config)["train"].take(torch.tensor([0])).shape == (1, 1, 4, 4)


def test_take_and_stream_agree_whatever_the_cut(folder: Path, tmp_path: Path) -> None:
    write_both(DatasetConfig(name="image_folder", root=str(folder)), tmp_path / "out", shard_size=5)
    data = open_data(DatasetConfig(name="webdataset", shards=str(tmp_path / "out")))["train"]
    images = data.take(torch.arange(27))
    ids = torch.tensor([26, 0, 13, 13, 2, 9])
    assert torch.equal(data.take(ids), images[ids])
    for parts, batch in ((1, 256), (2, 4), (5, 3)):
        pairs = [pair for part in range(parts) for pair in data.stream(part, parts, batch=batch)]
        assert torch.equal(torch.cat([x for x, _ in pairs]), images)
        assert torch.equal(torch.cat([y for _, y in pairs]), data.labels)
    mixed = [
        torch.cat([x for x, _ in data.stream(0, 1, shuffle=generator(s, "epoch"))])
        for s in (0, 0, 1)
    ]
    assert torch.equal(mixed[0], mixed[1])
    assert not torch.equal(mixed[0], mixed[2])
    assert sorted(x.numpy().tobytes() for x in mixed[0]) == sorted(
        x.numpy().tobytes() for x in images
    )
    kept = next(iter(data.stream(0, 1, batch=9)))[0]
    before = kept.clone()
    list(data.stream(0, 1, batch=9))
    assert torch.equal(kept, before)
    again = pickle.loads(pickle.dumps(data))
    assert torch.equal(again.take(ids), images[ids])
    for batch in (0, -1):
        with pytest.raises(ConfigError, match=f"batch {batch}; allowed: at least 1"):
            next(data.stream(0, 1, batch=batch))


def test_an_interrupted_run_goes_on_and_redoes_only_what_is_torn(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = DatasetConfig(name="image_folder", root=str(folder))
    out = tmp_path / "out"
    write_shards(source, str(tmp_path / "whole"), shard_size=5)
    real, written = writer.write_shard, []

    def dies(job, number, ids, identity):  # type: ignore[no-untyped-def]
        if number == 3:
            raise KeyboardInterrupt
        return real(job, number, ids, identity)

    monkeypatch.setattr(writer, "write_shard", dies)
    with pytest.raises(KeyboardInterrupt):
        write_shards(source, str(out), shard_size=5, workers=1)
    assert not (out / "manifest.json").exists()
    assert (
        "'raydd shard' was interrupted there"
        in missing(DatasetConfig(name="webdataset", shards=str(out)))[0]
    )
    done = {path.name for path in (out / "parts").iterdir()}
    assert "train-000000.json" in done
    torn = out / "train-000001.tar"
    torn.write_bytes(torn.read_bytes()[:1000])

    def counts(job, number, ids, identity):  # type: ignore[no-untyped-def]
        written.append(number)
        return real(job, number, ids, identity)

    monkeypatch.setattr(writer, "write_shard", counts)
    write_shards(source, str(out), shard_size=5, workers=1)
    assert 0 not in written
    assert {1, 3} <= set(written)
    assert digest_of(out) == digest_of(tmp_path / "whole")
    written.clear()
    write_shards(source, str(out), shard_size=5)
    assert written == []


def test_splits_that_are_written_beside_each_other_are_both_published(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, out = DatasetConfig(name="image_folder", root=str(folder)), str(tmp_path / "out")
    real = writer._write_missing

    def meanwhile(job, workers, progress):  # type: ignore[no-untyped-def]
        if job.split == "train":
            write_shards(source, out, "test")
        return real(job, workers, progress)

    monkeypatch.setattr(writer, "_write_missing", meanwhile)
    assert sorted(write_shards(source, out, "train")["splits"]) == ["test", "train"]
    assert missing(DatasetConfig(name="webdataset", shards=out)) == []


def test_a_folder_of_other_shards_is_not_overwritten(folder: Path, tmp_path: Path) -> None:
    source = DatasetConfig(name="image_folder", root=str(folder))
    write_shards(source, str(tmp_path / "out"), shard_size=5)
    before = digest_of(tmp_path / "out")
    with pytest.raises(ConfigError, match="choose an empty folder"):
        write_shards(source, str(tmp_path / "out"), shard_size=6)
    with pytest.raises(ConfigError, match=r"holds shards with \w+"):
        write_shards(DatasetConfig(name="digits"), str(tmp_path / "out"))
    assert digest_of(tmp_path / "out") == before
    with pytest.raises(ConfigError, match="unknown split 'trian'"):
        write_shards(source, str(tmp_path / "new"), "trian")
    write_shards(DatasetConfig(name="digits"), str(tmp_path / "digits"), "test")
    with pytest.raises(ConfigError, match="10 classes"):
        describe(DatasetConfig(name="cifar100", shards=str(tmp_path / "digits")))


def test_tars_of_another_run_are_not_overwritten(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = DatasetConfig(name="image_folder", root=str(folder))
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "train-000001.tar").write_bytes(b"a set that was exported")
    with pytest.raises(ConfigError, match=r"of another run; choose an empty folder"):
        write_shards(config, str(tmp_path / "theirs"), shard_size=8)
    assert [path.name for path in (tmp_path / "theirs").iterdir()] == ["train-000001.tar"]
    assert (tmp_path / "theirs" / "train-000001.tar").read_bytes() == b"a set that was exported"

    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "cats.tar").write_bytes(b"pictures")
    with pytest.raises(
        ConfigError,
        match=r"holds cats\.tar, which was not written by raydd shard; choose an empty folder",
    ):
        write_shards(config, str(tmp_path / "other"), shard_size=8)
    assert [path.name for path in (tmp_path / "other").iterdir()] == ["cats.tar"]

    class Stop(Exception):
        pass

    def stop(*_: object) -> None:
        raise Stop

    with monkeypatch.context() as patch:  # another's that was interrupted before it was published
        patch.setattr("raydd.data.shard_writing._publish", stop)
        with pytest.raises(Stop):
            write_shards(config, str(tmp_path / "begun"), shard_size=8)
    with pytest.raises(ConfigError, match=r"of another run; choose an empty folder"):
        write_shards(config, str(tmp_path / "begun"), shard_size=4)
    write_shards(config, str(tmp_path / "begun"), "test", shard_size=8)
    write_shards(config, str(tmp_path / "begun"), shard_size=8)


def test_damage_is_named_by_shard_and_key_or_skipped(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    write_both(DatasetConfig(name="image_folder", root=str(folder)), out, shard_size=5)
    config = DatasetConfig(name="webdataset", shards=str(out))
    data = open_data(config)["train"]
    good = data.take(torch.arange(27))
    victim = int((data.index.shard == 2).nonzero()[0][1])
    content = bytearray((out / "train-000002.tar").read_bytes())
    start = int(data.index.offset[victim])
    content[start : start + int(data.index.size[victim])] = bytes(int(data.index.size[victim]))
    (out / "train-000002.tar").write_bytes(content)
    with pytest.raises(
        DataError,
        match=rf"sample '{data.index.keys[victim]}' of .*train-000002\.tar cannot be .*\.on_error=skip",
    ):
        list(open_data(config)["train"].stream(0, 1))
    skipping = open_data(DatasetConfig(name="webdataset", shards=str(out), on_error="skip"))[
        "train"
    ]
    images = torch.cat([x for x, _ in skipping.stream(0, 1, batch=6)])
    same = (data.labels == data.labels[victim]).nonzero().reshape(-1).tolist()
    expected = good.clone()
    expected[victim] = good[same[(same.index(victim) + 1) % len(same)]]
    assert torch.equal(images, expected)
    assert len(skipping.skipped) == 1
    (out / "train-000002.tar").write_bytes(bytes(content)[:3000])
    with pytest.raises(DataError, match=r"train-000002\.tar is torn"):
        list(open_data(config)["train"].stream(0, 1))
    (out / "train-000002.tar").unlink()
    assert any("train-000002.tar" in line for line in missing(config))
    index = out / "index-train.safetensors"
    index.write_bytes(index.read_bytes()[:-1] + b"\0\0")
    (out / "train-000002.tar").write_bytes(content)
    with pytest.raises(DataError, match=r"index-train\.safetensors is torn"):
        open_data(config)


def test_undecodable_files_stop_the_writing_or_are_left_out(folder: Path, tmp_path: Path) -> None:
    (folder / "train" / "b" / "4.jpg").write_bytes(b"\xff\xd8 no picture")
    with pytest.raises(
        DataError, match=r"train/b/4\.jpg cannot be decoded: .*; --on-error skip leaves out"
    ):
        write_shards(
            DatasetConfig(name="image_folder", root=str(folder)), str(tmp_path / "x"), shard_size=5
        )
    assert not (tmp_path / "x" / "manifest.json").exists()
    manifest = write_shards(
        DatasetConfig(name="image_folder", root=str(folder), on_error="skip"),
        str(tmp_path / "y"),
        shard_size=5,
    )
    lacking = missing(DatasetConfig(name="webdataset", shards=str(tmp_path / "y")))
    assert "the split 'test' is not in" in lacking[0]
    write_shards(
        DatasetConfig(name="image_folder", root=str(folder), on_error="skip"),
        str(tmp_path / "y"),
        "test",
        shard_size=5,
    )
    assert (manifest["splits"]["train"]["count"], manifest["splits"]["train"]["skipped"]) == (26, 1)
    data = open_data(DatasetConfig(name="webdataset", shards=str(tmp_path / "y")))
    assert (len(data["train"]), len(data["test"])) == (26, 9)


def jpeg(side: int = 20) -> bytes:
    target = io.BytesIO()
    picture(side).save(target, "JPEG")
    return target.getvalue()


def foreign(path: Path, members: list[tuple[str, bytes]]) -> None:
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))


class _Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (exec, ("raise SystemExit('ran')",))


def test_shards_of_others_are_indexed_without_unpacking_anything(tmp_path: Path) -> None:
    outside = tmp_path / "escaped.jpg"
    shards = tmp_path / "shards"
    shards.mkdir()
    for shard in range(2):
        members = [
            ("../../escaped.jpg", jpeg()),
            ("../../escaped.cls", b"1"),
            ("/etc/x.jpg", jpeg()),
            ("/etc/x.json", b'{"label": 2}'),
        ]
        members += [
            part
            for i in range(3)
            for part in ((f"s{shard}/{i}.jpg", jpeg()), (f"s{shard}/{i}.cls", b"0"))
        ]
        members += [
            (f"s{shard}/0.pyd", pickle.dumps(_Evil())),
            (f"s{shard}/0.pkl", pickle.dumps(_Evil())),
            ("README", b"text"),
        ]
        foreign(shards / f"train-{shard:03d}.tar", members)
    config = DatasetConfig(
        name="webdataset", shards=str(shards / "train-{000..001}.tar"), test_split=0.4
    )
    assert missing(config) == []
    info = describe(config)
    assert (info.classes, info.shape) == (3, (3, 20, 20))
    data = open_data(config)
    assert torch.bincount(data["train"].labels).tolist() == [4, 1, 1]
    assert torch.bincount(data["test"].labels).tolist() == [2, 1, 1]
    assert data["train"].take(torch.arange(6)).shape == (6, 3, 20, 20)
    assert not outside.exists()
    assert not (tmp_path.parent / "escaped.jpg").exists()
    kept = list(shards.glob(".raydd-index-*"))
    assert len(kept) == 1
    with_index = open_data(config)
    assert with_index["train"].digest == data["train"].digest
    both = DatasetConfig(
        name="webdataset", shards=config.shards, test_shards=str(shards / "train-000.tar")
    )
    assert [len(split) for split in open_data(both).values()] == [10, 5]
    assert (
        "train-002.tar is not in"
        in missing(DatasetConfig(name="webdataset", shards=str(shards / "train-{000..002}.tar")))[0]
    )


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([("a.jpg", b"x")], "sample 'a' has no label"),
        ([("a.jpg", b"x"), ("a.cls", b"cat")], "'a.cls' holds no label"),
        ([("a.jpg", b"x"), ("a.png", b"x"), ("a.cls", b"1")], "sample 'a' has two images"),
        (
            [("a.jpg", b"x"), ("a.cls", b"99999999999999999999")],
            "sample 'a' has the label 99999999999999999999",
        ),
        ([("a.cls", b"1")], "holds no labelled images"),
    ],
)
def test_shards_without_usable_labels_are_refused(
    tmp_path: Path, members: list[tuple[str, bytes]], message: str
) -> None:
    foreign(tmp_path / "x.tar", members)
    with pytest.raises(DataError, match=message):
        describe(DatasetConfig(name="webdataset", shards=str(tmp_path / "x.tar")))


def test_the_size_is_that_of_the_first_image_which_can_be_decoded(tmp_path: Path) -> None:
    broken = [
        ("0.jpg", b"\xff\xd8 no picture"),
        ("0.cls", b"0"),
        ("1.jpg", b"none"),
        ("1.cls", b"0"),
    ]
    foreign(
        tmp_path / "x.tar",
        [*broken, ("2.jpg", jpeg(60)), ("2.cls", b"0"), ("3.jpg", jpeg(60)), ("3.cls", b"0")],
    )
    config = DatasetConfig(name="webdataset", shards=str(tmp_path / "x.tar"), on_error="skip")
    assert describe(config).shape[1:] == (60, 60)
    with pytest.raises(
        DataError,
        match=r"sample '0' of .*x\.tar cannot be decoded: .*; dataset\.on_error=skip goes on",
    ):
        describe(DatasetConfig(name="webdataset", shards=str(tmp_path / "x.tar")))
    foreign(tmp_path / "y.tar", broken)
    with pytest.raises(
        DataError, match=r"sample '0' of .*y\.tar cannot be decoded: .* \(nor can the 1 after it\)"
    ):
        describe(DatasetConfig(name="webdataset", shards=str(tmp_path / "y.tar"), on_error="skip"))


@pytest.mark.parametrize(
    "splits",
    [
        '{"train": {}}',
        '{"train": {"count": 1, "index_sha256": "", "shards": [{}]}}',
        '{"train": 3}',
    ],
)
def test_a_manifest_that_lacks_something_is_torn(folder: Path, tmp_path: Path, splits: str) -> None:
    out = tmp_path / "out"
    write_both(DatasetConfig(name="image_folder", root=str(folder)), out, shard_size=5)
    manifest = json.loads((out / "manifest.json").read_text())
    (out / "manifest.json").write_text(json.dumps(manifest | {"splits": json.loads(splits)}))
    with pytest.raises(DataError, match=r"manifest\.json is torn: "):
        open_data(DatasetConfig(name="webdataset", shards=str(out)))


def test_a_torn_foreign_shard_is_named(tmp_path: Path) -> None:
    foreign(
        tmp_path / "x.tar",
        [part for i in range(5) for part in ((f"{i}.jpg", jpeg(60)), (f"{i}.cls", b"0"))],
    )
    content = (tmp_path / "x.tar").read_bytes()
    (tmp_path / "x.tar").write_bytes(content[:2000])
    with pytest.raises(DataError, match=r"x\.tar is torn"):
        describe(DatasetConfig(name="webdataset", shards=str(tmp_path / "x.tar")))


class _Files(SimpleHTTPRequestHandler):
    """Files below a folder, whole or, where ``ranges``, the bytes asked for; nothing can be written."""

    ranges = True
    puts: ClassVar[list[str]] = []

    def log_message(self, *args: object) -> None:
        """Say nothing."""

    def do_PUT(self) -> None:
        self.puts.append(self.path)
        self.send_error(405)

    def do_GET(self) -> None:
        asked = (
            re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
            if self.ranges
            else None
        )
        if asked is None:
            return super().do_GET()
        part = Path(self.translate_path(self.path)).read_bytes()[int(asked[1]) : int(asked[2]) + 1]
        self.send_response(206)
        self.send_header("Content-Length", str(len(part)))
        self.end_headers()
        self.wfile.write(part)
        return None


@pytest.fixture
def web(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setattr(_Files, "puts", [])
    server = ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(_Files, directory=str(tmp_path))
    )
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_shards_are_read_from_a_web_server_that_cannot_be_written(
    web: str, folder: Path, tmp_path: Path
) -> None:
    write_both(DatasetConfig(name="image_folder", root=str(folder)), tmp_path / "out", shard_size=5)
    config = DatasetConfig(
        name="webdataset",
        shards=f"{web}/out/train-{{000000..000005}}.tar",
        test_shards=f"{web}/out/test-000000.tar",
    )
    read = open_data(config)["train"].take(torch.arange(27))
    assert torch.equal(
        read,
        open_data(DatasetConfig(name="webdataset", shards=str(tmp_path / "out")))["train"].take(
            torch.arange(27)
        ),
    )
    assert _Files.puts == []  # the index is kept where it can be written


def test_a_server_that_sends_whole_files_only_is_named(
    web: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_both(DatasetConfig(name="image_folder", root=str(folder)), tmp_path / "out", shard_size=5)
    monkeypatch.setattr(_Files, "ranges", False)
    data = open_data(DatasetConfig(name="webdataset", shards=f"{web}/out"))["train"]
    with pytest.raises(
        StorageError, match=r"train-00000\d\.tar: its server sends whole files only"
    ):
        list(data.stream(0, 1))
    with pytest.raises(StorageError, match=r"train-000000\.tar: its server sends whole files only"):
        describe(DatasetConfig(name="webdataset", shards=f"{web}/out/train-000000.tar"))


def test_patterns_have_braces_in_the_file_name_only() -> None:
    assert split_pattern("s3://b/x/t-{08..10}.tar", "k") == (
        "s3://b/x",
        ["t-08.tar", "t-09.tar", "t-10.tar"],
    )
    with pytest.raises(ConfigError, match="braces or wildcards in a folder"):
        split_pattern("s3://b/{a,b}/t.tar", "k")
    with pytest.raises(ConfigError, match="unbalanced"):
        split_pattern("s3://b/t-{0..3.tar", "k")


def test_the_command_names_its_own_options(tmp_path: Path) -> None:
    for name, side in (("a/0.png", 8), ("a/1.png", 8), ("b/0.png", 8), ("b/1.png", 9)):
        (tmp_path / "own" / "train" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (side, side)).save(tmp_path / "own" / "train" / name)
    (tmp_path / "own" / "train" / "a" / "0.png").write_bytes(b"torn")
    ask = ["--root", str(tmp_path / "own"), str(tmp_path / "out"), "--workers", "1"]
    torn = CliRunner().invoke(main, ["--dataset", "image_folder", *ask])
    assert (torn.exit_code, "--on-error skip goes on to the next" in torn.output) == (2, True), (
        torn.output
    )
    small = CliRunner().invoke(
        main, ["--dataset", "image_folder", *ask, "--size", "8", "--resize", "4"]
    )
    assert "--resize: 4 is below --size 8" in small.output
    for result in (torn, small):
        assert "dataset." not in result.output


def test_the_command_writes_every_split(tmp_path: Path) -> None:
    out = str(tmp_path / "digits")
    result = CliRunner().invoke(
        main, ["--dataset", "digits", out, "--shard-size", "500", "--workers", "1"]
    )
    assert result.exit_code == 0, result.output
    assert "train: 1438 images in 3 shards" in result.output
    assert "test: 359 images in 1 shards" in result.output
    assert sorted(open_data(DatasetConfig(name="digits", shards=out))) == ["test", "train"]
    wrong = CliRunner().invoke(main, ["--dataset", "digit", out])
    assert wrong.exit_code == 2
    assert "did you mean 'digits'" in wrong.output
