"""Watches on folders, and which folder each of them stands for. The only importer of inotify.

A watch belongs to an inode, a folder to a path, and others move folders about. So a folder's watch
is set anew, by its path, whenever the folder is listed: the kernel then answers with the watch that
is there already, or tells that another folder has taken the place.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator

from inotify_simple import INotify, flags

CLOSE_WRITE = int(flags.CLOSE_WRITE)
CREATE = int(flags.CREATE)
IGNORED = int(flags.IGNORED)
ISDIR = int(flags.ISDIR)
MOVED_FROM = int(flags.MOVED_FROM)
MOVED_TO = int(flags.MOVED_TO)
Q_OVERFLOW = int(flags.Q_OVERFLOW)
UNMOUNT = int(flags.UNMOUNT)
ROOT_ENDS = int(flags.DELETE_SELF | flags.MOVE_SELF | flags.UNMOUNT | flags.IGNORED)

# opened, read, changed and closed without a write are not asked for: our own reads would tell them
_MASK = CLOSE_WRITE | CREATE | MOVED_FROM | MOVED_TO | int(flags.ONLYDIR) | int(flags.EXCL_UNLINK)
_ROOT_MASK = _MASK | int(flags.DELETE_SELF | flags.MOVE_SELF)
_FOLDER_MASK = _MASK | int(flags.DONT_FOLLOW)

LIMITS = (errno.ENOSPC, errno.ENOMEM, errno.EMFILE, errno.ENFILE)
"""of an OSError from `Watches.place`: the kernel gives no more watches, or no queue for them"""


class Watch:
    """A watched folder."""

    __slots__ = ("children", "inbox", "number", "path", "round")

    def __init__(self, number: int, inbox: str, path: bytes) -> None:
        self.number = number
        self.inbox = inbox
        self.path = path
        """below the inbox; ``b""`` is the inbox itself"""
        self.children: set[bytes] = set()
        """paths of the folders in it that are watched"""
        self.round = 0
        """when it was last placed; see `Watches.forget_older`"""


class Watches:
    """All watches of all inboxes, on one queue of the kernel's."""

    def __init__(self) -> None:
        self._inotify: INotify | None = None
        self._by_number: dict[int, Watch] = {}
        self._by_path: dict[str, dict[bytes, Watch]] = {}

    def fileno(self) -> int | None:
        """What to wait on for events; None before the first watch."""
        return None if self._inotify is None else self._inotify.fileno()

    def close(self) -> None:
        """End all watches. Idempotent."""
        if self._inotify is not None:
            self._inotify.close()
        self._inotify = None
        self._by_number.clear()
        self._by_path.clear()

    def count(self, inbox: str) -> int:
        """How many folders of an inbox are watched."""
        return len(self._by_path.get(inbox, ()))

    def place(self, inbox: str, root: bytes, path: bytes, turn: int) -> None:
        """Watch a folder, or make sure that it is watched still.

        Args:
            inbox: the inbox's name.
            root: its folder.
            path: the folder, below the inbox.
            turn: a number that rises; see `forget_older`.

        Raises:
            OSError: it is gone, cannot be read, or there is a limit (`LIMITS`).
        """
        if self._inotify is None:
            self._inotify = INotify(nonblocking=True)
        number = self._inotify.add_watch(
            os.path.join(root, path) if path else root, _FOLDER_MASK if path else _ROOT_MASK
        )
        folders = self._by_path.setdefault(inbox, {})
        watch = self._by_number.get(number)
        if watch is not None and (watch.inbox, watch.path) != (inbox, path):
            self._detach(watch)  # this folder was at another path
            watch = None
        if watch is None:
            if path in folders:
                self.forget(inbox, path)  # another folder was at this path
            watch = Watch(number, inbox, path)
            self._by_number[number] = folders[path] = watch
            parent = folders.get(os.path.dirname(path)) if path else None
            if parent is not None:
                parent.children.add(path)
        watch.round = turn

    def forget(self, inbox: str, path: bytes = b"") -> None:
        """End the watches of a folder and of all below it; nothing if it has none."""
        watch = self._by_path.get(inbox, {}).get(path)
        if watch is not None:
            self._detach(watch)
            self._end(watch)

    def forget_older(self, inbox: str, turn: int) -> None:
        """End the watches that were placed in an earlier turn: their folders were not met again."""
        for watch in list(self._by_path.get(inbox, {}).values()):
            if watch.round < turn:
                self.forget(inbox, watch.path)

    def read(self) -> Iterator[tuple[Watch | None, int, bytes]]:
        """The events that are there now: the folder, the kernel's flags, and a name in the folder.

        The folder is None where the queue overflowed. Events of watches that have ended are left
        out; those of ends that the kernel tells of come last for that folder.
        """
        if self._inotify is None:
            return
        for number, mask, _, name in self._inotify.read(timeout=0):
            if mask & Q_OVERFLOW:
                yield None, mask, b""
                continue
            watch = self._by_number.get(number)
            if watch is None:
                continue
            if mask & IGNORED:
                self._detach(watch)
            yield watch, mask, os.fsencode(name)

    def _detach(self, watch: Watch) -> None:
        """Take a folder out of the books, and end the watches below it."""
        folders = self._by_path[watch.inbox]
        parent = folders.get(os.path.dirname(watch.path)) if watch.path else None
        if parent is not None:
            parent.children.discard(watch.path)
        self._strike(watch)
        below = list(watch.children)
        while below:
            child = folders.get(below.pop())
            if child is not None:
                below += child.children
                self._strike(child)
                self._end(child)

    def _strike(self, watch: Watch) -> None:
        self._by_number.pop(watch.number, None)
        self._by_path[watch.inbox].pop(watch.path, None)

    def _end(self, watch: Watch) -> None:
        if self._inotify is not None:
            with contextlib.suppress(OSError):  # the kernel had ended it
                self._inotify.rm_watch(watch.number)
