"""From prompts with media to the language model's input embeddings, as one right-padded batch.

The towers are called here rather than by the model's own forward, so that pictures are encoded one
by one: memory is bounded by one picture, and nothing of a batch touches another's numbers. Clips
are encoded together; correction B keeps them apart.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import torch
from torch.nn.utils.rnn import pad_sequence

from phi4d.engine.copies import to_device
from phi4d.engine.faults import device_faults
from phi4d.engine.half import finite
from phi4d.engine.pixels import features, mask, pixels
from phi4d.job import Sampling
from phi4d.prepared.clip import Clip
from phi4d.prepared.tiles import Tiles

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import Phi4MultimodalForCausalLM


@dataclass(frozen=True, slots=True)
class Prompt:
    """One request made ready for the model."""

    ids: list[int]
    """of the whole prompt, the media's places included"""
    limit: int
    """the most tokens that may be answered, 1 or more"""
    media: Tiles | Clip
    sampling: Sampling


def embed(
    model: Phi4MultimodalForCausalLM, prompts: Sequence[Prompt], beat: Callable[[], None]
) -> tuple[Tensor, Tensor]:
    """The embeddings of prompts of one kind, and their lengths.

    Args:
        model: corrected, with the kind's adapter set.
        prompts: one or more, all with tiles or all with clips.
        beat: called after each tower's call.

    Returns:
        (batch, length, hidden) padded on the right, and (batch,): the prompts' lengths.

    Raises:
        DeviceError: out of memory, or the device was lost.
    """
    device = str(model.device)
    length = max(len(prompt.ids) for prompt in prompts)
    ids = torch.full((len(prompts), length), model.config.pad_token_id or 0)  # any id will do
    for row, prompt in enumerate(prompts):
        ids[row, : len(prompt.ids)] = torch.tensor(prompt.ids)
    with device_faults(device, f"encoding {len(prompts)} prompts of {length} tokens"):
        ids = to_device(ids, device)
        lengths = to_device(torch.tensor([len(prompt.ids) for prompt in prompts]), device)
        embeds = model.model.embed_tokens(ids)
    if isinstance(prompts[0].media, Tiles):
        for row, prompt in enumerate(prompts):
            with device_faults(device, f"encoding a picture of {len(prompt.ids)} tokens"):
                here = slice(row, row + 1)
                embeds[here] = _with_picture(
                    model, ids[here], embeds[here], cast("Tiles", prompt.media)
                )
            beat()
    else:
        with device_faults(device, f"encoding {len(prompts)} clips"):
            embeds = _with_clips(model, ids, embeds, [cast("Clip", p.media) for p in prompts])
        beat()
    return embeds, lengths


def _with_picture(
    model: Phi4MultimodalForCausalLM, ids: Tensor, embeds: Tensor, tiles: Tiles
) -> Tensor:
    """(1, length, hidden) embeddings with a picture's features in the places of its ids."""
    tower = model.model.embed_tokens_extend.image_embed

    def run() -> Tensor:
        return cast(
            "Tensor",
            tower(
                ids,
                embeds,
                image_pixel_values=pixels(tiles, str(ids.device))[None],
                # Read number by number: on a GPU each would cost a wait.
                image_sizes=torch.tensor([[tiles.height, tiles.width]]),
                image_attention_mask=mask(tiles, str(ids.device))[None],
            ),
        )

    return finite(tower, run)


def _with_clips(
    model: Phi4MultimodalForCausalLM, ids: Tensor, embeds: Tensor, clips: Sequence[Clip]
) -> Tensor:
    """(batch, length, hidden) embeddings with the clips' features in the places of their ids.

    The mask is given for a single clip too: over 40 s the encoder pads its last window, and
    without a mask it would attend to that.
    """
    tower = model.model.embed_tokens_extend.audio_embed
    padded = pad_sequence([features(clip) for clip in clips], batch_first=True)
    frames = torch.tensor([len(clip.features) for clip in clips])
    true = torch.arange(padded.shape[1]) < frames[:, None]

    def run() -> Tensor:
        return cast(
            "Tensor",
            tower(
                ids,
                embeds,
                audio_input_features=to_device(padded, str(ids.device)),
                audio_embed_sizes=[clip.tokens for clip in clips],
                audio_attention_mask=to_device(true, str(ids.device)),
            ),
        )

    return finite(tower, run)
