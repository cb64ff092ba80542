"""Lines that are said over and over: said at first, then counted. Pure; the time is passed in."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

WINDOW_SECONDS = 300.0
"""for how long a line is counted before the count is said"""
MOST_KINDS = 1000
"""kinds of lines that are kept in mind at most; beyond, the oldest's count is said early"""
Kind = tuple[str, int, str]
"""what equal lines have in common: logger, level, and the template or the reason"""


@dataclass(slots=True)
class _Window:
    """What was said of one kind of line since its window began."""

    since: float
    """monotonic seconds"""
    said: int = 0
    """lines"""
    often: dict[str, int] = field(default_factory=dict)
    """each text that was said, and how often it would have been said since"""
    others: int = 0
    """how many further texts were not said at all"""
    last: str = ""
    """the latest of them"""


@dataclass(frozen=True, slots=True)
class Count:
    """What is to be said of lines that were not."""

    kind: Kind
    text: str
    """what was not said, or the latest of it"""
    times: int
    seconds: float
    """the time in which it was so often"""
    is_one: bool
    """True: it was this very text each time; False: lines like it"""

    def words(self) -> str:
        """As a line of the log."""
        times = f"{self.times:,} time{'s' if self.times > 1 else ''} more"
        said = f"said {times}" if self.is_one else f"{self.times:,} more like this"
        return f"{said} in the last {span(self.seconds)}: {self.text}"


class Repeats:
    """Tells which lines to say, and which only to count."""

    def __init__(self) -> None:
        self._kinds: dict[Kind, _Window] = {}

    def counts(self, kind: Kind, text: str, now: float, singly: int, *, once: bool = True) -> bool:
        """Whether a line is only counted: what it says was said just now, or enough like it was.

        Args:
            kind: what the line has in common with equal ones.
            text: what the line says.
            now: monotonic seconds.
            singly: lines of one kind that are each said, within a window.
            once: a text that was said is not said again within the window.
        """
        known = self._kinds.setdefault(kind, _Window(now))
        if once and text in known.often:
            known.often[text] += 1
        elif known.said < singly:
            known.said += 1
            known.often.setdefault(text, 0)
            return False
        else:
            known.others += 1
            known.last = text
        return True

    def due(self, now: float, *, everything: bool = False) -> Iterator[Count]:
        """What is to be said now, of windows that are over; everything: of all.

        What was counted is counted on, in a new window; what was not is forgotten.
        """
        surplus = len(self._kinds) - MOST_KINDS
        for n, (kind, known) in enumerate(list(self._kinds.items())):
            seconds = now - known.since
            if not everything and n >= surplus and seconds < WINDOW_SECONDS:
                continue
            for text, times in known.often.items():
                if times:
                    yield Count(kind, text, times, seconds, is_one=True)
            if known.others:
                yield Count(kind, known.last, known.others, seconds, is_one=False)
            del self._kinds[kind]
            if (known.others or any(known.often.values())) and not everything and n >= surplus:
                self._kinds[kind] = _Window(now, known.said, dict.fromkeys(known.often, 0))


def span(seconds: float) -> str:
    """A stretch of time in words, such as "30 s" or "5 minutes"."""
    if seconds < 90:
        return f"{max(seconds, 1):.0f} s"
    return f"{seconds / 60:.0f} minutes"
