"""Decoders: what students see of stored tensors, by hand, in parts, with gradients, in little memory."""

from __future__ import annotations

import io
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from shifting import shifted as shifted
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from raydd.artifacts.decoding import (
    Decoder,
    Decoding,
    GridOfTiles,
    Identity,
    Partition,
    Resize,
    SetSize,
    Tiles,
    enlarged,
    enlarged_by_products,
)
from raydd.artifacts.distilled_set import DistilledSet
from raydd.artifacts.formats import read_set
from raydd.artifacts.published_folder import publish, read
from raydd.artifacts.writing import write_set
from raydd.core.errors import ConfigError
from raydd.core.rng import generator
from raydd.core.storage import Storage
from raydd.core.tensors import Tensors

Make = Callable[..., DistilledSet]


def stored(count: int = 3, height: int = 8, width: int = 8, channels: int = 2) -> Tensors:
    images = torch.randn((count, channels, height, width), generator=generator(0, "stored"))
    return {"images": images, "labels": torch.arange(count)}


def published(images: torch.Tensor) -> torch.Tensor:
    """Return the tiles of IDM's and BACON's code: four slices in its order, each enlarged, one after the other."""
    half = images.shape[2] // 2
    slices = [
        images[:, :, :half, :half],
        images[:, :, half:, :half],
        images[:, :, :half, half:],
        images[:, :, half:, half:],
    ]
    up = torch.nn.Upsample(scale_factor=2, mode="bilinear")
    return torch.cat([up(part) for part in slices])


def test_tiles_of_a_partition_are_enlarged_as_by_hand() -> None:
    tensors = {"images": torch.arange(16.0).view(1, 1, 4, 4), "labels": torch.tensor([3])}
    first = torch.tensor(
        [[0, 0.25, 0.75, 1], [1, 1.25, 1.75, 2], [3, 3.25, 3.75, 4], [4, 4.25, 4.75, 5]]
    )
    seen = Partition().take(tensors)
    for tile, plus in zip(
        seen, (0, 8, 2, 10), strict=True
    ):  # top left, bottom left, top right, bottom right
        assert torch.equal(tile[0], first + plus)
    assert Partition().labels(tensors, torch.arange(4)).tolist() == [3, 3, 3, 3]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "sizes", [((4, 4), (8, 8)), ((16, 8), (32, 16)), ((10, 7), (32, 31)), ((5, 5), (5, 5))]
)
def test_products_enlarge_as_interpolation_does(
    sizes: tuple[tuple[int, int], tuple[int, int]], dtype: torch.dtype
) -> None:
    small, large = sizes
    images = torch.randn((3, 2, *small), generator=generator(0, "small"), dtype=dtype)
    weights = torch.randn((3, 2, *large), generator=generator(0, "large"), dtype=dtype)
    found = []
    for way in (enlarged, enlarged_by_products):
        given = images.clone().requires_grad_(True)
        seen = way(given, *large)
        found.append((seen, *torch.autograd.grad((seen * weights).sum(), given)))
    near = 1e-6 if dtype == torch.float32 else 1e-14
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(other, one, rtol=10 * near, atol=10 * near)


