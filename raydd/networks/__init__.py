"""The network zoo: names, construction from a keyed generator, features, costs, fast forwards."""

from raydd.networks.fast import fast_embed, fast_forward
from raydd.networks.names import list_networks, normalise_name, pool, strip_batchnorm
from raydd.networks.network import Network, Shape
from raydd.networks.network_cost import flops, parameter_count
from raydd.networks.properties import has_batchnorm, is_per_sample
from raydd.networks.zoo import create_network, reinitialise_

__all__ = [
    "Network",
    "Shape",
    "create_network",
    "fast_embed",
    "fast_forward",
    "flops",
    "has_batchnorm",
    "is_per_sample",
    "list_networks",
    "normalise_name",
    "parameter_count",
    "pool",
    "reinitialise_",
    "strip_batchnorm",
]
