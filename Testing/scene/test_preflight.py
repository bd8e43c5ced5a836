"""What a bare Slicer lacks is told, installed by the real pip, and remembered over a restart."""

import errno
import json
import os
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import slicer

from medsegcore.models import ModelFolder
from medsegcore.models.store import ZOO
from SlicerMedSegLib import Installation as installing
from SlicerMedSegLib import Preflight
from SlicerMedSegLib.Installation import Installation, explain
from SlicerMedSegLib.Preflight import Facts, Problem, blocker, problems, readyLine
from SlicerMedSegLib.Wheels import missingWheels

PROJECT = Path(__file__).resolve().parents[2]
REQUIREMENTS = PROJECT / "SlicerMedSeg" / "Resources" / "requirements.txt"
MACHINE = {
    "python": "3.12.3", "torch": "2.7.0+cu126", "cuda_build": "12.6", "cores": 2, "nvidia": None,
    "cuda_problem": "",
}  # fmt: skip
CPU = {"name": "cpu", "title": "x86_64", "free_mb": 9000, "total_mb": 16000}
RTX = {"name": "cuda:0", "title": "NVIDIA RTX A5000", "free_mb": 8700, "total_mb": 25770}
WELL = Facts(torch="2.7.0+cu126", worker={"devices": [CPU], "machine": MACHINE})


class Settings(dict):
    """The application's settings; texts, as they come back after a restart."""

    def value(self, key):
        return self.get(key)

    def setValue(self, key, value):
        assert isinstance(value, str)
        self[key] = value

    def remove(self, key):
        self.pop(key, None)


