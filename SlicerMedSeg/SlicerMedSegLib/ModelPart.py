"""The part of the panel where a model is found, read about, added and deleted."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import qt
import slicer

from medsegcore.errors import MedSegError

from .CheckableBox import fill, ticked
from .ModelCatalog import CatalogEntry, ModelCatalog, modelCardHtml
from .Translation import _


class ModelPart:
    """The list of models with its search, filters and card.

    Args:
        ui: the widgets of ModelPart.ui.
        modelChanged: called with the CatalogEntry that is chosen, or None; also when the same
            model has become usable or unusable.
        catalog: the models; the shipped ones and the user's own when None.
        openFolder: shows a folder to the user; the platform's file manager when None.
    """

    def __init__(
        self,
        ui,
        modelChanged: Callable[[CatalogEntry | None], None],
        catalog: ModelCatalog | None = None,
        openFolder: Callable[[Path], None] | None = None,
    ) -> None:
        self._ui, self._modelChanged = ui, modelChanged
        self._catalog = catalog if catalog is not None else ModelCatalog()
        self._openFolder = openFolder or _openFolder
        self._shown: list[CatalogEntry] = []
        self._entry: CatalogEntry | None = None
        self._missing = ""
        self._connections: list[tuple[Any, str, Callable[..., None]]] = [
            (ui.searchEdit, "textChanged(QString)", self._filter),
            (ui.anatomyBox, "currentIndexChanged(int)", self._filter),
            (ui.modalityBox, "checkedIndexesChanged()", self._filter),
            (ui.modelList, "currentRowChanged(int)", self._rowChanged),
            (ui.addFolderButton, "clicked()", self._addFolder),
            (ui.addZipButton, "clicked()", self._addZip),
            (ui.deleteButton, "clicked()", self._delete),
            (ui.openFolderButton, "clicked()", self._open),
        ]
        for widget, signal, slot in self._connections:
            widget.connect(signal, slot)
        self._drops = _Drops(self._add)
        ui.modelList.viewport().setAcceptDrops(True)
        ui.modelList.viewport().installEventFilter(self._drops)
        self._fillFilters()
        self._fillList()

    @property
    def entry(self) -> CatalogEntry | None:
        """The model that is chosen."""
        return self._entry

    @property
    def partners(self) -> list[CatalogEntry]:
        """The models that can answer together with the chosen one."""
        return self._catalog.partners(self._entry) if self._entry is not None else []

    @property
    def missing(self) -> str:
        """What is to be said of a model that was to be chosen and is not there, else ""."""
        return self._missing

    def choose(self, path: str) -> None:
        """Choose the model with that id or folder; "" keeps what is chosen.

        Where there is no such model, none is chosen and the user is told.
        """
        if not path:
            self._choose(self._entry)
            return
        try:
            entry = self._catalog.entry(path)
        except MedSegError as error:
            self._choose(None)
            self._missing = str(error)
            self._say(self._missing)
            return
        if entry not in self._shown:
            self._clearFilters()
        self._choose(entry)

    def refresh(self) -> None:
        """Read the folders again: a disk may have come or gone."""
        self._catalog.refresh()
        self._fillFilters()
        self._fillList()
        self._choose(self._current())

    def close(self) -> None:
        """Let go of the widgets."""
        connections, self._connections = self._connections, []
        for widget, signal, slot in connections:
            if widget:
                widget.disconnect(signal, slot)
        if self._ui.modelList:
            self._ui.modelList.viewport().removeEventFilter(self._drops)

    # What is offered.

    def _fillFilters(self) -> None:
        box = self._ui.anatomyBox
        before = box.currentData
        blocked = box.blockSignals(True)
        box.clear()
        box.addItem(_("All anatomies"), "")
        for choice in self._catalog.anatomies():
            box.addItem(choice, choice)
        box.setCurrentIndex(max(box.findData(before), 0))
        box.blockSignals(blocked)
        self._fillModalities()

    def _fillModalities(self, left: frozenset[str] | None = None) -> None:
        """List what the models take; all are ticked but those that the user has left out."""
        box = self._ui.modalityBox
        if left is None:
            offered = frozenset(box.itemText(n) for n in range(box.count))
            left = offered - self._modalities()
        choices = self._catalog.modalities()
        fill(box, choices, [n for n, choice in enumerate(choices) if choice not in left])

    def _modalities(self) -> frozenset[str]:
        """The images that are ticked."""
        box = self._ui.modalityBox
        return frozenset(box.itemText(n) for n in ticked(box))

    def _fillList(self) -> None:
        ui = self._ui
        self._shown = self._catalog.entries(
            ui.searchEdit.text, ui.anatomyBox.currentData or "", self._modalities()
        )
        blocked = ui.modelList.blockSignals(True)
        ui.modelList.clear()
        warning = slicer.app.style().standardIcon(qt.QStyle.SP_MessageBoxWarning)
        for entry in self._shown:
            if entry.usable:
                item = qt.QListWidgetItem(entry.title)
            else:
                item = qt.QListWidgetItem(
                    warning, _("{title} (cannot be used)").format(title=entry.title)
                )
            item.setToolTip(entry.problem or _task(entry))
            ui.modelList.addItem(item)
        ui.modelList.blockSignals(blocked)
        self._markRow()
        if not self._shown:
            self._say(_("No model fits the search: clear it, or add a model."))
        else:
            self._say(self._missing)

    def _filter(self, *_arguments) -> None:
        self._fillList()

    def _clearFilters(self) -> None:
        ui = self._ui
        for widget in (ui.searchEdit, ui.anatomyBox):
            widget.blockSignals(True)
        ui.searchEdit.setText("")
        ui.anatomyBox.setCurrentIndex(0)
        for widget in (ui.searchEdit, ui.anatomyBox):
            widget.blockSignals(False)
        self._fillModalities(frozenset())
        self._fillList()

    # What is chosen.

    def _rowChanged(self, row: int) -> None:
        if 0 <= row < len(self._shown):
            self._choose(self._shown[row])

    def _choose(self, entry: CatalogEntry | None) -> None:
        changed = entry != self._entry
        self._entry = entry
        if self._missing:
            self._missing = ""
            self._say("")
        self._markRow()
        ui = self._ui
        ui.cardBrowser.setHtml(modelCardHtml(entry) if entry is not None else "")
        ui.openFolderButton.enabled = entry is not None
        ui.deleteButton.enabled = entry is not None and not entry.shipped
        ui.deleteButton.toolTip = (
            _("This model came with MedSeg and cannot be deleted")
            if entry is not None and entry.shipped
            else _("Delete this model from the disk")
        )
        if changed:
            self._modelChanged(entry)

    def _markRow(self) -> None:
        paths = [entry.path for entry in self._shown]
        path = self._entry.path if self._entry is not None else None
        blocked = self._ui.modelList.blockSignals(True)
        self._ui.modelList.setCurrentRow(paths.index(path) if path in paths else -1)
        self._ui.modelList.blockSignals(blocked)

    def _current(self) -> CatalogEntry | None:
        """The chosen model as the catalog has it now; a lost one is none."""
        if self._entry is None:
            return None
        try:
            return self._catalog.entry(self._entry.path)
        except MedSegError as error:
            self._say(str(error))
            return None

    # What is done with the folders.

    def _addFolder(self) -> None:
        title = _("Add a model folder")
        self._add(qt.QFileDialog.getExistingDirectory(slicer.util.mainWindow(), title))

    def _addZip(self) -> None:
        title, kinds = _("Add a model"), _("Model archives (*.zip)")
        self._add(qt.QFileDialog.getOpenFileName(slicer.util.mainWindow(), title, "", kinds))

    def _add(self, path: str) -> None:
        if not path:
            return
        # Large weights take seconds to copy and check.
        qt.QApplication.setOverrideCursor(qt.Qt.WaitCursor)
        try:
            entry = self._catalog.add(path)
        except MedSegError as error:
            self._fillList()
            self._say(str(error))
            return
        finally:
            qt.QApplication.restoreOverrideCursor()
        self._fillFilters()
        self._clearFilters()
        self._choose(entry)
        self._say(_("Added '{title}'.").format(title=entry.title))

    def _delete(self) -> None:
        entry = self._entry
        if entry is None:
            return
        question = _("Delete the model '{title}' and its folder {path}?")
        if not slicer.util.confirmYesNoDisplay(
            question.format(title=entry.title, path=entry.path), _("Delete a model")
        ):
            return
        problem = ""
        try:
            self._catalog.delete(entry)
        except MedSegError as error:
            problem = str(error)
        self._fillFilters()
        self._fillList()
        self._choose(self._entry if problem else None)
        self._say(problem or _("Deleted '{title}'.").format(title=entry.title))

    def _open(self) -> None:
        if self._entry is not None:
            self._openFolder(self._entry.path)

    def _say(self, text: str) -> None:
        self._ui.modelMessageLabel.text = text
        self._ui.modelMessageLabel.visible = bool(text)


class _Drops(qt.QObject):
    """Takes model folders and .zip files that are dropped on a widget.

    Args:
        dropped: called with the path of each.
    """

    def __init__(self, dropped: Callable[[str], None]) -> None:
        super().__init__()
        self._dropped = dropped

    def eventFilter(self, watched, event) -> bool:
        """Qt's; True when the event was taken."""
        kind = event.type()
        if kind not in (qt.QEvent.DragEnter, qt.QEvent.DragMove, qt.QEvent.Drop):
            return False
        paths = [url.toLocalFile() for url in event.mimeData().urls()]
        paths = [p for p in paths if Path(p).is_dir() or p.lower().endswith(".zip")]
        if paths:
            event.acceptProposedAction()
        if paths and kind == qt.QEvent.Drop:
            for path in paths:
                self._dropped(path)
        return bool(paths)


def _task(entry: CatalogEntry) -> str:
    return entry.description.task if entry.description is not None else ""


def _openFolder(path: Path) -> None:
    qt.QDesktopServices.openUrl(qt.QUrl.fromLocalFile(str(path)))
