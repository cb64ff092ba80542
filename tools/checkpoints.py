"""Checkpoints of Phi-4-multimodal's architecture with random weights, in either published layout.

    python tools/checkpoints.py FOLDER --layout original      # full size, bfloat16: 11 GB
    python tools/checkpoints.py FOLDER --size small

They answer nonsense, but take the room and the time of the real one, and the two layouts of one
seed hold the same numbers: what the loader and the benchmarks are tried with, since the real
weights are not to be had everywhere. `rewrite` puts an existing checkpoint into another form.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import re
import sys
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

sys.path.insert(0, str(Path(__file__).parents[1]))
from phi4d.engine.checkpoint import LINEAR, WEIGHTS, Adapter, Checkpoint, Stored
from phi4d.engine.layout import ADAPTERS, Layout
from phi4d.engine.skeleton import expected_shapes

REAL = json.loads((Path(__file__).parent / "phi4_multimodal.json").read_text())
"""the published model's configuration, in transformers' own words"""
RANKS = {"vision": 256, "speech": 320}
TARGETS = {
    "vision": r"layers.*((self_attn\.(qkv_proj|o_proj))|(mlp\.(gate_up|down)_proj))",
    "speech": r"((layers.*self_attn\.(qkv|o)_proj)|(layers.*mlp\.(gate_up|down)_proj))",
}
SHARD_BYTES = 4_990_000_000  # as the published one's
SPECIAL = {
    "<|endoftext|>": 199999, "<|image|>": 200010, "<|audio|>": 200011,
    "<|assistant|>": 200019, "<|end|>": 200020, "<|user|>": 200021, "<|system|>": 200022,
}  # fmt: skip


def small(**changes: Any) -> dict[str, Any]:
    """The real configuration with everything that costs made small; half a million parameters."""
    config: dict[str, Any] = json.loads(json.dumps(REAL))
    config |= {
        "vocab_size": 512, "hidden_size": 128, "intermediate_size": 192, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 1,
        "bos_token_id": 400, "pad_token_id": 400, "eos_token_id": [400, 420],
    }  # fmt: skip
    rope = config["rope_parameters"]
    for factor in ("long_factor", "short_factor"):
        rope[factor] = rope[factor][:12]  # head size 32, of which 0.75 are turned, in pairs
    config["vision_config"] |= {
        "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3,
        "num_attention_heads": 2, "image_token_id": 410,
    }  # fmt: skip
    config["audio_config"] |= {
        "hidden_size": 32, "intermediate_size": 48, "num_blocks": 2, "num_attention_heads": 2,
        "ext_pw_out_channel": 32, "depthwise_separable_out_channel": 32, "nemo_conv_channels": 16,
        "audio_token_id": 411,
    }  # fmt: skip
    return config | changes


def on_paper(
    config: Mapping[str, Any] = REAL,
    ranks: Mapping[str, int] | None = None,
    folder: Path = Path("nowhere"),
) -> Checkpoint:
    """What a checkpoint of a configuration consists of; there are no files.

    Args:
        config: in transformers' own words; the default is the published model's.
        ranks: of the adapters; None for the published ones.
        folder: where it would be.
    """
    ranks = ranks or RANKS
    adapters = {name: Adapter(rank, 2.0, TARGETS[name]) for name, rank in ranks.items()}
    empty = Checkpoint(folder, Layout.CONVERTED, config, adapters, {}, None, {})
    tensors = {
        name: Stored(folder / WEIGHTS, name, shape, "BF16")
        for name, shape in expected_shapes(empty).items()
    }
    return dataclasses.replace(empty, tensors=tensors)


def make(
    folder: Path,
    config: Mapping[str, Any],
    layout: Layout,
    *,
    ranks: Mapping[str, int] | None = None,
    seed: int = 0,
    device: str = "cpu",
    adapters_inside: bool | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Write a checkpoint of random bfloat16 weights.

    Args:
        folder: is made.
        config: in transformers' own words, for either layout.
        layout: of the files.
        ranks: of the adapters; None for the published ones.
        seed: each tensor follows from it and from its name alone.
        device: where the numbers are drawn; another device draws others.
        adapters_inside: put the adapters into the model's own files; None as the layout has it.
        shard_bytes: of one file at most, except that a tensor is never cut.
    """
    drawn = on_paper(config, ranks, folder)
    generator = torch.Generator(device)

    def draw(name: str, shape: tuple[int, ...]) -> torch.Tensor:
        tensor = torch.empty(shape, dtype=torch.bfloat16, device=device)
        if re.search(r"(norm\d?|norm_att)\.weight$|global_invstd$", name):
            return tensor.fill_(1).cpu()
        if re.search(r"norm\d?\.bias$|global_mean$", name):
            return tensor.zero_().cpu()
        generator.manual_seed(seed << 32 | zlib.crc32(name.encode()))
        # so much that what a layer adds is as large as what it is added to: otherwise the answer
        # would be the prompt's last token again and again
        matrix = len(shape) > 1 and "embed_tokens.weight" not in name
        deviation = math.prod(shape[1:]) ** -0.5 if matrix else 0.02
        return tensor.normal_(0, deviation, generator=generator).cpu()

    shapes = {name: stored.shape for name, stored in drawn.tensors.items()}
    _write(folder, config, layout, drawn.adapters, shapes, draw, adapters_inside, shard_bytes)
    (folder / "tokenizer.json").write_text(json.dumps(_tokenizer(config)))


