"""The pictures of README's tutorial: each step done on the sample case, in `Screenshots/`.

python Testing/panel/screenshots.py [FOLDER]
"""

import os
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")
PROJECT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(PROJECT / "SlicerMedSeg"), str(Path(__file__).resolve().parent)]

import slicer  # noqa: E402
from host import Host  # noqa: E402
from host.conversion import unwrap  # noqa: E402
from PIL import Image  # noqa: E402

SIZE = (1360, 860)
PANEL = 460
RUN_SECONDS = 300
SETTLE_MS = 300
SECTIONS = ("modelSection", "inputsSection", "runSection", "resultsSection", "attentionSection")


class Tutorial:
    """The steps, one after the other, in one application.

    Args:
        host: `Host` with the module's panel open.
        folder: gets the pictures.
    """

    def __init__(self, host, folder: Path) -> None:
        # It needs `qt`, which is there while the host is open.
        from host.hand import HostHand

        self.host, self.folder = host, folder
        self.hand = HostHand(host, slicer.modules.SlicerMedSegWidget)
        self.arrange()

    def steps(self) -> None:
        """All pictures."""
        self.load()
        self.model()
        self.inputs()
        self.running()
        self.results()
        self.attention()
        self.slices()
        self.correction()

    def arrange(self) -> None:
        """The axial view large, the others beside it."""
        names = ("Red", "Yellow", "Green")
        manager = slicer.app.layoutManager()
        red, yellow, green = (unwrap(manager.sliceWidget(name)) for name in names)
        grid = red.parentWidget().layout()
        grid.addWidget(red, 0, 0, 2, 1)
        grid.addWidget(yellow, 0, 1)
        grid.addWidget(green, 1, 1)
        grid.setColumnStretch(0, 3)
        grid.setColumnStretch(1, 2)
        self.hand.wait(50)

    def load(self) -> None:
        from SlicerMedSegLib.Scenarios import loadSample

        nodes = loadSample()
        for node in nodes.values():
            node.SetName(f"MS {node.GetName()}")
        display = nodes["flair"].GetDisplayNode()
        display.SetAutoWindowLevel(0)
        display.SetWindowLevelMinMax(0, 1100)
        slicer.util.setSliceViewerLayers(background=nodes["flair"], fit=True)

    def model(self) -> None:
        hand = self.hand
        hand.waitUntil(lambda: hand.text("readyLabel").startswith("Ready"), RUN_SECONDS)
        self.hand.clickRow("modelList", "MS lesions")
        self.show("modelSection")
        self.picture("1-model")

    def inputs(self) -> None:
        self.hand.waitUntil(lambda: self.hand.widget("segmentButton").enabled)
        self.show("inputsSection", "runSection")
        self.picture("2-inputs")

    def running(self) -> None:
        hand = self.hand
        hand.click("uncertaintyCheckBox")
        hand.click("segmentButton")
        self.show("runSection", "inputsSection")
        hand.waitUntil(
            lambda: (
                hand.text("progressLabel").startswith("Segmenting")
                and hand.widget("progressBar").value > 30
            ),
            RUN_SECONDS,
        )
        self.picture("3-running")
        hand.waitUntil(lambda: hand.widget("segmentButton").enabled, RUN_SECONDS)

    def results(self) -> None:
        hand = self.hand
        self.show("resultsSection")
        hand.waitUntil(lambda: hand.widget("minVolumeSpinBox").enabled, RUN_SECONDS)
        hand.waitUntil(lambda: hand.widget("lesionTable").rowCount > 2, RUN_SECONDS)
        hand.type("minVolumeSpinBox", "0.05")
        hand.clickCell("lesionTable", 2, "Volume [ml]")
        self.picture("4-results")

    def attention(self) -> None:
        hand = self.hand
        self.show("attentionSection")
        hand.click("showButton")
        hand.drag("opacitySlider", 0.4)
        self.picture("5-attention")

    def slices(self) -> None:
        hand = self.hand
        hand.choose("mapSelector", "Slices: Slice attention, axial (bottom)")
        self.picture("6-slices")
        hand.click("showButton")

    def correction(self) -> None:
        hand = self.hand
        self.show("resultsSection")
        totals = hand.text("totalsLabel")
        hand.clickCell("lesionTable", 0, "Keep")
        hand.waitUntil(lambda: hand.text("totalsLabel") != totals, RUN_SECONDS)
        self.picture("7-correction")

    def show(self, *open_: str) -> None:
        """Sections that are open; the others are closed."""
        for name in SECTIONS:
            if self.hand.widget(name).collapsed == (name in open_):
                self.hand.click(name)
        self.hand.wait(50)

    def picture(self, name: str) -> None:
        """The whole window, small enough for the web."""
        # What has just come gets its place first.
        self.hand.wait(SETTLE_MS)
        with tempfile.TemporaryDirectory() as folder:
            shot = self.host.screenshot(Path(folder) / "shot.png")
            path = self.folder / f"{name}.jpg"
            Image.open(shot).convert("RGB").save(path, quality=88, optimize=True)
        print(f"{path.name}: {path.stat().st_size // 1024} kB")


def main() -> None:
    """Make all pictures."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else PROJECT / "Screenshots"
    with tempfile.TemporaryDirectory() as own, Host(panelWidth=PANEL, size=SIZE) as host:
        os.environ["XDG_DATA_HOME"] = own
        host.addPythonSlicer()
        host.openModule(PROJECT / "SlicerMedSeg" / "SlicerMedSeg.py")
        Tutorial(host, folder).steps()
    host.check()


if __name__ == "__main__":
    main()
