"""What a user does in the panel, and what has to come of it, in the application and on its host.

Each scenario gets a `Hand`, starts with an empty `slicer.mrmlScene` and raises when something does
not hold.
"""

import tempfile
from pathlib import Path

import slicer

from .ResultToScene import findRuns
from .Scenarios import MODEL, loadSample

TITLE = "MS lesions"
LABEL = "MS lesion"
SLIDER = f"thresholdSlider_{LABEL}"
VOLUME = "Volume [ml]"
INPUTS = {"t1": "T1", "t2": "T2", "flair": "FLAIR"}
# Slices, rows, columns with large lesions: what is done takes as many clicks on less of the brain.
PART = (slice(20, 68), slice(20, 116), slice(20, 116))
RUN_SECONDS = 120


def gettingReady(hand) -> None:
    """The card says that all is ready; a model is found, and the panel says what else it needs."""
    hand.waitUntil(lambda: hand.text("readyLabel").startswith("Ready"), RUN_SECONDS)
    hand.click("detailsButton")
    assert "Python" in hand.text("detailsLabel"), hand.text("detailsLabel")
    hand.click("detailsButton")
    assert not hand.widget("detailsLabel").visible
    hand.type("searchEdit", "no such model")
    assert "No model fits the search" in hand.text("modelMessageLabel")
    hand.type("searchEdit", "sclerosis")
    hand.clickRow("modelList", TITLE)
    card = hand.widget("cardBrowser").toPlainText()
    assert "Intended use and limits" in card, card
    assert "Commercial use" in card, card
    hand.waitUntil(lambda: "cannot run without it" in hand.widget("segmentButton").toolTip)
    assert not hand.widget("segmentButton").enabled


def inputs(hand) -> None:
    """Volumes find their inputs; a wrong choice stops the run with its reason."""
    _chooseModel(hand)
    _loadPart(hand)
    for key in INPUTS:
        assert "sure)" in hand.text(f"{key}WhyLabel"), hand.text(f"{key}WhyLabel")
    hand.choose("t1Selector", "FLAIR")
    hand.waitUntil(lambda: not hand.widget("segmentButton").enabled)
    hand.waitUntil(lambda: "is chosen for T1" in hand.widget("segmentButton").toolTip)
    hand.choose("t1Selector", "T1")
    hand.waitUntil(lambda: hand.widget("segmentButton").enabled)
    assert hand.text("t1WhyLabel").startswith("Chosen by you.")
    # An optional input that was emptied stays empty until it is asked for.
    hand.choose("t2Selector", "None")
    hand.waitUntil(lambda: hand.widget("segmentButton").enabled)
    assert _chosen(hand) == {"t1": "T1", "flair": "FLAIR"}
    hand.click("autoMatchButton")
    hand.waitUntil(lambda: _chosen(hand) == INPUTS)
    _registerAndTakeBack(hand)


def running(hand) -> None:
    """A run shows its progress, is cancelled, and runs again from the warm worker."""
    _chooseModel(hand)
    _loadPart(hand)
    before = slicer.mrmlScene.GetNumberOfNodes()
    _cancelARun(hand)
    assert slicer.mrmlScene.GetNumberOfNodes() == before
    assert not findRuns(slicer.mrmlScene)
    _run(hand)
    assert len(findRuns(slicer.mrmlScene)) == 1
    assert not hand.widget("progressBar").visible
    _run(hand)
    assert len(findRuns(slicer.mrmlScene)) == 2


def results(hand) -> None:
    """The threshold is dragged, lesions are sorted, looked at and dropped, all of it undone."""
    _runOnPart(hand)
    _dragAndUndo(hand)
    _workOnTheTable(hand)


def attention(hand) -> None:
    """A map is laid over the views and taken off; the heat map follows the slice in view."""
    _runOnPart(hand)
    _overlayOnAndOff(hand)
    _sliceHeatMap(hand)


