"""The loss of RSANet (Zhang et al., MICCAI 2019, section 3.1), and its sum with Dice."""

import math
from typing import Literal

import torch.nn.functional as F
from monai.losses import DiceLoss
from torch import Tensor, nn

WeightForm = Literal["printed", "swapped"]


def exponential_weights(lesion_share: float, form: WeightForm = "printed") -> tuple[float, float]:
    """Weights of (background, lesion) from the average share r of lesion voxels, 0..1.

    "printed": lesion e^r / (e^r + e^(1-r)), others e^(1-r) / (e^r + e^(1-r)), as in section 3.1.
    With r = 5.15e-4 the lesion gets 0.27 and the rest 0.73: the rare class counts less. "swapped"
    exchanges the two, which is what a weighting against imbalance means to do.

    Raises:
        ValueError: r outside of 0..1 or an unknown form.
    """
    if not 0 <= lesion_share <= 1:
        raise ValueError(f"lesion_share is {lesion_share} but has to lie between 0 and 1")
    if form not in ("printed", "swapped"):
        raise ValueError(f"form is '{form}' but has to be 'printed' or 'swapped'")
    lesion, other = math.exp(lesion_share), math.exp(1 - lesion_share)
    total = lesion + other
    if form == "printed":
        return other / total, lesion / total
    return lesion / total, other / total


class ExponentiallyWeightedCrossEntropy(nn.Module):
    """Cross-entropy of two classes with `exponential_weights`.

    The weighted sum over voxels is divided by the sum of the weights.

    Args:
        lesion_share: r, the average share of lesion voxels in the images, 0..1.
        form: "printed" or "swapped".
    """

    weight: Tensor

    def __init__(self, lesion_share: float, form: WeightForm = "printed"):
        super().__init__()
        weights = Tensor(exponential_weights(lesion_share, form))
        self.register_buffer("weight", weights, persistent=False)

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """logits [B, 2, D, H, W], target [B, 1, D, H, W] of 0 and 1 -> scalar."""
        return F.cross_entropy(logits.float(), target[:, 0].long(), weight=self.weight)


class LesionLoss(nn.Module):
    """Exponentially weighted cross-entropy plus soft Dice of the lesion class.

    Dice is pooled over the batch, so that a patch without lesion does not ask for an empty
    overlap (Milletari et al., 3DV 2016; MONAI's DiceLoss with squared denominator).
    """

    def __init__(self, lesion_share: float, form: WeightForm = "printed"):
        super().__init__()
        self.cross_entropy = ExponentiallyWeightedCrossEntropy(lesion_share, form)
        self.dice = DiceLoss(
            include_background=False, to_onehot_y=True, softmax=True, squared_pred=True, batch=True
        )

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """logits [B, 2, D, H, W], target [B, 1, D, H, W] of 0 and 1 -> scalar."""
        return self.cross_entropy(logits, target) + self.dice(logits.float(), target)
