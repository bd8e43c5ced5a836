"""Public data sets in the layout of their downloads, made of the real sample under other names."""

import json
import shutil

import numpy as np
import pytest
import SimpleITK as sitk

from medsegcore.errors import DatasetError, MissingInputError, OutputError
from medsegcore.imaging import Image, read_dicom_slices, read_image, reorient, to_sitk, write_image
from medsegcore.training.datasets import read_dataset
from medsegcore.training.datasets.adapters import ADAPTERS
from medsegcore.training.datasets.adapters.samples import in_hounsfield

NII = ".nii.gz"


class Download:
    """A folder that looks like a download, of the real images of one case."""

    def __init__(self, root, case):
        self.root, self.case = root, case

    def image(self, path, key="flair"):
        target = self.root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.name.endswith(NII):
            shutil.copy(self.case / f"{key}{NII}", target)
        else:
            sitk.WriteImage(to_sitk(read_image(self.case / f"{key}{NII}")), str(target))

    def mask(self, path, *values):
        """The lesion mask; with several values it is split along i into as many parts."""
        mask = read_image(self.case / f"lesion{NII}")
        array = np.zeros(mask.shape, np.int16)
        columns = np.array_split(np.flatnonzero(mask.array.any(axis=(0, 1))), len(values))
        for value, part in zip(values, columns, strict=True):
            array[..., part] = np.where(mask.array[..., part] > 0, value, 0)
        target = self.root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.name.endswith(NII):
            write_image(mask.with_array(array), target)
        else:
            sitk.WriteImage(to_sitk(mask.with_array(array)), str(target))

    def dicom(self, folder, image, other_series=False):
        """An image as DICOM slices, numbered from the top when `other_series`."""
        target = self.root / folder
        target.mkdir(parents=True)
        for k in range(image.shape[0]):
            one = to_sitk(Image(image.array[k : k + 1], image.grid.crop(
                (slice(k, k + 1), slice(0, image.shape[1]), slice(0, image.shape[2]))).affine,
            ))  # fmt: skip
            position = one.GetOrigin()
            one = sitk.Cast(one, sitk.sitkInt16)[:, :, 0]
            uid = f"1.2.826.0.1.3680043.2.1125.{k if other_series else 1}"
            for tag, value in (
                ("0008|0060", "MR"), ("0020|000e", uid), ("0020|0013", str(k)),
                ("0020|0032", "\\".join(f"{p:.4f}" for p in position)),
                ("0020|0037", "1\\0\\0\\0\\1\\0"), ("0018|0050", f"{image.spacing[2]:.4f}"),
            ):  # fmt: skip
                one.SetMetaData(tag, value)
            number = image.shape[0] - k if other_series else k
            writer = sitk.ImageFileWriter()
            writer.KeepOriginalImageUIDOn()
            writer.SetFileName(str(target / f"IMG-0004-{number:05}.dcm"))
            writer.Execute(one)


@pytest.fixture
def download(ms_cases, tmp_path):
    return Download(tmp_path / "download", ms_cases / "a_1")


def upright(image):
    """The same voxels on axes along L, P, S, as these DICOM files are written."""
    affine = np.diag([-image.spacing[0], -image.spacing[1], image.spacing[2], 1])
    return Image(image.array, affine)


