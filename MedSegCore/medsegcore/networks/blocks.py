"""Blocks that more than one network uses."""

import itertools
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

NORMS = ("batch", "group")
GROUPS = 8


def require_norm(norm: str) -> None:
    """Raise ValueError for a normalisation that `use_norm` does not know."""
    if norm not in NORMS:
        raise ValueError(f"norm is {norm!r} but has to be 'batch' or 'group'")


def use_norm(network: nn.Module, norm: str) -> None:
    """Put group normalisation of up to 8 groups in the place of each batch normalisation.

    The means of a batch are those of the patients in it. Of a handful of patients from several
    scanners, what a network learns behind them need not hold with the running means that it has
    at inference, not even for the patients that it was trained on.

    Args:
        norm: "batch" leaves the network as its paper has it.
    """
    if norm == "batch":
        return
    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.BatchNorm2d | nn.BatchNorm3d):
                channels = child.num_features
                groups = math.gcd(GROUPS, channels)
                setattr(parent, name, nn.GroupNorm(groups, channels, eps=child.eps))


class NonLocalBlock3d(nn.Module):
    """Embedded-Gaussian non-local block over all voxels (Wang et al., CVPR 2018, eq. 1, 4 and 6).

    y_i = sum_j softmax_j(theta(x_i)^T phi(x_j)) g(x_j);  z_i = W_z y_i + x_i

    W_z starts at zero, so that the block starts as the identity. The attention runs in fp32.

    Args:
        channels: C of the input [B, C, D, H, W].
        reduction: theta, phi and g have C // reduction channels (2 in the original paper).
    """

    def __init__(self, channels: int, reduction: int = 2):
        super().__init__()
        inner = max(channels // reduction, 1)
        self.theta = nn.Conv3d(channels, inner, kernel_size=1)
        self.phi = nn.Conv3d(channels, inner, kernel_size=1)
        self.g = nn.Conv3d(channels, inner, kernel_size=1)
        self.out = nn.Conv3d(inner, channels, kernel_size=1)
        for parameter in self.out.parameters():
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x [B, C, D, H, W] -> z of the same shape, attention [B, N, N] fp32 with N = D*H*W.

        Row i of the attention holds the weights with which voxel i gathers from all voxels.
        """
        theta = self.theta(x).flatten(2).transpose(1, 2)  # B, N, C'
        phi = self.phi(x).flatten(2)  # B, C', N
        g = self.g(x).flatten(2).transpose(1, 2)  # B, N, C'
        with torch.autocast(x.device.type, enabled=False):
            attention = torch.softmax(theta.float() @ phi.float(), dim=-1)  # B, N, N
            gathered = attention @ g.float()  # B, N, C'
        gathered = gathered.transpose(1, 2).reshape(x.shape[0], -1, *x.shape[2:]).to(x.dtype)
        return self.out(gathered) + x, attention


def haar_details(x: Tensor, in_plane: bool, stride: int = 2) -> Tensor:
    """The detail sub-bands of one level of the orthonormal Haar wavelet transform.

    Args:
        x: [B, C, D, H, W]; an odd side is extended by its last voxel.
        in_plane: leave the slice axis alone: 3 sub-bands in H and W instead of 7 in D, H and W.
        stride: 2 is the transform itself, 1 the undecimated one, which has the size of x and
            misses no boundary between two blocks.

    Returns:
        [B, C, bands, D', H', W']; the bands count up in binary over the axes (D), H, W, with 1
        for the difference (first minus second voxel) and 0 for the sum, from 0..01 on.
    """
    axes = 2 if in_plane else 3
    sum_, difference = torch.tensor([1.0, 1.0]), torch.tensor([1.0, -1.0])
    filters = []
    for bits in list(itertools.product((0, 1), repeat=axes))[1:]:
        band = torch.ones(())
        for bit in bits:
            band = band[..., None] * (difference if bit else sum_)
        filters.append(band / 2 ** (axes / 2))
    weight = torch.stack(filters).to(x)  # bands, (2,) 2, 2
    if in_plane:
        weight = weight[:, None]
    pad = []
    for size, length in zip(reversed(x.shape[2:]), reversed(weight.shape[1:]), strict=True):
        pad += [0, (length - 1) if stride == 1 else size % length]
    padded = F.pad(x.flatten(0, 1)[:, None], pad, mode="replicate")
    step = tuple(min(stride, length) for length in weight.shape[1:])
    return F.conv3d(padded, weight[:, None], stride=step).unflatten(0, x.shape[:2])
