"""From sound to the mel features that the audio encoder takes: arithmetic, no model.

It stands in for transformers' ``Phi4MultimodalFeatureExtractor``, which needs torch, and equals it
to float32's rounding (``tests/prepared/test_clip.py``). Each clip is worked out alone: the
reference changes frames at the end of the shorter clips of a batch.

Overlapping windows of 25 ms, 10 ms apart, are emphasised in their high frequencies, transformed,
and summed up in bands that are evenly spaced on the mel scale. Every number is the reference's.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from phi4d.job import SAMPLE_RATE_HZ
from phi4d.prepared.mel import PUBLISHED, Mel

_FULL_SCALE = 32768
"""features are those of 16-bit samples"""
_FRAMES = 512
"""that are worked out at a time: some megabytes, which stay in the processor's cache"""


@dataclass(frozen=True, slots=True, eq=False)
class Clip:
    """A stretch of sound as the audio encoder takes it. Its length is that in samples.

    Raises:
        ValueError: these are no features.
    """

    features: NDArray[np.float32]
    """(frames, bands): logarithms of the power in each band"""
    mel: Mel = PUBLISHED

    def __post_init__(self) -> None:
        shape, dtype = self.features.shape, self.features.dtype
        fits = dtype == np.float32 and len(shape) == 2 and shape[0] > 0
        if not (fits and shape[1] == self.mel.feature_size):
            raise ValueError(
                f"(frames, {self.mel.feature_size}) float32 features were expected, found "
                f"{shape} {dtype}"
            )

    def __len__(self) -> int:
        return self.mel.samples(len(self.features))

    @property
    def tokens(self) -> int:
        """Places that the clip takes in the prompt, 80 ms each."""
        return self.mel.tokens(len(self.features))


def clip(samples: NDArray[np.float32], mel: Mel = PUBLISHED) -> Clip:
    """The features of a stretch of sound.

    Args:
        samples: (samples,) in [-1, 1], 16 kHz. A stretch shorter than a window is followed by
            silence. What is no number counts as silence: it would make every number of the answer
            none.
        mel: how.
    """
    samples = np.nan_to_num(samples, nan=0.0, posinf=1.0, neginf=-1.0)
    if len(samples) < mel.win_length:
        samples = np.pad(samples, (0, mel.win_length - len(samples)))
    windows = np.lib.stride_tricks.sliding_window_view(samples, mel.win_length)[:: mel.hop_length]
    features = np.empty((len(windows), mel.feature_size), np.float32)
    for start in range(0, len(windows), _FRAMES):
        features[start : start + _FRAMES] = _log_mel(windows[start : start + _FRAMES], mel)
    return Clip(features, mel)


def _log_mel(windows: NDArray[np.float32], mel: Mel) -> NDArray[np.float32]:
    """(frames, bands) of (frames, samples)."""
    before = np.concatenate((windows[:, :1], windows[:, :-1]), axis=1)
    emphasised = (windows - mel.preemphasis * before) * _FULL_SCALE
    spectrum = np.fft.rfft(np.hamming(mel.win_length) * emphasised, mel.n_fft)
    power = np.abs(spectrum.astype(np.complex64)) ** 2
    found: NDArray[np.float32] = np.log(np.maximum(power @ _bands(mel), 1))
    return found


@lru_cache(maxsize=4)
def _bands(mel: Mel) -> NDArray[np.float32]:
    """(frequencies, bands): how much of each frequency is in each band, triangles on the mel scale.

    The mel scale as Kaldi has it, 1127 ln(1 + f / 700).
    """
    low, high = (_mels(hz) for hz in (mel.mel_min_frequency, mel.mel_max_frequency))
    corners = np.linspace(low, high, mel.feature_size + 2)
    count = mel.n_fft // 2 + 1
    at = _mels(SAMPLE_RATE_HZ / (2 * (count - 1)) * np.arange(count))[:, None]
    widths = np.diff(corners)
    rising = (at - corners[:-2]) / widths[:-1]
    falling = (corners[2:] - at) / widths[1:]
    return np.maximum(0.0, np.minimum(rising, falling)).astype(np.float32)


def _mels(hz: float | NDArray[Any]) -> NDArray[np.float64]:
    return 1127.0 * np.log(1.0 + np.asarray(hz, np.float64) / 700.0)
