"""The sheet shows the right places, and is a file as a whole or none."""

import numpy as np
import pytest
import vtk
from vtk.util.numpy_support import vtk_to_numpy

from medsegcore.errors import MissingInputError, OutputError, SettingError
from medsegcore.imaging import Image, reorient
from medsegcore.inference import SpatialAttention
from SlicerMedSegLib import ExplainSheet
from SlicerMedSegLib.Colors import overlayColor
from SlicerMedSegLib.Drawing import textPicture
from SlicerMedSegLib.ExplainSheet import GAP, HEADER, PANEL, explainSheet
from SlicerMedSegLib.LesionTable import LesionTable
from SlicerMedSegLib.ResultToScene import addResultToScene
from SlicerMedSegLib.RunSegments import RunSegments
from SlicerMedSegLib.SceneConversion import volumeNodeFromImage


@pytest.fixture
def nodes(core, flair, rater_probability, ms_images, make_result):
    level = np.clip(ms_images["flair"].array / 1200, 0, 1).astype(np.float32)
    attention = [SpatialAttention("flair", "Brightness of FLAIR", level, 1200.0)]
    result = make_result({"MS lesion": rater_probability}, ms_images, 0.02, attention)
    return addResultToScene(result, core.scene, flair, "MS lesions")


@pytest.fixture
def table(core, nodes, flair):
    return LesionTable(RunSegments(core.scene, "MS lesions"), {"flair": flair})


def read(path):
    reader = vtk.vtkPNGReader()
    reader.SetFileName(str(path))
    reader.Update()
    image = reader.GetOutput()
    width, height, _depth = image.GetDimensions()
    return vtk_to_numpy(image.GetPointData().GetScalars()).reshape(height, width, 3)[::-1]


