"""Stand-ins for Slicer's node selectors; they work on the real scene by its events."""

import weakref

import vtk
from PySide6 import QtCore, QtGui, QtWidgets
from PySide6.QtCore import Property, Signal, Slot
from shiboken6 import Shiboken

CHECK_ROLE = QtCore.Qt.ItemDataRole.CheckStateRole
ID_ROLE = QtCore.Qt.ItemDataRole.UserRole
ACTION_ROLE = QtCore.Qt.ItemDataRole.UserRole + 1


def checkedNode(node, name: str, kind: str = "vtkMRMLNode"):
    """The node itself, or None.

    Raises:
        TypeError: it is something else.
    """
    if node is not None and not (hasattr(node, "IsA") and node.IsA(kind)):
        raise TypeError(f"{name} takes a {kind} or None, not {type(node).__name__}")
    return node


class Observers:
    """VTK observers that are let go of together; they end with the object whose methods they are.

    The callbacks are methods of Qt objects, which go without asking VTK.
    """

    def __init__(self) -> None:
        self._tags: list = []

    def add(self, target, events, method, withNode: bool = False) -> None:
        """Call `method(caller, event)`, or `method(node)` for events that carry a node."""
        reference = weakref.WeakMethod(method)

        def call(caller, event, *node) -> None:
            alive = reference()
            if alive is not None and Shiboken.isValid(alive.__self__):
                alive(*node) if withNode else alive(caller, event)

        if withNode:
            call.CallDataType = vtk.VTK_OBJECT
        for event in events:
            self._tags.append((target, target.AddObserver(event, call)))

    def clear(self) -> None:
        for target, tag in self._tags:
            target.RemoveObserver(tag)
        self._tags = []

    def __del__(self) -> None:
        self.clear()


class SceneWatcher(QtCore.QObject):
    """Says when a list of nodes may look different: added, removed, renamed, imported, closed."""

    changed = Signal()
    aboutToRemove = Signal(object)

    def __init__(self, parent) -> None:
        super().__init__(parent)
        self.scene = None
        self._scene, self._nodes = Observers(), Observers()

    def watch(self, scene) -> None:
        self._scene.clear()
        self.scene = scene
        if scene is not None:
            events = (scene.NodeAddedEvent, scene.NodeRemovedEvent, scene.EndBatchProcessEvent)
            self._scene.add(scene, events, self._sceneChanged)
            removing = (scene.NodeAboutToBeRemovedEvent,)
            self._scene.add(scene, removing, self._removing, withNode=True)
        self.changed.emit()

    def _sceneChanged(self, caller, event) -> None:
        # While a scene is closed or read, its nodes are half there.
        if not self.scene.IsBatchProcessing():
            self.changed.emit()

    def _removing(self, node) -> None:
        self.aboutToRemove.emit(node)

    def follow(self, nodes) -> None:
        """Notice when one of these nodes is renamed."""
        self._nodes.clear()
        for node in nodes:
            self._nodes.add(node, (vtk.vtkCommand.ModifiedEvent,), self._nodeChanged)

    def _nodeChanged(self, caller, event) -> None:
        self.changed.emit()


