"""How an engine wants its media prepared: what a decode process must know of a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from phi4d.prepared.clip import Clip, clip
from phi4d.prepared.mel import PUBLISHED, Mel
from phi4d.prepared.tiles import MAX_CROPS, Tiles, layout, tile, widened


@dataclass(frozen=True, slots=True)
class Preparation:
    """The settings of an engine's tiler and feature extractor."""

    max_crops: int = MAX_CROPS
    """of a picture, without the global view"""
    mel: Mel = PUBLISHED

    def picture(self, picture: NDArray[np.uint8] | Image.Image) -> Tiles:
        """A picture made ready; see `phi4d.prepared.tiles.tile`."""
        return tile(picture, self.max_crops)

    def looked_at(self, height: int, width: int) -> int:
        """The pixels of a picture of that size once it is on its grid."""
        plan = layout(*widened(height, width, self.max_crops), self.max_crops)
        return plan.height * plan.width

    def sound(self, samples: NDArray[np.float32]) -> Clip:
        """A stretch of sound made ready; see `phi4d.prepared.clip.clip`."""
        return clip(samples, self.mel)

    def to_json(self) -> dict[str, Any]:
        """It as JSON has it; `from_json` gives it back."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Preparation:
        """What `to_json` made."""
        return cls(value["max_crops"], Mel(**value["mel"]))
