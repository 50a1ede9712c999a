from __future__ import annotations

import hashlib
import io
import json
import os
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors import safe_open

from raydd.artifacts.distilled_set import Decoding, DistilledSet, Whitening
from raydd.artifacts.published_folder import publish, read, verify
from raydd.artifacts.report import Report
from raydd.core.errors import ConfigError, DataError, TornFileError
from raydd.core.storage import Storage

Make = Callable[..., DistilledSet]


def full(make: Make) -> DistilledSet:
    white = Whitening(matrix=torch.eye(64) * 2, mean=torch.linspace(-1, 1, 64), per_image=True)
    return make(
        soft_labels=torch.eye(10).repeat_interleave(3, 0) * 0.9 + 0.01,
        whitening=white,
        decoding=Decoding("grid", {"factor": 1}),
    )


def same(a: DistilledSet, b: DistilledSet) -> bool:
    return (
        a.digest == b.digest
        and a.info == b.info
        and a.info.name == b.info.name
        and dict(a.recipe) == dict(b.recipe)
    )


def snapshot(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_what_is_read_is_what_was_published(make: Make, tmp_path: Path) -> None:
    for name, made in {"plain": make(), "full": full(make)}.items():
        publish(made, str(tmp_path / name))
        got = read(str(tmp_path / name))
        assert same(got, made)
        assert all(torch.equal(got.stored()[key], value) for key, value in made.stored().items())
        assert got.info.class_names == made.info.class_names


def test_equal_sets_give_equal_folders(make: Make, report: Report, tmp_path: Path) -> None:
    publish(full(make), str(tmp_path / "a"), report)
    publish(full(make), str(tmp_path / "b"), report.to_dict())
    first = snapshot(tmp_path / "a")
    assert first == snapshot(tmp_path / "b")
    assert set(first) == {
        *(
            "data.safetensors",
            "whitening.safetensors",
            "shards/train-000000.tar",
            "shards/dataset.json",
        ),
        *("grid.png", "curve.png", "recipe.json", "report.json", "README.md"),
        "manifest.json",
    }


def test_the_manifest_lists_every_file_with_size_and_checksum(make: Make, tmp_path: Path) -> None:
    manifest = publish(make(), str(tmp_path))
    files = snapshot(tmp_path)
    assert json.loads(files.pop("manifest.json")) == manifest
    assert manifest["digest"] == make().digest
    assert manifest["files"] == {
        path: {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        for path, data in files.items()
    }
    verify(str(tmp_path))


@pytest.mark.parametrize("limit", [700, 2000, 5000])
def test_large_sets_are_split_and_joined(make: Make, tmp_path: Path, limit: int) -> None:
    made = full(make)
    files = set(publish(made, str(tmp_path), part_bytes=limit)["files"])
    parts = sorted(path for path in files if path.startswith("data-"))
    assert len(parts) > 1
    assert "data.safetensors" not in files
    assert parts[0] == f"data-00001-of-{len(parts):05d}.safetensors"
    index = json.loads((tmp_path / "data.safetensors.index.json").read_text())
    assert [part["file"] for part in index["parts"]] == parts
    assert all((tmp_path / path).stat().st_size <= limit + 2000 for path in parts)
    assert same(read(str(tmp_path)), made)
    torch.testing.assert_close(read(str(tmp_path)).images, made.images, rtol=0, atol=0)


def test_publishing_again_leaves_nothing_of_the_set_before(
    make: Make, report: Report, tmp_path: Path
) -> None:
    publish(full(make), str(tmp_path / "used"), report, part_bytes=5000)
    publish(make(), str(tmp_path / "used"))
    publish(make(), str(tmp_path / "fresh"))
    assert snapshot(tmp_path / "used") == snapshot(tmp_path / "fresh")


def test_the_manifest_is_written_last_and_removed_first(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    put, delete = Storage.put, Storage.delete
    monkeypatch.setattr(
        Storage, "put", lambda self, path, data: (order.append(path), put(self, path, data))[1]
    )
    monkeypatch.setattr(
        Storage, "delete", lambda self, path: (order.append(f"-{path}"), delete(self, path))[1]
    )
    publish(make(), str(tmp_path))
    publish(make(recipe={}), str(tmp_path))
    half = len(order) // 2
    assert order[0] == order[half] == "-manifest.json"
    assert order[half - 1] == order[-1] == "manifest.json"


def test_a_publication_that_did_not_finish_is_refused(make: Make, tmp_path: Path) -> None:
    publish(make(), str(tmp_path))
    (tmp_path / "manifest.json").unlink()
    with pytest.raises(TornFileError, match=r"no manifest\.json: its publication did not finish"):
        read(str(tmp_path))


@pytest.mark.parametrize("damage", ["flip", "cut", "remove"])
@pytest.mark.parametrize("name", ["data-00002-of-00004.safetensors", "recipe.json"])
def test_torn_files_are_named(make: Make, tmp_path: Path, name: str, damage: str) -> None:
    publish(make(), str(tmp_path), part_bytes=2200)
    path = tmp_path / name
    data = bytearray(path.read_bytes())
    if damage == "flip":
        data[-3] ^= 1
    path.write_bytes(data[:-5] if damage == "cut" else data)
    if damage == "remove":
        path.unlink()
    with pytest.raises(TornFileError, match=name):
        read(str(tmp_path))


def test_verify_reads_the_views_too(make: Make, tmp_path: Path) -> None:
    publish(make(), str(tmp_path))
    shard = tmp_path / "shards" / "train-000000.tar"
    shard.write_bytes(shard.read_bytes()[:-512])
    assert len(read(str(tmp_path))) == 30
    with pytest.raises(TornFileError, match=r"train-000000\.tar is torn"):
        verify(str(tmp_path))


def test_a_torn_manifest_and_a_newer_version_are_named(make: Make, tmp_path: Path) -> None:
    manifest = publish(make(), str(tmp_path))
    (tmp_path / "manifest.json").write_text(json.dumps({**manifest, "version": 3}))
    with pytest.raises(DataError, match="version 3; this raydd reads"):
        read(str(tmp_path))
    (tmp_path / "manifest.json").write_text('{"files": ')
    with pytest.raises(TornFileError, match=r"manifest\.json is torn"):
        read(str(tmp_path))


READER = """
import json, sys
from safetensors import safe_open
with safe_open(sys.argv[1] + "/data.safetensors", "numpy") as file:
    facts = json.loads(file.metadata()["raydd"])
    images, labels = file.get_tensor("images"), file.get_tensor("labels")
assert not any(name.split(".")[0] in ("raydd", "torch") for name in sys.modules)
pixels = images * facts["std"][0] + facts["mean"][0]
names = [facts["dataset"]["name"], facts["decoding"]["name"]]
print(json.dumps([images.shape, labels.tolist(), float(pixels.sum()), *names]))
"""


def test_the_set_is_readable_without_raydd(make: Make, tmp_path: Path) -> None:
    publish(make(), str(tmp_path))
    done = subprocess.run(
        [sys.executable, "-c", READER, str(tmp_path)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=True,
    )
    shape, labels, total, name, decoding = json.loads(done.stdout)
    made = make()
    assert shape == [30, 1, 8, 8]
    assert labels == made.labels.tolist()
    assert total == pytest.approx(float((made.images * made.std[0] + made.mean[0]).sum()), rel=1e-5)
    assert (name, decoding) == ("digits", "identity")


def python_blocks(text: str) -> list[str]:
    return [block.split("```")[0] for block in text.split("```python\n")[1:]]


def first_picture(folder: Path) -> np.ndarray:
    with tarfile.open(folder / "shards" / "train-000000.tar") as tar:
        file = tar.extractfile("000000.png")
        assert file is not None
        with Image.open(io.BytesIO(file.read())) as image:
            return np.asarray(image).reshape(8, 8, 1).astype(np.float64)


@pytest.mark.parametrize("part_bytes", [10**9, 2200])
def test_the_cards_code_runs(
    make: Make, tmp_path: Path, part_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(make(), str(tmp_path), part_bytes=part_bytes)
    monkeypatch.chdir(tmp_path)
    with_raydd, by_hand, of_shards = python_blocks((tmp_path / "README.md").read_text())
    assert len(with_raydd.strip().splitlines()) == 3
    names: dict[str, object] = {}
    exec(with_raydd.replace("path/or/url/of/this/folder", str(tmp_path)), names)  # noqa: S102 (the card's own text)
    assert names["label"] == 0
    exec(by_hand, names)  # noqa: S102
    images = names["images"]
    assert isinstance(images, torch.Tensor)
    assert torch.equal(images, make().images)
    names |= {"png": first_picture(tmp_path), "json": json}
    exec(of_shards, names)  # noqa: S102
    pixels = torch.as_tensor(names["pixels"]).permute(2, 0, 1)
    step = 1.2 / 255
    assert float((pixels - make().to_pixels()[0]).abs().max()) <= step / 2 + 1e-6
    assert float(pixels.max()) > 1.1
    publish(make(images=make().to_uint8()), str(tmp_path / "within"))
    assert len(python_blocks((tmp_path / "within" / "README.md").read_text())) == 2


def test_the_card_says_what_hubs_and_people_ask(make: Make, report: Report, tmp_path: Path) -> None:
    publish(make(), str(tmp_path / "a"), report, license_id="mit")
    text = (tmp_path / "a" / "README.md").read_text()
    header = yaml.safe_load(text.split("---")[1])
    assert header["license"] == "mit"
    assert header["task_categories"] == ["image-classification"]
    assert header["size_categories"] == ["n<1K"]
    assert header["source_datasets"] == ["digits"]
    assert {"dataset-distillation", "ipc-3", "dm"} <= set(header["tags"])
    assert "| dm | dsa-1000 |" in text
    assert "curve.png" in text
    assert '"lr_img": 1.0' in text
    assert "labels/" not in text
    publish(
        make(),
        str(tmp_path / "c"),
        written={"labels/epoch-000.safetensors": {"size": 2000, "sha256": ""}},
    )
    soft = (tmp_path / "c" / "README.md").read_text()
    assert "in `labels/` (2.0 kB)" in soft
    assert "\n- `labels/`: " in soft
    publish(make(recipe={}), str(tmp_path / "b"))
    assert "without an evaluation" in (tmp_path / "b" / "README.md").read_text()


def test_names_cannot_break_the_header(make: Make, tmp_path: Path) -> None:
    publish(make(recipe={"method": "x: [1]\nlicense: mit"}), str(tmp_path))
    header = yaml.safe_load((tmp_path / "README.md").read_text().split("---\n")[1])
    assert header["license"] == "unknown"
    assert header["tags"][-1] == "x: [1]\nlicense: mit"


def test_shards_are_webdataset(make: Make, tmp_path: Path) -> None:
    publish(full(make), str(tmp_path), shard_bytes=20_000)
    shards = sorted((tmp_path / "shards").glob("*.tar"))
    assert len(shards) > 1
    import webdataset as wds

    samples = list(wds.WebDataset([str(path) for path in shards], shardshuffle=False))
    assert [int(sample["cls"]) for sample in samples] == make().labels.tolist()
    assert json.loads(samples[0]["json"])["soft_label"][0] == pytest.approx(0.91)
    with tarfile.open(shards[0]) as tar:
        assert {(member.mtime, member.uid, member.uname) for member in tar} == {(0, 0, "")}
    with Image.open(io.BytesIO(samples[7]["png"])) as image:
        pixels = torch.tensor(list(image.get_flattened_data())).view(8, 8)
    assert torch.equal(pixels.to(torch.uint8), full(make).to_uint8()[7, 0])


def test_a_recipe_that_is_no_json_is_refused(make: Make, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="not a JSON value"):
        publish(make(recipe={"loss": float("nan")}), str(tmp_path))
    assert not (tmp_path / "manifest.json").exists()


def test_images_of_many_channels_are_published_without_pictures_of_them(
    make: Make, tmp_path: Path
) -> None:
    from dataclasses import replace

    info = replace(make().info, channels=6, mean=(0.5,) * 6, std=(0.25,) * 6)
    made = make(images=torch.zeros(30, 6, 8, 8), info=info)
    files = publish(made, str(tmp_path))["files"]
    assert not any(path.startswith("shards") for path in files)
    assert "grid.png" in files
    assert "shards" not in (tmp_path / "README.md").read_text()
    assert same(read(str(tmp_path)), made)


SERVER = """
from moto.server import ThreadedMotoServer
server = ThreadedMotoServer("127.0.0.1", 0)
server.start()
print("port", server.get_host_and_port()[1], flush=True)
input()
"""


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    """The URL of a bucket on an S3 server of its own process."""
    from urllib.request import urlopen

    import boto3

    server = subprocess.Popen(
        [sys.executable, "-c", SERVER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert server.stdout is not None
    assert server.stdin is not None
    port = next(line.split()[1] for line in server.stdout if line.startswith("port "))
    endpoint = f"http://127.0.0.1:{port}"
    names = ("AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_DEFAULT_REGION")
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(zip(names, (endpoint, "test", "test", "us-east-1")))
    urlopen(f"{endpoint}/moto-api/", timeout=20).close()  # noqa: S310
    boto3.client("s3").create_bucket(Bucket="distilled")
    yield "s3://distilled"
    server.stdin.close()
    server.wait(20)
    for name, value in before.items():
        os.environ.pop(name) if value is None else os.environ.update({name: value})


@pytest.mark.slow
def test_folders_live_in_object_storage_too(
    make: Make, report: Report, bucket: str, tmp_path: Path
) -> None:
    import raydd

    publish(make(), f"{bucket}/runs/digits", report, part_bytes=5000)
    publish(make(), str(tmp_path), report, part_bytes=5000)
    storage = Storage(f"{bucket}/runs/digits")
    assert {path: storage.get(path) for path in storage.list()} == snapshot(tmp_path)
    dataset = raydd.load(f"{bucket}/runs/digits")
    assert torch.equal(dataset.tensors()[0], make().images)
    storage.put("data-00001-of-00002.safetensors", b"torn")
    with pytest.raises(
        TornFileError,
        match=r"s3://distilled/runs/digits/data-00001-of-00002\.safetensors is torn: 4 bytes",
    ):
        raydd.load(f"{bucket}/runs/digits")


def test_the_header_alone_says_how_to_read(make: Make, tmp_path: Path) -> None:
    import raydd

    publish(full(make), str(tmp_path))
    with safe_open(str(tmp_path / "data.safetensors"), "pt") as file:
        facts = json.loads(file.metadata()["raydd"])
        assert set(file.keys()) == {"images", "labels", "soft_labels"}
    with safe_open(str(tmp_path / "whitening.safetensors"), "pt") as file:
        assert set(file.keys()) == {"whitening_matrix", "whitening_mean"}
        assert json.loads(file.metadata()["raydd"]) == facts
    assert facts["version"] == 2
    with pytest.raises(DataError, match=r"its whitening is in whitening\.safetensors beside it"):
        raydd.load(str(tmp_path / "data.safetensors"))
    assert facts["whitening"] == {"per_image": True}
    assert facts["decoding"] == {"name": "grid", "parameters": {"factor": 1}}


@pytest.mark.slow
def test_the_card_holds_no_place_of_the_machine_that_made_the_set(
    make: Make, report: Report, tmp_path: Path
) -> None:
    from dataclasses import replace

    job = {
        "dataset": {"root": "/home/alice/my photos/cats", "shards": "s3://bucket/shards"},
        "method": {"init": {"folder": "~/start"}},
    }
    notes = (
        "/home/alice/my_set/one.pt: read (https://example.org/a/b); C:\\Users\\alice\\set.pt, file:///home/alice/x/y",
    )
    publish(make(recipe={"method": "dm", "job": job}), str(tmp_path), replace(report, notes=notes))
    text = (tmp_path / "README.md").read_text()
    assert "alice" not in text
    assert '"root": "…/cats"' in text
    assert '"folder": "…/start"' in text
    assert '"shards": "s3://bucket/shards"' in text
    assert "…/one.pt: read (https://example.org/a/b); …/set.pt, …/y" in text
    assert json.loads((tmp_path / "recipe.json").read_text())["job"] == job, (
        "by which the set is evaluated again"
    )
