"""Ablations: each row is what its paper says, and the tables are what its cases say."""

import csv
import json
from dataclasses import asdict, fields, replace

import numpy as np
import pytest
from scipy import stats

from medsegcore.cli import main
from medsegcore.errors import OutOfMemoryError, SettingError
from medsegcore.evaluation.evaluate import Figure
from medsegcore.evaluation.statistics import holm
from medsegcore.imaging import Image, read_image, write_image
from medsegcore.losses.ummkd import weight_of
from medsegcore.models import ModelFolder, TrainingRecord
from medsegcore.networks import create_network
from medsegcore.networks.csad import VARIANTS
from medsegcore.networks.ummkd import NORMS, SETTINGS
from medsegcore.training import setup
from medsegcore.training.ablations import ABLATIONS, chosen_rows, row_recipe
from medsegcore.training.comparisons import against_last, results_csv, results_markdown
from medsegcore.training.datasets import Case, Channel, Dataset
from medsegcore.training.facts import DataFacts
from medsegcore.training.heldout import HeldOut, values
from medsegcore.training.knowledge import read_knowledge
from medsegcore.training.setup import Plan
from medsegcore.training.study import ablate

pytestmark = pytest.mark.usefixtures("one_thread", "no_cost")

RECORD = TrainingRecord(
    recipe="x", date="2026-01-01", minutes=0, steps=0, device="", seed=1, settings={}
)
FACTS = DataFacts(9, 9, 1, (0.5, 0.5, 3.0), (20, 320, 384), 8 * 2**30, False, {0: 0.9, 1: 0.1})
PLAN = Plan(steps=4, device="cpu", workers=0)
# What makes each paper's networks small.
SMALL = {
    "csad": {"width": 4},
    "ummkd": {"width": 4, "norm_groups": 2},
    "rsanet": {"width": 4},
    "affinity": {"affinity_teacher.config": {"width": 8, "middle_blocks": 1},
                 "affinity.config": {"width": 4}},
    "edge": {"width": 4, "decoder_width": 4, "depth": 10},
}  # fmt: skip
CHANNELS = {
    "csad": {"t2w": Channel("T2W"), "adc": Channel("ADC")},
    "ummkd": {"ct": Channel("CT", "CT", "HU", False), "t1": Channel("T1", required=False)},
    "rsanet": {key: Channel(key) for key in ("t1", "t2", "flair")},
    "affinity": {"t2w": Channel("T2W")},
    "edge": {"t2w": Channel("T2W")},
}


def empty(paper):
    """A data set without cases."""
    return Dataset("demo", "Demo", CHANNELS[paper], {"lesion": 1}, [])


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """The model folder of a teacher that knows nothing."""
    recipe = row_recipe(ABLATIONS["affinity"][0], SMALL["affinity"])
    recipe, _ = recipe.configured(empty("affinity"), FACTS)
    settings = {"recipe": recipe.name, "settings": json.loads(json.dumps(asdict(recipe)))}
    record = RECORD.model_copy(update=settings)
    description = recipe.description(empty("affinity"), record)
    folder = tmp_path_factory.mktemp("teacher") / "model"
    return str(ModelFolder.write(folder, description, recipe.network(description)).path)


def test_the_rows_are_those_of_the_papers():
    assert {row.settings["variant"] for row in ABLATIONS["csad"]} | {"nlc", "ilc"} == {*VARIANTS}
    assert VARIANTS["nlc"] == VARIANTS["baseline+scff"]
    assert VARIANTS["ilc"] == VARIANTS["proposed"]
    ummkd = {(row.settings["sharing"], row.settings["norm"]) for row in ABLATIONS["ummkd"]}
    assert {sharing for sharing, norm in ummkd if norm == "batch"} == {*SETTINGS}
    assert {norm for _, norm in ummkd} == {*NORMS}
    # Table V has five settings of each of three more normalisations.
    assert len(ummkd) == len(ABLATIONS["ummkd"]) == 7 + 3 * 5
    assert len(ABLATIONS["rsanet"]) == 7 + 1
    assert len(ABLATIONS["affinity"]) == 9
    for paper, title in (
        ("csad", "Proposed (ILC)"), ("ummkd", "Ours"), ("rsanet", "RSA-111"),
        ("affinity", "+AAM +KMM +LM"), ("edge", "Proposed (edges by wavelets)"),
    ):  # fmt: skip
        rows = ABLATIONS[paper]
        assert rows[-1].title == title
        assert len({row.folder for row in rows}) == len(rows)
        assert all(row.source and "," not in row.title for row in rows)
    terms = {row.title: {name for name, value in row.settings.items() if value == 0}
             for row in ABLATIONS["affinity"]}  # fmt: skip
    assert terms["+AAM +LM"] == {"kernel_weight"}
    assert terms["Student: ENet"] == {"logits_weight", "kernel_weight", "affinity_weight"}
    assert terms["+AAM +KMM +LM"] == set()


