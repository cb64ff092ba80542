"""To settle: to wait until a file is complete. Pure; the time is passed in."""

from __future__ import annotations

from phi4d.job import Fingerprint


class Settler:
    """Tells when a file is complete.

    Args:
        seconds: how long a file must stay unchanged when nothing tells that it is complete.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        # ordered by the time since when they are unchanged, because each change moves to the end
        self._pending: dict[tuple[str, bytes], tuple[Fingerprint, float]] = {}

    def __len__(self) -> int:
        return len(self._pending)

    def seen(self, key: tuple[str, bytes], fingerprint: Fingerprint, now: float) -> None:
        """A file was seen that may be growing."""
        known = self._pending.get(key)
        if known is None or known[0] != fingerprint:
            self._pending.pop(key, None)
            self._pending[key] = (fingerprint, now)

    def forget(self, key: tuple[str, bytes]) -> None:
        """The file is complete by other signs, or gone."""
        self._pending.pop(key, None)

    def due(self, now: float) -> list[tuple[str, bytes]]:
        """Files whose time is up: each is to be looked at again, and given to `settled`."""
        result = []
        for key, (_, since) in self._pending.items():
            if now - since < self._seconds:
                break
            result.append(key)
        return result

    def settled(self, key: tuple[str, bytes], fingerprint: Fingerprint, now: float) -> bool:
        """Whether a file that was due is unchanged, and so complete; else it waits anew."""
        known = self._pending.get(key)
        if known is not None and known[0] == fingerprint:
            del self._pending[key]
            return True
        self.seen(key, fingerprint, now)
        return False
