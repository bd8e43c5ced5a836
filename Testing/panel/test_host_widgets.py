"""The stand-ins of CTK's and Slicer's widgets have what the originals have and nothing else."""

import pytest


@pytest.fixture
def ctk(qt):
    from host.ctkwidgets import ctk

    return ctk


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("ctkCollapsibleButton", "setCollapsed"), ("ctkSliderWidget", "setRange"),
        ("ctkSliderWidget", "setMinimum"), ("ctkSliderWidget", "setMaximum"),
        ("ctkSliderWidget", "slider"), ("ctkSliderWidget", "spinBox"),
        ("ctkPathLineEdit", "validInput"), ("ctkPathLineEdit", "isValid"),
        ("ctkPathLineEdit", "clearHistory"), ("ctkCheckableComboBox", "checkedItems"),
        ("ctkCheckableComboBox", "modelIndex"),
    ],
)  # fmt: skip
def test_what_the_original_lacks_in_python_is_missing(ctk, kind, name):
    with pytest.raises(AttributeError, match=f"{kind} has no attribute named '{name}'"):
        getattr(getattr(ctk, kind)(), name)


def test_a_widget_without_stand_in_is_missing(ctk):
    with pytest.raises(AttributeError, match="ctkDirectoryButton"):
        ctk.ctkDirectoryButton  # noqa: B018


def test_a_collapsible_button_hides_what_is_in_it(host):
    qt, got = host.qt, []
    button = host.ctk.ctkCollapsibleButton("Inputs")
    layout = qt.QVBoxLayout(button)
    inside, hidden = qt.QLabel("a"), qt.QLabel("b")
    layout.addWidget(inside)
    layout.addWidget(hidden)
    hidden.hide()
    button.contentsCollapsed.connect(got.append)
    button.show()
    assert (button.text, button.collapsed, button.checked, inside.visible) == (
        "Inputs", False, True, True,
    )  # fmt: skip
    host.click(button)
    assert (button.collapsed, button.checked, inside.visible) == (True, False, False)
    button.collapsed = False
    assert (inside.visible, hidden.visible, got) == (True, False, [True, False])


def test_a_slider_clamps_rounds_and_gives_floats(ctk):
    got = []
    slider = ctk.ctkSliderWidget()
    slider.minimum, slider.maximum, slider.decimals, slider.singleStep = 0, 1, 2, 0.01
    slider.valueChanged.connect(got.append)
    slider.value = 0.333
    slider.setValue(7)
    slider.setValue(7)
    assert got == [0.33, 1.0]
    assert type(slider.value) is float
    slider.maximum = 0.5
    assert slider.value == 0.5
    with pytest.raises(AttributeError, match="'value' of type 'double' does not accept"):
        slider.value = "1"


@pytest.mark.parametrize("tracking", [True, False])
def test_a_dragged_slider_tells_on_the_way_or_at_the_end(host, tracking):
    slider, on, end = host.ctk.ctkSliderWidget(), [], []
    slider.resize(400, 30)
    slider.tracking = tracking
    slider.valueIsChanging.connect(on.append)
    slider.valueChanged.connect(end.append)
    slider.show()
    host.wait(0)
    host.dragSlider(slider, 60)
    assert abs(slider.value - 60) < 2
    if tracking:
        assert len(end) > 3
        assert on == []
    else:
        assert end == [slider.value]
        assert len(on) > 3


def test_a_range_slider_is_dragged_by_either_handle(host):
    slider, got = host.ctk.ctkDoubleRangeSlider(), []
    slider.setRange(0, 100)
    slider.setValues(20, 80)
    slider.resize(210, 20)
    slider.valuesChanged.connect(lambda low, high: got.append((low, high)))
    slider.show()
    host.drag(slider, (45, 10), (85, 10))
    assert (slider.minimumValue, slider.maximumValue) == (40.0, 80.0)
    host.drag(slider, (165, 10), (125, 10))
    assert got[-1] == (slider.minimumValue, slider.maximumValue) == (40.0, 60.0)


def test_a_range_widget_has_two_numbers(host):
    widget, got = host.ctk.ctkRangeWidget(), []
    widget.setRange(0, 10)
    widget.setValues(2, 8)
    widget.decimals, widget.suffix = 1, " mm"
    widget.valuesChanged.connect(lambda low, high: got.append((low, high)))
    widget.show()
    host.type(widget.findChild("QDoubleSpinBox", "MaximumSpinBox"), "5.5")
    assert got[-1] == (2.0, 5.5)
    assert (widget.minimumValue, widget.maximumValue) == (2.0, 5.5)


def test_a_path_is_typed_browsed_and_remembered(host, tmp_path):
    ctk, got, valid = host.ctk, [], []
    edit = ctk.ctkPathLineEdit()
    edit.settingKey = "paths"
    edit.filters = ctk.ctkPathLineEdit.Dirs
    edit.currentPathChanged.connect(got.append)
    edit.validInputChanged.connect(valid.append)
    edit.show()
    edit.currentPath = "/no/such"
    host.dialogs.expect("directory", str(tmp_path))
    host.click(edit.findChild("QToolButton"))
    assert (got, valid) == (["/no/such", str(tmp_path)], [True])
    edit.addCurrentPathToHistory()
    host.restartSettings()
    other = ctk.ctkPathLineEdit()
    other.settingKey = "paths"
    other.retrieveHistory()
    assert other.currentPath == str(tmp_path)


