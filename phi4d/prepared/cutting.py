"""What media ask of a device's memory, and stretches of sound in shorter ones. Pure."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from itertools import pairwise
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from phi4d.job import CROP_PX, SAMPLE_RATE_HZ, Kind, Piece
from phi4d.prepared.clip import Clip
from phi4d.prepared.tiles import Tiles

if TYPE_CHECKING:
    from phi4d.job import Media

FULLNESS = 0.8
"""of the longest part allowed; the rest is room to move a cut to where it is quiet"""
FRAME = SAMPLE_RATE_HZ // 50
"""samples, 20 ms: the loudness of speech hardly changes within"""


def size(kind: Kind, media: Media) -> float:
    """What media ask of a device's memory: crops of a picture, or seconds of a recording.

    Of a picture as it was decoded, (height, width, 3): the crops that it spans, before any limit.
    """
    if isinstance(media, Tiles):
        return media.crops
    if kind is Kind.AUDIO or isinstance(media, Clip):
        return len(media) / SAMPLE_RATE_HZ
    rows, columns = (math.ceil(int(side) / CROP_PX) for side in media.shape[:2])
    return rows * columns


def parts(piece: Piece, seconds: int) -> list[Piece]:
    """Cut a stretch of a recording into parts that are not longer than so many seconds.

    The parts are about equally long; each cut is moved to the quietest 20 ms nearby, so that it
    parts words rather than a word. One that is short enough comes back whole.
    """
    sound = _Sound.of(piece.media)
    count, most = sound.count, sound.most(seconds)
    if count <= most:
        return [piece]
    n = math.ceil(count / (most * FULLNESS))
    # two neighbouring cuts may each move by this much, and the part between them is short enough
    reach = (most - math.ceil(count / n)) // 2
    cuts = [0, *(sound.quietest(i * count // n - reach, 2 * reach) for i in range(1, n)), count]
    times = [piece.start + cut * sound.step / SAMPLE_RATE_HZ for cut in cuts[:-1]]
    return [
        Piece(sound.stretch(begin, end), start, stop)
        for (begin, end), (start, stop) in zip(
            pairwise(cuts), pairwise([*times, piece.end]), strict=True
        )
    ]


class _Sound(ABC):
    """A stretch of sound that can be cut between any two of its steps.

    Attributes:
        count: how many steps there are.
        step: samples from one to the next.
    """

    count: int
    step: int

    @staticmethod
    def of(media: Media) -> _Sound:
        if isinstance(media, Clip):
            return _Frames(media)
        return _Samples(cast("NDArray[Any]", media))

    @abstractmethod
    def most(self, seconds: int) -> int:
        """The most steps of a part that is not longer than so many seconds."""

    @abstractmethod
    def quietest(self, begin: int, count: int) -> int:
        """Where among so many steps it is quietest for 20 ms."""

    @abstractmethod
    def stretch(self, begin: int, end: int) -> Media:
        """From one step to before another."""


class _Samples(_Sound):
    """Sound as it was decoded."""

    step = 1

    def __init__(self, samples: NDArray[Any]) -> None:
        self._samples = samples
        self.count = len(samples)

    def most(self, seconds: int) -> int:
        return seconds * SAMPLE_RATE_HZ

    def quietest(self, begin: int, count: int) -> int:
        frames = self._samples[begin : begin + count // FRAME * FRAME].reshape(-1, FRAME)
        quietest = int(np.argmin(np.square(frames, dtype=np.float64).sum(axis=1)))
        return begin + quietest * FRAME + FRAME // 2

    def stretch(self, begin: int, end: int) -> NDArray[Any]:
        return self._samples[begin:end]


class _Frames(_Sound):
    """Sound that is features already, of frames that overlap."""

    def __init__(self, clip: Clip) -> None:
        self._clip = clip
        self.count = len(clip.features)
        self.step = clip.mel.hop_length

    def most(self, seconds: int) -> int:
        mel = self._clip.mel
        return (seconds * SAMPLE_RATE_HZ - mel.win_length) // mel.hop_length + 1

    def quietest(self, begin: int, count: int) -> int:
        power = np.exp(self._clip.features[begin : begin + count]).sum(axis=1)
        around = max(1, FRAME // self.step)
        smooth = np.convolve(power, np.ones(around), mode="valid")
        return begin + int(np.argmin(smooth)) + around // 2

    def stretch(self, begin: int, end: int) -> Clip:
        return Clip(self._clip.features[begin:end], self._clip.mel)
