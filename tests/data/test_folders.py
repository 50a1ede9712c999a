"""Folders as people have them: links, hidden copies, split folders of other names, roots too high,
formats of all kinds.
"""

from __future__ import annotations

import io
import os
import shutil
import socket
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from raydd.core.errors import DataError
from raydd.data.config import DatasetConfig
from raydd.data.datasets import describe, missing, open_data
from raydd.data.images import EXTENSIONS, decode, size_of
from raydd.data.layout import split_of
from raydd.data.listing import Tree, walk
from raydd.data.split import BaseData

RNG = np.random.default_rng(3)


def save(path: Path, side: int = 8, **options: object) -> np.ndarray:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = RNG.integers(0, 255, (side, side, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, **options)
    return pixels


def classes(root: Path, *names: str, count: int = 5) -> None:
    for name in names:
        for i in range(count):
            save(root / name / f"{i:02d}.png")


def own(root: Path, **changes: object) -> DatasetConfig:
    return DatasetConfig(name="image_folder", root=str(root), **{"size": 8, **changes})  # type: ignore[arg-type]


def counted(data: BaseData) -> dict[str, int]:
    return {reason: found.count for reason, found in data.left_out.reasons.items()}


def refusal(root: Path) -> str:
    """Return the sentence that refuses a root, which opening and describing say as well."""
    lines = missing(own(root))
    for ask in (describe, open_data):
        with pytest.raises(DataError) as raised:
            ask(own(root))
        assert not lines or lines[0] in str(raised.value)
    return lines[0] if lines else str(raised.value)


def test_linked_class_folders_are_classes_and_circles_end(tmp_path: Path) -> None:
    root = tmp_path / "data"
    classes(root, "cat", "dog")
    classes(tmp_path / "elsewhere", "owl")
    (root / "owl").symlink_to(tmp_path / "elsewhere" / "owl")
    (root / "cat" / "deeper").mkdir()
    (root / "cat" / "deeper" / "back").symlink_to(root)
    (root / "dog" / "self").symlink_to(root / "dog" / "self")
    (root / "dog" / "up").symlink_to("..")
    (root / "dog" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    (root / "dog" / "linked.png").symlink_to(root / "cat" / "00.png")
    (tmp_path / "elsewhere" / "owl" / "back").symlink_to(root)
    data = open_data(own(root))
    assert describe(own(root)).class_names == ("cat", "dog", "owl")
    assert sum(map(len, data.values())) == 16
    assert counted(data["train"]) == {"link to a folder that holds it": 3, "broken link": 2}


def test_links_to_splits_and_a_folder_reached_twice_are_read(tmp_path: Path) -> None:
    classes(tmp_path / "far" / "a", "cat", "dog")
    root = tmp_path / "data"
    root.mkdir()
    (root / "train").symlink_to(tmp_path / "far" / "a")
    (root / "val").symlink_to(tmp_path / "far" / "a")
    data = open_data(own(root))
    assert {split: len(part) for split, part in data.items()} == {"train": 10, "test": 10}
    (tmp_path / "far" / "a" / "cow").symlink_to(tmp_path / "far" / "a" / "cat")
    assert describe(own(root)).class_names == ("cat", "cow", "dog")


def test_hidden_copies_are_no_pictures_of_their_own(tmp_path: Path) -> None:
    classes(tmp_path, "cat", "dog", count=20)
    for place in (
        tmp_path / "cat" / ".ipynb_checkpoints",
        tmp_path / "dog" / "deep" / "@eaDir",
        tmp_path / ".thumbnails" / "x",
    ):
        shutil.copytree(tmp_path / "cat", place)
    (tmp_path / "dog" / ".DS_Store").write_bytes(b"x")
    save(tmp_path / "dog" / "._1.png")
    splits = open_data(own(tmp_path))
    pixels = [
        {image.numpy().tobytes() for image in data.take(torch.arange(len(data)))}
        for data in splits.values()
    ]
    assert sum(map(len, splits.values())) == 40
    assert not pixels[0] & pixels[1]
    assert counted(splits["train"]) == {
        "hidden folder": 2,
        "folder of the system": 1,
        "hidden file": 2,
    }


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("Train", "Test"),
        ("training", "testing"),
        ("train_set", "test_set"),
        ("trainset", "testset"),
        ("TRAINING SET", "Validation-Set"),
    ]
    + [("train", name) for name in ("valid", "VAL", "dev", "eval", "validation", "test_images")],
)
def test_splits_are_known_by_their_usual_names(train: str, test: str, tmp_path: Path) -> None:
    classes(tmp_path / train, "cat", "dog", "owl", count=4)
    classes(tmp_path / test, "cat", "dog", "owl", count=3)
    assert missing(own(tmp_path)) == []
    assert describe(own(tmp_path)).class_names == ("cat", "dog", "owl")
    data = open_data(own(tmp_path))
    assert (len(data["train"]), len(data["test"])) == (12, 9)
    assert (data["train"].place, data["test"].place) == (f"{train}/", f"{test}/")


