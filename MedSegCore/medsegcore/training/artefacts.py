"""Artefacts of the scanner that no library of ours makes."""

from collections.abc import Hashable, Mapping, Sequence

import torch
from monai.transforms import MapTransform, Randomizable
from torch import Tensor

# Lines of k-space this near to its middle, as a share of all, hold the brightness of the image.
KEPT_MIDDLE = 0.02


class RandGhostingd(MapTransform, Randomizable):
    """Ghosts of periodic motion: breathing, pulsation.

    Motion of a period of n phase-encoding steps changes every n-th line of k-space, which lays
    n - 1 faint copies of the image over it, evenly spaced along the phase axis (Axel et al.,
    Respiratory effects in two-dimensional Fourier transform MR imaging, Radiology 1986).

    Args:
        keys: inputs [C, *space], each with ghosts of its own.
        prob: for each input.
        ghosts: smallest and largest n.
        intensity: by what share the lines are weakened, smallest and largest, 0..1.
    """

    def __init__(
        self,
        keys: Sequence[str],
        prob: float = 0.1,
        ghosts: tuple[int, int] = (2, 6),
        intensity: tuple[float, float] = (0.1, 0.4),
    ):
        super().__init__(keys)
        self.prob, self.ghosts, self.intensity = prob, ghosts, intensity

    def __call__(self, data: Mapping[Hashable, Tensor]) -> dict[Hashable, Tensor]:
        out = dict(data)
        for key in self.key_iterator(out):
            if self.R.random() < self.prob:
                axis = self.R.randint(1, out[key].dim())
                period = self.R.randint(self.ghosts[0], self.ghosts[1] + 1)
                out[key] = ghosted(out[key], axis, period, self.R.uniform(*self.intensity))
        return out


def ghosted(image: Tensor, axis: int, period: int, intensity: float) -> Tensor:
    """The image with every `period`-th line of k-space along `axis` weakened, but the middle."""
    size = image.shape[axis]
    line = torch.fft.fftfreq(size, d=1 / size).round().abs()
    # The same for a frequency and its negative: the image stays real.
    weakened = (line % period == 0) & (line > KEPT_MIDDLE * size / 2)
    weight = 1 - intensity * weakened.to(image)
    shape = [1] * image.dim()
    shape[axis] = size
    lines = torch.fft.fft(image.float(), dim=axis) * weight.view(shape)
    return torch.fft.ifft(lines, dim=axis).real.to(image.dtype)