class Pip:
    """The real pip in another Python, whose lines are printed as Slicer prints them."""

    def __init__(self, program, options=("--no-index",)):
        self.program, self.options = program, options

    def run(self, *arguments):
        process = subprocess.run(
            [str(self.program), "-m", "pip", *arguments],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        print(process.stdout)
        process.check_returncode()

    def ensure(self, requirements, interactive):
        self.run("install", *self.options, "-r", str(requirements))

    def install(self, arguments, interactive):
        self.run("install", *arguments)

    def uninstall(self, names):
        self.run("uninstall", "--yes", *names)


class Extension:
    """Slicer's extension PyTorch, with a pip of its own."""

    def __init__(self, pip=None, wheels=None):
        self.pip, self.wheels, self.done = pip, wheels, []

    def there(self):
        return True

    def addExtension(self):
        self.done.append("extension")

    def install(self):
        self.done.append("install")
        self.pip.run("install", "--no-index", "--find-links", str(self.wheels), "medseg-base==1.1")

    def uninstall(self):
        self.done.append("uninstall")


@pytest.fixture
def tiny(tmp_path):
    """A requirements file."""
    path = tmp_path / "requirements.txt"
    path.write_text("# What is needed.\nmedseg-tiny>=1.0\n")
    return path


def named(facts):
    return {problem.key: problem for problem in problems(facts)}


# What is told.


def test_all_well_is_one_line_with_the_card_or_the_cores():
    assert problems(WELL) == []
    assert blocker(WELL) == ""
    assert readyLine(WELL) == "Ready: CPU, 2 cores"
    worker = {"devices": [CPU, RTX], "machine": MACHINE}
    assert readyLine(replace(WELL, worker=worker)) == "Ready: NVIDIA RTX A5000, 8.7 of 26 GB free"


def test_a_worker_of_an_older_version_and_one_that_has_not_answered_have_a_line_too():
    old = replace(WELL, worker={"devices": [CPU]})
    assert readyLine(old) == "Ready: CPU, 9.0 of 16 GB free"
    assert problems(old) == []
    assert readyLine(replace(WELL, worker=None)) == ""
    assert blocker(replace(WELL, worker=None)) == ""


def test_a_bare_slicer_is_told_what_to_install_one_button_each():
    found = named(Facts(missing=("pydantic>=2.6,<3", "safetensors>=0.4")))
    assert list(found) == ["packages", "torch", "wheels"]
    assert "pydantic>=2.6,<3, safetensors>=0.4" in found["packages"].sentence
    assert found["packages"].button == "Install packages"
    assert found["torch"].button == "Install PyTorch"
    assert found["wheels"].button == "Choose a wheel folder"
    assert not found["wheels"].blocks
    bare = named(Facts(missing=("psutil>=5.9",), extension=False))
    assert bare["torch"].button == "Install the extension"
    assert "extension PyTorch" in bare["torch"].sentence


def test_a_computer_that_knows_no_way_to_a_network_is_told_so(monkeypatch):
    class Unreachable(socket.socket):
        def connect(self, address):
            raise OSError(errno.ENETUNREACH, "Network is unreachable")

    # A way to this machine itself is always there, and a datagram's socket sends nothing.
    local = (socket.AF_INET, "127.0.0.1")
    monkeypatch.setattr(Preflight, "NOBODY", (Preflight.NOBODY[0], local))
    assert not Preflight.isOffline()
    monkeypatch.setattr(Preflight.socket, "socket", Unreachable)
    assert Preflight.isOffline()
    found = named(Facts(missing=("psutil>=5.9",), torch="2.7", offline=True))
    assert list(found) == ["packages", "wheels"]
    assert found["wheels"].sentence.startswith("This computer has no network now")
    assert found["wheels"].button == "Choose a wheel folder"
    assert named(replace(WELL, offline=True)) == {}
    assert "There is no network now." in Preflight.details(replace(WELL, offline=True))
    assert "There is no network now." not in Preflight.details(WELL)


def test_wheels_are_offered_where_the_extension_of_pytorch_is_missing_too():
    found = named(Facts(extension=False, offline=True))
    assert list(found) == ["torch", "wheels"]
    assert found["torch"].action == Preflight.EXTENSION
    assert found["wheels"].sentence.startswith("This computer has no network now: ")
    assert not found["wheels"].blocks


def test_an_old_torch_is_told_with_both_versions():
    found = named(Facts(torch="2.1.0+cpu"))
    assert "2.1.0+cpu is too old" in found["torch"].sentence
    assert ">=2.4" in found["torch"].sentence
    assert "torch" not in named(Facts(torch="2.4.0a0+git1"[:5]))


def test_another_interpreter_needs_no_torch_in_slicer():
    assert named(Facts(python="ssh host medseg worker")) == {}
    error = "The worker's Python cannot load what it needs: No module named 'torch'."
    found = named(Facts(python="/opt/python", workerError=error))
    assert found["interpreter"].button == "Choose another interpreter"
    assert blocker(Facts(python="/opt/python", workerError=error)) == error


@pytest.mark.parametrize(
    ("card", "machine", "words", "button"),
    [
        ({"name": "NVIDIA card", "driver": None}, {}, "no driver of NVIDIA's", "Check again"),
        (
            {"name": "NVIDIA RTX A5000", "driver": "535.1"},
            {"cuda_build": None, "torch": "2.7.0+cpu"},
            "PyTorch 2.7.0+cpu computes on the CPU alone: the NVIDIA RTX A5000",
            "Install PyTorch",
        ),
        (
            {"name": "NVIDIA RTX A5000", "driver": "470.82"},
            {"cuda_problem": "The NVIDIA driver on your system is too old (found version 11040)."},
            "driver 470.82: The NVIDIA driver on your system is too old (found version 11040).",
            "Check again",
        ),
    ],
)
def test_an_idle_card_is_told_and_the_cpu_computes(card, machine, words, button):
    worker = {"devices": [CPU], "machine": {**MACHINE, "nvidia": card, **machine}}
    facts = replace(WELL, worker=worker)
    assert words in named(facts)["gpu"].sentence
    assert named(facts)["gpu"].button == button
    assert blocker(facts) == ""
    assert readyLine(facts) == "Ready: CPU, 2 cores"
    without = replace(facts, extension=False)
    assert named(without)["gpu"].button == button.replace("PyTorch", "the extension")
    used = replace(WELL, worker={**worker, "devices": [CPU, RTX]})
    assert problems(used) == []


@pytest.mark.parametrize(("device", "told"), [(CPU, "CPU"), (RTX, "NVIDIA RTX A5000")])
def test_too_little_memory_is_told_with_what_should_be(device, told):
    low = {**device, "free_mb": 900}
    found = named(replace(WELL, worker={"devices": [low], "machine": MACHINE}))
    assert f"Only 0.9 GB of memory are free on {told}, 1.5 GB should be" in found["memory"].sentence
    assert (found["memory"].blocks, found["memory"].action) == (False, Preflight.AGAIN)
    unknown = {**device, "free_mb": None}
    assert "memory" not in named(replace(WELL, worker={"devices": [unknown], "machine": MACHINE}))
    assert "memory" not in named(WELL)


def test_the_least_memory_is_that_of_the_shipped_models():
    folders = [ModelFolder.read(path) for path in sorted(ZOO.iterdir()) if path.is_dir()]
    most = max(folder.description.memory_mb for folder in folders)
    assert most <= Preflight.LEAST_FREE_MB < 1.2 * most


def test_a_full_disk_is_told_with_its_folder(tmp_path):
    disk = Preflight.Disk("Temporary files", tmp_path, 400, 2000)
    found = named(replace(WELL, disks=(disk,)))
    assert f"only 0.4 GB are free on the disk of {tmp_path}" in found["disk"].sentence
    assert not found["disk"].blocks


def test_disks_are_measured_also_where_the_folder_is_not_made_yet(tmp_path):
    import shutil

    disks = {d.purpose: d for d in Preflight.measureDisks(tmp_path / "a" / "b", installing=True)}
    assert list(disks) == ["Temporary files", "Models", "PyTorch"]
    free = shutil.disk_usage(tmp_path).free / 1e6
    assert disks["Models"].freeMb == pytest.approx(free, rel=0.05)
    assert not (tmp_path / "a").exists()


def test_the_requirements_are_those_of_the_package_but_for_what_slicer_and_its_extension_bring():
    text = (PROJECT / "MedSegCore" / "pyproject.toml").read_text(encoding="utf-8")
    block = text.split("dependencies = [")[1].split("]")[0]
    needed = {line.strip().strip('",') for line in block.splitlines() if line.strip()}
    brought = {r for r in needed if r.split(">=")[0] in (*installing.OWN_OF_SLICER, "torch")}
    assert set(Preflight.readRequirements(REQUIREMENTS)) == needed - brought
    assert Preflight.TORCH_REQUIREMENT in brought
    assert Preflight.unmetRequirements(Preflight.readRequirements(REQUIREMENTS)) == []


def test_all_that_the_module_loads_is_shipped_with_it():
    module = PROJECT / "SlicerMedSeg"
    listed = (
        (module / "CMakeLists.txt")
        .read_text(encoding="utf-8")
        .replace("${MODULE_NAME}", "SlicerMedSeg")
    )
    files = [p.relative_to(module).as_posix() for p in (module / "Resources").rglob("*.*")]
    assert [name for name in files if name not in listed] == []


def test_the_card_needs_nothing_that_a_bare_slicer_lacks():
    code = (
        "import sys\n"
        "for name in ('pydantic', 'safetensors', 'psutil', 'torch'): sys.modules[name] = None\n"
        "import slicer, SlicerMedSegLib.Installation, SlicerMedSegLib.Running\n"
    )
    path = os.pathsep.join(str(PROJECT / name) for name in ("SlicerMedSeg", "MedSegCore"))
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "PYTHONPATH": path})


