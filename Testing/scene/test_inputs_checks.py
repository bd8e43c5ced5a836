"""Before a run the user reads what the chosen volumes are, and what is wrong with them."""

import time

import numpy as np
import pytest
import slicer
import vtk

from medsegcore.imaging import Image, Region, grid_with_spacing, read_image, resample
from medsegcore.models import InputSpec, Normalisation
from SlicerMedSegLib import InputChecks as module
from SlicerMedSegLib.InputChecks import InputChecks
from SlicerMedSegLib.SceneConversion import fillVolumeNode, volumeNodeFromImage


@pytest.fixture(scope="module")
def ms(shipped_model):
    return shipped_model.description


@pytest.fixture
def nodes(core, ms_images):
    return {key: volumeNodeFromImage(i, key.upper(), core.scene) for key, i in ms_images.items()}


@pytest.fixture
def checks():
    return InputChecks()


def bad(findings):
    """{(input, code): level} of what is not fine."""
    return {(f.key, f.code): f.level for f in findings if f.level != "ok"}


def text(findings, key, code):
    (found,) = [f.text for f in findings if (f.key, f.code) == (key, code)]
    return found


def test_the_sample_case_is_fine_and_says_so(ms, nodes, checks):
    findings = checks.check(ms, nodes)
    assert bad(findings) == {}
    assert text(findings, "t1", "overlap") == "T1-weighted MR: same grid as the reference."
    assert checks.canRun(findings)


def test_what_is_missing_stops_or_is_explained(ms, nodes, checks):
    nodes["t2"] = None
    findings = checks.check(ms, nodes)
    assert bad(findings) == {("t2", "missing"): "warning"}
    assert "zeros in its place" in text(findings, "t2", "missing")
    assert checks.canRun(findings)
    del nodes["t1"]
    assert bad(checks.check(ms, nodes))["t1", "missing"] == "error"
    refusing = ms.model_copy(update={"missing_input": "refuse"})
    assert bad(checks.check(refusing, nodes))["t2", "missing"] == "error"
    assert not checks.canRun(checks.check(ms, {}))


def test_a_model_that_takes_one_image_wants_exactly_one(core, ct_or_mr_model, abdomen, checks):
    d = ct_or_mr_model.description
    nodes = {key: volumeNodeFromImage(image, key, core.scene) for key, image in abdomen.items()}
    for key, node in nodes.items():
        assert checks.canRun(checks.check(d, {key: node}))
    for given in (nodes, {}):
        findings = checks.check(d, given)
        assert bad(findings)["", "one_of"] == "error"
    assert (
        text(findings, "", "one_of") == "The model needs one image: choose a volume for CT or MR."
    )


def test_one_volume_for_two_inputs_stops(ms, nodes, checks):
    nodes["t2"] = nodes["t1"]
    findings = checks.check(ms, nodes)
    assert bad(findings) == {("t2", "twice"): "error"}
    assert "'T1' is chosen for T1-weighted MR and for T2-weighted MR" in text(
        findings, "t2", "twice"
    )


def test_overlap_is_given_in_percent(ms, nodes, ms_images, checks):
    image = ms_images["t2"]
    for share, level in ((0.3, "error"), (0.7, "warning")):
        affine = image.affine.copy()
        affine[2, 3] += (1 - share) * image.shape[0]
        fillVolumeNode(nodes["t2"], Image(image.array, affine))
        findings = checks.check(ms, nodes)
        assert bad(findings) == {("t2", "overlap"): level}
        percent = int(text(findings, "t2", "overlap").split("%")[0].split()[-1])
        assert percent == pytest.approx(100 * share, abs=3)


def test_transforms_count_and_are_named(core, ms, nodes, checks):
    transform = core.scene.AddNewNodeByClass("vtkMRMLLinearTransformNode", "moved")
    matrix = np.eye(4)
    matrix[0, 3] = 400
    transform.SetMatrixTransformToParent(slicer.util.vtkMatrixFromArray(matrix))
    nodes["t1"].SetAndObserveTransformNodeID(transform.GetID())
    findings = checks.check(ms, nodes)
    assert bad(findings) == {("t1", "overlap"): "error"}
    assert "transform 'moved'" in text(findings, "t1", "transform")
    for key in ("t2", "flair"):
        nodes[key].SetAndObserveTransformNodeID(transform.GetID())
    assert bad(checks.check(ms, nodes)) == {}
    matrix[0, 1] = 0.5
    transform.SetMatrixTransformToParent(slicer.util.vtkMatrixFromArray(matrix))
    assert bad(checks.check(ms, nodes))["t1", "geometry"] == "error"


