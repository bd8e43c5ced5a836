"""The user lets several models answer together."""

import json
import shutil
from pathlib import Path

import pytest
import slicer

from SlicerMedSegLib.ResultToScene import findRuns

MODULE = Path(__file__).resolve().parents[2] / "SlicerMedSeg" / "SlicerMedSeg.py"
MODEL = "ms-lesion-rsanet"
SMALL = (slice(60, 76), slice(60, 92), slice(50, 82))


@pytest.fixture
def addModel(medsegFolders, model_copy):
    """Puts a copy of the shipped model, changed in its description, into the user's models."""

    def add(modelId, **changes):
        folder = medsegFolders / "data" / "MedSeg" / "models" / modelId
        folder.parent.mkdir(parents=True, exist_ok=True)
        other = model_copy.with_description(
            model_copy.description.model_copy(update={"id": modelId, **changes})
        )
        shutil.copytree(other.path, folder)

    return add


def offered(ui):
    return [ui.ensembleBox.itemText(n) for n in range(ui.ensembleBox.count)]


def done(host, panel):
    host.waitUntil(lambda: not panel.runPart.busy)


def test_models_answer_together_with_their_disagreement_and_the_scene_remembers_them(
    host, addModel, model_copy, addSample, tmp_path
):
    label = model_copy.description.labels[0]
    addModel("fold-2", title="Second fold", memory_mb=2000)
    addModel("infarcts", labels=[label.model_copy(update={"name": "infarct"})])
    panel = host.openModule(MODULE)
    ui = panel.runPart._ui
    assert not ui.ensembleBox.enabled
    addSample(SMALL)
    panel.modelPart.choose(MODEL)
    assert offered(ui) == ["Second fold (fold-2)"]
    assert "how much the answers differ" in ui.ensembleBox.toolTip
    host.waitUntil(lambda: ui.segmentButton.enabled)
    alone = f"Needs about {model_copy.description.memory_mb / 1000:.1f} GB on CPU."
    host.waitUntil(lambda: ui.memoryLabel.text == alone)
    host.tick(ui.ensembleBox, "Second fold (fold-2)")
    assert panel._parameterNode.ensemble == "fold-2"
    # One after the other: the larger one counts.
    assert ui.memoryLabel.text == "Needs about 2.0 GB on CPU."
    host.screenshot(tmp_path / "ensemble.png")
    before, loads = slicer.mrmlScene.GetNumberOfNodes(), []
    shown = panel.runPart._progressed
    panel.runPart._progressed = lambda stage, *rest: (loads.append(stage), shown(stage, *rest))
    host.click(ui.segmentButton)
    # The first model has answered when the second one is loaded.
    host.waitUntil(lambda: "load" in loads[loads.index("measure") :] if "measure" in loads else 0)
    host.click(ui.cancelButton)
    done(host, panel)
    assert ui.runMessageLabel.text == "Cancelled."
    assert slicer.mrmlScene.GetNumberOfNodes() == before
    host.click(ui.segmentButton)
    done(host, panel)
    assert ui.runMessageLabel.text == "Done."
    ((name, run),) = findRuns(slicer.mrmlScene).items()
    assert name.endswith("together with fold-2")
    provenance = json.loads(run["provenance"][0].GetText())
    assert [model["id"] for model in provenance["models"]] == [MODEL, "fold-2"]
    maps = panel.attentionPart.ui.mapSelector
    texts = [maps.itemText(n) for n in range(maps.count)]
    assert "Uncertainty: standard deviation over models" in texts
    host.core.saveScene(tmp_path / "scene.mrb")
    host.tick(ui.ensembleBox, "Second fold (fold-2)")
    slicer.mrmlScene.Clear()
    host.core.loadScene(tmp_path / "scene.mrb")
    assert panel.ensemblePart.ids == ["fold-2"]
    host.waitUntil(lambda: panel.runPart._job is not None)
    assert [Path(path).name for path in panel.runPart._job.ensemble] == ["fold-2"]


def test_without_a_model_of_the_same_task_the_row_says_why(host, panel, addModel):
    ui = panel.runPart._ui
    assert "Choose a model first." in ui.ensembleBox.toolTip
    panel.modelPart.choose(MODEL)
    assert not ui.ensembleBox.enabled
    assert "No other model has the inputs and labels of" in ui.ensembleBox.toolTip
    # One comes onto the disk while another module is open, and goes again.
    addModel("fold-2")
    panel.exit()
    panel.enter()
    host.tick(ui.ensembleBox, offered(ui)[0])
    assert panel._parameterNode.ensemble == "fold-2"
    shutil.rmtree(panel.ensemblePart.entries[0].path)
    panel.exit()
    panel.enter()
    assert not ui.ensembleBox.enabled
    assert panel._parameterNode.ensemble == ""
