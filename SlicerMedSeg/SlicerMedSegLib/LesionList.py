"""The lesions of a run in a table widget: sorted by its header, kept or dropped by a check mark."""

import contextlib
from collections.abc import Callable, Iterator

import numpy as np
import qt

from .LesionTable import LesionRow, LesionTable, meanText
from .Steps import Steps
from .Translation import _

KEPT = 0
ROW_PX = 24
ROWS_A_STEP = 12


class LesionList:
    """Fills a QTableWidget and says what the user does in it.

    Args:
        widget: QTableWidget.
        clicked: called with the LesionRow whose row was clicked or reached by a key.
        checked: called with the LesionRow and whether it is to be kept.
        sorted_: called after another order was chosen; `fill` is due.

    Attributes:
        sortBy: column of `LesionTable.columns` that gives the order.
        descending: the highest first.
        shown: the rows as they stand in the widget.
    """

    def __init__(
        self, widget, clicked: Callable[[LesionRow], None],
        checked: Callable[[LesionRow, bool], None], sorted_: Callable[[], None],
    ) -> None:  # fmt: skip
        self._widget = widget
        self._clicked, self._checked, self._sorted = clicked, checked, sorted_
        self.sortBy, self.descending = "volume_ml", True
        self.shown: list[LesionRow] = []
        self._columns: list[str] = []
        self._header = widget.horizontalHeader()
        widget.verticalHeader().hide()
        widget.verticalHeader().setDefaultSectionSize(ROW_PX)
        widget.horizontalHeader().setMinimumSectionSize(ROW_PX)
        self._signals: tuple[tuple, ...] = (
            (widget, "cellClicked(int,int)", self._onClicked),
            (widget, "currentCellChanged(int,int,int,int)", self._onCurrent),
            (widget, "cellChanged(int,int)", self._onChanged),
            (self._header, "sectionClicked(int)", self._onHeader),
        )
        self._header.setHighlightSections(False)
        for sender, signal, slot in self._signals:
            sender.connect(signal, slot)

    def close(self) -> None:
        """Listen to the widget no more; harmless when repeated."""
        signals, self._signals = self._signals, ()
        for sender, signal, slot in signals:
            sender.disconnect(signal, slot)

    def clear(self) -> None:
        """No lesions."""
        with self._silent():
            self._widget.setRowCount(0)
        self.shown = []

    def fill(self, table: LesionTable, rows: list[LesionRow]) -> Steps[None]:
        """Show these rows, some of them in each step; the lesion that was current stays so."""
        current = self._current()
        with self._silent():
            self._setColumns(table)
            # What a click means is what the row shows: both grow together.
            self.shown = []
            self._widget.setRowCount(0)
        for first in range(0, len(rows), ROWS_A_STEP):
            with self._silent():
                for row in rows[first : first + ROWS_A_STEP]:
                    n = len(self.shown)
                    self._widget.insertRow(n)
                    self._fillRow(n, row)
                    self.shown.append(row)
                    if current is not None and np.array_equal(row.voxels, current.voxels):
                        self._widget.setCurrentCell(n, max(self._widget.currentColumn(), 0))
                if first == 0:
                    # The largest numbers are at the top, or look alike.
                    self._widget.resizeColumnsToContents()
            yield

    @contextlib.contextmanager
    def _silent(self) -> Iterator[None]:
        blocked = self._widget.blockSignals(True)
        try:
            yield
        finally:
            self._widget.blockSignals(blocked)

    def _current(self) -> LesionRow | None:
        n = self._widget.currentRow()
        return self.shown[n] if 0 <= n < len(self.shown) else None

    def _setColumns(self, table: LesionTable) -> None:
        columns = _ordered(table.columns())
        if columns != self._columns:
            self._columns = columns
            self._widget.setColumnCount(len(columns))
            self._widget.setHorizontalHeaderLabels([title(name) for name in columns])
            for n, name in enumerate(columns):
                self._widget.horizontalHeaderItem(n).setToolTip(_hint(name))
        if self.sortBy not in columns:
            self.sortBy, self.descending = "volume_ml", True
        order = qt.Qt.DescendingOrder if self.descending else qt.Qt.AscendingOrder
        self._header.setSortIndicatorShown(True)
        self._header.setSortIndicator(columns.index(self.sortBy), order)
        # One label alone needs no column to tell it from others.
        alone = len(table.segments.labels) < 2
        self._widget.setColumnHidden(columns.index("label"), alone)

    def _fillRow(self, n: int, row: LesionRow) -> None:
        palette = self._widget.palette
        group = qt.QPalette.Active if row.kept else qt.QPalette.Disabled
        brush = qt.QBrush(palette.color(group, qt.QPalette.Text))
        for column, name in enumerate(self._columns):
            item = qt.QTableWidgetItem(_cell(row, name))
            flags = qt.Qt.ItemIsEnabled | qt.Qt.ItemIsSelectable
            if column == KEPT:
                flags |= qt.Qt.ItemIsUserCheckable
                item.setCheckState(qt.Qt.Checked if row.kept else qt.Qt.Unchecked)
                item.setToolTip(_("In the segment or not; can be undone"))
            elif name not in ("label", "place"):
                item.setTextAlignment(qt.Qt.AlignRight | qt.Qt.AlignVCenter)
            item.setFlags(flags)
            item.setForeground(brush)
            self._widget.setItem(n, column, item)

    def _onClicked(self, n: int, column: int) -> None:
        if 0 <= n < len(self.shown):
            # A click on a check box alone does not make its row the current one.
            if n != self._widget.currentRow():
                with self._silent():
                    self._widget.setCurrentCell(n, column)
            self._clicked(self.shown[n])

    def _onCurrent(self, n: int, column: int, before: int, columnBefore: int) -> None:
        if n != before:
            self._onClicked(n, column)

    def _onChanged(self, n: int, column: int) -> None:
        if column == KEPT and 0 <= n < len(self.shown):
            # A plain number in the application, a member of an enum elsewhere.
            kept = self._widget.item(n, column).checkState() == qt.Qt.Checked
            if kept != self.shown[n].kept:
                self._checked(self.shown[n], kept)

    def _onHeader(self, column: int) -> None:
        name = self._columns[column]
        if name == self.sortBy:
            self.descending = not self.descending
        else:
            # Numbers are wanted from the largest, words from A.
            self.sortBy, self.descending = name, name not in ("label", "place", "number")
        self._sorted()


