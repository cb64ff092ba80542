from __future__ import annotations

import numpy as np
import pytest
import torch
from enginekit import from_reference, needs_reference
from hypothesis import given, settings
from hypothesis import strategies as st

from phi4d.engine import tiler
from phi4d.engine.tiler import layout, tile, widened

sides = st.one_of(st.integers(1, 60), st.integers(1, 30_000))
crops = st.integers(1, 36)


def white(height: int, width: int) -> np.ndarray:
    return np.full((height, width, 3), 255, np.uint8)


@needs_reference
def test_equals_the_reference_processor_number_for_number():
    *differences, compared = from_reference("tiler_reference.py").splitlines()
    assert not differences
    assert compared.startswith("compared ")
    assert int(compared.split()[1]) > 1000


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


def test_a_picture_of_one_crop_is_its_own_global_view():
    picture = np.random.default_rng(0).integers(0, 256, (448, 448, 3), dtype=np.uint8)
    tiles = tile(picture)
    assert tiles.pixels.shape == (2, 3, 448, 448)
    assert torch.equal(tiles.pixels[0], tiles.pixels[1])
    restored = (tiles.pixels[1] * 127.5 + 127.5).round().to(torch.uint8).permute(1, 2, 0)
    assert torch.equal(restored, torch.from_numpy(picture))


def test_crops_lie_row_by_row():
    picture = white(896, 1344)
    for row in range(2):
        for column in range(3):
            corner = picture[row * 448 :, column * 448 :]
            corner[:448, :448] = 10 * (3 * row + column)
    tiles = tile(picture)
    assert tiles.pixels.shape == (7, 3, 448, 448)
    assert (tiles.height, tiles.width) == (896, 1344)
    shades = [round(float(crop.mean()) * 127.5 + 127.5) for crop in tiles.pixels[1:]]
    assert shades == [0, 10, 20, 30, 40, 50]


def test_what_the_picture_does_not_cover_is_white_and_masked():
    tiles = tile(np.zeros((448, 224, 3), np.uint8))
    crop, mask = tiles.pixels[1], tiles.mask[1]
    assert bool((crop[:, :, :224] == -1).all())
    assert bool((crop[:, :, 224:] == 1).all())
    assert bool((mask[:, :16] == 1).all())
    assert bool((mask[:, 16:] == 0).all())
    assert bool((tiles.mask[0] == 1).all())  # the global view shows the white


def test_values_lie_between_minus_one_and_one():
    tiles = tile(np.random.default_rng(1).integers(0, 256, (100, 900, 3), dtype=np.uint8))
    assert float(tiles.pixels[1:].min()) >= -1
    assert float(tiles.pixels[1:].max()) <= 1
    assert tiles.pixels.dtype == torch.float32


def test_read_only_memory_is_left_alone():
    picture = np.random.default_rng(2).integers(0, 256, (30, 50, 3), dtype=np.uint8)
    before = picture.copy()
    picture.flags.writeable = False
    tile(picture)
    assert np.array_equal(picture, before)


@pytest.mark.parametrize("size", [(1, 1000), (1000, 1), (2, 30_000), (20_000, 10), (1, 46)])
def test_a_line_is_widened_with_white_rather_than_refused(size):
    height, width = size
    wide_height, wide_width = widened(height, width)
    assert (wide_height, wide_width) != (height, width)
    plan = layout(wide_height, wide_width)
    assert min(plan.height, plan.width) >= tiler.MIN_SIDE_PX


def test_a_widened_line_still_shows():
    tiles = tile(np.zeros((1, 1000, 3), np.uint8))
    assert float(tiles.pixels[1:].min()) < 0.5


@given(height=sides, width=sides, most=crops)
def test_every_size_has_a_sound_layout(height, width, most):
    height, width = widened(height, width, most)
    plan = layout(height, width, most)
    assert 1 <= plan.columns * plan.rows <= most
    grid_height, grid_width = plan.rows * tiler.CROP_PX, plan.columns * tiler.CROP_PX
    assert tiler.MIN_SIDE_PX <= plan.height <= grid_height
    assert tiler.MIN_SIDE_PX <= plan.width <= grid_width
    assert plan.height >= grid_height - 1 or plan.width >= grid_width - 1
    across, down = plan.patches()
    assert 1 <= across <= plan.columns * tiler.PATCHES
    assert 1 <= down <= plan.rows * tiler.PATCHES
    assert 273 < plan.tokens <= 273 + 272 * most + 16 * most


@given(height=sides, width=sides)
def test_only_what_the_reference_refuses_is_widened(height, width):
    plan = layout(height, width)
    refused = min(plan.height, plan.width) < tiler.MIN_SIDE_PX
    assert (widened(height, width) != (height, width)) == refused


@settings(max_examples=40, deadline=None)
@given(height=st.integers(1, 500), width=st.integers(1, 500), most=st.integers(1, 4))
def test_every_small_picture_is_tiled_as_its_mask_says(height, width, most):
    tiles = tile(white(height, width), most)
    n = len(tiles.pixels)
    assert tiles.pixels.shape == (n, 3, 448, 448)
    assert tiles.mask.shape == (n, 32, 32)
    assert n == 1 + (tiles.height // 448) * (tiles.width // 448)
    # What the model itself counts in the mask, crop by crop.
    rows, columns = tiles.height // 448, tiles.width // 448
    seen = tiles.mask[1:, ::2, ::2].reshape(rows, columns, 16, 16).transpose(1, 2)
    seen = seen.reshape(rows * 16, columns * 16)
    down, across = int(seen[:, 0].sum()), int(seen[0].sum())
    assert tiles.tokens == 273 + down * (across + 1)
