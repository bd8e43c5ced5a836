"""The command line as a user or a program meets it."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest

from medsegcore.cli import console, main
from medsegcore.cli.app import input_files, recipe_settings, thresholds
from medsegcore.cli.train import resumable
from medsegcore.errors import CancelledError, InputError
from medsegcore.imaging import file_and_volume
from medsegcore.models import ModelFolder, store


def inputs(folder):
    return [part for key in ("t1", "t2", "flair")
            for part in (f"--{key}", str(folder / f"{key}.nii.gz"))]  # fmt: skip


def events(text):
    return [json.loads(line) for line in text.splitlines()]


def test_predict_writes_a_result_and_tells_how_far_it_is(ms_case_dir, tmp_path, capsys):
    code = main(["predict", "--model", "ms-lesion-rsanet", *inputs(ms_case_dir),
                 "--out", str(tmp_path / "r"), "--device", "cpu", "--json"])  # fmt: skip
    assert code == 0
    seen = events(capsys.readouterr().out)
    assert seen[-1]["event"] == "result"
    stages = list(dict.fromkeys(e["stage"] for e in seen if e["event"] == "progress"))
    assert stages == ["read", "load", "prepare", "segment", "restore", "measure", "write"]
    assert (tmp_path / "r" / "result.json").is_file()
    # A second run into the same folder is refused before anything is computed.
    code = main(["predict", "--model", "ms-lesion-rsanet", *inputs(ms_case_dir),
                 "--out", str(tmp_path / "r"), "--json"])  # fmt: skip
    assert code == 6
    assert events(capsys.readouterr().out)[-1]["code"] == "output"


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["predict", "--model", "ms-lesion-rsanet", "--flair", "FLAIR"], 3, "needs the input 't1'"),
        (["predict", "--model", "absent", "--flair", "FLAIR"], 4, "no model 'absent'"),
        (["predict", "--model", "ms-lesion-rsanet", "--adc", "FLAIR"], 3, "no input 'adc'"),
        (["predict", "--model", "ms-lesion-rsanet", "--t1", "nowhere.nii", "--flair", "FLAIR"], 3,
         "no file 'nowhere.nii'"),
        (["predict", "--model", "ms-lesion-rsanet", "--t1", "FLAIR", "--flair", "FLAIR",
          "--threshold", "MS lesion=2"], 3, "is 2"),
    ],
)  # fmt: skip
def test_errors_are_one_sentence_on_stderr_with_an_exit_code(
    ms_case_dir, tmp_path, capsys, arguments, code, words
):
    flair = str(ms_case_dir / "flair.nii.gz")
    arguments = [flair if a == "FLAIR" else a for a in arguments]
    assert main([*arguments, "--out", str(tmp_path / "r")]) == code
    captured = capsys.readouterr()
    assert words in captured.err
    assert "Traceback" not in captured.err
    assert not (tmp_path / "r").exists()
    if code == 4:
        main([*arguments, "--out", str(tmp_path / "r"), "--debug"])
        assert "Traceback" in capsys.readouterr().err


def test_without_a_terminal_progress_is_a_line_at_each_stage_and_then_one_a_minute(
    monkeypatch, capsys
):
    now = [100.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: now[0])
    talk = console.Console()
    for n in range(200):
        talk.progress("train", n, 200, 200.0 - n)
        now[0] += 1
    talk.progress("measure", 1, 4, None)
    talk.stop()
    assert capsys.readouterr().err.splitlines() == [
        "train 0%, 3:20 min left",
        "train 30%, 2:20 min left",
        "train 60%, 1:20 min left",
        "train 90%, 0:20 min left",
        "measure 25%",
    ]


def test_wrong_usage_is_exit_code_2(capsys):
    assert main(["predict"]) == 2
    assert main(["nonsense"]) == 2
    assert main(["--version"]) == 0


def test_models_list_show_verify_and_pack(tmp_path, capsys):
    assert main(["models", "list", "--json"]) == 0
    listed = events(capsys.readouterr().out)
    assert "ms-lesion-rsanet" in [e.get("id") for e in listed]
    assert main(["models", "show", "ms-lesion-rsanet"]) == 0
    assert "Intended use" in capsys.readouterr().out
    assert main(["models", "verify", "ms-lesion-rsanet"]) == 0
    out = tmp_path / "m.zip"
    assert main(["models", "pack", "ms-lesion-rsanet", "--out", str(out)]) == 0
    assert out.stat().st_size < 8_000_000


def test_a_model_without_figures_is_added_with_a_warning(
    shipped_model, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(store, "user_folder", lambda: tmp_path / "models")
    copy = ModelFolder.read(shutil.copytree(shipped_model.path, tmp_path / "copy"))
    copy.with_description(copy.description.model_copy(update={"metrics": []}))
    assert main(["models", "add", str(copy.path), "--id", "unmeasured"]) == 0
    assert "Nobody has measured this model" in capsys.readouterr().err
    assert main(["models", "add", str(shipped_model.path), "--id", "measured"]) == 0
    assert not capsys.readouterr().err


@pytest.mark.slow
def test_evaluate_measures_a_case(ms_case_dir, tmp_path, capsys):
    out = tmp_path / "figures.csv"
    code = main(["evaluate", "--model", "ms-lesion-rsanet", "--data", str(ms_case_dir.parent),
                 "--baseline", "flair", "--device", "cpu", "--out", str(out),
                 "--json"])  # fmt: skip
    assert code == 0
    (case,) = [e for e in events(capsys.readouterr().out) if e["event"] == "case"]
    assert case["figures"]["Dice"] > 0.7
    assert 0.6 < case["figures"]["best threshold Dice"] < 0.7
    assert out.read_text(encoding="utf-8").startswith("case,Dice,")
    code = main(["evaluate", "--model", "ms-lesion-rsanet", "--data", str(ms_case_dir.parent),
                 "--threshold", "MS lesion=0.97", "--device", "cpu", "--json"])  # fmt: skip
    assert code == 0
    (stricter,) = [e for e in events(capsys.readouterr().out) if e["event"] == "case"]
    assert stricter["figures"]["volume"] < 0.5 * case["figures"]["volume"]
    assert main(["evaluate", "--model", "ms-lesion-rsanet", "--data", str(tmp_path)]) == 3


@pytest.mark.slow
def test_train_writes_a_measured_model_that_predicts(ms_cases, ms_case_dir, tmp_path, capsys):
    code = main(["train", "--data", str(ms_cases), "--out", str(tmp_path / "run"), "--test", "b",
                 "--steps", "3", "--device", "cpu", "--workers", "0", "--id", "mine", "--json",
                 "--limit", "Never looked at.", "--set", "width=4", "--set", "norm_groups=1",
                 "--set", "patch=[32,32,32]"])  # fmt: skip
    seen = events(capsys.readouterr().out)
    assert code == 0, seen[-1]
    assert seen[-1] == {"event": "result", "folder": str(tmp_path / "run" / "model")}
    content = json.loads((tmp_path / "run" / "model" / "model.json").read_text(encoding="utf-8"))
    assert content["id"] == "mine"
    assert "Never looked at." in content["limits"]
    dice = {m["case"]: m["value"] for m in content["metrics"] if m["name"] == "Dice"}
    assert set(dice) == {"a_1", "a_2", "b"}
    assert content["memory_mb"] > 100
    assert content["timings"][0]["seconds"] > 0
    assert main(["models", "verify", str(tmp_path / "run" / "model")]) == 0
    assert main(["train", "--data", str(ms_cases), "--out", str(tmp_path / "x"), "--steps", "3",
                 "--set", "depth=3"]) == 3  # fmt: skip
    assert "no setting 'depth'" in capsys.readouterr().err


@pytest.mark.slow
def test_a_cancelled_run_leaves_nothing_behind(ms_case_dir, tmp_path):
    command = [sys.executable, "-m", "medsegcore", "predict", "--model", "ms-lesion-rsanet",
               *inputs(ms_case_dir), "--out", str(tmp_path / "r"), "--device", "cpu",
               "--json"]  # fmt: skip
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    for line in process.stdout:
        if '"segment"' in line:
            break
    process.send_signal(signal.SIGTERM)
    started = time.monotonic()
    _, complaint = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "cancelled" in complaint
    assert time.monotonic() - started < 30
    assert not (tmp_path / "r").exists()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no signal for a group")
def test_ctrl_c_ends_a_training_with_one_sentence_that_says_how_to_go_on(ms_cases, tmp_path):
    command = [sys.executable, "-m", "medsegcore", "train", "--data", str(ms_cases),
               "--out", str(tmp_path / "run"), "--steps", "100000", "--device", "cpu",
               "--workers", "2", "--set", "width=2", "--set", "norm_groups=1",
               "--set", "patch=[16,16,16]", "--set", "batch_size=1", "--json"]  # fmt: skip
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    for line in process.stdout:
        if '"progress"' in line:
            break
    os.killpg(process.pid, signal.SIGINT)
    said, complaint = process.communicate(timeout=60)
    assert process.returncode == 130
    told = "Error: The command was cancelled. The same command with --resume goes on.\n"
    assert complaint == told
    assert events(said)[-1]["code"] == "run.cancelled"


def test_a_training_that_left_no_checkpoint_is_not_said_to_go_on(tmp_path):
    with pytest.raises(CancelledError) as caught, resumable(tmp_path):
        raise CancelledError("The command was cancelled.")
    assert str(caught.value) == "The command was cancelled."


def test_arguments_are_read_as_meant(tmp_path):
    assert input_files(["--t1", "a", "--flair=b=c"]) == {"t1": "a", "flair": "b=c"}
    for bad in (["a"], ["--t1"], ["--t1", "--t2", "x"], ["--t1", "a", "--t1", "b"]):
        with pytest.raises(InputError):
            input_files(bad)
    assert file_and_volume("a.nii.gz@3") == ("a.nii.gz", 3)
    (tmp_path / "b@1").touch()
    assert file_and_volume(str(tmp_path / "b@1")) == (str(tmp_path / "b@1"), None)
    assert thresholds(["MS lesion=0.4"]) == {"MS lesion": 0.4}
    with pytest.raises(InputError):
        thresholds(["0.4"])
    assert recipe_settings(["width=12", "patch=[64,64,64]", "loss=printed"]) == {
        "width": 12, "patch": (64, 64, 64), "loss": "printed",
    }  # fmt: skip
