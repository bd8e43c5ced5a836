"""Any teacher of ours distilled into any student, 2D or 3D (eq. 1-8 of arXiv 2404.02738)."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medsegcore.losses.affinity import AffinityDistillationLoss, AffinityLossConfig


class TapPair(NamedTuple):
    """Which features of the teacher and of the student are compared.

    Each is the name of a tap ("low", "high"), where the network has taps, or the dotted name of a
    submodule ("encoder.4"), whose output is taken, as later layers that work in place leave it.
    """

    teacher: str = "high"
    student: str = "high"


@contextlib.contextmanager
def _hooked(network: nn.Module, names: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """Collect the outputs of the named submodules while the network runs."""
    caught: dict[str, Tensor] = {}
    with contextlib.ExitStack() as hooks:
        for name in names:
            try:
                module = network.get_submodule(name) if name else None
            except AttributeError:
                module = None
            if module is None:
                taps = ", ".join(getattr(network, "taps", {})) or "none"
                raise ValueError(
                    f"{type(network).__name__} has no tap or submodule '{name}' (taps: {taps})"
                )

            def catch(_: nn.Module, __: Any, output: Any, name: str = name) -> None:
                # A block that also gives its attention puts the features first.
                caught[name] = output[0] if isinstance(output, tuple) else output

            hooks.callback(module.register_forward_hook(catch).remove)
        yield caught


def run_with_taps(
    network: nn.Module, x: Tensor, names: Sequence[str], **options: Any
) -> tuple[Tensor, dict[str, Tensor]]:
    """Run a network and take the features of those names.

    Args:
        network: any network of ours.
        x: its input [B, C, *space].
        names: taps by name, or submodules by dotted name.
        options: further arguments of the network's forward pass.

    Returns:
        (logits, {name: features [B, C', *space']}).

    Raises:
        ValueError: the network has no such tap or submodule, or that submodule has not run.
    """
    taps = getattr(network, "taps", {})
    hooked = [name for name in names if name not in taps]
    with _hooked(network, hooked) as features:
        if len(hooked) < len(names):
            logits, tapped = network.forward_features(x, **options)  # type: ignore[operator]
            features.update({name: tapped[name] for name in names if name in taps})
        else:
            logits = network(x, **options)
    for name in names:
        if not isinstance(features.get(name), Tensor) or features[name].dim() != x.dim():
            raise ValueError(
                f"'{name}' of {type(network).__name__} gives no features [B, C, *space]"
            )
    return logits, features


class Distillation(nn.Module):
    """A student that learns from a frozen teacher and from the reference at once.

    The teacher stays in eval mode and takes no gradients. Each pair of taps has an adapter, a 1x1
    convolution from the student's channels to the teacher's (section 2, KMM), which is trained
    with the student and thrown away afterwards: `distillation.student` is what remains. A 1x1
    convolution can't align the spatial size, as the paper has it, so that where the sizes differ
    the student's features are resized to the teacher's by (bi- or tri-)linear interpolation.

    Args:
        teacher: trained network; its parameters are frozen here.
        student: network to train, with the same classes.
        example: one input [B, C, *space] of the student, of any size that both take; it is run
            once to learn the number of channels at the taps.
        pairs: which features KMM compares; several add up.
        config: the terms of eq. 8.
        teacher_example: the teacher's input, where it differs from the student's.
        student_options, teacher_options: further arguments of each network's forward pass, such
            as its modality; `forward` may change them for a batch.
    """

    def __init__(
        self,
        teacher: nn.Module,
        student: nn.Module,
        example: Tensor,
        pairs: Sequence[TapPair] = (TapPair(),),
        config: AffinityLossConfig | None = None,
        teacher_example: Tensor | None = None,
        student_options: Mapping[str, Any] | None = None,
        teacher_options: Mapping[str, Any] | None = None,
    ):
        super().__init__()
        self.teacher = teacher.requires_grad_(False).eval()
        self.student = student
        self.student_options = dict(student_options or {})
        self.teacher_options = dict(teacher_options or {})
        self.loss = AffinityDistillationLoss(config)
        # Without KMM no features are asked for, and there is nothing to adapt.
        self.pairs = [TapPair(*pair) for pair in pairs] if self.loss.config.kernel_weight else []
        if self.loss.config.kernel_weight and not self.pairs:
            raise ValueError("the kernel loss needs a pair of taps; or set its weight to 0")
        self.adapters = nn.ModuleList()
        self._make_adapters(example, example if teacher_example is None else teacher_example)

    def _teach(self, x: Tensor, options: Mapping[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        names = [pair.teacher for pair in self.pairs]
        with torch.no_grad():
            return run_with_taps(self.teacher, x, names, **{**self.teacher_options, **options})

    def _learn(self, x: Tensor, options: Mapping[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        names = [pair.student for pair in self.pairs]
        return run_with_taps(self.student, x, names, **{**self.student_options, **options})

    def _make_adapters(self, example: Tensor, teacher_example: Tensor) -> None:
        training = self.student.training
        self.student.eval()
        with torch.no_grad():
            theirs, taught = self._teach(teacher_example, {})
            ours, learnt = self._learn(example, {})
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

    def forward(
        self,
        x: Tensor,
        target: Tensor,
        teacher_x: Tensor | None = None,
        student_options: Mapping[str, Any] | None = None,
        teacher_options: Mapping[str, Any] | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Run both networks on a batch.

        Args:
            x: the student's input [B, C, *space].
            target: reference [B, 1, *space] of class numbers.
            teacher_x: the teacher's input, where it differs from the student's.
            student_options, teacher_options: further arguments of each network's forward pass.

        Returns:
            (the student's logits [B, classes, *space], the terms of eq. 8 and their "total").
        """
        teacher_logits, taught = self._teach(
            x if teacher_x is None else teacher_x, teacher_options or {}
        )
        logits, learnt = self._learn(x, student_options or {})
        features = [
            (self._align(adapter, learnt[pair.student], taught[pair.teacher]), taught[pair.teacher])
            for adapter, pair in zip(self.adapters, self.pairs, strict=True)
        ]
        return logits, self.loss(logits, teacher_logits, features, target)

    @staticmethod
    def _align(adapter: nn.Module, student: Tensor, teacher: Tensor) -> Tensor:
        """student [B, C_s, *a] -> [B, C_t, *b], the shape of teacher."""
        adapted = adapter(student)
        size = list(teacher.shape[2:])
        if list(adapted.shape[2:]) == size:
            return adapted
        mode = "bilinear" if adapted.dim() == 4 else "trilinear"
        return F.interpolate(adapted, size, mode=mode, align_corners=False)