def panel(picture, row, column):
    y, x = HEADER + row * ((picture.shape[0] - HEADER - 74) // 3), GAP + column * (PANEL + GAP)
    return picture[y : y + PANEL, x : x + PANEL].astype(int)


def orange(picture):
    return (picture[..., 0] - picture[..., 2] > 80) & (picture[..., 0] > 120)


def test_the_sheet_shows_three_lesions_in_six_panels(table, nodes, flair, tmp_path):
    path = explainSheet(table, flair, tmp_path / "sheet.png", nodes.attention["flair"])
    picture = read(path)
    assert [p.name for p in tmp_path.iterdir()] == ["sheet.png"]
    for row in range(3):
        for column in range(6):
            assert panel(picture, row, column).mean() > 8
        for column in range(3):
            outlined = orange(panel(picture, row, column))
            assert 3 < outlined.sum() < 0.2 * outlined.size
    # Larger lesions have longer outlines.
    lengths = [orange(panel(picture, row, 0)).sum() for row in range(3)]
    assert lengths[0] > lengths[2]


def test_one_voxel_that_is_no_number_spoils_no_picture(core, table, flair, ms_images, tmp_path):
    array = ms_images["flair"].array.astype(np.float32)
    array[0, 0, 0] = np.nan
    spoilt = volumeNodeFromImage(Image(array, ms_images["flair"].affine), "N", core.scene)
    good = read(explainSheet(table, flair, tmp_path / "a.png"))
    assert np.array_equal(read(explainSheet(table, spoilt, tmp_path / "b.png")), good)


def test_right_is_left_and_anterior_is_up(core, nodes, table, ms_images, flair, tmp_path):
    image = reorient(ms_images["flair"], "RAS")
    k, j, i = np.indices(image.shape)
    sides = {"right": i > 69, "front": j > 78, "top": k > 63}
    expected = {
        # Bright half of the axial, coronal and sagittal panel.
        "right": ("left", "left", None),
        "front": ("top", None, "left"),
        "top": (None, "top", "top"),
    }
    halves = {
        "left": (np.s_[:, 30:100], np.s_[:, 150:220]), "top": (np.s_[30:100], np.s_[150:220]),
    }  # fmt: skip
    clear = volumeNodeFromImage(Image(0.0 * i, image.affine), "clear", core.scene)
    plain = read(explainSheet(table, flair, tmp_path / "s.png", clear, most=3))
    for name, mask in sides.items():
        node = volumeNodeFromImage(Image(mask.astype(np.float32), image.affine), name, core.scene)
        colored = read(explainSheet(table, flair, tmp_path / "s.png", node, most=3))
        for column, half in enumerate(expected[name]):
            if half is not None:
                changed = np.abs(panel(colored, 0, column + 3) - panel(plain, 0, column + 3)) > 20
                inside, outside = (changed[part].any(axis=-1).mean() for part in halves[half])
                assert inside > 0.5, (name, column)
                assert outside < 0.05, (name, column)


def test_without_an_overlay_the_probability_is_shown(table, flair, tmp_path):
    picture = read(explainSheet(table, flair, tmp_path / "sheet.png"))
    gray = panel(picture, 0, 3)
    colored = (gray.max(axis=-1) - gray.min(axis=-1)) > 40
    assert 50 < colored.sum() < 0.4 * colored.size


@pytest.mark.parametrize(("unit", "highest", "says"), [
    ("share", 1.0, "share of the highest value; clear below 0.05"),
    ("standard deviation", 0.5, "standard deviation of the probability; clear below 0.025"),
    ("bit", 1.0, "entropy in bit; clear below 0.05"),
])  # fmt: skip
def test_the_sheet_says_what_its_colors_mean(
    core, nodes, table, flair, ms_images, make_result, rater_probability, tmp_path, monkeypatch,
    unit, highest, says,
):  # fmt: skip
    """The same colors for a map that is half as high as it can be, whatever its unit."""
    half = np.full(ms_images["flair"].shape, highest / 2, np.float32)
    maps = [SpatialAttention("map", "Map", half, 1.0, unit)]
    result = make_result({"MS lesion": rater_probability}, ms_images, attention=maps)
    overlay = addResultToScene(result, core.scene, flair, "other").attention["map"]
    said = []
    draw = ExplainSheet.drawText
    monkeypatch.setattr(
        ExplainSheet, "drawText", lambda *a, **k: said.append(a[3]) or draw(*a, **k)
    )
    picture = read(explainSheet(table, flair, tmp_path / "sheet.png", overlay))
    assert says in said
    assert [f"{highest:g}", f"{highest / 2:g}"] == [said[said.index(says) - n] for n in (1, 2)]
    # Air is black below it.
    middle = 255 * 0.75 * np.array(overlayColor(0.5))
    assert (np.abs(panel(picture, 0, 3) - middle) < 4).all(axis=-1).mean() > 0.1


def test_the_chosen_lesions_are_shown(table, flair, tmp_path):
    one = read(explainSheet(table, flair, tmp_path / "a.png", rows=table.rows()[4:5]))
    three = read(explainSheet(table, flair, tmp_path / "b.png"))
    assert one.shape[0] < three.shape[0]
    table.setKept(table.rows(), False)
    with pytest.raises(MissingInputError, match="no lesion to explain"):
        explainSheet(table, flair, tmp_path / "c.png")


def test_a_failed_sheet_leaves_no_file(table, flair, tmp_path):
    with pytest.raises(SettingError, match="end with"):
        explainSheet(table, flair, tmp_path / "sheet.jpg")
    with pytest.raises(OutputError):
        explainSheet(table, flair, tmp_path / "absent" / "sheet.png")
    assert list(tmp_path.iterdir()) == []


def test_text_is_drawn_with_umlauts_and_as_wide_as_it_is_long():
    short, long = textPicture("ml", 14), textPicture("Läsion, 3.2 ml", 14)
    assert long.shape[1] > 3 * short.shape[1]
    assert 0.05 < long.mean() < 0.6
