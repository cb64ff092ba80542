"""From a picture to the crops that the vision tower takes: arithmetic and resizing, no model.

It stands in for transformers' ``Phi4MultimodalImageProcessor``, which needs torchvision, and equals
it number for number (``tests/engine/test_tiler.py``). It must not read files or know prompts.

The picture is laid on a grid of 448-pixel crops: as many as it spans, or, past the limit, the grid
whose shape comes closest. It is scaled to touch the grid's edges, white fills the rest, and a
global view of 448² goes before the crops. Every number below is the reference's.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from platform import machine
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.nn.functional import interpolate, pad

from phi4d.job import CROP_PX

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

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
class Tiles:
    """A picture as the vision tower takes it. The tensors are on the CPU, float32."""

    pixels: Tensor
    """(1 + crops, 3, 448, 448) in [-1, 1]: the global view, then the crops row by row"""
    mask: Tensor
    """(1 + crops, 32, 32): 1 where a patch holds some of the picture, 0 in the white"""
    height: int
    """pixels of the padded picture, a multiple of 448"""
    width: int
    """pixels of the padded picture, a multiple of 448"""
    tokens: int
    """places that the picture takes in the prompt"""


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


def tile(picture: NDArray[np.uint8], max_crops: int = MAX_CROPS) -> Tiles:
    """Cut a picture into crops.

    Args:
        picture: (height, width, 3) RGB, any size from one pixel on. One that is too long and thin
            for the model is first widened with white.
        max_crops: the most crops, without the global view; each costs up to 272 tokens.
    """
    # A copy, as the picture may be read-only memory, which torch cannot mark as such.
    image = torch.from_numpy(np.array(picture.transpose(2, 0, 1), order="C"))
    height, width = widened(image.shape[1], image.shape[2], max_crops)
    image = pad(image, (0, width - image.shape[2], 0, height - image.shape[1]), value=255)
    plan = layout(height, width, max_crops)

    if image.shape[1:] != (plan.height, plan.width):
        image = _shrink_or_grow(image, plan.height, plan.width)
    right, below = plan.columns * CROP_PX - plan.width, plan.rows * CROP_PX - plan.height
    image = pad(image, (0, right, 0, below), value=255)
    pixels = image.to(torch.float32).sub_(127.5).div_(127.5)

    view = pixels[None]
    if (plan.rows, plan.columns) != (1, 1):
        view = interpolate(view, (CROP_PX, CROP_PX), mode="bicubic", align_corners=False)
    crops = pixels.reshape(3, plan.rows, CROP_PX, plan.columns, CROP_PX)
    crops = crops.permute(1, 3, 0, 2, 4).reshape(-1, 3, CROP_PX, CROP_PX)

    across, down = plan.patches()
    mask = torch.zeros(plan.rows * PATCHES, plan.columns * PATCHES)
    mask[:down, :across] = 1
    mask = mask.reshape(plan.rows, PATCHES, plan.columns, PATCHES).transpose(1, 2)
    mask = torch.cat([torch.ones(1, PATCHES, PATCHES), mask.reshape(-1, PATCHES, PATCHES)])

    height, width = pixels.shape[1:]
    return Tiles(torch.cat([view, crops]), mask, height, width, plan.tokens)


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


def _shrink_or_grow(image: Tensor, height: int, width: int) -> Tensor:
    """Resize (3, h, w) uint8 by antialiased bilinear interpolation, as torchvision does it.

    On processors with vector units torchvision works in 8-bit integers, elsewhere in floats; the
    two differ by one level here and there, so the same choice is made.
    """
    native = torch.backends.cpu.get_cpu_capability() in {"AVX2", "AVX512"} or machine() in {
        "aarch64",
        "arm64",
    }
    source = image[None] if native else image[None].to(torch.float32)
    resized = interpolate(
        source, (height, width), mode="bilinear", align_corners=False, antialias=True
    )
    return (resized if native else resized.round_().to(torch.uint8))[0]
