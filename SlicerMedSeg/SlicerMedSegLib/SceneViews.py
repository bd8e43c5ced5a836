"""Offscreen slice and 3D views by Slicer's own logics and displayable managers.

`renderSlice` and `render3D` make one picture; `SliceView` and `ThreeDView` stay open for several.
"""

import contextlib
import ctypes
import functools
import itertools
import os
import sys
from collections.abc import Iterator

import numpy as np
import slicer
import vtk
from vtk.util.numpy_support import vtk_to_numpy

from medsegcore.errors import OutputError, SettingError

from .EmbeddedCore import EmbeddedCore, quiet

SLICE_MANAGERS = (
    "vtkMRMLVolumeGlyphSliceDisplayableManager",
    "vtkMRMLModelSliceDisplayableManager",
    "vtkMRMLSegmentationsDisplayableManager2D",
    "vtkMRMLColorLegendDisplayableManager",
)
THREE_D_MANAGERS = (
    "vtkMRMLCameraDisplayableManager",
    "vtkMRMLModelDisplayableManager",
    "vtkMRMLSegmentationsDisplayableManager3D",
)
ORIENTATIONS = ("Axial", "Sagittal", "Coronal")
OSMESA_NAMES = ("libOSMesa.so.8", "libOSMesa.so.6", "libOSMesa.so")
# Views in one scene that share a name would share their nodes.
_numbers = itertools.count(1)


@functools.cache
def chooseRenderWindow() -> None:
    """On Linux, find out which of VTK's windows works here and settle on it.

    VTK tries the screen, EGL and OSMesa in turn, or what VTK_DEFAULT_OPENGL_WINDOW names first.

    Raises:
        OutputError: none of them works.
    """
    if not sys.platform.startswith("linux"):
        return
    with quiet():
        name = vtk.vtkRenderWindow().GetClassName()
    # VTK's last resort is OSMesa even where it is not installed, and then crashes on rendering.
    if name == "vtkOSOpenGLRenderWindow" and not any(map(_loads, OSMESA_NAMES)):
        raise OutputError(
            "Pictures cannot be rendered: there is no screen and neither EGL nor OSMesa works.",
            "On Debian or Ubuntu: apt-get install libegl1 libegl-mesa0 libgl1 libgl1-mesa-dri,"
            " or libosmesa6.",
        )
    os.environ["VTK_DEFAULT_OPENGL_WINDOW"] = name


def _loads(library: str) -> bool:
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True


def renderSlice(
    core: EmbeddedCore, orientation: str, centerRas, fieldOfViewMm: float,
    size: tuple[int, int] = (512, 512), background=None, foreground=None,
    foregroundOpacity: float = 0.0, label=None, labelOpacity: float = 0.0,
) -> np.ndarray:  # fmt: skip
    """A picture of one slice, as a slice view of the application shows it.

    Visible segmentations and models are outlined and filled as their display nodes say; a color
    legend of a volume shown here is drawn too.

    Args:
        core: where the nodes are.
        orientation: "Axial", "Sagittal" or "Coronal"; the patient's right is on the left.
        centerRas: [3] in mm, the middle of the picture.
        fieldOfViewMm: height of the picture.
        size: (width, height) in pixels.
        background: volume node, or None.
        foreground: volume node to lay over, or None.
        foregroundOpacity: 0..1.
        label: label map volume node on top of both, or None.
        labelOpacity: 0..1.

    Returns:
        uint8 [height, width, 3].

    Raises:
        SettingError: an orientation, size or field of view that there is not.
        OutputError: nothing can be rendered on this machine.
    """
    with SliceView(core, orientation, size) as view:
        return view.show(
            background, centerRas, fieldOfViewMm, foreground, foregroundOpacity, label,
            labelOpacity,
        )  # fmt: skip


