"""Floods a watched folder in every way that has ever lost files, and counts what was missed.

    python tests/chaos/arrivals.py [--short] [--folder FOLDER]

Another process makes the files, while two threads beside the watcher keep Python busy. After each
flood it is counted what had not been handed on once the watcher had caught up, and what was still
missing after one rescan. Prints a table; the exit code is 1 if a file was missed after all, or
handed on twice in the same version.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from phi4d.inbox import Inspection, Root, Rules, Watcher
from phi4d.job import Arrival, Fingerprint, Kind

TREES, DEPTH = 20, 48
QUIET_SECONDS = 10.0  # without an arrival, after which a flood counts as over
LATENCIES = 300


class Hands:
    """Stands for the store: takes what is handed on, knows what it has, and waits for more."""

    def __init__(self) -> None:
        self.times: dict[tuple[bytes, Fingerprint], float] = {}
        self.twice = 0
        self._changed = threading.Condition()

    def take(self, arrivals: list[Arrival]) -> None:
        now = time.perf_counter()
        with self._changed:
            for arrival in arrivals:
                version = (arrival.path, arrival.fingerprint)
                self.twice += version in self.times
                self.times[version] = now
            self._changed.notify_all()

    def known(self, files: Sequence[tuple[str, bytes, Fingerprint]]) -> list[bool]:
        return [(path, fingerprint) in self.times for _, path, fingerprint in files]

    def paths(self) -> set[bytes]:
        with self._changed:
            return {path for path, _ in self.times}

    def wait_for(self, count: int, caught_up: threading.Event) -> None:
        """Until so many files came, or nothing more does."""
        with self._changed:
            while len(self.times) < count:
                before = len(self.times)
                self._changed.wait(QUIET_SECONDS)
                if len(self.times) == before and caught_up.is_set():
                    return


class Overflows(logging.Handler):
    """Counts how often the kernel's queue overflowed."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def emit(self, record: logging.LogRecord) -> None:
        self.count += "more happened" in record.getMessage()


def by_name(name: bytes) -> Kind | None:
    return Kind.IMAGE if name.endswith(b".jpg") else None


def inspect(path: bytes, _fingerprint: Fingerprint) -> Inspection:
    return Inspection(by_name(path), True)


@contextlib.contextmanager
def watching(folder: Path, hands: Hands, settle_seconds: float) -> Iterator[Watcher]:
    path = os.fsencode(folder)
    watcher = Watcher(
        [Root("in", path, Rules(path), "inotify")],
        hands.take,
        known=hands.known,
        inspect=inspect,
        by_name=by_name,
        settle_seconds=settle_seconds,
        rescan_seconds=3600,
    )
    watcher.start()
    watcher.armed.wait()
    watcher.caught_up.wait()
    try:
        yield watcher
    finally:
        watcher.stop()
        watcher.join()


