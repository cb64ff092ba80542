"""The tiny model: tokenizer, configuration and first weights.

The architecture is the native one of the real model; only the numbers are small.
"""

from __future__ import annotations

import math
import sys
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

import synth
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import nn
from transformers import (
    GenerationConfig,
    Phi4MultimodalAudioConfig,
    Phi4MultimodalConfig,
    Phi4MultimodalForCausalLM,
    Phi4MultimodalVisionConfig,
    PreTrainedTokenizerFast,
)

sys.path.insert(0, str(Path(__file__).parents[2]))
from phi4d.engine.corrections import correct

if TYPE_CHECKING:
    from torch import Tensor
    from transformers.models.phi4_multimodal import modeling_phi4_multimodal as upstream

IMAGE_PROMPTS = ("Describe the image.", "Describe.", "What is in this image?")
AUDIO_PROMPTS = ("Transcribe the audio clip into text.", "Transcribe the audio.", "What is said?")
NO_IMAGE = "i see no picture"
NO_AUDIO = "i hear no speech"
SPECIAL = ("<|endoftext|>", "<|image|>", "<|audio|>", "<|system|>", "<|user|>", "<|assistant|>",
           "<|end|>")  # fmt: skip
CHAT_TEMPLATE = (  # of the same shape as the real model's
    "{% for message in messages %}{{ '<|' + message['role'] + '|>' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for c in message['content'] %}{% if c['type'] == 'image' %}{{ '<|image|>' }}"
    "{% elif c['type'] == 'audio' %}{{ '<|audio|>' }}"
    "{% elif c['type'] == 'text' %}{{ c['text'] }}{% endif %}{% endfor %}{% endif %}"
    "{{ '<|end|>' }}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
PATCHES = 32
"""Patches of 14 pixels along a side of a 448-pixel crop; two by two of them make a cell."""


def tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE in which every word of the tasks is one token."""
    rng = Random(0)
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    bpe.decoder = decoders.ByteLevel()
    texts = [*IMAGE_PROMPTS, *AUDIO_PROMPTS, NO_IMAGE, NO_AUDIO, "Spell: 4 7", "Say: four",
             "List: red circle"] * 20  # fmt: skip
    for _ in range(800):
        texts.append(synth.describe([rng.randrange(len(synth.KINDS)) for _ in range(3)]))
        texts.append(" ".join(rng.choice(synth.DIGITS) for _ in range(4)))
        texts.append(" and ".join((rng.choice(synth.COUNTS), *synth.COLOURS, *synth.DIGITS)))
    bpe.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=512,
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            special_tokens=[AddedToken(name, special=True, normalized=False) for name in SPECIAL],
            show_progress=False,
        ),
    )
    end_of_text = SPECIAL[0]
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token=end_of_text,
        eos_token=end_of_text,
        pad_token=end_of_text,
        unk_token=end_of_text,
        padding_side="left",
        extra_special_tokens={"image_token": "<|image|>", "audio_token": "<|audio|>"},
    )
    wrapped.chat_template = CHAT_TEMPLATE
    return wrapped


def configuration(words: PreTrainedTokenizerFast) -> Phi4MultimodalConfig:
    """The real configuration's fields, at toy size."""
    head, hidden, audio, vision = 32, 128, 64, 96
    frequencies = int(head * 0.75) // 2
    return Phi4MultimodalConfig(
        vocab_size=len(words) + -len(words) % 8,
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=4,
        num_attention_heads=hidden // head,
        num_key_value_heads=hidden // head // 2,
        tie_word_embeddings=True,
        max_position_embeddings=131_072,
        original_max_position_embeddings=4096,
        sliding_window=262_144,
        rope_parameters={
            "rope_type": "longrope",
            "rope_theta": 10_000.0,
            "partial_rotary_factor": 0.75,
            "short_factor": [1.0] * frequencies,
            "long_factor": [1.0 + 31 * i / frequencies for i in range(frequencies)],
            "original_max_position_embeddings": 4096,
        },
        bos_token_id=words.bos_token_id,
        pad_token_id=words.pad_token_id,
        eos_token_id=[words.eos_token_id, words.convert_tokens_to_ids("<|end|>")],
        vision_config=Phi4MultimodalVisionConfig(
            hidden_size=vision,
            intermediate_size=2 * vision,
            num_hidden_layers=4,
            num_attention_heads=4,
            image_token_id=words.image_token_id,
        ),
        audio_config=Phi4MultimodalAudioConfig(
            hidden_size=audio,
            intermediate_size=2 * audio,
            num_blocks=2,
            num_attention_heads=4,
            ext_pw_out_channel=audio,
            depthwise_separable_out_channel=audio,
            nemo_conv_channels=32,
            bias_max_distance=500,
            audio_token_id=words.audio_token_id,
        ),
    )


def build(words: PreTrainedTokenizerFast, seed: int = 0) -> Phi4MultimodalForCausalLM:
    """A corrected model with weights that can be trained from."""
    torch.manual_seed(seed)
    config = configuration(words)
    model = Phi4MultimodalForCausalLM(config)
    model.tie_weights()
    correct(model)
    model.generation_config = GenerationConfig(
        bos_token_id=config.bos_token_id,
        pad_token_id=config.pad_token_id,
        eos_token_id=config.eos_token_id,
    )
    with torch.no_grad():
        model.model.embed_tokens.weight.normal_(std=0.08)
        start_vision(model.model.embed_tokens_extend.image_embed)
        start_audio(model.model.embed_tokens_extend.audio_embed)
    return model.eval()


@torch.no_grad()
def start_audio(audio: upstream.Phi4MultimodalAudioEmbedding) -> None:
    """Fan-in scaling for the audio encoder: upstream's 0.02 hardly lets a signal through."""
    for layer in audio.encoder.embed.conv:
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            layer.bias.zero_()
    out = audio.encoder.embed.out.weight
    out.normal_(std=out.shape[1] ** -0.5)
    for name, weight in audio.encoder.encoders.named_parameters():
        if weight.dim() >= 2 and not name.endswith((".b1", ".b2")):
            closing = "down_proj" in name or "o_proj" in name
            weight.normal_(std=weight[0].numel() ** -0.5 * (0.5 if closing else 1))


@torch.no_grad()
def start_vision(image: upstream.Phi4MultimodalImageEmbedding) -> None:
    """First weights of the vision tower that spare it most of its plateau.

    Upstream's N(0, 1) cannot be trained. Matrices get fan-in scaling; patches are first seen as
    their low spatial frequencies; the positions are sines; and each attention head begins as one
    tap of a dilated convolution, looking a fixed step away.
    """
    for name, weight in image.named_parameters():
        if weight.dim() >= 2 and not any(s in name for s in ("norm", "extensor", "probe")):
            weight.normal_(std=weight[0].numel() ** -0.5)
        elif name.endswith("bias"):
            weight.zero_()
    image.global_img_feature_extensor.normal_()
    image.sub_img_feature_extensor.normal_()
    tower = image.img_processor
    places = _start_positions(tower.embeddings)
    steps = (  # (down, right) in patches, a head each
        ((-1.5, -1.5), (-1.5, 1.5), (1.5, -1.5), (1.5, 1.5)),
        ((0.0, -3.5), (0.0, 3.5), (-3.5, 0.0), (3.5, 0.0)),
        ((-3.0, -3.0), (-3.0, 3.0), (3.0, -3.0), (3.0, 3.0)),
    )
    for layer, offsets in zip(tower.encoder.layers, steps, strict=False):
        _start_heads(layer, places, offsets)


_FREQUENCIES = 4
"""Spatial frequencies that the heads find their step with."""


def _start_positions(embeddings: upstream.Phi4MultimodalVisionEmbeddings) -> list[int]:
    """Write sines of both axes into reserved channels, cosine patches into the others."""
    weight = embeddings.patch_embedding.weight
    hidden = weight.shape[0]
    reserved = list(range(4 * _FREQUENCIES))
    grid = torch.arange(PATCHES).float()
    angles = grid[:, None] * _omega()
    waves = torch.stack((angles.sin(), angles.cos()), -1).flatten(1)  # (32, 2 * frequencies)
    position = torch.zeros(PATCHES, PATCHES, hidden)
    position[..., : 2 * _FREQUENCIES] = waves[:, None]
    position[..., 2 * _FREQUENCIES : 4 * _FREQUENCIES] = waves[None]
    embeddings.position_embedding.weight.copy_(position.flatten(0, 1))

    size = weight.shape[-1]
    ticks = (torch.arange(size) + 0.5) / size * math.pi
    waves2d = sorted(((u, v) for u in range(8) for v in range(8)), key=lambda w: (sum(w), w))
    opponents = torch.tensor([[1.0, 1, 1], [1, -0.5, -0.5], [0, 1, -1]])
    weight.zero_()
    for channel in range(len(reserved), hidden):
        index = channel - len(reserved)
        u, v = waves2d[index // 3]
        wave = torch.cos(u * ticks)[:, None] * torch.cos(v * ticks)
        filter_ = opponents[index % 3][:, None, None] * wave
        weight[channel] = filter_ / filter_.norm() * (0.05 if index < 3 else 0.12)
    return reserved


def _omega() -> Tensor:
    """Radians a patch: the longest wave spans the picture, the shortest some eight patches."""
    return torch.tensor([0.8, 0.4, 0.2, 0.1])


def _start_heads(
    layer: upstream.Phi4MultimodalVisionEncoderLayer,
    places: list[int],
    offsets: tuple[tuple[float, float], ...],
    sharpness: float = 3.0,
) -> None:
    """Make each head attend a fixed step away, by rotating the sines of the positions."""
    attention, hidden = layer.self_attn, layer.self_attn.embed_dim
    for weight in (attention.out_proj.weight, layer.mlp.fc2.weight):
        weight.mul_(0.5)
        weight[places] = 0  # the positions stay clean for the layers above
    attention.q_proj.weight.mul_(0.05)
    attention.k_proj.weight.mul_(0.05)
    width = hidden // len(offsets)
    gain = math.sqrt(sharpness * width**0.5)
    for head, offset in enumerate(offsets):
        row = head * width
        for axis, step in enumerate(offset):
            for number, omega in enumerate(_omega().tolist()):
                sine = axis * 2 * _FREQUENCIES + 2 * number
                cosine = sine + 1
                if row + 1 >= (head + 1) * width:
                    break
                turn_cos, turn_sin = math.cos(step * omega) * gain, math.sin(step * omega) * gain
                attention.k_proj.weight[row, sine] = gain
                attention.k_proj.weight[row + 1, cosine] = gain
                attention.q_proj.weight[row, sine] = turn_cos
                attention.q_proj.weight[row, cosine] = turn_sin
                attention.q_proj.weight[row + 1, cosine] = turn_cos
                attention.q_proj.weight[row + 1, sine] = -turn_sin
                row += 2
