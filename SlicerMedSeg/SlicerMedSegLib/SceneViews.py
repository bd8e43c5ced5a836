"""Offscreen slice and 3D views by Slicer's own logics and displayable managers."""

import ctypes.util
import os
import sys

import numpy as np
import slicer
import vtk
from vtk.util.numpy_support import vtk_to_numpy

from medsegcore.errors import OutputError

SLICE_MANAGERS = (
    "vtkMRMLVolumeGlyphSliceDisplayableManager",
    "vtkMRMLModelSliceDisplayableManager",
    "vtkMRMLSegmentationsDisplayableManager2D",
)
THREE_D_MANAGERS = (
    "vtkMRMLCameraDisplayableManager",
    "vtkMRMLModelDisplayableManager",
    "vtkMRMLSegmentationsDisplayableManager3D",
)


def chooseRenderWindow() -> None:
    """On Linux without a screen, tell VTK which of its offscreen windows to use."""
    if not sys.platform.startswith("linux") or os.environ.get("DISPLAY"):
        return
    for library, window in (("EGL", "vtkEGLRenderWindow"), ("OSMesa", "vtkOSOpenGLRenderWindow")):
        if ctypes.util.find_library(library):
            os.environ.setdefault("VTK_DEFAULT_OPENGL_WINDOW", window)
            return
    raise OutputError(
        "Pictures cannot be rendered: neither EGL nor OSMesa is installed.",
        "On Debian or Ubuntu: apt-get install libegl1 libegl-mesa0 libgl1 libgl1-mesa-dri.",
    )


class _View:
    """A render window without a screen, and the displayable managers that draw into it."""

    def __init__(self, core, size: tuple[int, int], factory, managers: tuple[str, ...]) -> None:
        chooseRenderWindow()
        self.core = core
        self.renderer = vtk.vtkRenderer()
        self.window = vtk.vtkRenderWindow()
        self.window.SetOffScreenRendering(1)
        self.window.SetMultiSamples(0)
        self.window.SetSize(*size)
        self.window.AddRenderer(self.renderer)
        self.interactor = vtk.vtkRenderWindowInteractor()
        self.interactor.SetRenderWindow(self.window)
        self.interactor.Initialize()
        factory = factory.GetInstance()
        factory.SetMRMLApplicationLogic(core.applicationLogic)
        for name in managers:
            if not factory.IsDisplayableManagerRegistered(name):
                factory.RegisterDisplayableManager(name)
        self.factory = factory
        self.group = slicer.vtkMRMLDisplayableManagerGroup()
        self.group.SetRenderer(self.renderer)

    def __enter__(self):
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def capture(self) -> np.ndarray:
        """uint8 [height, width, 3] of what the view shows now."""
        self.window.Render()
        grab = vtk.vtkWindowToImageFilter()
        grab.SetInput(self.window)
        grab.SetInputBufferTypeToRGB()
        grab.ReadFrontBufferOff()
        grab.Update()
        image = grab.GetOutput()
        width, height, _ = image.GetDimensions()
        values = vtk_to_numpy(image.GetPointData().GetScalars())
        # VTK counts rows from below.
        return np.ascontiguousarray(values.reshape(height, width, 3)[::-1])

    def close(self) -> None:
        """Let go of the window and the displayable managers."""
        self.group.SetMRMLDisplayableNode(None)
        self.group.SetRenderer(None)
        self.factory.SetMRMLApplicationLogic(None)
        self.window.Finalize()
        self.interactor.SetRenderWindow(None)


class _SliceImage:
    """Puts the slice logic's blended image behind everything else in a renderer.

    In the application a ctk widget that slicer-core does not have does this.
    """

    def __init__(self, renderer) -> None:
        self.renderer = renderer
        self.mapper = vtk.vtkImageMapper()
        # The blended image is 8-bit RGBA already.
        self.mapper.SetColorWindow(255)
        self.mapper.SetColorLevel(127.5)
        self.actor = vtk.vtkActor2D()
        self.actor.SetMapper(self.mapper)
        self.actor.GetProperty().SetDisplayLocationToBackground()
        renderer.AddViewProp(self.actor)


