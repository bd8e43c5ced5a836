"""Multiple sclerosis lesions with RSANet from T1, T2 and FLAIR.

The paper (Zhang et al., MICCAI 2019, section 3.1) trains at width 32 with Adam, learning rate
1e-3, weight decay 1e-5 and batches of four random crops for 800 steps on 20 patients. It is
silent about the crop, the normalisation and the augmentation. Here a handful of patients from
two sources, and possibly a CPU, ask for a narrow network, small crops and strong augmentation;
the weight decay is the paper's. The network's group normalisation would see how bright a lesion
is beside the other lesions of the crop: with crops around lesions it answers too much elsewhere.
Batch normalisation, once trained, does not depend on what else is in a tile.
"""

from dataclasses import dataclass, field
from typing import Any

from monai.transforms import Compose
from torch import nn

from medsegcore.losses import LesionLoss
from medsegcore.losses.rsanet import WeightForm
from medsegcore.models import (
    AttentionSpec,
    Code,
    GridSpec,
    InputMatch,
    InputSpec,
    Label,
    ModelDescription,
    NetworkSpec,
    Normalisation,
    Terminology,
    TrainingRecord,
    WeightsSpec,
)
from medsegcore.networks.rsanet import RSANet, RSANetConfig
from medsegcore.training.augmentation import training_transforms

PAPER = (
    "Zhang H, Zhang J, Zhang Q, et al. RSANet: Recurrent Slice-wise Attention Network for "
    "Multiple Sclerosis Lesion Segmentation. MICCAI 2019."
)
# FLAIR by the position and width of its main peak, normal-appearing tissue, which neither the
# lesion load nor the extent of the brain mask moves; T1 and T2 have no such single peak.
INPUTS = (
    InputSpec(
        key="t1", title="T1-weighted MR", modality="MR", required=True,
        match=InputMatch(
            series_description=[r"\bt1", r"mp-?rage", r"(ir-?)?spgr"], names=[r"t1"],
            exclude=[r"t1\s*ce", r"gad", r"\bgd\b", r"contrast", r"post"],
        ),
        normalisation=Normalisation(method="robust"),
    ),
    InputSpec(
        key="t2", title="T2-weighted MR", modality="MR", required=False,
        match=InputMatch(
            series_description=[r"\bt2"], names=[r"t2"], exclude=[r"flair", r"t2\*", r"swi"]
        ),
        normalisation=Normalisation(method="robust"),
    ),
    InputSpec(
        key="flair", title="FLAIR MR", modality="MR", required=True,
        match=InputMatch(series_description=[r"flair", r"dark.?fluid"], names=[r"flair"]),
        normalisation=Normalisation(method="mode"),
    ),
)  # fmt: skip
LESION = Label(
    value=1,
    name="MS lesion",
    color=(230, 85, 13),
    terminology=Terminology(
        category=Code(scheme="SCT", value="49755003", meaning="Morphologically Altered Structure"),
        type=Code(scheme="SCT", value="52988006", meaning="Lesion"),
        region=Code(scheme="SCT", value="12738006", meaning="Brain"),
    ),
)


@dataclass(frozen=True)
class RSANetRecipe:
    """Settings of the training; all of them are recorded in the model folder.

    Attributes:
        width, norm, norm_groups, placement: of the network (`RSANetConfig`).
        patch: voxels (k, j, i) of 1 mm.
        batch_size: patches of one step.
        learning_rate: at its highest; it rises over `warmup_steps` and falls as a cosine.
        weight_decay: of AdamW.
        gradient_clip: largest norm of the gradient.
        ema_decay: of the running mean of the weights, which is what gets exported.
        loss: form of the exponential class weights, "printed" or "swapped".
        drop: probability of hiding an input from the network, by key.
        threshold: of the lesions' probability where the user sets none. Far below a half: on a
            scanner that was not trained on, the probabilities of lesions are lower.
    """

    name = "rsanet"
    width: int = 8
    norm: str = "batch"
    norm_groups: int = 2
    placement: str = "010"
    patch: tuple[int, int, int] = (64, 64, 64)
    batch_size: int = 2
    learning_rate: float = 2e-3
    weight_decay: float = 1e-5
    warmup_steps: int = 100
    gradient_clip: float = 12.0
    ema_decay: float = 0.999
    loss: WeightForm = "swapped"
    drop: dict[str, float] = field(default_factory=lambda: {"t2": 0.4, "t1": 0.25})
    threshold: float = 0.12

    @property
    def keys(self) -> list[str]:
        """Input keys in the order of the channels."""
        return [spec.key for spec in INPUTS]

    def network_spec(self) -> NetworkSpec:
        """The network's name and config."""
        return NetworkSpec(name="rsanet", config=self._network_config())

    def _network_config(self) -> dict[str, Any]:
        return {
            "in_channels": len(INPUTS), "out_channels": 2, "width": self.width,
            "norm": self.norm, "norm_groups": self.norm_groups, "placement": self.placement,
        }  # fmt: skip

    def network(self) -> RSANet:
        """A new network."""
        return RSANet(RSANetConfig(**self._network_config()))

    def loss_function(self, lesion_share: float) -> nn.Module:
        """The loss for images of which that share of the voxels is lesion, 0..1."""
        return LesionLoss(lesion_share, self.loss)

    def transforms(self) -> Compose:
        """From a prepared case to a list of one augmented patch."""
        return training_transforms(self.keys, self.patch, self.drop)

    def description(self, record: TrainingRecord) -> ModelDescription:
        """The model folder's description without data and figures, which the run fills in."""
        attention = [AttentionSpec.model_validate(a) for a in self.network().attention]
        return ModelDescription(
            id="ms-lesion-rsanet",
            version="1.0.0",
            title="MS lesions from T1, T2 and FLAIR (RSANet)",
            task="Segments white-matter lesions of multiple sclerosis in skull-stripped brain MR.",
            anatomy="brain",
            skull_stripped=True,
            network=self.network_spec(),
            weights=WeightsSpec(
                sha256="0" * 64, dtype="float16", license="not stated", commercial_use=False
            ),
            inputs=list(INPUTS),
            reference="flair",
            missing_input="zero",
            grid=GridSpec(spacing=(1.0, 1.0, 1.0), tile=(128, 128, 128), overlap=0.25, multiple=16),
            labels=[LESION.model_copy(update={"threshold": self.threshold})],
            attention=attention,
            training=record,
            data=[],
            metrics=[],
            intended_use="Research and teaching. Not a medical device; every contour has to be "
            "checked by a reader before anything is concluded from it.",
            limits=[
                "The images have to be skull-stripped and of one patient and visit; thick slices, "
                "children and diseases other than multiple sclerosis are untested.",
                "It does not tell active lesions from old ones, nor white-matter lesions of "
                "multiple sclerosis from others.",
                "Small lesions are missed more often than large ones: see the lesion-wise figures.",
            ],
            citation=[PAPER],
            memory_mb=0,
        )
