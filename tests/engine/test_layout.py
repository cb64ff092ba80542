from __future__ import annotations

import json

import checkpoints
import pytest

from phi4d.engine.checkpoint import Adapter, read
from phi4d.engine.layout import Layout, layout_of, native_adapter_name, native_config, native_name

HEAD = "model.embed_tokens_extend."
IMAGE = HEAD + "image_embed."
AUDIO = HEAD + "audio_embed.encoder.encoders.7."
LAYER = "model.layers.3.mlp.down_proj."


@pytest.mark.parametrize(
    ("key", "native"),
    [
        # from the published index and transformers' own conversion
        (LAYER + "base_layer.weight", LAYER + "weight"),
        (LAYER + "lora_A.vision.weight", LAYER + "lora_A.vision.weight"),
        ("model.norm.weight", "model.norm.weight"),
        (AUDIO + "feed_forward_in.net.0.linear.bias", AUDIO + "feed_forward_in.gate_up_proj.bias"),
        (AUDIO + "feed_forward_out.net.2.weight", AUDIO + "feed_forward_out.down_proj.weight"),
        (AUDIO + "self_attn.linear_q.weight", AUDIO + "self_attn.q_proj.weight"),
        (AUDIO + "self_attn.linear_out.bias", AUDIO + "self_attn.o_proj.bias"),
        (AUDIO + "conv.glu.b1", AUDIO + "conv.glu.b1"),
        (IMAGE + "img_projection.0.weight", IMAGE + "img_projection_up.weight"),
        (IMAGE + "img_projection.2.bias", IMAGE + "img_projection_down.bias"),
        (IMAGE + "glb_GN", IMAGE + "global_img_feature_extensor"),
        (IMAGE + "sub_GN", IMAGE + "sub_img_feature_extensor"),
        (
            HEAD + "audio_embed.audio_projection.speech.0.weight",
            HEAD + "audio_embed.up_proj_for_speech.weight",
        ),
        (
            HEAD + "audio_embed.audio_projection.vision.2.bias",
            HEAD + "audio_embed.down_proj_for_vision_speech.bias",
        ),
    ],
)  # fmt: skip
def test_original_names_become_native_ones(key, native):
    assert native_name(key, Layout.ORIGINAL) == native
    assert native_name(native, Layout.CONVERTED) == native


def test_an_adapter_folders_names_become_native_ones():
    key = "base_model.model.model.layers.0.self_attn.o_proj.lora_B.weight"
    native = "model.layers.0.self_attn.o_proj.lora_B.speech.weight"
    assert native_adapter_name(key, "speech") == native


def test_the_original_configuration_says_what_the_native_one_says():
    adapters = {
        name: Adapter(rank, 2.0, checkpoints.TARGETS[name])
        for name, rank in checkpoints.RANKS.items()
    }
    original = checkpoints.original_config(checkpoints.REAL, adapters)
    assert layout_of(original) is Layout.ORIGINAL
    assert "audio_config" not in original
    native = native_config(json.loads(json.dumps(original)))
    assert layout_of(native) is Layout.CONVERTED
    for key, value in checkpoints.REAL.items():
        if key not in ("audio_config", "vision_config", "rope_parameters"):
            assert native[key] == value, key
    rope = checkpoints.REAL["rope_parameters"]
    assert native["rope_parameters"] == rope
    from transformers import Phi4MultimodalConfig

    assert (
        Phi4MultimodalConfig.from_dict(native).to_dict()
        == Phi4MultimodalConfig.from_dict(checkpoints.REAL).to_dict()
    )


def test_another_models_configuration_has_no_layout():
    assert layout_of({"model_type": "llama"}) is None
    assert layout_of({}) is None


def test_both_layouts_of_one_seed_are_one_model(tmp_path):
    sizes, names = set(), set()
    for layout in Layout:
        checkpoints.make(tmp_path / layout, checkpoints.small(), layout, ranks=RANKS)
        checkpoint = read(tmp_path / layout)
        assert checkpoint.layout is layout
        sizes.add(checkpoint.size)
        names.add(frozenset(checkpoint.tensors))
    assert len(sizes) == len(names) == 1


RANKS = {"vision": 4, "speech": 5}
