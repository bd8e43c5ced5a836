"""Slicer's scene and logics without the application, on the wheel `slicer-core`."""

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import slicer
import vtk

from medsegcore.errors import OutputError, UnreadableImageError


class EmbeddedCore:
    """A MRML scene with the logics that the application would have, for headless use.

    While it is open it is `slicer.mrmlScene`, so that `slicer.util` works as in the application.
    Use it as a context manager, or call `close`.
    """

    def __init__(self) -> None:
        self.scene = slicer.vtkMRMLScene()
        # Scene bundles are unpacked through the cache.
        self._cache = tempfile.TemporaryDirectory(prefix="medseg-cache-")
        manager = slicer.vtkDataIOManager()
        cache = slicer.vtkCacheManager()
        cache.SetRemoteCacheDirectory(self._cache.name)
        manager.SetCacheManager(cache)
        self.scene.SetDataIOManager(manager)
        self._sceneBefore = getattr(slicer, "mrmlScene", None)
        slicer.mrmlScene = self.scene
        self.applicationLogic = slicer.vtkSlicerApplicationLogic()
        self.applicationLogic.SetMRMLScene(self.scene)
        self.applicationLogic.SetSliceLogics(vtk.vtkCollection())
        self.applicationLogic.SetViewLogics(vtk.vtkCollection())
        colors = self.applicationLogic.GetColorLogic()
        colors.SetMRMLScene(self.scene)
        colors.AddDefaultColorNodes()
        self.logics = {}
        for name, make in (
            ("Volumes", slicer.vtkSlicerVolumesLogic),
            ("Segmentations", slicer.vtkSlicerSegmentationsModuleLogic),
            ("SubjectHierarchy", slicer.vtkSlicerSubjectHierarchyModuleLogic),
            ("Tables", slicer.vtkSlicerTablesLogic),
            ("Texts", slicer.vtkSlicerTextsLogic),
        ):
            logic = make()
            logic.SetMRMLScene(self.scene)
            logic.SetMRMLApplicationLogic(self.applicationLogic)
            self.applicationLogic.SetModuleLogic(name, logic)
            self.logics[name] = logic
        patientRightIsScreenLeft = True
        slicer.vtkMRMLSliceNode.AddDefaultSliceOrientationPresets(
            self.scene, patientRightIsScreenLeft
        )
        crosshair = slicer.vtkMRMLCrosshairNode()
        crosshair.SetCrosshairName("default")
        self.scene.AddNode(crosshair)

    def __enter__(self) -> "EmbeddedCore":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Empty the scene and let go of everything; harmless when called twice."""
        if self.scene is None:
            return
        # Logics that lose their scene look for the subject hierarchy once more, and say so.
        vtk.vtkObject.GlobalWarningDisplayOff()
        try:
            self._takeApart()
        finally:
            vtk.vtkObject.GlobalWarningDisplayOn()
        self._cache.cleanup()

    def _takeApart(self) -> None:
        self.scene.Clear(1)
        # The logics observe the scene: they have to go before it.
        for name, logic in self.logics.items():
            self.applicationLogic.SetModuleLogic(name, None)
            logic.SetMRMLApplicationLogic(None)
            logic.SetMRMLScene(None)
        self.logics = {}
        self.applicationLogic.GetColorLogic().SetMRMLScene(None)
        self.applicationLogic.SetMRMLScene(None)
        self.applicationLogic = None
        slicer.mrmlScene = self._sceneBefore
        self.scene = None

    def saveScene(self, path: str | Path) -> Path:
        """Write the whole scene into one .mrb; it appears as a whole or not at all.

        Raises:
            OutputError: it cannot be written.
        """
        path = Path(path).absolute()
        if path.suffix != ".mrb":
            raise OutputError(f"'{path.name}' has to end with .mrb.")
        if not path.parent.is_dir():
            raise OutputError(f"There is no folder '{path.parent}'.", "Create it first.")
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
        return path

    def loadScene(self, path: str | Path) -> None:
        """Add what a .mrb holds to the scene.

        Raises:
            UnreadableImageError: it cannot be read.
        """
        path = Path(path).absolute()
        messages = slicer.vtkMRMLMessageCollection()
        with _workingFolderKept():
            read = path.is_file() and self.scene.ReadFromMRB(str(path), False, messages)
        if not read:
            raise UnreadableImageError(
                f"'{path}' cannot be read: {messages.GetAllMessagesAsString().strip()}",
                "It is missing or no scene that Slicer saved.",
            )


@contextlib.contextmanager
def _workingFolderKept() -> Iterator[None]:
    """Slicer's bundle code steps into a temporary folder and, when it fails, stays there."""
    before = Path.cwd()
    try:
        yield
    finally:
        os.chdir(before)
