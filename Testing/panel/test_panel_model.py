"""The user finds, reads, adds and deletes models by hand."""

import shutil
import sys
from pathlib import Path

import pytest

from medsegcore.errors import ModelNotFoundError
from medsegcore.models import ModelFolder
from medsegcore.models.archive import pack

MODEL = "ms-lesion-rsanet"
pytestmark = pytest.mark.usefixtures("zoo_of_one")


@pytest.fixture
def ui(panel):
    return panel.modelPart._ui


def clickModel(host, ui, row):
    item = ui.modelList.item(row)
    rect = ui.modelList.visualItemRect(item)
    host.click(ui.modelList.viewport(), (rect.x() + 20, rect.y() + rect.height() // 2))


def titles(ui):
    return [ui.modelList.item(n).text() for n in range(ui.modelList.count)]


def renamed(model: ModelFolder, target: Path, modelId: str, title: str) -> Path:
    """A copy of a model under another id."""
    shutil.copytree(model.path, target)
    text = (target / "model.json").read_text(encoding="utf-8")
    text = text.replace(f'"{MODEL}"', f'"{modelId}"')
    text = text.replace(f'"{model.description.title}"', f'"{title}"')
    (target / "model.json").write_text(text, encoding="utf-8")
    return target


def test_a_click_on_a_model_shows_its_card_and_its_inputs(host, panel, ui, tmp_path):
    assert not panel.inputsPart.inputKeys()
    clickModel(host, ui, 0)
    assert panel.modelPart.entry.description.id == MODEL
    card = ui.cardBrowser.toPlainText()
    assert "Commercial use" in card
    assert "Intended use and limits" in card
    assert panel.inputsPart.inputKeys() == ["t1", "t2", "flair"]
    assert panel._parameterNode.model == MODEL
    host.screenshot(tmp_path / "model.png")


def test_search_and_filters_narrow_the_list_and_the_choice_stays(host, panel, ui):
    clickModel(host, ui, 0)
    # The box of the inputs says "All" by itself: the words before it say of what.
    assert (ui.anatomyBox.currentText, ui.modalityLabel.text) == ("All anatomies", "Inputs:")
    assert ui.modalityBox.allChecked()
    host.type(ui.searchEdit, "prostate")
    assert titles(ui) == []
    assert "No model fits" in ui.modelMessageLabel.text
    assert ui.modelMessageLabel.visible
    assert panel.modelPart.entry.description.id == MODEL
    host.type(ui.searchEdit, "sclerosis flair")
    assert len(titles(ui)) == 1
    assert ui.modelList.currentRow == 0
    anatomy = panel.modelPart.entry.anatomy
    host.choose(ui.anatomyBox, anatomy)
    assert len(titles(ui)) == 1
    # The model's T2 is optional; without a FLAIR it has nothing to work on.
    host.tick(ui.modalityBox, "T2")
    assert len(titles(ui)) == 1
    host.tick(ui.modalityBox, "FLAIR")
    assert titles(ui) == []
    panel.modelPart.refresh()
    assert titles(ui) == []
    panel.modelPart.choose(MODEL)
    assert len(titles(ui)) == 1
    assert ui.modalityBox.allChecked()


def test_a_folder_and_a_zip_are_added_opened_and_deleted_after_asking(
    host, panel, ui, shipped_model, tmp_path
):
    opened = []
    panel.modelPart._openFolder = opened.append
    folder = renamed(shipped_model, tmp_path / "mine", "my-model", "My model")
    host.dialogs.expect("Add a model folder", str(folder))
    host.click(ui.addFolderButton)
    assert panel.modelPart.entry.title == "My model"
    assert "Added 'My model'" in ui.modelMessageLabel.text
    host.click(ui.openFolderButton)
    assert opened == [panel.modelPart.entry.path]
    assert tmp_path / "data" in opened[0].parents
    other = ModelFolder.read(renamed(shipped_model, tmp_path / "two", "zip-model", "Zipped"))
    archive = tmp_path / "zipped.zip"
    pack(other, archive)
    host.dialogs.expect("Add a model", str(archive))
    host.click(ui.addZipButton)
    assert titles(ui).count("Zipped") == 1
    # The second time it is there already: a sentence, no dialog.
    host.dialogs.expect("Add a model", str(archive))
    host.click(ui.addZipButton)
    assert "zip-model" in ui.modelMessageLabel.text
    assert opened[0].is_dir()
    clickModel(host, ui, titles(ui).index("My model"))
    host.dialogs.expect("Delete the model 'My model'", "No")
    host.click(ui.deleteButton)
    assert opened[0].is_dir()
    host.dialogs.expect("Delete the model 'My model'", "Yes")
    host.click(ui.deleteButton)
    assert not opened[0].exists()
    assert "My model" not in titles(ui)
    assert panel.modelPart.entry is None


def test_models_are_added_where_slicers_own_python_has_no_torch(
    host, panel, ui, shipped_model, tmp_path, monkeypatch
):
    folder = renamed(shipped_model, tmp_path / "mine", "my-model", "My model")
    other = ModelFolder.read(renamed(shipped_model, tmp_path / "two", "zip-model", "Zipped"))
    pack(other, tmp_path / "zipped.zip")
    changed = renamed(shipped_model, tmp_path / "three", "changed", "Changed")
    weights = bytearray((changed / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (changed / "model.safetensors").write_bytes(bytes(weights))
    monkeypatch.setitem(sys.modules, "torch", None)
    host.dialogs.expect("Add a model folder", str(folder))
    host.click(ui.addFolderButton)
    assert panel.modelPart.entry.title == "My model"
    host.dialogs.expect("Add a model", str(tmp_path / "zipped.zip"))
    host.click(ui.addZipButton)
    assert panel.modelPart.entry.title == "Zipped"
    # What needs no torch is checked here, before the first run.
    host.dialogs.expect("Add a model folder", str(changed))
    host.click(ui.addFolderButton)
    assert "SHA-256" in ui.modelMessageLabel.text
    assert "Changed" not in titles(ui)


def test_a_folder_and_a_zip_are_added_by_dropping_them_and_other_files_are_not_taken(
    host, panel, ui, shipped_model, tmp_path
):
    folder = renamed(shipped_model, tmp_path / "mine", "my-model", "My model")
    other = ModelFolder.read(renamed(shipped_model, tmp_path / "two", "zip-model", "Zipped"))
    pack(other, tmp_path / "zipped.zip")
    (tmp_path / "scan.nrrd").write_text("no model")
    target = ui.modelList.viewport()
    assert not host.drop(target, [tmp_path / "scan.nrrd"])
    assert host.drop(target, [folder, tmp_path / "zipped.zip"])
    assert {"My model", "Zipped"} < set(titles(ui))
    assert panel.modelPart.entry.title == "Zipped"
    panel.modelPart.close()
    assert not host.drop(target, [folder])


def test_the_cursor_waits_while_a_model_is_added_and_no_longer(
    host, panel, ui, monkeypatch, tmp_path
):
    cursors = []

    def add(path):
        cursors.append(host.qt.QApplication.overrideCursor().shape())
        raise ModelNotFoundError("There is none.")

    monkeypatch.setattr(panel.modelPart._catalog, "add", add)
    host.dialogs.expect("Add a model folder", str(tmp_path))
    host.click(ui.addFolderButton)
    assert cursors == [host.qt.Qt.WaitCursor]
    assert host.qt.QApplication.overrideCursor() is None
    assert "There is none." in ui.modelMessageLabel.text


def test_a_shipped_model_cannot_be_deleted_and_no_zip_is_no_model(host, panel, ui, tmp_path):
    clickModel(host, ui, 0)
    assert not ui.deleteButton.enabled
    assert "came with MedSeg" in ui.deleteButton.toolTip
    (tmp_path / "text.zip").write_text("no archive")
    host.dialogs.expect("Add a model", str(tmp_path / "text.zip"))
    host.click(ui.addZipButton)
    assert "text.zip" in ui.modelMessageLabel.text
    host.dialogs.expect("Add a model folder", "")
    host.click(ui.addFolderButton)
    assert panel.modelPart.entry.description.id == MODEL


def test_a_broken_model_says_why_and_cannot_be_run(host, panel, ui, shipped_model, tmp_path):
    models = tmp_path / "data" / "MedSeg" / "models"
    models.mkdir(parents=True)
    broken = renamed(shipped_model, models / "torn", "torn", "Torn")
    weights = broken / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    panel.exit()
    panel.enter()
    row = titles(ui).index("Torn (cannot be used)")
    clickModel(host, ui, row)
    assert "Cannot be used" in ui.cardBrowser.toPlainText()
    button = panel.runPart._ui.segmentButton
    assert not button.enabled
    assert panel.modelPart.entry.problem in button.toolTip
    host.screenshot(tmp_path / "broken.png")
    # The disk with it goes: the panel forgets it at the next look.
    shutil.rmtree(broken)
    panel.exit()
    panel.enter()
    assert panel.modelPart.entry is None
    assert not any("Torn" in title for title in titles(ui))


def test_a_closed_part_is_deaf(host, panel, ui):
    panel.modelPart.close()
    panel.modelPart.close()
    clickModel(host, ui, 0)
    assert panel.modelPart.entry is None