def test_a_checkable_combo_box_tells_what_is_checked(ctk, qt):
    box, got = ctk.ctkCheckableComboBox(), []
    box.addItems(["a", "b"])
    box.checkedIndexesChanged.connect(lambda: got.append(1))
    index = box.checkableModel().index(1, 0)
    box.setCheckState(index, qt.Qt.Checked)
    (checked,) = box.checkedIndexes()
    assert (checked.row(), checked.data(), got) == (1, "b", [1])
    assert not box.allChecked()


# ---- nodes


@pytest.fixture
def selector(host):
    import slicer

    made = slicer.qMRMLNodeComboBox()
    made.nodeTypes = ["vtkMRMLScalarVolumeNode"]
    return made


@pytest.fixture
def add(host):
    return lambda name, kind="vtkMRMLScalarVolumeNode": host.core.scene.AddNewNodeByClass(
        kind, name
    )


def test_without_none_the_first_node_is_chosen_when_the_scene_is_set(host, selector, add):
    first, _ = add("A"), add("B")
    got = []
    assert selector.currentNodeChanged.connect(lambda node: got.append(node)) is True
    assert selector.connect("currentNodeChanged(vtkMRMLNode*)", lambda n: got.append(("n", n)))
    assert selector.connect("currentNodeChanged(bool)", lambda valid: got.append(valid))
    assert selector.connect("currentNodeIDChanged(QString)", lambda text: got.append(text))
    selector.setMRMLScene(host.core.scene)
    assert selector.currentNode() is first
    assert set(map(str, got)) == {str(first), str(("n", first)), "True", first.GetID()}


def test_a_selector_follows_the_scene(host, selector, add):
    selector.noneEnabled = True
    selector.setMRMLScene(host.core.scene)
    got, names = [], []
    selector.connect("currentNodeChanged(bool)", got.append)
    selector.currentNodeRenamed.connect(names.append)
    node = add("A")
    assert (selector.currentNode(), selector.nodeCount()) == (None, 1)
    selector.setCurrentNode(node)
    node.SetName("renamed")
    assert names == ["renamed"]
    host.core.scene.RemoveNode(node)
    assert (selector.currentNode(), selector.currentNodeID, got) == (None, "", [True, False])
    add("B")
    host.core.scene.Clear()
    assert selector.nodeCount() == 0


def test_a_selector_offers_the_types_attributes_and_visibility_asked_for(host, selector, add):
    add("A")
    add("L", "vtkMRMLLabelMapVolumeNode")
    marked = add("M")
    marked.SetAttribute("kind", "ours")
    hidden = add("H")
    hidden.SetHideFromEditors(1)
    selector.setMRMLScene(host.core.scene)
    assert selector.nodeCount() == 3
    selector.showChildNodeTypes = False
    assert selector.nodeCount() == 2
    selector.showHidden = True
    assert selector.nodeCount() == 3
    selector.addAttribute("vtkMRMLScalarVolumeNode", "kind", "ours")
    assert [selector.nodeFromIndex(n) for n in range(selector.nodeCount())] == [marked]


def test_a_selectors_model_hides_nodes_by_their_ids(host, selector, add):
    first, second = add("A"), add("B")
    selector.setMRMLScene(host.core.scene)
    selector.setCurrentNode(second)
    offered = selector.sortFilterProxyModel()
    offered.hiddenNodeIDs = [second.GetID()]
    assert (selector.nodeCount(), selector.currentNode()) == (1, first)
    assert selector.sortFilterProxyModel().hiddenNodeIDs == (second.GetID(),)
    with pytest.raises(AttributeError, match="setHiddenNodeIDs"):
        offered.setHiddenNodeIDs([])
    offered.hiddenNodeIDs = []
    assert selector.nodeCount() == 2


def test_node_types_given_as_a_text_become_its_letters(selector):
    selector.nodeTypes = "vtkMRML"
    assert selector.nodeTypes == tuple("vtkMRML")


def test_a_text_is_no_node_and_a_wrong_signature_no_signal(host, selector):
    with pytest.raises(TypeError):
        selector.setCurrentNode("vtkMRMLScalarVolumeNode1")
    assert selector.connect("currentNodeChanged(vtkMRMLVolumeNode*)", print) is False
    assert "No such signal" in host.errors[0]
    host.errors.clear()


