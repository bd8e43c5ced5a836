"""The worker and its client: the same answers, warm, over any stream, and what may go wrong."""

import contextlib
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

import medsegcore
from medsegcore.errors import (
    CancelledError,
    MissingInputError,
    ModelNotFoundError,
    ModelWeightsError,
    OutOfMemoryError,
    OutputError,
    OverlapError,
    SettingError,
    WorkerError,
    is_out_of_memory,
)
from medsegcore.imaging import Image, Region
from medsegcore.inference import Predictor
from medsegcore.worker import protocol
from medsegcore.worker.client import WorkerClient
from medsegcore.worker.protocol import Parser, ProtocolError, RunOptions
from medsegcore.worker.warm import WarmModels, find_model

MODEL = "ms-lesion-rsanet"
CPU = {"device": "cpu"}
WORKER = [sys.executable, "-m", "medsegcore.worker"]
COMMAND = [sys.executable, "-m", "medsegcore", "worker"]
RELAY = [sys.executable, str(Path(__file__).resolve().parents[1] / "worker_relay.py"), *COMMAND]
ENVIRONMENT = {
    **os.environ,
    "OMP_NUM_THREADS": "1",
    "PYTHONPATH": str(Path(medsegcore.__file__).parents[1]),
}


@contextlib.contextmanager
def opened(command, **variables):
    """A client whose process and files are gone when it is closed."""
    client = WorkerClient(command, {**ENVIRONMENT, **variables})
    try:
        yield client
    finally:
        pids, folder = tree(client), client._folder
        client.close()
        assert gone(pids)
        assert folder is None or not folder.exists()


def tree(client):
    process = getattr(client._transport, "_process", None)
    if process is None or not psutil.pid_exists(process.pid):
        return []
    top = psutil.Process(process.pid)
    return [top.pid, *(child.pid for child in top.children(recursive=True))]


def alive(pid):
    with contextlib.suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    return False