class Operators(TorchDispatchMode):
    """Keeps the names of what is computed."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        self.names.add(str(function))
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("decoder", [Partition(), Resize(height=16, width=16)])
def test_what_is_not_on_a_cpu_is_enlarged_without_atomics(decoder: Decoder, device: str) -> None:
    images = torch.randn((2, 1, 8, 8), device=device, requires_grad=True)
    labels = torch.zeros(2, dtype=torch.int64, device=device)
    with Operators() as seen:
        torch.autograd.grad(decoder.take({"images": images, "labels": labels}).sum(), images)
    backward = {name for name in seen.names if "upsample" in name and "backward" in name}
    assert bool(backward) is (device == "cpu")


def test_a_partition_is_that_of_the_published_code() -> None:
    images = 1.0 * torch.sin(0.37 * torch.arange(2 * 3 * 32 * 32, dtype=torch.float64) + 0.1)
    tensors = {"images": images.view(2, 3, 32, 32), "labels": torch.tensor([5, 7])}
    seen = Partition().take(tensors)
    assert torch.equal(seen, published(tensors["images"]))
    assert Partition().targets(tensors, torch.arange(8)).tolist() == [5, 7] * 4
    # Sums of the published code's tiles of these images.
    weights = torch.sin(0.011 * torch.arange(seen.numel(), dtype=torch.float64) + 0.3).view(
        seen.shape
    )
    found = (seen.sum(), seen.abs().sum(), (seen * weights).sum())
    expected = (8.114922255382, 14755.831801804243, -1.662895929713)
    assert [float(v) for v in found] == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize(
    ("decoder", "sides"),
    [
        (Identity(), (8, 8)),
        (Partition(), (8, 6)),
        (Partition(factor=3), (9, 6)),
        (GridOfTiles(factor=2), (8, 8)),
        (GridOfTiles(factor=3, padding=(0.5, -1.0)), (8, 10)),
        (Resize(height=16, width=12), (8, 6)),
    ],
    ids=["identity", "partition", "partition 3", "grid", "grid padded", "resize"],
)
@pytest.mark.parametrize("pixels", [False, True], ids=["floats", "pixels"])
def test_parts_are_those_of_the_whole(
    decoder: Decoder, sides: tuple[int, int], pixels: bool
) -> None:
    tensors = stored(5, *sides)
    if pixels:
        tensors["images"] = (tensors["images"].clamp(-1, 1) * 127 + 128).to(torch.uint8)

    def space(images: torch.Tensor) -> torch.Tensor:
        return (images.float() / 255 - 0.4) / 0.3 if images.dtype == torch.uint8 else images

    whole, count = decoder.take(tensors, None, space), decoder.count(tensors)
    assert whole.shape == (count, *decoder.shape(tensors))
    ids = torch.randperm(count, generator=generator(1, "ids"))
    assert torch.equal(decoder.take(tensors, ids, space), whole[ids])
    one = torch.cat([decoder.take(tensors, ids[i : i + 1], space) for i in range(count)])
    assert torch.equal(one, whole[ids])
    soft = torch.rand(5, 7, generator=generator(2, "soft"))
    rows = decoder.rows(tensors, ids)
    assert torch.equal(decoder.targets(tensors | {"soft_labels": soft}, ids), soft[rows])
    assert torch.equal(decoder.labels(tensors, ids), rows)


@pytest.mark.parametrize("decoder", [Partition(), Partition(factor=3), GridOfTiles(factor=2)])
def test_tiles_are_packed_in_the_order_in_which_they_are_seen(decoder: Tiles) -> None:
    grey = torch.arange(2.0 * decoder.factor**2).view(-1, 1, 1, 1)
    packed = decoder.pack(grey.expand(-1, 1, 3, 4))
    assert packed.shape == (2, 1, 3 * decoder.factor, 4 * decoder.factor)
    seen = decoder.take({"images": packed, "labels": torch.zeros(2, dtype=torch.int64)})
    torch.testing.assert_close(seen, grey.expand_as(seen))


def test_the_tiles_of_a_grid_come_row_after_row() -> None:
    tensors = stored()
    halves = tensors["images"][:, :, :4, 4:]
    expected = F.interpolate(halves, size=(8, 8), mode="bilinear", align_corners=False)
    assert torch.equal(GridOfTiles(factor=2).take(tensors)[3:6], expected), (
        "the second place: top right"
    )
    assert torch.equal(Partition().take(tensors)[6:9], expected), "of a partition the third"


@pytest.mark.parametrize(
    "decoder", [Partition(), GridOfTiles(factor=3), Resize(height=16, width=16)]
)
@pytest.mark.parametrize("some", [False, True], ids=["all", "some"])
def test_gradients_flow_to_what_is_stored(decoder: Decoder, some: bool) -> None:
    tensors = stored(2)
    images = tensors["images"].double().requires_grad_()
    ids = torch.tensor([1, 0, 1]) if some else None
    (gradient,) = torch.autograd.grad(decoder.take(tensors | {"images": images}, ids).sum(), images)
    seen = decoder.count(tensors) if ids is None else 3
    area = seen * 2 * 64 if not isinstance(decoder, Resize) else seen * 2 * 256
    reached = (
        81 / 64 if isinstance(decoder, GridOfTiles) else 1
    )  # sides filled up to 9 lose a part of it
    assert 0 < float(gradient.sum()) <= area + 1e-9
    if reached == 1:
        assert float(gradient.sum()) == pytest.approx(area), (
            "the weights of every seen value sum to 1"
        )


@pytest.mark.parametrize(
    ("decoding", "sides", "message"),
    [
        (
            Decoding("partition", {"factor": 3}),
            (8, 8),
            "factor=3 does not divide images of 8×8 pixels",
        ),
        (Decoding("grid", {"factor": 9}), (8, 8), "factor=9: images of 8×8 pixels cannot be cut"),
        (Decoding("grid", {"factor": 3, "padding": [0.0, 0.0]}), (8, 8), "must hold 1 values"),
        (Decoding("partition", {"factor": 0}), (8, 8), "factor: 0 must be a whole number"),
        (Decoding("partition", {"facter": 2}), (8, 8), "'facter'.*did you mean 'factor'"),
        (Decoding("resize", {"height": 8}), (8, 8), "decoding 'resize': .*width"),
        (Decoding("resize", {"height": 4, "width": 4}), (8, 8), "8×8 pixels are larger than 4×4"),
        (Decoding("partiton"), (8, 8), "unknown decoding 'partiton'.*did you mean 'partition'"),
    ],
)
def test_what_cannot_be_decoded_is_refused(
    make: Make, decoding: Decoding, sides: tuple[int, int], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        make(images=torch.zeros(30, 1, *sides), decoding=decoding)


def test_tensors_that_nothing_reads_are_refused(make: Make) -> None:
    with pytest.raises(ConfigError, match="decoding 'identity' reads no tensor 'offsets'"):
        make(extra={"offsets": torch.zeros(3)})
    with pytest.raises(ConfigError, match="cannot be called 'labels'"):
        make(extra={"labels": torch.zeros(3)})


def test_a_set_of_more_than_images_is_kept_whole(
    make: Make, shifted: Decoding, tmp_path: Path
) -> None:
    shifts = torch.tensor([0.0, 0.25, -0.5])
    made = make(extra={"shifts": shifts}, decoding=shifted)
    other = make(extra={"shifts": shifts + 1}, decoding=shifted)
    assert made.size == SetSize(30, 90, made.image_bytes + made.label_bytes + 12)
    assert made.digest != other.digest
    publish(made, str(tmp_path / "set"))
    write_set(made, str(tmp_path / "set.safetensors"), "safetensors")
    for got in (read(str(tmp_path / "set")), read_set(str(tmp_path / "set.safetensors"))):
        assert got.digest == made.digest
        assert torch.equal(got.extra["shifts"], shifts)
        assert torch.equal(got.take(torch.tensor([75])), made.images[15:16] - 0.5)
    write_set(made, str(tmp_path / "tars"), "webdataset")
    tars = read_set(str(tmp_path / "tars"))
    assert tars.labels.tolist() == made.labels.tolist() * 3
    torch.testing.assert_close(tars.tensors()[0], made.take(), atol=0.05, rtol=0)


def test_views_and_exports_decode_block_after_block(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, asked = make(decoding=Decoding("partition")), list[int | None]()
    write_set(made, str(tmp_path / "whole"), "webdataset")
    take = DistilledSet.take

    def counted(self: DistilledSet, ids: Any = None, tensors: Any = None) -> torch.Tensor:
        asked.append(None if ids is None else len(ids))
        return take(self, ids, tensors)

    monkeypatch.setattr(DistilledSet, "take", counted)
    monkeypatch.setattr("raydd.artifacts.distilled_set.BLOCK_VALUES", 7 * 64)
    write_set(made, str(tmp_path / "blocks"), "webdataset")
    write_set(made, str(tmp_path / "folder"), "folder")
    publish(made, str(tmp_path / "set"))
    assert set(asked) == {7, 120 % 7}
    first, second = (
        (tmp_path / name / "train-000000.tar").read_bytes() for name in ("whole", "blocks")
    )
    assert first == second
    assert len(list((tmp_path / "folder").rglob("*.png"))) == 120


def test_a_pt_file_is_decoded_block_after_block(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, asked, told = make(decoding=Decoding("partition")), list[int | None](), list[str]()
    images, labels = made.tensors()
    take = DistilledSet.take

    def counted(self: DistilledSet, ids: Any = None, tensors: Any = None) -> torch.Tensor:
        asked.append(None if ids is None else len(ids))
        return take(self, ids, tensors)

    monkeypatch.setattr(DistilledSet, "take", counted)
    monkeypatch.setattr("raydd.artifacts.distilled_set.BLOCK_VALUES", 7 * 64)
    monkeypatch.setattr("raydd.artifacts.writing.PIECE", 1000)
    path = tmp_path / "sets" / "set.pt"
    assert write_set(made, str(path), "pt", told.append) == ["set.pt"]
    assert set(asked) == {7, 120 % 7}
    value, buffer = torch.load(path, weights_only=True), io.BytesIO()
    assert torch.equal(value["data"][0][0], images)
    assert torch.equal(value["data"][0][1], labels)
    torch.save({**value, "data": [[images, labels]]}, buffer)
    assert path.read_bytes() == buffer.getvalue(), "as if it had been written from memory"
    assert write_set(made, "memory://exports/set.pt", "pt") == ["set.pt"]
    assert Storage("memory://exports").get("set.pt") == buffer.getvalue()
    assert write_set(made, str(path), "pt", told.append) == []
    assert "is there already, the same" in told[-1]
    with path.open("r+b") as file:
        file.seek(-1, io.SEEK_END)
        file.write(b"!")
    with pytest.raises(ConfigError, match=r"set\.pt exists and holds something else"):
        write_set(made, str(path), "pt")
    assert [one.name for one in path.parent.iterdir()] == ["set.pt"], "nothing is left behind"


def test_a_pt_file_for_which_there_is_no_room_is_refused(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = make(decoding=Decoding("partition"))
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=61_439))
    text = f"120 images as students see them: a pt file needs 61.4 kB in {tmp_path} .* 61.4 kB are free"
    with pytest.raises(ConfigError, match=text):
        write_set(made, str(tmp_path / "new" / "set.pt"), "pt")
    assert not (tmp_path / "new").exists()


WRITES = """
import re, resource, sys, torch
from raydd.artifacts import distilled_set
from raydd.artifacts.decoding import Decoding
from raydd.artifacts.writing import write_set
from raydd.data.catalog import entry

