"""What transformers does wrong with Phi-4-multimodal, put right on a loaded model.

Each correction names the fault, and ``tests/engine/test_corrections.py`` shows the fault in the
installed transformers, so that a correction which upstream has made needless is noticed. The
corrections change behaviour only where the original gives wrong numbers or crashes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from transformers.models.phi4_multimodal import modeling_phi4_multimodal as upstream

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import Phi4MultimodalForCausalLM


def correct(model: Phi4MultimodalForCausalLM) -> None:
    """Apply the corrections A, B and C to a model in place, and leave out what nobody reads.

    Applying them again changes nothing.

    Args:
        model: the native class, with or without adapters.
    """
    attend_both_ways(model)
    towers = model.model.embed_tokens_extend
    mask_audio_padding(towers.audio_embed.encoder)
    towers.image_embed.img_processor.head = _Unread().eval()
    upstream.unfold_tensor = unfold_windows


def attend_both_ways(model: torch.nn.Module) -> None:
    """Correction A: towers are bidirectional.

    Upstream marks their attention causal. With sdpa and an all-ones mask the mask is dropped, and
    the mark then makes square pictures be encoded causally: features off by 3.5 to 8.5.
    """
    for module in model.modules():
        if isinstance(
            module, upstream.Phi4MultimodalVisionAttention | upstream.Phi4MultimodalAudioAttention
        ):
            module.is_causal = False


def mask_audio_padding(encoder: upstream.Phi4MultimodalAudioModel) -> None:
    """Correction B: the audio encoder never sees the padding of a batch.

    Upstream adds its bool mask to the float position bias, so that a padded key only lacks 1.0,
    and lets the convolutions before it read padded frames: in a batch of different lengths, most
    rows change.
    """
    if isinstance(encoder.embed, _MaskedSubsampling):
        return
    encoder.embed.__class__ = _MaskedSubsampling
    encoder.__class__ = _MaskedAudioModel


class _Unread(torch.nn.Module):
    """In place of the image tower's pooling head, whose output is dropped.

    On the CPU in bfloat16 it took 7 s for a picture of two crops (``benchmarks/waste.py``).
    """

    def forward(self, **_: object) -> None:
        return None


class _MaskedAudioModel(upstream.Phi4MultimodalAudioModel):
    """The upstream encoder with masks that are ready to be added to the attention's scores."""

    def forward_embeddings(
        self, hidden_states: Tensor, masks: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        hidden_states, attend, masks = super().forward_embeddings(hidden_states, masks)  # type: ignore[no-untyped-call]
        return hidden_states, _additive(attend, hidden_states.dtype), masks

    def calculate_hs_mask(
        self, hidden_states: Tensor, device: torch.device, mask: Tensor | None
    ) -> Tensor:
        attend = super().calculate_hs_mask(hidden_states, device, mask)  # type: ignore[no-untyped-call]
        return _additive(attend, hidden_states.dtype)


class _MaskedSubsampling(upstream.Phi4MultimodalAudioNemoConvSubsampling):
    """The upstream subsampling with each clip cut at its own end before every strided layer.

    A clip alone is followed by the convolution's zero padding; a shorter clip in a batch must be
    followed by zeros as well.
    """

    def forward(self, hidden_states: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Subsample features by eight.

        Args:
            hidden_states: (batch, frames, mel bins) normalised features.
            mask: (batch, frames) bool, true where a frame belongs to the clip; None for no padding.

        Returns:
            (batch, frames / 8, hidden) and the mask (batch, 1, frames / 8), or None.
        """
        if mask is None:
            return super().forward(hidden_states, None)  # type: ignore[no-any-return]
        lengths = mask.sum(1)
        x = hidden_states.unsqueeze(1)  # (batch, channel, frames, bins)
        for layer in self.conv:
            if getattr(layer, "stride", None) == (2, 2):
                x = x * _within(lengths, x.shape[2])[:, None, :, None].to(x.dtype)
                lengths = (lengths + 1) // 2
            x = layer(x)
        batch, _, frames, _ = x.shape
        x = self.out(x.transpose(1, 2).reshape(batch, frames, -1))
        return x, _within(lengths, frames).unsqueeze(1)


def unfold_windows(tensor: Tensor, max_seq_len: int) -> Tensor:
    """Correction C: cut (batch, frames, size) into windows of ``max_seq_len`` frames.

    Upstream uses ``view`` on a tensor that is not contiguous and crashes for a batch with a clip
    over 40 s. Frames past the last whole window are dropped, as upstream does; the caller pads.

    Returns:
        (batch * windows, max_seq_len, size), a clip's windows in order.
    """
    batch, frames, size = tensor.shape
    windows = frames // max_seq_len
    return tensor[:, : windows * max_seq_len].reshape(batch * windows, max_seq_len, size)


def _within(lengths: Tensor, size: int) -> Tensor:
    """(batch,) lengths to a (batch, size) bool mask of the places before each length."""
    return torch.arange(size, device=lengths.device) < lengths[:, None]


def _additive(attend: Tensor, dtype: torch.dtype) -> Tensor:
    """A bool mask as numbers to add to attention scores: 0 to attend, half the minimum not to.

    Half, because a position bias is added to it, and float16 would overflow.
    """
    blocked = torch.zeros(attend.shape, dtype=dtype, device=attend.device)
    return blocked.masked_fill_(~attend, torch.finfo(dtype).min / 2)


__all__ = ["attend_both_ways", "correct", "mask_audio_padding", "unfold_windows"]
