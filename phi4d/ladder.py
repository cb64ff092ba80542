"""The ladder of a slot: what is asked of a device whose memory was too small, rung by rung.

Pure: it knows neither engine nor store. Pictures and recordings have a ladder each, because
memory for one says nothing of the other. There is no way up: what did not fit once will not fit
again, and a slot that tries would pay for it with a failed call each time.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace

from phi4d.job import Kind

SIZES: Mapping[Kind, tuple[int, ...]] = {Kind.IMAGE: (12, 4), Kind.AUDIO: (15, 8)}
"""crops of a picture and seconds of a recording at a time, if the usual 36 and 30 do not fit; each
takes about half the memory of the one before. Four crops still tell what a picture shows, and
eight seconds hold a sentence"""


@dataclass(frozen=True, slots=True)
class Rung:
    """What one call of the engine may hold, for one kind of file."""

    requests: int
    """at most"""
    size: int | None = None
    """crops of a picture, or seconds of a recording at a time, at most; None: as it comes"""
    alone: bool = False
    """no other slot uses the same device meanwhile"""


class Ladder:
    """Where one slot stands.

    Args:
        requests: in one call at most, to begin with.
        shared: whether other slots use the same device.
    """

    def __init__(self, requests: int, *, shared: bool) -> None:
        self._requests = requests
        self._shared = shared
        # what memory has taught; of requests nothing, until a call did not fit
        self._rungs = {kind: Rung(sys.maxsize) for kind in Kind}

    def widen(self, requests: int) -> None:
        """Let calls hold so many requests at most, or fewer where more did not fit before.

        Any thread may call.
        """
        self._requests = requests

    def rung(self, kind: Kind) -> Rung:
        """What a call may hold."""
        known = self._rungs[kind]
        return replace(known, requests=min(known.requests, self._requests))

    def capacity(self) -> dict[Kind, int]:
        """The most requests in a call, for each kind."""
        return {kind: self.rung(kind).requests for kind in Kind}

    def down(self, kind: Kind, requests: int, size: float) -> Rung | None:
        """Go down after a call that did not fit, to the first rung that asks less than it did.

        Args:
            kind: of the call.
            requests: that it held.
            size: of its largest: crops of a picture, or seconds of a recording.

        Returns:
            Where the slot stands now; None if nothing below asks less.
        """
        known, now = self._rungs[kind], self.rung(kind)
        smaller = [limit for limit in SIZES[kind] if limit < size]
        if requests > 1:
            fewer = now.requests
            while fewer >= requests:
                fewer //= 2
            below = replace(known, requests=fewer)
        elif smaller:
            below = replace(known, size=smaller[0])
        elif self._shared and not now.alone:
            below = replace(known, requests=1, alone=True)
        else:
            return None
        self._rungs[kind] = below
        return self.rung(kind)


def words(kind: Kind, rung: Rung) -> str:
    """A rung for people: ``pictures: at most 1 a call, at most 12 crops each``."""
    pictures = kind is Kind.IMAGE
    return (
        f"{'pictures' if pictures else 'recordings'}: at most {rung.requests} a call"
        + (f", {reduction(kind, rung.size)}" if rung.size else "")
        + (", alone on the device" if rung.alone else "")
    )


def reduction(kind: Kind, size: int) -> str:
    """A limit on crops or seconds for people: ``at most 12 crops``."""
    return f"at most {size} crops" if kind is Kind.IMAGE else f"at most {size} s at a time"