def render3D(
    core: EmbeddedCore, size: tuple[int, int] = (512, 512), azimuth: float = 40.0,
    elevation: float = 20.0, background: tuple[float, float, float] = (0.0, 0.0, 0.0),
    zoom: float = 1.0,
) -> np.ndarray:  # fmt: skip
    """A picture of the visible segmentations' surfaces and the visible models, filling the frame.

    A visible segmentation without a closed surface gets one for the picture alone.

    Args:
        core: where the nodes are.
        size: (width, height) in pixels.
        azimuth: degrees; where the viewer stands: 0 in front of the patient, 90 on the patient's
            left, -90 on the right, 180 behind.
        elevation: degrees above the patient's horizontal plane, -90..90.
        background: RGB, 0..1.
        zoom: above 1 is closer than what fits.

    Returns:
        uint8 [height, width, 3].

    Raises:
        SettingError: a size that there is not.
        OutputError: nothing can be rendered on this machine.
    """
    turn, rise = np.radians([azimuth, elevation])
    fromRas = (-np.sin(turn) * np.cos(rise), np.cos(turn) * np.cos(rise), np.sin(rise))
    with _closedSurfaces(core.scene), ThreeDView(core, size, background) as view:
        return view.show(fromRas, zoom)


@contextlib.contextmanager
def _closedSurfaces(scene) -> Iterator[None]:
    """Every visible segmentation has a closed surface meanwhile."""
    name = slicer.vtkSegmentationConverter.GetSegmentationClosedSurfaceRepresentationName()
    added = []
    try:
        for n in range(scene.GetNumberOfNodesByClass("vtkMRMLSegmentationNode")):
            node = scene.GetNthNodeByClass(n, "vtkMRMLSegmentationNode")
            display = node.GetDisplayNode()
            if display is None or not (display.GetVisibility() and display.GetVisibility3D()):
                continue
            if not node.GetSegmentation().ContainsRepresentation(name):
                added.append(node)
                node.CreateClosedSurfaceRepresentation()
        yield
    finally:
        for node in added:
            node.RemoveClosedSurfaceRepresentation()


class _View:
    """A render window without a screen, and the displayable managers that draw into it."""

    samples = 0

    def __init__(
        self, core: EmbeddedCore, size: tuple[int, int], factory, managers: tuple[str, ...]
    ) -> None:
        if min(size) < 1:
            raise SettingError(f"A picture cannot have {size[0]} x {size[1]} pixels.")
        chooseRenderWindow()
        self.core = core
        self.renderer = vtk.vtkRenderer()
        self.window = vtk.vtkRenderWindow()
        self.window.SetOffScreenRendering(1)
        self.window.SetMultiSamples(self.samples)
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
        core.views.append(self)

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
        grab.ShouldRerenderOff()
        grab.ReadFrontBufferOff()
        grab.Update()
        image = grab.GetOutput()
        width, height, _ = image.GetDimensions()
        values = vtk_to_numpy(image.GetPointData().GetScalars())
        # VTK counts rows from below.
        return np.ascontiguousarray(values.reshape(height, width, 3)[::-1])

    def close(self) -> None:
        """Let go of the window, the displayable managers and the view's nodes."""
        if self not in self.core.views:
            return
        self.core.views.remove(self)
        self.group.SetMRMLDisplayableNode(None)
        self.group.SetRenderer(None)
        self.factory.SetMRMLApplicationLogic(None)
        self.window.Finalize()
        self.interactor.SetRenderWindow(None)
        self._removeNodes()

    def _removeNodes(self) -> None:
        raise NotImplementedError


class _SliceImage:
    """Puts the slice logic's blended image behind everything else in a renderer.

    In the application a ctk widget that slicer-core does not have does this.
    """

    def __init__(self, renderer) -> None:
        self.mapper = vtk.vtkImageMapper()
        # The blended image is 8-bit RGBA already.
        self.mapper.SetColorWindow(255)
        self.mapper.SetColorLevel(127.5)
        self.actor = vtk.vtkActor2D()
        self.actor.SetMapper(self.mapper)
        self.actor.GetProperty().SetDisplayLocationToBackground()
        renderer.AddViewProp(self.actor)

    def show(self, connection) -> None:
        """Draw what comes out of a pipeline; None when no volume is shown."""
        self.mapper.SetInputConnection(connection)
        self.actor.SetVisibility(connection is not None)


