from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from phi4d.prepared import tiles
from phi4d.prepared.tiles import Tiles, layout, tile, widened

sides = st.one_of(st.integers(1, 60), st.integers(1, 30_000))
crops = st.integers(1, 36)


def noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    ("width", "height", "tokens"),
    [
        (448, 448, (545, 545, 545)),
        (1920, 1080, (753, 2129, 3918)),
        (4000, 3000, (1065, 3393, 3393)),
        (4000, 4000, (1329, 2625, 9585)),
        (900, 600, (999, 1841, 1841)),
        (300, 3000, (785, 1729, 1729)),
        (3000, 300, (728, 1629, 1629)),
        (447, 449, (562, 562, 562)),
        (1024, 1024, (1329, 2625, 2625)),
        (1, 1, (545, 545, 545)),
    ],
)
def test_tokens_of_known_sizes_at_4_12_and_36_crops(width, height, tokens):
    assert tuple(layout(height, width, most).tokens for most in (4, 12, 36)) == tokens


@pytest.mark.parametrize("size", [(1, 1000), (1000, 1), (2, 30_000), (20_000, 10), (1, 46)])
def test_a_line_is_widened_with_white_rather_than_refused(size):
    height, width = size
    wide_height, wide_width = widened(height, width)
    assert (wide_height, wide_width) != (height, width)
    plan = layout(wide_height, wide_width)
    assert min(plan.height, plan.width) >= tiles.MIN_SIDE_PX


@given(height=sides, width=sides, most=crops)
def test_every_size_has_a_sound_layout(height, width, most):
    height, width = widened(height, width, most)
    plan = layout(height, width, most)
    assert 1 <= plan.columns * plan.rows <= most
    grid_height, grid_width = plan.rows * tiles.CROP_PX, plan.columns * tiles.CROP_PX
    assert tiles.MIN_SIDE_PX <= plan.height <= grid_height
    assert tiles.MIN_SIDE_PX <= plan.width <= grid_width
    assert plan.height >= grid_height - 1 or plan.width >= grid_width - 1
    across, down = plan.patches()
    assert 1 <= across <= plan.columns * tiles.PATCHES
    assert 1 <= down <= plan.rows * tiles.PATCHES
    assert 273 < plan.tokens <= 273 + 272 * most + 16 * most


@given(height=sides, width=sides)
def test_only_what_the_reference_refuses_is_widened(height, width):
    plan = layout(height, width)
    refused = min(plan.height, plan.width) < tiles.MIN_SIDE_PX
    assert (widened(height, width) != (height, width)) == refused


def test_a_picture_that_fits_its_grid_is_left_as_it_is():
    picture = noise(448, 896)
    found = tile(picture)
    assert (found.columns, found.rows) == (2, 1)
    assert np.array_equal(found.picture, picture)


def test_pillows_own_picture_is_taken_as_its_samples_are():
    picture = noise(500, 700)
    assert np.array_equal(tile(Image.fromarray(picture)).picture, tile(picture).picture)


def test_a_picture_is_scaled_to_touch_the_edges_of_its_grid():
    found = tile(noise(600, 900))
    assert (found.columns, found.rows) == (3, 2)
    assert found.picture.shape == (896, 1344, 3)
    assert (found.height, found.width) == (896, 1344)
    assert tile(noise(100, 400)).picture.shape == (112, 448, 3)


def test_a_line_is_laid_on_white():
    found = tile(np.zeros((1, 1000, 3), np.uint8))
    assert int(found.picture[0, 0, 0]) < 100
    assert int(found.picture[-1, 0, 0]) == 255


def test_fewer_crops_are_made_of_what_there_is():
    found = tile(noise(1000, 1000))
    assert found.crops == 9
    assert found.within(9) is found
    fewer = found.within(4)
    assert (fewer.crops, fewer.picture.shape) == (4, (896, 896, 3))
    assert fewer.tokens == layout(896, 896).tokens


@pytest.mark.parametrize(
    ("picture", "columns", "rows"),
    [
        (np.zeros((449, 448, 3), np.uint8), 1, 1),
        (np.zeros((448, 449, 3), np.uint8), 1, 1),
        (np.zeros((448, 448, 4), np.uint8), 1, 1),
        (np.zeros((448, 448), np.uint8), 1, 1),
        (np.zeros((448, 448, 3), np.float32), 1, 1),
        (np.zeros((9, 448, 3), np.uint8), 1, 1),
        (np.zeros((448, 448, 3), np.uint8), 1, 0),
        (np.zeros((448, 448, 3), np.uint8), -1, -1),
    ],
)
def test_what_does_not_fit_its_grid_is_refused(picture, columns, rows):
    with pytest.raises(ValueError, match=f"for {columns} x {rows} crops was expected, found"):
        Tiles(picture, columns, rows)
