"""Whole jobs against a real S3 server: shards, output and store in a bucket, an outage in the
middle, places that cannot be.
"""

from __future__ import annotations

import dataclasses
import io
import json
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result
from conftest import MotoServer, S3Server
from driving import CONFIG, distill, environment, finish, free_ports, overrides, refused
from driving import here as run_here
from page_tree import check_page
from PIL import Image
from run_records import PLAN, write_run

import raydd
from raydd.artifacts.distilled_set import DistilledSet
from raydd.artifacts.formats import write_set
from raydd.config import load_job
from raydd.core.errors import DataError, StorageError
from raydd.core.keeping import collect, register_run
from raydd.core.storage import Storage
from raydd.core.store import Store
from raydd.data import shard_writing as writer
from raydd.data.catalog import entry
from raydd.data.config import DatasetConfig
from raydd.data.datasets import missing, open_data
from raydd.data.shard_writing import write_shards
from raydd.data.split import BaseData
from raydd.export import main as export
from raydd.gc import main as gc
from raydd.report import main as report
from raydd.runtime.pipeline import run_job
from raydd.status import main as status

Server = S3Server | MotoServer


def png(value: int) -> bytes:
    target = io.BytesIO()
    Image.new("RGB", (8, 8), (value, value, value)).save(target, "PNG")
    return target.getvalue()


def outputs(s3: S3Server, prefix: str) -> set[str]:
    return {path for path in s3.paths(f"{prefix}/store/units") if path.endswith(".json")}


def accuracies(report: bytes) -> list[tuple[str, float, float]]:
    return [
        (row["set"], row["accuracy_mean"], row["accuracy_std"])
        for row in json.loads(report)["rows"]
    ]


@pytest.mark.ray
@pytest.mark.timeout(1500)
def test_a_job_from_s3_to_s3_survives_an_outage_and_equals_the_local_run(
    s3: S3Server, paced: tuple[str, ...], tmp_path: Path
) -> None:
    env = environment(**s3.environment)
    write = ["--dataset", "digits", "--shard-size", "512", "--workers", "1"]
    assert "1438 images in 3 shards" in run_here("shard", s3.url("digits"), *write)

    here = Storage(str(tmp_path / "digits"))
    for path in s3.paths("digits/"):
        here.put(path.removeprefix("digits/"), s3.read(path))
    run_job(
        load_job(CONFIG, overrides(tmp_path / "local", 0, *paced, f"dataset.shards={here.url}")),
        lambda line: None,
    )
    expected = (tmp_path / "local/out/distilled/data.safetensors").read_bytes()

    job = overrides(s3.url("job"), 2, *paced, f"dataset.shards={s3.url('digits')}")
    driver = distill(tmp_path / "job.log", *job, env=env | {"RAYDD_STORAGE_RETRY_S": "120"})
    driver.until("some unit was done", lambda: outputs(s3, "job"))
    s3.kill()
    time.sleep(5)
    assert driver.process.poll() is None, "the run was to be alive during the outage"
    s3.start()
    at_outage = outputs(s3, "job")
    finish(driver)
    assert at_outage < outputs(s3, "job"), "the outage was to be in the middle of the run"

    assert s3.read("job/out/distilled/data.safetensors") == expected
    assert accuracies(s3.read("job/out/report.json")) == accuracies(
        (tmp_path / "local/out/report.json").read_bytes()
    )
    logged = [json.loads(line) for line in s3.read("job/out/log.jsonl").splitlines()]
    done = [(line["key"], line["output"]) for line in logged if line["kind"] == "output"]
    assert len(done) == len(set(done)) == len(outputs(s3, "job"))
    assert "job/out/lock.json" not in s3.paths("job/out/"), "the lock is given back"

    loaded = raydd.load(s3.url("job/out/distilled"))
    assert [label for _, label in loaded] == list(range(10))
    small = ["--epochs", "1", "--repeats", "1", "--networks", "convnet1_w8"]
    places = ["--output", s3.url("evaluated"), f"store={s3.url('job/store')}"]
    assert "dm[epochs=1]" in run_here("evaluate", s3.url("job/out/distilled"), *small, *places)
    assert {row["set"] for row in json.loads(s3.read("evaluated/report.json"))["rows"]} == {
        "dm",
        "random",
    }
    for place in ("job/out", "evaluated"):
        check_page(s3.read(f"{place}/report.html").decode())
        found = CliRunner().invoke(status, [s3.url(place), "--json"])
        assert (found.exit_code, json.loads(found.output)["state"]) == (0, "finished"), found.output


@pytest.mark.slow
@pytest.mark.parametrize("wrong", ["bucket", "credentials", "server"])
@pytest.mark.timeout(600)
def test_a_place_that_cannot_be_written_is_refused_before_ray_starts(
    s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrong: str
) -> None:
    monkeypatch.setenv("RAYDD_RAY_TMP", str(tmp_path / "ray"))
    # Such places are not tried again that long.
    monkeypatch.setattr("raydd.core.retries.RETRY_SECONDS", 600.0)
    place, names = s3.url("refused"), "output: cannot write to"
    if wrong == "bucket":
        place = "s3://no-such-bucket/refused"
    elif wrong == "credentials":
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "0" * 32)
    else:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{next(free_ports(1))}")
    begun = time.monotonic()
    message = refused(*overrides(place, 2))
    assert time.monotonic() - begun < 200
    assert f"{names} {place}/out" in message
    assert s3.secret not in message
    assert not (tmp_path / "ray").exists(), "a cluster was started"
    assert not s3.paths("refused"), "something was left behind"


