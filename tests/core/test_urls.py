"""URLs that are no places are refused in words, whatever names them; none becomes a local folder of a strange name."""

from __future__ import annotations

import contextlib
import os
import socket
from pathlib import Path

import pytest
from click.testing import CliRunner
from fsspec.registry import known_implementations

from raydd.config import load_evaluation, parse_job
from raydd.core.errors import ConfigError
from raydd.core.storage import Storage
from raydd.core.urls import WRITTEN, absolute, check_url
from raydd.data.config import DatasetConfig
from raydd.gc import main as gc

MISSPELT = {
    "s3://": "names no bucket",
    "s3:///folder": "names no bucket",
    "gs://": "names no bucket",
    "az:///x": "names no container",
    "http://": "names no host",
    "https:///x.tar": "names no host",
    "file://": "names no folder",
    "s3:/bucket/x": "did you mean 's3://bucket/x'",
    "s3:bucket/x": "did you mean 's3://bucket/x'",
    "s3//bucket/x": "did you mean 's3://bucket/x'",
    "s3:": "did you mean 's3://'",
    "S3://bucket/x": "did you mean 's3://bucket/x'",
    "https:/host/x": "did you mean 'https://host/x'",
    "file:/data": "did you mean 'file:///data'",
    "ss3://bucket": "did you mean 's3'",
    "ss3:/bucket": "did you mean 's3'",
    "://bucket": "names no scheme",
    "": "names no place",
    "zip://a::/x.zip": "chains file systems",
    "zip:///x.zip": "unpack it",
    "data:,x": "is not written as a URL",
    "pipe:cat x": "run commands",
    "simplecache::s3://b/x": "chains file systems",
    "s3://key:secret@bucket/x": "credentials belong in the environment",
    "ftp://user:password@host/x": "credentials belong in the environment",
}


@pytest.mark.parametrize(("url", "message"), MISSPELT.items())
def test_what_is_no_place_is_refused_by_every_key(
    url: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    method = {"name": "dm", "network": "convnet1_w8", "iterations": 1}
    for key in ("output", "store"):
        tree = {
            "dataset": {"name": "digits"},
            "ipc": 1,
            "method": method,
            "output": "a",
            "store": "b",
            key: url,
        }
        if url:
            with pytest.raises(ConfigError, match=r"output|store"):
                parse_job(tree)
            with pytest.raises(ConfigError, match=r"output|store"):
                load_evaluation({"dataset": {"name": "digits"}}, [f"{key}={url}"])
    for key in ("root", "shards"):
        with pytest.raises(ConfigError, match=message):
            DatasetConfig(name="webdataset", **{key: url})
    with pytest.raises(ConfigError, match=message):
        check_url(url, "key")
    with pytest.raises(ConfigError, match=message):
        Storage(url)
    answer = CliRunner().invoke(gc, [url])
    assert answer.exit_code == 2
    assert message in answer.output
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("scheme", sorted(known_implementations))
def test_every_scheme_of_fsspec_is_a_store_or_refused_in_words(scheme: str) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"{scheme}://127.0.0.1:{unused.getsockname()[1]}/x"
    if scheme not in WRITTEN:
        with pytest.raises(ConfigError, match=r"^output: "):
            check_url(url, "output", write=True)
    if scheme in (
        "file",
        "local",
        "webhdfs",
    ):  # those are paths; the last one connects when it is asked
        return
    with contextlib.suppress(ConfigError):
        assert Storage(url).writable == (scheme in WRITTEN)


def test_local_paths_and_slashes() -> None:
    for path in (
        "runs/x",
        "runs//x",
        "data//mnist",
        "./data:v2",
        "~/x",
        "/a//b",
        "file:///a/b",
        "local:///a",
        "a b",
        "x=1:2/y",
    ):
        check_url(path, "output", write=True)
        assert os.path.isabs(absolute(path))
    assert absolute("file:///a//b/") == absolute("local:///a/b") == "/a/b"
    assert absolute("s3://bucket//a///b/") == "s3://bucket/a/b"
    assert absolute("s3://bucket/") == "s3://bucket"
    assert absolute("https://host//a") == "https://host//a"
    assert Storage("s3://bucket//a//b").root == "bucket/a/b"


def test_places_that_are_only_read_refuse_to_be_written() -> None:
    for url in ("http://host/x", "https://host/x"):
        with pytest.raises(
            ConfigError, match=r"store: https? URLs cannot be written; allowed: a folder, s3://"
        ):
            check_url(url, "store", write=True)
        with pytest.raises(ConfigError, match=r"output: https? URLs cannot be written"):
            Storage(url).check_writable("output")
    with pytest.raises(ConfigError, match="mount it, and give the folder"):
        check_url("sftp://host/x", "output", write=True)