# Adapter: images (path, key of the real image) and masks (path, values) to lay out, and then
# (case, patient, site, channels, label values) as they are to be found.
LAYOUTS = {
    "promise12": (
        [("Case00.mhd", "t2"), ("Case27.mhd", "t2")],
        [("Case00_segmentation.mhd", 1), ("Case27_segmentation.mhd", 1)],
        [("promise12_00", "promise12_00", "BIDMC", ["t2w"], [1]),
         ("promise12_27", "promise12_27", "UCL", ["t2w"], [1])],
    ),
    "six-site-prostate": (
        [("SAML/BMC/Case05.nii.gz", "t2"), ("SAML/HK/Case05.nii.gz", "t2")],
        [("SAML/BMC/Case05_Segmentation.nii.gz", 1, 2), ("SAML/HK/Case05_segmentation.nii.gz", 1)],
        [("BMC_05", "BMC_05", "BMC", ["t2w"], [1]), ("HK_05", "HK_05", "HK", ["t2w"], [1])],
    ),
    "prostatex-zones": (
        [("Files/prostate/Images/ProstateX-0080_t2_tse_tra_4.nii.gz", "t2")],
        [("Files/prostate/mask_pz/ProstateX-080_pz.nii.gz", 1, 0),
         ("Files/prostate/mask_tz/VOLUME-0080_tz.nii.gz", 0, 1)],
        [("ProstateX-0080", "ProstateX-0080", "prostatex", ["t2w"], [1, 2])],
    ),
    "prostatex-lesions": (
        [("Files/lesions/Images/T2/ProstateX-0001_t2_tse_tra_4.nii.gz", "t2"),
         ("Files/lesions/Images/ADC/ProstateX-0001_ep2d_diff_tra_8.nii.gz", "flair")],
        [("Files/lesions/Masks/T2/ProstateX-0001-Finding1-t2_tse_tra_ROI.nii.gz", 1, 0),
         ("Files/lesions/Masks/T2/ProstateX-0001-Finding2-t2_tse_tra_ROI.nii.gz", 0, 1)],
        [("ProstateX-0001", "ProstateX-0001", "prostatex", ["t2w", "adc"], [1])],
    ),
    "picai": (
        [(f"fold0/10000/10000_1000000_{key}.mha", "t2") for key in ("t2w", "adc", "hbv")],
        [("picai_labels/csPCa_lesion_delineations/human_expert/resampled/10000_1000000.nii.gz",
          2, 5)],
        [("10000_1000000", "10000", "PI-CAI", ["t2w", "adc", "dwi"], [1])],
    ),
    "mmwhs": (
        [("ct_train/ct_train_1001_image.nii.gz", "t1"), ("mr_train/mr_train_1001_image.nii", "t2")],
        [("ct_train/ct_train_1001_label.nii.gz", 205, 420, 421, 500),
         ("mr_train/mr_train_1001_label.nii", 550, 600, 820, 850)],
        [("ct_1001", "ct_1001", "ct", ["ct"], [1, 2, 3]),
         ("mr_1001", "mr_1001", "mr", ["mr"], [4, 5, 6, 7])],
    ),
    "btcv": (
        [("RawData/Training/img/img0001.nii.gz", "t1")],
        [("RawData/Training/label/label0001.nii.gz", 1, 6, 13)],
        [("btcv_0001", "btcv_0001", "btcv", ["ct"], [1, 6, 13])],
    ),
    "isbi2015-ms": (
        [(f"training/training01/preprocessed/training01_02_{name}_pp.nii", key)
         for name, key in (("mprage", "t1"), ("t2", "t2"), ("flair", "flair"), ("pd", "t2"))],
        [("training/training01/masks/training01_02_mask1.nii", 1),
         ("training/training01/masks/training01_02_mask2.nii", 1)],
        [("training01_02", "training01", "isbi2015", ["t1", "t2", "flair", "pd"], [1])],
    ),
    "msseg2016": (
        [(f"Training/Center_07/07001MOEL/Preprocessed_Data/{key.upper()}_preprocessed.nii.gz", key)
         for key in ("t1", "t2", "flair")],
        [("Training/Center_07/07001MOEL/Masks/Consensus.nii.gz", 1)],
        [("07_07001MOEL", "07_07001MOEL", "Center_07", ["t1", "t2", "flair"], [1])],
    ),
    "mslesseg": (
        [(f"train/P9/T3/P9_T3_{key.upper()}.nii.gz", key) for key in ("t1", "t2", "flair")]
        + [(f"test/P54/P54_{key.upper()}.nii.gz", key) for key in ("t1", "flair")],
        [("train/P9/T3/P9_T3_MASK.nii.gz", 1), ("test/P54/P54_MASK.nii.gz", 1)],
        [("P54", "P54", "mslesseg", ["t1", "flair"], [1]),
         ("P9_T3", "P9", "mslesseg", ["t1", "t2", "flair"], [1])],
    ),
    "open-ms": (
        [(f"cross_sectional/{step}/patient07/{name}.nii.gz", key)
         for step in ("raw", "coregistered_resampled")
         for name, key in (("T1W", "t1"), ("T2W", "t2"), ("FLAIR", "flair"))],
        [(f"cross_sectional/{step}/patient07/consensus_gt.nii.gz", 1)
         for step in ("raw", "coregistered_resampled")],
        [("patient07", "patient07", "open_ms", ["t1", "t2", "flair"], [1])],
    ),
    "brats": (
        [(f"BraTS-GLI-00005-001/BraTS-GLI-00005-001-{name}.nii.gz", key)
         for name, key in (("t1n", "t1"), ("t1c", "t1"), ("t2w", "t2"), ("t2f", "flair"))]
        + [(f"BraTS2021_00002/BraTS2021_00002_{name}.nii.gz", key)
           for name, key in (("t1", "t1"), ("t1ce", "t1"), ("t2", "t2"), ("flair", "flair"))],
        [("BraTS-GLI-00005-001/BraTS-GLI-00005-001-seg.nii.gz", 1, 2, 3),
         ("BraTS2021_00002/BraTS2021_00002_seg.nii.gz", 1, 2, 4)],
        [("BraTS-GLI-00005-001", "BraTS-GLI-00005", "brats", ["t1", "t1ce", "t2", "flair"],
          [1, 2, 3]),
         ("BraTS2021_00002", "BraTS2021_00002", "brats", ["t1", "t1ce", "t2", "flair"],
          [1, 2, 3])],
    ),
}  # fmt: skip