torch.set_num_threads(1)
info, parts = entry("imagenet").info, Decoding("partition", {"factor": 4})
images = torch.randint(0, 256, (30, 3, 224, 224), dtype=torch.uint8)
made = distilled_set.DistilledSet(images=images, labels=torch.arange(30), info=info, decoding=parts)
distilled_set.BLOCK_VALUES = 1 << 21
made.take(torch.arange(10))
data = 1024 * int(re.search(r"VmData:\\s+(\\d+) kB", open("/proc/self/status").read())[1])
resource.setrlimit(resource.RLIMIT_DATA, (data + (120 << 20),) * 2)
if sys.argv[2] == "whole":
    made.tensors()
write_set(made, sys.argv[1], "pt")
"""


@pytest.mark.slow
@pytest.mark.parametrize("way", ["blocks", "whole"])
def test_a_pt_file_of_480_large_images_needs_memory_for_few(way: str, tmp_path: Path) -> None:
    path = tmp_path / "set.pt"  # 289 MB, and 120 MB of memory are allowed
    done = subprocess.run(
        [sys.executable, "-c", WRITES, str(path), way], capture_output=True, text=True, check=False
    )
    assert (done.returncode == 0) is (way == "blocks"), done.stderr
    assert path.exists() is (way == "blocks")


def test_a_packed_file_of_others_is_read(tmp_path: Path) -> None:
    images = torch.randn((10, 1, 28, 28), generator=generator(0, "packed"))
    torch.save((images, torch.arange(10)), tmp_path / "best.pt")
    asked: dict[str, Any] = {"info": "mnist", "space": "normalised", "decoding": "partition"}
    from raydd import load

    loaded = load(str(tmp_path / "best.pt"), **asked)
    assert torch.equal(loaded.tensors()[0], published(images))
    assert [loaded[i][1] for i in range(40)] == list(range(10)) * 4
    assert "10 images of 10 classes (1 per class), decoded to 40" in repr(loaded)
    assert torch.equal(loaded[33][0], published(images)[33])
    assert len(loaded.to_rgb()) == 10, "pictures are of what is stored"
    with pytest.raises(
        ConfigError, match=r"unknown decoding 'partitions'.*did you mean 'partition'"
    ):
        load(str(tmp_path / "best.pt"), **asked | {"decoding": "partitions"})
    with pytest.raises(ConfigError, match="factor=2 has no effect with the decoding 'resize'"):
        load(str(tmp_path / "best.pt"), **asked | {"decoding": "resize", "factor": 2})
    with pytest.raises(ConfigError, match="factor=3 does not divide images of 28×28"):
        load(str(tmp_path / "best.pt"), **asked | {"factor": 3})
    torch.save((images[:, :, ::2, ::2], torch.arange(10)), tmp_path / "small.pt")
    small = load(str(tmp_path / "small.pt"), **asked | {"decoding": "resize"})
    assert small[0][0].shape == (1, 28, 28)
    assert "1×28×28" in repr(small)


LARGE = """
import re, sys, torch
from functools import partial
from raydd.artifacts.dataset import DistilledDataset
from raydd.artifacts.decoding import Decoding
from raydd.artifacts.distilled_set import DistilledSet
from raydd.core.rng import generator
from raydd.data.catalog import entry

