"""How positions turn queries and keys: LongRoPE's frequencies, chosen by what a cache is for.

The model's own module chooses by the largest position of each call, which is wrong for a long
prompt that is read in parts, and with older transformers waits for the device.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self, cast

import torch
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import Phi4MultimodalForCausalLM


@dataclass(frozen=True, slots=True)
class Rotary:
    """The turns of positions."""

    frequencies: Tensor
    """(size / 2,) float32, of which ``size`` numbers of a head are turned"""
    scaling: float
    dtype: torch.dtype
    """of the turns"""

    @classmethod
    def of(cls, model: Phi4MultimodalForCausalLM, *, long: bool) -> Self:
        """A model's.

        Args:
            model: on its device.
            long: for prompts over 4,096 tokens.
        """
        own = cast("Any", model.model.rotary_emb)
        frequencies = own.original_inv_freq
        if long and own.rope_type == "longrope":
            bound = own.config.rope_parameters["original_max_position_embeddings"]
            frequencies, _ = ROPE_INIT_FUNCTIONS["longrope"](own.config, "cpu", seq_len=bound + 1)
        return cls(
            frequencies.to(model.device, torch.float32),
            own.attention_scaling,
            model.model.embed_tokens.weight.dtype,
        )

    def turns(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and sines, (batch, length, size) each, of (batch, length) positions."""
        angles = positions[..., None].float() * self.frequencies
        angles = torch.cat((angles, angles), dim=-1)
        cos, sin = angles.cos() * self.scaling, angles.sin() * self.scaling
        return cos.to(self.dtype), sin.to(self.dtype)
