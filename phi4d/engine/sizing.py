"""How much of a GPU's memory is for the caches, and how many answers are written there at a time.

Pure arithmetic, on what `phi4d.engine.phi4` measures when the model is loaded. No torch.
"""

from __future__ import annotations

from dataclasses import dataclass

MOST_ROWS = 128
"""answers at a time that a GPU's memory is taken for, if nobody says how many"""
SPEECH_TOKENS = 1024
"""a seat for a clip of 30 s: 375 tokens, those of its prompt, and an answer of 512"""
VISION_TOKENS = 4096
"""a seat for a picture: 1920x1080 has 3,918 tokens, and at most 4,096 are short"""
SURPLUS = 1.15
"""over what work took when it was measured: what the allocator loses between blocks"""
MARGIN_BYTES = 500_000_000
"""for captured steps and the choice of tokens. An allowance, not a measurement"""
LEAST_SHARE = 0.4
"""of the memory that is free, for the caches, whatever work took: what then does not fit is read
one by one"""


@dataclass(frozen=True, slots=True)
class Sizes:
    """What a GPU is to hold."""

    rows: int
    """answers that are written at a time, for either kind"""
    tokens: int
    """of all caches together"""


def sizes(free: int, working: int, token: int, rows: int | None) -> Sizes:
    """Share out the memory that is free once the model is loaded.

    Args:
        free: bytes.
        working: bytes that towers and the reading of prompts took at most, when it was tried.
        token: bytes of one token in the caches.
        rows: answers at a time that are wanted; None: as many as pay.
    """
    wanted = rows or MOST_ROWS
    room = max(LEAST_SHARE * free, free - SURPLUS * working - MARGIN_BYTES)
    tokens = min(wanted * (SPEECH_TOKENS + VISION_TOKENS), int(room / token))
    # no lane has more than half of it
    return Sizes(max(1, min(wanted, tokens // 2 // SPEECH_TOKENS)), max(1, tokens))
