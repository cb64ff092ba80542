"""Upstream faults D, E, G and H, which the engine avoids rather than corrects.

They are shown on the installed transformers, so that a release which mends one is noticed: what
the engine does to avoid it can then be reconsidered.
"""

from __future__ import annotations

import pytest
import torch

from phi4d.engine.tiler import tile

SHORT = 4096
"""tokens up to which the short rotary scaling holds"""


@pytest.fixture
def tower(upstream):
    return upstream.model.embed_tokens_extend


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
    assert apart > 1e-1, "upstream has mended fault D: an answer may now cross 4,096 tokens"


def test_e_upstream_crashes_on_a_media_id_that_it_generated(upstream):
    tiles = tile(torch.zeros(448, 448, 3, dtype=torch.uint8).numpy())
    with pytest.raises((RuntimeError, IndexError), match=r"shape mismatch|cannot be broadcast"):
        upstream(
            torch.tensor([[upstream.config.vision_config.image_token_id]]),
            image_pixel_values=tiles.pixels[None],
            image_sizes=torch.tensor([[448, 448]]),
            image_attention_mask=tiles.mask[None],
        )


def test_g_a_picture_in_the_batch_changes_how_audio_is_projected(upstream, tower):
    tiles = tile(torch.zeros(448, 448, 3, dtype=torch.uint8).numpy())
    image_id = upstream.config.vision_config.image_token_id
    audio_id = upstream.config.audio_config.audio_token_id
    ids = torch.full((2, tiles.tokens), upstream.config.pad_token_id)
    ids[0], ids[1, :5] = image_id, audio_id
    embeds = upstream.model.embed_tokens(ids)
    # The demo's two projections are alike; a trained model's are not.
    tower.audio_embed.down_proj_for_vision_speech.bias.add_(1)
    audio = {
        "audio_input_features": torch.rand(1, 40, 80, generator=torch.Generator().manual_seed(0)),
        "audio_embed_sizes": torch.tensor([5]),
    }
    mixed = tower(
        ids,
        embeds,
        image_pixel_values=tiles.pixels[None],
        image_sizes=torch.tensor([[448, 448]]),
        image_attention_mask=tiles.mask[None],
        **audio,
    )
    alone = tower(ids[1:], embeds[1:], **audio)
    assert float((mixed[1] - alone[0]).abs().max()) > 1e-3, "upstream has mended fault G"


def test_h_a_long_row_changes_the_rotary_scaling_of_short_ones(upstream):
    positions = torch.arange(SHORT + 1)
    rotate, x = upstream.model.rotary_emb, torch.zeros(1)
    alone, _ = rotate(x, positions[None, :100])
    beside, _ = rotate(x, positions[None])
    apart = float((alone - beside[:, :100]).abs().max())
    assert apart > 1e-2, "upstream has mended fault H: long prompts may share a batch with short"


def test_h_the_step_lies_above_4096_tokens(upstream):
    rotate, x = upstream.model.rotary_emb, torch.zeros(1)
    alone, _ = rotate(x, torch.arange(100)[None])
    beside, _ = rotate(x, torch.arange(SHORT)[None])
    assert torch.equal(alone, beside[:, :100])
