"""From logits to tokens: which one comes next in each row of a batch. No model.

Rows do not touch each other: each has its own `phi4d.job.Sampling`, and what it draws depends on
its seed and on how many tokens it has, and on nothing else. So a request has the same answer alone
and in any batch, whoever joins or leaves, and a step that failed can be done again.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from phi4d.engine.copies import to_device
from phi4d.job import GREEDY, Sampling

if TYPE_CHECKING:
    from torch import Tensor

GOLDEN = 0x9E3779B97F4A7C15
"""2^64 over the golden ratio, the step of SplitMix64; this and the mixing of bits are from Steele,
Lea and Flood, Fast splittable pseudorandom number generators, 2014, in the variant of
https://prng.di.unimi.it/splitmix64.c"""

DRAWN_TOGETHER = 16
"""rows; more would take hundreds of megabytes on the way"""


@dataclass(frozen=True, slots=True)
class Ways:
    """What is to be worked out for some rows, beyond the largest logit."""

    draws: bool
    """one of them is drawn"""
    penalizes: bool
    """one of them has a penalty for what stands there already"""


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
        self._vocabulary = vocabulary
        self._device = device
        self._seeds = torch.zeros(rows, dtype=torch.int64, device=device)
        self._chosen = torch.zeros_like(self._seeds)
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
        self._seeds[row] = signed(sampling.seed)
        self._chosen[row] = 0
        self._temperatures[row] = sampling.temperature
        self._penalties[row] = sampling.repetition_penalty
        if sampling.repetition_penalty != 1:
            if self._seen is None:
                shape = (len(self._samplings), self._vocabulary)
                self._seen = torch.zeros(shape, dtype=torch.bool, device=self._device)
            self._seen[row] = False
            self._seen[row, to_device(torch.tensor(sorted(set(prompt))), self._device)] = True

    def ways(self, rows: Sequence[int]) -> Ways:
        """What `pick` has to work out for some rows."""
        samplings = [self._samplings[row] for row in rows]
        return Ways(
            any(sampling.temperature > 0 for sampling in samplings),
            any(sampling.repetition_penalty != 1 for sampling in samplings),
        )

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
        ways = self.ways(rows)
        tokens = self.pick(logits, index, ways)
        self.note(tokens, index, ways, torch.ones_like(tokens, dtype=torch.bool))
        return tokens

    def pick(self, logits: Tensor, index: Tensor | slice, ways: Ways) -> Tensor:
        """As `choose`, but nothing is changed, and what is worked out is said beforehand."""
        if ways.penalizes and self._seen is not None:
            logits = _penalize(logits.float(), self._seen[index], self._penalties[index])
        if ways.draws:
            logits = self._perturb(logits.float(), index)
        return logits.index_fill(1, self._never, -torch.inf).argmax(1)

    def _perturb(self, logits: Tensor, index: Tensor | slice) -> Tensor:
        """Logits whose largest is a draw from softmax(logits / temperature).

        The Gumbel-max trick: what is added is temperature x -log E, with E exponentially
        distributed. At temperature 0 nothing is added.
        """
        temperatures, seeds = self._temperatures[index], self._seeds[index]
        numbers, size = self._chosen[index], logits.shape[1]
        parts = []
        for begin in range(0, len(logits), DRAWN_TOGETHER):
            some = slice(begin, begin + DRAWN_TOGETHER)
            drawn = exponential(seeds[some], numbers[some], size).log_()
            parts.append(logits[some] - temperatures[some] * drawn)
        return torch.cat(parts)

    def note(self, tokens: Tensor, index: Tensor | slice, ways: Ways, live: Tensor) -> None:
        """Keep in mind what was picked, where ``live``: the next choice of a row depends on it."""
        if ways.penalizes and self._seen is not None:
            seen, column = self._seen[index], tokens[:, None]
            self._seen[index] = seen.scatter(1, column, seen.gather(1, column) | live[:, None])
        self._chosen[index] += live


def exponential(seeds: Tensor, numbers: Tensor, size: int) -> Tensor:
    """Exponentially distributed numbers that follow from where they stand, and from nothing else.

    Args:
        seeds: (batch,) int64.
        numbers: (batch,) int64, which of a seed's draws it is.
        size: how many for each.

    Returns:
        (batch, size), float32, between 2^-64 and 17.
    """
    keys = mixed(mixed(seeds + signed(GOLDEN)) + (numbers + 1) * signed(GOLDEN))
    places = torch.arange(1, size + 1, device=seeds.device) * signed(GOLDEN)
    bits = mixed(keys[:, None] + places)
    # Small ones decide, so these are exact: as near to 0 as 64 bits can be.
    uniform = bits.bitwise_right_shift_(1).bitwise_and_(2**63 - 1).float().mul_(2.0**-63)
    return uniform.clamp_(2.0**-64, 1 - 2.0**-24).neg_().log1p_().neg_()


def signed(number: int) -> int:
    """An integer as the 64 bits with a sign that it is modulo 2^64."""
    return (number + 2**63) % 2**64 - 2**63


def mixed(bits: Tensor) -> Tensor:
    """SplitMix64's: neighbours have nothing in common any more. Changes what it is given."""
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB), (31, 1)):
        bits.bitwise_xor_((bits >> shift).bitwise_and_(2 ** (64 - shift) - 1)).mul_(signed(factor))
    return bits


def _penalize(logits: Tensor, seen: Tensor, penalties: Tensor) -> Tensor:
    """Make what stands in the prompt or the answer already less likely.

    As transformers' ``RepetitionPenaltyLogitsProcessor`` does; a penalty of 1 changes nothing.
    """
    weaker = torch.where(logits < 0, logits * penalties, logits / penalties)
    return torch.where(seen, weaker, logits)
