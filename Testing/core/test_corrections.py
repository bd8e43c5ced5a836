"""Corrected cases in one folder: whose they are, and what two processes do there at once."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from medsegcore import corrections
from medsegcore.corrections import CorrectedCase, saving_case
from medsegcore.errors import OutputError
from medsegcore.imaging import Image
from medsegcore.rawdata import CaseOrigin, ModelUsed
from medsegcore.training.cases import Split
from medsegcore.training.datasets import read_dataset
from medsegcore.training.provenance import data_use, seen_before

SHAPE = (6, 8, 10)


def case_of(seed, run, subject, changed=True, blank=False):
    """A case with a T1 and a FLAIR by a seed; blank: of nothing."""
    rng = np.random.default_rng(seed)
    values = {
        key: rng.normal(size=SHAPE).astype(np.float32) * (not blank) for key in ("t1", "flair")
    }
    images = {key: Image(array, np.eye(4)) for key, array in values.items()}
    label = np.zeros(SHAPE, np.uint8)
    label[2:4, 2:4, 2:4] = 1
    used = ModelUsed(id="a", version="1.0.0", sha256="0" * 64)
    origin = CaseOrigin(run=run, subject=subject, models=[used], medseg="1", changed=changed)
    return CorrectedCase(images, Image(label, np.eye(4)), origin)


@pytest.fixture
def save(shipped_model):
    def run(folder, *arguments, **more):
        steps = saving_case(case_of(*arguments, **more), shipped_model.description, folder)
        try:
            while True:
                next(steps)
        except StopIteration as end:
            return end.value

    return run


def part(folder):
    return json.loads((folder / "dataset.json").read_text(encoding="utf-8"))["medseg"]


def test_the_same_images_loaded_anew_are_of_the_same_patient(save, tmp_path):
    assert save(tmp_path, 1, "run 1", "subject 1").subject == "subject 1"
    content = json.loads((tmp_path / "dataset.json").read_text(encoding="utf-8"))
    content["medseg"]["patients"]["case_001"] = "P07"
    (tmp_path / "dataset.json").write_text(json.dumps(content), encoding="utf-8")
    # Another patient's on the same grid: most often of another size, but not always.
    assert save(tmp_path, 2, "run 2", "subject 2").subject == "subject 2"
    again = save(tmp_path, 1, "run 3", "subject 3")
    assert (again.id, again.replaced, again.subject) == ("case_003", False, "subject 1")
    told = part(tmp_path)
    assert told["patients"]["case_003"] == "P07" != told["patients"]["case_002"]
    assert told["cases"]["case_003"]["subject"] == "subject 1"
    # Images of nothing say of nobody who it is.
    assert save(tmp_path, 1, "run 4", "subject 4", blank=True).subject == "subject 4"
    assert save(tmp_path, 1, "run 5", "subject 5", blank=True).subject == "subject 5"


def test_patients_of_two_folders_are_no_namesakes(save, shipped_model, tmp_path):
    for n, name in enumerate(("one", "two")):
        save(tmp_path / name, n, f"run {n}", f"subject {n}")
    one, two = (read_dataset(tmp_path / name) for name in ("one", "two"))
    assert not {*one.patients} & {*two.patients}
    trained = data_use(one, Split(one.cases, [], []))
    model = shipped_model.description.model_copy(update={"data": trained})
    assert seen_before(model, {(case.site, case.patient) for case in one.cases})
    assert seen_before(model, {(case.site, case.patient) for case in two.cases}) == []


SAVES = """
import sys, time, test_corrections as t
from pathlib import Path
from medsegcore import corrections
from medsegcore.models import ModelStore
model = ModelStore().find("ms-lesion-rsanet").description
folder, who = Path(sys.argv[1]), int(sys.argv[2])
# Between the choice of a number and its files, and between these and dataset.json: time for others.
move, write = corrections._move, corrections.write_file
corrections._move = lambda *given: (time.sleep(0.02), move(*given))
corrections.write_file = lambda *given: (time.sleep(0.02), write(*given))
for n in range(6):
    for _ in t.saving_case(t.case_of(100 * who + n, f"{who} {n}", f"{who} {n}"), model, folder):
        pass
"""


def test_processes_that_save_into_a_folder_at_once_take_different_cases(tmp_path):
    path = os.pathsep.join([*sys.path, str(Path(__file__).parent)])
    running = [
        subprocess.Popen(
            [sys.executable, "-c", SAVES, str(tmp_path), str(who)],
            env=os.environ | {"PYTHONPATH": path},
        )
        for who in range(3)
    ]
    assert [process.wait(120) for process in running] == [0, 0, 0]
    cases = part(tmp_path)["cases"]
    assert len({case["run"] for case in cases.values()}) == len(cases) == 18
    assert len(read_dataset(tmp_path).cases) == 18
    there = sorted(path.name for path in tmp_path.iterdir())
    assert there == ["dataset.json", "imagesTr", "labelsTr"]


def timed(steps, seconds):
    """All steps; appends how long each took."""
    last = time.monotonic()
    for _ in steps:
        seconds.append(time.monotonic() - last)
        last = time.monotonic()


def test_a_lock_is_waited_for_in_short_steps_and_one_that_was_left_is_broken(
    save, shipped_model, tmp_path, monkeypatch
):
    save(tmp_path, 1, "run 1", "subject 1")
    lock = tmp_path / corrections.LOCK
    lock.touch()
    monkeypatch.setattr(corrections, "WAIT_SECONDS", 0.5)
    waiting = saving_case(case_of(2, "run 2", "subject 2"), shipped_model.description, tmp_path)
    longest: list[float] = []
    with pytest.raises(OutputError, match="Another case is being saved"):
        timed(waiting, longest)
    assert max(longest) < 0.3
    assert lock.exists()
    assert list(part(tmp_path)["cases"]) == ["case_001"]
    old = time.time() - corrections.LOCK_SECONDS - 5
    os.utime(lock, (old, old))
    assert save(tmp_path, 2, "run 2", "subject 2").id == "case_002"
    assert not lock.exists()


def test_what_was_deleted_by_hand_is_neither_replaced_nor_counted(save, tmp_path):
    save(tmp_path, 1, "run 1", "subject 1")
    save(tmp_path, 2, "run 2", "subject 2", changed=False)
    for file in tmp_path.rglob("case_001*"):
        file.unlink()
    save(tmp_path, 3, "run 3", "subject 3")
    assert "1 of 2 were changed" in part(tmp_path)["masks"]
    again = save(tmp_path, 1, "run 1", "subject 1")
    assert (again.id, again.replaced) == ("case_001", False)
    assert "2 of 3 were changed" in part(tmp_path)["masks"]
    content = json.loads((tmp_path / "dataset.json").read_text(encoding="utf-8"))
    content["medseg"]["masks"] = "by Dr. A"
    (tmp_path / "dataset.json").write_text(json.dumps(content), encoding="utf-8")
    assert save(tmp_path, 1, "run 1", "subject 1").replaced
    assert part(tmp_path)["masks"] == "by Dr. A"


def test_a_folder_in_no_folder_is_told_and_one_at_home_is_found(save, tmp_path, monkeypatch):
    with pytest.raises(OutputError, match=r"There is no folder '.*absent'"):
        save(tmp_path / "absent" / "cases", 1, "run 1", "subject 1")
    monkeypatch.setenv("HOME", str(tmp_path))
    save("~/cases", 1, "run 1", "subject 1")
    assert (tmp_path / "cases" / "dataset.json").is_file()
