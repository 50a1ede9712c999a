"""What a worker keeps: bounded by memory, by the kind of memory, and measured in constant time."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch

from raydd.core.tensors import Tensors
from raydd.runtime import cache as room
from raydd.runtime.cache import Cache
from raydd.runtime.sizes import sizes_of


def numbers(count: int, device: str = "cpu") -> Tensors:
    return {"x": torch.zeros(count, device=device)}


def asked(kept: Cache, names: str, made: list[str], **sizes: Any) -> list[str]:
    def make(name: str) -> Tensors:
        made.append(name)
        return sizes.get(name, numbers(1000))

    for name in names:
        kept.get(name, lambda name=name: make(name))  # type: ignore[misc]
    return made


def test_the_cache_is_bounded_by_bytes_and_keeps_what_was_used_last() -> None:
    assert asked(Cache({"cpu": 3 * 4000}), "abcadab", []) == ["a", "b", "c", "d", "b"]


def test_each_memory_has_a_limit_of_its_own() -> None:
    # "meta" stands for a GPU: its tensors take none of this machine's memory.
    far = {name: numbers(1000, "meta") for name in "xyz"}
    kept = Cache({"cpu": 4000, "meta": 8000})
    assert asked(kept, "axyxa", [], **far) == ["a", "x", "y"], "'a' does not give way to them"
    assert asked(kept, "bxy", [], **far) == ["b"], "nor they to 'b', which takes the place of 'a'"
    assert asked(kept, "zbyx", [], **far) == ["z", "x"], "'x' was used longest ago of its kind"


def test_an_entry_larger_than_the_limit_is_kept_until_the_next() -> None:
    assert asked(Cache({"cpu": 100}), "aaba", []) == ["a", "b", "a"]


def test_entries_that_grow_are_measured_again() -> None:
    kept, held = Cache({"cpu": 8000}), numbers(10)
    asked(kept, "ab", [], a=held)
    held["y"] = torch.zeros(1500)
    assert asked(kept, "ca", []) == ["c", "a"]


def test_measuring_does_not_grow_with_the_number_of_entries(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls = []
    monkeypatch.setattr(room, "sizes_of", lambda value: calls.append(1) or sizes_of(value))
    kept = Cache({"cpu": 1e9})
    for i in range(500):
        kept.get(i, lambda: numbers(1))
    assert len(calls) <= 1000


def test_what_threads_make_at_once_is_one_value() -> None:
    kept, barrier, found = Cache({"cpu": 1e9}), threading.Barrier(4), []

    def make() -> Tensors:
        barrier.wait(10)
        return numbers(1)

    threads = [threading.Thread(target=lambda: found.append(kept.get("a", make))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({id(value) for value in found}) == 1


def test_bytes_are_counted_where_tensors_lie_some_levels_deep() -> None:
    class Holder:
        def __init__(self) -> None:
            self.inner = {"parts": [torch.zeros(3), torch.zeros(5, dtype=torch.uint8)]}
            self.far = torch.zeros(7, device="meta")

    assert sizes_of(Holder()) == {"cpu": 17, "meta": 28}
    assert sizes_of(torch.nn.Linear(2, 3)) == {"cpu": 36}
    assert sizes_of(["text", 1, None]) == {}
