"""``dataset.orientation``: pictures that say how they are to be turned, read from folders, shards
and distilled sets alike.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

import raydd
from raydd.core.errors import ConfigError
from raydd.data.config import DatasetConfig
from raydd.data.datasets import describe, open_data
from raydd.data.images import Transform, decode, orientation_of, size_of
from raydd.data.shard_format import read_manifest
from raydd.data.shard_writing import write_shards
from raydd.data.split import BaseData

RNG = np.random.default_rng(2)


def turned_file(orientation: int, kind: str = "PNG", size: tuple[int, int] = (6, 8)) -> bytes:
    exif = Image.Exif()
    exif[274] = orientation
    out = io.BytesIO()
    Image.fromarray(RNG.integers(0, 255, (*size, 3), dtype=np.uint8)).save(
        out, kind, exif=exif, **({"quality": 95} if kind == "JPEG" else {})
    )
    return out.getvalue()


def shown(data: bytes) -> np.ndarray:
    return np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB"))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_are_turned_as_pillow_does(orientation: int, kind: str) -> None:
    data = turned_file(orientation, kind)
    assert orientation_of(data) == orientation
    assert np.array_equal(decode(data, 3, "exif"), shown(data))
    assert size_of(data, "exif") == shown(data).shape[:2]
    assert decode(data, 3).shape == (6, 8, 3)


def test_damaged_or_missing_exif_turns_nothing() -> None:
    whole = turned_file(6, "JPEG")
    assert orientation_of(whole.replace(b"Exif\0\0MM", b"Exif\0\0xx")) == 1
    for strange in (b"", b"Exif", whole[:40], turned_file(9)):
        assert orientation_of(strange) == 1


def test_the_text_of_a_transform_is_as_before_where_nothing_is_turned() -> None:
    size = {"channels": 3, "height": 8, "width": 8}
    assert (
        repr(Transform(**size)) == "Transform(channels=3, height=8, width=8, fit='exact', resize=0)"
    )
    assert (
        repr(Transform(**size, orientation="exif"))
        == "Transform(channels=3, height=8, width=8, fit='exact', resize=0, orientation='exif')"
    )


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for split in ("train", "test"):
        for name in ("cat", "dog"):
            for i in range(4):
                path = tmp_path / "own" / split / name / f"{i}.jpg"
                path.parent.mkdir(parents=True, exist_ok=True)
                # Those that are turned by a quarter lie on their side, so that all are shown upright in one size.
                path.write_bytes(
                    turned_file(
                        6 if i == 1 else 3 if i == 2 else 1, "JPEG", (8, 6) if i == 1 else (6, 8)
                    )
                )
    return tmp_path / "own"


def by_identity(data: BaseData) -> dict[bytes, bytes]:
    images = data.take(torch.arange(len(data))).numpy()
    return {bytes(name): image.tobytes() for name, image in zip(data.identities(), images)}


def test_folders_are_read_turned_and_say_so_in_their_digest(root: Path) -> None:
    config: dict[str, Any] = {"name": "image_folder", "root": str(root)}
    data = open_data(DatasetConfig(**config, orientation="exif"))["train"]
    assert data.shape == (3, 6, 8)
    for i in range(4):
        wanted = shown((root / f"train/cat/{i}.jpg").read_bytes())
        got = data.take(torch.tensor([i]))[0].numpy().transpose(1, 2, 0)
        assert np.abs(got.astype(int) - wanted).max() <= 2, (
            "simplejpeg and Pillow differ by no more"
        )
    plain, turned = (
        open_data(DatasetConfig(**config, size=6, orientation=o))["train"]
        for o in ("ignore", "exif")
    )
    assert plain.digest == open_data(DatasetConfig(**config, size=6))["train"].digest
    assert plain.digest != turned.digest
    assert not torch.equal(plain.take(torch.tensor([2])), turned.take(torch.tensor([2])))
    assert torch.equal(plain.take(torch.tensor([0])), turned.take(torch.tensor([0])))


@pytest.mark.parametrize(
    ("encoding", "when"), [("original", "written"), ("png", "written"), ("original", "read")]
)
def test_shards_give_the_same_images_turned_when_written_or_when_read(
    encoding: str, when: str, root: Path, tmp_path: Path
) -> None:
    size = {"size": 6} if encoding == "png" else {}
    source: dict[str, Any] = {"name": "image_folder", "root": str(root), **size}
    wanted = by_identity(open_data(DatasetConfig(**source, orientation="exif"))["train"])
    out = str(tmp_path / "out")
    for split in ("train", "test"):
        # Not turned, one of each class is of another size, and left out.
        how: dict[str, Any] = {"orientation": "exif"} if when == "written" else {"on_error": "skip"}
        write_shards(DatasetConfig(**source, **how), out, split, encoding=encoding)  # type: ignore[arg-type]
    read = open_data(
        DatasetConfig(
            name="webdataset", shards=out, orientation="exif" if when == "read" else "ignore"
        )
    )["train"]
    manifest = read_manifest(read.files)
    assert manifest is not None
    assert manifest.get("orientation") == (
        "exif" if (encoding, when) == ("original", "written") else None
    )
    got = by_identity(read)
    assert len(got) == (8 if when == "written" else 6)
    assert all(got[name] == wanted[name] for name in got)


def test_shards_of_one_folder_are_turned_or_not(root: Path, tmp_path: Path) -> None:
    config: dict[str, Any] = {"name": "image_folder", "root": str(root)}
    write_shards(DatasetConfig(**config, orientation="exif"), str(tmp_path / "out"), "train")
    with pytest.raises(ConfigError, match=r"holds shards with orientation 'exif', not None"):
        write_shards(DatasetConfig(**config, on_error="skip"), str(tmp_path / "out"), "test")


def test_it_is_refused_where_there_are_no_pictures(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError,
        match=r"dataset\.orientation: exif has no effect: the files of digits are no pictures",
    ):
        describe(DatasetConfig(name="digits", orientation="exif"))
    with pytest.raises(ConfigError, match=r"dataset\.orientation: 'turn'; allowed: ignore, exif"):
        DatasetConfig(name="digits", orientation="turn")  # type: ignore[arg-type]


def test_distilled_folders_are_loaded_turned(tmp_path: Path) -> None:
    for label in range(10):
        (tmp_path / f"new{label:03d}").mkdir()
        (tmp_path / f"new{label:03d}" / "0.png").write_bytes(turned_file(3, size=(32, 32)))
    wanted = shown((tmp_path / "new004/0.png").read_bytes())
    for orientation, expected in (("exif", wanted), ("ignore", wanted[::-1, ::-1])):
        loaded = raydd.load(str(tmp_path), info="cifar10", orientation=orientation)  # type: ignore[arg-type]
        assert np.array_equal(
            (loaded.to_rgb()[4] * 255).round().byte().numpy().transpose(1, 2, 0), expected
        )
