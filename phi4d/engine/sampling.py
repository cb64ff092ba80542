"""From logits to tokens: which one comes next in each row of a batch. No model.

Rows do not touch each other: each has its own `phi4d.job.Sampling`, and what it draws depends on
its seed and on how many tokens it has, and on nothing else. So a request has the same answer alone
and in any batch, whoever joins or leaves, and a step that failed can be done again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

import torch

from phi4d.job import GREEDY, Sampling

if TYPE_CHECKING:
    from torch import Tensor


class Chooser:
    """Chooses the tokens of rows that come and go, step by step.

    Nothing here waits for the device, and a batch that is greedy throughout costs an argmax.

    Args:
        rows: the most at a time.
        never: ids that are not to be chosen. Upstream takes a generated media id for media and
            crashes (fault E).
        vocabulary: how many logits a row has.
        device: where the logits are.
    """

    def __init__(self, rows: int, *, never: Collection[int], vocabulary: int, device: str) -> None:
        self._never = torch.tensor(sorted(never), dtype=torch.int64, device=device)
        self._samplings = [GREEDY] * rows
        self._chosen = [0] * rows
        self._vocabulary = vocabulary
        self._generator = torch.Generator(device)
        self._temperatures = torch.zeros(rows, 1, device=device)
        self._penalties = torch.ones(rows, 1, device=device)
        self._seen: Tensor | None = None
        """(rows, vocabulary) once it is needed: 200 kB a row"""

    def join(self, row: int, sampling: Sampling, prompt: Sequence[int]) -> None:
        """Begin a row, whoever had it before.

        Args:
            row: its number, below ``rows``.
            sampling: how its tokens are chosen.
            prompt: its prompt's ids, which the repetition penalty counts in.
        """
        self._samplings[row] = sampling
        self._chosen[row] = 0
        self._temperatures[row] = sampling.temperature
        self._penalties[row] = sampling.repetition_penalty
        if sampling.repetition_penalty != 1:
            device = self._penalties.device
            if self._seen is None:
                shape = (len(self._samplings), self._vocabulary)
                self._seen = torch.zeros(shape, dtype=torch.bool, device=device)
            self._seen[row] = False
            self._seen[row, torch.tensor(sorted(set(prompt)), device=device)] = True

    def choose(self, logits: Tensor, rows: Sequence[int], index: Tensor | None = None) -> Tensor:
        """The next token of some rows.

        Args:
            logits: (batch, vocabulary).
            rows: for each of the batch, which row it is.
            index: the same, (batch,) on the device, if it is there already.

        Returns:
            (batch,) tokens.
        """
        if index is None:
            index = torch.tensor(rows, device=logits.device)
        samplings = [self._samplings[row] for row in rows]
        seen = self._seen
        if not any(s.repetition_penalty != 1 for s in samplings):
            seen = None
        if seen is not None:
            logits = _penalize(logits.float(), seen[index], self._penalties[index])
        if any(s.temperature > 0 for s in samplings):
            logits = self._perturb(logits.float(), rows, index)
        tokens = logits.index_fill(1, self._never, -torch.inf).argmax(1)
        if seen is not None:
            seen[index, tokens] = True
        for row in rows:
            self._chosen[row] += 1
        return tokens

    def _perturb(self, logits: Tensor, rows: Sequence[int], index: Tensor) -> Tensor:
        """Logits whose largest is a draw from softmax(logits / temperature).

        The Gumbel-max trick: what is added is temperature x -log E, with E exponentially
        distributed. ``torch.multinomial`` would wait for the device, and takes one generator for
        all rows. At temperature 0 nothing is added.
        """
        noise = torch.ones_like(logits)
        for row, drawn in zip(rows, noise, strict=True):
            if self._samplings[row].temperature > 0:
                self._generator.manual_seed(_mixed(self._samplings[row].seed, self._chosen[row]))
                drawn.exponential_(generator=self._generator)
        return logits - self._temperatures[index] * noise.log_()


def _penalize(logits: Tensor, seen: Tensor, penalties: Tensor) -> Tensor:
    """Make what stands in the prompt or the answer already less likely.

    As transformers' ``RepetitionPenaltyLogitsProcessor`` does; a penalty of 1 changes nothing.
    """
    weaker = torch.where(logits < 0, logits * penalties, logits / penalties)
    return torch.where(seen, weaker, logits)


def _mixed(seed: int, token: int) -> int:
    """The seed of one token's draw; neighbours have nothing in common."""
    return int.from_bytes(hashlib.blake2b(f"{seed} {token}".encode(), digest_size=8).digest())