class SliceView(_View):
    """One slice view, e.g. `SliceView(core, "Axial", (512, 512))`.

    Args:
        core: an `EmbeddedCore`.
        orientation: "Axial", "Sagittal" or "Coronal"; the patient's right is on the left, as in
            the application.
        size: (width, height) in pixels.

    Raises:
        SettingError: there is no such orientation or size.
    """

    # For the outlines of surfaces; images are sampled per pixel anyway.
    samples = 8

    def __init__(self, core: EmbeddedCore, orientation: str, size: tuple[int, int]) -> None:
        if orientation not in ORIENTATIONS:
            raise SettingError(
                f"There is no slice orientation '{orientation}'.",
                f"Use one of: {', '.join(ORIENTATIONS)}.",
            )
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
        self.node = self.logic.AddSliceNode(f"MedSeg {orientation} {next(_numbers)}")
        self.node.SetOrientation(orientation)
        self.group.SetMRMLDisplayableNode(self.node)
        self.logic.ResizeSliceNode(*size)
        self.size = size
        # As when the user chooses volumes: only then are color legends that were there before the
        # view looked for.
        composite = self.logic.GetSliceCompositeNode()
        composite.SetInteractionFlags(
            composite.BackgroundVolumeFlag
            | composite.ForegroundVolumeFlag
            | composite.LabelVolumeFlag
        )

    def show(
        self, background, centerRas, heightMm: float, foreground=None,
        foregroundOpacity: float = 0.5, label=None, labelOpacity: float = 0.5,
    ) -> np.ndarray:  # fmt: skip
        """uint8 [height, width, 3] of the slice through a point.

        Args:
            background: volume node, or None.
            centerRas: [3] in mm, the middle of the picture.
            heightMm: height of the field of view.
            foreground: volume node to lay over, or None.
            foregroundOpacity: 0..1.
            label: label map volume node on top of both, or None.
            labelOpacity: 0..1.

        Raises:
            SettingError: the field of view has no height.
        """
        if not heightMm > 0:
            raise SettingError(f"A field of view cannot be {heightMm} mm high.")
        composite = self.logic.GetSliceCompositeNode()
        composite.SetBackgroundVolumeID(_identifier(background))
        composite.SetForegroundVolumeID(_identifier(foreground))
        composite.SetForegroundOpacity(foregroundOpacity if foreground else 0.0)
        composite.SetLabelVolumeID(_identifier(label))
        composite.SetLabelOpacity(labelOpacity if label else 0.0)
        width, height = self.size
        self.node.SetFieldOfView(heightMm * width / height, heightMm, 1.0)
        matrix = self.node.GetSliceToRAS()
        for row in range(3):
            matrix.SetElement(row, 3, float(centerRas[row]))
        self.node.UpdateMatrices()
        self.image.show(self.logic.GetImageDataConnection())
        return self.capture()

    def _removeNodes(self) -> None:
        self.image.show(None)
        self.core.applicationLogic.GetSliceLogics().RemoveItem(self.logic)
        composite = self.logic.GetSliceCompositeNode()
        self.logic.DeleteSliceModel()
        self.logic.SetMRMLScene(None)
        for node in (composite, self.node):
            self.core.scene.RemoveNode(node)
        self.node = self.logic = None


def _touch(x: np.ndarray, z: np.ndarray, slope: float) -> tuple[float, float]:
    """Where (x, z) a cone that opens towards -z with this slope touches all points, both sides."""
    right, left = (z + x / slope).max(), (z - x / slope).max()
    return slope * (right - left) / 2, (right + left) / 2


def _identifier(node) -> str | None:
    return None if node is None else node.GetID()