def gone(pids):
    """Whether they end within a second: the system takes its time to take one apart."""
    deadline = time.monotonic() + 1
    while any(alive(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.01)
    return not any(alive(pid) for pid in pids)


def files(client):
    return sorted(p.name for p in client._folder.glob("*.npy"))


@pytest.fixture(scope="module")
def small(ms_images):
    """A part of the sample that takes a second."""
    box = (slice(60, 92), slice(60, 124), slice(50, 114))
    return {
        key: Image(image.array[box], image.grid.crop(box).affine)
        for key, image in ms_images.items()
    }


@pytest.fixture(scope="module")
def expected(predictor, small):
    return predictor.predict(small)


@pytest.fixture(scope="module")
def warm():
    """A worker that several tests use one after the other."""
    with opened(WORKER) as client:
        yield client


def check_same(result, expected):
    assert np.array_equal(result.labelmap, expected.labelmap)
    assert np.allclose(result.grid.affine, expected.grid.affine, atol=0)
    for name, array in expected.probabilities.items():
        # Another number of threads adds up in another order.
        assert np.allclose(result.probabilities[name], array, atol=1e-3)
        assert result.probabilities[name].dtype == array.dtype
    assert [a.key for a in result.attention] == [a.key for a in expected.attention]
    for ours, theirs in zip(result.attention, expected.attention, strict=True):
        assert type(ours) is type(theirs)
        values = (ours.values, theirs.values) if ours.kind == "spatial" else (
            ours.matrix, theirs.matrix)  # fmt: skip
        assert np.allclose(*values, atol=1e-4)
    assert [v.volume_ml for v in result.lesions] == [v.volume_ml for v in expected.lesions]
    assert result.settings == expected.settings


@pytest.mark.parametrize("folder", [f"/their/models/{MODEL}", rf"C:\\their models\\{MODEL}"])
def test_a_folder_of_another_computer_goes_by_its_name(folder):
    models = WarmModels(lambda: None)
    predictor = models.get(find_model(folder), RunOptions(device="cpu"))
    assert predictor.description.id == MODEL
    with pytest.raises(ModelNotFoundError, match="/their/models/unknown"):
        find_model("/their/models/unknown")


def test_the_worker_answers_as_the_predictor_does_and_stays_for_the_next(warm, small, expected):
    stages = []
    first = warm.wait(warm.predict(MODEL, small, CPU, progress=lambda *p: stages.append(p)))
    check_same(first, expected)
    names = list(dict.fromkeys(stage for stage, *_ in stages))
    assert names[-6:] == ["send", "load", "prepare", "segment", "restore", "measure"]
    assert warm.info["shared"]
    pid = tree(warm)
    second = warm.wait(warm.predict(MODEL, small, {**CPU, "thresholds": {"MS lesion": 0.9}}))
    assert tree(warm) == pid
    assert second.settings["thresholds"] == {"MS lesion": 0.9}
    # What was mapped is usable although no file is left; it may be changed.
    assert files(warm) == []
    first.labelmap[0, 0, 0] = 7


def test_careful_is_mirrored_fp32_and_options_count_and_are_checked(warm, small):
    part = {key: image.with_array(image.array[:16]) for key, image in small.items()}
    affine = np.eye(4)
    affine[:3, 3] = part["flair"].grid.center
    region = Region(affine, (40.0, 50.0, 100.0))
    options = {
        **CPU, "mode": "careful", "attention": False, "min_lesion_ml": 0.05, "uncertainty": True,
        "region": region.as_dict(),
    }  # fmt: skip
    result = warm.wait(warm.predict(MODEL, part, options))
    assert result.settings["mirror"]
    assert result.settings["precision"] == "float32"
    assert [a.key for a in result.attention] == ["uncertainty_mirroring", "uncertainty_entropy"]
    assert not result.probabilities["MS lesion"][~region.mask(result.grid)].any()
    assert result.probabilities["MS lesion"].any()
    assert all(lesion.volume_ml >= 0.05 for lesion in result.lesions)
    with pytest.raises(SettingError, match="no mode 'quick'"):
        warm.predict(MODEL, part, {"mode": "quick"})
    with pytest.raises(SettingError, match="no option 'mirror'"):
        warm.predict(MODEL, part, {"mirror": True})
    with pytest.raises(SettingError, match="is 2"):
        warm.wait(warm.predict(MODEL, part, {**CPU, "thresholds": {"MS lesion": 2}}))


def test_hello_tells_the_devices_and_load_tells_what_a_model_needs(warm, shipped_model):
    answer = warm.wait(warm.hello())
    assert answer["version"] == medsegcore.__version__
    assert answer["machine"]["cores"] >= 1
    cpu = answer["devices"][0]
    assert cpu["name"] == "cpu"
    assert 0 < cpu["free_mb"] <= cpu["total_mb"]
    loaded = warm.wait(warm.load(MODEL, CPU))
    assert loaded["need_mb"] == shipped_model.description.memory_mb
    assert loaded["device"] == "cpu"
    assert loaded["free_mb"] > 0


def test_errors_come_back_as_their_own_class_and_the_worker_goes_on(
    warm, small, expected, model_copy
):
    with pytest.raises(ModelNotFoundError, match="no model 'absent'"):
        warm.wait(warm.predict("absent", small, CPU))
    far = small["t1"].affine.copy()
    far[0, 3] += 300
    with pytest.raises(OverlapError, match="only 0%"):
        warm.wait(warm.predict(MODEL, {**small, "t1": Image(small["t1"].array, far)}, CPU))
    weights = model_copy.weights_path
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ModelWeightsError, match="truncated"):
        warm.wait(warm.predict(str(model_copy.path), small, CPU))
    assert files(warm) == []
    check_same(warm.wait(warm.predict(MODEL, small, CPU)), expected)


def test_cancel_is_heard_inside_a_tile_and_the_worker_stays_warm(warm, ms_images, small, expected):
    seen = []
    request = warm.predict(MODEL, ms_images, CPU, progress=lambda stage, *_: seen.append(stage))
    pid, asked = tree(warm), []

    def cancelled():
        if "segment" in seen and not asked:
            asked.append(time.monotonic())
        return bool(asked)

    with pytest.raises(CancelledError):
        warm.wait(request, cancelled)
    assert time.monotonic() - asked[0] < 1.2
    assert tree(warm) == pid
    assert files(warm) == []
    check_same(warm.wait(warm.predict(MODEL, small, CPU)), expected)


def test_one_that_waits_is_cancelled_without_touching_the_one_that_runs(warm, small, expected):
    warm.wait(warm.load(MODEL, CPU))
    pid, ended = tree(warm), []
    first = warm.predict(MODEL, small, CPU, finished=ended.append)
    second = warm.predict(MODEL, small, CPU, finished=ended.append)
    third = warm.predict(MODEL, small, CPU, finished=ended.append)
    while not second.sent:
        warm.poll()
    warm.cancel(second)
    warm.cancel(third)
    with pytest.raises(CancelledError):
        warm.wait(third)
    with pytest.raises(CancelledError):
        warm.wait(second)
    assert not first.done
    check_same(warm.wait(first), expected)
    assert len(ended) == 3
    assert ended[2] is first
    assert tree(warm) == pid
    assert files(warm) == []


