"""Exit 0 when VTK and Slicer's libraries load and something renders here without a screen."""

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

if __name__ == "__main__":
    # In a process of its own: without OpenGL some builds of VTK do not raise but crash.
    done = subprocess.run([sys.executable, "-c", PROBE], capture_output=True, text=True)
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        print(f"Offscreen rendering does not work yet: {last}", file=sys.stderr)
    sys.exit(done.returncode != 0)
