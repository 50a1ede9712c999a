"""The released layout of labels: files made exactly so are read to the images and labels of the published loader."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from label_toys import ToyContext, ToySource, info
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from raydd.core.errors import ConfigError, DataError
from raydd.core.rng import generator
from raydd.core.units import canonical
from raydd.labels.fkd import FkdLabels, read_record

SOURCE = ToySource(dataset=info(size=16, classes=5), images=10)
BATCH = 4


def record(epoch: int, number: int, index: Tensor, items: int = 8) -> list[Any]:
    """Return what the original saves for a batch: tensors, a Python float and four NumPy integers."""
    g, rng, count = (
        generator(epoch, "fkd", number),
        np.random.default_rng(epoch * 10 + number),
        len(index),
    )
    tops = torch.randint(0, 4, (count, 2), generator=g)
    sides = torch.randint(8, 13, (count, 2), generator=g)
    coords = torch.cat([tops, sides], 1).float() / 16
    flips = torch.rand(count, generator=g) < 0.5
    perm = torch.randperm(count, generator=g)
    cx, cy = rng.integers(16), rng.integers(16)
    box = [np.clip(v, 0, 16) for v in (cx - 4, cy - 3, cx + 4, cy + 3)]
    assert all(isinstance(v, np.int64) for v in box)
    logits = torch.randn(count, 5, generator=g).half()
    return [
        coords,
        flips,
        perm,
        float(rng.beta(1, 1)),
        box,
        logits,
        index,
        torch.zeros(count, 2, 2, dtype=torch.int32),
    ][:items]


def released(folder: Path, epochs: int = 2, items: int = 8) -> dict[int, list[list[Any]]]:
    sampler = torch.utils.data.RandomSampler(range(10), generator=torch.Generator().manual_seed(42))
    made: dict[int, list[list[Any]]] = {}
    for epoch in range(epochs):
        (folder / f"epoch_{epoch}").mkdir(parents=True)
        order = torch.tensor(list(sampler))
        made[epoch] = [record(epoch, j, ids, 8) for j, ids in enumerate(order.split(BATCH))]
        for j, item in enumerate(made[epoch]):
            torch.save(item[:items], folder / f"epoch_{epoch}" / f"batch_{j}.tar")
    return made


@pytest.mark.parametrize("items", [8, 7, 6], ids=["edc", "without patches", "sre2l"])
def test_images_and_labels_are_those_of_the_published_loader(tmp_path: Path, items: int) -> None:
    made = released(tmp_path, items=items)
    found = FkdLabels.at(str(tmp_path))
    assert (found.batch, found.epochs, found.batches, found.classes) == (4, 2, 3, 5)
    distilled = SOURCE.load()
    opened = found.open(distilled, ToyContext())
    for epoch in range(2):
        for (images, targets), item in zip(
            opened.batches(epoch, BATCH, ToyContext().rng), made[epoch], strict=True
        ):
            coords, flips, perm, _, (x1, y1, x2, y2), logits, index, _ = item
            theirs = []
            for i, position in enumerate(index.tolist()):
                top, left, height, width = (int(v) for v in (coords[i] * 16).round())
                crop = F.resized_crop(
                    distilled.images[position].float() / 255,
                    top,
                    left,
                    height,
                    width,
                    [16, 16],
                    antialias=True,
                )
                theirs.append(
                    F.normalize(
                        F.horizontal_flip(crop) if flips[i] else crop,
                        list(distilled.mean),
                        list(distilled.std),
                    )
                )
            expected = torch.stack(theirs)
            expected[:, :, x1:x2, y1:y2] = expected[perm][:, :, x1:x2, y1:y2]
            torch.testing.assert_close(images, expected, rtol=0, atol=2e-5)
            assert torch.equal(targets.logits, logits.float())
            assert torch.equal(targets.hard, distilled.labels[index])


def test_other_files_are_no_epochs_and_missing_ones_are_named(tmp_path: Path) -> None:
    released(tmp_path)
    (tmp_path / "log.txt").write_text("a stray file")
    (tmp_path / "epoch_1" / "notes.md").write_text("another")
    found = FkdLabels.at(str(tmp_path))
    assert found.epochs == 2
    found.fits(BATCH, 2)
    with pytest.raises(
        ConfigError, match="3 epochs of training need as many epochs of labels; 2 are stored"
    ):
        found.fits(BATCH, 3)
    with pytest.raises(ConfigError, match="students' batch is 100"):
        found.fits(100, 2)
    with pytest.raises(ConfigError, match="augmentation 'dsa'"):
        found.fits(BATCH, 2, "dsa")
    assert str(tmp_path) not in str(canonical(found))
    (tmp_path / "epoch_1" / "batch_1.tar").unlink()
    with pytest.raises(DataError, match=r"epoch_1/batch_1\.tar is missing"):
        FkdLabels.at(str(tmp_path))
    with pytest.raises(DataError, match="no folder of FKD labels"):
        FkdLabels.at(str(tmp_path / "elsewhere"))


def test_sets_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    released(tmp_path)
    found = FkdLabels.at(str(tmp_path))
    found.check(SOURCE.load())
    with pytest.raises(DataError, match="labels 5 classes; the set has 6"):
        found.open(ToySource(dataset=info(classes=6), images=10).load(), ToyContext())
    with pytest.raises(DataError, match=r"labels image [89]; the set has 8"):
        found.check(ToySource(dataset=info(), images=8).load())
    with pytest.raises(DataError, match="labels 10 images; the set has 11"):
        found.check(ToySource(dataset=info(), images=11).load())


def saved(path: Path, value: Any) -> bytes:
    torch.save(value, path)
    return path.read_bytes()


class Evil:
    def __reduce__(self) -> Any:
        return (print, ("unpickled",))


def test_nothing_but_tensors_and_numbers_is_unpickled(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = record(0, 0, torch.arange(4))
    texts, objects = [np.str_("x")] * 4, np.array([{}], dtype=object)
    for value in (
        Evil(),
        [*good, Evil()],
        [*good[:4], texts, *good[5:]],
        [*good[:4], objects, *good[5:]],
    ):
        with pytest.raises(DataError, match="holds more than tensors and numbers"):
            read_record(saved(tmp_path / "evil.tar", value), "evil.tar")
    assert "unpickled" not in capsys.readouterr().out
    with pytest.raises(DataError, match="no file of FKD labels"):
        read_record(b"nothing of the kind", "other.tar")
    with pytest.raises(DataError, match="a list of crop"):
        read_record(saved(tmp_path / "dict.tar", {"a": 1}), "dict.tar")
    whole = saved(tmp_path / "good.tar", good)
    with pytest.raises(DataError, match="no file of FKD labels"):
        read_record(whole[: len(whole) // 2], "torn.tar")
    assert len(read_record(whole, "good.tar")) == 8


def test_files_written_with_an_older_numpy_are_read(tmp_path: Path) -> None:
    good = record(0, 0, torch.arange(4))
    older = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(saved(tmp_path / "good.tar", good))) as old,
        zipfile.ZipFile(older, "w") as new,
    ):
        for name in old.namelist():
            new.writestr(
                name, old.read(name).replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
            )
    assert b"numpy.core.multiarray" in older.getvalue()
    assert read_record(older.getvalue(), "older.tar")[4] == [int(v) for v in good[4]]


@pytest.mark.parametrize("items", [6, 8], ids=["sre2l", "edc on ImageNet"])
def test_labels_of_mixup_are_of_the_mixed_images(tmp_path: Path, items: int) -> None:
    made = released(tmp_path, epochs=1, items=items)[0]
    for j, item in enumerate(made):
        torch.save([*item[:4], None, *item[5:items]], tmp_path / "epoch_0" / f"batch_{j}.tar")
    found = FkdLabels.at(str(tmp_path))
    assert (found.mix, found.config.mix) == ("mixup", "mixup")
    distilled = SOURCE.load()
    mixed = list(found.open(distilled, ToyContext()).batches(0, BATCH, ToyContext().rng))
    for j, item in enumerate(made):  # the same files, not mixed
        torch.save(
            [*item[:2], None, None, None, *item[5:items]], tmp_path / "epoch_0" / f"batch_{j}.tar"
        )
    plain = (
        FkdLabels.at(str(tmp_path))
        .open(distilled, ToyContext())
        .batches(0, BATCH, ToyContext().rng)
    )
    for (images, targets), (before, _), item in zip(mixed, plain, made, strict=True):
        expected = item[3] * before + (1 - item[3]) * before[item[2]]
        torch.testing.assert_close(images, expected, rtol=0, atol=1e-6)
        assert torch.equal(targets.logits, item[5].float())


def test_labels_of_mixup_that_belong_to_other_images_are_refused(tmp_path: Path) -> None:
    good = record(0, 0, torch.arange(4), items=7)
    with pytest.raises(DataError, match="belong to the images before they were mixed"):
        read_record(saved(tmp_path / "mixup.tar", [*good[:4], None, *good[5:]]), "mixup.tar")


def test_files_of_two_mixes_are_refused(tmp_path: Path) -> None:
    made = released(tmp_path, epochs=1, items=6)[0]
    torch.save([*made[1][:4], None, *made[1][5:6]], tmp_path / "epoch_0" / "batch_1.tar")
    with pytest.raises(DataError, match=r"batch_1\.tar is mixed by mixup, other files by cutmix"):
        FkdLabels.at(str(tmp_path)).check(SOURCE.load())


def test_unmixed_batches_are_read(tmp_path: Path) -> None:
    released(tmp_path, epochs=1)
    for path in (tmp_path / "epoch_0").iterdir():
        item = read_record(path.read_bytes(), path.name)
        torch.save([item[0], item[1], None, None, None, *item[5:]], path)
    opened = FkdLabels.at(str(tmp_path)).open(SOURCE.load(), ToyContext())
    assert sum(len(images) for images, _ in opened.batches(0, BATCH, ToyContext().rng)) == 10


def test_sizes_are_near_those_of_the_files(tmp_path: Path) -> None:
    torch.manual_seed(0)
    source = torch.arange(100)
    (tmp_path / "epoch_0").mkdir()
    item = record(0, 0, source)
    item[5] = torch.zeros(100, 1000).half()
    torch.save(item, tmp_path / "epoch_0" / "batch_0.tar")
    size = (tmp_path / "epoch_0" / "batch_0.tar").stat().st_size
    assert FkdLabels.at(str(tmp_path)).bytes == pytest.approx(size, rel=0.01)
