"""Which inbox or outbox a path is in: by its name alone, or as the file system has it."""

from __future__ import annotations

import os
from collections.abc import Sequence

from phi4d.config import Inbox


def below(path: bytes, folder: bytes) -> bytes | None:
    """A path as seen from a folder: nothing for the folder itself, None if it is not in it."""
    if path == folder:
        return b""
    above = folder.rstrip(b"/") + b"/"
    return path.removeprefix(above) if path.startswith(above) else None


def inbox_of(path: bytes, boxes: Sequence[Inbox]) -> tuple[Inbox, bytes] | None:
    """The inbox that an absolute path is in, and the path below it; None: it is in none."""
    for box in boxes:
        relative = below(path, os.fsencode(box.path))
        if relative is not None:
            return box, relative
    return None


def outboxes_of(path: bytes, boxes: Sequence[Inbox]) -> list[tuple[Inbox, bytes]]:
    """The inboxes whose outbox an absolute path is in, and the path below that.

    Outboxes may lie in each other; the innermost comes first.
    """
    found = []
    for box in boxes:
        relative = below(path, os.fsencode(box.outbox_root()))
        if relative is not None:
            found.append((box, relative))
    return sorted(found, key=lambda each: len(each[1]))


def as_configured(path: str, boxes: Sequence[Inbox]) -> bytes:
    """A path that somebody gave, absolute, and by the names that the configuration has.

    Links on the way are followed if nothing else leads into an inbox or an outbox; the last name is
    never taken for a link, for a link is a file of its own.
    """
    given = os.fsencode(os.path.abspath(path))
    if inbox_of(given, boxes) or outboxes_of(given, boxes):
        return given
    folder, name = os.path.split(given)
    real = os.path.join(os.path.realpath(folder), name)
    for box in boxes:
        for root in (os.fsencode(box.path), os.fsencode(box.outbox_root())):
            relative = below(real, os.path.realpath(root))
            if relative is not None:
                return os.path.join(root, relative) if relative else root
    return given
