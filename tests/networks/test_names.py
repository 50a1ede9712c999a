"""The grammar of network names, aliases, pools, and the names of timm and torchvision."""

from __future__ import annotations

import pytest

from raydd.core.errors import ConfigError
from raydd.networks import list_networks, normalise_name, pool, strip_batchnorm
from raydd.networks.names import ALIASES, POOLS, parse_zoo_name, spellings, zoo_names


@pytest.mark.parametrize(
    ("given", "canonical"),
    [
        ("convnet", "convnet3_w128"),
        ("convnet3_w128_relu_instancenorm_avgpool", "convnet3_w128"),
        ("convnet_d4_w256_sigmoid_batchnorm_maxpool", "convnet4_w256_sigmoid_batchnorm_maxpool"),
        ("convnet2_maxpool_w64", "convnet2_w64_maxpool"),
        ("ConvNetASwishBN", "convnet3_w128_swish_batchnorm"),
        ("ConvNetIN", "convnet3_w128"),
        ("ResNet18BN_AP", "resnet18_cifar_batchnorm_avgpool"),
        ("resnet50_cifar_instancenorm", "resnet50_cifar"),
        ("MLP", "mlp"),
        ("resnet18", "torchvision/resnet18"),
        ("timm/resnet18.a1_in1k", "timm/resnet18.a1_in1k"),
        ("vit_tiny_patch16_224", "timm/vit_tiny_patch16_224"),
        ("timm/tv_resnet50", "timm/resnet50.tv_in1k"),
        ("ssl_resnet18", "timm/resnet18.fb_ssl_yfcc100m_ft_in1k"),
        ("vit_small_patch16_224_in21k", "timm/vit_small_patch16_224.augreg_in21k"),
    ],
)
def test_spellings_have_one_canonical_name(given: str, canonical: str) -> None:
    assert normalise_name(given) == canonical
    assert normalise_name(canonical) == canonical


@pytest.mark.parametrize("name", zoo_names())
def test_canonical_names_name_themselves(name: str) -> None:
    assert str(parse_zoo_name(name)) == name


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("convnet3_swich", "did you mean 'swish'"),
        ("convnet3_d4", "depth is given twice"),
        ("convnet3_batchnorm_layernorm", "norm is given twice"),
        ("convnet0", "depth must be 1 to 12"),
        ("convnet3_w10_groupnorm", "multiple of 4"),
        ("lenet_batchnorm", "has no options"),
        ("resnet18_cifar_bathnorm", "did you mean 'batchnorm'"),
        ("vgg12_cifar", "did you mean 'vgg1"),
        ("ConvNetX", "did you mean 'ConvNet"),
        ("torchvision/resnet8", "did you mean 'resnet18'"),
        ("tim/resnet18", "did you mean 'timm'"),
        ("mobilenet_v22", "did you mean 'mobilenet_v2'"),
    ],
)
def test_bad_names_are_explained(name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        normalise_name(name)


def test_files_may_have_timms_former_names() -> None:
    assert spellings("tv_densenet121") == ["densenet121.tv_in1k", "tv_densenet121"]
    assert spellings("timm/resnet18") == ["resnet18"]


def test_listing_by_pattern() -> None:
    found = list_networks("*resnet18*")
    assert {
        "resnet18_cifar",
        "resnet18_cifar_batchnorm",
        "torchvision/resnet18",
        "timm/resnet18",
    } <= set(found)
    assert all("resnet18" in name for name in found)
    assert list_networks("convnet3_w128*") == sorted(
        n for n in set(ALIASES.values()) if n.startswith("convnet3_w128")
    )


@pytest.mark.parametrize(
    ("name", "stripped"),
    [
        ("ConvNetBN", "ConvNet"),
        ("VGG11BN", "VGG11"),
        ("ResNet18BN_AP", "ResNet18"),
        ("ResNet18BN", "ResNet18"),
        ("AlexNetBN", "AlexNet"),
        ("ConvNetASwishBN", "ConvNetASwish"),
        ("ConvNetLN", "ConvNetLN"),
        ("ResNet18_AP", "ResNet18_AP"),
        ("convnet4_w64_batchnorm_maxpool", "convnet4_w64_maxpool"),
        ("torchvision/resnet18", "torchvision/resnet18"),
    ],
)
def test_mode_s_strips_batch_norm(name: str, stripped: str) -> None:
    assert strip_batchnorm(name) == normalise_name(stripped)
    assert pool("S", name) == (normalise_name(stripped),)
    assert pool("SS", name) == (normalise_name(name),)


def test_published_pools() -> None:
    def names(*aliases: str) -> tuple[str, ...]:
        return tuple(normalise_name(alias) for alias in aliases)

    assert pool("M", "ConvNet") == names("MLP", "ConvNet", "LeNet", "AlexNet", "VGG11", "ResNet18")
    assert pool("B", "ConvNet") == names(
        "ConvNetBN", "ConvNetASwishBN", "AlexNetBN", "VGG11BN", "ResNet18BN"
    )
    assert pool("W", "ConvNet") == names("ConvNetW32", "ConvNetW64", "ConvNetW128", "ConvNetW256")
    assert pool("D", "ConvNet") == names("ConvNetD1", "ConvNetD2", "ConvNetD3", "ConvNetD4")
    assert pool("A", "ConvNet") == names("ConvNetAS", "ConvNetAR", "ConvNetAL", "ConvNetASwish")
    assert pool("P", "ConvNet") == names("ConvNetNP", "ConvNetMP", "ConvNetAP")
    assert pool("N", "ConvNet") == names(
        "ConvNetNN", "ConvNetBN", "ConvNetLN", "ConvNetIN", "ConvNetGN"
    )
    assert POOLS == ("S", "SS", "M", "B", "W", "D", "A", "P", "N")
    with pytest.raises(ConfigError, match="unknown evaluation pool 'Q'"):
        pool("Q", "ConvNet")
