"""Modal dialogs are answered by the test, in the order in which it expects them.

A dialog that nobody expected is closed as by the Escape key, and is recorded as an error; so is an
answer that no dialog asked for.
"""

from collections import deque
from collections.abc import Callable

from PySide6 import QtCore, QtTest, QtWidgets

from .pythonqt import wrap
from .records import record, recordException

LONGEST_MS = 20_000


class Dialogs:
    """The queue of answers.

    Attributes:
        seen: (class name, window title, text) of every dialog that opened.
    """

    def __init__(self) -> None:
        self.seen: list[tuple[str, str, str]] = []
        self._expected: deque = deque()

    def expect(self, text: str, answer) -> None:
        """Answer the next dialog, whose title or text has to contain `text`.

        Args:
            text: part of the title or text.
            answer: for message boxes the label of a button, for file dialogs and input dialogs
                the text that they return ('' for Cancel), for any dialog a function that gets it
                and has to end it: `lambda dialog: dialog.accept()`.
        """
        self._expected.append((text, answer))

    def unanswered(self) -> list[str]:
        """Texts of the dialogs that were expected and did not come."""
        return [text for text, _ in self._expected]

    def take(self, kind: str, title: str, text: str):
        """The answer to a dialog, None when it was not expected."""
        self.seen.append((kind, title, text))
        if not self._expected or self._expected[0][0] not in f"{title}\n{text}":
            record(f"Unexpected dialog {kind} '{title}': {text}")
            return None
        return self._expected.popleft()[1]


active = Dialogs()


def reset() -> Dialogs:
    """A new queue for a new test."""
    global active
    active = Dialogs()
    return active


def returned(kind: str, title: str, text: str) -> str:
    """What a static function such as QFileDialog.getOpenFileName returns."""
    answer = active.take(kind, title, text)
    return answer if isinstance(answer, str) else ""


def runModal(dialog: QtWidgets.QDialog) -> int:
    """Show a dialog, let it be answered, and return its result as `exec` does."""
    text = ""
    if isinstance(dialog, QtWidgets.QMessageBox):
        text = f"{dialog.text()}\n{dialog.informativeText()}\n{dialog.detailedText()}"
    else:
        labels = dialog.findChildren(QtWidgets.QLabel)
        text = "\n".join(label.text() for label in labels)
    answer = active.take(dialog.metaObject().className(), dialog.windowTitle(), text)
    guard = QtCore.QTimer()
    guard.setSingleShot(True)
    guard.timeout.connect(lambda: _giveUp(dialog))
    guard.start(LONGEST_MS)
    QtCore.QTimer.singleShot(0, lambda: _answer(dialog, answer))
    # Tests run outside of an event loop, so this one would be the first and delete what the
    # application deletes only after the dialog: slicer.util calls deleteLater before exec.
    QtCore.QCoreApplication.removePostedEvents(dialog, QtCore.QEvent.Type.DeferredDelete.value)
    try:
        return QtWidgets.QDialog.exec(dialog)
    finally:
        guard.stop()


def _escape(dialog) -> None:
    """The Escape key; a message box without a button for it has to go anyway."""
    QtTest.QTest.keyClick(dialog, QtCore.Qt.Key.Key_Escape)
    if dialog.isVisible():
        dialog.reject()


def _giveUp(dialog) -> None:
    record(f"The dialog '{dialog.windowTitle()}' was still open after {LONGEST_MS / 1000} s.")
    _escape(dialog)


def _answer(dialog, answer) -> None:
    if isinstance(answer, Callable):
        try:
            answer(wrap(dialog))
        except Exception:
            recordException()
            _escape(dialog)
    elif isinstance(answer, str) and isinstance(dialog, QtWidgets.QMessageBox):
        labels = {button.text().replace("&", ""): button for button in dialog.buttons()}
        if answer in labels:
            labels[answer].click()
        else:
            record(f"The dialog '{dialog.text()}' has no button '{answer}', but {list(labels)}.")
            _escape(dialog)
    else:
        _escape(dialog)