@pytest.mark.skipif(not hasattr(resource, "prlimit"), reason="only Linux limits another process")
def test_memory_that_runs_out_is_a_sentence_and_the_worker_goes_on(warm, ms_images, small):
    warm.wait(warm.predict(MODEL, small, CPU))
    pid = tree(warm)[0]
    used = psutil.Process(pid).memory_info().vms
    before = resource.prlimit(pid, resource.RLIMIT_AS, (used + 30_000_000, resource.RLIM_INFINITY))
    try:
        with pytest.raises(OutOfMemoryError, match="memory"):
            warm.wait(warm.predict(MODEL, ms_images, CPU))
    finally:
        resource.prlimit(pid, resource.RLIMIT_AS, before)
    assert warm.wait(warm.predict(MODEL, small, CPU)).labelmap.shape == (32, 64, 64)


@pytest.mark.parametrize(
    ("error", "full"),
    [
        (MemoryError(), True),
        (RuntimeError("unable to mmap 9 bytes from file </a>: Cannot allocate memory (12)"), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to ..."), True),
        (RuntimeError("DefaultCPUAllocator: not enough memory: you tried to ..."), True),
        (RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB"), True),
        (RuntimeError("shape '[2]' is invalid for input of size 3"), False),
    ],
)
def test_memory_that_runs_out_is_told_from_other_errors_of_libraries(error, full):
    assert is_out_of_memory(error) is full


def test_a_full_disk_on_the_way_in_is_a_sentence_and_leaves_no_file(warm, small):
    warm.wait(warm.hello())
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        with pytest.raises(OutputError, match="cannot be handed to the worker"):
            warm.wait(warm.predict(MODEL, small, CPU))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert files(warm) == []


def test_polls_are_short_while_a_large_volume_is_sent(warm):
    warm.wait(warm.hello())
    large = {"flair": Image(np.ones((400, 400, 400), np.int16), np.eye(4))}
    request, longest = warm.predict("absent", large, CPU), 0.0
    while not request.done:
        # The thread's own time: the machine may be busy with something else.
        started = time.thread_time()
        warm.poll()
        longest = max(longest, time.thread_time() - started)
        time.sleep(0.001)
    assert isinstance(request.error, ModelNotFoundError)
    assert longest < 0.05


def test_without_a_shared_folder_the_arrays_travel_in_the_stream(small, expected):
    with opened(RELAY) as client:
        check_same(client.wait(client.predict(MODEL, small, CPU)), expected)
        assert client.info["shared"] is False
        assert files(client) == []
        # Cancelled in the middle of its arrays: the stream stays in step.
        large = {"flair": Image(np.ones((300, 300, 300), np.int16), np.eye(4))}
        request, longest = client.predict("absent", large, CPU), 0.0
        for _ in range(10):
            started = time.thread_time()
            client.poll()
            longest = max(longest, time.thread_time() - started)
        client.cancel(request)
        with pytest.raises(CancelledError):
            client.wait(request)
        assert longest < 0.05
        check_same(client.wait(client.predict(MODEL, small, CPU)), expected)
        # One that hears nothing is killed, with the process that started it.
        pids = tree(client)
        assert len(pids) == 2
        psutil.Process(pids[1]).suspend()
        request = client.predict(MODEL, small, CPU)
        started = time.monotonic()
        while not request.sent:
            client.poll()
        client.cancel(request)
        with pytest.raises(CancelledError):
            client.wait(request)
        assert time.monotonic() - started < 2
        assert not client.running
        assert gone(pids)


def test_a_killed_worker_is_a_sentence_and_the_next_run_has_a_new_one(small):
    with opened(WORKER) as client:
        client.wait(client.hello())
        # It dies between two runs, unseen: the next one starts another and says nothing of it.
        first = tree(client)
        os.kill(first[0], signal.SIGKILL)
        # The system says "zombie" while the last threads still end.
        while client._transport.exit_code() is None:
            time.sleep(0.01)
        pids = []

        def kill(stage, *_):
            if stage == "load" and not pids:
                pids.append(tree(client)[0])
                os.kill(pids[0], signal.SIGKILL)

        with pytest.raises(WorkerError, match="was killed"):
            client.wait(client.predict(MODEL, small, CPU, progress=kill))
        assert pids
        assert pids != first
        assert not client.running


# A library may print what it likes, to sys.stdout and to the file descriptor.
def test_what_libraries_print_is_no_part_of_the_protocol(tmp_path, small, expected):
    (tmp_path / "sitecustomize.py").write_text(
        "import os, threading, time\n"
        "def chat():\n"
        "    while True:\n"
        "        os.write(1, b'chatter without an end of line '); print('{chatter}', flush=True)\n"
        "        time.sleep(0.01)\n"
        "threading.Thread(target=chat, daemon=True).start()\n"
    )
    path = os.pathsep.join([str(tmp_path), ENVIRONMENT["PYTHONPATH"]])
    # A full disk on the way out is a sentence as well; inputs are as small as the limit.
    command = ["sh", "-c", 'ulimit -f 200; exec "$@"', "sh", *WORKER]
    with opened(command, PYTHONPATH=path) as client:
        with pytest.raises(OutputError, match="cannot be written"):
            client.wait(client.predict(MODEL, small, CPU))
        assert files(client) == []
        part = {k: Image(v.array[:8, :32], v.affine) for k, v in small.items()}
        result = client.wait(client.predict(MODEL, part, {**CPU, "attention": False}))
        assert result.labelmap.shape == (8, 32, 64)
        assert "chatter" in client.log


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (["/nowhere/python"], "'/nowhere/python' does not start: No such file"),
        (["false"], "ended with code 1 before it was ready"),
        ([sys.executable, "-c", "import no_such_module"], "No module named 'no_such_module'"),
        (["sh", "-c", "echo Welcome; exec sleep 60"], None),
    ],
)
def test_a_command_that_is_no_worker_is_named(small, command, words):
    with opened(command) as client:
        request = client.predict(MODEL, small, CPU)
        if words is None:
            # It greets and says no more: waiting for it can be cancelled.
            for _ in range(50):
                client.poll()
                time.sleep(0.01)
            client.cancel(request)
            words = "cancelled"
        with pytest.raises((WorkerError, CancelledError), match=words):
            client.wait(request)


