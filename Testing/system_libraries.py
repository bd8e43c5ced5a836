"""Exit 0 when VTK, Slicer's libraries and Qt load and draw something without a screen."""

import os
import subprocess
import sys
from pathlib import Path

PROBE = f"""
import sys
sys.path.insert(0, {str(Path(__file__).resolve().parents[1] / "SlicerMedSeg")!r})
from SlicerMedSegLib.SceneViews import chooseRenderWindow
chooseRenderWindow()
import slicer
import vtk
window = vtk.vtkRenderWindow()
window.SetOffScreenRendering(1)
window.SetSize(16, 16)
renderer = vtk.vtkRenderer()
renderer.SetBackground(1, 1, 1)
window.AddRenderer(renderer)
window.Render()
grab = vtk.vtkWindowToImageFilter()
grab.SetInput(window)
grab.Update()
sys.exit(grab.GetOutput().GetPointData().GetScalars().GetValue(0) != 255)
"""

QT_PROBE = """
import sys
from PySide6 import QtGui, QtWidgets
application = QtWidgets.QApplication([])
if not QtGui.QFontDatabase.families():
    sys.exit("Qt finds no fonts")
label = QtWidgets.QLabel("text")
label.show()
image = label.grab().toImage()
colors = {image.pixel(x, y) for x in range(image.width()) for y in range(image.height())}
sys.exit(len(colors) < 2)
"""


def works(probe: str, what: str) -> bool:
    """Whether a probe ends well.

    In a process of its own: without OpenGL some builds of VTK do not raise but crash.
    """
    environment = {**os.environ, "QT_QPA_PLATFORM": "offscreen"}
    command = [sys.executable, "-c", probe]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        print(f"{what} does not work yet: {last}", file=sys.stderr)
    return done.returncode == 0


if __name__ == "__main__":
    rendering = works(PROBE, "Offscreen rendering")
    sys.exit(not (works(QT_PROBE, "Offscreen Qt") and rendering))
