"""The host's Qt behaves as PythonQt was observed to in Slicer 5.8.1."""

import functools
import gc

import numpy as np
import pytest


@pytest.mark.parametrize(
    ("kind", "name", "value"),
    [
        ("QPushButton", "text", ""), ("QPushButton", "enabled", True),
        ("QPushButton", "visible", False), ("QCheckBox", "checked", False),
        ("QSpinBox", "value", 0), ("QSpinBox", "minimum", 0), ("QSpinBox", "maximum", 99),
        ("QPushButton", "toolTip", ""), ("QComboBox", "currentIndex", -1),
        ("QComboBox", "currentText", ""), ("QComboBox", "currentData", None),
        ("QComboBox", "count", 0), ("QDialog", "modal", False), ("QWidget", "windowTitle", ""),
        ("QWidget", "objectName", ""), ("QPlainTextEdit", "plainText", ""),
        ("QTableWidget", "rowCount", 0), ("QTableWidget", "columnCount", 0),
        ("QListWidget", "currentRow", -1),
    ],
)  # fmt: skip
def test_a_property_is_a_value_and_cannot_be_called(qt, kind, name, value):
    widget = getattr(qt, kind)()
    assert getattr(widget, name) == value
    with pytest.raises(TypeError, match="not callable"):
        getattr(widget, name)()


@pytest.mark.parametrize("name", ["size", "pos", "geometry", "font"])
def test_a_property_of_a_class_is_an_object(qt, name):
    with pytest.raises(TypeError, match="not callable"):
        getattr(qt.QWidget(), name)()


def test_methods_that_are_no_properties_are_called(qt):
    button = qt.QPushButton("hello")
    assert button.isEnabled() is True
    assert button.isVisible() is False
    assert button.layout() is None
    assert button.parent() is None
    assert button.children() == ()
    edit = qt.QTextEdit()
    edit.setPlainText("a")
    assert edit.toPlainText() == "a"
    button.setText("x")
    button.text = "y"
    assert button.text == "y"


def test_an_unknown_attribute_is_an_error_to_read_and_to_write(qt):
    button = qt.QPushButton()
    with pytest.raises(AttributeError, match="QPushButton has no attribute named 'x1'"):
        button.x1  # noqa: B018
    for name in ("x1", "_private"):
        with pytest.raises(AttributeError, match=f"'{name}' does not exist on QPushButton and"):
            setattr(button, name, 1)


def test_a_python_subclass_may_have_attributes_but_not_read_only_properties(qt):
    class Sub(qt.QWidget):
        def __init__(self, parent=None):
            super().__init__(parent)
            self.mine = 1

    sub = Sub()
    assert sub.mine == 1
    for name in ("x", "y", "width", "height"):
        with pytest.raises(
            AttributeError, match=f"Property '{name}' of Sub object is not writable"
        ):
            setattr(sub, name, 1)


def test_virtual_methods_event_filters_and_signals_of_subclasses_work(qt):
    class Sub(qt.QWidget):
        pressed = qt.Signal(int)

        def sizeHint(self):
            return qt.QSize(123, 45)

        def mousePressEvent(self, event):
            self.pressed.emit(event.button())
            super().mousePressEvent(event)

    class Filter(qt.QObject):
        def eventFilter(self, watched, event):
            seen.append((watched, event.type()))
            return False

    from host.conversion import unwrap
    from PySide6.QtCore import Qt
    from PySide6.QtTest import QTest

    seen, got = [], []
    sub, watcher = Sub(), Filter()
    sub.installEventFilter(watcher)
    sub.pressed.connect(got.append)
    QTest.mouseClick(unwrap(sub), Qt.MouseButton.LeftButton)
    assert got == [1]
    assert (sub, qt.QEvent.MouseButtonPress) in seen
    assert sub.sizeHint().width() == 123


def test_dynamic_properties_become_attributes_and_name_is_the_object_name(qt):
    button = qt.QPushButton()
    button.setProperty("foo", 5)
    assert (button.property("foo"), button.foo) == (5, 5)
    button.foo = 6
    assert button.property("foo") == 6
    button.name = "b"
    assert button.objectName == "b"
    assert button.property("unknown") is None


