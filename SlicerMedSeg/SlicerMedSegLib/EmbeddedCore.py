"""Slicer's scene and logics without the application, on the wheel `slicer-core`."""

import contextlib
import os
import tempfile
import types
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import slicer
import vtk

from medsegcore.errors import OutputError, UnreadableImageError

# By the application's module names. Logics also register the node classes that their module adds;
# a scene loses nodes of classes that it does not know. Each finds the ones before it.
LOGICS = {
    "Terminologies": "vtkSlicerTerminologiesModuleLogic",
    "SubjectHierarchy": "vtkSlicerSubjectHierarchyModuleLogic",
    "Volumes": "vtkSlicerVolumesLogic",
    "Segmentations": "vtkSlicerSegmentationsModuleLogic",
    "Models": "vtkSlicerModelsLogic",
    "Tables": "vtkSlicerTablesLogic",
    "Plots": "vtkSlicerPlotsLogic",
    "Texts": "vtkSlicerTextsLogic",
    "Transforms": "vtkSlicerTransformLogic",
    "Markups": "vtkSlicerMarkupsLogic",
    "Sequences": "vtkSlicerSequencesLogic",
    "SceneViews": "vtkSlicerSceneViewsModuleLogic",
    "VolumeRendering": "vtkSlicerVolumeRenderingLogic",
}


class _Module:
    """What `slicer.modules.NAME` has to be for `slicer.util`: something with `logic()`."""

    def __init__(self, logic) -> None:
        self._logic = logic

    def logic(self):
        return self._logic


class EmbeddedCore:
    """A MRML scene with the logics that the application would have, for headless use.

    While it is open it is `slicer.mrmlScene`, and `slicer.modules.volumes.logic()` and the like
    work, so that `slicer.util` does as in the application, where it needs no windows. The newest
    core that is open counts. Use it as a context manager, or call `close`.

    Args:
        scene: a scene to adopt. Its nodes stay when the core is closed; the default color tables,
            the subject hierarchy and the orientation presets are added where they are missing.
            None makes a new scene, which is emptied in the end.

    Attributes:
        scene: vtkMRMLScene.
        applicationLogic: vtkSlicerApplicationLogic; it has the color logic.
        logics: {module name: logic}, see `LOGICS`.
        views: the open views of `SceneViews`; they close with the core.
    """

    _open: list["EmbeddedCore"] = []
    _outside: dict[str, Any] = {}

    def __init__(self, scene=None) -> None:
        self.ownsScene = scene is None
        self.scene = slicer.vtkMRMLScene() if scene is None else scene
        self.views: list = []
        self.logics: dict[str, Any] = {}
        self._cache = tempfile.TemporaryDirectory(prefix="medseg-cache-")
        self._ownsCache = False
        self.applicationLogic = slicer.vtkSlicerApplicationLogic()
        self._enter()
        try:
            self._fill()
        except BaseException:
            self.close()
            raise

    def _fill(self) -> None:
        self._addCache()
        # The wheel comes without the application's share folder: the logics miss their files of
        # terminologies and further color tables, and say so at length.
        with quiet():
            self._addLogics()
        patientRightIsScreenLeft = True
        slicer.vtkMRMLSliceNode.AddDefaultSliceOrientationPresets(
            self.scene, patientRightIsScreenLeft
        )
        if self.scene.GetFirstNodeByClass("vtkMRMLCrosshairNode") is None:
            crosshair = slicer.vtkMRMLCrosshairNode()
            crosshair.SetCrosshairName("default")
            self.scene.AddNode(crosshair)

    def __enter__(self) -> "EmbeddedCore":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _addCache(self) -> None:
        """Scene bundles are unpacked through the cache."""
        if self.scene.GetDataIOManager() is not None:
            return
        self._ownsCache = True
        cache = slicer.vtkCacheManager()
        cache.SetRemoteCacheDirectory(self._cache.name)
        manager = slicer.vtkDataIOManager()
        manager.SetCacheManager(cache)
        self.scene.SetDataIOManager(manager)

    def _addLogics(self) -> None:
        logic = self.applicationLogic
        logic.SetMRMLScene(self.scene)
        logic.SetSliceLogics(vtk.vtkCollection())
        logic.SetViewLogics(vtk.vtkCollection())
        # The module's color logic knows color legends, the application logic's own does not.
        colors = slicer.vtkSlicerColorLogic()
        colors.SetMRMLApplicationLogic(logic)
        colors.SetMRMLScene(self.scene)
        colors.AddDefaultColorNodes()
        logic.SetColorLogic(colors)
        self._addLogic("Colors", colors)
        for name, className in LOGICS.items():
            module = getattr(slicer, className)()
            module.SetMRMLApplicationLogic(logic)
            module.SetMRMLScene(self.scene)
            self._addLogic(name, module)

    def _addLogic(self, name: str, logic) -> None:
        self.applicationLogic.SetModuleLogic(name, logic)
        self.logics[name] = logic
        setattr(self._modules, name.lower(), _Module(logic))

    def _enter(self) -> None:
        """Become what `slicer.util` works on."""
        if not EmbeddedCore._open:
            EmbeddedCore._outside = {
                name: getattr(slicer, name) for name in _NAMES if hasattr(slicer, name)
            }
        EmbeddedCore._open.append(self)
        self._modules = types.SimpleNamespace()
        self._show()

    def _show(self) -> None:
        slicer.mrmlScene = self.scene
        # In the application itself its own modules stay.
        if "modules" not in EmbeddedCore._outside:
            slicer.modules = self._modules

    def _leave(self) -> None:
        EmbeddedCore._open.remove(self)
        if EmbeddedCore._open:
            EmbeddedCore._open[-1]._show()
            return
        for name in _NAMES:
            if name in EmbeddedCore._outside:
                setattr(slicer, name, EmbeddedCore._outside[name])
            elif hasattr(slicer, name):
                delattr(slicer, name)

    def close(self) -> None:
        """Close the views, let go of the logics and empty the scene; harmless when repeated."""
        if self.scene is None:
            return
        for view in list(self.views):
            view.close()
        # Logics that lose their scene look for the subject hierarchy once more, and say so.
        with quiet():
            self._takeApart()
        self._leave()
        self.scene = None
        self._cache.cleanup()

    def _takeApart(self) -> None:
        if self.ownsScene:
            self.scene.Clear(1)
        if self._ownsCache:
            self.scene.SetDataIOManager(None)
        # The logics observe the scene: they have to go before it, the last one first.
        for name, logic in reversed(self.logics.items()):
            self.applicationLogic.SetModuleLogic(name, None)
            logic.SetMRMLApplicationLogic(None)
            logic.SetMRMLScene(None)
        self.logics = {}
        vars(self._modules).clear()
        self.applicationLogic.SetColorLogic(None)
        self.applicationLogic.SetMRMLScene(None)
        self.applicationLogic = None

    def saveScene(self, path: str | Path) -> Path:
        """Write the whole scene into one .mrb; it appears as a whole or not at all.

        A .mrml is not offered: it is many files, which cannot appear at once.

        Raises:
            OutputError: it cannot be written.
        """
        path = Path(path).absolute()
        if path.suffix != ".mrb":
            raise OutputError(f"'{path.name}' has to end with .mrb.")
        if not path.parent.is_dir():
            raise OutputError(f"There is no folder '{path.parent}'.", "Create it first.")
        try:
            self._write(path)
        except OSError as error:
            raise OutputError(
                f"'{path}' cannot be written: {error.strerror or error}.",
                "Check the free space and the permissions.",
            ) from error
        return path

    def _write(self, path: Path) -> None:
        with tempfile.TemporaryDirectory(prefix=".scene-", dir=path.parent) as folder:
            # The bundle's inner folder is named after the file, so it has its final name already.
            temporary = Path(folder) / path.name
            messages = slicer.vtkMRMLMessageCollection()
            with _workingFolderKept():
                written = self.scene.WriteToMRB(str(temporary), None, messages)
            if not written:
                raise OutputError(
                    f"'{path}' cannot be written: {messages.GetAllMessagesAsString().strip()}",
                    "Check the free space and the permissions.",
                )
            os.replace(temporary, path)

    def loadScene(self, path: str | Path) -> None:
        """Add what a .mrb holds to the scene: all of it, or nothing.

        Raises:
            UnreadableImageError: it cannot be read as a whole.
        """
        path = Path(path).absolute()
        _checkBundle(path)
        before = set(_nodes(self.scene))
        messages = slicer.vtkMRMLMessageCollection()
        # Not quietly: an error that is not displayed does not count as one for the scene either.
        with _workingFolderKept():
            read = self.scene.ReadFromMRB(str(path), False, messages)
        if read:
            return
        for node in _nodes(self.scene):
            if node not in before and node.GetScene() is self.scene:
                self.scene.RemoveNode(node)
        raise UnreadableImageError(
            f"'{path}' cannot be read: {messages.GetAllMessagesAsString().strip()}",
            "Save the scene again where it came from.",
        )