def test_a_bending_transform_is_said_to_be_resampled(core, ms, nodes, checks):
    warp = core.scene.AddNewNodeByClass("vtkMRMLGridTransformNode", "warp")
    grid = slicer.vtkOrientedGridTransform()
    field = vtk.vtkImageData()
    field.SetDimensions(4, 4, 4)
    field.AllocateScalars(vtk.VTK_DOUBLE, 3)
    grid.SetDisplacementGridData(field)
    warp.SetAndObserveTransformToParent(grid)
    nodes["t1"].SetAndObserveTransformNodeID(warp.GetID())
    before = core.scene.GetNumberOfNodes()
    findings = checks.check(ms, nodes)
    assert bad(findings) == {}
    assert "'warp'" in text(findings, "t1", "transform")
    assert core.scene.GetNumberOfNodes() == before


def test_patient12_has_its_skull_and_thick_slices(core, ms, shared_data, checks):
    folder = shared_data / "ms" / "open_ms_native" / "patient12"
    if not folder.is_dir():
        pytest.skip("patient12 is not here")
    nodes = {
        key: volumeNodeFromImage(read_image(folder / f"{key}.nii.gz"), key, core.scene)
        for key in ("t1", "t2", "flair")
    }
    findings = checks.check(ms, nodes)
    wrong = {"skull": "warning", "spacing": "warning"}
    assert bad(findings) == {(k, c): level for k in nodes for c, level in wrong.items()}
    assert "3.0 mm long, the model works at 1.0 mm" in text(findings, "t1", "spacing")
    assert "overlap; it is resampled" in text(findings, "t2", "overlap")
    whole = ms.model_copy(update={"skull_stripped": False})
    assert ("t1", "skull") not in bad(checks.check(whole, nodes))


@pytest.mark.parametrize(
    ("values", "code", "level"),
    [
        (lambda a: np.full(a.shape, np.nan, np.float32), "nan", "error"),
        (lambda a: np.where(a > 900, np.nan, a).astype(np.float32), "nan", "warning"),
        (lambda a: np.full(a.shape, 7, np.int16), "constant", "error"),
        (lambda a: (-1 - np.abs(a)).astype(np.int16), "positive", "error"),
    ],
)
def test_values_that_are_no_image_are_told(ms, nodes, ms_images, checks, values, code, level):
    image = ms_images["t1"]
    fillVolumeNode(nodes["t1"], image.with_array(values(image.array)))
    assert bad(checks.check(ms, nodes)) == {("t1", code): level}


def test_what_is_no_volume_is_told(core, ms, nodes, checks):
    nodes["t1"] = core.scene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "empty")
    rgb = nodes["t2"] = core.scene.AddNewNodeByClass("vtkMRMLVectorVolumeNode", "photo")
    data = vtk.vtkImageData()
    data.SetDimensions(4, 4, 4)
    data.AllocateScalars(vtk.VTK_UNSIGNED_CHAR, 3)
    rgb.SetAndObserveImageData(data)
    assert bad(checks.check(ms, nodes)) == {("t1", "empty"): "error", ("t2", "color"): "error"}


def test_a_sequence_asks_for_its_frame(core, ms, nodes, ms_images, checks):
    small = resample(ms_images["t1"], grid_with_spacing(ms_images["t1"].grid, (4, 4, 4)))
    sequence = core.scene.AddNewNodeByClass("vtkMRMLSequenceNode", "Dynamic")
    for n in range(3):
        array = small.array if n < 2 else np.zeros_like(small.array)
        frame = volumeNodeFromImage(small.with_array(array), "f", core.scene)
        sequence.SetDataNodeAtValue(frame, str(n))
        core.scene.RemoveNode(frame)
    browser = core.scene.AddNewNodeByClass("vtkMRMLSequenceBrowserNode", "Browser")
    browser.AddSynchronizedSequenceNode(sequence)
    core.logics["Sequences"].UpdateProxyNodesFromSequences(browser)
    nodes["t1"] = browser.GetProxyNode(sequence)
    findings = checks.check(ms, nodes)
    assert bad(findings)["t1", "frame"] == "warning"
    assert "has 3 frames; the shown one (1 of 3" in text(findings, "t1", "frame")
    chosen = checks.check(ms, nodes, {"t1": 1})
    assert ("t1", "frame") not in bad(chosen)
    assert "frame 2 of 3" in text(chosen, "t1", "frame")
    assert bad(checks.check(ms, nodes, {"t1": 2}))["t1", "constant"] == "error"
    assert bad(checks.check(ms, nodes, {"t1": 3}))["t1", "frame"] == "error"


