"""What keeps an inbox from being watched: said once, shown in the status, healed and said again."""

from __future__ import annotations

import logging
from collections.abc import Callable

from phi4d import events

log = logging.getLogger(__name__)


class Troubles:
    """All troubles, by inbox and by what is troubled.

    Args:
        notice: is told an inbox's name and its first trouble; None when the last one has healed.
    """

    def __init__(self, notice: Callable[[str, str | None], None]) -> None:
        self._notice = notice
        self._known: dict[str, dict[bytes, str]] = {}

    def say(self, inbox: str, what: bytes, text: str) -> None:
        """A thing is in trouble; it is logged the first time."""
        known = self._known.setdefault(inbox, {})
        before = known.get(what)
        known[what] = text
        if before is None:
            log.warning(
                'inbox "%s": %s',
                inbox,
                text,
                extra=events.INBOX_TROUBLED(inbox=inbox, fault="environment", reason=text),
            )
        if before != text:
            self._tell(inbox)

    def heal(self, inbox: str, what: bytes, text: str) -> None:
        """A thing works, and if it had been in trouble, this is said."""
        known = self._known.get(inbox)
        if known and known.pop(what, None) is not None:
            log.warning('inbox "%s": %s', inbox, text, extra=events.INBOX_HEALED(inbox=inbox))
            self._tell(inbox)

    def forget(self, inbox: str) -> None:
        """An inbox is not watched any more, or begins anew: what troubled it is past."""
        if self._known.pop(inbox, None):
            self._notice(inbox, None)

    def of(self, inbox: str) -> list[bytes]:
        """What is in trouble."""
        return list(self._known.get(inbox, ()))

    def _tell(self, inbox: str) -> None:
        texts = list(self._known[inbox].values())
        more = f" (and {len(texts) - 1} more)" if len(texts) > 1 else ""
        self._notice(inbox, texts[0] + more if texts else None)
