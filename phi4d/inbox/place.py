"""An inbox's folder as it is now: whether it is there, what it lies on, how it is watched."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Literal

from phi4d.inbox.mounts import polled_type
from phi4d.inbox.rules import Rules
from phi4d.inbox.settle import Look
from phi4d.job import Fingerprint, Kind, printable

DAY_SECONDS = 86_400.0
"""no server's clock is wrong by so much; a file that is older is complete"""
ABIDE = "it is taken up by itself"


@dataclass(frozen=True, slots=True)
class Root:
    """A watched folder, as it is configured."""

    name: str
    """the inbox's name"""
    path: bytes
    """absolute"""
    rules: Rules
    """what is taken, by its name"""
    mode: Literal["auto", "inotify", "poll"] = "auto"
    """auto: polled on file systems where others' changes send no events"""
    kinds: frozenset[Kind] = frozenset(Kind)
    """files of another kind are passed over"""

    def same(self, other: Root) -> bool:
        """Whether another root is configured just so."""
        mine, others = (replace(root, rules=self.rules) for root in (self, other))
        return mine == others and self.rules.says_the_same(other.rules)


@dataclass(frozen=True, slots=True)
class State:
    """What a look at the folder told."""

    identity: tuple[int, int] = (0, 0)
    """device and inode"""
    mounted: bool = False
    """a file system is mounted at this very folder"""
    fault: str = ""
    """why it cannot be used, in words; empty: it can"""


def examine(path: bytes) -> State:
    """Look at a folder; cheap, and safe in any thread."""
    try:
        status = os.stat(path)
        above = os.stat(os.path.join(path, b".."))
        if not os.access(path, os.R_OK | os.X_OK):
            raise PermissionError(0, "Permission denied")
    except OSError as error:
        return State(
            fault=f"{printable(path)} cannot be read: {error.strerror}; make or mount it, or give "
            f"the daemon's user access: {ABIDE}"
        )
    identity = (status.st_dev, status.st_ino)
    return State(identity, status.st_dev != above.st_dev)


@dataclass(slots=True)
class Place:
    """A root and what is known of it; the watcher's thread changes it, others may look."""

    root: Root
    state: State | None = None
    """as it was taken up; None: it is not to be used now"""
    seen: set[tuple[int, int]] = field(default_factory=set)
    """identities of the folders that were taken up here"""
    was_mounted: bool = False
    """the folder that was taken up last had a file system of its own"""
    polled: str = ""
    """why it is polled; empty: it is watched"""
    limited: bool = False
    """polled as well as watched, because some folders are not"""
    scan: Iterator[None] | None = None
    """the comparison that is under way"""
    again: bool = False
    """another comparison is due when this one ends"""
    owes: bool = False
    """files were found that the store could not be asked about, or given"""
    next_scan: float = 0.0
    """by the watcher's clock"""

    @property
    def name(self) -> str:
        """The inbox's name."""
        return self.root.name

    @property
    def mode(self) -> str:
        """For the status: "inotify", "poll", or "poll" with the reason."""
        if self.limited:
            return "poll (watch limit)"
        return self.polled or "inotify"

    def fault(self) -> str:
        """Why the folder cannot be used now, in words; empty: it is the one that was taken up."""
        now = examine(self.root.path)
        if now.fault:
            return now.fault
        known = self.state
        if known is None or known.identity != now.identity:
            return self.lost(now) or (
                f"{printable(self.root.path)} is another folder than before: {ABIDE}"
            )
        return ""

    def lost(self, now: State) -> str:
        """Whether the folder is only what remains when a file system was unmounted, in words.

        Its files are not gone then. A folder that was an inbox before something was mounted over
        it is one again.
        """
        if not self.was_mounted or now.mounted or now.identity in self.seen:
            return ""
        return (
            f"{printable(self.root.path)} is not mounted any more; mount it again, or start phi4d "
            f"anew if its files are to come from the folder that lies there now: {ABIDE}"
        )

    def take_up(self, now: State) -> None:
        """The folder is there, and this is the one."""
        self.state = now
        self.seen.add(now.identity)
        self.was_mounted = now.mounted

    def choose(self) -> None:
        """Watch or poll, by the configuration and the file system.

        Raises:
            OSError: the folder cannot be opened.
        """
        if self.root.mode == "auto":
            kind = polled_type(self.root.path)
            self.polled = f"poll ({kind})" if kind else ""
        else:
            self.polled = "poll" if self.root.mode == "poll" else ""

    def look(self, status: os.stat_result, now: float) -> Look:
        """What a file's status tells.

        Args:
            status: of the file itself, links not followed.
            now: seconds since the epoch.
        """
        # a time of the future is none: cameras and copies have them
        times = [time for time in (status.st_mtime, status.st_ctime) if time <= now]
        age = now - max(times) if times else 0.0
        if self.polled and age < DAY_SECONDS:
            age = 0.0  # the times are a server's, whose clock is another
        written = status.st_mtime_ns == status.st_ctime_ns and status.st_nlink == 1
        return Look(Fingerprint.of(status), age, written)