class SliceView(_View):
    """One slice view, e.g. `SliceView(core, "Axial", (512, 512))`.

    Args:
        core: an `EmbeddedCore`.
        orientation: "Axial", "Sagittal" or "Coronal"; the patient's right is on the left, as in
            the application.
        size: (width, height) in pixels.
    """

    def __init__(self, core, orientation: str, size: tuple[int, int]) -> None:
        super().__init__(
            core, size, slicer.vtkMRMLSliceViewDisplayableManagerFactory, SLICE_MANAGERS
        )
        self.renderer.GetActiveCamera().ParallelProjectionOn()
        self.image = _SliceImage(self.renderer)
        self.group.Initialize(self.factory, self.renderer)
        self.logic = slicer.vtkMRMLSliceLogic()
        self.logic.SetMRMLApplicationLogic(core.applicationLogic)
        core.applicationLogic.GetSliceLogics().AddItem(self.logic)
        self.logic.SetMRMLScene(core.scene)
        self.node = self.logic.AddSliceNode(f"MedSeg {orientation}")
        self.node.SetOrientation(orientation)
        self.group.SetMRMLDisplayableNode(self.node)
        self.logic.ResizeSliceNode(*size)
        self.size = size

    def show(
        self, background, centerRas: np.ndarray, heightMm: float, foreground=None,
        foregroundOpacity: float = 0.5,
    ) -> np.ndarray:  # fmt: skip
        """uint8 [height, width, 3] of the slice through a point.

        Args:
            background: volume node.
            centerRas: [3] in mm, the middle of the picture.
            heightMm: height of the field of view.
            foreground: volume node to lay over, or None.
            foregroundOpacity: 0..1.
        """
        composite = self.logic.GetSliceCompositeNode()
        composite.SetBackgroundVolumeID(background.GetID())
        composite.SetForegroundVolumeID(foreground.GetID() if foreground else None)
        composite.SetForegroundOpacity(foregroundOpacity if foreground else 0.0)
        width, height = self.size
        self.node.SetFieldOfView(heightMm * width / height, heightMm, 1.0)
        matrix = self.node.GetSliceToRAS()
        for row in range(3):
            matrix.SetElement(row, 3, float(centerRas[row]))
        self.node.UpdateMatrices()
        self.image.mapper.SetInputConnection(self.logic.GetImageDataConnection())
        return self.capture()

    def close(self) -> None:
        """Take the view and its nodes out of the scene."""
        super().close()
        self.image.mapper.SetInputConnection(None)
        self.core.applicationLogic.GetSliceLogics().RemoveItem(self.logic)
        composite = self.logic.GetSliceCompositeNode()
        self.logic.DeleteSliceModel()
        self.logic.SetMRMLScene(None)
        for node in (composite, self.node):
            self.core.scene.RemoveNode(node)
        self.node = self.logic = None


class ThreeDView(_View):
    """A 3D view of the visible segmentations and models.

    Args:
        core: an `EmbeddedCore`.
        size: (width, height) in pixels.
        background: RGB, 0..1.
    """

    def __init__(
        self, core, size: tuple[int, int], background: tuple[float, float, float] = (0, 0, 0)
    ) -> None:
        super().__init__(
            core, size, slicer.vtkMRMLThreeDViewDisplayableManagerFactory, THREE_D_MANAGERS
        )
        self.group.Initialize(self.factory, self.renderer)
        self.logic = slicer.vtkMRMLViewLogic()
        self.logic.SetMRMLApplicationLogic(core.applicationLogic)
        core.applicationLogic.GetViewLogics().AddItem(self.logic)
        self.logic.SetMRMLScene(core.scene)
        self.node = self.logic.AddViewNode("MedSeg 3D")
        self.node.SetBoxVisible(0)
        self.node.SetAxisLabelsVisible(0)
        self.node.SetBackgroundColor(*background)
        self.node.SetBackgroundColor2(*background)
        self.group.SetMRMLDisplayableNode(self.node)
        self.renderer.SetUseDepthPeeling(1)
        self.renderer.SetMaximumNumberOfPeels(20)
        self.renderer.SetBackground(*background)
        self.renderer.SetUseFXAA(True)

    def show(self, fromRas: tuple[float, float, float], zoom: float = 1.0) -> np.ndarray:
        """uint8 [height, width, 3] of everything visible.

        Args:
            fromRas: direction from the middle to the viewer, e.g. (0, 1, 0) from the front.
            zoom: above 1 is closer.
        """
        self.window.Render()
        camera = self.renderer.GetActiveCamera()
        bounds = np.array(self.renderer.ComputeVisiblePropBounds()).reshape(3, 2)
        middle = bounds.mean(axis=1)
        camera.SetFocalPoint(*middle)
        camera.SetPosition(*(middle + np.array(fromRas, float)))
        camera.SetViewUp(0, 0, 1)
        self.renderer.ResetCamera(bounds.ravel())
        camera.Zoom(zoom)
        self.renderer.ResetCameraClippingRange()
        return self.capture()

    def close(self) -> None:
        """Take the view and its nodes out of the scene."""
        super().close()
        self.core.applicationLogic.GetViewLogics().RemoveItem(self.logic)
        self.logic.SetMRMLScene(None)
        self.core.scene.RemoveNode(self.node)
        self.node = self.logic = None
