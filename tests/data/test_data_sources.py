"""Published file formats, written here byte for byte in small, and Fashion-MNIST as Debian ships it."""

from __future__ import annotations

import gzip
import os
import pickle
import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import scipy.io
import torch
from PIL import Image

from raydd.core.errors import DataError
from raydd.data.config import DatasetConfig
from raydd.data.datasets import describe, missing, open_data, with_digests

RNG = np.random.default_rng(5)


def picture(height: int, width: int, mode: str = "RGB") -> Image.Image:
    coarse = RNG.integers(0, 255, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC).convert(mode)


def save(path: Path, height: int, width: int, mode: str = "RGB", **options: object) -> np.ndarray:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture(height, width, mode).save(path, **options)
    return np.asarray(Image.open(path).convert("RGB"))


def idx(values: np.ndarray) -> bytes:
    return (
        bytes([0, 0, 8, values.ndim])
        + struct.pack(f">{values.ndim}I", *values.shape)
        + values.astype(np.uint8).tobytes()
    )


@pytest.mark.parametrize(("folder", "packed"), [("", True), ("MNIST/raw", False), ("raw", True)])
def test_idx_files_plain_and_packed(tmp_path: Path, folder: str, packed: bool) -> None:
    place = tmp_path / folder
    place.mkdir(parents=True, exist_ok=True)
    images = {
        "train": RNG.integers(0, 256, (30, 28, 28)),
        "t10k": RNG.integers(0, 256, (10, 28, 28)),
    }
    for stem, values in images.items():
        for kind, content in (
            ("images-idx3", values),
            ("labels-idx1", np.arange(len(values)) % 10),
        ):
            data = idx(content)
            name = f"{stem}-{kind}-ubyte" + (".gz" if packed else "")
            (place / name).write_bytes(gzip.compress(data) if packed else data)
    config = DatasetConfig(name="mnist", root=str(tmp_path))
    assert missing(config) == []
    data = open_data(config)
    assert np.array_equal(data["train"].take(torch.arange(30)).numpy()[:, 0], images["train"])
    assert data["test"].labels.tolist() == list(range(10))
    assert data["train"].place.endswith(
        f"{folder}/train-images-idx3-ubyte{'.gz' if packed else ''}".lstrip("/")
    )
    big = open_data(DatasetConfig(name="mnist", root=str(tmp_path), size=32))["train"]
    assert big.shape == (1, 32, 32)
    assert describe(DatasetConfig(name="mnist", root=str(tmp_path), size=32)).height == 32


def test_a_torn_idx_file_is_named(tmp_path: Path) -> None:
    for stem in ("train", "t10k"):
        (tmp_path / f"{stem}-images-idx3-ubyte").write_bytes(
            idx(RNG.integers(0, 256, (4, 28, 28)))[:-1]
        )
        (tmp_path / f"{stem}-labels-idx1-ubyte").write_bytes(idx(np.arange(4)))
    with pytest.raises(DataError, match=r"train-images-idx3-ubyte is torn"):
        open_data(DatasetConfig(name="mnist", root=str(tmp_path)))
    (tmp_path / "t10k-labels-idx1-ubyte").unlink()
    assert any(
        "t10k-labels-idx1-ubyte" in line
        for line in missing(DatasetConfig(name="mnist", root=str(tmp_path)))
    )


@pytest.mark.slow
def test_fashion_mnist_as_debian_ships_it() -> None:
    config = DatasetConfig(name="fashion_mnist")
    data = open_data(config)
    info = with_digests(describe(config), data)
    assert info.train_counts == (6000,) * 10
    assert info.test_count == 10_000
    assert data["train"].labels[:10].tolist() == [9, 0, 0, 3, 0, 2, 7, 2, 5, 5]
    assert (
        dict(info.digests)["test"]
        == "f49a6fa675a9f740d63ba73bde39431573d413a0ae94dcec4e1cbdadc9aa3c14"
    )
    pixels = data["train"].images.double() / 255
    assert (round(pixels.mean().item(), 4), round(pixels.std().item(), 4)) == (0.2860, 0.3530)