def test_a_python_without_torch_is_told_what_it_lacks(tmp_path):
    (tmp_path / "sitecustomize.py").write_text("import sys; sys.modules['torch'] = None")
    path = os.pathsep.join([str(tmp_path), ENVIRONMENT["PYTHONPATH"]])
    with opened(WORKER, PYTHONPATH=path) as client:
        with pytest.raises(WorkerError, match=r"cannot load what it needs: .*torch"):
            client.wait(client.load(MODEL, CPU))
        assert not client.running


SAYS = """
import json, sys
hello = json.loads(sys.stdin.readline())
def say(**message): print(json.dumps(message), flush=True)
say(event="result", id=hello["id"], protocol={protocol}, version="0", token=None, devices=[])
while line := sys.stdin.readline():
    message = json.loads(line)
    {then}
"""


@pytest.mark.parametrize(
    ("version", "then", "words"),
    [
        (99, "pass", "speaks protocol 99"),
        (1, "print('Segmentation fault', flush=True)", "not understood: 'Segmentation fault'"),
        (1, "say(event='result', id=message['id'], labels=5)", "not understood: 'result"),
        (1, "sys.stdout.write('x' * (1 << 25)); sys.stdout.flush()", "not understood: 'xxx"),
        (1, "say(event='progress', id=message['id'])", "not understood"),
        (1, "sys.exit('Out of cheese')", "ended with code 1 in the middle.*Out of cheese"),
    ],
)
def test_an_answer_that_makes_no_sense_is_a_sentence(version, then, words):
    program = SAYS.format(protocol=version, then=then)
    with opened([sys.executable, "-c", program]) as client:
        with pytest.raises(WorkerError, match=words):
            client.wait(client.predict(MODEL, {}, CPU))
        assert not client.running


