"""Upstream faults D to H, which the engine avoids rather than corrects.

Each is shown on the installed transformers, so that a release which mends it is noticed: what the
engine does to avoid it can then go. After it stands that the engine avoids it.
"""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch
from enginekit import (
    AUDIO_ID,
    CHECKPOINT,
    DESCRIBE,
    IMAGE_ID,
    clip,
    from_reference,
    long_clip,
    mended,
    needs_reference,
    noise,
)
from transformers import Phi4MultimodalForCausalLM

from phi4d.engine import lane
from phi4d.engine.pixels import mask, pixels
from phi4d.job import FinishReason, Kind, Request, Sampling
from phi4d.prepared.tiles import tile

SHORT = 4096
"""tokens up to which the short rotary scaling holds"""


@pytest.fixture
def endless(engine, monkeypatch):
    """The engine without an end to its answers but their limits."""
    monkeypatch.setattr(engine._tokens, "stop", frozenset())
    return engine


def grey():
    """A picture of one crop, as the model takes it."""
    tiles = tile(np.full((448, 448, 3), 128, np.uint8))
    return {
        "image_pixel_values": pixels(tiles)[None],
        "image_sizes": torch.tensor([[tiles.height, tiles.width]]),
        "image_attention_mask": mask(tiles)[None],
    }, tiles.tokens


def one_at_a_time(engine, requests):
    return [engine.generate([request])[0] for request in requests]


def test_d_upstream_forgets_the_prompt_when_it_crosses_4096_tokens(upstream):
    ids = torch.randint(10, 400, (1, SHORT - 1), generator=torch.Generator().manual_seed(0))
    done = upstream.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=4,
        min_new_tokens=4,
        do_sample=False,
        output_logits=True,
        return_dict_in_generate=True,
    )
    right = upstream(done.sequences[:, :-1], logits_to_keep=1).logits[0, -1]
    apart = float((done.logits[-1][0] - right).abs().max())
    assert apart > 1e-1, mended("D", "the cap of an answer in `Phi4Engine._prompt`")


@pytest.mark.parametrize(
    ("tokens", "answered"), [(SHORT - 6, 7), (SHORT, 1), (SHORT + 1, 9), (SHORT - 96, 9)]
)
def test_d_avoided_an_answer_does_not_cross_4096_tokens(endless, tokens, answered):
    (done,) = endless.generate([long_clip(endless, tokens, 9)])
    assert done.prompt_tokens == tokens
    assert done.new_tokens == answered
    assert done.finish_reason is FinishReason.LENGTH


def test_d_avoided_a_row_that_reaches_4096_tokens_leaves_the_others_alone(endless):
    requests = [long_clip(endless, SHORT - 2, 9), clip(2.0, max_new_tokens=20)]
    together = endless.generate(requests)
    assert together == one_at_a_time(endless, requests)
    assert [done.new_tokens for done in together] == [3, 20]


def test_e_upstream_crashes_on_a_media_id_that_it_generates(upstream):
    media, count = grey()
    ids = torch.full((1, count), IMAGE_ID)

    def generate(token):
        upstream.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=2,
            do_sample=False,
            prefix_allowed_tokens_fn=lambda row, so_far: [token],
            **media,
        )

    generate(IMAGE_ID + 20)  # any other goes well
    try:
        generate(IMAGE_ID)
    except (AttributeError, IndexError, RuntimeError):  # which, depends on what is passed on
        return
    pytest.fail(mended("E", "`never` of the `Chooser`"))


def test_e_avoided_media_ids_are_not_answered_where_the_model_likes_them_best(engine, monkeypatch):
    drawn = dataclasses.replace(clip(1.0, max_new_tokens=9), sampling=Sampling(1.0, 1.2))
    asked = [clip(1.0, max_new_tokens=9), drawn]
    before = engine.generate(asked)
    forward = Phi4MultimodalForCausalLM.forward

    def likes_media(self, *args, **options):
        out = forward(self, *args, **options)
        out.logits[..., [IMAGE_ID, AUDIO_ID]] = 1e9
        return out

    monkeypatch.setattr(Phi4MultimodalForCausalLM, "forward", likes_media)
    assert engine.generate(asked) == before


