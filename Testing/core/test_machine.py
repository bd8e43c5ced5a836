"""What the worker tells of a GPU that is not used."""

import os
import platform

import pytest
import torch

from medsegcore.worker import machine
from medsegcore.worker.warm import memory_mb


@pytest.fixture
def computer(tmp_path, monkeypatch):
    """A computer whose programs and PCI devices the test makes."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "pci").mkdir()
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}/bin{os.pathsep}/usr/bin")
    monkeypatch.setattr(machine, "PCI_DEVICES", tmp_path / "pci")
    machine.nvidia_card.cache_clear()
    yield tmp_path
    machine.nvidia_card.cache_clear()


def nvidia_smi(computer, text):
    program = computer / "bin" / "nvidia-smi"
    program.write_text(f"#!/bin/sh\n{text}\n")
    program.chmod(0o755)


def pci(computer, number, vendor, kind):
    device = computer / "pci" / number
    device.mkdir()
    (device / "vendor").write_text(f"{vendor}\n")
    (device / "class").write_text(f"{kind}\n")


def test_the_driver_names_the_first_card_and_itself(computer):
    nvidia_smi(computer, "echo 'NVIDIA RTX A5000, 535.104.05'; echo 'Tesla T4, 535.104.05'")
    assert machine.nvidia_card() == {"name": "NVIDIA RTX A5000", "driver": "535.104.05"}


def test_a_card_without_a_driver_is_found_by_its_maker(computer):
    pci(computer, "0000:00:02.0", "0x8086", "0x030000")
    pci(computer, "0000:01:00.1", "0x10de", "0x040300")
    assert machine.nvidia_card() is None
    machine.nvidia_card.cache_clear()
    pci(computer, "0000:02:00.0", "0x10de", "0x030200")
    assert machine.nvidia_card() == {"name": "NVIDIA card", "driver": None}


@pytest.mark.parametrize(
    "said", ["echo NVIDIA-SMI has failed; exit 9", "exit 0", "echo 'no, 1'; exit 1"]
)
def test_a_driver_that_does_not_answer_is_none(computer, said):
    nvidia_smi(computer, said)
    assert machine.nvidia_card() is None


def test_the_machine_is_told_in_full(computer):
    told = machine.describe_machine()
    assert told["python"] == platform.python_version()
    assert told["torch"] == torch.__version__
    assert told["cuda_build"] == torch.version.cuda
    assert 1 <= told["cores"] <= os.cpu_count()
    assert told["nvidia"] is None
    assert told["cuda_problem"] == ""


@pytest.mark.skipif(torch.cuda.is_available(), reason="torch uses the card here")
def test_why_a_card_is_not_used_is_told_in_torchs_words(computer):
    nvidia_smi(computer, "echo 'NVIDIA RTX A5000, 470.82'")
    told = machine.describe_machine()
    assert told["nvidia"]["driver"] == "470.82"
    with pytest.raises((RuntimeError, AssertionError)) as error:
        torch.cuda.init()
    assert told["cuda_problem"]
    assert told["cuda_problem"].rstrip(".") in str(error.value)


def test_what_torch_keeps_of_past_runs_is_free_for_the_next(monkeypatch):
    # After a run: 16 GB, of which others use 2, the models 1, and 5 wait in torch's cache.
    for name, value in (
        ("mem_get_info", (8_000_000_000, 16_000_000_000)),
        ("memory_reserved", 6_000_000_000),
        ("memory_allocated", 1_000_000_000),
    ):
        monkeypatch.setattr(torch.cuda, name, lambda device, value=value: value)
    assert memory_mb("cuda:0") == (13_000, 16_000)
