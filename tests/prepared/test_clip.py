from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from phi4d.prepared.clip import Clip, clip
from phi4d.prepared.mel import Mel
from phi4d.prepared.preparation import Preparation

LOUD = 0.5


def noise(samples: int, loudness: float = LOUD) -> np.ndarray:
    return np.random.default_rng(samples).normal(0, loudness, samples).astype(np.float32)


def reference(samples: np.ndarray, **changed: float) -> tuple[np.ndarray, int]:
    """What transformers' own extractor makes of it, and the tokens."""
    from transformers import Phi4MultimodalFeatureExtractor

    made = Phi4MultimodalFeatureExtractor(**changed)(
        samples, sampling_rate=16_000, return_tensors="pt"
    )
    return made["audio_input_features"][0].numpy(), int(made["audio_embed_sizes"][0])


@settings(max_examples=25, deadline=None)
@given(samples=st.integers(400, 40_000), loudness=st.floats(1e-6, 1.0))
def test_features_equal_the_references_to_float32s_rounding(samples: int, loudness: float) -> None:
    sound = noise(samples, loudness)
    theirs, tokens = reference(sound)
    ours = clip(sound)
    assert ours.tokens == tokens
    assert ours.features.shape == theirs.shape
    # Between 0 and 25; a sum of 257 products in float32 may differ by some units in its last place.
    assert np.abs(ours.features - theirs).max() <= 1e-5


@pytest.mark.parametrize(
    "changed",
    [
        {"hop_length": 200, "feature_size": 64},
        {"n_fft": 1024, "win_length": 600, "preemphasis": 0.9},
        {"mel_min_frequency": 50, "mel_max_frequency": 4000},
        {"audio_compression_rate": 4, "audio_downsample_rate": 3, "audio_feat_stride": 2},
    ],
)
def test_settings_of_a_checkpoint_are_those_of_the_reference(changed: dict[str, float]) -> None:
    sound = noise(20_000)
    theirs, tokens = reference(sound, **changed)
    ours = clip(sound, Mel(**changed))
    assert ours.tokens == tokens
    assert np.abs(ours.features - theirs).max() <= 1e-5


def test_a_second_is_98_frames_and_13_tokens() -> None:
    found = clip(noise(16_000))
    assert found.features.shape == (98, 80)
    assert found.features.dtype == np.float32
    assert found.tokens == 13
    assert len(found) == 97 * 160 + 400


def test_a_clip_shorter_than_a_window_is_followed_by_silence() -> None:
    short = noise(100)
    padded = np.concatenate([short, np.zeros(300, np.float32)])
    assert np.array_equal(clip(short).features, clip(padded).features)
    assert len(clip(np.zeros(0, np.float32)).features) == 1


def test_what_is_no_number_counts_as_silence_or_full_scale() -> None:
    odd, even = noise(8000), noise(8000)
    odd[100:103] = np.nan, np.inf, -np.inf
    even[100:103] = 0, 1, -1
    assert np.array_equal(clip(odd).features, clip(even).features)
    assert np.isnan(odd[100])


@pytest.mark.parametrize(
    "features",
    [
        np.zeros((0, 80), np.float32),
        np.zeros((5, 79), np.float32),
        np.zeros((5, 80), np.float64),
        np.zeros(80, np.float32),
    ],
)
def test_what_are_no_features_is_refused(features: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"\(frames, 80\) float32 features were expected, found"):
        Clip(features)


def test_a_preparation_crosses_over_as_json() -> None:
    preparation = Preparation(12, Mel(hop_length=80))
    assert Preparation.from_json(preparation.to_json()) == preparation
    assert len(preparation.sound(noise(16_000)).features) == 196
    assert preparation.picture(np.zeros((3000, 4000, 3), np.uint8)).crops <= 12
