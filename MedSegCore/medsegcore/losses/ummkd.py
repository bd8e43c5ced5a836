"""The losses of UMMKD (Dou et al., IEEE TMI 2020): distillation (eq. 2-4) and the sum (eq. 5).

The segmentation loss is in the paper by name only; its formulas are those of the authors'
release, but for what the `as_released` switches name.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from monai.losses import DiceLoss
from torch import Tensor, nn

from medsegcore.networks.ummkd import SETTINGS

KERNELS = (nn.Conv2d, nn.Conv3d, nn.ConvTranspose3d)
NORMS = (
    nn.BatchNorm2d,
    nn.BatchNorm3d,
    nn.InstanceNorm2d,
    nn.InstanceNorm3d,
    nn.GroupNorm,
)


class Knowledge(NamedTuple):
    """The distilled semantic knowledge q of one modality, a soft confusion matrix.

    Attributes:
        log_q: [C, C] fp32, the logarithm of q: row c tells how what the network says about the
            voxels of class c is spread over all classes; each row of q sums to 1.
        present: [C] bool, whether the class occurs; the row of an absent one is uniform.
    """

    log_q: Tensor
    present: Tensor

    @property
    def q(self) -> Tensor:
        """[C, C], what figure 8 shows."""
        return self.log_q.exp()

    def detach(self) -> "Knowledge":
        """The same numbers without their history."""
        return Knowledge(self.log_q.detach(), self.present)


def distilled_knowledge(
    logits: Tensor, target: Tensor, temperature: float = 2.0, as_released: bool = False
) -> Knowledge:
    """Eq. 2 and 3, in fp32.

    Args:
        logits: M before the softmax, [B, C, ...].
        target: class numbers [B, 1, ...].
        temperature: T.
        as_released: divide by the number of voxels plus 1e-6, as the release does.
    """
    with torch.autocast(logits.device.type, enabled=False):
        scores = logits.float().movedim(1, -1).flatten(0, -2)  # N, C with N all voxels
        labels = target.flatten()  # N
        # A sum for each class instead of a product with the one-hot target: the product may run
        # in TF32, and the sums go over 10^6 voxels.
        masks = [(labels == c).unsqueeze(1) for c in range(logits.shape[1])]
        sums = torch.stack([(scores * mask).sum(dim=0) for mask in masks])  # C, C
        counts = torch.stack([mask.sum() for mask in masks])  # C
        divisor = counts + 1e-6 if as_released else counts.clamp(min=1)
        z = sums / divisor.unsqueeze(1)  # eq. 2
        log_q = torch.log_softmax(z / temperature, dim=1)  # eq. 3
    return Knowledge(log_q, counts > 0)


def distillation_loss(a: Knowledge, b: Knowledge, as_released: bool = False) -> Tensor:
    """Eq. 4: the KL divergence between the rows of both modalities, both ways, mean over classes.

    Both matrices have gradients. The paper does not say what happens to a class that one of the
    two batches lacks: it has no voxels to average over. It is left out here, and the mean goes
    over the classes that both have; `as_released` counts its uniform row like any other.
    """
    forward = (a.log_q.exp() * (a.log_q - b.log_q)).sum(dim=1)  # D(q_a || q_b), C
    backward = (b.log_q.exp() * (b.log_q - a.log_q)).sum(dim=1)  # D(q_b || q_a), C
    rows = forward + backward
    if as_released:
        return rows.mean()
    both = a.present & b.present
    return (rows * both).sum() / both.sum().clamp(min=1)


class SegmentationLoss(nn.Module):
    """Dice plus pixel-wise weighted cross-entropy of one modality (section III-C).

    Dice is 1 - mean over classes of 2 sum(p g) / (sum(p^2) + sum(g^2)), over all voxels of the
    batch, the background included (Milletari et al., 3DV 2016, the paper's [35]). The
    cross-entropy of a voxel weighs 1 - the share of its class in the batch; mean over the voxels.

    Args:
        as_released: no probability counts less than 0.005 in the cross-entropy, so that the
            voxels that are wrong the most have no gradient from it.
    """

    def __init__(self, as_released: bool = False):
        super().__init__()
        self.as_released = as_released
        self.dice = DiceLoss(
            to_onehot_y=True,
            softmax=True,
            squared_pred=True,
            batch=True,
            smooth_nr=0.0,
            smooth_dr=1e-7,
        )

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """logits [B, C, ...], target [B, 1, ...] of class numbers -> scalar."""
        logits, labels = logits.float(), target[:, 0].long()
        counts = torch.bincount(labels.flatten(), minlength=logits.shape[1])
        weight = 1 - counts / labels.numel()  # C
        log_p = torch.log_softmax(logits, dim=1)
        if self.as_released:
            log_p = log_p.clamp(min=math.log(0.005))
        entropy = F.nll_loss(log_p, labels, weight=weight, reduction="none").mean()
        return entropy + self.dice(logits, target)


def squared_norms(network: nn.Module, as_released: bool = False) -> Tensor:
    """The bracket of eq. 5: sum of squares of all kernels, and of gamma and beta of all norms.

    The bias of the 3D classifier is neither. `as_released`: half of it, and kernels alone, as in
    the authors' 2D network.
    """
    total = torch.zeros((), device=next(network.parameters()).device)
    for module in network.modules():
        if isinstance(module, KERNELS):
            total = total + module.weight.float().square().sum()
        elif isinstance(module, NORMS) and not as_released:
            for parameter in (module.weight, module.bias):
                total = total + parameter.float().square().sum()
    return total / 2 if as_released else total


class Terms(NamedTuple):
    """Eq. 5 and what it is made of.

    Attributes:
        total: the loss to descend.
        segmentation_a, segmentation_b: of each modality.
        distillation: L_kd (eq. 4) before its weight, also where that is 0 (figure 7).
        squares: the bracket behind eta.
        knowledge_a, knowledge_b: q_a and q_b for plotting (figure 8), without gradient.
    """

    total: Tensor
    segmentation_a: Tensor
    segmentation_b: Tensor
    distillation: Tensor
    squares: Tensor
    knowledge_a: Knowledge
    knowledge_b: Knowledge


class UMMKDLoss(nn.Module):
    """Eq. 5: L = L_seg^a + L_seg^b + alpha/2 L_kd + eta (|kernels|^2 + |norm_a|^2 + |norm_b|^2).

    Args:
        alpha: weight of the distillation; 0 for the settings without it (`weight_of`).
        temperature: T of eq. 3.
        eta: weight of the squared parameters.
        as_released: every `as_released` of this file.
    """

    def __init__(
        self,
        alpha: float = 0.5,
        temperature: float = 2.0,
        eta: float = 1e-4,
        as_released: bool = False,
    ):
        super().__init__()
        if not alpha >= 0:
            raise ValueError(f"alpha is {alpha} but may not be below 0")
        if not temperature > 0:
            raise ValueError(f"temperature is {temperature} but has to be above 0")
        if not eta >= 0:
            raise ValueError(f"eta is {eta} but may not be below 0")
        self.alpha = alpha
        self.temperature = temperature
        self.eta = eta
        self.as_released = as_released
        self.segmentation = SegmentationLoss(as_released)

    def forward(
        self,
        logits_a: Tensor,
        target_a: Tensor,
        logits_b: Tensor,
        target_b: Tensor,
        network: nn.Module | None = None,
    ) -> Terms:
        """Logits [B, C, ...] and class numbers [B, 1, ...] of a batch of each modality.

        Args:
            logits_a, target_a: of the first modality.
            logits_b, target_b: of the second; batch and size may differ from the first's.
            network: what eta weighs; without it the last term is 0.
        """
        a, b = (
            distilled_knowledge(logits, target, self.temperature, self.as_released)
            for logits, target in ((logits_a, target_a), (logits_b, target_b))
        )
        segmentation_a = self.segmentation(logits_a, target_a)
        segmentation_b = self.segmentation(logits_b, target_b)
        distillation = distillation_loss(a, b, self.as_released)
        if network is None:
            squares = distillation.new_zeros(())
        else:
            squares = squared_norms(network, self.as_released)
        total = segmentation_a + segmentation_b + self.alpha / 2 * distillation
        total = total + self.eta * squares
        return Terms(
            total, segmentation_a, segmentation_b, distillation, squares, a.detach(), b.detach()
        )


def weight_of(setting: str, alpha: float = 0.5) -> float:
    """`alpha` for the settings that distil, Joint+KD and Ours, and 0 for the other five."""
    return alpha if SETTINGS[setting].distilled else 0.0
