"""The training cases of a folder, and their patches."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from monai.data import set_track_meta
from monai.transforms import Compose
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from medsegcore.errors import MissingInputError
from medsegcore.imaging import read_image, resample
from medsegcore.inference.preprocess import prepare
from medsegcore.models import ModelDescription
from medsegcore.training.augmentation import share_random_state

# Licence and citation of the data sets that we know, by folder name; both allow commercial use.
SOURCES = {
    "open_ms": (
        "CC BY",
        "Lesjak Z, Pernus F, Likar B, Spiclin Z. A novel public MR image dataset of multiple "
        "sclerosis patients with lesion segmentations based on multi-rater consensus. "
        "Neuroinformatics 2017. doi 10.1007/s12021-017-9348-7",
    ),
    "mslesseg": (
        "CC BY 4.0",
        "Guarnera F, Rondinella A, Crispino E, et al. MSLesSeg. Sci Data 12, 920 (2025). "
        "doi 10.1038/s41597-025-05250-y",
    ),
}


@dataclass(frozen=True)
class Case:
    """One visit of one patient.

    Attributes:
        id: the folder's name.
        patient: the part of the id before the first "_": visits of one patient stay together.
        source: the name of the folder above, i.e. the data set.
        images: file by input key.
        label: the reference mask's file.
    """

    id: str
    patient: str
    source: str
    images: dict[str, Path]
    label: Path


def find_cases(root: str | Path, keys: Sequence[str], label: str = "lesion") -> list[Case]:
    """Every folder under `root` that holds `<label>.nii.gz` and the required `<key>.nii.gz`.

    Raises:
        MissingInputError: there is none.
    """
    cases = []
    for file in sorted(Path(root).rglob(f"{label}.nii.gz")):
        images = {key: file.with_name(f"{key}.nii.gz") for key in keys}
        images = {key: path for key, path in images.items() if path.is_file()}
        if images:
            folder = file.parent
            cases.append(
                Case(folder.name, folder.name.split("_")[0], folder.parent.name, images, file)
            )
    if not cases:
        raise MissingInputError(
            f"There is no case with a '{label}.nii.gz' under '{root}'.",
            f"Each case is a folder with {', '.join(f'{k}.nii.gz' for k in keys)} "
            f"and {label}.nii.gz.",
        )
    return cases


def load_case(case: Case, description: ModelDescription) -> dict[str, Tensor]:
    """A case as the network sees it: {key: [1, k, j, i] normalised, "label": [1, k, j, i] 0/1}.

    The images go through the same `prepare` as at inference.
    """
    images = {key: read_image(path) for key, path in case.images.items()}
    prepared = prepare(description, images)
    label = resample(read_image(case.label), prepared.grid, "nearest").array > 0
    data = {
        spec.key: torch.from_numpy(prepared.tensor[n])[None]
        for n, spec in enumerate(description.inputs)
    }
    return {**data, "label": torch.from_numpy(label.astype(np.float32))[None]}


class PatchDataset(Dataset):
    """Augmented patches; patch n is the same whenever and by whichever process it is made.

    Args:
        cases: as `load_case` gives them.
        patients: patient of each case; every patient is drawn equally often.
        transforms: from a case to a list of one patch.
        seed: of all random choices.
    """

    def __init__(
        self,
        cases: Sequence[Mapping[str, Tensor]],
        patients: Sequence[str],
        transforms: Compose,
        seed: int,
    ):
        self.cases = list(cases)
        self.transforms = transforms
        self.seed = seed
        shares = np.array([1 / patients.count(patient) for patient in patients])
        self.shares = shares / shares.sum()
        # Plain tensors: MONAI's metadata tracking costs time and its affine is not used here.
        set_track_meta(False)

    def __getitem__(self, n: int) -> dict[str, Tensor]:
        state = np.random.RandomState(np.random.MT19937(np.random.SeedSequence([self.seed, n])))
        case = state.choice(len(self.cases), p=self.shares)
        share_random_state(self.transforms, state)
        patch = self.transforms(dict(self.cases[case]))[0]
        return {name: patch[name].contiguous() for name in ("image", "label")}


class CountingSampler(Sampler[int]):
    """start, start + 1, ... without end: a resumed training goes on where it stopped."""

    def __init__(self, start: int):
        self.start = start

    def __iter__(self) -> Iterator[int]:
        n = self.start
        while True:
            yield n
            n += 1