def test_the_worker_ends_when_its_client_is_killed(tmp_path):
    program = (
        "import os, sys, time\n"
        "from medsegcore.worker.client import WorkerClient\n"
        f"client = WorkerClient({WORKER!r}, os.environ)\n"
        f"client.wait(client.load({MODEL!r}, {CPU!r}))\n"
        "print(client._transport._process.pid, client._folder, flush=True)\n"
        "time.sleep(60)\n"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", program], env={**ENVIRONMENT, "TMPDIR": str(tmp_path)},
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    pid, folder = parent.stdout.readline().split()
    assert alive(int(pid))
    assert Path(folder).is_dir()
    assert Path(folder).stat().st_mode & 0o077 == 0
    parent.kill()
    parent.wait()
    parent.stdout.close()
    assert gone([int(pid)])
    assert not Path(folder).exists()


def test_a_prediction_without_images_is_a_sentence(warm):
    with pytest.raises(MissingInputError, match="needs the input 't1'"):
        warm.wait(warm.predict(MODEL, {}, CPU))


def test_a_folder_that_cannot_be_made_is_a_sentence(monkeypatch, small):
    monkeypatch.setattr(tempfile, "tempdir", "/proc/nowhere")
    with opened(WORKER) as client, pytest.raises(OutputError, match="temporary files"):
        client.wait(client.predict(MODEL, small, CPU))


def test_slicer_loads_the_client_and_saves_cases_without_torch_and_at_once():
    program = (
        "import numpy, time, sys\n"
        "started = time.process_time()\n"
        "import medsegcore.worker.client, medsegcore.corrections\n"
        "print(time.process_time() - started, 'torch' in sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], env=ENVIRONMENT, capture_output=True, text=True, check=True
    )
    seconds, torch = done.stdout.split()
    assert torch == "False"
    assert float(seconds) < 0.3


def test_messages_are_read_in_any_portions():
    array = np.arange(400_000, dtype=np.float32).reshape(1000, 400)
    sent = b"".join(protocol.frames("event", 3, "a3-0", array))
    sent += protocol.line({"event": "result", "id": 3})
    for portion in (1 << 20, 70_001):
        parser, seen = Parser(), []
        for start in range(0, len(sent), portion):
            parser.feed(sent[start : start + portion])
            while (message := parser.next()) is not None:
                seen.append(message)
        assert seen[-1] == {"event": "result", "id": 3}
        data = b"".join(message["payload"] for message in seen[:-1])
        assert np.array_equal(np.frombuffer(data, np.float32).reshape(1000, 400), array)


@pytest.mark.parametrize("line", [b"no", b"[1]", b"{}", b'{"event":"frame","bytes":99999999}'])
def test_a_line_that_is_no_message_is_skipped(line):
    parser = Parser()
    parser.feed(line + b"\n" + protocol.line({"event": "log", "id": 1}))
    with pytest.raises(ProtocolError):
        parser.next()
    assert parser.next() == {"event": "log", "id": 1}


@pytest.mark.parametrize(
    "named",
    [
        {"array": "../../secret", "dtype": "<f4", "shape": [2]},
        {"array": "a1-0", "dtype": "O", "shape": [2]},
        {"array": "a1-0", "dtype": "<f4", "shape": [3]},
        {"array": "a1-1", "dtype": "<f4", "shape": [2]},
        {"array": "a1-0", "dtype": "<f4", "shape": None},
    ],
)
def test_an_array_that_was_not_announced_so_is_refused(tmp_path, named):
    np.save(tmp_path / "a1-0.npy", np.zeros(2, np.float32))
    arrays = protocol.Arrays()
    arrays.folder = tmp_path
    with pytest.raises(ProtocolError):
        arrays.get(1, named)


def test_the_last_three_models_are_kept_and_a_replaced_one_is_read_again(shipped_model, tmp_path):
    import shutil

    from medsegcore.models import ModelFolder

    paths = [str(tmp_path / f"copy{n}") for n in range(4)]
    for path in paths:
        shutil.copytree(shipped_model.path, path)
    models, options = WarmModels(lambda: None), RunOptions(device="cpu")
    loaded = [models.get(find_model(path), options) for path in paths]
    assert all(isinstance(predictor, Predictor) for predictor in loaded)
    assert models.get(find_model(paths[3]), options) is loaded[3]
    assert models.get(find_model(paths[1]), options) is loaded[1]
    assert models.get(find_model(paths[0]), options) is not loaded[0]
    assert len(models._models) == 3
    description = ModelFolder.read(paths[1]).description
    label = description.labels[0].model_copy(update={"threshold": 0.77})
    ModelFolder.read(paths[1]).with_description(
        description.model_copy(update={"labels": [label, *description.labels[1:]]})
    )
    assert models.get(find_model(paths[1]), options).description.labels[0].threshold == 0.77


def test_options_survive_the_stream():
    options = RunOptions("cuda:1", "careful", False, {"a": 0.25}, 0.5, ensemble=("b", "c"))
    assert RunOptions.of(json.loads(json.dumps(options.to_json()))) == options
    assert (options.precision, options.mirror) == ("fp32", True)
    assert (RunOptions().precision, RunOptions().mirror) == ("auto", False)