def summary(dataset):
    return [
        (c.id, c.patient, c.site, list(c.images),
         sorted({*np.unique(read_image(c.label).array).tolist()} - {0}))
        for c in dataset.cases
    ]  # fmt: skip


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_download_becomes_a_data_set_with_its_terms(download, tmp_path, name):
    images, masks, expected = LAYOUTS[name]
    for path, key in images:
        download.image(path, key)
    for path, *values in masks:
        download.mask(path, *values)
    adapter = ADAPTERS[name]
    dataset = adapter.convert(download.root, tmp_path / "out")
    assert summary(dataset) == expected
    assert (dataset.license, dataset.citation, dataset.url) == (
        adapter.source.license, adapter.source.citation, adapter.source.url,
    )  # fmt: skip
    assert dataset.labels == adapter.labels
    assert dataset.channels == adapter.channels
    first = dataset.cases[0]
    where = read_image(download.case / "lesion.nii.gz")
    for path in [*first.images.values(), first.label]:
        assert read_image(path).grid.same_as(where.grid)
    assert (read_image(first.label).array > 0).sum() == (where.array > 0).sum()


def test_picais_centres_come_from_its_table(download, tmp_path):
    images, masks, _ = LAYOUTS["picai"]
    for path, key in images:
        download.image(path, key)
    for path, *values in masks:
        download.mask(path, *values)
    table = download.root / "picai_labels" / "clinical_information" / "marksheet.csv"
    table.parent.mkdir()
    table.write_text("patient_id,study_id,center\n10000,1000000,ZGT\n")
    dataset = ADAPTERS["picai"].convert(download.root, tmp_path / "out")
    assert dataset.sites == ["ZGT"]


def test_chaos_masks_stay_with_their_slices_whatever_their_order(download, ms_case_dir, tmp_path):
    """Files are numbered from the top, and each claims a series of its own."""
    flair = upright(read_image(ms_case_dir / "flair.nii.gz"))
    mask = read_image(ms_case_dir / "lesion.nii.gz").array > 0
    flair, mask = flair.with_array(flair.array[60:72]), mask[60:72]
    grays = (63, 126, 189, 252)
    for folder, series in (("T2SPIR/DICOM_anon", "T2SPIR"), ("T1DUAL/DICOM_anon/InPhase", ""),
                           ("T1DUAL/DICOM_anon/OutPhase", "T1DUAL")):  # fmt: skip
        download.dicom(f"Train_Sets/MR/1/{folder}", flair, other_series=True)
        if not series:
            continue
        ground = download.root / "Train_Sets" / "MR" / "1" / series / "Ground"
        ground.mkdir()
        for k in range(12):
            gray = np.where(mask[k], grays[k % 4], 0).astype(np.uint8)
            sitk.WriteImage(sitk.GetImageFromArray(gray), str(ground / f"IMG-0004-{12 - k:05}.png"))
    dataset = ADAPTERS["chaos-mr"].convert(download.root, tmp_path / "out")
    assert [(c.id, c.patient, list(c.images)) for c in dataset.cases] == [
        ("mr_1_t1", "mr_1", ["t1_in", "t1_out"]), ("mr_1_t2", "mr_1", ["t2"]),
    ]  # fmt: skip
    expected = mask * (np.arange(12) % 4 + 1)[:, None, None]
    for case, key in zip(dataset.cases, ("t1_in", "t2"), strict=True):
        np.testing.assert_array_equal(read_image(case.label).array, expected)
        image = read_image(case.images[key])
        np.testing.assert_array_equal(image.array, flair.array.astype(np.int16))
        np.testing.assert_allclose(image.grid.spacing, flair.spacing, atol=1e-3)
    wrong = download.root / "Train_Sets" / "MR" / "1" / "T2SPIR" / "Ground" / "IMG-0004-00003.png"
    sitk.WriteImage(sitk.GetImageFromArray(np.full(mask.shape[1:], 90, np.uint8)), str(wrong))
    with pytest.raises(DatasetError, match="gray values beside"):
        ADAPTERS["chaos-mr"].convert(download.root, tmp_path / "again")
    wrong.unlink()
    with pytest.raises(DatasetError, match=r"12 slices but .* 11 masks"):
        ADAPTERS["chaos-mr"].convert(download.root, tmp_path / "again")
    assert not (tmp_path / "again").exists()