_NAMES = ("mrmlScene", "modules")


def _nodes(scene) -> list:
    return [scene.GetNthNode(n) for n in range(scene.GetNumberOfNodes())]


def _checkBundle(path: Path) -> None:
    """Refuse what would end the process: Slicer's readers do not catch what ITK throws at them.

    Raises:
        UnreadableImageError: it is missing, damaged, no scene, or would write beside its folder.
    """
    try:
        with zipfile.ZipFile(path) as bundle:
            damaged = bundle.testzip()
            names = [PurePosixPath(name.replace("\\", "/")) for name in bundle.namelist()]
    except (OSError, zipfile.BadZipFile, EOFError, zlib.error, RuntimeError) as error:
        raise UnreadableImageError(
            f"'{path}' cannot be read: {error}.", "It is missing, damaged or not a .mrb."
        ) from error
    outside = [str(name) for name in names if name.is_absolute() or ".." in name.parts]
    if damaged or outside:
        raise UnreadableImageError(
            f"'{path}' cannot be read: '{damaged or outside[0]}' in it is not right.",
            "Get the file once more from where it came from.",
        )
    if not any(name.suffix == ".mrml" for name in names):
        raise UnreadableImageError(
            f"'{path}' cannot be read: it holds no scene.", "Choose a .mrb that Slicer saved."
        )


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """VTK's warnings and errors are neither printed nor seen by observers meanwhile."""
    before = vtk.vtkObject.GetGlobalWarningDisplay()
    vtk.vtkObject.GlobalWarningDisplayOff()
    try:
        yield
    finally:
        vtk.vtkObject.SetGlobalWarningDisplay(before)


@contextlib.contextmanager
def _workingFolderKept() -> Iterator[None]:
    """Slicer's bundle code steps into a temporary folder and, when it fails, stays there."""
    before = Path.cwd()
    try:
        yield
    finally:
        os.chdir(before)
