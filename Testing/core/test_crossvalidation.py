"""Cross-validation: folds, going on after a break, and the figures of held-out cases."""

import csv
import json
import re
import shutil
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from scipy import ndimage

from medsegcore.cli import main
from medsegcore.cli.crossvalidate import how_to_split
from medsegcore.errors import SettingError
from medsegcore.evaluation.answers import Answer
from medsegcore.evaluation.evaluate import evaluate_case
from medsegcore.evaluation.metrics import THRESHOLDS
from medsegcore.imaging import Image, read_image, write_image
from medsegcore.models import ModelFolder
from medsegcore.training import crossvalidation, facts
from medsegcore.training.comparisons import results_markdown
from medsegcore.training.crossvalidation import (
    HELD_OUT,
    SISTER,
    Overall,
    cross_validate,
    labelled,
    make_folds,
    run_folds,
)
from medsegcore.training.curves import read_curve
from medsegcore.training.datasets import Case, Channel, Dataset, read_dataset
from medsegcore.training.facts import data_facts
from medsegcore.training.heldout import (
    boxes,
    held_out,
    held_out_csv,
    overall_label,
    read_held_out,
    summary_lines,
    values,
    voxel_average_dice,
)
from medsegcore.training.recipes import UNetRecipe
from medsegcore.training.setup import Plan
from medsegcore.training.thresholds import DiceByThreshold, choose, read_thresholds
from medsegcore.training.trainer import train

pytestmark = pytest.mark.usefixtures("one_thread")

TINY = UNetRecipe(
    width=4, patch=(16, 32, 32), batch_size=2, ema_decay=0.5, spacing=(2.0, 2.0, 2.0),
    learning_rate=1e-2, warmup_steps=2,
)  # fmt: skip
PLAN = Plan(steps=20, device="cpu", workers=0)


class Restless(UNetRecipe):
    """Its weights never come to rest, so that their running mean is another."""

    def learning_rate_at(self, share_done, step):
        return 1e-2


class Stopped(Exception):
    """Stands for a power cut."""


@pytest.fixture(scope="module")
def data(ms_cases):
    return read_dataset(ms_cases, keys=["flair"])


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    """A cross-validation without a break, and what it told."""
    told = []
    out = tmp_path_factory.mktemp("whole") / "cv"
    rows = cross_validate(TINY, data, 2, PLAN, out, lambda *event: told.append(event))
    return out, rows, told


def cases_of(count):
    """Cases without files: three visits of each of so many patients, of two sites."""
    return [
        Case(f"p{n}_{visit}", f"p{n}", f"site{n % 2}", {"t2w": "x"}, "y")
        for n in range(count)
        for visit in range(3)
    ]


@pytest.mark.parametrize("how", [2, 5, "patient", "site"])
def test_no_patient_is_trained_on_and_tested_in_one_fold_and_each_is_tested_once(how):
    data = Dataset("d", "D", {"t2w": Channel("T2W")}, {"lesion": 1}, cases_of(10))
    folds = make_folds(data, how)
    tested = [patient for fold in folds for patient in fold.test]
    assert sorted(tested) == data.patients
    for fold in folds:
        assert 0 < len(fold.test) < 10
        if how == "site":
            assert len({case.site for case in data.cases if case.patient in fold.test}) == 1
    assert make_folds(data, how) == folds


def test_cases_without_reference_and_test_cases_are_in_no_fold():
    cases = cases_of(4)
    cases[0] = replace(cases[0], label=None)
    data = Dataset("d", "D", {"t2w": Channel("T2W")}, {"lesion": 1}, cases, test=cases[:1])
    kept = labelled(data)
    assert len(kept.cases) == 11
    assert kept.test == []


def test_every_case_is_measured_by_a_model_that_never_saw_its_patient(whole, data):
    out, rows, _ = whole
    assert sorted(row.case for row in rows) == ["a_1", "a_2", "b"]
    for row in rows:
        description = ModelFolder.read(out / row.fold / "model").description
        use = {u.split: u.patients for u in description.data}
        assert row.patient in use["test"]
        assert row.patient not in use["training"]
        figures = {m.name: m.value for m in description.metrics if m.case == row.case}
        assert figures["Dice"] == values([row], "Dice")[0]
        assert row.images == "flair"
    facts = json.loads((out / "experiment.json").read_text(encoding="utf-8"))
    assert facts["folds"] == {fold.name: fold.test for fold in make_folds(data, 2)}


