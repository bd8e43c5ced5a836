"""Images in physical space, against plain affine algebra and SciPy."""

import gzip
import resource

import numpy as np
import pytest
import SimpleITK as sitk
from scipy import ndimage

from medsegcore.errors import (
    ColorImageError,
    EmptyImageError,
    GeometryError,
    MultiVolumeError,
    OutputError,
    OverlapError,
    UnreadableImageError,
)
from medsegcore.imaging import (
    Grid,
    Image,
    check_image,
    check_overlap,
    fov_overlap,
    grid_with_spacing,
    list_dicom_series,
    list_volumes,
    patient_grid,
    read_dicom_series,
    read_image,
    reorient,
    resample,
    to_sitk,
    without_nans,
    write_image,
    writing_nifti,
)


def rotation(degrees, axis=2):
    a = np.radians(degrees)
    plane = [n for n in range(3) if n != axis]
    matrix = np.eye(4)
    matrix[np.ix_(plane, plane)] = [[np.cos(a), -np.sin(a)], [np.sin(a), np.cos(a)]]
    return matrix


@pytest.fixture
def oblique(ms_images):
    """A part of the real FLAIR on a grid that is tilted about two axes, 0.9 x 1.1 x 3 mm."""
    flair = ms_images["flair"]
    affine = rotation(20) @ rotation(-12, 0) @ np.diag([-0.9, 1.1, 3.0, 1.0])
    grid = Grid((24, 90, 80), affine)
    affine[:3, 3] += flair.grid.center - grid.center
    return resample(flair, grid)


def test_affine_maps_ijk_to_ras_millimetres():
    affine = np.array([[0, 0, 3, 5], [2, 0, 0, -7], [0, -1, 0, 9], [0, 0, 0, 1.0]])
    grid = Grid((4, 5, 6), affine)
    assert grid.spacing == (2, 1, 3)
    assert grid.orientation == "AIR"
    assert grid.voxel_volume_ml == pytest.approx(0.006)
    np.testing.assert_allclose(grid.to_ras([1, 2, 3]), [3 * 3 + 5, 2 * 1 - 7, -1 * 2 + 9])
    np.testing.assert_allclose(grid.to_ijk(grid.to_ras([1.5, 2, 3])), [1.5, 2, 3])
    assert grid.size_mm == (12, 5, 12)


@pytest.mark.parametrize("extension", ["nii.gz", "nii", "nrrd", "mha"])
@pytest.mark.parametrize("dtype", [np.float32, np.int16, np.uint8])
def test_every_format_keeps_values_and_an_oblique_geometry(oblique, tmp_path, extension, dtype):
    image = oblique.astype(dtype)
    path = tmp_path / f"a.{extension}"
    write_image(image, path)
    back = read_image(path)
    assert back.array.dtype == dtype
    assert np.array_equal(back.array, image.array)
    assert back.grid.same_as(image.grid, tolerance_mm=1e-2)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_itk_agrees_on_where_a_voxel_lies(oblique, tmp_path):
    write_image(oblique, tmp_path / "a.nrrd")
    x, y, z = sitk.ReadImage(str(tmp_path / "a.nrrd")).TransformIndexToPhysicalPoint((3, 40, 7))
    np.testing.assert_allclose(oblique.grid.to_ras([3, 40, 7]), [-x, -y, z], atol=1e-3)


@pytest.mark.parametrize("orientation", ["RAS", "LPS", "SAR", "PIL"])
def test_reorientation_moves_voxels_but_not_the_patient(oblique, orientation):
    turned = reorient(oblique, orientation)
    assert turned.grid.orientation == orientation
    random = np.random.default_rng(1)
    for ijk in random.integers(0, turned.shape[::-1], size=(50, 3)):
        i, j, k = np.rint(oblique.grid.to_ijk(turned.grid.to_ras(ijk))).astype(int)
        assert turned.array[ijk[2], ijk[1], ijk[0]] == oblique.array[k, j, i]


def test_linear_resampling_agrees_with_scipy(ms_images, oblique):
    flair = ms_images["flair"]
    k, j, i = np.indices(oblique.shape)
    ijk = flair.grid.to_ijk(oblique.grid.to_ras(np.stack([i, j, k], axis=-1)))
    expected = ndimage.map_coordinates(
        flair.array.astype(np.float32), ijk[..., ::-1].transpose(3, 0, 1, 2), order=1
    )
    inside = ((ijk >= 0) & (ijk <= np.array(flair.shape[::-1]) - 1)).all(axis=-1)
    measured = resample(flair, oblique.grid, antialias=False).array
    np.testing.assert_allclose(measured[inside], expected[inside], atol=0.05)