def aRadiologistsTenMinutes(hand) -> None:
    """From the sample to a corrected segment in a saved scene that is opened again."""
    _chooseModel(hand)
    _loadPart(hand)
    hand.choose("flairSelector", "T2")
    hand.waitUntil(lambda: not hand.widget("segmentButton").enabled)
    hand.choose("flairSelector", "FLAIR")
    hand.waitUntil(lambda: hand.widget("segmentButton").enabled)
    _cancelARun(hand)
    _run(hand)
    _dragAndUndo(hand)
    _workOnTheTable(hand)
    _overlayOnAndOff(hand)
    _sliceHeatMap(hand)
    totals = hand.text("totalsLabel")
    hand.drag(SLIDER, 0.2)
    kept = hand.widget(SLIDER).value
    hand.waitUntil(lambda: hand.text("totalsLabel") != totals)
    totals = hand.text("totalsLabel")
    _correctTheSegment()
    hand.waitUntil(lambda: "Edited by hand" in hand.text(f"reasonLabel_{LABEL}"))
    hand.waitUntil(lambda: hand.text("totalsLabel") != totals)
    totals = hand.text("totalsLabel")
    with tempfile.TemporaryDirectory(prefix="medseg-scenario-") as folder:
        path = str(Path(folder) / "reading.mrb")
        hand.saveScene(path)
        hand.loadScene(path)
        hand.waitUntil(lambda: _chosen(hand) == INPUTS)
        hand.unfold("resultsSection")
        hand.waitUntil(lambda: hand.text("totalsLabel") == totals)
        assert not hand.widget(SLIDER).enabled
        assert abs(hand.widget(SLIDER).value - kept) < 1e-6
        hand.waitUntil(lambda: hand.widget("segmentButton").enabled)


PANEL_SCENARIOS = (
    gettingReady,
    inputs,
    running,
    results,
    attention,
    aRadiologistsTenMinutes,
)


# The steps that they share.


def _chooseModel(hand) -> None:
    hand.type("searchEdit", " ")
    hand.clickRow("modelList", TITLE)
    assert hand.panel.modelPart.entry.description.id == MODEL


def _loadPart(hand) -> None:
    """The part of the sample, matched; ready to run."""
    nodes = loadSample(PART)
    slicer.util.setSliceViewerLayers(background=nodes["flair"], fit=True)
    hand.waitUntil(lambda: _chosen(hand) == INPUTS)
    hand.waitUntil(lambda: hand.widget("segmentButton").enabled)


def _registerAndTakeBack(hand) -> None:
    hand.unfold("registrationSection")
    hand.waitUntil(lambda: hand.widget("registrationInputBox").enabled)
    hand.choose("registrationInputBox", "T2-weighted MR: T2")
    before = _foregrounds()
    hand.click("blendButton")
    assert all(_foregrounds()), _foregrounds()
    hand.click("blendButton")
    assert _foregrounds() == before
    hand.click("registerButton")
    hand.waitUntil(lambda: hand.widget("removeRegistrationButton").enabled, RUN_SECONDS)
    assert hand.text("registrationMessageLabel")
    hand.click("removeRegistrationButton")
    hand.waitUntil(lambda: _chosen(hand) == INPUTS)
    hand.click("registrationSection")


def _chosen(hand) -> dict:
    nodes = {key: hand.widget(f"{key}Selector").currentNode() for key in INPUTS}
    return {key: node.GetName() for key, node in nodes.items() if node is not None}


def _runOnPart(hand) -> None:
    _chooseModel(hand)
    _loadPart(hand)
    _run(hand)


def _run(hand) -> None:
    hand.click("segmentButton")
    assert not hand.widget("segmentButton").enabled
    hand.waitUntil(lambda: hand.widget("segmentButton").enabled, RUN_SECONDS)
    assert hand.text("runMessageLabel") == "Done.", hand.text("runMessageLabel")


def _cancelARun(hand) -> None:
    hand.click("carefulCheckBox")
    hand.click("segmentButton")
    hand.waitUntil(lambda: hand.text("progressLabel").startswith("Segmenting"), RUN_SECONDS)
    hand.click("cancelButton")
    hand.waitUntil(lambda: hand.widget("segmentButton").enabled)
    assert hand.text("runMessageLabel") == "Cancelled.", hand.text("runMessageLabel")
    hand.click("carefulCheckBox")


def _segmentation():
    """The newest run's segmentation."""
    return list(findRuns(slicer.mrmlScene).values())[-1]["segmentation"][0]


def _voxels() -> int:
    node = _segmentation()
    segmentId = node.GetSegmentation().GetNthSegmentID(0)
    return int((slicer.util.arrayFromSegmentBinaryLabelmap(node, segmentId) > 0).sum())


