"""Every network of ours by name: a plain dict, one file per paper.

A network is `forward(x) -> logits` and `forward(x, with_attention=True) -> (logits, attention)`
with `attention` a dict of tensors, which `network.attention` declares (key, kind, title, axis).
`network.dimensions` is 2 or 3; `network.multiple` is what each side of the input should be a
multiple of for the best speed. One that tells several modalities apart takes the number of the one
that it sees as `forward(x, modality=n)`.
"""

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from torch import nn

from medsegcore.errors import ModelSchemaError
from medsegcore.networks import affinity
from medsegcore.networks.comparators import (
    FusionUNet,
    FusionUNetConfig,
    HyperDenseNet,
    HyperDenseNetConfig,
    MultiResUNet,
    MultiResUNetConfig,
    UNet,
    UNetConfig,
)
from medsegcore.networks.csad import CSAD, CSADConfig
from medsegcore.networks.edge_attention import (
    EdgeAttentionConfig,
    EdgeAttentionNetwork,
    PretrainingNetwork,
)
from medsegcore.networks.rsanet import RSANet, RSANetConfig
from medsegcore.networks.ummkd import UMMKD2d, UMMKD2dConfig, UMMKD3d, UMMKD3dConfig


class NetworkEntry(NamedTuple):
    """How a network of that name is configured and built."""

    config_class: type
    build: Callable[[Any], nn.Module]


NETWORKS: dict[str, NetworkEntry] = {
    "unet": NetworkEntry(UNetConfig, UNet),
    "multiresunet": NetworkEntry(MultiResUNetConfig, MultiResUNet),
    "hyperdensenet": NetworkEntry(HyperDenseNetConfig, HyperDenseNet),
    "fusion_unet": NetworkEntry(FusionUNetConfig, FusionUNet),
    "edge_attention": NetworkEntry(EdgeAttentionConfig, EdgeAttentionNetwork),
    "edge_attention_pretraining": NetworkEntry(EdgeAttentionConfig, PretrainingNetwork),
    "csad": NetworkEntry(CSADConfig, CSAD),
    "rsanet": NetworkEntry(RSANetConfig, RSANet),
    "unetpp": NetworkEntry(affinity.UNetPlusPlusConfig, affinity.UNetPlusPlus),
    "deeplabv3plus": NetworkEntry(affinity.DeepLabV3PlusConfig, affinity.DeepLabV3Plus),
    "enet": NetworkEntry(affinity.ENetConfig, affinity.ENet),
    "espnet": NetworkEntry(affinity.ESPNetConfig, affinity.ESPNet),
    "erfnet": NetworkEntry(affinity.ERFNetConfig, affinity.ERFNet),
    "ummkd_2d": NetworkEntry(UMMKD2dConfig, UMMKD2d),
    "ummkd_3d": NetworkEntry(UMMKD3dConfig, UMMKD3d),
}


def create_network(name: str, config: Mapping[str, Any]) -> nn.Module:
    """Build the network `name` from the fields of its config.

    Raises:
        ModelSchemaError: no such network, an unknown field, or a value that the network refuses.
    """
    if name not in NETWORKS:
        raise ModelSchemaError(
            f"There is no network named '{name}'.",
            f"Known networks: {', '.join(sorted(NETWORKS))}.",
        )
    entry = NETWORKS[name]
    known = {field.name for field in dataclasses.fields(entry.config_class)}
    unknown = sorted(set(config) - known)
    if unknown:
        raise ModelSchemaError(
            f"The network '{name}' has no setting '{unknown[0]}'.",
            f"Its settings: {', '.join(sorted(known))}.",
        )
    try:
        return entry.build(entry.config_class(**config))
    except (TypeError, ValueError) as error:
        raise ModelSchemaError(f"The network '{name}' refuses its config: {error}.") from error


def takes_modality(network: nn.Module) -> bool:
    """Whether a network is to be told which of several modalities it sees."""
    return "modality" in inspect.signature(network.forward).parameters


__all__ = ["NETWORKS", "NetworkEntry", "create_network", "takes_modality"]
