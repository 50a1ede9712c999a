"""Sizes, channels, damaged and deep pictures, classes of one image and of none, a thousand classes, uneven shards."""

from __future__ import annotations

import io
import itertools
import os
import resource
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fault_rows import Row, Tally
from numpy.typing import NDArray
from PIL import Image

from raydd import load
from raydd.config import load_job
from raydd.core.errors import RayddError
from raydd.data.config import DatasetConfig
from raydd.data.datasets import open_data
from raydd.runtime.control import Control
from raydd.runtime.pipeline import run_job

RNG = np.random.default_rng(11)
MADE = "a set of such images is made, published and read again"
DM = ("method.name=dm", "method.network=convnet1_w8", "method.iterations=2", "method.batch_real=4")
RANDOM = ("method.name=random", "evaluation.networks=[convnet1_w8]")


def pixels(height: int, width: int, channels: int = 3) -> NDArray[np.uint8]:
    """Return random pixels ``[H, W, C]``."""
    return RNG.integers(0, 256, (height, width, channels), dtype=np.uint8)


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    """Return a picture as the bytes of a file."""
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def picture(mode: str, height: int = 12, width: int = 12) -> bytes:
    """Return a picture of a mode, as PNG, or as what holds it."""
    if mode == "I;16":
        deep = RNG.integers(0, 65536, (height, width)).astype(np.uint16)
        return encoded(Image.fromarray(deep), "PNG")
    image = Image.fromarray(pixels(height, width)).convert(mode)
    return encoded(image, "JPEG" if mode == "CMYK" else "PNG")


def folder(root: Path, counts: Sequence[int], make: Callable[[], bytes]) -> Path:
    """Write as many pictures of each class, of both splits; return the root."""
    for split in ("train", "test"):
        for label, count in enumerate(counts):
            inside = root / split / f"class-{label:04d}"
            inside.mkdir(parents=True)
            for i in range(count):
                (inside / f"{i:03d}.png").write_bytes(make())
    return root


def distill(root: Path, place: Path, *more: str) -> Any:
    """Run a small job on a folder of pictures; return the set as it is read again."""
    places = [
        f"output={place}/out",
        f"store={place}/store",
        "compute.workers=0",
        "tracking.uri=none",
    ]
    tests = ["evaluation.epochs=1", "evaluation.repeats=1", "evaluation.baselines=[]"]
    data = ["dataset.name=image_folder", f"dataset.root={root}"]
    job = load_job(None, [*data, "ipc=1", *tests, *places, *more])
    run_job(job, lambda line: None, Control())
    return load(f"{place}/out/distilled")


def row(what: str, fault: str, outcome: str, test: str, data: Any = None) -> Row:
    """Return a row of this module."""
    return Row("numbers", what, fault, outcome, test, data=data)


SIZES = ((8, 8, 1), (8, 8, 3), (28, 28, 1), (12, 20, 3), (33, 17, 1), (64, 64, 3), (256, 256, 3))
SHAPES = [
    row(
        "pictures",
        f"{size[0]} x {size[1]}, {'grey' if size[2] == 1 else 'colour'}",
        MADE,
        "test_any_shape",
        size,
    )
    for size in SIZES
]
MODES = [
    row("pictures", f"of mode {mode}", outcome, "test_any_mode", mode)
    for mode, outcome in (
        ("CMYK", MADE),
        ("I;16", "the upper 8 bits are read; " + MADE),
        ("RGBA", "transparency is dropped; " + MADE),
        ("LA", MADE),
        ("P", MADE),
        ("1", MADE),
    )
]
FOUR = row(
    "a job", "dataset.channels=4", "refused: 1 and 3 are allowed", "test_four_channels_are_refused"
)
DAMAGES = {
    "half": "cut in half",
    "header": "cut after its header",
    "empty": "zero bytes",
    "text": "not a picture",
}
DAMAGED = [
    row(
        "a picture",
        fault,
        "refused with its path; left out and told with dataset.on_error=skip",
        "test_a_damaged_picture",
        data,
    )
    for data, fault in DAMAGES.items()
]
ONE = row("a class", "of one image", MADE, "test_a_class_of_one_image")
FEW = row(
    "a class",
    "of one image, ipc 2",
    "refused, with the class and how many images it has",
    "test_a_class_of_too_few_images",
)
NONE = row(
    "a class", "without a picture that is read", "refused, with its folder", "test_a_class_of_none"
)
MANY = row(
    "1,000 classes", "ipc 1, dm and random", "a set of 1,000 images is made", "test_a_thousand_classes"
)  # fmt: skip
SHARDS = row(
    "shards", "of 0, 1, 3 and 36 samples", "all samples are read, whatever the cut", "test_uneven_and_empty_shards"
)  # fmt: skip
EMPTY = row("shards", "all of them empty", "refused", "test_empty_shards_alone")
ROWS = [*SHAPES, *MODES, FOUR, *DAMAGED, ONE, FEW, NONE, MANY, SHARDS, EMPTY]