def test_nearest_resampling_invents_no_labels(ms_reference):
    coarser = grid_with_spacing(ms_reference.grid, (1.3, 1.3, 1.3))
    moved = resample(ms_reference.astype(np.uint8), coarser, "nearest")
    assert set(np.unique(moved.array)) == {0, 1}
    volume = ms_reference.array.sum() * ms_reference.grid.voxel_volume_ml
    assert moved.array.sum() * coarser.voxel_volume_ml == pytest.approx(volume, rel=0.05)
    assert resample(ms_reference, coarser, "nearest").array.dtype == bool


def test_bspline_resampling_is_closer_to_the_truth_than_linear(ms_images):
    flair = ms_images["flair"].astype(np.float32)
    shifted = Grid(flair.shape, flair.affine + 0.5 * np.eye(4, k=3) * [[1], [0], [0], [0]])
    errors = {}
    for method in ("linear", "bspline"):
        there = resample(flair, shifted, method)
        back = resample(there, flair.grid, method).array
        inner = (slice(10, -10),) * 3
        errors[method] = np.abs(back[inner] - flair.array[inner]).mean()
    assert errors["bspline"] < 0.5 * errors["linear"]


def test_downsampling_smooths_first():
    board = (np.indices((40, 40, 40)).sum(axis=0) % 2 * 100).astype(np.float32)
    image = Image(board, np.eye(4))
    coarse = grid_with_spacing(image.grid, (4, 4, 4))
    inner = (slice(2, -2),) * 3
    smooth = resample(image, coarse).array[inner]
    np.testing.assert_allclose(smooth, 50, atol=2)
    assert resample(image, coarse, "nearest").array[inner].std() == 0


def test_a_coinciding_lattice_is_copied_without_interpolation(ms_images):
    flair = reorient(ms_images["flair"], "PSL")
    grid = patient_grid(flair.grid, (1, 1, 1), "RAS")
    upright = resample(flair, grid)
    assert np.array_equal(upright.array, reorient(ms_images["flair"], "RAS").array)
    larger = Grid((grid.shape[0] + 4, *grid.shape[1:]), grid.affine)
    assert (resample(flair, larger, outside=-1).array[-4:] == -1).all()


def test_the_patient_grid_covers_a_tilted_field_of_view(oblique):
    grid = patient_grid(oblique.grid, (1, 1, 1), "RAS")
    assert grid.orientation == "RAS"
    ijk = grid.to_ijk(oblique.grid.corners())
    assert (ijk >= -0.501).all()
    assert (ijk <= np.array(grid.shape[::-1]) - 0.499).all()


def test_overlap_is_the_share_of_the_smaller_field_of_view():
    a = Grid((10, 10, 10), np.eye(4))
    moved = np.eye(4)
    moved[0, 3] = 7.5
    assert fov_overlap(a, Grid((10, 10, 10), moved)) == pytest.approx(0.25, abs=0.03)
    assert fov_overlap(a, Grid((5, 5, 5), np.eye(4))) == 1
    # A square turned by 45 degrees about its middle covers 2(sqrt 2 - 1) = 82.8 % of itself.
    turned = rotation(45)
    turned[:3, 3] = a.center - turned[:3, :3] @ [4.5, 4.5, 4.5]
    assert fov_overlap(a, Grid((10, 10, 10), turned)) == pytest.approx(0.828, abs=0.03)
    with pytest.raises(OverlapError, match=r"only 2\d% .* 50% is needed"):
        check_overlap(a, Grid((10, 10, 10), moved))


def test_three_oblique_grids_of_one_patient_overlap(shared_data):
    folder = shared_data / "ms" / "open_ms_native" / "patient12"
    flair, t1, t2 = (read_image(folder / f"{key}.nii.gz") for key in ("flair", "t1", "t2"))
    assert len({flair.shape, t1.shape, t2.shape}) > 1
    for other in (t1, t2):
        assert fov_overlap(flair.grid, other.grid) > 0.8
        moved = resample(other, flair.grid)
        assert moved.grid.same_as(flair.grid)
        assert np.corrcoef(moved.array.ravel(), flair.array.ravel())[0, 1] > 0.3


