"""From prompts with media to the language model's input embeddings, as one right-padded batch.

The towers are called here rather than by the model's own forward, in turns: a call has crops of one
or several pictures, or clips of like length, and no more of them than may be waited for. Nothing of
a batch touches another's numbers: a crop sees itself alone, and correction B keeps clips apart.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence

from phi4d.engine.copies import to_device
from phi4d.engine.faults import device_faults
from phi4d.engine.grouping import alike, evenly
from phi4d.engine.half import finite
from phi4d.engine.pixels import features, mask, pixels
from phi4d.job import Sampling
from phi4d.prepared.clip import Clip
from phi4d.prepared.tiles import Tiles

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import Phi4MultimodalForCausalLM
    from transformers.models.phi4_multimodal import modeling_phi4_multimodal as upstream

CROP_WORK = 160
"""A crop is as much work as so many tokens of a prompt, in the published model: 2 x 442 million
parameters for each of its 1,024 patches, and 27 layers of attention among these, are 1.03e12
operations; a token's 2 x 3.22 billion are 6.4e9."""
CLIP_WORK = 6
"""So many tokens of a clip, 80 ms each, are as much work in its tower as one in the prompt: 1.1e9
operations, convolutions and attention included."""
WINDOW = 500
"""tokens: what the audio encoder sees at a time, 40 s; of a longer clip one after the other"""


@dataclass(frozen=True, slots=True)
class Prompt:
    """One request made ready for the model."""

    ids: list[int]
    """of the whole prompt, the media's places included"""
    limit: int
    """the most tokens that may be answered, 1 or more"""
    media: Tiles | Clip
    sampling: Sampling

    @property
    def tower_work(self) -> int:
        """What its media are to their tower, in tokens of a prompt."""
        if isinstance(self.media, Tiles):
            return CROP_WORK * (1 + self.media.crops)
        return self.media.tokens // CLIP_WORK

    @property
    def work(self) -> int:
        """What it takes to read it, in tokens of a prompt."""
        return len(self.ids) + self.tower_work


class Embedding:
    """Prompts of one kind on their way to embeddings, turn by turn.

    Args:
        model: corrected, with the kind's adapter set.
        prompts: one or more, all with tiles or all with clips.
        most: the work of a turn, in tokens of a prompt; one crop or one clip may be more.

    Attributes:
        embeds: (batch, length, hidden) padded on the right; whole after the last turn.
        lengths: (batch,) of the prompts.
        turns: the work of each turn that is still to be done.

    Raises:
        DeviceError: out of memory, or the device was lost.
    """

    def __init__(
        self, model: Phi4MultimodalForCausalLM, prompts: Sequence[Prompt], most: int
    ) -> None:
        self._device = str(model.device)
        length = max(len(prompt.ids) for prompt in prompts)
        ids = torch.full((len(prompts), length), model.config.pad_token_id or 0)  # any id will do
        for row, prompt in enumerate(prompts):
            ids[row, : len(prompt.ids)] = torch.tensor(prompt.ids)
        towers = model.model.embed_tokens_extend
        config: Any = model.config
        media = [prompt.media for prompt in prompts]
        self._tower: _Pictures | _Clips
        self._doing = f"encoding {len(prompts)} prompts of {length} tokens"
        with device_faults(self._device, self._doing):
            self.lengths = to_device(torch.tensor([len(p.ids) for p in prompts]), self._device)
            self.embeds = model.model.embed_tokens(to_device(ids, self._device))
            if isinstance(media[0], Tiles):
                media_id = config.vision_config.image_token_id
                tiles = cast("Sequence[Tiles]", media)
                self._tower = _Pictures(towers.image_embed, tiles, self._device, most)
            else:
                media_id = config.audio_config.audio_token_id
                self._tower = _Clips(towers.audio_embed, cast("Sequence[Clip]", media), most)
        self._begins = [prompt.ids.index(media_id) for prompt in prompts]
        self.turns = self._tower.turns

    def turn(self) -> None:
        """Do the next turn: one call of the tower.

        Raises:
            DeviceError: out of memory, or the device was lost.
        """
        with device_faults(self._device, self._doing):
            for row, features in self._tower.turn():
                begin = self._begins[row]
                self.embeds[row, begin : begin + len(features)] = features.to(self.embeds.dtype)
        self.turns.popleft()


