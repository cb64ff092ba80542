"""Who is read together: the oldest request that waits, and others about as long. No torch."""

from __future__ import annotations

from collections.abc import Sequence

WASTE = 0.1
"""of a batch that may be padding, at most"""


def alike(lengths: Sequence[int], *, tokens: int, rows: int) -> list[int]:
    """Which of those who wait make a batch.

    Args:
        lengths: of their prompts, in order of arrival; one or more.
        tokens: the batch may have, padding included; the first is taken whatever its length.
        rows: the batch may have, 1 or more.

    Returns:
        Their places in ``lengths``, ascending; the first is always among them.
    """
    chosen, longest, total = [0], lengths[0], lengths[0]
    for i in sorted(range(1, len(lengths)), key=lambda i: (abs(lengths[i] - lengths[0]), i)):
        padded = max(longest, lengths[i]) * (len(chosen) + 1)
        if len(chosen) == rows or padded > tokens:
            break
        if total + lengths[i] >= (1 - WASTE) * padded:
            chosen.append(i)
            longest, total = max(longest, lengths[i]), total + lengths[i]
    return sorted(chosen)