def _dragAndUndo(hand) -> None:
    hand.unfold("resultsSection")
    totals = _settledTotals(hand)
    before, default = _voxels(), hand.widget(SLIDER).value
    higher = (default + 1) / 2
    hand.drag(SLIDER, higher)
    assert abs(hand.widget(SLIDER).value - higher) < 0.05
    hand.waitUntil(lambda: _voxels() < before and hand.widget("undoButton").enabled)
    hand.click("undoButton")
    hand.waitUntil(lambda: (_voxels(), hand.widget(SLIDER).value) == (before, default))
    hand.waitUntil(lambda: hand.text("totalsLabel") == totals)


def _settledTotals(hand) -> str:
    """What is said under the table, once every lesion that it counts is listed."""

    def settled() -> bool:
        words = hand.text("totalsLabel").split()
        return len(words) > 2 and words[2] == str(hand.widget("lesionTable").rowCount)

    hand.waitUntil(settled)
    return hand.text("totalsLabel")


def _volumes(hand) -> list[float]:
    return [float(text) for text in hand.cells("lesionTable", VOLUME)]


def _workOnTheTable(hand) -> None:
    hand.unfold("resultsSection")
    totals = _settledTotals(hand)
    volumes = sorted(_volumes(hand))
    assert len(volumes) > 1, totals
    hand.waitUntil(lambda: _volumes(hand) == volumes[::-1])
    hand.clickTitle("lesionTable", VOLUME)
    hand.waitUntil(lambda: _volumes(hand) == volumes)
    hand.clickTitle("lesionTable", VOLUME)
    hand.waitUntil(lambda: _volumes(hand) == volumes[::-1])
    hand.type("minVolumeSpinBox", f"{(volumes[-1] + volumes[-2]) / 2:.2f}")
    hand.waitUntil(lambda: _volumes(hand) == volumes[-1:])
    hand.type("minVolumeSpinBox", "0")
    hand.waitUntil(lambda: _volumes(hand) == volumes[::-1])
    hand.clickCell("lesionTable", 0, VOLUME)
    center = [float(hand.cells("lesionTable", f"{axis} [mm]")[0]) for axis in "RAS"]
    for node in slicer.util.getNodesByClass("vtkMRMLSliceNode"):
        matrix = node.GetSliceToRAS()
        place = [matrix.GetElement(n, 3) for n in range(3)]
        assert max(abs(a - b) for a, b in zip(place, center, strict=True)) < 0.1
    voxels = _voxels()
    hand.clickCell("lesionTable", 0, "Keep")
    hand.waitUntil(lambda: hand.text("totalsLabel") != totals and _voxels() < voxels)
    hand.click("undoButton")
    hand.waitUntil(lambda: (_voxels(), hand.text("totalsLabel")) == (voxels, totals))


def _foregrounds() -> list:
    composites = slicer.util.getNodesByClass("vtkMRMLSliceCompositeNode")
    return [node.GetForegroundVolumeID() for node in composites]


def _overlayOnAndOff(hand) -> None:
    hand.unfold("attentionSection")
    before = _foregrounds()
    hand.click("showButton")
    assert all(_foregrounds()), _foregrounds()
    hand.drag("opacitySlider", 0.3)
    assert abs(hand.widget("opacitySlider").value - 0.3) < 0.05
    hand.click("showButton")
    assert _foregrounds() == before


def _sliceHeatMap(hand) -> None:
    hand.unfold("attentionSection")
    before = _foregrounds()
    selector = hand.widget("mapSelector")
    titles = [selector.itemText(n) for n in range(selector.count)]
    hand.choose("mapSelector", next(title for title in titles if title.startswith("Slices: ")))
    hand.click("showButton")
    told = hand.text("sliceLabel")
    assert "attends" in told, told
    # Whichever row is shown, from the highest slice on each click shows another one.
    hand.clickPoint("heatMapLabel", 270, 100)
    hand.wait(300)
    for x in (2, 270):
        told = hand.text("sliceLabel")
        hand.clickPoint("heatMapLabel", x, 100)
        hand.waitUntil(lambda told=told: hand.text("sliceLabel") != told)
    hand.click("showButton")
    assert _foregrounds() == before


def _correctTheSegment() -> None:
    """As a paint effect does: a few voxels more."""
    node = _segmentation()
    segmentId = node.GetSegmentation().GetNthSegmentID(0)
    reference = next(iter(slicer.util.getNodes("FLAIR").values()))
    array = slicer.util.arrayFromSegmentBinaryLabelmap(node, segmentId, reference).copy()
    array[2:5, 2:5, 2:5] = 1
    slicer.util.updateSegmentBinaryLabelmapFromArray(array, node, segmentId, reference)
