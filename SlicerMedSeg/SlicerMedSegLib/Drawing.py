"""Pictures as arrays: text, lines, PNG. Needs no window and no OpenGL."""

from pathlib import Path

import numpy as np
import vtk
from vtk.util.numpy_support import numpy_to_vtk, vtk_to_numpy

from medsegcore.files import write_file

DPI = 72


def textPicture(text: str, points: int, bold: bool = False) -> np.ndarray:
    """float32 [height, width], 0..1: how much of each pixel the text covers."""
    style = vtk.vtkTextProperty()
    style.SetFontFamilyToArial()
    style.SetFontSize(points)
    style.SetBold(bold)
    style.SetColor(1.0, 1.0, 1.0)
    image, size = vtk.vtkImageData(), [0, 0]
    vtk.vtkTextRenderer.GetInstance().RenderString(style, text, image, size, DPI)
    width, height, _depth = image.GetDimensions()
    rgba = vtk_to_numpy(image.GetPointData().GetScalars()).reshape(height, width, -1)
    # VTK counts rows from below.
    return rgba[: size[1], : size[0], 3][::-1].astype(np.float32) / 255


def drawText(
    canvas: np.ndarray, x: int, y: int, text: str, points: int = 14, color=(235, 235, 235),
    bold: bool = False, align: str = "left",
) -> int:  # fmt: skip
    """Write on a uint8 [height, width, 3] canvas with (x, y) as the text's upper left (or right,
    or middle) corner; what does not fit is cut. The text's width in pixels."""
    cover = textPicture(text, points, bold)
    x -= {"left": 0, "right": cover.shape[1], "middle": cover.shape[1] // 2}[align]
    left, top = max(x, 0), max(y, 0)
    part = canvas[top : y + cover.shape[0], left : x + cover.shape[1]]
    cover = cover[top - y :, left - x :][: part.shape[0], : part.shape[1], None]
    part[:] = np.rint(part * (1 - cover) + np.array(color) * cover).astype(np.uint8)
    return x + cover.shape[1] - left


def fillBox(canvas: np.ndarray, x: int, y: int, width: int, height: int, color) -> None:
    """A filled rectangle."""
    canvas[y : y + height, x : x + width] = color


def writePng(picture: np.ndarray, path: Path) -> None:
    """Write a uint8 [height, width, 3] picture; the file appears as a whole or not at all.

    Raises:
        OutputError: it cannot be written.
    """
    height, width, _channels = picture.shape
    image = vtk.vtkImageData()
    image.SetDimensions(width, height, 1)
    flat = np.ascontiguousarray(picture[::-1]).reshape(-1, 3)
    image.GetPointData().SetScalars(numpy_to_vtk(flat, deep=True))
    writer = vtk.vtkPNGWriter()
    writer.WriteToMemoryOn()
    writer.SetInputData(image)
    writer.Write()
    write_file(path, vtk_to_numpy(writer.GetResult()).tobytes())
