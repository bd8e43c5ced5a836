"""A training goes on as what it was: its recipe, its cases, and what the machine chose."""

import errno
import io
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image as Picture
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from medsegcore.errors import ModelWeightsError, OutputError, SettingError
from medsegcore.training import facts, report
from medsegcore.training.datasets import read_dataset
from medsegcore.training.recipes import RSANetRecipe, UNetRecipe
from medsegcore.training.runfile import RUN, as_before
from medsegcore.training.setup import Plan, set_up
from medsegcore.training.trainer import BEST, LAST, MODEL, train

SMALL = RSANetRecipe(width=2, norm_groups=1, patch=(16, 16, 16), batch_size=1, warmup_steps=1)
PLAN = Plan(steps=2, device="cpu", workers=0)


@pytest.fixture(scope="module")
def data(ms_cases):
    return read_dataset(ms_cases, keys=["t1", "t2", "flair"])


@pytest.fixture
def begun(data, tmp_path):
    """A training of two steps that nobody has measured."""
    train(SMALL, data, tmp_path / "r", PLAN)
    return tmp_path / "r"


def test_tensorboard_shows_patches_where_no_case_is_validated_on(begun):
    events = EventAccumulator(str(begun / "curves"), size_guidance={"images": 0})
    events.Reload()
    (tag,) = events.Tags()["images"]
    assert tag == "patch (reference white)"
    steps = [event.step for event in events.Images(tag)]
    assert steps == [1, 2]
    picture = Picture.open(io.BytesIO(events.Images(tag)[0].encoded_image_string))
    assert picture.size == (16, 16)
    assert picture.getextrema()[0][1] > 0


def test_a_training_of_a_few_steps_is_measured_or_goes_on(data, begun):
    seen = []
    again = train(
        SMALL, data, begun, replace(PLAN, resume=True), lambda step, *_: seen.append(step)
    )
    assert not seen
    assert again.folder.description.training.steps == 2
    before = {name: t.clone() for name, t in again.folder.load_network().state_dict().items()}
    more = replace(PLAN, resume=True, steps=4)
    run = train(SMALL, data, begun, more, lambda step, *_: seen.append(step))
    assert seen == [3, 4]
    assert run.folder.description.training.steps == 4
    after = run.folder.load_network().state_dict()
    assert any(not torch.equal(after[name], tensor) for name, tensor in before.items())


class Steady(RSANetRecipe):
    """A rate that does not hang on the budget: two steps and two more are four steps."""

    def learning_rate_at(self, share_done, step):
        return 1e-3


def test_the_last_state_is_that_of_the_weights_and_not_of_their_mean(data, tmp_path):
    recipe = Steady(width=2, norm_groups=1, patch=(16, 16, 16), batch_size=1, ema_decay=0.9)
    whole, rest = [], []
    train(
        recipe, data, tmp_path / "a", replace(PLAN, steps=4), lambda s, loss, *_: whole.append(loss)
    )
    train(recipe, data, tmp_path / "b", PLAN)
    more = replace(PLAN, steps=4, resume=True)
    train(recipe, data, tmp_path / "b", more, lambda s, loss, *_: rest.append(loss))
    # What is told is the mean over the steps of a process so far.
    third, fourth = 3 * whole[2] - 2 * whole[1], 4 * whole[3] - 3 * whole[2]
    assert rest == pytest.approx([third, (third + fourth) / 2], rel=1e-4)


@pytest.mark.parametrize(
    ("change", "plan", "words"),
    [
        ({"width": 4}, {}, "began with width 2, not 4"),
        ({"learning_rate": 1.0}, {}, "began with learning_rate 0.002, not 1.0"),
        ({}, {"seed": 7}, "began with seed 1, not 7"),
    ],
)
def test_another_training_is_no_continuation(data, begun, change, plan, words):
    with pytest.raises(SettingError, match=words):
        train(replace(SMALL, **change), data, begun, replace(PLAN, resume=True, steps=3, **plan))


def test_other_cases_are_no_continuation(data, begun):
    with pytest.raises(SettingError, match="began with other cases"):
        train(SMALL, data, begun, replace(PLAN, resume=True, steps=3, test=["b"]))


def test_the_cases_of_all_uses_are_measured_in_one_count(data, tmp_path, no_cost):
    run = train(SMALL, data, tmp_path, replace(PLAN, test=["b"]))
    told = []
    report.measure(run, "cpu", lambda *now: told.append(now))
    done, totals, left = zip(*told, strict=True)
    # The last step is the run that tells memory and time.
    assert done == (0, 1, 1, 2, 3, 4)
    assert {*totals} == {4}
    assert left[0] is None
    assert min(left[1:5]) > left[5] == 0


def test_what_the_machine_chose_stays_on_a_busier_one(data, tmp_path, monkeypatch):
    free = UNetRecipe()
    began = train(free, data, tmp_path / "r", replace(PLAN, steps=1))
    chosen = json.loads((tmp_path / "r" / RUN).read_text())["chosen"]
    assert chosen["patch"] == began.folder.description.training.settings["patch"]
    monkeypatch.setattr(facts, "memory_at_hand", lambda *_: 3 * 10**7)
    anew = set_up(free, data, PLAN).recipe
    resumed = set_up(as_before(tmp_path / "r", free, PLAN), data, PLAN).recipe
    assert (list(resumed.patch), resumed.batch_size) == (chosen["patch"], chosen["batch_size"])
    assert (anew.patch, anew.batch_size, anew.width) != (
        resumed.patch, resumed.batch_size, resumed.width,
    )  # fmt: skip


def test_a_full_disk_is_told_and_leaves_the_last_checkpoint_whole(data, begun, monkeypatch):
    before = (begun / LAST).read_bytes()
    written = Path.write_bytes

    def full(path, content):
        if "ckpt" in path.name:
            written(path, content[: len(content) // 2])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return written(path, content)

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(
        OutputError, match=r"last\.ckpt' cannot be written: No space left on device"
    ):
        train(SMALL, data, begun, replace(PLAN, resume=True, steps=3))
    assert (begun / LAST).read_bytes() == before
    assert not list(begun.glob(".*"))
    monkeypatch.undo()
    run = train(SMALL, data, begun, replace(PLAN, resume=True, steps=3))
    assert run.folder.description.training.steps == 3


def test_a_disk_that_fills_up_beside_the_checkpoints_is_told_too(data, tmp_path):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(OutputError, match="cannot write to its folder: No space left on device"):
        train(SMALL, data, tmp_path / "r", PLAN, full)


@pytest.mark.parametrize("share", [0, 0.5])
def test_a_damaged_checkpoint_is_named_with_what_to_do(data, begun, share):
    content = (begun / LAST).read_bytes()
    (begun / LAST).write_bytes(content[: int(share * len(content))])
    with pytest.raises(ModelWeightsError, match=r"last\.ckpt' is damaged\. Train anew in another"):
        train(SMALL, data, begun, replace(PLAN, resume=True, steps=3))


def test_a_damaged_best_checkpoint_can_be_done_without(data, tmp_path):
    plan = replace(PLAN, validation=["b"], validate_every=1)
    train(SMALL, data, tmp_path, plan)
    shutil.rmtree(tmp_path / MODEL)
    (tmp_path / BEST).write_bytes(b"")
    again = replace(plan, resume=True)
    with pytest.raises(ModelWeightsError, match=r"best\.ckpt' is damaged\. Delete it and resume"):
        train(SMALL, data, tmp_path, again)
    (tmp_path / BEST).unlink()
    assert train(SMALL, data, tmp_path, again).folder.description.training.steps == 2
