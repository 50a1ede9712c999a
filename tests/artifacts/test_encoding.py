"""``raydd encode``: the file, the folder that is decoded of it, budgets, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result

from raydd import load
from raydd.artifacts import coders
from raydd.artifacts.byte_budget import bytes_of, rungs, within
from raydd.artifacts.distilled_set import DistilledSet
from raydd.artifacts.image_codecs import ImageCodec, encode, facts
from raydd.artifacts.published_folder import publish, read
from raydd.cli import main
from raydd.core.errors import ConfigError, DataError, TornFileError


def raydd(*words: Any) -> Result:
    return CliRunner().invoke(main, [str(word) for word in words])


@pytest.fixture
def published(make: Callable[..., DistilledSet], tmp_path: Path) -> Path:
    publish(make(), str(tmp_path / "set"))
    return tmp_path / "set"


def test_a_coded_set_is_the_same_wherever_it_is_read(published: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    made = raydd("encode", published, out, "--bits", 2)
    assert made.exit_code == 0, made.output
    data = (out / "set.rdd").read_bytes()
    assert f"{len(data):,} bytes" in made.output
    assert "1,920 bytes at 8 bits and 7,680 at 32" in made.output
    assert data == encode(load(str(published)).distilled, ImageCodec(bits=2))
    folder, file = load(str(out)), load(str(out / "set.rdd"), info="digits")
    assert folder.distilled.images.dtype == torch.uint8
    assert len(folder.distilled.images.unique()) == 4
    assert folder.distilled.digest == file.distilled.digest
    assert torch.equal(folder.tensors()[0], file.tensors()[0])
    assert folder.distilled.recipe["method"]["name"] == "dm"
    assert folder.distilled.recipe["images"] == {
        "codec": "levels",
        "bits": 2,
        "size": 1,
        "table": "set",
    }
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["coded"] == {
        "file": "set.rdd",
        "bytes": len(data),
        "digest": folder.distilled.digest,
    }
    assert manifest["digest"] == folder.distilled.digest
    assert f"in {len(data):,} bytes (2 bits;" in (out / "README.md").read_text()
    exported = raydd("export", out, tmp_path / "set.pt", "--to", "pt")
    assert exported.exit_code == 0, exported.output
    again = load(str(tmp_path / "set.pt"))
    assert torch.equal(again.tensors()[0], folder.tensors()[0])


def test_a_folder_is_not_written_over(published: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert raydd("encode", published, out, "--bits", 1).exit_code == 0
    before = (out / "manifest.json").read_bytes()
    same = raydd("encode", published, out, "--bits", 1)
    assert same.exit_code == 0
    assert "is there already, the same" in same.output
    other = raydd("encode", published, out, "--bits", 2)
    assert other.exit_code == 2
    assert "is not empty" in other.output
    assert (out / "manifest.json").read_bytes() == before


def test_a_set_of_others_is_coded(make: Callable[..., DistilledSet], tmp_path: Path) -> None:
    pixels = torch.rand(10, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    torch.save((pixels, torch.arange(10)), tmp_path / "idc.pt")
    given = ("--dataset", "digits", "--space", "pixels")
    made = raydd("encode", tmp_path / "idc.pt", tmp_path / "out", "--bits", 8, *given)
    assert made.exit_code == 0, made.output
    assert torch.equal(load(str(tmp_path / "out")).distilled.images, (pixels * 255).round().byte())


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--bits", 5], "bits: Input should be 1, 2, 3, 4 or 8, not 5"),
        (["--size", 3], "size: Input should be 1 or 2, not 3"),
        (["--table", "patch"], "table: Input should be 'set' or 'image'"),
        (["--quality", 30], "quality=30 has no effect with the codec 'levels'"),
        (["--codec", "avif", "--quality", 101], "quality"),
        (["--codec", "avif", "--budget", "8kB"], "'avif' has a quality: state that"),
        (["--bits", 2, "--budget", "8kB"], "leave out --bits=2"),
        (["--budget", "8 parsecs"], "--budget: '8 parsecs' is no number of bytes"),
        (["--budget", "150"], "no file of 30 images fits 150 bytes; the smallest has"),
    ],
)
def test_what_cannot_be_is_refused(
    published: Path, tmp_path: Path, words: list[Any], said: str
) -> None:
    refused = raydd("encode", published, tmp_path / "out", *words)
    assert refused.exit_code == 2
    assert said in refused.output
    assert not (tmp_path / "out").exists()


def test_without_the_coder_nothing_is_read(
    published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    assert raydd("encode", published, out, "--bits", 2).exit_code == 0
    monkeypatch.setattr(coders, "find_spec", lambda name: None)
    refused = raydd("encode", tmp_path / "nowhere", tmp_path / "other", "--bits", 2)
    assert refused.exit_code == 2
    assert "pip install 'raydd[codecs]'" in refused.output
    with pytest.raises(ConfigError, match=r"pip install 'raydd\[codecs\]'"):
        load(str(out / "set.rdd"))
    assert len(load(str(out))) == 30, "the folder needs no coder"


def test_a_folder_of_two_sets_is_refused(
    make: Callable[..., DistilledSet], published: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    assert raydd("encode", published, out, "--bits", 2).exit_code == 0
    whole = read(str(out))
    publish(whole, str(out), coded=encode(make(), ImageCodec(bits=1)))
    with pytest.raises(TornFileError, match=r"set\.rdd is decoded to other images"):
        read(str(out))
    publish(whole, str(out))
    assert not (out / "set.rdd").exists(), "a set that is not coded has no such file"
    (out / "set.rdd").write_bytes(b"something else")
    with pytest.raises(DataError, match="is no coded set of raydd"):
        load(str(out / "set.rdd"))


def test_a_budget_takes_the_most_bits_that_fit(make: Callable[..., DistilledSet]) -> None:
    made = make()
    sizes = {codec: len(encode(made, codec)) for codec in rungs(ImageCodec())}
    assert [(codec.bits, codec.size) for codec in sizes] == [
        *((bits, 1) for bits in (8, 4, 3, 2, 1)),
        *((bits, 2) for bits in (8, 4, 3, 2, 1)),
    ]
    for codec, size in sizes.items():
        first = next(one for one, held in sizes.items() if held <= size)
        found, data = within(made, size, ImageCodec())
        assert (found, len(data)) == (first, sizes[first])
        assert facts(data).codec == found
        assert codec == found or sizes[found] <= size
    smallest = min(sizes.values())
    with pytest.raises(ConfigError, match=f"the smallest has {smallest}"):
        within(made, smallest - 1, ImageCodec())


@pytest.mark.parametrize(
    ("text", "size"),
    [("8kB", 8_000), ("8KB", 8_000), ("1.5 MB", 1_500_000), (78_400, 78_400), ("78400B", 78_400)],
)
def test_a_kilobyte_is_a_thousand_bytes(text: str | int, size: int) -> None:
    assert bytes_of(text) == size


@pytest.mark.parametrize("text", ["", "-8kB", "8kiB", "0", "kB", "1e3", True])
def test_what_is_no_number_of_bytes(text: Any) -> None:
    with pytest.raises(ConfigError, match="is no number of bytes"):
        bytes_of(text)
