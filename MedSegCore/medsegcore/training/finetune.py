"""A model that learns corrected cases, as a new version of its folder, without forgetting.

The training is the one that the model's record names, at a tenth of its learning rate. Two guards
against forgetting: old cases are mixed into the batches; or, where there are none, the frozen old
model's softened probabilities on the new cases stay in the loss, as Li and Hoiem, "Learning without
Forgetting" (IEEE TPAMI 2017, arXiv 1606.09282, eq. 2 and 3) have it.
"""

import functools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
import torch.nn.functional as F
from monai.transforms import Compose
from torch import Tensor, nn

from medsegcore.errors import MissingInputError, SettingError
from medsegcore.evaluation.answers import CaseFiles, ModelAnswers, model_labels
from medsegcore.evaluation.evaluate import EvaluatedCase, evaluate
from medsegcore.inference.predictor import Predictor
from medsegcore.models import ModelDescription, ModelFolder, NetworkSpec, TrainingRecord
from medsegcore.training.cases import Split, split_cases
from medsegcore.training.datasets import Case, Dataset, read_dataset
from medsegcore.training.patches import MixedPatches, PatchDataset
from medsegcore.training.provenance import (
    data_use,
    joined_terms,
    kept_settings,
    known_to,
    parent_of,
)
from medsegcore.training.recipes import recipe_of
from medsegcore.training.recipes.base import Batch, DataFacts, Objective, Recipe, joined
from medsegcore.training.recipes.known import check_labels
from medsegcore.training.runfile import as_before
from medsegcore.training.running import answer
from medsegcore.training.setup import Plan, changed_on, load_cases, set_up, with_images
from medsegcore.training.trainer import (
    CACHE,
    Progress,
    TrainingRun,
    check_start,
    train_setup,
)

if TYPE_CHECKING:
    from typing_extensions import Self

PAPER = "Li Z, Hoiem D. Learning without Forgetting. IEEE TPAMI 2017. arXiv 1606.09282"


def forgetting_loss(new: Tensor, old: Tensor, temperature: float = 2.0) -> Tensor:
    """Mean over the voxels of KL(old || new) of the probabilities at a temperature.

    Eq. 2 and 3 of Li and Hoiem but for the entropy of the old answers, which has no gradient.
    new, old: logits [B, C, *space] -> scalar, 0 where the answers agree.
    """
    with torch.autocast(new.device.type, enabled=False):
        log_new = F.log_softmax(new.float() / temperature, dim=1)
        log_old = F.log_softmax(old.float() / temperature, dim=1)
        return (log_old.exp() * (log_old - log_new)).sum(dim=1).mean()


class Remembering(Objective):
    """An objective with the old model's answers beside it, as the term "forgetting".

    Args:
        objective: of the recipe.
        old: the network as it was; frozen here.
        modalities: of a network that takes one of several inputs, in its order; else none.
        weight: of the term, lambda_o.
        temperature: T of eq. 3.
    """

    def __init__(
        self,
        objective: Objective,
        old: nn.Module,
        modalities: Sequence[str],
        weight: float,
        temperature: float,
    ):
        super().__init__(objective.network)
        self.objective = objective
        self.old = old.requires_grad_(False).eval()
        self.modalities = list(modalities)
        self.weight, self.temperature = weight, temperature

    def train(self, mode: bool = True) -> "Remembering":
        super().train(mode)
        self.old.eval()
        return self

    def forward(self, batch: Batch) -> tuple[Tensor | dict[str, Tensor], dict[str, Tensor]]:
        logits, terms = self.objective(batch)
        images, _ = joined(batch, self.modalities)
        with torch.no_grad():
            old = answer(self.old, images, len(self.modalities) or 1)
        new = (
            torch.cat([logits[key] for key in self.modalities])
            if isinstance(logits, dict)
            else logits
        )
        kept = forgetting_loss(new, old, self.temperature)
        return logits, {**terms, "total": terms["total"] + self.weight * kept, "forgetting": kept}


