"""People who do not tell red from green can read the labels and the overlays."""

import itertools

import numpy as np
import pytest

from SlicerMedSegLib.Colors import (
    COLOR_BLINDNESS,
    OKABE_ITO,
    lab,
    labelColors,
    overlayColor,
    overlayTable,
)

EVERYBODY = [None, *COLOR_BLINDNESS]


def nearest(colors, blindness):
    seen = lab(np.array(colors) / 255, blindness)
    return min(np.linalg.norm(a - b) for a, b in itertools.combinations(seen, 2))


def test_lab_is_what_the_standard_says():
    np.testing.assert_allclose(lab([1, 1, 1]), [100, 0, 0], atol=0.02)
    np.testing.assert_allclose(lab([1, 0, 0]), [53.24, 80.09, 67.20], atol=0.05)
    np.testing.assert_allclose(lab([0, 0, 1]), [32.30, 79.19, -107.86], atol=0.05)


@pytest.mark.parametrize("blindness", EVERYBODY)
def test_labels_are_told_apart_by_everybody(blindness):
    assert nearest(OKABE_ITO, blindness) > 15
    # Red and green of the same lightness are not.
    assert nearest(labelColors([(190, 60, 50), (95, 105, 40), (240, 240, 240)]), blindness) > 15


def test_a_models_own_colors_stay_when_everybody_tells_them_apart():
    apart, alike = [(255, 255, 0), (0, 0, 200)], [(200, 80, 60), (120, 120, 40)]
    assert labelColors(apart) == apart
    assert nearest(alike, None) > 15 > nearest(alike, "deuteranopia")
    assert labelColors(alike) == list(OKABE_ITO[:2])
    assert labelColors([(10, 20, 30)]) == [(10, 20, 30)]


@pytest.mark.parametrize("blindness", EVERYBODY)
def test_the_overlay_gets_lighter_all_the_way_for_everybody(blindness):
    lightness = lab(overlayTable(), blindness)[:, 0]
    assert (np.diff(lightness) > 0).all()
    assert lightness[-1] - lightness[0] > 80


def test_the_overlays_steps_look_equally_large():
    steps = np.linalg.norm(np.diff(lab(overlayTable()), axis=0), axis=1)
    assert steps.std() / steps.mean() < 0.03
    assert overlayColor(0.0) == pytest.approx(overlayTable()[0])
    assert overlayColor(1.0) == pytest.approx(overlayTable()[-1])
