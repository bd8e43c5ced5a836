"""What the data and the machine are like, and what a training chooses by that."""

import gc
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import psutil
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from medsegcore.imaging import read_grid, reference_grid
from medsegcore.training.datasets import Case, Dataset
from medsegcore.training.running import answer

# Of the parameters: themselves, gradients, two moments of Adam, and the running mean.
COPIES = 5
# Half-precision activations, beside what stays in single precision (normalisation, the loss).
MIXED = 0.6
# Workspace of the convolutions, gradients in flight, fragmentation.
RESERVE = 1.5


@dataclass(frozen=True)
class DataFacts:
    """What the training cases and the machine are like.

    Attributes:
        cases, patients, sites: how many are trained on.
        spacing: mm along i, j, k as in `GridSpec`, after reorienting to the patient's axes R, A, S
            that are nearest; median over the cases of each axis, of the reference image.
        shape: voxels along k, j, i at their own spacing, likewise.
        memory: bytes that the training may use, of the GPU or else of the computer.
        on_gpu: whether that is a GPU's.
        label_share: by label value, 0 included: the mean over the cases of its share of the
            voxels of the prepared (cropped, resampled) case, 0..1. Empty in `Recipe.configured`.
    """

    cases: int
    patients: int
    sites: int
    spacing: tuple[float, float, float]
    shape: tuple[int, int, int]
    memory: int
    on_gpu: bool
    label_share: dict[int, float] = field(default_factory=dict)

    @property
    def foreground_share(self) -> float:
        """Share of the voxels with any label, 0..1."""
        return sum(share for value, share in self.label_share.items() if value)


def reference_key(data: Dataset) -> str:
    """The first channel that every case has, or else the first."""
    required = [key for key, channel in data.channels.items() if channel.required]
    return (required or list(data.channels))[0]


def data_facts(
    data: Dataset, cases: Sequence[Case], device: torch.device, share: int = 1
) -> DataFacts:
    """Facts from the images' headers and the machine; the shares of the labels come later.

    Args:
        cases: that are trained on.
        share: how many processes of this computer train together.
    """
    first = reference_key(data)
    grids = [
        reference_grid(
            read_grid(case.images.get(first, next(iter(case.images.values())))),
            (None, None, None),
            "RAS",
        )
        for case in cases
    ]
    i, j, k = np.median([grid.spacing for grid in grids], axis=0)
    shape = np.median([grid.shape for grid in grids], axis=0)
    return DataFacts(
        cases=len(cases),
        patients=len({case.patient for case in cases}),
        sites=len({case.site for case in cases}),
        spacing=(round(float(i), 3), round(float(j), 3), round(float(k), 3)),
        shape=(round(shape[0]), round(shape[1]), round(shape[2])),
        memory=memory_at_hand(device, share),
        on_gpu=device.type != "cpu",
    )


def memory_at_hand(device: torch.device, share: int = 1) -> int:
    """Bytes that are free on the device; of the computer's own memory half of them."""
    free = free_memory(device, share)
    return free if device.type == "cuda" else free // 2


def free_memory(device: torch.device, share: int = 1) -> int:
    """Bytes that are free on the device, for each process that shares it.

    Where several processes share it they all have to find the same: what there is in all counts.
    """
    several = share > 1
    # What a training before this one left behind, such as a fold's, lies in cycles.
    gc.collect()
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        # torch keeps what it no longer needs, and gives it to whoever asks next.
        return total if several else free + torch.cuda.memory_reserved(device)
    memory = psutil.virtual_memory()
    return (memory.total if several else memory.available) // share


def label_shares(
    prepared: Sequence[Mapping[str, Tensor]], values: Sequence[int]
) -> dict[int, float]:
    """By class number, 0 included: mean over the cases of its share of the voxels."""
    return {
        value: float(np.mean([(case["label"] == value).float().mean().item() for case in prepared]))
        for value in (0, *values)
    }


def training_bytes(
    build: Callable[[], nn.Module],
    shape: tuple[int, ...],
    half: bool = False,
) -> tuple[int, int]:
    """(bytes whatever the batch, bytes for each of its items) of a step of training, about.

    Counted from what autograd keeps for the way back, on tensors without data: nothing is computed.

    Args:
        build: makes the network.
        shape: of one item, [C, *space]; a 2D network sees the slices of a 3D one.
        half: where activations are kept in half precision.
    """
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage._cdata] = storage
        return tensor

    # Not torch's meta device, for which there is no autocast to switch off.
    with FakeTensorMode(), torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        network = build()
        # Not one: a batch normalisation of a single value is refused.
        answer(network, torch.empty(2, *shape))
    own = {p.untyped_storage()._cdata for p in network.parameters()}
    activations = sum(s.nbytes() for address, s in kept.items() if address not in own)
    parameters = sum(p.numel() * p.element_size() for p in network.parameters())
    return COPIES * parameters, int(RESERVE * activations / 2 * (MIXED if half else 1))


def is_flat(facts: DataFacts) -> bool:
    """Whether slices are better learnt one by one: thick ones, or few of them."""
    i, j, k = facts.spacing
    return k >= 3 * max(i, j) or facts.shape[0] < 32


def fitting_size(shape: Sequence[int], multiple: int, voxels: int) -> tuple[int, ...]:
    """The largest patch of at most so many voxels, the longest axes cut first.

    Args:
        shape: of the whole image; the patch is no larger, but for rounding up to the multiple.
        multiple: of which each side is one.
    """
    sizes = [math.ceil(n / multiple) * multiple for n in shape]
    while math.prod(sizes) > voxels and max(sizes) > multiple:
        sizes[int(np.argmax(sizes))] -= multiple
    return tuple(sizes)
