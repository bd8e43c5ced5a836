"""A box limits where a model works and answers, and changes nothing inside."""

import json

import numpy as np
import pytest

from medsegcore.cli.app import region_option
from medsegcore.errors import GeometryError, OverlapError, SettingError
from medsegcore.imaging import Grid, Region
from medsegcore.inference.preprocess import prepare


def turned(center, size, degrees=0.0) -> Region:
    affine = np.eye(4)
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    affine[:2, :2] = [[c, -s], [s, c]]
    affine[:3, 3] = center
    return Region(affine, size)


@pytest.fixture(scope="module")
def description(shipped_model):
    return shipped_model.description


@pytest.fixture(scope="module")
def around_lesions(ms_reference) -> Region:
    """A turned box of about a tenth of the head around most of the lesions."""
    points = ms_reference.grid.to_ras(np.argwhere(ms_reference.array)[:, ::-1])
    return turned(np.median(points, axis=0), (70.0, 60.0, 40.0), 20)


def test_the_mask_is_the_voxels_whose_centres_lie_in_the_box():
    affine = np.diag([-0.7, 1.1, 2.5, 1.0])
    affine[:3, 3] = (12, -20, 3)
    grid = Grid((9, 30, 40), affine)
    region = turned((0, 0, 10), (15, 21, 9), 30)
    k, j, i = np.indices(grid.shape)
    local = grid.to_ras(np.stack([i, j, k], axis=-1)) - region.affine[:3, 3]
    expected = (np.abs(local @ region.affine[:3, :3]) <= np.array(region.size_mm) / 2).all(axis=-1)
    assert expected.any()
    assert np.array_equal(region.mask(grid), expected)


def test_the_box_in_a_grid_holds_every_voxel_of_the_mask_and_the_margin():
    grid = Grid((40, 50, 60), np.diag([1.0, 1.0, 1.5, 1.0]))
    region = turned((30, 25, 30), (20, 10, 12), 45)
    box = region.box_in(grid)
    mask = region.mask(grid)
    assert mask[box].sum() == mask.sum() > 0
    wide = region.box_in(grid, margin_mm=6)
    assert [b.start - w.start for b, w in zip(box, wide, strict=True)] == [4, 6, 6]


def test_a_box_beside_the_volume_or_without_a_size_is_refused():
    grid = Grid((40, 50, 60), np.eye(4))
    with pytest.raises(OverlapError, match="outside of the reference"):
        turned((500, 0, 0), (10, 10, 10)).box_in(grid)
    with pytest.raises(SettingError, match="0 x 10 x 10 mm"):
        turned((0, 0, 0), (0, 10, 10)).check()
    sheared = np.eye(4)
    sheared[0, 1] = 0.5
    with pytest.raises(GeometryError, match="sheared"):
        Region(sheared, (1, 1, 1)).check()


def test_a_box_goes_through_json_and_back():
    region = turned((1.5, -2, 3), (10, 20, 30), 12)
    again = region_option(json.dumps(region.as_dict()))
    assert np.array_equal(again.affine, region.affine)
    assert again.size_mm == region.size_mm
    assert region_option(None) is None
    for text, words in (("{", "no JSON"), ("{}", "no region"), ('{"affine": [1], "size_mm": []}',
                                                                "no region")):  # fmt: skip
        with pytest.raises(SettingError, match=words):
            region_option(text)


def corner_in(whole, part):
    """Where the part begins in the whole, as voxels along k, j, i."""
    return np.rint(whole.grid.to_ijk(part.grid.to_ras([0, 0, 0]))).astype(int)[::-1]


@pytest.mark.parametrize("tile", [(64, 64, 64), (128, 128, 128)])
def test_inside_the_box_the_network_sees_what_it_saw_without(
    description, ms_images, around_lesions, tile
):
    grid = description.grid.model_copy(update={"tile": tile})
    description = description.model_copy(update={"grid": grid})
    whole = prepare(description, ms_images)
    part = prepare(description, ms_images, around_lesions)
    least = np.minimum(tile, whole.tensor.shape[1:])
    assert (np.array(part.tensor.shape[1:]) >= least).all()
    assert part.tensor[0].size < (0.4 if tile[0] == 64 else 0.8) * whole.tensor[0].size
    same = tuple(
        slice(a, a + n) for a, n in zip(corner_in(whole, part), part.tensor.shape[1:], strict=True)
    )
    np.testing.assert_array_equal(part.tensor, whole.tensor[(slice(None), *same)])
    assert around_lesions.mask(part.grid).sum() == around_lesions.mask(whole.grid).sum()


def test_slices_need_no_neighbours_along_their_own_axis(description, ms_images, around_lesions):
    grid = description.grid.model_copy(update={"tile": (8, 64, 64), "dimensionality": "2D"})
    flat = prepare(description.model_copy(update={"grid": grid}), ms_images, around_lesions)
    box = around_lesions.box_in(flat.grid, grid.margin_mm)
    assert flat.tensor.shape[1] == box[0].stop - box[0].start < 60


def test_the_answer_is_on_the_whole_grid_and_zero_outside_of_the_box(
    predictor, ms_images, ms_reference, around_lesions
):
    result = predictor.predict(ms_images, region=around_lesions, attention=False)
    (name,) = result.probabilities
    inside = around_lesions.mask(ms_images["flair"].grid)
    assert result.grid.same_as(ms_images["flair"].grid)
    assert not result.probabilities[name][~inside].any()
    assert not result.labelmap[~inside].any()
    # As good as the answer for the whole head, which is 0.75.
    found, true = result.labelmap[inside] > 0, ms_reference.array[inside]
    assert 2 * (found & true).sum() / (found.sum() + true.sum()) >= 0.7
    assert result.settings["region"] == around_lesions.as_dict()


def test_a_box_outside_of_the_volume_says_so_before_anything_runs(description, ms_images):
    with pytest.raises(OverlapError, match="outside of the reference"):
        prepare(description, ms_images, turned((900, 0, 0), (10, 10, 10)))
