"""Figures of several cases: averages, pooled measures, and two models compared."""

import numpy as np
import pytest

from medsegcore.errors import MissingInputError, UnreadableImageError
from medsegcore.evaluation.evaluate import (
    EvaluatedCase,
    compare_figures,
    compare_masks,
    figures_csv,
    pooled,
    read_figures,
    summaries,
)
from medsegcore.evaluation.metrics import lesion_candidates
from medsegcore.evaluation.statistics import overlap
from medsegcore.imaging import Grid

GRID = Grid((4, 8, 8), np.diag([2.0, 2.0, 2.0, 1.0]))


def evaluated(name, wide):
    """A case whose answer covers `wide` of the four reference columns."""
    reference = np.zeros(GRID.shape, bool)
    reference[1:3, 2:6, 2:6] = True
    answer = reference.copy()
    answer[:, :, 2 + wide :] = False
    return EvaluatedCase(
        name,
        compare_masks(answer, reference, GRID),
        overlap(answer, reference),
        lesion_candidates(0.9 * answer, reference),
    )


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


def test_pooled_measures_weigh_voxels_and_lesions_of_all_cases(rows):
    # 32 voxels each: 32, 16 and 0 found of 96, 48 answered: Dice 96 / 144, IoU 48 / 96.
    # Two of three lesions at no false one: recall 2/3 at every rate.
    assert pooled(rows) == pytest.approx(
        {"voxel average Dice": 2 / 3, "voxel average IoU": 0.5, "FROC score": 2 / 3}
    )


def test_two_models_are_compared_case_by_case_through_the_file_of_the_other(rows, tmp_path):
    (tmp_path / "other.csv").write_text(figures_csv(rows))
    other = read_figures(tmp_path / "other.csv")
    assert other["c"]["HD95 [mm]"] is None
    better = [evaluated("b", 4), evaluated("c", 4), evaluated("new", 4)]
    tests = compare_figures(better, other)
    # b: 1 - 2/3, c: 1 - 0, new: not in the other file.
    assert tests["Dice"].n == 2
    assert tests["Dice"].difference == pytest.approx((1 / 3 + 1) / 2, abs=1e-4)
    assert tests["HD95 [mm]"].n == 1
    with pytest.raises(MissingInputError, match="no case in common"):
        compare_figures([evaluated("new", 4)], other)


def test_another_file_is_no_evaluation(tmp_path):
    (tmp_path / "x.csv").write_text("number,label\n1,MS lesion\n")
    with pytest.raises(UnreadableImageError, match="holds no figures"):
        read_figures(tmp_path / "x.csv")
    with pytest.raises(UnreadableImageError, match="holds no figures"):
        read_figures(tmp_path / "absent.csv")