def test_a_missing_bucket_is_told_from_an_empty_folder(either_s3: Server) -> None:
    assert Storage(either_s3.url("nothing-is-here")).sizes() == []
    with pytest.raises(StorageError, match="could not list s3://no-such-bucket/x"):
        Storage("s3://no-such-bucket/x").sizes()


def test_a_status_reads_little_and_writes_nothing_and_a_page_lies_beside_the_run(
    either_s3: Server, tmp_path: Path
) -> None:
    at, plan = f"status-{tmp_path.name}", {**PLAN, "store": either_s3.url("status/store")}
    for path in Path(write_run(tmp_path, plan=plan)).iterdir():
        either_s3.put(f"{at}/out/{path.name}", path.read_bytes())
    either_s3.put("status/store/units/d1/d1/state-000000075.safetensors", b"1")
    either_s3.put("status/store/units/e0/e0/final.json", b"{}")
    before = either_s3.paths("")
    found = CliRunner().invoke(status, [either_s3.url(f"{at}/out"), "--json"])
    assert found.exit_code == 3, found.output
    values = json.loads(found.output)
    stages = {stage["stage"]: stage for stage in values["stages"]}
    assert stages["distill/Match"]["updates_made"] == 175
    assert stages["evaluate/Evaluate"]["units_done"] == 2
    assert values["notes"] == []
    assert either_s3.paths("") == before, "nothing is written"
    written = CliRunner().invoke(report, [either_s3.url(f"{at}/out")])
    assert written.exit_code == 0, written.output
    assert set(either_s3.paths("")) - set(before) == {f"{at}/out/report.html"}
    check_page(either_s3.read(f"{at}/out/report.html").decode())
    near = CliRunner().invoke(status, [either_s3.url(f"{at}/oat")])
    assert (near.exit_code, "did you mean 'out'?" in near.output) == (2, True), near.output


def test_folders_are_no_objects_however_a_server_keeps_them(either_s3: Server) -> None:
    storage = Storage(either_s3.url("listed"))
    assert (storage.list(), storage.folders(), storage.files(), storage.exists("a")) == (
        [],
        [],
        [],
        False,
    )
    for path in ("a/b/c.json", "a/b/d.json", "e/f", "g"):
        storage.put(path, b"x")
    for marker in ("a/", "a/b/", "empty/", "hadoop_$folder$", "e/"):
        either_s3.put(f"listed/{marker}", b"")
    either_s3.put("listed/zero", b"")
    assert storage.list() == ["a/b/c.json", "a/b/d.json", "e/f", "g", "zero"]
    assert storage.sizes("a") == [("a/b/c.json", 1), ("a/b/d.json", 1)]
    assert list(storage.stamps("a/b")) == ["a/b/c.json", "a/b/d.json"]
    assert (storage.folders(), storage.files()) == (["a", "e"], ["g", "zero"])
    assert (storage.folders("a"), storage.files("a/b"), storage.folders("g")) == (
        ["b"],
        ["c.json", "d.json"],
        [],
    )
    assert storage.exist(["a", "a/b", "a/b/c.json", "empty", "zero", "nope"]) == [
        True,
        True,
        True,
        False,
        True,
        False,
    ]
    for path in ("a/b/c.json", "a/b/d.json"):
        storage.delete(path)
    for prefix in ("a", "a/b", "a/b/c.json", "empty"):
        assert (storage.list(prefix), storage.sizes(prefix), storage.stamps(prefix)) == ([], [], {})
        assert (storage.folders(prefix), storage.exists(prefix)) == ([], False)
    assert storage.folders() == ["e"]


def test_a_store_is_collected_as_often_as_one_likes(either_s3: Server) -> None:
    store = Store(either_s3.url("collected/store"))
    for key in ("ab12", "cd34"):
        store.storage.put(f"{Store.folder(key)}/final.safetensors", b"12345678")
        store.storage.put(f"{Store.folder(key)}/final.json", b"{}")
    store.storage.put("units/README", b"what a person left there")
    register_run(store, "s3://elsewhere/out", ["ab12"], finished=False)
    for units in (1, 0):
        removed = collect(store)
        assert (removed.units, removed.kept) == (units, 1)
    register_run(store, "s3://elsewhere/out", ["ab12"], finished=True)
    for units in (1, 0, 0):
        answer = CliRunner().invoke(gc, [store.url])
        assert answer.exit_code == 0, answer.output
        assert f"removed {units} units" in answer.output
    assert [
        path
        for path in store.storage.list()
        if path.startswith("units/") and not path.endswith("README")
    ] == []