def test_svhn_matlab_files(tmp_path: Path) -> None:
    pixels = RNG.integers(0, 256, (32, 32, 3, 12), dtype=np.uint8)
    labels = np.array([10, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 1], dtype=np.uint8)[:, None]
    for name in ("train", "test"):
        scipy.io.savemat(tmp_path / f"{name}_32x32.mat", {"X": pixels, "y": labels})
    data = open_data(DatasetConfig(name="svhn", root=str(tmp_path)))["train"]
    assert data.labels.tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1]
    assert np.array_equal(
        data.take(torch.tensor([3]))[0].numpy(), pixels[:, :, :, 3].transpose(2, 0, 1)
    )
    (tmp_path / "test_32x32.mat").write_bytes(b"nothing")
    with pytest.raises(DataError, match=r"test_32x32\.mat is torn"):
        open_data(DatasetConfig(name="svhn", root=str(tmp_path)))


def cifar_rows(count: int, classes: int) -> tuple[np.ndarray, list[int]]:
    return RNG.integers(0, 256, (count, 3072), dtype=np.uint8), (
        np.arange(count) % classes
    ).tolist()


@pytest.mark.parametrize("protocol", [2, 5])
def test_cifar10_python_and_binary_versions_agree(tmp_path: Path, protocol: int) -> None:
    names = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]
    (tmp_path / "py" / "cifar-10-batches-py").mkdir(parents=True)
    (tmp_path / "bin").mkdir()
    for name in names:
        rows, labels = cifar_rows(20, 10)
        batch = {b"data": rows, b"labels": labels, b"batch_label": b"x", b"filenames": [b"a"] * 20}
        content = batch if protocol == 5 else {key.decode(): value for key, value in batch.items()}
        (tmp_path / "py" / "cifar-10-batches-py" / name).write_bytes(
            pickle.dumps(content, protocol=protocol)
        )
        (tmp_path / "bin" / f"{name}.bin").write_bytes(
            np.hstack([np.array(labels, np.uint8)[:, None], rows]).tobytes()
        )
    python = open_data(DatasetConfig(name="cifar10", root=str(tmp_path / "py")))
    binary = open_data(DatasetConfig(name="cifar10", root=str(tmp_path / "bin")))
    assert len(python["train"]) == 100
    assert python["train"].digest == binary["train"].digest
    assert (binary["train"].place, binary["test"].place) == (
        "data_batch_1.bin … data_batch_5.bin",
        "test_batch.bin",
    )
    assert np.array_equal(python["test"].take(torch.tensor([1]))[0].numpy().reshape(-1), rows[1])


def test_cifar10_files_that_python_2_wrote_are_read() -> None:
    from raydd.data.sources.cifar import read_batch

    raw = bytes(range(256)) * 12
    old = (
        b"\x80\x02}q\x01(U\x04dataq\x02cnumpy.core.multiarray\n_reconstruct\nq\x03cnumpy\nndarray\nq\x04K\x00\x85U\x01b\x87Rq\x05"
        b"(K\x01K\x01M\x00\x0c\x86cnumpy\ndtype\nq\x06U\x02u1K\x00K\x01\x87Rq\x07(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
        b"\x89T" + struct.pack("<I", len(raw)) + raw + b"tbU\x06labelsq\x08]q\x09K\x03au."
    )
    batch = read_batch(old, "batch")
    assert batch["labels"] == [3]
    assert batch["data"].shape == (1, 3072)
    assert batch["data"].tobytes() == raw