def test_missing_truncated_and_foreign_files_are_unreadable(ms_case_dir, tmp_path):
    whole = (ms_case_dir / "lesion.nii.gz").read_bytes()
    (tmp_path / "cut.nii.gz").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.nii.gz").write_text("no image")
    for name in ("cut.nii.gz", "text.nii.gz", "absent.nii.gz"):
        with pytest.raises(UnreadableImageError, match=name):
            read_image(tmp_path / name)


@pytest.mark.parametrize("extension", ["nii", "nrrd", "mha"])
def test_a_truncated_file_of_each_format_is_unreadable(ms_images, tmp_path, extension):
    path = tmp_path / f"a.{extension}"
    write_image(ms_images["flair"], path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    with pytest.raises(UnreadableImageError, match=r"a.*cannot be read|truncated"):
        read_image(path)


@pytest.mark.parametrize("cut", [1, 100, 352])
def test_a_nifti_file_that_lacks_its_last_bytes_is_unreadable(oblique, tmp_path, cut):
    path = tmp_path / "a.nii"
    write_image(oblique, path)
    whole = path.read_bytes()
    path.write_bytes(whole[:-cut])
    with pytest.raises(UnreadableImageError, match="truncated"):
        read_image(path)
    # A sound archive of a file that was cut before it was packed.
    packed = tmp_path / "b.nii.gz"
    packed.write_bytes(gzip.compress(whole[:-cut], compresslevel=1))
    with pytest.raises(UnreadableImageError, match="truncated"):
        read_image(packed)


@pytest.mark.parametrize("folder", ["spacing", "determinant", "orthonormal"])
def test_the_name_of_a_folder_does_not_change_what_is_wrong(tmp_path, folder):
    (tmp_path / folder).mkdir()
    (tmp_path / folder / f"{folder}.mha").write_text("no image")
    with pytest.raises(UnreadableImageError):
        read_image(tmp_path / folder / f"{folder}.mha")
    with pytest.raises(UnreadableImageError, match="no file"):
        list_volumes(tmp_path / folder / "absent.nii")


def test_a_complex_image_is_refused(oblique, tmp_path):
    values = sitk.Cast(to_sitk(oblique), sitk.sitkComplexFloat32)
    sitk.WriteImage(values, str(tmp_path / "a.nii.gz"))
    with pytest.raises(ColorImageError, match="complex"):
        read_image(tmp_path / "a.nii.gz")


def test_a_2d_image_is_one_slice(oblique, tmp_path):
    sitk.WriteImage(sitk.GetImageFromArray(oblique.array[5]), str(tmp_path / "a.nii.gz"))
    assert np.array_equal(read_image(tmp_path / "a.nii.gz").array, oblique.array[5:6])


def test_a_4d_file_names_its_volumes_and_gives_the_chosen_one(ms_images, tmp_path):
    volumes = [ms_images[key].array[:20] for key in ("t1", "flair")]
    sitk.WriteImage(
        sitk.JoinSeries([sitk.GetImageFromArray(v) for v in volumes]), str(tmp_path / "a.nii.gz")
    )
    with pytest.raises(MultiVolumeError, match=r"4-D and holds 2 volumes \(0 to 1\)"):
        read_image(tmp_path / "a.nii.gz")
    assert len(list_volumes(tmp_path / "a.nii.gz")) == 2
    assert np.array_equal(read_image(tmp_path / "a.nii.gz", volume=1).array, volumes[1])
    with pytest.raises(MultiVolumeError, match="no volume 2"):
        read_image(tmp_path / "a.nii.gz", volume=2)


def test_an_rgb_image_is_refused(tmp_path):
    rgb = sitk.GetImageFromArray(np.zeros((4, 5, 6, 3), np.uint8), isVector=True)
    sitk.WriteImage(rgb, str(tmp_path / "a.nrrd"))
    with pytest.raises(ColorImageError, match="3 values per voxel"):
        read_image(tmp_path / "a.nrrd")


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.zeros((3, 0, 3)), "no voxels"),
        (np.full((3, 3, 3), np.nan), "only NaN"),
        (np.full((3, 3, 3), 7.0), "every voxel is 7"),
    ],
)
def test_images_without_content_are_refused(array, words):
    with pytest.raises(EmptyImageError, match=words):
        check_image(Image(array, np.eye(4)))