@pytest.mark.parametrize(("value", "text"), [(5, "5"), (None, "None"), (b"x", "b'x'")])
def test_a_text_takes_anything(qt, value, text):
    label = qt.QLabel()
    label.setText(value)
    assert label.text == text
    label.text = value
    assert label.text == text


def test_a_bool_takes_anything_by_its_truth(qt):
    box = qt.QCheckBox()
    box.setEnabled(None)
    box.checked = "yes"
    assert (box.enabled, box.checked) == (False, True)


def test_an_int_takes_floats_and_numpy_and_refuses_texts_and_none(qt):
    box = qt.QSpinBox()
    box.setValue(5.7)
    assert box.value == 5
    box.value = np.float32(6.9)
    assert box.value == 6
    box.setValue(np.int64(7))
    assert box.value == 7
    for bad in ("5", None):
        with pytest.raises(ValueError, match=r"Called setValue\(.*wrong arguments"):
            box.setValue(bad)
        with pytest.raises(AttributeError, match="'value' of type 'int' does not accept an object"):
            box.value = bad


def test_wrong_counts_and_keywords_are_value_errors(qt):
    box = qt.QSpinBox()
    with pytest.raises(ValueError, match="wrong arguments"):
        box.setValue(1, 2)
    with pytest.raises(ValueError, match="does not support kwargs"):
        box.setValue(val=1)
    with pytest.raises(ValueError, match="does not support kwargs"):
        qt.QLabel(text="x")


def test_lists_come_back_as_tuples(qt):
    widget = qt.QWidget()
    layout = qt.QVBoxLayout(widget)
    button = qt.QPushButton()
    layout.addWidget(button)
    assert widget.children() == (layout, button)
    assert widget.findChildren("QPushButton") == (button,)
    assert widget.findChildren(qt.QWidget) == (button,)
    assert qt.QListWidget().selectedItems() == ()


def test_wrapper_classes_do_not_inherit_from_each_other(qt):
    button = qt.QPushButton()
    assert isinstance(button, qt.QPushButton)
    assert not isinstance(button, qt.QWidget)
    assert button.inherits("QWidget")
    assert button.className() == "QPushButton"


def test_the_same_object_has_the_same_wrapper(qt):
    widget = qt.QWidget()
    button = qt.QPushButton(widget)
    assert button.parent() is widget
    assert widget.findChild(qt.QPushButton) is button
    assert widget.findChild("QLineEdit") is None
    button.name = "b"
    assert widget.findChild(qt.QPushButton, "b") is button
    assert widget.findChild(qt.QPushButton, "c") is None


def test_a_deleted_object_is_false_and_raises(qt):
    widget = qt.QWidget()
    widget.delete()
    assert not widget
    assert widget == None  # noqa: E711
    assert widget is not None
    with pytest.raises(ValueError, match="Trying to call 'isVisible' on a destroyed QWidget"):
        widget.isVisible()
    with pytest.raises(ValueError, match="Trying to read property 'visible'"):
        widget.visible  # noqa: B018


def test_only_what_has_a_parent_survives_when_python_lets_go(qt):
    gone = []
    widget = qt.QWidget()
    for parented in (True, False):
        button = qt.QPushButton(widget) if parented else qt.QPushButton()
        button.destroyed.connect(lambda parented=parented: gone.append(parented))
        del button
    gc.collect()
    assert len(widget.children()) == 1


def test_what_pyside_has_and_the_application_has_not_is_missing(qt):
    for name in ("QThread", "QVariant", "Property", "SIGNAL"):
        with pytest.raises(AttributeError, match=f"no attribute '{name}'"):
            getattr(qt, name)
    with pytest.raises(AttributeError, match="has no attribute named 'emit'"):
        qt.QPushButton().emit  # noqa: B018


# ---- signals


def test_both_ways_of_connecting_work_and_say_so(qt):
    got = []
    button = qt.QPushButton()
    assert button.clicked.connect(lambda checked: got.append(("attribute", checked))) is True
    assert button.connect("clicked(bool)", lambda checked: got.append(("text", checked))) is True
    assert button.connect("clicked()", lambda *a: got.append(("none", a))) is True
    button.click()
    assert got == [("attribute", False), ("text", False), ("none", ())]


