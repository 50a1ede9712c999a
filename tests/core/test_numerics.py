"""What a job's ``numerics`` sets of torch, and which keys its values have."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch

from raydd.core.errors import ConfigError
from raydd.core.numerics import apply_numerics
from raydd.core.units import Numerics, canonical

CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.fixture(autouse=True)
def switches(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Leave torch's switches as they were."""
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "as it is")
    backend, threads, fills = (
        torch.backends.cudnn,
        torch.get_num_threads(),
        torch.utils.deterministic.fill_uninitialized_memory,
    )
    before = backend.allow_tf32, backend.benchmark, torch.are_deterministic_algorithms_enabled()
    yield
    backend.allow_tf32, backend.benchmark = before[:2]
    torch.use_deterministic_algorithms(before[2])
    torch.utils.deterministic.fill_uninitialized_memory = fills
    torch.set_num_threads(threads)


@pytest.mark.parametrize(
    ("precision", "tf32"), [("fp32", True), ("fp32_strict", False), ("bf16", True)]
)
def test_convolutions_of_a_gpu_are_in_tf32_unless_strict_and_products_are_not(
    precision: str, tf32: bool
) -> None:
    torch.backends.cudnn.allow_tf32 = not tf32
    apply_numerics(Numerics(precision=precision), CPU)  # type: ignore[arg-type]
    assert torch.backends.cudnn.allow_tf32 is tf32
    assert torch.get_float32_matmul_precision() == "highest"
    assert torch.backends.cuda.matmul.allow_tf32 is False
    # The switches of later versions agree: reading them beside the older ones raises where the two were mixed.
    assert (torch.backends.cudnn.conv.fp32_precision == "tf32") is tf32
    assert torch.backends.cuda.matmul.fp32_precision != "tf32"


@pytest.mark.parametrize("deterministic", [True, False])
def test_cudnn_searches_where_it_is_asked_to_only(deterministic: bool) -> None:
    apply_numerics(Numerics(deterministic=deterministic), GPU)
    assert torch.backends.cudnn.benchmark is False
    assert torch.are_deterministic_algorithms_enabled() is deterministic
    assert torch.utils.deterministic.fill_uninitialized_memory is False
    apply_numerics(Numerics(deterministic=False, cudnn_search=True), GPU)
    assert torch.backends.cudnn.benchmark is True
    assert torch.are_deterministic_algorithms_enabled() is False


def test_a_search_is_refused_where_bytes_have_to_be_the_same() -> None:
    with pytest.raises(
        ConfigError, match=r"cudnn_search=true needs numerics\.deterministic=false: .* next run"
    ):
        Numerics(cudnn_search=True)


def test_strict_and_search_have_keys_of_their_own_and_the_rest_keep_theirs() -> None:
    before = {
        "class": "Numerics",
        "precision": "fp32",
        "convolution": "direct",
        "compile": False,
        "threads": 1,
        "deterministic": True,
    }
    assert canonical(Numerics()) == before
    assert canonical(Numerics(precision="bf16")) == {**before, "precision": "bf16"}
    assert canonical(Numerics(precision="fp32_strict")) == {**before, "precision": "fp32_strict"}
    found = canonical(Numerics(deterministic=False, cudnn_search=True))
    assert found == {**before, "deterministic": False, "cudnn_search": True}


def test_what_has_no_bf16_computes_in_fp32_and_stays_strict_where_that_is_asked_for() -> None:
    low, strict = (
        Numerics(precision="bf16", compile=True),
        Numerics(precision="fp32_strict", compile=True),
    )
    assert low.full == Numerics(compile=True)
    assert low.plain == Numerics()
    assert strict.full == strict
    assert strict.plain == replace(strict, compile=False)
