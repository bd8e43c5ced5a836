"""A user's hand on the panel, for the scenarios: mouse and keys as Qt sends them."""

import time
from collections.abc import Callable

import qt
import slicer

STEPS = 8
STEP_SECONDS = 0.005


class Hand:
    """Finds the widgets of the module's panel by their names and works on them.

    Every method raises AssertionError where a user could not do it: the widget is hidden,
    disabled, or does not offer what is chosen.

    Args:
        panel: the module's widget object.
    """

    def __init__(self, panel) -> None:
        self.panel = panel

    # What is seen.

    def widget(self, name: str):
        """The widget of that name; the visible one where a hidden one is on its way out."""
        found = self.panel.parent.findChildren("QWidget", name)
        assert found, f"The panel has no '{name}'."
        return next((w for w in found if w.visible), found[-1])

    def text(self, name: str) -> str:
        """What a label or button says."""
        return str(self.widget(name).text)

    def reachable(self, name: str):
        """The widget of that name, which a user can work on."""
        # What has just come gets its place with the next events.
        self.wait(0)
        widget = self.widget(name)
        assert widget.visible, f"'{name}' is not visible."
        assert widget.enabled, f"'{name}' is not enabled: {widget.toolTip}"
        return widget

    def row(self, name: str, text: str) -> int:
        """The row of a list or table that begins with a text."""
        widget = self.widget(name)
        if widget.inherits("QListWidget"):
            texts = [widget.item(n).text() for n in range(widget.count)]
        else:
            texts = [widget.item(n, 0).text() for n in range(widget.rowCount)]
        rows = [n for n, each in enumerate(texts) if each.startswith(text)]
        assert rows, f"'{name}' has no row '{text}', but {texts}."
        return rows[0]

    def column(self, name: str, title: str) -> int:
        """The column of a table by its title, whose lines are joined by a blank."""
        table = self.widget(name)
        titles = [
            table.horizontalHeaderItem(n).text().replace("\n", " ")
            for n in range(table.columnCount)
        ]
        assert title in titles, f"'{name}' has no column '{title}', but {titles}."
        return titles.index(title)

    def cells(self, name: str, title: str) -> list[str]:
        """The texts of a column."""
        table, column = self.widget(name), self.column(name, title)
        return [table.item(n, column).text() for n in range(table.rowCount)]

    # What is done.

    def click(self, name: str) -> None:
        """Click a button, a check box, or the title of a collapsible section."""
        widget = self.reachable(name)
        x = 8 if widget.inherits("QCheckBox") else widget.width // 2
        y = 8 if widget.inherits("ctkCollapsibleButton") else widget.height // 2
        self.clickAt(widget, x, y)

    def unfold(self, name: str) -> None:
        """Open a collapsible section, if it is not open."""
        if self.widget(name).collapsed:
            self.click(name)

    def clickPoint(self, name: str, x: int, y: int) -> None:
        """Click a widget at a point, in pixels from its upper left corner."""
        self.clickAt(self.reachable(name), x, y)

    def clickRow(self, name: str, text: str) -> None:
        """Click the row of a list that begins with a text."""
        widget = self.reachable(name)
        box = widget.visualItemRect(widget.item(self.row(name, text)))
        self.clickAt(widget.viewport(), box.x() + 20, box.center().y())

    def clickCell(self, name: str, row: int, title: str) -> None:
        """Click a cell of a table; on its check box where it has one."""
        table = self.reachable(name)
        item = table.item(row, self.column(name, title))
        table.scrollToItem(item)
        box = table.visualItemRect(item)
        x = box.center().x() if item.text() else box.x() + 8
        self.clickAt(table.viewport(), x, box.center().y())

    def clickTitle(self, name: str, title: str) -> None:
        """Click the title of a table's column."""
        header, section = self.reachable(name).horizontalHeader(), self.column(name, title)
        x = header.sectionViewportPosition(section) + header.sectionSize(section) // 2
        self.clickAt(header.viewport(), x, header.height // 2)

    def clickAt(self, widget, x: int, y: int) -> None:
        """Press and release the left button over a widget."""
        left, none = qt.Qt.LeftButton, qt.Qt.NoButton
        self._mouse(widget, qt.QEvent.MouseButtonPress, x, y, left, left)
        self._mouse(widget, qt.QEvent.MouseButtonRelease, x, y, left, none)
        self.wait(0)

    def drag(self, name: str, value: float) -> None:
        """Take the handle of a slider to a value, as well as a pixel allows."""
        whole = self.reachable(name)
        slider = whole if whole.inherits("QSlider") else whole.findChild("QSlider")
        handle = slider.style().pixelMetric(qt.QStyle.PM_SliderLength)
        low, span = whole.minimum, whole.maximum - whole.minimum
        ends = [
            handle / 2 + (slider.width - handle) * (v - low) / span for v in (whole.value, value)
        ]
        y, left = slider.height // 2, qt.Qt.LeftButton
        self._mouse(slider, qt.QEvent.MouseButtonPress, ends[0], y, left, left)
        for n in range(1, STEPS + 1):
            x = ends[0] + (ends[1] - ends[0]) * n / STEPS
            self._mouse(slider, qt.QEvent.MouseMove, x, y, qt.Qt.NoButton, left)
            self.wait(0)
        self._mouse(slider, qt.QEvent.MouseButtonRelease, ends[1], y, left, qt.Qt.NoButton)
        self.wait(0)

    def choose(self, name: str, text: str) -> None:
        """Go through a combo box or node selector by the arrow keys until a text is there."""
        widget = self.reachable(name)
        box = widget if widget.inherits("QComboBox") else widget.findChild("QComboBox")
        self._key(box, qt.Qt.Key_Home)
        for _n in range(box.count):
            if box.currentText == text:
                return
            self._key(box, qt.Qt.Key_Down)
        offered = [box.itemText(n) for n in range(box.count)]
        raise AssertionError(f"'{name}' does not offer '{text}', but {offered}.")

    def type(self, name: str, text: str) -> None:
        """Replace the text of a field and press Enter."""
        widget = self.reachable(name)
        field = widget if widget.inherits("QLineEdit") else widget.findChild("QLineEdit")
        field.setFocus()
        field.selectAll()
        for letter in text:
            self._key(field, qt.Qt.Key_unknown, letter)
        self._key(field, qt.Qt.Key_Return)

    # Time and files.

    def wait(self, milliseconds: int) -> None:
        """Let events run for a while."""
        end = time.monotonic() + milliseconds / 1000
        slicer.app.processEvents()
        while time.monotonic() < end:
            time.sleep(STEP_SECONDS)
            slicer.app.processEvents()

    def waitUntil(self, condition: Callable[[], bool], seconds: float = 20) -> None:
        """Let events run until something is so."""
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, f"Still not so after {seconds} s; {self.state()}"
            self.wait(5)

    def state(self) -> str:
        """What the panel says of itself, for the report of a failure."""
        button, message = self.widget("segmentButton"), self.text("runMessageLabel")
        return f"Segment: {button.toolTip} Message: {message}"

    def saveScene(self, path: str) -> None:
        """Save the scene as a bundle (.mrb)."""
        assert slicer.util.saveScene(path), f"'{path}' was not saved."

    def loadScene(self, path: str) -> None:
        """Close the scene and load another one."""
        slicer.mrmlScene.Clear()
        slicer.util.loadScene(path)

    # Events.

    def _mouse(self, widget, kind, x, y, button, buttons) -> None:
        event = qt.QMouseEvent(kind, qt.QPointF(x, y), button, buttons, qt.Qt.NoModifier)
        qt.QCoreApplication.sendEvent(widget, event)

    def _key(self, widget, key, text: str = "") -> None:
        for kind in (qt.QEvent.KeyPress, qt.QEvent.KeyRelease):
            event = qt.QKeyEvent(kind, key, qt.Qt.NoModifier, text)
            qt.QCoreApplication.sendEvent(widget, event)
        self.wait(0)
