"""Averages and paired tests by hand."""

import math

import numpy as np
import pytest

from medsegcore.evaluation.statistics import (
    holm,
    overlap,
    paired_tests,
    sample_average,
    summarise,
    voxel_average,
)


def test_voxel_averages_pool_the_voxels_and_sample_averages_the_cases():
    # Case 1: 8 answered, 8 wanted, 6 in common: Dice 12/16, IoU 6/10.
    # Case 2: 2 answered, 2 wanted, none in common: both 0.
    first = overlap(np.arange(10) < 8, np.arange(10) >= 2)
    second = overlap(np.arange(10) < 2, np.arange(10) >= 8)
    assert first == (6, 8, 8)
    assert sample_average([first, second]) == pytest.approx({"Dice": 0.375, "IoU": 0.3})
    assert voxel_average([first, second]) == pytest.approx({"Dice": 12 / 20, "IoU": 6 / 14})
    empty = np.zeros(4, bool)
    assert voxel_average([overlap(empty, empty)]) == {"Dice": 1, "IoU": 1}


def test_a_summary_leaves_out_what_is_not_defined():
    summary = summarise([1.0, None, 2.0, 4.5])
    # Mean 2.5; squares 2.25 + 0.25 + 4 = 6.5, over n - 1 = 2.
    assert (summary.mean, summary.n) == (2.5, 3)
    assert summary.sd == pytest.approx(math.sqrt(3.25))
    assert str(summary) == "2.5 ± 1.8"
    assert str(summarise([0.5])) == "0.5"
    assert str(summarise([None])) == "-"


def test_paired_tests_by_hand():
    # Differences 1, 2, 3, 4, 5: mean 3, sd sqrt(2.5), t = 3 / sqrt(2.5 / 5) = 4.2426 with 4
    # degrees of freedom. For 4 degrees the two-sided p is 1 - u (3 - u^2) / 2 with
    # u = t / sqrt(t^2 + 4) = 0.904534: p = 0.013236. All signs agree: Wilcoxon 2 / 2^5 = 0.0625.
    first, second = [11.0, 12.0, 13.0, 14.0, 15.0, None], [10.0] * 6
    test = paired_tests(first, second)
    u = 4.242641 / math.sqrt(4.242641**2 + 4)
    assert (test.difference, test.n) == (3, 5)
    assert test.t_p == pytest.approx(1 - u * (3 - u**2) / 2, abs=1e-6)
    assert test.t_p == pytest.approx(0.013236, abs=1e-5)
    assert test.wilcoxon_p == pytest.approx(0.0625)


def test_equal_models_and_single_cases_have_no_p_value():
    equal = paired_tests([0.5, 0.7], [0.5, 0.7])
    assert (equal.difference, equal.t_p, equal.wilcoxon_p) == (0, None, None)
    assert paired_tests([0.5], [0.4]).t_p is None
    assert paired_tests([None], [0.4]).n == 0
    with pytest.raises(ValueError, match=r"shorter|longer"):
        paired_tests([0.5], [0.4, 0.3])


def test_holm_by_hand():
    # Smallest first: 0.01 x 4, 0.02 x 3, then 0.03 x 2 = 0.06, and 0.04 x 1 may not be less.
    assert holm([0.04, 0.01, None, 0.03, 0.02]) == pytest.approx([0.06, 0.04, None, 0.06, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([None]) == [None]
