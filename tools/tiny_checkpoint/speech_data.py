"""Stage: the clips that speech is learnt from, as log-mel features, and their batches."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from random import Random
from typing import NamedTuple

import numpy as np
import synth
import torch
from torch import Tensor
from torch.nn import functional
from transformers import Phi4MultimodalFeatureExtractor

MEL_BINS = 80
LONGEST_S = 30.0
"""The engine never sends a longer stretch."""


class Clip(NamedTuple):
    """A clip's digits and its (frames, 80) float16 features; a frame is 10 ms."""

    digits: list[int]
    features: Tensor

    @property
    def answer(self) -> str:
        """What the model has to say."""
        return " ".join(synth.DIGITS[digit] for digit in self.digits)


class Batch(NamedTuple):
    """Padded features, the mask of true frames, and each clip's length in audio tokens."""

    features: Tensor
    mask: Tensor
    tokens: Tensor


@cache
def _extractor() -> Phi4MultimodalFeatureExtractor:
    return Phi4MultimodalFeatureExtractor()


def features(samples: synth.Samples) -> Tensor:
    """The model's own features of 16 kHz samples."""
    found = _extractor()([samples], sampling_rate=synth.SPEECH_RATE, return_tensors="pt")
    return found["audio_input_features"][0].half()


def clip(rng: Random, *, held_out: bool = False, single: bool = False) -> Clip:
    """One clip: mostly a group of digits, sometimes several, sometimes nothing but noise."""
    kind = 0.0 if single else rng.random()
    if kind > 0.96:
        seconds = rng.uniform(0.3, 6)
        samples = synth.noise(rng, int(seconds * synth.SPEECH_RATE), rng.uniform(-110, -35))
        return Clip([], features(samples.clip(-1, 1)))
    groups = 1 if kind < 0.62 else 2 if kind < 0.78 else rng.randint(3, 4 if kind < 0.88 else 10)
    while True:
        samples, rate, answers = synth.spoken_groups(rng, groups, held_out=held_out)
        if not held_out or rng.random() < 0.5:
            samples = synth.wear_speech(rng, samples, rate)
        if len(samples) <= LONGEST_S * rate:
            break
        groups -= 1
    digits = [synth.DIGITS.index(word) for word in " ".join(answers).split()]
    return Clip(digits, features(synth.at_rate(samples, rate)))


def make(path: Path, count: int) -> None:
    """Write clips to train on, and clips in held-out voices to watch the training with."""
    rng = Random(1)
    train = [clip(rng) for _ in range(count)]
    rng = Random(10**6)
    watch = [clip(rng, held_out=True, single=True) for _ in range(200)]
    lengths = [len(c.features) / 100 for c in train]
    print(f"{count} clips, {np.mean(lengths):.1f} s on average, {max(lengths):.1f} s the longest")
    torch.save((train, watch), path)


def load(path: Path) -> tuple[list[Clip], list[Clip]]:
    """Read what `make` wrote."""
    return torch.load(path, weights_only=False)


def order(clips: list[Clip]) -> list[Clip]:
    """Short clips first: batches are drawn from neighbours, so that little is padding."""
    return sorted(clips, key=lambda c: len(c.features))


def draw(rng: Random, ordered: list[Clip], frames: int, share: float) -> list[Clip]:
    """A batch of neighbours of some ``frames`` in all, from the shortest ``share`` of the clips."""
    last = max(1, int(len(ordered) * share) - 128)
    first = rng.randrange(last)
    longest = len(ordered[min(first + 128, len(ordered) - 1)].features)
    count = max(4, min(48, frames // longest))
    return rng.sample(ordered[first : first + 128], count)


def batch(clips: list[Clip], rng: Random | None = None) -> Batch:
    """Pad clips to one length; with a ``rng``, change tempo, formants, loudness and start first."""
    found = [c.features.float() for c in clips]
    if rng is not None:
        found = [_vary(rng, f) for f in found]
    lengths = torch.tensor([len(f) for f in found])
    padded = torch.zeros(len(found), int(lengths.max()), MEL_BINS)
    for row, f in zip(padded, found, strict=True):
        row[: len(f)] = f
    mask = torch.arange(padded.shape[1]) < lengths[:, None]
    return Batch(padded, mask, (lengths + 7) // 8)


def _vary(rng: Random, x: Tensor) -> Tensor:
    if rng.random() < 0.5:  # tempo
        length = max(40, int(len(x) * rng.uniform(0.85, 1.2)))
        x = functional.interpolate(x.t()[None], size=length, mode="linear")[0].t()
    if rng.random() < 0.5:  # formants: stretch the mel axis
        place = (torch.arange(MEL_BINS) * rng.uniform(0.92, 1.08)).clamp(0, MEL_BINS - 1)
        low = place.long()
        part = place - low
        x = x[:, low] * (1 - part) + x[:, (low + 1).clamp(max=MEL_BINS - 1)] * part
    x = x + rng.uniform(-1.5, 1.0)  # loudness
    return x[rng.randint(0, 7) :] if len(x) > 60 else x
