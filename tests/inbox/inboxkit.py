"""A watcher that is driven turn by turn, in the test's own thread, and whose clock can jump."""

from __future__ import annotations

import os
import select
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from phi4d.errors import EnvironmentFault
from phi4d.inbox import Inspection, Root, Rules, Watcher
from phi4d.job import Arrival, Fingerprint, Kind

WAIT_SECONDS = 30.0  # until a test gives up; what it waits for takes milliseconds
SETTLE, SETTLE_MAX = 100.0, 2_000.0  # of the test's clock: no real delay comes near


def by_name(name: bytes) -> Kind | None:
    if name.endswith(b".jpg"):
        return Kind.IMAGE
    return Kind.AUDIO if name.endswith(b".wav") else None


class Hands:
    """Stands for the store and the decoder's eyes."""

    def __init__(self) -> None:
        self.found: list[Arrival] = []
        self.inspected: list[bytes] = []
        self.notices: dict[str, str | None] = {}
        self.refuse = 0
        """so many calls of the store fail"""
        self.sees: Callable[[bytes], Inspection] = lambda path: Inspection(by_name(path), True)
        self._changed = threading.Condition()

    def take(self, found: list[Arrival]) -> None:
        with self._changed:
            self._may_fail()
            self.found += found
            self._changed.notify_all()

    def known(self, files: Sequence[tuple[str, bytes, Fingerprint]]) -> list[bool]:
        self._may_fail()
        have = {(f.inbox, f.path, f.fingerprint) for f in self.found}
        return [file in have for file in files]

    def _may_fail(self) -> None:
        if self.refuse:
            self.refuse -= 1
            raise EnvironmentFault("the store's disk is full")

    def inspect(self, path: bytes, _fingerprint: Fingerprint) -> Inspection:
        self.inspected.append(path)
        return self.sees(path)

    def note(self, inbox: str, text: str | None) -> None:
        self.notices[inbox] = text

    def paths(self) -> list[bytes]:
        with self._changed:
            return sorted(f.path for f in self.found)

    def wait_for(self, *paths: bytes) -> None:
        with self._changed:
            ok = self._changed.wait_for(lambda: set(self.paths()) >= set(paths), WAIT_SECONDS)
        assert ok, f"waited for {set(paths) - set(self.paths())}"

    def arguments(self) -> dict[str, Any]:
        return {
            "known": self.known,
            "inspect": self.inspect,
            "by_name": by_name,
            "notice": self.note,
        }


class Bench:
    """One inbox, "in", and its watcher."""

    def __init__(self, folder: Path, **options: Any) -> None:
        self.folder = folder
        self.hands = Hands()
        self.passed = 0.0
        """seconds that the monotonic clock has jumped; the kernel's goes on as ever"""
        self.aged = 0.0
        """seconds that files seem older than they are"""
        rules = options.pop("rules", None) or Rules(os.fsencode(folder))
        root = Root(
            "in",
            os.fsencode(folder),
            rules,
            options.pop("mode", "inotify"),
            options.pop("kinds", frozenset(Kind)),
        )
        arguments: dict[str, Any] = {
            "settle_seconds": SETTLE,
            "settle_max": SETTLE_MAX,
            "rescan_seconds": 1e9,
            "poll_seconds": 1e9,
            "clock": lambda: time.monotonic() + self.passed,
            "wall_clock": lambda: time.time() + self.aged,
        }
        self.watcher = Watcher(
            [root], self.hands.take, **self.hands.arguments(), **(arguments | options)
        )

    def begin(self) -> None:
        self.watcher.begin()
        self.run()

    def run(self) -> list[bytes]:
        """Turns until there is nothing to do for long; what has been handed on by then."""
        for _ in range(100_000):
            leisure = self.watcher._leisure()
            self.watcher.turn(leisure if leisure <= 0.1 else 0.0)
            descriptor = self.watcher._watches.fileno()
            if self.watcher._leisure() > 0.1 and (
                descriptor is None or not select.select([descriptor], [], [], 0)[0]
            ):
                return self.hands.paths()
        raise AssertionError("the watcher does not come to rest")

    def after(self, seconds: float) -> list[bytes]:
        """What has been handed on when so much time has passed.

        The clock jumps to what is due next, as it would go on while the watcher waits.
        """
        end = self.passed + seconds
        self.run()
        while (step := min(self.watcher._leisure(), end - self.passed)) > 0:
            self.passed += step
            self.run()
        return self.hands.paths()

    def rescan(self) -> list[bytes]:
        """What has been handed on after a comparison."""
        self.watcher.rescan()
        return self.run()

    @property
    def waiting(self) -> int:
        """How many files settle."""
        return len(self.watcher._settler)

    @property
    def watched(self) -> int:
        """How many folders are watched."""
        return self.watcher._watches.count("in")


def write(path: Path | bytes, data: bytes = b"x") -> Path | bytes:
    with open(path, "wb") as file:
        file.write(data)
    return path


needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root mounts and makes devices")


@contextmanager
def tmpfs(folder: Path) -> Iterator[None]:
    """A file system at a folder. Skips the test where none may be mounted."""
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "phi4d-test", folder], capture_output=True, check=False
    )
    if done.returncode != 0:
        pytest.skip(f"nothing may be mounted: {done.stderr.decode().strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", folder], capture_output=True, check=False)
