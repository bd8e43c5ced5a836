"""The losses of CSAD (Zhang, Shen et al., 2020, eq. 3-4 and 8-11)."""

from collections.abc import Mapping
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from monai.losses import DiceLoss
from torch import Tensor, nn

Scheme = Literal["nlc", "plc", "ilc"]


def attention_distillation(log_a: Tensor, log_b: Tensor) -> Tensor:
    """L_AD of eq. 4: 1/(2WH) times the sum over positions of KL(a|b) + KL(b|a).

    The term of a position is a log(a/b) + b log(b/a) = (a - b) (log a - log b).

    Args:
        log_a, log_b: logarithms of two attention maps [B, 1, H, W]. Of the maps themselves the
            far positions are 0 in fp32, which would end the gradient.

    Returns:
        scalar, the mean over the batch; gradients reach both maps.
    """
    with torch.autocast(log_a.device.type, enabled=False):
        log_a, log_b = log_a.float(), log_b.float()
        terms = (log_a.exp() - log_b.exp()) * (log_a - log_b)
        # The mean over positions is 1/(WH) times their sum.
        return terms.mean() / 2


def distillation_loss(log_maps: Mapping[str, Tensor], scheme: Scheme = "ilc") -> Tensor:
    """L_CSAD of eq. 3, in the connection schemes of section IV-D.

    "ilc" (interlaced) is eq. 3 as printed: sum over m = 1..N-1 of
    L_AD(chi(F_m^1), chi(F_{m+1}^2)) + L_AD(chi(F_m^2), chi(F_{m+1}^1)).
    "plc" (position) has m for m + 1 and therefore m = 1..N; "nlc" (none) is 0.
    With one stream (early fusion, section IV-E) both modalities of eq. 3 are that stream.

    Args:
        log_maps: log chi(F_m^k) [B, 1, H, W] as "stage<m>_stream<k>", all of one size, which is
            what a `CSAD` network gives for `log_maps=True`; other keys are not looked at.
        scheme: "nlc", "plc" or "ilc".

    Raises:
        ValueError: an unknown scheme, "plc" with one stream (it would be 0), or missing maps.
    """
    if scheme not in get_args(Scheme):
        raise ValueError(f"scheme is {scheme!r}, not one of {list(get_args(Scheme))}")
    if scheme == "nlc":
        return torch.zeros(())
    if "stage1_stream1" not in log_maps:
        raise ValueError("the attention maps are missing: ask the network for log_maps=True")
    one_stream = "stage1_stream2" not in log_maps
    if scheme == "plc" and one_stream:
        raise ValueError("scheme 'plc' compares two streams, but there are the maps of one")
    first = _maps_of_stream(log_maps, 1)
    second = first if one_stream else _maps_of_stream(log_maps, 2)
    loss = first[0].new_zeros(())
    step = 1 if scheme == "ilc" else 0
    for own, other in ((first, second), (second, first)):
        for m in range(len(own) - step):
            loss = loss + attention_distillation(own[m], other[m + step])
    return loss


def _maps_of_stream(log_maps: Mapping[str, Tensor], stream: int) -> list[Tensor]:
    """The stream's maps, stage 1 first."""
    maps: list[Tensor] = []
    while (key := f"stage{len(maps) + 1}_stream{stream}") in log_maps:
        maps.append(log_maps[key])
    return maps


class WeightedBinaryCrossEntropy(nn.Module):
    """L_WBCE of eq. 11: mean over pixels of -lambda p log p^ - (1 - lambda) (1 - p) log(1 - p^).

    |X| of eq. 11 is the number of pixels. The two weights are not scaled to the mean 1.

    Args:
        foreground_weight: lambda, 0..1.
    """

    def __init__(self, foreground_weight: float = 0.95):
        super().__init__()
        if not 0 <= foreground_weight <= 1:
            raise ValueError(
                f"foreground_weight is {foreground_weight} but has to lie between 0 and 1"
            )
        self.foreground_weight = foreground_weight

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """logits [B, 2, H, W], target [B, 1, H, W] of 0 and 1 -> scalar."""
        log_p = F.log_softmax(logits.float(), dim=1)
        p = target[:, 0].float()
        weight = self.foreground_weight
        return (-weight * p * log_p[:, 1] - (1 - weight) * (1 - p) * log_p[:, 0]).mean()


class CSADLoss(nn.Module):
    """L_total of eq. 8-9: Dice + beta * WBCE + alpha * CSAD.

    The paper's one class is the second of two logits, so that p^ is their softmax, which is the
    sigmoid of their difference. Of several classes eq. 9 is taken of each against all others, and
    the mean of these. Eq. 10 is MONAI's DiceLoss with sigma above and below.

    Args:
        scheme: connection scheme, see `distillation_loss`.
        alpha: weight of the distillation.
        beta: weight of the cross-entropy.
        sigma: smoothing of Dice.
        foreground_weight: lambda of eq. 11.
        batch_dice: one Dice over all pixels of the batch, not the mean of each slice's own.
            Silent; eq. 10 speaks of one mask.
    """

    def __init__(
        self,
        scheme: Scheme = "ilc",
        *,
        alpha: float = 1.0,
        beta: float = 0.1,
        sigma: float = 1.0,
        foreground_weight: float = 0.95,
        batch_dice: bool = False,
    ):
        super().__init__()
        if scheme not in get_args(Scheme):
            raise ValueError(f"scheme is {scheme!r}, not one of {list(get_args(Scheme))}")
        for name, value in (("alpha", alpha), ("beta", beta), ("sigma", sigma)):
            if not value >= 0:
                raise ValueError(f"{name} is {value} but has to be 0 or more")
        self.scheme: Scheme = scheme
        self.alpha, self.beta = alpha, beta
        self.dice = DiceLoss(
            include_background=False, to_onehot_y=True, softmax=True,
            smooth_nr=sigma, smooth_dr=sigma, batch=batch_dice,
        )  # fmt: skip
        self.cross_entropy = WeightedBinaryCrossEntropy(foreground_weight)

    def segmentation(self, logits: Tensor, target: Tensor) -> Tensor:
        """L_Seg of eq. 9, a scalar; arguments as in `forward`."""
        losses = []
        for n in range(1, logits.shape[1]):
            others = torch.cat([logits[:, :n], logits[:, n + 1 :]], dim=1).float()
            # The softmax of these two is that of all, with the other classes together.
            pair = torch.stack([others.logsumexp(dim=1), logits[:, n].float()], dim=1)
            mask = (target == n).float()
            losses.append(self.dice(pair, mask) + self.beta * self.cross_entropy(pair, mask))
        return torch.stack(losses).mean()

    def forward(
        self, logits: Tensor, target: Tensor, log_maps: Mapping[str, Tensor] | None = None
    ) -> Tensor:
        """Scalar.

        Args:
            logits: [B, classes, H, W].
            target: [B, 1, H, W] of class numbers.
            log_maps: from `network(x, log_maps=True)`; only the scheme "nlc" goes without.
        """
        loss = self.segmentation(logits, target)
        if self.scheme != "nlc":
            loss = loss + self.alpha * distillation_loss(log_maps or {}, self.scheme)  # eq. 8
        return loss
