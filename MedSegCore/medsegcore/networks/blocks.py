"""Blocks that more than one network uses."""

import torch
from torch import Tensor, nn


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