def test_names_of_classes_are_no_splits() -> None:
    for name in (
        "trainer",
        "contest",
        "test_tube",
        "value",
        "trailer",
        "devil",
        "dataset",
        "set",
        "n01440764",
        "interval",
    ):
        assert split_of(name) is None, name


def test_test_is_preferred_to_val_and_says_so(tmp_path: Path) -> None:
    for split in ("train", "test", "val"):
        classes(tmp_path / split, "cat", "dog")
    data = open_data(own(tmp_path))
    assert data["test"].place == "test/"
    assert data["train"].notes == (
        "val/ is not used; it holds folders (cat/, dog/), but the test split is test/",
    )
    shutil.rmtree(tmp_path / "test")
    save(tmp_path / "test" / "unlabelled.png")
    (tmp_path / "docs").mkdir()
    data = open_data(own(tmp_path))
    assert data["test"].place == "val/", "pictures without classes test nothing"
    assert "test/ is not used; it holds 1 picture in no class folders" in data["train"].notes[0]
    assert counted(data["train"]) == {"folder that is no split": 1}


def test_a_flat_val_beside_train_is_refused_with_the_remedy(tmp_path: Path) -> None:
    classes(tmp_path / "train", "cat", "dog")
    for i in range(3):
        save(tmp_path / "val" / f"ILSVRC2012_val_{i}.JPEG")
    assert (
        "val/ holds 3 pictures in no class folders; sort its pictures into val/<class>/"
        in refusal(tmp_path)
    )


def test_roots_that_may_mean_something_else_are_refused_with_what_was_found(tmp_path: Path) -> None:
    def root(name: str, *folders: str) -> Path:
        for folder in folders:
            classes(tmp_path / name, folder, count=2)
        return tmp_path / name

    assert "fold2/ beside train/ may be the test split" in refusal(
        root("a", "train/cat", "train/dog", "fold2/cat", "fold2/dog")
    )
    assert "test2017/ beside train/ may be the test split" in refusal(
        root("b", "train/cat", "train/dog", "test2017")
    )
    assert "test/, val/ but no training split" in refusal(
        root("c", "test/cat", "test/dog", "val/cat", "val/dog")
    )
    assert "train/, training/ may each be the training split" in refusal(
        root("d", "train/cat", "training/cat")
    )
    assert "train/ holds 2 pictures in no class folders" in refusal(root("e", "train", "test"))
    assert "seg_test/, seg_train/ look like splits" in refusal(
        root("f", "seg_train/cat", "seg_train/dog", "seg_test/cat", "seg_test/dog")
    )
    assert "test/ holds folders of the same names as lie beside it" in refusal(
        root("g", "cat", "dog", "test/cat", "test/dog")
    )
    (tmp_path / "h" / "test").mkdir(parents=True)
    assert "test/ holds nothing" in refusal(root("h", "train/cat", "train/dog"))
    assert "test/, images/ hold folders of the same names" in refusal(
        root("i", "images/cat", "images/dog", "test/cat", "test/dog")
    )


def test_classes_that_are_called_like_splits_are_read_with_a_word(tmp_path: Path) -> None:
    classes(tmp_path, "bus", "car", "train")
    assert describe(own(tmp_path)).class_names == ("bus", "car", "train")
    assert "train/ is read as a class" in open_data(own(tmp_path))["train"].notes[0]
    classes(tmp_path / "second", "invalid", "valid")
    assert describe(own(tmp_path / "second")).class_names == ("invalid", "valid")


