"""timm's and torchvision's models behind the zoo's interface."""

from __future__ import annotations

import pytest
import torch

from raydd.core.errors import ConfigError
from raydd.networks import create_network, flops, is_per_sample
from raydd.networks.external import ExternalNetwork

MODELS = ["torchvision/shufflenet_v2_x0_5", "torchvision/mobilenet_v2", "timm/test_resnet", "timm/test_vit", "timm/test_convnext"]


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def make(name: str, shape: tuple[int, int, int], seed: int = 0) -> ExternalNetwork:
    net = create_network(name, shape, 7, torch.Generator().manual_seed(seed))
    assert isinstance(net, ExternalNetwork)
    return net


@torch.no_grad()
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("shape", [(1, 32, 32), (3, 64, 64)])
def test_any_channels_and_sizes(name: str, shape: tuple[int, int, int]) -> None:
    net = make(name, shape).eval()
    x = torch.randn(2, *shape, generator=torch.Generator().manual_seed(1))
    features = net.embed(x)
    assert features.shape == (2, net.embed_dim)
    assert torch.equal(net(x), net.classifier(features))
    assert net(x).shape == (2, 7)
    assert flops(net, shape) > 0


def test_weights_depend_on_the_generator_alone() -> None:
    before = torch.get_rng_state()
    one, two, other = (make("timm/test_resnet", (3, 32, 32), seed) for seed in (1, 1, 2))
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), two.state_dict().values(), strict=True))
    assert not torch.equal(one.classifier.weight, other.classifier.weight)


@torch.no_grad()
def test_library_weights_give_the_library_s_logits() -> None:
    import torchvision

    library = torchvision.models.shufflenet_v2_x0_5(weights=None, num_classes=7).eval()
    net = make("torchvision/shufflenet_v2_x0_5", (3, 32, 32)).eval()
    net.load_library_state(library.state_dict())
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    assert torch.equal(net(x), library(x))


def test_transformers_are_per_sample_and_batch_norm_is_not() -> None:
    assert is_per_sample(make("timm/test_vit", (3, 32, 32)))
    assert not is_per_sample(make("timm/test_resnet", (3, 32, 32)))


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("torchvision/alexnet", (3, 32, 32), "cannot read 3x32x32 images"),
        ("torchvision/vit_b_16", (3, 30, 30), "cannot read 3x30x30 images"),
        ("torchvision/squeezenet1_1", (3, 64, 64), "does not end in one linear layer"),
    ],
)
def test_what_does_not_fit_is_named(name: str, shape: tuple[int, int, int], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make(name, shape)
