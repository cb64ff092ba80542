"""The language model, from embeddings or tokens to logits: prompts, and answers token by token.

Its layers are called one by one, rather than by the model's own forward: what that puts together in
each call, masks before all, is known here, and the output layer has the last positions alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import torch

from phi4d.engine.seats import Filling, Going, cache_argument

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import Phi4MultimodalForCausalLM


def read_prompts(
    model: Phi4MultimodalForCausalLM, embeds: Tensor, lengths: Tensor, filling: Filling
) -> Tensor | None:
    """Read prompts, or the next stretch of them, into their seats.

    Args:
        model: corrected, with the adapter set.
        embeds: (batch, length, hidden) of the whole prompts, padded on the right: what comes before
            never sees it.
        lengths: (batch,) of the prompts.
        filling: the seats, and from where to where.

    Returns:
        (batch, vocabulary) logits of what comes next, if the prompts end here.
    """
    here = slice(filling.begin, filling.end)
    positions = torch.arange(filling.begin, filling.end, device=embeds.device)[None]
    mask = None
    # what begins further on sees to itself, and all but this one know what causal is
    if filling.begin == 0 and model.config._attn_implementation == "eager":
        square = filling.end, filling.end
        mask = torch.full(square, -torch.inf, device=embeds.device).triu(1)[None, None]
        mask = mask.to(model.model.embed_tokens.weight.dtype)
    hidden = _layers(model, embeds[:, here], positions, filling, mask)
    if filling.end < embeds.shape[1]:
        return None
    # Rows picked by an index are a copy: a slice's odd strides send bfloat16 on the CPU down a
    # path that packs the whole output layer anew, 5 s in place of 0.06 s (``benchmarks/waste.py``).
    rows = torch.arange(len(lengths), device=lengths.device)
    return _logits(model, hidden[rows, lengths - 1 - filling.begin])


def go_on(model: Phi4MultimodalForCausalLM, tokens: Tensor, going: Going) -> Tensor:
    """One token more for each row.

    Args:
        model: corrected, with the adapter set.
        tokens: (batch,) the last ones.
        going: the seats, and where in them the tokens stand.

    Returns:
        (batch, vocabulary) logits of what comes next.
    """
    hidden = model.model.embed_tokens(tokens)[:, None]
    hidden = _layers(model, hidden, going.positions[:, None], going, None)
    return _logits(model, hidden.flatten(0, 1))


def _layers(
    model: Phi4MultimodalForCausalLM,
    hidden: Tensor,
    positions: Tensor,
    cache: Filling | Going,
    mask: Tensor | None,
) -> Tensor:
    inner = model.model
    turns = cache.seats.rotary.turns(positions)
    known_as: dict[str, Any] = {cache_argument(model): cache}
    for layer in list(inner.layers):
        hidden = layer(
            hidden,
            attention_mask=mask,
            position_ids=positions,
            use_cache=True,
            position_embeddings=turns,
            **known_as,
        )
    return hidden


def _logits(model: Phi4MultimodalForCausalLM, hidden: Tensor) -> Tensor:
    """(batch, hidden) of the last positions to (batch, vocabulary)."""
    return cast("Tensor", model.lm_head(model.model.norm(hidden)))