class _NodeList(QtWidgets.QWidget):
    """What selectors of nodes have in common: which nodes they offer."""

    nodeAdded = Signal(object)
    nodeAboutToBeRemoved = Signal(object)
    mrmlSceneChanged = Signal(object)
    vtkSignals = ("nodeAdded(vtkMRMLNode*)", "nodeAboutToBeRemoved(vtkMRMLNode*)",
                  "mrmlSceneChanged(vtkMRMLScene*)")  # fmt: skip

    def __init__(self, parent=None) -> None:
        super().__init__(parent)
        row = QtWidgets.QHBoxLayout(self)
        row.setContentsMargins(0, 0, 0, 0)
        self._box = QtWidgets.QComboBox()
        self._box.setSizeAdjustPolicy(
            QtWidgets.QComboBox.SizeAdjustPolicy.AdjustToMinimumContentsLengthWithIcon
        )
        row.addWidget(self._box)
        self._types: list[str] = []
        self._attributes: list[tuple] = []
        self._hidden = False
        self._children = True
        self._nodes: list = []
        self._watcher = SceneWatcher(self)
        self._watcher.changed.connect(self._refresh)
        self._watcher.aboutToRemove.connect(self._aboutToRemove)

    def _offers(self, node) -> bool:
        kinds = [t for t in self._types if node.IsA(t)]
        if not self._children:
            kinds = [t for t in kinds if node.GetClassName() == t]
        if not kinds or (node.GetHideFromEditors() and not self._hidden):
            return False
        for kind, name, value in self._attributes:
            if node.IsA(kind):
                found = node.GetAttribute(name)
                if found is None or (value is not None and str(value) != found):
                    return False
        return True

    def _refresh(self) -> None:
        scene = self._watcher.scene
        count = 0 if scene is None else scene.GetNumberOfNodes()
        before = self._nodes
        every = [scene.GetNthNode(n) for n in range(count)]
        self._nodes = [node for node in every if self._offers(node)]
        if [id(n) for n in before] != [id(n) for n in self._nodes]:
            self._watcher.follow([n for n in every if any(n.IsA(t) for t in self._types)])
        self._fill(before)
        for node in self._nodes:
            if node not in before:
                self.nodeAdded.emit(node)

    def _fill(self, before: list) -> None:
        raise NotImplementedError

    def _aboutToRemove(self, node) -> None:
        if node in self._nodes:
            self.nodeAboutToBeRemoved.emit(node)

    @Slot(object)
    def setMRMLScene(self, scene) -> None:
        if scene is not None and not hasattr(scene, "GetNumberOfNodes"):
            raise TypeError("setMRMLScene takes a vtkMRMLScene or None")
        if scene is not self._watcher.scene:
            self._watcher.watch(scene)
            self.mrmlSceneChanged.emit(scene)

    @Slot(result=object)
    def mrmlScene(self):
        return self._watcher.scene

    @Slot(result=int)
    def nodeCount(self) -> int:
        return len(self._nodes)

    @Slot(int, result=object)
    def nodeFromIndex(self, index):
        return self._nodes[int(index)] if 0 <= int(index) < len(self._nodes) else None

    @Slot(str, str, object)
    def addAttribute(self, kind, name, value=None) -> None:
        self._attributes.append((str(kind), str(name), value))
        self._refresh()

    @Slot(str, str)
    def removeAttribute(self, kind, name) -> None:
        self._attributes = [a for a in self._attributes if a[:2] != (str(kind), str(name))]
        self._refresh()

    def _set(self, name: str, value) -> None:
        setattr(self, name, value)
        self._refresh()

    nodeTypes = Property(
        "QStringList", lambda self: self._types, lambda self, v: self._set("_types", list(v))
    )
    showHidden = Property(bool, lambda self: self._hidden, lambda self, v: self._set("_hidden", v))
    showChildNodeTypes = Property(
        bool, lambda self: self._children, lambda self, v: self._set("_children", v)
    )


class qMRMLSortFilterProxyModel(QtCore.QSortFilterProxyModel):
    """What a selector offers, as a model; it hides nodes that their type and attributes let pass.

    The original's setter is no slot, so that Python sees the property alone.
    """

    notInPython = ("setHiddenNodeIDs",)

    def __init__(self, owner) -> None:
        super().__init__(owner)
        self._ids: list[str] = []

    def _hide(self, ids) -> None:
        self._ids = list(ids)
        self.parent()._refresh()

    hiddenNodeIDs = Property("QStringList", lambda self: self._ids, _hide)


