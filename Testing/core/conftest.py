"""What several tests of the package share."""

import json

import numpy as np
import pytest
import torch

from medsegcore.imaging import Image, read_image, write_image
from medsegcore.training import crossvalidation, report


@pytest.fixture(scope="module")
def one_thread():
    """Small networks do not gain from threads, which a busy machine makes slow."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def no_cost(monkeypatch):
    """A trained model is not run in a process of its own, for tests of something else."""
    known = {"memory_mb": 1, "timings": []}
    for module in (report, crossvalidation):
        monkeypatch.setattr(module, "cost", lambda *arguments: dict(known))


@pytest.fixture(scope="session")
def ms_cases(ms_case_dir, tmp_path_factory):
    """Three cases of two patients, cut from the real sample; the last has no T2."""
    root = tmp_path_factory.mktemp("data") / "open_ms"
    cuts = {"a_1": slice(20, 70), "a_2": slice(30, 80), "b": slice(50, 100)}
    for name, cut in cuts.items():
        (root / name).mkdir(parents=True)
        for key in ("t1", "t2", "flair", "lesion"):
            if (name, key) == ("b", "t2"):
                continue
            image = read_image(ms_case_dir / f"{key}.nii.gz")
            box = (cut, slice(40, 120), slice(30, 100))
            write_image(
                Image(image.array[box], image.grid.crop(box).affine), root / name / f"{key}.nii.gz"
            )
    return root


@pytest.fixture(scope="session")
def prostate_slices(shared_data):
    """Four T2W slices [4, 1, 78, 97] of a real patient, and the manual masks of the gland."""
    folder = shared_data / "prostate" / "ucla" / "0001"
    if not (folder / "t2w.nii.gz").is_file():
        pytest.skip("the prostate data are not here")
    chosen = [15, 21, 27, 33]
    t2w = read_image(folder / "t2w.nii.gz").array[chosen].astype(np.float32)
    mask = read_image(folder / "prostate.nii.gz").array[chosen] > 0
    t2w = (t2w - t2w.mean()) / t2w.std()
    return torch.from_numpy(t2w)[:, None], torch.from_numpy(mask.astype(np.int64))[:, None]


@pytest.fixture(scope="session")
def zones_set(shared_data, tmp_path_factory):
    """Makes a data set in nnU-Net's raw form: T2W and both zones, 80 mm of three slices a patient.

    Called with its name and the patients' folders below `prostate`.
    """

    def make(name, *patients):
        root = tmp_path_factory.mktemp("zones") / name
        (root / "imagesTr").mkdir(parents=True)
        (root / "labelsTr").mkdir()
        for patient in patients:
            source = shared_data / "prostate" / patient
            if not source.is_dir():
                pytest.skip("the prostate data are not here")
            zones = read_image(source / "zones.nii.gz")
            k = int((zones.array > 0).sum(axis=(1, 2)).argmax())
            middle = np.argwhere(zones.array[k] > 0).mean(axis=0).round().astype(int)
            size = round(40 / zones.grid.spacing[0])
            j, i = (slice(max(m - size, 0), m + size) for m in middle)
            box = (slice(k - 1, k + 2), j, i)
            for kind, target in (
                ("t2w", root / "imagesTr" / f"{source.name}_0000.nii.gz"),
                ("zones", root / "labelsTr" / f"{source.name}.nii.gz"),
            ):
                image = read_image(source / f"{kind}.nii.gz")
                cut = np.ascontiguousarray(image.array[box])
                write_image(Image(cut, image.grid.crop(box).affine), target)
        content = {
            "channel_names": {"0": "T2W"},
            "labels": {"background": 0, "peripheral zone": 1, "transition zone": 2},
            "numTraining": len(patients), "file_ending": ".nii.gz", "name": name,
            "medseg": {"license": "CC BY 4.0", "commercial_use": True},
        }  # fmt: skip
        (root / "dataset.json").write_text(json.dumps(content))
        return root

    return make
