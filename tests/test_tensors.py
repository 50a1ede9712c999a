"""Dictionaries of tensors as bytes."""

from __future__ import annotations

import hashlib
import itertools

import pytest
import torch
from safetensors.torch import save

from raydd.core.tensors import dump_tensors, load_metadata, load_tensors

TYPES = (
    torch.float64,
    torch.float32,
    torch.bfloat16,
    torch.float16,
    torch.int64,
    torch.int32,
    torch.int16,
    torch.int8,
    torch.uint8,
)
TYPES += (
    torch.uint16,
    torch.uint32,
    torch.uint64,
    torch.bool,
    torch.complex64,
    torch.float8_e4m3fn,
    torch.float8_e5m2,
)
NUMBERS = torch.arange(12).reshape(3, 4)
TENSORS = {
    **{f"{i % 3}/{dtype}": (NUMBERS + i).to(dtype) for i, dtype in enumerate(TYPES)},
    "empty": torch.empty(0, 3),
    "number": torch.tensor(3.5),
    "a view": NUMBERS.float().T[1:],
    "naïve/层": torch.ones(1),
}
FACTS = {
    "swapped": "false",
    "mean": "[0.5, 0.25]",
    "text": 'a "quoted"\nline, ü',
    "batch": "64",
    "patch": "4",
}


def test_metadata_in_any_order_gives_the_same_bytes_everywhere() -> None:
    tensors = {
        "b": torch.arange(3, dtype=torch.int32),
        "a": torch.tensor([True]),
        "c": torch.tensor([1.5]),
    }
    made = {
        dump_tensors({k: tensors[k] for k in names}, {k: FACTS[k] for k in keys})
        for names, keys in zip(
            itertools.permutations(tensors), itertools.permutations(FACTS), strict=False
        )
    }
    assert [hashlib.sha256(data).hexdigest()[:16] for data in made] == ["a2b5752dc9d4784e"]


@pytest.mark.parametrize("metadata", [None, {}, {"text": FACTS["text"]}])
def test_the_bytes_are_those_of_the_library(metadata: dict[str, str] | None) -> None:
    plain = {name: tensor.contiguous() for name, tensor in TENSORS.items()}
    assert dump_tensors(TENSORS, metadata) == save(plain, metadata or None)
    assert dump_tensors({}, metadata) == save({}, metadata or None)


def test_what_is_written_comes_back() -> None:
    data = dump_tensors({**TENSORS, "again": TENSORS["number"]}, FACTS)
    found = load_tensors(data)
    assert set(found) == {*TENSORS, "again"}
    for name, tensor in TENSORS.items():
        assert (found[name].dtype, found[name].shape) == (tensor.dtype, tensor.shape)
        assert torch.equal(
            found[name].reshape(-1).view(torch.uint8), tensor.reshape(-1).view(torch.uint8)
        )
    assert load_metadata(data) == FACTS