class qMRMLNodeComboBox(_NodeList):
    """Chooses one node of the scene, and creates, renames and deletes nodes."""

    currentNodeChanged = Signal((object,), (bool,))
    currentNodeIDChanged = Signal(str)
    nodeAddedByUser = Signal(object)
    nodeActivated = Signal(object)
    currentNodeRenamed = Signal(str)
    vtkSignals = (*_NodeList.vtkSignals, "currentNodeChanged(vtkMRMLNode*)",
                  "nodeAddedByUser(vtkMRMLNode*)", "nodeActivated(vtkMRMLNode*)")  # fmt: skip

    def __init__(self, parent=None) -> None:
        super().__init__(parent)
        self._current = None
        self._shownName = ""
        self._none, self._add, self._remove = False, True, True
        self._edit, self._rename, self._select = False, False, True
        self._baseName, self._noneText, self._tag = "", "None", ""
        self._proxy = qMRMLSortFilterProxyModel(self)
        self._proxy.setSourceModel(self._box.model())
        self._box.activated.connect(self._activated)

    # -- what the box shows

    def _offers(self, node) -> bool:
        return super()._offers(node) and node.GetID() not in self._proxy.hiddenNodeIDs

    def _fill(self, before: list) -> None:
        with QtCore.QSignalBlocker(self._box):
            self._box.clear()
            if self._none:
                self._box.addItem(self._noneText, "")
            for node in self._nodes:
                self._box.addItem(node.GetName() or "", node.GetID())
            self._addActions()
        self._keepCurrent()

    def _addActions(self) -> None:
        kind = self._types[0] if self._types else ""
        scene = self._watcher.scene
        tag = scene.GetTagByClassName(kind) if scene is not None and kind else kind
        offered = [
            (self._add, f"Create new {tag}", self.addNode),
            (self._edit, "Edit current", lambda: None),
            (self._rename, "Rename current", self.renameCurrentNode),
            (self._remove, "Delete current", self.removeCurrentNode),
        ]
        actions = [(text, run) for enabled, text, run in offered if enabled]
        if actions:
            self._box.insertSeparator(self._box.count())
        for text, run in actions:
            self._box.addItem(text)
            self._box.setItemData(self._box.count() - 1, run, ACTION_ROLE)

    def _keepCurrent(self) -> None:
        current = self._current
        if current not in self._nodes:
            current = None
        if current is None and not self._none and self._nodes:
            current = self._nodes[0]
        self._show(current)

    def _show(self, node) -> None:
        """Make a node the current one; signals only when it was not."""
        index = self._box.findData(node.GetID() if node is not None else "")
        with QtCore.QSignalBlocker(self._box):
            self._box.setCurrentIndex(index)
        name = "" if node is None else node.GetName() or ""
        if node is not self._current:
            self._current, self._shownName = node, name
            self.currentNodeChanged[object].emit(node)
            self.currentNodeChanged[bool].emit(node is not None)
            self.currentNodeIDChanged.emit(self._id())
        elif name != self._shownName:
            self._shownName = name
            self.currentNodeRenamed.emit(name)

    def _activated(self, index: int) -> None:
        action = self._box.itemData(index, ACTION_ROLE)
        if action is not None:
            self._show(self._current)
            action()
            return
        node = self._byId(self._box.itemData(index, ID_ROLE))
        self._show(node)
        self.nodeActivated.emit(node)

    def _byId(self, nodeId):
        return next((node for node in self._nodes if node.GetID() == nodeId), None)

    def _id(self) -> str:
        return "" if self._current is None else self._current.GetID() or ""

    # -- what Python sees

    @Slot(result=object)
    def currentNode(self):
        return self._current

    @Slot(object)
    def setCurrentNode(self, node) -> None:
        node = checkedNode(node, "setCurrentNode")
        self._show(node if node in self._nodes else None)

    @Slot(str)
    def setCurrentNodeID(self, nodeId) -> None:
        self._show(self._byId(str(nodeId)))

    @Slot(int)
    def setCurrentNodeIndex(self, index) -> None:
        self._show(self.nodeFromIndex(index))

    @Slot(result=object)
    def addNode(self, kind=None):
        scene = self._watcher.scene
        kind = kind or (self._types[0] if self._types else None)
        if scene is None or kind is None:
            return None
        name = self._baseName or scene.GetTagByClassName(kind)
        node = scene.AddNewNodeByClass(kind, scene.GenerateUniqueName(name))
        for target, attribute, value in self._attributes:
            if node.IsA(target):
                node.SetAttribute(attribute, "" if value is None else str(value))
        self._refresh()
        if self._select:
            self._show(node)
        self.nodeAddedByUser.emit(node)
        return node

    @Slot()
    def removeCurrentNode(self) -> None:
        if self._current is not None:
            self._watcher.scene.RemoveNode(self._current)

    @Slot()
    def renameCurrentNode(self) -> None:
        from . import dialogs

        if self._current is not None:
            name = dialogs.returned("qMRMLNodeComboBox", "Rename", self._current.GetName())
            if name:
                self._current.SetName(name)

    @Slot(result=QtCore.QAbstractItemModel)
    def sortFilterProxyModel(self):
        return self._proxy

    noneEnabled = Property(bool, lambda self: self._none, lambda self, v: self._set("_none", v))
    addEnabled = Property(bool, lambda self: self._add, lambda self, v: self._set("_add", v))
    removeEnabled = Property(
        bool, lambda self: self._remove, lambda self, v: self._set("_remove", v)
    )
    editEnabled = Property(bool, lambda self: self._edit, lambda self, v: self._set("_edit", v))
    renameEnabled = Property(
        bool, lambda self: self._rename, lambda self, v: self._set("_rename", v)
    )
    baseName = Property(str, lambda self: self._baseName, lambda self, v: self._set("_baseName", v))
    noneDisplay = Property(
        str, lambda self: self._noneText, lambda self, v: self._set("_noneText", v)
    )
    selectNodeUponCreation = Property(
        bool, lambda self: self._select, lambda self, v: self._set("_select", v)
    )
    interactionNodeSingletonTag = Property(
        str, lambda self: self._tag, lambda self, v: self._set("_tag", v)
    )
    currentNodeID = Property(str, lambda self: self._id(), setCurrentNodeID)
    currentNodeId = Property(str, lambda self: self._id(), setCurrentNodeID)


