"""The ladder of a slot: what is asked of a device whose memory was too small, rung by rung.

Pure: it knows neither engine nor store. Pictures and recordings have a ladder each, because
memory for one says nothing of the other. There is no way up: what did not fit once will not fit
again, and a slot that tries would pay for it with a failed call each time.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from phi4d.job import Kind

SIZES: Mapping[Kind, tuple[int, ...]] = {Kind.IMAGE: (12, 4), Kind.AUDIO: (15, 8)}
"""crops of a picture and seconds of a recording at a time, if the usual 36 and 30 do not fit; each
takes about half the memory of the one before. Four crops still tell what a picture shows, and
eight seconds hold a sentence"""


@dataclass(frozen=True, slots=True)
class Rung:
    """What one request may be, for one kind of file."""

    size: int | None = None
    """crops of a picture, or seconds of a recording at a time, at most; None: as it comes"""
    alone: bool = False
    """no other slot uses the same device meanwhile"""


class Ladder:
    """Where one slot stands.

    Args:
        shared: whether other slots use the same device.
    """

    def __init__(self, *, shared: bool) -> None:
        self._shared = shared
        self._rungs = {kind: Rung() for kind in Kind}

    def rung(self, kind: Kind) -> Rung:
        """What a request may be."""
        return self._rungs[kind]

    def down(self, kind: Kind, size: float) -> Rung | None:
        """Go down after a request that did not fit, to the first rung that asks less than it did.

        Args:
            kind: of the request.
            size: crops of the picture, or seconds of the recording.

        Returns:
            Where the slot stands now; None if nothing below asks less.
        """
        now = self._rungs[kind]
        smaller = [limit for limit in SIZES[kind] if limit < size]
        if smaller:
            below = replace(now, size=smaller[0])
        elif self._shared and not now.alone:
            below = replace(now, alone=True)
        else:
            return None
        self._rungs[kind] = below
        return below


def words(kind: Kind, rung: Rung) -> str:
    """A rung for people: ``pictures: at most 12 crops, alone on the device``."""
    limits = [reduction(kind, rung.size)] if rung.size else []
    limits += ["alone on the device"] if rung.alone else []
    return f"{kind.noun}s: {', '.join(limits)}"


def reduction(kind: Kind, size: int) -> str:
    """A limit on crops or seconds for people: ``at most 12 crops``."""
    return f"at most {size} crops" if kind is Kind.IMAGE else f"at most {size} s at a time"