@pytest.fixture(scope="module")
def processor():
    """What transformers' processor knows and makes of a picture and a clip."""
    return json.loads(from_reference("processor_reference.py", CHECKPOINT, DESCRIBE))


@needs_reference
def test_f_upstreams_processor_drops_its_chat_template(processor):
    assert processor["tokenizers"], "the checkpoint has none to drop"
    assert processor["template"] is None, mended("F", "the prompt's format in `Tokens`")


@needs_reference
@pytest.mark.parametrize(
    "media", [np.full((480, 640, 3), 128, np.uint8), np.zeros(16_000, np.float32)]
)
def test_f_avoided_the_prompt_is_the_processors_by_the_template(
    engine, processor, monkeypatch, media
):
    kind = Kind.IMAGE if media.ndim == 3 else Kind.AUDIO
    prompts, embedding = [], lane.Embedding

    def spy(model, given, most):
        prompts.extend(given)
        return embedding(model, given, most)

    monkeypatch.setattr(lane, "Embedding", spy)
    engine.generate([Request(kind, DESCRIBE, media, max_new_tokens=1)])
    assert [prompt.ids for prompt in prompts] == [processor["ids"][kind]]


def test_g_upstream_projects_audio_otherwise_beside_a_picture(upstream):
    tower = upstream.model.embed_tokens_extend
    media, count = grey()
    ids = torch.full((2, count), upstream.config.pad_token_id)
    ids[0], ids[1, :5] = IMAGE_ID, AUDIO_ID
    embeds = upstream.model.embed_tokens(ids)
    # The demo's two projections are alike; a trained model's are not.
    tower.audio_embed.down_proj_for_vision_speech.bias.add_(1)
    audio = {
        "audio_input_features": torch.rand(1, 40, 80, generator=torch.Generator().manual_seed(0)),
        "audio_embed_sizes": torch.tensor([5]),
    }
    mixed = tower(ids, embeds, **media, **audio)
    alone = tower(ids[1:], embeds[1:], **audio)
    apart = float((mixed[1] - alone[0]).abs().max())
    assert apart > 1e-3, mended("G", "one kind a batch, in `check_requests` and `Turns.batch`")


def test_g_avoided_a_batch_of_two_kinds_is_refused(engine):
    with pytest.raises(ValueError, match="requests of one kind were expected, found audio and"):
        engine.generate([noise(9, 9), clip(0.5)])


def test_h_upstream_lets_a_long_row_change_the_rotary_scaling_of_short_ones(upstream):
    positions = torch.arange(SHORT + 1)
    rotate, x = upstream.model.rotary_emb, torch.zeros(1)
    alone, _ = rotate(x, positions[None, :100])
    beside, _ = rotate(x, positions[None])
    apart = float((alone - beside[:, :100]).abs().max())
    assert apart > 1e-2, mended("H", "the lanes of longer prompts in `Loop`")


def test_h_upstreams_step_lies_above_4096_tokens(upstream):
    rotate, x = upstream.model.rotary_emb, torch.zeros(1)
    alone, _ = rotate(x, torch.arange(100)[None])
    beside, _ = rotate(x, torch.arange(SHORT)[None])
    assert torch.equal(alone, beside[:, :100])


def test_h_avoided_prompts_over_4096_tokens_in_a_batch_equal_one_at_a_time(endless):
    requests = [
        clip(2.0, max_new_tokens=24),
        long_clip(endless, SHORT + 104, 9),
        clip(1.0, 1, max_new_tokens=5),
    ]
    together = endless.generate(requests)
    assert together == one_at_a_time(endless, requests)
    assert [done.new_tokens for done in together] == [24, 9, 5]