def most():
    return 1024 * int(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1])

torch.set_num_threads(1)
before = most()
count, info = 49_000, entry("imagenet").info
images = torch.from_file(sys.argv[1], shared=False, size=count * 3 * 224**2, dtype=torch.uint8)
images = images.view(count, 3, 224, 224)
for row in (0, 17, 48_999):
    images[row] = torch.randint(0, 256, (3, 224, 224), generator=generator(0, "row", row)).to(torch.uint8)
made = DistilledSet(images=images, labels=torch.arange(count) % 1000, info=info, decoding=Decoding("partition"))
assert made.seen == 196_000 and made.shape == (3, 224, 224)
alone = DistilledSet(images=images[17:18].clone(), labels=torch.tensor([17]), info=info, decoding=Decoding("partition"))
assert torch.equal(made.take(17 + count * torch.arange(4)), alone.take())
dataset = DistilledDataset(made)
assert len(dataset) == 196_000 and dataset[195_999][0].std() > 0.5 and dataset[195_999][1] == 999
for number, (batch, labels) in enumerate(made.batches(0, 256, partial(generator, 0))):
    assert batch.shape == (256, 3, 224, 224)
    if number == 2:
        break
print(most() - before)
"""


@pytest.mark.slow
def test_a_set_of_196_000_decoded_images_needs_less_than_a_gigabyte(tmp_path: Path) -> None:
    with (tmp_path / "images.bin").open("wb") as file:
        file.truncate(49_000 * 3 * 224 * 224)  # 7.4 GB of holes
    done = subprocess.run(
        [sys.executable, "-c", LARGE, str(tmp_path / "images.bin")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert 0.1e9 < int(done.stdout) < 1e9
