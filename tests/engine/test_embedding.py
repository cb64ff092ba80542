"""Towers in turns: what they make of a picture or a clip is the same in whatever company."""

from __future__ import annotations

from unittest import mock

import pytest
import torch
from enginekit import clip, noise
from hypothesis import given
from hypothesis import strategies as st

from phi4d.engine import embedding
from phi4d.engine.embedding import CLIP_WORK, CROP_WORK, Embedding
from phi4d.engine.grouping import evenly
from phi4d.engine.phi4 import ADAPTER
from phi4d.engine.pixels import features, mask, pixels

PICTURES = [(600, 900), (448, 448), (1000, 1500), (90, 700), (5, 5)]
SECONDS = (1.0, 3.0, 3.1, 0.1, 41.0, 9.0, 44.0)


def prompts(engine, requests):
    return [engine._prompt(engine._loaded, request) for request in requests]


@pytest.fixture(scope="module")
def pictures(engine):
    return prompts(engine, [noise(*size, seed) for seed, size in enumerate(PICTURES)])


@pytest.fixture(scope="module")
def clips(engine):
    return prompts(engine, [clip(seconds, seed) for seed, seconds in enumerate(SECONDS)])


@torch.inference_mode()
def embedded(engine, kind, them, most=10_000):
    """Their embeddings without padding, and the calls of the tower."""
    made = Embedding(engine._loaded.use(ADAPTER[kind]), them, most)
    calls = len(made.turns)
    while made.turns:
        made.turn()
    return [row[: len(prompt.ids)] for row, prompt in zip(made.embeds, them, strict=True)], calls


@torch.inference_mode()
def by_upstream(engine, kind, prompt):
    """The embeddings of one prompt by the tower's own forward, corrected."""
    model = engine._loaded.use(ADAPTER[kind])
    towers, media = model.model.embed_tokens_extend, prompt.media
    ids = torch.tensor([prompt.ids])
    embeds = model.model.embed_tokens(ids)
    if kind == "image":
        return towers.image_embed(
            ids,
            embeds,
            image_pixel_values=pixels(media)[None],
            image_sizes=torch.tensor([[media.height, media.width]]),
            image_attention_mask=mask(media)[None],
        )[0]
    return towers.audio_embed(
        ids,
        embeds,
        audio_input_features=features(media)[None],
        audio_embed_sizes=[media.tokens],
        audio_attention_mask=torch.ones(1, len(media.features), dtype=torch.bool),
    )[0]


def same(one, other):
    """To float32 rounding, on a scale of 2."""
    return torch.allclose(one, other, rtol=0, atol=2e-5)


@pytest.mark.parametrize("most", [1, 3 * CROP_WORK, 10_000])
def test_pictures_share_calls_of_the_tower_and_are_seen_as_alone(engine, pictures, most):
    # when crops of all of them go through the tower, so many at a time
    together, calls = embedded(engine, "image", pictures, most)
    # then each picture is what upstream makes of it alone
    for prompt, made in zip(pictures, together, strict=True):
        assert same(made, by_upstream(engine, "image", prompt))
    # and there are no more calls than such as have a mask and such as have none
    crops = sum(1 + prompt.media.crops for prompt in pictures)
    assert calls <= -(-crops // max(1, most // CROP_WORK)) + 1


def test_crops_that_are_partly_white_have_calls_of_their_own(engine, pictures):
    seen, calls = embedding._seen, []

    def spy(tower, crops, masks, whole):
        calls.append((whole, masks.flatten(1).all(1).tolist()))
        return seen(tower, crops, masks, whole)

    with mock.patch.object(embedding, "_seen", spy):
        embedded(engine, "image", pictures)
    assert [whole for whole, _ in calls] == [True, False]
    for whole, masks in calls:
        assert set(masks) == {whole}


@pytest.mark.parametrize("most", [1, 40 // CLIP_WORK, 10_000])
def test_clips_share_calls_of_the_tower_and_are_heard_as_alone(engine, clips, most):
    together, _ = embedded(engine, "audio", clips, most)
    for prompt, made in zip(clips, together, strict=True):
        assert same(made, by_upstream(engine, "audio", prompt))


def test_of_what_the_audio_tower_is_given_a_tenth_is_padding_at_most(engine):
    # given prompts of one length, with clips of very different ones
    them = prompts(engine, [clip(seconds) for seconds in (1, 1.05, 5, 5.2, 5.4, 20, 21, 29)])
    given_to = []

    def spy(_tower, clips):
        given_to.append([len(clip.features) for clip in clips])
        return heard(_tower, clips)

    heard = embedding._heard
    with mock.patch.object(embedding, "_heard", spy):
        embedded(engine, "audio", them)
    assert sum(map(len, given_to)) == len(them)
    assert len(given_to) == 4
    for frames in given_to:
        assert sum(frames) >= 0.9 * max(frames) * len(frames)


@given(count=st.integers(0, 10_000), most=st.integers(1, 5000))
def test_parts_are_few_and_much_alike(count, most):
    parts = evenly(count, most)
    assert sum(parts) == count
    assert len(parts) == -(-count // most)
    if parts:
        assert max(parts) <= most
        assert max(parts) - min(parts) <= 1