@pytest.mark.parametrize("paper", ABLATIONS)
def test_each_row_differs_from_the_whole_method_only_in_what_it_says(paper):
    rows = chosen_rows(paper, {"pretrained": "w"} if paper == "edge" else {})
    whole = row_recipe(rows[-1], {})
    seen = []
    for row in rows:
        recipe = row_recipe(row, {"pretrained": "w"} if paper == "edge" else {})
        if row.title == "Teacher: DeepLabV3+":
            continue
        assert type(recipe) is type(whole)
        other = {f.name for f in fields(whole) if getattr(recipe, f.name) != getattr(whole, f.name)}
        assert other - {"pretrained"} <= set(row.settings), row.title
        assert asdict(recipe) not in seen, row.title
        seen.append(asdict(recipe))


@pytest.mark.parametrize("paper", ABLATIONS)
def test_each_row_has_its_network_and_its_objective(paper, teacher):
    data = empty(paper)
    networks = {}
    for row in chosen_rows(paper, SMALL[paper]):
        recipe = row_recipe(row, SMALL[paper])
        if row.takes:
            recipe = replace(recipe, **{row.takes: (teacher,)})
        recipe, _ = recipe.configured(data, FACTS)
        description = recipe.description(data, RECORD)
        network = create_network(description.network.name, description.network.config)
        objective = recipe.objective(network, FACTS)
        assert objective.network is network
        networks[row.title] = description.network.config
        for name, value in row.settings.items():
            if name in description.network.config:
                assert description.network.config[name] == value, row.title
        if paper == "csad":
            fusion, scheme = VARIANTS[row.settings["variant"]]
            assert (network.config.fusion, objective.loss.scheme) == (fusion, scheme)
        if paper == "ummkd":
            assert objective.loss.alpha == weight_of(row.settings["sharing"])
        if row.takes:
            config = objective.distillation.loss.config
            assert config.logits_weight == (0.2 if "+LM" in row.title else 0)
            assert config.kernel_weight == (0.9 if "+KMM" in row.title else 0)
            assert config.affinity_weight == (0.9 if "+AAM" in row.title else 0)
    if paper == "rsanet":
        assert networks["NCL-101"] | {"block": "rsa"} == networks["RSA-101"]
        assert networks["3D U-Net"] | {"placement": "010"} == networks["RSA-010"]


def test_a_row_without_pre_training_is_there_only_where_there_is_one():
    titles = [row.title for row in chosen_rows("edge", {})]
    assert "Without pre-training" not in titles
    rows = chosen_rows("edge", {"pretrained": "weights.pth"})
    assert row_recipe(rows[0], {"pretrained": "weights.pth"}).pretrained == ""
    assert row_recipe(rows[-1], {"pretrained": "weights.pth"}).pretrained == "weights.pth"


def test_rows_are_chosen_by_title_with_those_that_they_learn_from():
    titles = [row.title for row in chosen_rows("affinity", {}, ["+lm", " student: enet"])]
    assert titles == ["Teacher: DeepLabV3+", "Student: ENet", "+LM"]
    with pytest.raises(SettingError, match="no ablations of 'vnet'"):
        chosen_rows("vnet", {})
    with pytest.raises(SettingError, match="no row 'NLC'"):
        chosen_rows("csad", {}, ["NLC"])
    with pytest.raises(SettingError, match="No row has the setting 'depht'"):
        chosen_rows("edge", {"depht": 10})
    with pytest.raises(SettingError, match="rows set 'variant' themselves"):
        chosen_rows("csad", {"variant": "plc"})
    with pytest.raises(SettingError, match=r"rows set 'affinity\.teachers' the"):
        chosen_rows("affinity", {"affinity.teachers": ("x",)})