@pytest.mark.parametrize(
    ("affine", "words"),
    [
        (np.diag([1.0, 1, 0, 1]), "determinant 0"),
        (np.array([[1, 0.5, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]]), "63.4 degrees"),
        (np.full((4, 4), np.nan), "not finite"),
    ],
)
def test_impossible_geometries_are_refused(affine, words):
    with pytest.raises(GeometryError, match=words):
        check_image(Image(np.arange(8.0).reshape(2, 2, 2), affine))


def test_a_file_with_a_sheared_geometry_is_a_geometry_error(ms_case_dir, tmp_path):
    content = bytearray(gzip.decompress((ms_case_dir / "lesion.nii.gz").read_bytes()))
    # The sform's first row (srow_x) stands at byte 280 of a NIfTI header; sform_code at 254.
    content[252:256] = np.array([0, 1], "<i2").tobytes()
    content[280:328] = np.array([[1, 0.6, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0]], "<f4").tobytes()
    (tmp_path / "a.nii").write_bytes(content)
    with pytest.raises(GeometryError):
        check_image(read_image(tmp_path / "a.nii"))


def test_holes_become_the_lowest_value():
    array = np.array([[[1.0, np.nan, -3.0, np.inf]]])
    assert without_nans(Image(array, np.eye(4))).array.tolist() == [[[1, -3, -3, -3]]]


def test_images_can_be_compared_and_kept_in_a_set(oblique):
    other = oblique.astype(np.float32)
    assert oblique != other
    assert len({oblique, other, oblique}) == 2


def test_a_sheared_grid_is_not_straightened_silently_by_nifti(oblique, tmp_path):
    sheared = oblique.affine.copy()
    sheared[:3, 1] += 0.3 * sheared[:3, 0]
    with pytest.raises(GeometryError, match="not orthogonal"):
        write_image(Image(oblique.array, sheared), tmp_path / "a.nii.gz")
    assert list(tmp_path.iterdir()) == []


def test_writing_fails_in_a_sentence_and_leaves_nothing(ms_images, tmp_path):
    with pytest.raises(OutputError, match="no folder"):
        write_image(ms_images["t1"], tmp_path / "absent" / "a.nii.gz")
    with pytest.raises(OutputError, match="extension"):
        write_image(ms_images["t1"], tmp_path / "a.jpg")
    (tmp_path / "a.nii.gz").mkdir()
    with pytest.raises(OutputError, match="cannot be written"):
        write_image(ms_images["t1"], tmp_path / "a.nii.gz")
    assert [p.name for p in tmp_path.iterdir()] == ["a.nii.gz"]


def write_dicom_series(image, folder, uid, description, skip=()):
    folder.mkdir(exist_ok=True)
    lps = np.diag([-1, -1, 1, 1]) @ image.affine
    spacing = image.spacing
    direction = lps[:3, :3] / spacing
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    for k in range(image.shape[0]):
        if k in skip:
            continue
        piece = sitk.GetImageFromArray(image.array[k].astype(np.int16))
        piece.SetSpacing(spacing[:2])
        origin = lps[:3, 3] + k * lps[:3, 2]
        tags = {
            "0008|0060": "MR", "0008|103e": description, "0020|000e": uid,
            "0008|0018": f"{uid}.{k + 1}", "0020|0013": str(k),
            "0020|0032": "\\".join(f"{v:.6f}" for v in origin),
            "0020|0037": "\\".join(f"{v:.8f}" for v in direction[:, :2].T.ravel()),
            "0018|0050": f"{spacing[2]}", "0020|000d": "1.2.3", "0010|0010": "DOE^JANE",
        }  # fmt: skip
        for tag, value in tags.items():
            piece.SetMetaData(tag, value)
        writer.SetFileName(str(folder / f"{uid[-1]}{k:03}.dcm"))
        writer.Execute(piece)


@pytest.mark.parametrize("dtype", ["float32", "int16", "uint8", "bool", "float16", "float64"])
def test_a_file_that_is_written_in_pieces_is_what_itk_writes(oblique, tmp_path, dtype):
    # Reversed and permuted views, as volumes that were turned are.
    image = reorient(oblique, "SLP").astype(dtype)
    image = image.with_array(image.array.transpose(2, 1, 0).copy().transpose(2, 1, 0))
    write_image(image, tmp_path / "whole.nii.gz")
    assert len(list(writing_nifti(image, tmp_path / "pieces.nii.gz"))) >= len(image.array)
    pieces, whole = ((tmp_path / f"{n}.nii.gz").read_bytes() for n in ("pieces", "whole"))
    assert gzip.decompress(pieces) == gzip.decompress(whole)
    assert (tmp_path / "pieces.nii.gz").stat().st_mode & 0o044
    # Neither flags, such as that of a file's name, nor a time.
    assert pieces[3:8] == bytes(5)


