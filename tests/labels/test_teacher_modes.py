"""Teachers whose batch norms take a batch's own statistics, and the golden steps of students
(docs/methods/parity.md, "Tensors of DWA").
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import pytest
import torch
from golden_nets import GoldenNet, golden_images

from raydd.core.errors import ConfigError
from raydd.core.tensors import digest
from raydd.labels.ensemble import batch_statistics, predict
from raydd.labels.label_config import LabelConfig
from raydd.losses.soft import SoftTargets, distillation_kl


@pytest.mark.parametrize(
    ("offsets", "mode", "losses", "total"),
    [
        (
            (0, 3, 6, 9),
            "eval",
            (0.007216049036, 0.007162045277, 0.007107692355),
            123.819129795387,
        ),
        ((0,), "batch", (0.013134271329, 0.013059374402, 0.012983700851), 123.808479662257),
    ],
)
def test_golden_steps_of_a_student(
    offsets: Sequence[int], mode: Literal["eval", "batch"], losses: Sequence[float], total: float
) -> None:
    teachers = [GoldenNet(off).double() for off in offsets]
    for network, off in zip(teachers, offsets, strict=True):
        network.load_state_dict(exact(off))
    student, x = GoldenNet(20).double(), golden_images(10, 32)
    student.load_state_dict(exact(20))
    student.train().requires_grad_()
    optimiser = torch.optim.AdamW(student.parameters(), lr=1e-3, weight_decay=0.01)
    mixed = 0.3 * x + 0.7 * x.flip(0)
    found = []
    for _ in range(3):
        targets = SoftTargets(predict(teachers, mixed, "mean", mode), torch.arange(10))
        loss = distillation_kl(student(mixed), targets, 30.0)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        found.append(loss.item())
    # The teachers' logits are rounded to float32.
    assert found == pytest.approx(losses, rel=1e-5)
    assert sum(p.abs().sum().item() for p in student.parameters()) == pytest.approx(total, rel=1e-7)


def exact(off: int) -> dict[str, torch.Tensor]:
    """Return the golden network's state in float64."""
    torch.set_default_dtype(torch.float64)
    try:
        return GoldenNet(off).state_dict()
    finally:
        torch.set_default_dtype(torch.float32)


def test_statistics_are_the_whole_batch_s_and_the_network_is_as_it_was() -> None:
    network, images = GoldenNet(0), golden_images(300, 8).float()
    before = digest(network.state_dict())
    found = predict([network], images, "mean", "batch")
    plain = predict([network], images, "mean")
    assert digest(network.state_dict()) == before
    assert torch.equal(plain, predict([network], images, "mean", "eval"))
    reference = GoldenNet(0).train()
    assert torch.allclose(found, reference(images), rtol=1e-5, atol=1e-6)
    assert not torch.allclose(found, plain, rtol=1e-2, atol=1e-2)
    with pytest.raises(RuntimeError, match="in between"), batch_statistics(network):
        raise RuntimeError("in between")
    assert torch.equal(predict([network], images, "mean"), plain)


def test_an_image_alone_has_no_statistics() -> None:
    LabelConfig(batch=10, teacher_mode="batch").check(100, 10, (3, 32, 32))
    LabelConfig(batch=10).check(101, 10, (3, 32, 32))
    with pytest.raises(ConfigError, match="of 101 images in batches of 10 one is alone"):
        LabelConfig(batch=10, teacher_mode="batch").check(101, 10, (3, 32, 32))


def test_a_divergence_times_the_temperature_squared() -> None:
    targets = SoftTargets(torch.tensor([[3.0, 1.0, 0.0], [1.0, 1.0, 1.0]]), torch.zeros(2))
    logits = torch.tensor([[1.0, 2.0, 3.0], [0.0, 0.0, 0.0]])
    assert float(distillation_kl(logits, targets, 30.0)) == pytest.approx(1.1799515860e-3, rel=1e-4)
    assert float(distillation_kl(logits, targets, 20.0)) == pytest.approx(2.6619463726e-3, rel=1e-4)
    squared = distillation_kl(logits, targets, 20.0, squared=True)
    assert float(squared) == pytest.approx(1.0647785490, rel=1e-4)
