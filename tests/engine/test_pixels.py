from __future__ import annotations

import numpy as np
import torch
from enginekit import from_reference, needs_reference
from hypothesis import given, settings
from hypothesis import strategies as st

from phi4d.engine.pixels import features, mask, pixels
from phi4d.prepared.clip import clip
from phi4d.prepared.tiles import tile


def white(height: int, width: int) -> np.ndarray:
    return np.full((height, width, 3), 255, np.uint8)


@needs_reference
def test_equals_the_reference_processor():
    """Number for number, but for resizing: see `tiler_reference.RESIZED`."""
    *differences, compared = from_reference("tiler_reference.py").splitlines()
    assert not differences
    assert compared.startswith("compared ")
    assert int(compared.split()[1]) > 1000


def test_a_picture_of_one_crop_is_its_own_global_view():
    picture = np.random.default_rng(0).integers(0, 256, (448, 448, 3), dtype=np.uint8)
    found = pixels(tile(picture))
    assert found.shape == (2, 3, 448, 448)
    assert torch.equal(found[0], found[1])
    restored = (found[1] * 127.5 + 127.5).round().to(torch.uint8).permute(1, 2, 0)
    assert torch.equal(restored, torch.from_numpy(picture))


def test_crops_lie_row_by_row():
    picture = white(896, 1344)
    for row in range(2):
        for column in range(3):
            corner = picture[row * 448 :, column * 448 :]
            corner[:448, :448] = 10 * (3 * row + column)
    tiles = tile(picture)
    found = pixels(tiles)
    assert found.shape == (7, 3, 448, 448)
    assert (tiles.height, tiles.width) == (896, 1344)
    shades = [round(float(crop.mean()) * 127.5 + 127.5) for crop in found[1:]]
    assert shades == [0, 10, 20, 30, 40, 50]


def test_what_the_picture_does_not_cover_is_white_and_masked():
    tiles = tile(np.zeros((448, 224, 3), np.uint8))
    crop, seen = pixels(tiles)[1], mask(tiles)
    assert bool((crop[:, :, :224] == -1).all())
    assert bool((crop[:, :, 224:] == 1).all())
    assert bool((seen[1, :, :16] == 1).all())
    assert bool((seen[1, :, 16:] == 0).all())
    assert bool((seen[0] == 1).all())  # the global view shows the white


def test_values_lie_between_minus_one_and_one():
    found = pixels(tile(np.random.default_rng(1).integers(0, 256, (100, 900, 3), dtype=np.uint8)))
    assert float(found[1:].min()) >= -1
    assert float(found[1:].max()) <= 1
    assert found.dtype == torch.float32


def test_read_only_memory_is_left_alone():
    picture = np.random.default_rng(2).integers(0, 256, (448, 448, 3), dtype=np.uint8)
    before = picture.copy()
    picture.flags.writeable = False
    pixels(tile(picture))
    assert np.array_equal(picture, before)
    sound = clip(np.zeros(8000, np.float32))
    sound.features.flags.writeable = False
    assert features(sound).shape == sound.features.shape


def test_a_widened_line_still_shows():
    assert float(pixels(tile(np.zeros((1, 1000, 3), np.uint8)))[1:].min()) < 0.5


@settings(max_examples=40, deadline=None)
@given(height=st.integers(1, 500), width=st.integers(1, 500), most=st.integers(1, 4))
def test_every_small_picture_is_tiled_as_its_mask_says(height, width, most):
    tiles = tile(white(height, width), most)
    found, seen = pixels(tiles), mask(tiles)
    n = 1 + tiles.crops
    assert found.shape == (n, 3, 448, 448)
    assert seen.shape == (n, 32, 32)
    assert bool((found == 1).all())
    # What the model itself counts in the mask, crop by crop.
    counted = seen[1:, ::2, ::2].reshape(tiles.rows, tiles.columns, 16, 16).transpose(1, 2)
    counted = counted.reshape(tiles.rows * 16, tiles.columns * 16)
    down, across = int(counted[:, 0].sum()), int(counted[0].sum())
    assert tiles.tokens == 273 + down * (across + 1)