def test_fewer_than_two_classes_are_refused_and_a_root_too_high_is_named(tmp_path: Path) -> None:
    classes(tmp_path / "high" / "images", "cat", "dog")
    text = refusal(tmp_path / "high")
    assert (
        "has one class folder with pictures (images/), and at least two classes are needed" in text
    )
    assert f"set dataset.root to {tmp_path}/high/images" in text
    classes(tmp_path / "deep" / "train" / "images", "cat", "dog")
    assert "train/images/ itself holds folders (cat/, dog/): move them up into train/" in refusal(
        tmp_path / "deep"
    )
    classes(tmp_path / "two", "cat")
    (tmp_path / "two" / "dog").mkdir()
    assert missing(own(tmp_path / "two")) == [], "quick: the classes' pictures are not looked for"
    with pytest.raises(DataError, match=r"one class folder with pictures \(cat/\)"):
        describe(own(tmp_path / "two"))
    for i in range(3):
        save(tmp_path / "flat" / f"{i}.png")
    assert "but 3 pictures: sort them into a folder for each class" in refusal(tmp_path / "flat")


def test_a_fifth_of_train_becomes_the_test_split_with_a_word(tmp_path: Path) -> None:
    classes(tmp_path / "train", "cat", "dog")
    (tmp_path / "annotations").mkdir()
    data = open_data(own(tmp_path))
    assert (len(data["train"]), len(data["test"])) == (8, 2)
    assert data["train"].notes == (
        "there is no test split: 20% of every class are kept apart as one (dataset.test_split)",
    )


def test_empty_class_folders_are_counted_and_lost_classes_refused(tmp_path: Path) -> None:
    classes(tmp_path, "cat", "dog")
    (tmp_path / "tmp" / ".cache").mkdir(parents=True)
    assert counted(open_data(own(tmp_path))["train"]) == {"empty class folder": 1}
    (tmp_path / "owl").mkdir()
    (tmp_path / "owl" / "1.heic").write_bytes(b"x")
    with pytest.raises(DataError, match=r"no images in .*owl: left out: 1 × format \.heic"):
        open_data(own(tmp_path))


def test_what_is_not_read_is_counted_by_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    classes(tmp_path / "train", "cat", "dog")
    classes(tmp_path / "test", "cat", "dog")
    (tmp_path / "README.md").write_text("x")
    save(tmp_path / "cover.png")
    save(tmp_path / "train" / "stray.JPG", format="JPEG")
    for name in ("a.heic", "b.HEIC", "notes.txt", "no_ending"):
        (tmp_path / "train" / "cat" / name).write_bytes(b"x")
    os.mkfifo(tmp_path / "train" / "cat" / "pipe.png")
    held = socket.socket(socket.AF_UNIX)
    held.bind(str(tmp_path / "train" / "s.png"))
    held.close()
    (tmp_path / "test" / "dog" / "03.png").chmod(0o600)
    monkeypatch.setattr(os, "access", lambda path, mode: not str(path).endswith("03.png"))
    data = open_data(own(tmp_path))
    assert counted(data["train"]) == {
        "special file": 2, "format .heic": 2, "format .txt": 1, "file without an ending": 1, "format .md": 1,
        "picture outside the class folders": 2,
    }  # fmt: skip
    assert counted(data["test"]) == {"file without permission to read it": 1}
    assert (len(data["train"]), len(data["test"])) == (10, 9)


def test_a_folder_without_permission_is_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    classes(tmp_path / "cat", "a", "b")

    real = os.scandir

    def scandir(path: str) -> object:
        if path.endswith("/b"):
            raise PermissionError(path)
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    found = walk(Tree(str(tmp_path)))
    assert len(found.pictures) == 5
    assert found.left_out.to_dict() == {
        "folder without permission to read it": {"count": 1, "examples": ["cat/b"]}
    }


