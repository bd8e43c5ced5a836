"""What several tests of the package share."""

import numpy as np
import pytest
import torch

from medsegcore.imaging import Image, read_image, write_image


@pytest.fixture(scope="module")
def one_thread():
    """Small networks do not gain from threads, which a busy machine makes slow."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


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
