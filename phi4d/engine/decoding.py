"""From embeddings to answers: a batch, token by token. ``sampling.py`` says which token.

An own loop rather than transformers' ``generate``: each row has its own limit, a finished row
leaves the batch at once (so that it neither costs time nor drives the rotary scaling of the others
past 4,096 tokens), and the caller is heard after every token.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING, Any

import torch
from transformers import DynamicCache

from phi4d.engine.embedding import Prompt
from phi4d.engine.faults import device_faults
from phi4d.engine.sampling import Chooser

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import Phi4MultimodalForCausalLM


def decode(
    model: Phi4MultimodalForCausalLM,
    embeds: Tensor,
    attend: Tensor,
    prompts: Sequence[Prompt],
    *,
    stop: Collection[int],
    never: Collection[int],
    on_step: Callable[[], None],
) -> list[list[int]]:
    """Answer a batch of prompts.

    Args:
        model: corrected, with the adapter set.
        embeds: (batch, length, hidden), padded on the left.
        attend: (batch, length), 1 where a row's prompt is.
        prompts: what the rows are made of, with the limit of each answer.
        stop: ids that end an answer.
        never: ids that are not to be answered.
        on_step: called after each step, which is a token for every row that is not finished.

    Returns:
        For each row its tokens, the one that ended it included.

    Raises:
        DeviceError: out of memory, or the device was lost.
    """
    device = str(embeds.device)
    answers: list[list[int]] = [[] for _ in prompts]
    rows = list(range(len(prompts)))
    positions = (attend.cumsum(1) - 1).clamp(min=0)
    inputs: dict[str, Any] = {"inputs_embeds": embeds}
    cache = DynamicCache(config=model.config)
    takes_cache = _cache_argument(model)
    with device_faults(device, f"answering {len(rows)} requests"):
        chooser = Chooser(
            [prompt.sampling for prompt in prompts],
            [prompt.ids for prompt in prompts],
            never=never,
            vocabulary=model.config.vocab_size,
            device=device,
        )
    while True:
        with device_faults(device, f"answering {len(rows)} requests"):
            out = model.model(
                **inputs,
                attention_mask=attend,
                position_ids=positions,
                use_cache=True,
                **{takes_cache: cache},
            )
            # A copy: a slice's odd strides send bfloat16 on the CPU down a path that packs the
            # whole output layer anew, 5 s in place of 0.06 s (``benchmarks/waste.py``).
            last = out.last_hidden_state[:, -1].clone(memory_format=torch.contiguous_format)
            chosen = chooser.choose(model.lm_head(last))
            tokens = chosen.tolist()
        for row, token in zip(rows, tokens, strict=True):
            answers[row].append(token)
        on_step()
        going = [
            i
            for i, row in enumerate(rows)
            if tokens[i] not in stop and len(answers[row]) < prompts[row].limit
        ]
        if not going:
            return answers
        with device_faults(device, f"answering {len(going)} requests"):
            positions = positions[:, -1:] + 1
            if len(going) < len(rows):
                keep = torch.tensor(going, device=device)
                chosen, attend, positions = chosen[keep], attend[keep], positions[keep]
                cache.batch_select_indices(keep)
                chooser.keep(going)
                rows = [rows[i] for i in going]
            attend = torch.cat([attend, attend.new_ones(len(rows), 1)], dim=1)
            inputs = {"input_ids": chosen[:, None]}


def _cache_argument(model: Phi4MultimodalForCausalLM) -> str:
    """What ``forward`` calls the cache; transformers 5.24 renamed it, and warns of the old name."""
    known = inspect.signature(model.model.forward).parameters
    return "cache" if "cache" in known else "past_key_values"
