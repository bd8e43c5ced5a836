"""The losses of adaptive affinity-based distillation (Loussaief et al., 2024, arXiv 2404.02738).

AAM (eq. 1-4), KMM (eq. 5-6), LM (eq. 7) and their sum with the segmentation loss (eq. 8), in 2D
and in 3D, in fp32. The classes are axis 1 of the logits, and every softmax runs over them.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from monai.losses import DiceLoss, FocalLoss
from torch import Tensor, nn

KernelForm = Literal["printed", "unit"]
SegmentationTerm = Literal["dice", "focal", "dice+focal"]


@dataclass(frozen=True)
class AffinityLossConfig:
    """Settings of eq. 8; the defaults are the paper's, and ours where it is silent.

    A term whose weight is 0 is switched off and not computed.

    Attributes:
        logits_weight: lambda_1 of eq. 8, for LM.
        kernel_weight: lambda_2 of eq. 8, for KMM.
        affinity_weight: lambda_3 of eq. 8, for AAM.
        neighbourhood: voxels across the window of neighbours, odd, one number or one per axis.
            Silent; 3 is the smallest window. (1, 3, 3) keeps thick slices apart.
        margin: m of eq. 2. Silent; 3 as in adaptive affinity fields, the paper's reference 2.
        kernel_form: "printed" is eq. 5, whose inner products grow with the features' size; "unit"
            first gives each sample's features the length 1, so that no entry exceeds 1.
        segmentation: the paper's "dice loss and focal loss"; "dice+focal" is their mean.
    """

    logits_weight: float = 0.2
    kernel_weight: float = 0.9
    affinity_weight: float = 0.9
    neighbourhood: int | tuple[int, ...] = 3
    margin: float = 3.0
    kernel_form: KernelForm = "printed"
    segmentation: SegmentationTerm = "dice"

    def __post_init__(self) -> None:
        for name in ("logits_weight", "kernel_weight", "affinity_weight", "margin"):
            value = getattr(self, name)
            if type(value) not in (int, float) or not 0 <= value < float("inf"):
                raise ValueError(f"{name} is {value!r} but has to be a number of 0 or more")
        sides = self.neighbourhood
        sides = sides if isinstance(sides, (tuple, list)) else (sides,)
        if (
            any(type(n) is not int or n < 1 or n % 2 == 0 for n in sides)
            or max(sides, default=1) < 2
        ):
            raise ValueError(
                f"neighbourhood is {self.neighbourhood!r} but has to be odd and hold a neighbour"
            )
        if self.kernel_form not in ("printed", "unit"):
            raise ValueError(
                f"kernel_form is {self.kernel_form!r} but has to be 'printed' or 'unit'"
            )
        if self.segmentation not in ("dice", "focal", "dice+focal"):
            raise ValueError(
                f"segmentation is {self.segmentation!r} but has to be 'dice', 'focal' or "
                "'dice+focal'"
            )


def neighbour_offsets(neighbourhood: int | Sequence[int], axes: int) -> list[tuple[int, ...]]:
    """Half of the window's offsets: of each two opposite ones, the one that points forward."""
    sides = [neighbourhood] * axes if isinstance(neighbourhood, int) else list(neighbourhood)
    if len(sides) != axes:
        raise ValueError(f"neighbourhood {tuple(sides)} does not fit images of {axes} axes")
    window = itertools.product(*(range(-(n // 2), n // 2 + 1) for n in sides))
    return [offset for offset in window if offset > (0,) * axes]


def _pairs(x: Tensor, offset: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """x [B, C, *space] at every position i, and at j = i + offset, where both are inside."""
    here: list[slice] = [slice(None), slice(None)]
    there: list[slice] = [slice(None), slice(None)]
    for step, size in zip(offset, x.shape[2:], strict=True):
        here.append(slice(max(-step, 0), max(size - max(step, 0), 0)))
        there.append(slice(max(step, 0), max(size + min(step, 0), 0)))
    return x[tuple(here)], x[tuple(there)]


def pairwise_divergence(
    logits: Tensor, neighbourhood: int | Sequence[int] = 3
) -> Iterator[tuple[tuple[int, ...], Tensor, Tensor]]:
    """Eq. 3: W_ij = KL(F_i || F_j) of the class distributions of a pixel and its neighbour.

    Args:
        logits: [B, C, *space], softmax over C gives F.
        neighbourhood: see `AffinityLossConfig`.

    Yields:
        offset, W_ij and W_ji, both [B, 1, *overlap], for each pair i and j = i + offset that lie
        inside the image; each unordered pair comes once.
    """
    log_p = F.log_softmax(logits.float(), dim=1)
    for offset in neighbour_offsets(neighbourhood, logits.dim() - 2):
        log_i, log_j = _pairs(log_p, offset)
        forward = (log_i.exp() * (log_i - log_j)).sum(dim=1, keepdim=True)
        backward = (log_j.exp() * (log_j - log_i)).sum(dim=1, keepdim=True)
        yield offset, forward, backward


def affinity_loss(
    student_logits: Tensor,
    teacher_labels: Tensor,
    neighbourhood: int | Sequence[int] = 3,
    margin: float = 3.0,
) -> Tensor:
    """AAM, eq. 1, 2 and 4: pull equal neighbours together, push unequal ones apart.

    P holds every ordered pair of neighbours of the batch: KL is not symmetric, so W_ij and W_ji
    both count. A set without pairs adds 0.

    Args:
        student_logits: [B, C, *space].
        teacher_labels: [B, 1, *space], the teacher's label map, by which eq. 1 and 2 split P.
        neighbourhood, margin: see `AffinityLossConfig`.

    Returns:
        Loss_AA, a scalar.
    """
    if student_logits.shape[1] < 2:
        raise ValueError("affinities need the logits of at least two classes")
    if teacher_labels.shape != (student_logits.shape[0], 1, *student_logits.shape[2:]):
        raise ValueError(
            f"labels {tuple(teacher_labels.shape)} do not fit logits {tuple(student_logits.shape)}"
        )
    with torch.autocast(student_logits.device.type, enabled=False):
        equal_sum = unequal_sum = student_logits.new_zeros((), dtype=torch.float32)
        equal_pairs = unequal_pairs = student_logits.new_zeros((), dtype=torch.int64)
        for offset, w_ij, w_ji in pairwise_divergence(student_logits, neighbourhood):
            label_i, label_j = _pairs(teacher_labels, offset)
            equal = label_i == label_j
            pull = w_ij + w_ji
            push = F.relu(margin - w_ij) + F.relu(margin - w_ji)
            equal_sum = equal_sum + pull.masked_fill(~equal, 0).sum()
            unequal_sum = unequal_sum + push.masked_fill(equal, 0).sum()
            equal_pairs = equal_pairs + 2 * equal.sum()
            unequal_pairs = unequal_pairs + 2 * (~equal).sum()
        loss_equal = equal_sum / equal_pairs.clamp(min=1)  # eq. 1
        loss_unequal = unequal_sum / unequal_pairs.clamp(min=1)  # eq. 2
    return loss_equal + loss_unequal  # eq. 4


def gram_matrix(features: Tensor, form: KernelForm = "printed") -> Tensor:
    """Eq. 5: K_ij = <f(x_i), f(x_j)> over the n samples of the batch.

    features [n, C, *space] -> K [n, n] fp32; with the form "unit" each f has the length 1.
    """
    with torch.autocast(features.device.type, enabled=False):
        rows = features.float().flatten(1)  # n, C * space
        if form == "unit":
            rows = F.normalize(rows, dim=1)
        return rows @ rows.T


def kernel_loss(student: Tensor, teacher: Tensor, form: KernelForm = "printed") -> Tensor:
    """KMM, eq. 6: 1/n sum_i (K_S - K_T)^2 + ||K_S - K_T||_L1.

    The square of row i is the sum of its squared entries, and the norm is the sum over all
    entries; as printed, only the first term is divided by n. The printed sum from 0 to n would
    have n + 1 terms; there are n.

    Args:
        student: features [n, C, *space], after the 1x1 adapter.
        teacher: features of the same shape.
        form: see `AffinityLossConfig.kernel_form`.
    """
    if student.shape != teacher.shape:
        raise ValueError(
            f"features {tuple(student.shape)} of the student do not fit the teacher's "
            f"{tuple(teacher.shape)}"
        )
    difference = gram_matrix(student, form) - gram_matrix(teacher, form)  # n, n
    return difference.square().sum() / difference.shape[0] + difference.abs().sum()


def logits_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """LM, eq. 7: the mean over all N pixels of KL(p_s || p_t), in the printed order.

    student, teacher: logits [B, C, *space] -> scalar. There is no temperature.
    """
    if student.shape != teacher.shape:
        raise ValueError(
            f"logits {tuple(student.shape)} of the student do not fit the teacher's "
            f"{tuple(teacher.shape)}"
        )
    with torch.autocast(student.device.type, enabled=False):
        log_s = F.log_softmax(student.float(), dim=1)
        log_t = F.log_softmax(teacher.float(), dim=1)
        return (log_s.exp() * (log_s - log_t)).sum(dim=1).mean()


class SegmentationLoss(nn.Module):
    """Loss_Seg of eq. 8: Dice pooled over the batch, focal loss (gamma 2), or their mean."""

    def __init__(self, term: SegmentationTerm = "dice"):
        super().__init__()
        self.terms = nn.ModuleList()
        if "dice" in term:
            self.terms.append(
                DiceLoss(include_background=False, to_onehot_y=True, softmax=True, batch=True)
            )
        if "focal" in term:
            self.terms.append(FocalLoss(to_onehot_y=True, use_softmax=True, gamma=2.0))

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """logits [B, C, *space], target [B, 1, *space] of class numbers -> scalar."""
        losses = [term(logits.float(), target) for term in self.terms]
        return torch.stack(losses).mean()


class AffinityDistillationLoss(nn.Module):
    """Eq. 8: Loss_Seg + lambda_1 Loss_Logits + lambda_2 Loss_KM + lambda_3 Loss_AA."""

    def __init__(self, config: AffinityLossConfig | None = None):
        super().__init__()
        self.config = config or AffinityLossConfig()
        self.segmentation = SegmentationLoss(self.config.segmentation)

    def forward(
        self,
        student_logits: Tensor,
        teacher_logits: Tensor,
        features: Sequence[tuple[Tensor, Tensor]],
        target: Tensor,
    ) -> dict[str, Tensor]:
        """The terms, each before its weight, and their weighted sum.

        Args:
            student_logits, teacher_logits: [B, C, *space].
            features: pairs (student's after its adapter, teacher's), each pair of one shape
                [B, C', *space']; several pairs add up.
            target: reference [B, 1, *space] of class numbers.

        Returns:
            {"total", "segmentation"} and, where they are switched on, "logits", "kernel" and
            "affinity", each a scalar.
        """
        config = self.config
        losses = {"segmentation": self.segmentation(student_logits, target)}
        total = losses["segmentation"]
        if config.logits_weight:
            losses["logits"] = logits_loss(student_logits, teacher_logits)
            total = total + config.logits_weight * losses["logits"]
        if config.kernel_weight and features:
            kernels = [kernel_loss(s, t, config.kernel_form) for s, t in features]
            losses["kernel"] = torch.stack(kernels).sum()
            total = total + config.kernel_weight * losses["kernel"]
        if config.affinity_weight:
            labels = teacher_logits.argmax(dim=1, keepdim=True)
            losses["affinity"] = affinity_loss(
                student_logits, labels, config.neighbourhood, config.margin
            )
            total = total + config.affinity_weight * losses["affinity"]
        return {"total": total, **losses}