def test_the_user_chooses_creates_renames_and_deletes(host, selector, add):
    selector.renameEnabled, selector.baseName = True, "New"
    added = []
    selector.nodeAddedByUser.connect(added.append)
    first, second = add("A"), add("B")
    selector.setMRMLScene(host.core.scene)
    selector.show()
    host.choose(selector, "B")
    assert selector.currentNode() is second
    host.choose(selector, "Create new Volume")
    assert added == [selector.currentNode()]
    assert added[0].GetName() == "New"
    host.dialogs.expect("Rename", "Other")
    host.choose(selector, "Rename current")
    assert added[0].GetName() == "Other"
    host.choose(selector, "Delete current")
    assert selector.currentNode() is first
    with pytest.raises(AssertionError, match="'C' is not offered"):
        host.choose(selector, "C")


def test_nodes_are_checked(host, add):
    import slicer

    box, got = slicer.qMRMLCheckableNodeComboBox(), []
    box.nodeTypes = ["vtkMRMLScalarVolumeNode"]
    box.setMRMLScene(host.core.scene)
    first, second = add("A"), add("B")
    box.checkedNodesChanged.connect(lambda: got.append(1))
    box.setCheckState(second, host.qt.Qt.Checked)
    assert box.checkedNodes() == (second,)
    host.core.scene.RemoveNode(second)
    assert (box.checkedNodes(), len(got)) == ((), 1)
    assert box.noneChecked()
    assert first is box.nodeFromIndex(0)


def test_segments_are_chosen_and_followed(host, add):
    import slicer

    selector, got = slicer.qMRMLSegmentSelectorWidget(), []
    selector.setMRMLScene(host.core.scene)
    node = add("S", "vtkMRMLSegmentationNode")
    selector.currentSegmentChanged.connect(got.append)
    selector.setCurrentNode(node)
    first = node.GetSegmentation().AddEmptySegment("one", "One")
    second = node.GetSegmentation().AddEmptySegment("two", "Two")
    assert (selector.currentNode(), selector.currentSegmentID()) == (node, first)
    selector.setCurrentSegmentID(second)
    node.GetSegmentation().RemoveSegment(second)
    assert (selector.currentSegmentID(), got) == (first, [first, second, first])


def test_a_table_shows_its_node_and_follows_it(host):
    import numpy as np
    import slicer

    node = host.core.scene.AddNewNodeByClass("vtkMRMLTableNode", "T")
    slicer.util.updateTableFromArray(node, [np.arange(3), np.arange(3) * 1.5], ["a", "b"])
    view = slicer.qMRMLTableView()
    view.setMRMLTableNode(node)
    model = view.model()
    assert (model.rowCount(), model.columnCount()) == (3, 2)
    assert model.headerData(1, host.qt.Qt.Horizontal) == "b"
    node.GetTable().SetValue(1, 1, 9.25)
    node.Modified()
    assert model.index(1, 1).data() == "9.25"
    view.selectRow(1)
    view.copySelection()
    assert host.qt.QApplication.clipboard().text() == "1\t9.25"
    with pytest.raises(TypeError):
        view.setMRMLTableNode(5)


def test_color_tables_are_offered(host):
    import slicer

    box = slicer.qMRMLColorTableComboBox()
    box.setMRMLScene(host.core.scene)
    names = {box.nodeFromIndex(n).GetName() for n in range(box.nodeCount())}
    assert "Grey" in names


UI = """<?xml version="1.0" encoding="UTF-8"?>
<ui version="4.0"><class>F</class><widget class="qMRMLWidget" name="F">
<layout class="QVBoxLayout" name="l">
<item><widget class="ctkDoubleRangeSlider" name="range">
 <property name="orientation"><enum>Qt::Horizontal</enum></property>
 <property name="maximum"><double>5.0</double></property></widget></item>
<item><widget class="ctkPathLineEdit" name="path">
 <property name="filters"><set>ctkPathLineEdit::Dirs|ctkPathLineEdit::Readable</set></property>
</widget></item>
<item><widget class="ctkCollapsibleGroupBox" name="group">
 <property name="collapsed"><bool>true</bool></property>
 <layout class="QVBoxLayout" name="l2"><item><widget class="QLabel" name="inside">
  <property name="alignment"><set>Qt::AlignRight</set></property></widget></item></layout>
</widget></item>
</layout></widget></ui>"""


def test_properties_of_a_ui_file_reach_the_stand_ins(host, tmp_path):
    import slicer

    (tmp_path / "f.ui").write_text(UI)
    widget = slicer.util.loadUI(str(tmp_path / "f.ui"))
    ui = slicer.util.childWidgetVariables(widget)
    widget.show()
    assert (ui.range.orientation, ui.range.maximum, ui.path.filters) == (1, 5.0, 17)
    assert ui.inside.alignment & host.qt.Qt.AlignRight
    assert (ui.group.collapsed, ui.inside.visible) == (True, False)
    host.click(ui.group)
    assert (ui.group.collapsed, ui.inside.visible) == (False, True)


def test_a_ui_file_that_qt_cannot_read_right_is_recorded(host, tmp_path):
    import slicer

    wrong = UI.replace("Qt::AlignRight", "Qt::NoSuch")
    (tmp_path / "f.ui").write_text(wrong)
    slicer.util.loadUI(str(tmp_path / "f.ui"))
    assert "NoSuch" in host.errors[0]
    host.errors.clear()