def test_each_card_also_has_what_its_sisters_made_of_the_other_cases(whole):
    out, rows, _ = whole
    for fold in ("fold_0", "fold_1"):
        metrics = ModelFolder.read(out / fold / "model").description.metrics
        told = [(m.case, m.how, m.value) for m in metrics if m.name == "Dice"]
        assert sorted(told) == sorted(
            (
                row.case,
                (HELD_OUT if row.fold == fold else SISTER) + "never trained on",
                values([row], "Dice")[0],
            )
            for row in rows
        )


def test_the_summary_is_what_the_figures_of_the_cases_say(whole):
    out, rows, _ = whole
    with (out / "figures.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    dice = np.array([float(line["Dice"]) for line in lines])
    text = (out / "summary.md").read_text(encoding="utf-8")
    assert f"| Dice | {dice.mean():.3g} ± {dice.std(ddof=1):.2g} (n 3) |" in text
    volumes = [(float(line["volume [ml]"]), float(line["reference volume [ml]"])) for line in lines]
    both = sum(d * sum(v) / 2 for d, v in zip(dice, volumes, strict=True))
    pooled = 2 * both / np.sum(volumes)
    assert voxel_average_dice(rows, "") == pytest.approx(pooled)
    assert f"| Dice of all voxels | {pooled:.3g} |" in text
    assert read_held_out(out / "figures.csv") == rows


def test_the_threshold_that_would_have_been_best_is_told_with_what_it_is_worth(whole):
    out, rows, _ = whole
    cases = read_thresholds(out / "thresholds.csv")
    assert [case.case for case in cases] == [row.case for row in rows]
    used = ModelFolder.read(out / "fold_0" / "model").description.labels[0].threshold
    assert used in THRESHOLDS
    assert [case.dice[THRESHOLDS.index(used)] for case in cases] == pytest.approx(
        values(rows, "Dice"), abs=1e-4
    )
    choice = choose(cases)
    text = (out / "summary.md").read_text(encoding="utf-8")
    assert f"the models have the threshold {used:g}" in text
    assert f"the best for the held-out patients is {choice.threshold:g}" in text
    needs = ModelFolder.read(out / "fold_1" / "model").description
    assert needs.memory_mb > 50
    assert needs.timings[0].seconds > 0


def test_a_threshold_is_chosen_by_patients_and_judged_on_the_others():
    def case(patient, name, **at):
        dice = [0.0] * len(THRESHOLDS)
        for threshold, value in at.items():
            dice[THRESHOLDS.index(float(threshold.replace("t", "0.")))] = value
        return DiceByThreshold(patient, name, "", dice)

    # Two visits of one patient count as one: 0.3 has (0.8 + 0.5 + 0.4) / 3, 0.6 (0.2 + 0.9) / 3.
    cases = [
        case("a", "a_1", t3=0.9, t6=0.1), case("a", "a_2", t3=0.7, t6=0.3),
        case("b", "b_1", t3=0.5, t6=0.8), case("c", "c_1", t3=0.4),
    ]  # fmt: skip
    choice = choose(cases)
    assert (choice.threshold, choice.dice) == (0.3, pytest.approx(1.7 / 3))
    # Without a 0.3 has 0.9 and 0.6 has 0.8; without b 1.2 and 0.2; without c 1.3 and 1.0.
    assert choice.elsewhere == pytest.approx((0.8 + 0.5 + 0.4) / 3)
    # A patient for whom all others are misleading.
    misled = choose([case("a", "a", t3=1.0), case("b", "b", t6=0.5), case("c", "c", t6=0.6)])
    assert (misled.threshold, misled.elsewhere) == (0.6, pytest.approx((0 + 0 + 0) / 3))
    alone = choose(cases[:2])
    assert (alone.threshold, alone.elsewhere) == (0.3, None)


def test_figures_of_several_labels_are_read_as_they_were_written(ms_reference, tmp_path):
    mask = ms_reference.array[60:90, 40:120, 30:100]
    references = {"left": mask & (np.arange(70) < 35), "right": mask & (np.arange(70) >= 35)}
    answers = {name: ndimage.binary_erosion(part) for name, part in references.items()}
    row = evaluate_case("c", Answer(answers, {}), references, ms_reference.grid)
    rows = held_out("fold_0", ["flair"], [Case("c", "p", "s", {"flair": "x"}, "y")], [row])
    (tmp_path / "f.csv").write_text(held_out_csv({"": rows}))
    (again,) = read_held_out(tmp_path / "f.csv")
    assert again[:5] == ("fold_0", "c", "p", "s", "flair")
    for one, other in zip(again.figures, row.figures, strict=True):
        assert (one.name, one.unit, one.label) == (other.name, other.unit, other.label)
        if other.value is not None:
            assert one.value == pytest.approx(other.value, abs=1e-4)
    assert overall_label([again]) == "mean"
    both = {f.label: f.value for f in again.figures if f.name == "Dice"}
    assert 0.2 < both["mean"] == pytest.approx((both["left"] + both["right"]) / 2, abs=1e-4)
    lines = "\n".join(summary_lines([again]))
    assert f"| mean: Dice | {both['mean']:.3g} (n 1) |" in lines
    assert "| left: Dice of all voxels |" in lines
    assert "mean: Dice of all voxels" not in lines
    text = results_markdown("T", "head", {"A": [again], "B": [again]}, {"A": "I", "B": "II"})
    assert "| row | source | mean: Dice |" in text
    assert boxes({"A": [again], "B": [again]}).count("<svg") == 1


def test_its_plots_have_the_curve_of_each_fold(whole):
    out, _, _ = whole
    curve = read_curve(out / "fold_0", "loss")
    assert list(curve) == [9, 19]
    assert all(np.isfinite(value) for value in curve.values())
    drawn = (out / "curves.svg").read_text(encoding="utf-8")
    assert "fold_0" in drawn
    assert "fold_1" in drawn
    assert (out / "boxes.svg").read_text(encoding="utf-8").count("<svg") == 1


def test_progress_runs_over_all_folds_and_tells_the_time_left(whole):
    _, _, told = whole
    shares = [share for _, share, _ in told]
    assert shares == sorted(shares)
    assert shares[-1] == 1
    assert [*dict.fromkeys(what for what, _, _ in told)] == ["fold 1 of 2", "fold 2 of 2"]
    assert told[-1][2] == 0


def test_the_time_left_counts_only_what_this_process_has_done(monkeypatch):
    clock = [100.0]
    monkeypatch.setattr("medsegcore.training.crossvalidation.time.monotonic", lambda: clock[0])
    told = []
    overall = Overall(4, lambda *event: told.append(event))
    overall.next()
    # A fold that was stopped at a half goes on: a quarter of a fold in 10 s.
    overall.update("x", 0.5)
    clock[0] += 10
    overall.update("x", 0.75)
    assert told[0] == ("x", 1.5 / 4, None)
    assert told[1] == ("x", 1.75 / 4, pytest.approx(40 * 2.25))


@pytest.mark.usefixtures("no_cost")
def test_after_a_break_it_goes_on_and_ends_with_the_same_figures(whole, data, tmp_path):
    _, rows, _ = whole
    # Figures of empty answers would be the same, too.
    assert min(values(rows, "Dice")) > 0.02

    def progress(what, share, left):
        # In the training of the second fold.
        if share > 0.65:
            raise Stopped

    with pytest.raises(Stopped):
        cross_validate(TINY, data, 2, PLAN, tmp_path, progress)
    assert not (tmp_path / "summary.md").exists()
    first = tmp_path / "fold_0" / "figures.csv"
    made = first.stat().st_mtime_ns
    assert (tmp_path / "fold_1" / "last.ckpt").is_file()
    resumed = cross_validate(TINY, data, 2, PLAN, tmp_path)
    assert first.stat().st_mtime_ns == made
    for one, other in zip(resumed, rows, strict=True):
        assert one[:5] == other[:5]
        for a, b in zip(one.figures, other.figures, strict=True):
            if one.fold == "fold_0":
                assert a == b
            else:
                assert a.value == pytest.approx(b.value, rel=0.02, abs=0.002), a.column
    assert not any(tmp_path.rglob("*.ckpt"))
    assert not any(tmp_path.rglob("*.tmp"))


@pytest.mark.usefixtures("no_cost")
def test_folds_can_be_run_by_several_processes_and_the_last_one_sums_up(whole, data, tmp_path):
    out, rows, _ = whole
    shutil.copytree(out, tmp_path / "cv")
    for file in ("summary.md", "figures.csv", "fold_1/figures.csv"):
        (tmp_path / "cv" / file).unlink()
    told = []
    progress = lambda *event: told.append(event)  # noqa: E731
    assert cross_validate(TINY, data, 2, PLAN, tmp_path / "cv", progress, ["fold_0"]) is None
    assert not told
    assert not (tmp_path / "cv" / "summary.md").exists()
    again = cross_validate(TINY, data, 2, PLAN, tmp_path / "cv", progress, ["fold_1"])
    assert {what for what, *_ in told} == {"fold 2 of 2"}
    assert told[-1][1] == pytest.approx(1.0)
    assert [row[:5] for row in again] == [row[:5] for row in rows]
    assert values(again, "Dice") == pytest.approx(values(rows, "Dice"))
    summary = (out / "summary.md").read_text(encoding="utf-8")
    assert (tmp_path / "cv" / "summary.md").read_text(encoding="utf-8") == summary
    with pytest.raises(SettingError, match="no fold 'fold_2'"):
        cross_validate(TINY, data, 2, PLAN, tmp_path / "cv", only=["fold_2"])


def test_a_training_that_was_stopped_before_its_model_was_written_still_gives_it(
    whole, data, tmp_path, monkeypatch
):
    def cut(*args, **options):
        raise Stopped

    plan = replace(PLAN, steps=50, test=["b"])
    recipe = Restless(**{**asdict(TINY), "ema_decay": 0.99})
    with monkeypatch.context() as patch:
        patch.setattr(ModelFolder, "write", cut)
        with pytest.raises(Stopped):
            train(recipe, data, tmp_path, plan)
    assert not (tmp_path / "model").exists()
    last = torch.load(tmp_path / "last.ckpt", weights_only=True)
    run = train(recipe, data, tmp_path, replace(plan, resume=True))
    written = dict(run.folder.load_network().named_parameters())

    def distance(state):
        return max(
            float((last[state][f"objective.network.{name}"] - weights.detach()).abs().max())
            for name, weights in written.items()
        )

    assert distance("state_dict") < 1e-3
    assert distance("current_model_state") > 1e-2


def test_what_is_left_open_is_chosen_once_for_all_folds(ms_cases, tmp_path, monkeypatch):
    root = shutil.copytree(ms_cases, tmp_path / "open_ms")
    for file in (root / "b").iterdir():
        image = read_image(file)
        thick = image.affine @ np.diag([1, 1, 2, 1])
        write_image(Image(np.ascontiguousarray(image.array[::2]), thick), file)
    data = read_dataset(root)
    folds, plan = make_folds(data, "patient"), Plan(steps=1, device="cpu", workers=0)
    alone = [
        UNetRecipe().configured(data, data_facts(data, [c], torch.device("cpu")))[0].spacing
        for c in (data.cases[0], data.cases[-1])
    ]
    assert alone[0] != alone[1]
    used = []
    monkeypatch.setattr(crossvalidation, "_run_fold", lambda recipe, *rest: used.append(recipe))
    for _ in range(2):
        out = tmp_path / "cv"
        run_folds(UNetRecipe(), data, folds, plan, out, Overall(2, None))
        # The second time on a computer with less memory.
        monkeypatch.setattr(facts, "memory_at_hand", lambda *_: 3 * 10**7)
    assert len(used) == 4
    assert used[0].spacing is not None
    assert all(recipe == used[0] for recipe in used)


def test_another_experiment_in_the_same_folder_is_refused(whole, data, tmp_path):
    out, _, _ = whole
    with pytest.raises(SettingError, match="with other settings"):
        cross_validate(replace(TINY, width=8), data, 2, PLAN, out)
    with pytest.raises(SettingError, match="with other steps"):
        cross_validate(TINY, data, 2, replace(PLAN, steps=21), out)
    facts = json.loads((out / "experiment.json").read_text(encoding="utf-8"))
    facts["folds"]["fold_0"], facts["folds"]["fold_1"] = (
        facts["folds"]["fold_1"], facts["folds"]["fold_0"]
    )  # fmt: skip
    (tmp_path / "experiment.json").write_text(json.dumps(facts))
    with pytest.raises(SettingError, match="with other folds"):
        cross_validate(TINY, data, 2, PLAN, tmp_path)


def test_the_command_says_the_folds_and_how_long_they_take(ms_cases, tmp_path, capsys):
    command = ["cross-validate", "--recipe", "unet", "--data", str(ms_cases), "--steps", "50",
               "--leave-one-out", "patient", "--out", str(tmp_path / "cv"), "--device", "cpu",
               "--workers", "0", "--set", "width=2", "--set", "patch=[16,32,32]", "--set",
               "batch_size=2", "--dry-run"]  # fmt: skip
    assert main(command) == 0
    text = capsys.readouterr().out
    assert "fold_0: 2 cases of the patients a." in text
    assert "fold_1: 1 cases of the patients b." in text
    assert re.search(r"unet: 2 trainings, about \d+\.\d\d h", text)
    assert not (tmp_path / "cv").exists()


def test_options_that_contradict_each_other_are_refused():
    assert how_to_split(None, None) == 5
    assert how_to_split(3, None) == 3
    assert how_to_split(None, "site") == "site"
    with pytest.raises(SettingError, match="Both --folds 3 and --leave-one-out site"):
        how_to_split(3, "site")
    with pytest.raises(SettingError, match="'case'"):
        how_to_split(None, "case")