def test_chaos_ct_has_the_liver_alone(download, ms_case_dir, tmp_path):
    flair = upright(read_image(ms_case_dir / "flair.nii.gz"))
    mask = read_image(ms_case_dir / "lesion.nii.gz").array > 0
    flair, mask = flair.with_array(flair.array[60:64]), mask[60:64]
    download.dicom("Train_Sets/CT/2/DICOM_anon", flair)
    ground = download.root / "Train_Sets" / "CT" / "2" / "Ground"
    ground.mkdir()
    for k in range(4):
        gray = np.where(mask[k], 255, 0).astype(np.uint8)
        sitk.WriteImage(sitk.GetImageFromArray(gray), str(ground / f"liver_GT_{k:03}.png"))
    dataset = ADAPTERS["chaos-ct"].convert(download.root, tmp_path / "out")
    np.testing.assert_array_equal(read_image(dataset.cases[0].label).array, mask)
    assert dataset.channels["ct"].units == "HU"


@pytest.mark.parametrize("name", ["nci-isbi2013", "i2cvb"])
def test_prostate_sets_in_dicom_are_read(download, ms_case_dir, tmp_path, name):
    flair = upright(read_image(ms_case_dir / "flair.nii.gz"))
    mask = read_image(ms_case_dir / "lesion.nii.gz").array > 0
    flair, mask = flair.with_array(flair.array[60:72]), mask[60:72]
    label = flair.with_array(mask.astype(np.uint8))
    if name == "i2cvb":
        download.dicom("Siemens/Patient 383/T2W", flair)
        download.dicom("Siemens/Patient 383/GT/prostate", label)
        expected = ("Siemens_383", "Siemens_383", "Siemens")
    else:
        # Beside the series that the label belongs to there is a smaller one; the label's axes run
        # in another order, and it replaces an empty one.
        download.dicom("Prostate-3T/Prostate3T-01-0007/study/series", flair)
        small = flair.with_array(flair.array[:6])
        download.dicom("Prostate-3T/Prostate3T-01-0007/study/another", small)
        turned = to_sitk(reorient(label, "AIR"))
        sitk.WriteImage(turned * 0, str(download.root / "Prostate3T-01-0007.nrrd"))
        sitk.WriteImage(turned, str(download.root / "Prostate3T-01-0007_correctedLabels.nrrd"))
        expected = ("Prostate3T-01-0007", "Prostate3T-01-0007", "RUNMC")
    (case,) = ADAPTERS[name].convert(download.root, tmp_path / "out").cases
    assert (case.id, case.patient, case.site) == expected
    image = read_image(case.images["t2w"])
    np.testing.assert_array_equal(image.array, flair.array.astype(np.int16))
    np.testing.assert_array_equal(read_image(case.label).array, mask)
    assert image.grid.same_as(read_image(case.label).grid, tolerance_mm=0.1)


def test_slices_are_stacked_by_position_and_say_which_file_they_are(download, ms_case_dir):
    flair = upright(read_image(ms_case_dir / "flair.nii.gz"))
    flair = flair.with_array(flair.array[60:66])
    download.dicom("slices", flair, other_series=True)
    files = sorted((download.root / "slices").iterdir())
    image, order = read_dicom_slices(files)
    assert order == [5, 4, 3, 2, 1, 0]
    np.testing.assert_array_equal(image.array, flair.array.astype(np.int16))


