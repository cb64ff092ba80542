"""Who is read together, and in what parts what is long. No torch."""

from __future__ import annotations

from collections.abc import Sequence

WASTE = 0.1
"""of a batch that may be padding, at most"""


def alike(
    lengths: Sequence[int], *, tokens: int, rows: int, beside: Sequence[int] | None = None
) -> list[int]:
    """The oldest request that waits, and others about as long.

    Args:
        lengths: of those who wait, in order of arrival; one or more.
        tokens: the batch may have, padding included; the first is taken whatever its length.
        rows: the batch may have, 1 or more.
        beside: what each takes of the tokens beside its length, which knows no padding.

    Returns:
        Their places in ``lengths``, ascending; the first is always among them.
    """
    beside = beside or [0] * len(lengths)
    chosen, longest, total, more = [0], lengths[0], lengths[0], beside[0]
    for i in sorted(range(1, len(lengths)), key=lambda i: (abs(lengths[i] - lengths[0]), i)):
        padded = max(longest, lengths[i]) * (len(chosen) + 1)
        if len(chosen) == rows or padded + more + beside[i] > tokens:
            break
        if total + lengths[i] >= (1 - WASTE) * padded:
            chosen.append(i)
            longest, total = max(longest, lengths[i]), total + lengths[i]
            more += beside[i]
    return sorted(chosen)


def evenly(count: int, most: int) -> list[int]:
    """So many things in as few parts as may be, none much smaller than another.

    Args:
        count: of all; of none there are no parts.
        most: of a part, 1 or more.
    """
    parts = -(-count // most)
    return [count * (i + 1) // parts - count * i // parts for i in range(parts)]