@pytest.mark.parametrize("signal", ["nosuch()", "clicked", "clicked(int)"])
def test_a_bad_signature_is_false_and_a_line_on_the_console(qt, recorded, signal):
    assert qt.QPushButton().connect(signal, print) is False
    assert "No such signal QPushButton::" in recorded[0]


def test_a_missing_signal_attribute_raises(qt):
    with pytest.raises(AttributeError, match="no attribute named 'pushed'"):
        qt.QPushButton().pushed.connect(print)


def test_disconnecting(qt):
    got = []
    button, f = qt.QPushButton(), got.append
    button.clicked.connect(f)
    assert button.clicked.disconnect(f) is True
    assert button.clicked.disconnect(f) is False
    button.connect("clicked(bool)", f)
    assert button.disconnect("clicked(bool)", f) is True
    button.clicked.connect(f)
    assert button.clicked.disconnect() is True
    button.click()
    assert got == []


def test_a_signal_can_be_emitted_and_called(qt):
    got = []
    button = qt.QPushButton()
    button.clicked.connect(got.append)
    button.clicked.emit(True)
    button.clicked(True)
    assert got == [True, True]


def test_the_callee_may_take_fewer_arguments_but_not_more(qt, recorded):
    got = []
    button = qt.QPushButton()
    button.clicked.connect(lambda: got.append("fewer"))
    button.clicked.connect(lambda a, b: got.append("more"))
    button.click()
    assert got == ["fewer"]
    assert "TypeError" in recorded[0]


def test_a_default_argument_is_filled_by_the_signal(qt):
    got = []
    button = qt.QPushButton()
    button.clicked.connect(lambda number=5: got.append(number))
    button.click()
    assert got == [False]


def test_a_partial_gets_every_argument(qt, recorded):
    button = qt.QPushButton()
    button.clicked.connect(functools.partial(lambda only: None, 1))
    button.click()
    assert "TypeError" in recorded[0]


def test_an_exception_in_a_slot_is_printed_and_does_not_reach_the_emitter(qt, recorded, capsys):
    button = qt.QPushButton()
    button.clicked.connect(lambda: 1 / 0)
    button.click()
    assert "ZeroDivisionError" in recorded[0]
    assert "ZeroDivisionError" in capsys.readouterr().err


def test_no_signal_when_nothing_changes_and_blocking_gives_the_previous_state(qt):
    got = []
    edit = qt.QLineEdit()
    edit.textChanged.connect(got.append)
    edit.text = "a"
    edit.setText("a")
    assert got == ["a"]
    assert edit.blockSignals(True) is False
    assert edit.blockSignals(False) is True


def test_a_signal_can_lead_to_a_slot_of_another_object(qt):
    box, other = qt.QCheckBox(), qt.QPushButton()
    assert box.connect("toggled(bool)", other, "setEnabled(bool)") is True
    box.checked = True
    box.checked = False
    assert other.enabled is False
    box.connect("toggled(bool)", other.setEnabled)
    box.checked = True
    assert other.enabled is True


def test_of_overloads_the_attribute_gives_the_first(qt):
    process, got = qt.QProcess(), []
    process.finished.connect(lambda *a: got.append(("attribute", a)))
    process.connect("finished(int, QProcess::ExitStatus)", lambda *a: got.append(("text", a)))
    process.start("true", [])
    process.waitForFinished()
    assert got == [("attribute", (0,)), ("text", (0, 0))]


# ---- enums


def test_enums_are_ints_without_scoped_access(qt):
    assert qt.Qt.Horizontal == 1
    assert repr(qt.Qt.Horizontal) == "1"
    assert type(qt.Qt.Horizontal).__name__ == "Orientation"
    assert {qt.Qt.Horizontal: "a"}[1] == "a"
    assert type(qt.Qt.AlignLeft | qt.Qt.AlignTop) is int
    with pytest.raises(AttributeError):
        qt.Qt.Orientation.Horizontal  # noqa: B018
    slider = qt.QSlider()
    slider.orientation = 1
    assert type(slider.orientation) is int
    slider.setOrientation(2)
    assert slider.orientation == qt.Qt.Vertical
    assert type(qt.QProcess().state()).__name__ == "ProcessState"


def test_an_item_of_a_combo_box_may_hold_any_object(qt):
    box, thing = qt.QComboBox(), object()
    box.addItem("a", thing)
    assert box.itemData(0) is thing
    assert box.currentData is thing