def test_a_conversion_is_whole_or_not_there(download, tmp_path):
    adapter = ADAPTERS["btcv"]
    with pytest.raises(MissingInputError, match=r"no case of 'btcv' .* Expected: RawData"):
        adapter.convert(tmp_path, tmp_path / "out")
    download.image("img/img0001.nii.gz")
    download.mask("label/label0001.nii.gz", 1)
    download.mask("label/label0002.nii.gz", 1)
    with pytest.raises(DatasetError, match="'btcv_0002' has no 'ct'"):
        adapter.convert(download.root, tmp_path / "out")
    download.image("img/img0002.nii.gz")
    download.mask("label/label0002.nii.gz", 14)
    with pytest.raises(DatasetError, match="has the value 14, which is not known"):
        adapter.convert(download.root, tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == ["download"]
    download.mask("label/label0002.nii.gz", 13)
    seen = []
    adapter.convert(download.root, tmp_path / "out", lambda *args: seen.append(args))
    # What needs no change takes no space.
    linked = tmp_path / "out" / "imagesTr" / "btcv_0001_0000.nii.gz"
    assert linked.samefile(download.root / "img" / "img0001.nii.gz")
    assert seen == [("btcv_0001", 0, 2), ("btcv_0002", 1, 2), ("", 2, 2)]
    with pytest.raises(OutputError, match="exists already"):
        adapter.convert(download.root, tmp_path / "out")
    shutil.copytree(download.root, download.root / "copy")
    with pytest.raises(DatasetError, match="the case 'btcv_0001' twice"):
        adapter.convert(download.root, tmp_path / "more")


@pytest.mark.parametrize(
    ("name", "cases", "patients", "sites", "values"),
    [
        ("samples-ms", 6, 5, ["mslesseg", "open_ms"], {1}),
        ("samples-prostate-gland", 12, 12, ["picai", "prostatex", "ucla"], {1}),
        ("samples-prostate-zones", 4, 4, ["picai", "prostatex"], {1, 2}),
        ("samples-sarcoma", 27, 9, ["sts"], {1}),
        ("samples-glioma", 2, 2, ["brats"], {1, 2, 3}),
    ],
)
def test_the_development_data_become_data_sets(
    shared_data, tmp_path, name, cases, patients, sites, values
):
    dataset = ADAPTERS[name].convert(shared_data, tmp_path / "out")
    assert (len(dataset.cases), len(dataset.patients), dataset.sites) == (cases, patients, sites)
    assert dataset.problems == ()
    found = set()
    for case in dataset.cases:
        label = read_image(case.label)
        found |= {*np.unique(label.array).tolist()} - {0}
        first = next(iter(case.images.values()))
        assert label.grid.same_as(read_image(first).grid, tolerance_mm=0.01)
    assert found == values
    content = json.loads((tmp_path / "out" / "dataset.json").read_text(encoding="utf-8"))
    assert content["medseg"]["citation"] == ADAPTERS[name].source.citation
    assert read_dataset(tmp_path / "out") == dataset


def test_each_slice_of_an_eight_bit_ct_is_put_back_to_hu_by_its_own_fat_and_muscle(
    shared_data, tmp_path
):
    folder = shared_data / "sarcoma" / "sts"
    gray = read_image(folder / "STS_036" / "ct.nii.gz")
    ct = in_hounsfield(folder / "STS_036" / "ct.nii.gz")
    assert ct.array.dtype == np.int16
    assert ct.grid.same_as(gray.grid)
    # The scale differs from slice to slice, what it stands for does not.
    of_muscle = [[115, 55], [119, 55], [124, 55], [135, 55]]
    for k, (level, hounsfield) in zip((0, 12, 18, 30), of_muscle, strict=True):
        assert ct.array[k][gray.array[k] == level].mean() == pytest.approx(hounsfield, abs=12)
    tumour = read_image(folder / "STS_036" / "tumor_on_ct.nii.gz").array > 0
    for k in range(ct.shape[0]):
        peaks = []
        for low, high in ((-150, -40), (0, 110)):
            inside = ct.array[k][~tumour[k] & (ct.array[k] > low) & (ct.array[k] < high)]
            counts, edges = np.histogram(inside, bins=range(low, high + 1, 10))
            peaks.append(edges[counts.argmax()] + 5)
        # With one scale for all slices they would differ by 170 HU.
        assert peaks == pytest.approx([-100, 55], abs=40), k
    air = gray.with_array(np.zeros_like(gray.array))
    write_image(air, tmp_path / "air.nii.gz")
    with pytest.raises(DatasetError, match="peaks of fat and muscle"):
        in_hounsfield(tmp_path / "air.nii.gz")