@dataclass(frozen=True)
class FineTuningRecipe(Recipe):
    """The recipe of a trained model, which goes on from its weights.

    Attributes:
        model: the model folder.
        old_cases: data set of cases to mix in; "" for none.
        label: name of the masks of a folder of cases.
        old_share: of the batches' items, 0..1, that are old cases.
        rate: share of the recipe's learning rate.
        guard: weight of the old model's answers, lambda_o, where no old cases are mixed in. The
            paper's is 1, for one answer per image; the mean over the voxels of an image, most of
            which are background, needs more to be felt.
        temperature: of these answers; the paper's.
    """

    name: ClassVar[str] = "fine_tuning"
    resizable: ClassVar[bool] = False
    model: str = ""
    old_cases: str = ""
    label: str = "lesion"
    old_share: float = 0.5
    rate: float = 0.1
    guard: float = 10.0
    temperature: float = 2.0

    def __post_init__(self) -> None:
        if not 0 < self.old_share < 1:
            raise SettingError(f"The share of old cases is {self.old_share}.", "Give 0.1 to 0.9.")
        if min(self.rate, self.temperature) <= 0 or self.guard < 0:
            raise SettingError(
                f"rate is {self.rate}, guard {self.guard}, temperature {self.temperature}.",
                "Give a guard of 0 or more, and the others more than 0.",
            )

    @functools.cached_property
    def folder(self) -> ModelFolder:
        """The model as it was."""
        return ModelFolder.read(self.model)

    @functools.cached_property
    def base(self) -> Recipe:
        """What the model was trained with."""
        record = self.folder.description.training
        return recipe_of(record.recipe, record.settings)

    @functools.cached_property
    def old(self) -> tuple[Dataset | None, Split]:
        """The old data set, and which of its cases are mixed in and which the model never saw.

        Raises:
            MissingInputError: it has no case with a reference.
        """
        if not self.old_cases:
            return None, Split([], [], [])
        data = read_dataset(self.old_cases, self.label, self.keys)
        check_labels(self.folder.description, data)
        uses = self.folder.description.data
        kept = {(use.name, p) for use in uses if use.split != "training" for p in use.patients}
        cases = [case for case in (*data.cases, *data.test) if case.label is not None]
        if not cases:
            raise MissingInputError(f"No old case in '{self.old_cases}' has a reference mask.")
        test = [case for case in cases if (case.site, case.patient) in kept or case in data.test]
        return data, Split([case for case in cases if case not in test], [], test)

    @property
    def keys(self) -> list[str]:
        return [spec.key for spec in self.folder.description.inputs]

    def configured(self, data: Dataset, facts: DataFacts) -> tuple["Self", list[str]]:
        old = self.folder.description
        mixed = self.old[1].training
        guard = 0.0 if mixed else self.guard
        if mixed:
            how = f"{len(mixed)} old cases are {self.old_share:.0%} of what is trained on"
        elif guard:
            how = f"the old answers stay in the loss with the weight {guard:g}"
        else:
            how = "nothing is done against forgetting"
        filled = replace(
            self, patch=self.base.patch, batch_size=self.base.batch_size,
            gradient_clip=self.base.gradient_clip, ema_decay=self.base.ema_decay, guard=guard,
        )  # fmt: skip
        return filled, [f"Continued from '{old.id}' {old.version}; {how}."]

    def description(self, data: Dataset, record: TrainingRecord) -> ModelDescription:
        old = self.folder.description
        check_labels(old, data)
        update = {
            "version": next_version(old.version), "training": record, "data": [], "metrics": [],
            "timings": [],
        }  # fmt: skip
        return old.model_copy(update=update)

    def network(self, description: ModelDescription) -> nn.Module:
        return self.folder.load_network().train()

    def objective(self, network: nn.Module, facts: DataFacts) -> Objective:
        own = self.base.objective(network, facts)
        if not self.guard:
            return own
        old = self.folder.load_network()
        modalities = self.keys if self.folder.description.one_of else []
        return Remembering(own, old, modalities, self.guard, self.temperature)

    @property
    def beside(self) -> list[NetworkSpec]:
        return [self.folder.description.network] if self.guard else []

    def transforms(self, description: ModelDescription) -> Compose:
        return self.base.transforms(description)

    def optimizer(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        return self.base.optimizer(parameters)

    def learning_rate_at(self, share_done: float, step: int) -> float:
        return self.rate * self.base.learning_rate_at(share_done, step)

    def load(self, case: Case, description: ModelDescription) -> dict[str, Tensor]:
        return self.base.load(case, description)

    def modality(self, case: Case) -> str:
        return self.base.modality(case)

    def finished(self, description: ModelDescription) -> ModelDescription:
        """With the old model as parent, the data of both and no more rights than both give.

        The record names the model's own recipe, so that the new version can be fine-tuned again.
        """
        old = self.folder.description
        data, split = self.old
        mixed = data_use(data, split._replace(test=[])) if data is not None else []
        record = description.training
        tuned: dict[str, Any] = {"rate": self.rate}
        if mixed:
            tuned["old_share"] = self.old_share
        elif self.guard:
            tuned |= {"guard": self.guard, "temperature": self.temperature}
        record_update = {
            "recipe": self.base.name, "parents": [parent_of(old, "start")],
            "settings": {**kept_settings(old.training), "fine_tuning": tuned,
                         "chosen": record.settings["chosen"]},
        }  # fmt: skip
        uses = [*old.data]
        uses += [use for use in [*mixed, *description.data] if use not in uses]
        terms = [old.weights, description.weights]
        if data is not None and mixed:
            own = {"license": data.license, "commercial_use": data.commercial_use}
            terms.append(old.weights.model_copy(update=own))
        first, *rest = description.limits
        guarded = [PAPER] if self.guard else []
        update = {
            "training": record.model_copy(update=record_update),
            "data": uses,
            "weights": description.weights.model_copy(update=joined_terms(terms)),
            "limits": [f"Since version {old.version}: {first}", *rest],
            "citation": list(dict.fromkeys([*description.citation, *guarded])),
        }
        return description.model_copy(update=update)


def next_version(version: str) -> str:
    """ "1.2.3" to "1.3.0"."""
    major, minor, _ = version.split(".")
    return f"{major}.{int(minor) + 1}.0"


def fine_tune(
    recipe: FineTuningRecipe,
    cases: str | Path | Dataset,
    out: str | Path,
    plan: Plan,
    progress: Progress | None = None,
) -> TrainingRun | None:
    """Go on from a model on corrected cases; write a new version of its folder.

    Args:
        cases: the corrected ones, as `train` takes a data set.
        out, progress, and what is returned: as for `train`. The old folder stays as it is.

    Raises:
        SettingError: other labels than the model's, a test patient that the model was trained on,
            or a modality without a case; and see `train`.
    """
    out = Path(out)
    plan.check()
    check_start(out, plan.resume)
    if plan.resume:
        as_before(out, recipe, plan)
    cases = read_cases(recipe, cases, plan)
    setup = set_up(recipe, cases, plan, out / CACHE)
    mixed = recipe.old[1].training
    if mixed:
        patches = PatchDataset(
            load_cases(setup.recipe, mixed, setup.description, out / CACHE),
            [case.patient for case in mixed],
            setup.recipe.transforms(setup.description),
            plan.seed,
            [setup.recipe.modality(case) for case in mixed],
            changed_on(setup.device),
        )
        assert isinstance(setup.patches, PatchDataset)
        both = MixedPatches(setup.patches, patches, recipe.old_share, plan.seed)
        setup = replace(setup, patches=both)
    return train_setup(recipe, setup, out, plan, progress)


def read_cases(recipe: FineTuningRecipe, cases: str | Path | Dataset, plan: Plan) -> Dataset:
    """The corrected cases, once it is sure that the model can learn from them.

    Raises:
        SettingError: see `fine_tune`.
    """
    if not isinstance(cases, Dataset):
        cases = read_dataset(cases, plan.label, recipe.keys)
    _check_cases(recipe, split_cases(cases, plan.test, plan.validation))
    return cases


def _check_cases(recipe: FineTuningRecipe, split: Split) -> None:
    description = recipe.folder.description
    trained = {
        (use.name, patient)
        for use in known_to(description) if use.split == "training" for patient in use.patients
    }  # fmt: skip
    for case in split.test:
        if (case.site, case.patient) in trained:
            raise SettingError(
                f"The model, or one that it comes from, was trained on the test patient "
                f"'{case.patient}'.",
                "Hold out a patient that it has never seen.",
            )
    split = with_images(split, description)[0]
    for cases in filter(None, (split.training, recipe.old[1].training)):
        lacking = {*recipe.keys} - {recipe.modality(case) for case in cases}
        if description.one_of and lacking:
            raise SettingError(
                f"There is no case to train on with '{min(lacking)}'.",
                f"The model needs cases of each of {', '.join(recipe.keys)}.",
            )


def compare_versions(
    old: ModelFolder,
    new: ModelFolder,
    cases: Sequence[Case],
    device: str = "auto",
    progress: Callable[[str, int, int], None] | None = None,
) -> dict[str, list[EvaluatedCase]]:
    """Both versions measured on the same cases, with pictures, by "ID VERSION"."""
    labels = model_labels(old.description)
    methods = []
    for folder in (old, new):
        method = ModelAnswers(Predictor(folder, device), list(labels))
        method.name = f"{folder.description.id} {folder.description.version}"
        methods.append(method)
    files = [CaseFiles(c.id, c.images, c.label) for c in cases if c.label is not None]
    return evaluate(methods, files, labels, pictures=True, progress=progress)
