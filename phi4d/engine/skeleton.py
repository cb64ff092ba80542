"""The model without its weights: what transformers' own class expects, by name and shape.

A skeleton takes no memory; `phi4d.engine.loader` fills one from a checkpoint, and `check` compares
the two beforehand.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

import torch
import transformers
from transformers import Phi4MultimodalConfig, Phi4MultimodalForCausalLM
from transformers.models.phi4_multimodal import modeling_phi4_multimodal as upstream

from phi4d.engine.checkpoint import LINEAR, Checkpoint
from phi4d.errors import ConfigError

MOST = 8
"""faults of a checkpoint that are told one by one"""
_building = threading.Lock()
"""what transformers says, and how loudly, is one setting of the whole process"""


def skeleton(checkpoint: Checkpoint, attention: str = "sdpa") -> Phi4MultimodalForCausalLM:
    """The model of a checkpoint on torch's meta device; its rotary embedding is real, on the CPU.

    Args:
        checkpoint: whose configuration counts.
        attention: of the language model, ``flash_attention_2``, ``sdpa`` or ``eager``. The towers
            have sdpa with the first: the audio tower adds a float bias, which FlashAttention
            cannot take.

    Raises:
        ConfigError: transformers refuses the configuration.
    """
    path = checkpoint.folder / "config.json"
    with _building, _quiet():
        try:
            config = Phi4MultimodalConfig.from_dict(dict(checkpoint.config))
            towers = "eager" if attention == "eager" else "sdpa"
            config._attn_implementation = {
                "": attention, "vision_config": towers, "audio_config": towers,
            }  # fmt: skip
            # a number format of their own would become torch's, for other threads as well
            for part in (config.vision_config, config.audio_config):
                part.dtype = None  # type: ignore[union-attr]
            with torch.device("meta"):
                model = Phi4MultimodalForCausalLM(config)
            model.model.rotary_emb = upstream.Phi4MultimodalRotaryEmbedding(config=config)
        except Exception as error:  # its checks raise classes that share no base
            words = " ".join(str(error).split()) or repr(error)
            raise ConfigError(f"{path}: cannot be used ({words[:400]})") from error
    return cast("Phi4MultimodalForCausalLM", model.eval().requires_grad_(False))


def check(checkpoint: Checkpoint) -> list[str]:
    """See that a checkpoint has every tensor that its configuration asks for, in its shape.

    Returns:
        Tensors that have no place in the model, by their keys; they are left out.

    Raises:
        ConfigError: with every fault: the file, the key, what was found, what was expected.
    """
    expected = expected_shapes(checkpoint)
    faults, unplaced = [], []
    for name, stored in checkpoint.tensors.items():
        asks = "adapter's configuration" if ".lora_" in name else "config.json"
        shape = expected.get(name)
        if shape is None and LINEAR.match(name):
            faults.append(f"{stored.file}: {stored.key}: the {asks} does not ask for it")
        elif shape is None:
            unplaced.append(stored.key)
        elif stored.shape != shape:
            faults.append(
                f"{stored.file}: {stored.key} has shape {_x(stored.shape)}, the {asks} asks for "
                f"{_x(shape)}"
            )
    if missing := sorted(expected.keys() - checkpoint.tensors.keys()):
        faults.append(
            f"{checkpoint.folder}: {len(missing)} weights are missing that config.json asks for, "
            f"{missing[0]} first"
        )
    if faults:
        more = [f"and {len(faults) - MOST} more faults of the kind"] if len(faults) > MOST else []
        advice = f"{checkpoint.folder}: these do not fit together. Download the model again"
        raise ConfigError(*faults[:MOST], *more, f"{advice}: phi4d model pull")
    return sorted(unplaced)


def expected_shapes(checkpoint: Checkpoint) -> dict[str, tuple[int, ...]]:
    """Native name to shape, of the model's tensors and its adapters'.

    An output layer that is tied to the token embedding is not expected.
    """
    model = skeleton(checkpoint)
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    if model.config.tie_word_embeddings:
        del shapes["lm_head.weight"]
    for adapter, low_rank in checkpoint.adapters.items():
        for module in [name.removesuffix(".weight") for name in shapes if LINEAR.match(name)]:
            if low_rank.changes(module):
                rows, columns = shapes[f"{module}.weight"]
                shapes[f"{module}.lora_A.{adapter}.weight"] = (low_rank.rank, columns)
                shapes[f"{module}.lora_B.{adapter}.weight"] = (rows, low_rank.rank)
    return shapes


def _x(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "a single number"


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep off the log what transformers says about a configuration's older spellings."""
    level = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        transformers.logging.set_verbosity(level)