def test_a_file_that_is_given_up_or_finds_no_room_leaves_nothing(oblique, tmp_path):
    steps = writing_nifti(oblique, tmp_path / "a.nii.gz")
    next(steps)
    assert len(list(tmp_path.iterdir())) == 1
    steps.close()
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(OutputError, match="absent"):
        list(writing_nifti(oblique, tmp_path / "absent" / "a.nii.gz"))


@pytest.mark.parametrize("room", [0, 100, 351])
def test_no_room_for_the_header_is_told_and_nothing_is_asked_of_the_temporary_folder(
    oblique, tmp_path, monkeypatch, room
):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "absent"))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, before[1]))
    try:
        with pytest.raises(OutputError, match="cannot be written"):
            list(writing_nifti(oblique, tmp_path / "a.nii.gz"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list(tmp_path.iterdir()) == []
    list(writing_nifti(oblique, tmp_path / "a.nii.gz"))
    assert [p.name for p in tmp_path.iterdir()] == ["a.nii.gz"]


def test_a_dicom_series_is_read_with_its_oblique_geometry(oblique, tmp_path):
    image = oblique.with_array(np.rint(oblique.array).clip(0).astype(np.int16))
    write_dicom_series(image, tmp_path / "dicom", "1.2.826.1", "T2 FLAIR tra")
    (series,) = list_dicom_series(tmp_path / "dicom")
    assert (series.description, series.modality, len(series.files)) == ("T2 FLAIR tra", "MR", 24)
    back = read_image(tmp_path / "dicom")
    # DICOM orders slices so that i, j and k are right-handed; this grid is left-handed.
    assert back.grid.orientation != image.grid.orientation
    upright, expected = reorient(back), reorient(image)
    assert np.array_equal(upright.array, expected.array)
    assert upright.grid.same_as(expected.grid, tolerance_mm=0.01)
    assert "DOE" not in repr(series) + back.name


def test_a_series_with_gantry_tilt_is_refused(oblique, tmp_path):
    tilted = oblique.affine.copy()
    tilted[:3, 2] += 0.5 * tilted[:3, 1] / 1.1
    image = Image(np.rint(oblique.array).clip(0).astype(np.int16), tilted)
    write_dicom_series(image, tmp_path / "dicom", "1.2.826.1", "head")
    with pytest.raises(GeometryError, match=r"gantry tilt of 9\.5 degrees"):
        read_image(tmp_path / "dicom")


def test_a_localizer_of_several_planes_is_refused(oblique, tmp_path):
    image = oblique.with_array(np.rint(oblique.array).clip(0).astype(np.int16))
    turned = Image(image.array, rotation(90, 1) @ image.affine)
    write_dicom_series(image, tmp_path / "dicom", "1.2.826.1", "scout", skip=range(12, 24))
    for file in (tmp_path / "dicom").iterdir():
        file.rename(file.with_suffix(".first.dcm"))
    write_dicom_series(turned, tmp_path / "dicom", "1.2.826.1", "scout", skip=range(12))
    with pytest.raises(GeometryError, match="not parallel"):
        read_image(tmp_path / "dicom")


def test_a_folder_with_two_series_asks_which_and_a_gap_is_found(oblique, tmp_path):
    image = oblique.with_array(np.rint(oblique.array).clip(0).astype(np.int16))
    write_dicom_series(image, tmp_path / "dicom", "1.2.826.1", "T1")
    write_dicom_series(image, tmp_path / "dicom", "1.2.826.2", "T2", skip=(5,))
    with pytest.raises(MultiVolumeError, match=r"2 DICOM series: T1 \(24 files\); T2 \(23 files\)"):
        read_image(tmp_path / "dicom")
    assert read_dicom_series(tmp_path / "dicom", "1.2.826.1").shape == image.shape
    with pytest.raises(GeometryError, match=r"3.00 to 6.00 mm apart"):
        read_dicom_series(tmp_path / "dicom", "1.2.826.2")
    with pytest.raises(UnreadableImageError, match="no DICOM series"):
        read_image(tmp_path)
