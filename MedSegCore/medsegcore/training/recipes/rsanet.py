"""Multiple sclerosis lesions with RSANet from T1, T2 and FLAIR.

The paper (Zhang et al., MICCAI 2019, section 3.1) trains at width 32 with Adam, learning rate
1e-3, weight decay 1e-5 and batches of four random crops for 800 steps on 20 patients. It is
silent about the crop, the normalisation and the augmentation. Here a handful of patients from
two sources, and possibly a CPU, ask for a narrow network, small crops and strong augmentation;
the weight decay is the paper's. The normalisation is that of the paper's release: with a batch
normalisation the threshold that suits a patient hung on the scanner. The bias of the last
convolution is ours.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from monai.transforms import Compose
from torch import nn
from torch.optim import Optimizer

from medsegcore.errors import SettingError
from medsegcore.losses import LesionLoss
from medsegcore.losses.rsanet import WeightForm
from medsegcore.models import (
    AttentionSpec,
    Code,
    GridSpec,
    Label,
    ModelDescription,
    NetworkSpec,
    Terminology,
    TrainingRecord,
)
from medsegcore.networks import create_network
from medsegcore.networks.rsanet import RSANet
from medsegcore.training.augmentation import training_transforms
from medsegcore.training.datasets import Dataset
from medsegcore.training.recipes.base import (
    NO_WEIGHTS,
    RESEARCH_ONLY,
    DataFacts,
    Recipe,
    Supervised,
    check_prior,
    start_rare,
    warm_cosine,
)
from medsegcore.training.recipes.known import INPUTS as KNOWN
from medsegcore.training.transplant import with_transplants

PAPER = (
    "Zhang H, Zhang J, Zhang Q, et al. RSANet: Recurrent Slice-wise Attention Network for "
    "Multiple Sclerosis Lesion Segmentation. MICCAI 2019."
)
INPUTS = (KNOWN["t1"], KNOWN["t2"].model_copy(update={"required": False}), KNOWN["flair"])
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
class RSANetRecipe(Recipe):
    """See `Recipe` for what is common.

    Attributes:
        width, norm, norm_groups, placement, block, head_bias: of the network (`RSANetConfig`).
        prior: the lesions' probability before training, where there is a bias: `start_rare`.
        patch: of 1 mm.
        learning_rate: at its highest; it rises over `warmup_steps` and falls as a cosine.
        warmup_steps: a tenth of the budget where that is less.
        weight_decay: of AdamW.
        loss: form of the exponential class weights, "printed" or "swapped".
        ghosting: probability of ghosts in an input.
        transplant: probability of carrying a lesion of another case into a patch's case.
        drop: probability of hiding an input from the network, by key.
        threshold: of the lesions' probability where the user sets none. Every other crop has a
            lesion in its middle, which makes them likelier than they are: 0.8 suited patients
            that were held out better than 0.5.
    """

    name: ClassVar[str] = "rsanet"
    width: int = 8
    norm: str = "group"
    norm_groups: int = 4
    placement: str = "010"
    block: str = "rsa"
    head_bias: bool = True
    prior: float = 0.01
    patch: tuple[int, int, int] = (64, 64, 64)
    batch_size: int = 2
    learning_rate: float = 2e-3
    weight_decay: float = 1e-5
    warmup_steps: int = 100
    ema_decay: float = 0.99
    loss: WeightForm = "swapped"
    ghosting: float = 0.0
    transplant: float = 0.0
    drop: dict[str, float] = field(default_factory=lambda: {"t2": 0.4, "t1": 0.25})
    threshold: float = 0.8

    def __post_init__(self) -> None:
        check_prior(self.prior)
        unknown = sorted({*self.drop} - {*self.keys})
        if unknown:
            raise SettingError(
                f"drop names '{unknown[0]}', which is no input.", f"Inputs: {', '.join(self.keys)}."
            )

    @property
    def keys(self) -> list[str]:
        return [spec.key for spec in INPUTS]

    def network(self, description: ModelDescription) -> nn.Module:
        network = super().network(description)
        assert isinstance(network, RSANet)
        start_rare(network.head[-1].bias, self.prior)  # type: ignore[arg-type]
        return network

    def network_spec(self) -> NetworkSpec:
        """The network's name and config."""
        config: dict[str, Any] = {
            "in_channels": len(INPUTS), "out_channels": 2, "width": self.width,
            "norm": self.norm, "norm_groups": self.norm_groups, "placement": self.placement,
            "block": self.block, "head_bias": self.head_bias,
        }  # fmt: skip
        return NetworkSpec(name="rsanet", config=config)

    def objective(self, network: nn.Module, facts: DataFacts) -> Supervised:
        return Supervised(network, LesionLoss(facts.foreground_share, self.loss))

    def transforms(self, description: ModelDescription) -> Compose:
        patches = training_transforms(self.keys, self.patch, self.drop, ghosting=self.ghosting)
        return with_transplants(patches, self.keys, "flair", self.transplant)

    def optimizer(self, parameters: Iterable[nn.Parameter]) -> Optimizer:
        return torch.optim.AdamW(parameters, lr=self.learning_rate, weight_decay=self.weight_decay)

    def learning_rate_at(self, share_done: float, step: int) -> float:
        return warm_cosine(self.learning_rate, self.warmup_steps, share_done, step)

    def description(self, data: Dataset, record: TrainingRecord) -> ModelDescription:
        spec = self.network_spec()
        given: Any = create_network(spec.name, spec.config).attention
        attention = [AttentionSpec.model_validate(a) for a in given]
        return ModelDescription(
            id="ms-lesion-rsanet",
            version="1.0.0",
            title="MS lesions from T1, T2 and FLAIR (RSANet)",
            task="Segments white-matter lesions of multiple sclerosis in skull-stripped brain MR.",
            anatomy="brain",
            skull_stripped=True,
            network=spec,
            weights=NO_WEIGHTS,
            inputs=list(INPUTS),
            reference="flair",
            missing_input="zero",
            grid=GridSpec(spacing=(1.0, 1.0, 1.0), tile=(128, 128, 128), overlap=0.25, multiple=16),
            labels=[LESION.model_copy(update={"threshold": self.threshold})],
            attention=attention,
            training=record,
            data=[],
            metrics=[],
            intended_use=RESEARCH_ONLY,
            limits=[
                "The images have to be skull-stripped and of one patient and visit; thick slices, "
                "children and diseases other than multiple sclerosis are untested.",
                "Images have to show the whole brain: in a file that holds a part of it, most "
                "lesions are missed. A region to work in is no such part.",
                "It does not tell active lesions from old ones, nor white-matter lesions of "
                "multiple sclerosis from others.",
                "Small lesions are missed more often than large ones: see the lesion-wise figures.",
            ],
            citation=[PAPER],
            memory_mb=0,
        )
