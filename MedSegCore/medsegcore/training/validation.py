"""Validation while a training runs: whole cases, segmented as a user will, and how they look."""

from collections.abc import Sequence
from typing import Any

import lightning.pytorch as L
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import TensorBoardLogger

from medsegcore.evaluation.metrics import dice
from medsegcore.imaging import Image, read_image, resample
from medsegcore.inference.predictor import Predictor
from medsegcore.models import Label, ModelDescription
from medsegcore.training.cases import class_numbers, labels_on
from medsegcore.training.datasets import Case

MONITOR = "validation_dice"


class Validation(Callback):
    """Segments the validation cases and logs the mean Dice over labels and cases.

    The network is in eval mode, with the running mean of the weights. A label that neither the
    answer nor the reference has does not count.

    Args:
        precision: of the convolutions, as for `Predictor`.
    """

    def __init__(self, description: ModelDescription, cases: Sequence[Case], precision: str):
        self.description, self.cases, self.precision = description, cases, precision
        self.sums = torch.zeros(0)

    def on_validation_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        # By label: sum of Dice, and of how many cases.
        self.sums = torch.zeros(len(self.description.labels), 2, device=pl_module.device)

    def on_validation_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: Any,
        outputs: Any,
        batch: int,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if batch < 0:
            return
        case = self.cases[batch]
        predictor = Predictor.of(
            self.description, pl_module.objective.network, str(pl_module.device), self.precision
        )
        keys = [spec.key for spec in self.description.inputs]
        images = {key: read_image(path) for key, path in case.images.items() if key in keys}
        result = predictor.predict(images, attention=False)
        labels = self.description.labels
        reference = class_numbers(labels_on(result.grid, case), labels)
        for n, label in enumerate(labels):
            of_answer, of_reference = result.labelmap == label.value, reference == label.value
            if of_answer.any() or of_reference.any():
                self.sums[n] += torch.tensor([dice(of_answer, of_reference), 1.0]).to(self.sums)
        if batch == 0 and isinstance(trainer.logger, TensorBoardLogger):
            shown = images[self.description.reference_of(images) or keys[0]]
            trainer.logger.experiment.add_image(
                "validation (reference white)",
                outlined_slice(resample(shown, result.grid), result.labelmap, reference, labels),
                trainer.global_step,
                dataformats="HWC",
            )

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        sums = trainer.strategy.reduce(self.sums, reduce_op="sum")
        assert isinstance(sums, torch.Tensor)
        means = [float(total / n) for total, n in sums if n > 0]
        for label, (total, n) in zip(self.description.labels, sums, strict=True):
            if n > 0 and len(self.description.labels) > 1:
                pl_module.log(f"{MONITOR}/{label.name}", total / n)
        # All empty and answered so is all right.
        pl_module.log(MONITOR, float(np.mean(means)) if means else 1.0)


class PatchPictures(Callback):
    """The first patch of a batch with its answer, now and then, where no case is validated on.

    Args:
        every: steps from one to the next.
    """

    def __init__(self, description: ModelDescription, every: int):
        self.description, self.every = description, every

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: Any, batch: Any, batch_idx: int
    ) -> None:
        pl_module.keep_shown = trainer.global_step % self.every == 0

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, *args: Any) -> None:
        shown, pl_module.shown = pl_module.shown, {}
        if not isinstance(trainer.logger, TensorBoardLogger):
            return
        for name, (image, label, answer) in shown.items():
            seen = image[self._reference(len(image))]
            # A slice is a volume of one.
            arrays = [
                x.float().cpu().numpy().reshape(-1, *x.shape[-2:]) for x in (seen, answer, label)
            ]
            picture = outlined_slice(
                Image(arrays[0], np.eye(4)), arrays[1], arrays[2], self.description.labels
            )
            trainer.logger.experiment.add_image(
                " ".join(filter(None, ["patch", name, "(reference white)"])),
                picture,
                trainer.global_step,
                dataformats="HWC",
            )

    def _reference(self, channels: int) -> int:
        """The channel to look at: of the slices of the reference image, the middle one."""
        neighbours = self.description.grid.neighbours
        keys = [spec.key for spec in self.description.inputs]
        reference = self.description.reference
        alone = reference is None or self.description.one_of
        first = 0 if alone else keys.index(str(reference)) * (2 * neighbours + 1)
        return min(first + neighbours, channels - 1)


def outlined_slice(
    image: Image, answer: np.ndarray, reference: np.ndarray, labels: Sequence[Label]
) -> np.ndarray:
    """The slice with most of the reference: uint8 [j, i, 3], anterior and right first.

    Args:
        answer, reference: class numbers [k, j, i] on the image's grid; the outlines of the answer
            have the labels' colours, those of the reference are white.
    """
    from scipy import ndimage

    k = int((reference > 0).sum(axis=(1, 2)).argmax())
    gray = image.array[k].astype(np.float32)
    low, high = np.percentile(gray, [1, 99.5])
    shown = np.clip((gray - low) / max(float(high - low), 1e-6), 0, 1) * 255
    picture = np.repeat(shown.astype(np.uint8)[..., None], 3, axis=2)
    for masks, colors in (
        (reference, {label.value: (255, 255, 255) for label in labels}),
        (answer, {label.value: label.color for label in labels}),
    ):
        for value, color in colors.items():
            mask = masks[k] == value
            picture[mask & ~ndimage.binary_erosion(mask)] = color
    return picture
