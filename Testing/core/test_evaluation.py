"""Figures of several cases: averages, pooled measures, and two models compared."""

import numpy as np
import pytest
import SimpleITK as sitk
from scipy import ndimage

from medsegcore.errors import MissingInputError, SettingError, UnreadableImageError
from medsegcore.evaluation.answers import Answer, labels_to_measure
from medsegcore.evaluation.evaluate import evaluate_case
from medsegcore.evaluation.tables import (
    compare,
    figures_csv,
    figures_table,
    pooled,
    read_figures,
    summaries,
)
from medsegcore.imaging import Grid, read_image

GRID = Grid((4, 8, 8), np.diag([2.0, 2.0, 2.0, 1.0]))


def evaluated(name, wide):
    """A case whose answer covers `wide` of the four reference columns."""
    reference = np.zeros(GRID.shape, bool)
    reference[1:3, 2:6, 2:6] = True
    answer = reference.copy()
    answer[:, :, 2 + wide :] = False
    return evaluate_case(name, Answer({"x": answer}, {"x": 0.9 * answer}), {"x": reference}, GRID)


@pytest.fixture
def rows():
    return [evaluated("a", 4), evaluated("b", 2), evaluated("c", 0)]


def test_summaries_have_units_and_leave_out_what_is_not_defined(rows):
    found = summaries(rows)
    # Dice 1, 2/3 and 0; HD95 0 and 4 mm (two columns of 2 mm), none for the empty answer.
    assert found["Dice"].mean == pytest.approx(5 / 9)
    assert found["Dice"].sd == pytest.approx(np.std([1, 2 / 3, 0], ddof=1))
    assert found["HD95 [mm]"].mean == pytest.approx(2)
    assert (found["HD95 [mm]"].n, found["Dice"].n) == (2, 3)
    assert found["Dice"].median == pytest.approx(2 / 3)
    assert found["Dice"].quartiles == pytest.approx((1 / 3, 5 / 6))


def test_pooled_measures_weigh_voxels_and_lesions_of_all_cases(rows):
    # 32 voxels each: 32, 16 and 0 found of 96, 48 answered: Dice 96 / 144, IoU 48 / 96.
    # Two of three lesions at no false one: recall 2/3 at every rate.
    assert pooled(rows) == pytest.approx(
        {"voxel average Dice": 2 / 3, "voxel average IoU": 0.5, "FROC score": 2 / 3}
    )


def test_two_models_are_compared_case_by_case_through_the_file_of_the_other(rows, tmp_path):
    (tmp_path / "other.csv").write_text(figures_csv({"m": rows}))
    other = read_figures(tmp_path / "other.csv")
    assert other["c"]["HD95 [mm]"] is None
    better = figures_table([evaluated("b", 4), evaluated("c", 4), evaluated("new", 4)])
    tests = {c.measure: c for c in compare({"better": better, "m": other})}
    # b: 1 - 2/3, c: 1 - 0, new: not in the other file.
    dice = tests["Dice"]
    assert (dice.first, dice.second, dice.test.n) == ("better", "m", 2)
    assert dice.test.difference == pytest.approx((1 / 3 + 1) / 2, abs=1e-4)
    assert tests["HD95 [mm]"].test.n == 1
    # The reference's volume is the same in both: no test, and nothing that counts for Holm.
    assert tests["reference volume [ml]"].wilcoxon_holm is None
    assert dice.t_holm > dice.test.t_p
    with pytest.raises(MissingInputError, match="no case in common"):
        compare({"new": figures_table([evaluated("new", 4)]), "m": other})


def test_a_model_does_not_differ_from_its_own_file(rows, tmp_path):
    (tmp_path / "own.csv").write_text(figures_csv({"m": rows}))
    tests = compare({"m": figures_table(rows), "own": read_figures(tmp_path / "own.csv")})
    assert {c.test.difference for c in tests} == {0}
    assert {c.test.wilcoxon_p for c in tests} == {None}


def test_several_labels_have_figures_each_and_a_mean(shared_data):
    folder = shared_data / "glioma" / "brats_gli"
    if not folder.is_dir():
        pytest.skip("the glioma data are not here")
    mask = read_image(folder / "BraTS-GLI-00000-000" / "seg.nii.gz")
    box = tuple(slice(int(a.min()), int(a.max()) + 1) for a in mask.array.nonzero())
    reference = mask.array[box]
    answer = ndimage.median_filter(reference, 5)
    grid = mask.grid.crop(box)
    names = {"necrosis": 1, "oedema": 2, "enhancing": 3}

    def masks(labelmap):
        return {name: labelmap == value for name, value in names.items()}

    row = evaluate_case("x", Answer(masks(answer), {}), masks(reference), grid)
    found = {figure.column: figure.value for figure in row.figures}
    measures = sitk.LabelOverlapMeasuresImageFilter()
    measures.Execute(sitk.GetImageFromArray(reference), sitk.GetImageFromArray(answer))
    each = [measures.GetDiceCoefficient(value) for value in names.values()]
    assert [found[f"{name}: Dice"] for name in names] == pytest.approx(each)
    assert found["mean: Dice"] == row.dice == pytest.approx(np.mean(each))
    hd95 = [found[f"{name}: HD95 [mm]"] for name in names]
    assert found["mean: HD95 [mm]"] == pytest.approx(np.mean(hd95))
    assert "mean: volume [ml]" not in found
    # Without probabilities there is no FROC.
    assert {name.split(": ")[1] for name in pooled([row])} == {
        "voxel average Dice", "voxel average IoU"
    }  # fmt: skip


def test_the_labels_to_measure_come_from_the_data_set_and_the_models(shipped_model):
    one = shipped_model.description
    label = one.labels[0]
    two = one.model_copy(
        update={"labels": [label, label.model_copy(update={"name": "core", "value": 2})]}
    )
    # A lone label is everything above 0, whatever grades its mask has.
    assert labels_to_measure({"lesion": 1}, []) == {"lesion": None}
    assert labels_to_measure({"lesion": 1}, [one]) == {"MS lesion": None}
    assert labels_to_measure({"a": 1, "b": 2}, []) == {"a": 1, "b": 2}
    assert labels_to_measure({"lesion": 1}, [two], declared=False) == {"MS lesion": 1, "core": 2}
    assert labels_to_measure({"rim": 1, "core": 4}, [two]) == {"core": 4}
    # However a data set writes a name.
    assert labels_to_measure({"ms_lesion": 3, "Core": 4}, [two]) == {"MS lesion": 3, "core": 4}
    assert labels_to_measure({"core": 1}, [two]) == {"core": None}
    with pytest.raises(SettingError, match="no label of the model"):
        labels_to_measure({"prostate": 1}, [two])
    with pytest.raises(SettingError, match="no label of the model"):
        labels_to_measure({"a": 1, "b": 2}, [two])


def test_another_file_is_no_evaluation(tmp_path):
    (tmp_path / "x.csv").write_text("number,label\n1,MS lesion\n")
    with pytest.raises(UnreadableImageError, match="no figures"):
        read_figures(tmp_path / "x.csv")
    with pytest.raises(UnreadableImageError, match="no figures"):
        read_figures(tmp_path / "absent.csv")


def test_a_file_of_several_models_is_refused(rows, tmp_path):
    (tmp_path / "x.csv").write_text(figures_csv({"a": rows, "b": rows}))
    assert (tmp_path / "x.csv").read_text(encoding="utf-8").startswith("model,case,Dice,")
    with pytest.raises(UnreadableImageError, match="no figures of one evaluation"):
        read_figures(tmp_path / "x.csv")
