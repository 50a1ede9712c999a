"""Memory that decoders and readers use again: where it lies, and that nothing handed out is ever written to."""

from __future__ import annotations

import io
import itertools
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from raydd.core.storage import Storage
from raydd.data import encoded, shard_data
from raydd.data.encoded import Buffers, Cuts
from raydd.data.images import Transform
from raydd.data.shard_data import ShardData
from raydd.data.tar_index import scan_shards


@pytest.mark.parametrize("shape", [(1,), (3, 8, 8, 3), (256, 64, 64, 3)])
def test_memory_lies_beside_multiples_of_32_and_is_used_again(shape: tuple[int, ...]) -> None:
    buffers = Buffers()
    places = set()
    for _ in range(5):
        array = buffers.array(shape)
        assert array.shape == shape
        assert array.ctypes.data % 32 == 16
        places.add(array.ctypes.data)
        del array
    assert len(places) == 1


def test_memory_that_is_held_is_not_given_out() -> None:
    buffers = Buffers()
    first = torch.from_numpy(buffers.array((4, 4)))
    part = first[1:]
    del first
    assert buffers.array((4, 4)).ctypes.data != part.data_ptr() - 4


def test_images_of_memory_are_its_parts_and_follow_its_shape() -> None:
    buffers = Buffers()
    for shape in ((6, 4, 5, 3), (6, 4, 5, 3), (4, 6, 5, 3), (2, 3, 3, 1), (6, 4, 5, 3)):
        images, rows = buffers.images(shape)
        images[...] = 0
        assert len(rows) == shape[0]
        for i, row in enumerate(rows):
            row[...] = i + 1
        assert images.sum(axis=(1, 2, 3)).tolist() == [
            (i + 1) * images[0].size for i in range(shape[0])
        ]
        place = images.ctypes.data
        del images  # the rows do not hold the memory
        assert buffers.array((1,)).ctypes.data == place


def test_cuts_are_the_samples_whichever_way_they_are_asked_for() -> None:
    first, second = memoryview(b"abcdef"), memoryview(b"ghij")
    cuts = Cuts([first, second, first], [4, 0, 1], [6, 3, 2])
    wanted = [b"ef", b"ghi", b"b"]
    assert len(cuts) == 3
    assert list(cuts) == wanted
    assert [cuts[i] for i in range(3)] == wanted
    assert cuts[-1] == b"b"
    assert list(cuts[1:]) == wanted[1:]
    assert list(cuts[1:][:1]) == wanted[1:2]


@pytest.fixture
def shards(tmp_path: Path) -> tuple[ShardData, dict[int, torch.Tensor]]:
    import tarfile

    wanted = {}
    with tarfile.open(tmp_path / "train-000000.tar", "w") as tar:
        for i in range(150):
            pixels = np.full((8, 8, 3), i, dtype=np.uint8)
            content = io.BytesIO()
            Image.fromarray(pixels).save(content, "PNG" if i % 3 else "JPEG", quality=100)
            wanted[i] = torch.from_numpy(np.asarray(Image.open(content)).copy()).permute(2, 0, 1)
            for name, data in (
                (f"{i:04d}.{'png' if i % 3 else 'jpg'}", content.getvalue()),
                (f"{i:04d}.cls", str(i).encode()),
            ):
                member = tarfile.TarInfo(name)
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    files = Storage(str(tmp_path))
    scanned = scan_shards(files, ["train-000000.tar"])
    return ShardData(
        files,
        scanned.index,
        scanned.digest,
        Transform(channels=3, height=8, width=8),
        skip=False,
        threads=2,
    ), wanted


@pytest.mark.parametrize("block", [1, 3000, 16 << 20])
@pytest.mark.parametrize("batch", [1, 7, 64, 150])
def test_batches_that_are_held_keep_their_pixels(
    shards: tuple[ShardData, dict[int, torch.Tensor]],
    batch: int,
    block: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data, wanted = shards
    monkeypatch.setattr(encoded, "_BLOCK_BYTES", block)
    monkeypatch.setattr(encoded, "_PIECE_BYTES", 2000)
    monkeypatch.setattr(shard_data, "_LOCAL_BYTES", block)
    held = [found for _ in range(2) for found in data.stream(0, 1, batch=batch)]
    assert sum(len(labels) for _, labels in held) == 2 * len(wanted)
    for images, labels in held:
        for image, label in zip(images, labels.tolist(), strict=True):
            assert torch.equal(image, wanted[label])


def test_a_stream_that_is_left_writes_to_no_memory_of_another(
    shards: tuple[ShardData, dict[int, torch.Tensor]], monkeypatch: pytest.MonkeyPatch
) -> None:
    data, _ = shards
    running, go_on, done = threading.Semaphore(0), threading.Event(), threading.Semaphore(0)
    calls = itertools.count()

    def slow(rows: list[np.ndarray], blobs: object, orientation: str) -> list[int]:
        if next(calls) >= 2:  # behind the first block's two pieces
            running.release()
            assert go_on.wait(20)
            for row in rows:
                row[...] = 255
            done.release()
        return []

    monkeypatch.setattr(encoded, "decode_jpegs_into", slow)
    monkeypatch.setattr(encoded, "_BLOCK_BYTES", 1)
    left = data.stream(0, 1, batch=20)
    next(left)
    for _ in range(2):
        assert running.acquire(timeout=20)
    left.close()
    held = [data._buffers.array((20, 8, 8, 3)) for _ in range(6)]
    for array in held:
        array[...] = 0
    go_on.set()
    for _ in range(2):
        assert done.acquire(timeout=20)
    assert not np.any(held)


def test_objects_fill_buffers_as_far_as_they_reach(tmp_path: Path) -> None:
    for url in (str(tmp_path), "memory://fill"):
        files = Storage(url)
        files.put("a", b"0123456789")
        buffer = bytearray(b"-" * 6)
        assert files.fill("a", 2, memoryview(buffer)) == 6
        assert buffer == b"234567"
        assert files.fill("a", 7, memoryview(buffer)) == 3
        assert buffer == b"789567"
        assert files.fill("a", 0, memoryview(bytearray())) == 0
        with pytest.raises(FileNotFoundError):
            files.fill("b", 0, memoryview(buffer))
