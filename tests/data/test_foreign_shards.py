"""Tars that others wrote: which members make a sample, what is counted, what is refused in which words."""

from __future__ import annotations

import gzip
import io
import json
import os
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from raydd.core.errors import ConfigError, DataError
from raydd.core.storage import Storage
from raydd.data import tar_index
from raydd.data.config import DatasetConfig
from raydd.data.datasets import FoundData, describe, missing, open_data, with_digests
from raydd.data.images import EXTENSIONS
from raydd.data.shard_data import ShardData
from raydd.data.shard_writing import write_shards

Members = list[tuple[str, bytes]]


def encoded(value: int, kind: str = "PNG") -> bytes:
    target = io.BytesIO()
    Image.fromarray(np.full((8, 8, 3), value, np.uint8)).save(target, kind)
    return target.getvalue()


def tar(path: Path, members: Members, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", **options) as file:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            file.addfile(member, io.BytesIO(content))
    return path


def pairs(count: int, classes: int = 2, first: int = 0, name: str = "{:04d}") -> Members:
    return [
        part
        for i in range(count)
        for part in (
            (f"{name.format(i)}.png", encoded(i)),
            (f"{name.format(i)}.cls", b"%d" % (first + i % classes)),
        )
    ]


def config(shards: Path | str, **more: Any) -> DatasetConfig:
    return DatasetConfig(name="webdataset", shards=str(shards), size=8, **more)


def whole(shards: Path | str, **more: Any) -> ShardData:
    """Return all samples of some shards, as the test split too."""
    data = open_data(config(shards, test_shards=str(shards), **more))["train"]
    assert isinstance(data, ShardData)
    return data


def read(shards: Path | str, **more: Any) -> list[tuple[str, int, int]]:
    """Return key, label and grey value of each sample."""
    data = whole(shards, **more)
    values = data.take(torch.arange(len(data)))[:, 0, 0, 0].tolist()
    return list(zip(data.index.keys, data.labels.tolist(), values))


NAMED: dict[str, tuple[Members, list[tuple[str, int, int]]]] = {
    "dotted base names": (
        [
            ("img.0001.png", encoded(1)),
            ("img.0001.cls", b"1"),
            ("img.0002.png", encoded(2)),
            ("img.0002.cls", b"0"),
        ],
        [("img.0001", 1, 1), ("img.0002", 0, 2)],
    ),
    "several dots, in folders with dots": (
        [
            ("v1.0/a.b.c.1.cls", b"1"),
            ("v1.0/a.b.c.1.png", encoded(1)),
            ("v1.0/a.b.d.1.cls", b"0"),
            ("v1.0/a.b.d.1.png", encoded(2)),
        ],
        [("v1.0/a.b.c.1", 1, 1), ("v1.0/a.b.d.1", 0, 2)],
    ),
    "a name that another goes on": (
        [
            ("img.png", encoded(1)),
            ("img.cls", b"1"),
            ("img.0.png", encoded(2)),
            ("img.0.cls", b"0"),
        ],
        [("img", 1, 1), ("img.0", 0, 2)],
    ),
    "parts of a sample": (
        [
            ("0.cls", b"1"),
            ("0.rgb.png", encoded(1)),
            ("1.rgb.png", encoded(2)),
            ("1.cls", b"0"),
            ("1.txt", b"a cat"),
        ],
        [("0.rgb", 1, 1), ("1.rgb", 0, 2)],
    ),
    "parts of a sample, each with a name": (
        [
            ("0.image.png", encoded(1)),
            ("0.label.cls", b"1"),
            ("1.image.png", encoded(2)),
            ("1.label.cls", b"0"),
        ],
        [("0.image", 1, 1), ("1.image", 0, 2)],
    ),
    "a mask beside the picture": (
        [
            ("0.png", encoded(1)),
            ("0.seg.png", encoded(9)),
            ("0.cls", b"1"),
            ("1.png", encoded(2)),
            ("1.cls", b"0"),
        ],
        [("0", 1, 1), ("1", 0, 2)],
    ),
    "./ before some": (
        [("./0.png", encoded(1)), ("0.cls", b"1"), ("a//1.png", encoded(2)), ("a/1.cls", b"0")],
        [("./0", 1, 1), ("a//1", 0, 2)],
    ),
    "labels as people write them": (
        [
            *((f"{i}.png", encoded(i)) for i in range(6)),
            *zip([f"{i}.CLS" for i in range(3)], [b" 1\r\n", b"\xef\xbb\xbf0\n", b"1.0"]),
            *zip(
                [f"{i}.json" for i in range(3, 6)],
                [b'{"label": 0}', b'{"cls": "1"}', b'{"class_id": 0.0, "label": null}'],
            ),
        ],
        [("0", 1, 0), ("1", 0, 1), ("2", 1, 2), ("3", 0, 3), ("4", 1, 4), ("5", 0, 5)],
    ),
    "JSON before and beside a label": (
        [
            *(
                ("0.json", json.dumps({"label": 7, "e": [0.5] * 40_000}).encode()),
                ("0.cls", b"1"),
                ("0.png", encoded(1)),
            ),
            *(("1.json", b"not json"), ("1.cls", b"0"), ("1.png", encoded(2))),
        ],
        [("0", 1, 1), ("1", 0, 2)],
    ),
    "labels in JSON of any size": (
        [
            *(
                ("0.json", json.dumps({"e": [0.5] * 40_000, "label": 1}).encode()),
                ("0.png", encoded(1)),
            ),
            *(
                ("1.png", encoded(2)),
                ("1.json", json.dumps({"label": 0, "e": [0.5] * 40_000}).encode()),
            ),
        ],
        [("0", 1, 1), ("1", 0, 2)],
    ),
}


@pytest.mark.parametrize("kind", NAMED)
def test_members_of_one_sample_are_known_by_their_names(tmp_path: Path, kind: str) -> None:
    members, expected = NAMED[kind]
    assert read(tar(tmp_path / "x.tar", members)) == expected


@pytest.mark.parametrize(
    "options", [{"format": tarfile.GNU_FORMAT}, {"format": tarfile.PAX_FORMAT}]
)
def test_long_names_odd_bytes_and_links(tmp_path: Path, options: dict[str, Any]) -> None:
    long = "folder/" * 40 + "ü" * 20
    with tarfile.open(
        tmp_path / "x.tar", "w", encoding="latin-1", errors="surrogateescape", **options
    ) as file:
        for name, content in (
            (f"{long}.png", encoded(1)),
            (f"{long}.cls", b"1"),
            ("b\udcff.png", encoded(2)),
            ("b\udcff.cls", b"0"),
        ):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            file.addfile(member, io.BytesIO(content))
        for name, target, kind in (
            ("c.png", f"{long}.png", tarfile.LNKTYPE),
            ("d/c.cls", "../c.cls", tarfile.SYMTYPE),
        ):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, target
            file.addfile(member)
        member = tarfile.TarInfo("c.cls")
        member.size = 1
        file.addfile(member, io.BytesIO(b"0"))
    found = read(tmp_path / "x.tar")
    assert [(label, value) for _, label, value in found] == [(1, 1), (0, 2), (0, 1)]
    again = whole(tmp_path / "x.tar")
    assert again.left_out.to_dict() == {
        "label without a picture": {"count": 1, "examples": ["x.tar: d/c"]}
    }


def test_every_format_that_folders_read_is_read_from_shards(tmp_path: Path) -> None:
    kinds = {
        "png": "PNG",
        "bmp": "BMP",
        "webp": "WEBP",
        "tif": "TIFF",
        "ppm": "PPM",
        "gif": "GIF",
        "jpe": "JPEG",
        "jp2": "JPEG2000",
    }
    kinds = {ending: kind for ending, kind in kinds.items() if ending in EXTENSIONS}
    assert len(kinds) > 5
    members = [
        part
        for i, (end, kind) in enumerate(kinds.items())
        for part in ((f"{i}.{end.upper()}", encoded(9, kind)), (f"{i}.cls", b"%d" % (i % 2)))
    ]
    assert len(read(tar(tmp_path / "x.tar", members))) == len(kinds)


def test_what_is_no_sample_is_counted(tmp_path: Path) -> None:
    tar(tmp_path / "t-0.tar", [])
    more = [
        ("n.npy", b"x"),
        ("n.cls", b"0"),
        ("lonely.png", encoded(1)),
        ("alone.cls", b"1"),
        ("._0000.png", b"x"),
        ("README", b"x"),
    ]
    tar(
        tmp_path / "t-1.tar",
        [
            *pairs(4),
            *more,
            (".ipynb_checkpoints/0.png", encoded(1)),
            ("__MACOSX/0.png", b"x"),
            ("0000.seg.png", b"x"),
        ],
    )
    data = whole(tmp_path / "t-{0..1}.tar")
    assert len(data) == 4
    assert {
        reason: (found.count, found.examples[0]) for reason, found in data.left_out.reasons.items()
    } == {
        "shard without members": (1, "t-0.tar"),
        "hidden file": (3, "t-1.tar: ._0000.png"),
        "further picture of a sample": (1, "t-1.tar: 0000.seg"),
        "picture without a label": (1, "t-1.tar: lonely"),
        "labelled sample of format .npy, which is no picture": (1, "t-1.tar: n"),
        "label without a picture": (1, "t-1.tar: alone"),
    }
    kept = whole(tmp_path / "t-{0..1}.tar")  # by the index that was written beside them
    assert (kept.left_out.to_dict(), kept.digest) == (data.left_out.to_dict(), data.digest)


REFUSED: dict[str, tuple[Members, str]] = {
    "two images": ([*pairs(2), ("0000.jpg", b"x")], r"sample '0000' has two images"),
    "the same member twice": (
        [*pairs(2), ("0000.png", encoded(5))],
        r"sample '0000' has two images",
    ),
    "two labels": ([*pairs(2), ("0000.cls", b"1")], r"sample '0000' has two labels, 0 and 1"),
    "two views": (
        [*pairs(2), ("9.left.png", b"x"), ("9.right.png", b"x"), ("9.cls", b"1")],
        r"sample '9' has 2 images: 9\.left, 9\.right",
    ),
    "two kinds of labels": (
        [*pairs(2), ("9.png", b"x"), ("9.fine.cls", b"1"), ("9.coarse.cls", b"1")],
        r"sample '9' has 2 labels: ",
    ),
    "a name": (
        [*pairs(2), ("9.png", b"x"), ("9.cls", b"cat")],
        r"'9\.cls' holds no label: 'cat' is a name; number the classes from 0, or",
    ),
    "a fraction": (
        [*pairs(2), ("9.png", b"x"), ("9.json", b'{"label": 0.5}')],
        r"'9\.json' holds no label: '0\.5' is no whole number",
    ),
    "a list": (
        [*pairs(2), ("9.png", b"x"), ("9.json", b'{"label": [0, 1]}')],
        r"'9\.json' holds no label: '\[0, 1\]' is no whole number",
    ),
    "endless": (
        [*pairs(2), ("9.png", b"x"), ("9.json", b'{"label": Infinity}')],
        r"'9\.json' holds no label",
    ),
    "torn JSON": (
        [*pairs(2), ("9.png", b"x"), ("9.json", b'{"label": ')],
        r"'9\.json' holds no label",
    ),
    "below 0": (
        [*pairs(2), ("9.png", b"x"), ("9.cls", b"-1")],
        r"sample '9' has the label -1; classes are numbered from 0",
    ),
    "no label at all": (
        [*pairs(2), ("9.png", b"x"), ("9.cls", b"x" * 70_000)],
        r"'9\.cls' holds no label: it has 70000 bytes",
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_samples_that_cannot_be_told_are_refused_by_name_or_left_out(
    tmp_path: Path, kind: str
) -> None:
    members, message = REFUSED[kind]
    path = tar(tmp_path / "x.tar", members)
    with pytest.raises(DataError, match=rf"x\.tar: {message}"):
        whole(path)
    data = whole(path, on_error="skip")
    assert sum(found.count for found in data.left_out.reasons.values()) == 1
    assert len(data) + ("'0000'" in message) == 2
    with pytest.raises(DataError, match=r"dataset.on_error=skip leaves out"):
        whole(path)


def test_a_label_larger_than_there_can_be_classes_is_refused(tmp_path: Path) -> None:
    tar(tmp_path / "x.tar", [*pairs(4), ("9.png", encoded(1)), ("9.cls", b"2000000000")])
    for skip in ("raise", "skip"):
        with pytest.raises(
            DataError,
            match=r"sample '9' of x\.tar has the label 2000000000, but there are 5 samples",
        ):
            describe(config(tmp_path / "x.tar", on_error=skip))


def test_two_samples_are_never_made_one(tmp_path: Path) -> None:
    """A picture whose label is lost and a label whose picture is lost stay what they are."""
    members = [*pairs(3, name="img.{:04d}"), ("img.0007.png", encoded(7)), ("img.0009.cls", b"1")]
    data = whole(tar(tmp_path / "x.tar", members))
    assert data.index.keys == ["img.0000", "img.0001", "img.0002"]
    assert set(data.left_out.reasons) == {"picture without a label", "label without a picture"}
    with pytest.raises(
        DataError,
        match=r"no labelled images: 1 × .png, 1 × .cls; left out: 1 × picture without a label",
    ):
        whole(tar(tmp_path / "y.tar", members[-2:]))


def cut(path: Path, at: int) -> None:
    with path.open("r+b") as file:
        file.truncate(at)


def test_a_shard_without_its_end_mark_is_torn_wherever_it_was_cut(tmp_path: Path) -> None:
    path, intact = tmp_path / "t-1.tar", tar(tmp_path / "t-0.tar", pairs(4))
    with tarfile.open(tar(path, pairs(6))) as file:
        ends = [member.offset_data + -(-member.size // 512) * 512 for member in file.getmembers()]
    content = path.read_bytes()
    for at, samples in (
        (ends[5], 3),
        (ends[4], 2),
        (ends[6] - 600, 3),
        (ends[5] + 100, 3),
        (ends[-1], 6),
        (ends[-1] + 511, 6),
        (0, 0),
    ):
        path.write_bytes(content)
        cut(path, at)
        with pytest.raises(DataError, match=r"t-1\.tar is torn: "):
            whole(tmp_path / "t-{0..1}.tar")
        data = whole(tmp_path / "t-{0..1}.tar", on_error="skip")
        assert len(data) == 4 + samples
        assert data.left_out.reasons["torn shard, read up to its tear"].examples == ["t-1.tar"]
    for more, message in (
        (b"x" * 10240, "goes on behind its end mark"),
        (intact.read_bytes(), "tars put one after another"),
    ):
        path.write_bytes(content + more)
        with pytest.raises(DataError, match=message):
            whole(path)
    for at in (ends[-1] + 512, ends[-1] + 1024, len(content)):
        path.write_bytes(content)
        cut(path, at)
        assert len(whole(path)) == 6
    path.write_bytes(content[: ends[5]] + b"\xff" * 512 + content[ends[5] + 512 :])
    with pytest.raises(DataError, match="no member begins at byte"):
        whole(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (gzip.compress(b"x" * 10240, mtime=0), r"compressed \(gzip\), although its name says tar"),
        (b"\x28\xb5\x2f\xfd" + b"x" * 600, r"compressed \(zstd\)"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "git lfs pull"),
        (b"<html>" + b" " * 2000, "is no tar file"),
    ],
)
def test_what_is_no_tar_is_said(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "x.tar").write_bytes(content)
    with pytest.raises(DataError, match=rf"x\.tar is torn: .*{message}"):
        whole(tmp_path / "x.tar")


@pytest.mark.parametrize(
    "name", ["t-0.tar.gz", "t-{0..9}.tgz", "t-0.tar.zst", "t-0.TAR.BZ2", "t-0.txz", "t-0.tar.lz4"]
)
def test_compressed_shards_are_refused_by_name_with_the_remedy(tmp_path: Path, name: str) -> None:
    with pytest.raises(
        ConfigError,
        match=r"dataset.shards: .* is compressed; .* unpack it to a \.tar first, such as with '(gunzip|un|bunzip2)",
    ):
        config(tmp_path / name)
    with pytest.raises(ConfigError, match=r"dataset.test_shards: "):
        config(tmp_path / "x.tar", test_shards=str(tmp_path / name))
    tar(tmp_path / name, pairs(2))
    assert "holds compressed shards" in missing(config(tmp_path))[0]


LAYOUTS: dict[str, tuple[list[str], int, int | None]] = {
    "one kind": (["t-0.tar", "t-1.tar", "t-2.tar"], 3, None),
    "splits by file": (["train-000.tar", "train-001.tar", "val-000.tar"], 2, 1),
    "splits within names": (["cifar_Train_0.tar", "cifar_Train_1.tar", "cifar_Test_0.tar"], 2, 1),
    "test before val": (
        ["training-0-of-2.tar", "training-1-of-2.tar", "test-0.tar", "validation-0.tar"],
        2,
        1,
    ),
    "splits by folder": (["train/0.tar", "train/1.tar", "val/0.tar"], 2, 1),
    "folders without splits": (["a/0.tar", "b/0.tar"], 2, None),
    "one folder deeper": (["shards/train-0.tar", "shards/train-1.tar", "shards/test-0.tar"], 2, 1),
    "hidden and other files": (
        ["train-0.tar", "._train-0.tar", ".git/x.tar", "notes.txt"],
        1,
        None,
    ),
}


@pytest.mark.parametrize("kind", LAYOUTS)
def test_a_folder_of_tars_is_read(tmp_path: Path, kind: str) -> None:
    names, train, test = LAYOUTS[kind]
    for name in names:
        tar(tmp_path / name, pairs(10))
    (tmp_path / "manifest.json").write_text('{"made by": "others"}')
    assert missing(config(tmp_path)) == []
    data = open_data(config(tmp_path))
    expected = (10 * train, 10 * test) if test else (8 * train, 2 * train)
    assert (len(data["train"]), len(data["test"])) == expected
    assert any("'val' are not used" in note for note in data["train"].notes) == (
        kind == "test before val"
    )
    assert with_digests(describe(config(tmp_path)), data).classes == 2


@pytest.mark.parametrize(
    ("names", "found"),
    [
        (
            ["val-0.tar", "test-0.tar"],
            r"cannot be told \(val: val-0.tar; test: test-0.tar\); name the splits: dataset.shards=FOLDER/train-",
        ),
        (
            ["train-0.tar", "extra-0.tar"],
            r"cannot be told \(train: train-0.tar; no split by name: extra-0.tar\)",
        ),
        (["train/0.tar", "extra/0.tar"], r"no split by name: extra/0.tar"),
        (["0.tar", "more/0.tar"], r"has tars \(0.tar\) beside folders with tars \(more\)"),
        (
            ["train-0.tar", "train-1.tar.gz"],
            r"holds compressed shards \(train-1.tar.gz\); .*'gunzip train-1.tar.gz'",
        ),
        (["README"], r"neither manifest.json of 'raydd shard' nor a .tar is in"),
    ],
)
def test_a_folder_that_may_mean_two_things_is_refused_with_what_was_found(
    tmp_path: Path, names: list[str], found: str
) -> None:
    for name in names:
        tar(tmp_path / name, pairs(4))
    with pytest.raises(DataError, match=found):
        open_data(config(tmp_path))
    with pytest.raises(DataError, match=found):
        describe(config(tmp_path))


def test_wildcards_and_files_that_are_no_tars(tmp_path: Path) -> None:
    for name in ("train-0.tar", "train-1.tar", "val-0.tar", "._train-2.tar"):
        tar(tmp_path / name, pairs(4))
    data = open_data(config(tmp_path / "train-*.tar", test_shards=str(tmp_path / "v??-?.tar")))
    assert (len(data["train"]), len(data["test"])) == (8, 4)
    assert "no tar file is called" in missing(config(tmp_path / "nope-*.tar"))[0]
    with pytest.raises(ConfigError, match=r"names t-0.tar twice"):
        missing(config(tmp_path / "t-{0,0}.tar"))
    with pytest.raises(ConfigError, match="braces or wildcards in a folder"):
        missing(config(tmp_path / "*/t-0.tar"))
    tar(tmp_path / "x.zip", pairs(2))
    assert "is a file, but no .tar" in missing(config(tmp_path / "x.zip"))[0]
    with pytest.raises(DataError, match=r"is a file, but no .tar"):
        describe(config(tmp_path / "x.zip"))


def test_labels_from_1_are_read_and_said(tmp_path: Path) -> None:
    tar(tmp_path / "t-0.tar", pairs(12, classes=3, first=1))
    tar(tmp_path / "v-0.tar", pairs(4, classes=2, first=2))
    pattern, test = tmp_path / "t-0.tar", str(tmp_path / "v-0.tar")
    info, data = describe(config(pattern)), open_data(config(pattern, test_shards=test))
    assert (info.classes, info.class_names) == (3, ("1", "2", "3"))
    assert data["train"].labels.tolist() == [0, 1, 2] * 4
    assert data["test"].labels.tolist() == [1, 2, 1, 2]
    assert data["train"].notes == (
        "labels start at 1: label 1 is class 0, and so on up to label 3, which is class 2",
    )
    tar(tmp_path / "v-0.tar", pairs(4, classes=2, first=0))
    with pytest.raises(
        DataError,
        match=r"v-0\.tar: sample '0000' has the label 0, but webdataset has 3 classes, whose labels go from 1 to 3",
    ):
        open_data(config(pattern, test_shards=test))
    for own in (
        pairs(12, classes=3, first=2),
        [*pairs(8, classes=2, first=1), ("9.png", encoded(1)), ("9.cls", b"4")],
    ):
        tar(tmp_path / "t-0.tar", own)
        assert describe(config(pattern)).class_names == ("0", "1", "2", "3", "4")
        assert int(whole(pattern).labels.max()) == 4
    for first, labels in ((0, range(10)), (1, range(10))):
        tar(tmp_path / "c.tar", pairs(20, classes=10, first=first))
        named = DatasetConfig(
            name="cifar10",
            shards=str(tmp_path / "c.tar"),
            test_shards=str(tmp_path / "c.tar"),
            size=8,
        )
        assert open_data(named)["train"].labels.tolist() == [*labels] * 2
    tar(tmp_path / "c.tar", pairs(22, classes=11))
    with pytest.raises(
        DataError,
        match="sample '0010' has the label 10, but cifar10 has 10 classes, whose labels go from 0 to 9",
    ):
        open_data(named)


def test_labels_that_were_mended_are_read_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A label of the same length leaves the tar's size as it was: the index kept beside it is of other bytes."""
    path = tar(tmp_path / "x.tar", pairs(4, classes=2, first=3))
    assert whole(path).labels.tolist() == [3, 4, 3, 4]
    tar(path, pairs(4, classes=2, first=0))
    os.utime(path, (1, 1))
    assert whole(path).labels.tolist() == [0, 1, 0, 1]
    assert len(list(tmp_path.glob(".raydd-index-*"))) == 1
    monkeypatch.setattr(tar_index, "_known", {})
    monkeypatch.setattr(tar_index, "scan", lambda *args: pytest.fail("the index was to be used"))
    assert whole(path).labels.tolist() == [0, 1, 0, 1]


def test_shards_of_ours_give_back_what_their_source_left_out(tmp_path: Path) -> None:
    source = tmp_path / "t-0.tar"
    tar(
        source,
        [
            *pairs(8, first=1),
            ("lonely.png", encoded(1)),
            ("a.png", b"no picture"),
            ("a.cls", b"1"),
            ("b.png", b"x"),
            ("b.cls", b"x"),
        ],
    )
    skipping = config(source, test_shards=str(source), on_error="skip")
    for split in ("train", "test"):
        manifest = write_shards(skipping, str(tmp_path / "out"), split)
    facts = manifest["splits"]["train"]
    assert (facts["count"], facts["skipped"]) == (8, 1)
    data = open_data(DatasetConfig(name="webdataset", shards=str(tmp_path / "out")))["train"]
    assert {reason: found.count for reason, found in data.left_out.reasons.items()} == {
        "picture without a label": 1,
        "sample with an unreadable label": 1,
        "sample that could not be decoded": 1,
    }
    assert data.notes[0].startswith("labels start at 1")
    assert describe(DatasetConfig(name="webdataset", shards=str(tmp_path / "out"))).class_names == (
        "1",
        "2",
    )
    older = json.loads((tmp_path / "out/manifest.json").read_text())
    for split in older["splits"].values():
        split.pop("left_out"), split.pop("notes", None)
    (tmp_path / "out/manifest.json").write_text(json.dumps(older))
    again = open_data(DatasetConfig(name="webdataset", shards=str(tmp_path / "out")))["train"]
    assert again.left_out.to_dict() == {
        "sample that could not be decoded": {"count": 1, "examples": ["not named"]}
    }
    assert again.digest == data.digest


def test_a_plan_for_shards_far_away_reads_the_beginning_of_two_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    far, read = Storage(f"memory://far-{tmp_path.name}"), []
    for number in range(6):
        far.put(
            f"t-{number}.tar",
            tar(tmp_path / "x.tar", pairs(40, classes=4) if number else []).read_bytes(),
        )
    real = Storage.get
    monkeypatch.setattr(
        Storage, "get", lambda self, path, *more: read.append(path) or real(self, path, *more)
    )
    monkeypatch.setattr(tar_index, "_GLIMPSE", 20_000)
    for shards in (f"{far.url}/t-{{0..5}}.tar", far.url):
        found = FoundData(config(shards)).look(plan=True)
        assert (found.info.classes, found.splits) == (4, None)
        assert found.unseen.startswith(
            "of 6 training shards only the beginning of 2 was looked into: there may be more classes; torn shards"
        )
    assert {path for path in read if path.endswith(".tar")} == {"t-0.tar", "t-5.tar"}
    assert far.list() == [f"t-{number}.tar" for number in range(6)], "a plan writes nothing"
    named = DatasetConfig(name="cifar10", shards=f"{far.url}/t-{{0..5}}.tar")
    assert "the shards were not looked into" in FoundData(named).look(plan=True).unseen
    assert FoundData(config(f"{far.url}/t-{{0..9}}.tar")).absent
    whole(f"{far.url}/t-{{0..5}}.tar")
    monkeypatch.setattr(tar_index, "_known", {})
    for shards in (f"{far.url}/t-{{0..5}}.tar", tar(tmp_path / "x.tar", pairs(4))):
        found = FoundData(config(shards)).look(plan=True)
        assert found.splits is not None
        assert not found.unseen