class ThreeDView(_View):
    """A 3D view of the visible segmentations that have a closed surface, and the visible models.

    Args:
        core: an `EmbeddedCore`.
        size: (width, height) in pixels.
        background: RGB, 0..1.

    Raises:
        SettingError: there is no such size.
    """

    # Depth peeling loses everything translucent in a window with several samples per pixel.
    samples = 0

    def __init__(
        self, core: EmbeddedCore, size: tuple[int, int],
        background: tuple[float, float, float] = (0, 0, 0),
    ) -> None:  # fmt: skip
        super().__init__(
            core, size, slicer.vtkMRMLThreeDViewDisplayableManagerFactory, THREE_D_MANAGERS
        )
        self.group.Initialize(self.factory, self.renderer)
        self.logic = slicer.vtkMRMLViewLogic()
        self.logic.SetMRMLApplicationLogic(core.applicationLogic)
        core.applicationLogic.GetViewLogics().AddItem(self.logic)
        self.logic.SetMRMLScene(core.scene)
        self.node = self.logic.AddViewNode(f"MedSeg 3D {next(_numbers)}")
        self.node.SetBoxVisible(0)
        self.node.SetAxisLabelsVisible(0)
        self.node.SetBackgroundColor(*background)
        self.node.SetBackgroundColor2(*background)
        self.group.SetMRMLDisplayableNode(self.node)
        self.renderer.SetUseDepthPeeling(1)
        self.renderer.SetMaximumNumberOfPeels(20)
        self.renderer.SetBackground(*background)
        self.renderer.SetUseFXAA(True)

    def show(self, fromRas, zoom: float = 1.0) -> np.ndarray:
        """uint8 [height, width, 3] in which what is visible fills the frame, as seen from here.

        Args:
            fromRas: [3] direction from the middle to the viewer, e.g. (0, 1, 0) from the front.
            zoom: above 1 is closer than what fits.
        """
        if self._aim(fromRas) is not None:
            self._fit()
            self.renderer.GetActiveCamera().Zoom(zoom)
            self.renderer.ResetCameraClippingRange()
        return self.capture()

    def _aim(self, fromRas) -> np.ndarray | None:
        """Look at the middle of what is visible; its bounds [3, 2] in mm, None when nothing is."""
        toViewer = np.asarray(fromRas, float) / np.linalg.norm(fromRas)
        self.group.RequestRender()
        bounds = np.array(self.renderer.ComputeVisiblePropBounds()).reshape(3, 2)
        if (bounds[:, 0] > bounds[:, 1]).any():
            return None
        middle = bounds.mean(axis=1)
        camera = self.renderer.GetActiveCamera()
        camera.SetFocalPoint(*middle)
        camera.SetPosition(*(middle + toViewer))
        # From straight above or below, the patient's front is up.
        camera.SetViewUp(*((0, 1, 0) if abs(toViewer[2]) > 0.999 else (0, 0, 1)))
        return bounds

    def _fit(self, margin: float = 1.06) -> None:
        """Go as near as the visible points allow, with them in the middle."""
        camera = self.renderer.GetActiveCamera()
        toViewer = -np.array(camera.GetDirectionOfProjection())
        right = np.cross(camera.GetViewUp(), toViewer)
        right /= np.linalg.norm(right)
        axes = np.stack([right, np.cross(toViewer, right), toViewer])
        x, y, z = (self._visiblePoints() @ axes.T).T
        width, height = self.window.GetSize()
        slope = np.tan(np.radians(camera.GetViewAngle()) / 2) / margin
        across, nearX = _touch(x, z, slope * width / height)
        upward, nearY = _touch(y, z, slope)
        # Never into what is looked at, also when it is a single point.
        distance = max(nearX, nearY, z.max() + 1.0)
        camera.SetFocalPoint(*(np.array([across, upward, z.mean()]) @ axes))
        camera.SetPosition(*(np.array([across, upward, distance]) @ axes))

    def _visiblePoints(self) -> np.ndarray:
        """[n, 3] RAS mm: the points of the surfaces, and the corners of what has none."""
        found = []
        for prop in self.renderer.GetViewProps():
            if not prop.GetVisibility() or prop.GetBounds() is None:
                continue
            surface = prop.GetMapper().GetInput() if prop.IsA("vtkActor") else None
            if surface is None or not surface.IsA("vtkPointSet"):
                found.append(list(itertools.product(*np.array(prop.GetBounds()).reshape(3, 2))))
                continue
            if surface.GetNumberOfPoints() == 0:
                continue
            matrix = slicer.util.arrayFromVTKMatrix(prop.GetMatrix())
            points = vtk_to_numpy(surface.GetPoints().GetData())
            found.append(points @ matrix[:3, :3].T + matrix[:3, 3])
        return np.concatenate(found)

    def _removeNodes(self) -> None:
        scene = self.core.scene
        self.core.applicationLogic.GetViewLogics().RemoveItem(self.logic)
        self.logic.SetMRMLScene(None)
        # The camera's displayable manager made one for the view.
        cameras = [
            scene.GetNthNodeByClass(n, "vtkMRMLCameraNode")
            for n in range(scene.GetNumberOfNodesByClass("vtkMRMLCameraNode"))
        ]
        for camera in cameras:
            if camera.GetLayoutName() == self.node.GetLayoutName():
                scene.RemoveNode(camera)
        scene.RemoveNode(self.node)
        self.node = self.logic = None
