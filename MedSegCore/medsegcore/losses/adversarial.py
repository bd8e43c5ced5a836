"""Adversarial refinement of a segmentation (Kohl et al., arXiv 1702.08014, "AdversarialNet").

A discriminator sees the images with a segmentation and learns to tell the expert's from the
network's; the network learns to be taken for the expert. Discriminator and its loss are MONAI's.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class AdversarialLoss(nn.Module):
    """Both losses of a pair of networks that are trained in turn.

    Args:
        in_channels: images that the segmenting network takes.
        out_channels: its classes with the background.
        dimensions: 2 or 3.
        weight: of the adversarial term beside the cross-entropy. Silent; 0.1 keeps the
            cross-entropy in the lead.
        width: channels of the discriminator's first layer.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int = 2,
        dimensions: int = 2,
        weight: float = 0.1,
        width: int = 32,
    ):
        super().__init__()
        from monai.losses import PatchAdversarialLoss
        from monai.networks.nets import PatchDiscriminator

        self.out_channels, self.weight = out_channels, weight
        self.discriminator = PatchDiscriminator(
            spatial_dims=dimensions, channels=width, in_channels=in_channels + out_channels
        )
        self.judge = PatchAdversarialLoss(criterion="bce")

    def for_network(self, logits: Tensor, image: Tensor, target: Tensor) -> Tensor:
        """Cross-entropy + weight * (how far the discriminator is from taking it for real).

        Args:
            logits: [B, classes, ...] of the network.
            image: [B, C, ...].
            target: [B, 1, ...], the class of each position.
        """
        plain = F.cross_entropy(logits.float(), target[:, 0].long())
        opinion = self._opinion(image, torch.softmax(logits.float(), dim=1))
        return plain + self.weight * self.judge(opinion, True, for_discriminator=False)

    def for_discriminator(self, logits: Tensor, image: Tensor, target: Tensor) -> Tensor:
        """Mean of both binary cross-entropies; no gradient reaches the segmenting network."""
        shape = [0, target.ndim - 1, *range(1, target.ndim - 1)]
        expert = F.one_hot(target[:, 0].long(), self.out_channels).permute(shape).float()
        answer = torch.softmax(logits.detach().float(), dim=1)
        real = self.judge(self._opinion(image, expert), True, for_discriminator=True)
        fake = self.judge(self._opinion(image, answer), False, for_discriminator=True)
        return (real + fake) / 2

    def _opinion(self, image: Tensor, classes: Tensor) -> Tensor:
        """The discriminator's last layer, before its sigmoid."""
        return self.discriminator(torch.cat([image, classes], dim=1))[-1]
