"""From a picture to what the vision tower sees of it: arithmetic and resizing, no model.

It stands in for transformers' ``Phi4MultimodalImageProcessor``, which needs torchvision, and equals
it but for the last bit of some samples (``tests/engine/test_pixels.py``): that one resizes by
torch, and Microsoft's own, like this, by Pillow. It must not read files or know prompts.

The picture is laid on a grid of 448-pixel crops: as many as it spans, or, past the limit, the grid
whose shape comes closest. It is scaled to touch the grid's edges, white fills the rest, and a
global view of 448² goes before the crops. Every number below is the reference's. White, view and
crops are the device's to make: here they would be bytes to carry.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from phi4d.job import CROP_PX

PATCH_PX = 14
PATCHES = CROP_PX // PATCH_PX
"""patches along a crop's side; the tower halves them, so a crop is 16 by 16 tokens"""
MAX_CROPS = 36
"""of the published model (``dynamic_hd`` in its processor's config)"""
MIN_SIDE_PX = 10
"""the reference refuses a picture whose scaled side is shorter"""
MAX_ASPECT = 40
"""what a picture that the reference refuses is widened to: 448 / 40 = 11 px, just enough"""


@dataclass(frozen=True, slots=True)
class Layout:
    """Where a picture of some size goes on the grid. All in pixels but for the grid."""

    columns: int
    rows: int
    width: int
    """of the scaled picture; the rest of the grid is white"""
    height: int

    @property
    def tokens(self) -> int:
        """Places that the picture takes in the prompt.

        The global view's 16 rows of 16, the picture's rows of patches in pairs, a line end after
        each of these rows, and one separator between the two.
        """
        across, down = (math.ceil(n / 2) for n in self.patches())
        return (16 + 1) * 16 + 1 + (across + 1) * down

    def patches(self) -> tuple[int, int]:
        """(across, down): the patches that are not wholly white."""
        across = self.columns * PATCHES - (self.columns * CROP_PX - self.width) // PATCH_PX
        down = self.rows * PATCHES - (self.rows * CROP_PX - self.height) // PATCH_PX
        return across, down


@dataclass(frozen=True, slots=True, eq=False)
class Tiles:
    """A picture scaled to its grid of crops.

    Raises:
        ValueError: the picture does not fit the grid.
    """

    picture: NDArray[np.uint8]
    """(height, width, 3) RGB, to be laid in the grid's upper left corner"""
    columns: int
    rows: int

    def __post_init__(self) -> None:
        shape, dtype = self.picture.shape, self.picture.dtype
        fits = dtype == np.uint8 and len(shape) == 3 and shape[2] == 3
        fits = fits and MIN_SIDE_PX <= shape[0] <= self.rows * CROP_PX
        if not (fits and MIN_SIDE_PX <= shape[1] <= self.columns * CROP_PX):
            raise ValueError(
                f"a picture for {self.columns} x {self.rows} crops was expected, found "
                f"{shape} {dtype}"
            )

    @property
    def crops(self) -> int:
        """How many, without the global view."""
        return self.columns * self.rows

    @property
    def height(self) -> int:
        """Pixels of the grid."""
        return self.rows * CROP_PX

    @property
    def width(self) -> int:
        """Pixels of the grid."""
        return self.columns * CROP_PX

    @property
    def layout(self) -> Layout:
        """Where the picture is on the grid."""
        height, width = self.picture.shape[:2]
        return Layout(self.columns, self.rows, width, height)

    @property
    def tokens(self) -> int:
        """Places that the picture takes in the prompt."""
        return self.layout.tokens

    def within(self, max_crops: int) -> Tiles:
        """It, or, if it has more crops than that, the same picture on a smaller grid."""
        return self if self.crops <= max_crops else tile(self.picture, max_crops)


def tile(picture: NDArray[np.uint8] | Image.Image, max_crops: int = MAX_CROPS) -> Tiles:
    """Scale a picture to its grid of crops.

    Args:
        picture: (height, width, 3) RGB, or Pillow's own; any size from one pixel on. One that is
            too long and thin for the model is first widened with white.
        max_crops: the most crops, without the global view; each costs up to 272 tokens.
    """
    image = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
    height, width = widened(image.height, image.width, max_crops)
    if (width, height) != image.size:
        wide = Image.new("RGB", (width, height), "white")
        wide.paste(image)
        image = wide
    plan = layout(height, width, max_crops)
    if image.size != (plan.width, plan.height):
        image = image.resize((plan.width, plan.height), Image.Resampling.BILINEAR)
    return Tiles(np.asarray(image), plan.columns, plan.rows)


def layout(height: int, width: int, max_crops: int = MAX_CROPS) -> Layout:
    """Choose the grid for a picture's size, and the size of the picture on it."""
    columns, rows = math.ceil(width / CROP_PX), math.ceil(height / CROP_PX)
    if columns * rows > max_crops:
        columns, rows = _closest_grid(height, width, max_crops)
    by_width, by_height = columns * CROP_PX / width, rows * CROP_PX / height
    if by_width < by_height:
        return Layout(columns, rows, columns * CROP_PX, int(height * by_width))
    return Layout(columns, rows, int(width * by_height), rows * CROP_PX)


def widened(height: int, width: int, max_crops: int = MAX_CROPS) -> tuple[int, int]:
    """The size of a picture with as much white as keeps its scaled sides at ten pixels or more.

    The reference raises for such a picture; a line one pixel high is still a picture to whoever
    dropped it. Other sizes come back as they are.
    """
    plan = layout(height, width, max_crops)
    if min(plan.height, plan.width) >= MIN_SIDE_PX:
        return height, width
    least = math.ceil(max(height, width) / MAX_ASPECT)
    return max(height, least), max(width, least)


def _closest_grid(height: int, width: int, max_crops: int) -> tuple[int, int]:
    """(columns, rows) whose shape is closest to the picture's.

    Of grids of equal shape the larger wins, if the picture has pixels for half of it.
    """
    best, best_difference = (1, 1), math.inf
    for columns, rows in _grids(max_crops):
        difference = abs(width / height - columns / rows)
        fills = width * height > 0.5 * CROP_PX * CROP_PX * columns * rows
        if difference < best_difference or (difference == best_difference and fills):
            best, best_difference = (columns, rows), difference
    return best


@lru_cache
def _grids(max_crops: int) -> list[tuple[int, int]]:
    """All (columns, rows) of at most that many crops, small ones first."""
    sides = range(1, max_crops + 1)
    grids = [(i, j) for i in sides for j in sides if i * j <= max_crops]
    return sorted(grids, key=lambda grid: grid[0] * grid[1])
