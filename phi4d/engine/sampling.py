"""From logits to tokens: which one comes next in each row of a batch. No model.

Rows do not touch each other: each has its own `phi4d.job.Sampling`, and draws from a generator of
its own. So a request has the same answer alone and in any batch.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

import torch

from phi4d.job import Sampling

if TYPE_CHECKING:
    from torch import Tensor


class Chooser:
    """Chooses the tokens of a batch, step by step.

    Nothing here waits for the device, and a batch that is greedy throughout costs an argmax.

    Args:
        samplings: for each row.
        prompts: for each row its prompt's ids, which the repetition penalty counts in.
        never: ids that are not to be chosen. Upstream takes a generated media id for media and
            crashes (fault E).
        vocabulary: how many logits a row has.
        device: where the logits are.
    """

    def __init__(
        self,
        samplings: Sequence[Sampling],
        prompts: Sequence[Sequence[int]],
        *,
        never: Collection[int],
        vocabulary: int,
        device: str,
    ) -> None:
        self._never = torch.tensor(sorted(never), dtype=torch.int64, device=device)
        self._penalized = any(sampling.repetition_penalty != 1 for sampling in samplings)
        if self._penalized:
            seen = torch.zeros(len(samplings), vocabulary, dtype=torch.bool)
            for row, ids in zip(seen, prompts, strict=True):
                row[torch.tensor(ids)] = True
            self._seen = seen.to(device)
            self._penalties = _column([s.repetition_penalty for s in samplings], device)
        self._drawn = any(sampling.temperature > 0 for sampling in samplings)
        if self._drawn:
            self._temperatures = _column([s.temperature for s in samplings], device)
            self._generators = [
                torch.Generator(device).manual_seed(s.seed) if s.temperature > 0 else None
                for s in samplings
            ]

    def choose(self, logits: Tensor) -> Tensor:
        """The next token of each row: (rows, vocabulary) to (rows,)."""
        if self._penalized:
            logits = self._penalize(logits.float())
        if self._drawn:
            logits = self._perturb(logits.float())
        tokens = logits.index_fill(1, self._never, -torch.inf).argmax(1)
        if self._penalized:
            self._seen.scatter_(1, tokens[:, None], value=True)
        return tokens

    def keep(self, rows: Sequence[int]) -> None:
        """Go on with some of the rows, in this order."""
        if self._penalized:
            index = torch.tensor(rows, device=self._seen.device)
            self._seen, self._penalties = self._seen[index], self._penalties[index]
        if self._drawn:
            index = torch.tensor(rows, device=self._temperatures.device)
            self._temperatures = self._temperatures[index]
            self._generators = [self._generators[row] for row in rows]

    def _penalize(self, logits: Tensor) -> Tensor:
        """Make what stands in the prompt or the answer already less likely.

        As transformers' ``RepetitionPenaltyLogitsProcessor`` does; a penalty of 1 changes nothing.
        """
        weaker = torch.where(logits < 0, logits * self._penalties, logits / self._penalties)
        return torch.where(self._seen, weaker, logits)

    def _perturb(self, logits: Tensor) -> Tensor:
        """Logits whose largest is a draw from softmax(logits / temperature).

        The Gumbel-max trick: what is added is temperature x -log E, with E exponentially
        distributed. ``torch.multinomial`` would wait for the device, and takes one generator for
        all rows. At temperature 0 nothing is added.
        """
        noise = torch.ones_like(logits)
        for row, generator in zip(noise, self._generators, strict=True):
            if generator is not None:
                row.exponential_(generator=generator)
        return logits - self._temperatures * noise.log_()


def _column(values: Sequence[float], device: str) -> Tensor:
    """(rows, 1) float32."""
    return torch.tensor(values, dtype=torch.float32, device=device)[:, None]
