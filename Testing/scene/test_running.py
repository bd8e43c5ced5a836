"""Runs from the scene: one warm worker, its errors and its death, and that nothing of it stays."""

import os
import signal
import sys
import tempfile
import time
import types
from pathlib import Path

import numpy as np
import psutil
import pytest
import slicer

from medsegcore.errors import (
    CancelledError,
    MissingInputError,
    ModelNotFoundError,
    SettingError,
    WorkerError,
)
from medsegcore.imaging import Image
from SlicerMedSegLib.InputRegion import regionFromRoiNode
from SlicerMedSegLib.ResultToScene import findRuns
from SlicerMedSegLib.Running import WarmWorker, endWorker, warmWorker, workerCommand
from SlicerMedSegLib.SceneConversion import imageFromVolumeNode, volumeNodeFromImage
from SlicerMedSegLib.Segmenting import Segmentation
from SlicerMedSegLib.SegmentingFrames import segmentNodes

MODEL = "ms-lesion-rsanet"
CPU = {"device": "cpu"}
RELAY = Path(__file__).resolve().parents[1] / "worker_relay.py"


@pytest.fixture(autouse=True)
def nothingStays(tmp_path, monkeypatch):
    """Every test ends without child processes and without files in the temporary folder."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    before = set(children())
    yield
    endWorker()
    assert [pid for pid in children() if pid not in before] == []
    assert [p.name for p in Path(tmp_path).iterdir() if not p.name.startswith("medseg-cache")] == []


def children():
    return [
        p.pid
        for p in psutil.Process().children(recursive=True)
        if p.status() != psutil.STATUS_ZOMBIE
    ]


@pytest.fixture
def volumes(core, ms_images):
    """A part of the sample in the scene that takes a second."""
    box = (slice(60, 92), slice(60, 124), slice(50, 114))
    return {
        key: volumeNodeFromImage(
            Image(image.array[box], image.grid.crop(box).affine), key.upper(), core.scene
        )
        for key, image in ms_images.items()
    }


@pytest.fixture
def qtModule(monkeypatch):
    """Qt's own process and timer under the names of the application's module `qt`."""
    core = pytest.importorskip("PySide6.QtCore")
    application = core.QCoreApplication.instance() or core.QCoreApplication([])
    module = types.ModuleType("qt")
    for name in ("QProcess", "QProcessEnvironment", "QTimer"):
        setattr(module, name, getattr(core, name))
    monkeypatch.setitem(sys.modules, "qt", module)
    monkeypatch.delitem(sys.modules, "SlicerMedSegLib.ProcessTransport", raising=False)
    return application


def test_the_worker_stays_warm_between_runs(core, volumes):
    stages = []
    first = segmentNodes(
        core.scene, MODEL, volumes, CPU, progress=lambda stage, *_: stages.append(stage)
    )
    assert {"start", "send", "load", "segment"} <= set(stages)
    pids = children()
    stages.clear()
    second = segmentNodes(
        core.scene, MODEL, volumes, CPU, progress=lambda stage, *_: stages.append(stage)
    )
    assert children() == pids
    assert len(pids) == 1
    assert "start" not in stages
    assert np.array_equal(
        slicer.util.arrayFromVolume(first.answer), slicer.util.arrayFromVolume(second.answer)
    )
    assert len(findRuns(core.scene)) == 2
    endWorker()
    assert children() == []


def test_a_model_of_one_input_answers_on_the_grid_of_whichever_is_given(
    core, ct_or_mr_model, abdomen
):
    image = abdomen["mr"]
    node = volumeNodeFromImage(image, "Abdomen", core.scene)
    nodes = segmentNodes(core.scene, str(ct_or_mr_model.path), {"mr": node}, CPU)
    probability = imageFromVolumeNode(nodes.probabilities["liver"])
    assert probability.grid.same_as(image.grid)
    other = volumeNodeFromImage(abdomen["ct"], "Other", core.scene)
    with pytest.raises(MissingInputError, match="takes one of its inputs and got ct and mr"):
        segmentNodes(core.scene, str(ct_or_mr_model.path), {"ct": other, "mr": node}, CPU)


def test_what_goes_wrong_leaves_the_scene_alone_and_the_next_run_works(core, volumes):
    before = core.scene.GetNumberOfNodes()
    with pytest.raises(ModelNotFoundError, match="no model 'absent'"):
        segmentNodes(core.scene, "absent", volumes, CPU)

    def kill(stage, *_):
        if stage == "load":
            os.kill(children()[0], signal.SIGKILL)

    with pytest.raises(WorkerError, match="was killed"):
        segmentNodes(core.scene, MODEL, volumes, CPU, progress=kill)
    stages, idles = [], []
    with pytest.raises(CancelledError):
        segmentNodes(
            core.scene, MODEL, volumes, CPU,
            progress=lambda stage, *_: stages.append(stage),
            cancelled=lambda: "segment" in stages,
            idle=lambda: idles.append(1),
        )  # fmt: skip
    assert len(idles) > 3
    assert core.scene.GetNumberOfNodes() == before
    # A volume that goes while the model runs: a sentence, not a result beside nothing.
    worker, ended = warmWorker(), []
    run = Segmentation(worker, core.scene, MODEL, volumes, CPU, finished=ended.append)
    core.scene.RemoveNode(volumes["flair"])
    before = core.scene.GetNumberOfNodes()
    worker.wait(run.request)
    assert ended == [run]
    assert isinstance(run.error, MissingInputError)
    assert "'FLAIR' was removed" in str(run.error)
    assert core.scene.GetNumberOfNodes() == before


def test_a_run_takes_a_frame_of_a_sequence_and_stays_inside_a_region(core, volumes):
    scene = core.scene
    sequence = scene.AddNewNodeByClass("vtkMRMLSequenceNode", "T2 series")
    for n in range(3):
        frame = scene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "frame")
        frame.Copy(volumes["t2"])
        array = slicer.util.arrayFromVolume(frame)
        slicer.util.updateVolumeFromArray(frame, array if n == 1 else array[::-1].copy())
        sequence.SetDataNodeAtValue(frame, str(n))
        scene.RemoveNode(frame)
    roi = scene.AddNewNodeByClass("vtkMRMLMarkupsROINode", "box")
    bounds = [0.0] * 6
    volumes["flair"].GetRASBounds(bounds)
    roi.SetCenter(*(np.add(bounds[::2], bounds[1::2]) / 2))
    roi.SetSize(30, 30, 20)

    def answer(nodes, **more):
        worker = warmWorker()
        run = Segmentation(worker, scene, MODEL, nodes, CPU, **more)
        worker.wait(run.request)
        assert run.error is None
        return slicer.util.arrayFromVolume(run.nodes.probabilities["MS lesion"]).copy()

    plain = answer(volumes)
    series = {**volumes, "t2": sequence}
    assert np.array_equal(answer(series, frames={"t2": 1}), plain)
    assert not np.array_equal(answer(series, frames={"t2": 2}), plain)
    region = regionFromRoiNode(roi)
    inside = region.mask(imageFromVolumeNode(volumes["flair"]).grid)
    limited = answer(volumes, region=region)
    assert limited[inside].any()
    assert not limited[~inside].any()
    with pytest.raises(MissingInputError, match="'T2 series' is no volume"):
        answer({**volumes, "flair": sequence})
    with pytest.raises(SettingError, match="no frame 4"):
        answer(series, frames={"t2": 4})


def test_a_command_is_a_worker_elsewhere_and_another_one_ends_the_first(core, volumes):
    with pytest.raises(WorkerError, match="'/nowhere/python' does not start"):
        segmentNodes(core.scene, MODEL, volumes, CPU, python="/nowhere/python")
    relay = f"{sys.executable} {RELAY} {sys.executable} -m medsegcore.worker"
    nodes = segmentNodes(core.scene, MODEL, volumes, CPU, python=relay)
    assert warmWorker(relay).client.info["shared"] is False
    assert slicer.util.arrayFromVolume(nodes.answer).shape == (32, 64, 64)
    assert len(children()) == 2
    assert warmWorker().client.running is False
    assert children() == []


def test_an_interpreter_and_a_command_are_told_apart():
    module = ["-m", "medsegcore.worker"]
    assert workerCommand() == [sys.executable, *module]
    assert workerCommand("/opt/my-python") == ["/opt/my-python", *module]
    assert workerCommand(sys.executable) == [sys.executable, *module]
    assert workerCommand("ssh -C host medseg worker") == ["ssh", "-C", "host", "medseg", "worker"]
    assert workerCommand(["docker", "run"]) == ["docker", "run"]


def test_in_the_application_a_process_of_qt_and_a_timer_do_it(qtModule, core, volumes):
    from SlicerMedSegLib.ProcessTransport import ProcessTransport

    def turn(until, seconds=60.0):
        """The event loop, and the longest that it was held up by one turn."""
        longest, deadline = 0.0, time.monotonic() + seconds
        while not until() and time.monotonic() < deadline:
            started = time.thread_time()
            qtModule.processEvents()
            longest = max(longest, time.thread_time() - started)
            time.sleep(0.001)
        assert until()
        return longest

    relay = [sys.executable, str(RELAY), sys.executable, "-m", "medsegcore.worker"]
    for python in (None, relay):
        worker, ended, stages = WarmWorker(python, ProcessTransport), [], []
        hello = worker.hello(ended.append)
        assert turn(lambda ended=ended: ended) < 0.05
        assert hello.result["devices"][0]["name"] == "cpu"
        large = {"flair": Image(np.ones((200, 400, 400), np.int16), np.eye(4))}
        request = worker.predict("absent", large, CPU, finished=ended.append)
        assert turn(lambda request=request: request.done) < 0.05
        assert isinstance(request.error, ModelNotFoundError)
        run = Segmentation(
            worker, core.scene, MODEL, volumes, CPU,
            progress=lambda stage, *_, stages=stages: stages.append(stage),
        )  # fmt: skip
        turn(lambda run=run: run.nodes or run.error)
        assert run.error is None
        assert "segment" in stages
        pids = children()
        if python is None:
            # Killed in the middle; what comes next has a new one.
            run = Segmentation(
                worker, core.scene, MODEL, volumes, CPU,
                progress=lambda stage, *_, pids=pids: stage == "load" and os.kill(pids[0], 9),
            )  # fmt: skip
            turn(lambda run=run: run.error)
            assert "was killed" in str(run.error)
            assert not worker.hello().done
        else:
            # One that hears nothing ends with all that it started, within about a second.
            psutil.Process(pids[-1]).suspend()
            run = Segmentation(worker, core.scene, MODEL, volumes, CPU)
            turn(lambda run=run: run.request.sent)
            run.cancel()
            assert turn(lambda run=run: run.error, 2.0) < 0.1
            assert isinstance(run.error, CancelledError)
        time.sleep(0.2)
        assert not set(pids) & set(children())
        worker.end()
    worker = WarmWorker("/nowhere/python", ProcessTransport)
    request = worker.hello()
    turn(lambda: request.done)
    assert "does not start" in str(request.error)
    worker.end()
