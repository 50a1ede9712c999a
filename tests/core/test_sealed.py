"""Sealed JSON, stamped YAML, lines with checksums, checkpoints: whatever bit or end is lost, nothing else is read."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator

import pytest
import torch

from raydd.artifacts.log_lines import checked_line, record_of
from raydd.artifacts.whole_png import is_whole_png
from raydd.core.checkpoint import Checkpoint, dump_checkpoint, read_checkpoint
from raydd.core.errors import TornFileError
from raydd.core.sealed import as_stamped, seal, stamp, unseal

VALUES = {"key": "a", "sizes": [1, 2.5], "inner": {"b": None}}


def flipped(data: bytes) -> Iterator[bytes]:
    for at in range(len(data)):
        for bit in range(8):
            yield data[:at] + bytes([data[at] ^ (1 << bit)]) + data[at + 1 :]


def cut(data: bytes) -> Iterator[bytes]:
    yield from (data[:end] for end in range(len(data)))


@pytest.mark.parametrize("text", [json.dumps(VALUES), json.dumps(VALUES, indent=2) + "\n"])
def test_a_sealed_object_is_read_as_it_was_written_or_not_at_all(text: str) -> None:
    data = seal(text.encode())
    assert unseal(data, "x.json") == VALUES
    assert json.loads(data).keys() == {*VALUES, "checksum"}
    assert unseal(text.encode(), "x.json") == VALUES, "of an earlier version"
    refused = 0
    for damaged in (*flipped(data), *cut(data)):
        try:
            found = unseal(damaged, "x.json")
        except TornFileError:
            refused += 1
        else:
            assert {name: found[name] for name in VALUES} == VALUES
    assert refused > 8 * len(text)


@pytest.mark.parametrize(
    "data", [b"", b"[]", b"3", b"{", b"\xff", b'{"checksum": "0"}', b"[" * 9999]
)
def test_what_is_no_object_is_torn(data: bytes) -> None:
    with pytest.raises(TornFileError, match=r"x\.json is torn"):
        unseal(data, "x.json")
    with pytest.raises(TornFileError, match="'size' is missing"):
        unseal(seal(b'{"a": 1}'), "x.json", lambda values: values["size"])


@pytest.mark.parametrize("data", [b"", b"[]", b"{}", b"{"])
def test_what_has_no_members_cannot_be_sealed(data: bytes) -> None:
    with pytest.raises(ValueError, match="not the text of a JSON object with members"):
        seal(data)


def test_a_stamped_text_differs_once_anything_does() -> None:
    text = b"name: a\nipc: 1\n"
    data = stamp(text)
    assert as_stamped(data)
    assert as_stamped(text), "of an earlier version"
    whole = [damaged for damaged in (*flipped(data), *cut(data)) if as_stamped(damaged)]
    assert all(
        damaged == b"" or damaged.endswith(text) or b"# sha256".startswith(damaged)
        for damaged in whole
    )


def test_a_line_of_a_log_is_read_as_it_was_written_or_not_at_all() -> None:
    record = {"time": "now", "kind": "log", "values": {"loss": 1.5}}
    line = checked_line(json.dumps(record).encode()).rstrip(b"\n")
    assert record_of(line) == record
    assert record_of(json.dumps(record).encode()) == record, "of an earlier version"
    for damaged in (*flipped(line), *cut(line)):
        try:
            found = record_of(damaged)
        except ValueError:
            continue
        assert {name: found[name] for name in record} == record


def test_a_checkpoint_is_read_as_it_was_written_or_not_at_all() -> None:
    data = dump_checkpoint(
        "k", Checkpoint(3, {"x": torch.arange(4.0)}, [(1, {"loss": 2.0})], 1.5), "cpu"
    )
    found, device = read_checkpoint("k", 3, data, "x")
    assert (found.t, found.log, found.seconds, device) == (3, [(1, {"loss": 2.0})], 1.5, "cpu")
    refusals: list[Callable[[], object]] = [
        lambda: read_checkpoint("other", 3, data, "x"),
        lambda: read_checkpoint("k", 4, data, "x"),
    ]
    for refusal in refusals:
        with pytest.raises(
            TornFileError, match="x is torn: it is another, of unit k after 3 updates"
        ):
            refusal()
    for damaged in (*flipped(data), *cut(data)):
        try:
            found, device = read_checkpoint("k", 3, damaged, "x")
        except TornFileError:
            continue
        # Spaces that fill the header up.
        assert torch.equal(found.state["x"], torch.arange(4.0))
        assert (found.t, found.log, found.seconds, device) == (3, [(1, {"loss": 2.0})], 1.5, "cpu")


def test_a_picture_is_whole_or_it_is_not() -> None:
    from PIL import Image

    from raydd.artifacts.grid import png

    data = png(Image.new("RGB", (5, 4), (1, 2, 3)))
    assert is_whole_png(data)
    assert not any(map(is_whole_png, (*flipped(data), *cut(data))))