def test_a_sequence_without_volumes_is_told(core, ms, nodes, checks):
    nodes["t1"] = core.scene.AddNewNodeByClass("vtkMRMLSequenceNode", "nothing yet")
    nodes["t2"] = core.scene.AddNewNodeByClass("vtkMRMLSequenceNode", "motion")
    for n in range(2):
        moved = core.scene.AddNewNodeByClass("vtkMRMLLinearTransformNode")
        nodes["t2"].SetDataNodeAtValue(moved, str(n))
    findings = checks.check(ms, nodes)
    assert bad(findings) == {("t1", "empty"): "error", ("t2", "empty"): "error"}


@pytest.fixture
def prostate(ms):
    how = Normalisation(method="robust")
    inputs = [
        InputSpec(key=k, title=t, modality="MR", required=True, normalisation=how)
        for k, t in (("t2w", "T2"), ("adc", "ADC map"), ("dwi", "DWI"))
    ]
    return ms.model_copy(update={"inputs": inputs, "reference": "t2w", "skull_stripped": False})


def test_an_adc_that_is_none_is_told(core, prostate, shared_data, checks):
    folder = shared_data / "prostate" / "prostatex" / "ProstateX-0000"
    if not folder.is_dir():
        pytest.skip("the prostate data are not here")
    images = {k: read_image(folder / f"{f}.nii.gz")
              for k, f in (("t2w", "t2w"), ("adc", "adc"), ("dwi", "hbv"))}  # fmt: skip
    nodes = {k: volumeNodeFromImage(i, k, core.scene) for k, i in images.items()}
    findings = checks.check(prostate, nodes)
    assert not [f for f in findings if f.code in ("adc", "unit") and f.level != "ok"]
    assert "fit an ADC map in 1e-6 mm2/s" in text(findings, "adc", "adc")
    swapped = checks.check(prostate, {**nodes, "adc": nodes["dwi"], "dwi": nodes["adc"]})
    assert "are no ADC in any usual unit" in text(swapped, "adc", "adc")
    assert "look like an ADC map" in text(swapped, "dwi", "adc")
    fillVolumeNode(nodes["adc"], images["adc"].with_array(images["adc"].array / np.float32(1000)))
    assert "1e-3 mm2/s" in text(checks.check(prostate, nodes), "adc", "unit")


def test_a_region_says_what_it_covers_and_where_it_is_lost(ms, nodes, ms_images, checks):
    grid = ms_images["flair"].grid
    affine = np.eye(4)
    affine[:3, 3] = grid.center
    half = Region(affine, tuple(size / 2 for size in grid.size_mm))
    assert "covers 13%" in text(checks.check(ms, nodes, region=half), "", "region")
    affine[0, 3] += 1000
    lost = checks.check(ms, nodes, region=Region(affine, (10, 10, 10)))
    assert bad(lost) == {("", "region"): "error"}


def test_voxels_are_measured_once_until_they_change(ms, nodes, checks, monkeypatch):
    counted = []
    plain = module.measure
    monkeypatch.setattr(module, "measure", lambda i: counted.append(1) or plain(i))
    checks.check(ms, nodes)
    start = time.process_time()
    checks.check(ms, nodes)
    assert time.process_time() - start < 0.1
    assert len(counted) == 3
    slicer.util.arrayFromVolume(nodes["t1"])[:] = 0
    nodes["t1"].GetImageData().Modified()
    assert bad(checks.check(ms, nodes)) == {("t1", "constant"): "error"}
    assert len(counted) == 4
