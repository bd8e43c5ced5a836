"""The longest that the panel holds up the event loop, from a click on Segment to the last lesion.

    python Testing/benchmarks/liveness.py

Plays a user on the real panel, worker and scene: a run, a drag of the threshold, a lesion that is
dropped, a scroll through a slice attention, a picture that explains the answer, the result saved
as a training case, a checkerboard of two inputs; on the sample and on the sample resampled to
256 x 256 x 180. Prints one row a step: the longest gap between two ticks of a 5 ms timer and its
ratio to the 50 ms that the panel may take. Times are the interface thread's own.
"""

import contextlib
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

TESTING = Path(__file__).resolve().parents[1]
os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")
sys.path[:0] = [str(TESTING / "panel"), str(TESTING.parent / "SlicerMedSeg")]

LIMIT_MS = 50
MODEL = "ms-lesion-rsanet"
SAMPLE = TESTING / "data" / "ms_sample"
SHAPES = {"sample": None, "256 x 256 x 180": (180, 256, 256)}


def images(shape: tuple[int, int, int] | None) -> dict:
    """The sample, or the sample on a grid of that shape over the same field of view."""
    from medsegcore.imaging import Grid, read_image, resample

    found = {key: read_image(SAMPLE / f"{key}.nii.gz") for key in ("t1", "t2", "flair")}
    if shape is None:
        return found
    grid = found["flair"].grid
    scale = np.array(grid.shape[::-1]) / np.array(shape[::-1])
    affine = grid.affine @ np.diag([*scale, 1.0])
    affine[:3, 3] = grid.affine[:3, 3] + grid.affine[:3, :3] @ ((scale - 1) / 2)
    return {key: resample(image, Grid(shape, affine)) for key, image in found.items()}


@contextlib.contextmanager
def panel() -> Iterator[tuple]:
    """The host and MedSeg's panel."""
    from host import Host

    with tempfile.TemporaryDirectory() as folder, Host() as host:
        os.environ["XDG_DATA_HOME"] = folder
        host.addPythonSlicer()
        yield host, host.openModule(TESTING.parent / "SlicerMedSeg" / "SlicerMedSeg.py")


def measure(host, opened, shape: tuple[int, int, int] | None) -> list[tuple[str, float, str]]:
    """(step, longest gap in ms, what it was spent on where it was too long)."""
    import slicer
    from host.liveness import Liveness

    from SlicerMedSegLib.SceneConversion import volumeNodeFromImage

    rows: list[tuple[str, float, str]] = []

    @contextlib.contextmanager
    def step(name: str) -> Iterator[None]:
        with Liveness(tell_ms=LIMIT_MS) as live:
            yield
            host.wait(100)
        where = max(live.culprits, default=(0.0, ""))[1]
        rows.append((name, live.longest_ms, where))

    nodes = {
        key: volumeNodeFromImage(image, key.upper(), host.core.scene)
        for key, image in images(shape).items()
    }
    slicer.util.setSliceViewerLayers(background=nodes["flair"], fit=True)
    opened.modelPart.choose(MODEL)
    ui = opened.runPart._ui
    host.waitUntil(lambda: ui.segmentButton.enabled and ui.deviceBox.count > 1, 120)
    host.wait(1000)
    with step("click, run, result in the scene, lesions measured"):
        host.click(ui.segmentButton)
        host.waitUntil(lambda: not opened.runPart.busy, 600)
        host.waitUntil(lambda: not opened.resultsPart.busy, 60)
    slider = opened.resultsPart.sliders.slider(opened.resultsPart.sliders.live.labels[0])
    with step("threshold dragged, lesions measured again"):
        host.dragSlider(slider, 0.4)
        host.dragSlider(slider, 0.05)
        host.wait(3000)
    with step("a lesion dropped"):
        row = opened.resultsPart.lesions.shown[0]
        opened.resultsPart._keep(row, False)
        host.wait(1500)
    attention = opened.attentionPart
    with step("slice attention shown and scrolled"):
        kinds = [m.kind for m in attention.maps]
        attention.ui.mapSelector.setCurrentIndex(kinds.index("slice"))
        attention.ui.showButton.click()
        view = slicer.app.layoutManager().sliceWidget("Red").sliceView()
        host.wheel(view, 5)
    attention.off()
    with step("explaining picture saved"), tempfile.TemporaryDirectory() as folder:
        host.dialogs.expect("Save a picture", str(Path(folder) / "sheet.png"))
        host.click(opened.resultsPart.ui.savePictureButton)
        host.waitUntil(lambda: not opened.resultsPart.busy, 60)
    with step("training case saved"), tempfile.TemporaryDirectory() as folder:
        host.dialogs.expect("Choose the folder of the training cases", folder)
        host.click(opened.resultsPart.ui.saveCaseButton)
        host.waitUntil(lambda: not opened.resultsPart.busy, 120)
    registration = opened.registrationPart
    with step("checkerboard of two inputs shown"):
        registration._ui.checkerboardButton.click()
        host.waitUntil(lambda: not registration.drawing, 60)
    registration.off()
    return rows


def main() -> int:
    """Measure and print one Markdown row each."""
    print(f"| volume | step | longest gap [ms] | ratio to {LIMIT_MS} ms |\n|---|---|---|---|")
    for name, shape in SHAPES.items():
        if len(sys.argv) > 1 and sys.argv[1] not in name:
            continue
        with panel() as (host, opened):
            for step, gap, where in measure(host, opened, shape):
                print(f"| {name} | {step} | {gap:.0f} | {gap / LIMIT_MS:.2f} |", flush=True)
                if where:
                    print(where, file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