@contextlib.contextmanager
def busy_threads(count: int) -> Iterator[None]:
    stop = threading.Event()

    def spin() -> None:
        while not stop.is_set():
            sum(range(1000))

    threads = [threading.Thread(target=spin) for _ in range(count)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join()


# ---- what makes the files, in a process of its own: folder, scratch folder, number of files ----


def touch(path: str) -> None:
    with open(path, "wb") as file:
        file.write(b"x")


def burst(folder: Path, _scratch: Path, files: int) -> None:
    for n in range(files):
        touch(f"{folder}/{n}.jpg")


def aside(folder: Path, _scratch: Path, files: int) -> None:
    for n in range(files):
        touch(f"{folder}/.{n}.jpg.part")
        os.rename(f"{folder}/.{n}.jpg.part", f"{folder}/{n}.jpg")


def make_trees(scratch: Path, files: int) -> None:
    for tree in range(TREES):
        for n in range(files // TREES):
            below = scratch / f"tree{tree}" / "/".join(f"d{d}" for d in range(n % DEPTH))
            below.mkdir(parents=True, exist_ok=True)
            touch(f"{below}/{n}.jpg")


def copy(folder: Path, scratch: Path, _files: int) -> None:
    for tree in sorted(scratch.iterdir()):
        subprocess.run(["cp", "-r", tree, folder], check=True)


def move(folder: Path, scratch: Path, _files: int) -> None:
    for tree in sorted(scratch.iterdir()):
        tree.rename(folder / tree.name)


def nested(folder: Path, _scratch: Path, files: int) -> None:
    for n in range(files):
        below = f"{folder}/{n % 100}/{n}/a/b"
        os.makedirs(below)
        touch(f"{below}/{n}.jpg")


FLOODS: dict[str, tuple[Callable[[Path, Path, int], None], int, int]] = {
    "burst": (burst, 100_000, 2_000),
    "aside": (aside, 100_000, 2_000),
    "copy": (copy, 20_000, 200),
    "move": (move, 20_000, 200),
    "nested": (nested, 3_000, 50),
}
"""what is done, with how many files, and with how many in the short form"""


def flood(name: str, files: int, folder: Path, settle_seconds: float) -> tuple[int, int]:
    """Run one; prints a line.

    Returns:
        How many files were missed after a rescan, and how many versions came twice.
    """
    inbox, scratch = folder / "in", folder / "scratch"
    inbox.mkdir()
    scratch.mkdir()
    if name in ("copy", "move"):
        make_trees(scratch, files)
    hands, overflows = Hands(), Overflows()
    log = logging.getLogger("phi4d.inbox.watcher")
    log.addHandler(overflows)
    log.setLevel(logging.INFO)
    command = [sys.executable, __file__, "--produce", name, str(files), str(inbox), str(scratch)]
    with watching(inbox, hands, settle_seconds) as watcher, busy_threads(2):
        began = time.perf_counter()
        subprocess.run(command, check=True)
        made = time.perf_counter() - began
        hands.wait_for(files, watcher.caught_up)
        took = max(hands.times.values(), default=began) - began
        missed = files - len(hands.paths())
        watcher.rescan()
        watcher.caught_up.wait()
        missed_after = files - len(hands.paths())
    log.removeHandler(overflows)
    shutil.rmtree(inbox)
    shutil.rmtree(scratch)
    print(
        f"{name:8} {files:8} {made:8.1f} {took:8.1f} {files / took:8.0f} {overflows.count:9}"
        f" {missed:8} {missed_after:14} {hands.twice:6}",
        flush=True,
    )
    return missed_after, hands.twice


def latency(folder: Path, files: int, busy: int) -> None:
    """Time from close to hand-on, of files that come one by one; prints a line."""
    inbox = folder / "in"
    inbox.mkdir()
    hands = Hands()
    waits = []
    with watching(inbox, hands, 2.0) as watcher, busy_threads(busy):
        for n in range(files):
            touch(f"{inbox}/{n}.jpg")
            closed = time.perf_counter()
            hands.wait_for(n + 1, watcher.caught_up)
            waits.append(max(hands.times.values()) - closed)
    shutil.rmtree(inbox)
    waits.sort()
    p50, p99 = waits[len(waits) // 2], waits[len(waits) * 99 // 100]
    print(
        f"close to hand-on, {files} files, {busy} busy threads: "
        f"p50 {p50 * 1e3:.0f} ms, p99 {p99 * 1e3:.0f} ms"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--short", action="store_true", help="fewer files, some seconds")
    parser.add_argument("--folder", type=Path, help="where to work; default: a temporary folder")
    parser.add_argument("--produce", nargs=4, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.produce:
        name, files, inbox, scratch = given.produce
        FLOODS[name][0](Path(inbox), Path(scratch), int(files))
        return 0
    bad = 0
    print("flood       files   made s   came s   files/s overflows   missed after a rescan  twice")
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        for name, (_, full, short) in FLOODS.items():
            files, settle_seconds = (short, 0.3) if given.short else (full, 2.0)
            bad += sum(flood(name, files, Path(folder), settle_seconds))
        for busy in (0, 2):
            latency(Path(folder), 30 if given.short else LATENCIES, busy)
    print("nothing was missed" if not bad else f"{bad} FILES WERE MISSED OR CAME TWICE")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
