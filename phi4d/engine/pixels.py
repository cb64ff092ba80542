"""What the vision tower takes, made on its device from a picture that is on its grid.

Samples become numbers in [-1, 1] there, white fills the grid, the crops are cut out, and the global
view goes before them: all of it in place of four times as many bytes to carry.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn.functional import interpolate

from phi4d.engine.copies import brought, to_device
from phi4d.job import CROP_PX
from phi4d.prepared.tiles import PATCHES

if TYPE_CHECKING:
    from torch import Tensor

    from phi4d.prepared.clip import Clip
    from phi4d.prepared.tiles import Tiles

WHITE = 255


def pixels(tiles: Tiles, device: str = "cpu") -> Tensor:
    """(1 + crops, 3, 448, 448) float32 in [-1, 1]: the global view, then the crops row by row."""
    canvas = torch.full((tiles.height, tiles.width, 3), WHITE, dtype=torch.uint8, device=device)
    height, width = tiles.picture.shape[:2]
    canvas[:height, :width] = brought(tiles.picture, device)
    # Colours apart before they are made larger: the strides cost least so.
    whole = canvas.permute(2, 0, 1).contiguous().float().sub_(127.5).div_(127.5)
    found = torch.empty((1 + tiles.crops, 3, CROP_PX, CROP_PX), device=device)
    crops = whole.view(3, tiles.rows, CROP_PX, tiles.columns, CROP_PX).permute(1, 3, 0, 2, 4)
    found[1:].view(crops.shape).copy_(crops)
    if tiles.crops == 1:
        found[0] = found[1]
    else:
        size = (CROP_PX, CROP_PX)
        found[:1] = interpolate(whole[None], size, mode="bicubic", align_corners=False)
    return found


def mask(tiles: Tiles, device: str = "cpu") -> Tensor:
    """(1 + crops, 32, 32): 1 where a patch holds some of the picture, 0 in the white."""
    across, down = tiles.layout.patches()
    grid = torch.zeros(tiles.rows * PATCHES, tiles.columns * PATCHES)
    grid[:down, :across] = 1
    crops = grid.view(tiles.rows, PATCHES, tiles.columns, PATCHES).transpose(1, 2)
    view = torch.ones(1, PATCHES, PATCHES)
    return to_device(torch.cat([view, crops.reshape(-1, PATCHES, PATCHES)]), device)


def features(clip: Clip) -> Tensor:
    """(frames, bands) mel features, on the CPU."""
    return brought(clip.features, "cpu")
