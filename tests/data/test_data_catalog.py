"""The catalog, the config and the splits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter, ValidationError

from raydd.core.errors import ConfigError, DataError
from raydd.core.rng import generator
from raydd.data.arrays import ArrayData
from raydd.data.catalog import CATALOG, entry
from raydd.data.config import DatasetConfig
from raydd.data.datasets import FoundData, describe, missing, open_data, with_digests
from raydd.data.split import Subset, keyed_split

KNOWN = sorted(name for name, item in CATALOG.items() if item.info.classes)


@pytest.mark.parametrize("name", KNOWN)
def test_facts_of_known_data_sets_need_no_data(name: str, tmp_path: Path) -> None:
    info = describe(DatasetConfig(name=name, root=str(tmp_path)))
    assert info.name == name
    assert len(info.mean) == len(info.std) == info.channels
    assert info.class_names == () or len(set(info.class_names)) == info.classes
    assert sum(info.train_counts) in (0, entry(name).train_count)
    if name != "digits":
        sentences = missing(DatasetConfig(name=name, root=str(tmp_path)))
        assert sentences
        assert all(str(tmp_path) in sentence or "not in" in sentence for sentence in sentences)
        with pytest.raises(DataError, match=r"dataset\.root"):
            open_data(DatasetConfig(name=name, root=str(tmp_path)))


def test_the_strategy_leaves_out_flips_where_they_change_the_class() -> None:
    assert {name for name in KNOWN if "flip" not in entry(name).info.dsa_strategy} == {
        "mnist",
        "svhn",
        "digits",
    }


def test_unknown_names_get_a_hint() -> None:
    with pytest.raises(ConfigError, match="did you mean 'cifar10'"):
        describe(DatasetConfig(name="cifar_10"))


def test_what_cannot_be_downloaded_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"tiny-imagenet-200\.zip"):
        FoundData(DatasetConfig(name="tiny_imagenet", root=str(tmp_path))).download()


def test_yaml_values_are_checked_by_type_and_bound() -> None:
    adapter = TypeAdapter(DatasetConfig)
    assert adapter.validate_python({"name": "digits", "holdout": 0.1}).holdout == 0.1
    assert adapter.validate_python({"name": "digits", "holdout": 5}).holdout == 5
    for bad in (
        {"holdout": -1},
        {"on_error": "ignore"},
        {"size": 0},
        {"test_split": 1.0},
        {"mean": "x"},
    ):
        with pytest.raises(ValidationError):
            adapter.validate_python({"name": "digits", **bad})
    with pytest.raises(ConfigError, match=r"dataset.holdout: 1.5"):
        DatasetConfig(name="digits", holdout=1.5)
    with pytest.raises(ConfigError, match="pipe"):
        DatasetConfig(name="webdataset", shards="pipe:cat x.tar")
    with pytest.raises(ConfigError, match="3 values for images of 1 channels"):
        describe(DatasetConfig(name="digits", mean=(0.1, 0.2, 0.3)))


def test_digits_are_split_once_and_for_all() -> None:
    data = open_data(DatasetConfig(name="digits"))
    info = with_digests(describe(DatasetConfig(name="digits")), data)
    assert (len(data["train"]), len(data["test"])) == (1438, 359)
    assert torch.bincount(data["test"].labels).tolist() == [36, 36, 35, 37, 36, 36, 36, 36, 35, 36]
    assert (
        dict(info.digests)["test"]
        == "737cc31879ea3197e9e3ef9b31cf2c756703ed9b63c5ae6a55478af7509f3382"
    )
    assert info.test_count == 359
    assert sum(info.train_counts) == 1438


def test_digits_are_scikit_learns() -> None:
    from sklearn.datasets import load_digits

    data, images = open_data(DatasetConfig(name="digits")), load_digits().images
    read = torch.cat([data[split].take(torch.arange(len(data[split]))) for split in data])
    expected = np.round(images * (255 / 16)).astype(np.uint8)
    assert sorted(x.tobytes() for x in read.numpy()) == sorted(x.tobytes() for x in expected)


def test_the_holdout_is_cut_from_train_by_share_or_count() -> None:
    whole = open_data(DatasetConfig(name="digits"))
    share = open_data(DatasetConfig(name="digits", holdout=0.1))
    count = open_data(DatasetConfig(name="digits", holdout=7))
    assert torch.bincount(count["holdout"].labels).tolist() == [7] * 10
    assert len(share["holdout"]) == sum(
        round(0.1 * n) for n in torch.bincount(whole["train"].labels).tolist()
    )
    for data in (share, count):
        assert len(data["train"]) + len(data["holdout"]) == 1438
        assert data["test"].digest == whole["test"].digest
        kept = {bytes(x) for x in data["train"].identities()}
        assert not kept & {bytes(x) for x in data["holdout"].identities()}
    assert share["train"].digest != whole["train"].digest
    with pytest.raises(
        DataError, match=r"class '\w+' has \d+ images: taking 500 of them for 'holdout' leaves none"
    ):
        open_data(DatasetConfig(name="digits", holdout=500))


def test_a_keyed_split_does_not_depend_on_the_order() -> None:
    rng = np.random.default_rng(0)
    images, labels = (
        torch.from_numpy(rng.integers(0, 255, (90, 1, 4, 4), dtype=np.uint8)),
        torch.arange(90) % 3,
    )
    order = torch.randperm(90, generator=generator(0, "order"))
    chosen = []
    for rows in (torch.arange(90), order):
        data = ArrayData(images[rows], labels[rows])
        _, taken = keyed_split(data, 0.3, "holdout")
        chosen.append({image.numpy().tobytes() for image in data.take(taken)})
    assert len(chosen[0]) == 27
    assert chosen[0] == chosen[1]
    _, other = keyed_split(ArrayData(images, labels), 0.3, "another stream")
    assert {images[i].numpy().tobytes() for i in other} != chosen[0]


@pytest.mark.parametrize("parts", [1, 3, 7])
def test_slices_are_fixed_and_cover_each_sample_once(parts: int) -> None:
    whole = open_data(DatasetConfig(name="digits"))["train"]
    data = Subset(whole, torch.arange(5, 400, 3))
    for split in (whole, data):
        seen = [
            labels for part in range(parts) for _, labels in split.stream(part, parts, batch=100)
        ]
        assert torch.equal(torch.cat(seen), split.labels)
    images, _ = next(data.stream(0, parts, batch=16))
    assert torch.equal(images, whole.take(torch.arange(5, 400, 3)[:16]))
    mixed = [y for _, y in data.stream(0, 1, shuffle=generator(0, "s"))]
    again = [y for _, y in data.stream(0, 1, shuffle=generator(0, "s"))]
    assert torch.equal(torch.cat(mixed), torch.cat(again))
    assert torch.equal(torch.cat(mixed).sort().values, data.labels.sort().values)
    assert not torch.equal(torch.cat(mixed), data.labels)
    with pytest.raises(ConfigError, match="slice 2 of 2"):
        next(data.stream(2, 2))
    with pytest.raises(IndexError):
        data.take(torch.tensor([len(data)]))
