"""Shards written here are plain WebDataset shards, and shards that WebDataset wrote are read here."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import torch
import webdataset
from PIL import Image

from raydd.data.config import DatasetConfig
from raydd.data.datasets import open_data
from raydd.data.shard_writing import write_shards


def test_webdataset_reads_what_we_write(tmp_path: Path) -> None:
    config = DatasetConfig(name="digits")
    write_shards(config, str(tmp_path), "train", shard_size=500)
    shards = sorted(str(path) for path in tmp_path.glob("train-*.tar"))
    data = open_data(config)["train"]
    assert len(shards) == -(-len(data) // 500)
    found = []
    for sample in webdataset.WebDataset(shards, shardshuffle=False):
        image = np.asarray(Image.open(io.BytesIO(sample["png"])))
        found.append((int(sample["cls"]), image.tobytes()))
    images = data.take(torch.arange(len(data)))
    assert sorted(found) == sorted(
        (int(label), image[0].numpy().tobytes()) for label, image in zip(data.labels, images)
    )


def test_we_read_what_webdataset_writes(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (12, 8, 8, 3), dtype=np.uint8)
    for split in ("train", "test"):
        with webdataset.ShardWriter(
            str(tmp_path / f"{split}-%06d.tar"), maxcount=5, verbose=0
        ) as writer:
            for i, image in enumerate(pixels):
                writer.write(
                    {"__key__": f"sample{i:04d}", "png": Image.fromarray(image), "cls": i % 3}
                )
    train, test = (str(tmp_path / f"{split}-{{000000..000002}}.tar") for split in ("train", "test"))
    config = DatasetConfig(name="webdataset", shards=train, test_shards=test, size=8)
    data = open_data(config)["train"]
    assert len(data) == 12
    assert data.labels.tolist() == [i % 3 for i in range(12)]
    assert torch.equal(data.take(torch.arange(12)), torch.from_numpy(pixels).permute(0, 3, 1, 2))