def test_the_teacher_and_the_student_may_have_settings_of_their_own():
    first, *_, last = chosen_rows("affinity", SMALL["affinity"])
    settings = {**SMALL["affinity"], "batch_size": 3}
    assert row_recipe(first, settings).config == {"width": 8, "middle_blocks": 1}
    assert row_recipe(last, settings).config == {"width": 4}
    assert row_recipe(first, settings).batch_size == row_recipe(last, settings).batch_size == 3


# The tables


@pytest.fixture(scope="module")
def figures():
    """Three rows of twelve cases of two sites, with a measure that is not always defined."""
    random = np.random.default_rng(4)
    hard = random.uniform(0.3, 0.8, 12)
    rows = {}
    for title, gain in (("A", -0.1), ("B", -0.01), ("Whole", 0.0)):
        dice = np.clip(hard + gain + random.normal(0, 0.03, 12), 0, 1)
        rows[title] = [
            HeldOut(f"fold_{n % 3}", f"c{n}", f"p{n}", f"s{n % 2}", "t2w", [
                Figure("Dice", round(float(d), 4), ""),
                Figure("volume", 2.0 + n, "ml"), Figure("reference volume", 3.0, "ml"),
                Figure("HD95", None if n == 5 else 9.0 - n / 4 + 10 * gain * (n % 4), "mm"),
            ])
            for n, d in enumerate(dice)
        ]  # fmt: skip
    return rows


def test_the_tests_against_the_last_row_are_scipys_with_holms_correction(figures):
    for column in ("Dice", "HD95 [mm]"):
        found = against_last(figures, column)
        assert [(test.first, test.second) for test in found] == [("A", "Whole"), ("B", "Whole")]
        last = values(figures["Whole"], column)
        t, w = [], []
        for test in found:
            pairs = [(a, b) for a, b in zip(values(figures[test.first], column), last, strict=True)
                     if a is not None]  # fmt: skip
            assert test.test.n == (12 if column == "Dice" else 11)
            a, b = np.array(pairs).T
            t.append(stats.ttest_rel(a, b).pvalue)
            w.append(stats.wilcoxon(a - b).pvalue)
            assert test.test.difference == pytest.approx((a - b).mean())
            assert test.test.t_p == pytest.approx(t[-1])
            assert test.test.wilcoxon_p == pytest.approx(w[-1])
        assert [test.t_holm for test in found] == pytest.approx(holm(t))
        # Of two tests the smaller p value counts twice.
        assert min(test.t_holm for test in found) == pytest.approx(2 * min(t))


def test_cases_are_compared_by_name_whatever_their_order(figures):
    shuffled = {**figures, "A": figures["A"][::-1]}
    assert against_last(shuffled, "Dice")[0].test.t_p == pytest.approx(
        against_last(figures, "Dice")[0].test.t_p
    )


def test_the_tables_are_what_the_cases_say(figures):
    sources = {"A": "table I", "B": "table I", "Whole": "tables I, II"}
    lines = list(csv.DictReader(results_csv(figures, sources).splitlines()))
    found = {(line["row"], line["measure"]): line for line in lines}
    for title, rows in figures.items():
        for column in ("Dice", "HD95 [mm]"):
            defined = np.array([v for v in values(rows, column) if v is not None])
            line = found[title, column]
            assert int(line["n"]) == len(defined)
            assert float(line["mean"]) == pytest.approx(defined.mean(), rel=1e-4)
            assert float(line["sd"]) == pytest.approx(defined.std(ddof=1), rel=1e-4)
    assert found["Whole", "Dice"]["t_p"] == ""
    text = results_markdown("T", "head", figures, sources)
    dice = np.array(values(figures["A"], "Dice"))
    assert f"| A | table I | {dice.mean():.3g} ± {dice.std(ddof=1):.2g} (n 12) |" in text
    assert f"{dice[::2].mean():.3g} ± {dice[::2].std(ddof=1):.2g} (n 6)" in text
    p = against_last(figures, "Dice")[0]
    assert f"{p.test.t_p:.3g} | {p.t_holm:.3g}" in text


# Whole studies


