"""Outputs read by row: what is read, what a torn row does, and markers of before."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from raydd.core.errors import TornFileError
from raydd.core.events import Event
from raydd.core.storage import Storage
from raydd.core.store import Store
from raydd.core.tensors import Tensors
from raydd.core.units import Ref, Stage
from raydd.runtime.runner import LocalRunner

COUNT, WIDTH = 50, 1000


@dataclass(frozen=True, kw_only=True)
class Shelf(Stage):
    """A long tensor that is read by row, one beside it that is not, and one of other type."""

    phase: ClassVar[str] = "squeeze"
    by_row: ClassVar[tuple[str, ...]] = ("books", "pages")

    def step(self, unit: str, state: Tensors, t: int, ctx: Any) -> Tensors:
        books = torch.randn(COUNT, 10, WIDTH // 10, generator=ctx.rng("books"))
        return {
            "books": books.bfloat16(),
            "pages": torch.arange(COUNT, dtype=torch.int64),
            "whole": torch.zeros(100_000),
        }


@dataclass(frozen=True, kw_only=True)
class Reader(Stage):
    """Reads a few rows of the shelf, one in each step."""

    phase: ClassVar[str] = "distill"
    shelf: Shelf
    rows: tuple[int, ...] = (7, 3, 49)

    def inputs(self, unit: str) -> Mapping[str, Ref]:
        return {"shelf": Ref(self.shelf, "all")}

    def units(self) -> Sequence[str]:
        return ("a", "b")

    def steps(self, unit: str) -> int:
        return len(self.rows)

    def step(self, unit: str, state: Tensors, t: int, ctx: Any) -> Tensors:
        found = ctx.load("shelf", slice(self.rows[t], self.rows[t] + 1))
        return {**state, f"{t}": torch.cat([found["books"].float().sum()[None], found["pages"]])}


def made(store: Store) -> Ref:
    ref = Ref(Shelf(seed=3), "all")
    run([ref], store)
    return ref


def run(refs: list[Ref], store: Store) -> list[Event]:
    events: list[Event] = []
    LocalRunner(dict).run(refs, store, events.append)
    return events


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """The kind and size of every object that is read."""
    found: list[tuple[str, int]] = []
    get = Storage.get

    def counted(self: Storage, path: str, *span: int | None) -> bytes:
        data = get(self, path, *span)
        found.append((path.rsplit(".", 1)[-1], len(data)))
        return data

    monkeypatch.setattr(Storage, "get", counted)
    return found


@pytest.mark.parametrize(
    "rows", [slice(0, 1), slice(49, 50), slice(10, 13), slice(None), slice(5, 5), slice(48, 99)]
)
def test_rows_are_those_of_the_whole(rows: slice, tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    ref = made(store)
    whole, part = store.load(ref), store.load_rows(ref, rows)
    assert set(part) == {"books", "pages"}
    for name, value in part.items():
        assert value.dtype == whole[name].dtype
        assert torch.equal(value, whole[name][rows])


def test_no_more_than_the_rows_is_read(tmp_path: Path, reads: list[tuple[str, int]]) -> None:
    store = Store(str(tmp_path))
    ref = made(store)
    marker = store.marker(ref)
    reads.clear()
    store.load_rows(ref, slice(4, 6), marker)
    assert reads == [("safetensors", 2 * 2 * WIDTH), ("safetensors", 2 * 8)]


def test_a_stage_reads_its_rows_and_the_marker_once(
    tmp_path: Path, reads: list[tuple[str, int]]
) -> None:
    store = Store(str(tmp_path))
    shelf = made(store)
    reader = Reader(seed=0, shelf=Shelf(seed=3))
    reads.clear()
    run(reader.refs(), store)
    sizes = [size for kind, size in reads if kind == "safetensors"]
    assert sizes == [2 * WIDTH, 8] * 6
    markers = [size for kind, size in reads if kind == "json"]
    assert len(markers) == 2, "one by the ledger, one by the worker"
    books = store.load(shelf)["books"].float()
    for ref in reader.refs():
        for t, row in enumerate(reader.rows):
            assert store.load(ref)[f"{t}"].tolist() == [float(books[row].sum()), row]


def torn(store: Store, ref: Ref, row: int) -> None:
    """Change one byte of a row."""
    storage, path = store.place(ref)
    facts = store.marker(ref)["rows"]["books"]
    with open(f"{storage.url}/{path}.safetensors", "r+b") as file:
        file.seek(facts["begin"] + row * 2 * WIDTH + 5)
        byte = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte[0] ^ 1]))


def test_a_torn_row_is_named_and_others_are_read(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    ref = made(store)
    torn(store, ref, 7)
    assert len(store.load_rows(ref, slice(8, 20))["books"]) == 12
    with pytest.raises(TornFileError, match=r"final\.safetensors is torn: row 7 is missing or"):
        store.load_rows(ref, slice(0, 20))
    storage, path = store.place(ref)
    os.truncate(f"{storage.url}/{path}.safetensors", 10 * 2 * WIDTH)
    with pytest.raises(TornFileError, match="row 49 is missing"):
        store.load_rows(ref, slice(49, 50))


def test_a_torn_row_is_computed_again(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    shelf = made(store)
    torn(store, shelf, 3)
    reader = Reader(seed=0, shelf=Shelf(seed=3))
    events = run(reader.refs(), store)
    assert [e.text for e in events if "row 3" in e.text and "computed again" in e.text]
    fresh = Store(str(tmp_path / "fresh"))
    run(reader.refs(), fresh)
    for ref in reader.refs():
        assert torch.equal(store.load(ref)["1"], fresh.load(ref)["1"])


def test_an_output_of_before_is_read_whole(tmp_path: Path) -> None:
    """A marker without checksums of rows was written before its stage was read by row."""
    store = Store(str(tmp_path))
    ref = made(store)
    storage, path = store.place(ref)
    marker = store.marker(ref)
    del marker["rows"]
    storage.put(f"{path}.json", json.dumps(marker).encode())
    reader = Reader(seed=0, shelf=Shelf(seed=3))
    run(reader.refs(), store)
    assert store.load(Ref(reader, "a"))["2"][1] == 49
