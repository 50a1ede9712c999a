"""timm's and torchvision's models behind the zoo's interface."""

from __future__ import annotations

import pytest
import torch

from raydd.core.errors import ConfigError
from raydd.networks import create_network, flops, is_per_sample
from raydd.networks.external import ExternalNetwork

MODELS = [
    "torchvision/shufflenet_v2_x0_5",
    "torchvision/mobilenet_v2",
    "timm/test_resnet",
    "timm/test_vit",
    "timm/test_convnext",
]


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


def test_a_model_is_tried_once(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[str] = []
    probe = ExternalNetwork._probe
    monkeypatch.setattr("raydd.networks.external._CHECKED", set())
    monkeypatch.setattr(ExternalNetwork, "_probe", lambda net: (tried.append(net.name), probe(net)))
    for seed in range(3):
        make("timm/test_resnet", (3, 32, 32), seed)
    make("timm/test_resnet", (1, 32, 32))
    assert tried == ["timm/test_resnet"] * 2, "once for each shape"
    for _ in range(2):  # one that is refused stays so
        with pytest.raises(ConfigError, match="cannot read 3x1x1 images"):
            make("torchvision/alexnet", (3, 1, 1))


def test_weights_depend_on_the_generator_alone() -> None:
    before = torch.get_rng_state()
    one, two, other = (make("timm/test_resnet", (3, 32, 32), seed) for seed in (1, 1, 2))
    assert torch.equal(before, torch.get_rng_state())
    assert all(
        torch.equal(a, b)
        for a, b in zip(one.state_dict().values(), two.state_dict().values(), strict=True)
    )
    assert not torch.equal(one.classifier.weight, other.classifier.weight)


@torch.no_grad()
def test_library_weights_give_the_library_s_logits() -> None:
    import torchvision

    library = torchvision.models.shufflenet_v2_x0_5(weights=None, num_classes=7).eval()
    net = make("torchvision/shufflenet_v2_x0_5", (3, 32, 32)).eval()
    net.load_library_state(library.state_dict())
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    assert torch.equal(net(x), library(x))


NO_DETERMINISTIC_BACKWARD = (
    "AdaptiveAvgPool",
    "AdaptiveMaxPool",
    "Upsample",
    "ReflectionPad",
    "ReplicationPad",
    "AvgPool3D",
    "MaxPool3D",
)
"""Beginnings of the names of autograd's nodes that torch refuses on GPUs where algorithms must be deterministic."""


@pytest.mark.slow
@pytest.mark.parametrize("size", [64, 224])
@pytest.mark.parametrize(
    "name",
    ["alexnet", "vgg11", "resnet18", "mobilenet_v2", "efficientnet_b0", "shufflenet_v2_x0_5"],
)
def test_images_have_gradients_where_atomics_are_forbidden(name: str, size: int) -> None:
    """AlexNet is one of EDC's networks on ImageNet-1k, and the default of ``numerics.deterministic`` is true."""
    with torch.device("meta"):
        x = torch.empty(2, 3, size, size, requires_grad=True)
    net = make(f"torchvision/{name}", (3, size, size)).eval().to("meta")
    nodes, found = [net(x).grad_fn], set()
    while nodes:
        node = nodes.pop()
        if node is not None and node not in found:
            found.add(node)
            nodes += [following for following, _ in node.next_functions]
    assert len(found) > 20
    assert [
        node.name() for node in found if node.name().startswith(NO_DETERMINISTIC_BACKWARD)
    ] == []


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize("size", [64, 96, 224])
def test_pooled_maps_are_those_of_the_library(size: int) -> None:
    import torchvision

    library = torchvision.models.alexnet(weights=None, num_classes=7).eval()
    net = make("torchvision/alexnet", (3, size, size)).eval()
    net.load_library_state(library.state_dict())
    x = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(net(x), library(x), rtol=1e-5, atol=1e-6)
    assert size != 224 or torch.equal(net(x), library(x)), (
        "nothing is pooled at the library's own size"
    )


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