def small_case(folder, patient, images, label, slices, size):
    """Files of a few slices round the middle of a label."""
    mask = read_image(label)
    k, j, i = np.argwhere(mask.array > 0).mean(axis=0).round().astype(int)
    starts = [min(max(m - n // 2, 0), whole - n) for m, n, whole in zip(
        (k, j, i), (slices, size, size), mask.shape, strict=True)]  # fmt: skip
    box = tuple(slice(s, s + n) for s, n in zip(starts, (slices, size, size), strict=True))
    files = {}
    for key, path in {**images, "label": label}.items():
        image = read_image(path)
        files[key] = folder / f"{patient}_{'_'.join(images)}_{key}.nii.gz"
        array = np.ascontiguousarray(image.array[box])
        write_image(Image(array, image.grid.crop(box).affine), files[key])
    mask_file = files.pop("label")
    return Case(f"{patient}_{'_'.join(images)}", patient, "site", files, mask_file)


@pytest.fixture(scope="module")
def unpaired(shared_data, tmp_path_factory):
    """Tumours of two patients in CT and, unpaired, in T1, and a T2, which no row takes."""
    folder, root = tmp_path_factory.mktemp("unpaired"), shared_data / "sarcoma" / "sts"
    if not root.is_dir():
        pytest.skip("the sarcoma data are not here")
    cases = [
        small_case(folder, name, {key: root / name / f"{key}.nii.gz"},
                   root / name / f"tumor_on_{key}.nii.gz", 3, 64)
        for name, key in (("STS_003", "ct"), ("STS_003", "t1"), ("STS_003", "t2"),
                          ("STS_012", "ct"), ("STS_012", "t1"))
    ]  # fmt: skip
    channels = {**CHANNELS["ummkd"], "t2": Channel("T2", required=False)}
    return Dataset("sarcoma", "Sarcoma", channels, {"tumor": 1}, cases)


@pytest.fixture(scope="module")
def glands(shared_data, tmp_path_factory):
    """T2W and the gland of two patients: four slices of each."""
    folder, root = tmp_path_factory.mktemp("glands"), shared_data / "prostate" / "ucla"
    if not root.is_dir():
        pytest.skip("the prostate data are not here")
    cases = [
        small_case(folder, name, {"t2w": root / name / "t2w.nii.gz"},
                   root / name / "prostate.nii.gz", 4, 64)
        for name in ("0001", "0003")
    ]  # fmt: skip
    return Dataset("gland", "Gland", CHANNELS["affinity"], {"prostate": 1}, cases)


UMMKD = {
    "width": 4, "norm_groups": 2, "patch": (1, 32, 32), "batch_size": 2, "learning_rate": 5e-3,
    "spacing": (2.0, 2.0, 1.0), "modalities": ("ct", "t1"),
}  # fmt: skip


class Stopped(Exception):
    """Stands for a power cut."""


def test_a_study_goes_on_row_by_row_and_keeps_the_matrices_of_what_was_distilled(
    unpaired, tmp_path
):
    def progress(what, share, left):
        if what.startswith("Ours, fold 2"):
            raise Stopped

    def run(told=None):
        return ablate("ummkd", unpaired, 2, PLAN, tmp_path, UMMKD, ["Joint", "Ours"], told)

    with pytest.raises(Stopped):
        run(progress)
    assert "1 of 2 rows" in (tmp_path / "results.md").read_text(encoding="utf-8")
    done = [tmp_path / "joint" / "fold_0", tmp_path / "joint" / "fold_1", tmp_path / "ours/fold_0"]
    before = [(folder / "figures.csv").stat().st_mtime_ns for folder in done]
    found = run()
    assert [(folder / "figures.csv").stat().st_mtime_ns for folder in done] == before
    assert {title: len(rows) for title, rows in found.items()} == {"Joint": 4, "Ours": 4}
    keys = [(row.fold, row.case) for row in found["Joint"]]
    assert [(row.fold, row.case) for row in found["Ours"]] == keys
    text = (tmp_path / "results.md").read_text(encoding="utf-8")
    assert "2 of 2 rows" in text
    assert "images ct" in text
    with (tmp_path / "figures.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    for title, rows in found.items():
        dice = [float(line["Dice"]) for line in lines if line["row"] == title]
        assert dice == pytest.approx(values(rows, "Dice"), abs=1e-4)
    with (tmp_path / "results.csv").open(newline="") as file:
        table = {(r["row"], r["measure"]): r for r in csv.DictReader(file)}
    dice = [float(line["Dice"]) for line in lines if line["row"] == "Ours"]
    assert float(table["Ours", "Dice"]["mean"]) == pytest.approx(np.mean(dice), rel=1e-4)
    matrices = read_knowledge(tmp_path / "ours" / "fold_0" / "knowledge")
    assert list(matrices) == [1, 2, 3, 4]
    for of_step in matrices.values():
        assert set(of_step) == {"ct", "t1"}
        for q in of_step.values():
            assert q.shape == (2, 2)
            np.testing.assert_allclose(q.sum(axis=1), 1, atol=1e-5)
    assert not np.allclose(matrices[1]["ct"], matrices[4]["ct"])
    assert "ct, step 4" in (tmp_path / "ours" / "fold_0" / "knowledge.svg").read_text(
        encoding="utf-8"
    )
    assert (tmp_path / "boxes.svg").is_file()


def test_a_training_without_one_of_the_modalities_is_refused(unpaired, tmp_path):
    by_image = [replace(c, site=next(iter(c.images)), patient=c.id) for c in unpaired.cases]
    data = replace(unpaired, cases=by_image)
    with pytest.raises(SettingError, match="No case to train on has the modality 'ct'"):
        ablate("ummkd", data, "site", PLAN, tmp_path, UMMKD, ["Ours"])


def test_a_student_learns_from_the_teacher_of_its_own_fold(glands, tmp_path):
    settings = {**SMALL["affinity"], "patch": (1, 32, 32), "batch_size": 2}
    plan = replace(PLAN, steps=2)
    found = ablate("affinity", glands, "patient", plan, tmp_path, settings, ["+LM"])
    assert list(found) == ["Teacher: DeepLabV3+", "+LM"]
    for fold, patient in (("fold_0", "0001"), ("fold_1", "0003")):
        student = ModelFolder.read(tmp_path / "lm" / fold / "model").description
        folder = tmp_path / "teacher-deeplabv3" / fold / "model"
        taught = ModelFolder.read(folder).description
        parents = [(parent.role, parent.sha256) for parent in student.training.parents]
        assert parents == [("teacher", taught.weights.sha256)]
        for description in (student, taught):
            use = {u.split: u.patients for u in description.data}
            assert use["test"] == [patient]
            assert patient not in use["training"]


def test_a_row_that_does_not_fit_into_memory_is_named(ms_cases, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(setup, "free_memory", lambda device, share: 10**7)
    command = ["ablate", "rsanet", "--data", str(ms_cases), "--folds", "2", "--steps", "2",
               "--rows", "RSA-111", "--out", str(tmp_path / "a"), "--device", "cpu"]  # fmt: skip
    for more in (["--dry-run"], []):
        assert main([*command, *more]) == OutOfMemoryError.exit_code
        assert "Error: RSA-111: A step of this training takes" in capsys.readouterr().err


def test_a_rehearsal_of_few_cases_has_some_of_each_modality(unpaired):
    by_modality = replace(unpaired, cases=sorted(unpaired.cases, key=lambda c: [*c.images]))
    assert [key for case in by_modality.cases[:2] for key in case.images] == ["ct", "ct"]
    (row,) = chosen_rows("ummkd", UMMKD, ["Ours"])
    few = setup.set_up(row_recipe(row, UMMKD), by_modality, PLAN, most=2)
    assert sorted(few.patches[0]) == ["ct", "t1"]


def test_the_command_lists_rows_folds_and_time(ms_cases, tmp_path, capsys):
    command = ["ablate", "rsanet", "--data", str(ms_cases), "--folds", "2", "--steps", "100",
               "--rows", "3D U-Net,RSA-111", "--set", "width=4", "--set", "patch=[16,16,16]",
               "--out", str(tmp_path / "a"), "--device", "cpu", "--workers", "0",
               "--dry-run"]  # fmt: skip
    assert main(command) == 0
    text = capsys.readouterr().out
    assert "3D U-Net (table 1): rsanet {'block': 'rsa', 'placement': '000'}" in text
    assert "RSA-111: 2 trainings, about" in text
    for row in ("3D U-Net", "RSA-111"):
        assert f"{row}: A step takes about" in text
    assert "Together about" in text
    assert not (tmp_path / "a").exists()
    assert main([*command, "--rows", "VNet"]) == 3