class _Pictures:
    """Pictures on their way through their tower, so many crops in a call, whoever's they are.

    Crops that are wholly picture come before those that are partly white: without a mask the
    attention is faster.
    """

    def __init__(
        self,
        tower: upstream.Phi4MultimodalImageEmbedding,
        pictures: Sequence[Tiles],
        device: str,
        most: int,
    ) -> None:
        self._tower = tower
        self._pictures = pictures
        masks = torch.cat([mask(tiles) for tiles in pictures]).bool()
        whole = masks.flatten(1).all(1)
        order = torch.argsort(whole, descending=True, stable=True)
        crops = torch.cat([pixels(tiles, device) for tiles in pictures])
        self._crops: Tensor | None = crops[to_device(order, device)]
        self._masks = to_device(masks[order], device)
        self._places = to_device(torch.argsort(order), device)
        self._seen: list[Tensor] = []
        count, each = int(whole.sum()), max(1, most // CROP_WORK)
        sizes = [evenly(count, each), evenly(len(whole) - count, each)]
        self._calls = deque((size, i == 0) for i in (0, 1) for size in sizes[i])
        self.turns = deque(CROP_WORK * size for size, _ in self._calls)

    def turn(self) -> Sequence[tuple[int, Tensor]]:
        """Look at the next crops; returns all pictures' features, with their rows, at the end."""
        crops = cast("Tensor", self._crops)
        begin = sum(map(len, self._seen))
        size, whole = self._calls.popleft()
        here = slice(begin, begin + size)
        self._seen.append(
            finite(self._tower, lambda: _seen(self._tower, crops[here], self._masks[here], whole))
        )
        if self._calls:
            return ()
        self._crops = None
        counts = [1 + tiles.crops for tiles in self._pictures]
        seen = torch.split(torch.cat(self._seen)[self._places], counts)
        laid_out = [
            _laid_out(self._tower, crops, tiles)
            for crops, tiles in zip(seen, self._pictures, strict=True)
        ]
        projected = finite(self._tower, lambda: _projected(self._tower, torch.cat(laid_out)))
        return list(enumerate(torch.split(projected, [len(one) for one in laid_out])))


class _Clips:
    """Clips on their way through their tower, so many of like length in a call."""

    def __init__(
        self, tower: upstream.Phi4MultimodalAudioEmbedding, clips: Sequence[Clip], most: int
    ) -> None:
        self._tower = tower
        self._clips = clips
        self._calls: deque[list[int]] = deque()
        self.turns: deque[int] = deque()
        left = list(range(len(clips)))
        while left:
            lengths = [_in_windows(clips[row]) for row in left]
            group = alike(lengths, tokens=most * CLIP_WORK, rows=len(left))
            self._calls.append([left[i] for i in group])
            self.turns.append(len(group) * max(lengths[i] for i in group) // CLIP_WORK)
            left = [row for row in left if row not in self._calls[-1]]

    def turn(self) -> Sequence[tuple[int, Tensor]]:
        """Listen to the next clips; returns their features, with their rows."""
        rows = self._calls.popleft()
        clips = [self._clips[row] for row in rows]
        heard = finite(self._tower, lambda: _heard(self._tower, clips))
        return [
            (row, one[: clip.tokens]) for row, one, clip in zip(rows, heard, clips, strict=True)
        ]


def _seen(
    tower: upstream.Phi4MultimodalImageEmbedding, crops: Tensor, masks: Tensor, whole: bool
) -> Tensor:
    """(crops, 256, size) features, as upstream's ``get_img_features`` makes them.

    The layers behind the one whose output is read are left out.

    Args:
        tower: corrected.
        crops: (crops, 3, 448, 448).
        masks: (crops, 32, 32), true where a patch holds some of the picture.
        whole: all do.
    """
    vision = tower.img_processor
    crops = crops.to(vision.embeddings.patch_embedding.weight.dtype)
    hidden = vision.embeddings(pixel_values=crops, patch_attention_mask=masks)
    attend = None
    if not whole:
        white = ~masks.flatten(1)[:, None, None]
        attend = torch.zeros(white.shape, dtype=hidden.dtype, device=hidden.device)
        attend.masked_fill_(white, torch.finfo(hidden.dtype).min)
    layers = list(vision.encoder.layers)
    for layer in layers[: tower.layer_idx % (len(layers) + 1)]:
        hidden = layer(hidden, attend)
    side = math.isqrt(hidden.shape[1])
    square = hidden.unflatten(1, (side, side)).permute(0, 3, 1, 2)
    if (padding := getattr(tower, "img_processor_padding", None)) is not None:
        square = padding(square)
    square = tower.image_token_compression(square)
    return cast("Tensor", square.permute(0, 2, 3, 1).flatten(1, 2))


def _laid_out(tower: upstream.Phi4MultimodalImageEmbedding, crops: Tensor, tiles: Tiles) -> Tensor:
    """(tokens, size): the picture row by row with line ends, a separator, the view likewise.

    Args:
        tower: has the line end and the separator.
        crops: (1 + crops, 256, size) features, the global view first.
        tiles: say how the crops lie, and how much of them is picture.
    """
    side, size = math.isqrt(crops.shape[1]), crops.shape[2]
    rows, columns = tiles.rows, tiles.columns
    across, down = (math.ceil(count / 2) for count in tiles.layout.patches())
    picture = crops[1:].reshape(rows, columns, side, side, size).transpose(1, 2)
    picture = picture.reshape(rows * side, columns * side, size)[:down, :across]
    view = crops[0].reshape(side, side, size)
    line_end = tower.sub_img_feature_extensor[0]
    return torch.cat(
        [
            torch.cat([picture, line_end.expand(down, 1, size)], 1).flatten(0, 1),
            tower.global_img_feature_extensor[0],
            torch.cat([view, line_end.expand(side, 1, size)], 1).flatten(0, 1),
        ]
    )


def _projected(tower: upstream.Phi4MultimodalImageEmbedding, features: Tensor) -> Tensor:
    """(tokens, size) features to (tokens, hidden)."""
    features = tower.img_projection_up(features.to(tower.img_projection_up.weight.dtype))
    return cast("Tensor", tower.img_projection_down(functional.gelu(features)))


def _heard(tower: upstream.Phi4MultimodalAudioEmbedding, clips: Sequence[Clip]) -> Tensor:
    """(batch, tokens, hidden); a shorter clip has something of no meaning behind it.

    The mask is given for a single clip too: over 40 s the encoder pads its last window, and
    without a mask it would attend to that.
    """
    weight = tower.up_proj_for_speech.weight
    padded = pad_sequence([features(clip) for clip in clips], batch_first=True)
    frames = torch.tensor([len(clip.features) for clip in clips])
    true = torch.arange(padded.shape[1]) < frames[:, None]
    device = str(weight.device)
    heard = tower.encoder(to_device(padded, device).to(weight.dtype), to_device(true, device))
    heard = functional.gelu(tower.up_proj_for_speech(heard))
    return cast("Tensor", tower.down_proj_for_speech(heard))


def _in_windows(clip: Clip) -> int:
    """What a clip is to its tower, in tokens: more than one window is padded to whole ones."""
    return clip.tokens if clip.tokens <= WINDOW else -(-clip.tokens // WINDOW) * WINDOW