@pytest.mark.parametrize(
    "ending",
    [
        "tif",
        "TIFF",
        "ppm",
        "pgm",
        "gif",
        "jfif",
        "JPE",
        "webp",
        "jp2",
        "bmp",
        "avif",
        "qoi",
        "pcx",
        "sgi",
    ],
)
def test_pictures_of_every_format_are_read_as_pillow_does(ending: str, tmp_path: Path) -> None:
    assert ending.lower() in EXTENSIONS
    pixels = RNG.integers(0, 255, (12, 10, 3), dtype=np.uint8)
    for name in ("cat", "dog"):
        for i in range(5):
            (tmp_path / name).mkdir(exist_ok=True)
            picture = Image.fromarray(pixels).convert("L" if ending == "pgm" else "RGB")
            picture.save(
                tmp_path / name / f"{i}.{ending}",
                **({"format": "JPEG"} if ending.lower() in ("jfif", "jpe") else {}),
            )
    data = open_data(own(tmp_path, size=None))["train"]
    wanted = np.asarray(Image.open(tmp_path / "cat" / f"0.{ending}").convert("RGB"))
    assert data.shape == (3, 12, 10)
    assert np.array_equal(data.take(torch.tensor([0]))[0].numpy().transpose(1, 2, 0), wanted)