@pytest.mark.slow
@pytest.mark.parametrize("row", SHAPES, ids=str)
def test_any_shape(row: Row, tmp_path: Path, tally: Tally) -> None:
    height, width, channels = row.data
    grey = "L" if channels == 1 else "RGB"
    root = folder(tmp_path / "data", [4, 4], lambda: picture(grey, height, width))
    made = distill(root, tmp_path, *DM, f"dataset.channels={channels}")
    assert made[0][0].shape == (channels, height, width)
    assert len(made) == 2
    assert all(bool(torch.isfinite(image).all()) for image, _ in (made[0], made[1]))
    tally(row, 1)


@pytest.mark.slow
@pytest.mark.parametrize("row", MODES, ids=str)
def test_any_mode(row: Row, tmp_path: Path, tally: Tally) -> None:
    root = folder(tmp_path / "data", [4, 4], lambda: picture(row.data))
    made = distill(root, tmp_path, *RANDOM)
    assert made[0][0].shape == (3, 12, 12)
    first = sorted((root / "train" / "class-0000").iterdir())
    wanted = [np.asarray(Image.open(path)) for path in first]
    if row.data == "I;16":
        shown = [np.repeat((deep >> 8)[:, :, None], 3, 2) for deep in wanted]
    else:
        shown = [np.asarray(Image.open(path).convert("RGB")) for path in first]
    seen = np.moveaxis((made.to_rgb()[0] * 255).round().byte().numpy(), 0, -1)
    apart = 1 if row.data == "CMYK" else 0  # two ways to round
    assert min(int(np.abs(seen.astype(int) - one).max()) for one in shown) <= apart
    tally(row, 1)


def test_four_channels_are_refused(tmp_path: Path, tally: Tally) -> None:
    root = folder(tmp_path / "data", [2, 2], lambda: picture("RGBA"))
    with pytest.raises(RayddError, match=r"dataset\.channels"):
        distill(root, tmp_path, *RANDOM, "dataset.channels=4")
    tally(FOUR, 1)