def test_cifar100_uses_fine_labels(tmp_path: Path) -> None:
    rows, labels = cifar_rows(100, 100)
    (tmp_path / "a").mkdir()
    (tmp_path / "b" / "cifar-100-python").mkdir(parents=True)
    for name in ("train", "test"):
        coarse = np.zeros((100, 1), np.uint8)
        (tmp_path / "a" / f"{name}.bin").write_bytes(
            np.hstack([coarse, np.array(labels, np.uint8)[:, None], rows]).tobytes()
        )
        content = pickle.dumps({"data": rows, "fine_labels": labels, "coarse_labels": [0] * 100})
        (tmp_path / "b" / "cifar-100-python" / name).write_bytes(content)
    first, second = (
        open_data(DatasetConfig(name="cifar100", root=str(tmp_path / x)))["train"] for x in "ab"
    )
    assert first.labels.tolist() == list(range(100))
    assert first.digest == second.digest


class _Evil:
    def __init__(self, marker: str) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (os.system, (f"touch {self.marker}",))


def test_a_pickle_that_names_anything_else_is_refused_unrun(tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    for name in [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]:
        (tmp_path / name).write_bytes(pickle.dumps({"data": _Evil(str(marker)), "labels": [1]}))
    with pytest.raises(DataError, match=r"data_batch_1 is refused: it names (posix|nt)\.system"):
        open_data(DatasetConfig(name="cifar10", root=str(tmp_path)))
    assert not marker.exists()
    for content in (
        pickle.dumps([1, 2]),
        pickle.dumps({"data": np.zeros((2, 5), np.uint8), "labels": [0, 1]}),
        b"\x80\x04torn",
    ):
        (tmp_path / "data_batch_1").write_bytes(content)
        with pytest.raises(DataError, match="data_batch_1"):
            open_data(DatasetConfig(name="cifar10", root=str(tmp_path)))


def tiny_tree(root: Path) -> dict[str, np.ndarray]:
    wnids = ["n03000000", "n01000000", "n02000000"]
    (root / "val").mkdir(parents=True)
    (root / "wnids.txt").write_text("\n".join(wnids) + "\n")
    (root / "words.txt").write_text("".join(f"{w}\tthing {w}\n" for w in wnids))
    pixels = {}
    for wnid in wnids:
        for i in range(4):
            path = root / "train" / wnid / "images" / f"{wnid}_{i}.JPEG"
            pixels[path.name] = save(
                path, 64, 64, "L" if i == 0 else "RGB", format="JPEG", quality=90
            )
        (root / "train" / wnid / f"{wnid}_boxes.txt").write_text("")
    lines = []
    for i, wnid in enumerate(wnids * 2):
        pixels[f"val_{i}.JPEG"] = save(
            root / "val" / "images" / f"val_{i}.JPEG", 64, 64, format="JPEG"
        )
        lines.append(f"val_{i}.JPEG\t{wnid}\t0\t0\t62\t62\n")
    (root / "val" / "val_annotations.txt").write_text("".join(lines))
    return pixels


def test_tiny_imagenet_folders_and_grey_pictures(tmp_path: Path) -> None:
    pixels = tiny_tree(tmp_path / "tiny-imagenet-200")
    data = open_data(DatasetConfig(name="tiny_imagenet", root=str(tmp_path)))
    assert torch.bincount(data["train"].labels).tolist() == [4, 4, 4]
    assert data["test"].labels.tolist() == [2, 0, 1, 2, 0, 1]
    images = data["train"].take(torch.arange(12))
    expected = [pixels[name] for name in sorted(pixels) if name.startswith("n")]
    assert np.array_equal(images.numpy(), np.stack(expected).transpose(0, 3, 1, 2))
    assert np.array_equal(
        data["test"].take(torch.tensor([4]))[0].numpy(), pixels["val_4.JPEG"].transpose(2, 0, 1)
    )
    streamed = torch.cat(
        [x for part in range(2) for x, _ in data["train"].stream(part, 2, batch=5)]
    )
    assert torch.equal(streamed, images)


@pytest.mark.parametrize(
    "place",
    ["data/tiny-imagenet-200", "data/tiny_imagenet/tiny-imagenet-200", "data/tiny_imagenet"],
)
def test_tiny_imagenet_is_found_wherever_its_archive_was_unpacked(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = DatasetConfig(name="tiny_imagenet")
    advice = missing(config)[-1]
    assert (
        f"tiny_imagenet ({tmp_path}/data/tiny_imagenet, {tmp_path}/data/tiny-imagenet-200): unpack "
        in advice
    )
    assert "in data/ or in data/tiny_imagenet/" in advice
    tiny_tree(tmp_path / place)
    assert missing(config) == []
    assert len(open_data(config)["train"]) == 12


def test_imagenet_ten_is_found_in_imagenet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from raydd.data.catalog import entry

    monkeypatch.chdir(tmp_path)
    config = DatasetConfig(name="imagenet10")
    lines = missing(config)
    assert lines[0] == f"train/ with one folder per class is not in {tmp_path}/data/imagenet10"
    assert (
        f"imagenet10 ({tmp_path}/data/imagenet10, {tmp_path}/data/imagenet): register" in lines[1]
    )
    for wnid in [*entry("imagenet10").classes, "n99999999"]:
        save(tmp_path / "data/imagenet/train" / wnid / "1.JPEG", 30, 40)
    save(tmp_path / "data/imagenet/val" / "ILSVRC2012_val_1.JPEG", 30, 40)
    assert missing(config)[0].startswith(
        f"{tmp_path}/data/imagenet: val/ holds 1 picture in no class folders"
    ), "what is there is judged"
    for wnid in entry("imagenet10").classes:
        save(tmp_path / "data/imagenet/val" / wnid / "1.JPEG", 30, 40)
    data = open_data(config)
    assert (len(data["train"]), len(data["test"])) == (10, 10)
    assert data["train"].notes == ("10 of the 11 class folders are read",)


def test_the_single_file_of_the_dc_repository(tmp_path: Path) -> None:
    images = torch.from_numpy(RNG.integers(0, 256, (6, 3, 64, 64), dtype=np.uint8))
    content = {
        "classes": ["a"],
        "images_train": images,
        "labels_train": torch.arange(6),
        "images_val": images[:2],
    }
    torch.save({**content, "labels_val": torch.arange(2)}, tmp_path / "tinyimagenet.pt")
    data = open_data(DatasetConfig(name="tiny_imagenet", root=str(tmp_path)))
    assert torch.equal(data["train"].take(torch.tensor([5]))[0], images[5])
    torch.save(
        {**content, "labels_val": _Evil(str(tmp_path / "ran"))}, tmp_path / "tinyimagenet.pt"
    )
    with pytest.raises(DataError, match=r"tinyimagenet\.pt is refused"):
        open_data(DatasetConfig(name="tiny_imagenet", root=str(tmp_path)))
    assert not (tmp_path / "ran").exists()


def test_imagenet_ten_reads_its_classes_in_the_published_order(tmp_path: Path) -> None:
    from torchvision.transforms import functional

    from raydd.data.catalog import entry

    wnids = entry("imagenet10").classes
    for wnid in [*wnids, "n99999999"]:
        for split, count in (("train", 2), ("val", 1)):
            for i in range(count):
                save(tmp_path / split / wnid / f"{wnid}_{i}.JPEG", 300, 400 + i, format="JPEG")
    config = DatasetConfig(name="imagenet10", root=str(tmp_path))
    data = open_data(config)
    assert data["train"].labels.tolist() == [c for c in range(10) for _ in range(2)]
    assert data["train"].paths[0].split("/")[1] == "n02869837"
    opened = Image.open(tmp_path / data["train"].paths[3])
    expected = functional.center_crop(functional.resize(opened, 256), [224, 224])
    assert np.array_equal(
        data["train"].take(torch.tensor([3]))[0].numpy(), np.asarray(expected).transpose(2, 0, 1)
    )
    assert open_data(DatasetConfig(name="imagenet10", root=str(tmp_path), size=32, fit="squash"))[
        "test"
    ].shape == (3, 32, 32)
    assert "1000 are expected" in missing(DatasetConfig(name="imagenet", root=str(tmp_path)))[0]


def test_cub_tables_and_squashing(tmp_path: Path) -> None:
    root = tmp_path / "CUB_200_2011"
    names = [f"{c + 1:03d}.Bird_{c}/Bird_{c}_{i}.jpg" for c in range(3) for i in range(3)]
    pixels = {name: save(root / "images" / name, 40, 60, format="JPEG") for name in names}
    (root / "images.txt").write_text("".join(f"{i + 1} {name}\n" for i, name in enumerate(names)))
    (root / "image_class_labels.txt").write_text(
        "".join(f"{i + 1} {i // 3 + 1}\n" for i in range(9))
    )
    (root / "train_test_split.txt").write_text(
        "".join(f"{i + 1} {int(i % 3 != 0)}\n" for i in range(9))
    )
    (root / "classes.txt").write_text("".join(f"{c + 1} {c + 1:03d}.Bird_{c}\n" for c in range(3)))
    data = open_data(DatasetConfig(name="cub200", root=str(tmp_path)))
    assert data["train"].labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert data["test"].labels.tolist() == [0, 1, 2]
    expected = Image.fromarray(pixels[names[3]]).resize((32, 32), Image.Resampling.BILINEAR)
    assert np.array_equal(
        data["test"].take(torch.tensor([1]))[0].numpy(), np.asarray(expected).transpose(2, 0, 1)
    )
    (root / "images" / names[4]).unlink()
    with pytest.raises(DataError, match=r"Bird_1_1\.jpg, which images\.txt lists, is not there"):
        open_data(DatasetConfig(name="cub200", root=str(tmp_path)))


def test_own_folders_with_and_without_a_test_split(tmp_path: Path) -> None:
    for c in ("cat", "dog"):
        for i in range(10):
            save(tmp_path / "one" / c / f"{i}.png", 16, 16)
            save(
                tmp_path / "two" / ("val" if i < 3 else "train") / c / "deeper" / f"{i}.png",
                16,
                16,
                "L",
            )
    one = DatasetConfig(name="image_folder", root=str(tmp_path / "one"), test_split=0.3)
    info = describe(one)
    assert (info.classes, info.class_names, info.shape) == (2, ("cat", "dog"), (3, 16, 16))
    data = open_data(one)
    assert torch.bincount(data["test"].labels).tolist() == [3, 3]
    assert len(data["train"]) == 14
    assert with_digests(info, data).train_counts == (7, 7)
    two = DatasetConfig(name="image_folder", root=str(tmp_path / "two"), channels=1, size=8)
    assert describe(two).shape == (1, 8, 8)
    assert len(describe(two).mean) == 1
    assert (len(open_data(two)["train"]), len(open_data(two)["test"])) == (14, 6)
    save(tmp_path / "one" / "dog" / "odd.png", 20, 16)
    with pytest.raises(
        DataError, match=r"odd\.png: 20 x 16 pixels where 16 x 16 are expected; set dataset.size"
    ):
        open_data(one)
    with pytest.raises(DataError, match="no class folders"):
        describe(DatasetConfig(name="image_folder", root=str(tmp_path / "nowhere")))


def test_a_damaged_picture_raises_or_is_replaced_and_counted(tmp_path: Path) -> None:
    for c in ("a", "b"):
        for i in range(6):
            save(tmp_path / "train" / c / f"{i}.jpg", 32, 32, quality=90)
        save(tmp_path / "test" / c / "0.jpg", 32, 32)
    whole = open_data(DatasetConfig(name="image_folder", root=str(tmp_path)))["train"]
    good = whole.take(torch.arange(12))
    for damaged in ("train/a/2.jpg", "train/a/5.jpg"):
        (tmp_path / damaged).write_bytes((tmp_path / damaged).read_bytes()[:200])
    config = DatasetConfig(name="image_folder", root=str(tmp_path))
    torn = open_data(config)["train"]
    assert torn.digest != whole.digest
    with pytest.raises(
        DataError, match=r"train/a/2\.jpg cannot be decoded.*; dataset\.on_error=skip takes"
    ):
        torn.take(torch.arange(12))
    skipping = open_data(DatasetConfig(name="image_folder", root=str(tmp_path), on_error="skip"))[
        "train"
    ]
    images = skipping.take(torch.arange(12))
    assert torch.equal(images[2], good[3])
    assert torch.equal(images[5], good[0])
    assert torch.equal(images[[0, 1, 3, 4, 6, 11]], good[[0, 1, 3, 4, 6, 11]])
    assert len(skipping.skipped) == 2
    assert torch.equal(torch.cat([x for x, _ in skipping.stream(0, 1, batch=5)]), images)
    (tmp_path / "train/a/0.jpg").write_bytes(b"no picture")
    with pytest.raises(
        DataError,
        match=r"train/a/0\.jpg cannot be decoded: not a picture of a format that is read \(JPEG, PNG, ",
    ):
        describe(config)
    assert describe(
        DatasetConfig(name="image_folder", root=str(tmp_path), on_error="skip")
    ).shape == (3, 32, 32)
    for i in range(6):
        (tmp_path / f"train/b/{i}.jpg").write_bytes(b"no picture")
    hopeless = open_data(DatasetConfig(name="image_folder", root=str(tmp_path), on_error="skip"))[
        "train"
    ]
    with pytest.raises(DataError, match="no sample of class 1 can be decoded"):
        hopeless.take(torch.tensor([7]))


def test_pictures_of_several_sizes_are_refused_when_opened_unless_a_size_is_set(
    tmp_path: Path,
) -> None:
    for name, height in (("a/1.png", 8), ("a/2.png", 8), ("b/1.jpg", 8), ("b/2.png", 9)):
        save(tmp_path / name, height, 8)
    config = DatasetConfig(name="image_folder", root=str(tmp_path))
    with pytest.raises(
        DataError, match=r"b/2\.png: 9 x 8 pixels where 8 x 8 are expected; set dataset\.size"
    ):
        open_data(config)
    assert open_data(replace(config, size=8))["train"].shape == (3, 8, 8)
    assert sum(map(len, open_data(replace(config, on_error="skip")).values())) == 4, (
        "told and replaced when it is read"
    )


def test_odd_pictures_decode_as_pillow_does(tmp_path: Path) -> None:
    from raydd.data.images import decode

    picture(20, 30).convert("CMYK").save(tmp_path / "cmyk.jpg")
    picture(20, 30).save(tmp_path / "progressive.jpg", progressive=True)
    picture(20, 30, "RGBA").save(tmp_path / "alpha.png")
    picture(20, 30, "P").save(tmp_path / "palette.png")
    picture(20, 30).save(tmp_path / "web.webp", lossless=True)
    for path in sorted(tmp_path.iterdir()):
        apart = np.abs(
            decode(path.read_bytes(), 3).astype(int) - np.asarray(Image.open(path).convert("RGB"))
        )
        assert apart.max() <= (2 if path.name == "cmyk.jpg" else 0), path.name
    deep = Image.fromarray(np.full((4, 4), 40_000, dtype=np.uint16))
    deep.save(tmp_path / "deep.png")
    assert decode((tmp_path / "deep.png").read_bytes(), 1)[0, 0, 0] == 40_000 // 256


def test_a_part_of_a_published_set_is_noted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tiny_tree(tmp_path)
    open_data(DatasetConfig(name="tiny_imagenet", root=str(tmp_path)))
    assert "12 train images, 100000 were published" in caplog.text