# What is installed.


def test_nothing_is_installed_or_written_before_a_method_is_called(tiny, fresh):
    settings = Settings()
    Installation(tiny, settings, Pip(fresh.program), Extension())
    assert settings == {}
    assert list(fresh.packages.glob("medseg*")) == []


def test_wheels_from_a_folder_are_installed_by_the_real_pip_and_removed(tiny, fresh, wheels):
    settings = Settings()
    installation = Installation(tiny, settings, Pip(fresh.program), Extension())
    assert installation.missing() == ("medseg-tiny>=1.0",)
    before = dict(os.environ)
    assert installation.installWheels(wheels, torch=False) is None
    assert dict(os.environ) == before
    assert installation.missing() == ()
    assert installation.stale == ()
    import medseg_base

    assert medseg_base.version == "1.1"
    assert str(fresh.packages) in medseg_base.__file__
    again = Installation(tiny, settings, Pip(fresh.program), Extension())
    assert again.installed() == ["medseg-base", "medseg-tiny"]
    assert again.removeInstalled() is None
    assert again.installed() == []
    assert again.missing() == ("medseg-tiny>=1.0",)


def test_torch_is_installed_from_wheels_without_its_extension(tiny, fresh, wheels, monkeypatch):
    class NoExtension(Extension):
        def there(self):
            return False

    tiny.write_text("# All of it is there.\n")
    # In place of gigabytes.
    monkeypatch.setattr(installing, "TORCH_REQUIREMENT", "medseg-base>=1.0")
    without = NoExtension()
    installation = Installation(tiny, Settings(), Pip(fresh.program), without)
    assert installation.installWheels(wheels, torch=True) is None
    assert installation.installed() == ["medseg-base"]
    assert without.done == []


