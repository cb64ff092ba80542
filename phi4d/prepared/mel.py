"""How features are made of sound, as a checkpoint's configuration says. No arithmetic, no numpy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any


@dataclass(frozen=True, slots=True)
class Mel:
    """How features are made: the settings of the reference's extractor, and their defaults."""

    feature_size: int = 80
    """bands"""
    hop_length: int = 160
    """samples from one frame to the next"""
    n_fft: int = 512
    win_length: int = 400
    """samples of a frame"""
    preemphasis: float = 0.97
    mel_min_frequency: float = 0.0
    mel_max_frequency: float = 7690.0
    audio_compression_rate: int = 8
    audio_downsample_rate: int = 1
    audio_feat_stride: int = 1

    def tokens(self, frames: int) -> int:
        """Places that so many frames take in the prompt."""
        encoded = -(-frames * self.audio_feat_stride // self.audio_compression_rate)
        return -(-encoded // self.audio_downsample_rate)

    def samples(self, frames: int) -> int:
        """Samples that so many frames were made of, without those that were too few for one."""
        return (frames - 1) * self.hop_length + self.win_length


PUBLISHED = Mel()
"""of the published model"""


def mel_of(settings: Mapping[str, Any]) -> Mel:
    """How features are made by a checkpoint's settings of its extractor; others are left aside.

    Raises:
        ValueError: a setting that is no number, or with which no features can be made.
    """
    known = {field.name: field.default for field in fields(Mel)}
    found = {key: value for key, value in settings.items() if key in known}
    for key, value in found.items():
        kind = int if isinstance(known[key], int) else (int, float)
        if not isinstance(value, kind) or value < 0 or (kind is int and value < 1):
            raise ValueError(f"{key}: a positive number was expected, found {value!r}")
    mel = Mel(**found)
    if not mel.win_length <= mel.n_fft:
        raise ValueError(f"win_length: {mel.win_length} is more than n_fft, {mel.n_fft}")
    if not mel.mel_min_frequency < mel.mel_max_frequency:
        raise ValueError(
            f"mel_min_frequency: {mel.mel_min_frequency} is not below mel_max_frequency, "
            f"{mel.mel_max_frequency}"
        )
    return mel