def test_a_target_that_was_emptied_is_empty(either_s3: Server, tmp_path: Path) -> None:
    info = dataclasses.replace(entry("digits").info, digests=(("train", "0"),))
    sets = [str(tmp_path / f"{name}.safetensors") for name in ("one", "other")]
    for path in sets:
        write_set(
            DistilledSet(images=torch.rand(10, 1, 8, 8), labels=torch.arange(10), info=info),
            path,
            "safetensors",
        )
    target = Storage(either_s3.url("exported/pictures"))

    def exported(path: str) -> Result:
        return CliRunner().invoke(export, [path, target.url, "--to", "folder"])

    for first, second in (sets, sets[::-1]):
        answer = exported(first)
        assert answer.exit_code == 0, answer.output
        again = exported(second)
        assert again.exit_code == 2
        assert "is not empty" in again.output
        for path in target.list():
            target.delete(path)


def test_a_local_file_is_uploaded(either_s3: Server, tmp_path: Path) -> None:
    data = bytes(range(256)) * (5 << 12)
    (tmp_path / "file").write_bytes(data)
    for place in (Storage(either_s3.url("uploaded")), Storage(str(tmp_path / "uploaded"))):
        for _ in range(2):  # over what stands there, too
            place.upload("a/file", str(tmp_path / "file"))
        assert place.get("a/file") == data
        assert place.list() == ["a/file"]
    with pytest.raises(StorageError, match=r"could not write .*no-such-bucket"):
        Storage("s3://no-such-bucket/x").upload("file", str(tmp_path / "file"))


def test_two_slashes_in_a_url_are_one(either_s3: Server) -> None:
    bucket = f"s3://{either_s3.bucket}"
    for split in ("train", "test"):
        for name in ("cat", "dog"):
            for number in range(2):
                either_s3.put(f"slashes/{split}/{name}/{number}.png", png(number))
    for root in (f"{bucket}//slashes", f"{bucket}/slashes//", f"{bucket}///slashes/"):
        config = DatasetConfig(name="image_folder", root=root, size=8)
        assert missing(config) == []
        data = open_data(config)["train"]
        assert data.take(torch.arange(4)).shape == (4, 3, 8, 8)


def contents(data: BaseData) -> dict[bytes, tuple[int, bytes]]:
    images = data.take(torch.arange(len(data)))
    return {
        bytes(key): (int(y), x.numpy().tobytes())
        for key, y, x in zip(data.identities(), data.labels, images)
    }


@pytest.mark.slow
def test_shards_and_folders(
    either_s3: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there, here = Storage(either_s3.url("shards")), Storage(str(tmp_path))
    for split, count in (("train", 9), ("test", 3)):
        for label, name in enumerate(("a", "b", "c")):
            for number in range(count):
                for storage in (there, here):
                    storage.put(f"files/{split}/{name}/{number}.png", png(9 * label + number))
    source = DatasetConfig(name="image_folder", root=f"{here.url}/files")
    assert contents(open_data(replace(source, root=f"{there.url}/files"))["train"]) == contents(
        open_data(source)["train"]
    )
    write_shards(source, f"{here.url}/out", "test")
    local = write_shards(source, f"{here.url}/out", shard_size=5)
    write_shards(source, f"{there.url}/out", "test")
    real = writer.write_shard

    def dies(job, number, ids, identity):  # type: ignore[no-untyped-def]
        if number == 2:
            raise DataError("stopped")
        return real(job, number, ids, identity)

    monkeypatch.setattr(writer, "write_shard", dies)
    with pytest.raises(DataError, match="stopped"):
        write_shards(source, f"{there.url}/out", shard_size=5, workers=1)
    monkeypatch.setattr(writer, "write_shard", real)
    assert write_shards(source, f"{there.url}/out", shard_size=5) == local
    read = [
        open_data(DatasetConfig(name="webdataset", shards=f"{place}/out"))["train"]
        for place in (here.url, there.url)
    ]
    assert read[0].digest == read[1].digest
    assert contents(read[0]) == contents(read[1])
    assert torch.equal(torch.cat([y for _, y in read[1].stream(0, 1, batch=4)]), read[0].labels)
    for path in [path for path in there.list("out") if path.endswith(".json")]:
        there.delete(path)  # a folder of tars alone, and of folders that are empty now
    foreign = [
        f"{there.url}/out",
        f"{there.url}//out/train-*.tar",
        f"{there.url}/out/train-{{000000..000005}}.tar",
    ]
    for shards in foreign:
        config = DatasetConfig(
            name="webdataset",
            shards=shards,
            test_shards=None if shards == foreign[0] else f"{there.url}/out/test-000000.tar",
        )
        assert missing(config) == []
        assert {split: len(data) for split, data in open_data(config).items()} == {
            "train": 27,
            "test": 9,
        }
    torn = there.get("out/train-000003.tar")
    there.put("out/train-000003.tar", torn[:4096])
    with pytest.raises(DataError, match=r"train-000003\.tar is torn"):
        open_data(DatasetConfig(name="webdataset", shards=foreign[2]))