def test_every_wheel_that_a_folder_lacks_is_named_before_pip_runs(tiny, fresh, wheels, tmp_path):
    folder = tmp_path / "some wheels"
    folder.mkdir()
    tinyWheel = next(wheels.glob("medseg_tiny*"))
    (folder / tinyWheel.name).write_bytes(tinyWheel.read_bytes())
    (folder / "medseg_base-1.1-cp27-cp27m-win32.whl").write_bytes(b"for another Python")
    installation = Installation(tiny, Settings(), Pip("/no/pip"), Extension())
    failure = installation.installWheels(folder, torch=False)
    assert "lacks wheels for Python" in failure.sentence
    assert "medseg-base>=1.0. Put" in failure.sentence
    assert str(folder) in failure.sentence
    assert failure.button == "Choose a wheel folder"
    wanted = ["medseg-tiny>=2", "nowhere-at-all; python_version < '3'", "numpy", "absent>=1"]
    assert missingWheels(wheels, wanted) == ["medseg-tiny>=2", "absent>=1"]


def test_what_slicer_brings_is_never_replaced(fresh, wheels, tmp_path, monkeypatch):
    monkeypatch.setattr(installing, "OWN_OF_SLICER", ("medseg-base", "not-known-to-pip"))
    # A temporary folder with a blank, as users' names have them.
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "a user"))
    (tmp_path / "a user").mkdir()
    links = ("--no-index", "--find-links", str(wheels))
    pip = Pip(fresh.program, links)
    pip.run("install", *links, "medseg-base==1.0")
    wants = tmp_path / "wants.txt"
    wants.write_text("medseg-base>=1.1\n")
    installation = Installation(wants, Settings(), pip, Extension())
    failure = installation.installPackages(interactive=False)
    assert "replace what Slicer itself needs" in failure.sentence
    assert Preflight.installedVersion("medseg-base") == "1.0"
    wants.write_text("medseg-tiny\n")
    assert installation.installPackages(interactive=False) is None
    assert Preflight.installedVersion("medseg-base") == "1.0"
    assert list((tmp_path / "a user").iterdir()) == []


def test_a_package_that_is_loaded_while_it_is_replaced_asks_for_one_restart(
    fresh, wheels, tmp_path
):
    pip = Pip(fresh.program, ("--no-index", "--find-links", str(wheels)))
    pip.run("install", *pip.options, "medseg-base==1.0")
    import medseg_base

    assert medseg_base.version == "1.0"
    wants, settings = tmp_path / "wants.txt", Settings()
    wants.write_text("medseg-base>=1.1\nmedseg-tiny>=9\n")
    installation = Installation(wants, settings, pip, Extension(pip, wheels))
    assert installation.installTorch() is None
    assert installation.stale == ("medseg-base",)
    found = named(Facts(stale=installation.stale, torch="2.7"))
    assert "the old medseg-base" in found["restart"].sentence
    assert found["restart"].button == "Restart Slicer"
    # The panel made anew in the same process still asks for it.
    same = Installation(wants, settings, pip, Extension())
    assert same.stale == ("medseg-base",)
    assert not same.resumed
    record = json.loads(settings[installing.RESTART_SETTING])
    settings[installing.RESTART_SETTING] = json.dumps({**record, "process": os.getpid() + 1})
    later = Installation(wants, settings, pip, Extension())
    assert later.resumed
    assert later.stale == ()
    assert later.missing() == ("medseg-tiny>=9",)
    assert not Installation(wants, settings, pip, Extension()).resumed


