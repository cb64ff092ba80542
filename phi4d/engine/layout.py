"""The two layouts in which Phi-4-multimodal is published, and how both become the native one. Pure.

- *original*, the hub's main revision: made for code that comes with the weights, which phi4d never
  runs. The adapters are inside the model's own files.
- *converted*, revision refs/pr/70: the names of transformers' own classes, adapters in folders.

A stored tensor's *native name* is that of transformers' ``Phi4MultimodalForCausalLM``; an adapter's
is ``MODULE.lora_A.ADAPTER.weight`` or ``MODULE.lora_B.ADAPTER.weight``, in both layouts.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from enum import StrEnum
from typing import Any

MODEL_TYPE = "phi4_multimodal"
"""what transformers calls its own class; the original layout says ``phi4mm``"""
ADAPTERS = {"vision": "vision-lora", "speech": "speech-lora"}
"""adapter's name to its folder below the model's"""
IMAGE_ID, AUDIO_ID = 200010, 200011
"""stand for media in a prompt: <|endoftext10|> and <|endoftext11|> of the original tokenizer"""


class Layout(StrEnum):
    """How a checkpoint names its tensors and its configuration."""

    ORIGINAL = "original"
    CONVERTED = "converted"


def layout_of(config: Mapping[str, Any]) -> Layout | None:
    """The layout that a ``config.json`` belongs to; None if it is another model's."""
    types = {"phi4mm": Layout.ORIGINAL, MODEL_TYPE: Layout.CONVERTED}
    return types.get(str(config.get("model_type")))


_AUDIO = r"(model\.embed_tokens_extend\.audio_embed\.)"
_AUDIO_LAYER = _AUDIO[:-1] + r"encoder\.encoders\.\d+\.)"
_IMAGE = r"(model\.embed_tokens_extend\.image_embed\.)"
_RENAMED = [
    (re.compile(pattern), native)
    for pattern, native in (
        (_AUDIO_LAYER + r"(feed_forward_(?:in|out)\.)net\.0\.linear\.", r"\1\2gate_up_proj."),
        (_AUDIO_LAYER + r"(feed_forward_(?:in|out)\.)net\.2\.", r"\1\2down_proj."),
        (_AUDIO_LAYER + r"self_attn\.linear_(q|k|v)\.", r"\1self_attn.\2_proj."),
        (_AUDIO_LAYER + r"self_attn\.linear_out\.", r"\1self_attn.o_proj."),
        (_AUDIO + r"audio_projection\.speech\.0\.", r"\1up_proj_for_speech."),
        (_AUDIO + r"audio_projection\.speech\.2\.", r"\1down_proj_for_speech."),
        (_AUDIO + r"audio_projection\.vision\.0\.", r"\1up_proj_for_vision_speech."),
        (_AUDIO + r"audio_projection\.vision\.2\.", r"\1down_proj_for_vision_speech."),
        (_IMAGE + r"img_projection\.0\.", r"\1img_projection_up."),
        (_IMAGE + r"img_projection\.2\.", r"\1img_projection_down."),
        (_IMAGE + r"glb_GN$", r"\1global_img_feature_extensor"),
        (_IMAGE + r"sub_GN$", r"\1sub_img_feature_extensor"),
    )
]


def native_name(key: str, layout: Layout) -> str:
    """The native name of a tensor in one of the model's own files."""
    if layout is Layout.ORIGINAL:
        key = key.replace(".base_layer.", ".")
        for pattern, native in _RENAMED:
            key = pattern.sub(native, key)
    return key


def native_adapter_name(key: str, adapter: str) -> str:
    """The native name of a tensor in an adapter's folder, which is as peft writes it."""
    key = key.removeprefix("base_model.model.")
    return re.sub(r"\.lora_(A|B)\.weight$", rf".lora_\1.{adapter}.weight", key)


def native_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration of transformers' own class, from that of either layout.

    The original one says nothing of the image encoder, which is always SigLIP's so400m: the
    defaults of transformers' class. Where its ``img_processor`` is an object, its fields win.

    Raises:
        KeyError: a part that the original layout has is missing.
        TypeError, AttributeError: a part is not of its kind.
    """
    if layout_of(config) is not Layout.ORIGINAL:
        return dict(config)
    native = {key: value for key, value in config.items() if key not in _NOT_NATIVE}
    native["model_type"] = MODEL_TYPE
    if "torch_dtype" in config:
        native["dtype"] = config["torch_dtype"]
    rope = {**config["rope_scaling"]}
    rope["rope_type"] = rope.get("rope_type", rope.get("type"))
    for key in ("rope_theta", "partial_rotary_factor", "original_max_position_embeddings"):
        if key in config:
            rope.setdefault(key, config[key])
    native["rope_parameters"] = rope
    image = config["embd_layer"]["image_embd_layer"]
    native["vision_config"] = {
        "crop_size": image["crop_size"],
        "image_token_id": IMAGE_ID,
        **(config.get("img_processor") or {}),
    }
    audio = dict(config["audio_processor"]["config"])
    native["audio_config"] = {
        "audio_token_id": AUDIO_ID,
        "downsample_rate": config["embd_layer"]["audio_embd_layer"]["downsample_rate"],
        "bias_max_distance": audio["relative_attention_bias_args"]["t5_bias_max_distance"],
        "nemo_conv_channels": audio["nemo_conv_settings"]["conv_channels"],
        **{_AUDIO_KEYS.get(key, key): value for key, value in audio.items() if key not in _DROPPED},
    }
    return native


_NOT_NATIVE = {
    "architectures", "audio_processor", "auto_map", "embd_layer", "img_processor", "rope_scaling",
    "rope_theta", "speech_lora", "torch_dtype", "vision_lora", "_attn_implementation",
    "_name_or_path", "transformers_version",
}  # fmt: skip
_AUDIO_KEYS = {
    "attention_dim": "hidden_size",
    "attention_heads": "num_attention_heads",
    "linear_units": "intermediate_size",
    "depthwise_seperable_out_channel": "depthwise_separable_out_channel",
}
_DROPPED = {
    "activation_checkpointing", "cnn_layer_norm", "encoder_embedding_config", "input_layer",
    "nemo_conv_settings", "relative_attention_bias_args",
}  # fmt: skip