class qMRMLColorTableComboBox(qMRMLNodeComboBox):
    """Chooses a color table."""

    def __init__(self, parent=None) -> None:
        super().__init__(parent)
        self._types, self._hidden = ["vtkMRMLColorNode"], True
        self._add = self._remove = self._rename = False


class qMRMLCheckableNodeComboBox(_NodeList):
    """Checks any number of nodes of the scene."""

    checkedNodesChanged = Signal()

    def __init__(self, parent=None) -> None:
        super().__init__(parent)
        self._none, self._checked = False, []
        model = QtGui.QStandardItemModel(0, 1, self)
        self._box.setModel(model)
        model.itemChanged.connect(self._itemChanged)

    def _fill(self, before: list) -> None:
        self._checked = [node for node in self._checked if node in self._nodes]
        model = self._box.model()
        with QtCore.QSignalBlocker(model):
            model.clear()
            for node in self._nodes:
                item = QtGui.QStandardItem(node.GetName() or "")
                item.setCheckable(True)
                item.setData(node.GetID(), ID_ROLE)
                state = node in self._checked
                item.setCheckState(_state(state))
                model.appendRow(item)

    def _itemChanged(self, item) -> None:
        node = next(n for n in self._nodes if n.GetID() == item.data(ID_ROLE))
        self._check(node, item.checkState() == QtCore.Qt.CheckState.Checked)

    def _check(self, node, checked: bool) -> None:
        if (node in self._checked) == checked:
            return
        kept = [n for n in self._nodes if (checked if n is node else n in self._checked)]
        self._checked = kept
        item = self._box.model().item(self._nodes.index(node))
        item.setCheckState(_state(checked))
        self.checkedNodesChanged.emit()

    @Slot(result=list)
    def checkedNodes(self) -> list:
        return list(self._checked)

    @Slot(object, int)
    def setCheckState(self, node, state) -> None:
        node = checkedNode(node, "setCheckState")
        if node in self._nodes:
            self._check(node, int(state) == QtCore.Qt.CheckState.Checked.value)

    @Slot(object, result=int)
    def checkState(self, node) -> int:
        return _state(node in self._checked).value

    @Slot(result=bool)
    def allChecked(self) -> bool:
        return len(self._checked) == len(self._nodes)

    @Slot(result=bool)
    def noneChecked(self) -> bool:
        return not self._checked

    noneEnabled = Property(bool, lambda self: self._none, lambda self, v: self._set("_none", v))


def _state(checked: bool):
    return QtCore.Qt.CheckState.Checked if checked else QtCore.Qt.CheckState.Unchecked