def rewrite(
    source: Checkpoint,
    folder: Path,
    layout: Layout,
    *,
    adapters_inside: bool | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Write an existing checkpoint in a layout; the arguments are those of `make`."""
    from safetensors import safe_open

    def stored(name: str, _: tuple[int, ...]) -> torch.Tensor:
        place = source.tensors[name]
        with safe_open(place.file, framework="pt") as file:
            return file.get_tensor(place.key)  # type: ignore[no-any-return]

    shapes = {name: place.shape for name, place in source.tensors.items()}
    _write(
        folder, source.config, layout, source.adapters, shapes, stored, adapters_inside, shard_bytes
    )
    (folder / "tokenizer.json").write_bytes((source.folder / "tokenizer.json").read_bytes())
    if source.max_crops:
        processor = folder / "preprocessor_config.json"
        content = json.loads(processor.read_text()) | {"dynamic_hd": source.max_crops}
        processor.write_text(json.dumps(content))


def _write(
    folder: Path,
    config: Mapping[str, Any],
    layout: Layout,
    adapters: Mapping[str, Adapter],
    shapes: Mapping[str, tuple[int, ...]],
    tensor: Callable[[str, tuple[int, ...]], torch.Tensor],
    adapters_inside: bool | None,
    shard_bytes: int,
) -> None:
    folder.mkdir(parents=True)
    original = layout is Layout.ORIGINAL
    inside = original if adapters_inside is None else adapters_inside
    own, apart = {}, dict[str, dict[str, str]]()
    for name in sorted(shapes):
        adapter = next((a for a in ADAPTERS if f".{a}.weight" in name), None)
        if adapter and not inside:
            key = "base_model.model." + name.replace(f".{adapter}.weight", ".weight")
            apart.setdefault(adapter, {})[key] = name
        else:
            own[original_name(name, adapted=inside) if original else name] = name
    written = original_config(config, adapters) if original else {**config}
    (folder / "config.json").write_text(json.dumps(written, indent=1))
    (folder / "generation_config.json").write_text(
        json.dumps({"eos_token_id": config["eos_token_id"]})
    )
    (folder / "preprocessor_config.json").write_text(
        json.dumps({"audio_compression_rate": 8, "audio_downsample_rate": 1, "dynamic_hd": 36})
    )
    shards = list(_shards({key: shapes[name] for key, name in own.items()}, shard_bytes))
    index = {}
    for number, keys in enumerate(shards, 1):
        file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        if len(shards) == 1:
            file = "model.safetensors"
        save_file({key: tensor(own[key], shapes[own[key]]) for key in keys}, folder / file)
        index.update(dict.fromkeys(keys, file))
    if len(shards) > 1:
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    for adapter, names in apart.items():
        place = folder / ADAPTERS[adapter]
        place.mkdir()
        content = {key: tensor(name, shapes[name]) for key, name in names.items()}
        save_file(content, place / "adapter_model.safetensors")
        (place / "adapter_config.json").write_text(
            json.dumps(
                {
                    "peft_type": "LORA",
                    "r": adapters[adapter].rank,
                    "lora_alpha": adapters[adapter].rank * adapters[adapter].scale,
                    "target_modules": adapters[adapter].targets,
                }
            )
        )


def original_name(native: str, *, adapted: bool) -> str:
    """The original layout's name of a tensor.

    Args:
        native: the name in transformers' own class.
        adapted: the adapters are in the same files, and the layers that they change wrapped.
    """
    if adapted and LINEAR.fullmatch(native.removesuffix(".weight")):
        return native.replace(".weight", ".base_layer.weight")
    head, dot, tail = native.partition("audio_embed.encoder.encoders.")
    if dot:
        for new, old in (
            (".gate_up_proj.", ".net.0.linear."), (".down_proj.", ".net.2."),
            (".q_proj.", ".linear_q."), (".k_proj.", ".linear_k."),
            (".v_proj.", ".linear_v."), (".o_proj.", ".linear_out."),
        ):  # fmt: skip
            tail = tail.replace(new, old)
        return head + dot + tail
    for new, old in (
        ("audio_embed.up_proj_for_speech.", "audio_embed.audio_projection.speech.0."),
        ("audio_embed.down_proj_for_speech.", "audio_embed.audio_projection.speech.2."),
        ("audio_embed.up_proj_for_vision_speech.", "audio_embed.audio_projection.vision.0."),
        ("audio_embed.down_proj_for_vision_speech.", "audio_embed.audio_projection.vision.2."),
        ("image_embed.img_projection_up.", "image_embed.img_projection.0."),
        ("image_embed.img_projection_down.", "image_embed.img_projection.2."),
        ("image_embed.global_img_feature_extensor", "image_embed.glb_GN"),
        ("image_embed.sub_img_feature_extensor", "image_embed.sub_GN"),
    ):
        native = native.replace(new, old)
    return native


def original_config(config: Mapping[str, Any], adapters: Mapping[str, Adapter]) -> dict[str, Any]:
    """The configuration as the original layout writes it, from transformers' own words."""
    rope = dict(config["rope_parameters"])
    audio = dict(config["audio_config"])
    vision = {k: v for k, v in config["vision_config"].items() if REAL["vision_config"].get(k) != v}
    return {
        **{
            key: value
            for key, value in config.items()
            if key not in ("audio_config", "dtype", "rope_parameters", "vision_config")
        },
        "architectures": ["Phi4MMForCausalLM"],
        "auto_map": {"AutoConfig": "configuration_phi4mm.Phi4MMConfig"},
        "model_type": "phi4mm",
        "torch_dtype": config.get("dtype", "bfloat16"),
        "rope_scaling": {key: rope[key] for key in ("long_factor", "short_factor")}
        | {"type": rope["rope_type"]},
        "rope_theta": rope["rope_theta"],
        "partial_rotary_factor": rope["partial_rotary_factor"],
        "audio_processor": {
            "config": {
                "activation": audio["activation"],
                "activation_checkpointing": {"interval": 1, "module": "transformer"},
                "attention_dim": audio["hidden_size"],
                "attention_heads": audio["num_attention_heads"],
                "chunk_size": audio["chunk_size"],
                "cnn_layer_norm": True,
                "conv_activation": audio["conv_activation"],
                "conv_glu_type": audio["conv_glu_type"],
                "depthwise_multiplier": audio["depthwise_multiplier"],
                "depthwise_seperable_out_channel": audio["depthwise_separable_out_channel"],
                "dropout_rate": audio["dropout_rate"],
                "encoder_embedding_config": {"input_size": audio["input_size"]},
                "ext_pw_out_channel": audio["ext_pw_out_channel"],
                "input_layer": "nemo_conv",
                "input_size": audio["input_size"],
                "kernel_size": audio["kernel_size"],
                "left_chunk": audio["left_chunk"],
                "linear_units": audio["intermediate_size"],
                "nemo_conv_settings": {"conv_channels": audio["nemo_conv_channels"]},
                "num_blocks": audio["num_blocks"],
                "relative_attention_bias_args": {
                    "t5_bias_max_distance": audio["bias_max_distance"],
                    "type": "t5",
                },
                "time_reduction": audio["time_reduction"],
            }
            # the published one has no such key: its media ids are always the same
            | {k: audio[k] for k in ["audio_token_id"] if audio[k] != REAL["audio_config"][k]},
            "name": "cascades",
        },
        "embd_layer": {
            "audio_embd_layer": {
                "compression_rate": 8,
                "downsample_rate": audio["downsample_rate"],
            },
            "embedding_cls": "image_audio",
            "image_embd_layer": {
                "crop_size": config["vision_config"]["crop_size"],
                "hd_transform_order": "sub_glb",
                "use_hd_transform": True,
            },
        },
        "img_processor": vision or None,
        **{
            f"{name}_lora": {
                "dp": 0.0,
                "layer": adapter.targets,
                "lora_alpha": adapter.rank * adapter.scale,
                "r": adapter.rank,
            }
            for name, adapter in adapters.items()
        },
    }


def _shards(shapes: Mapping[str, tuple[int, ...]], most: int) -> Iterator[list[str]]:
    keys: list[str] = []
    room = most
    for key, shape in shapes.items():
        size = 2 * math.prod(shape)
        if keys and size > room:
            yield keys
            keys, room = [], most
        keys.append(key)
        room -= size
    yield keys


def _tokenizer(config: Mapping[str, Any]) -> dict[str, Any]:
    """A tokenizer with a word for each number, so that an answer's text tells its tokens."""
    size = config["vocab_size"]
    special = {
        "<|endoftext|>": config["pad_token_id"],
        "<|image|>": config["vision_config"]["image_token_id"],
        "<|audio|>": config["audio_config"]["audio_token_id"],
    }
    special |= {
        name: special["<|endoftext|>"] + at - SPECIAL["<|endoftext|>"]
        for name, at in SPECIAL.items()
        if name not in special
    }
    by_id = {number: name for name, number in special.items()}
    return {
        "version": "1.0",
        "added_tokens": [
            {
                "id": number, "content": name, "special": True, "normalized": False,
                "single_word": False, "lstrip": False, "rstrip": False,
            }
            for number, name in sorted(by_id.items())
        ],
        "pre_tokenizer": {"type": "Whitespace"},
        "model": {
            "type": "WordLevel",
            "vocab": {by_id.get(number, f"w{number}"): number for number in range(size)},
            "unk_token": "w0",
        },
    }  # fmt: skip


def main() -> None:
    """Make one from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--layout", type=Layout, choices=list(Layout), default=Layout.CONVERTED)
    parser.add_argument("--size", choices=["full", "small"], default="full")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu", help="where the numbers are drawn")
    options = parser.parse_args()
    tiny = options.size == "small"
    make(
        options.folder,
        small() if tiny else REAL,
        options.layout,
        ranks={"vision": 4, "speech": 5} if tiny else None,
        seed=options.seed,
        device=options.device,
        shard_bytes=200_000 if tiny else SHARD_BYTES,
    )


if __name__ == "__main__":
    main()
