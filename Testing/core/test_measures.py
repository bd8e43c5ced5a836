"""A sample of the voxels tells skulls and ADC maps, on the real images at hand."""

import time

import numpy as np
import pytest

from medsegcore.imaging import Image, measure, read_image


def cases(shared_data, pattern):
    found = [p for p in sorted(shared_data.glob(pattern)) if p.name[:3] in ("t1.", "t2.", "fla")]
    if not found:
        pytest.skip(f"there is no {pattern}")
    return {p: measure(read_image(p)) for p in found}


def test_the_head_of_patient12_has_its_skull(shared_data):
    found = cases(shared_data, "ms/open_ms_native/*/*.nii.gz")
    assert len(found) == 3
    assert all(m.has_skull for m in found.values())


@pytest.mark.parametrize("folder", ["ms/open_ms", "ms/mslesseg", "glioma/brats_gli"])
def test_no_skull_stripped_brain_seems_to_have_one(shared_data, folder):
    found = cases(shared_data, f"{folder}/*/*.nii.gz")
    assert {str(p): m.dim for p, m in found.items() if m.has_skull} == {}


def test_the_sample_has_no_skull(ms_images):
    assert not any(measure(image).has_skull for image in ms_images.values())


@pytest.mark.parametrize("case", ["prostatex/ProstateX-0000", "prostatex/ProstateX-0001",
                                  "picai/10000_1000000", "picai/10021_1000021"])  # fmt: skip
def test_adc_maps_are_told_from_diffusion_and_t2(shared_data, case):
    folder = shared_data / "prostate" / case
    if not folder.is_dir():
        pytest.skip("the prostate data are not here")
    adc = read_image(folder / "adc.nii.gz")
    assert measure(adc).adc_unit == "1e-6 mm2/s"
    assert measure(adc.with_array(adc.array / 1e3)).adc_unit == "1e-3 mm2/s"
    assert measure(adc.with_array(adc.array / 1e6)).adc_unit == "mm2/s"
    assert measure(read_image(folder / "hbv.nii.gz")).adc_unit is None
    assert measure(read_image(folder / "t2w.nii.gz")).adc_unit is None


def test_holes_and_constants_between_the_samples_are_seen(ms_images):
    flair = ms_images["flair"]
    holed = flair.array.astype(np.float32)
    holed[61, 71, 61] = np.nan
    assert 0.999 < measure(flair.with_array(holed)).finite < 1
    speck = np.zeros(flair.shape, np.int16)
    assert measure(flair.with_array(speck)).constant
    speck[61, 71, 61] = 5
    assert not measure(flair.with_array(speck)).constant
    assert measure(flair.with_array(np.full(flair.shape, np.nan))).finite == 0


def test_a_volume_of_256_cubed_takes_less_than_a_fifth_of_a_second(ms_images):
    flair = ms_images["flair"].array.astype(np.float32)
    large = Image(np.resize(flair, (256, 256, 256)), np.eye(4))
    start = time.process_time()
    measure(large)
    assert time.process_time() - start < 0.2