def test_a_torch_that_does_not_suit_is_removed_before_its_extension_installs_another(
    fresh, wheels, tiny, monkeypatch
):
    extension = Extension(Pip(fresh.program), wheels)
    Installation(tiny, Settings(), Pip(fresh.program), extension).installTorch()
    assert extension.done == ["uninstall", "install"]
    monkeypatch.setattr(installing, "installedVersion", lambda name: None)
    Installation(tiny, Settings(), Pip(fresh.program), extension).installTorch()
    assert extension.done[2:] == ["install"]


def test_a_new_extension_asks_for_a_restart(tiny):
    installation = Installation(tiny, Settings(), Pip("/no/pip"), Extension())
    assert installation.installExtension() is None
    assert installation.stale == ("list of extensions",)


@pytest.mark.parametrize("works", [True, False])
def test_the_extension_is_installed_without_pop_ups_and_without_a_restart_of_its_own(
    tiny, monkeypatch, works
):
    class Manager:
        interactive = True

        def installExtensionFromServer(self, extensionName, restart=True):
            asked.append((extensionName, restart, self.interactive))
            return works

    asked, manager = [], Manager()
    application = SimpleNamespace(extensionsManagerModel=lambda: manager)
    monkeypatch.setattr(slicer, "app", application, raising=False)
    installation = Installation(tiny, Settings())
    failure = installation.installExtension()
    assert asked == [("PyTorch", False, False)]
    assert manager.interactive
    assert (failure is None) == works
    assert bool(installation.stale) == works
    if not works:
        assert "could not be installed from the Extensions Catalog" in failure.sentence


# What went wrong.


@pytest.fixture
def strictProxy():
    """Port of a proxy that wants a password."""
    import http.server
    import threading

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_CONNECT(self):
            self.send_error(407)

        def log_message(self, *arguments):
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_port
        server.shutdown()


def throughProxy(tiny, fresh, monkeypatch, port):
    for name, value in (
        ("PIP_CONFIG_FILE", os.devnull), ("PIP_RETRIES", "1"), ("PIP_FIND_LINKS", ""),
        ("HTTPS_PROXY", f"http://127.0.0.1:{port}"),
    ):  # fmt: skip
        monkeypatch.setenv(name, value)
    pip = Pip(fresh.program, ("--index-url", "https://pypi.invalid/simple"))
    installation = Installation(tiny, Settings(), pip, Extension())
    failure = installation.installPackages(interactive=False)
    assert installation.failure is failure
    return failure


def test_a_proxy_that_wants_a_password_is_told_in_pips_own_words(
    tiny, fresh, monkeypatch, strictProxy
):
    failure = throughProxy(tiny, fresh, monkeypatch, strictProxy)
    assert "407 Proxy Authentication Required" in failure.sentence
    assert "Set HTTPS_PROXY" in failure.sentence


def test_without_a_network_the_button_is_the_folder_of_wheels(tiny, fresh, monkeypatch):
    failure = throughProxy(tiny, fresh, monkeypatch, 9)
    assert "Failed to establish a new connection" in failure.sentence
    assert "Check the network and the proxy" in failure.sentence
    assert failure.button == "Choose a wheel folder"
    found = named(Facts(missing=("medseg-tiny>=1.0",), failure=failure))
    assert list(found) == ["failure", "packages", "torch"]


@pytest.mark.parametrize(
    ("log", "words", "action"),
    [
        ("NameResolutionError: Failed to resolve 'pypi.org'", "Check the network", "wheels"),
        ("[SSL: CERTIFICATE_VERIFY_FAILED] self-signed", "PIP_CERT", "wheels"),
        ("OSError: [Errno 28] No space left on device", "Free some space", "again"),
        ("ERROR: [Errno 13] Permission denied: '/opt'", "cannot be written", "again"),
        ("ERROR: No matching distribution found for x", "none for this Python", "interpreter"),
        ("[WinError 32] being used by another process", "Restart Slicer", "restart"),
        ("something new", "error log", "again"),
    ],
)
def test_each_kind_of_failure_says_what_to_do(log, words, action):
    failure = explain(f"Collecting x\n{log}\n", "Command failed with code 1.")
    assert log in failure.sentence
    assert words in failure.sentence
    assert failure.action == action
    assert isinstance(failure, Problem)


def test_a_long_error_is_cut_and_an_error_without_a_log_is_its_own_text():
    assert len(explain("ERROR: " + "x" * 5000, "").sentence) < 600
    assert "'No module named torch'" in explain("", "No module named torch").sentence