@pytest.mark.slow
@pytest.mark.parametrize("row", DAMAGED, ids=str)
def test_a_damaged_picture(row: Row, tmp_path: Path, tally: Tally) -> None:
    root = folder(tmp_path / "data", [4, 4], lambda: picture("RGB"))
    bad = root / "train" / "class-0001" / "002.png"
    whole = bad.read_bytes()
    cut = {
        "half": whole[: len(whole) // 2],
        "header": whole[:33],
        "empty": b"",
        "text": b"no picture",
    }
    bad.write_bytes(cut[row.data])
    with pytest.raises(RayddError, match=r"class-0001/002\.png"):
        distill(root, tmp_path, *DM)
    assert not (tmp_path / "out" / "distilled").exists()
    made = distill(root, tmp_path / "skipping", *DM, "dataset.on_error=skip")
    assert len(made) == 2
    report = (tmp_path / "skipping" / "out" / "report.json").read_text()
    assert "class-0001/002.png" in report, "what is left out is told"
    tally(row, 1)


@pytest.mark.slow
def test_a_class_of_one_image(tmp_path: Path, tally: Tally) -> None:
    root = folder(tmp_path / "data", [1, 5], lambda: picture("RGB"))
    for number, method in enumerate((DM, RANDOM)):
        assert len(distill(root, tmp_path / str(number), *method)) == 2
    tally(ONE, 2)


def test_a_class_of_too_few_images(tmp_path: Path, tally: Tally) -> None:
    root = folder(tmp_path / "data", [1, 5], lambda: picture("RGB"))
    with pytest.raises(RayddError, match="class 0 has only 1 training images"):
        distill(root, tmp_path, *RANDOM, "ipc=2")
    tally(FEW, 1)


def test_a_class_of_none(tmp_path: Path, tally: Tally) -> None:
    root = folder(tmp_path / "data", [0, 5, 5], lambda: picture("RGB"))
    (root / "train" / "class-0000" / "a.heic").write_bytes(b"x")
    with pytest.raises(RayddError, match=r"no images in .*class-0000"):
        distill(root, tmp_path, *RANDOM)
    tally(NONE, 1)


@pytest.mark.nightly
def test_a_thousand_classes(tmp_path: Path, tally: Tally) -> None:
    same = picture("RGB", 8, 8)
    root = folder(tmp_path / "data", [2] * 1000, lambda: same)
    grown = []
    for number, method in enumerate((RANDOM, (*DM, "method.iterations=1"))):
        child = os.fork()
        if child == 0:  # a process of its own, whose memory is measured
            try:
                before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
                made = distill(root, tmp_path / str(number), *method)
                after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
                (tmp_path / f"grown-{number}").write_text(str((after - before) // 1024))
                os._exit(0 if len(made) == 1000 else 3)
            finally:
                os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        grown.append(int((tmp_path / f"grown-{number}").read_text()))
    assert max(grown) < 1024, f"{grown} MiB"
    tally(MANY, 2, f"memory grows by {grown[0]} MiB for random, {grown[1]} MiB for dm")


def shard(path: Path, samples: Sequence[int]) -> None:
    """Write a tar of samples of two classes; each shows its number."""
    with tarfile.open(path, "w") as file:
        for i in samples:
            grey = encoded(Image.fromarray(np.full((8, 8, 3), i, np.uint8)), "PNG")
            for end, content in (("png", grey), ("cls", b"%d" % (i % 2))):
                member = tarfile.TarInfo(f"{i:04d}.{end}")
                member.size = len(content)
                file.addfile(member, io.BytesIO(content))


def test_uneven_and_empty_shards(tmp_path: Path, tally: Tally) -> None:
    cuts = (0, 0, 1, 4, 40)
    for number, (first, end) in enumerate(itertools.pairwise(cuts)):
        shard(tmp_path / f"{number:04d}.tar", range(first, end))
    url = f"{tmp_path}/{{0000..0003}}.tar"
    data = open_data(DatasetConfig(name="webdataset", shards=url, test_shards=url, size=8))["train"]
    values = data.take(torch.arange(len(data)))[:, 0, 0, 0].tolist()
    assert sorted(values) == list(range(40))
    tally(SHARDS, 4)


def test_empty_shards_alone(tmp_path: Path, tally: Tally) -> None:
    for number in range(2):
        shard(tmp_path / f"{number:04d}.tar", [])
    url = f"{tmp_path}/{{0000..0001}}.tar"
    with pytest.raises(RayddError, match=r"no samples|no sample|empty|holds no"):
        open_data(DatasetConfig(name="webdataset", shards=url, test_shards=url, size=8))
    tally(EMPTY, 2)
