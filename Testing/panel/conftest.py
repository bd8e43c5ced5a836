"""An application for each test of the panel; what goes wrong silently fails the test."""

import os
import sys
import tempfile
from pathlib import Path

import pytest

os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")
sys.path.insert(0, str(Path(__file__).resolve().parent))


@pytest.fixture
def host():
    """The application with its window and an empty scene."""
    from host import Host

    with Host() as running:
        yield running
        running.wait(0)
    running.check()


@pytest.fixture
def qt():
    """Qt by PythonQt's conventions, without a scene; `recorded` is left to the test."""
    from host import application, qt, records

    application()
    records.recorded.clear()
    yield qt
    records.recorded.clear()


@pytest.fixture
def recorded(qt):
    """What was printed instead of raised."""
    from host import records

    return records.recorded


@pytest.fixture
def flair(host, ms_images):
    """The sample's FLAIR in the scene and in the slice views."""
    import slicer

    from SlicerMedSegLib.SceneConversion import volumeNodeFromImage

    node = volumeNodeFromImage(ms_images["flair"], "FLAIR", host.core.scene)
    node.GetDisplayNode().SetAutoWindowLevel(0)
    node.GetDisplayNode().SetWindowLevelMinMax(0, 1200)
    slicer.util.setSliceViewerLayers(background=node, fit=True)
    return node


MODULE = Path(__file__).resolve().parents[2] / "SlicerMedSeg" / "SlicerMedSeg.py"


@pytest.fixture
def medsegFolders(host, monkeypatch, tmp_path):
    """No models of the developer's own, temporary files apart, and a PythonSlicer to run."""
    host.addPythonSlicer()
    for name in ("data", "temporary"):
        (tmp_path / name).mkdir()
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    monkeypatch.setenv("TMPDIR", str(tmp_path / "temporary"))
    return tmp_path


@pytest.fixture
def panel(host, medsegFolders):
    """MedSeg's own panel, entered; its worker ends with the host."""
    return host.openModule(MODULE)


@pytest.fixture
def addSample(host, ms_images):
    """Puts the sample's volumes into the scene: `addSample(box)`, of all voxels without one."""
    from medsegcore.imaging import Image
    from SlicerMedSegLib.SceneConversion import volumeNodeFromImage

    def add(box=None, keys=("t1", "t2", "flair")):
        nodes = {}
        for key in keys:
            image = ms_images[key]
            if box is not None:
                image = Image(image.array[box], image.grid.crop(box).affine)
            nodes[key] = volumeNodeFromImage(image, f"MS {key.upper()}", host.core.scene)
        host.wait(0)
        return nodes

    return add
