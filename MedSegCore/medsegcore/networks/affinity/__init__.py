"""Teachers and students of adaptive affinity-based distillation (Loussaief et al., 2024).

"Adaptive Affinity-Based Generalization For MRI Imaging Segmentation Across Resource-Limited
Settings", Eddardaa B. Loussaief, Mohammed Ayad, Domenec Puig, Hatem A. Rashwan,
arXiv 2404.02738. The paper distils a large teacher (UNet++, DeepLabV3+) into a small student
(ENet, ESPNet, ERFNet); its losses are in `medsegcore.losses.affinity`, the joint training in
`medsegcore.training.distillation`.

From the paper: which networks, and their parameters and FLOPs (table 1). It describes none of
their layers; each file says where its layers come from. Ours: the widths as a setting, any number
of input channels and classes, the padding of odd sizes, and no layer that never runs.
"""

from medsegcore.networks.affinity.deeplabv3plus import DeepLabV3Plus, DeepLabV3PlusConfig
from medsegcore.networks.affinity.enet import ENet, ENetConfig
from medsegcore.networks.affinity.erfnet import ERFNet, ERFNetConfig
from medsegcore.networks.affinity.espnet import ESPNet, ESPNetConfig
from medsegcore.networks.affinity.tapped import TappedNetwork
from medsegcore.networks.affinity.unetpp import UNetPlusPlus, UNetPlusPlusConfig

__all__ = [
    "DeepLabV3Plus",
    "DeepLabV3PlusConfig",
    "ENet",
    "ENetConfig",
    "ERFNet",
    "ERFNetConfig",
    "ESPNet",
    "ESPNetConfig",
    "TappedNetwork",
    "UNetPlusPlus",
    "UNetPlusPlusConfig",
]
