"""The loss of the edge attention network (Qin, arXiv 1912.09847, section 3)."""

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from monai.losses import DiceLoss
from torch import Tensor, nn

from medsegcore.networks.blocks import haar_details


def edge_map(mask: Tensor, in_plane: bool, wavelet: bool = True) -> Tensor:
    """M_y of eq. 4: the boundary of a reference mask, 0 or 1.

    "wavelet": where a detail coefficient of the undecimated Haar transform is not zero, i.e. the
    neighbourhood of two voxels along each axis holds inside and outside. The decimated transform
    would miss every boundary that lies between two of its blocks. Otherwise: the mask's voxels
    that have a neighbour outside (mask minus its erosion), the convolutional ablation's.

    Args:
        mask: [B, 1, D, H, W] of 0 and 1.
        in_plane: look within slices only, where slices are thick.
        wavelet: which of both.
    """
    mask = mask.float()
    if wavelet:
        energy = haar_details(mask, in_plane, stride=1).square().sum(dim=2)
        return (energy > 1e-6).to(mask)
    kernel = (1, 3, 3) if in_plane else (3, 3, 3)
    pad = tuple(k // 2 for k in kernel)
    eroded = -F.max_pool3d(-mask, kernel, stride=1, padding=pad)
    return mask - eroded


class EdgeAttentionLoss(nn.Module):
    """Eq. 2: L_dice (eq. 3) + sum over the levels of w_i L_edge_i (eq. 4).

    Args:
        weights: w_1..w_n. The paper gives 0.5, 0.8, 1.0 and not which level is first; here it is
            the coarsest, so that the weight grows with the resolution.
        in_plane, wavelet: of `edge_map`, as the network has them.
    """

    def __init__(
        self,
        weights: Sequence[float] = (0.5, 0.8, 1.0),
        in_plane: bool = True,
        wavelet: bool = True,
    ):
        super().__init__()
        self.weights = tuple(weights)
        self.in_plane, self.wavelet = in_plane, wavelet
        # Eq. 3 over all voxels of the batch; the small number is for batches without reference.
        self.dice = DiceLoss(
            include_background=False, to_onehot_y=True, softmax=True, squared_pred=True,
            batch=True, smooth_nr=0, smooth_dr=1e-5,
        )  # fmt: skip

    def edge(self, edge: Tensor, reference: Tensor) -> Tensor:
        """Eq. 4: mean squared difference of an edge map and the reference's, pooled to its size.

        The maximum keeps thin boundaries that an average would fade at the coarse levels.
        """
        pooled = F.adaptive_max_pool3d(reference, edge.shape[2:])
        return (pooled - edge.float()).square().mean()

    def terms(
        self, logits: Tensor, attention: Mapping[str, Tensor], target: Tensor
    ) -> dict[str, Tensor]:
        """Eq. 2 as "total", and what it is made of before the weights: "dice", "edge1"..

        Args:
            logits: [B, classes, D, H, W].
            attention: the network's "edge1".."edgen".
            target: [B, 1, D, H, W] of class numbers. The boundaries of all classes are edges.

        Raises:
            KeyError: the network gave fewer edge maps than there are weights.
        """
        terms = {"dice": self.dice(logits.float(), target)}
        total = terms["dice"]
        masks = [(target == n).float() for n in range(1, logits.shape[1])]
        edges = [edge_map(mask, self.in_plane, self.wavelet) for mask in masks]
        reference = torch.stack(edges).amax(dim=0)
        for level, weight in enumerate(self.weights, 1):
            terms[f"edge{level}"] = self.edge(attention[f"edge{level}"], reference)
            total = total + weight * terms[f"edge{level}"]
        return {"total": total, **terms}

    def forward(self, logits: Tensor, attention: Mapping[str, Tensor], target: Tensor) -> Tensor:
        """The total of `terms`."""
        return self.terms(logits, attention, target)["total"]


def pretraining_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Eq. 1, the cross-entropy of the pre-training, averaged over voxels (printed as a sum).

    The sum over y of y log p + (1 - y) log(1 - p) is the cross-entropy of two classes.

    Args:
        logits: [B, 2, D, H, W].
        target: [B, 1, D, H, W] of 0 and 1.
    """
    return F.cross_entropy(logits.float(), target[:, 0].long())
