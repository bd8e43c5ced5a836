"""Prepared cases on disk: made once, made again when something changed, and mapped."""

import dataclasses
import os
import shutil
from pathlib import Path

import pytest
import torch

from medsegcore.errors import OutputError
from medsegcore.imaging import read_image
from medsegcore.models import TrainingRecord
from medsegcore.training.datasets import read_dataset
from medsegcore.training.datasets.cache import cache_key, load_cached
from medsegcore.training.recipes import RSANetRecipe

RECORD = TrainingRecord(
    recipe="rsanet", date="2026-01-01", minutes=0, steps=0, device="", seed=1, settings={}
)


@pytest.fixture
def case(ms_cases, tmp_path):
    """A case whose files a test may change."""
    shutil.copytree(ms_cases, tmp_path / "open_ms")
    return read_dataset(tmp_path / "open_ms").cases[0]


def tensors_of(case):
    """The real images, twice in one piece of memory, and the mask."""
    flair = torch.from_numpy(read_image(case.images["flair"]).array)
    mask = torch.from_numpy(read_image(case.label).array > 0)
    return {"flair": flair[None], "again": flair.transpose(0, 2), "label": mask[None]}


def test_a_case_is_built_once_and_comes_back_as_it_was(case, tmp_path):
    built = []

    def build():
        built.append(1)
        return tensors_of(case)

    expected = tensors_of(case)
    for _ in range(2):
        found = load_cached(tmp_path / "cache", "k", build)
        assert {n: t.dtype for n, t in found.items()} == {n: t.dtype for n, t in expected.items()}
        assert all(torch.equal(found[name], expected[name]) for name in expected)
        # What a training does to its tensors stays with it.
        found["flair"].zero_()
    assert len(built) == 1
    assert [f.name for f in (tmp_path / "cache").iterdir()] == ["k.safetensors"]


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="Linux tells what is mapped")
def test_the_tensors_are_a_mapped_file_and_no_copy(case, tmp_path):
    found = load_cached(tmp_path, "k", lambda: tensors_of(case))
    place = found["flair"].data_ptr()
    with Path("/proc/self/maps").open() as maps:
        lines = [line.split() for line in maps if str(tmp_path / "k.safetensors") in line]
    ranges = [tuple(int(n, 16) for n in line[0].split("-")) for line in lines]
    assert any(low <= place < high for low, high in ranges)


def test_a_damaged_file_is_made_again(case, tmp_path):
    load_cached(tmp_path, "k", lambda: tensors_of(case))
    file = tmp_path / "k.safetensors"
    file.write_bytes(file.read_bytes()[:5000])
    found = load_cached(tmp_path, "k", lambda: tensors_of(case))
    assert torch.equal(found["flair"], tensors_of(case)["flair"])


def test_a_cache_that_cannot_be_written_says_so(case, tmp_path):
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(OutputError, match="cannot be written"):
        load_cached(tmp_path / "file", "k", lambda: tensors_of(case))


def test_the_key_follows_the_files_and_the_preparation_and_nothing_else(case):
    description = RSANetRecipe().description(read_dataset(case.label.parents[1]), RECORD)
    key = cache_key(description, case)
    assert key == cache_key(description.model_copy(update={"title": "another"}), case)
    coarser = description.grid.model_copy(update={"spacing": (1.0, 1.0, 2.0)})
    assert key != cache_key(description.model_copy(update={"grid": coarser}), case)
    os.utime(case.images["t1"], ns=(0, 0))
    assert key != cache_key(description, case)
    # A volume of a 4-D file is that file and the volume's number.
    first, second = (
        dataclasses.replace(case, images={"t1": Path(f"{case.images['t1']}@{n}")}) for n in (0, 1)
    )
    assert cache_key(description, first) != cache_key(description, second)
