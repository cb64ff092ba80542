"""A GPU's memory for keys and values, had once and lent to the caches of all lanes.

Nobody else can take it meanwhile, no cache comes too late for it, and one that is opened again lies
where it lay, so that nothing is left in pieces.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from phi4d.engine.seats import key_heads

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import Phi4MultimodalForCausalLM


class Arena:
    """Places for tokens, the same in all layers.

    Args:
        model: whose layers it is for.
        tokens: that there are places for.
    """

    def __init__(self, model: Phi4MultimodalForCausalLM, tokens: int) -> None:
        self.tokens = tokens
        self._heads, self._size = key_heads(model)
        self._memory = [
            torch.zeros(
                tokens * self._heads * self._size,
                dtype=model.model.embed_tokens.weight.dtype,
                device=model.device,
            )
            for _ in range(2 * len(model.model.layers))
        ]
        self._lent: dict[int, int] = {}
        """begin to end, in tokens"""

    @property
    def nbytes(self) -> int:
        """What it takes of the device."""
        return sum(memory.nbytes for memory in self._memory)

    @property
    def room(self) -> int:
        """How many tokens one cache more could have."""
        return max(end - begin for begin, end in self._gaps())

    def take(self, tokens: int) -> tuple[int, list[Tensor]]:
        """Lend places to a cache.

        Args:
            tokens: how many, no more than `room`.

        Returns:
            Where they begin, for `leave`, and the places, with zeros in them: keys by layer, then
            values by layer, (key heads, tokens, size) each.
        """
        begin = next(begin for begin, end in self._gaps() if end - begin >= tokens)
        self._lent[begin] = begin + tokens
        width = self._heads * self._size
        places = [
            memory[begin * width : (begin + tokens) * width].zero_() for memory in self._memory
        ]
        return begin, [each.view(self._heads, tokens, self._size) for each in places]

    def leave(self, begin: int) -> None:
        """The places that were lent from here on are wanted no more."""
        del self._lent[begin]

    def _gaps(self) -> list[tuple[int, int]]:
        """What is not lent, as (begin, end); the last may be empty."""
        ends = [0, *(self._lent[begin] for begin in sorted(self._lent))]
        begins = [*sorted(self._lent), self.tokens]
        return list(zip(ends, begins, strict=True))