def _ordered(columns: list[str]) -> list[str]:
    """What is looked at most comes first; the panel is narrow."""
    first = ["kept", "number", "label", "volume_ml", "longest_diameter_mm", "mean_probability"]
    first += ["max_probability", "place"]
    rest = [name for name in columns if name not in first]
    centers = [name for name in rest if name.startswith("center_")]
    return [*first, *(name for name in rest if name not in centers), *centers]


def title(column: str) -> str:
    """A column's name for the user, with its unit."""
    titles = {
        "kept": _("Keep"),
        "number": _("No."),
        "label": _("Label"),
        "volume_ml": _("Volume\n[ml]"),
        "longest_diameter_mm": _("Longest\n[mm]"),
        "mean_probability": _("Mean\nprob."),
        "max_probability": _("Max.\nprob."),
        "place": _("Place"),
        "center_r_mm": _("R\n[mm]"),
        "center_a_mm": _("A\n[mm]"),
        "center_s_mm": _("S\n[mm]"),
    }
    if column in titles:
        return titles[column]
    return _("Mean\n{input}").format(input=column.removeprefix("mean_").upper())


def _hint(column: str) -> str:
    hints = {
        "longest_diameter_mm": _("Longest diameter in 3D, mm"),
        "mean_probability": _("Mean probability over the lesion's voxels, 0 to 1"),
        "max_probability": _("Highest probability of the lesion's voxels, 0 to 1"),
        "place": _("As seen from the middle of the imaged tissue"),
    }
    return hints.get(column, title(column).replace("\n", " "))


def _cell(row: LesionRow, column: str) -> str:
    lesion = row.lesion
    texts = {
        "kept": "",
        "number": str(lesion.number),
        "label": lesion.label,
        "volume_ml": f"{lesion.volume_ml:.3f}",
        "longest_diameter_mm": f"{lesion.longest_diameter_mm:.1f}",
        "mean_probability": f"{lesion.mean_probability:.2f}",
        "max_probability": f"{lesion.max_probability:.2f}",
        "place": row.place,
        "center_r_mm": f"{lesion.center_ras[0]:.1f}",
        "center_a_mm": f"{lesion.center_ras[1]:.1f}",
        "center_s_mm": f"{lesion.center_ras[2]:.1f}",
    }
    if column in texts:
        return texts[column]
    return meanText(lesion.inputs[column.removeprefix("mean_")])
