"""Any teacher of ours distilled into any student (eq. 1-8 of arXiv 2404.02738).

Both in 2D, both in 3D, or a 3D teacher and a student that sees the slices of its patches.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medsegcore.losses.affinity import AffinityDistillationLoss, AffinityLossConfig
from medsegcore.training.running import run_with_taps


class TapPair(NamedTuple):
    """Which features of the teacher and of the student are compared.

    Each is the name of a tap ("low", "high"), where the network has taps, or the dotted name of a
    submodule ("encoder.4"), whose output is taken, as later layers that work in place leave it.
    """

    teacher: str = "high"
    student: str = "high"


class Distillation(nn.Module):
    """A student that learns from a frozen teacher and from the reference at once.

    The teacher stays in eval mode and takes no gradients. Each pair of taps has an adapter, a 1x1
    convolution from the student's channels to the teacher's (section 2, KMM), which is trained
    with the student and thrown away afterwards: `distillation.student` is what remains. A 1x1
    convolution can't align the spatial size, as the paper has it, so that where the sizes differ
    the student's features are resized to the teacher's by (bi- or tri-)linear interpolation.

    Where the teacher works on 3D patches and the student on their slices, the sample x_i of eq. 5
    is the patch: the student's features of it are those of its slices, stacked. The neighbours of
    eq. 1-4 are then those within a slice.

    Args:
        teacher: trained network; its parameters are frozen here.
        student: network to train, with the same classes.
        example: one input [B, C, *space], of any size that both take; it is run once to learn the
            number of channels at the taps.
        pairs: which features KMM compares; several add up.
        config: the terms of eq. 8.
        modalities: how many a batch holds, in equal parts one after the other; the terms are those
            of each, averaged.
    """

    def __init__(
        self,
        teacher: nn.Module,
        student: nn.Module,
        example: Tensor,
        pairs: Sequence[TapPair] = (TapPair(),),
        config: AffinityLossConfig | None = None,
        modalities: int = 1,
    ):
        super().__init__()
        self.teacher = teacher.requires_grad_(False).eval()
        self.student = student
        self.modalities = modalities
        config = config or AffinityLossConfig()
        if example.dim() == 5 and getattr(student, "dimensions", 3) == 2:
            sides = config.neighbourhood
            sides = (sides, sides) if isinstance(sides, int) else sides
            config = replace(config, neighbourhood=(1, *sides[-2:]))
        self.loss = AffinityDistillationLoss(config)
        # Without KMM no features are asked for, and there is nothing to adapt.
        self.pairs = [TapPair(*pair) for pair in pairs] if config.kernel_weight else []
        if config.kernel_weight and not self.pairs:
            raise ValueError("the kernel loss needs a pair of taps; or set its weight to 0")
        self.adapters = nn.ModuleList()
        self._make_adapters(example)

    def _teach(self, x: Tensor, modalities: int) -> tuple[Tensor, dict[str, Tensor]]:
        names = [pair.teacher for pair in self.pairs]
        with torch.no_grad():
            return run_with_taps(self.teacher, x, names, modalities)

    def _learn(self, x: Tensor, modalities: int) -> tuple[Tensor, dict[str, Tensor]]:
        return run_with_taps(self.student, x, [pair.student for pair in self.pairs], modalities)

    def _make_adapters(self, example: Tensor) -> None:
        training = self.student.training
        self.student.eval()
        with torch.no_grad():
            theirs, taught = self._teach(example, 1)
            ours, learnt = self._learn(example, 1)
        self.student.train(training)
        if ours.shape != theirs.shape:
            raise ValueError(
                f"the student answers {tuple(ours.shape)} but the teacher {tuple(theirs.shape)}: "
                "their classes and sizes have to be the same"
            )
        convolution = nn.Conv2d if example.dim() == 4 else nn.Conv3d
        for pair in self.pairs:
            n_in, n_out = learnt[pair.student].shape[1], taught[pair.teacher].shape[1]
            self.adapters.append(
                convolution(n_in, n_out, kernel_size=1, device=ours.device, dtype=ours.dtype)
            )

    def train(self, mode: bool = True) -> "Distillation":
        super().train(mode)
        self.teacher.eval()
        return self

    def forward(self, x: Tensor, target: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Run both networks on a batch.

        Args:
            x: [B, C, *space], what both see; where there are several modalities, their batches of
                one size after each other.
            target: reference [B, 1, *space] of class numbers.

        Returns:
            (the student's logits [B, classes, *space], the terms of eq. 8 and their "total").
        """
        teacher_logits, taught = self._teach(x, self.modalities)
        logits, learnt = self._learn(x, self.modalities)
        features = [
            (self._align(adapter, learnt[pair.student], taught[pair.teacher]), taught[pair.teacher])
            for adapter, pair in zip(self.adapters, self.pairs, strict=True)
        ]
        terms = [
            self.loss(
                self._part(logits, n), self._part(teacher_logits, n),
                [(self._part(ours, n), self._part(theirs, n)) for ours, theirs in features],
                self._part(target, n),
            )
            for n in range(self.modalities)
        ]  # fmt: skip
        return logits, {name: torch.stack([t[name] for t in terms]).mean() for name in terms[0]}

    def _part(self, batch: Tensor, number: int) -> Tensor:
        """What of a batch is of that modality."""
        return batch.chunk(self.modalities)[number]

    @staticmethod
    def _align(adapter: nn.Module, student: Tensor, teacher: Tensor) -> Tensor:
        """student [B, C_s, *a] -> [B, C_t, *b], the shape of teacher."""
        adapted = adapter(student)
        size = list(teacher.shape[2:])
        if list(adapted.shape[2:]) == size:
            return adapted
        mode = "bilinear" if adapted.dim() == 4 else "trilinear"
        return F.interpolate(adapted, size, mode=mode, align_corners=False)
