"""What keeps inboxes from working, gathered from all threads, for `phi4d status` to tell."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping


class Notices:
    """The notices of a daemon. Any thread may say something; one writes it down now and then."""

    def __init__(self) -> None:
        self._now: dict[tuple[str, str], str] = {}
        self._written: dict[tuple[str, str], str] = {}
        self._lock = threading.Lock()

    def say(self, inbox: str, about: str, text: str | None) -> None:
        """Something keeps an inbox from working; None: it works again.

        Args:
            inbox: its name.
            about: what it is about: 'outbox', 'watch', 'originals', 'on_done', 'on_failed'.
            text: what was found, what was expected, and what to do.
        """
        with self._lock:
            if text is None:
                self._now.pop((inbox, about), None)
            else:
                self._now[inbox, about] = text

    def say_all(self, about: str, texts: Mapping[str, str]) -> None:
        """Everything that there is to say about a thing, by inbox; the others work."""
        with self._lock:
            for key in [key for key in self._now if key[1] == about]:
                del self._now[key]
            self._now.update({(inbox, about): text for inbox, text in texts.items()})

    def forget(self, inbox: str) -> None:
        """There is nothing more to say of an inbox: it is not watched any more."""
        with self._lock:
            for key in [key for key in self._now if key[0] == inbox]:
                del self._now[key]

    def about(self, about: str) -> dict[str, str]:
        """What there is to say about a thing, by inbox."""
        with self._lock:
            return {inbox: text for (inbox, key), text in self._now.items() if key == about}

    def flush(self, write: Callable[[str, str, str | None], None]) -> None:
        """Write down what has changed since it was last written.

        Args:
            write: takes inbox, about and text, or None; what it raises leaves the rest for the
                next time.
        """
        with self._lock:
            now = dict(self._now)
        for key in [key for key in self._written if key not in now]:
            write(*key, None)
            del self._written[key]
        for key, text in now.items():
            if self._written.get(key) != text:
                write(*key, text)
                self._written[key] = text