def test_the_first_frame_is_read_and_the_content_decides(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert decode((tmp_path / "a.gif").read_bytes(), 3)[0, 0].tolist() == [255, 0, 0]
    frames[0].save(tmp_path / "b.jpg", "TIFF")
    assert decode((tmp_path / "b.jpg").read_bytes(), 3)[0, 0].tolist() == [255, 0, 0]


def encoded(values: np.ndarray, kind: str, **options: object) -> bytes:
    out = io.BytesIO()
    Image.fromarray(values).save(out, kind, **options)
    return out.getvalue()


def test_deep_pictures_keep_their_upper_bits_or_are_refused() -> None:
    deep = RNG.integers(0, 65536, (5, 6)).astype(np.uint16)
    for kind in ("TIFF", "PNG", "PPM"):
        assert np.array_equal(decode(encoded(deep, kind), 1)[:, :, 0], deep >> 8), kind
    inverted = encoded(deep, "TIFF", tiffinfo={262: 0})
    assert np.array_equal(decode(inverted, 1)[:, :, 0], (65535 - deep) >> 8)
    with pytest.raises(ValueError, match="floating point, whose range is not known"):
        decode(encoded(deep.astype(np.float32) / 65535, "TIFF"), 3)
    with pytest.raises(ValueError, match="32 bits, or signed"):
        decode(encoded(deep.astype(np.int32), "TIFF"), 3)
    with pytest.raises(
        ValueError, match=r"16 bits, but no value above \d+: in 8 bits it would be black"
    ):
        decode(encoded(deep >> 8, "TIFF"), 3)
    assert decode(encoded(deep * 0, "TIFF"), 1).max() == 0


def test_a_float_tiff_is_refused_by_name(tmp_path: Path) -> None:
    classes(tmp_path, "cat", "dog")
    Image.fromarray(RNG.random((8, 8), dtype=np.float32)).save(tmp_path / "dog" / "z.tif")
    data = open_data(own(tmp_path, test_split=0.1))["train"]
    with pytest.raises(
        DataError, match=r"dog/z\.tif cannot be decoded: its pixels are of floating point"
    ):
        data.take(torch.arange(len(data)))


def test_a_tiff_is_turned_as_its_format_says() -> None:
    pixels = RNG.integers(0, 255, (4, 6, 3), dtype=np.uint8)
    data = encoded(pixels, "TIFF", tiffinfo={274: 6})
    assert size_of(data) == (6, 4)
    assert np.array_equal(decode(data, 3), np.rot90(pixels, -1))


def test_digests_of_folders_stay(tmp_path: Path) -> None:
    """As they were before links, further formats and hidden folders were looked at."""
    for split, count in (("train", 3), ("val", 2)):
        for name in ("b", "a", "c 1"):
            for i in range(count):
                path = tmp_path / split / name / ("deep" if i else "") / f"{i}.BMP"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.new("RGB", (4, 4), (i, 50 * len(name), count)).save(path)
    data = open_data(own(tmp_path, size=4))
    assert data["train"].paths[:3] == ["train/a/0.BMP", "train/a/deep/1.BMP", "train/a/deep/2.BMP"]
    assert [data[split].digest[:16] for split in ("train", "test")] == [
        "b84919b86e2ac82c",
        "2c59b05d7f0771dc",
    ]


def test_folders_of_object_storage_are_read_as_local_ones(tmp_path: Path) -> None:
    import fsspec

    classes(tmp_path / "Train", "cat", "dog")
    classes(tmp_path / "valid", "cat", "dog")
    classes(tmp_path / "Train", "cat/.ipynb_checkpoints", ".hidden/deep")
    (tmp_path / "Train" / "dog" / "x.heic").write_bytes(b"x")
    (tmp_path / "Train" / "__MACOSX").mkdir()
    (tmp_path / "Train" / "__MACOSX" / "1.png").write_bytes(b"x")
    memory = fsspec.filesystem("memory")
    memory.put(f"{tmp_path}/", "/folders-test/", recursive=True)
    here, there = (
        open_data(DatasetConfig(name="image_folder", root=url, size=8))
        for url in (str(tmp_path), "memory://folders-test")
    )
    assert [counted(data["train"]) for data in (here, there)] == [
        {"hidden folder": 2, "folder of the system": 1, "format .heic": 1} for _ in range(2)
    ]
    for split, data in here.items():
        assert data.paths == there[split].paths
        assert torch.equal(data.take(torch.arange(3)), there[split].take(torch.arange(3)))
        assert data.place == there[split].place
    memory.rm("/folders-test", recursive=True)


@pytest.mark.parametrize(
    "name",
    ["test", "validation", "test.zip", "val.tar.gz", "Test Images.tar", "ILSVRC2012_img_val.tar"],
)
def test_a_file_or_a_link_to_nothing_that_may_be_the_test_split_is_refused(
    name: str, tmp_path: Path
) -> None:
    classes(tmp_path / "train", "cat", "dog")
    if "." in name:
        (tmp_path / name).write_bytes(b"x")
    else:
        (tmp_path / name).symlink_to(tmp_path / "gone")
    assert (
        f"{name} beside train/ may be the test split, and is no folder that can be read; make it a folder test/<class>/"
        in refusal(tmp_path)
    )


def test_other_files_beside_train_are_no_test_split(tmp_path: Path) -> None:
    classes(tmp_path / "train", "cat", "dog")
    for name in ("train.zip", "train_val.tar", "test.txt", "val.csv.gz", "latest.zip", "README"):
        (tmp_path / name).write_bytes(b"x")
    assert len(open_data(own(tmp_path))["test"]) == 2
    classes(tmp_path / "test", "cat", "dog")
    (tmp_path / "test.zip").write_bytes(b"x")
    assert len(open_data(own(tmp_path))["test"]) == 10


def test_splits_within_the_classes_are_refused(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        classes(tmp_path / "within" / name, "train", "test", count=2)
    text = refusal(tmp_path / "within")
    assert "cat/, dog/ hold folders that are called like splits (test/, train/)" in text
    assert "make test/cat/ of cat/test/" in text
    classes(tmp_path / "higher" / "pets" / "train", "cat", "dog", count=2)
    classes(tmp_path / "higher" / "pets" / "test", "cat", "dog", count=2)
    classes(tmp_path / "higher", "notes", count=2)
    assert f"set dataset.root to {tmp_path}/higher/pets" in refusal(tmp_path / "higher")


def test_classes_that_hold_folders_alone_are_read_with_a_word(tmp_path: Path) -> None:
    classes(tmp_path / "animals", "cat", "dog")
    classes(tmp_path / "vehicles", "bus", "car")
    assert describe(own(tmp_path)).class_names == ("animals", "vehicles")
    note = (
        "animals/, vehicles/ are read as classes, though each holds folders alone (animals/: cat/, dog/; vehicles/:"
        " bus/, car/)"
    )
    assert open_data(own(tmp_path))["train"].notes[0] == note
    classes(tmp_path, "plants")
    classes(tmp_path / "animals", "")
    assert (
        "vehicles/ is read as a class, though it holds folders alone"
        in open_data(own(tmp_path))["train"].notes[0]
    )


def test_a_class_that_the_test_split_lacks_is_named(tmp_path: Path) -> None:
    classes(tmp_path / "train", "cat", "dog", "owl")
    classes(tmp_path / "test", "cat", "dog")
    with pytest.raises(DataError, match=r"class folder owl/ is not in .*/test$"):
        open_data(own(tmp_path))
    (tmp_path / "test" / "owl").mkdir()
    with pytest.raises(DataError, match=r"no images in .*/test/owl"):
        open_data(own(tmp_path))
