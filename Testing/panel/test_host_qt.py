"""Timers, settings, dialogs and processes of the host are PythonQt's."""

import sys

import pytest


def test_a_timer_is_single_shot_by_its_method_alone(qt):
    timer = qt.QTimer()
    with pytest.raises(AttributeError):
        timer.singleShot = True
    timer.setSingleShot(True)
    timer.interval = 5
    timer.start()
    assert timer.active
    assert timer.isActive()


def test_single_shot_calls_python(host):
    got = []
    host.qt.QTimer.singleShot(1, lambda: got.append(1))
    host.waitUntil(lambda: got)


def test_settings_are_typed_until_a_restart_and_texts_after_it(host):
    import slicer

    stored = {"i": 5, "t": True, "f": 1.5, "list": ["a", "b"], "text": "x"}
    settings = host.qt.QSettings()
    for key, value in stored.items():
        settings.setValue(f"group/{key}", value)
    typed = {key: host.qt.QSettings().value(f"group/{key}") for key in stored}
    assert typed == {**stored, "list": ("a", "b")}
    host.restartSettings()
    texts = {key: host.qt.QSettings().value(f"group/{key}") for key in stored}
    assert texts == {"i": "5", "t": "true", "f": "1.5", "list": ("a", "b"), "text": "x"}
    assert slicer.util.settingsValue("group/t", False, converter=slicer.util.toBool) is True
    settings = host.qt.QSettings()
    assert settings.value("missing") is None
    assert settings.value("missing", 3) == 3
    assert settings.contains("group/i")
    settings.remove("group")
    assert settings.allKeys() == ()


def test_settings_are_never_the_users_own(host, tmp_path):
    assert "panel-settings-" in host.qt.QSettings().fileName()
    own = tmp_path / "mine.ini"
    host.qt.QSettings(str(own), host.qt.QSettings.IniFormat).setValue("a", 1)
    assert not own.exists()


@pytest.mark.parametrize("name", ["getOpenFileName", "getSaveFileName", "getExistingDirectory"])
def test_file_dialogs_give_a_text_and_an_empty_one_on_cancel(host, name):
    ask = getattr(host.qt.QFileDialog, name)
    host.dialogs.expect("Choose", "/tmp/a.zip")
    assert ask(None, "Choose a file") == "/tmp/a.zip"
    host.dialogs.expect("Choose", "")
    assert ask(None, "Choose a file") == ""


def test_message_boxes_are_answered_by_the_label_of_a_button(host):
    import slicer

    box = host.qt.QMessageBox
    host.dialogs.expect("Really?", "Yes")
    assert box.question(None, "Title", "Really?") == box.Yes
    host.dialogs.expect("Really?", "No")
    assert box.question(None, "Title", "Really?") == box.No
    host.dialogs.expect("Delete it?", "OK")
    assert slicer.util.confirmOkCancelDisplay("Delete it?") is True
    host.dialogs.expect("Bad thing", "OK")
    assert slicer.util.errorDisplay("Bad thing", detailedText="trace") is None
    assert host.dialogs.seen[-1][0] == "ctkMessageBox"


def test_try_with_error_display_raises_again_after_its_dialog(host):
    import slicer

    host.dialogs.expect("It failed.", "OK")
    with pytest.raises(KeyError), slicer.util.tryWithErrorDisplay("It failed."):
        raise KeyError("x")


def test_any_dialog_is_answered_by_a_function(host):
    qt = host.qt
    dialog = qt.QDialog()
    layout = qt.QVBoxLayout(dialog)
    layout.addWidget(qt.QLabel("How many?"))
    number = qt.QSpinBox()
    layout.addWidget(number)

    def answer(shown):
        assert shown is dialog
        host.type(number, "7")
        shown.accept()

    host.dialogs.expect("How many?", answer)
    assert dialog.exec_() == 1
    assert number.value == 7


def test_an_unexpected_dialog_is_closed_and_recorded(host):
    assert host.qt.QMessageBox.warning(None, "Surprise", "text") == host.qt.QMessageBox.Ok
    with pytest.raises(AssertionError, match="Unexpected dialog QMessageBox 'Surprise'"):
        host.check()
    host.errors.clear()


def test_a_dialog_that_does_not_come_is_recorded(host):
    host.dialogs.expect("never", "OK")
    with pytest.raises(AssertionError, match="'never' did not come"):
        host.check()
    host.dialogs._expected.clear()


def test_bytes_of_a_process_are_no_python_bytes(qt):
    array = qt.QByteArray(b"hello\n")
    assert array.data() == b"hello\n"
    assert str(array) == "b'hello\\n'"
    assert array == b"hello\n"
    assert (array.size(), array.isEmpty(), array.trimmed().data()) == (6, False, b"hello")
    assert bool(array) is True
    assert bool(qt.QByteArray(b"")) is False
    for bad in (bytes, len, lambda a: a.decode(), lambda a: str(a, "utf-8")):
        with pytest.raises((TypeError, AttributeError)):
            bad(array)


def test_a_process_tells_what_it_does(host):
    process, seen = host.qt.QProcess(), []
    process.stateChanged.connect(lambda state: seen.append(int(state)))
    process.started.connect(lambda: seen.append("started"))
    process.readyReadStandardOutput.connect(
        lambda: seen.append(process.readAllStandardOutput().data())
    )
    process.finished.connect(lambda code: seen.append(("finished", code)))
    process.start(sys.executable, ["-c", "print(input()); raise SystemExit(3)"])
    assert process.waitForStarted()
    process.write("hi\n")
    host.waitUntil(lambda: ("finished", 3) in seen)
    assert b"hi\n" in seen
    assert [s for s in seen if s in (0, 1, 2)] == [1, 2, 0]
    assert (process.exitCode(), process.exitStatus()) == (3, 0)
    assert not hasattr(process, "pid")


def test_a_missing_program_is_an_error_and_a_killed_one_says_so(host):
    process, seen = host.qt.QProcess(), []
    process.connect("errorOccurred(QProcess::ProcessError)", lambda e: seen.append(int(e)))
    process.start("/no/such/program", [])
    assert process.waitForStarted() is False
    assert (int(process.error()), seen) == (0, [0])
    process = host.qt.QProcess()
    process.start("sleep", ["60"])
    process.waitForStarted()
    process.terminate()
    process.waitForFinished()
    assert (process.exitStatus(), process.exitCode()) == (1, 15)
