"""Losses of students that learn teachers' logits: golden numbers (G4 of docs/methods/parity.md), and a property."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from raydd.losses.soft import SoftTargets, cross_entropy, distillation_kl, mse_gt

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "golden_edc.json").read_text())[
    "G4_losses"
]


def det(shape: tuple[int, ...], a: float, b: float, scale: float) -> Tensor:
    i = np.arange(int(np.prod(shape)), dtype=np.float64)
    return torch.from_numpy(
        (scale * (np.sin(a * i + b) + 0.5 * np.cos(0.013 * i))).reshape(shape).astype(np.float32)
    )


LOGITS, LABELS = det((4, 10), 0.3, 0.2, 2.0), det((4, 10), 0.41, 0.3, 3.0)
HARD = torch.tensor([1, 4, 9, 0])
TARGETS = SoftTargets(LABELS, HARD)


def test_golden_g4() -> None:
    assert float(mse_gt(LOGITS, TARGETS, 0.0)) == pytest.approx(GOLDEN["mse"], rel=2e-6)
    assert float(cross_entropy(LOGITS, HARD)) == pytest.approx(GOLDEN["ce"], rel=2e-6)
    assert float(mse_gt(LOGITS, TARGETS, 0.025)) == pytest.approx(GOLDEN["mse_gt_025"], rel=2e-6)
    halved = SoftTargets(LABELS.half(), HARD)
    assert float(mse_gt(LOGITS, halved, 0.025)) == pytest.approx(
        GOLDEN["mse_gt_025_fp16label"], rel=2e-6
    )
    assert float(distillation_kl(LOGITS, TARGETS, 20.0)) == pytest.approx(
        GOLDEN["kl_T20_batchmean"], rel=2e-5
    )


def test_kl_is_that_of_torch_and_has_no_factor_of_the_temperature() -> None:
    logits = LOGITS.clone().requires_grad_()
    loss = distillation_kl(logits, TARGETS, 3.0)
    expected = F.kl_div(
        F.log_softmax(logits / 3, 1), F.softmax(LABELS / 3, 1), reduction="batchmean"
    )
    assert float(loss.detach()) == pytest.approx(float(expected.detach()), rel=1e-5)
    torch.testing.assert_close(
        torch.autograd.grad(loss, logits),
        torch.autograd.grad(expected, logits),
        rtol=1e-4,
        atol=1e-7,
    )
    assert float(distillation_kl(LABELS, TARGETS, 3.0)) == pytest.approx(0, abs=1e-7)


def test_matching_the_labels_leaves_the_hard_loss_alone() -> None:
    """With labels equal to the student's logits, mse_gt is ce_weight times cross entropy."""
    own = SoftTargets(LOGITS, HARD)
    assert float(mse_gt(LOGITS, own, 0.1)) == pytest.approx(
        0.1 * float(F.cross_entropy(LOGITS, HARD)), rel=1e-6
    )
    assert float(mse_gt(LOGITS, own, 0.0)) == 0


@pytest.mark.parametrize(
    "loss", [lambda x, y: mse_gt(x, y, 0.1), lambda x, y: distillation_kl(x, y, 4.0)]
)
def test_networks_at_once_equal_one_by_one(loss) -> None:
    several = torch.stack([LOGITS, 2 * LOGITS])
    targets = SoftTargets(torch.stack([LABELS, -LABELS]), torch.stack([HARD, HARD.flip(0)]))
    apart = torch.stack(
        [loss(several[m], SoftTargets(targets.logits[m], targets.hard[m])) for m in range(2)]
    )
    torch.testing.assert_close(loss(several, targets), apart)
    torch.testing.assert_close(torch.vmap(loss)(several, targets), apart)
