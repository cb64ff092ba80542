"""Each upstream fault is shown on the installed transformers, then its correction.

When a test says that upstream has mended a fault, the correction can go, and its tests with it.
"""

from __future__ import annotations

import copy

import pytest
import torch
from enginekit import clip, mended, upstream_model
from transformers.models.phi4_multimodal import modeling_phi4_multimodal as modeling

from phi4d.engine import corrections
from phi4d.engine.pixels import features, mask, pixels
from phi4d.prepared.tiles import tile

UNFOLD = modeling.unfold_tensor
"""upstream's own: tests are collected before the first model is corrected"""
WINDOW = 500
"""encoder frames of 80 ms: 40 s"""


@pytest.fixture
def corrected(upstream):
    model = copy.deepcopy(upstream)
    corrections.correct(model)
    return model


def square_picture() -> tuple[torch.Tensor, torch.Tensor]:
    """Pixels and all-ones mask of a picture of one crop."""
    generator = torch.Generator().manual_seed(0)
    picture = torch.randint(0, 256, (448, 448, 3), generator=generator, dtype=torch.uint8)
    tiles = tile(picture.numpy())
    return pixels(tiles), mask(tiles).bool()


def seen(model) -> torch.Tensor:
    return model.model.embed_tokens_extend.image_embed.get_img_features(*square_picture())


def mel(engine, seconds: float, seed: int = 0) -> torch.Tensor:
    """(frames, 80) features of a clip."""
    return features(engine.preparation.sound(clip(seconds, seed).media))


def padded(clips: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    batch = torch.nn.utils.rnn.pad_sequence(clips, batch_first=True)
    lengths = torch.tensor([len(one) for one in clips])
    return batch, torch.arange(batch.shape[1]) < lengths[:, None]


def heard(model, clips: list[torch.Tensor]) -> list[torch.Tensor]:
    """The audio encoder's output for a batch, each clip cut at its own end."""
    encoder = model.model.embed_tokens_extend.audio_embed.encoder
    out = encoder(*padded(clips))
    return [row[: -(-len(one) // 8)] for row, one in zip(out, clips, strict=True)]


def distance(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).abs().max())


def test_a_upstream_encodes_square_pictures_causally(upstream):
    eager = upstream_model("eager")
    assert distance(seen(upstream), seen(eager)) > 1e-2, mended("A", "`attend_both_ways`")


def test_a_corrected_pictures_equal_eager_attention(corrected):
    assert distance(seen(corrected), seen(upstream_model("eager"))) < 1e-4


def test_b_upstream_hears_the_padding_of_a_batch(upstream, engine):
    clips = [mel(engine, 1.0, 1), mel(engine, 3.0, 2)]
    together = heard(upstream, clips)
    assert distance(together[0], heard(upstream, clips[:1])[0]) > 1e-3, mended(
        "B", "`mask_audio_padding`"
    )


def test_b_upstream_subsampling_alone_reads_the_padding(upstream, engine):
    """The half of the fault that a right attention mask would leave."""
    embed = upstream.model.embed_tokens_extend.audio_embed.encoder.embed
    one = mel(engine, 1.0, 1)
    batch, mask = padded([one, mel(engine, 3.0, 2)])
    # The encoder normalises before, so that padding is not zero when it comes here.
    together, _ = embed(batch - 8, mask)
    alone, _ = embed(one[None] - 8, mask[:1, : len(one)])
    assert distance(together[0, : alone.shape[1]], alone[0]) > 1e-3, mended(
        "B", "`mask_audio_padding`"
    )


def batch_equals_one_at_a_time(model, engine, seconds) -> bool:
    clips = [mel(engine, length, seed) for seed, length in enumerate(seconds)]
    alone = [heard(model, [one])[0] for one in clips]
    return all(
        distance(row, one) < 1e-4 for row, one in zip(heard(model, clips), alone, strict=True)
    )


@pytest.mark.parametrize(
    "seconds", [(1.0, 3.0), (0.03, 2.0, 5.0, 5.0), (2.005, 2.015, 2.085), (1.0, 39.99)]
)
def test_b_corrected_a_batch_equals_one_at_a_time(corrected, engine, seconds):
    assert batch_equals_one_at_a_time(corrected, engine, seconds)


def test_b_corrected_a_clip_alone_is_heard_as_upstream_hears_it(upstream, corrected, engine):
    """Nothing changes where upstream is right: one clip, below 40 s, without padding."""
    one = [mel(engine, 3.0)]
    assert distance(heard(corrected, one)[0], heard(upstream, one)[0]) < 1e-5


def test_c_upstream_crashes_on_a_batch_with_a_long_clip():
    frames = torch.zeros(2, 2 * WINDOW, 8)
    try:
        UNFOLD(frames, WINDOW)
    except RuntimeError:
        return
    pytest.fail(mended("C", "`unfold_windows`"))


@pytest.mark.parametrize("seconds", [(41.0, 3.0), (85.0, 40.0, 39.99)])
def test_c_corrected_a_batch_with_a_long_clip_equals_one_at_a_time(corrected, engine, seconds):
    assert batch_equals_one_at_a_time(corrected, engine, seconds)


def test_c_corrected_windows_follow_each_other():
    frames = torch.arange(2 * 7, dtype=torch.float32).reshape(2, 7, 1).expand(2, 7, 3)
    windows = corrections.unfold_windows(frames, 3)
    assert windows.shape == (4, 3, 3)
    assert windows[:, :, 0].tolist() == [[0, 1, 2], [3, 4, 5], [7, 8, 9], [10, 11, 12]]


def test_c_corrected_windows_equal_upstreams_for_one_clip():
    frames = torch.randn(1, 1100, 8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(corrections.unfold_windows(frames, WINDOW), UNFOLD(frames, WINDOW))


def test_correcting_twice_changes_nothing_more(corrected):
    before = [type(module) for module in corrected.modules()]
    corrections.correct(corrected)
    assert [type(module) for module in corrected.modules()] == before


def test_masked_subsampling_without_a_mask_is_upstreams(upstream, corrected, engine):
    batch = mel(engine, 1.0)[None]
    ours, _ = corrected.model.embed_tokens_extend.audio_embed.encoder.embed(batch, None)
    theirs, _ = upstream.model.embed_tokens_extend.audio_embed.encoder.embed(batch, None)
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_window_of_nothing_but_padding_stays_finite_in_half_precision(corrected, engine, dtype):
    model = corrected.to(dtype)
    clips = [mel(engine, 41.0).to(dtype), mel(engine, 1.0).to(dtype)]
    assert all(bool(row.isfinite().all()) for row in heard(model, clips))
